//! The data plane of this node: the device, the path engine that steers it, the echo sockets, and the host network.

mod applying;
mod callers;
mod opening;
mod others;

pub use applying::Planned;

use callers::Callers;

use super::{
    INPUT_BUDGET,
    identity::Identity,
    intent::{DeviceIntent, Intent},
};
use crate::{
    carry::{Bells, Carrier},
    host::{
        Echo, Host,
        echo::{self, Message},
    },
    paths::PathTable,
    relays::{self, Relays},
};
use crds::mesh::Backend;
use futures::FutureExt;
use path::{Candidate, Engine, Event, Input, NatReport, PeerCounters, RelayNews};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use topology::node::PeerPlans;
use wgdev::{Datagram, Delta, Device, DeviceError, PeerStatus, PeerUpdate};
use wire::key::PublicKey;

/// Engine events handled in one turn; the rest waits for the next, after other inputs had theirs.
const EVENT_BUDGET: usize = 1024;
/// What has arrived of each sort and is taken in before anything that is due: as much as the queues of device and relays hold.
const ARRIVALS: usize = 256;

/// Where a peer of the kernel's points that shall have no endpoint: the discard port of this machine, where nobody listens and
/// nobody without privileges can.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// An open device with everything that lives and dies with it.
pub struct Plane {
    device: Arc<dyn Device>,
    wanted: DeviceIntent,
    /// Peers that the device had when it was opened, until a plan has claimed or removed them.
    leftover: PeerPlans,
    engine: Engine,
    echo: Arc<dyn Echo>,
    /// The peers as last applied, and the revision of that plan.
    peers: PeerPlans,
    revision: Option<u64>,
    /// Peers that the device refused as they are planned.
    refused: BTreeSet<PublicKey>,
    /// When to look at all peers of a device that others can change, and whether they did.
    look_at: Instant,
    meddled: bool,
    fed: Fed,
    relays: Relays,
    channels_changed: bool,
    /// Takes WireGuard's packets to relays' channels and hears of peers that are to be woken; nothing where that can't be had.
    carrier: Option<Carrier>,
    /// What was to go to peers that slept.
    callers: Callers,
    by_mesh_ip: BTreeMap<IpAddr, PublicKey>,
    counters_at: Instant,
    local: Option<(Vec<Candidate>, NatReport)>,
}

/// What the engine was last told, so that it is told changes only.
#[derive(Default)]
struct Fed {
    forbidden: Option<path::Forbidden>,
    hosts: Option<Vec<ipnet::IpNet>>,
    stun_servers: Option<Vec<SocketAddr>>,
    on_demand: Option<path::OnDemand>,
    knows_relays: Option<bool>,
}

/// What a turn of the engine brought to light.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Our own candidates or NATs changed.
    pub local: bool,
    /// Some path changed.
    pub paths: bool,
    /// Whether the NAT is poisonable was found out, or is not known any more.
    pub nat: bool,
    /// Another program changed peers of the device.
    pub meddled: bool,
    /// A channel to a relay was opened or closed.
    pub channels: bool,
}

impl Plane {
    /// Attaches to the device or makes it, on the assigned port or the next free one, and starts the path engine. A device
    /// that stands on one of those keeps it, unless the port was `reassigned`.
    pub async fn open(
        host: &Arc<dyn Host>,
        name: &str,
        identity: &Identity,
        intent: &Intent,
        reassigned: bool,
        now: Instant,
    ) -> Result<Self, DeviceError> {
        let standing = if reassigned { None } else { host.standing_port(name, identity.public_key()).await };
        let device = opening::open_device(host.as_ref(), name, identity, intent, standing).await?;
        let found = device.peers().await?;
        // Without them no path would ever be confirmed, so a device alone is of no use.
        let echo = host.open_echo(name).map_err(|source| DeviceError::Io { doing: "open the echo sockets", source })?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|e| DeviceError::Io { doing: "draw a seed", source: std::io::Error::other(e.to_string()) })?;
        let config = path::Config {
            private_key: identity.private_key(),
            mesh_id: intent.device.mesh_id.clone(),
            psk: None,
            listen_port: device.listen_port(),
            repeats_handshakes: device.backend() == wgdev::Backend::Userspace,
            seed,
        };
        let carrier = open_carrier(host.as_ref(), device.listen_port());
        let mut engine = Engine::new(config, now);
        engine.handle_input(Input::Carrier(carrier.as_ref().map(Carrier::port)), now);
        let feed = carrier.as_ref().map(Carrier::feed);
        Ok(Self {
            wanted: intent.device.clone(),
            relays: Relays::new(host.clone(), identity.credentials(intent.device.fwmark), feed),
            channels_changed: false,
            carrier,
            callers: Callers::default(),
            engine,
            echo: Arc::from(echo),
            device,
            leftover: found.iter().map(|peer| (peer.public_key, Arc::new(applying::plan_of(peer)))).collect(),
            peers: PeerPlans::new(),
            revision: None,
            refused: BTreeSet::new(),
            look_at: now,
            meddled: false,
            fed: Fed::default(),
            by_mesh_ip: BTreeMap::new(),
            counters_at: now,
            local: None,
        })
    }

    /// Whether this device serves that intent, or another must be opened.
    pub fn serves(&self, intent: &DeviceIntent) -> bool {
        let has_it = match (intent.backend, self.backend()) {
            (Backend::Auto | Backend::Kernel, wgdev::Backend::Kernel)
            | (Backend::Userspace, wgdev::Backend::Userspace) => true,
            _ => self.wanted.backend == intent.backend,
        };
        has_it && self.wanted == DeviceIntent { backend: self.wanted.backend, ..intent.clone() }
    }

    /// Which WireGuard it is.
    pub fn backend(&self) -> wgdev::Backend {
        self.device.backend()
    }

    /// The device, for the loop to receive from.
    pub fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }

    /// The echo sockets, for the loop to receive from.
    pub fn echo(&self) -> Arc<dyn Echo> {
        self.echo.clone()
    }

    /// The UDP port in use.
    pub fn listen_port(&self) -> u16 {
        self.device.listen_port()
    }

    /// The path engine, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The revision of the plan that was applied last.
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// Our own candidates and NATs, once they are known.
    pub fn local(&self) -> Option<&(Vec<Candidate>, NatReport)> {
        self.local.as_ref()
    }

    /// The channels to relays, to look at.
    pub fn relays(&self) -> &Relays {
        &self.relays
    }

    /// What is carried over relays' channels, to look at.
    pub fn carrier(&self) -> Option<&Carrier> {
        self.carrier.as_ref()
    }

    /// What the device has sent to peers that sleep, for the loop to wait for.
    pub fn bells(&self) -> Option<Arc<Bells>> {
        self.carrier.as_ref().map(Carrier::bells)
    }

    /// Takes what the device has sent to peers that sleep.
    pub async fn handle_calls(&mut self, now: Instant) {
        let Some(bells) = self.bells() else { return };
        for _ in 0..INPUT_BUDGET {
            let Some(call) = bells.take() else { return };
            let peer = call.peer;
            self.callers.keep(call, now);
            self.engine.handle_input(Input::Called { peer }, now);
            // Sent before the device knew better.
            if let Some((endpoint, _)) = self.engine.endpoint_of(&peer) {
                self.send_waiting(peer, endpoint, now).await;
            }
        }
        // The rest has its turn after other inputs.
        bells.ring_again();
    }

    /// The next report of a channel to a relay. Cancel safe.
    pub async fn relay_report(&mut self) -> relays::Report {
        self.relays.next().await
    }

    /// A channel to a relay has reported.
    pub fn handle_relay(&mut self, report: relays::Report, now: Instant) {
        for (relay, news) in self.relays.accept(report, now) {
            self.channels_changed |= !matches!(news, RelayNews::Said(_));
            self.engine.handle_input(Input::Relay { relay, news }, now);
        }
    }

    /// Whether the operator has admitted this node's key.
    pub fn set_admitted(&self, admitted: bool) {
        self.relays.set_admitted(admitted);
    }

    /// The host's own network is another one.
    pub fn network_changed(&mut self, now: Instant) {
        self.engine.handle_input(Input::NetworkChanged, now);
    }

    /// A datagram arrived on WireGuard's port.
    pub fn handle_datagram(&mut self, datagram: Datagram, now: Instant) {
        let Datagram { remote, local, payload } = datagram;
        self.engine.handle_input(Input::Datagram { from: remote, to: local, payload }, now);
    }

    /// A datagram arrived on the echo port, through the tunnel; WireGuard has checked that its source is the peer's.
    pub fn handle_echo(&mut self, from: SocketAddr, payload: &[u8], now: Instant) {
        let Some(peer) = self.by_mesh_ip.get(&from.ip()).copied() else { return };
        match Message::decode(payload) {
            Some(Message::Request(token)) => {
                self.send_echo(from, Message::Reply(token));
                self.engine.handle_input(Input::EchoRequest { peer }, now);
            }
            Some(Message::Reply(token)) => self.engine.handle_input(Input::EchoReply { peer, token }, now),
            None => {}
        }
    }

    /// Takes in what has arrived without waiting for more. Whoever calls [`Self::turn`] late must not take its own delay for the
    /// silence of others.
    fn take_in(&mut self, now: Instant) -> Result<(), DeviceError> {
        let lost = |source| DeviceError::Io { doing: "receive", source };
        for _ in 0..ARRIVALS {
            let Some(datagram) = self.device.recv().now_or_never() else { break };
            self.handle_datagram(datagram.map_err(lost)?, now);
        }
        for _ in 0..ARRIVALS {
            let Some(echo) = self.echo.recv().now_or_never() else { break };
            let (from, payload) = echo.map_err(lost)?;
            self.handle_echo(from, &payload, now);
        }
        for _ in 0..ARRIVALS {
            let Some(report) = self.relays.try_next() else { break };
            self.handle_relay(report, now);
        }
        Ok(())
    }

    /// Takes in what has arrived, then does what is due, in the engine's order: timers, events, datagrams, then what relays are told.
    pub async fn turn(&mut self, paths: &mut PathTable, now: Instant) -> Result<News, DeviceError> {
        self.take_in(now)?;
        let mut news = News { channels: std::mem::take(&mut self.channels_changed), ..News::default() };
        if self.counters_at <= now && !self.peers.is_empty() {
            self.read_counters(now).await?;
        }
        news.meddled = std::mem::take(&mut self.meddled);
        self.engine.handle_timeout(now);
        for _ in 0..EVENT_BUDGET {
            let Some(event) = self.engine.poll_event() else { break };
            self.carry_out(event, paths, &mut news, now).await?;
        }
        while let Some(transmit) = self.engine.poll_transmit() {
            let path::Transmit { remote, local, ttl, payload } = transmit;
            let datagram = Datagram { remote, local, payload };
            let sent = match ttl {
                Some(ttl) => self.device.send_with_ttl(datagram, ttl).await,
                None => self.device.send(datagram).await,
            };
            if let Err(e) = sent {
                // An unreachable address is what probing is there to find out.
                tracing::trace!(%remote, error = %e, "a probe was not sent");
            }
        }
        while let Some(path::Control { relay, message }) = self.engine.poll_control() {
            if let Some((relay, news)) = self.relays.send(relay, message, now) {
                self.engine.handle_input(Input::Relay { relay, news }, now);
            }
        }
        Ok(news)
    }

    /// When [`Self::turn`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let counters = (!self.peers.is_empty()).then_some(self.counters_at);
        let engine = self.engine.poll_timeout().map(|(at, _)| at);
        [counters, engine].into_iter().flatten().min()
    }

    /// Hands the device's counters to the engine.
    async fn read_counters(&mut self, now: Instant) -> Result<(), DeviceError> {
        let counters = if self.look_is_due(now) {
            self.look(now).await?.iter().map(PeerStatus::counters).collect()
        } else {
            self.device.counters().await?
        };
        let counters = counters.iter().map(|p| PeerCounters {
            public_key: p.public_key,
            rx_bytes: p.rx_bytes,
            tx_bytes: p.tx_bytes,
            last_handshake: p.last_handshake,
            endpoint: p.endpoint.filter(|endpoint| *endpoint != NOWHERE),
        });
        self.engine.handle_input(Input::Counters(counters.collect()), now);
        self.counters_at = now + self.engine.counters_interval();
        Ok(())
    }

    /// The device's peers, ordered by key; one that points at nobody has no endpoint.
    pub async fn statuses(&self) -> Result<Vec<PeerStatus>, DeviceError> {
        let mut peers = self.device.peers().await?;
        for peer in &mut peers {
            peer.endpoint.take_if(|endpoint| *endpoint == NOWHERE);
        }
        Ok(peers)
    }

    fn feed_surroundings(&mut self, intent: &Intent, now: Instant) {
        // What is forbidden first: nothing may be dialled before that is known.
        if self.fed.forbidden.as_ref() != Some(&intent.forbidden) {
            self.engine.handle_input(Input::Forbidden(intent.forbidden.clone()), now);
            self.fed.forbidden = Some(intent.forbidden.clone());
        }
        let idle = intent.idle.zip(self.carrier.as_ref());
        let on_demand = idle.map(|(idle, carrier)| path::OnDemand { idle, port: carrier.port() });
        if self.fed.on_demand != on_demand {
            self.engine.handle_input(Input::OnDemand(on_demand), now);
            self.fed.on_demand = on_demand;
        }
        // And relays before peers: what is said to one waits for its channel.
        for (relay, news) in self.relays.set(&intent.relays, now) {
            self.engine.handle_input(Input::Relay { relay, news }, now);
        }
        if self.fed.knows_relays != Some(intent.knows_relays) {
            self.engine.handle_input(Input::RelaysUnknown(!intent.knows_relays), now);
            self.fed.knows_relays = Some(intent.knows_relays);
        }
        if self.fed.stun_servers.as_ref() != Some(&intent.stun_servers) {
            self.engine.handle_input(Input::StunServers(intent.stun_servers.clone()), now);
            self.fed.stun_servers = Some(intent.stun_servers.clone());
        }
        if self.fed.hosts.as_ref() != Some(&intent.hosts) {
            self.engine.handle_input(Input::HostCandidates(intent.hosts.clone()), now);
            self.fed.hosts = Some(intent.hosts.clone());
        }
    }

    async fn carry_out(
        &mut self,
        event: Event,
        paths: &mut PathTable,
        news: &mut News,
        now: Instant,
    ) -> Result<(), DeviceError> {
        match event {
            Event::LocalCandidates(candidates, nat) => {
                self.local = Some((candidates, nat));
                news.local = true;
            }
            Event::Poisonable(_) => news.nat = true,
            Event::SetEndpoint { peer, endpoint, keepalive } if self.peers.contains_key(&peer) => {
                let update =
                    PeerUpdate { endpoint: Some(endpoint), keepalive: Some(keepalive), ..PeerUpdate::new(peer) };
                self.update(Delta { upsert: vec![update], remove: Vec::new() }).await?;
                self.send_waiting(peer, endpoint, now).await;
            }
            Event::ClearEndpoint { peer } if self.peers.contains_key(&peer) => {
                self.update(self.without_endpoint(peer)).await?;
            }
            Event::SetEndpoint { .. } | Event::ClearEndpoint { .. } => {}
            Event::Carry { endpoint, relay, allocation } => {
                if let (Some(carrier), Some(lane)) = (&self.carrier, self.relays.lane(relay)) {
                    carrier.carry(endpoint, relay, allocation, lane);
                }
            }
            Event::Await { peer, endpoint } => {
                if let Some(carrier) = &self.carrier {
                    carrier.await_peer(endpoint, peer);
                }
            }
            Event::CarryNoMore { endpoint } => {
                if let Some(carrier) = &self.carrier {
                    carrier.carry_no_more(endpoint);
                }
            }
            Event::RenewChannel { relay } => self.relays.renew(relay),
            Event::StartHandshake { peer } => match self.start_handshake(&peer, now).await {
                Ok(()) => self.counters_at = self.counters_at.min(now + Duration::from_millis(250)),
                Err(e @ (DeviceError::Stopped | DeviceError::Io { .. })) => return Err(e),
                Err(e) => tracing::debug!(peer = peer.short(), error = %e, "a handshake was not started"),
            },
            Event::SendEcho { peer, token } => {
                let mesh_ip = self.peers.get(&peer).and_then(|p| p.mesh_ips.first());
                if let Some(ip) = mesh_ip {
                    self.send_echo(SocketAddr::new(*ip, echo::PORT), Message::Request(token));
                }
            }
            Event::PathChanged { peer, state } => {
                news.paths = true;
                if let Some(name) = paths.report(&peer, state, now) {
                    let (now_is, reason) = (crate::paths::state_name(&state), crate::paths::reason_name(&state));
                    tracing::info!(
                        peer = name,
                        key = peer.short(),
                        state = now_is,
                        reason,
                        "the path to a peer changed"
                    );
                }
            }
        }
        Ok(())
    }

    /// The kernel starts no handshake so soon after one that went to a bell: that one goes on its way.
    async fn start_handshake(&self, peer: &PublicKey, now: Instant) -> Result<(), DeviceError> {
        let endpoint = self.engine.endpoint_of(peer).map(|(endpoint, _)| endpoint);
        let waiting = self.callers.initiation(peer, now).filter(|_| self.backend() == wgdev::Backend::Kernel);
        if let (Some(remote), Some(initiation)) = (endpoint, waiting) {
            self.send_from_port(remote, initiation.to_vec()).await;
        }
        self.device.start_handshake(peer).await
    }

    /// What was to go to a peer that slept goes to where it is now; or nowhere, if it sleeps again.
    async fn send_waiting(&mut self, peer: PublicKey, endpoint: SocketAddr, now: Instant) {
        if self.carrier.as_ref().is_some_and(|carrier| carrier.stands_for(endpoint) == Some(peer)) {
            return;
        }
        for message in self.callers.data(&peer, now) {
            self.send_from_port(endpoint, message).await;
        }
    }

    /// Sends a message of WireGuard's as if WireGuard did.
    async fn send_from_port(&self, remote: SocketAddr, payload: Vec<u8>) {
        if let Err(e) = self.device.send(Datagram { remote, local: None, payload }).await {
            tracing::debug!(error = %e, "what waited for a path was not sent");
        }
    }

    /// WireGuard has no way to forget an endpoint but to forget the peer. In this process that is one step. In the kernel it
    /// is two, between which there is no peer, and a session that the kernel kept alive while no agent watched would end; so
    /// there the peer is pointed at nobody, and comes back with its first packet.
    fn without_endpoint(&self, peer: PublicKey) -> Delta {
        match self.backend() {
            wgdev::Backend::Kernel => {
                let update = PeerUpdate {
                    endpoint: Some(NOWHERE),
                    // Or the kernel would try a handshake with nobody each time.
                    keepalive: Some(None),
                    ..PeerUpdate::new(peer)
                };
                Delta { upsert: vec![update], remove: Vec::new() }
            }
            wgdev::Backend::Userspace => {
                let allowed_ips = self.peers.get(&peer).map(|plan| plan.allowed_ips.clone());
                Delta { upsert: vec![PeerUpdate { allowed_ips, ..PeerUpdate::new(peer) }], remove: vec![peer] }
            }
        }
    }

    /// Changes one peer. That the device refuses it concerns that peer, and was said when it was configured.
    async fn update(&self, delta: Delta) -> Result<(), DeviceError> {
        match self.device.apply(&delta).await {
            Err(e @ DeviceError::Refused(_)) => {
                tracing::debug!(error = %e, "an endpoint was not set");
                Ok(())
            }
            other => other,
        }
    }

    fn send_echo(&self, to: SocketAddr, message: Message) {
        if let Err(e) = self.echo.send(to, &message.encode()) {
            tracing::debug!(error = %e, "an echo was not sent");
        }
    }
}

/// Without it the mesh does all but go by relays' channels.
fn open_carrier(host: &dyn Host, wireguard: u16) -> Option<Carrier> {
    let carrier = host.open_carrier(wireguard);
    carrier
        .inspect_err(|error| {
            tracing::warn!(%error, "the loopback socket can't be opened; nothing can be carried over channels to relays");
        })
        .ok()
}

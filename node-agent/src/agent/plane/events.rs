//! What the path engine wants, done on the device, the echo sockets and the relays' channels.

use super::{NOWHERE, Plane};
use crate::{
    host::echo::{self, Message},
    paths::{self, PathTable},
};
use path::Event;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use wgdev::{Datagram, Delta, DeviceError, PeerUpdate};
use wire::key::PublicKey;

impl Plane {
    pub(super) async fn carry_out(
        &mut self,
        event: Event,
        table: &mut PathTable,
        now: Instant,
    ) -> Result<(), DeviceError> {
        match event {
            Event::LocalCandidates(candidates, nat) => {
                self.local = Some((candidates, nat));
                self.news.local = true;
            }
            Event::Poisonable(_) => self.news.nat = true,
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
                self.news.paths = true;
                if let Some(name) = table.report(&peer, state, now) {
                    let (now_is, reason) = (paths::state_name(&state), paths::reason_name(&state));
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
    pub(super) async fn send_waiting(&mut self, peer: PublicKey, endpoint: SocketAddr, now: Instant) {
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

    pub(super) fn send_echo(&self, to: SocketAddr, message: Message) {
        if let Err(e) = self.echo.send(to, &message.encode()) {
            tracing::debug!(error = %e, "an echo was not sent");
        }
    }
}

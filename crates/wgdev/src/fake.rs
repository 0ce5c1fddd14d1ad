//! A device in memory, for tests of what drives one, and the model the others are held against.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use wire::key::PublicKey;

use crate::{
    Backend, BoxFuture, Datagram, Delta, Device, DeviceConfig, DeviceError, DeviceStats, MAX_PEERS, PeerStatus,
    PeerUpdate, Refusal, RefusalReason,
    allowed_ips::AllowedIps,
    check::{keepalive_secs, refuse},
};

/// Datagrams a fake holds for [`Device::recv`]; the next one is dropped, as on the real ones.
const SHARED_QUEUE: usize = 256;

/// A device without an interface, a socket or packets.
///
/// It keeps peers as a real one does, and lets a test play the network: [`Fake::deliver`] makes a
/// datagram arrive, [`Fake::take_sent`] shows what was sent, [`Fake::roam`], [`Fake::add_traffic`] and
/// [`Fake::complete_handshake`] do what packets of a peer would.
pub struct Fake {
    backend: Backend,
    name: String,
    listen_port: u16,
    mtu: u16,
    own: PublicKey,
    state: Mutex<State>,
    arriving: mpsc::Sender<Datagram>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<Datagram>>,
}

#[derive(Default)]
struct Peer {
    endpoint: Option<SocketAddr>,
    keepalive: Option<u16>,
    rx_bytes: u64,
    tx_bytes: u64,
    last_handshake: Option<Instant>,
}

struct State {
    peers: BTreeMap<PublicKey, Peer>,
    allowed_ips: AllowedIps<PublicKey>,
    stats: DeviceStats,
    sent: Vec<Datagram>,
    handshakes: Vec<PublicKey>,
    applied: Vec<Delta>,
    broken: bool,
}

impl Fake {
    /// Index of every fake interface; no real one is likely to have it.
    pub const IF_INDEX: u32 = 4242;

    /// A userspace device without peers.
    pub fn new(config: DeviceConfig) -> Self {
        Self::of(Backend::Userspace, config)
    }

    /// A device without peers that says it is of this backend.
    pub fn of(backend: Backend, config: DeviceConfig) -> Self {
        let DeviceConfig { name, private_key, listen_port, fwmark: _, mtu } = config;
        let (arriving, arrived) = mpsc::channel(SHARED_QUEUE);
        Self {
            backend,
            name,
            listen_port,
            mtu,
            own: private_key.public_key(),
            state: Mutex::new(State {
                peers: BTreeMap::new(),
                allowed_ips: AllowedIps::new(),
                stats: DeviceStats::default(),
                sent: Vec::new(),
                handshakes: Vec::new(),
                applied: Vec::new(),
                broken: false,
            }),
            arriving,
            arrived: tokio::sync::Mutex::new(arrived),
        }
    }

    /// Makes a datagram arrive on the shared port; false when the queue was full and it was dropped.
    pub fn deliver(&self, datagram: Datagram) -> bool {
        let delivered = self.arriving.try_send(datagram).is_ok();
        if !delivered {
            self.state.lock().stats.shared_dropped += 1;
        }
        delivered
    }

    /// Datagrams sent since the last call.
    pub fn take_sent(&self) -> Vec<Datagram> {
        std::mem::take(&mut self.state.lock().sent)
    }

    /// Handshakes started since the last call.
    pub fn take_handshakes(&self) -> Vec<PublicKey> {
        std::mem::take(&mut self.state.lock().handshakes)
    }

    /// Deltas applied since the last call.
    pub fn take_applied(&self) -> Vec<Delta> {
        std::mem::take(&mut self.state.lock().applied)
    }

    /// Moves the endpoint of a peer as an authenticated packet from elsewhere does.
    pub fn roam(&self, peer: &PublicKey, endpoint: SocketAddr) {
        self.with_peer(peer, |p| p.endpoint = Some(endpoint));
    }

    /// Counts traffic of a peer.
    pub fn add_traffic(&self, peer: &PublicKey, rx_bytes: u64, tx_bytes: u64) {
        self.with_peer(peer, |p| {
            p.rx_bytes += rx_bytes;
            p.tx_bytes += tx_bytes;
        });
    }

    /// Completes a handshake with a peer now.
    pub fn complete_handshake(&self, peer: &PublicKey) {
        self.with_peer(peer, |p| p.last_handshake = Some(Instant::now()));
    }

    /// From now on every call fails as if the interface had been deleted, or works again.
    pub fn set_broken(&self, broken: bool) {
        self.state.lock().broken = broken;
    }

    fn with_peer(&self, peer: &PublicKey, change: impl FnOnce(&mut Peer)) {
        if let Some(peer) = self.state.lock().peers.get_mut(peer) {
            change(peer);
        }
    }
}

impl State {
    fn check(&self) -> Result<(), DeviceError> {
        if self.broken {
            return Err(DeviceError::Stopped);
        }
        Ok(())
    }

    fn remove(&mut self, key: &PublicKey) {
        self.peers.remove(key);
        self.allowed_ips.remove_owner(key);
    }

    fn upsert(&mut self, update: &PeerUpdate, own: &PublicKey) -> Result<(), RefusalReason> {
        if let Some(reason) = refuse(update, own) {
            return Err(reason);
        }
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&update.public_key) {
            return Err(RefusalReason::TooManyPeers);
        }
        let peer = self.peers.entry(update.public_key).or_default();
        if let Some(endpoint) = update.endpoint {
            peer.endpoint = Some(endpoint);
        }
        if let Some(keepalive) = update.keepalive {
            peer.keepalive = keepalive_secs(keepalive);
        }
        if let Some(nets) = &update.allowed_ips {
            self.allowed_ips.set(&update.public_key, nets);
        }
        Ok(())
    }

    fn apply(&mut self, delta: &Delta, own: &PublicKey) -> Result<(), DeviceError> {
        self.check()?;
        self.applied.push(delta.clone());
        for key in &delta.remove {
            self.remove(key);
        }
        let mut refused = Vec::new();
        for update in &delta.upsert {
            if let Err(reason) = self.upsert(update, own) {
                refused.push(Refusal { public_key: update.public_key, reason });
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(DeviceError::Refused(refused)) }
    }

    fn statuses(&self) -> Vec<PeerStatus> {
        self.peers.iter().map(|(key, peer)| peer.status(*key, self.allowed_ips.of(key))).collect()
    }
}

impl Peer {
    fn status(&self, public_key: PublicKey, allowed_ips: &[IpNet]) -> PeerStatus {
        PeerStatus {
            public_key,
            endpoint: self.endpoint,
            allowed_ips: allowed_ips.to_vec(),
            keepalive: self.keepalive.map(|secs| Duration::from_secs(secs.into())),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            last_handshake: self.last_handshake.map(|at| at.elapsed()),
        }
    }
}

impl Device for Fake {
    fn backend(&self) -> Backend {
        self.backend
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn if_index(&self) -> u32 {
        Self::IF_INDEX
    }

    fn listen_port(&self) -> u16 {
        self.listen_port
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn apply<'a>(&'a self, delta: &'a Delta) -> BoxFuture<'a, Result<(), DeviceError>> {
        Box::pin(async move { self.state.lock().apply(delta, &self.own) })
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<PeerStatus>, DeviceError>> {
        Box::pin(async move {
            let state = self.state.lock();
            state.check()?;
            Ok(state.statuses())
        })
    }

    fn start_handshake<'a>(&'a self, peer: &'a PublicKey) -> BoxFuture<'a, Result<(), DeviceError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            state.check()?;
            let known = state.peers.get(peer).ok_or(DeviceError::UnknownPeer(*peer))?;
            known.endpoint.ok_or(DeviceError::NoEndpoint(*peer))?;
            state.handshakes.push(*peer);
            Ok(())
        })
    }

    fn send(&self, datagram: Datagram) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            state.check().map_err(io::Error::other)?;
            state.sent.push(datagram);
            Ok(())
        })
    }

    fn send_with_ttl(&self, _: Datagram, _: u8) -> BoxFuture<'_, io::Result<()>> {
        // It leaves the node and arrives nowhere.
        Box::pin(async move { self.state.lock().check().map_err(io::Error::other) })
    }

    fn recv(&self) -> BoxFuture<'_, io::Result<Datagram>> {
        Box::pin(async move {
            let mut arrived = self.arrived.lock().await;
            let datagram = arrived.recv().await;
            datagram.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
        })
    }

    fn stats(&self) -> DeviceStats {
        self.state.lock().stats
    }
}

#[cfg(test)]
mod tests {
    use wire::key::PrivateKey;

    use super::*;

    fn key(seed: u8) -> PublicKey {
        PrivateKey::from_bytes([seed; 32]).public_key()
    }

    fn fake() -> Fake {
        Fake::new(DeviceConfig {
            name: "warren0".into(),
            private_key: PrivateKey::from_bytes([99; 32]),
            listen_port: 21820,
            fwmark: 0x10,
            mtu: 1420,
        })
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn an_update_leaves_what_it_does_not_name() {
        let device = fake();
        let full = PeerUpdate {
            public_key: key(1),
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            allowed_ips: Some(vec!["10.0.0.1/32".parse().unwrap()]),
            keepalive: Some(Some(Duration::from_secs(25))),
        };
        let moved = PeerUpdate { endpoint: Some("192.0.2.2:51820".parse().unwrap()), ..PeerUpdate::new(key(1)) };
        let status = block_on(async {
            for update in [full.clone(), moved.clone()] {
                let delta = Delta { upsert: vec![update], remove: vec![] };
                device.apply(&delta).await.unwrap();
            }
            device.peers().await.unwrap()
        });
        assert_eq!(status.len(), 1);
        assert_eq!(status[0].endpoint, moved.endpoint);
        assert_eq!(Some(&status[0].allowed_ips), full.allowed_ips.as_ref());
        assert_eq!(status[0].keepalive, Some(Duration::from_secs(25)));
    }

    #[test]
    fn one_bad_peer_does_not_stop_the_others() {
        let device = fake();
        let bad = PublicKey::from_bytes([0; 32]);
        let own = PrivateKey::from_bytes([99; 32]).public_key();
        let upsert = [bad, own, key(1)].map(PeerUpdate::new).to_vec();
        let delta = Delta { upsert, remove: vec![] };
        let result = block_on(device.apply(&delta));
        let Err(DeviceError::Refused(refused)) = result else {
            panic!("expected a refusal, got {result:?}");
        };
        let reasons: Vec<_> = refused.iter().map(|r| r.reason).collect();
        assert_eq!(reasons, [RefusalReason::InvalidKey, RefusalReason::OwnKey]);
        assert_eq!(block_on(device.peers()).unwrap().len(), 1);
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_counts() {
        let device = fake();
        let datagram = |n: usize| Datagram {
            remote: "192.0.2.1:3478".parse().unwrap(),
            local: None,
            payload: n.to_be_bytes().to_vec(),
        };
        assert!((0..SHARED_QUEUE).all(|n| device.deliver(datagram(n))));
        assert!(!device.deliver(datagram(SHARED_QUEUE)));
        assert_eq!(block_on(device.recv()).unwrap(), datagram(0));
        assert_eq!(device.stats().shared_dropped, 1);
    }
}

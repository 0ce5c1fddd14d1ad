//! Nodes: devices in namespaces.

use wgdev::{Delta, Device, DeviceConfig, DeviceError, Kernel, PeerStatus, PeerUpdate, Userspace};
use wire::key::{PrivateKey, PublicKey};

use super::{
    block_on,
    namespace::{Cable, Namespace, no_child},
    traffic::Echo,
};

pub const PORT: u16 = 21820;
pub const DEVICE: &str = "wd-tun";
pub const MTU: u16 = 1420;
pub const MARK: u32 = 0x10;

/// Where the devices of `a` and `b` are.
pub const AT_A: &str = "198.51.100.1:21820";
pub const AT_B: &str = "198.51.100.2:21820";

/// A device that a test opens.
pub trait Open: Device + Send + Sized + 'static {
    /// Whether it counts what it drops by reason.
    const COUNTS: bool;

    /// Commands that make an interface of our name that isn't its kind, those that take it away, and a word of what
    /// `open` says of it.
    const FOREIGN: &'static [[&'static str; 3]];

    fn open(config: DeviceConfig) -> Result<Self, DeviceError>;
}

impl Open for Userspace {
    const COUNTS: bool = true;
    const FOREIGN: &'static [[&'static str; 3]] = &[
        ["link add wd-tun type veth peer name wd-other", "link del wd-tun", "veth"],
        ["tuntap add wd-tun mode tun", "link del wd-tun", "single queue"],
        ["tuntap add wd-tun mode tap multi_queue", "link del wd-tun", "TAP"],
        ["link add wd-tun type bridge", "link del wd-tun", "bridge"],
    ];

    fn open(config: DeviceConfig) -> Result<Self, DeviceError> {
        Userspace::open(config)
    }
}

impl Open for Kernel {
    const COUNTS: bool = false;
    const FOREIGN: &'static [[&'static str; 3]] = &[
        ["link add wd-tun type veth peer name wd-other", "link del wd-tun", "veth"],
        ["tuntap add wd-tun mode tun", "link del wd-tun", "TUN"],
        ["link add wd-tun type bridge", "link del wd-tun", "bridge"],
        ["link property add dev lo altname wd-tun", "link property del dev lo altname wd-tun", "another name of lo"],
    ];

    fn open(config: DeviceConfig) -> Result<Self, DeviceError> {
        Kernel::open(config)
    }
}

/// Opens a device, or tries to.
pub fn open<D: Open>(namespace: &Namespace, config: DeviceConfig) -> Result<D, DeviceError> {
    namespace.run(move || {
        let _guard = no_child();
        D::open(config)
    })
}

/// Why a device can't be opened.
pub fn open_error<D: Open>(namespace: &Namespace, config: DeviceConfig) -> DeviceError {
    match open::<D>(namespace, config) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

/// A node: 10.99.0.N and fd99::N in the mesh.
pub struct Node<D> {
    pub device: D,
    pub key: PublicKey,
}

pub fn private_key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

pub fn config(seed: u8) -> DeviceConfig {
    DeviceConfig { name: DEVICE.into(), private_key: private_key(seed), listen_port: PORT, fwmark: MARK, mtu: MTU }
}

/// Gives the node's interface its mesh addresses.
pub fn address(namespace: &Namespace, host: u8) {
    namespace.ip(&format!("addr add 10.99.0.{host}/24 dev {DEVICE}"));
    namespace.ip(&format!("addr add fd99::{host}/64 dev {DEVICE} nodad"));
}

impl<D: Open> Node<D> {
    pub fn open(namespace: &Namespace, seed: u8) -> Self {
        Self::of(namespace, config(seed))
    }

    pub fn of(namespace: &Namespace, config: DeviceConfig) -> Self {
        let key = config.private_key.public_key();
        Self { device: open(namespace, config).unwrap(), key }
    }

    pub fn upsert(&self, update: PeerUpdate) {
        let delta = Delta { upsert: vec![update], remove: vec![] };
        block_on(self.device.apply(&delta)).unwrap();
    }

    pub fn status(&self, peer: &PublicKey) -> PeerStatus {
        let peers = block_on(self.device.peers()).unwrap();
        let status = peers.into_iter().find(|p| p.public_key == *peer);
        status.expect("the peer is configured")
    }
}

/// The peer with the mesh addresses of this host.
pub fn peer(key: PublicKey, host: u8, endpoint: Option<&str>) -> PeerUpdate {
    PeerUpdate {
        public_key: key,
        endpoint: endpoint.map(|e| e.parse().unwrap()),
        allowed_ips: Some(vec![
            format!("10.99.0.{host}/32").parse().unwrap(),
            format!("fd99::{host}/128").parse().unwrap(),
        ]),
        keepalive: None,
    }
}

/// Two connected nodes; `a` knows where `b` is, `b` learns it.
pub struct Pair<A, B = A> {
    pub cable: Cable,
    pub a: Node<A>,
    pub b: Node<B>,
}

impl<A: Open, B: Open> Pair<A, B> {
    pub fn new() -> Self {
        Self::over(AT_B)
    }

    pub fn over(endpoint_of_b: &str) -> Self {
        let cable = Cable::new();
        let (a, b) = (Node::of(&cable.a, config(1)), Node::of(&cable.b, config(2)));
        address(&cable.a, 1);
        address(&cable.b, 2);
        let pair = Self { cable, a, b };
        pair.b.upsert(peer(pair.a.key, 1, None));
        pair.a.upsert(peer(pair.b.key, 2, Some(endpoint_of_b)));
        pair
    }

    /// A socket in each mesh end, the one of `b` answering with what it gets.
    pub fn echo(&self) -> Echo {
        Echo::new(&self.cable, "10.99.0.1:0", "10.99.0.2:7")
    }
}

//! Two real WireGuard devices that no packet connects but those that their carriers hand each other, as a relay's channel would: each stands
//! in a network namespace that has nothing but loopback. With the kernel's WireGuard too, where the kernel has it.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use channel::Packets;
use node_agent::carry::{Carrier, Feed, Lane, Outlet};
use path::RelayId;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};
use support::netns::{Namespaces, enter, inside};
use tokio::sync::oneshot;
use wgdev::{Backend, Delta, Device, DeviceConfig, Kernel, PeerStatus, PeerUpdate, Userspace};
use wire::{key::PrivateKey, relay::AllocationId};

const RELAY: RelayId = RelayId([7; 32]);
const ALLOCATION: AllocationId = AllocationId(77);
/// Far more than any step takes.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of a transfer: several windows of TCP, and thousands of packets each way.
const TRANSFER: usize = 8_000_000;

/// What stands for the channels and the relay between the two: hands what one carrier takes to the other.
struct Between {
    far: Arc<OnceLock<Feed>>,
    carried: Arc<AtomicUsize>,
}

impl Outlet for Between {
    fn offer(&self, allocation: AllocationId, packets: &mut dyn Iterator<Item = &[u8]>) -> Option<usize> {
        let far = self.far.get()?;
        let mut heard = Packets::default();
        packets.for_each(|packet| heard.push(allocation, packet));
        self.carried.fetch_add(heard.len(), Ordering::Relaxed);
        far.deliver(RELAY, &heard);
        Some(0)
    }
}

/// One device with its carrier, in a namespace and on a thread of its own.
struct End {
    feed: Feed,
    far: Arc<OnceLock<Feed>>,
    carried: Arc<AtomicUsize>,
    /// Where the device was told that its peer is.
    endpoint: SocketAddr,
    peers: mpsc::Receiver<Vec<PeerStatus>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl End {
    /// The device of the node with this number, whose only peer is the other one.
    fn start(space: String, backend: Backend, own: u8, other: u8) -> Self {
        let (far, carried) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
        let between = Between { far: far.clone(), carried: carried.clone() };
        let (ready, is_ready) = mpsc::channel();
        let (tell, peers) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            enter(&space).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let config = DeviceConfig {
                    name: "wg0".into(),
                    private_key: PrivateKey::from_bytes([own; 32]),
                    listen_port: 21820,
                    fwmark: 0x10,
                    mtu: 1420,
                };
                let device: Box<dyn Device> = match backend {
                    Backend::Kernel => Box::new(Kernel::open(config).unwrap()),
                    Backend::Userspace => Box::new(Userspace::open(config).unwrap()),
                };
                let carrier = Carrier::open(21820).unwrap();
                let endpoint = SocketAddr::new(Ipv4Addr::new(127, 77, 0, own).into(), carrier.port());
                let lane = Arc::new(Lane::default());
                lane.open(Box::new(between));
                carrier.carry(endpoint, RELAY, ALLOCATION, lane);
                let allowed_ips = Some(vec![format!("10.118.0.{other}/32").parse().unwrap()]);
                let peer = PrivateKey::from_bytes([other; 32]).public_key();
                let update = PeerUpdate { endpoint: Some(endpoint), allowed_ips, ..PeerUpdate::new(peer) };
                device.apply(&Delta { upsert: vec![update], remove: Vec::new() }).await.unwrap();
                ready.send((carrier.feed(), endpoint)).unwrap();
                let _ = ended.await;
                tell.send(device.peers().await.unwrap()).unwrap();
            });
        });
        let (feed, endpoint) = is_ready.recv_timeout(DEADLINE).unwrap();
        Self { feed, far, carried, endpoint, peers, end: Some(end), thread: Some(thread) }
    }

    /// Ends it, and returns what its device has at last.
    fn stop(mut self) -> PeerStatus {
        self.end.take().unwrap().send(()).unwrap();
        let mut peers = self.peers.recv_timeout(DEADLINE).unwrap();
        self.thread.take().unwrap().join().unwrap();
        peers.pop().unwrap()
    }
}

/// Sends so many bytes from one to the other and returns how many arrived as they were.
fn transfer(from: &str, to: &str, address: &str) -> usize {
    let target: SocketAddr = format!("{address}:9000").parse().unwrap();
    let listener = inside(to, move || TcpListener::bind(target).unwrap());
    let receive = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.iter().enumerate().filter(|(at, byte)| **byte == pattern(*at)).count()
    });
    inside(from, move || {
        let mut stream = TcpStream::connect_timeout(&target, DEADLINE).unwrap();
        let all: Vec<u8> = (0..TRANSFER).map(pattern).collect();
        stream.write_all(&all).unwrap();
    });
    receive.join().unwrap()
}

fn pattern(at: usize) -> u8 {
    (at / 7 % 251) as u8
}

fn carries(backend: Backend) {
    let spaces = match Namespaces::new("wc-", &["a", "b"]) {
        Ok(spaces) if std::path::Path::new("/dev/net/tun").exists() => spaces,
        other => {
            let reason = other.err().unwrap_or_else(|| "needs /dev/net/tun".into());
            assert!(std::env::var_os("REQUIRE_LAB").is_none_or(|v| v != "1"), "the lab is required: {reason}");
            return eprintln!("skipped: {reason}");
        }
    };
    let [a, b] =
        [("a", 1, 2), ("b", 2, 1)].map(|(space, own, other)| End::start(spaces.full(space), backend, own, other));
    for (end, other) in [(&a, &b), (&b, &a)] {
        assert!(end.far.set(other.feed.clone()).is_ok());
    }
    for (space, own, other) in [("a", 1, 2), ("b", 2, 1)] {
        spaces.ip(space, &format!("addr add 10.118.0.{own}/32 dev wg0")).unwrap();
        spaces.ip(space, "link set wg0 up").unwrap();
        spaces.ip(space, &format!("route replace 10.118.0.{other}/32 dev wg0")).unwrap();
    }
    assert_eq!(transfer(&spaces.full("a"), &spaces.full("b"), "10.118.0.2"), TRANSFER);
    assert_eq!(transfer(&spaces.full("b"), &spaces.full("a"), "10.118.0.1"), TRANSFER);
    for end in [a, b] {
        let (endpoint, carried) = (end.endpoint, end.carried.load(Ordering::Relaxed));
        assert!(carried > TRANSFER / 1420, "{carried} packets");
        // What arrives comes from the same address that is sent to: the device was never led elsewhere.
        assert_eq!(end.stop().endpoint, Some(endpoint));
    }
}

#[test]
fn the_userspace_device_is_carried_where_there_is_nothing_but_loopback() {
    carries(Backend::Userspace);
}

#[test]
fn the_kernels_device_is_carried_where_there_is_nothing_but_loopback() {
    if let Err(error) = wgdev::kernel::available() {
        assert!(!std::env::var("WARREN_KERNEL_LANE").is_ok_and(|v| v == "1"), "WARREN_KERNEL_LANE=1, and: {error}");
        return eprintln!("skipped: {error}; e2e/kernel/agent.sh has a kernel with WireGuard");
    }
    carries(Backend::Kernel);
}

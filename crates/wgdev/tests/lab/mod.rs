//! Two nodes, each in a network namespace of its own, joined by a cable.
//!
//! A namespace lives as long as a thread and a descriptor hold it, so nothing is left behind, also
//! after a crash. Whatever is made inside [`Namespace::run`] (sockets, TUN queues) belongs to it.
#![allow(unsafe_code, dead_code, clippy::unwrap_used)]

use std::{
    fs::File,
    io::IoSlice,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use socket2::{MsgHdr, SockRef};
use wgdev::{Delta, Device, DeviceConfig, DeviceError, Kernel, PeerUpdate, Userspace};
use wire::key::{PrivateKey, PublicKey};

/// How long a test waits for what must happen; far above what it takes, so it only bounds a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const PORT: u16 = 21820;
pub const DEVICE: &str = "wd-tun";
pub const MTU: u16 = 1420;
pub const MARK: u32 = 0x10;

/// Where the device of `b` is.
pub const AT_B: &str = "198.51.100.2:21820";

type Job = Box<dyn FnOnce() + Send>;

/// Held while a child is started, and while a port is bound. A child has a copy of every descriptor
/// until it becomes its program, so a port that a test has just closed would still be taken.
static NO_CHILD: Mutex<()> = Mutex::new(());

fn no_child() -> MutexGuard<'static, ()> {
    // A test that panicked meanwhile has left nothing half done.
    NO_CHILD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A network namespace with a thread in it.
pub struct Namespace {
    jobs: mpsc::Sender<Job>,
    handle: File,
}

impl Namespace {
    pub fn new(name: &str) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, handle) = mpsc::channel();
        thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                // SAFETY: changes the namespace of this thread only.
                let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
                assert_eq!(result, 0, "unshare: {}", std::io::Error::last_os_error());
                opened.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
                queue.into_iter().for_each(|job| job());
            })
            .unwrap();
        let namespace = Self { jobs, handle: handle.recv().expect("the namespace is made") };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `f` inside; panics as `f` does.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            let _ = done.send(outcome);
        };
        self.jobs.send(Box::new(job)).expect("the thread lives");
        match result.recv().expect("the job ends") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub fn command(&self, program: &str, args: &str) -> String {
        let (program, args) = (program.to_owned(), args.to_owned());
        self.run(move || {
            let guard = no_child();
            let child = Command::new(&program)
                .args(args.split_whitespace())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            drop(guard);
            let output = child.unwrap().wait_with_output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program} {args}: {error}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Starts this test program again, inside, with one of its tests.
    pub fn again(&self, test: &str, variable: &str) -> Child {
        let (test, variable) = (test.to_owned(), variable.to_owned());
        self.run(move || {
            let _guard = no_child();
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", &test, "--nocapture"])
                .env(variable, "1")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
    }

    pub fn ip(&self, args: &str) -> String {
        self.command("ip", args)
    }

    pub fn bind(&self, addr: &str) -> UdpSocket {
        let addr: SocketAddr = addr.parse().unwrap();
        let socket = self.run(move || {
            let _guard = no_child();
            UdpSocket::bind(addr).unwrap()
        });
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }
}

/// Whether namespaces can be made here. Says why not; with `REQUIRE_LAB=1` that is a failure.
pub fn available() -> bool {
    // SAFETY: reads the user id of the process.
    let root = unsafe { libc::geteuid() } == 0;
    let tun = std::path::Path::new("/dev/net/tun").exists();
    let missing = match (root, tun) {
        (true, true) => return true,
        (false, _) => "not root",
        (_, false) => "no /dev/net/tun",
    };
    let required = std::env::var("REQUIRE_LAB").is_ok_and(|v| v == "1");
    assert!(!required, "REQUIRE_LAB=1, and the lab can't run: {missing}");
    eprintln!("skipped: {missing}");
    false
}

/// Whether the kernel's device can be tested here. Says why not; in the kernel lane that is a failure.
pub fn kernel_available() -> bool {
    let lane = std::env::var("WARREN_KERNEL_LANE").is_ok_and(|v| v == "1");
    match available().then(wgdev::kernel::available) {
        Some(Ok(())) => true,
        Some(Err(DeviceError::NoKernelWireGuard { found })) if !lane => {
            eprintln!("skipped: a kernel with WireGuard is needed, this is {found}; e2e/kernel/wgdev.sh has one");
            false
        }
        Some(Err(error)) => panic!("WARREN_KERNEL_LANE=1, or worse: {error}"),
        None => {
            assert!(!lane, "WARREN_KERNEL_LANE=1, and the lab can't run");
            false
        }
    }
}

/// Two namespaces and the cable: 198.51.100.1 and .2 (.3 too), 2001:db8::1 and ::2.
pub struct Cable {
    pub a: Namespace,
    pub b: Namespace,
}

impl Cable {
    pub fn new() -> Self {
        let (a, b) = (Namespace::new("wd-a"), Namespace::new("wd-b"));
        let peer = b.path();
        a.ip(&format!("link add wd-eth type veth peer name wd-eth netns {peer}"));
        for (namespace, host) in [(&a, 1), (&b, 2)] {
            namespace.ip(&format!("addr add 198.51.100.{host}/24 dev wd-eth"));
            namespace.ip(&format!("addr add 2001:db8::{host}/64 dev wd-eth nodad"));
            namespace.ip("link set wd-eth up");
        }
        b.ip("addr add 198.51.100.3/24 dev wd-eth");
        Self { a, b }
    }
}

/// A device that a test opens.
pub trait Open: Device + Send + Sized + 'static {
    fn open(config: DeviceConfig) -> Result<Self, DeviceError>;
}

impl Open for Userspace {
    fn open(config: DeviceConfig) -> Result<Self, DeviceError> {
        Userspace::open(config)
    }
}

impl Open for Kernel {
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
pub struct Node<D = Userspace> {
    pub device: D,
    pub key: PublicKey,
}

pub fn private_key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

pub fn config(seed: u8) -> DeviceConfig {
    DeviceConfig { name: DEVICE.into(), private_key: private_key(seed), listen_port: PORT, fwmark: MARK, mtu: MTU }
}

impl Node {
    pub fn open(namespace: &Namespace, seed: u8) -> Self {
        Self::of(namespace, config(seed))
    }

    pub fn address(namespace: &Namespace, host: u8) {
        namespace.ip(&format!("addr add 10.99.0.{host}/24 dev {DEVICE}"));
        namespace.ip(&format!("addr add fd99::{host}/64 dev {DEVICE} nodad"));
    }
}

impl<D: Open> Node<D> {
    pub fn of(namespace: &Namespace, config: DeviceConfig) -> Self {
        let key = config.private_key.public_key();
        Self { device: open(namespace, config).unwrap(), key }
    }

    pub fn upsert(&self, update: PeerUpdate) {
        let delta = Delta { upsert: vec![update], remove: vec![] };
        block_on(self.device.apply(&delta)).unwrap();
    }

    pub fn status(&self, peer: &PublicKey) -> wgdev::PeerStatus {
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
pub struct Pair<A = Userspace, B = Userspace> {
    pub cable: Cable,
    pub a: Node<A>,
    pub b: Node<B>,
}

impl Pair {
    pub fn new() -> Self {
        Self::over(AT_B)
    }

    pub fn over(endpoint_of_b: &str) -> Self {
        Self::between(endpoint_of_b)
    }
}

impl<A: Open, B: Open> Pair<A, B> {
    pub fn between(endpoint_of_b: &str) -> Self {
        let cable = Cable::new();
        let (a, b) = (Node::of(&cable.a, config(1)), Node::of(&cable.b, config(2)));
        Node::address(&cable.a, 1);
        Node::address(&cable.b, 2);
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

/// A client at `a` and an echo service at `b`.
pub struct Echo {
    client: UdpSocket,
    service: SocketAddr,
    next: u64,
}

impl Echo {
    pub fn new(cable: &Cable, client: &str, service: &str) -> Self {
        let echo = cable.b.bind(service);
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            // Ends with the patience of a test that is over.
            while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                let _ = echo.send_to(&buffer[..length], from);
            }
        });
        Self { client: cable.a.bind(client), service: service.parse().unwrap(), next: 0 }
    }

    /// Sends a numbered packet of this size (at least 8) and waits for its echo.
    pub fn ping(&mut self, size: usize) {
        assert!(self.try_ping(size, PATIENCE), "no echo of {size} bytes");
    }

    pub fn try_ping(&mut self, size: usize, patience: Duration) -> bool {
        self.next += 1;
        let mut payload: Vec<u8> = (0..size).map(|i| (i as u64 * self.next) as u8).collect();
        payload[..8].copy_from_slice(&self.next.to_be_bytes());
        self.client.send_to(&payload, self.service).unwrap();
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.client.set_read_timeout(Some(left)).unwrap();
            match self.client.recv(&mut buffer) {
                // An echo of an earlier one that was given up.
                Ok(length) if buffer[..8.min(length)] != payload[..8] => {}
                Ok(length) => {
                    assert_eq!(&buffer[..length], &payload[..], "the payload changed");
                    return true;
                }
                Err(_) => return false,
            }
        }
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// `recv` with the patience of a test.
pub fn recv(device: &impl Device) -> std::io::Result<wgdev::Datagram> {
    block_on(async { tokio::time::timeout(PATIENCE, device.recv()).await }).expect("a datagram or an error arrives")
}

/// Waits for something that another thread is about to count.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

/// Sends datagrams of equal size with one call, segmented by whoever comes last.
pub fn send_merged(socket: &UdpSocket, to: &str, datagrams: &[Vec<u8>]) {
    let slices: Vec<_> = datagrams.iter().map(|d| IoSlice::new(d)).collect();
    let segment = datagrams[0].len() as u16;
    let mut control = [0u8; 24];
    control[..8].copy_from_slice(&18usize.to_ne_bytes());
    control[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    control[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    control[16..18].copy_from_slice(&segment.to_ne_bytes());
    let to = to.parse::<SocketAddr>().unwrap().into();
    let message = MsgHdr::new().with_addr(&to).with_buffers(&slices).with_control(&control);
    SockRef::from(socket).sendmsg(&message, 0).unwrap();
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

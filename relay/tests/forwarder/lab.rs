//! Network namespaces: two nodes, each behind a NAT that gives every destination another port, and a relay that forwards no IP packet.
//!
//! ```text
//! a 10.1.0.2 -- 10.1.0.1 nat_a 198.51.100.2 -- 198.51.100.1 relay 203.0.113.1 -- 203.0.113.2 nat_b 10.2.0.1 -- 10.2.0.2 b
//! ```
//!
//! A namespace lives as long as a thread and a descriptor hold it, so nothing is left behind. What is opened inside [`Namespace::run`]
//! belongs to it.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

/// How long a test waits for what must happen; it only bounds a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// Held while a child runs, and while a port is bound: at first a child has a copy of every descriptor, so a port that was just closed
/// would still be taken.
static NO_CHILD: Mutex<()> = Mutex::new(());

pub fn no_child() -> MutexGuard<'static, ()> {
    // A test that panicked meanwhile has left nothing half done.
    NO_CHILD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn output(program: &str, args: &str) -> io::Result<Output> {
    let _guard = no_child();
    Command::new(program).args(args.split_whitespace()).output()
}

pub struct Namespace {
    jobs: mpsc::Sender<Job>,
    handle: File,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, handle) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            opened.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let namespace = Self { jobs, handle: handle.recv().expect("the namespace is made") };
        namespace.command("ip", "link set lo up");
        namespace
    }

    /// Runs `job` inside.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).expect("the thread lives");
        result.recv().expect("the job ends")
    }

    /// Returns what it prints.
    pub fn command(&self, program: &str, args: &str) -> String {
        let (program, args) = (program.to_owned(), args.to_owned());
        self.run(move || {
            let output = output(&program, &args).unwrap();
            assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub fn ip(&self, commands: &[&str]) {
        commands.iter().for_each(|args| drop(self.command("ip", args)));
    }

    /// A cable to another namespace, with an address at each end.
    pub fn cable(&self, name: &str, address: &str, other: &Self, other_name: &str, other_address: &str) {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.handle.as_raw_fd());
        self.ip(&[&format!("link add {name} type veth peer name {other_name} netns {there}")]);
        for (end, name, address) in [(self, name, address), (other, other_name, other_address)] {
            end.ip(&[&format!("addr add {address} dev {name} nodad"), &format!("link set dev {name} up")]);
        }
        for (end, name) in [(self, name), (other, other_name)] {
            // Until then what is sent is dropped without a word.
            eventually("the cable carries", || {
                end.command("ip", &format!("-o link show dev {name}")).contains("state UP")
            });
        }
    }

    /// Adds an address and waits until what is sent to it arrives: the kernel makes its route later.
    pub fn add_v6(&self, address: &str, prefix_len: u8, name: &str) {
        self.ip(&[&format!("addr add {address}/{prefix_len} dev {name} nodad")]);
        let route = format!("local {address} ");
        eventually("the address has its route", || self.command("ip", "-6 route show table local").contains(&route));
    }

    pub fn socket(&self, address: &str) -> UdpSocket {
        let address = address.to_owned();
        let socket = self.run(move || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Forwards from the inside to the outside, under its own address and a random port for each destination.
    fn masquerade(&self, outside: &str) {
        self.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        self.command("nft", "add table ip nat");
        self.command("nft", "add chain ip nat out { type nat hook postrouting priority srcnat ; }");
        self.command("nft", &format!("add rule ip nat out oifname {outside} masquerade fully-random"));
    }
}

pub struct Lab {
    pub a: Namespace,
    pub b: Namespace,
    pub relay: Namespace,
    _nats: [Namespace; 2],
}

impl Lab {
    pub fn new() -> Self {
        let [a, b, relay, nat_a, nat_b] = std::array::from_fn(|_| Namespace::new());
        a.cable("wan", "10.1.0.2/24", &nat_a, "inside", "10.1.0.1/24");
        b.cable("wan", "10.2.0.2/24", &nat_b, "inside", "10.2.0.1/24");
        nat_a.cable("outside", "198.51.100.2/24", &relay, "to_a", "198.51.100.1/24");
        nat_b.cable("outside", "203.0.113.2/24", &relay, "to_b", "203.0.113.1/24");
        a.ip(&["route add default via 10.1.0.1"]);
        b.ip(&["route add default via 10.2.0.1"]);
        nat_a.ip(&["route add default via 198.51.100.1"]);
        nat_b.ip(&["route add default via 203.0.113.1"]);
        [&nat_a, &nat_b].into_iter().for_each(|nat| nat.masquerade("outside"));
        Self { a, b, relay, _nats: [nat_a, nat_b] }
    }
}

/// Whether the lab can be built here. Says why not; with `REQUIRE_LAB=1` that is a failure.
pub fn available() -> bool {
    let missing = match ["ip", "nft"].into_iter().find(|tool| output(tool, "-V").is_err()) {
        _ if !nix::unistd::geteuid().is_root() => "not root".to_owned(),
        Some(tool) => format!("no {tool}"),
        None if !std::path::Path::new("/dev/net/tun").exists() => "no /dev/net/tun".to_owned(),
        None => return true,
    };
    assert!(std::env::var("REQUIRE_LAB").is_err(), "REQUIRE_LAB is set, and the lab can't be built: {missing}");
    eprintln!("skipped: {missing}");
    false
}

/// The next datagram. A read with a time limit may be interrupted, which says nothing.
pub fn recv_from(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Waits for something that another thread is about to do.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

//! Network namespaces.
//!
//! A namespace lives as long as a thread and a descriptor hold it, so nothing is left behind, also
//! after a crash. Whatever is made inside [`Namespace::run`] (sockets, TUN queues) belongs to it.
#![allow(unsafe_code)]

use std::{
    fs::File,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use super::PATIENCE;

type Job = Box<dyn FnOnce() + Send>;

/// Held while a child runs or is started, and while a port is bound. A child has a copy of every descriptor
/// until it has become its program, so a port that a test has just closed would still be taken.
static NO_CHILD: Mutex<()> = Mutex::new(());

pub(super) fn no_child() -> MutexGuard<'static, ()> {
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
            // To its end: `spawn` returns when the kernel has replaced the program, which is a moment before it closes the descriptors.
            let _guard = no_child();
            let output = Command::new(&program).args(args.split_whitespace()).output().unwrap();
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

//! Namespaces for one test: two nodes behind a router, and between them a link that stands for the tunnel.
//!
//! ```text
//! pod --- a ---eth0---- r ----eth0--- b --- pod
//!         └──── warren0 ───── warren0 ┘
//! ```
//! The "tunnel" is a veth without ARP whose ends share one MAC address: what enters comes out, as plain packets, so that
//! everything that is not WireGuard can be seen.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use node_agent::net::{self, NetPlan, Originals, Report};
use serde_json::Value;

use crate::thread::{become_agent, enter, is_root, report_errors};

/// How long a packet or an answer that is to come may take on a machine that is busy with other things.
pub const ARRIVES: Duration = Duration::from_secs(15);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    id: String,
    made: Vec<String>,
}

impl Lab {
    /// The namespaces, or `None` with the reason printed where they cannot be had.
    pub fn new() -> Option<Self> {
        let id = format!("nf-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { id, made: Vec::new() };
        if let Some(reason) = lab.make() {
            assert!(std::env::var_os("REQUIRE_LAB").is_none_or(|v| v != "1"), "the lab is required: {reason}");
            eprintln!("skipped: {reason}");
            return None;
        }
        Some(lab)
    }

    /// The same, and one more namespace with nothing in it.
    pub fn with_bare_pod(role: &str) -> Option<Self> {
        let mut lab = Self::new()?;
        let name = lab.ns(role);
        ok(run("ip", &["netns", "add", &name]));
        lab.made.push(name);
        lab.ip(role, "link set lo up");
        Some(lab)
    }

    fn make(&mut self) -> Option<String> {
        if !is_root() {
            return Some("needs root for network namespaces".into());
        }
        for role in ["a", "r", "b", "pa", "pb"] {
            let name = self.ns(role);
            if let Err(text) = run("ip", &["netns", "add", &name]) {
                return Some(format!("cannot make a network namespace: {text}"));
            }
            self.made.push(name);
            self.ip(role, "link set lo up");
            self.set(role, "net.ipv6.conf.all.accept_dad", "0");
            self.set(role, "net.ipv6.conf.default.accept_dad", "0");
        }
        self.wire();
        self.settle();
        None
    }

    /// The kernel calls a new link ready some time after it was set up, and IPv6 is silent on it until then.
    fn settle(&self) {
        let deadline = Instant::now() + ARRIVES;
        for role in ["a", "r", "b", "pa", "pb"] {
            let waiting =
                || self.ip(role, "-o link show up").lines().any(|l| l.contains("state DOWN") && !l.contains("warren0"));
            while waiting() {
                assert!(Instant::now() < deadline, "{role}: {}", self.ip(role, "-o link"));
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn wire(&self) {
        for (node, n) in [("a", 1), ("b", 2)] {
            let (ns, router) = (self.ns(node), self.ns("r"));
            ok(run("ip", &words(&format!("link add eth0 netns {ns} type veth peer name to-{node} netns {router}"))));
            self.ip("r", &format!("addr add 10.{n}.0.1/24 dev to-{node}"));
            self.ip("r", &format!("addr add 2001:db8:{n}::1/64 dev to-{node} nodad"));
            self.ip("r", &format!("link set to-{node} up"));
            self.ip(node, &format!("addr add 10.{n}.0.2/24 dev eth0"));
            self.ip(node, &format!("addr add 2001:db8:{n}::2/64 dev eth0 nodad"));
            self.ip(node, "link set eth0 up");
            self.ip(node, &format!("route add default via 10.{n}.0.1"));
            self.ip(node, &format!("-6 route add default via 2001:db8:{n}::1"));
            self.set(node, "net.ipv4.ip_forward", "1");
            self.set(node, "net.ipv6.conf.all.forwarding", "1");
            self.pod(node, n);
        }
        self.set("r", "net.ipv4.ip_forward", "1");
        self.set("r", "net.ipv6.conf.all.forwarding", "1");
        let (a, b) = (self.ns("a"), self.ns("b"));
        ok(run("ip", &words(&format!("link add warren0 netns {a} type veth peer name warren0 netns {b}"))));
        for node in ["a", "b"] {
            self.ip(node, "link set warren0 address 02:00:00:00:00:01 arp off addrgenmode none");
        }
    }

    /// A pod as the `ptp` plugin makes it.
    fn pod(&self, node: &str, n: u8) {
        let pod = format!("p{node}");
        let (node_ns, pod_ns) = (self.ns(node), self.ns(&pod));
        ok(run("ip", &words(&format!("link add vethpod netns {node_ns} type veth peer name eth0 netns {pod_ns}"))));
        self.ip(node, &format!("addr add 10.244.{n}.1/32 dev vethpod"));
        self.ip(node, &format!("addr add fd00:244:{n}::1/128 dev vethpod nodad"));
        self.ip(node, "link set vethpod up");
        self.ip(&pod, &format!("addr add 10.244.{n}.5/32 dev eth0"));
        self.ip(&pod, &format!("addr add fd00:244:{n}::5/128 dev eth0 nodad"));
        self.ip(&pod, "link set eth0 up");
        self.ip(&pod, &format!("route add 10.244.{n}.1 dev eth0"));
        self.ip(&pod, &format!("route add default via 10.244.{n}.1"));
        self.ip(&pod, &format!("-6 route add fd00:244:{n}::1 dev eth0"));
        self.ip(&pod, &format!("-6 route add default via fd00:244:{n}::1"));
        self.ip(node, &format!("route add 10.244.{n}.5 dev vethpod"));
        self.ip(node, &format!("-6 route add fd00:244:{n}::5 dev vethpod"));
    }

    pub fn ns(&self, role: &str) -> String {
        format!("{}-{role}", self.id)
    }

    pub fn ip(&self, role: &str, args: &str) -> String {
        let ns = self.ns(role);
        let mut all = vec!["-n", ns.as_str()];
        all.extend(words(args));
        ok(run("ip", &all))
    }

    pub fn exec(&self, role: &str, args: &[&str]) -> Result<String, String> {
        let ns = self.ns(role);
        let mut all = vec!["netns", "exec", ns.as_str()];
        all.extend(args);
        run("ip", &all)
    }

    /// One nft command per line.
    pub fn nft(&self, role: &str, text: &str) -> String {
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| ok(self.exec(role, &["nft", l]))).collect()
    }

    pub fn set(&self, role: &str, name: &str, value: &str) {
        ok(self.exec(role, &["sysctl", "-qw", &format!("{name}={value}")]));
    }

    /// Runs a future in a namespace on a thread that has only the agent's privileges.
    pub fn agent<T: Send + 'static, F: Future<Output = T>>(
        &self,
        role: &str,
        f: impl FnOnce() -> F + Send + 'static,
    ) -> T {
        self.spawn(role, move || {
            become_agent().expect("drop privileges");
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(f())
        })
        .join()
        .expect("the agent's thread")
    }

    /// Runs a function in a namespace, on a thread of its own.
    pub fn spawn<T: Send + 'static>(
        &self,
        role: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let ns = self.ns(role);
        thread::spawn(move || {
            enter(&ns).expect("enter the namespace");
            f()
        })
    }

    pub fn apply(&self, role: &str, plan: &NetPlan) -> Report {
        let (plan, originals) = (plan.clone(), self.originals(role));
        let report = self.agent(role, move || async move { net::apply(&plan, &originals).await.expect("apply") });
        assert_eq!(report.failures, [], "in {role}");
        report
    }

    /// Where a node's agent remembers the sysctls that it changes.
    pub fn originals(&self, role: &str) -> Originals {
        Originals::new(std::env::temp_dir().join(self.ns(role)))
    }

    /// Counts packets that match `condition` in the router, from now on.
    pub fn sniff(&self, name: &str, condition: &str) {
        self.nft(
            "r",
            &format!(
                "add table inet sniff
             add chain inet sniff {name} {{ type filter hook prerouting priority -400; }}
             add rule inet sniff {name} {condition} counter"
            ),
        );
    }

    pub fn sniffed(&self, name: &str) -> u64 {
        counter(&self.nft("r", &format!("list chain inet sniff {name}")))
    }

    /// A UDP service in a namespace that answers `times` datagrams with the source it saw.
    pub fn echo(&self, role: &str, at: &str, times: usize) -> thread::JoinHandle<Vec<SocketAddr>> {
        let at = at.to_owned();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let handle = self.spawn(role, move || {
            let socket = UdpSocket::bind(&at).expect("bind");
            socket.set_read_timeout(Some(ARRIVES)).expect("timeout");
            ready.send(()).expect("the test waits");
            let mut seen = Vec::new();
            let mut buffer = [0; 2048];
            while seen.len() < times {
                let Ok((_, from)) = socket.recv_from(&mut buffer) else { break };
                let plain = SocketAddr::new(from.ip().to_canonical(), from.port());
                socket.send_to(plain.to_string().as_bytes(), from).ok();
                seen.push(plain);
            }
            seen
        });
        is_ready.recv().expect("the service is up");
        handle
    }

    /// Asks a UDP service; answers the source that it saw, or the error that the kernel was told of.
    pub fn ask(&self, role: &str, from: &str, to: &str) -> std::io::Result<SocketAddr> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let asked = self.spawn(role, move || {
            let socket = UdpSocket::bind(&from)?;
            report_errors(&socket, from.starts_with('['))?;
            socket.set_read_timeout(Some(ARRIVES))?;
            socket.connect(&to)?;
            socket.send(b"who am I")?;
            let mut buffer = [0; 128];
            let n = socket.recv(&mut buffer)?;
            let text = std::str::from_utf8(&buffer[..n]).expect("text");
            Ok(text.parse().expect("an address"))
        });
        asked.join().expect("the asking thread")
    }

    /// Sends one UDP datagram and waits for nothing.
    pub fn send(&self, role: &str, from: &str, to: &str) {
        let (from, to) = (from.to_owned(), to.to_owned());
        let sent = self.spawn(role, move || UdpSocket::bind(&from)?.send_to(b"hello", &to));
        sent.join().expect("the sending thread").expect("sent");
    }

    /// A TCP service that tells one client its address.
    pub fn serve(&self, role: &str, at: &str) -> thread::JoinHandle<()> {
        let at = at.to_owned();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let handle = self.spawn(role, move || {
            let listener = TcpListener::bind(&at).expect("bind");
            ready.send(()).expect("the test waits");
            let (mut client, from) = listener.accept().expect("accept");
            client.write_all(from.to_string().as_bytes()).expect("answer");
        });
        is_ready.recv().expect("the service is up");
        handle
    }

    /// Connects to a TCP service; answers the source that it saw.
    pub fn connect(&self, role: &str, to: &str) -> std::io::Result<SocketAddr> {
        let to: SocketAddr = to.parse().expect("an address");
        let asked = self.spawn(role, move || {
            let mut text = String::new();
            let mut stream = TcpStream::connect_timeout(&to, ARRIVES)?;
            stream.set_read_timeout(Some(ARRIVES))?;
            stream.read_to_string(&mut text)?;
            Ok(text.parse().expect("an address"))
        });
        asked.join().expect("the connecting thread")
    }

    /// The device that a route look-up ends at, or the kernel's refusal.
    pub fn way(&self, role: &str, lookup: &str) -> String {
        let ns = self.ns(role);
        let args: Vec<&str> = ["-n", ns.as_str(), "route", "get"].into_iter().chain(words(lookup)).collect();
        match run("ip", &args) {
            Ok(text) => text.split(" dev ").nth(1).and_then(|t| t.split(' ').next()).unwrap_or("?").to_owned(),
            Err(text) => text.rsplit(": ").next().unwrap_or("?").to_owned(),
        }
    }

    /// What `ip` and `nft` say of a namespace, one line per thing, without what the kernel makes by itself.
    pub fn picture(&self, role: &str) -> Picture {
        let json = |text: String| serde_json::from_str::<Value>(&text).expect("JSON");
        let each = |value: Value| value.as_array().cloned().unwrap_or_default();
        let mut lines = Vec::new();
        for mut link in each(json(self.ip(role, "-j addr"))) {
            let name = link["ifname"].take();
            let up = each(link["flags"].take()).contains(&Value::from("UP"));
            lines.push(format!("link {name} up {up} mtu {}", link["mtu"]));
            for address in each(link["addr_info"].take()) {
                lines.push(format!("address {name} {}/{}", address["local"], address["prefixlen"]));
            }
        }
        for family in ["-4", "-6"] {
            let routes = each(json(self.ip(role, &format!("-j {family} route show table all"))));
            lines.extend(routes.iter().filter(|r| r["protocol"] != "kernel").map(|r| format!("route {r}")));
            lines.extend(
                each(json(self.ip(role, &format!("-j {family} rule")))).iter().map(|r| format!("rule {family} {r}")),
            );
        }
        lines.retain(|line| !line.contains("fe80::"));
        lines.sort();
        let ruleset = ok(self.exec(role, &["nft", "-s", "-j", "list", "ruleset"]));
        for mut item in each(json(ruleset)["nftables"].take()).into_iter().skip(1) {
            for thing in item.as_object_mut().expect("an object").values_mut() {
                thing.as_object_mut().expect("an object").remove("handle");
            }
            lines.push(format!("nft {item}"));
        }
        // Chains and sets in order of name, the rules within a chain in their own order.
        lines.sort_by_key(|line| if line.contains("\"rule\":") { String::new() } else { line.clone() });
        Picture(lines)
    }
}

/// A state of a namespace; two that differ print only the difference.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture(Vec<String>);

impl Picture {
    /// Without the lines that speak of this.
    pub fn without(mut self, text: &str) -> Self {
        self.0.retain(|line| !line.contains(text));
        self
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} lines", self.0.len())
    }
}

/// Fails with the lines that only one of the two has.
#[track_caller]
pub fn assert_same(before: &Picture, after: &Picture, what: &str) {
    let only = |a: &Picture, b: &Picture| a.0.iter().filter(|l| !b.0.contains(l)).cloned().collect::<Vec<_>>();
    assert!(before == after, "{what}: gone {:#?}, new {:#?}", only(before, after), only(after, before));
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.made {
            run("ip", &["netns", "del", name]).ok();
            std::fs::remove_file(std::env::temp_dir().join(name)).ok();
        }
    }
}

pub fn counter(text: &str) -> u64 {
    let after = text.split("packets ").nth(1).unwrap_or_else(|| panic!("no counter in {text}"));
    after.split(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn ok(result: Result<String, String>) -> String {
    result.unwrap_or_else(|text| panic!("{text}"))
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

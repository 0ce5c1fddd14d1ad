//! One agent and many peers: what the peers that don't change cost.
//!
//! The real agent runs in a network namespace against a real API server, whose slices name peers that nobody runs. Then single peers
//! join. CPU is the agent's own, all threads, from the kernel's accounting of each thread.

mod api;
mod directory;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bench::usage::{self, Usage};
use crate::bench::{Goal, LAB, Row, Spread};
use crate::command::run;
use crate::images::binary;
use crate::net::namespace::Namespace;
use crate::parts::Parts;
use crate::progress::Progress;
use crate::{teardown, wait};
use api::{Api, Running};

/// What is measured. The goals are about the first and the last without more.
const CASES: [Case; 4] = [
    Case { peers: 100, pods: false },
    Case { peers: 1_000, pods: false },
    Case { peers: 5_000, pods: false },
    Case { peers: 5_000, pods: true },
];

/// One directory, and what the agent makes of it.
#[derive(Clone, Copy)]
struct Case {
    peers: usize,
    /// Whether the mesh carries the packets of pods, and does not name their ranges: each of them is a claim of its own.
    pods: bool,
}

const NODE: &str = "bench";
const API: &str = "192.0.2.1";
/// An agent with five thousand peers needs seconds.
const APPLIED: Duration = Duration::from_secs(120);
const ANSWER: Duration = Duration::from_secs(60);
/// After it nothing of a change goes on: a burst of netlink events is over and the status is written.
const SETTLED: Duration = Duration::from_secs(3);
/// Nothing happens for so long before and while idleness is measured.
const IDLE: Duration = Duration::from_secs(20);
/// Peers that join one after the other in a round.
const JOINS: usize = 3;
/// The goal for a delta: that of the smallest mesh, and a fifth.
const FLAT: f64 = 1.2;

/// What one size measured.
struct Measured {
    case: Case,
    apply: f64,
    apply_cpu: f64,
    memory: Usage,
    /// In percent of a core.
    idle: f64,
    deltas: Deltas,
}

/// Milliseconds from the write to the route, and of CPU.
#[derive(Default)]
struct Deltas {
    time: Vec<f64>,
    cpu: Vec<f64>,
}

/// Measures every size.
pub fn measure(parts: &Parts, rounds: usize, progress: &Progress) -> Result<Vec<Row>> {
    teardown::down(LAB)?;
    let dir = std::env::temp_dir().join(format!("warren-scale-{}", std::process::id()));
    let result = all_sizes(parts, &dir, rounds, progress);
    let _ = fs::remove_dir_all(&dir);
    teardown::down(LAB)?;
    result.map(|measured| rows(&measured))
}

fn all_sizes(parts: &Parts, dir: &Path, rounds: usize, progress: &Progress) -> Result<Vec<Measured>> {
    let outside = Namespace::of(LAB, "api");
    outside.create()?;
    outside.ip(&["link add eth0 type bridge", &format!("addr add {API}/24 dev eth0"), "link set eth0 up"])?;
    let api = progress.step("API server", || Api::start(parts, &outside, API, dir))?;
    api.create("meshes", &directory::mesh())?;
    let measured = CASES.into_iter().enumerate().map(|(number, case)| {
        let one = || one_case(&api, &outside, &dir.join(number.to_string()), case, rounds);
        progress.step(&case.name(), one)
    });
    measured.collect()
}

fn one_case(api: &Api, outside: &Namespace, dir: &Path, case: Case, rounds: usize) -> Result<Measured> {
    let Case { peers, pods } = case;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    api.clear("meshnodes")?;
    api.clear("meshpeerslices")?;
    if pods {
        api.patch("meshes", "default", &directory::without_pod_ranges())?;
    }
    api.create("meshnodes", &directory::node(NODE))?;
    directory::slices(peers).try_for_each(|slice| api.create("meshpeerslices", &slice))?;
    let port = format!("p{peers}{}", if pods { "p" } else { "" });
    let inside = Namespace::of(LAB, &format!("n{port}"));
    inside.create()?;
    inside.ip(&[&format!("link add eth0 type veth peer name {port} netns {}", outside.name())])?;
    outside.ip(&[&format!("link set {port} master eth0 up")])?;
    inside.ip(&["addr add 192.0.2.2/24 dev eth0", "link set eth0 up", &format!("route add default via {API}")])?;
    let agent = Agent::start(api, &inside, dir, pods)?;
    let result = agent.observe(api, case, rounds);
    drop(agent);
    outside.ip(&[&format!("link del {port}")])?;
    result
}

struct Agent {
    namespace: Namespace,
    socket: PathBuf,
    began: Instant,
    process: Running,
}

impl Agent {
    fn start(api: &Api, namespace: &Namespace, dir: &Path, pods: bool) -> Result<Self> {
        let path = |name: &str| dir.join(name).display().to_string();
        let kubeconfig = api.kubeconfig().display().to_string();
        let (state, socket) = (path("state"), path("socket"));
        let cni = if pods { "external" } else { "none" };
        let args = ["--kubeconfig", &kubeconfig, "--node-name", NODE, "--state-dir", &state, "--socket", &socket];
        let args = [&args[..], &["--cni-mode", cni]].concat();
        let program = binary("warren-agent");
        let mut command = namespace.command(&program.to_string_lossy(), &args);
        let began = Instant::now();
        let process = Running::start(&mut command, &dir.join("log"))?;
        Ok(Self { namespace: namespace.clone(), socket: socket.into(), began, process })
    }

    fn observe(&self, api: &Api, case: Case, rounds: usize) -> Result<Measured> {
        let peers = case.peers;
        let apply = self.wait_applied(peers)?;
        let apply_cpu = self.usage()?.cpu;
        std::thread::sleep(IDLE);
        let (before, since) = (self.usage()?, Instant::now());
        std::thread::sleep(IDLE);
        let after = self.usage()?;
        let idle = (after.cpu - before.cpu) / since.elapsed().as_secs_f64();
        let deltas = self.join(api, peers..peers + rounds * JOINS, idle)?;
        Ok(Measured { case, apply, apply_cpu, memory: after, idle: idle * 100.0, deltas })
    }

    /// Lets these peers join one after the other.
    fn join(&self, api: &Api, peers: Range<usize>, idle: f64) -> Result<Deltas> {
        let routes = Routes::watch(&self.namespace)?;
        let mut deltas = Deltas::default();
        for peer in peers {
            let (before, began) = (self.usage()?, Instant::now());
            api.patch("meshpeerslices", &directory::slice_of(peer), &directory::joining(peer))?;
            let seen = routes.wait(&directory::mesh_address(peer))?;
            deltas.time.push(seen.duration_since(began).as_secs_f64() * 1e3);
            std::thread::sleep(SETTLED);
            let used = self.usage()?.cpu - before.cpu - idle * began.elapsed().as_secs_f64();
            deltas.cpu.push(used * 1e3);
        }
        Ok(deltas)
    }

    /// Waits until every peer is known and has its route; seconds since the start.
    fn wait_applied(&self, peers: usize) -> Result<f64> {
        wait::until("every peer to be configured", APPLIED, || {
            let known = self.peers().map_err(|error| format!("{error:#}"))?;
            if known != peers as u64 {
                return Err(format!("{known} of {peers} peers"));
            }
            // What the loop answers after the routes stand.
            let list = ["route", "show", "table", "21820", "dev", "warren0"];
            let routes = run(&mut self.namespace.command("ip", &list)).map_err(|error| format!("{error:#}"))?;
            let standing = routes.lines().filter(|line| line.starts_with("10.118.")).count();
            if standing == peers { Ok(self.began.elapsed().as_secs_f64()) } else { Err(format!("{standing} routes")) }
        })
    }

    fn peers(&self) -> Result<u64> {
        let mut stream = UnixStream::connect(&self.socket).context("reaching the agent")?;
        stream.set_read_timeout(Some(ANSWER)).context("setting a timeout")?;
        write!(stream, "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .context("asking the agent")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading the agent's answer")?;
        let (begin, end) = answer.find('{').zip(answer.rfind('}')).context("an answer with an object")?;
        let status: Value = serde_json::from_str(&answer[begin..=end]).context("reading the agent's answer")?;
        Ok(status["peers"].as_array().into_iter().flatten().filter_map(Value::as_u64).sum())
    }

    fn usage(&self) -> Result<Usage> {
        usage::of(self.process.pid())
    }
}

/// The kernel's own announcements of routes, each with its instant.
struct Routes {
    lines: mpsc::Receiver<(Instant, String)>,
    _monitor: Running,
}

impl Routes {
    fn watch(namespace: &Namespace) -> Result<Self> {
        let mut command = namespace.command("ip", &["-o", "monitor", "route"]);
        let (monitor, output) = Running::piped(command.stderr(Stdio::null()))?;
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { lines, _monitor: monitor })
    }

    /// When the route to this address was announced.
    fn wait(&self, address: &str) -> Result<Instant> {
        let deadline = Instant::now() + ANSWER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (at, line) =
                self.lines.recv_timeout(left).with_context(|| format!("no news of the route to {address}"))?;
            if line.starts_with(&format!("{address} ")) && line.contains("warren0") {
                return Ok(at);
            }
        }
    }
}

impl Deltas {
    fn rows(&self, time: String, cpu: String) -> [Row; 2] {
        let row = |name, list: &[f64]| Row::new(name, "ms", Spread::of(list.iter().copied()));
        [row(time, &self.time), row(cpu, &self.cpu)]
    }
}

impl Case {
    fn name(self) -> String {
        format!("{} peers{}", self.peers, if self.pods { " and pods, no `podCIDRs`" } else { "" })
    }
}

fn rows(measured: &[Measured]) -> Vec<Row> {
    let mut rows = Vec::new();
    for m in measured {
        let name = |what: &str| format!("{}: {what}", m.case.name());
        let one = |value: f64| Spread::of([value]);
        let memory = 15.0 + m.case.peers as f64 * 3e3 / f64::from(1 << 20);
        rows.extend([
            Row::new(name("start to the last route"), "s", one(m.apply)),
            Row::new(name("CPU of that"), "s", one(m.apply_cpu)),
            Row::new(name("memory"), "MiB", one(m.memory.rss_mib)).goal(Goal::Most((memory * 10.0).round() / 10.0)),
            Row::new(name("of it pages of the program"), "MiB", one(m.memory.file_mib)),
            Row::new(name("idle CPU"), "% of a core", one(m.idle)).goal(Goal::Most(0.1)),
        ]);
        rows.extend(m.deltas.rows(name("one peer joins, write to route"), name("CPU of that")));
    }
    let mut alike = measured.iter().filter(|m| !m.case.pods);
    if let (Some(first), Some(last)) = (alike.next(), alike.next_back()) {
        let ratio = |of: fn(&Deltas) -> &Vec<f64>| {
            let median = |m: &Measured| Spread::of(of(&m.deltas).iter().copied()).median();
            Spread::of([median(last) / median(first)])
        };
        let what = format!("{} to {}", last.case.name(), first.case.peers);
        rows.extend([
            Row::new(format!("one peer joins, {what}: time"), "ratio", ratio(|m| &m.time)).goal(Goal::Most(FLAT)),
            Row::new(format!("one peer joins, {what}: CPU"), "ratio", ratio(|m| &m.cpu)).goal(Goal::Most(FLAT)),
        ]);
    }
    rows
}

//! One run: two agents that have never run before meet.

use super::boxes::{Boxes, NODES, Nat};
use super::support::operator;
use anyhow::{Context, Result, ensure};
use node_agent::key::KeyFile;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

const AGENT: &str = env!("CARGO_BIN_EXE_warren-agent");
/// How often agents are asked: far less than what is measured.
const POLL: Duration = Duration::from_millis(20);
/// Both know each other by then, or something else is broken.
const KNOWN: Duration = Duration::from_secs(90);
/// An agent answers within a millisecond, and one that starts doesn't.
const ANSWER: Duration = Duration::from_secs(2);

/// The largest of each, in milliseconds.
const SKEW: u32 = 3000;
const SIGNALS: u32 = 500;
const PACKETS: [u32; 2] = [2, 50];

/// What differs from run to run.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Which run of its cell it is.
    pub number: u32,
    /// Which of the two starts first.
    first: usize,
    /// How much later the other one does.
    skew: Duration,
    /// One way from node to node by the relay.
    signals: Duration,
    /// One way between the boxes.
    packets: Duration,
}

impl Circumstances {
    /// Those of one of so many runs: each quantity takes evenly spread values, in an order of its own.
    pub fn spread(number: u32, runs: u32) -> Self {
        let nth = |stride: u32| (number * stride) % runs;
        let of = |least: u32, most: u32, nth: u32| least + (most - least) * nth / (runs - 1).max(1);
        let millis = |millis: u32| Duration::from_millis(millis.into());
        Self {
            number,
            first: (number % 2) as usize,
            skew: millis(of(0, SKEW, number)),
            signals: millis(of(0, SIGNALS, nth(37))),
            packets: millis(of(PACKETS[0], PACKETS[1], nth(61))),
        }
    }
}

/// What came of it.
pub struct Outcome {
    /// From both knowing each other until both were direct.
    pub took: Option<Duration>,
    /// What both said of it last.
    pub said: String,
    /// What both logged, of a pair that was not direct in time.
    pub logs: Option<String>,
}

/// Starts both agents behind such boxes, and waits until both are direct or the time is over.
pub fn run(boxes: &Boxes, sorts: [Nat; 2], ordered: bool, how: Circumstances, limit: Duration) -> Result<Outcome> {
    boxes.renew(sorts, how.packets, how.signals)?;
    boxes.services.publish_relay(ordered);
    let mut pair = Pair::new(boxes)?;
    pair.start(how.first)?;
    let begin = Instant::now();
    let mut known = None;
    loop {
        thread::sleep(POLL);
        pair.operate();
        if pair.agents.len() < NODES.len() && begin.elapsed() >= how.skew {
            pair.start(1 - how.first)?;
        }
        let paths = [0, 1].map(|node| pair.path(node));
        let are = |what: fn(&Value) -> bool| paths.iter().all(|path| path.as_ref().is_some_and(what));
        if known.is_none() && are(|_| true) {
            known = Some(Instant::now());
        }
        let Some(known) = known else {
            ensure!(begin.elapsed() < KNOWN, "they never knew each other:\n{}", pair.logs());
            continue;
        };
        let is_direct = are(|path| path["state"] == "direct");
        if is_direct || known.elapsed() >= limit {
            let said = paths.map(|path| path.unwrap_or_default().to_string()).join("\n");
            let logs = (!is_direct).then(|| pair.logs());
            return Ok(Outcome { took: is_direct.then(|| known.elapsed()), said, logs });
        }
    }
}

/// Two nodes of the fake cluster, named anew in each run.
struct Pair<'a> {
    boxes: &'a Boxes,
    agents: Vec<Child>,
    /// What was published last.
    shown: Value,
    generation: u64,
}

impl<'a> Pair<'a> {
    fn new(boxes: &'a Boxes) -> Result<Self> {
        let pair = Self { boxes, agents: Vec::new(), shown: Value::Null, generation: 0 };
        operator::create_mesh(&boxes.services.api, json!({}));
        let mut keys = Vec::new();
        for (number, node) in (1..).zip(NODES) {
            operator::create_node(&boxes.services.api, node, number);
            fs::create_dir_all(pair.file(node, "state")).context("making a state folder")?;
            keys.push(KeyFile::new(&pair.file(node, "state")).create()?.public_key());
        }
        // The first one is to have the smaller key.
        if keys[0] > keys[1] {
            let [a, b, aside] = ["a", "b", "aside"].map(|node| pair.file(node, "state"));
            for (from, to) in [(&a, &aside), (&b, &a), (&aside, &b)] {
                fs::rename(from, to).context("exchanging the keys")?;
            }
        }
        Ok(pair)
    }

    fn file(&self, node: &str, what: &str) -> PathBuf {
        self.boxes.dir.join(format!("{node}-{what}"))
    }

    fn start(&mut self, number: usize) -> Result<()> {
        let node = NODES[number];
        let path = |what: &str| self.file(node, what).display().to_string();
        let (state, socket, kubeconfig) =
            (path("state"), path("sock"), self.boxes.services.kubeconfig.display().to_string());
        let flags = [
            ["--kubeconfig", &kubeconfig],
            ["--node-name", node],
            ["--state-dir", &state],
            ["--socket", &socket],
            ["--metrics-listen", "off"],
            ["--log", "info,path=debug,node_agent=debug"],
        ];
        let log = File::create(path("log")).context("creating a log")?;
        let mut command = self.boxes.space(node).command(AGENT, &flags.concat());
        let agent = command.stdout(Stdio::null()).stderr(log).spawn().context("starting an agent")?;
        self.agents.push(agent);
        Ok(())
    }

    /// The operator's part: admits both and tells each of the other.
    fn operate(&mut self) {
        let api = &self.boxes.services.api;
        let shown = NODES.map(|node| {
            operator::admit(api, node);
            let node = api.get("meshnodes", node).unwrap_or_default();
            let status = &node["status"];
            json!([node["spec"]["admission"], status["candidates"], status["round"], status["listenPort"]])
        });
        if json!(shown) != self.shown {
            (self.shown, self.generation) = (json!(shown), self.generation + 1);
            operator::publish(api, "peers-0", &NODES, self.generation);
        }
    }

    /// What the agent says of its path to the other one, once it knows it.
    fn path(&self, number: usize) -> Option<Value> {
        let mut stream = UnixStream::connect(self.file(NODES[number], "sock")).ok()?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        write!(stream, "GET /v1/paths HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let body = answer.get(answer.find('{')?..=answer.rfind('}')?)?;
        let mut report: Value = serde_json::from_str(body).ok()?;
        report["peers"].as_array_mut()?.pop()
    }

    fn logs(&self) -> String {
        NODES.map(|node| fs::read_to_string(self.file(node, "log")).unwrap_or_default()).join("\n---\n")
    }
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let api = &self.boxes.services.api;
        api.delete("meshpeerslices", "peers-0");
        for node in NODES {
            api.delete("meshnodes", node);
            let _ = fs::remove_dir_all(self.file(node, "state"));
            let _ = fs::remove_file(self.file(node, "sock"));
        }
    }
}

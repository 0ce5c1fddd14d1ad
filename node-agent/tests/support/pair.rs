//! Two real agents in network namespaces, with a fake API server and operator in a third.

use super::{
    fake_api::FakeApi,
    netns::{Namespaces, enter},
    operator,
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Child,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

pub const AGENT: &str = env!("CARGO_BIN_EXE_warren-agent");
/// Far more than any step takes; only a broken agent gets there.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// One attempt; shorter than TCP's own repetition, so that time is measured and not timers.
const ATTEMPT: Duration = Duration::from_millis(100);

pub struct Lab {
    pub spaces: Namespaces,
    pub api: FakeApi,
    pub dir: PathBuf,
    agents: Vec<(String, Child)>,
}

impl Lab {
    pub fn new() -> Option<Self> {
        match Self::make() {
            Ok(lab) => Some(lab),
            Err(reason) => {
                assert!(std::env::var_os("REQUIRE_LAB").is_none_or(|v| v != "1"), "the lab is required: {reason}");
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    fn make() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let spaces = Namespaces::new(&format!("w{number}-"), &["r", "a", "b"])?;
        if !std::path::Path::new("/dev/net/tun").exists() {
            return Err("needs /dev/net/tun".into());
        }
        spaces.ip("r", "link add br0 type bridge")?;
        spaces.ip("r", "link set br0 up")?;
        spaces.ip("r", "addr add 10.77.0.1/24 dev br0")?;
        for (number, node) in [(11, "a"), (12, "b")] {
            let full = spaces.full(node);
            spaces.ip("r", &format!("link add p{node} type veth peer name eth0 netns {full}"))?;
            spaces.ip("r", &format!("link set p{node} master br0 up"))?;
            spaces.ip(node, &format!("addr add 10.77.0.{number}/24 dev eth0"))?;
            spaces.ip(node, "link set eth0 up")?;
            spaces.ip(node, "route add default via 10.77.0.1")?;
        }
        let dir = std::env::temp_dir().join(format!("warren-pair-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": "http://10.77.0.1:8080"}}],
            "users": [{"name": "lab", "user": {"token": "none"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        });
        fs::write(dir.join("kubeconfig"), kubeconfig.to_string()).map_err(|e| e.to_string())?;
        let api = control_plane(&spaces.full("r"));
        operator::create_mesh(&api, json!({}));
        operator::create_node(&api, "a", 1);
        operator::create_node(&api, "b", 2);
        Ok(Self { spaces, api, dir, agents: Vec::new() })
    }

    pub fn start(&mut self, node: &str) {
        self.start_after(node, ":");
    }

    /// Starts an agent after these shell commands, which have its mounts and its network; `$STATE` is its folder.
    pub fn start_after(&mut self, node: &str, before: &str) {
        let path = |name: &str| self.dir.join(format!("{node}-{name}")).display().to_string();
        let kubeconfig = self.dir.join("kubeconfig").display().to_string();
        let args = [
            "--kubeconfig",
            &kubeconfig,
            "--node-name",
            node,
            "--state-dir",
            &path("state"),
            "--socket",
            &path("sock"),
            "--metrics-listen",
            "127.0.0.1:21810",
            "--log",
            "info,node_agent=debug",
        ];
        let log = File::options().create(true).append(true).open(path("log")).unwrap();
        let script = format!("STATE={}; {before} && exec \"$0\" \"$@\"", path("state"));
        let args = [&["-c", &script, AGENT], args.as_slice()].concat();
        let child = self.spaces.spawn(node, "sh", &args, log).unwrap();
        self.agents.push((node.into(), child));
    }

    /// The agent's process.
    pub fn pid(&self, node: &str) -> u32 {
        self.agents.iter().find(|(name, _)| name == node).unwrap().1.id()
    }

    pub fn stop(&mut self, node: &str) {
        let at = self.agents.iter().position(|(name, _)| name == node).unwrap();
        let (_, mut child) = self.agents.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// How long until one mesh address reaches the other. A refused connection is an answer, and it came through the tunnel.
    pub fn reach(&self, from: &str, to: &str) -> Duration {
        let (began, space) = (Instant::now(), self.spaces.full(from));
        let target: SocketAddr = format!("{to}:9").parse().unwrap();
        let reached = thread::spawn(move || {
            enter(&space).unwrap();
            let refused = |e: std::io::Error| e.kind() == ErrorKind::ConnectionRefused;
            let answered = || TcpStream::connect_timeout(&target, ATTEMPT).map_or_else(refused, |_| true);
            while began.elapsed() < DEADLINE {
                if answered() {
                    return true;
                }
                // Unreachable is an instant answer of this node's own; don't spin on it.
                thread::yield_now();
            }
            false
        });
        assert!(reached.join().unwrap(), "{to} can't be reached from {from}\n{}", self.logs());
        began.elapsed()
    }

    pub fn ask(&self, node: &str, args: &[&str]) -> Result<String, String> {
        let socket = self.dir.join(format!("{node}-sock")).display().to_string();
        self.spaces.exec(node, AGENT, &[args, &["--socket", &socket]].concat())
    }

    pub fn paths(&self, node: &str) -> Value {
        serde_json::from_str(&self.ask(node, &["paths", "--json"]).unwrap()).unwrap()
    }

    /// What the agent says of its node.
    pub fn status(&self, node: &str) -> Value {
        serde_json::from_str(&self.ask(node, &["status", "--json"]).unwrap()).unwrap()
    }

    /// The path is confirmed an echo later than the first packet passes.
    pub fn wait_direct(&self, node: &str) {
        let began = Instant::now();
        let paths =
            || self.ask(node, &["paths", "--json"]).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        while paths().is_none_or(|paths| paths["peers"][0]["state"] != "direct") {
            assert!(began.elapsed() < DEADLINE, "{node} has no direct path\n{}", self.logs());
        }
    }

    pub fn logs(&self) -> String {
        let read = |n: &str| fs::read_to_string(self.dir.join(format!("{n}-log"))).unwrap_or_default();
        let ask = |n: &str| self.ask(n, &["status"]).unwrap_or_else(|e| e);
        format!("--- a\n{}\n{}--- b\n{}\n{}", read("a"), ask("a"), read("b"), ask("b"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (_, child) in &mut self.agents {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// API server and operator in the namespace, on a thread of their own.
fn control_plane(namespace: &str) -> FakeApi {
    let namespace = namespace.to_owned();
    let (send, receive) = std::sync::mpsc::channel();
    thread::spawn(move || {
        enter(&namespace).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (api, _, _) = FakeApi::serve("10.77.0.1:8080".parse().unwrap()).await;
            send.send(api.clone()).unwrap();
            let mut version = api.subscribe();
            let (mut published, mut generation) = (Value::Null, 0);
            while version.changed().await.is_ok() {
                for node in ["a", "b"] {
                    operator::admit(&api, node);
                }
                let shown = ["a", "b"].map(|n| {
                    let node = api.get("meshnodes", n).unwrap_or_default();
                    let status = &node["status"];
                    json!([node["spec"]["admission"], status["candidates"], status["round"], status["listenPort"]])
                });
                if json!(shown) != published {
                    published = json!(shown);
                    generation += 1;
                    operator::publish(&api, "peers-0", &["a", "b"], generation);
                }
            }
        });
    });
    receive.recv().unwrap()
}

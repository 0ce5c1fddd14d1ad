//! The binary as a container runtime and an attacker with a signal meet it.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
#![allow(unsafe_code)]

use serde_json::json;
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// A running agent with its folder, gone when the value is.
struct Agent {
    child: Child,
    dir: PathBuf,
}

impl Agent {
    /// Starts it without an API to talk to, and returns when it has its key.
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("warren-binary-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "none",
            "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "none", "user": {"token": "none"}}],
            "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
        });
        fs::write(dir.join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let path = |name: &str| dir.join(name).display().to_string();
        let child = Command::new(env!("CARGO_BIN_EXE_warren-agent"))
            .args(["--node-name=a", "--metrics-listen=off", "--log=info"])
            .arg(format!("--kubeconfig={}", path("kubeconfig")))
            .arg(format!("--state-dir={}", path("state")))
            .arg(format!("--socket={}", path("agent.sock")))
            // A core would be written here.
            .current_dir(&dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut agent = Self { child, dir };
        let mut log = BufReader::new(agent.child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("the agent starts") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the agent ended without having its key");
        }
        assert!(agent.dir.join("state/private.key").exists());
        // Somebody has to read on, or the agent would wait for its log.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        agent
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn its_memory_never_becomes_a_core_file() {
    let mut agent = Agent::start();
    let limits = agent.proc("limits");
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    let core: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(core[..2], ["0", "0"], "soft and hard limit");

    // The kernel says in the exit status whether it dumped. That it may not counts even where cores go to a program, for
    // which no limit holds.
    let pid = i32::try_from(agent.child.id()).unwrap();
    // SAFETY: a signal to our own child, which was not waited for yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGABRT) }, 0);
    let status = agent.child.wait().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(libc::SIGABRT), false));
    let files: Vec<String> =
        fs::read_dir(&agent.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(files.iter().all(|name| !name.starts_with("core")), "{files:?}");
}

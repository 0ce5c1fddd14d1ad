//! The binary as a user and a container runtime meet it.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStderr, Command, Stdio};

use clap::CommandFactory;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wire::stun::{self, MEMBER_REQUEST_LEN, TransactionId};

/// A running relay, killed at the end.
struct Relay {
    child: Child,
    log: BufReader<ChildStderr>,
    stun: SocketAddr,
    http: SocketAddr,
}

impl Relay {
    /// Starts it on free ports, with a log for programs, and reads from the log where it listens.
    fn start() -> Self {
        // The port of the HTTP server is not in the log, so one is picked that was free a moment ago.
        let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_warren-relay"))
            .args(["--listen=127.0.0.1:0", "--in-cluster=never"])
            .arg(format!("--metrics-listen={http}"))
            .env_remove("KUBECONFIG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let line = read_until(&mut log, "answering STUN");
        let (_, listening) = line.split_once("listening=[").unwrap_or_else(|| panic!("{line}"));
        let stun = listening.split_once(']').unwrap().0.parse().unwrap();
        read_until(&mut log, "serving without publishing");
        Self { child, log, stun, http }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_until(log: &mut impl BufRead, text: &str) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the log ended without {text:?}");
        if line.contains(text) {
            return line;
        }
    }
}

#[test]
fn it_answers_counts_and_stops_cleanly() {
    let mut relay = Relay::start();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(relay.stun).unwrap();
    client.send(&stun::encode_request(TransactionId([1; 12]), MEMBER_REQUEST_LEN)).unwrap();
    let mut buffer = [0; 100];
    let len = client.recv(&mut buffer).unwrap();
    assert_eq!(stun::decode(&buffer[..len]).unwrap().mapped, Some(client.local_addr().unwrap()));

    let metrics = relay.get("/metrics");
    for line in [
        "warren_relay_stun_requests_total{result=\"answered_padded\"} 1",
        "warren_relay_stun_requests_total{result=\"over_budget\"} 0",
        "warren_relay_stun_received_bytes_total 44",
        "warren_relay_stun_sent_bytes_total 32",
        "warren_relay_status_writes_total{result=\"ok\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line:?} in {metrics}");
    }
    for path in ["/healthz", "/readyz"] {
        assert!(relay.get(path).starts_with("HTTP/1.1 200 OK"), "{path}");
    }

    let pid = Pid::from_raw(i32::try_from(relay.child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    read_until(&mut relay.log, "stopping");
    assert!(relay.child.wait().unwrap().success());
}

#[test]
fn its_memory_never_becomes_a_core_file() {
    let mut relay = Relay::start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.child.id())).unwrap();
    let core: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max core")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "soft and hard limit");

    // The kernel says in the exit status whether it dumped; not dumpable counts even where cores go to a program.
    let pid = Pid::from_raw(i32::try_from(relay.child.id()).unwrap());
    kill(pid, Signal::SIGABRT).unwrap();
    let status = relay.child.wait().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!((status.signal(), status.core_dumped()), (Some(Signal::SIGABRT as i32), false));
}

#[test]
fn every_flag_is_explained_and_has_a_variable() {
    let command = relay::args::Args::command();
    for argument in
        command.get_arguments().filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
    {
        assert!(argument.get_long().is_some(), "{argument:?} has no long form");
        assert!(argument.get_env().is_some(), "{argument:?} has no variable");
        assert!(argument.get_help().is_some_and(|help| help.to_string().len() > 20), "{argument:?} is not explained");
    }
}

#[test]
fn a_wrong_flag_gets_an_answer_that_helps() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_warren-relay"))
            .args(["--metrics-listen=127.0.0.1:0"])
            .args(arguments)
            .env_remove("KUBECONFIG")
            .env_remove("NODE_NAME")
            .output()
            .unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = UdpSocket::bind(taken).unwrap();
    let listen = format!("--listen={}", holder.local_addr().unwrap());
    assert!(
        run(&[&listen, "--in-cluster=never"]).contains("free that port on this host, or choose another by --listen")
    );
    assert!(run(&["--advertise=0.0.0.0"]).contains("expected an address that others can send to"));
    assert!(run(&["--advertise=home"]).contains("expected an IP address"));
    let free = "--listen=127.0.0.1:0";
    assert!(run(&[free, "--in-cluster=always"]).contains("give --name or --node-name"));
    assert!(run(&[free, "--in-cluster=always", "--name=r"]).contains("outside a cluster give --kubeconfig"));
    assert!(run(&[free, "--kubeconfig=/nonexistent", "--name=r"]).contains("cannot read the kubeconfig /nonexistent"));
}

//! The binary in a cluster: what it publishes lets a member in, and nobody else.

#![allow(clippy::unwrap_used)]

mod api;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use api::{FakeApi, mesh_node, mesh_relay};
use channel::{Channel, Identity, Options, Receiver, Sender, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::PublicKey;
use wire::control::{DeniedReason, ToNode, ToRelay, VERSION};

const KEY: PublicKey = PublicKey::from_bytes([3; 32]);

fn node() -> Identity {
    Identity::from_seed([2; 32])
}

/// A relay process with the API of this test, killed at the end.
struct Relay {
    child: Child,
    directory: PathBuf,
    http: SocketAddr,
}

impl Relay {
    fn start(api: &FakeApi) -> Self {
        let directory = std::env::temp_dir().join(format!("relay-cluster-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let kubeconfig = directory.join("kubeconfig");
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", api.address()) } }],
            "users": [{ "name": "u", "user": {} }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "x",
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        // Ports that were free a moment ago; it takes no port 0, since nodes must be told which.
        let tcp = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let udp = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let http = tcp();
        let child = Command::new(env!("CARGO_BIN_EXE_warren-relay"))
            .args(["--listen=127.0.0.1:0", "--advertise=127.0.0.9", "--name=relay-a", "--node-name=node-a"])
            .args(["--relay-ports=1", "--drain-seconds=30"])
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--state-dir={}", directory.display()))
            .arg(format!("--relay-port={}", udp().port()))
            .arg(format!("--quic-port={}", udp().port()))
            .arg(format!("--tls-port={}", tcp().port()))
            .arg(format!("--metrics-listen={http}"))
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { child, directory, http }
    }

    async fn metrics(&self) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn connect(identity: &Identity, target: &Target) -> (Sender, Receiver) {
    let channel: Channel = channel::connect(identity, target, Options::default()).await.unwrap();
    let (sender, receiver) = channel.split();
    sender.send(&ToRelay::Hello { version: VERSION, node: KEY }).await.unwrap();
    (sender, receiver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_publishes_lets_members_in_and_a_removed_one_out() {
    let mut api = FakeApi::start().await;
    api.set(Some(mesh_relay("relay-a", "node-a")));
    api.set_node(Some(mesh_node("node-b", &KEY.to_string(), &relay::identity::to_text(&node().public()))));
    let mut relay = Relay::start(&api);
    // The first write may be from before the doors were open.
    let status = loop {
        let status: Value = api.writes.recv().await.unwrap().body["status"].clone();
        if status["identityKey"].is_string() {
            break status;
        }
    };
    assert_eq!(status["addresses"], serde_json::json!(["127.0.0.9"]));
    let at = |port: &str| SocketAddr::from(([127, 0, 0, 9], u16::try_from(status[port].as_u64().unwrap()).unwrap()));
    let target = Target {
        identity: relay::identity::from_text(status["identityKey"].as_str().unwrap()).unwrap(),
        quic: vec![at("quicPort")],
        tls: vec![at("tlsPort")],
    };

    let (_to_relay, mut stranger) = connect(&Identity::from_seed([9; 32]), &target).await;
    let heard = stranger.recv().await.unwrap();
    assert!(matches!(heard, Some(ToNode::Denied(DeniedReason::NotAdmitted))), "{heard:?}");

    let (to_relay, mut from_relay) = loop {
        let (to_relay, mut from_relay) = connect(&node(), &target).await;
        // The first list may take longer than anybody waits for it.
        match from_relay.recv().await.unwrap() {
            Some(ToNode::Welcome { .. }) => break (to_relay, from_relay),
            heard => assert!(matches!(heard, Some(ToNode::Denied(DeniedReason::NotAdmitted))), "{heard:?}"),
        }
    };
    let metrics = relay.metrics().await;
    for line in ["warren_relay_sessions 1", "warren_relay_members 1", "warren_relay_front_end_failures_total 0"] {
        assert!(metrics.lines().any(|found| found == line), "no {line:?} in {metrics}");
    }

    let pid = Pid::from_raw(i32::try_from(relay.child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(matches!(from_relay.recv().await.unwrap(), Some(ToNode::Drain { seconds: 30 })));
    api.set_node(None);
    let heard = from_relay.recv().await.unwrap();
    assert!(matches!(heard, Some(ToNode::Denied(DeniedReason::NotAdmitted))), "{heard:?}");
    drop(to_relay);
    // With its last node gone there is nothing to wait for.
    assert!(relay.child.wait().unwrap().success());
}

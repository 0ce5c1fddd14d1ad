//! What a real WireGuard device sends to a peer that sleeps, handed on as it is, is as good as if the device had sent it there: the
//! handshake that the kernel would not start again for 5 s, and data of a session that is still alive. With the kernel's WireGuard too, where
//! the kernel has it.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use node_agent::carry::{Bells, Call, Carrier};
use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};
use support::netns::{Namespaces, enter};
use tokio::sync::oneshot;
use wgdev::{Backend, Datagram, Delta, Device, DeviceConfig, Kernel, PeerUpdate, Userspace};
use wire::key::PrivateKey;

/// Far more than any step takes.
const DEADLINE: Duration = Duration::from_secs(30);
/// A ping waits for less than the 5 s after which WireGuard starts another handshake by itself.
const PING: [&str; 6] = ["-n", "-q", "-c1", "-W4", "-w4", "10.118.0.2"];

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

fn open(backend: Backend, own: u8) -> Box<dyn Device> {
    let config =
        DeviceConfig { name: "wg0".into(), private_key: key(own), listen_port: 21820, fwmark: 0x10, mtu: 1420 };
    match backend {
        Backend::Kernel => Box::new(Kernel::open(config).unwrap()),
        Backend::Userspace => Box::new(Userspace::open(config).unwrap()),
    }
}

async fn tell(device: &dyn Device, update: PeerUpdate) {
    device.apply(&Delta { upsert: vec![update], remove: Vec::new() }).await.unwrap();
}

fn peer(other: u8) -> PeerUpdate {
    let allowed_ips = Some(vec![format!("10.118.0.{other}/32").parse().unwrap()]);
    PeerUpdate { allowed_ips, ..PeerUpdate::new(key(other).public_key()) }
}

/// What arrives at the bell next.
async fn rung(bells: &Bells) -> Call {
    let call = async {
        loop {
            if let Some(call) = bells.take() {
                break call;
            }
            bells.rung().await;
        }
    };
    tokio::time::timeout(DEADLINE, call).await.unwrap()
}

/// Pings the other node once, from within the namespace of `a`, while `wake` brings the ping on its way.
async fn ping(space: &str, wake: impl Future<Output = ()>) {
    let args = [&["netns", "exec", space, "ping"], &PING[..]].concat();
    let child = Command::new("ip").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    wake.await;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

async fn hand_on(device: &dyn Device, call: Call, to: SocketAddr) {
    device.send(Datagram { remote: to, local: None, payload: call.message }).await.unwrap();
}

/// The node that wakes its peer, twice: once without a session, and once with one.
async fn wakes(device: &dyn Device, space: &str, far: SocketAddr) {
    let name = key(2).public_key();
    let carrier = Carrier::open(21820).unwrap();
    let bells = carrier.bells();
    let bell = SocketAddr::new(Ipv4Addr::new(127, 77, 0, 1).into(), carrier.port());
    carrier.await_peer(bell, name);
    let at = |endpoint| PeerUpdate { endpoint: Some(endpoint), ..PeerUpdate::new(name) };
    tell(device, PeerUpdate { endpoint: Some(bell), ..peer(2) }).await;
    ping(space, async {
        let call = rung(&bells).await;
        assert_eq!((call.peer, call.message[0], call.message.len()), (name, 1, 148), "an initiation");
        tell(device, at(far)).await;
        match device.backend() {
            Backend::Kernel => hand_on(device, call, far).await,
            Backend::Userspace => device.start_handshake(&name).await.unwrap(),
        }
    })
    .await;
    tell(device, at(bell)).await;
    ping(space, async {
        let call = rung(&bells).await;
        assert_eq!((call.peer, call.message[0]), (name, 4), "data");
        tell(device, at(far)).await;
        hand_on(device, call, far).await;
    })
    .await;
}

/// Does something with a device of its own in a namespace, on a thread of its own, since a device belongs to the namespace where it is made.
fn within(
    spaces: &Arc<Namespaces>,
    (space, own, other): (&'static str, u8, u8),
    backend: Backend,
    work: impl AsyncFnOnce(&dyn Device) + Send + 'static,
) -> JoinHandle<()> {
    let spaces = spaces.clone();
    thread::spawn(move || {
        enter(&spaces.full(space)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let device = open(backend, own);
            tell(&*device, peer(other)).await;
            spaces.ip(space, &format!("addr add 10.118.0.{own}/32 dev wg0")).unwrap();
            spaces.ip(space, "link set wg0 up").unwrap();
            spaces.ip(space, &format!("route replace 10.118.0.{other}/32 dev wg0")).unwrap();
            work(&*device).await;
        });
    })
}

fn is_woken(backend: Backend, prefix: &str) {
    let spaces = match Namespaces::new(prefix, &["a", "b"]) {
        Ok(spaces) if std::path::Path::new("/dev/net/tun").exists() => Arc::new(spaces),
        other => {
            let reason = other.err().unwrap_or_else(|| "needs /dev/net/tun".into());
            assert!(std::env::var_os("REQUIRE_LAB").is_none_or(|v| v != "1"), "the lab is required: {reason}");
            return eprintln!("skipped: {reason}");
        }
    };
    spaces.ip("a", &format!("link add eth0 type veth peer name eth0 netns {}", spaces.full("b"))).unwrap();
    for (space, number) in [("a", 1), ("b", 2)] {
        spaces.ip(space, &format!("addr add 10.77.0.{number}/24 dev eth0")).unwrap();
        spaces.ip(space, "link set eth0 up").unwrap();
    }
    let ((ready, is_ready), (end, ended)) = (mpsc::channel(), oneshot::channel::<()>());
    let answers = within(&spaces, ("b", 2, 1), backend, async move |_| {
        ready.send(()).unwrap();
        _ = ended.await;
    });
    is_ready.recv_timeout(DEADLINE).unwrap();
    let space = spaces.full("a");
    let far = SocketAddr::from((Ipv4Addr::new(10, 77, 0, 2), 21820));
    let asks = within(&spaces, ("a", 1, 2), backend, async move |device| wakes(device, &space, far).await);
    let asked = asks.join();
    end.send(()).unwrap();
    answers.join().unwrap();
    asked.unwrap();
}

#[test]
fn what_the_userspace_device_sends_to_a_peer_that_sleeps_is_handed_on() {
    is_woken(Backend::Userspace, "wbu-");
}

#[test]
fn what_the_kernels_device_sends_to_a_peer_that_sleeps_is_handed_on() {
    if let Err(error) = wgdev::kernel::available() {
        assert!(!std::env::var("WARREN_KERNEL_LANE").is_ok_and(|v| v == "1"), "WARREN_KERNEL_LANE=1, and: {error}");
        return eprintln!("skipped: {error}; e2e/kernel/agent.sh has a kernel with WireGuard");
    }
    is_woken(Backend::Kernel, "wbk-");
}

//! Against wireguard-go, in both roles.

#![allow(clippy::unwrap_used)]

mod lab;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use lab::{Cable, Echo, Namespace, Node, block_on, eventually, peer, private_key};
use wgdev::{Device, Userspace};
use wire::key::PublicKey;

const VERSION: &str = "v0.0.0-20260522210424-ecfc5a8d5446";

/// The binary, built once per version; `None` where there is no Go.
fn wireguard_go() -> Option<PathBuf> {
    let home = || PathBuf::from(std::env::var("HOME").unwrap()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let folder = cache.join("warren/wireguard-go").join(VERSION);
    let binary = folder.join("wireguard-go");
    if binary.exists() {
        return Some(binary);
    }
    if Command::new("go").arg("version").output().is_err() {
        let required = std::env::var("REQUIRE_LAB").is_ok_and(|v| v == "1");
        assert!(!required, "REQUIRE_LAB=1, and wireguard-go can't be built: there is no Go");
        eprintln!("skipped: there is no Go to build wireguard-go with");
        return None;
    }
    let source = std::env::temp_dir().join(format!("wd-go-{}", std::process::id()));
    fs::create_dir_all(&source).unwrap();
    fs::create_dir_all(&folder).unwrap();
    let go = |args: &[&str]| {
        let status = Command::new("go").args(args).current_dir(&source).status().unwrap();
        assert!(status.success(), "go {args:?}");
    };
    go(&["mod", "init", "warren.dev/interop"]);
    go(&["get", &format!("golang.zx2c4.com/wireguard@{VERSION}")]);
    // Built beside its place and renamed, so that nobody starts half of it.
    let partial = folder.join(format!("partial-{}", std::process::id()));
    go(&["build", "-o", partial.to_str().unwrap(), "golang.zx2c4.com/wireguard"]);
    fs::rename(&partial, &binary).unwrap();
    fs::remove_dir_all(&source).unwrap();
    Some(binary)
}

/// A wireguard-go with one peer, node 1.
struct WireguardGo {
    process: Child,
    socket: PathBuf,
}

impl WireguardGo {
    fn start(binary: &Path, namespace: &Namespace, seed: u8, theirs: &PublicKey) -> Self {
        // The control socket is in the file system, so the name must be nobody else's.
        let name = format!("wd-go{}", std::process::id() % 100_000);
        let (binary, interface) = (binary.to_owned(), name.clone());
        let process = namespace.run(move || {
            Command::new(binary)
                .args(["-f", &interface])
                .env("LOG_LEVEL", "error")
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        let socket = PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
        let go = Self { process, socket };
        eventually("wireguard-go listens", || UnixStream::connect(&go.socket).is_ok());
        go.set(&format!(
            "private_key={}\nlisten_port={}\npublic_key={}\nallowed_ip=10.99.0.1/32\nallowed_ip=fd99::1/128\n",
            hex(private_key(seed).expose_bytes()),
            lab::PORT,
            hex(theirs.as_bytes()),
        ));
        namespace.ip(&format!("link set {name} mtu {} up", lab::MTU));
        namespace.ip(&format!("addr add 10.99.0.2/24 dev {name}"));
        namespace.ip(&format!("addr add fd99::2/64 dev {name} nodad"));
        go
    }

    fn set(&self, settings: &str) {
        let mut control = UnixStream::connect(&self.socket).unwrap();
        control.set_read_timeout(Some(lab::PATIENCE)).unwrap();
        write!(control, "set=1\n{settings}\n").unwrap();
        let mut answer = [0; 64];
        let length = control.read(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"errno=0\n\n");
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn either_side_may_start_and_all_sizes_pass() {
    if !lab::available() {
        return;
    }
    let Some(binary) = wireguard_go() else {
        return;
    };
    let cable = Cable::new();
    let ours = Node::<Userspace>::open(&cable.a, 1);
    lab::address(&cable.a, 1);
    let go = WireguardGo::start(&binary, &cable.b, 2, &ours.key);
    let key_of_go = private_key(2).public_key();

    // We start: wireguard-go learns where we are.
    ours.upsert(peer(key_of_go, 2, Some("198.51.100.2:21820")));
    let began = Instant::now();
    let mut v4 = Echo::new(&cable, "10.99.0.1:0", "10.99.0.2:7");
    let mut v6 = Echo::new(&cable, "[fd99::1]:0", "[fd99::2]:7");
    for size in [8, 100, 1391, 1392, 1400, 20_000] {
        v4.ping(size);
        v6.ping(size);
    }
    let first = ours.status(&key_of_go).last_handshake.unwrap();
    assert!(first <= began.elapsed());

    // It starts: we are made anew and know nothing of where it is.
    drop(ours);
    let ours = Node::<Userspace>::open(&cable.a, 1);
    ours.upsert(peer(key_of_go, 2, None));
    // Without its old session, which it would try to use for 15 s.
    let key = hex(ours.key.as_bytes());
    go.set(&format!("public_key={key}\nremove=true\n"));
    go.set(&format!(
        "public_key={key}\nallowed_ip=10.99.0.1/32\nallowed_ip=fd99::1/128\nendpoint=198.51.100.1:21820\n\
         persistent_keepalive_interval=1\n"
    ));
    eventually("wireguard-go shakes hands with the new device", || ours.status(&key_of_go).last_handshake.is_some());
    v4.ping(1392);
    // A third one, over the live session.
    let before = ours.status(&key_of_go).rx_bytes;
    block_on(ours.device.start_handshake(&key_of_go)).unwrap();
    eventually("it answers", || ours.status(&key_of_go).rx_bytes >= before + 92);
    v6.ping(1392);
}

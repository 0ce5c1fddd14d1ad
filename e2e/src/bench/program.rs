//! The userspace WireGuards that are compared: how each is built, started and given its peer.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::command::{command, run};
use crate::images::{binary, workspace};
use crate::net::namespace::Namespace;
use crate::state::{cache, write};
use crate::wait;

/// The Go module whose interoperation is tested too.
const WIREGUARD_GO: &str = "v0.0.0-20260522210424-ecfc5a8d5446";
/// The version below Warren's own device, so that the ratio tells what is ours.
const GOTATUN: &str = "0.10.2";
/// Every end listens here.
pub const PORT: u16 = 21_820;
/// A device stands within milliseconds of its program's start.
const STARTED: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(5);
/// Key pairs of this benchmark: private keys of 32 bytes of 1 and of 2, with their public keys.
const KEYS: [(u8, &str); 2] =
    [(1, "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk="), (2, "zo060cy2M+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk=")];

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `crates/wgdev`.
    Warren,
    /// gotatun's own device.
    Gotatun,
    /// wireguard-go.
    WireguardGo,
}

impl Kind {
    /// All, in the order in which they take turns.
    pub const ALL: [Self; 3] = [Self::Warren, Self::Gotatun, Self::WireguardGo];

    /// How the table names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warren => "Warren",
            Self::Gotatun => "bare gotatun",
            Self::WireguardGo => "wireguard-go",
        }
    }

    /// Builds it, unless this version is in the cache.
    pub fn build(self) -> Result<PathBuf> {
        match self {
            Self::Warren => warren(&[]),
            Self::Gotatun => cached("gotatun", GOTATUN, "bare-gotatun", gotatun),
            Self::WireguardGo => cached("wireguard-go", WIREGUARD_GO, "wireguard-go", wireguard_go),
        }
    }
}

/// Builds Warren's with the names of its functions, for a profile. The others have theirs.
pub fn warren_with_symbols() -> Result<PathBuf> {
    warren(&["-C", "strip=none"])
}

/// One end of a pair: which of the two, where, and what it is told.
#[derive(Clone, Debug)]
pub struct End {
    /// 0 or 1.
    pub index: usize,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its interface.
    pub device: String,
    /// What its peer may send from.
    pub allowed: String,
    /// Where its peer is.
    pub endpoint: String,
}

/// A running end; its process ends with it.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts the program in the end's namespace and gives it its peer, after `idle` others that never say anything.
    pub fn start(kind: Kind, program: &Path, end: &End, idle: usize) -> Result<Self> {
        let (own, peer) = (KEYS[end.index], KEYS[1 - end.index]);
        let (private, port) = ([own.0; 32], PORT.to_string());
        let public = STANDARD.decode(peer.1).context("a public key")?;
        let mut args = vec![end.device.clone()];
        match kind {
            Kind::Warren => {
                args.extend([STANDARD.encode(private), port.clone()]);
                args.extend((0..idle).map(|number| {
                    let (key, allowed) = idle_peer(number);
                    format!("{},{allowed}", STANDARD.encode(key))
                }));
                args.push(format!("{},{},{}", peer.1, end.allowed, end.endpoint));
            }
            Kind::Gotatun => {
                ensure!(idle == 0, "bare-gotatun takes one peer");
                args.extend([hex(&private), port.clone(), hex(&public), end.allowed.clone(), end.endpoint.clone()]);
            }
            Kind::WireguardGo => args.insert(0, "-f".into()),
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command: Command = end.namespace.command(&program.to_string_lossy(), &args);
        // Warren's example ends with its standard input.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).env("LOG_LEVEL", "error");
        let running = Self { child: command.spawn().with_context(|| format!("starting {}", kind.name()))? };
        wait::until(&format!("the device of {}", kind.name()), STARTED, || {
            end.namespace.ip(&[&format!("link show {}", end.device)]).map_err(|error| format!("{error:#}"))
        })?;
        if kind == Kind::WireguardGo {
            let mut settings = format!("private_key={}\nlisten_port={port}\n", hex(&private));
            for number in 0..idle {
                let (key, allowed) = idle_peer(number);
                settings += &format!("public_key={}\nallowed_ip={allowed}\n", hex(&key));
            }
            settings += &format!("public_key={}\nallowed_ip={}\n", hex(&public), end.allowed);
            settings += &format!("endpoint={}\n", end.endpoint);
            configure(&control(&end.device), &settings)?;
        }
        Ok(running)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Key and address of a peer that nobody plays.
fn idle_peer(number: usize) -> ([u8; 32], String) {
    let [.., high, low] = number.to_be_bytes();
    let mut key = [7; 32];
    key[..2].copy_from_slice(&[high, low]);
    (key, format!("10.98.{high}.{low}/32"))
}

/// The control socket of wireguard-go, in the file system and so shared by all namespaces.
#[must_use]
pub fn control(device: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{device}.sock"))
}

fn configure(socket: &Path, settings: &str) -> Result<()> {
    let mut stream = wait::until("wireguard-go to listen", STARTED, || {
        UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))
    })?;
    stream.set_read_timeout(Some(ANSWER)).context("setting a timeout")?;
    write!(stream, "set=1\n{settings}\n").context("configuring wireguard-go")?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).context("reading wireguard-go's answer")?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    ensure!(answer == "errno=0\n\n", "wireguard-go refused its settings: {answer:?}");
    Ok(())
}

/// Made by cargo each time: it knows whether anything changed, and a stale program would be measured. `flags` are rustc's,
/// for the program alone.
fn warren(flags: &[&str]) -> Result<PathBuf> {
    let mut cargo = command("cargo", ["rustc", "--quiet", "--locked", "--profile", "ci", "-p", "wgdev"]);
    cargo.args(["--example", "device", "--target", "x86_64-unknown-linux-gnu", "--"]).args(flags);
    // As `make build` has it, so that its libraries are used again.
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    run(cargo.current_dir(workspace()))?;
    Ok(binary("examples/device"))
}

/// The program from the cache, or built there in a folder beside its place and renamed, so that nobody starts half of it.
fn cached(what: &str, version: &str, program: &str, build: fn(&Path) -> Result<PathBuf>) -> Result<PathBuf> {
    let folder = cache()?.join(what).join(version);
    let path = folder.join(program);
    if path.exists() {
        return Ok(path);
    }
    let source = folder.join(format!("build-{}", std::process::id()));
    fs::create_dir_all(&source).with_context(|| format!("making {}", source.display()))?;
    let built = build(&source).and_then(|made| fs::rename(made, &path).context("finishing the build"));
    let _ = fs::remove_dir_all(&source);
    built.with_context(|| format!("building {what} {version}"))?;
    Ok(path)
}

fn wireguard_go(source: &Path) -> Result<PathBuf> {
    let go = |args: &[&str]| run(command("go", args).current_dir(source));
    if go(&["version"]).is_err() {
        bail!("there is no Go: install Go 1.26 or newer");
    }
    go(&["mod", "init", "warren.dev/bench"])?;
    go(&["get", &format!("golang.zx2c4.com/wireguard@{WIREGUARD_GO}")])?;
    go(&["build", "-o", "wireguard-go", "golang.zx2c4.com/wireguard"])?;
    Ok(source.join("wireguard-go"))
}

/// A package of its own: its features must not find their way into Warren's build.
fn gotatun(source: &Path) -> Result<PathBuf> {
    let manifest = format!(
        "[package]\nname = \"bare-gotatun\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         gotatun = {{ version = \"={GOTATUN}\", default-features = false, features = [\"ring\", \"device\", \"tun\"] }}\n\
         tokio = {{ version = \"1\", features = [\"rt-multi-thread\", \"macros\"] }}\n\n\
         [profile.release]\ncodegen-units = 16\n\n[workspace]\n"
    );
    fs::create_dir_all(source.join("src")).context("making its source folder")?;
    write(&source.join("Cargo.toml"), manifest)?;
    write(&source.join("src/main.rs"), include_str!("bare_gotatun.rs"))?;
    // What Warren locks is the same here; cargo adds what is missing.
    fs::copy(workspace().join("Cargo.lock"), source.join("Cargo.lock")).context("copying Cargo.lock")?;
    run(command("cargo", ["build", "--quiet", "--release", "--target-dir", "target"]).current_dir(source))?;
    Ok(source.join("target/release/bare-gotatun"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

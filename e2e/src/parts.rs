//! The real cluster parts: Kubernetes, etcd, Helm and the CNI plugins, built from their Go modules and kept.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::command::{command, run};
use crate::progress::Progress;

/// What the Debian packages bring, and the command that shows they are there.
const PACKAGES: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("nftables", "nft"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("iproute2", "ip"),
    ("procps", "sysctl"),
    ("util-linux", "nsenter"),
];

/// The folder of finished parts.
#[derive(Clone, Debug)]
pub struct Parts {
    dir: PathBuf,
}

impl Parts {
    /// Builds what is missing, once per version of the recipe; the first time takes about 12 minutes on 2 cores.
    pub fn build(progress: &Progress) -> Result<Self> {
        if let Some(dir) = std::env::var_os("WARREN_PARTS") {
            return Ok(Self { dir: dir.into() });
        }
        progress.step("cluster parts (built once per version)", || {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/build.sh");
            let mut build = command("bash", [script]);
            let output = build.stderr(Stdio::inherit()).output().context("starting build.sh")?;
            if !output.status.success() {
                bail!("build.sh ended with {}; what it finished is kept, run it again to go on", output.status);
            }
            let printed = String::from_utf8(output.stdout).context("reading the folder that build.sh prints")?;
            Ok(Self { dir: printed.trim_end().into() })
        })
    }

    /// The parts that a running lab was made from.
    #[must_use]
    pub fn of(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// A finished program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The folder of the CNI plugins.
    #[must_use]
    pub fn cni(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Checks that this machine can run a lab, and as root installs the packages that are missing.
pub fn prepare(progress: &Progress) -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return check_machine();
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab needs the packages {}: run `apt-get install {}` as root", missing.join(", "), missing.join(" "));
    }
    progress.step(&format!("installed {}", missing.join(", ")), || {
        let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
        install.extend(&missing);
        let apt = |args: &[&str]| {
            run(command("apt-get", args).env("DEBIAN_FRONTEND", "noninteractive"))
                .context("installing the lab's packages")
        };
        // A package list of a fresh machine may be empty: fetch it only when the first attempt fails.
        apt(&install).or_else(|_| apt(&["update", "-q"]).and_then(|_| apt(&install))).map(drop)
    })?;
    check_machine()
}

/// Why this machine cannot run a lab, if it cannot.
pub fn check_machine() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and mounts: run it as root");
    }
    let missing = missing_packages();
    if !missing.is_empty() {
        bail!(
            "these packages are missing: {}; install them with apt-get or run `warren-lab parts`",
            missing.join(", ")
        );
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!("/dev/net/tun is missing: load the module `tun` or give this container the device");
    }
    Ok(())
}

fn missing_packages() -> Vec<&'static str> {
    PACKAGES.into_iter().filter(|(_, program)| !in_path(program)).map(|(package, _)| package).collect()
}

fn in_path(program: &str) -> bool {
    // Administration programs live in sbin, which a plain user's PATH may lack; nothing here runs as one.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|dir| Path::new(dir).join(program).exists())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! A real kube-apiserver on a real etcd, on loopback, in a folder that vanishes with it.
#![allow(unsafe_code)]

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// What the API server calls us; its group may do everything.
pub const ADMIN_TOKEN: &str = "test-admin-token";

/// A process that is killed with its owner.
pub struct Process {
    child: Child,
}

impl Process {
    pub fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let out = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // SAFETY: prctl with plain values is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Ok(Self { child: command.spawn().with_context(|| format!("start {command:?}"))? })
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid fits");
        // SAFETY: the child has not been waited for, so the pid is still its own.
        unsafe { libc::kill(pid, signal) };
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The API server with its store.
pub struct Parts {
    pub dir: PathBuf,
    pub kubeconfig: PathBuf,
    pub apiserver: Process,
    _etcd: Process,
}

impl Parts {
    pub fn start(binaries: &Path) -> Result<Self> {
        for name in ["etcd", "kube-apiserver"] {
            ensure!(binaries.join(name).is_file(), "expected {name} in {}", binaries.display());
        }
        let dir = std::env::temp_dir().join(format!("warren-operator-api-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let [client, peer, secure] = free_ports()?;
        let etcd = start_etcd(binaries, &dir, client, peer)?;
        write_identity(&dir)?;
        let apiserver = start_apiserver(binaries, &dir, client, secure)?;
        let kubeconfig = dir.join("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_text(&dir, secure))?;
        Ok(Self { dir, kubeconfig, apiserver, _etcd: etcd })
    }
}

impl Parts {
    /// The end of the API server's log.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(self.dir.join("kube-apiserver.log")).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if std::env::var_os("WARREN_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn free_ports() -> Result<[u16; 3]> {
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpListener::bind("127.0.0.1:0")?);
    }
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn start_etcd(binaries: &Path, dir: &Path, client: u16, peer: u16) -> Result<Process> {
    let mut command = Command::new(binaries.join("etcd"));
    let client = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    command.arg("--data-dir").arg(dir.join("etcd")).arg("--unsafe-no-fsync");
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "warn"]);
    Process::spawn(command, &dir.join("etcd.log"))
}

fn write_identity(dir: &Path) -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let cert = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()])?.self_signed(&key)?;
    fs::write(dir.join("tls.crt"), cert.pem())?;
    fs::write(dir.join("tls.key"), key.serialize_pem())?;
    let accounts = rcgen::KeyPair::generate()?;
    fs::write(dir.join("sa.key"), accounts.serialize_pem())?;
    fs::write(dir.join("sa.pub"), accounts.public_key_pem())?;
    fs::write(dir.join("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"))?;
    Ok(())
}

fn start_apiserver(binaries: &Path, dir: &Path, etcd: u16, secure: u16) -> Result<Process> {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(binaries.join("kube-apiserver"));
    command.args(["--etcd-servers", &format!("http://127.0.0.1:{etcd}")]);
    command.args(["--bind-address", "127.0.0.1", "--secure-port", &secure.to_string()]);
    command.args(["--tls-cert-file", &file("tls.crt"), "--tls-private-key-file", &file("tls.key")]);
    command.args(["--token-auth-file", &file("tokens.csv"), "--authorization-mode", "RBAC"]);
    command.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
    command.args([
        "--service-account-key-file",
        &file("sa.pub"),
        "--service-account-signing-key-file",
        &file("sa.key"),
    ]);
    command.args(["--service-cluster-ip-range", "10.96.0.0/16", "--endpoint-reconciler-type", "none"]);
    Process::spawn(command, &dir.join("kube-apiserver.log"))
}

fn kubeconfig_text(dir: &Path, port: u16) -> String {
    let ca = dir.join("tls.crt");
    let ca = ca.display();
    format!(
        "apiVersion: v1\nkind: Config\n\
         clusters: [{{name: t, cluster: {{server: \"https://127.0.0.1:{port}\", certificate-authority: \"{ca}\"}}}}]\n\
         users: [{{name: t, user: {{token: {ADMIN_TOKEN}}}}}]\n\
         contexts: [{{name: t, context: {{cluster: t, user: t}}}}]\ncurrent-context: t\n"
    )
}

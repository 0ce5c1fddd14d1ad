//! A real API server on a real etcd in a namespace of their own, with Warren's kinds and nobody who writes but the benchmark.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::api;
use crate::command::run;
use crate::images::workspace;
use crate::net::namespace::Namespace;
use crate::parts::Parts;
use crate::scenario::API_PORT;
use crate::state::write;
use crate::wait;

/// 4 s alone, several times that beside a build.
const READY: Duration = Duration::from_secs(120);
/// What the API server knows everybody by.
const TOKEN: &str = "bench";

/// A running control plane; its processes end with it.
pub struct Api {
    namespace: Namespace,
    address: String,
    dir: PathBuf,
    kubectl: PathBuf,
    _processes: Vec<Running>,
}

/// A process that is killed with its owner.
pub struct Running(Child);

impl Running {
    /// Starts it with its output in the file.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone().context("sharing the log")?).stderr(out);
        Ok(Self(command.spawn().with_context(|| format!("starting {command:?}"))?))
    }

    /// Starts it and hands out what it prints.
    pub fn piped(command: &mut Command) -> Result<(Self, ChildStdout)> {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("starting {command:?}"))?;
        let output = child.stdout.take().context("its output")?;
        Ok((Self(child), output))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Api {
    /// Starts both in `namespace`, which has this address, with their files in `dir`, and waits until Warren's kinds are served.
    pub fn start(parts: &Parts, namespace: &Namespace, address: &str, dir: &Path) -> Result<Self> {
        identity(address, dir)?;
        let file = |name: &str| dir.join(name).display().to_string();
        let start = |name: &str, args: &[String]| {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let program = parts.program(name);
            Running::start(&mut namespace.command(&program.to_string_lossy(), &args), &dir.join(format!("{name}.log")))
        };
        let etcd = [
            format!("--data-dir={}", file("etcd")),
            // A benchmark that loses power starts anew.
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ];
        let server = [
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--bind-address={address}"),
            format!("--secure-port={API_PORT}"),
            format!("--tls-cert-file={}", file("tls.crt")),
            format!("--tls-private-key-file={}", file("tls.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--endpoint-reconciler-type=none".into(),
        ];
        let processes = vec![start("etcd", &etcd)?, start("kube-apiserver", &server)?];
        let api = Self {
            namespace: namespace.clone(),
            address: address.into(),
            dir: dir.into(),
            kubectl: parts.program("kubectl"),
            _processes: processes,
        };
        wait::until("the API server to be ready", READY, || {
            api.kubectl(&["get", "--raw", "/readyz"]).map_err(|error| format!("{error:#}"))
        })?;
        let kinds = workspace().join("crds/generated");
        api.kubectl(&["create", "-f", &kinds.to_string_lossy()])?;
        wait::until("Warren's kinds to be served", READY, || {
            api.kubectl(&["get", "meshes,meshnodes,meshpeerslices,meshrelays"]).map_err(|error| format!("{error:#}"))
        })?;
        Ok(api)
    }

    /// The kubeconfig of whoever may do everything.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Makes a cluster-wide object of Warren's.
    pub fn create(&self, plural: &str, object: &Value) -> Result<()> {
        self.request("POST", &format!("/apis/warren.dev/v1alpha1/{plural}"), object)
    }

    /// Merges into one; with `status` into its status.
    pub fn patch(&self, plural: &str, name: &str, object: &Value) -> Result<()> {
        self.request("PATCH", &format!("/apis/warren.dev/v1alpha1/{plural}/{name}"), object)
    }

    /// Deletes all of a kind.
    pub fn clear(&self, plural: &str) -> Result<()> {
        self.request("DELETE", &format!("/apis/warren.dev/v1alpha1/{plural}"), &Value::Null)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig().display());
        let args = [&[kubeconfig.as_str()], args].concat();
        run(&mut self.namespace.command(&self.kubectl.to_string_lossy(), &args))
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Result<()> {
        let (ca, token) = (self.dir.join("tls.crt"), self.dir.join("token"));
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let said = inside(&self.namespace, || api::send(&self.address, &ca, &token, method, path, &body))?;
        ensure!(said.starts_with('2'), "{method} {path}: {said}");
        Ok(())
    }
}

/// Runs in the network of the namespace, on a thread of its own because a thread can't be trusted to come back.
fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(namespace.path()).with_context(|| format!("opening namespace {}", namespace.name()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the thread in the namespace ended")))
    })
}

/// A certificate that is its own authority, the keys that the API server insists on, and one token.
fn identity(address: &str, dir: &Path) -> Result<()> {
    let key = rcgen::KeyPair::generate().context("making a key")?;
    let cert = rcgen::CertificateParams::new(vec![address.into()]).and_then(|params| params.self_signed(&key));
    let cert = cert.context("making a certificate")?;
    let accounts = rcgen::KeyPair::generate().context("making a key")?;
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {
            "server": format!("https://{address}:{API_PORT}"), "certificate-authority": dir.join("tls.crt"),
        }}],
        "users": [{"name": "bench", "user": {"token": TOKEN}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    });
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    for (name, text) in [
        ("tls.crt", cert.pem()),
        ("tls.key", key.serialize_pem()),
        ("sa.key", accounts.serialize_pem()),
        ("sa.pub", accounts.public_key_pem()),
        ("token", TOKEN.into()),
        ("tokens.csv", format!("{TOKEN},admin,admin,\"system:masters\"\n")),
        ("kubeconfig", kubeconfig.to_string()),
    ] {
        write(&dir.join(name), text)?;
    }
    Ok(())
}

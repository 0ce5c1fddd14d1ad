//! From arguments to a running agent.

use crate::{
    agent::{
        Agent, Inputs, Outcome, Parts, Settings,
        identity::{Identity, Opening},
    },
    api::{Connection, endpoints::Remembered, feed::Feeds},
    args::RunArgs,
    cache::{Cache, Name},
    cni::RunDir,
    files,
    host::{Host, System},
    key::KeyFile,
    local::{self, Answer, Ask, Question, server},
    metrics::Metrics,
    process,
    relays::{
        last::LastOverTls,
        proxy::{self, Proxies, ProxyUrl},
    },
    told::View,
};
use anyhow::{Context, bail};
use std::{
    path::Path,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    time::sleep,
};
use zeroize::Zeroizing;

/// News of the API that may wait for the loop.
const TOLD_QUEUE: usize = 64;
/// Between attempts to get a key when disk or kernel refuse.
const KEY_RETRY: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let originals = args.originals();
    let RunArgs {
        kubeconfig,
        api_servers,
        node_name,
        state_dir,
        socket,
        cni_mode,
        cni_conf_dir,
        cni_bin_dir,
        cni_run_dir,
        relay_tls_port,
        metrics_listen,
        log_format: _,
        log: _,
        relay_proxy,
        relay_proxy_credentials,
        no_proxy,
        device,
    } = args;
    let Some(node_name) = node_name.filter(|n| !n.is_empty()) else {
        bail!("expected the name of this node, found none: give --node-name or set NODE_NAME");
    };
    let proxies = proxies(relay_proxy.as_deref(), relay_proxy_credentials.as_deref(), &no_proxy)?;
    files::private_dir(&state_dir).with_context(|| format!("make the state folder {}", state_dir.display()))?;
    let _lock = process::lock(&state_dir.join("lock"))?;
    let cache = Cache::open(&state_dir.join("cache")).context("open the cache in the state folder")?;
    let remembered = cache.load::<Remembered>(&Name::single("api")).unwrap_or_default();
    let connection = Connection::new(kubeconfig.as_deref(), &api_servers, remembered).await?;

    let (told_in, told) = mpsc::channel(TOLD_QUEUE);
    let relist_slices = Feeds::new(connection.clone(), told_in).spawn(&node_name);
    let (asks_in, asks) = mpsc::channel::<Ask>(local::QUEUE);
    server::serve_socket(&socket, asks_in.clone())?;
    if let Some(listen) = metrics_listen.0 {
        server::serve_metrics(listen, asks_in).await;
    }
    remember_endpoints(connection.clone(), cache.clone());

    let run_dir = socket.parent().map(Path::to_owned).unwrap_or_default();
    let shell = Shell {
        settings: Settings {
            node_name,
            device,
            cni_mode,
            cni_conf_dir,
            cni_bin_dir,
            cni_run_dir: cni_run_dir.map(|host| RunDir { here: run_dir, host }),
            relay_tls_port: Some(relay_tls_port).filter(|port| *port != 0),
            housekeeping: Settings::HOUSEKEEPING,
        },
        host: Arc::new(System::new(originals, proxies, LastOverTls::load(cache.clone()))),
        connection,
        relist_slices,
        cache,
        key_file: KeyFile::new(&state_dir),
        metrics: Metrics::new().context("register the metrics")?,
    };
    shell.run(Inputs { told, asks, stop: stop_signal()? }).await;
    Ok(())
}

/// What outlives a change of key.
pub struct Shell {
    /// Fixed settings.
    pub settings: Settings,
    /// The machine.
    pub host: Arc<dyn Host>,
    /// The API.
    pub connection: Connection,
    /// Makes the slices be listed afresh.
    pub relist_slices: Arc<Notify>,
    /// The disk cache.
    pub cache: Cache,
    /// Where the key is.
    pub key_file: KeyFile,
    /// The metrics.
    pub metrics: Metrics,
}

impl Shell {
    /// Runs agents, each with its key, until told to stop.
    pub async fn run(self, mut inputs: Inputs) {
        let epoch = Instant::now();
        let mut view = Box::new(View::restore(self.cache.clone(), &self.settings.node_name));
        loop {
            let Some(identity) = self.identity_or_stop(&mut inputs).await else { return };
            tracing::info!(key = identity.public_key().short(), round = identity.round(), "the agent starts");
            let parts = Parts {
                settings: self.settings.clone(),
                host: self.host.clone(),
                connection: self.connection.clone(),
                relist_slices: self.relist_slices.clone(),
                cache: self.cache.clone(),
                identity,
                view,
                epoch,
                metrics: self.metrics.clone(),
            };
            match Agent::new(parts, Instant::now()).run(&mut inputs).await {
                Outcome::Stopped => return,
                // The feeds tell changes only, so what they told the old agent goes to the new one.
                Outcome::KeyGone(told) => view = told,
            }
        }
    }

    /// The key, however long that takes; `None` when told to stop. Until then questions are answered, or kubelet would take
    /// the process for dead and kill it again and again.
    async fn identity_or_stop(&self, inputs: &mut Inputs) -> Option<Box<Identity>> {
        let mut identity = pin!(self.identity());
        loop {
            tokio::select! {
                identity = &mut identity => return Some(identity),
                Some(ask) = inputs.asks.recv() => {
                    // Whoever asked may be gone.
                    let _ = ask.reply.send(self.answer_without_key(&ask.question));
                }
                _ = inputs.stop.wait_for(|stop| *stop) => return None,
            }
        }
    }

    fn answer_without_key(&self, question: &Question) -> Answer {
        match question {
            Question::Live => Answer::text(200, "ok\n"),
            Question::Metrics => Answer::metrics(&self.metrics),
            _ => Answer::text(503, "KeyMissing: the key can't be read or made; the log says why\n"),
        }
    }

    async fn identity(&self) -> Box<Identity> {
        let mut reachable = self.connection.reachable();
        loop {
            let answers = *reachable.borrow_and_update() == Some(true);
            match Identity::open(self.key_file.clone(), self.cache.clone(), answers) {
                Ok(Opening::Open(identity)) => return identity,
                Ok(Opening::NeedsApi(why)) => {
                    tracing::error!(
                        why,
                        "the key file is corrupt; a new key waits until the Kubernetes API can be told: restore the file or wait"
                    );
                    // The sender lives as long as the connection, which we hold.
                    let _ = reachable.wait_for(|r| *r == Some(true)).await;
                }
                Err(e) => {
                    tracing::error!(error = %e, "there is no key yet; trying again");
                    sleep(KEY_RETRY).await;
                }
            }
        }
    }
}

/// The proxy for channels to relays: that of the flags, else that of the environment.
fn proxies(flag: Option<&str>, credentials: Option<&Path>, no_proxy: &str) -> anyhow::Result<Proxies> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let url = match flag.filter(|text| !text.is_empty()) {
        Some(text) => {
            Some(ProxyUrl::without_credentials(text).map_err(|e| anyhow::anyhow!("read --relay-proxy: {e}"))?)
        }
        None => {
            let text = variable("HTTPS_PROXY").or_else(|| variable("https_proxy"));
            text.and_then(|text| text.parse().inspect_err(|why: &String| unusable(why)).ok())
        }
    };
    let url =
        match (url, credentials) {
            (Some(url), Some(path)) => {
                let reading = || format!("read the proxy's credentials in {}", path.display());
                let text = Zeroizing::new(std::fs::read_to_string(path).with_context(reading)?);
                Some(url.with_credentials(
                    proxy::Credentials::parse(&text).map_err(anyhow::Error::msg).with_context(reading)?,
                ))
            }
            (url, _) => url,
        };
    if let Some(url) = &url {
        tracing::info!(proxy = ?url, "channels to relays go through a proxy when they go over TLS");
    }
    let no_proxy = if no_proxy.is_empty() { variable("no_proxy").unwrap_or_default() } else { no_proxy.to_owned() };
    Ok(Proxies::new(url.as_ref(), &no_proxy))
}

/// The environment is everybody's: what other programs understand must not keep this one from its work.
fn unusable(why: &str) {
    tracing::warn!(why, "the proxy in HTTPS_PROXY can't be used; channels to relays go without");
}

fn remember_endpoints(connection: Connection, cache: Cache) {
    let mut remembered = connection.remembered();
    tokio::spawn(async move {
        while remembered.changed().await.is_ok() {
            let value = remembered.borrow_and_update().clone();
            cache.store(&Name::single("api"), &value);
        }
    });
}

fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; device, routes and firewall stay");
        stop.send_replace(true);
    });
    Ok(stopped)
}

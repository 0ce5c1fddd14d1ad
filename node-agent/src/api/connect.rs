//! Connections to the API server, one client for each of its addresses.

use super::{
    attempts::Attempts,
    endpoints::{MAX_ENDPOINTS, Remembered, order},
    resolve,
};
use crate::{args::HostPort, random};
use anyhow::Context;
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};

/// A connection that takes longer than this is tried at the next address: three round trips of a bad satellite link.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The name that every API server's certificate carries, whatever address it is reached by.
const SERVICE_NAME: &str = "kubernetes.default.svc";

/// Which address is in use, and the clients made so far. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    base: Config,
    /// Addresses that replace the one in `base`; empty means `base` as it is (a kubeconfig).
    endpoints: Vec<HostPort>,
    state: Mutex<State>,
    resets: watch::Sender<u64>,
    reachable: watch::Sender<Option<bool>>,
    remembered: watch::Sender<Remembered>,
}

struct State {
    current: usize,
    client: Option<Client>,
    attempts: Attempts,
}

impl Connection {
    /// Reads the credentials; connects to nothing yet.
    pub async fn new(
        kubeconfig: Option<&Path>,
        configured: &[HostPort],
        remembered: Remembered,
    ) -> anyhow::Result<Self> {
        let base = match kubeconfig {
            Some(path) => from_kubeconfig(path).await?,
            None => Config::incluster().context(
                "expected the service account of a Pod: outside of a cluster give --kubeconfig, inside check automountServiceAccountToken",
            )?,
        };
        Ok(Self::with_config(base, configured, remembered))
    }

    /// A connection with ready credentials.
    pub fn with_config(mut base: Config, configured: &[HostPort], remembered: Remembered) -> Self {
        base.connect_timeout = Some(CONNECT_TIMEOUT);
        // The loops here wait and change the address themselves.
        base.default_retry = false;
        let own = HostPort::of(&base);
        let configured = if configured.is_empty() { own.into_iter().collect() } else { configured.to_vec() };
        let endpoints = order(&configured[..configured.len().min(MAX_ENDPOINTS)], &remembered);
        let state = Mutex::new(State { current: 0, client: None, attempts: Attempts::new(endpoints.len()) });
        let (resets, reachable) = (watch::Sender::new(0), watch::Sender::new(None));
        let remembered = watch::Sender::new(remembered);
        Self { shared: Arc::new(Shared { base, endpoints, state, resets, reachable, remembered }) }
    }

    /// A client for the address in use, and a number to blame it by.
    pub fn client(&self) -> kube::Result<(usize, Client)> {
        let mut state = self.lock();
        if let Some(client) = &state.client {
            return Ok((state.current, client.clone()));
        }
        let client = Client::try_from(self.config(state.current))?;
        state.client = Some(client.clone());
        Ok((state.current, client))
    }

    /// The address with this number did not answer: the next client is for the next one, and streams of this one end, since what breaks
    /// one of its connections (a NAT that forgot them all) has most likely silenced the others. Blaming it twice moves once.
    pub fn failed(&self, number: usize) {
        if self.moves_on(number) {
            self.shared.resets.send_modify(|n| *n += 1);
        }
    }

    /// The address with this number answered that it can't (too busy, an error of its own): the next request goes to the next one. Streams
    /// stay: what they are told is still true, and to open them again is what a busy server needs least.
    pub fn unable(&self, number: usize) {
        self.moves_on(number);
    }

    fn moves_on(&self, number: usize) -> bool {
        // Before the attempts are paced: who waits for a turn waits for this to become true.
        self.shared.reachable.send_if_modified(|r| r.replace(false) != Some(false));
        let mut state = self.lock();
        if state.current != number {
            return false;
        }
        state.attempts.failed(Instant::now(), random::unit());
        state.current = (number + 1) % self.shared.endpoints.len().max(1);
        state.client.take().is_some()
    }

    /// The address with this number answered.
    pub fn worked(&self, number: usize) {
        self.lock().attempts.worked(Instant::now());
        self.shared.reachable.send_if_modified(|r| r.replace(true) != Some(true));
        if let Some(endpoint) = self.shared.endpoints.get(number) {
            self.shared.remembered.send_if_modified(|remembered| remembered.worked(endpoint));
        }
    }

    /// Waits until a request may be made: at once while the API answers, in turn with the others while it doesn't.
    pub async fn turn(&self) {
        let mut reachable = self.reachable();
        while let Err(at) = self.take_turn(Instant::now()) {
            tokio::select! {
                () = sleep_until(at.into()) => {}
                // The sender lives as long as we do.
                _ = reachable.wait_for(|r| *r == Some(true)) => return,
            }
        }
    }

    /// The same for who can't wait: `Err` says when to come back.
    pub fn take_turn(&self, now: Instant) -> Result<(), Instant> {
        self.lock().attempts.take(now, random::unit())
    }

    /// Until when no request may be made, if so.
    pub fn waits_until(&self, now: Instant) -> Option<Instant> {
        self.lock().attempts.waits_until(now)
    }

    /// The addresses that worked, for the disk.
    pub fn remembered(&self) -> watch::Receiver<Remembered> {
        self.shared.remembered.subscribe()
    }

    /// Makes a connection for a write that is to come: those of the watches are taken, and a new one costs two round trips.
    pub fn prepare(&self) {
        let Ok((_, client)) = self.client() else { return };
        tokio::spawn(async move {
            // Whoever needs the connection finds out what is wrong with it.
            let _ = timeout(CONNECT_TIMEOUT, client.apiserver_version()).await;
        });
    }

    /// Drops every connection: after a change of network they lead nowhere, and TCP would find out in minutes.
    pub fn reset(&self) {
        self.lock().client = None;
        self.shared.resets.send_modify(|n| *n += 1);
    }

    /// Counts resets; who holds a stream ends it when this changes.
    pub fn resets(&self) -> watch::Receiver<u64> {
        self.shared.resets.subscribe()
    }

    /// Whether the API answered last time; `None` before the first attempt has ended.
    pub fn reachable(&self) -> watch::Receiver<Option<bool>> {
        self.shared.reachable.subscribe()
    }

    /// The sockets of all endpoints, names resolved as far as they can be at present.
    pub fn addresses(&self) -> watch::Receiver<Vec<SocketAddr>> {
        resolve::watch(self.shared.endpoints.clone())
    }

    fn config(&self, number: usize) -> Config {
        let mut config = self.shared.base.clone();
        let Some(endpoint) = self.shared.endpoints.get(number) else { return config };
        if HostPort::of(&config).as_ref() == Some(endpoint) {
            return config;
        }
        let scheme = config.cluster_url.scheme_str().unwrap_or("https").to_owned();
        if let Ok(url) = format!("{scheme}://{endpoint}").parse() {
            // An address that the certificate doesn't list is fine (a NAT in front, a load balancer); the name in it isn't secret.
            if endpoint.host.parse::<IpAddr>().is_ok() && config.tls_server_name.is_none() {
                config.tls_server_name = Some(SERVICE_NAME.into());
            }
            config.cluster_url = url;
        }
        config
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostPort {
    fn of(config: &Config) -> Option<Self> {
        let url = &config.cluster_url;
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let default = if url.scheme_str() == Some("http") { 80 } else { 443 };
        Some(Self { host, port: url.port_u16().unwrap_or(default) })
    }
}

async fn from_kubeconfig(path: &Path) -> anyhow::Result<Config> {
    let doing = || format!("read the kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(doing)?;
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let names_proxy = clusters.filter_map(|cluster| cluster.proxy_url.as_ref()).any(|url| !url.is_empty());
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(doing)?;
    if !names_proxy {
        // That of the environment is for channels to relays; this client could not use it.
        config.proxy_url = None;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(url: &str, configured: &[&str], remembered: &[&str]) -> Connection {
        let parse = |list: &[&str]| list.iter().map(|e| e.parse().unwrap()).collect::<Vec<HostPort>>();
        let base = Config::new(url.parse().unwrap());
        Connection::with_config(base, &parse(configured), Remembered { endpoints: parse(remembered) })
    }

    #[test]
    fn configured_addresses_replace_the_one_of_the_cluster_and_keep_its_certificate_name() {
        let connection = connection("https://10.96.0.1:443", &["192.0.2.1:6443", "api.example:6443"], &[]);
        let first = connection.config(0);
        assert_eq!(first.cluster_url, "https://192.0.2.1:6443");
        assert_eq!(first.tls_server_name.as_deref(), Some(SERVICE_NAME));
        let second = connection.config(1);
        assert_eq!(second.cluster_url, "https://api.example:6443");
        assert_eq!(second.tls_server_name, None);
    }

    #[test]
    fn without_configured_addresses_the_base_is_used_as_it_is() {
        let connection = connection("https://[fd00::1]:6443", &[], &[]);
        assert_eq!(connection.config(0).cluster_url, "https://[fd00::1]:6443");
        assert_eq!(connection.config(0).tls_server_name, None);
    }

    #[test]
    fn an_address_that_fails_gives_way_to_the_next_once() {
        let connection = connection("http://192.0.2.1:80", &["192.0.2.1:80", "192.0.2.2:80"], &[]);
        let current = || connection.lock().current;
        connection.failed(0);
        connection.failed(0);
        assert_eq!(current(), 1);
        assert_eq!(*connection.reachable().borrow(), Some(false));
        let mut remembered = connection.remembered();
        connection.worked(1);
        assert_eq!(remembered.borrow_and_update().endpoints[0].host, "192.0.2.2");
        connection.worked(1);
        assert!(!remembered.has_changed().unwrap());
        connection.failed(1);
        assert_eq!(current(), 0);
    }

    #[tokio::test]
    async fn one_broken_connection_ends_the_streams_of_all_once() {
        let connection = connection("http://192.0.2.1:80", &[], &[]);
        let mut resets = connection.resets();
        let (number, _client) = connection.client().unwrap();
        connection.failed(number);
        assert!(resets.has_changed().unwrap(), "a watch on a silent connection would wait for minutes");
        resets.mark_unchanged();
        // Every other user of that client finds the same; nothing is connected any more that could be ended.
        connection.failed(number);
        assert!(!resets.has_changed().unwrap());
    }

    #[tokio::test]
    async fn addresses_are_those_of_every_endpoint() {
        let connection = connection("https://10.0.0.1", &[], &["[fd00::1]:6443"]);
        assert_eq!(
            *connection.addresses().borrow(),
            ["10.0.0.1:443".parse().unwrap(), "[fd00::1]:6443".parse::<SocketAddr>().unwrap()]
        );
    }
}

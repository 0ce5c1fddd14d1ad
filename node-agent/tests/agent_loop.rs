//! The whole loop, with a fake API server on loopback, a device in memory and a machine that only takes notes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "agent_loop/carried.rs"]
mod carried;
#[path = "agent_loop/disk.rs"]
mod disk;
#[path = "agent_loop/late.rs"]
mod late;
#[path = "agent_loop/meddlers.rs"]
mod meddlers;
#[path = "agent_loop/membership.rs"]
mod membership;
#[path = "agent_loop/on_demand.rs"]
mod on_demand;
#[path = "agent_loop/one_of_many.rs"]
mod one_of_many;
#[path = "agent_loop/outages.rs"]
mod outages;
#[path = "agent_loop/relays.rs"]
mod relays;
#[path = "agent_loop/standing.rs"]
mod standing;
mod support;
#[path = "agent_loop/tls_port.rs"]
mod tls_port;
#[path = "agent_loop/trouble.rs"]
mod trouble;

use crds::mesh::Backend;
use ipnet::IpNet;
use kube::Config;
use node_agent::{
    agent::{Inputs, Settings},
    api::{Connection, endpoints::Remembered, feed::Feeds},
    args::CniMode,
    cache::Cache,
    carry::Carrier,
    cni::CniPlan,
    host::{Echo, Host, Programmed, Survey},
    key::KeyFile,
    local::{self, Answer, Ask, Question},
    metrics::Metrics,
    net::{Changed, NetPlan, Rerouting, Underlay},
    relays::{Credentials, Link, Relay},
    start::Shell,
    status::conditions::{Cni, Network},
};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use support::{fake_api::FakeApi, operator};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use wgdev::{
    BoxFuture, Datagram, Delta, Device, DeviceConfig, DeviceError, DeviceStats, Fake, PeerStatus, PeerUpdate, Refusal,
    RefusalReason,
};
use wire::{
    key::{PrivateKey, PublicKey},
    pair::PairKeys,
    probe::{self, Probe},
};

/// Far more than any step takes; only a broken agent gets there.
const DEADLINE: Duration = Duration::from_secs(20);

/// A machine in memory.
struct Machine {
    survey: Mutex<Survey>,
    devices: Mutex<Vec<Arc<Fake>>>,
    plans: watch::Sender<Vec<NetPlan>>,
    /// The CNI file asked for last.
    cni: watch::Sender<Option<CniPlan>>,
    /// The routes that were changed alone.
    rerouted: Mutex<Vec<Rerouting>>,
    taken_ports: Mutex<Vec<u16>>,
    /// TCP ports that other programs listen on.
    listened: Mutex<Vec<u16>>,
    broken: Mutex<Option<String>>,
    /// No device can be made.
    no_device: AtomicBool,
    /// It has the kernel's WireGuard.
    has_kernel: AtomicBool,
    /// A device outlives the agent.
    keeps: AtomicBool,
    /// Somebody took the CNI file away.
    cni_gone: AtomicBool,
    /// Devices refuse every endpoint.
    picky: AtomicBool,
    /// So many times the echo sockets can't be opened.
    echo_failures: AtomicU32,
    changed: tokio::sync::Mutex<mpsc::Receiver<Changed>>,
    /// Channels to relays go over TCP.
    only_tcp: AtomicBool,
    /// Whoever plays WireGuard's socket, if anybody does.
    wireguard: Mutex<Option<UdpSocket>>,
    /// Whoever plays the relays, if anybody does.
    relays: Mutex<Option<mpsc::UnboundedSender<relays::Dialled>>>,
}

impl Machine {
    fn new() -> (Arc<Self>, mpsc::Sender<Changed>) {
        Self::with(Vec::new())
    }

    fn with(taken_ports: Vec<u16>) -> (Arc<Self>, mpsc::Sender<Changed>) {
        let (change, changed) = mpsc::channel(4);
        let machine = Self {
            survey: Mutex::new(survey("192.0.2.10")),
            devices: Mutex::default(),
            plans: watch::Sender::new(Vec::new()),
            cni: watch::Sender::default(),
            rerouted: Mutex::default(),
            taken_ports: Mutex::new(taken_ports),
            listened: Mutex::default(),
            broken: Mutex::default(),
            no_device: AtomicBool::new(false),
            has_kernel: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            cni_gone: AtomicBool::new(false),
            picky: AtomicBool::new(false),
            echo_failures: AtomicU32::new(0),
            changed: tokio::sync::Mutex::new(changed),
            only_tcp: AtomicBool::new(false),
            wireguard: Mutex::default(),
            relays: Mutex::default(),
        };
        (Arc::new(machine), change)
    }

    fn open(&self, config: DeviceConfig, wanted: Backend) -> Result<Arc<dyn Device>, DeviceError> {
        if self.no_device.load(Ordering::Relaxed) {
            return Err(DeviceError::BadName(config.name));
        }
        if self.taken_ports.lock().unwrap().contains(&config.listen_port) {
            return Err(DeviceError::PortTaken { port: config.listen_port });
        }
        let has_kernel = self.has_kernel.load(Ordering::Relaxed);
        let backend = match wanted {
            Backend::Kernel if !has_kernel => {
                return Err(DeviceError::NoKernelWireGuard { found: "a machine in memory".into() });
            }
            Backend::Kernel | Backend::Auto if has_kernel => wgdev::Backend::Kernel,
            _ => wgdev::Backend::Userspace,
        };
        let mut devices = self.devices.lock().unwrap();
        // The kernel's device is the same one for whoever opens it.
        let same = |last: &Arc<Fake>| last.backend() == backend && last.listen_port() == config.listen_port;
        let kept = devices.last().filter(|last| self.keeps.load(Ordering::Relaxed) && same(last)).cloned();
        let device = kept.unwrap_or_else(|| Arc::new(Fake::of(backend, config)));
        devices.push(device.clone());
        if self.picky.load(Ordering::Relaxed) {
            return Ok(Arc::new(Picky(device)));
        }
        Ok(device)
    }

    fn device(&self) -> Arc<Fake> {
        self.devices.lock().unwrap().last().unwrap().clone()
    }

    async fn plan_where(&self, wanted: impl FnMut(&Vec<NetPlan>) -> bool) -> NetPlan {
        let mut plans = self.plans.subscribe();
        let plans = tokio::time::timeout(DEADLINE, plans.wait_for(wanted)).await.unwrap().unwrap();
        plans.last().unwrap().clone()
    }
}

fn survey(address: &str) -> Survey {
    let address: IpAddr = address.parse().unwrap();
    let underlay = Underlay {
        candidates: vec![address],
        connected: vec!["192.0.2.0/24".parse().unwrap()],
        gateways: vec!["192.0.2.1".parse().unwrap()],
        mtu: Some(1500),
        ..Underlay::default()
    };
    Survey { underlay, own_addresses: vec![address] }
}

/// A device that refuses every endpoint, as one that is full refuses whom it has no place for.
struct Picky(Arc<Fake>);

impl Device for Picky {
    fn backend(&self) -> wgdev::Backend {
        self.0.backend()
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn if_index(&self) -> u32 {
        self.0.if_index()
    }

    fn listen_port(&self) -> u16 {
        self.0.listen_port()
    }

    fn mtu(&self) -> u16 {
        self.0.mtu()
    }

    fn apply<'a>(&'a self, delta: &'a Delta) -> BoxFuture<'a, Result<(), DeviceError>> {
        Box::pin(async move {
            self.0.apply(delta).await?;
            let refused = delta.upsert.iter().filter(|update| update.endpoint.is_some());
            let refusal =
                |update: &PeerUpdate| Refusal { public_key: update.public_key, reason: RefusalReason::TooManyPeers };
            let refused: Vec<Refusal> = refused.map(refusal).collect();
            if refused.is_empty() { Ok(()) } else { Err(DeviceError::Refused(refused)) }
        })
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<PeerStatus>, DeviceError>> {
        self.0.peers()
    }

    fn start_handshake<'a>(&'a self, peer: &'a PublicKey) -> BoxFuture<'a, Result<(), DeviceError>> {
        self.0.start_handshake(peer)
    }

    fn send(&self, datagram: Datagram) -> BoxFuture<'_, io::Result<()>> {
        self.0.send(datagram)
    }

    fn send_with_ttl(&self, datagram: Datagram, ttl: u8) -> BoxFuture<'_, io::Result<()>> {
        self.0.send_with_ttl(datagram, ttl)
    }

    fn recv(&self) -> BoxFuture<'_, io::Result<Datagram>> {
        self.0.recv()
    }

    fn stats(&self) -> DeviceStats {
        self.0.stats()
    }
}

struct NoEcho;

impl Echo for NoEcho {
    fn send(&self, _: SocketAddr, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn recv(&self) -> BoxFuture<'_, io::Result<(SocketAddr, Vec<u8>)>> {
        Box::pin(std::future::pending())
    }
}

impl Host for Machine {
    fn survey<'a>(&'a self, _: &'a str) -> BoxFuture<'a, anyhow::Result<Survey>> {
        Box::pin(async { Ok(self.survey.lock().unwrap().clone()) })
    }

    fn open_device(
        &self,
        config: DeviceConfig,
        backend: Backend,
    ) -> BoxFuture<'_, Result<Arc<dyn Device>, DeviceError>> {
        Box::pin(std::future::ready(self.open(config, backend)))
    }

    fn standing_port<'a>(&'a self, _: &'a str, _: PublicKey) -> BoxFuture<'a, Option<u16>> {
        let devices = self.devices.lock().unwrap();
        let kept = devices.last().filter(|_| self.keeps.load(Ordering::Relaxed));
        Box::pin(std::future::ready(kept.map(|device| device.listen_port())))
    }

    fn program<'a>(&'a self, plan: &'a NetPlan, cni: Option<&'a CniPlan>) -> BoxFuture<'a, anyhow::Result<Programmed>> {
        Box::pin(async move {
            self.plans.send_modify(|plans| plans.push(plan.clone()));
            self.cni.send_replace(cni.cloned());
            if let Some(why) = self.broken.lock().unwrap().clone() {
                anyhow::bail!(why);
            }
            self.cni_gone.store(false, Ordering::Relaxed);
            let cni = if cni.is_some() { Cni::Ready } else { Cni::NotManaged };
            Ok(Programmed { network: Network::default(), cni, repairs: vec!["route"] })
        })
    }

    fn reroute<'a>(&'a self, plan: &'a NetPlan, change: &'a Rerouting) -> BoxFuture<'a, anyhow::Result<bool>> {
        Box::pin(async move {
            self.rerouted.lock().unwrap().push(change.clone());
            self.plans.send_modify(|plans| {
                let standing = plans.last().map_or(&[][..], |plan| &plan.routes);
                let kept = standing.iter().filter(|route| !change.remove.contains(route));
                let routes = kept.chain(&change.add).cloned().collect();
                plans.push(NetPlan { routes, ..plan.clone() });
            });
            Ok(true)
        })
    }

    fn cni_stands(&self, plan: &CniPlan, mtu: u16) -> bool {
        assert_eq!((plan.pod_cidrs.len(), mtu), (1, 1420));
        !self.cni_gone.load(Ordering::Relaxed)
    }

    fn open_echo(&self, _: &str) -> io::Result<Box<dyn Echo>> {
        let fewer = |left: u32| left.checked_sub(1);
        if self.echo_failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(Box::new(NoEcho))
    }

    fn open_carrier(&self, _: u16) -> io::Result<Carrier> {
        match &*self.wireguard.lock().unwrap() {
            Some(socket) => Carrier::open(socket.local_addr()?.port()),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn open_link<'a>(
        &'a self,
        credentials: &'a Credentials,
        relay: &'a Relay,
        _: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Link>> {
        Box::pin(std::future::ready(relays::dial(self, credentials, relay)))
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        Box::pin(async {
            match self.changed.lock().await.recv().await {
                Some(changed) => changed,
                None => std::future::pending().await,
            }
        })
    }

    fn listens_on(&self, port: u16) -> bool {
        self.listened.lock().unwrap().contains(&port)
    }
}

/// One agent with its surroundings.
struct Lab {
    api: FakeApi,
    machine: Arc<Machine>,
    change: mpsc::Sender<Changed>,
    asks: mpsc::Sender<Ask>,
    stop: watch::Sender<bool>,
    agent: JoinHandle<()>,
}

impl Lab {
    async fn start(
        dir: &Path,
        api: &FakeApi,
        address: SocketAddr,
        machine: (Arc<Machine>, mpsc::Sender<Changed>),
    ) -> Self {
        Self::start_with(dir, api, address, machine, CniMode::External).await
    }

    async fn start_with(
        dir: &Path,
        api: &FakeApi,
        address: SocketAddr,
        (machine, change): (Arc<Machine>, mpsc::Sender<Changed>),
        cni_mode: CniMode,
    ) -> Self {
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let connection = Connection::with_config(config, &[], Remembered::default());
        let (told_in, told) = mpsc::channel(64);
        let relist_slices = Feeds::new(connection.clone(), told_in).spawn("a");
        let (asks, asks_out) = mpsc::channel(local::QUEUE);
        let (stop, stopped) = watch::channel(false);
        let shell = Shell {
            settings: Settings {
                node_name: "a".into(),
                device: "warren0".into(),
                cni_mode,
                cni_conf_dir: PathBuf::from("/nowhere"),
                cni_bin_dir: PathBuf::from("/nowhere"),
                cni_run_dir: None,
                relay_tls_port: Some(443),
                housekeeping: Duration::from_millis(50),
            },
            host: machine.clone(),
            connection,
            relist_slices,
            cache: Cache::open(&dir.join("cache")).unwrap(),
            key_file: KeyFile::new(dir),
            metrics: Metrics::new().unwrap(),
        };
        let inputs = Inputs { told, asks: asks_out, stop: stopped };
        let agent = tokio::spawn(shell.run(inputs));
        Self { api: api.clone(), machine, change, asks, stop, agent }
    }

    async fn stop(self) -> Arc<Machine> {
        self.stop.send_replace(true);
        self.agent.await.unwrap();
        self.machine
    }

    async fn ask(&self, question: Question) -> Answer {
        local::ask(&self.asks, question).await
    }

    /// How often the loop has brought the node in line.
    async fn reconciles(&self) -> u64 {
        let metrics = self.ask(Question::Metrics).await.body;
        let line = metrics.lines().find_map(|l| l.strip_prefix("warren_reconcile_duration_seconds_count "));
        line.unwrap().parse().unwrap()
    }

    /// Waits until the agent's own report has this in it.
    async fn status_with(&self, text: &str) {
        let found = async {
            while !self.ask(Question::Status).await.body.contains(text) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, found).await.unwrap();
    }

    /// Waits for a state of our MeshNode.
    async fn node_where(&self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let look = |api: &FakeApi| api.get("meshnodes", "a").filter(|n| wanted(n));
        let found = tokio::time::timeout(DEADLINE, self.api.wait_for(look)).await;
        found.unwrap_or_else(|_| panic!("not reached: {:#}", self.api.get("meshnodes", "a").unwrap_or_default()))
    }
}

static NEXT: AtomicU32 = AtomicU32::new(0);

struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        let name = format!("warren-loop-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn cluster() -> (FakeApi, SocketAddr, TempDir) {
    let (api, address, _) = FakeApi::serve("127.0.0.1:0".parse().unwrap()).await;
    operator::create_mesh(&api, json!({}));
    (api, address, TempDir::new())
}

fn peer(name: &str, number: u8) -> (PublicKey, Value) {
    let key = PrivateKey::from_bytes([number; 32]).public_key();
    let entry = json!({
        "name": name, "uid": format!("node-{name}"), "publicKey": key.to_string(), "generation": 1,
        "meshIPs": [format!("10.118.0.{number}")], "podCIDRs": [format!("10.244.{number}.0/24")],
        "listenPort": 21820, "round": 1,
        "candidates": [{"address": format!("198.51.100.{number}:21820"), "kind": "Host"}],
    });
    (key, entry)
}

fn put_slice(api: &FakeApi, name: &str, entries: &[Value]) {
    api.put(
        "meshpeerslices",
        json!({"metadata": {"name": name}, "spec": {"count": entries.len(), "entries": entries}}),
    );
}

fn ready(node: &Value) -> bool {
    operator::condition(node, "Ready").is_some_and(|(status, _)| status == "True")
}

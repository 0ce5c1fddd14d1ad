//! The whole loop, with a fake API server on loopback, a device in memory and a machine that only takes notes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use crds::mesh::Backend;
use ipnet::IpNet;
use kube::Config;
use node_agent::{
    agent::{Inputs, Settings},
    api::{Connection, endpoints::Remembered, feed::Feeds},
    args::CniMode,
    cache::Cache,
    cni::CniPlan,
    host::{Echo, Host, Programmed, Survey},
    key::KeyFile,
    local::{self, Answer, Ask, Question},
    metrics::Metrics,
    net::{Changed, NetPlan, Underlay},
    start::Shell,
    status::conditions::{Cni, Network},
};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
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
    taken_ports: Vec<u16>,
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
            taken_ports,
            broken: Mutex::default(),
            no_device: AtomicBool::new(false),
            has_kernel: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            cni_gone: AtomicBool::new(false),
            picky: AtomicBool::new(false),
            echo_failures: AtomicU32::new(0),
            changed: tokio::sync::Mutex::new(changed),
        };
        (Arc::new(machine), change)
    }

    fn open(&self, config: DeviceConfig, wanted: Backend) -> Result<Arc<dyn Device>, DeviceError> {
        if self.no_device.load(Ordering::Relaxed) {
            return Err(DeviceError::BadName(config.name));
        }
        if self.taken_ports.contains(&config.listen_port) {
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
        let kept =
            devices.last().filter(|last| self.keeps.load(Ordering::Relaxed) && last.backend() == backend).cloned();
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

    fn program<'a>(&'a self, plan: &'a NetPlan, cni: Option<&'a CniPlan>) -> BoxFuture<'a, anyhow::Result<Programmed>> {
        Box::pin(async move {
            self.plans.send_modify(|plans| plans.push(plan.clone()));
            if let Some(why) = self.broken.lock().unwrap().clone() {
                anyhow::bail!(why);
            }
            self.cni_gone.store(false, Ordering::Relaxed);
            let cni = if cni.is_some() { Cni::Ready } else { Cni::NotManaged };
            Ok(Programmed { network: Network::default(), cni, repairs: vec!["route"] })
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

    fn changed(&self) -> BoxFuture<'_, Changed> {
        Box::pin(async {
            match self.changed.lock().await.recv().await {
                Some(changed) => changed,
                None => std::future::pending().await,
            }
        })
    }

    fn listens_on(&self, _: u16) -> bool {
        false
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
        Self::start_with(dir, api, address, machine, CniMode::None).await
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

#[tokio::test]
async fn a_new_node_publishes_key_proof_and_candidates_and_becomes_ready_alone() {
    let (api, address, dir) = cluster().await;
    let operators = PrivateKey::from_bytes([3; 32]);
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["status"] = json!({"proofKey": operators.public_key().to_string(), "challenge": "c1"});
    api.put("meshes", mesh);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    assert_eq!(lab.ask(Question::Ready).await.status, 503);
    operator::create_node(&api, "a", 1);

    let node = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    let key: PublicKey = node["status"]["publicKey"].as_str().unwrap().parse().unwrap();
    let proof = node["status"]["keyProof"].as_str().unwrap().parse().unwrap();
    let shared = operators.diffie_hellman(&key).unwrap();
    assert!(wire::proof::verify_key_proof(&shared, b"c1", "node-a", &key, &proof));

    let node =
        lab.node_where(|n| n["status"]["candidates"] == json!([{"address": "192.0.2.10:21821", "kind": "Host"}])).await;
    assert_eq!(node["status"]["listenPort"], 21821);
    assert_eq!(node["status"]["round"], 1);
    assert!(operator::admit(&api, "a"));
    let node =
        lab.node_where(|n| operator::condition(n, "Ready").is_some_and(|(_, why)| why == "NotInDirectory")).await;
    assert!(!ready(&node), "no peer knows it yet");
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    assert_eq!(lab.ask(Question::Ready).await.status, 200);
    let plan = lab.machine.plan_where(|p| !p.is_empty()).await;
    assert_eq!(plan.addresses, ["10.118.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!((plan.mtu, plan.listen_port), (1420, 21821));
    lab.stop().await;
}

#[tokio::test]
async fn a_settled_node_writes_nothing() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    operator::admit(&api, "a");
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    let written = api.patches().len();
    assert!(written <= 3, "{written} writes for one start");
    // Whatever does not change the node: the same objects once more, and the same machine.
    for _ in 0..5 {
        api.put("meshes", api.get("meshes", "default").unwrap());
        api.put("meshnodes", api.get("meshnodes", "a").unwrap());
        lab.change.send(Changed::ALL).await.unwrap();
        lab.ask(Question::Status).await;
    }
    assert_eq!(api.patches().len(), written);
    lab.stop().await;
}

#[tokio::test]
async fn peers_are_configured_from_slices_and_removed_by_tombstones_only() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let (b, entry_b) = peer("b", 2);
    let (c, entry_c) = peer("c", 3);
    let (d, entry_d) = peer("d", 4);
    put_slice(&api, "peers-0", &[entry_b.clone(), entry_c.clone(), entry_d.clone()]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let plan = lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 6)).await;
    assert!(plan.claims.contains(&net("10.118.0.0/16")));
    let device = lab.machine.device();
    let keys = |peers: Vec<wgdev::PeerStatus>| peers.into_iter().map(|p| p.public_key).collect::<Vec<_>>();
    let mut all = [b, c, d];
    all.sort();
    assert_eq!(keys(device.peers().await.unwrap()), all);
    let of_b = device.peers().await.unwrap().into_iter().find(|p| p.public_key == b).unwrap();
    assert_eq!(of_b.allowed_ips, [net("10.118.0.2/32"), net("10.244.2.0/24")]);

    // A list that has become empty, by whatever accident.
    put_slice(&api, "peers-0", &[]);
    let status = loop {
        let status = lab.ask(Question::Status).await;
        if status.body.contains("MassRemovalGuard") {
            break status;
        }
        tokio::task::yield_now().await;
    };
    assert!(status.body.contains("Holding"));
    assert_eq!(keys(device.peers().await.unwrap()), all);

    // What the operator says it removed goes at once.
    put_slice(&api, "peers-0", &[entry_c, entry_d]);
    let tombstone = json!({"name": "b", "uid": "node-b", "publicKey": b.to_string(), "generation": 1});
    api.put(
        "meshpeerslices",
        json!({"metadata": {"name": "removed"}, "spec": {"count": 1, "tombstones": [tombstone]}}),
    );
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 4)).await;
    assert!(!keys(device.peers().await.unwrap()).contains(&b));
    lab.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_stays_as_it_was() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let entries = [("b", 2), ("c", 3), ("d", 4)].map(|(name, number)| peer(name, number).1);
    put_slice(&api, "peers-0", &entries);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let routes = |n: usize| move |plans: &Vec<NetPlan>| plans.last().is_some_and(|p| p.routes.len() == n);
    lab.machine.plan_where(routes(6)).await;

    // Told anew: a kind of candidate that this version doesn't know, a key and a prefix that are none, and a new peer.
    let [mut b, mut c, mut d] = entries;
    b["candidates"][0]["kind"] = json!("Teleported");
    b["candidates"].as_array_mut().unwrap().push(json!({"address": "198.51.100.99:1", "kind": "Host"}));
    c["publicKey"] = json!("no key");
    d["podCIDRs"] = json!(["10.244.4.0/24", "no prefix"]);
    for bad in [&mut b, &mut c, &mut d] {
        bad["generation"] = json!(2);
    }
    put_slice(&api, "peers-0", &[b, c, d, peer("e", 5).1]);
    lab.machine.plan_where(routes(8)).await;
    assert!(!lab.ask(Question::Status).await.body.contains("MassRemovalGuard"));

    // The same from a list, and then with a slice of which nothing can be read.
    lab.stop().await;
    put_slice(&api, "peers-1", &[peer("f", 6).1]);
    for (garbage, more) in [(false, 0), (true, 2)] {
        if garbage {
            api.put("meshpeerslices", json!({"metadata": {"name": "peers-0"}, "spec": 7}));
            put_slice(&api, "peers-2", &[peer("g", 7).1]);
        }
        let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
        lab.machine.plan_where(routes(10 + more)).await;
        assert!(!lab.ask(Question::Status).await.body.contains("MassRemovalGuard"));
        lab.stop().await;
    }
}

#[tokio::test]
async fn after_a_restart_everything_stands_before_the_api_answers() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let (b, entry_b) = peer("b", 2);
    put_slice(&api, "peers-0", &[entry_b]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    operator::admit(&api, "a");
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let round = api.get("meshnodes", "a").unwrap()["status"]["round"].as_u64().unwrap();
    lab.stop().await;

    api.set_up(false);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    assert_eq!(lab.machine.device().peers().await.unwrap()[0].public_key, b);
    assert_eq!(lab.ask(Question::Ready).await.status, 200, "a programmed node is ready while the API is away");
    api.set_up(true);
    lab.node_where(|n| n["status"]["round"].as_u64() == Some(round + 1)).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_taken_port_gives_way_to_the_next_which_is_published() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::with(vec![21821, 21822])).await;
    let node = lab.node_where(|n| n["status"]["listenPort"].is_number()).await;
    assert_eq!(node["status"]["listenPort"], 21823);
    assert_eq!(lab.machine.plan_where(|p| !p.is_empty()).await.listen_port, 21823);
    lab.stop().await;
}

#[tokio::test]
async fn a_change_of_address_is_a_new_round_with_the_new_candidate() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let before = lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    *lab.machine.survey.lock().unwrap() = survey("192.0.2.77");
    lab.change.send(Changed { links: true, ..Changed::default() }).await.unwrap();
    let after = lab.node_where(|n| n["status"]["candidates"][0]["address"] == "192.0.2.77:21821").await;
    assert!(after["status"]["round"].as_u64() > before["status"]["round"].as_u64());
    lab.stop().await;
}

#[tokio::test]
async fn what_nothing_can_be_done_about_does_not_spin() {
    /// Long enough for thousands of turns of a loop that spins.
    const WHILE: Duration = Duration::from_millis(800);
    let (api, address, dir) = cluster().await;
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    for state in ["no MeshNode", "no device", "neither any more"] {
        match state {
            "no device" => {
                lab.machine.no_device.store(true, Ordering::Relaxed);
                operator::create_node(&api, "a", 1);
                lab.status_with("DeviceFailed").await;
            }
            "neither any more" => {
                // The next attempt to open the device falls into a time without anything to open it for.
                let mut node = api.get("meshnodes", "a").unwrap();
                node["spec"]["meshIPs"] = json!([]);
                api.put("meshnodes", node);
                lab.status_with("\"meshIps\":[]").await;
            }
            _ => {}
        }
        let before = lab.reconciles().await;
        lab.change.send(Changed::ALL).await.unwrap();
        tokio::time::sleep(WHILE).await;
        let turns = lab.reconciles().await - before;
        assert!(turns <= 6, "{state}: {turns} turns");
    }
    // And what happened meanwhile is made up for.
    lab.machine.no_device.store(false, Ordering::Relaxed);
    operator::create_node(&api, "a", 1);
    lab.machine.plan_where(|p| !p.is_empty()).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_wider_range_of_ports_keeps_the_device() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| !p.is_empty()).await;
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["spec"] = json!({"listenPorts": {"first": 21820, "last": 29999}, "mtu": 1400});
    api.put("meshes", mesh);
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.mtu == 1400)).await;
    assert_eq!(lab.machine.devices.lock().unwrap().len(), 1);
    lab.stop().await;
}

#[tokio::test]
async fn a_device_that_is_opened_again_withdraws_nothing_that_was_published() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    operator::admit(&api, "a");
    lab.node_where(|n| operator::condition(n, "Ready").is_some_and(|c| c.1 == "NotInDirectory")).await;
    let before = api.patches().len();

    // Another mark needs another device; then the device is lost, and for longer than the wait for candidates.
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["spec"] = json!({"fwmark": {"value": 32, "mask": 32}});
    api.put("meshes", mesh);
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.mark.value == 32)).await;
    lab.machine.no_device.store(true, Ordering::Relaxed);
    lab.machine.device().set_broken(true);
    lab.node_where(|n| operator::condition(n, "Ready").is_some_and(|c| c.1 == "DeviceFailed")).await;
    lab.machine.no_device.store(false, Ordering::Relaxed);
    lab.node_where(|n| operator::condition(n, "Ready").is_some_and(|c| c.1 == "NotInDirectory")).await;
    for status in &api.patches()[before..] {
        assert_eq!(status["candidates"], json!([{"address": "192.0.2.10:21821", "kind": "Host"}]), "{status:#}");
        assert_eq!(status["listenPort"], 21821, "{status:#}");
    }
    lab.stop().await;

    // A restart with the old cache and a network that shows nothing yet.
    let machine = Machine::new();
    *machine.0.survey.lock().unwrap() = Survey::default();
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    let round = api.get("meshnodes", "a").unwrap()["status"]["round"].as_u64();
    let node = lab.node_where(|n| n["status"]["round"].as_u64() > round).await;
    assert_eq!(node["status"]["candidates"][0]["address"], "192.0.2.10:21821");
    lab.stop().await;
}

#[tokio::test]
async fn a_peer_that_the_device_refuses_costs_nobody_the_device() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let machine = Machine::new();
    machine.0.picky.store(true, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    let node = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    let own: PublicKey = node["status"]["publicKey"].as_str().unwrap().parse().unwrap();
    let mesh = api.get("meshes", "default").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let keys = PairKeys::derive(&PrivateKey::from_bytes([2; 32]), &own, &mesh, None).unwrap();

    // The peer answers a probe and, if it is the one who does that, nominates: the engine sets an endpoint.
    let remote = "198.51.100.2:21820".parse().unwrap();
    let device = lab.machine.device();
    let deliver =
        |tx, said: &Probe| device.deliver(Datagram { remote, local: None, payload: probe::seal(&keys, tx, said) });
    let answered = async {
        while !device.take_applied().iter().flat_map(|delta| &delta.upsert).any(|update| update.endpoint.is_some()) {
            for sent in device.take_sent() {
                if let Ok((tx, Probe::Ping)) = probe::open(&keys, &sent.payload) {
                    deliver(tx, &Probe::Pong { observed: "192.0.2.10:21821".parse().unwrap() });
                    deliver(wire::stun::TransactionId([7; 12]), &Probe::Nominate { epoch: 1 });
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.unwrap();
    assert!(lab.ask(Question::Status).await.body.contains("\"device\":\"warren0\""));
    assert_eq!(lab.machine.devices.lock().unwrap().len(), 1);
    lab.stop().await;
}

#[tokio::test]
async fn echo_sockets_that_fail_are_tried_again_and_named() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let machine = Machine::new();
    machine.0.echo_failures.store(2, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    lab.status_with("open the echo sockets").await;
    lab.machine.plan_where(|p| !p.is_empty()).await;
    assert_eq!(lab.machine.devices.lock().unwrap().len(), 3);
    lab.stop().await;
}

#[tokio::test]
async fn an_agent_that_waits_for_its_key_is_alive_and_not_ready() {
    let (api, address, dir) = cluster().await;
    fs::write(dir.0.join("private.key"), "half a k").unwrap();
    api.set_up(false);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let ask = |question| tokio::time::timeout(DEADLINE, lab.ask(question));
    assert_eq!(ask(Question::Live).await.unwrap().status, 200);
    let ready = ask(Question::Ready).await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("KeyMissing"), "{}", ready.body);
    api.set_up(true);
    operator::create_node(&api, "a", 1);
    lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_host_network_that_refuses_is_a_condition_and_not_ready() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let machine = Machine::new();
    *machine.0.broken.lock().unwrap() = Some("no CAP_NET_ADMIN".into());
    let lab = Lab::start_with(&dir.0, &api, address, machine, CniMode::Managed).await;
    let node = lab.node_where(|n| operator::condition(n, "RoutesProgrammed").is_some_and(|c| c.0 == "False")).await;
    assert_eq!(operator::condition(&node, "Ready").unwrap().1, "RoutesFailed");
    assert_eq!(operator::condition(&node, "CNIReady").unwrap().1, "Waiting");
    assert_eq!(lab.ask(Question::Ready).await.status, 503);
    lab.stop().await;
}

#[tokio::test]
async fn somebody_who_undoes_our_work_again_and_again_is_a_condition() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| !p.is_empty()).await;
    for n in 2..=6 {
        assert!(!lab.ask(Question::Status).await.body.contains("RulesContended"));
        lab.change.send(Changed { rules: true, ..Changed::default() }).await.unwrap();
        lab.machine.plan_where(|plans| plans.len() >= n).await;
    }
    lab.status_with("RulesContended").await;
    lab.node_where(|n| operator::condition(n, "RulesContended").is_some()).await;
    assert!(lab.ask(Question::Metrics).await.body.contains("warren_rules_contended 1"));
    lab.stop().await;
}

#[tokio::test]
async fn a_cni_file_that_somebody_deletes_is_put_back() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start_with(&dir.0, &api, address, Machine::new(), CniMode::Managed).await;
    lab.status_with("\"Published\"").await;
    let before = lab.machine.plans.borrow().len();
    lab.machine.cni_gone.store(true, Ordering::Relaxed);
    lab.machine.plan_where(|plans| plans.len() > before).await;
    assert!(!lab.machine.cni_gone.load(Ordering::Relaxed));
    lab.stop().await;
}

#[tokio::test]
async fn a_node_deleted_and_made_again_under_its_name_gets_its_status_back() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let first = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    api.delete("meshnodes", "a");
    operator::create_node(&api, "a", 9);
    let again = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    assert_ne!(first["metadata"]["uid"], again["metadata"]["uid"]);
    assert_eq!(
        lab.machine
            .plan_where(|p| p.last().is_some_and(|p| p.addresses == ["10.118.0.9".parse::<IpAddr>().unwrap()]))
            .await
            .listen_port,
        21829
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_key_file_deleted_while_running_is_a_new_key_on_the_same_device() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let first = lab.node_where(|n| n["status"]["publicKey"].is_string()).await["status"]["publicKey"].clone();
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    fs::remove_file(dir.0.join("private.key")).unwrap();
    lab.node_where(|n| n["status"]["publicKey"] != first).await;
    assert_eq!(lab.machine.devices.lock().unwrap().len(), 2);
    let peers = lab.machine.device().peers().await.unwrap();
    assert_eq!(peers.len(), 1, "the peers are those of before, though nothing was told again");
    lab.stop().await;
}

#[tokio::test]
async fn metrics_and_paths_name_the_peers() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let paths: Value = serde_json::from_str(&lab.ask(Question::Paths(None)).await.body).unwrap();
    assert_eq!(paths["peers"][0]["name"], "b");
    assert_ne!(paths["peers"][0]["state"], "direct");
    assert_ne!(paths["peers"][0]["reason"], "");
    assert_eq!(lab.ask(Question::Paths(Some("nobody".into()))).await.status, 404);
    let datagram = Datagram { remote: "192.0.2.1:1".parse().unwrap(), local: None, payload: vec![0] };
    while lab.machine.device().deliver(datagram.clone()) {}
    let metrics = lab.ask(Question::Metrics).await.body;
    for line in [
        "warren_peers{state=\"direct\"} 0",
        "warren_peer_path{path=",
        "# TYPE warren_route_repairs_total counter",
        "warren_device_dropped_total{reason=\"queue_full\"} 1",
        "warren_rules_contended 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    lab.stop().await;
}

/// A device that outlives agents, with a peer `b` on it as the first agent left it, and what the second is started with.
async fn left_behind(
    allowed_ips: &[&str],
    more: &[PublicKey],
) -> (FakeApi, SocketAddr, TempDir, Arc<Machine>, PublicKey) {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let (b, entry) = peer("b", 2);
    let (machine, change) = Machine::new();
    machine.has_kernel.store(true, Ordering::Relaxed);
    machine.keeps.store(true, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, (machine.clone(), change)).await;
    lab.node_where(|n| n["status"]["backend"] == "Kernel").await;
    lab.stop().await;
    put_slice(&api, "peers-0", &[entry]);
    let nets = allowed_ips.iter().map(|net| net.parse().unwrap()).collect();
    let known = PeerUpdate {
        endpoint: Some("198.51.100.2:21820".parse().unwrap()),
        allowed_ips: Some(nets),
        keepalive: Some(Some(Duration::from_secs(25))),
        ..PeerUpdate::new(b)
    };
    let upsert = [known].into_iter().chain(more.iter().map(|key| PeerUpdate::new(*key))).collect();
    let device = machine.device();
    device.apply(&Delta { upsert, remove: Vec::new() }).await.unwrap();
    device.complete_handshake(&b);
    device.take_applied();
    (api, address, dir, machine, b)
}

/// A second agent on the same machine.
async fn restart(dir: &TempDir, api: &FakeApi, address: SocketAddr, machine: &Arc<Machine>) -> Lab {
    let (change, changed) = mpsc::channel(4);
    *machine.changed.lock().await = changed;
    Lab::start(&dir.0, api, address, (machine.clone(), change)).await
}

#[tokio::test]
async fn a_restart_beside_a_device_that_went_on_changes_nothing_on_it() {
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32", "10.244.2.0/24"], &[]).await;
    let device = machine.device();
    let before = device.peers().await.unwrap();
    let lab = restart(&dir, &api, address, &machine).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    // The echo is not answered here, so the adopted session comes to an end as a path; its endpoint stays all the same.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(device.take_applied(), []);
    assert_eq!(device.take_handshakes(), []);
    let after = device.peers().await.unwrap();
    assert_eq!((after[0].public_key, after[0].endpoint), (b, before[0].endpoint));
    lab.stop().await;
}

#[tokio::test]
async fn only_what_differs_from_the_plan_is_changed_on_a_device_that_went_on() {
    let stale = peer("stale", 9).0;
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32", "10.99.0.0/24"], &[stale]).await;
    let device = machine.device();
    let lab = restart(&dir, &api, address, &machine).await;
    let settled = async {
        loop {
            let peers = device.peers().await.unwrap();
            if peers.len() == 1 && peers[0].allowed_ips.len() == 2 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, settled).await.unwrap();
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let allowed_ips = Some(["10.118.0.2/32", "10.244.2.0/24"].map(|net| net.parse().unwrap()).to_vec());
    let mut applied = device.take_applied();
    applied.retain(|delta| !delta.upsert.is_empty() || !delta.remove.is_empty());
    let (upserts, removes): (Vec<_>, Vec<_>) =
        (applied.iter().flat_map(|d| &d.upsert).collect(), applied.iter().flat_map(|d| &d.remove).collect());
    assert_eq!(upserts, [&PeerUpdate { allowed_ips, ..PeerUpdate::new(b) }]);
    assert_eq!(removes, [&stale]);
    lab.stop().await;
}

#[tokio::test]
async fn peers_that_only_the_device_remembers_stay_until_the_directory_was_read() {
    let (lost, revoked) = (peer("lost", 9).0, peer("revoked", 8).0);
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32"], &[lost, revoked]).await;
    // The cache has the settings and a tombstone, and no peers.
    let tombstone =
        json!({"name": "revoked", "uid": "node-revoked", "publicKey": revoked.to_string(), "generation": 1});
    let removed = json!({"metadata": {"name": "removed"}, "spec": {"count": 1, "tombstones": [tombstone]}});
    put_slice(&api, "peers-0", &[]);
    api.put("meshpeerslices", removed);
    let lab = restart(&dir, &api, address, &machine).await;
    let device = machine.device();
    let keys = async || {
        let mut keys: Vec<_> = device.peers().await.unwrap().into_iter().map(|p| p.public_key).collect();
        keys.sort();
        keys
    };
    let expect = async |mut wanted: Vec<PublicKey>| {
        wanted.sort();
        let seen = async {
            while keys().await != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, seen).await.unwrap_or_else(|_| panic!("peers differ from {wanted:?}"));
    };
    expect(vec![b, lost]).await;
    lab.change.send(Changed::ALL).await.unwrap();
    lab.ask(Question::Status).await;
    expect(vec![b, lost]).await;
    // A directory with anybody in it is one.
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    expect(vec![b]).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_kernel_that_is_demanded_and_missing_is_a_condition_and_no_other_device_is_used() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let mut node = api.get("meshnodes", "a").unwrap();
    node["spec"]["backend"] = json!("Kernel");
    api.put("meshnodes", node.clone());
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let told = lab.node_where(|n| operator::condition(n, "NoKernelWireGuard").is_some()).await;
    assert_eq!(operator::condition(&told, "Ready").unwrap(), ("False".into(), "NoKernelWireGuard".into()));
    let all = told["status"]["conditions"].as_array().unwrap();
    let message = all.iter().find(|c| c["type"] == "NoKernelWireGuard").unwrap()["message"].as_str().unwrap();
    assert!(message.contains("modprobe wireguard"), "{message}");
    assert_eq!(told["status"]["backend"], Value::Null);
    assert!(lab.machine.devices.lock().unwrap().is_empty());
    // The same demand of the whole mesh, and this node excepted.
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["spec"] = json!({"backend": "Kernel"});
    api.put("meshes", mesh);
    node["spec"]["backend"] = json!("Userspace");
    api.put("meshnodes", node);
    let told = lab.node_where(|n| n["status"]["backend"] == "Userspace").await;
    assert_eq!(operator::condition(&told, "NoKernelWireGuard"), None);
    assert!(lab.ask(Question::Metrics).await.body.contains("backend=\"userspace\""));
    lab.stop().await;
}

#[tokio::test]
async fn a_device_changes_only_when_another_backend_is_wanted_than_it_is() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let machine = Machine::new();
    machine.0.has_kernel.store(true, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    lab.node_where(|n| n["status"]["backend"] == "Kernel").await;
    for (wanted, backend, devices) in [("Kernel", "Kernel", 1), ("Userspace", "Userspace", 2), ("Auto", "Kernel", 3)] {
        let mut mesh = api.get("meshes", "default").unwrap();
        mesh["spec"] = json!({"backend": wanted, "mtu": 1300 + devices});
        api.put("meshes", mesh);
        lab.machine.plan_where(|p| p.last().is_some_and(|p| usize::from(p.mtu) == 1300 + devices)).await;
        let node = lab.node_where(|n| n["status"]["backend"] == backend).await;
        assert_eq!(node["status"]["listenPort"], 21821);
        assert_eq!(lab.machine.devices.lock().unwrap().len(), devices, "{wanted}");
    }
    lab.stop().await;
}

#[tokio::test]
async fn a_lost_device_is_opened_again_at_once() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let device = lab.machine.device();
    let began = std::time::Instant::now();
    device.set_broken(true);
    let replaced = async {
        while lab.machine.devices.lock().unwrap().len() < 2 {
            lab.ask(Question::Paths(None)).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, replaced).await.unwrap();
    // The counters are read every second, and nothing else is tried on a device in memory; then there is no pause.
    assert!(began.elapsed() < Duration::from_millis(1400), "{:?}", began.elapsed());
    lab.stop().await;
}

#[tokio::test]
async fn a_peer_without_an_endpoint_stays_a_peer_of_the_kernels() {
    for has_kernel in [true, false] {
        let (api, address, dir) = cluster().await;
        operator::create_node(&api, "a", 1);
        let (b, entry) = peer("b", 2);
        put_slice(&api, "peers-0", &[entry]);
        let machine = Machine::new();
        machine.0.has_kernel.store(has_kernel, Ordering::Relaxed);
        let lab = Lab::start(&dir.0, &api, address, machine).await;
        lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
        let device = lab.machine.device();
        let whole = device.peers().await.unwrap()[0].allowed_ips.clone();
        device.take_applied();
        // WireGuard followed a packet into the mesh itself, which must not stay so.
        device.roam(&b, "10.244.2.7:21820".parse().unwrap());
        let applied = async {
            loop {
                let mut applied = device.take_applied();
                if let Some(delta) = applied.pop() {
                    break delta;
                }
                lab.ask(Question::Paths(None)).await;
            }
        };
        let delta = tokio::time::timeout(DEADLINE, applied).await.unwrap();
        let nowhere = "127.0.0.1:9".parse().unwrap();
        let now = device.peers().await.unwrap().remove(0);
        assert_eq!(now.allowed_ips, whole);
        if has_kernel {
            let parked = PeerUpdate { endpoint: Some(nowhere), keepalive: Some(None), ..PeerUpdate::new(b) };
            assert_eq!(delta, Delta { upsert: vec![parked], remove: Vec::new() });
            let paths: Value = serde_json::from_str(&lab.ask(Question::Paths(None)).await.body).unwrap();
            assert_eq!(paths["peers"][0]["endpoint"], Value::Null, "that is no endpoint to show");
            // And the engine takes it for none: nothing is put back again, however long it stays.
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert_eq!(device.take_applied(), []);
        } else {
            assert_eq!((delta.remove, now.endpoint), (vec![b], None));
        }
        lab.stop().await;
    }
}

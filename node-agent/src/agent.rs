//! The agent: one task that owns the mesh state of this node.
//!
//! Everything else talks to it over bounded channels: the feeds tell what the API says, the local API asks questions. The
//! loop waits for one of them, takes in what has arrived, brings the node to what it should be ([`intent`] computes,
//! [`plane`] and the host carry out), lets the path engine have its turn, and reports. What it was told before a restart
//! is on disk, so all of that happens before the API answers.

pub mod answers;
pub mod identity;
pub mod intent;
pub mod network;
pub mod plane;
pub mod reporter;
pub mod tls_port;
mod turn;

pub use intent::Settings;

use crate::{
    api::{Connection, Told},
    cache::{Cache, Name},
    host::Host,
    local::Ask,
    metrics::Metrics,
    net::Changed,
    paths::PathTable,
    relays::Report,
    status::conditions::DeviceProblem,
    told::{self, View},
};
use answers::answer;
use identity::Identity;
use network::NetworkState;
use plane::Plane;
use reporter::Reporter;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tls_port::TlsPort;
use tokio::sync::{Notify, mpsc, watch};
use topology::node::NodePlanner;
use wgdev::Datagram;

/// Inputs of one sort taken in before the others have their turn.
const INPUT_BUDGET: usize = 64;
/// A list that the guard asked for is asked for again after this.
const RELIST: Duration = Duration::from_secs(20);
/// Memory that a list took is given back when so much time has passed since: it is on disk and applied by then, and the device
/// tells no more of peers only because they are new to it.
const TIDY_AFTER: Duration = Duration::from_secs(wgdev::LIVELY.as_secs() + 5);
/// First and last pause between attempts to open a device that can't be opened.
const DEVICE_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the loop listens to.
pub struct Inputs {
    /// What the API says.
    pub told: mpsc::Receiver<Told>,
    /// Questions from the local API and the metrics server.
    pub asks: mpsc::Receiver<Ask>,
    /// Becomes true when the process shall end.
    pub stop: watch::Receiver<bool>,
}

/// Why the loop ended.
pub enum Outcome {
    /// It was told to stop.
    Stopped,
    /// Somebody deleted the key file: start anew, with a new key and what was told so far.
    KeyGone(Box<View>),
}

/// One node's agent.
pub struct Agent {
    settings: Settings,
    host: Arc<dyn Host>,
    connection: Connection,
    relist_slices: Arc<Notify>,
    cache: Cache,
    identity: Box<Identity>,
    view: Box<View>,
    network: NetworkState,
    planner: NodePlanner,
    plane: Option<Plane>,
    /// The assigned port that the last device was opened for.
    assigned_port: Option<u16>,
    device_error: Option<DeviceProblem>,
    device_retry: Option<(Instant, Duration)>,
    /// When the device was last lost.
    device_lost_at: Option<Instant>,
    paths: PathTable,
    reporter: Reporter,
    report_at: Option<Instant>,
    /// Since when the candidates of this device are waited for.
    publish_from: Option<Instant>,
    metrics: Metrics,
    api_servers: Vec<SocketAddr>,
    epoch: Instant,
    housekeeping_at: Instant,
    relist_at: Option<Instant>,
    /// When to give back the memory that a list took.
    tidy_at: Option<Instant>,
    /// The port by which others reach a relay on this node.
    tls_port: TlsPort,
    /// What was told or found since the last reconcile.
    dirty: bool,
}

/// What an agent is made of.
pub struct Parts {
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
    /// The key.
    pub identity: Box<Identity>,
    /// What was told so far.
    pub view: Box<View>,
    /// When this process started: the zero of the view's clock.
    pub epoch: Instant,
    /// The metrics, shared by every run of the loop.
    pub metrics: Metrics,
}

enum Wake {
    Stop,
    Written(Result<crds::MeshNode, crate::api::writer::WriteError>),
    Told(Told),
    Reachable(bool),
    Resolved(Vec<SocketAddr>),
    Persisted,
    Ask(Ask),
    Network(Changed),
    Datagram(std::io::Result<Datagram>),
    Echo(std::io::Result<(SocketAddr, Vec<u8>)>),
    Called,
    Relay(Report),
    Timer,
}

impl Agent {
    /// An agent that has programmed nothing yet.
    pub fn new(parts: Parts, now: Instant) -> Self {
        let Parts { settings, host, connection, relist_slices, cache, identity, view, epoch, metrics } = parts;
        let reporter = Reporter::new(connection.clone(), &settings.node_name, now);
        Self {
            view,
            reporter,
            network: NetworkState::new(settings.cni_mode.carries_pods(), now),
            planner: NodePlanner::default(),
            plane: None,
            assigned_port: None,
            device_error: None,
            device_retry: None,
            device_lost_at: None,
            paths: PathTable::default(),
            report_at: None,
            publish_from: None,
            api_servers: Vec::new(),
            epoch,
            housekeeping_at: now + settings.housekeeping,
            relist_at: None,
            tidy_at: None,
            tls_port: TlsPort::default(),
            dirty: true,
            settings,
            host,
            connection,
            relist_slices,
            cache,
            identity,
            metrics,
        }
    }

    /// Runs until told to stop.
    pub async fn run(mut self, inputs: &mut Inputs) -> Outcome {
        let host = self.host.clone();
        let mut reachable = self.connection.reachable();
        let mut resolved = self.connection.addresses();
        let mut persisted = self.cache.failure();
        self.api_servers = resolved.borrow_and_update().clone();
        // Names that are not resolved yet: until then what they were last, or a restart would take the API's exemption away.
        if resolved.has_changed().is_ok() {
            self.api_servers.extend(self.cache.load::<Vec<SocketAddr>>(&Name::single("resolved")).unwrap_or_default());
            self.api_servers.sort();
            self.api_servers.dedup();
        }
        self.survey().await;
        loop {
            if self.settle().await.is_break() {
                tracing::warn!("the key file is gone; starting anew with a new key");
                return Outcome::KeyGone(self.view);
            }
            let deadline = self.poll_timeout();
            let device = self.plane.as_ref().map(Plane::device);
            let echo = self.plane.as_ref().map(Plane::echo);
            let bells = self.plane.as_ref().and_then(Plane::bells);
            let wake = tokio::select! {
                biased;
                _ = inputs.stop.wait_for(|stop| *stop) => Wake::Stop,
                result = self.reporter.written() => Wake::Written(result),
                Some(told) = inputs.told.recv() => Wake::Told(told),
                Ok(()) = reachable.changed() => Wake::Reachable(reachable.borrow_and_update().unwrap_or(false)),
                Ok(()) = resolved.changed() => Wake::Resolved(resolved.borrow_and_update().clone()),
                Ok(()) = persisted.changed() => Wake::Persisted,
                Some(ask) = inputs.asks.recv() => Wake::Ask(ask),
                changed = host.changed() => Wake::Network(changed),
                datagram = async { match &device { Some(d) => d.recv().await, None => std::future::pending().await } } => {
                    Wake::Datagram(datagram)
                }
                echo = async { match &echo { Some(e) => e.recv().await, None => std::future::pending().await } } => {
                    Wake::Echo(echo)
                }
                () = async { match &bells { Some(b) => b.rung().await, None => std::future::pending().await } } => {
                    Wake::Called
                }
                report = async {
                    match &mut self.plane {
                        Some(plane) => plane.relay_report().await,
                        None => std::future::pending().await,
                    }
                } => Wake::Relay(report),
                () = tokio::time::sleep_until(deadline.into()) => Wake::Timer,
            };
            match wake {
                Wake::Stop => return self.stop(),
                Wake::Told(told) => {
                    self.told(told);
                    for _ in 0..INPUT_BUDGET {
                        let Ok(told) = inputs.told.try_recv() else { break };
                        self.told(told);
                    }
                }
                wake => self.handle(wake).await,
            }
        }
    }

    async fn handle(&mut self, wake: Wake) {
        let now = Instant::now();
        match wake {
            Wake::Written(result) => {
                self.reporter.finish(&result, now);
                if let Ok(node) = result {
                    let changed = self.view.node_written(node);
                    self.take_in(changed);
                }
                self.report_at = Some(now);
            }
            Wake::Reachable(reachable) => {
                self.metrics.apiserver_reachable.set(i64::from(reachable));
                if !reachable {
                    tracing::warn!("the Kubernetes API does not answer; the mesh goes on as it was told last");
                } else {
                    tracing::info!("the Kubernetes API answers");
                    self.reporter.retry_now();
                    self.report_at = Some(now);
                }
            }
            Wake::Resolved(found) => {
                self.cache.store(&Name::single("resolved"), &found);
                self.api_servers = found;
                self.dirty = true;
            }
            Wake::Persisted => {
                match self.cache.failure().borrow().as_deref() {
                    Some(error) => {
                        tracing::warn!(error, "the state folder can't be written; the mesh goes on without it")
                    }
                    None => tracing::info!("the state folder holds everything again"),
                }
                self.report_at = Some(now);
            }
            Wake::Ask(ask) => answer(self, ask, now).await,
            Wake::Network(changed) => self.network_changed(changed, now).await,
            Wake::Datagram(Ok(datagram)) => {
                if let Some(plane) = &mut self.plane {
                    plane.handle_datagram(datagram, now);
                }
            }
            Wake::Datagram(Err(e)) => self.device_lost(&e.to_string(), now),
            Wake::Echo(Ok((from, payload))) => {
                if let Some(plane) = &mut self.plane {
                    plane.handle_echo(from, &payload, now);
                }
            }
            Wake::Echo(Err(e)) => self.device_lost(&e.to_string(), now),
            Wake::Called => {
                if let Some(plane) = &mut self.plane {
                    plane.handle_calls(now).await;
                }
            }
            Wake::Relay(report) => {
                if let Some(plane) = &mut self.plane {
                    plane.handle_relay(report, now);
                }
            }
            Wake::Timer | Wake::Told(_) | Wake::Stop => {}
        }
    }

    fn told(&mut self, told: Told) {
        if told.is_list() {
            self.tidy_at = Some(Instant::now() + TIDY_AFTER);
        }
        let present = self.view.node_is_present();
        let changed = self.view.handle(told, self.epoch.elapsed());
        if self.view.node_is_present() && !present {
            self.reporter.retry_now();
        }
        // What was remembered may be confirmed by this without a word of it being different.
        self.dirty |= self.view.node_is_present() != present;
        self.take_in(changed);
        self.report_at = Some(Instant::now());
    }

    fn take_in(&mut self, changed: told::Changed) {
        if let Some(status) = self.view.node().and_then(|n| n.status.as_ref()) {
            self.identity.learn_round(status);
        }
        self.dirty |= changed.any();
    }

    fn device_lost(&mut self, why: &str, now: Instant) {
        tracing::error!(why, "the mesh device is gone; opening it again");
        self.plane = None;
        self.publish_from = None;
        self.network.forget();
        self.device_error = Some(DeviceProblem { reason: "DeviceFailed", message: why.into() });
        // At once, unless that was tried just now: every moment without a device is lost traffic.
        let again = self.device_lost_at.replace(now).is_some_and(|at| now.duration_since(at) < DEVICE_RETRY.1);
        self.device_retry = again.then(|| (now + DEVICE_RETRY.0, DEVICE_RETRY.0));
        self.dirty = true;
    }

    fn stop(&mut self) -> Outcome {
        // Sessions end with the process, the interface, its routes and the firewall stay: nothing leaks while nobody is here.
        self.cache.flush();
        Outcome::Stopped
    }
}

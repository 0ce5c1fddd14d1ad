//! The thread that speaks netlink.
//!
//! All requests go through one thread with a small runtime of its own, in the network namespace of whoever opened the
//! device. So the device can be used from any runtime, a caller that gives up in the midst of a request leaves no half
//! of it, and there is one order of things.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::BoxStream};
use nlink::{
    Connection, Route,
    netlink::{RtnetlinkGroup, events::NetworkEvent},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use wire::key::PublicKey;

use super::{
    dump::Dump,
    genl::failed,
    message::{Action, Entry},
    plan::Known,
    port::{Port, PortConfig},
    setup::{self, Identity, Ready, Traffic},
    share::{self, Share},
};
use crate::{Datagram, Delta, DeviceConfig, DeviceError, LIVELY, PeerCounters, PeerStatus};

/// Requests that wait: their only source waits for each answer.
const REQUESTS: usize = 8;

/// A request and where its answer goes.
pub(super) enum Request {
    Apply(Delta, oneshot::Sender<Result<(), DeviceError>>),
    Peers(oneshot::Sender<Result<Vec<PeerStatus>, DeviceError>>),
    Counters(oneshot::Sender<Result<Vec<PeerCounters>, DeviceError>>),
    StartHandshake(PublicKey, oneshot::Sender<Result<(), DeviceError>>),
    OpenPort(oneshot::Sender<io::Result<Arc<Port>>>),
}

/// What the handle must know of a device that is open.
pub(super) struct Opened {
    pub(super) if_index: u32,
    pub(super) listen_port: u16,
}

/// The handle of the thread, which ends with it.
pub(super) struct Worker {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Opens a device in the network namespace of this thread, and serves it until the handle is dropped or the
    /// interface is gone.
    pub(super) fn start(
        config: DeviceConfig,
        share: Arc<Share>,
        queue: mpsc::Sender<Datagram>,
    ) -> Result<(Self, Opened), DeviceError> {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let (tell, told) = std::sync::mpsc::channel();
        let run = move || {
            block_on(async {
                match Device::open(config, share, queue).await {
                    Ok((device, events)) => {
                        let Identity { listen_port, .. } = device.identity;
                        let _ = tell.send(Ok(Opened { if_index: device.ready.if_index, listen_port }));
                        device.run(inbox, events).await;
                    }
                    Err(error) => {
                        let _ = tell.send(Err(error));
                    }
                }
            })
        };
        let thread = spawn("wg-kernel", run)?;
        let worker = Self { requests: Some(requests), thread: Some(thread) };
        let opened = told.recv().unwrap_or(Err(DeviceError::Stopped))?;
        Ok((worker, opened))
    }

    /// Makes a request and waits for its answer.
    pub(super) async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, DeviceError> {
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(DeviceError::Stopped)?;
        requests.send(request(answer)).await.map_err(|_| DeviceError::Stopped)?;
        answered.await.map_err(|_| DeviceError::Stopped)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.requests.as_ref().is_none_or(mpsc::Sender::is_closed)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the device had panicked");
        }
    }
}

/// Runs netlink requests on a thread of their own, for callers that aren't async.
pub(super) fn run_apart<T: Send + 'static>(
    work: impl AsyncFnOnce() -> Result<T, DeviceError> + Send + 'static,
) -> Result<T, DeviceError> {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = spawn("wg-kernel", move || {
        block_on(async {
            let _ = tell.send(work().await);
        })
    })?;
    let result = told.recv().unwrap_or(Err(DeviceError::Stopped));
    let _ = thread.join();
    result
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, DeviceError> {
    let builder = thread::Builder::new().name(name.into());
    builder.spawn(run).map_err(DeviceError::io("start the thread of the device"))
}

fn block_on(work: impl Future<Output = ()>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        // What was to be told is dropped with the work, and whoever waits for it sees that.
        Err(error) => tracing::error!(%error, "no runtime for the thread of the device"),
    }
}

/// Since when nothing of the peers' counters can have moved.
struct Quiet {
    traffic: Option<Traffic>,
    since: Instant,
}

impl Quiet {
    fn new() -> Self {
        Self { traffic: None, since: Instant::now() }
    }

    /// Something else than packets changed a peer.
    fn disturb(&mut self, now: Instant) {
        self.since = now;
    }

    /// Takes the interface's counters in. Whether nothing has happened for so long that there is nothing to tell.
    fn has_lasted(&mut self, traffic: Traffic, now: Instant) -> bool {
        if self.traffic.replace(traffic) != Some(traffic) {
            self.since = now;
        }
        now.saturating_duration_since(self.since) >= LIVELY
    }
}

type Events = BoxStream<'static, nlink::Result<NetworkEvent>>;

struct Device {
    name: String,
    identity: Identity,
    ready: Ready,
    /// Whether what is known of the peers is what the kernel has.
    known_is_stale: bool,
    quiet: Quiet,
    share: Arc<Share>,
    queue: mpsc::Sender<Datagram>,
    receivers: Vec<JoinHandle<()>>,
}

impl Device {
    async fn open(
        config: DeviceConfig,
        share: Arc<Share>,
        queue: mpsc::Sender<Datagram>,
    ) -> Result<(Self, Events), DeviceError> {
        // Before the interface is looked at, so that nothing that happens to it goes unseen.
        let events = Connection::<Route>::new().map_err(failed("open a route socket"))?;
        events.subscribe(&[RtnetlinkGroup::Link]).map_err(failed("subscribe to link events"))?;
        let ready = setup::set_up(&config).await?;
        let DeviceConfig { name, private_key, fwmark, .. } = config;
        let identity = Identity { public_key: private_key.public_key(), listen_port: ready.listen_port, fwmark };
        let events = events.into_events().await.boxed();
        let device = Self {
            name,
            identity,
            ready,
            known_is_stale: false,
            quiet: Quiet::new(),
            share,
            queue,
            receivers: Vec::new(),
        };
        Ok((device, events))
    }

    /// Serves requests until there will be none, or the interface isn't ours any more.
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>, mut events: Events) {
        loop {
            let idle_at = self.share.idle_at();
            let idle = async {
                match idle_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                biased;
                event = events.next() => self.see(event).await,
                request = inbox.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => return,
                },
                () = idle => {
                    if self.share.close_if_idle() {
                        self.stop_receiving();
                    }
                    true
                }
            };
            if !goes_on {
                tracing::info!(device = self.name, "the WireGuard interface is gone or somebody else's");
                return;
            }
        }
    }

    /// Looks at the interface if the event may be about it; false when it isn't ours any more. Events only say when to
    /// look: the kernel drops some when there are too many.
    async fn see(&self, event: Option<nlink::Result<NetworkEvent>>) -> bool {
        let other = |e: &NetworkEvent| e.as_link().is_none_or(|link| link.ifindex() != self.ready.if_index);
        match event {
            None => return false,
            Some(Err(error)) if !error.is_no_buffer_space() => return false,
            Some(Ok(event)) if other(&event) => return true,
            _ => {}
        }
        let up = setup::is_up(&self.ready.route, self.ready.if_index, &self.name).await;
        if let Ok(Some(up)) = up {
            self.share.set_up(up);
        }
        matches!(up, Ok(Some(_)))
    }

    /// Answers a request; false when the interface is gone. A caller that doesn't wait any more is no error.
    async fn serve(&mut self, request: Request) -> bool {
        match request {
            Request::Apply(delta, answer) => reply(answer, self.apply(&delta).await),
            Request::Peers(answer) => reply(answer, self.peers().await),
            Request::Counters(answer) => reply(answer, self.counters().await),
            Request::StartHandshake(peer, answer) => reply(answer, self.start_handshake(peer).await),
            Request::OpenPort(answer) => {
                let _ = answer.send(self.open_port());
                true
            }
        }
    }

    async fn apply(&mut self, delta: &Delta) -> Result<(), DeviceError> {
        self.quiet.disturb(Instant::now());
        if self.known_is_stale {
            self.read().await?;
        }
        let plan = self.ready.known.plan(delta, &self.identity.public_key);
        for message in &plan.messages {
            let set = self.ready.genl.set_peers(self.ready.if_index, message).await;
            self.known_is_stale = set.is_err();
            set.map_err(failed("change the peers"))?;
        }
        if plan.refused.is_empty() { Ok(()) } else { Err(DeviceError::Refused(plan.refused)) }
    }

    async fn peers(&mut self) -> Result<Vec<PeerStatus>, DeviceError> {
        self.read().await
    }

    /// The counters of all peers, or of nobody while the interface's own stand still: they count every message of every peer.
    async fn counters(&mut self) -> Result<Vec<PeerCounters>, DeviceError> {
        let traffic =
            setup::traffic(&self.ready.route, self.ready.if_index).await.map_err(failed("read the counters"))?;
        if self.quiet.has_lasted(traffic, Instant::now()) {
            return Ok(Vec::new());
        }
        let messages = self.ready.genl.read(self.ready.if_index).await.map_err(failed("read the peers"))?;
        let (dump, mut counters) = Dump::counters(&messages);
        self.check_identity(&dump)?;
        for peer in &mut counters {
            peer.last_handshake.take_if(|ago| self.is_void(*ago));
        }
        Ok(counters)
    }

    /// All peers, in order.
    async fn read(&mut self) -> Result<Vec<PeerStatus>, DeviceError> {
        let dump = self.ready.genl.dump(self.ready.if_index).await.map_err(failed("read the peers"))?;
        self.check_identity(&dump)?;
        self.ready.known = Known::of(dump.peers.values());
        self.known_is_stale = false;
        let mut peers: Vec<PeerStatus> = dump.peers.into_values().collect();
        for peer in &mut peers {
            peer.last_handshake.take_if(|ago| self.is_void(*ago));
        }
        Ok(peers)
    }

    /// A device with another key, port or mark than ours was taken by somebody.
    fn check_identity(&self, dump: &Dump) -> Result<(), DeviceError> {
        let public_key = dump.public_key.ok_or(DeviceError::Stopped)?;
        let now = Identity { public_key, listen_port: dump.listen_port, fwmark: dump.fwmark };
        if now == self.identity { Ok(()) } else { Err(DeviceError::Stopped) }
    }

    /// Whether a handshake so long ago was with another key.
    fn is_void(&self, ago: Duration) -> bool {
        self.ready.rekeyed.is_some_and(|at| ago >= at.elapsed())
    }

    /// A keepalive that is switched on is sent at once, and without a session that is a handshake. Off and on (or on
    /// and off) in one message, so that nothing can come between and the peer is left as it was.
    async fn start_handshake(&mut self, key: PublicKey) -> Result<(), DeviceError> {
        /// Any interval will do; it is over before its time comes.
        const ON: u16 = u16::MAX;
        let usable = |known: &Known| known.get(&key).is_some_and(|facts| facts.endpoint);
        if self.known_is_stale || !usable(&self.ready.known) {
            // It may have called us, and WireGuard learned its endpoint.
            self.read().await?;
        }
        let facts = self.ready.known.get(&key).ok_or(DeviceError::UnknownPeer(key))?;
        if !facts.endpoint {
            return Err(DeviceError::NoEndpoint(key));
        }
        let intervals = if facts.keepalive == 0 { [ON, 0] } else { [0, facts.keepalive] };
        let entries = intervals.map(|interval| Entry {
            key,
            action: Action::Change { endpoint: None, allowed_ips: None, keepalive: Some(interval) },
        });
        let set = self.ready.genl.set_peers(self.ready.if_index, &entries).await;
        set.map_err(failed("start a handshake"))
    }

    fn open_port(&mut self) -> io::Result<Arc<Port>> {
        if let Some(port) = self.share.port() {
            return Ok(port);
        }
        let Identity { listen_port: port, fwmark, .. } = self.identity;
        let port = Arc::new(Port::open(PortConfig { port, fwmark, if_index: self.ready.if_index })?);
        self.stop_receiving();
        for family in port.families() {
            let receive = share::receive(self.share.clone(), port.clone(), family, self.queue.clone());
            self.receivers.push(tokio::spawn(receive));
        }
        self.share.open(port.clone());
        Ok(port)
    }

    fn stop_receiving(&mut self) {
        self.receivers.drain(..).for_each(|receiver| receiver.abort());
    }
}

/// Sends an answer; false when it says that the device has stopped.
fn reply<T>(answer: oneshot::Sender<Result<T, DeviceError>>, result: Result<T, DeviceError>) -> bool {
    let goes_on = !matches!(result, Err(DeviceError::Stopped));
    let _ = answer.send(result);
    goes_on
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_nothing_to_tell_once_the_interface_has_stood_still() {
        let mut quiet = Quiet::new();
        let began = quiet.since;
        let mut lasted = |traffic: u64, after: Duration| quiet.has_lasted(Traffic([traffic; 4]), began + after);
        assert!(!lasted(1, Duration::ZERO));
        assert!(!lasted(1, LIVELY - Duration::from_millis(1)));
        assert!(lasted(1, LIVELY));
        // A packet of anybody, and the peers are told of for as long again.
        assert!(!lasted(2, LIVELY + Duration::from_secs(1)));
        assert!(!lasted(2, LIVELY * 2));
        assert!(lasted(2, LIVELY * 2 + Duration::from_secs(1)));
        // So is a change that no packet made.
        quiet.disturb(began + LIVELY * 3);
        assert!(!quiet.has_lasted(Traffic([2; 4]), began + LIVELY * 4 - Duration::from_secs(1)));
        assert!(quiet.has_lasted(Traffic([2; 4]), began + LIVELY * 4));
    }
}

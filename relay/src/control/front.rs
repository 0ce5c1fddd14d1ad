//! One life of the front end: channels in, the logic in the middle, orders out.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use channel::{Heard, Incoming, Listener, Packets, Place, Receiver, RecvError, Sender, Transport};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, sleep_until};
use wire::control::{ToNode, ToRelay};

use super::stray::Strays;
use super::{Board, Doors, Front, Update};
use crate::addresses;
use crate::server::control::{Config, Input, Output, SessionId, Sessions};
use crate::server::plane::{self, Event};
use crate::udp::{self, Inlet};

/// Messages of all nodes that wait for their turn. Beyond that each node waits with its next one.
const HEARD: usize = 1024;

/// How often the host's addresses are looked at.
const ADDRESS_PERIOD: Duration = Duration::from_secs(10);

/// Who comes in before the first list of members waits for it, this long at most: a relay that starts anew has nearly all nodes at its doors
/// before the API has answered, and who is refused comes back ever more slowly. Without an API they are refused, and look elsewhere.
const FIRST_LIST: Duration = Duration::from_secs(3);

/// Runs until something fails.
pub(super) async fn run(front: Front) -> anyhow::Result<Infallible> {
    let Front { identity, quic, tls, boot, directory, plane, board } = front;
    let mut listener = open(&identity, quic, tls, &board)?;
    let mut events = plane.subscribe().await.context("cannot hear of the data plane")?;
    let mut drain = board.drain.subscribe();
    drain.mark_changed();
    let mut period = tokio::time::interval(ADDRESS_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let config = Config { boot, ..Config::default() };
    let mut owner = Owner::new(Sessions::new(config, Instant::now()), plane, board);
    // A front end that follows another has the list already.
    let mut waits_until = Some(Instant::now() + FIRST_LIST);
    if let Some(update) = directory.begin() {
        owner.update(update).await?;
        waits_until = None;
    }
    loop {
        let wake = owner.sessions.poll_timeout().map(|(at, _)| at);
        tokio::select! {
            Some(incoming) = listener.accept(), if waits_until.is_none() => owner.opened(incoming).await?,
            () = passed(waits_until), if waits_until.is_some() => waits_until = None,
            Some((session, heard)) = owner.heard.recv() => owner.take(session, heard).await?,
            Some(event) = events.recv() => owner.news(event).await?,
            Some(ended) = owner.readers.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            update = directory.next() => {
                owner.update(update).await?;
                waits_until = None;
            }
            Ok(()) = drain.changed() => owner.drain(&mut drain).await?,
            _ = period.tick() => owner.look_at_addresses().await?,
            () = passed(wake) => {
                owner.sessions.handle_timeout(Instant::now());
                owner.follow().await?;
            }
        }
    }
}

async fn passed(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Opens what can be opened: a host where something else has one of the ports still has the other.
fn open(identity: &channel::Identity, quic: SocketAddr, tls: SocketAddr, board: &Board) -> anyhow::Result<Listener> {
    let mut listener = Listener::new(identity)?;
    let mut door = |transport, address, flag| match listener.open(transport, address) {
        Ok(at) => Some(at.port()),
        Err(error) => {
            tracing::warn!(%error, flag, "going on without this door; free the port on this host, or choose another");
            None
        }
    };
    let doors =
        Doors { quic: door(Transport::Quic, quic, "--quic-port"), tls: door(Transport::Tls, tls, "--tls-port") };
    board.doors.send_replace(doors);
    anyhow::ensure!(doors != Doors::default(), "neither port of the control channel can be opened");
    tracing::info!(quic = doors.quic, tls = doors.tls, "listening for nodes");
    Ok(listener)
}

/// What a reader hands over.
#[derive(Debug)]
enum News {
    Said(ToRelay),
    Nonsense,
    Gone,
}

struct Open {
    sender: Sender<ToNode>,
    /// Whether the data plane knows where packets for it go.
    has_outlet: bool,
    /// Kept until it is clear that this one belongs here.
    _place: Option<Place>,
}

struct Owner {
    sessions: Sessions,
    open: BTreeMap<SessionId, Open>,
    readers: JoinSet<()>,
    heard: mpsc::Receiver<(SessionId, News)>,
    hears: mpsc::Sender<(SessionId, News)>,
    own: Vec<std::net::IpAddr>,
    plane: udp::Control,
    strays: Strays,
    board: std::sync::Arc<Board>,
}

impl Owner {
    fn new(sessions: Sessions, plane: udp::Control, board: std::sync::Arc<Board>) -> Self {
        let (hears, heard) = mpsc::channel(HEARD);
        Self {
            sessions,
            open: BTreeMap::new(),
            readers: JoinSet::new(),
            heard,
            hears,
            own: Vec::new(),
            plane,
            strays: Strays::default(),
            board,
        }
    }

    async fn opened(&mut self, incoming: Incoming) -> anyhow::Result<()> {
        let Incoming { identity, channel, place } = incoming;
        let session = SessionId(self.plane.name_channel().0);
        let (sender, receiver) = channel.split();
        self.open.insert(session, Open { sender, has_outlet: false, _place: Some(place) });
        let reader = Reader { session, receiver, hears: self.hears.clone(), inlet: self.plane.inlet() };
        self.readers.spawn(reader.read());
        self.input(Input::Opened { session, identity }).await
    }

    async fn take(&mut self, session: SessionId, heard: News) -> anyhow::Result<()> {
        // What was still on its way from a channel that is closed by now.
        let Some(open) = self.open.get(&session) else { return Ok(()) };
        let input = match heard {
            News::Said(message) => Input::Heard { session, message, remote: open.sender.remote() },
            News::Nonsense => Input::Nonsense(session),
            News::Gone => {
                self.open.remove(&session);
                Input::Gone(session)
            }
        };
        self.input(input).await
    }

    async fn news(&mut self, event: Event) -> anyhow::Result<()> {
        self.input(Input::Plane(event)).await
    }

    async fn update(&mut self, update: Update) -> anyhow::Result<()> {
        match update {
            Update::All(members) => self.input(Input::Members(members)).await,
            Update::Changes(changes) => {
                for (name, member) in changes {
                    self.input(Input::Member { name, member }).await?;
                }
                Ok(())
            }
        }
    }

    async fn drain(&mut self, drain: &mut watch::Receiver<Option<u16>>) -> anyhow::Result<()> {
        let seconds = *drain.borrow_and_update();
        match seconds {
            Some(seconds) => self.input(Input::Drain { seconds }).await,
            None => Ok(()),
        }
    }

    async fn look_at_addresses(&mut self) -> anyhow::Result<()> {
        let own = match addresses::all_of_host() {
            Ok(own) if own != self.own => own,
            Ok(_) => return Ok(()),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "cannot list this host's addresses");
                return Ok(());
            }
        };
        self.own.clone_from(&own);
        self.input(Input::Own(own)).await
    }

    async fn input(&mut self, input: Input) -> anyhow::Result<()> {
        self.sessions.handle_input(input, Instant::now());
        self.follow().await
    }

    /// Does what the logic says, and tells it what came of it, until there is nothing left to do.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let mut came_of_it = VecDeque::new();
        loop {
            while let Some(output) = self.sessions.poll_output() {
                came_of_it.extend(self.perform(output).await?);
            }
            let Some(input) = came_of_it.pop_front() else { break };
            self.sessions.handle_input(input, Instant::now());
        }
        self.board.stats.send_replace(self.sessions.stats());
        Ok(())
    }

    async fn perform(&mut self, output: Output) -> anyhow::Result<Option<Input>> {
        match output {
            Output::Say { session, message } => {
                let Some(open) = self.open.get_mut(&session) else { return Ok(None) };
                if matches!(message, ToNode::Welcome { .. }) {
                    open._place = None;
                }
                if let Err(error) = open.sender.try_send(&message) {
                    tracing::debug!(session = session.0, %error, "closing a channel");
                    self.open.remove(&session);
                    return Ok(Some(Input::Gone(session)));
                }
            }
            Output::Close(session) => drop(self.open.remove(&session)),
            Output::Plane(input) => self.tell_plane(input).await.context("cannot speak to the data plane")?,
            Output::Stray { session, to, tx } => match self.strays.send(to, tx).await {
                Ok(from) => return Ok(Some(Input::StraySent { session, tx, from })),
                Err(error) => tracing::debug!(%error, "a stray packet was not sent"),
            },
        }
        Ok(None)
    }

    async fn tell_plane(&mut self, input: plane::Input) -> Result<(), udp::Ended> {
        if let plane::Input::Attach { channel, .. } = &input
            && let Some(open) = self.open.get_mut(&SessionId(channel.0))
            && !std::mem::replace(&mut open.has_outlet, true)
        {
            self.plane.open(*channel, open.sender.outlet()).await?;
        }
        self.plane.send(input).await
    }
}

/// Reads one channel: messages go to the owner, packets past it to the data plane.
struct Reader {
    session: SessionId,
    receiver: Receiver<ToRelay>,
    hears: mpsc::Sender<(SessionId, News)>,
    inlet: Inlet,
}

impl Reader {
    async fn read(mut self) {
        let mut has_said_hello = false;
        loop {
            let mut packets = Packets::default();
            let news = match self.receiver.hear(&mut packets).await {
                Ok(Some(Heard::Packets)) if has_said_hello => {
                    match self.inlet.carry(self.session.into(), packets).await {
                        Ok(()) => continue,
                        Err(udp::Ended) => return,
                    }
                }
                Ok(Some(Heard::Packets)) => News::Nonsense,
                Ok(Some(Heard::Message(message))) => {
                    has_said_hello |= matches!(message, ToRelay::Hello { .. });
                    News::Said(message)
                }
                Ok(None) => News::Gone,
                Err(RecvError::Malformed | RecvError::TooLong { .. }) => News::Nonsense,
                Err(error) => {
                    tracing::debug!(session = self.session.0, %error, "a channel has ended");
                    News::Gone
                }
            };
            let is_last = !matches!(news, News::Said(_));
            if self.hears.send((self.session, news)).await.is_err() || is_last {
                return;
            }
        }
    }
}

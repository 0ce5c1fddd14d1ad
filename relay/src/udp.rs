//! The shell of the [data plane](crate::server::plane): a thread with a socket for every relay port.
//!
//! The thread runs without a runtime and shares nothing with the rest of the process but queues: commands and the packets of channels in,
//! events out, packets out by the queue of each channel, and a snapshot of counters. Whatever becomes of those who speak to it, also by a panic, it goes on with what it has; a front end
//! that starts anew subscribes to the events again and asks for its nodes' allocations again.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use channel::Outlet;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;
use udpsock::Sent;
use wire::control::ToNode;

use crate::server::plane::{ChannelId, Config, Event, Input, Stats};

mod line;
mod run;
mod socket;

use line::Bell;
pub use line::Inlet;
pub use socket::bind;

/// Commands that wait for the thread. Senders wait beyond that, so a burst of requests slows those who make it.
const COMMANDS: usize = 1024;

/// Events that wait for a subscriber. Beyond that they wait in the data plane, which has a cap of its own.
const EVENTS: usize = 1024;

/// Counters of the whole: what the data plane decided, and what the sockets made of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Of the data plane.
    pub plane: Stats,
    /// Datagrams that were dropped because a socket's buffer was full.
    pub full: u64,
    /// Datagrams that the kernel refused to send, mostly for want of a route.
    pub send_errors: u64,
    /// Receptions that failed.
    pub receive_errors: u64,
    /// Packets that were dropped because a channel's lane was full: its node reads slowly, or its path is slow.
    pub slow: u64,
    /// Packets that were dropped because their channel had just ended.
    pub unreachable: u64,
}

impl Snapshot {
    /// What became of what was handed to a socket.
    fn add(&mut self, sent: Sent) {
        self.full += sent.full as u64;
        self.send_errors += sent.errors as u64;
    }
}

enum Command {
    Input(Input),
    /// What goes to this channel goes in here.
    Open(ChannelId, Outlet<ToNode>),
    Subscribe(mpsc::Sender<Event>),
}

/// The running data plane. Dropping it ends the thread and closes the ports.
#[derive(Debug)]
pub struct Forwarder {
    control: Control,
    stop: Arc<EventFd>,
    snapshot: Arc<Mutex<Snapshot>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Speaks to the data plane.
#[derive(Debug, Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    bell: Arc<Bell>,
    inlet: Arc<Inlet>,
    /// How many channels were named.
    named: Arc<AtomicU64>,
}

/// The data plane has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay's data plane has ended")]
pub struct Ended;

impl Forwarder {
    /// Opens the ports of `config` on all addresses of this host and starts. The seed comes from a CSPRNG, fresh for every call.
    ///
    /// # Errors
    /// When a port is taken, or the system is out of descriptors or threads.
    pub fn start(config: Config, seed: [u8; 32]) -> io::Result<Self> {
        let sockets = bind(&config)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(Bell::new(EventFd::from_flags(flags)?));
        let (inlet, lines) = line::lines(Arc::clone(&bell));
        let stop = Arc::new(EventFd::from_flags(flags)?);
        let snapshot = Arc::default();
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let signals = run::Signals { bell: Arc::clone(&bell), stop: Arc::clone(&stop), inbox, lines };
        let run = run::Run::new(config, seed, sockets, signals, Arc::clone(&snapshot))?;
        let thread = std::thread::Builder::new().name("relay-udp".into()).spawn(move || run.run())?;
        let control = Control { commands, bell, inlet: Arc::new(inlet), named: Arc::default() };
        Ok(Self { control, stop, snapshot, thread: Some(thread) })
    }

    /// A handle to speak to it.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Counters, at most one turn of the thread old.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the thread has ended, which it does by itself only if its sockets fail for good.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // Fails only when the counter is at its end, and then the thread is awake.
        let _ = self.stop.write(1);
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => tracing::error!("the data plane had panicked"),
            Some(Ok(Err(error))) => tracing::error!(%error, "the data plane had failed"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

impl Control {
    /// Hands over what the data plane is to know. Inputs take effect in the order in which they are sent.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub async fn send(&self, input: Input) -> Result<(), Ended> {
        self.command(Command::Input(input)).await
    }

    /// A number for a channel, which was given to none before, in no life of whoever holds them.
    #[must_use]
    pub fn name_channel(&self) -> ChannelId {
        ChannelId(self.named.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Says where packets for this channel go, until it is detached.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub async fn open(&self, channel: ChannelId, outlet: Outlet<ToNode>) -> Result<(), Ended> {
        self.command(Command::Open(channel, outlet)).await
    }

    /// Where packets of one more channel go in.
    #[must_use]
    pub fn inlet(&self) -> Inlet {
        self.inlet.another()
    }

    /// The events from now on; those that nobody took until then come first. The subscriber before gets no more, and its channels are
    /// legs no more.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub async fn subscribe(&self) -> Result<mpsc::Receiver<Event>, Ended> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.command(Command::Subscribe(sender)).await?;
        Ok(receiver)
    }

    async fn command(&self, command: Command) -> Result<(), Ended> {
        self.commands.send(command).await.map_err(|_| Ended)?;
        self.bell.ring();
        Ok(())
    }
}

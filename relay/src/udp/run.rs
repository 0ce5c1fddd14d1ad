//! The thread: waits, reads the port whose turn it is, asks the data plane, sends.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc;
use udpsock::{Outgoing, Received, Receiver, SLOTS};

use super::line::{Bell, Lines};
use super::socket::PortSocket;
use super::{Command, Snapshot};
use crate::server::plane::{Arrival, Config, End, Event, Forward, Input, Kept, Plane, Schedule, Transmit};

/// What epoll says of the two that are no port.
const WAKE: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

/// Ports that epoll tells of with one call.
const READY: usize = 64;

/// Reads before commands, timers and other ports are looked at again.
const TURNS: usize = 16;

/// Commands taken before ports have their turn again.
const COMMANDS: usize = 64;

/// How soon events are offered again when nobody takes them.
const OFFER_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Signals {
    pub(super) bell: Arc<Bell>,
    pub(super) stop: Arc<EventFd>,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) lines: Lines,
}

pub(super) struct Run {
    plane: Plane,
    sockets: Vec<PortSocket>,
    schedule: Schedule,
    receiver: Receiver,
    received: Vec<Received>,
    /// Each with the place in `received` of what it sends on.
    forwards: Vec<(usize, Forward)>,
    epoll: Epoll,
    signals: Signals,
    subscriber: Option<mpsc::Sender<Event>>,
    counters: Snapshot,
    snapshot: Arc<Mutex<Snapshot>>,
}

impl Run {
    pub(super) fn new(
        config: Config,
        seed: [u8; 32],
        sockets: Vec<PortSocket>,
        signals: Signals,
        snapshot: Arc<Mutex<Snapshot>>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (index, port) in (0u64..).zip(&sockets) {
            epoll.add(&port.socket, EpollEvent::new(EpollFlags::EPOLLIN, index))?;
        }
        epoll.add(signals.bell.event(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        epoll.add(&*signals.stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let schedule = Schedule::new(sockets.len() as u16);
        Ok(Self {
            plane: Plane::new(config, seed, Instant::now()),
            sockets,
            schedule,
            receiver: Receiver::new(),
            received: Vec::with_capacity(SLOTS),
            forwards: Vec::new(),
            epoll,
            signals,
            subscriber: None,
            counters: Snapshot::default(),
            snapshot,
        })
    }

    pub(super) fn run(mut self) -> io::Result<()> {
        while self.wait()? {
            self.take_commands();
            self.plane.handle_timeout(Instant::now());
            for _ in 0..TURNS {
                let Some(port) = self.schedule.turn() else { break };
                self.serve(port)?;
            }
            self.signals.lines.serve(&mut self.plane, &mut self.sockets, &mut self.counters);
            self.send_kept();
            self.offer_events();
            self.counters.plane = self.plane.stats();
            *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = self.counters;
        }
        Ok(())
    }

    /// Waits for something to do, not at all if there is something. `false` when told to stop.
    fn wait(&mut self) -> io::Result<bool> {
        let mut ready = [EpollEvent::empty(); READY];
        self.signals.bell.lie_down();
        let timeout = self.timeout(Instant::now());
        let waited = self.epoll.wait(&mut ready, timeout);
        self.signals.bell.get_up();
        let count = match waited {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &ready[..count] {
            match event.data() {
                STOP => return Ok(false),
                WAKE => {
                    // Reading resets it; it can't fail but by being reset already.
                    let _ = self.signals.bell.event().read();
                }
                port => self.schedule.ready(port as u16),
            }
        }
        Ok(true)
    }

    fn timeout(&mut self, now: Instant) -> EpollTimeout {
        if self.schedule.turn().is_some() || !self.signals.inbox.is_empty() || !self.signals.lines.is_empty() {
            return EpollTimeout::ZERO;
        }
        let Some((at, _)) = self.plane.poll_timeout() else { return EpollTimeout::NONE };
        // What is still queued after a turn is events that nobody takes: no reason to spin.
        let wait = at.saturating_duration_since(now).max(if at <= now { OFFER_AGAIN } else { Duration::ZERO });
        // Rounded up, or the last millisecond is spent spinning.
        let millis = u32::try_from(wait.as_millis() + 1).unwrap_or(u32::MAX);
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    fn take_commands(&mut self) {
        for _ in 0..COMMANDS {
            match self.signals.inbox.try_recv() {
                Ok(Command::Input(input)) => self.take_input(input),
                Ok(Command::Open(channel, outlet)) => self.signals.lines.open(channel, outlet),
                Ok(Command::Subscribe(subscriber)) => {
                    self.take_input(Input::DetachAll);
                    self.subscriber = Some(subscriber);
                }
                Err(_) => return,
            }
        }
    }

    fn take_input(&mut self, input: Input) {
        match input {
            Input::Detach { channel, .. } => self.signals.lines.close(channel),
            Input::DetachAll => self.signals.lines.close_all(),
            _ => {}
        }
        self.plane.handle_input(input, Instant::now());
    }

    /// Events wait while there is no room for them, or nobody.
    fn offer_events(&mut self) {
        let Some(subscriber) = &self.subscriber else { return };
        if subscriber.is_closed() {
            // The front end is no more, and with it all channels. Its successor subscribes.
            self.subscriber = None;
            return self.take_input(Input::DetachAll);
        }
        while let Ok(room) = subscriber.try_reserve() {
            let Some(event) = self.plane.poll_event() else { return };
            room.send(event);
        }
    }

    /// Reads a port once and sends what is to be sent.
    fn serve(&mut self, port: u16) -> io::Result<()> {
        let Some(PortSocket { socket, sender }) = self.sockets.get_mut(usize::from(port)) else { return Ok(()) };
        self.received.clear();
        match self.receiver.receive(socket.as_raw_fd(), &mut self.received) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.schedule.served(port, 0, 0, true);
                return Ok(());
            }
            Err(error) if is_passing(&error) => {
                self.counters.receive_errors += 1;
                self.schedule.served(port, 1, 0, false);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let now = Instant::now();
        let (mut datagrams, mut bytes) = (0, 0);
        self.forwards.clear();
        let mut out = Vec::new();
        for (index, message) in self.received.iter().enumerate() {
            datagrams += message.data.len().div_ceil(message.segment);
            bytes += message.data.len();
            let Received { data, segment, from, local, .. } = message;
            let arrival = Arrival { port, source: *from, local: *local, data, segment: *segment };
            self.plane.handle_arrival(&arrival, now, &mut out);
            self.forwards.extend(out.drain(..).map(|forward| (index, forward)));
        }
        let transmits: Vec<Transmit> = std::iter::from_fn(|| self.plane.poll_transmit()).collect();
        let mut outgoing = Vec::with_capacity(self.forwards.len() + transmits.len());
        for (index, Forward { to, allocation, range, segment }) in &self.forwards {
            let data = &self.received[*index].data[range.clone()];
            match to {
                End::Address(to) => {
                    outgoing.push(Outgoing { to: to.remote, local: to.local, data, segment: *segment });
                }
                End::Channel(channel) => {
                    let packets = data.chunks(*segment).map(|packet| (*allocation, packet));
                    self.signals.lines.send(*channel, packets, &mut self.counters);
                }
            }
        }
        // Relay messages answer what came to this port, so they leave by it too.
        outgoing.extend(transmits.iter().map(|Transmit { to, message, .. }| Outgoing {
            to: to.remote,
            local: to.local,
            data: message,
            segment: message.len(),
        }));
        self.counters.add(sender.send(socket, &outgoing));
        // Fewer messages than there was room for: nothing is left. If more has come since, epoll says so.
        self.schedule.served(port, datagrams, bytes, self.received.len() < SLOTS);
        Ok(())
    }

    /// Sends what was kept for a leg that has just been bound.
    fn send_kept(&mut self) {
        while let Some(Kept { to, port, allocation, message }) = self.plane.poll_kept() {
            match to {
                End::Address(to) => {
                    let Some(PortSocket { socket, sender }) = self.sockets.get_mut(usize::from(port)) else { continue };
                    let data: &[u8] = &*message;
                    let outgoing = Outgoing { to: to.remote, local: to.local, data, segment: data.len() };
                    self.counters.add(sender.send(socket, &[outgoing]));
                }
                End::Channel(channel) => {
                    self.signals.lines.send(channel, [(allocation, &message[..])], &mut self.counters);
                }
            }
        }
    }
}

/// Errors of one moment, after which the socket goes on.
fn is_passing(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionRefused, io::ErrorKind::OutOfMemory];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

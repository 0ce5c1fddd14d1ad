//! Packets of nodes whose legs are channels: in by a bounded queue, out by each channel's own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Instant;

use channel::{Outlet, Packets};
use nix::sys::eventfd::EventFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use udpsock::{Outgoing, Run};
use wire::control::ToNode;
use wire::relay::AllocationId;

use super::socket::PortSocket;
use super::{Ended, Snapshot};
use crate::server::plane::{Carried, ChannelId, Destination, End, Onward, Plane};

/// Turns of channels that wait for the thread, each at most [`channel::PACKETS_COST`]. Beyond that a channel is not read.
const TURNS: usize = 64;

/// Turns of one channel that wait: while the thread works on one the next is read. More would be packets that nobody could write in the
/// meantime, because the thread that reads channels writes them too.
const TURNS_OF_ONE: usize = 2;

/// Turns of channels that are served before ports have theirs again.
const SERVED: usize = 16;

/// Packets that came by one channel together.
#[derive(Debug)]
pub(super) struct Load {
    channel: ChannelId,
    packets: Packets,
    /// Held until they are passed on.
    _turn: OwnedSemaphorePermit,
}

/// Wakes the thread, if it sleeps.
#[derive(Debug)]
pub(super) struct Bell {
    event: EventFd,
    is_asleep: AtomicBool,
}

impl Bell {
    pub(super) const fn new(event: EventFd) -> Self {
        Self { event, is_asleep: AtomicBool::new(false) }
    }

    pub(super) const fn event(&self) -> &EventFd {
        &self.event
    }

    /// The thread is about to sleep. What it looks at after this is not missed.
    pub(super) fn lie_down(&self) {
        self.is_asleep.store(true, Ordering::SeqCst);
        // Either this side sees what was handed over before the bell, or the other sees that it sleeps.
        fence(Ordering::SeqCst);
    }

    pub(super) fn get_up(&self) {
        self.is_asleep.store(false, Ordering::SeqCst);
    }

    pub(super) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.is_asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is at its end, and then the thread is awake.
            let _ = self.event.write(1);
        }
    }
}

/// Where packets of one channel go in.
#[derive(Debug)]
pub struct Inlet {
    loads: mpsc::Sender<Load>,
    bell: Arc<Bell>,
    turns: Arc<Semaphore>,
}

impl Inlet {
    /// The same for another channel.
    pub(super) fn another(&self) -> Self {
        Self { loads: self.loads.clone(), bell: Arc::clone(&self.bell), turns: Arc::new(Semaphore::new(TURNS_OF_ONE)) }
    }

    /// Hands over what came by a channel, once there is room: each channel waits for its turn, and until the turns before are passed on.
    ///
    /// # Errors
    /// When the data plane has ended.
    pub async fn carry(&self, channel: ChannelId, packets: Packets) -> Result<(), Ended> {
        let _turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Ended)?;
        self.loads.send(Load { channel, packets, _turn }).await.map_err(|_| Ended)?;
        self.bell.ring();
        Ok(())
    }
}

/// The thread's end of it.
#[derive(Debug)]
pub(super) struct Lines {
    loads: mpsc::Receiver<Load>,
    outlets: BTreeMap<ChannelId, Outlet<ToNode>>,
}

pub(super) fn lines(bell: Arc<Bell>) -> (Inlet, Lines) {
    let (sender, loads) = mpsc::channel(TURNS);
    let turns = Arc::new(Semaphore::new(TURNS_OF_ONE));
    (Inlet { loads: sender, bell, turns }, Lines { loads, outlets: BTreeMap::new() })
}

/// The index of a port, and where packets go from there.
type From = (u16, Destination);

impl Lines {
    pub(super) fn open(&mut self, channel: ChannelId, outlet: Outlet<ToNode>) {
        self.outlets.insert(channel, outlet);
    }

    pub(super) fn close(&mut self, channel: ChannelId) {
        self.outlets.remove(&channel);
    }

    pub(super) fn close_all(&mut self) {
        self.outlets.clear();
    }

    /// Whether something waits.
    pub(super) fn is_empty(&self) -> bool {
        self.loads.is_empty()
    }

    /// Sends packets out by a channel.
    pub(super) fn send<'a>(
        &self,
        channel: ChannelId,
        packets: impl IntoIterator<Item = (AllocationId, &'a [u8])> + Clone,
        counters: &mut Snapshot,
    ) {
        match self.outlets.get(&channel).map(|outlet| outlet.offer(packets.clone())) {
            Some(Ok(dropped)) => counters.slow += dropped as u64,
            // The channel is about to be detached.
            Some(Err(_)) | None => counters.unreachable += packets.into_iter().count() as u64,
        }
    }

    /// Takes what waits, and sends it on.
    pub(super) fn serve(&mut self, plane: &mut Plane, sockets: &mut [PortSocket], counters: &mut Snapshot) {
        for _ in 0..SERVED {
            let Ok(load) = self.loads.try_recv() else { return };
            self.pass(&load, plane, sockets, counters);
        }
    }

    fn pass(&self, load: &Load, plane: &mut Plane, sockets: &mut [PortSocket], counters: &mut Snapshot) {
        let now = Instant::now();
        let mut runs: Vec<Run<From>> = Vec::new();
        let mut to_channels: BTreeMap<ChannelId, Vec<(AllocationId, &[u8])>> = BTreeMap::new();
        let bytes = load.packets.bytes();
        for (allocation, range) in load.packets.ranges() {
            let packet = &bytes[range.clone()];
            let carried = Carried { channel: load.channel, allocation, packet };
            match plane.handle_carried(&carried, now) {
                Some(Onward { to: End::Channel(to), .. }) => {
                    to_channels.entry(to).or_default().push((allocation, packet))
                }
                Some(Onward { to: End::Address(to), port }) => Run::append(&mut runs, (port, to), range),
                None => {}
            }
        }
        for (channel, packets) in &to_channels {
            self.send(*channel, packets.iter().copied(), counters);
        }
        for together in runs.chunk_by(|one, next| one.owner.0 == next.owner.0) {
            let port = usize::from(together[0].owner.0);
            let Some(PortSocket { socket, sender }) = sockets.get_mut(port) else { continue };
            let outgoing = together.iter().map(|Run { owner: (_, to), range, segment }| Outgoing {
                to: to.remote,
                local: to.local,
                data: &bytes[range.clone()],
                segment: *segment,
            });
            let outgoing: Vec<_> = outgoing.collect();
            counters.add(sender.send(socket, &outgoing));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use super::*;

    async fn is_ready<F: Future>(mut future: Pin<&mut F>) -> bool {
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn a_channel_is_read_no_further_while_its_turns_wait_and_others_are() {
        let (inlet, mut lines) = lines(Arc::new(Bell::new(EventFd::new().unwrap())));
        let (one, other) = (inlet.another(), inlet.another());
        let (first, second) = (ChannelId(1), ChannelId(2));
        for _ in 0..TURNS_OF_ONE {
            one.carry(first, Packets::default()).await.unwrap();
        }
        let mut next = pin!(one.carry(first, Packets::default()));
        assert!(!is_ready(next.as_mut()).await);
        other.carry(second, Packets::default()).await.unwrap();
        let passed_on = lines.loads.try_recv().unwrap();
        assert!(!is_ready(next.as_mut()).await, "it is taken, and not passed on yet");
        drop(passed_on);
        assert!(is_ready(next.as_mut()).await);
    }
}

//! Room for what waits to be written, shared by all channels of a relay.
//!
//! Who does not read costs what its lanes and its messages hold, and a thousand of those a thousand times that. So all channels that came in by
//! one listener have one room for packets and one for messages. When one is nearly full, whoever holds more than its share of it and has read
//! nothing for a while gives way, so that whoever reads loses nothing and waits for nobody: with its oldest packets, or, since messages are
//! never dropped, with the channel. Only where that is not enough, whoever holds most does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::queue::Queue;

/// Bytes that wait for all channels of a relay: full lanes of 64 channels, and a quarter of the memory that the chart gives a relay.
pub const ROOM_LEN: usize = 64 * 1024 * 1024;

/// Bytes of messages that wait for all channels of a relay: full queues of 128 channels, and an eighth of that memory.
pub const MESSAGES_LEN: usize = 32 * 1024 * 1024;

/// Channels are told apart from memory that is gone whenever there are this many more.
const PRUNE: usize = 64;

/// What all channels together may hold, and who they are.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) packets: Account,
    pub(crate) messages: Account,
    channels: Mutex<Channels>,
}

/// What is held of one sort, in bytes.
#[derive(Debug)]
pub(crate) struct Account {
    length: usize,
    /// What is held, what is being written included.
    taken: AtomicUsize,
    /// Channels that hold any.
    holders: AtomicUsize,
    /// What was taken since it was last swept.
    fresh: AtomicUsize,
}

#[derive(Debug, Default)]
struct Channels {
    all: Vec<Weak<Queue>>,
    prune_at: usize,
    /// Who is looked at next.
    next: usize,
}

/// Who gives up what is more than its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victims {
    /// Who holds something and reads nothing.
    Idle,
    /// Everybody.
    All,
}

impl Room {
    /// One with so many bytes for packets, and as many for messages as there are.
    pub(crate) fn new(packets: usize) -> Arc<Self> {
        Self::of(packets, MESSAGES_LEN)
    }

    pub(crate) fn of(packets: usize, messages: usize) -> Arc<Self> {
        let (packets, messages) = (Account::new(packets), Account::new(messages));
        Arc::new(Self { packets, messages, channels: Mutex::default() })
    }

    /// Makes a channel's queue known here.
    pub(crate) fn enter(&self, queue: &Arc<Queue>) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.all.len() >= channels.prune_at {
            channels.all.retain(|queue| queue.strong_count() > 0);
            channels.prune_at = channels.all.len() * 2 + PRUNE;
        }
        channels.all.push(Arc::downgrade(queue));
    }

    /// Takes packets back from those who hold more than their share, if their room is nearly full. Returns how many. Nobody's lock may be held.
    pub(crate) fn make_room(&self) -> usize {
        let give_up = |queue: &Queue, victims, share| queue.give_up(victims, share);
        self.make_room_in(&self.packets, give_up)
    }

    /// Ends channels that hold more messages than their share, if the room for those is nearly full. Returns how many. Nobody's lock may be held.
    pub(crate) fn make_room_for_messages(&self) -> usize {
        let end = |queue: &Queue, victims, share| usize::from(queue.end_for_messages(victims, share));
        self.make_room_in(&self.messages, end)
    }

    fn make_room_in(&self, account: &Account, give_way: impl Fn(&Queue, Victims, usize) -> usize) -> usize {
        if !account.is_tight() {
            return 0;
        }
        // Somebody else may be at it.
        self.channels.try_lock().map_or(0, |mut channels| sweep(account, &mut channels, give_way))
    }
}

/// Goes round until enough is free for a while, and no further: forwarding waits for this.
fn sweep(account: &Account, channels: &mut Channels, give_way: impl Fn(&Queue, Victims, usize) -> usize) -> usize {
    account.fresh.store(0, Ordering::Relaxed);
    let holders = account.holders();
    let enough = account.taken().saturating_sub(account.length / 16);
    let mut count = 0;
    let rounds = [(Victims::Idle, account.length / 4 / holders), (Victims::All, account.length / 2 / holders)];
    for (victims, share) in rounds {
        for _ in 0..channels.all.len() {
            channels.next = (channels.next + 1) % channels.all.len();
            if let Some(queue) = channels.all[channels.next].upgrade() {
                count += give_way(&queue, victims, share);
            }
            if account.taken() <= enough {
                return count;
            }
        }
    }
    count
}

impl Account {
    const fn new(length: usize) -> Self {
        let (taken, holders, fresh) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        Self { length, taken, holders, fresh }
    }

    /// Takes so many bytes for a channel that holds `held`, if they fit in.
    pub(crate) fn take(&self, held: &mut usize, bytes: usize) -> bool {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.length);
        if self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return false;
        }
        if *held == 0 && bytes > 0 {
            self.holders.fetch_add(1, Ordering::Relaxed);
        }
        *held += bytes;
        self.fresh.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Takes back what a channel holds no longer: it holds `left`, which is no more than before.
    pub(crate) fn give(&self, held: &mut usize, left: usize) {
        let left = left.min(*held);
        if left == *held {
            return;
        }
        if left == 0 {
            self.holders.fetch_sub(1, Ordering::Relaxed);
        }
        self.taken.fetch_sub(*held - left, Ordering::Relaxed);
        *held = left;
    }

    /// Bytes that a channel may have under way at once: nobody can take those back, so together they stay far below the room.
    pub(crate) fn write_len(&self) -> usize {
        self.length / 8 / self.holders()
    }

    /// Bytes that are held.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Nearly full, and more than a little was taken since that was last so: where there is nothing to take back, it is not looked for each time.
    fn is_tight(&self) -> bool {
        self.taken() > self.length / 8 * 7 && self.fresh.load(Ordering::Relaxed) >= self.length / 256
    }

    fn holders(&self) -> usize {
        self.holders.load(Ordering::Relaxed).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::control::ToNode;
    use wire::relay::AllocationId;

    /// A full packet of WireGuard's that says its number.
    fn packet(number: u32) -> Vec<u8> {
        let mut packet = vec![0; 1452];
        packet[0] = 4;
        packet[16..20].copy_from_slice(&number.to_be_bytes());
        packet
    }

    /// Offers packets of these numbers, spread over a dozen pairs. Returns how many were dropped, whoever's they were.
    fn offer(queue: &Queue, numbers: std::ops::Range<u32>) -> usize {
        let packets: Vec<_> = numbers.map(|number| (AllocationId(u64::from(number % 12)), packet(number))).collect();
        queue.offer::<ToNode>(packets.iter().map(|(of, packet)| (*of, &packet[..]))).unwrap()
    }

    /// The numbers of everything that is written until nothing waits.
    async fn read(queue: &Queue) -> Vec<u32> {
        let mut numbers = Vec::new();
        while queue.waits() {
            let bytes = queue.take().await.unwrap();
            let frames = bytes.chunks_exact(packet(0).len() + crate::queue::FRAME_HEAD);
            let of = |frame: &[u8]| frame[crate::queue::FRAME_HEAD + 16..][..4].try_into().unwrap();
            numbers.extend(frames.map(|frame| u32::from_be_bytes(of(frame))));
        }
        numbers.sort_unstable();
        numbers
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_who_do_not_read_stay_within_the_room_and_who_reads_loses_nothing() {
        let room = Room::new(ROOM_LEN);
        let slow: Vec<Arc<Queue>> = (0..1000).map(|_| Queue::new(&room)).collect();
        let quick = Queue::new(&room);
        // Each would hold a mebibyte.
        for round in 0..24 {
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
            for (at, queue) in slow.iter().enumerate() {
                if at % 100 == 0 {
                    offer(&quick, 0..32);
                    assert_eq!(read(&quick).await, (0..32).collect::<Vec<_>>());
                }
                // A writer that nobody reads from has taken its last.
                if round == 12 {
                    queue.take().await.unwrap();
                }
                offer(queue, round * 32..(round + 1) * 32);
                assert!(room.packets.taken() <= ROOM_LEN);
            }
        }
        let held: usize = slow.iter().chain([&quick]).map(|queue| queue.held()).sum();
        assert_eq!(room.packets.taken(), held, "what is taken is what is there");
        assert!(held > ROOM_LEN / 2, "the room is used: {held}");
        // Who reads after all has some of the newest.
        for queue in &slow {
            assert!(read(queue).await.last() >= Some(&(23 * 32)));
        }
    }

    #[tokio::test]
    async fn those_who_hold_much_give_up_for_those_who_come_later() {
        let room = Room::new(ROOM_LEN);
        // They have filled the room and nothing comes for them any more, so they would keep it.
        let first: Vec<Arc<Queue>> = (0..64).map(|_| Queue::new(&room)).collect();
        first.iter().for_each(|queue| _ = offer(queue, 0..768));
        let later: Vec<Arc<Queue>> = (0..64).map(|_| Queue::new(&room)).collect();
        for queue in &later {
            offer(queue, 0..64);
            assert_eq!(read(queue).await, (0..64).collect::<Vec<_>>(), "nothing of what fits into its share is lost");
            offer(queue, 0..64);
        }
        assert!(room.packets.taken() <= ROOM_LEN);
    }

    fn signal() -> ToNode {
        ToNode::Signal { from: wire::key::PublicKey::from_bytes([1; 32]), bytes: vec![0; 1024] }
    }

    /// Says something to everybody until nobody has room for more. Returns who ended.
    fn fill(queues: &[Arc<Queue>], room: &Room) -> usize {
        let mut ended = vec![false; queues.len()];
        for _ in 0..crate::QUEUE_LEN / 1200 {
            for (queue, ended) in queues.iter().zip(&mut ended) {
                // As a relay does.
                if queue.push(&signal()).is_err() {
                    queue.end();
                    *ended = true;
                }
                assert!(room.messages.taken() <= room.messages.length);
            }
        }
        ended.iter().filter(|ended| **ended).count()
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_do_not_read_messages_stay_within_their_room_and_who_reads_stays() {
        let room = Room::of(ROOM_LEN, 1024 * 1024);
        let quick = Queue::new(&room);
        let mut slow = Vec::new();
        // Each round would fill the room four times over.
        for _ in 0..8 {
            slow.extend((0..16).map(|_| Queue::new(&room)));
            let begun = slow.len() - 16;
            for _ in 0..crate::QUEUE_LEN / 1200 {
                for queue in &slow[begun..] {
                    let _ = queue.push(&signal());
                    assert!(room.messages.taken() <= room.messages.length);
                }
                for _ in 0..2 {
                    quick.push(&signal()).expect("who reads has room");
                }
                assert!(quick.take().await.is_some());
                tokio::time::advance(std::time::Duration::from_millis(10)).await;
            }
        }
        let said: usize = slow.iter().chain([&quick]).map(|queue| queue.said()).sum();
        assert_eq!(room.messages.taken(), said, "what is taken is what is there");
        assert!(said > room.messages.length / 2, "the room is used: {said}");
        let mut left = 0;
        for queue in &slow {
            left += usize::from(queue.push(&signal()) != Err(crate::SendError::Closed));
        }
        assert!((2..64).contains(&left), "{left} of {} channels are left", slow.len());
    }

    #[tokio::test]
    async fn messages_that_come_faster_than_anybody_can_be_found_deaf_end_those_who_hold_most() {
        let room = Room::of(ROOM_LEN, 1024 * 1024);
        let quick = Queue::new(&room);
        let slow: Vec<Arc<Queue>> = (0..16).map(|_| Queue::new(&room)).collect();
        quick.push(&signal()).expect("who holds little has room");
        assert!(fill(&slow, &room) > 8);
        quick.push(&signal()).expect("who holds little goes on");
        slow.iter().for_each(|queue| queue.end());
        assert_eq!(room.messages.taken(), quick.said());
        assert!(quick.take().await.is_some());
        quick.close();
        assert!(quick.take().await.is_none());
        assert_eq!((room.messages.taken(), room.messages.holders.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test]
    async fn what_ended_holds_nothing() {
        let room = Room::new(ROOM_LEN);
        let [closed, ended, gone, read_out] = [(); 4].map(|()| Queue::new(&room));
        for queue in [&closed, &ended, &gone, &read_out] {
            offer(queue, 0..100);
        }
        assert_eq!(room.packets.holders.load(Ordering::Relaxed), 4);
        closed.close();
        ended.take().await.unwrap();
        ended.end();
        drop(gone);
        read(&read_out).await;
        // The last that was taken is under way until the next is.
        read_out.close();
        assert!(read_out.take().await.is_none());
        assert_eq!((room.packets.taken(), room.packets.holders.load(Ordering::Relaxed)), (0, 0));
    }
}

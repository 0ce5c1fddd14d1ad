//! Carries WireGuard's packets over relays' channels, for networks that let no UDP out.
//!
//! # Model
//!
//! WireGuard, the kernel's or the agent's own, sends to an address. For a leg that is a relay's channel the path engine chooses one of
//! 127.77.0.0/16 ([`Event::Carry`](path::Event::Carry)). One UDP socket, bound to the loopback interface, takes what WireGuard sends to any
//! of them; the destination tells the leg. What the relay says for a leg is sent to WireGuard's port from that leg's address, so WireGuard
//! finds its peer where it was told it is.
//!
//! Packets pass beside the loop that owns the mesh: from the socket into the lane that the relay's channel has for the pair, and from the
//! channel's task to the socket. The loop only says which address is which leg.
//!
//! A peer that sleeps has an address as well ([`Event::Await`](path::Event::Await)). What WireGuard sends there is the loop's to hear of
//! ([`Bells`]): it waits for a path.
//!
//! # What it refuses
//!
//! * To take packets from anything but WireGuard's own port on loopback, and anything that is no WireGuard message, in both directions.
//! * To queue. What the channel does not take is dropped, and counted.

mod bells;
mod lane;

pub use bells::{Bells, Call};
pub use lane::{Lane, Outlet};

use channel::Packets;
use lane::LANE_PACKETS;
use path::RelayId;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{io::Interest, net::UdpSocket, task::AbortHandle};
use udpsock::{Outgoing, Received, Receiver, Run, Sender, control};
use wire::{
    key::PublicKey,
    relay::{AllocationId, MAX_FORWARDED_LEN},
};

/// Room in the socket for bursts: WireGuard sends a window of TCP at once, and the channel takes it at its own pace.
const BUFFER: usize = 4 << 20;

/// What was carried, and what was not. Every number only grows.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets and bytes from WireGuard.
    pub sent: Amount,
    /// Packets and bytes to WireGuard.
    pub received: Amount,
    /// Packets that a channel did not take in time, or that no channel was there for.
    pub queue_full: AtomicU64,
    /// Packets of nobody's leg: late ones, mostly.
    pub no_leg: AtomicU64,
    /// Packets that did not come from WireGuard's port, or are no WireGuard messages.
    pub not_wireguard: AtomicU64,
    /// Packets that WireGuard's socket did not take.
    pub not_taken: AtomicU64,
}

/// Packets and their bytes.
#[derive(Debug, Default)]
pub struct Amount {
    /// How many.
    pub packets: AtomicU64,
    /// Bytes of WireGuard's messages.
    pub bytes: AtomicU64,
}

impl Amount {
    fn add(&self, packets: usize, bytes: usize) {
        add(&self.packets, packets);
        add(&self.bytes, bytes);
    }
}

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

/// The carrier of one WireGuard device. It ends when it is dropped.
pub struct Carrier {
    feed: Feed,
    port: u16,
    reader: AbortHandle,
}

/// What an address stands for.
#[derive(Clone)]
enum Stands {
    Leg(Leg),
    Peer(PublicKey),
}

/// The way to WireGuard, for whoever hears what relays say.
#[derive(Clone)]
pub struct Feed(Arc<Shared>);

struct Shared {
    /// To send by.
    socket: Socket,
    /// Where WireGuard takes and sends packets.
    wireguard: SocketAddr,
    legs: RwLock<Legs>,
    bells: Arc<Bells>,
    counters: Counters,
}

#[derive(Default)]
struct Legs {
    by_address: BTreeMap<Ipv4Addr, Stands>,
    by_name: BTreeMap<(RelayId, AllocationId), Ipv4Addr>,
}

#[derive(Clone)]
struct Leg {
    relay: RelayId,
    allocation: AllocationId,
    lane: Arc<Lane>,
}

impl Carrier {
    /// Opens the socket for the device that has this UDP port.
    ///
    /// # Errors
    /// Those of the socket; binding to the loopback interface may take CAP_NET_RAW.
    pub fn open(wireguard: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        // Nothing that comes in by another interface is ever seen, whatever address it claims.
        socket.bind_device(Some(b"lo"))?;
        control::receive_local_address(&socket, false)?;
        control::set_buffers(&socket, BUFFER);
        // Older kernels lack it; then every message is one datagram.
        let _ = control::receive_merged(&socket);
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into())?;
        let port = socket.local_addr()?.as_socket().map_or(0, |addr| addr.port());
        let reading = UdpSocket::from_std(socket.try_clone()?.into())?;
        let shared = Arc::new(Shared {
            socket,
            wireguard: (Ipv4Addr::LOCALHOST, wireguard).into(),
            legs: RwLock::default(),
            bells: Arc::default(),
            counters: Counters::default(),
        });
        let reader = tokio::spawn(read(shared.clone(), reading)).abort_handle();
        Ok(Self { feed: Feed(shared), port, reader })
    }

    /// The port beside every address that stands for a leg.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The way to WireGuard.
    pub fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.feed.0.counters
    }

    /// How many legs are carried.
    pub fn legs(&self) -> usize {
        self.feed.0.read().by_name.len()
    }

    /// What WireGuard has sent to peers that sleep.
    pub fn bells(&self) -> Arc<Bells> {
        self.feed.0.bells.clone()
    }

    /// From now on the address stands for this peer.
    pub fn await_peer(&self, endpoint: SocketAddr, peer: PublicKey) {
        let IpAddr::V4(address) = endpoint.ip() else { return };
        let mut legs = self.feed.0.legs.write().unwrap_or_else(PoisonError::into_inner);
        legs.by_address.insert(address, Stands::Peer(peer));
    }

    /// From now on the address stands for this leg, and its packets go by this lane.
    pub fn carry(&self, endpoint: SocketAddr, relay: RelayId, allocation: AllocationId, lane: Arc<Lane>) {
        let IpAddr::V4(address) = endpoint.ip() else { return };
        let mut legs = self.feed.0.legs.write().unwrap_or_else(PoisonError::into_inner);
        legs.by_name.insert((relay, allocation), address);
        legs.by_address.insert(address, Stands::Leg(Leg { relay, allocation, lane }));
    }

    /// The peer that an address stands for.
    pub fn stands_for(&self, endpoint: SocketAddr) -> Option<PublicKey> {
        let IpAddr::V4(address) = endpoint.ip() else { return None };
        match self.feed.0.read().by_address.get(&address) {
            Some(Stands::Peer(peer)) => Some(*peer),
            _ => None,
        }
    }

    /// The address stands for nothing any more.
    pub fn carry_no_more(&self, endpoint: SocketAddr) {
        let IpAddr::V4(address) = endpoint.ip() else { return };
        let mut legs = self.feed.0.legs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Stands::Leg(leg)) = legs.by_address.remove(&address) {
            legs.by_name.remove(&(leg.relay, leg.allocation));
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Feed {
    /// Hands WireGuard what a relay said for its legs.
    pub fn deliver(&self, relay: RelayId, packets: &Packets) {
        let mut runs: Vec<Run<AllocationId>> = Vec::new();
        packets.ranges().for_each(|(allocation, range)| Run::append(&mut runs, allocation, range));
        for Run { owner, range, segment } in runs {
            self.send(relay, owner, &packets.bytes()[range], segment);
        }
    }

    /// Messages of one size, the last perhaps shorter, one after the other.
    fn send(&self, relay: RelayId, allocation: AllocationId, data: &[u8], segment: usize) {
        let Self(shared) = self;
        let counters = &shared.counters;
        let messages = || data.chunks(segment.max(1));
        // A relay that says anything else may have it all back.
        if !messages().all(wire::stun::is_wireguard) {
            return add(&counters.not_wireguard, messages().count());
        }
        let Some(from) = shared.read().by_name.get(&(relay, allocation)).copied() else {
            return add(&counters.no_leg, messages().count());
        };
        let outgoing = Outgoing { to: shared.wireguard, local: Some(from.into()), data, segment };
        let sent = Sender::new(false).send(&shared.socket, &[outgoing]);
        counters.received.add(sent.sent, data.len().min(segment * sent.sent));
        add(&counters.not_taken, sent.full + sent.errors);
    }
}

impl Shared {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Legs> {
        self.legs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a message was sent to, if it is anything.
    fn addressee(&self, received: &Received) -> Option<Stands> {
        if received.from != self.wireguard {
            add(&self.counters.not_wireguard, 1);
            return None;
        }
        let addressee = match received.local {
            Some(IpAddr::V4(address)) => self.read().by_address.get(&address).cloned(),
            _ => None,
        };
        add(&self.counters.no_leg, usize::from(addressee.is_none()));
        addressee
    }

    /// WireGuard wants to talk to a peer that sleeps.
    fn call(&self, peer: PublicKey, received: &Received) {
        for message in received.data.chunks(received.segment) {
            let fits = wire::stun::is_wireguard(message) && message.len() <= MAX_FORWARDED_LEN;
            if !fits {
                add(&self.counters.not_wireguard, 1);
            } else if !self.bells.ring(peer, message) {
                add(&self.counters.queue_full, 1);
            }
        }
    }

    /// Hands on the datagrams of a message. Returns how many.
    fn take_in(&self, received: &Received) -> usize {
        let leg = match self.addressee(received) {
            Some(Stands::Leg(leg)) => leg,
            Some(Stands::Peer(peer)) => {
                self.call(peer, received);
                return 0;
            }
            None => return 0,
        };
        // One by one: the kernel merges any datagrams of one size and sender.
        let (mut count, mut bytes, mut others) = (0, 0, 0);
        let mut messages = received.data.chunks(received.segment).filter(|message| {
            let fits = wire::stun::is_wireguard(message) && message.len() <= MAX_FORWARDED_LEN;
            if fits {
                count += 1;
                bytes += message.len();
            } else {
                others += 1;
            }
            fits
        });
        let dropped = leg.lane.offer(leg.allocation, &mut messages);
        // Without a channel nobody has looked at them.
        let dropped = dropped.unwrap_or_else(|| messages.count());
        self.counters.sent.add(count, bytes);
        add(&self.counters.not_wireguard, others);
        add(&self.counters.queue_full, dropped);
        count
    }
}

/// Reads what WireGuard sends, until it is aborted.
async fn read(shared: Arc<Shared>, socket: UdpSocket) {
    let mut receiver = Receiver::new();
    let mut received = Vec::new();
    loop {
        let receive = || receiver.receive(socket.as_raw_fd(), &mut received);
        if let Err(error) = socket.async_io(Interest::READABLE, receive).await {
            // A pending error of the socket: it is reported once, and the next call goes on.
            tracing::trace!(%error, "receive failed");
        }
        let mut taken = 0;
        for message in received.drain(..) {
            taken += shared.take_in(&message);
            if taken > LANE_PACKETS / 4 {
                // The socket holds more than a lane: whoever writes to the channel has its turn first.
                tokio::task::yield_now().await;
                taken = 0;
            }
        }
    }
}

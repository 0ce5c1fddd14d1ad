//! The thread that receives, opens, and writes to the interface; what isn't WireGuard's goes to
//! whoever shares the port.

mod verify;

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use bytes::BytesMut;
use gotatun::packet::{Packet, WgKind};
use tokio::sync::mpsc;

use super::{
    coalesce::Coalescer,
    ip::IpPacket,
    peer::{Opened, Outbox, Peer},
    shared::{Shared, count},
    tun,
    udp::{Destination, Received, Receiver},
};
use crate::Datagram;
use verify::{Verdict, Verifier};

/// Datagrams that wait for `recv`: a burst of probes from every peer of a middling mesh.
pub(super) const SHARED_QUEUE: usize = 256;

/// Nothing that shares the port is larger: probes and STUN fit into one packet of 1,500 bytes.
const MAX_SHARED: usize = 2048;

pub(super) fn run(shared: &Shared, queue: mpsc::Sender<Datagram>) {
    let mut receiver = Receiver::new();
    let mut received = Vec::new();
    let mut inbound = Inbound {
        shared,
        queue,
        verifier: Verifier::new(shared),
        run: None,
        messages: Vec::new(),
        opened: Vec::new(),
        clear: Vec::new(),
        out: Outbox::default(),
        coalescer: Coalescer::new(shared.tun.udp_offload()),
    };
    while !shared.stop.is_set() {
        match receiver.receive(shared.port.fd(), &mut received) {
            Ok(()) => inbound.batch(&mut received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                shared.stop.wait_readable(shared.port.fd());
            }
            // A pending error of the socket: it is reported once, and the next call goes on.
            Err(error) => tracing::trace!(%error, "receive failed"),
        }
    }
}

/// Consecutive messages of one peer from one place.
struct Run {
    peer: Arc<Peer>,
    from: SocketAddr,
    local: Option<IpAddr>,
    /// The receiver index that its data messages have in common.
    index: Option<u32>,
}

struct Inbound<'a> {
    shared: &'a Shared,
    queue: mpsc::Sender<Datagram>,
    verifier: Verifier<'a>,
    run: Option<Run>,
    messages: Vec<WgKind>,
    opened: Vec<Packet>,
    clear: Vec<Packet>,
    out: Outbox,
    coalescer: Coalescer,
}

impl Inbound<'_> {
    fn batch(&mut self, received: &mut Vec<Received>) {
        for mut message in received.drain(..) {
            // Segment by segment: the kernel merges any datagrams of one size and sender.
            while !message.data.is_empty() {
                let length = message.segment.min(message.data.len());
                let datagram = message.data.split_to(length);
                if wire::stun::is_wireguard(&datagram) {
                    self.message(datagram, message.from, message.local);
                } else if message.interface != self.shared.tun.if_index() {
                    // What comes out of the tunnel is a peer's and not the world's.
                    self.share(&datagram, message.from, message.local);
                }
            }
        }
        self.finish_run();
        self.write();
    }

    fn share(&mut self, payload: &[u8], remote: SocketAddr, local: Option<IpAddr>) {
        let shared = payload.len() <= MAX_SHARED
            && self
                .queue
                .try_reserve()
                .map(|slot| {
                    slot.send(Datagram { remote, local, payload: payload.to_vec() });
                })
                .is_ok();
        count(&self.shared.counters.shared_dropped, u64::from(!shared));
    }

    fn message(&mut self, datagram: BytesMut, from: SocketAddr, local: Option<IpAddr>) {
        match self.verifier.verify(datagram, from) {
            Verdict::Message(message) => self.sort(message, from, local),
            Verdict::Answer(cookie) => {
                let to = Destination { remote: from, local };
                let sent = self.shared.port.send_all(&to, &[cookie], false);
                count(&self.shared.counters.send_errors, sent.errors);
            }
            Verdict::Invalid => count(&self.shared.counters.invalid_messages, 1),
        }
    }

    /// Adds the message to the run it belongs to, or starts another.
    fn sort(&mut self, message: WgKind, from: SocketAddr, local: Option<IpAddr>) {
        let index = match &message {
            WgKind::Data(data) => Some(data.header.receiver_idx.get()),
            _ => None,
        };
        let continues = |run: &Run| run.index == index && run.from == from && run.local == local;
        if index.is_none() || !self.run.as_ref().is_some_and(continues) {
            self.finish_run();
            let Some(peer) = self.verifier.peer(&message) else {
                count(&self.shared.counters.invalid_messages, 1);
                return;
            };
            self.run = Some(Run { peer, from, local, index });
        }
        self.messages.push(message);
    }

    /// Opens the messages of a run under one lock.
    fn finish_run(&mut self) {
        let Some(Run { peer, from, local, .. }) = self.run.take() else {
            return;
        };
        let now = Instant::now();
        let (messages, opened) = (&mut self.messages, &mut self.opened);
        let (invalid, to) = self.shared.with_peer(&peer, now, &mut self.out, |state, out| {
            let mut invalid = 0;
            for message in messages.drain(..) {
                match state.open(message, from, local, now, out) {
                    Opened::Packet(packet) => opened.push(packet),
                    Opened::Nothing => {}
                    Opened::Invalid => invalid += 1,
                }
            }
            invalid
        });
        count(&self.shared.counters.invalid_messages, invalid);
        self.shared.send(&peer, to, &mut self.out, false);
        self.check_sources(&peer);
    }

    /// Keeps the packets whose source is the peer's, without their padding.
    fn check_sources(&mut self, peer: &Arc<Peer>) {
        let mut wrong = 0;
        let mut last = None;
        for mut packet in self.opened.drain(..) {
            let Some(ip) = IpPacket::parse(&packet) else {
                wrong += 1;
                continue;
            };
            if last != Some(ip.source) {
                let owner = self.shared.peers.by_address(ip.source);
                if !owner.is_some_and(|owner| Arc::ptr_eq(&owner, peer)) {
                    wrong += 1;
                    continue;
                }
                last = Some(ip.source);
            }
            packet.truncate(ip.length);
            self.clear.push(packet);
        }
        count(&self.shared.counters.wrong_source, wrong);
    }

    fn write(&mut self) {
        let shared = self.shared;
        self.coalescer.run(&self.clear, |slices: &[IoSlice<'_>]| {
            if let Err(error) = shared.tun.write(slices) {
                count(&shared.counters.interface_errors, 1);
                if tun::is_gone(&error) {
                    shared.halt();
                }
            }
        });
        self.clear.clear();
    }
}

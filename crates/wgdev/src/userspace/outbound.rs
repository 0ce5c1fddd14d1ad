//! The thread that reads the interface, seals, and sends.

use std::{io, sync::Arc, time::Instant};

use bytes::BytesMut;
use gotatun::packet::Packet;

use super::{
    ip::IpPacket,
    peer::{Outbox, Peer},
    shared::{Shared, count},
    split::split,
    tun,
    udp::{Destination, MAX_BYTES, MAX_SEGMENTS},
    vnet,
};

/// What one read can yield: the largest IP packet and the header before it.
const READ: usize = 65_536 + vnet::HEADER_LEN;

/// Bytes that padding and WireGuard's header and tag may add to a packet.
const GROWTH: usize = 48;

pub(super) fn run(shared: &Shared) {
    let mut buffer = vec![0; READ];
    let mut outbound = Outbound { shared, clear: Vec::new(), pending: None, out: Outbox::default() };
    while !shared.stop.is_set() {
        match shared.tun.read(&mut buffer) {
            Ok(length) => outbound.packet(&mut buffer[..length]),
            Err(error) if tun::is_gone(&error) => {
                tracing::error!("the interface was deleted; the device stops");
                shared.halt();
            }
            Err(error) => {
                outbound.flush();
                if error.kind() != io::ErrorKind::Interrupted {
                    shared.stop.wait_readable(shared.tun.fd());
                }
            }
        }
    }
}

struct Outbound<'a> {
    shared: &'a Shared,
    /// Packets of one read; they have one destination.
    clear: Vec<Packet>,
    /// Where the messages in `out` go.
    pending: Option<(Arc<Peer>, Option<Destination>)>,
    out: Outbox,
}

impl Outbound<'_> {
    fn packet(&mut self, read: &mut [u8]) {
        let clear = &mut self.clear;
        clear.clear();
        let whole = split(read, |header, payload| {
            let length = header.len() + payload.len();
            let mut packet = BytesMut::with_capacity(length + GROWTH);
            packet.extend_from_slice(header);
            packet.extend_from_slice(payload);
            clear.push(Packet::from_bytes(packet));
        });
        let destination = clear.first().and_then(|p| IpPacket::destination(p));
        if whole.is_none() || destination.is_none() {
            count(&self.shared.counters.interface_errors, 1);
            return;
        }
        let peer = destination.and_then(|d| self.shared.peers.by_address(d));
        match peer {
            Some(peer) => self.seal(peer),
            None => count(&self.shared.counters.no_peer, self.clear.len() as u64),
        }
    }

    fn seal(&mut self, peer: Arc<Peer>) {
        if let Some((pending, _)) = &self.pending
            && !Arc::ptr_eq(pending, &peer)
        {
            self.flush();
        }
        let now = Instant::now();
        let packets = &mut self.clear;
        let dropped = packets.len() as u64;
        let (sealed, to) = self.shared.with_peer(&peer, now, &mut self.out, |state, out| {
            let reachable = state.endpoint.is_some();
            if reachable {
                state.seal(packets.drain(..), now, out);
            }
            reachable
        });
        if !sealed {
            count(&self.shared.counters.no_endpoint, dropped);
            return;
        }
        // An endpoint that has just moved is where all of them go now.
        self.pending = Some((peer, to));
        self.send_full();
    }

    /// Sends as many messages as fill whole segmented sends; the rest may be joined by the next read.
    fn send_full(&mut self) {
        let packets = &mut self.out.packets;
        let Some(last) = packets.last() else {
            return;
        };
        let per_send = (MAX_BYTES / last.len().max(1)).clamp(1, MAX_SEGMENTS);
        let rest = packets.split_off(packets.len() - packets.len() % per_send);
        if let Some((peer, to)) = &self.pending {
            self.shared.send(peer, *to, &mut self.out, true);
        }
        self.out.packets = rest;
    }

    fn flush(&mut self) {
        if let Some((peer, to)) = self.pending.take() {
            self.shared.send(&peer, to, &mut self.out, true);
        }
    }
}

//! A Linux box that masquerades and lets in whatever comes: connection tracking as the kernel does it.
//!
//! Every pair of sockets is a connection of its own. A new one leaves by the port of the youngest connection from the same source
//! (`find_appropriate_src` of Linux), else by its own port, unless that makes it look like a connection that is there already.
//! A stray packet from outside, which no connection expects, is for the box itself; with no rule that drops it, it leaves a
//! connection behind, and *that* is what our next packet to its sender would look like.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::packet::Packet;
use crate::random::Random;

/// How long a connection lives that has seen packets one way only, or one question and its answer (Linux's `nf_conntrack_udp_timeout`).
const UNREPLIED: Duration = Duration::from_secs(30);
/// What is still used this long after it began lives longer (Linux's `nf_conntrack_udp_timeout_stream`).
const STREAM: Duration = Duration::from_secs(2);

/// Source and destination of packets.
type Tuple = (SocketAddr, SocketAddr);

#[derive(Debug)]
struct Connection {
    /// As the first packet was, before translation.
    original: Tuple,
    /// As answers to it are.
    reply: Tuple,
    replied: bool,
    began: Duration,
    used: Duration,
}

impl Connection {
    fn new(original: Tuple, reply: Tuple, now: Duration) -> Self {
        Self { original, reply, replied: false, began: now, used: now }
    }

    fn is_stream(&self) -> bool {
        self.replied && self.used > self.began + STREAM
    }
}

/// The table of connections.
#[derive(Debug, Default)]
pub(super) struct Connections(Vec<Connection>);

impl Connections {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn expire(&mut self, timeout: Duration, now: Duration) {
        self.0.retain(|known| now - known.used < if known.is_stream() { timeout } else { UNREPLIED });
    }

    /// Translates a packet from inside.
    pub(super) fn outbound(
        &mut self,
        mut packet: Packet,
        box_ip: IpAddr,
        random: &mut Random,
        now: Duration,
    ) -> Packet {
        let original = (packet.src, packet.dst);
        if let Some(known) = self.0.iter_mut().find(|known| known.original == original) {
            known.used = now;
            packet.src = known.reply.1;
            return packet;
        }
        let youngest = self.0.iter().rev().find(|known| known.original.0 == packet.src);
        let mut outside = youngest.map_or(SocketAddr::new(box_ip, packet.src.port()), |known| known.reply.1);
        if self.is_taken((packet.dst, outside)) {
            outside.set_port(packet.src.port());
        }
        while self.is_taken((packet.dst, outside)) {
            outside.set_port(1024 + random.below(60_000) as u16);
        }
        self.0.push(Connection::new(original, (packet.dst, outside), now));
        packet.src = outside;
        packet
    }

    /// Translates an answer from outside. Anything else ends at the box, and is remembered.
    pub(super) fn inbound(&mut self, mut packet: Packet, now: Duration) -> Option<Packet> {
        let tuple = (packet.src, packet.dst);
        if let Some(known) = self.0.iter_mut().find(|known| known.reply == tuple) {
            known.used = now;
            known.replied = true;
            packet.dst = known.original.0;
            return Some(packet);
        }
        match self.0.iter_mut().find(|known| known.original == tuple) {
            Some(stray) => stray.used = now,
            None => self.0.push(Connection::new(tuple, (packet.dst, packet.src), now)),
        }
        None
    }

    fn is_taken(&self, tuple: Tuple) -> bool {
        self.0.iter().any(|known| known.original == tuple || known.reply == tuple)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Payload;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn packet(src: &str, dst: &str) -> Packet {
        Packet::new(src.parse().unwrap(), dst.parse().unwrap(), Payload::Plain(Vec::new()))
    }

    fn send(connections: &mut Connections, dst: &str, now: Duration) -> SocketAddr {
        connections.expire(S(120), now);
        let box_ip = IpAddr::from([198, 51, 100, 1]);
        connections.outbound(packet("10.0.0.2:21820", dst), box_ip, &mut Random::new(1), now).src
    }

    #[test]
    fn a_stray_moves_the_port_towards_its_sender_and_whoever_comes_later_until_it_is_forgotten() {
        let mut box_ = Connections::default();
        let own: SocketAddr = "198.51.100.1:21820".parse().unwrap();
        assert_eq!(send(&mut box_, "192.0.2.9:6", S(0)), own);
        assert_eq!(box_.inbound(packet("192.0.2.9:7", "198.51.100.1:21820"), S(0)), None);
        let moved = send(&mut box_, "192.0.2.9:7", S(1));
        assert_ne!(moved, own);
        assert_eq!(send(&mut box_, "192.0.2.9:8", S(1)), moved, "the port of the youngest");
        assert_eq!(send(&mut box_, "192.0.2.9:6", S(1)), own, "as it was");
        assert_eq!(send(&mut box_, "192.0.2.9:7", S(32)), own, "after half a minute of silence");
    }

    #[test]
    fn whoever_sends_first_keeps_the_port_and_hears_the_answer() {
        let mut box_ = Connections::default();
        let own: SocketAddr = "198.51.100.1:21820".parse().unwrap();
        assert_eq!(send(&mut box_, "192.0.2.9:7", S(0)), own);
        let answer = box_.inbound(packet("192.0.2.9:7", "198.51.100.1:21820"), S(3)).unwrap();
        assert_eq!(answer.dst, "10.0.0.2:21820".parse().unwrap());
        assert_eq!(send(&mut box_, "192.0.2.9:7", S(100)), own);
    }
}

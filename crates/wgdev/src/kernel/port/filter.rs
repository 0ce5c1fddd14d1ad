//! The classic BPF program that picks what is ours out of all UDP datagrams of the host.

use libc::{
    BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH,
    BPF_RET, BPF_W, sock_filter,
};

use wire::relay;

use super::udp::HEADER_LEN;

/// What a datagram of ours starts with, after 4 bytes of its own: the magic cookie of STUN (RFC 8489, section 5).
const MAGIC_COOKIE: u32 = 0x2112_a442;

/// The two bits that are zero in every STUN message.
const NOT_STUN: u32 = 0xc000_0000;

/// WireGuard's reserved bytes, zero in every message of its.
const RESERVED: u32 = 0x00ff_ffff;

/// WireGuard's message types, as the first of 4 bytes.
const FIRST_TYPE: u32 = 1 << 24;
const LAST_TYPE: u32 = 4 << 24;

/// The whole packet.
const ALL: u32 = u32::MAX;

/// Where the program finds the UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Behind an IPv4 header, as raw sockets of that family have it.
    Ipv4Header,
    /// At once, as raw sockets of IPv6 have it.
    Udp,
}

/// Takes nothing. Between `socket` and the first filter a raw socket queues every UDP datagram of the host; with
/// this in place what has queued can be drained without more coming.
pub(super) fn nothing() -> Vec<sock_filter> {
    vec![step(BPF_RET | BPF_K, 0)]
}

/// Takes datagrams for `port` that are a relay's, or STUN and not WireGuard-shaped: what has the shape belongs to
/// WireGuard, even if a receiver index equals the magic cookie.
pub(super) fn shared(port: u16, start: Start) -> Vec<sock_filter> {
    const DESTINATION: u32 = 2;
    const PAYLOAD: u32 = HEADER_LEN as u32;
    let at_udp = match start {
        Start::Ipv4Header => step(BPF_LDX | BPF_MSH | BPF_B, 0),
        Start::Udp => step(BPF_LDX | BPF_W | BPF_IMM, 0),
    };
    let load = |size, offset| step(BPF_LD | size | BPF_IND, offset);
    Program::default()
        .then(at_udp)
        .then(load(BPF_H, DESTINATION))
        .test(BPF_JEQ, port.into(), Next, Reject)
        // Messages of relays, told by their first byte; the length is left to whoever takes merged ones apart.
        .then(load(BPF_B, PAYLOAD))
        .test(BPF_JGT, (*relay::KINDS.end()).into(), Reject, Next)
        .test(BPF_JGE, (*relay::KINDS.start()).into(), Accept, Next)
        .then(load(BPF_W, PAYLOAD + 4))
        .test(BPF_JEQ, MAGIC_COOKIE, Next, Reject)
        .then(load(BPF_W, PAYLOAD))
        .test(BPF_JSET, NOT_STUN, Reject, Next)
        .test(BPF_JSET, RESERVED, Accept, Next)
        .test(BPF_JGT, LAST_TYPE, Accept, Next)
        .test(BPF_JGE, FIRST_TYPE, Reject, Accept)
        .finish()
}

/// Where a test goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Next,
    Accept,
    Reject,
}
use Target::{Accept, Next, Reject};

/// Instructions whose jumps to the end are filled in when the end is known.
#[derive(Default)]
struct Program(Vec<(sock_filter, [Target; 2])>);

impl Program {
    fn then(mut self, step: sock_filter) -> Self {
        self.0.push((step, [Next; 2]));
        self
    }

    fn test(mut self, test: u32, value: u32, when_true: Target, when_false: Target) -> Self {
        self.0.push((step(BPF_JMP | test | BPF_K, value), [when_true, when_false]));
        self
    }

    fn finish(self) -> Vec<sock_filter> {
        let length = self.0.len();
        let resolve = |(at, (mut step, targets)): (usize, (sock_filter, [Target; 2]))| {
            // The two verdicts stand behind the last instruction; jumps count from the one after their own.
            let distance = |target| match target {
                Next => 0,
                Reject => (length - at - 1) as u8,
                Accept => (length - at) as u8,
            };
            [step.jt, step.jf] = targets.map(distance);
            step
        };
        let mut program: Vec<_> = self.0.into_iter().enumerate().map(resolve).collect();
        program.extend([step(BPF_RET | BPF_K, 0), step(BPF_RET | BPF_K, ALL)]);
        program
    }
}

fn step(code: u32, k: u32) -> sock_filter {
    // Only the low 16 bits of a code are ever set.
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::kernel::port::raw;

    const PORT: u16 = 21820;

    /// The kernel's own verdict: a filter sees what a local socket receives from its first byte.
    fn takes(start: Start, packet: &[u8]) -> bool {
        let (sender, receiver) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        raw::attach_filter(&receiver, &shared(PORT, start)).unwrap();
        sender.send(packet).unwrap();
        receiver.set_nonblocking(true).unwrap();
        receiver.recv(&mut [std::mem::MaybeUninit::uninit(); 1]).is_ok()
    }

    fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x0d, 0x96];
        packet.extend(port.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(payload);
        packet
    }

    fn stun(first: [u8; 4]) -> Vec<u8> {
        let mut payload = first.to_vec();
        payload.extend(MAGIC_COOKIE.to_be_bytes());
        payload.resize(40, 0xa5);
        payload
    }

    fn both(port: u16, payload: &[u8]) -> bool {
        let udp = datagram(port, payload);
        let taken = takes(Start::Udp, &udp);
        for words in [5, 6, 15] {
            let mut packet = vec![0; words * 4];
            packet[0] = 0x40 | words as u8;
            packet.extend(&udp);
            assert_eq!(takes(Start::Ipv4Header, &packet), taken, "a header of {words} words");
        }
        taken
    }

    #[test]
    fn stun_for_the_port_is_taken() {
        for first in [[0, 1, 0, 20], [1, 1, 0, 20], [0, 0x11, 0, 20], [0x3f, 0xff, 0, 0], [5, 0, 0, 0], [0; 4]] {
            assert!(both(PORT, &stun(first)), "{first:?}");
        }
    }

    #[test]
    fn messages_of_relays_for_the_port_are_taken_and_none_of_other_kinds() {
        for kind in 0..=u8::MAX {
            let mut payload = [0xa5; relay::MESSAGE_LEN];
            payload[0] = kind;
            assert_eq!(both(PORT, &payload), relay::is_relay(&payload), "{kind:#x}");
            assert!(!both(PORT + 1, &payload), "{kind:#x}");
        }
    }

    #[test]
    fn other_ports_are_left_alone() {
        for port in [PORT - 1, PORT + 1, PORT.swap_bytes(), 53, 0] {
            assert!(!both(port, &stun([0, 1, 0, 20])), "{port}");
        }
    }

    #[test]
    fn wireguards_shape_is_wireguards_even_with_the_cookie() {
        for kind in 1..=4 {
            assert!(!both(PORT, &stun([kind, 0, 0, 0])), "{kind}");
        }
    }

    #[test]
    fn anything_else_is_left_alone() {
        assert!(!both(PORT, &[0; 40]));
        assert!(!both(PORT, &stun([0x40, 1, 0, 20])));
        assert!(!both(PORT, &stun([0x80, 1, 0, 20])));
        // Too short to tell: a load past the end ends the program.
        assert!(!both(PORT, &stun([0, 1, 0, 20])[..7]));
        assert!(!both(PORT, &[]));
    }

    #[test]
    fn nothing_takes_nothing() {
        let (sender, receiver) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        raw::attach_filter(&receiver, &nothing()).unwrap();
        sender.send(&stun([0, 1, 0, 20])).unwrap();
        receiver.set_nonblocking(true).unwrap();
        assert!(receiver.recv(&mut [std::mem::MaybeUninit::uninit(); 1]).is_err());
    }
}

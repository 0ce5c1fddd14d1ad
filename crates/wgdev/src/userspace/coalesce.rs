//! Puts decrypted packets of one flow together, so that the kernel sees few large ones.
//!
//! The counterpart of `split`: a group is a patched header and ranges of the packets it came from; no
//! payload is copied. Only what the kernel's own GRO would merge is merged: TCP segments in sequence
//! with equal headers and plain ACK flags, and UDP datagrams of equal size. The checksum of a packet is
//! verified before it joins a group, because the kernel takes the sum of a group on trust.

use std::{io::IoSlice, mem};

use super::vnet::{Gso, VnetHeader};
use crate::checksum;

/// Packets of one group; the kernel accepts no more UDP segments than this (`UDP_MAX_SEGMENTS`).
const MAX_PARTS: usize = 64;

/// Longest headers of a group: IPv6 without extensions and full TCP options.
const MAX_HEADERS: usize = 100;

/// Groups still open for joining that are looked at per packet; more flows than this are interleaved
/// rarely enough to go unmerged.
const LOOK_BACK: usize = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;

/// What a packet is, if it can be part of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    v6: bool,
    tcp: bool,
    transport: usize,
    headers: usize,
}

struct Group {
    /// `None` when the packet goes out as it is.
    shape: Option<Shape>,
    header: [u8; MAX_HEADERS],
    parts: Vec<usize>,
    segment: usize,
    payload: usize,
    next_sequence: u32,
    open: bool,
    first_verified: bool,
}

/// Groups packets of a batch.
#[derive(Default)]
pub(super) struct Coalescer {
    groups: Vec<Group>,
    used: usize,
    udp: bool,
}

impl Coalescer {
    /// `udp` says whether the interface takes groups of UDP datagrams.
    pub(super) fn new(udp: bool) -> Self {
        Self { udp, ..Self::default() }
    }

    /// Groups the packets and calls `write` for each group, in order of the groups' first packets.
    pub(super) fn run<P: AsRef<[u8]>>(&mut self, packets: &[P], mut write: impl FnMut(&[IoSlice<'_>])) {
        self.used = 0;
        for index in 0..packets.len() {
            self.push(index, packets);
        }
        let mut groups = mem::take(&mut self.groups);
        for group in &mut groups[..self.used] {
            let vnet = group.finish();
            let Some(shape) = group.shape.filter(|_| group.parts.len() > 1) else {
                let packet = packets[group.parts[0]].as_ref();
                write(&[IoSlice::new(&vnet), IoSlice::new(packet)]);
                continue;
            };
            let mut slices = Vec::with_capacity(group.parts.len() + 2);
            slices.push(IoSlice::new(&vnet));
            slices.push(IoSlice::new(&group.header[..shape.headers]));
            let payload = |&i: &usize| IoSlice::new(&packets[i].as_ref()[shape.headers..]);
            slices.extend(group.parts.iter().map(payload));
            write(&slices);
        }
        self.groups = groups;
    }

    fn push<P: AsRef<[u8]>>(&mut self, index: usize, packets: &[P]) {
        let packet = packets[index].as_ref();
        let shape = Shape::of(packet).filter(|shape| shape.tcp || self.udp);
        if let Some(shape) = shape {
            let oldest = self.used.saturating_sub(LOOK_BACK);
            for group in self.groups[oldest..self.used].iter_mut().rev() {
                if !group.same_flow(packet, shape) {
                    continue;
                }
                let first = packets[group.parts[0]].as_ref();
                if group.join(index, packet, shape, first) {
                    return;
                }
                // Later packets of a flow must not overtake earlier ones.
                break;
            }
        }
        if self.used == self.groups.len() {
            self.groups.push(Group::new());
        }
        self.groups[self.used].start(index, packet, shape);
        self.used += 1;
    }
}

impl Shape {
    fn of(packet: &[u8]) -> Option<Self> {
        let (v6, transport, protocol) = match packet.first()? {
            // No options, no fragment, and the length it says.
            0x45 if packet.len() >= 20
                && packet[6] & 0x3f == 0
                && packet[7] == 0
                && word(packet, 2) == packet.len() =>
            {
                (false, 20, packet[9])
            }
            version if version >> 4 == 6 && packet.len() >= 40 && word(packet, 4) + 40 == packet.len() => {
                (true, 40, packet[6])
            }
            _ => return None,
        };
        let body = packet.get(transport..)?;
        let headers = match protocol {
            TCP if body.len() > 20 && body[13] & !TCP_PSH == TCP_ACK => transport + usize::from(body[12] >> 4) * 4,
            UDP if body.len() > 8 && word(body, 6) != 0 && word(body, 4) == body.len() => transport + 8,
            _ => return None,
        };
        let tcp = protocol == TCP;
        let sane = headers < packet.len() && (!tcp || headers >= transport + 20);
        sane.then_some(Self { v6, tcp, transport, headers })
    }

    fn protocol(self) -> u8 {
        if self.tcp { TCP } else { UDP }
    }

    fn checksum_is_right(self, packet: &[u8]) -> bool {
        let length = packet.len() - self.transport;
        let sum = checksum::pseudo_header(packet, self.v6, self.protocol(), length)
            + checksum::sum(&packet[self.transport..]);
        checksum::fold(sum) == 0xffff
    }
}

impl Group {
    fn new() -> Self {
        Self {
            shape: None,
            header: [0; MAX_HEADERS],
            parts: Vec::with_capacity(MAX_PARTS),
            segment: 0,
            payload: 0,
            next_sequence: 0,
            open: false,
            first_verified: false,
        }
    }

    fn start(&mut self, index: usize, packet: &[u8], shape: Option<Shape>) {
        self.shape = shape.filter(|shape| shape.headers <= MAX_HEADERS);
        self.parts.clear();
        self.parts.push(index);
        self.first_verified = false;
        let Some(shape) = self.shape else {
            self.open = false;
            return;
        };
        self.header[..shape.headers].copy_from_slice(&packet[..shape.headers]);
        self.segment = packet.len() - shape.headers;
        self.payload = self.segment;
        self.open = true;
        if shape.tcp {
            let sequence = sequence(packet, shape);
            self.next_sequence = sequence.wrapping_add(self.segment as u32);
            self.open = packet[shape.transport + 13] & TCP_PSH == 0;
        }
    }

    /// Addresses and ports are those of this group.
    fn same_flow(&self, packet: &[u8], shape: Shape) -> bool {
        let addresses = if shape.v6 { 8..40 } else { 12..20 };
        let ports = shape.transport..shape.transport + 4;
        self.shape.is_some_and(|own| own.v6 == shape.v6 && own.tcp == shape.tcp)
            && self.header[addresses.clone()] == packet[addresses]
            && self.header[ports.clone()] == packet[ports]
    }

    fn join(&mut self, index: usize, packet: &[u8], shape: Shape, first: &[u8]) -> bool {
        let payload = packet.len() - shape.headers;
        let fits = self.open
            && self.shape == Some(shape)
            && payload <= self.segment
            && self.parts.len() < MAX_PARTS
            && shape.headers + self.payload + payload <= usize::from(u16::MAX)
            && self.same_headers(packet, shape)
            && shape.checksum_is_right(packet);
        if !fits {
            return false;
        }
        if !self.first_verified {
            if !shape.checksum_is_right(first) {
                return false;
            }
            self.first_verified = true;
        }
        self.parts.push(index);
        self.payload += payload;
        self.next_sequence = self.next_sequence.wrapping_add(payload as u32);
        let pushed = shape.tcp && packet[shape.transport + 13] & TCP_PSH != 0;
        if pushed {
            self.header[shape.transport + 13] |= TCP_PSH;
        }
        self.open = payload == self.segment && !pushed;
        true
    }

    /// Everything in the headers that segments of one super packet have in common.
    fn same_headers(&self, packet: &[u8], shape: Shape) -> bool {
        let own = &self.header;
        let same_ip = if shape.v6 {
            own[..4] == packet[..4] && own[7] == packet[7]
        } else {
            own[1] == packet[1] && own[6] == packet[6] && own[8] == packet[8]
        };
        let at = shape.transport;
        let same_tcp = || {
            own[at + 8..at + 12] == packet[at + 8..at + 12]
                && own[at + 14..at + 16] == packet[at + 14..at + 16]
                && own[at + 20..shape.headers] == packet[at + 20..shape.headers]
                && sequence(packet, shape) == self.next_sequence
        };
        same_ip && (!shape.tcp || same_tcp())
    }

    /// Completes the header of a group of several packets and says what goes before it.
    fn finish(&mut self) -> [u8; super::vnet::HEADER_LEN] {
        let Some(shape) = self.shape.filter(|_| self.parts.len() > 1) else {
            return VnetHeader::PLAIN;
        };
        let (total, at) = (shape.headers + self.payload, shape.transport);
        let header = &mut self.header[..shape.headers];
        if shape.v6 {
            put(header, 4, total - 40);
        } else {
            put(header, 2, total);
            checksum::fill_ipv4(&mut header[..at]);
        }
        let offset = if shape.tcp {
            16
        } else {
            put(header, at + 4, total - at);
            6
        };
        let sum = checksum::pseudo_header(header, shape.v6, shape.protocol(), total - at);
        let unfinished = checksum::fold(sum).to_ne_bytes();
        header[at + offset..at + offset + 2].copy_from_slice(&unfinished);
        let gso = if shape.tcp { Gso::Tcp { v6: shape.v6 } } else { Gso::Udp };
        VnetHeader {
            checksum: Some((at as u16, offset as u16)),
            gso,
            segment: self.segment as u16,
            headers: shape.headers as u16,
        }
        .encode()
    }
}

fn word(packet: &[u8], at: usize) -> usize {
    u16::from_be_bytes([packet[at], packet[at + 1]]).into()
}

fn put(header: &mut [u8], at: usize, value: usize) {
    header[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

fn sequence(packet: &[u8], shape: Shape) -> u32 {
    let at = shape.transport + 4;
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

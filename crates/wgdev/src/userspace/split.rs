//! Cuts what the kernel hands over as one packet into the packets that go on the wire.
//!
//! With offloads on, a read from the TUN interface is up to 64 KiB of one TCP stream or of equal-sized
//! UDP datagrams behind one header, with unfinished checksums. Each segment gets a copy of the header
//! with length, identification, sequence number, flags and checksums of its own.

use super::vnet::{Gso, VnetHeader};
use crate::checksum;

/// Longest headers that can occur: IPv4 or IPv6 with extensions as far as anything sensible has them,
/// and 60 bytes of TCP.
const MAX_HEADERS: usize = 256;

const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Calls `emit` with header and payload of every packet in this read; `None` when it makes no sense.
pub(super) fn split(read: &mut [u8], emit: impl FnMut(&[u8], &[u8])) -> Option<()> {
    let (vnet, packet) = VnetHeader::parse(read)?;
    match vnet.gso {
        Gso::None => whole(vnet, packet, emit),
        Gso::Tcp { v6 } => Segmenter::new(vnet, packet, v6, true)?.run(emit),
        Gso::Udp => Segmenter::new(vnet, packet, packet.first()? >> 4 == 6, false)?.run(emit),
    }
}

fn whole(vnet: VnetHeader, packet: &mut [u8], mut emit: impl FnMut(&[u8], &[u8])) -> Option<()> {
    if let Some((start, offset)) = vnet.checksum {
        let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
        // The field holds the sum of the pseudo header already, so it is summed with the rest.
        let value = checksum::transport(checksum::sum(packet.get(start..)?));
        packet.get_mut(at..at + 2)?.copy_from_slice(&value);
    }
    emit(packet, &[]);
    Some(())
}

struct Segmenter<'a> {
    header: &'a [u8],
    payload: &'a [u8],
    segment: usize,
    transport: usize,
    v6: bool,
    tcp: bool,
}

impl<'a> Segmenter<'a> {
    fn new(vnet: VnetHeader, packet: &'a [u8], v6: bool, tcp: bool) -> Option<Self> {
        let transport = usize::from(vnet.checksum?.0);
        let headers = if tcp { transport + usize::from(packet.get(transport + 12)? >> 4) * 4 } else { transport + 8 };
        let minimum = if v6 { 40 } else { 20 };
        let fits = transport >= minimum && headers <= packet.len().min(MAX_HEADERS);
        let tcp_fits = !tcp || headers >= transport + 20;
        if !fits || !tcp_fits || vnet.segment == 0 {
            return None;
        }
        let (header, payload) = packet.split_at(headers);
        Some(Self { header, payload, segment: vnet.segment.into(), transport, v6, tcp })
    }

    fn run(&self, mut emit: impl FnMut(&[u8], &[u8])) -> Option<()> {
        let mut scratch = [0; MAX_HEADERS];
        let header = &mut scratch[..self.header.len()];
        let last = self.payload.len().div_ceil(self.segment).max(1) - 1;
        for index in 0..=last {
            let from = index * self.segment;
            let to = (from + self.segment).min(self.payload.len());
            let payload = &self.payload[from..to];
            header.copy_from_slice(self.header);
            self.patch_ip(header, payload.len(), index);
            if self.tcp {
                self.patch_tcp(header, from, index == 0, index == last);
            } else {
                let length = header.len() - self.transport + payload.len();
                put(header, self.transport + 4, length);
            }
            self.patch_checksum(header, payload);
            emit(header, payload);
        }
        Some(())
    }

    fn patch_ip(&self, header: &mut [u8], payload: usize, index: usize) {
        let total = header.len() + payload;
        if self.v6 {
            put(header, 4, total - 40);
        } else {
            let id = u16::from_be_bytes([header[4], header[5]]);
            put(header, 2, total);
            put(header, 4, usize::from(id.wrapping_add(index as u16)));
            checksum::fill_ipv4(&mut header[..self.transport]);
        }
    }

    fn patch_tcp(&self, header: &mut [u8], offset: usize, first: bool, last: bool) {
        let tcp = &mut header[self.transport..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let sequence = sequence.wrapping_add(offset as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            tcp[13] &= !(TCP_FIN | TCP_PSH);
        }
        if !first {
            tcp[13] &= !TCP_CWR;
        }
    }

    fn patch_checksum(&self, header: &mut [u8], payload: &[u8]) {
        let (protocol, offset) = if self.tcp { (TCP, 16) } else { (UDP, 6) };
        let at = self.transport + offset;
        header[at..at + 2].fill(0);
        let length = header.len() - self.transport + payload.len();
        // The header's length is even, so the payload starts on a word.
        let sum = checksum::pseudo_header(header, self.v6, protocol, length)
            + checksum::sum(&header[self.transport..])
            + checksum::sum(payload);
        header[at..at + 2].copy_from_slice(&checksum::transport(sum));
    }
}

/// Stores a 16-bit length; a packet is at most 64 KiB, so nothing is cut off.
fn put(header: &mut [u8], at: usize, value: usize) {
    header[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

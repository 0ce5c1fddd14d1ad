//! What `coalesce` puts together, `split` takes apart, and nothing but what belongs together is put
//! together.

use std::io::IoSlice;

use proptest::prelude::*;

use super::{coalesce::Coalescer, split::split, vnet::VnetHeader};
use crate::checksum;

/// A packet to be made.
#[derive(Clone, Copy, Debug)]
struct Spec {
    v6: bool,
    tcp: bool,
    port: u16,
    /// Number of the segment in its flow.
    index: u32,
    payload: usize,
    push: bool,
    /// Breaks the checksum.
    corrupt: bool,
}

/// Payload bytes of a full segment.
const SEGMENT: usize = 100;

fn build(spec: Spec) -> Vec<u8> {
    let (ip, transport) = (if spec.v6 { 40 } else { 20 }, if spec.tcp { 20 } else { 8 });
    let total = ip + transport + spec.payload;
    let mut p = vec![0; total];
    if spec.v6 {
        p[0] = 0x60;
        p[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        p[6] = if spec.tcp { 6 } else { 17 };
        p[7] = 64;
        p[23] = 1;
        p[39] = 2;
    } else {
        p[0] = 0x45;
        p[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        p[4..6].copy_from_slice(&(spec.index as u16).to_be_bytes());
        p[6] = 0x40;
        p[8] = 64;
        p[9] = if spec.tcp { 6 } else { 17 };
        p[12..16].copy_from_slice(&[10, 0, 0, 1]);
        p[16..20].copy_from_slice(&[10, 0, 0, 2]);
        checksum::fill_ipv4(&mut p[..20]);
    }
    p[ip..ip + 2].copy_from_slice(&spec.port.to_be_bytes());
    p[ip + 3] = 80;
    for (i, byte) in p[ip + transport..].iter_mut().enumerate() {
        *byte = (i as u32 * 7 + spec.index) as u8;
    }
    let checksum_at = if spec.tcp {
        let sequence = spec.index * SEGMENT as u32;
        p[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
        p[ip + 12] = 5 << 4;
        p[ip + 13] = 0x10 | if spec.push { 8 } else { 0 };
        ip + 16
    } else {
        let length = (transport + spec.payload) as u16;
        p[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
        ip + 6
    };
    let protocol = if spec.tcp { 6 } else { 17 };
    let sum = checksum::pseudo_header(&p, spec.v6, protocol, total - ip) + checksum::sum(&p[ip..]);
    p[checksum_at..checksum_at + 2].copy_from_slice(&checksum::transport(sum));
    if spec.corrupt {
        p[checksum_at] ^= 0x55;
    }
    p
}

fn coalesce(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    Coalescer::new(true).run(packets, |slices: &[IoSlice<'_>]| {
        written.push(slices.iter().flat_map(|s| s.iter().copied()).collect());
    });
    written
}

fn split_all(written: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for mut write in written {
        let whole = split(&mut write, |header, payload| {
            packets.push([header, payload].concat());
        });
        assert!(whole.is_some(), "a write that can't be read");
    }
    packets
}

fn spec() -> impl Strategy<Value = Spec> {
    let shape = (any::<bool>(), any::<bool>(), 0u16..3);
    let payload = prop_oneof![4 => Just(SEGMENT), 1 => 1..SEGMENT];
    let rare = prop::bool::weighted(0.1);
    (shape, payload, rare, rare).prop_map(|((v6, tcp, port), payload, push, corrupt)| Spec {
        v6,
        tcp,
        port,
        index: 0,
        payload,
        push,
        corrupt,
    })
}

fn flow_of(packet: &[u8]) -> (u8, u8, u8) {
    let v6 = packet[0] >> 4 == 6;
    let (protocol, ports) = if v6 { (packet[6], 40) } else { (packet[9], 20) };
    (packet[0], protocol, packet[ports + 1])
}

#[test]
fn a_full_flow_becomes_one_write() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let packet =
            |index| build(Spec { v6, tcp, port: 1, index, payload: SEGMENT, push: index == 63, corrupt: false });
        let packets: Vec<_> = (0..64).map(packet).collect();
        let written = coalesce(&packets);
        assert_eq!(written.len(), 1, "v6 {v6}, tcp {tcp}");
        assert_eq!(split_all(written), packets, "v6 {v6}, tcp {tcp}");
    }
}

#[test]
fn a_broken_checksum_is_not_mended() {
    let packets: Vec<_> = (0..3)
        .map(|index| {
            build(Spec { v6: false, tcp: true, port: 1, index, payload: SEGMENT, push: false, corrupt: index == 0 })
        })
        .collect();
    let written = coalesce(&packets);
    assert!(written.iter().any(|w| w[VnetHeader::PLAIN.len()..] == packets[0]));
    assert_eq!(split_all(written), packets);
}

#[test]
fn without_udp_offload_datagrams_stay_single() {
    let packet =
        |index| build(Spec { v6: false, tcp: false, port: 1, index, payload: SEGMENT, push: false, corrupt: false });
    let packets: Vec<_> = (0..5).map(packet).collect();
    let mut writes = 0;
    Coalescer::new(false).run(&packets, |_| writes += 1);
    assert_eq!(writes, 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Several flows mixed, with holes, short segments, pushes and broken checksums: every packet
    /// comes out as it went in, and in order within its flow.
    #[test]
    fn no_packet_changes(specs in prop::collection::vec((spec(), prop::bool::weighted(0.9)), 0..150)) {
        let mut next = std::collections::HashMap::new();
        let mut packets = Vec::new();
        for (mut spec, in_sequence) in specs {
            let index = next.entry((spec.v6, spec.tcp, spec.port)).or_insert(0);
            *index += if in_sequence { 0 } else { 1 };
            spec.index = *index;
            *index += 1;
            packets.push(build(spec));
        }
        let mut out = split_all(coalesce(&packets));
        // Groups leave by their first packet, so flows may change places; packets of one may not.
        out.sort_by_key(|p| flow_of(p));
        packets.sort_by_key(|p| flow_of(p));
        for packet in out.iter_mut().chain(&mut packets) {
            hide_identification(packet);
        }
        prop_assert_eq!(out, packets);
    }

    #[test]
    fn no_read_panics(mut read in prop::collection::vec(any::<u8>(), 0..200), gso in 0u8..6) {
        if read.len() > 10 {
            read[0] = 1;
            read[1] = gso;
            read[7] = 0;
            read[6] %= 60;
        }
        let _ = split(&mut read, |_, _| {});
    }
}

/// UDP datagrams that a hole in the sequence keeps apart for TCP merge all the same, with
/// identifications counted anew; with "don't fragment" set they mean nothing (RFC 6864).
fn hide_identification(packet: &mut [u8]) {
    if packet[0] == 0x45 && packet[9] == 17 {
        packet[4..6].fill(0);
        checksum::fill_ipv4(&mut packet[..20]);
    }
}

//! What the kernel need not hand to the watch, as classic BPF: a busy lab moves more packets than a process can read one by one.
//!
//! Left out are WireGuard data packets between addresses that may be seen, and the second and third sight of a packet that the
//! watch has seen when it came in. Everything else passes. Straight-line code: each test is followed by its own return.

use ipnet::IpNet;
use nix::libc;
use socket2::SockFilter;

use super::inspect::Rules;

/// More than any packet has.
const WHOLE: u32 = 0x4_0000;
const NOTHING: u32 = 0;
/// WireGuard's data message as the big-endian word that BPF loads.
const WIREGUARD_DATA: u32 = 0x0400_0000;
/// Fragment offset of IPv4: a later fragment has no UDP header.
const FRAGMENT: u32 = 0x1fff;
const UDP: u32 = 17;

/// The program for these rules; packets that come in by `echoes` are copies of what came in elsewhere.
#[must_use]
pub fn program(rules: &Rules, echoes: &[u32]) -> Vec<SockFilter> {
    let mut code = Vec::new();
    load(&mut code, libc::BPF_B, ancillary(libc::SKF_AD_PKTTYPE));
    ret_if_equal(&mut code, u32::from(libc::PACKET_OUTGOING), NOTHING);
    load(&mut code, libc::BPF_W, ancillary(libc::SKF_AD_IFINDEX));
    for index in echoes {
        ret_if_equal(&mut code, *index, NOTHING);
    }
    let (v4, v6) = (v4(rules), v6());
    load(&mut code, libc::BPF_B, 0);
    code.push(op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 0, 0, 4));
    let skip = u8::try_from(v4.len()).expect("a few networks make a few dozen instructions");
    code.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, 4));
    code.extend(v4);
    ret_unless_equal(&mut code, 6, WHOLE);
    code.extend(v6);
    code
}

fn v4(rules: &Rules) -> Vec<SockFilter> {
    let mut code = Vec::new();
    let nets = rules.inner.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
    for net in nets {
        for at in [12, 16] {
            load(&mut code, libc::BPF_W, at);
            code.push(op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, u32::from(net.netmask())));
            ret_if_equal(&mut code, u32::from(net.network()), WHOLE);
        }
    }
    load(&mut code, libc::BPF_B, 9);
    ret_unless_equal(&mut code, UDP, WHOLE);
    load(&mut code, libc::BPF_H, 6);
    code.push(op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, FRAGMENT));
    code.push(ret(WHOLE));
    code.push(op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0));
    code.push(op(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, 0, 0, 8));
    ret_if_equal(&mut code, WIREGUARD_DATA, NOTHING);
    code.push(ret(WHOLE));
    code
}

fn v6() -> Vec<SockFilter> {
    let mut code = Vec::new();
    for at in [8, 24] {
        load(&mut code, libc::BPF_B, at);
        code.push(op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0xfe));
        ret_if_equal(&mut code, 0xfc, WHOLE);
    }
    load(&mut code, libc::BPF_B, 6);
    ret_unless_equal(&mut code, UDP, WHOLE);
    load(&mut code, libc::BPF_W, 48);
    ret_if_equal(&mut code, WIREGUARD_DATA, NOTHING);
    code.push(ret(WHOLE));
    code
}

fn load(code: &mut Vec<SockFilter>, size: u32, at: u32) {
    code.push(op(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at));
}

fn ret_if_equal(code: &mut Vec<SockFilter>, value: u32, verdict: u32) {
    code.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, value));
    code.push(ret(verdict));
}

fn ret_unless_equal(code: &mut Vec<SockFilter>, value: u32, verdict: u32) {
    code.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, value));
    code.push(ret(verdict));
}

fn ret(verdict: u32) -> SockFilter {
    op(libc::BPF_RET | libc::BPF_K, 0, 0, verdict)
}

fn op(code: u32, jump_true: u8, jump_false: u8, k: u32) -> SockFilter {
    SockFilter::new(u16::try_from(code).expect("BPF codes fit 16 bits"), jump_true, jump_false, k)
}

fn ancillary(field: libc::c_int) -> u32 {
    (libc::SKF_AD_OFF + field).cast_unsigned()
}

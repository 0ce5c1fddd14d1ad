//! The chains and rules, complete.
//!
//! ```text
//! chain prerouting  (filter, mangle)   from the device: from_mesh; from an underlay interface: from_underlay;
//!                                      answers, wherever they come from: mark from the connection
//! chain from_mesh                      a connection that came over to the mesh loses its mark
//! chain from_underlay                  first-direction packets, source not of the mesh: connection mark
//! chain output      (route, mangle)    answers of the host: mark from the connection
//! chain forward     (filter, mangle)   SYNs from the mesh: MSS clamped
//! chain postrouting (filter, mangle)   SYNs into the mesh: MSS clamped; to an underlay interface: to_underlay
//! chain to_underlay                    mesh addresses are dropped: only reached while our routing rules are missing
//! chain srcnat      (nat, srcnat - 1)  source repair; pods that leave the mesh
//! chain dstnat      (nat, dstnat + 10) the public TCP port of a relay on this node: to the one that it listens on
//! ```

use nlink::netlink::nftables::config::{NftablesConfig, SetElementMode};
use nlink::netlink::nftables::{
    BaseChain, ChainName, CtDirection, CtKey, Expr, Family, Field, FilterHook, Match, MatchOp, NatHook, PacketField,
    Policy, Priority, Register, Rule, TcpFlags, Value,
};

use super::{AddressSet, key_type, name};
use crate::net::{Mark, NFT_TABLE, NetPlan, Redirect, Underlay};

/// Before the source NAT of others, so that the first rule that fits is ours; what both would do is the same.
const BEFORE_SRCNAT: i32 = 99;

/// After the destination NAT of others, whose first rule that fits is then theirs: an ingress behind a host port or a Service keeps
/// its port.
const BEHIND_DSTNAT: i32 = -90;

pub(super) fn ruleset(plan: &NetPlan, underlay: &Underlay, sets: &[AddressSet]) -> NftablesConfig {
    let device = plan.device.as_str();
    let devices: Vec<&str> = underlay.devices.iter().map(|d| d.name.as_str()).collect();
    NftablesConfig::new().table(NFT_TABLE, Family::Inet, |mut table| {
        for set in sets {
            let key = key_type(set.v6);
            table = table.set(name(set), |s| s.key_type(key).interval().element_mode(SetElementMode::Ensure));
        }
        let filter = |hook| BaseChain::filter(hook, Priority::Mangle).policy(Policy::Accept);
        let base = [
            ("prerouting", filter(FilterHook::Prerouting)),
            ("output", BaseChain::route(Priority::Mangle).policy(Policy::Accept)),
            ("forward", filter(FilterHook::Forward)),
            ("postrouting", filter(FilterHook::Postrouting)),
            ("srcnat", BaseChain::nat(NatHook::Postrouting, Priority::Custom(BEFORE_SRCNAT)).policy(Policy::Accept)),
            ("dstnat", BaseChain::nat(NatHook::Prerouting, Priority::Custom(BEHIND_DSTNAT)).policy(Policy::Accept)),
        ];
        for chain in ["from_mesh", "from_underlay", "to_underlay"] {
            table = table.chain(chain, |c| c.exclusive());
        }
        for (chain, base) in base {
            table = table.chain(chain, |c| c.base(base).exclusive());
        }
        for (number, (chain, rule)) in rules(plan, device, &devices).into_iter().enumerate() {
            table = table.rule_keyed(chain, format!("{chain}-{number}"), rule);
        }
        table
    })
}

type MakeRule<'a> = Box<dyn FnOnce(Rule) -> Rule + 'a>;

fn rules<'a>(plan: &'a NetPlan, device: &'a str, devices: &[&'a str]) -> Vec<(&'static str, MakeRule<'a>)> {
    let mark = plan.mark;
    let mut rules: Vec<(&'static str, MakeRule<'a>)> = Vec::new();
    let mut add = |chain, rule: MakeRule<'a>| rules.push((chain, rule));

    add("prerouting", Box::new(move |r| r.match_iif(device).jump(chain("from_mesh"))));
    for name in devices.iter().copied() {
        add("prerouting", Box::new(move |r| r.match_iif(name).jump(chain("from_underlay"))));
    }
    add("prerouting", Box::new(move |r| restore(r, mark)));
    add("output", Box::new(move |r| restore(r, mark)));

    add("from_mesh", Box::new(move |r| write_ct_mark(marked(original(r), mark), mark, false)));
    for field in [PacketField::Ip4Saddr, PacketField::Ip6Saddr] {
        // What has the mark needs no look at the set: that is nearly every datagram of WireGuard's.
        let rule = move |r| write_ct_mark(not_in(original(unmarked(r, mark)), field, "mesh"), mark, true);
        add("from_underlay", Box::new(rule));
    }

    add("forward", Box::new(move |r| syn(r.match_iif(device)).clamp_tcp_mss_to_pmtu()));
    add("postrouting", Box::new(move |r| syn(r.match_oif(device)).clamp_tcp_mss_to_pmtu()));
    for name in devices.iter().copied() {
        add("postrouting", Box::new(move |r| r.match_oif(name).jump(chain("to_underlay"))));
    }
    for field in [PacketField::Ip4Daddr, PacketField::Ip6Daddr] {
        // The set that nearly nothing is in comes first.
        add("to_underlay", Box::new(move |r| not_in(is_in(r, field, "mesh"), field, "local").counter().drop()));
    }

    for field in [PacketField::Ip4Saddr, PacketField::Ip6Saddr] {
        add("srcnat", Box::new(move |r| not_in(r.match_oif(device), field, "own").masquerade()));
    }
    if plan.masquerade.enabled {
        for (from, to) in
            [(PacketField::Ip4Saddr, PacketField::Ip4Daddr), (PacketField::Ip6Saddr, PacketField::Ip6Daddr)]
        {
            let rule = move |r: Rule| not_in(is_in(r.match_oif_not(device), from, "pods"), to, "inside").masquerade();
            add("srcnat", Box::new(rule));
        }
    }

    if let Some(Redirect { from, to }) = plan.relay_redirect {
        for field in [PacketField::Ip4Daddr, PacketField::Ip6Daddr] {
            let rule = move |r: Rule| is_in(r.match_tcp_dport(from), field, "relay").redirect(Some(to));
            add("dstnat", Box::new(rule));
        }
    }
    rules
}

fn chain(name: &str) -> ChainName {
    ChainName::new(name).expect("our chain names are short ASCII words")
}

fn set_of(field: PacketField, set: &str) -> String {
    let v6 = matches!(field, PacketField::Ip6Saddr | PacketField::Ip6Daddr);
    format!("{set}{}", if v6 { 6 } else { 4 })
}

fn is_in(rule: Rule, field: PacketField, set: &str) -> Rule {
    rule.match_in_interval_set(field, &set_of(field, set))
}

fn not_in(rule: Rule, field: PacketField, set: &str) -> Rule {
    rule.match_not_in_interval_set(field, &set_of(field, set))
}

fn original(rule: Rule) -> Rule {
    rule.match_ct_direction(CtDirection::Original)
}

fn marked(rule: Rule, mark: Mark) -> Rule {
    ct_mark(rule, MatchOp::Eq, mark)
}

fn unmarked(rule: Rule, mark: Mark) -> Rule {
    ct_mark(rule, MatchOp::Ne, mark)
}

fn ct_mark(rule: Rule, op: MatchOp, mark: Mark) -> Rule {
    let value = Value::Masked { value: mark.value.into(), mask: mark.mask.into() };
    rule.then(Match::new(Field::CtMark, op, value))
}

/// An answer of a marked connection gets the mark on its packet.
fn restore(rule: Rule, mark: Mark) -> Rule {
    marked(rule.match_ct_direction(CtDirection::Reply), mark).set_mark_masked(mark.value, mark.mask)
}

/// Sets or clears our bits of the connection mark; nlink has no method for it. `expr` appends, `expressions` would replace
/// the matches before it.
fn write_ct_mark(rule: Rule, mark: Mark, on: bool) -> Rule {
    let bits = if on { mark.value } else { 0 };
    rule.expr(Expr::Ct { dreg: Register::R0, key: CtKey::Mark })
        .expr(Expr::Bitwise {
            sreg: Register::R0,
            dreg: Register::R0,
            len: 4,
            mask: (!mark.mask).to_ne_bytes().to_vec(),
            xor: bits.to_ne_bytes().to_vec(),
        })
        .expr(Expr::CtSet { key: CtKey::Mark, sreg: Register::R0 })
}

fn syn(rule: Rule) -> Rule {
    rule.match_tcp_flags(TcpFlags::SYN, TcpFlags::SYN | TcpFlags::RST)
}

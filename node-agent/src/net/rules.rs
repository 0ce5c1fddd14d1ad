//! Policy rules: ours are those that carry our protocol number.
//!
//! nlink cannot write `goto` and `nop`, so the finished message gets the action's byte and, for `goto`, one attribute more.

use std::collections::BTreeSet;

use nlink::netlink::messages::RuleMessage;
use nlink::netlink::types::rule::FibRuleAction;
use nlink::{AddressFamily, Connection, Route, RuleBuilder};

use super::compile::{Action, PolicyRule, Select};
use super::{ChangeKind, PROTOCOL, PortRange, Problem, Report};

/// Distance of our first rule from the one that looks up `local`.
const AFTER_LOCAL: u32 = 10;

/// Offset of our last rule.
const LAST: u32 = 6;

const LOCAL: u32 = 255;
const FRA_GOTO: u16 = 4;

/// Where `struct fib_rule_hdr` (after the 16 bytes of `nlmsghdr`) keeps its action.
const ACTION_BYTE: usize = 16 + 7;

/// A rule with its final priority.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    priority: u32,
    v6: bool,
    select: Select,
    action: PlacedAction,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum PlacedAction {
    Lookup { table: u32, suppress_prefixlen: Option<u32> },
    Goto { priority: u32 },
    Nop,
}

pub(super) async fn apply(conn: &Connection<Route>, desired: &[PolicyRule], report: &mut Report) {
    for family in [AddressFamily::v4(), AddressFamily::v6()] {
        let v6 = family == AddressFamily::v6();
        let wanted: Vec<&PolicyRule> = desired.iter().filter(|r| r.v6 == v6).collect();
        match conn.get_rules_for_family(family).await {
            Ok(found) => reconcile(conn, v6, &wanted, &found, report).await,
            // A kernel without IPv6 has no rules of that family, and needs none.
            Err(_) if v6 && wanted.is_empty() => {}
            Err(e) => report.failed(ChangeKind::Rule, "list the rules", e),
        }
    }
}

async fn reconcile(
    conn: &Connection<Route>,
    v6: bool,
    wanted: &[&PolicyRule],
    found: &[RuleMessage],
    report: &mut Report,
) {
    let base = base_priority(found);
    let wanted: BTreeSet<Placed> = wanted.iter().map(|r| place(r, base)).collect();
    let mut kept = BTreeSet::new();
    let mut stale = Vec::new();
    for message in found.iter().filter(|m| m.protocol() == Some(PROTOCOL)) {
        match read(message, v6) {
            Some(rule) if wanted.contains(&rule) && kept.insert(rule.clone()) => {}
            _ => stale.push(message),
        }
    }
    let mut missing: Vec<&Placed> = wanted.difference(&kept).collect();
    missing.sort_by_key(|rule| step(rule));
    for rule in missing {
        match add(conn, rule).await {
            Ok(()) => report.changed(ChangeKind::Rule, format!("added {rule:?}")),
            Err(e) => report.failed(ChangeKind::Rule, format!("add {rule:?}"), e),
        }
    }
    for message in stale {
        let what = describe(message);
        match conn.del_rule(selectors(message, v6)).await {
            Ok(()) => report.changed(ChangeKind::Rule, format!("removed {what}")),
            Err(e) => report.failed(ChangeKind::Rule, format!("remove {what}"), e),
        }
    }
    if !wanted.is_empty() {
        report.problems.extend(rivals(found, base));
    }
}

/// When a rule is added: the landing before what jumps there, the look-ups of our tables after every exemption from them.
fn step(rule: &Placed) -> u8 {
    match rule.action {
        PlacedAction::Nop => 0,
        PlacedAction::Goto { .. } => 1,
        PlacedAction::Lookup { suppress_prefixlen: Some(_), .. } => 2,
        PlacedAction::Lookup { suppress_prefixlen: None, .. } => 3,
    }
}

/// Removes every rule of ours, or says which it would remove.
pub(super) async fn remove_all(conn: &Connection<Route>, dry_run: bool, report: &mut Vec<String>) -> nlink::Result<()> {
    for family in [AddressFamily::v4(), AddressFamily::v6()] {
        let v6 = family == AddressFamily::v6();
        let found = match conn.get_rules_for_family(family).await {
            Ok(found) => found,
            Err(_) if v6 => continue,
            Err(e) => return Err(e),
        };
        for message in found.iter().filter(|m| m.protocol() == Some(PROTOCOL)) {
            if !dry_run {
                conn.del_rule(selectors(message, v6)).await?;
            }
            report.push(describe(message));
        }
    }
    Ok(())
}

fn base_priority(found: &[RuleMessage]) -> u32 {
    let local = found.iter().filter(|m| m.is_lookup() && m.table_id() == LOCAL).map(RuleMessage::priority);
    local.min().unwrap_or(0) + AFTER_LOCAL
}

fn place(rule: &PolicyRule, base: u32) -> Placed {
    let action = match rule.action {
        Action::Lookup { table, suppress_prefixlen } => PlacedAction::Lookup { table, suppress_prefixlen },
        Action::Goto { offset } => PlacedAction::Goto { priority: base + offset },
        Action::Nop => PlacedAction::Nop,
    };
    Placed { priority: base + rule.offset, v6: rule.v6, select: rule.select.clone(), action }
}

/// The rule as we would have written it; `None` if it is none that we write.
fn read(m: &RuleMessage, v6: bool) -> Option<Placed> {
    let ports = m.sport_range().map(|r| PortRange { first: r.start, last: r.end });
    let unusual = m.source().is_some()
        || m.oifname().is_some()
        || m.dport_range().is_some()
        || m.uid_range().is_some()
        || m.l3mdev().is_some_and(|l| l != 0);
    if unusual {
        return None;
    }
    let select = match (m.destination(), m.fwmark(), m.iifname(), m.ip_proto(), ports, m.is_invert()) {
        (None, None, None, None, None, false) => Select::All,
        (Some(to), None, None, None, None, false) => Select::To(ipnet::IpNet::new(to, m.dst_len()).ok()?),
        (None, Some(value), None, None, None, true) => Select::NotMark { value, mask: m.fwmask().unwrap_or(u32::MAX) },
        (None, None, Some("lo"), Some(ip_proto), Some(ports), false) => Select::LocalPort { ip_proto, ports },
        _ => return None,
    };
    let action = match m.action() {
        FibRuleAction::ToTbl => PlacedAction::Lookup {
            table: m.table_id(),
            // The kernel reports "none" as -1.
            suppress_prefixlen: m.suppress_prefixlen().filter(|l| *l != u32::MAX),
        },
        FibRuleAction::Goto => PlacedAction::Goto { priority: m.goto()? },
        FibRuleAction::Nop => PlacedAction::Nop,
        _ => return None,
    };
    Some(Placed { priority: m.priority(), v6, select, action })
}

async fn add(conn: &Connection<Route>, rule: &Placed) -> nlink::Result<()> {
    let builder = select(builder(rule.v6), &rule.select).priority(rule.priority).protocol(PROTOCOL);
    match rule.action {
        PlacedAction::Lookup { table, suppress_prefixlen } => {
            let builder = builder.table(table);
            conn.add_rule(match suppress_prefixlen {
                Some(length) => builder.suppress_prefixlen(length),
                None => builder,
            })
            .await
        }
        PlacedAction::Goto { priority } => send(conn, builder, FibRuleAction::Goto, Some(priority)).await,
        PlacedAction::Nop => send(conn, builder, FibRuleAction::Nop, None).await,
    }
}

/// Sends an add whose action nlink has no method for, and reads the acknowledgement.
async fn send(
    conn: &Connection<Route>,
    rule: RuleBuilder,
    action: FibRuleAction,
    goto: Option<u32>,
) -> nlink::Result<()> {
    // `blackhole` makes nlink write a rule without a table; its action is then replaced.
    let mut message = rule.blackhole().build()?;
    if let Some(priority) = goto {
        message.append_attr_u32(FRA_GOTO, priority);
    }
    let socket = conn.socket();
    let sequence = socket.next_seq();
    message.set_seq(sequence);
    message.set_pid(socket.pid());
    let mut bytes = message.finish();
    bytes[ACTION_BYTE] = action as u8;
    socket.send(&bytes).await?;
    loop {
        let answer = socket.recv_unicast().await?;
        if let Some(errno) = acknowledgement(&answer, sequence) {
            return if errno == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(-errno).into()) };
        }
    }
}

/// The error number in an answer to `sequence`, 0 for success.
fn acknowledgement(answer: &[u8], sequence: u32) -> Option<i32> {
    let word = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok());
    if u32::from_ne_bytes(word(8)?) != sequence {
        return None;
    }
    Some(i32::from_ne_bytes(word(16)?))
}

fn builder(v6: bool) -> RuleBuilder {
    if v6 { RuleBuilder::v6() } else { RuleBuilder::v4() }
}

fn select(builder: RuleBuilder, select: &Select) -> RuleBuilder {
    match select {
        Select::All => builder,
        Select::To(net) => builder.to_addr(net.addr(), net.prefix_len()),
        Select::NotMark { value, mask } => builder.fwmark_mask(*value, *mask).invert(),
        Select::LocalPort { ip_proto, ports } => builder.iif("lo").ipproto(*ip_proto).sport(ports.first, ports.last),
    }
}

/// A delete that names exactly this rule.
fn selectors(m: &RuleMessage, v6: bool) -> RuleBuilder {
    let mut rule = builder(v6).priority(m.priority()).protocol(PROTOCOL);
    if let Some(to) = m.destination() {
        rule = rule.to_addr(to, m.dst_len());
    }
    if let Some(from) = m.source() {
        rule = rule.from_addr(from, m.src_len());
    }
    if let Some(mark) = m.fwmark() {
        rule = rule.fwmark_mask(mark, m.fwmask().unwrap_or(u32::MAX));
    }
    if let Some(name) = m.iifname() {
        rule = rule.iif(name);
    }
    if let Some(proto) = m.ip_proto() {
        rule = rule.ipproto(proto);
    }
    if let Some(ports) = m.sport_range() {
        rule = rule.sport(ports.start, ports.end);
    }
    if m.is_lookup() {
        rule = rule.table(m.table_id());
    }
    rule
}

fn describe(m: &RuleMessage) -> String {
    let family = if m.is_ipv6() { "IPv6" } else { "IPv4" };
    let mut text = format!("{family} rule {}: {}", m.priority(), m.action().name());
    match m.action() {
        FibRuleAction::ToTbl => text.push_str(&format!(" {}", m.table_id())),
        FibRuleAction::Goto => text.push_str(&format!(" {}", m.goto().unwrap_or_default())),
        _ => {}
    }
    if let Some(to) = m.destination() {
        text.push_str(&format!(" to {to}/{}", m.dst_len()));
    }
    if let Some(ports) = m.sport_range() {
        text.push_str(&format!(" sport {}-{}", ports.start, ports.end));
    }
    text
}

/// Rules of others that decide before ours for everybody's packets: not for those of one source, interface, user or mark.
fn rivals(found: &[RuleMessage], base: u32) -> Vec<Problem> {
    let narrow = |m: &&RuleMessage| {
        m.source().is_some()
            || m.iifname().is_some()
            || m.oifname().is_some()
            || m.uid_range().is_some()
            || (m.fwmark().is_some() && !m.is_invert())
    };
    found
        .iter()
        .filter(|m| m.priority() < base + LAST && m.protocol() != Some(PROTOCOL))
        .filter(|m| !(m.is_lookup() && m.table_id() == LOCAL))
        .filter(|m| !narrow(m))
        .map(|m| Problem::RouteConflict {
            found: describe(m),
            remedy: format!("give it a priority above {}, or make it match only its own packets", base + LAST),
        })
        .collect()
}

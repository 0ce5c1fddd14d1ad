//! Does somebody else drop what this node is to forward? Found out by reading, never by changing.

use std::net::IpAddr;

use ipnet::IpNet;
use nlink::netlink::nftables::Verdict::{Accept, Drop, GotoTo, JumpTo};
use nlink::netlink::nftables::{ChainInfo, Family, RuleExpr, RuleInfo};
use nlink::{Connection, Nftables};

use super::{ChangeKind, NFT_TABLE, NetPlan, Problem, Report};

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;

/// `NF_DROP` as chain policy.
const DROP: u32 = 0;

/// A chain of another table that forwarded packets end in by being dropped, unless one of its table's rules lets our device
/// pass. What xtables' old kernel interface holds (`iptables-legacy`) is not visible here.
pub(super) async fn check(conn: &Connection<Nftables>, plan: &NetPlan, report: &mut Report) {
    if !plan.cni && plan.own_pod_cidrs.is_empty() {
        return;
    }
    let chains = match conn.list_chains().await {
        Ok(chains) => chains,
        Err(e) => return report.failed(ChangeKind::Firewall, "list the chains of others", e),
    };
    for chain in chains.iter().filter(|c| is_forward(c)) {
        let rules = match conn.list_rules(&chain.table, chain.family).await {
            Ok(rules) => rules,
            Err(e) => {
                report.failed(ChangeKind::Firewall, format!("list the rules of {}", chain.table), e);
                continue;
            }
        };
        if drops(chain, &rules) && !lets_pass(chain, &rules, plan) {
            report.problems.push(Problem::ForwardBlocked {
                table: format!("{} {}", chain.family.name(), chain.table),
                chain: chain.name.clone(),
                remedy: remedy(chain, &plan.device),
            });
        }
    }
}

pub(super) fn is_forward(chain: &ChainInfo) -> bool {
    let family = matches!(chain.family, Family::Ip | Family::Ip6 | Family::Inet);
    let ours = chain.table == NFT_TABLE && chain.family == Family::Inet;
    family && !ours && chain.hook == Some(FORWARD)
}

/// By its policy, or by a last rule without any condition.
fn drops(chain: &ChainInfo, rules: &[RuleInfo]) -> bool {
    let last = rules.iter().rfind(|r| r.chain == chain.name).map(RuleInfo::expressions);
    chain.policy == Some(DROP) || last.is_some_and(|rule| is_unconditional(&rule) && refuses(&rule))
}

/// Whether some rule of the table concerns our device or our pods and does not end in a drop, or the chain itself lets
/// everything pass before its policy. Whether that rule is reached cannot be told by reading; a wrong "blocked" would be a
/// worse guide than a missed one. Read from the expressions, because a rule with a match of xtables' own (a comment is one)
/// has no nft syntax.
fn lets_pass(chain: &ChainInfo, rules: &[RuleInfo], plan: &NetPlan) -> bool {
    rules.iter().any(|info| {
        let rule = info.expressions();
        let verdict = rule.iter().any(|e| matches!(e, RuleExpr::Verdict(Accept | JumpTo(_) | GotoTo(_))));
        let everything = info.chain == chain.name && is_unconditional(&rule) && ends_in_accept(&rule);
        everything || (verdict && rule.iter().any(|e| concerns(e, plan)))
    })
}

fn is_unconditional(rule: &[RuleExpr]) -> bool {
    let harmless = |e: &RuleExpr| matches!(e, RuleExpr::Counter { .. } | RuleExpr::Log(_)) || decides(e);
    rule.iter().all(harmless)
}

fn decides(expression: &RuleExpr) -> bool {
    matches!(expression, RuleExpr::Verdict(_)) || rejects(expression)
}

fn refuses(rule: &[RuleExpr]) -> bool {
    rule.iter().any(|e| matches!(e, RuleExpr::Verdict(Drop)) || rejects(e))
}

/// nftables' own reject, or xtables' target of that name: an expression `target` whose first attribute is the name.
fn rejects(expression: &RuleExpr) -> bool {
    match expression {
        RuleExpr::Reject { .. } => true,
        RuleExpr::Unknown { name, data, .. } => name == "target" && data.windows(6).any(|bytes| bytes == b"REJECT"),
        _ => false,
    }
}

fn ends_in_accept(rule: &[RuleExpr]) -> bool {
    rule.iter().any(|e| matches!(e, RuleExpr::Verdict(Accept)))
}

/// A comparison with the device's name, or with the leading bytes of this node's podCIDR.
fn concerns(expression: &RuleExpr, plan: &NetPlan) -> bool {
    /// Fewer bytes of an address are a range too wide to be about pods, or no address at all.
    const ADDRESS_BYTES: std::ops::RangeInclusive<usize> = 2..=16;
    let RuleExpr::Cmp { data, .. } = expression else { return false };
    let name = data.split(|byte| *byte == 0).next().unwrap_or_default();
    let network = |net: &IpNet| match net.network() {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    // A prefix that is no whole number of bytes is compared under a mask: the rest of the operand is zero.
    let significant = data.len() - data.iter().rev().take_while(|byte| **byte == 0).count();
    name == plan.device.as_bytes()
        || (ADDRESS_BYTES.contains(&significant)
            && plan.own_pod_cidrs.iter().any(|net| network(net).starts_with(&data[..significant])))
}

fn remedy(chain: &ChainInfo, device: &str) -> String {
    let iptables = chain.name == "FORWARD" && chain.table == "filter";
    if iptables {
        let tool = if chain.family == Family::Ip6 { "ip6tables" } else { "iptables" };
        return format!("`{tool} -I FORWARD -i {device} -j ACCEPT; {tool} -I FORWARD -o {device} -j ACCEPT`");
    }
    if chain.table == "firewalld" {
        return format!("`firewall-cmd --permanent --zone=trusted --add-interface={device} && firewall-cmd --reload`");
    }
    let (family, table, name) = (chain.family.name(), &chain.table, &chain.name);
    format!(
        "`nft insert rule {family} {table} {name} iifname {device} accept; nft insert rule {family} {table} {name} oifname {device} accept`"
    )
}

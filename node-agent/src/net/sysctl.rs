//! Settings that only the host's administrator can write: checked, and reported with the command.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::Path;

use nlink::netlink::devconf::Ipv4Devconf;
use nlink::netlink::messages::LinkMessage;

use super::ranges::is_v6;
use super::{NetPlan, Problem, Report};

/// The reverse-path filter that the kernel applies to a link: the greater of its own and the global setting.
pub(super) fn reverse_path(link: &LinkMessage) -> u32 {
    let all = read("net.ipv4.conf.all.rp_filter").and_then(|v| v.parse().ok()).unwrap_or(0);
    link.ipv4_devconf(Ipv4Devconf::RpFilter).unwrap_or(0).max(all)
}

/// The plan without what needs IPv6 where the host has none, which is reported: everything else must not suffer from it.
pub(super) fn without_missing_ipv6<'a>(plan: &'a NetPlan, report: &mut Report) -> Cow<'a, NetPlan> {
    let wanted = plan.addresses.iter().any(IpAddr::is_ipv6) || plan.claims.iter().any(is_v6);
    let kernel = Path::new("/proc/sys/net/ipv6").exists();
    let name = format!("net.ipv6.conf.{}.disable_ipv6", plan.device.replace('.', "/"));
    let found = read(&name);
    if !wanted || (kernel && found.as_deref() == Some("0")) {
        return Cow::Borrowed(plan);
    }
    report.problems.push(Problem::Ipv6Off {
        found: if kernel {
            format!("{name} = {}", found.as_deref().unwrap_or("absent"))
        } else {
            "no IPv6 in the kernel".into()
        },
        remedy: if kernel {
            format!(
                "run sysctl -w net.ipv6.conf.default.disable_ipv6=0 {name}=0, and keep the device's MTU at 1280 or more"
            )
        } else {
            "boot without ipv6.disable=1, or give the mesh no IPv6 range".into()
        },
    });
    let mut plan = plan.clone();
    plan.addresses.retain(IpAddr::is_ipv4);
    plan.routes.retain(|r| !is_v6(&r.prefix));
    if !kernel {
        plan.claims.retain(|n| !is_v6(n));
        plan.own_pod_cidrs.retain(|n| !is_v6(n));
    }
    Cow::Owned(plan)
}

pub(super) fn check(plan: &NetPlan, report: &mut Report) {
    if !plan.cni && plan.own_pod_cidrs.is_empty() {
        return;
    }
    let has = |v6: bool| plan.own_pod_cidrs.iter().any(|n| n.addr().is_ipv6() == v6);
    if has(false) {
        expect("net.ipv4.ip_forward", "1", "so that packets of pods are forwarded", report);
    }
    if has(true) {
        expect("net.ipv6.conf.all.forwarding", "1", "so that packets of pods are forwarded", report);
        let learned: Vec<String> =
            report.underlay.devices.iter().filter(|d| d.learns_routes).map(|d| d.name.clone()).collect();
        for device in learned {
            // A dot separates the parts of a sysctl's name, so the one in an interface's name is written as a slash.
            let name = format!("net.ipv6.conf.{}.accept_ra", device.replace('.', "/"));
            let reason = "so that the default route from router advertisements stays while forwarding is on";
            expect(&name, "2", reason, report);
        }
    }
}

fn expect(name: &str, value: &str, reason: &'static str, report: &mut Report) {
    let found = read(name).unwrap_or_else(|| "no such setting".into());
    if found != value {
        report.problems.push(Problem::Sysctl { command: format!("sysctl -w {name}={value}"), found, reason });
    }
}

/// A setting's value; dots in the name are path separators, slashes are dots.
fn read(name: &str) -> Option<String> {
    let path: String = name
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    let text = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    Some(text.trim().to_owned())
}

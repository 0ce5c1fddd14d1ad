//! Our own interface: state, MTU, addresses, per-device sysctls. It is never created or deleted here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nlink::netlink::devconf::Ipv4Devconf;
use nlink::netlink::messages::LinkMessage;
use nlink::{Connection, Ipv4Address, Ipv6Address, Route};

use super::originals::Setting;
use super::{ChangeKind, NetError, NetPlan, Originals, Report};

/// "Loose": the source must be reachable, by whatever interface. Strict drops what comes by the underlay from a node whose
/// address is carried, WireGuard's own packets included, because the way back leads into the tunnel.
const RP_FILTER_LOOSE: u32 = 2;
const RP_FILTER_STRICT: u32 = 1;

/// Makes the device as planned; answers its index.
pub(super) async fn apply(
    conn: &Connection<Route>,
    plan: &NetPlan,
    originals: &Originals,
    report: &mut Report,
) -> Result<u32, NetError> {
    let link = conn
        .get_link_by_name(plan.device.as_str())
        .await
        .map_err(NetError::netlink("look the device up"))?
        .ok_or_else(|| NetError::NoDevice { name: plan.device.clone() })?;
    let index = link.ifindex();
    if link.mtu() != Some(plan.mtu.into()) {
        let what = format!("mtu {}", plan.mtu);
        record(report, ChangeKind::Link, what, conn.set_link_mtu_by_index(index, plan.mtu.into()).await);
    }
    let wanted = different(&link, &[(Ipv4Devconf::RpFilter, RP_FILTER_LOOSE), (Ipv4Devconf::Forwarding, 1)]);
    sysctl(conn, &link, &wanted, report).await;
    addresses(conn, plan, index, report).await;
    if !link.is_up() {
        record(report, ChangeKind::Link, "up".into(), conn.set_link_up_by_index(index).await);
    }
    underlay(conn, plan, originals, report).await;
    Ok(index)
}

/// On the underlay: strict reverse-path filtering becomes loose, and forwarding is on, for the answers to pods.
async fn underlay(conn: &Connection<Route>, plan: &NetPlan, originals: &Originals, report: &mut Report) {
    let devices = report.underlay.devices.clone();
    for device in devices {
        let link = match conn.get_link_by_index(device.index).await {
            Ok(Some(link)) => link,
            Ok(None) => continue,
            Err(e) => {
                report.failed(ChangeKind::Sysctl, format!("read {}", device.name), e);
                continue;
            }
        };
        let strict = super::sysctl::reverse_path(&link) == RP_FILTER_STRICT;
        let mut wanted = Vec::new();
        if strict {
            wanted.push((Ipv4Devconf::RpFilter, RP_FILTER_LOOSE));
        }
        if plan.cni || !plan.own_pod_cidrs.is_empty() {
            wanted.push((Ipv4Devconf::Forwarding, 1));
        }
        let wanted = different(&link, &wanted);
        let record = wanted.iter().map(|(setting, after)| Setting {
            device: device.name.clone(),
            name: *setting,
            before: link.ipv4_devconf(*setting).unwrap_or_default(),
            after: *after,
        });
        // Unremembered, it could not be put back; but without it the node would not work.
        if !wanted.is_empty()
            && let Err(e) = originals.remember(record.collect())
        {
            report.failed(ChangeKind::Sysctl, format!("remember the settings of {}", device.name), e);
        }
        sysctl(conn, &link, &wanted, report).await;
    }
}

/// Those settings that have another value.
fn different(link: &LinkMessage, wanted: &[(Ipv4Devconf, u32)]) -> Vec<(Ipv4Devconf, u32)> {
    wanted.iter().copied().filter(|(d, v)| link.ipv4_devconf(*d) != Some(*v)).collect()
}

async fn sysctl(conn: &Connection<Route>, link: &LinkMessage, wanted: &[(Ipv4Devconf, u32)], report: &mut Report) {
    if wanted.is_empty() {
        return;
    }
    let text: Vec<String> = wanted.iter().map(|(d, v)| format!("{}={v}", d.name())).collect();
    let what = format!("{} {}", link.name_or("?"), text.join(" "));
    record(report, ChangeKind::Sysctl, what, conn.set_ipv4_devconf_by_index(link.ifindex(), wanted).await);
}

async fn addresses(conn: &Connection<Route>, plan: &NetPlan, index: u32, report: &mut Report) {
    let found = match conn.get_addresses_by_index(index).await {
        Ok(found) => found,
        Err(e) => return report.failed(ChangeKind::Address, "list the device's addresses", e),
    };
    let host = |a: &IpAddr| if a.is_ipv4() { 32 } else { 128 };
    let wanted: BTreeSet<IpAddr> = plan.addresses.iter().copied().collect();
    let mut standing = BTreeSet::new();
    for message in &found {
        let Some(address) = message.primary_address().copied() else {
            continue;
        };
        if wanted.contains(&address) && message.prefix_len() == host(&address) {
            standing.insert(address);
        } else if !is_link_local(&address) {
            // The device is ours, and an address that the operator took back must not go on answering.
            let gone = conn.del_address_by_index(index, address, message.prefix_len()).await;
            record(report, ChangeKind::Address, format!("removed {address}/{}", message.prefix_len()), gone);
        }
    }
    for address in wanted.difference(&standing) {
        let added = match address {
            IpAddr::V4(a) => conn.add_address(Ipv4Address::with_index(index, *a, 32)).await,
            // No duplicate detection: nobody else is on the link, and a tentative address would not answer for a second.
            IpAddr::V6(a) => conn.add_address(Ipv6Address::with_index(index, *a, 128).nodad()).await,
        };
        record(report, ChangeKind::Address, format!("added {address}"), added);
    }
}

/// Removes the addresses of our device, or says which it would remove.
pub(super) async fn remove_addresses(
    conn: &Connection<Route>,
    device: &str,
    dry_run: bool,
    report: &mut Vec<String>,
) -> nlink::Result<()> {
    let Some(link) = conn.get_link_by_name(device).await? else {
        return Ok(());
    };
    for message in conn.get_addresses_by_index(link.ifindex()).await? {
        let Some(address) = message.primary_address().copied().filter(|a| !is_link_local(a)) else {
            continue;
        };
        if !dry_run {
            conn.del_address_by_index(link.ifindex(), address, message.prefix_len()).await?;
        }
        report.push(format!("address {address}/{} of {device}", message.prefix_len()));
    }
    Ok(())
}

pub(super) fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

fn record(report: &mut Report, kind: ChangeKind, what: String, result: nlink::Result<()>) {
    match result {
        Ok(()) => report.changed(kind, what),
        Err(e) => report.failed(kind, what, e),
    }
}

//! Our nftables table `inet warren`: connection marks, leak guard, masquerade, source repair, MSS clamp.
//!
//! Tables, chains and rules are reconciled declaratively by nlink in one transaction that the kernel refuses when somebody
//! else changed the ruleset in between. The elements of the sets are reconciled here, because a declarative change of more
//! than about 950 elements does not fit nlink's message.

mod ruleset;

use std::collections::BTreeSet;
use std::net::IpAddr;

use nlink::netlink::nftables::config::NftablesConfig;
use nlink::netlink::nftables::{Family, Set, SetElement, SetKeyType};
use nlink::{Connection, Nftables};

use super::compile::{AddressSet, Desired};
use super::{ChangeKind, NFT_TABLE, NetPlan, Report};

/// nlink refuses a nest over 64 KiB, and a transaction over the socket's send buffer (208 KiB by default) is EMSGSIZE: this
/// many IPv6 ranges stay far below both.
const CHUNK: usize = 250;

/// How often the table is compared and written anew when somebody else changes the ruleset between the two. A comparison
/// takes some milliseconds and a busy kube-proxy writes in bursts of a few, so this is far more than needed.
const MOST_TRIES: usize = 20;

pub(super) async fn apply(conn: &Connection<Nftables>, plan: &NetPlan, desired: &Desired, report: &mut Report) {
    let config = ruleset::ruleset(plan, &report.underlay, &desired.sets);
    match write(conn, &config).await {
        Ok(changes) => changes.into_iter().for_each(|what| report.changed(ChangeKind::Firewall, what)),
        Err(e) => return report.failed(ChangeKind::Firewall, "write the table", e),
    }
    for set in &desired.sets {
        match fill(conn, set).await {
            Ok(0) => {}
            Ok(n) => report.changed(ChangeKind::Firewall, format!("set {}: {n} elements", name(set))),
            Err(e) => report.failed(ChangeKind::Firewall, format!("fill set {}", name(set)), e),
        }
    }
}

/// Compares and writes the difference, until the ruleset holds still in between; answers what was changed.
async fn write(conn: &Connection<Nftables>, config: &NftablesConfig) -> nlink::Result<Vec<String>> {
    let mut tries = 0;
    loop {
        let diff = config.diff(conn).await?;
        tries += 1;
        match diff.apply(conn).await {
            Err(e) if e.is_restart() && tries < MOST_TRIES => {}
            Err(e) => return Err(e),
            Ok(_) => {
                let changes = diff.changes.iter().flat_map(|c| c.flatten());
                return Ok(changes.map(|change| format!("{} {}", change.op(), change.kind())).collect());
            }
        }
    }
}

/// Makes a set hold exactly the given ranges; answers how many elements were changed.
async fn fill(conn: &Connection<Nftables>, set: &AddressSet) -> nlink::Result<usize> {
    let name = name(set);
    let found = conn.list_set_elements(NFT_TABLE, &name, Family::Inet).await?;
    let found: BTreeSet<Range> =
        found.iter().map(|e| (e.key().to_vec(), e.key_end().unwrap_or(e.key()).to_vec())).collect();
    let wanted: BTreeSet<Range> = set.ranges.iter().map(|(a, b)| (octets(*a), octets(*b))).collect();
    let handle = Set::new(NFT_TABLE, &name).family(Family::Inet).key_type(key_type(set.v6)).interval();
    // What goes is removed first: a range that grew overlaps with what it was.
    let gone: Vec<SetElement> = found.difference(&wanted).map(element).collect();
    let new: Vec<SetElement> = wanted.difference(&found).map(element).collect();
    for chunk in gone.chunks(CHUNK) {
        conn.transaction().del_set_elements(&handle, chunk).commit(conn).await?;
    }
    for chunk in new.chunks(CHUNK) {
        conn.transaction().add_set_elements(&handle, chunk).commit(conn).await?;
    }
    Ok(gone.len() + new.len())
}

/// First and last key, as the kernel has them.
type Range = (Vec<u8>, Vec<u8>);

fn element((first, last): &Range) -> SetElement {
    SetElement::range(first.clone(), last.clone())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn name(set: &AddressSet) -> String {
    format!("{}{}", set.name, if set.v6 { 6 } else { 4 })
}

fn key_type(v6: bool) -> SetKeyType {
    if v6 { SetKeyType::Ipv6Addr } else { SetKeyType::Ipv4Addr }
}

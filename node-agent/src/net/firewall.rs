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
use super::own::{Asked, OwnChanges, Thing};
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

/// Brings sets from what they hold to other ranges, in one transaction: no address of both is out of a set for a moment.
/// `false` if that is more than one message takes.
pub(super) async fn change(
    conn: &Connection<Nftables>,
    before: &[AddressSet],
    after: &[AddressSet],
    own: &OwnChanges,
) -> nlink::Result<bool> {
    let (mut transaction, mut elements, mut expected) = (conn.transaction(), 0, Vec::new());
    for (old, new) in before.iter().zip(after).filter(|(old, new)| old.ranges != new.ranges) {
        let name = name(new);
        let [had, shall] = [old, new].map(|set| set.ranges.iter().copied().collect::<BTreeSet<_>>());
        let handle = Set::new(NFT_TABLE, &name).family(Family::Inet).key_type(key_type(new.v6)).interval();
        for (asked, ranges) in [(Asked::Remove, had.difference(&shall)), (Asked::Set, shall.difference(&had))] {
            let ranges: Vec<Range> = ranges.map(|(a, b)| (octets(*a), octets(*b))).collect();
            if ranges.is_empty() {
                continue;
            }
            elements += ranges.len();
            expected.extend(ranges.iter().flat_map(|range| things(&name, range)).map(|thing| (asked, thing)));
            let ranges: Vec<SetElement> = ranges.iter().map(element).collect();
            transaction = match asked {
                Asked::Remove => transaction.del_set_elements(&handle, &ranges),
                Asked::Set => transaction.add_set_elements(&handle, &ranges),
            };
        }
    }
    if elements == 0 || elements > CHUNK {
        return Ok(elements == 0);
    }
    for (asked, thing) in &expected {
        own.expect(*asked, thing.clone());
    }
    let committed = transaction.commit(conn).await;
    if committed.is_err() {
        expected.into_iter().for_each(|(asked, thing)| _ = own.forget(asked, thing));
    }
    committed.map(|_| true)
}

/// The elements that the kernel makes of a range: one where it starts, and one behind its end unless nothing is there.
fn things(set: &str, (first, last): &Range) -> impl Iterator<Item = Thing> + use<> {
    let thing = |key, ends| Thing::Element { set: set.to_owned(), key, ends };
    let end = behind(last).map(|key| thing(key, true));
    [Some(thing(first.clone(), false)), end].into_iter().flatten()
}

/// The next key, counted as a number; `None` after the last one.
fn behind(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
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

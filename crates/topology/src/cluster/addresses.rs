//! Mesh addresses and listen ports: kept where they are unique, else the lowest free one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::condition::{Condition, ConditionType, EventReason, Reason};
use crate::cluster::subject::Subject;
use crate::mesh::MeshConfig;
use crate::prefix::{self, NEVER_CARRIED};

/// Gives every subject one address of every mesh range.
pub(super) fn assign_addresses(mesh: &MeshConfig, subjects: &mut [Subject<'_>]) {
    for range in mesh.ranges() {
        assign_family(Pool::new(range, &mesh.service_cidrs), subjects);
    }
}

fn assign_family(mut pool: Pool, subjects: &mut [Subject<'_>]) {
    let same_family = |addr: &&IpAddr| addr.is_ipv4() == pool.net.addr().is_ipv4();
    let written: Vec<Option<IpAddr>> = subjects
        .iter()
        .map(|subject| {
            let stored = subject.stored?;
            stored.spec.mesh_ips.iter().find(same_family).copied()
        })
        .collect();
    let published: Vec<Option<IpAddr>> =
        subjects.iter().map(|subject| subject.published?.mesh_ips.iter().find(same_family).copied()).collect();

    let usable = |addr: &Option<IpAddr>| addr.filter(|addr| pool.is_assignable(*addr));
    let holders = settle(subjects, &written.iter().map(usable).collect::<Vec<_>>(), |index, addr| {
        published[index] == Some(*addr)
    });
    pool.used.extend(holders.keys());

    for index in 0..subjects.len() {
        let claim = written[index];
        let kept = claim.filter(|addr| holders.get(addr) == Some(&index));
        // What peers have for it already disturbs least; then the lowest free one.
        let given = kept.or_else(|| published[index].filter(|addr| pool.take(*addr))).or_else(|| pool.take_lowest());
        match given {
            Some(addr) => subjects[index].spec.mesh_ips.push(addr),
            None => report_exhausted(&mut subjects[index], pool.net),
        }
        if let Some(lost) = claim.filter(|_| kept.is_none()) {
            let holder = holders.get(&lost).map(|holder| subjects[*holder].name.to_owned());
            let now = given.map_or("none".to_owned(), |addr| addr.to_string());
            report_reassigned(&mut subjects[index], &format!("address {lost}"), holder, &now);
        }
    }
}

/// Decides who keeps what of the values that several subjects have: value -> index.
fn settle<V: Copy + Ord>(
    subjects: &[Subject<'_>],
    claims: &[Option<V>],
    is_published: impl Fn(usize, &V) -> bool,
) -> BTreeMap<V, usize> {
    let mut order: Vec<(usize, V)> =
        claims.iter().enumerate().filter_map(|(index, claim)| Some((index, (*claim)?))).collect();
    order.sort_by_key(|(index, value)| subjects[*index].rank(is_published(*index, value), true));
    let mut holders = BTreeMap::new();
    for (index, value) in order {
        holders.entry(value).or_insert(index);
    }
    holders
}

/// Gives every subject a listen port: two nodes behind one public address then never ask it for the same one.
pub(super) fn assign_ports(mesh: &MeshConfig, subjects: &mut [Subject<'_>]) {
    let range = mesh.listen_ports;
    let written: Vec<Option<u16>> =
        subjects.iter().map(|subject| Some(subject.stored?.spec.listen_port).filter(|port| *port != 0)).collect();
    let usable: Vec<Option<u16>> = written.iter().map(|port| port.filter(|port| range.contains(*port))).collect();
    let holders = settle(subjects, &usable, |index, port| {
        subjects[index].published.is_some_and(|entry| entry.listen_port == *port)
    });

    let mut uses: BTreeMap<u16, usize> = holders.keys().map(|port| (*port, 1)).collect();
    let mut free = range.ports().filter(|port| !holders.contains_key(port));
    for index in 0..subjects.len() {
        let kept = usable[index].filter(|port| holders.get(port) == Some(&index));
        let (port, must_share) = match kept.or_else(|| free.next()) {
            Some(port) => (port, false),
            // The range is used up: stay, or join the least crowded port.
            None => (usable[index].unwrap_or_else(|| least_used(&uses, range.first)), true),
        };
        if kept.is_none() {
            *uses.entry(port).or_default() += 1;
        }
        subjects[index].spec.listen_port = port;
        let lost = written[index].filter(|was| *was != port && !must_share);
        if let Some(lost) = lost.filter(|_| kept.is_none()) {
            let holder = holders.get(&lost).map(|holder| subjects[*holder].name.to_owned());
            let what = format!("listen port {lost}");
            report_reassigned(&mut subjects[index], &what, holder, &port.to_string());
        }
    }
}

fn least_used(uses: &BTreeMap<u16, usize>, fallback: u16) -> u16 {
    let least = uses.iter().min_by_key(|(port, count)| (**count, **port));
    least.map_or(fallback, |(port, _)| *port)
}

/// Keeps the story of an earlier reassignment as long as its outcome stands: the defect it reports was put right in the
/// same moment, so nothing else would remember it.
pub(super) fn keep_reassigned_story(subject: &Subject<'_>, conditions: &mut Vec<Condition>) {
    let told = conditions.iter().any(|condition| condition.kind == ConditionType::AddressReassigned);
    let Some(stored) = subject.stored.filter(|_| !told) else {
        return;
    };
    let stands = stored.spec.mesh_ips == subject.spec.mesh_ips && stored.spec.listen_port == subject.spec.listen_port;
    let story = stored.conditions.iter().find(|condition| condition.kind == ConditionType::AddressReassigned);
    conditions.extend(story.filter(|_| stands).cloned());
}

fn report_reassigned(subject: &mut Subject<'_>, lost: &str, holder: Option<String>, now: &str) {
    let (reason, found) = match holder {
        Some(holder) => (Reason::HeldByOther, format!("which node {holder} holds and keeps")),
        None => (Reason::OutOfRange, "which the mesh cannot give out".to_owned()),
    };
    let text = format!(
        "expected a value of its own inside the range of Mesh/default, found {lost}, {found}; it has {now} now, nothing \
         needs to be done"
    );
    subject.tell(EventReason::AddressReassigned, text.clone());
    subject.find(ConditionType::AddressReassigned, reason, text);
}

fn report_exhausted(subject: &mut Subject<'_>, range: IpNet) {
    let text =
        format!("expected a free address in {range}, found none; widen the mesh range in Mesh/default or remove nodes");
    subject.find(ConditionType::AddressPoolExhausted, Reason::Exhausted, text);
}

/// The addresses of one mesh range.
struct Pool {
    net: IpNet,
    blocked: Vec<IpNet>,
    used: BTreeSet<IpAddr>,
    /// Nothing below is free: addresses are only ever taken during one plan.
    cursor: u128,
}

impl Pool {
    fn new(net: IpNet, services: &[IpNet]) -> Self {
        let mut blocked: Vec<IpNet> = NEVER_CARRIED.iter().chain(services).copied().collect();
        // The network address is the subnet-router anycast address in IPv6 (RFC 4291, 2.6.1); the broadcast address
        // exists in IPv4 only. Ranges of one or two addresses have neither (RFC 3021, RFC 6164).
        if net.max_prefix_len() - net.prefix_len() >= 2 {
            blocked.push(prefix::host(net.network()));
            if net.addr().is_ipv4() {
                blocked.push(prefix::host(net.broadcast()));
            }
        }
        Self { net, blocked, used: BTreeSet::new(), cursor: to_bits(net.network()) }
    }

    fn blocker(&self, addr: IpAddr) -> Option<&IpNet> {
        self.blocked.iter().find(|net| net.contains(&addr))
    }

    fn is_assignable(&self, addr: IpAddr) -> bool {
        self.net.contains(&addr) && self.blocker(addr).is_none()
    }

    fn take(&mut self, addr: IpAddr) -> bool {
        self.is_assignable(addr) && self.used.insert(addr)
    }

    fn take_lowest(&mut self) -> Option<IpAddr> {
        let last = to_bits(self.net.broadcast());
        while self.cursor <= last {
            let addr = from_bits(self.cursor, self.net.addr().is_ipv4());
            // A blocked range is skipped as a whole: it may be larger than any loop could walk.
            let blocked = self.blocker(addr).map(|net| to_bits(net.broadcast()));
            let through = match blocked {
                Some(end) => end,
                None if self.used.insert(addr) => return Some(addr),
                None => self.cursor,
            };
            self.cursor = through.checked_add(1)?;
        }
        None
    }
}

fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

fn from_bits(bits: u128, is_v4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if is_v4 => IpAddr::V4(bits.into()),
        _ => IpAddr::V6(bits.into()),
    }
}

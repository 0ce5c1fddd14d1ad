//! The whole `MeshNode.status` from what is known, and what of a difference is urgent.

use super::{
    conditions::{self, Facts},
    pacer::Change,
};
use crate::relays::{MAX_RELAYS, Row, State, Transport};
use crds::{
    Condition, MeshNodeStatus,
    mesh_node::{self, Backend, Nat, PathCounts, RelayReach, RelayTransport},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use path::{Candidate, CandidateKind, NatClass, NatReport};
use topology::peer::MAX_CANDIDATES;
use wire::key::PublicKey;

/// The conditions that follow paths: people read them, and they can wait until paths stand still.
const OF_PATHS: [&str; 2] = ["PathsHealthy", crds::names::RELAY_PORTS_EXHAUSTED];

/// What a status says beside its conditions.
#[derive(Clone, Debug)]
pub struct Content {
    /// Our key.
    pub public_key: PublicKey,
    /// The proof that it is ours.
    pub key_proof: Option<String>,
    /// By what relays recognise us, in base64.
    pub identity_key: String,
    /// The port that WireGuard has.
    pub listen_port: Option<u16>,
    /// Counts starts and changes of address.
    pub round: u32,
    /// Where we may be reached.
    pub candidates: Vec<mesh_node::Candidate>,
    /// What NATs we stand behind.
    pub nat: Nat,
    /// Which WireGuard runs.
    pub backend: Option<Backend>,
    /// The port that leads to the relay on this node.
    pub relay_tls_port: Option<u16>,
    /// The relays that there is a channel to.
    pub relays: Vec<RelayReach>,
    /// Generation of the spec that is programmed.
    pub generation: Option<i64>,
}

/// The status to have in the API. `before` is what is there now: unchanged conditions keep their time.
pub fn status(content: &Content, facts: &Facts, before: &[Condition], now: &Time) -> MeshNodeStatus {
    let observed = conditions::observe(facts);
    MeshNodeStatus {
        observed_generation: content.generation,
        public_key: Some(content.public_key.to_string()),
        key_proof: content.key_proof.clone(),
        identity_key: Some(content.identity_key.clone()),
        listen_port: content.listen_port,
        round: content.round,
        candidates: content.candidates.clone(),
        nat: content.nat.clone(),
        backend: content.backend,
        relay_tls_port: content.relay_tls_port,
        relays: content.relays.clone(),
        mtu: facts.device.as_ref().and_then(|d| d.as_ref().ok()).copied(),
        version: Some(env!("CARGO_PKG_VERSION").into()),
        paths: PathCounts {
            direct: facts.paths.direct,
            relayed: facts.paths.relayed,
            down: facts.paths.down,
            summary: Some(format!("{}d/{}r/{}x", facts.paths.direct, facts.paths.relayed, facts.paths.down)),
        },
        conditions: conditions::with_history(observed, before, content.generation, now),
    }
}

/// How urgent it is to replace `old` by `new`.
pub fn change(old: Option<&MeshNodeStatus>, new: &MeshNodeStatus) -> Change {
    let Some(old) = old else { return Change::Prompt };
    let awaited = |s: &MeshNodeStatus| MeshNodeStatus {
        observed_generation: None,
        relays: Vec::new(),
        paths: PathCounts::default(),
        conditions: Vec::new(),
        // Peers hear it from the node itself.
        nat: Nat { poisonable: None, ..s.nat.clone() },
        ..s.clone()
    };
    if awaited(old) != awaited(new) {
        return Change::Prompt;
    }
    let about_paths = |c: &&Condition| OF_PATHS.contains(&c.type_.as_str());
    let others = |c: &&Condition| !OF_PATHS.contains(&c.type_.as_str());
    if old.observed_generation != new.observed_generation || !same_conditions(old, new, others) {
        return Change::Conditions;
    }
    let for_people = |s: &MeshNodeStatus| (s.paths.clone(), s.relays.clone(), s.nat.poisonable);
    let same = for_people(old) == for_people(new) && same_conditions(old, new, about_paths);
    if same { Change::None } else { Change::Paths }
}

fn same_conditions(a: &MeshNodeStatus, b: &MeshNodeStatus, which: fn(&&Condition) -> bool) -> bool {
    let sorted = |s: &MeshNodeStatus| -> Vec<Condition> {
        let mut chosen: Vec<Condition> = s.conditions.iter().filter(which).cloned().collect();
        chosen.sort_by(|a, b| a.type_.cmp(&b.type_));
        chosen
    };
    let (a, b) = (sorted(a), sorted(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.same_as(b))
}

/// The backend as the API names it.
pub fn backend(backend: wgdev::Backend) -> Backend {
    match backend {
        wgdev::Backend::Kernel => Backend::Kernel,
        wgdev::Backend::Userspace => Backend::Userspace,
    }
}

/// NATs as the API names them. A NAT that is being tested again has the result that was published last.
pub fn nat(report: &NatReport, poisonable: Option<bool>, published: Option<&Nat>) -> Nat {
    let ipv4 = nat_class(report.v4);
    let last = published.filter(|published| ipv4.is_some() && published.ipv4 == ipv4);
    let poisonable = poisonable.or(last.and_then(|published| published.poisonable));
    Nat { ipv4, ipv6: nat_class(report.v6), poisonable }
}

/// Candidates as the API has them: sorted and without duplicates, so that the same set is the same text.
pub fn candidates(found: &[Candidate]) -> Vec<mesh_node::Candidate> {
    let mut listed: Vec<(CandidateKind, mesh_node::Candidate)> =
        found.iter().filter_map(|c| Some((c.kind, published(c)?))).collect();
    // What works through a NAT first: it is what the column of endpoints shows.
    listed.sort_by(|(ka, a), (kb, b)| (rank(*ka), a).cmp(&(rank(*kb), b)));
    listed.dedup_by(|a, b| a.1 == b.1);
    listed.truncate(MAX_CANDIDATES);
    listed.into_iter().map(|(_, c)| c).collect()
}

/// The relays elsewhere that there is a channel to. Of one that is being connected to for the first time, what this node published
/// before it started holds.
pub fn relays<'a>(rows: impl Iterator<Item = &'a Row>, published: &[RelayReach]) -> Vec<RelayReach> {
    let reach = |row: &Row| match row.state {
        State::Open(transport) => Some(RelayReach { name: row.relay.name.clone(), transport: of(transport) }),
        State::Connecting => published.iter().find(|reach| reach.name == row.relay.name).cloned(),
        State::Closed(_) => None,
    };
    // That there is a channel to the one on this very node proves nothing.
    let mut found: Vec<RelayReach> = rows.filter(|row| !row.relay.udp.is_empty()).filter_map(reach).collect();
    found.sort();
    found.dedup_by(|a, b| a.name == b.name);
    found.truncate(MAX_RELAYS);
    found
}

fn of(transport: Transport) -> RelayTransport {
    match transport {
        Transport::Quic => RelayTransport::Quic,
        Transport::Tls => RelayTransport::Tls,
    }
}

fn rank(kind: CandidateKind) -> u8 {
    match kind {
        CandidateKind::Static => 0,
        CandidateKind::PortMapped => 1,
        CandidateKind::ServerReflexive => 2,
        CandidateKind::Host | CandidateKind::PeerReflexive => 3,
    }
}

fn published(candidate: &Candidate) -> Option<mesh_node::Candidate> {
    let kind = match candidate.kind {
        CandidateKind::Host => mesh_node::CandidateKind::Host,
        CandidateKind::ServerReflexive => mesh_node::CandidateKind::ServerReflexive,
        CandidateKind::PortMapped => mesh_node::CandidateKind::PortMapped,
        CandidateKind::Static => mesh_node::CandidateKind::Static,
        CandidateKind::PeerReflexive => return None,
    };
    Some(mesh_node::Candidate { address: candidate.addr.to_string(), kind })
}

fn nat_class(class: NatClass) -> Option<mesh_node::NatClass> {
    match class {
        NatClass::Unknown => None,
        NatClass::Open => Some(mesh_node::NatClass::Open),
        NatClass::EndpointIndependent => Some(mesh_node::NatClass::EndpointIndependent),
        // Whether ports count up or are drawn isn't measured, so neither is claimed.
        NatClass::AddressDependent | NatClass::AddressAndPortDependent => Some(mesh_node::NatClass::AddressDependent),
        NatClass::Blocked => Some(mesh_node::NatClass::Blocked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Summary;
    use path::Reason;

    fn found() -> Vec<Candidate> {
        let host = |a: &str| Candidate::new(CandidateKind::Host, a.parse().unwrap());
        vec![
            host("192.0.2.7:21820"),
            host("10.0.0.7:21820"),
            Candidate::new(CandidateKind::ServerReflexive, "198.51.100.7:4242".parse().unwrap()),
            host("192.0.2.7:21820"),
        ]
    }

    fn content() -> Content {
        Content {
            public_key: PublicKey::from_bytes([9; 32]),
            key_proof: None,
            identity_key: "identity".into(),
            listen_port: Some(21820),
            round: 3,
            candidates: candidates(&found()),
            nat: nat(&NatReport { v4: NatClass::EndpointIndependent, v6: NatClass::Unknown }, Some(true), None),
            backend: Some(Backend::Userspace),
            relay_tls_port: None,
            relays: Vec::new(),
            generation: Some(2),
        }
    }

    fn make(content: &Content, facts: &Facts, second: i64) -> MeshNodeStatus {
        status(content, facts, &[], &Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap()))
    }

    #[test]
    fn candidates_are_sorted_and_unique_and_reflexive_ones_come_first() {
        let shown: Vec<String> = candidates(&found()).into_iter().map(|c| c.address).collect();
        assert_eq!(shown, ["198.51.100.7:4242", "10.0.0.7:21820", "192.0.2.7:21820"]);
    }

    #[test]
    fn the_order_in_which_candidates_were_found_is_no_change() {
        let old = make(&content(), &Facts::default(), 1);
        let mut reversed = found();
        reversed.reverse();
        let other = Content { candidates: candidates(&reversed), ..content() };
        assert_eq!(change(Some(&old), &make(&other, &Facts::default(), 2)), Change::None);
    }

    #[test]
    fn what_operator_and_peers_wait_for_is_prompt_and_paths_come_last() {
        let old = make(&content(), &Facts::default(), 1);
        assert_eq!(change(None, &old), Change::Prompt);
        let unconnected = vec![("b".into(), Reason::RelayPortsExhausted)];
        let paths = Summary { direct: 1, relayed: 1, down: 1, unconnected, portless: 1 };
        let mut facts = Facts { paths, ..Facts::default() };
        let new = make(&content(), &facts, 2);
        assert_eq!(change(Some(&old), &new), Change::Paths);
        assert_eq!((new.paths.relayed, new.paths.summary.as_deref()), (1, Some("1d/1r/1x")));
        let mut other = content();
        other.round += 1;
        assert_eq!(change(Some(&old), &make(&other, &facts, 2)), Change::Prompt);
        facts.guard = Some("held".into());
        assert_eq!(change(Some(&old), &make(&content(), &facts, 2)), Change::Conditions);
    }

    #[test]
    fn relays_are_those_elsewhere_with_an_open_channel_and_their_change_is_not_urgent() {
        use crate::relays::Relay;
        let row = |name: &str, state, udp: &[&str]| {
            let udp = udp.iter().map(|ip| ip.parse().unwrap()).collect();
            let relay =
                Relay { id: path::RelayId([1; 32]), name: name.into(), domain: None, quic: vec![], tls: vec![], udp };
            Row { relay, state, since: std::time::Instant::now() }
        };
        let there = ["198.51.100.7"];
        let rows = [
            row("d", State::Open(Transport::Tls), &there),
            row("a", State::Open(Transport::Quic), &there),
            row("b", State::Closed("no".into()), &there),
            row("c", State::Connecting, &there),
            row("here", State::Open(Transport::Quic), &[]),
        ];
        let reach = |name: &str, transport| RelayReach { name: name.into(), transport };
        let published = [reach("b", RelayTransport::Quic), reach("c", RelayTransport::Quic)];
        let found = relays(rows.iter(), &published);
        let expected = [("a", RelayTransport::Quic), ("c", RelayTransport::Quic), ("d", RelayTransport::Tls)];
        assert_eq!(found, expected.map(|(name, transport)| reach(name, transport)));
        let old = make(&content(), &Facts::default(), 1);
        let new = make(&Content { relays: found, ..content() }, &Facts::default(), 2);
        assert_eq!(change(Some(&old), &new), Change::Paths);
    }

    #[test]
    fn whether_a_nat_is_poisonable_stays_while_it_is_tested_again_and_its_change_is_not_urgent() {
        let of = |v4| NatReport { v4, v6: NatClass::Unknown };
        let first = nat(&of(NatClass::EndpointIndependent), Some(true), None);
        assert_eq!(first.poisonable, Some(true));
        assert_eq!(nat(&of(NatClass::EndpointIndependent), None, Some(&first)), first);
        assert_eq!(nat(&of(NatClass::EndpointIndependent), Some(false), Some(&first)).poisonable, Some(false));
        assert_eq!(nat(&of(NatClass::Blocked), None, Some(&first)).poisonable, None, "another NAT");
        assert_eq!(nat(&of(NatClass::Unknown), None, Some(&Nat::default())).poisonable, None);
        let old = make(&content(), &Facts::default(), 1);
        let other = Nat { poisonable: Some(false), ..content().nat };
        let new = make(&Content { nat: other, ..content() }, &Facts::default(), 2);
        assert_eq!(change(Some(&old), &new), Change::Paths);
    }

    #[test]
    fn peer_reflexive_addresses_are_never_published() {
        let learned = Candidate::new(CandidateKind::PeerReflexive, "192.0.2.1:1".parse().unwrap());
        assert!(candidates(&[learned]).is_empty());
    }
}

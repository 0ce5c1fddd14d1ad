//! Which status to write, if any. Pure: object, addresses and time in, plan out.

use std::net::SocketAddr;

use crds::address::is_public;
use crds::{Condition, ConditionStatus, MeshRelay, MeshRelayStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;

use super::Identity;
use crate::addresses::usable;
use crate::control::Doors;
use crate::identity;

/// What to do about an object.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// The object says what it should.
    Nothing,
    /// It belongs to another node.
    Foreign {
        /// The node it names.
        node_name: String,
    },
    /// Write this status.
    Write(MeshRelayStatus),
}

/// How nodes find and recognise the control channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// The public half of the relay's identity.
    pub(super) identity: [u8; channel::IDENTITY_LEN],
    /// Which doors are open.
    pub(super) doors: Doors,
    /// The TCP port that the agent of this node leads to the door for TLS.
    pub(super) led: Option<u16>,
}

impl Offer {
    /// Where nodes reach the door for TLS, best first: what lets only web traffic out knows the port that leads there.
    fn tls_ports(&self) -> Vec<u16> {
        let Some(own) = self.doors.tls else { return Vec::new() };
        self.led.filter(|led| *led != own).into_iter().chain([own]).collect()
    }
}

pub(super) fn plan(
    relay: &MeshRelay,
    identity: &Identity,
    addresses: &[SocketAddr],
    offer: Option<&Offer>,
    now: Time,
) -> Plan {
    if let (Some(theirs), Some(ours)) = (&relay.spec.node_name, &identity.node_name)
        && theirs != ours
    {
        return Plan::Foreign { node_name: theirs.clone() };
    }
    let current = relay.status.clone().unwrap_or_default();
    let desired = desired(relay, &current, addresses, offer, now);
    if says_the_same(&current, &desired) { Plan::Nothing } else { Plan::Write(desired) }
}

/// Whether the watch delivers a state from before the last write, which would be taken for a change by somebody else.
pub(super) fn is_older(new: &MeshRelay, seen: &MeshRelay) -> bool {
    // Kubernetes makes resource versions of one object comparable as numbers; whatever is none is taken as new.
    let version = |relay: &MeshRelay| relay.metadata.resource_version.as_ref()?.parse::<u64>().ok();
    let same_object = new.metadata.uid == seen.metadata.uid;
    same_object && version(new).zip(version(seen)).is_some_and(|(new, seen)| new < seen)
}

/// The body of a server-side apply: every field that this relay owns.
pub(super) fn patch(name: &str, status: &MeshRelayStatus) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": MeshRelay::api_version(&()),
        "kind": MeshRelay::kind(&()),
        "metadata": { "name": name },
        "status": status,
    })
}

fn desired(
    relay: &MeshRelay,
    current: &MeshRelayStatus,
    addresses: &[SocketAddr],
    offer: Option<&Offer>,
    now: Time,
) -> MeshRelayStatus {
    let generation = relay.metadata.generation;
    let ips = ips(addresses);
    // A key without an open door, or a door without an address, would only send nodes to where nobody answers.
    let open = offer.filter(|offer| offer.doors != Doors::default() && !ips.is_empty());
    let observations = [ready(&relay.spec.addresses, addresses), public_address(addresses)];
    let observations = observations.into_iter().chain(offer.map(|_| relaying(open)));
    let conditions = observations.map(|(type_, status, reason, message)| {
        let before = current.conditions.iter().find(|before| before.type_ == type_ && before.status == status);
        Condition {
            type_: type_.to_owned(),
            status,
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: before.map_or_else(|| now.clone(), |before| before.last_transition_time.clone()),
        }
    });
    MeshRelayStatus {
        observed_generation: generation,
        stun: addresses.iter().map(ToString::to_string).collect(),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        identity_key: open.map(|offer| identity::to_text(&offer.identity)),
        addresses: if open.is_some() { ips } else { Vec::new() },
        quic_port: open.and_then(|offer| offer.doors.quic),
        tls_port: open.and_then(|offer| offer.doors.tls),
        tls_ports: open.map(Offer::tls_ports).unwrap_or_default(),
        conditions: conditions.collect(),
    }
}

/// The addresses without their STUN ports, each once, in the same order: a NAT that forwards the one port is taken to forward the
/// others too.
fn ips(addresses: &[SocketAddr]) -> Vec<String> {
    let mut ips = Vec::with_capacity(addresses.len());
    for text in addresses.iter().map(|address| address.ip().to_string()) {
        if !ips.contains(&text) {
            ips.push(text);
        }
    }
    ips
}

type Observation = (&'static str, ConditionStatus, &'static str, String);

fn ready(given: &[String], addresses: &[SocketAddr]) -> Observation {
    let mut message = if addresses.is_empty() {
        "Expected an address that others can send to, found no interface with a default route; \
            write ADDRESS:PORT into spec.addresses of this MeshRelay."
            .to_owned()
    } else {
        format!("Answers STUN at {} address(es).", addresses.len())
    };
    let useless: Vec<&str> = given.iter().map(String::as_str).filter(|text| usable(text).is_none()).collect();
    if !useless.is_empty() {
        message.push_str(&format!(" Left out of spec.addresses, since nobody can send there: {}.", useless.join(", ")));
    }
    if addresses.is_empty() {
        ("Ready", ConditionStatus::False, "NoAddress", message)
    } else {
        ("Ready", ConditionStatus::True, "Serving", message)
    }
}

fn relaying(open: Option<&Offer>) -> Observation {
    match open.map(|offer| offer.doors) {
        Some(Doors { quic: Some(_), tls: Some(_) }) => (
            "Relaying",
            ConditionStatus::True,
            "Serving",
            "Nodes may ask for relayed pairs by QUIC and by TLS.".to_owned(),
        ),
        Some(Doors { quic, .. }) => {
            let (open, closed) = if quic.is_some() { ("QUIC", "TLS") } else { ("TLS", "QUIC") };
            let message = format!(
                "Nodes may ask for relayed pairs by {open}. Expected to listen for {closed} too, found its port taken on this host; \
                free it, or give the relay another."
            );
            ("Relaying", ConditionStatus::True, "OneTransport", message)
        }
        None => {
            let message = "Expected a port for QUIC or TLS that is free on this host and an address that others can send to, found \
                none; see the log of the relay.";
            ("Relaying", ConditionStatus::False, "NoDoor", message.to_owned())
        }
    }
}

fn public_address(addresses: &[SocketAddr]) -> Observation {
    if addresses.iter().any(|address| is_public(address.ip())) {
        let message = "At least one address is not from a private range.";
        ("PublicAddress", ConditionStatus::True, "GlobalAddress", message.to_owned())
    } else {
        let message = "Expected an address from a public range, found none: nodes in other networks cannot ask this relay. \
            If a NAT or router forwards to it, write the outer ADDRESS:PORT into spec.addresses of this MeshRelay.";
        ("PublicAddress", ConditionStatus::False, "PrivateOnly", message.to_owned())
    }
}

/// Whether a write would tell a reader anything new.
fn says_the_same(current: &MeshRelayStatus, desired: &MeshRelayStatus) -> bool {
    let MeshRelayStatus {
        observed_generation,
        stun,
        identity_key,
        addresses,
        quic_port,
        tls_port,
        tls_ports,
        version,
        conditions,
    } = desired;
    current.observed_generation == *observed_generation
        && current.stun == *stun
        && current.identity_key == *identity_key
        && current.addresses == *addresses
        && (current.quic_port, current.tls_port, &current.tls_ports) == (*quic_port, *tls_port, tls_ports)
        && current.version == *version
        // Conditions of others in the map list are theirs.
        && conditions.iter().all(|want| current.conditions.iter().any(|have| have.same_as(want)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn identity() -> Identity {
        Identity { name: "relay".into(), node_name: Some("node".into()) }
    }

    fn relay(generation: i64, status: Option<MeshRelayStatus>) -> MeshRelay {
        let mut relay = MeshRelay::default();
        relay.metadata.generation = Some(generation);
        relay.spec.node_name = Some("node".into());
        relay.status = status;
        relay
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn written(relay: &MeshRelay, texts: &[&str], second: i64) -> MeshRelayStatus {
        match plan(relay, &identity(), &addresses(texts), None, at(second)) {
            Plan::Write(status) => status,
            other => panic!("expected a write, found {other:?}"),
        }
    }

    #[test]
    fn a_new_object_is_written_once() {
        let status = written(&relay(1, None), &["203.0.113.7:3478"], 10);
        assert_eq!(status.stun, ["203.0.113.7:3478"]);
        assert_eq!(
            plan(&relay(1, Some(status)), &identity(), &addresses(&["203.0.113.7:3478"]), None, at(99)),
            Plan::Nothing
        );
    }

    #[test]
    fn a_change_is_written_and_keeps_the_times_of_what_stayed() {
        let before = written(&relay(1, None), &["203.0.113.7:3478"], 10);
        let after = written(&relay(1, Some(before.clone())), &["10.0.0.7:3478"], 20);
        let times = |status: &MeshRelayStatus| {
            status.conditions.iter().map(|condition| condition.last_transition_time.clone()).collect::<Vec<_>>()
        };
        assert_eq!(times(&before), [at(10), at(10)]);
        assert_eq!(times(&after), [at(10), at(20)]);
        assert_eq!(written(&relay(2, Some(before)), &["203.0.113.7:3478"], 30).observed_generation, Some(2));
    }

    #[test]
    fn conditions_say_what_is_wrong() {
        let summary = |texts: &[&str]| {
            let status = written(&relay(1, None), texts, 10);
            status.conditions.iter().map(|condition| (condition.status, condition.reason.clone())).collect::<Vec<_>>()
        };
        let (yes, no) = (ConditionStatus::True, ConditionStatus::False);
        assert_eq!(summary(&["203.0.113.7:1"]), [(yes, "Serving".into()), (yes, "GlobalAddress".into())]);
        assert_eq!(summary(&["192.168.1.7:1"]), [(yes, "Serving".into()), (no, "PrivateOnly".into())]);
        assert_eq!(summary(&[]), [(no, "NoAddress".into()), (no, "PrivateOnly".into())]);
    }

    #[test]
    fn a_given_address_that_is_nobodys_is_named() {
        let mut object = relay(1, None);
        object.spec.addresses = vec!["0.0.0.0:1".into(), "203.0.113.7:3478".into()];
        let status = written(&object, &["203.0.113.7:3478"], 10);
        let ready = &status.conditions[0];
        assert_eq!((ready.status, ready.reason.as_str()), (ConditionStatus::True, "Serving"));
        assert!(ready.message.ends_with("nobody can send there: 0.0.0.0:1."), "{}", ready.message);
    }

    #[test]
    fn the_object_of_another_node_is_left_alone() {
        let mut theirs = relay(1, None);
        theirs.spec.node_name = Some("other".into());
        let plan = plan(&theirs, &identity(), &addresses(&["203.0.113.7:1"]), None, at(1));
        assert_eq!(plan, Plan::Foreign { node_name: "other".into() });
    }

    #[test]
    fn a_late_event_is_older() {
        let version = |uid: &str, version: &str| {
            let mut relay = relay(1, None);
            relay.metadata.uid = Some(uid.into());
            relay.metadata.resource_version = Some(version.into());
            relay
        };
        assert!(is_older(&version("a", "9"), &version("a", "10")));
        assert!(!is_older(&version("a", "10"), &version("a", "10")));
        assert!(!is_older(&version("a", "11"), &version("a", "10")));
        assert!(!is_older(&version("b", "9"), &version("a", "10")), "another object of the same name");
        assert!(!is_older(&version("a", "x"), &version("a", "10")));
    }

    #[test]
    fn a_condition_of_somebody_else_is_no_reason_to_write() {
        let mut status = written(&relay(1, None), &["203.0.113.7:3478"], 10);
        let mut foreign = status.conditions[0].clone();
        foreign.type_ = "Reachable".into();
        status.conditions.push(foreign);
        let again = plan(&relay(1, Some(status)), &identity(), &addresses(&["203.0.113.7:3478"]), None, at(99));
        assert_eq!(again, Plan::Nothing);
    }

    fn offered(doors: Doors, texts: &[&str]) -> MeshRelayStatus {
        let offer = Offer { identity: [7; 32], doors, led: None };
        match plan(&relay(1, None), &identity(), &addresses(texts), Some(&offer), at(1)) {
            Plan::Write(status) => {
                let again = relay(1, Some(status.clone()));
                let again = plan(&again, &identity(), &addresses(texts), Some(&offer), at(2));
                assert_eq!(again, Plan::Nothing);
                status
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nodes_are_told_the_key_the_addresses_and_the_doors_that_are_open() {
        let both = Doors { quic: Some(51899), tls: Some(8443) };
        let texts = ["198.51.100.7:443", "198.51.100.7:3478", "[2001:db8::7]:3478"];
        let status = offered(both, &texts);
        assert_eq!(status.identity_key, Some(identity::to_text(&[7; 32])));
        assert_eq!(status.addresses, ["198.51.100.7", "2001:db8::7"]);
        assert_eq!((status.quic_port, status.tls_port), (Some(51899), Some(8443)));
        let of = |status: &MeshRelayStatus| (status.conditions[2].status, status.conditions[2].reason.clone());
        assert_eq!(of(&status), (ConditionStatus::True, "Serving".into()));

        let status = offered(Doors { tls: None, ..both }, &texts);
        assert_eq!((status.quic_port, status.tls_port), (Some(51899), None));
        assert_eq!(of(&status), (ConditionStatus::True, "OneTransport".into()));
        assert!(status.conditions[2].message.contains("for TLS too"), "{}", status.conditions[2].message);

        for (doors, texts) in [(Doors::default(), &texts[..]), (both, &[])] {
            let status = offered(doors, texts);
            assert_eq!((status.identity_key.as_ref(), status.addresses.len(), status.quic_port), (None, 0, None));
            assert_eq!(of(&status), (ConditionStatus::False, "NoDoor".into()));
        }
    }

    #[test]
    fn a_door_that_opens_later_is_a_reason_to_write() {
        let before = offered(Doors { quic: Some(1), tls: None }, &["198.51.100.7:1"]);
        let offer = Offer { identity: [7; 32], doors: Doors { quic: Some(1), tls: Some(2) }, led: None };
        let plan = plan(&relay(1, Some(before)), &identity(), &addresses(&["198.51.100.7:1"]), Some(&offer), at(2));
        assert!(matches!(plan, Plan::Write(status) if status.tls_port == Some(2)));
    }

    #[test]
    fn the_port_that_leads_here_comes_before_the_own_one_and_goes_with_the_redirect() {
        let (doors, texts) = (Doors { quic: None, tls: Some(8443) }, ["198.51.100.7:1"]);
        let before = offered(doors, &texts);
        assert_eq!((before.tls_port, &before.tls_ports[..]), (Some(8443), &[8443][..]));
        let with = |led, before: MeshRelayStatus| {
            let offer = Offer { identity: [7; 32], doors, led };
            match plan(&relay(1, Some(before)), &identity(), &addresses(&texts), Some(&offer), at(2)) {
                Plan::Write(status) => status,
                other => panic!("{other:?}"),
            }
        };
        let led = with(Some(443), before);
        assert_eq!((led.tls_port, &led.tls_ports[..]), (Some(8443), &[443, 8443][..]));
        assert_eq!(with(None, led).tls_ports, [8443]);
        let closed = Offer { identity: [7; 32], doors: Doors::default(), led: Some(443) };
        assert_eq!(closed.tls_ports(), [0; 0], "it leads to a door that is shut");
    }
}

//! From a delta to messages.

use std::collections::BTreeMap;

use wire::key::PublicKey;

use super::message::{Action, Entry};
use crate::{
    Delta, MAX_PEERS, PeerStatus, PeerUpdate, Refusal, RefusalReason,
    check::{keepalive_secs, refuse},
};

/// Peers that one message adds or changes: the kernel holds the device's lock for all of it.
const MAX_UPSERTS: usize = 64;

/// Peers that one message removes: the kernel waits for packets in flight of each.
const MAX_REMOVALS: usize = 16;

/// Bytes of one message, half of what a nest can say. A peer with as many allowed IPs as a peer may have is 41 KiB and
/// has a message of its own: it is never split, so nobody ever sees it with a part of them.
const MAX_BYTES: usize = 32 * 1024;

/// What is known of the peers of a device without asking the kernel, whose only answer is all of them.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<PublicKey, Facts>);

/// What [`Known`] knows of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// WireGuard moves an endpoint, and never takes it away.
    pub(super) endpoint: bool,
    /// In seconds, 0 for none.
    pub(super) keepalive: u16,
}

/// What a delta becomes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Messages in order. Whenever the last one is that was sent, each peer is there with all of its allowed IPs or not
    /// at all.
    pub(super) messages: Vec<Vec<Entry>>,
    pub(super) refused: Vec<Refusal>,
}

impl Known {
    pub(super) fn of<'a>(peers: impl Iterator<Item = &'a PeerStatus>) -> Self {
        let facts = |p: &PeerStatus| Facts {
            endpoint: p.endpoint.is_some(),
            keepalive: keepalive_secs(p.keepalive).unwrap_or(0),
        };
        Self(peers.map(|p| (p.public_key, facts(p))).collect())
    }

    pub(super) fn get(&self, key: &PublicKey) -> Option<Facts> {
        self.0.get(key).copied()
    }

    /// Messages that apply a delta. What is known then is what holds after all of them.
    pub(super) fn plan(&mut self, delta: &Delta, own: &PublicKey) -> Plan {
        let mut plan = Plan::default();
        let remove = |key: &PublicKey| Entry { key: *key, action: Action::Remove };
        for key in &delta.remove {
            self.0.remove(key);
        }
        plan.add(delta.remove.iter().map(remove), MAX_REMOVALS);
        let mut upserts = Vec::with_capacity(delta.upsert.len());
        for update in &delta.upsert {
            match self.upsert(update, own) {
                Ok(entry) => upserts.extend(entry),
                Err(reason) => plan.refused.push(Refusal { public_key: update.public_key, reason }),
            }
        }
        plan.add(upserts, MAX_UPSERTS);
        plan
    }

    fn upsert(&mut self, update: &PeerUpdate, own: &PublicKey) -> Result<Option<Entry>, RefusalReason> {
        if let Some(reason) = refuse(update, own) {
            return Err(reason);
        }
        let PeerUpdate { public_key: key, endpoint, ref allowed_ips, keepalive } = *update;
        let keepalive = keepalive.map(|k| keepalive_secs(k).unwrap_or(0));
        let room = self.0.len() < MAX_PEERS;
        let action = match self.0.get_mut(&key) {
            Some(facts) => {
                facts.endpoint |= endpoint.is_some();
                facts.keepalive = keepalive.unwrap_or(facts.keepalive);
                if endpoint.is_none() && allowed_ips.is_none() && keepalive.is_none() {
                    return Ok(None);
                }
                Action::Change { endpoint, allowed_ips: allowed_ips.clone(), keepalive }
            }
            None if room => {
                let keepalive = keepalive.unwrap_or(0);
                self.0.insert(key, Facts { endpoint: endpoint.is_some(), keepalive });
                Action::Add { endpoint, allowed_ips: allowed_ips.clone().unwrap_or_default(), keepalive }
            }
            None => return Err(RefusalReason::TooManyPeers),
        };
        Ok(Some(Entry { key, action }))
    }
}

impl Plan {
    fn add(&mut self, entries: impl IntoIterator<Item = Entry>, limit: usize) {
        let (mut message, mut bytes) = (Vec::new(), 0);
        for entry in entries {
            let size = entry.size();
            if message.len() == limit || (bytes + size > MAX_BYTES && !message.is_empty()) {
                self.messages.push(std::mem::take(&mut message));
                bytes = 0;
            }
            bytes += size;
            message.push(entry);
        }
        if !message.is_empty() {
            self.messages.push(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ipnet::IpNet;
    use nlink::netlink::MessageBuilder;
    use wire::key::PrivateKey;

    use super::*;
    use crate::{MAX_ALLOWED_IPS, kernel::message::write_peers};

    fn key(n: u32) -> PublicKey {
        let mut secret = [7; 32];
        secret[..4].copy_from_slice(&n.to_be_bytes());
        PrivateKey::from_bytes(secret).public_key()
    }

    fn own() -> PublicKey {
        key(u32::MAX)
    }

    fn full(n: u32, allowed_ips: usize) -> PeerUpdate {
        let net = |i: usize| format!("fd00::{n:x}:{i:x}/128").parse::<IpNet>().unwrap();
        PeerUpdate {
            endpoint: Some("192.0.2.1:21820".parse().unwrap()),
            allowed_ips: Some((0..allowed_ips).map(net).collect()),
            keepalive: Some(Some(Duration::from_secs(25))),
            ..PeerUpdate::new(key(n))
        }
    }

    #[test]
    fn messages_stay_small_and_removals_come_first() {
        let mut known = Known::default();
        let delta = Delta { upsert: (0..200).map(|n| full(n, 3)).collect(), remove: (0..40).map(key).collect() };
        let plan = known.plan(&delta, &own());
        let sizes: Vec<_> = plan.messages.iter().map(Vec::len).collect();
        assert_eq!(sizes, [16, 16, 8, 64, 64, 64, 8]);
        assert!(plan.messages[..3].iter().flatten().all(|e| e.action == Action::Remove));
    }

    #[test]
    fn one_peer_among_thousands_is_one_message_with_one_peer() {
        let mut known = Known::default();
        known.plan(&Delta { upsert: (0..5_000).map(|n| full(n, 3)).collect(), remove: vec![] }, &own());
        let one = |upsert, remove| Delta { upsert, remove };
        for delta in [one(vec![full(5_000, 3)], vec![]), one(vec![full(7, 2)], vec![]), one(vec![], vec![key(9)])] {
            let plan = known.plan(&delta, &own());
            assert_eq!(plan.messages.iter().map(Vec::len).collect::<Vec<_>>(), [1], "{delta:?}");
        }
    }

    #[test]
    fn the_largest_peer_is_whole_and_fits() {
        let mut known = Known::default();
        let upsert = vec![full(1, 3), full(2, MAX_ALLOWED_IPS), full(3, 3)];
        let plan = known.plan(&Delta { upsert, remove: vec![] }, &own());
        assert_eq!(plan.messages.len(), 3);
        for message in &plan.messages {
            let mut encoded = MessageBuilder::new(0, 0);
            write_peers(&mut encoded, message);
            assert!(encoded.oversized_nest().is_none());
            assert!(encoded.len() <= 16 + 4 + message.iter().map(Entry::size).sum::<usize>(), "sizes are upper bounds");
        }
    }

    #[test]
    fn a_known_peer_is_changed_and_an_unknown_one_is_added_whole() {
        let mut known = Known::default();
        let moved = PeerUpdate { endpoint: Some("192.0.2.2:1".parse().unwrap()), ..PeerUpdate::new(key(1)) };
        let delta = |update: &PeerUpdate| Delta { upsert: vec![update.clone()], remove: vec![] };
        let action = |plan: Plan| plan.messages[0][0].action.clone();
        let added = action(known.plan(&delta(&moved), &own()));
        assert_eq!(added, Action::Add { endpoint: moved.endpoint, allowed_ips: vec![], keepalive: 0 });
        let changed = action(known.plan(&delta(&moved), &own()));
        assert_eq!(changed, Action::Change { endpoint: moved.endpoint, allowed_ips: None, keepalive: None });
        let nothing = known.plan(&delta(&PeerUpdate::new(key(1))), &own());
        assert_eq!(nothing, Plan::default());
        let anew = Delta { upsert: vec![moved], remove: vec![key(1)] };
        let plan = known.plan(&anew, &own());
        assert!(matches!(plan.messages[1][0].action, Action::Add { .. }));
    }

    #[test]
    fn facts_follow_the_plan() {
        let mut known = Known::default();
        let plan = |known: &mut Known, upsert, remove| known.plan(&Delta { upsert, remove }, &own());
        plan(&mut known, vec![PeerUpdate::new(key(1))], vec![]);
        assert_eq!(known.get(&key(1)), Some(Facts { endpoint: false, keepalive: 0 }));
        plan(&mut known, vec![full(1, 1)], vec![]);
        assert_eq!(known.get(&key(1)), Some(Facts { endpoint: true, keepalive: 25 }));
        let off = PeerUpdate { keepalive: Some(None), ..PeerUpdate::new(key(1)) };
        plan(&mut known, vec![off], vec![]);
        assert_eq!(known.get(&key(1)), Some(Facts { endpoint: true, keepalive: 0 }));
        plan(&mut known, vec![], vec![key(1)]);
        assert_eq!(known.get(&key(1)), None);
    }
}

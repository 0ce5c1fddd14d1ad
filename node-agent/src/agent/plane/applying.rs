//! Brings device and engine to what is planned, as far as it differs from what they have.

use super::{
    super::intent::{Intent, Leftovers, path_peer},
    Plane,
};
use ipnet::IpNet;
use path::{Input, Session};
use std::time::Instant;
use topology::node::{NodePlanner, PeerChange, PeerPlan, PlanChange};
use wgdev::{Delta, DeviceError, MAX_PEERS, PeerStatus, PeerUpdate};
use wire::key::PublicKey;

/// Peers changed in one call, so that no call holds the device's lock for long.
const UPSERT_CHUNK: usize = 64;
/// Peers removed in one call; a removal is dearer.
const REMOVE_CHUNK: usize = 16;

/// The plan, and the last step that it took.
#[derive(Clone, Copy)]
pub struct Planned<'a> {
    /// The plan.
    pub planner: &'a NodePlanner,
    /// How it differs from the one before.
    pub change: &'a PlanChange,
}

impl Planned<'_> {
    /// Whether whoever has the plan of this revision lacks nothing but the last step.
    pub fn follows(&self, revision: u64) -> bool {
        revision + u64::from(!self.change.is_empty()) == self.planner.revision()
    }
}

impl Plane {
    /// Brings device and engine to the plan, in the order of [`topology::node::PeerChanges`].
    pub async fn apply(&mut self, intent: &Intent, planned: Planned<'_>, now: Instant) -> Result<(), DeviceError> {
        self.feed_surroundings(intent, now);
        let abandoned = self.abandoned(intent, planned.planner);
        let one_step = self.leftover.is_empty() && self.revision.is_some_and(|known| planned.follows(known));
        let change = if one_step { planned.change.clone() } else { self.all_that_differs(planned.planner, &abandoned) };
        let mut refused = None;
        if !change.is_empty() {
            let failed = self.change_device(&change).await;
            self.change_engine(&change, now);
            match failed {
                None => {}
                // A refused peer is no reason to try the others again and again; anything else is.
                Some(DeviceError::Refused(peers)) => refused = Some(DeviceError::Refused(peers)),
                Some(e) => return Err(e),
            }
        }
        self.adopt(planned.planner, &abandoned, now).await?;
        change.apply(&mut self.peers);
        self.revision = Some(planned.planner.revision());
        refused.map_or(Ok(()), Err)
    }

    /// Tells the engine what else it must know of this node, as far as that is news.
    fn feed_surroundings(&mut self, intent: &Intent, now: Instant) {
        // What is forbidden first: nothing may be dialled before that is known.
        if self.fed.forbidden.as_ref() != Some(&intent.forbidden) {
            self.engine.handle_input(Input::Forbidden(intent.forbidden.clone()), now);
            self.fed.forbidden = Some(intent.forbidden.clone());
        }
        let idle = intent.idle.zip(self.carrier.as_ref());
        let on_demand = idle.map(|(idle, carrier)| path::OnDemand { idle, port: carrier.port() });
        if self.fed.on_demand != on_demand {
            self.engine.handle_input(Input::OnDemand(on_demand), now);
            self.fed.on_demand = on_demand;
        }
        // And relays before peers: what is said to one waits for its channel.
        for (relay, news) in self.relays.set(&intent.relays, now) {
            self.engine.handle_input(Input::Relay { relay, news }, now);
        }
        if self.fed.knows_relays != Some(intent.knows_relays) {
            self.engine.handle_input(Input::RelaysUnknown(!intent.knows_relays), now);
            self.fed.knows_relays = Some(intent.knows_relays);
        }
        if self.fed.stun_servers.as_ref() != Some(&intent.stun_servers) {
            self.engine.handle_input(Input::StunServers(intent.stun_servers.clone()), now);
            self.fed.stun_servers = Some(intent.stun_servers.clone());
        }
        if self.fed.hosts.as_ref() != Some(&intent.hosts) {
            self.engine.handle_input(Input::HostCandidates(intent.hosts.clone()), now);
            self.fed.hosts = Some(intent.hosts.clone());
        }
    }

    /// What to change when more than the last step may be missing.
    fn all_that_differs(&self, planner: &NodePlanner, abandoned: &[PublicKey]) -> PlanChange {
        let mut before = self.peers.clone();
        before.extend(self.leftover.iter().map(|(key, peer)| (*key, peer.clone())));
        let mut change = PlanChange::between(&before, &planner.plan().peers);
        let stays = |key: &PublicKey| self.leftover.contains_key(key) && !abandoned.contains(key);
        change.peers.retain(|key, (_, after)| after.is_some() || !stays(key));
        change
    }

    async fn change_device(&mut self, change: &PlanChange) -> Option<DeviceError> {
        let mut order = change.order();
        let added = change.peers.values().filter(|(before, _)| before.is_none()).count();
        if self.peers.len() + self.leftover.len() + added > MAX_PEERS {
            // No room for heirs beside those whom they follow.
            order.remove.append(&mut order.remove_last);
        }
        self.refused.retain(|key| !change.peers.contains_key(key));
        let mut failed = None;
        for keys in order.remove.chunks(REMOVE_CHUNK) {
            self.tell(removal(keys), &mut failed).await;
        }
        for changes in order.upsert.chunks(UPSERT_CHUNK) {
            let update = |told: &PeerChange| self.update_of(told, change);
            let upsert = changes.iter().map(update).collect();
            self.tell(Delta { remove: Vec::new(), upsert }, &mut failed).await;
        }
        if matches!(failed, Some(DeviceError::Refused(_))) {
            // Whoever should have taken what is lent may be among the refused.
            let lenders = order.upsert.iter().filter(|told| told.lent > 0);
            let exact = |key| Some(allowed(key, change.peers.get(&key)?.1.as_ref()?.allowed_ips.clone()));
            let exact: Vec<PeerUpdate> = lenders.filter_map(|told| exact(told.key)).collect();
            for upsert in exact.chunks(UPSERT_CHUNK).map(<[_]>::to_vec) {
                self.tell(Delta { remove: Vec::new(), upsert }, &mut failed).await;
            }
        }
        for keys in order.remove_last.chunks(REMOVE_CHUNK) {
            self.tell(removal(keys), &mut failed).await;
        }
        failed
    }

    async fn tell(&mut self, delta: Delta, failed: &mut Option<DeviceError>) {
        let result = self.device.apply(&delta).await;
        if let Err(DeviceError::Refused(refused)) = &result {
            self.refused.extend(refused.iter().map(|refusal| refusal.public_key));
        }
        keep_first(failed, result);
    }

    /// What the device is told of a peer: one that it lost, where it was reached too.
    fn update_of(&self, told: &PeerChange, change: &PlanChange) -> PeerUpdate {
        let update = allowed(told.key, told.allowed_ips.clone());
        let is_new = change.peers.get(&told.key).is_some_and(|(before, _)| before.is_none());
        match self.engine.endpoint_of(&told.key).filter(|_| is_new) {
            Some((endpoint, keepalive)) => {
                PeerUpdate { endpoint: Some(endpoint), keepalive: Some(keepalive), ..update }
            }
            None => update,
        }
    }

    fn change_engine(&mut self, change: &PlanChange, now: Instant) {
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        for (key, (before, after)) in &change.peers {
            for ip in before.iter().flat_map(|peer| &peer.mesh_ips) {
                // Unless somebody else has it already.
                if self.by_mesh_ip.get(ip) == Some(key) {
                    self.by_mesh_ip.remove(ip);
                }
            }
            match after {
                Some(peer) => {
                    self.by_mesh_ip.extend(peer.mesh_ips.iter().map(|ip| (*ip, *key)));
                    upsert.push(path_peer(*key, peer));
                }
                None => {
                    self.callers.forget(key);
                    remove.push(*key);
                }
            }
        }
        self.engine.handle_input(Input::Peers { upsert, remove }, now);
    }

    /// Whether the device has peers of before this process that the plan does not have.
    pub fn keeps_leftovers(&self) -> bool {
        !self.leftover.is_empty()
    }

    /// Leftover peers that shall go.
    fn abandoned(&self, intent: &Intent, planner: &NodePlanner) -> Vec<PublicKey> {
        let goes = |key: &PublicKey| match &intent.leftovers {
            Leftovers::Keep { revoked } => revoked.contains(key),
            Leftovers::Remove => true,
        };
        self.leftover.keys().filter(|key| !planner.plan().peers.contains_key(key) && goes(key)).copied().collect()
    }

    /// Hands the sessions of leftover peers that are planned now to the engine.
    async fn adopt(&mut self, planner: &NodePlanner, abandoned: &[PublicKey], now: Instant) -> Result<(), DeviceError> {
        self.leftover.retain(|key, _| !abandoned.contains(key));
        let planned = |key: &PublicKey| planner.plan().peers.contains_key(key);
        if !self.leftover.keys().any(planned) {
            return Ok(());
        }
        let session = |p: &PeerStatus| {
            let (endpoint, last_handshake) = (p.endpoint?, p.last_handshake?);
            Some(Session { peer: p.public_key, endpoint, keepalive: p.keepalive, last_handshake })
        };
        let peers = self.statuses().await?;
        let claimed = peers.iter().filter(|p| planned(&p.public_key) && self.leftover.contains_key(&p.public_key));
        let sessions = claimed.filter_map(session).collect();
        self.engine.handle_input(Input::Sessions(sessions), now);
        self.leftover.retain(|key, _| !planned(key));
        Ok(())
    }
}

/// What a device has of a peer, in the form of a plan: what differs from the next plan is changed, and nothing else.
pub(super) fn plan_of(found: &PeerStatus) -> PeerPlan {
    PeerPlan { allowed_ips: found.allowed_ips.clone(), ..PeerPlan::default() }
}

fn removal(keys: &[PublicKey]) -> Delta {
    Delta { remove: keys.to_vec(), upsert: Vec::new() }
}

fn allowed(key: PublicKey, allowed_ips: Vec<IpNet>) -> PeerUpdate {
    PeerUpdate { allowed_ips: Some(allowed_ips), ..PeerUpdate::new(key) }
}

fn keep_first(failed: &mut Option<DeviceError>, result: Result<(), DeviceError>) {
    // A device that is gone explains everything after it; a refusal may be followed by that.
    match result {
        Err(e @ DeviceError::Refused(_)) => {
            failed.get_or_insert(e);
        }
        Err(e) if !matches!(failed, Some(DeviceError::Stopped)) => *failed = Some(e),
        _ => {}
    }
}

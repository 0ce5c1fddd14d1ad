//! The directory: what one node publishes, the others learn, late and in any order.

use std::time::Duration;

use path::{Input, PeerConfig};

use super::{Action, World};

impl World {
    pub(super) fn distribute(&mut self, from: usize) {
        for to in 0..self.nodes.len() {
            if to != from && self.nodes[to].engine.is_some() {
                self.tell_about(to, from);
            }
        }
    }

    /// The directory tells a node about a peer, after a while.
    pub(super) fn tell_about(&mut self, node: usize, peer: usize) {
        let machine = &self.nodes[peer];
        let Some((candidates, _)) = &machine.published else {
            return;
        };
        let config =
            PeerConfig { public_key: machine.key, candidates: candidates.clone(), round: machine.starts, wanted: true };
        let (least, most) = self.directory_delay;
        let spread = u64::try_from((most - least).as_micros()).unwrap_or(0) + 1;
        let delay = least + Duration::from_micros(self.random.below(spread));
        self.after(delay, Action::Learn { node, peer, config });
    }

    pub(super) fn learn(&mut self, node: usize, peer: usize, config: PeerConfig) {
        // A slower answer must not undo a later one.
        let stale = self.nodes[peer].published.as_ref().is_none_or(|(now, _)| *now != config.candidates);
        if stale || !self.nodes[node].powered {
            return;
        }
        let now = self.now;
        let key = config.public_key;
        let machine = &mut self.nodes[node];
        machine.cache.insert(key, config.clone());
        machine.device.add_peer(key);
        machine.ledger.entry(key).or_default().known.get_or_insert(now);
        self.note(&format!("n{node} learns n{peer}"));
        self.input(node, Input::Peers { upsert: vec![config], remove: Vec::new() });
    }
}

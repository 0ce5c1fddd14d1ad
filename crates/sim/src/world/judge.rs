//! What must hold in every run, whatever happens in it.

use std::net::SocketAddr;
use std::time::Duration;

use path::PathState;

use super::World;
use crate::node::Ledger;
use crate::packet::Payload;

/// How long a path may be shown as direct while nothing gets through: to notice (a report, the silence), to probe
/// twice, and, when only data is blocked, to wait for the echoes.
const HONESTY: Duration = Duration::from_secs(5);

impl World {
    /// Checks every packet that leaves a node's agent.
    pub(super) fn judge_packet(&mut self, node: usize, remote: SocketAddr, payload: &Payload) {
        let machine = &mut self.nodes[node];
        let ip = remote.ip();
        let forbidden = ip.is_loopback()
            || ip.is_multicast()
            || ip.is_unspecified()
            || machine.forbidden.networks.iter().any(|net| net.contains(&ip))
            || machine.forbidden.own_addresses.contains(&ip)
            || machine.forbidden.api_servers.contains(&remote);
        if forbidden && matches!(payload, Payload::Plain(_)) {
            let at = self.now;
            self.violations.push(format!("{at:?} n{node} probed the forbidden {remote}"));
        }
        let targets: Vec<_> = (0..self.nodes.len())
            .filter(|other| *other != node && self.nodes[*other].outside == ip)
            .map(|other| self.nodes[other].key)
            .collect();
        for key in targets {
            self.nodes[node].ledger.entry(key).or_default().sent += 1;
        }
    }

    /// Checks that nobody shows a direct path that carries nothing.
    pub(super) fn judge(&mut self) {
        let now = self.now;
        let mut lies = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if node.engine.is_none() || !node.powered {
                continue;
            }
            for key in &node.pinged {
                let Some(ledger) = node.ledger.get(key) else {
                    continue;
                };
                if let Some((since, PathState::Direct { .. })) = ledger.state {
                    let last = ledger.last_pong.unwrap_or_default().max(since);
                    let last = last.max(ledger.watched);
                    if now - last > HONESTY {
                        let peer = self.name(key);
                        lies.push(format!("{now:?} n{index} shows {peer} direct, silent since {last:?}"));
                    }
                }
            }
        }
        self.violations.extend(lies);
        // One lie is told in many steps; the first ones are enough to see.
        self.violations.truncate(20);
    }
}

impl Ledger {
    /// The user's ping was answered.
    pub(super) fn pong(&mut self, token: u64, now: Duration) {
        self.unanswered.remove(&token);
        self.first_pong.get_or_insert(now);
        if let Some(last) = self.last_pong {
            self.outage = self.outage.max(now - last);
        }
        self.last_pong = Some(now);
    }
}

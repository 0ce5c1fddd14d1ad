//! What all peers of one engine share: the filter, the budget, the outgoing queues.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;

use crate::budget::Budget;
use crate::event::{Event, Transmit};
use crate::filter::Filter;
use crate::nat::NatReport;
use crate::nonces::Nonces;
use crate::stats::Stats;

/// Datagrams waiting for the shell: two rungs of the ladder for a thousand peers. What is beyond would be stale when sent.
const MAX_TRANSMITS: usize = 16_384;

pub(crate) struct Shared {
    pub(crate) filter: Filter,
    pub(crate) hosts: Vec<IpNet>,
    pub(crate) nat: NatReport,
    pub(crate) nonces: Nonces,
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) stats: Stats,
    /// Set when a path falls silent: this node's own mapping may have changed, and only an observer can tell.
    pub(crate) doubts_mapping: bool,
    budget: Budget,
}

impl Shared {
    pub(crate) fn new(seed: [u8; 32], now: Instant) -> Self {
        Self {
            filter: Filter::default(),
            hosts: Vec::new(),
            nat: NatReport::default(),
            nonces: Nonces::new(seed),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            stats: Stats::default(),
            doubts_mapping: false,
            budget: Budget::new(now),
        }
    }

    /// Whether a packet may go to `remote` now. Counts it against the address if so, and the refusal if not.
    pub(crate) fn permit(&mut self, remote: SocketAddr, proven: bool, now: Instant) -> bool {
        if let Err(refusal) = self.filter.check_remote(remote) {
            self.stats.refuse(refusal);
            return false;
        }
        if self.transmits.len() >= MAX_TRANSMITS {
            self.stats.dropped_queue += 1;
            return false;
        }
        if !self.budget.take(remote, proven, now) {
            self.stats.dropped_budget += 1;
            return false;
        }
        true
    }

    /// Queues a datagram that [`Self::permit`] has let through.
    pub(crate) fn send(&mut self, remote: SocketAddr, local: Option<IpAddr>, payload: Vec<u8>) {
        self.transmits.push_back(Transmit { remote, local, payload });
    }
}

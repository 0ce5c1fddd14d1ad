//! One observer and the transaction with it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::stun::{self, TransactionId};

use crate::shared::Shared;

/// Waits after the three transmissions of one request. RFC 8489's 500 ms and 39.5 s are for paths without a hurry.
const RTO: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];

/// Failed transactions before a mapping that was seen is given up: an observer that restarts is no change of our NAT.
const MAX_MISSES: u8 = 3;

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) mapped: Option<SocketAddr>,
    transactions: Vec<TransactionId>,
    /// When the next transmission, or giving up, is due. `None` while nothing is asked.
    due: Option<Instant>,
    misses: u8,
}

impl Server {
    pub(crate) fn new(addr: SocketAddr, now: Instant) -> Self {
        Self { addr, mapped: None, transactions: Vec::new(), due: Some(now), misses: 0 }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.due.is_some()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn has_asked(&self, tx: TransactionId) -> bool {
        self.transactions.contains(&tx)
    }

    pub(crate) fn ask_again(&mut self, now: Instant) {
        if self.due.is_none() {
            self.transactions.clear();
            self.due = Some(now);
        }
    }

    /// Takes the answer. Returns whether it differs from the one before.
    pub(crate) fn answered(&mut self, mapped: SocketAddr) -> bool {
        let changed = self.mapped.replace(mapped).is_some_and(|old| old != mapped);
        self.misses = 0;
        self.transactions.clear();
        self.due = None;
        changed
    }

    /// Sends what is due. Returns whether the observer was given up for now, which is news.
    pub(crate) fn handle_timeout(&mut self, shared: &mut Shared, now: Instant) -> bool {
        if self.due.is_none_or(|due| now < due) {
            return false;
        }
        let Some(rto) = RTO.get(self.transactions.len()) else {
            self.missed();
            return true;
        };
        let tx = shared.nonces.transaction_id();
        self.transactions.push(tx);
        self.due = Some(now + *rto);
        if shared.permit(self.addr, self.mapped.is_some(), now) {
            shared.stats.stun_requests += 1;
            let request = stun::encode_request(tx, stun::MEMBER_REQUEST_LEN);
            shared.send(self.addr, None, request);
        }
        false
    }

    fn missed(&mut self) {
        self.due = None;
        self.transactions.clear();
        self.misses = self.misses.saturating_add(1);
        if self.misses >= MAX_MISSES {
            self.mapped = None;
        }
    }
}

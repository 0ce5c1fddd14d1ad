//! One observer and the transaction with it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::stun::{self, TransactionId};

use crate::shared::Shared;

/// Waits after the three transmissions of one request. RFC 8489's 500 ms and 39.5 s are for paths without a hurry.
const RTO: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];

/// What an observer saw stands until somebody contradicts it: one that is silent, or no longer named, is no change of our NAT.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) mapped: Option<SocketAddr>,
    /// No longer named, so not asked; kept for what it saw.
    pub(crate) retired: bool,
    /// Another observer sees a change: silence now means that this one's view is old.
    doubted: bool,
    transactions: Vec<TransactionId>,
    /// When the next transmission, or giving up, is due. `None` while nothing is asked.
    due: Option<Instant>,
    misses: u8,
}

impl Server {
    pub(crate) fn new(addr: SocketAddr, now: Instant) -> Self {
        Self { addr, mapped: None, retired: false, doubted: false, transactions: Vec::new(), due: Some(now), misses: 0 }
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

    /// Whether it answered when it was last asked.
    pub(crate) fn is_answering(&self) -> bool {
        self.mapped.is_some() && self.misses == 0
    }

    /// Asks no more.
    pub(crate) fn retire(&mut self) {
        self.retired = true;
        self.due = None;
        self.transactions.clear();
    }

    /// Is named again.
    pub(crate) fn recall(&mut self, now: Instant) {
        if std::mem::take(&mut self.retired) {
            self.ask_again(now);
        }
    }

    /// Asks again because somebody else saw a change.
    pub(crate) fn doubt(&mut self, now: Instant) {
        self.doubted = true;
        self.ask_again(now);
    }

    pub(crate) fn ask_again(&mut self, now: Instant) {
        if self.due.is_none() && !self.retired {
            self.transactions.clear();
            self.due = Some(now);
        }
    }

    /// Takes the answer. Returns whether it differs from the one before.
    pub(crate) fn answered(&mut self, mapped: SocketAddr) -> bool {
        let changed = self.mapped.replace(mapped).is_some_and(|old| old != mapped);
        self.misses = 0;
        self.doubted = false;
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
            shared.send(self.addr, None, None, request);
        }
        false
    }

    fn missed(&mut self) {
        self.due = None;
        self.transactions.clear();
        self.misses = self.misses.saturating_add(1);
        if std::mem::take(&mut self.doubted) {
            self.mapped = None;
        }
    }
}

//! Signals: sealing, opening, and what they tell besides their step.

use std::time::Instant;

use wire::control::ToRelay;
use wire::probe::signal::{self, Signal, Step};
use wire::stun::TransactionId;

use super::Peer;
use crate::candidate::{Candidate, CandidateKind};
use crate::nat::NatClass;
use crate::shared::Shared;
use crate::snapshot::PeerNat;

impl Peer {
    /// Takes a signal under this peer's key id. Returns whether it was authentic and new.
    pub(crate) fn handle_signal(&mut self, bytes: &[u8], shared: &mut Shared, now: Instant) -> bool {
        let opened = signal::open(&self.keys, bytes).ok();
        let Some((id, signal)) = opened.filter(|(id, _)| self.requests.first_sight(*id)) else {
            shared.stats.dropped_signals += 1;
            return false;
        };
        shared.stats.signals_received += 1;
        self.punch.told = Some(PeerNat { class: NatClass::from_code(signal.class), poisonable: signal.poisonable });
        self.take_candidates(&signal, shared, now);
        if signal.step == Step::Call {
            self.wake(shared, now);
        }
        match signal.step {
            Step::Call => self.on_call(id, shared, now),
            Step::Ready { answers } => self.on_ready(id, answers, shared, now),
            Step::Go { answers } => self.on_go(answers, shared, now),
        }
        true
    }

    /// The peer's addresses, fresher than what the directory has.
    fn take_candidates(&mut self, signal: &Signal, shared: &mut Shared, now: Instant) {
        let candidate = |(kind, addr): &(u8, _)| Some(Candidate::new(CandidateKind::from_code(*kind)?, *addr));
        let signalled: Vec<Candidate> = signal.candidates.iter().filter_map(candidate).collect();
        if self.signalled != signalled {
            self.signalled = signalled;
            self.rebuild_pairs(shared, now);
        }
    }

    pub(super) fn send_signal(&mut self, step: Step, shared: &mut Shared) -> TransactionId {
        let candidates = shared.candidates.iter().filter_map(|known| Some((known.kind.code()?, known.addr))).collect();
        let poisonable = shared.is_poisonable();
        let signal = Signal { step, poisonable, class: shared.nat.v4.code(), candidates };
        let id = shared.nonces.transaction_id();
        shared.stats.signals_sent += 1;
        if let Some(relay) = self.met.first() {
            let bytes = signal::seal(&self.keys, id, &signal);
            shared.send_control(*relay, ToRelay::Signal { to: self.key, bytes });
        }
        id
    }
}

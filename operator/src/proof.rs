//! Proof of possession: the leader's short-lived key, its challenge, and the verdict on a node's answer.
//!
//! A challenge is drawn only when the admission policies have been seen in place, unaltered, for [`SETTLE`]: a policy exists
//! a moment before it acts, so an answer to such a challenge was written when the policies did act. When they
//! vanish the challenge is thrown away, and with it every answer. The private half lives in this process's memory alone;
//! a fail-over draws a new pair, which costs nodes that are admitted already nothing.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use topology::cluster::ProofVerdict;
use wire::{
    key::{PrivateKey, PublicKey},
    proof::{KeyProof, verify_key_proof},
};

/// How long the policies must have been seen: a policy was measured to act 0.02 to 0.25 s after it was made.
pub const SETTLE: Duration = Duration::from_secs(5);

/// The challenge that is open.
#[derive(Debug)]
pub struct Challenge {
    key: PrivateKey,
    /// The public half, as `Mesh.status.proofKey`.
    pub proof_key: PublicKey,
    /// As `Mesh.status.challenge`; its bytes are what nodes prove over.
    pub text: String,
    // Answers that were there before the challenge: they answer an older one.
    older: BTreeSet<String>,
}

/// Randomness for one challenge.
pub struct Seed {
    /// The private half of the proof key.
    pub key: [u8; 32],
    /// The challenge.
    pub challenge: [u8; 32],
}

/// The state of proving.
#[derive(Debug, Default)]
pub struct Prover {
    in_place_since: Option<Instant>,
    challenge: Option<Challenge>,
}

impl Prover {
    /// Whether the policies are in place was seen at `now`.
    pub fn observe(&mut self, in_place: bool, now: Instant) {
        if in_place {
            self.in_place_since.get_or_insert(now);
        } else {
            self.disturb();
        }
    }

    /// A policy was made, altered or removed, however it looks by now: what was answered meanwhile proves nothing.
    pub fn disturb(&mut self) {
        (self.in_place_since, self.challenge) = (None, None);
    }

    /// When the policies have been in place for long enough.
    pub fn settles_at(&self) -> Option<Instant> {
        self.in_place_since.map(|since| since + SETTLE)
    }

    /// Whether the policies have been in place for long enough.
    pub fn protected(&self, now: Instant) -> bool {
        self.settles_at().is_some_and(|at| at <= now)
    }

    /// Draws a challenge if one is due. `older` are the answers that nodes show at this moment.
    pub fn issue<E>(
        &mut self,
        now: Instant,
        seed: impl FnOnce() -> Result<Seed, E>,
        older: impl FnOnce() -> BTreeSet<String>,
    ) -> Result<bool, E> {
        if self.challenge.is_some() || !self.protected(now) {
            return Ok(false);
        }
        let Seed { key, challenge } = seed()?;
        let key = PrivateKey::from_bytes(key);
        let text = PublicKey::from_bytes(challenge).to_string();
        self.challenge = Some(Challenge { proof_key: key.public_key(), key, text, older: older() });
        Ok(true)
    }

    /// Throws the challenge away: another replica asks now.
    pub fn retire(&mut self) {
        self.challenge = None;
    }

    /// The challenge that is open.
    pub fn challenge(&self) -> Option<&Challenge> {
        self.challenge.as_ref()
    }

    /// The verdict on a node's answer.
    pub fn verdict(&self, node_uid: &str, key: &PublicKey, answer: Option<&str>) -> ProofVerdict {
        let (Some(challenge), Some(answer)) = (&self.challenge, answer) else { return ProofVerdict::Missing };
        if challenge.accepts(node_uid, key, answer) {
            ProofVerdict::Valid
        } else if challenge.older.contains(answer) {
            ProofVerdict::Missing
        } else {
            ProofVerdict::Invalid
        }
    }
}

impl Challenge {
    fn accepts(&self, node_uid: &str, key: &PublicKey, answer: &str) -> bool {
        let Ok(proof) = answer.parse::<KeyProof>() else { return false };
        let Ok(shared) = self.key.diffie_hellman(key) else { return false };
        verify_key_proof(&shared, self.text.as_bytes(), node_uid, key, &proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use wire::proof::key_proof;

    fn seed(n: u8) -> Result<Seed, Infallible> {
        Ok(Seed { key: [n; 32], challenge: [n + 1; 32] })
    }

    fn prover(now: Instant) -> Prover {
        let mut prover = Prover::default();
        prover.observe(true, now);
        prover.issue(now + SETTLE, || seed(1), BTreeSet::new).unwrap();
        prover
    }

    fn answer(prover: &Prover, node: &PrivateKey, uid: &str) -> String {
        let challenge = prover.challenge().unwrap();
        let shared = node.diffie_hellman(&challenge.proof_key).unwrap();
        key_proof(&shared, challenge.text.as_bytes(), uid, &node.public_key()).to_string()
    }

    #[test]
    fn a_challenge_waits_until_the_policies_have_settled() {
        let now = Instant::now();
        let mut prover = Prover::default();
        assert!(!prover.issue(now + SETTLE, || seed(1), BTreeSet::new).unwrap());
        prover.observe(true, now);
        prover.observe(true, now + SETTLE / 2);
        let early = now + SETTLE - Duration::from_millis(1);
        assert!(!prover.issue(early, || seed(1), BTreeSet::new).unwrap());
        assert!(prover.issue(now + SETTLE, || seed(1), BTreeSet::new).unwrap());
        assert!(!prover.issue(now + SETTLE, || seed(9), BTreeSet::new).unwrap(), "one challenge at a time");
    }

    #[test]
    fn an_answer_holds_for_its_node_key_and_challenge_only() {
        let now = Instant::now();
        let prover = prover(now);
        let node = PrivateKey::from_bytes([7; 32]);
        let key = node.public_key();
        let good = answer(&prover, &node, "uid-1");
        assert_eq!(prover.verdict("uid-1", &key, Some(&good)), ProofVerdict::Valid);
        assert_eq!(prover.verdict("uid-2", &key, Some(&good)), ProofVerdict::Invalid);
        let other = PrivateKey::from_bytes([8; 32]).public_key();
        assert_eq!(prover.verdict("uid-1", &other, Some(&good)), ProofVerdict::Invalid);
        assert_eq!(prover.verdict("uid-1", &key, Some("not base64")), ProofVerdict::Invalid);
        assert_eq!(prover.verdict("uid-1", &key, None), ProofVerdict::Missing);
    }

    #[test]
    fn the_answer_to_an_older_challenge_is_missing_rather_than_wrong() {
        let now = Instant::now();
        let mut prover = prover(now);
        let node = PrivateKey::from_bytes([7; 32]);
        let old = answer(&prover, &node, "uid-1");
        prover.retire();
        prover.issue(now + SETTLE, || seed(3), || BTreeSet::from([old.clone()])).unwrap();
        assert_eq!(prover.verdict("uid-1", &node.public_key(), Some(&old)), ProofVerdict::Missing);
    }

    #[test]
    fn without_the_policies_no_answer_counts_and_the_wait_begins_anew() {
        let now = Instant::now();
        let mut prover = prover(now);
        let node = PrivateKey::from_bytes([7; 32]);
        let good = answer(&prover, &node, "uid-1");
        prover.observe(false, now + SETTLE * 2);
        assert_eq!(prover.verdict("uid-1", &node.public_key(), Some(&good)), ProofVerdict::Missing);
        prover.observe(true, now + SETTLE * 3);
        assert!(!prover.protected(now + SETTLE * 4 - Duration::from_millis(1)));
        assert!(prover.protected(now + SETTLE * 4));
    }

    #[test]
    fn a_key_of_small_order_proves_nothing() {
        let prover = prover(Instant::now());
        let zero = PublicKey::from_bytes([0; 32]);
        let any = PublicKey::from_bytes([5; 32]).to_string();
        assert_eq!(prover.verdict("uid-1", &zero, Some(&any)), ProofVerdict::Invalid);
    }
}

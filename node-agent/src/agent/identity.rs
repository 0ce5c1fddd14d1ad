//! Who this node is: its key, its punch round, and the proof that the key is its own.

use crate::{
    cache::{Cache, Name},
    key::{KeyFile, KeyFileError, Stored},
    relays::Credentials,
};
use crds::{Mesh, MeshNode, MeshNodeStatus};
use serde::{Deserialize, Serialize};
use wire::{
    key::{PrivateKey, PublicKey},
    proof::key_proof,
};

/// The node's key and what is derived from it.
pub struct Identity {
    file: KeyFile,
    key: PrivateKey,
    public_key: PublicKey,
    /// By which relays recognise this node: it comes of the private key, and goes with it.
    identity: channel::Identity,
    cache: Cache,
    round: Round,
    proof: Option<(ProofOf, String)>,
}

/// Counts agent starts and changes of address, over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Round {
    round: u32,
}

/// What a proof was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ProofOf {
    proof_key: String,
    challenge: String,
    node_uid: String,
}

/// What has to happen before there is a key.
pub enum Opening {
    /// There is one.
    Open(Box<Identity>),
    /// The key file is corrupt. A new key is a new identity, so it is made only when the API can be told.
    NeedsApi(String),
}

impl Identity {
    /// Reads the key, or makes one when there is none; starts a new punch round.
    pub fn open(file: KeyFile, cache: Cache, api_reachable: bool) -> Result<Opening, KeyFileError> {
        let key = match file.load()? {
            Stored::Present(key) => key,
            Stored::Absent => file.create()?,
            Stored::Corrupt(why) if !api_reachable => return Ok(Opening::NeedsApi(why)),
            Stored::Corrupt(why) => {
                tracing::error!(why, "the key file was corrupt; moved it aside and made a new key");
                file.create()?
            }
        };
        let round = cache.load(&Name::single("round")).unwrap_or_default();
        let (public_key, identity) = (key.public_key(), channel::Identity::from_seed(*key.identity_seed()));
        let mut identity = Self { file, key, public_key, identity, cache, round, proof: None };
        identity.next_round();
        Ok(Opening::Open(Box::new(identity)))
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// A copy of the private key, for the device or the path engine.
    pub fn private_key(&self) -> PrivateKey {
        PrivateKey::from_bytes(*self.key.expose_bytes())
    }

    /// By what relays recognise this node, as it is published.
    pub fn identity_key(&self) -> String {
        // Ed25519 keys have the length of WireGuard's, and are written like them.
        PublicKey::from_bytes(self.identity.public()).to_string()
    }

    /// What this node is to relays.
    pub fn credentials(&self, fwmark: u32) -> Credentials {
        Credentials { identity: self.identity.clone(), fwmark }
    }

    /// Whether the key file was taken away, which asks for a new key.
    pub fn is_gone(&self) -> bool {
        self.file.is_gone()
    }

    /// The current punch round.
    pub fn round(&self) -> u32 {
        self.round.round
    }

    /// Peers shall probe again.
    pub fn next_round(&mut self) {
        self.round.round = self.round.round.saturating_add(1);
        self.cache.store(&Name::single("round"), &self.round);
    }

    /// The API knows a higher round than the disk (a lost state folder): go on from there.
    pub fn learn_round(&mut self, status: &MeshNodeStatus) {
        let own = status.public_key.as_deref() == Some(&self.public_key.to_string());
        if own && status.round > self.round.round {
            self.round.round = status.round;
            self.next_round();
        }
    }

    /// Whether the operator has admitted this very key.
    pub fn is_admitted(&self, node: &MeshNode) -> bool {
        node.spec.admission.public_key.as_deref() == Some(&self.public_key.to_string())
    }

    /// The proof to publish. An admitted key needs no new one, and what was published stays, so that nothing is written.
    pub fn proof(&mut self, mesh: Option<&Mesh>, node: Option<&MeshNode>) -> Option<String> {
        let node = node?;
        if !self.is_admitted(node) {
            let status = mesh.and_then(|m| m.status.as_ref());
            let wanted = status.and_then(|s| s.proof_key.clone().zip(s.challenge.clone()));
            if let Some((proof_key, challenge)) = wanted {
                self.prove(ProofOf { proof_key, challenge, node_uid: node.spec.node_uid.clone() });
            }
        }
        let published = || {
            let status = node.status.as_ref()?;
            let own = status.public_key.as_deref() == Some(&self.public_key.to_string());
            status.key_proof.clone().filter(|_| own)
        };
        self.proof.as_ref().map(|(_, proof)| proof.clone()).or_else(published)
    }

    fn prove(&mut self, wanted: ProofOf) {
        if self.proof.as_ref().is_some_and(|(of, _)| *of == wanted) {
            return;
        }
        let shared = wanted.proof_key.parse().and_then(|key| self.key.diffie_hellman(&key));
        match shared {
            Ok(shared) => {
                let proof = key_proof(&shared, wanted.challenge.as_bytes(), &wanted.node_uid, &self.public_key);
                self.proof = Some((wanted, proof.to_string()));
            }
            Err(e) => tracing::warn!(error = %e, "the operator's proof key can't be used"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use crds::{MeshNodeSpec, MeshSpec, MeshStatus};
    use wire::proof::verify_key_proof;

    fn open(dir: &TempDir) -> Box<Identity> {
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        match Identity::open(KeyFile::new(dir.path()), cache.clone(), false).unwrap() {
            Opening::Open(identity) => {
                cache.flush();
                identity
            }
            Opening::NeedsApi(why) => panic!("{why}"),
        }
    }

    fn mesh(proof_key: &PublicKey, challenge: &str) -> Mesh {
        let mut mesh = Mesh::new("default", MeshSpec::default());
        mesh.status = Some(MeshStatus {
            proof_key: Some(proof_key.to_string()),
            challenge: Some(challenge.into()),
            ..MeshStatus::default()
        });
        mesh
    }

    fn node() -> MeshNode {
        MeshNode::new("a", MeshNodeSpec { node_uid: "uid-a".into(), ..MeshNodeSpec::default() })
    }

    #[test]
    fn the_key_outlives_a_restart_and_the_round_grows_with_each() {
        let dir = TempDir::new("identity");
        let first = open(&dir);
        let (key, identity_key, round) = (first.public_key(), first.identity_key(), first.round());
        drop(first);
        let second = open(&dir);
        assert_eq!((second.public_key(), second.identity_key()), (key, identity_key));
        assert_eq!(second.round(), round + 1);
    }

    #[test]
    fn a_lost_round_goes_on_where_the_api_knows_it_but_only_for_our_own_key() {
        let dir = TempDir::new("round");
        let mut identity = open(&dir);
        let mut status = MeshNodeStatus { round: 41, ..MeshNodeStatus::default() };
        identity.learn_round(&status);
        assert_eq!(identity.round(), 1, "another key's round");
        status.public_key = Some(identity.public_key().to_string());
        identity.learn_round(&status);
        assert_eq!(identity.round(), 42);
        identity.learn_round(&status);
        assert_eq!(identity.round(), 42);
    }

    #[test]
    fn a_corrupt_key_waits_for_the_api_and_is_then_replaced() {
        let dir = TempDir::new("corrupt-identity");
        let old = open(&dir);
        std::fs::write(dir.path().join("private.key"), "half a k").unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let file = KeyFile::new(dir.path());
        assert!(matches!(Identity::open(file.clone(), cache.clone(), false).unwrap(), Opening::NeedsApi(_)));
        let Opening::Open(new) = Identity::open(file, cache, true).unwrap() else { panic!("no key") };
        assert_ne!(new.public_key(), old.public_key());
        assert_ne!(new.identity_key(), old.identity_key(), "the identity goes with the key");
    }

    #[test]
    fn the_proof_answers_the_challenge_and_convinces_the_operator() {
        let dir = TempDir::new("proof");
        let mut identity = open(&dir);
        let operator = PrivateKey::from_bytes([3; 32]);
        let proof = identity.proof(Some(&mesh(&operator.public_key(), "c1")), Some(&node())).unwrap();
        let shared = operator.diffie_hellman(&identity.public_key()).unwrap();
        let verify = |challenge: &[u8], proof: &str| {
            verify_key_proof(&shared, challenge, "uid-a", &identity.public_key(), &proof.parse().unwrap())
        };
        assert!(verify(b"c1", &proof));
        assert!(!verify(b"c2", &proof));
    }

    #[test]
    fn an_admitted_key_answers_no_new_challenge_and_keeps_what_it_published() {
        let dir = TempDir::new("admitted");
        let mut identity = open(&dir);
        let operator = PrivateKey::from_bytes([3; 32]).public_key();
        let first = identity.proof(Some(&mesh(&operator, "c1")), Some(&node()));
        let mut admitted = node();
        admitted.spec.admission.public_key = Some(identity.public_key().to_string());
        assert_eq!(identity.proof(Some(&mesh(&operator, "c2")), Some(&admitted)), first);
        assert_ne!(identity.proof(Some(&mesh(&operator, "c2")), Some(&node())), first);
        identity.proof = None;
        admitted.status = Some(MeshNodeStatus {
            public_key: Some(identity.public_key().to_string()),
            key_proof: Some("published".into()),
            ..MeshNodeStatus::default()
        });
        assert_eq!(identity.proof(None, Some(&admitted)).as_deref(), Some("published"));
    }
}

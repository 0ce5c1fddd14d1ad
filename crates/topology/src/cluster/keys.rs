//! Key admission: which key peers are told, and the verdict on the key that a node shows now.

use std::collections::BTreeMap;

use wire::key::PublicKey;

use crate::cluster::condition::EventReason;
use crate::cluster::subject::Subject;
use crate::cluster::view::ProofVerdict;
use crate::mesh::{AdmissionMode, MeshConfig};
use crate::spec::{Admission, AdmissionReason, AdmissionState};

/// The API stores it in 32 bits.
const MAX_KEY_GENERATION: u64 = u32::MAX as u64;

/// Key -> index of the subject that holds it.
type Holders = BTreeMap<PublicKey, usize>;

/// Decides about every key.
pub(super) fn admit(mesh: &MeshConfig, protected: bool, subjects: &mut [Subject<'_>]) {
    let policy = Policy { mode: mesh.admission, protected };
    let mut holders = settle_incumbents(policy, subjects);
    let admitted = admit_new(policy, subjects, &mut holders);
    for index in 0..subjects.len() {
        let admission = verdict(policy, subjects, index, &holders, admitted.contains_key(&index));
        subjects[index].spec.admission = admission;
    }
    for (index, former) in admitted {
        announce(&mut subjects[index], former);
    }
}

#[derive(Clone, Copy)]
struct Policy {
    mode: AdmissionMode,
    protected: bool,
}

/// Lets every subject keep the key that it was admitted with, unless it is unusable or somebody else's.
fn settle_incumbents(policy: Policy, subjects: &mut [Subject<'_>]) -> Holders {
    let mut claims: Vec<_> = subjects
        .iter()
        .enumerate()
        .filter_map(|(index, subject)| {
            let key = incumbent_key(policy, subject).filter(|key| key.validate().is_ok())?;
            let published = subject.published.is_some_and(|entry| entry.public_key == key);
            let shown = shown_key(subject) == Some(key);
            Some((subject.rank(published, shown), index, key))
        })
        .collect();
    claims.sort();
    let mut holders = Holders::new();
    for (_, index, key) in claims {
        if *holders.entry(key).or_insert(index) == index {
            subjects[index].carried = Some(key);
        }
    }
    fall_back(policy, subjects, &mut holders);
    holders
}

/// A key in the spec that cannot be had, unusable or somebody else's, is a mistake: peers keep the key that they have.
fn fall_back(policy: Policy, subjects: &mut [Subject<'_>], holders: &mut Holders) {
    for (index, subject) in subjects.iter_mut().enumerate().filter(|(_, subject)| subject.carried.is_none()) {
        // An emptied field is an admin's word.
        let withdrawn = policy.mode == AdmissionMode::Manual && written_admission(subject).public_key.is_none();
        let published = subject.published.map(|entry| entry.public_key);
        let kept = published.filter(|key| !withdrawn && key.validate().is_ok() && !holders.contains_key(key));
        if let Some(key) = kept {
            holders.insert(key, index);
            subject.carried = Some(key);
        }
    }
}

/// The key that the node was admitted with: what peers were told, or what the spec says.
///
/// In `Manual` mode a key in the spec that differs from the published one is an admin's approval of a new key, and an
/// emptied field withdraws the old one. In `Auto` mode a published key that the node still shows outranks a spec that
/// somebody edited.
fn incumbent_key(policy: Policy, subject: &Subject<'_>) -> Option<PublicKey> {
    let written = written_admission(subject);
    let published = subject.published.map(|entry| entry.public_key);
    match policy.mode {
        AdmissionMode::Auto if published.is_some() && published == shown_key(subject) => published,
        AdmissionMode::Auto => written.public_key,
        AdmissionMode::Manual => match (published, written.public_key) {
            (Some(published), Some(_)) => Some(published),
            (None, key) if written.state == AdmissionState::Accepted => key,
            _ => None,
        },
    }
}

/// Admits new keys, older nodes first, until no more can be: one node's new key may be what another one gives up.
/// Returns the former key of each subject that got one.
fn admit_new(
    policy: Policy,
    subjects: &mut [Subject<'_>],
    holders: &mut Holders,
) -> BTreeMap<usize, Option<PublicKey>> {
    let mut waiting: Vec<(usize, PublicKey)> = (0..subjects.len())
        .filter_map(|index| Some((index, new_key(&subjects[index])?)))
        .filter(|(index, key)| obstacle(policy, &subjects[*index], key).is_none())
        .collect();
    let mut admitted = BTreeMap::new();
    loop {
        let before = waiting.len();
        waiting.retain(|(index, key)| {
            if holders.contains_key(key) {
                return true;
            }
            let former = subjects[*index].carried.replace(*key);
            if let Some(former) = former {
                holders.remove(&former);
            }
            holders.insert(*key, *index);
            admitted.insert(*index, former);
            false
        });
        if waiting.len() == before {
            return admitted;
        }
    }
}

fn shown_key(subject: &Subject<'_>) -> Option<PublicKey> {
    subject.stored?.status.public_key
}

/// The key that the node shows, if it is not the carried one.
fn new_key(subject: &Subject<'_>) -> Option<PublicKey> {
    shown_key(subject).filter(|key| subject.carried != Some(*key))
}

/// What keeps a new key out, its uniqueness aside.
fn obstacle(policy: Policy, subject: &Subject<'_>, key: &PublicKey) -> Option<AdmissionReason> {
    if key.validate().is_err() {
        return Some(AdmissionReason::InvalidKey);
    }
    if !policy.protected {
        return Some(AdmissionReason::NodeWritesUnprotected);
    }
    match subject.stored.map(|facts| facts.status.proof) {
        Some(ProofVerdict::Valid) => {}
        Some(ProofVerdict::Invalid) => return Some(AdmissionReason::ProofInvalid),
        Some(ProofVerdict::Missing) | None => return Some(AdmissionReason::ProofMissing),
    }
    let approved = written_admission(subject).public_key == Some(*key);
    let needed = policy.mode == AdmissionMode::Manual && !approved;
    needed.then_some(AdmissionReason::ApprovalNeeded)
}

fn verdict(policy: Policy, subjects: &[Subject<'_>], index: usize, holders: &Holders, admitted_now: bool) -> Admission {
    let subject = &subjects[index];
    let written = written_admission(subject);
    let shown = shown_key(subject);
    let reason = match shown {
        Some(key) if subject.carried == Some(key) => AdmissionReason::KeyAccepted,
        Some(key) if key.validate().is_err() => AdmissionReason::InvalidKey,
        Some(key) if holders.contains_key(&key) => AdmissionReason::DuplicateKey,
        Some(key) => obstacle(policy, subject, &key).unwrap_or(AdmissionReason::DuplicateKey),
        None if subject.carried.is_some() => AdmissionReason::KeyAccepted,
        None => AdmissionReason::KeyMissing,
    };
    let state = state_of(reason);
    let approval = written.public_key.filter(|key| key.validate().is_ok());
    let public_key = match policy.mode {
        // An approval that waits for the node to show that key must survive the wait.
        AdmissionMode::Manual if state != AdmissionState::Accepted => approval.or(subject.carried),
        _ => subject.carried,
    };
    let generation = written.key_generation;
    let key_generation = match subject.carried {
        _ if admitted_now => generation.saturating_add(1).min(MAX_KEY_GENERATION),
        Some(_) => generation.max(1),
        None => generation,
    };
    let holder = shown.and_then(|key| holders.get(&key)).map(|holder| subjects[*holder].name);
    Admission {
        state,
        public_key,
        key_generation,
        next_public_key: None,
        reason,
        message: message(reason, shown, holder, subject.carried),
    }
}

fn state_of(reason: AdmissionReason) -> AdmissionState {
    match reason {
        AdmissionReason::KeyAccepted => AdmissionState::Accepted,
        AdmissionReason::InvalidKey | AdmissionReason::DuplicateKey | AdmissionReason::ProofInvalid => {
            AdmissionState::Rejected
        }
        AdmissionReason::KeyMissing
        | AdmissionReason::ProofMissing
        | AdmissionReason::ApprovalNeeded
        | AdmissionReason::NodeWritesUnprotected => AdmissionState::Pending,
    }
}

fn message(
    reason: AdmissionReason,
    shown: Option<PublicKey>,
    holder: Option<&str>,
    carried: Option<PublicKey>,
) -> String {
    let key = shown.map_or("none".to_owned(), |key| key.short());
    let holder = holder.unwrap_or("another node");
    let text = match reason {
        AdmissionReason::KeyAccepted => return "the key is valid, unique and proven".to_owned(),
        AdmissionReason::KeyMissing => {
            "expected a public key in the node's status, found none; check that the agent runs on this node".to_owned()
        }
        AdmissionReason::InvalidKey => format!(
            "expected a usable Curve25519 public key, found {key}, which is all zero, of small order or not canonical; \
             delete the agent's key file so that it makes a new pair"
        ),
        AdmissionReason::DuplicateKey => format!(
            "expected a key that no other node has, found {key}, which {holder} holds and keeps; if the machine was \
             cloned, delete the agent's key file on this node"
        ),
        AdmissionReason::ProofMissing => format!(
            "expected a proof of possession for key {key} that answers the present challenge, found none; the agent \
             answers within seconds, if not check its log"
        ),
        AdmissionReason::ProofInvalid => format!(
            "expected a proof of possession for key {key}, found one that does not fit; whoever wrote the status does \
             not have the private key"
        ),
        AdmissionReason::ApprovalNeeded => {
            let key = shown.map_or_else(String::new, |key| key.to_string());
            format!("expected an approved key, found a new one; to approve it set spec.admission.publicKey to {key}")
        }
        AdmissionReason::NodeWritesUnprotected => format!(
            "expected the admission policies of the chart in force before key {key} is admitted, found them missing or \
             altered; restore them"
        ),
    };
    match carried {
        Some(old) => format!("{text}; until then peers keep key {}", old.short()),
        None => text,
    }
}

fn announce(subject: &mut Subject<'_>, former: Option<PublicKey>) {
    let Some(key) = subject.carried else { return };
    match former {
        Some(former) => {
            subject.tell(EventReason::KeyReplaced, format!("key {} takes the place of {}", key.short(), former.short()))
        }
        None => subject.tell(EventReason::KeyAccepted, format!("key {} is admitted", key.short())),
    }
}

fn written_admission(subject: &Subject<'_>) -> Admission {
    subject.stored.map(|facts| facts.spec.admission.clone()).unwrap_or_default()
}

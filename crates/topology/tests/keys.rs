//! Key admission.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use topology::PublicKey;
use topology::cluster::{ConditionType, EventReason, MeshConditionType, ProofVerdict, Reason, StatusFacts, plan};
use topology::mesh::AdmissionMode;
use topology::spec::{AdmissionReason, AdmissionState};
use world::*;

fn admission(view: &topology::cluster::ClusterView, number: u16) -> (AdmissionState, AdmissionReason) {
    let plan = plan(view);
    let admission = &plan.nodes[&name(number)].spec.admission;
    let raised = condition(&plan, &name(number), ConditionType::Admitted).unwrap();
    assert_eq!(raised.reason, Reason::Key(admission.reason));
    assert_eq!(raised.status, admission.state == AdmissionState::Accepted);
    (admission.state, admission.reason)
}

#[test]
fn a_valid_unique_proven_key_is_accepted_with_an_event() {
    let mut view = empty();
    view.nodes.push(node(1, "u"));
    step(&mut view);
    assert_eq!(admission(&view, 1), (AdmissionState::Pending, AdmissionReason::KeyMissing));
    stored(&mut view, &name(1)).status = shows(key(1));
    let plan = plan(&view);
    assert_eq!(plan.nodes[&name(1)].spec.admission.public_key, Some(key(1)));
    assert_eq!(plan.nodes[&name(1)].spec.admission.key_generation, 1);
    assert_eq!(entry(&plan, &name(1)).unwrap().public_key, key(1));
    assert_eq!(plan.events[0].reason, EventReason::KeyAccepted);
}

#[test]
fn unusable_keys_are_rejected() {
    let mut one = [0; 32];
    one[0] = 1;
    for bytes in [[0; 32], one, [0xff; 32]] {
        let mut view = cluster_of(2);
        join(&mut view, 3);
        stored(&mut view, &name(3)).status = shows(PublicKey::from_bytes(bytes));
        assert_eq!(admission(&view, 3), (AdmissionState::Rejected, AdmissionReason::InvalidKey));
        assert_eq!(entry(&plan(&view), &name(3)).unwrap().public_key, key(3), "the admitted key stays");
        assert_sound(&view);
    }
}

#[test]
fn the_incumbent_keeps_a_contested_key() {
    let mut view = cluster_of(2);
    view.nodes.push(node(3, "uid-3"));
    step(&mut view);
    stored(&mut view, &name(3)).status = shows(key(1));
    assert_eq!(admission(&view, 3), (AdmissionState::Rejected, AdmissionReason::DuplicateKey));
    let planned = plan(&view);
    assert!(planned.nodes[&name(3)].spec.admission.message.contains(&name(1)));
    assert_eq!(entry(&planned, &name(1)).unwrap().public_key, key(1));
    assert!(entry(&planned, &name(3)).is_none());
    // Also when the thief is the older object and an admin wrote the key into its spec.
    stored(&mut view, &name(1)).spec.admission.public_key = Some(key(2));
    stored(&mut view, &name(1)).status = StatusFacts::default();
    let planned = plan(&view);
    assert_eq!(entry(&planned, &name(2)).unwrap().public_key, key(2));
    assert_sound(&view);
}

#[test]
fn a_spec_key_edited_by_hand_heals_in_auto_mode() {
    let mut view = cluster_of(2);
    stored(&mut view, &name(1)).spec.admission.public_key = Some(key(2));
    stored(&mut view, &name(2)).spec.admission.public_key = None;
    let plan = plan(&view);
    for number in 1..=2 {
        assert_eq!(plan.nodes[&name(number)].spec.admission.public_key, Some(key(number)));
    }
    assert!(plan.touched_slices().is_empty());
}

#[test]
fn no_proof_or_a_wrong_one_admits_nothing() {
    let mut view = cluster_of(1);
    view.nodes.push(node(2, "uid-2"));
    step(&mut view);
    stored(&mut view, &name(2)).status = StatusFacts { proof: ProofVerdict::Missing, ..shows(key(2)) };
    assert_eq!(admission(&view, 2), (AdmissionState::Pending, AdmissionReason::ProofMissing));
    stored(&mut view, &name(2)).status.proof = ProofVerdict::Invalid;
    assert_eq!(admission(&view, 2), (AdmissionState::Rejected, AdmissionReason::ProofInvalid));
    assert!(entry(&plan(&view), &name(2)).is_none());
}

#[test]
fn while_node_writes_are_unprotected_no_new_key_comes_in_and_admitted_ones_stay() {
    let mut view = cluster_of(2);
    view.nodes.push(node(3, "uid-3"));
    step(&mut view);
    view.protected = false;
    stored(&mut view, &name(3)).status = shows(key(3));
    stored(&mut view, &name(1)).status = shows(key(77));
    // Proofs are made anew after a restart of the operator; admitted keys need none.
    stored(&mut view, &name(2)).status.proof = ProofVerdict::Missing;
    for number in [1, 3] {
        assert_eq!(admission(&view, number), (AdmissionState::Pending, AdmissionReason::NodeWritesUnprotected));
    }
    let planned = plan(&view);
    assert_eq!(entry(&planned, &name(1)).unwrap().public_key, key(1));
    assert_eq!(entry(&planned, &name(2)).unwrap().public_key, key(2));
    assert!(entry(&planned, &name(3)).is_none());
    assert_eq!(planned.mesh_conditions[0].kind, MeshConditionType::NodeWritesUnprotected);
    assert_sound(&view);
    view.protected = true;
    assert_eq!(admission(&view, 3), (AdmissionState::Accepted, AdmissionReason::KeyAccepted));
}

#[test]
fn a_replaced_key_is_accepted_in_auto_mode_and_told() {
    let mut view = cluster_of(2);
    let before = entries(&view)[0].generation;
    stored(&mut view, &name(1)).status = shows(key(50));
    let plan = step(&mut view);
    let admission = &plan.nodes[&name(1)].spec.admission;
    assert_eq!((admission.public_key, admission.key_generation), (Some(key(50)), 2));
    assert!(entry(&plan, &name(1)).unwrap().generation > before);
    assert!(plan.events.iter().any(|event| event.reason == EventReason::KeyReplaced));
    assert_eq!(plan.tombstones, []);
    assert_sound(&view);
}

#[test]
fn keys_may_be_swapped_in_a_chain_but_not_in_a_ring() {
    let mut view = cluster_of(3);
    stored(&mut view, &name(1)).status = shows(key(2));
    stored(&mut view, &name(2)).status = shows(key(3));
    stored(&mut view, &name(3)).status = shows(key(4));
    let planned = plan(&view);
    for number in 1..=3 {
        assert_eq!(entry(&planned, &name(number)).unwrap().public_key, key(number + 1));
    }
    stored(&mut view, &name(3)).status = shows(key(1));
    for number in 1..=3 {
        assert_eq!(admission(&view, number), (AdmissionState::Rejected, AdmissionReason::DuplicateKey));
    }
    assert_sound(&view);
}

#[test]
fn in_manual_mode_a_new_key_waits_for_an_admin() {
    let mut view = empty();
    view.mesh.admission = AdmissionMode::Manual;
    join(&mut view, 1);
    assert_eq!(admission(&view, 1), (AdmissionState::Pending, AdmissionReason::ApprovalNeeded));
    let planned = plan(&view);
    assert!(planned.nodes[&name(1)].spec.admission.message.contains(&key(1).to_string()));
    assert!(entry(&planned, &name(1)).is_none());
    assert_sound(&view);

    stored(&mut view, &name(1)).spec.admission.public_key = Some(key(1));
    let planned = step(&mut view);
    assert_eq!(planned.nodes[&name(1)].spec.admission.key_generation, 1);
    assert!(entry(&planned, &name(1)).is_some());
    assert_sound(&view);
}

#[test]
fn in_manual_mode_a_replaced_key_is_quarantined_and_peers_keep_the_old_one() {
    let mut view = cluster_of(2);
    view.mesh.admission = AdmissionMode::Manual;
    stored(&mut view, &name(1)).status = shows(key(50));
    assert_eq!(admission(&view, 1), (AdmissionState::Pending, AdmissionReason::ApprovalNeeded));
    assert_eq!(entry(&plan(&view), &name(1)).unwrap().public_key, key(1));
    assert_sound(&view);
    step(&mut view);
    stored(&mut view, &name(1)).spec.admission.public_key = Some(key(50));
    let planned = plan(&view);
    assert_eq!(entry(&planned, &name(1)).unwrap().public_key, key(50));
    assert_eq!(planned.nodes[&name(1)].spec.admission.key_generation, 2);
    assert_sound(&view);
}

#[test]
fn in_manual_mode_an_approval_of_a_key_not_yet_shown_survives_the_wait() {
    let mut view = cluster_of(2);
    view.mesh.admission = AdmissionMode::Manual;
    stored(&mut view, &name(1)).status = shows(key(50));
    stored(&mut view, &name(1)).spec.admission.public_key = Some(key(51));
    let planned = step(&mut view);
    assert_eq!(planned.nodes[&name(1)].spec.admission.public_key, Some(key(51)));
    assert_eq!(entry(&planned, &name(1)).unwrap().public_key, key(1));
    stored(&mut view, &name(1)).status = shows(key(51));
    assert_eq!(entry(&plan(&view), &name(1)).unwrap().public_key, key(51));
}

/// What somebody may write into `spec.admission.publicKey` although no node has such a key.
fn unusable() -> PublicKey {
    PublicKey::from_bytes([0; 32])
}

#[test]
fn an_unusable_key_in_the_spec_costs_nobody_its_place() {
    for mode in [AdmissionMode::Auto, AdmissionMode::Manual] {
        for shown in [None, Some(key(1)), Some(key(50)), Some(unusable())] {
            let mut view = cluster_of(2);
            view.mesh.admission = mode;
            stored(&mut view, &name(1)).spec.admission.public_key = Some(unusable());
            let status = shown.map(|key| StatusFacts { proof: ProofVerdict::Missing, ..shows(key) });
            stored(&mut view, &name(1)).status = status.unwrap_or_default();
            for _ in 0..2 {
                let planned = plan(&view);
                let case = format!("{mode:?}, shows {shown:?}");
                assert_eq!(entry(&planned, &name(1)).map(|entry| entry.public_key), Some(key(1)), "{case}");
                assert_eq!(planned.nodes[&name(1)].spec.admission.public_key, Some(key(1)), "{case}");
                assert_sound(&view);
                step(&mut view);
            }
        }
    }
}

#[test]
fn anothers_key_in_the_spec_costs_neither_its_place() {
    for mode in [AdmissionMode::Auto, AdmissionMode::Manual] {
        let mut view = cluster_of(2);
        view.mesh.admission = mode;
        stored(&mut view, &name(1)).spec.admission.public_key = Some(key(2));
        stored(&mut view, &name(1)).status = StatusFacts::default();
        let planned = step(&mut view);
        for number in 1..=2 {
            assert_eq!(entry(&planned, &name(number)).map(|entry| entry.public_key), Some(key(number)), "{mode:?}");
        }
        assert_sound(&view);
    }
}

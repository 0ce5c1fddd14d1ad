//! Packing, tombstones, generations, and the life cycle of nodes.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use topology::cluster::{Action, MeshConditionType, RetireReason, SliceFacts, plan};
use topology::peer::{MAX_SLICE_ENTRIES, MAX_TOMBSTONES, Tombstone, Uid};
use topology::spec::NodeKind;
use world::*;

#[test]
fn a_join_touches_one_slice_and_a_full_one_starts_the_next() {
    let mut view = cluster_of(63);
    assert_eq!(join(&mut view, 64).touched_slices(), ["peers-0001"]);
    assert_eq!(view.slices[0].entries.len(), MAX_SLICE_ENTRIES);
    view.nodes.push(node(65, "uid-65"));
    step(&mut view);
    assert!(join(&mut view, 66).slices.contains_key("peers-0002"));
}

#[test]
fn a_join_moves_nobody_whatever_its_name() {
    let mut view = cluster_of(150);
    let mut first = node(200, "uid-first");
    first.name = "a-first".into();
    view.nodes.push(first);
    step(&mut view);
    stored(&mut view, "a-first").status = shows(key(200));
    let plan = plan(&view);
    assert_eq!(plan.touched_slices(), ["peers-0003"]);
    assert!(plan.slices["peers-0003"].entries.iter().any(|entry| entry.name == "a-first"));
}

#[test]
fn a_leave_touches_two_slices_at_most_and_merges_nearly_empty_ones() {
    let mut view = cluster_of(130);
    assert_eq!(view.slices.len(), 3);
    for gone in (1..=110).rev() {
        view.nodes.retain(|node| node.name != name(gone));
        let plan = step(&mut view);
        // 65 to 64 nodes brings volatile candidates back; there are two slices at most by then.
        assert!(plan.touched_slices().len() <= 2, "{:?}", plan.touched_slices());
        if gone % 20 == 1 {
            assert_sound(&view);
        }
    }
    assert_eq!(view.slices.len(), 1);
}

#[test]
fn foreign_doubled_and_overfull_slices_are_put_right_without_losing_anybody() {
    let mut view = cluster_of(70);
    let before = entries(&view);
    let all = SliceFacts { name: "peers-0001".into(), entries: before.clone() };
    view.slices = vec![all.clone(), SliceFacts { name: "peers-0009".into(), ..all.clone() }];
    view.slices.push(SliceFacts { name: "by-hand".into(), entries: before[..3].to_vec() });
    view.slices.push(SliceFacts { name: "peers-1".into(), entries: vec![] });
    let plan = step(&mut view);
    assert_eq!(entries(&view), before);
    assert_eq!(plan.tombstones, []);
    assert!(plan.stale_slices.contains(&"by-hand".to_owned()));
    assert_sound(&view);
}

#[test]
fn a_node_that_left_gets_a_tombstone_with_its_last_generation() {
    let mut view = cluster_of(3);
    let last = entries(&view)[1].clone();
    view.nodes.remove(1);
    let plan = step(&mut view);
    assert_eq!(plan.retire[0].why, RetireReason::NodeGone);
    let stone = Tombstone { name: last.name, uid: last.uid, public_key: last.public_key, generation: last.generation };
    assert_eq!(plan.tombstones, [stone]);
    assert!(entry(&plan, &name(2)).is_none());
}

#[test]
fn a_node_created_again_is_another_node_with_another_key() {
    let mut view = cluster_of(2);
    let before = entries(&view)[0].clone();
    view.nodes[0].uid = Uid::from("second-life");
    let plan = step(&mut view);
    assert_eq!(plan.retire[0].why, RetireReason::NodeReplaced);
    assert_eq!(plan.nodes[&name(1)].action, Action::Create);
    assert_eq!(plan.tombstones[0].uid, before.uid);
    assert!(entry(&plan, &name(1)).is_none(), "the old key is not taken over");
    stored(&mut view, &name(1)).status = shows(key(60));
    let plan = step(&mut view);
    let after = entry(&plan, &name(1)).unwrap();
    assert!(after.generation > before.generation);
    assert_eq!((&after.uid, after.public_key), (&Uid::from("second-life"), key(60)));
    assert_sound(&view);
}

#[test]
fn a_suspended_node_leaves_the_slices_and_comes_back_above_its_tombstone() {
    let mut view = cluster_of(3);
    let before = entries(&view)[0].clone();
    stored(&mut view, &name(1)).spec.suspended = true;
    let plan = step(&mut view);
    assert!(entry(&plan, &name(1)).is_none());
    assert!(plan.tombstones[0].covers(&before));
    assert_eq!(plan.nodes[&name(1)].spec.mesh_ips, before.mesh_ips, "nobody else gets its address");
    assert_sound(&view);
    stored(&mut view, &name(1)).spec.suspended = false;
    let plan = step(&mut view);
    let after = entry(&plan, &name(1)).unwrap();
    assert!(!plan.tombstones.iter().any(|stone| stone.covers(after)));
    assert_sound(&view);
}

#[test]
fn a_plan_cut_short_between_tombstones_and_slices_is_finished() {
    let mut view = cluster_of(3);
    stored(&mut view, &name(1)).spec.suspended = true;
    let first = plan(&view);
    view.tombstones = first.tombstones.clone();
    assert_eq!(plan(&view).tombstones, first.tombstones);
    // And when the admin thinks better of it in between:
    stored(&mut view, &name(1)).spec.suspended = false;
    let second = plan(&view);
    let back = entry(&second, &name(1)).unwrap();
    assert!(!second.tombstones.iter().any(|stone| stone.covers(back)));
    assert_sound(&view);
}

#[test]
fn no_more_than_256_tombstones_are_kept_the_newest() {
    let mut view = cluster_of(2);
    view.tombstones = (0..300u16)
        .map(|number| Tombstone {
            name: format!("old-{number}"),
            uid: Uid::from("x"),
            public_key: key(1000 + number),
            generation: 1,
        })
        .collect();
    view.nodes.remove(0);
    let plan = step(&mut view);
    assert_eq!(plan.tombstones.len(), MAX_TOMBSTONES);
    assert_eq!(plan.tombstones.last().unwrap().name, name(1));
    assert_eq!(plan.tombstones[0].name, "old-45");
    assert_sound(&view);
}

#[test]
fn a_hand_written_generation_does_not_make_a_node_unreachable() {
    let mut view = cluster_of(2);
    view.slices[0].entries[0].generation = u64::MAX;
    assert_sound(&view);
    stored(&mut view, &name(1)).spec.suspended = true;
    step(&mut view);
    stored(&mut view, &name(1)).spec.suspended = false;
    assert_sound(&view);
    step(&mut view);
    assert!(entry(&plan(&view), &name(1)).is_some());
}

#[test]
fn an_empty_node_list_retires_nobody() {
    let mut view = cluster_of(3);
    view.nodes.clear();
    let plan = step(&mut view);
    assert!(plan.retire.is_empty() && plan.touched_slices().is_empty());
    assert_eq!(plan.mesh_conditions[0].kind, MeshConditionType::NodeListEmpty);
    assert_sound(&view);
}

#[test]
fn an_external_machine_needs_no_node_and_is_never_retired() {
    let mut view = cluster_of(1);
    let mut machine = view.mesh_nodes[0].clone();
    machine.name = "desk".into();
    machine.uid = Uid::from("object-desk");
    machine.spec = topology::spec::NodeSpec { kind: NodeKind::External, ..Default::default() };
    machine.spec.pod_cidrs = vec!["10.77.0.0/24".parse().unwrap()];
    machine.status = shows(key(70));
    view.mesh_nodes.push(machine);
    let plan = step(&mut view);
    let told = entry(&plan, "desk").unwrap();
    assert_eq!((&told.uid, told.pod_cidrs.len()), (&Uid::from("object-desk"), 1));
    assert_sound(&view);
}

#[test]
fn nothing_changed_writes_nothing_and_two_replicas_agree() {
    let view = cluster_of(100);
    let mut shuffled = view.clone();
    shuffled.nodes.reverse();
    shuffled.mesh_nodes.rotate_left(37);
    shuffled.slices.reverse();
    assert!(plan(&view).is_settled());
    assert_eq!(format!("{:?}", plan(&view)), format!("{:?}", plan(&shuffled)));
}

#[test]
fn copies_of_an_entry_that_differ_at_the_same_generation_are_settled_by_a_higher_one() {
    type Edit = fn(&mut topology::peer::Entry);
    let edits: [Edit; 3] = [
        |entry| entry.round = 9,
        |entry| entry.uid = Uid::from("foreign"),
        |entry| entry.mesh_ips = vec![ip("10.90.0.77")],
    ];
    for edit in edits {
        for name in ["peers-0002", "by-hand", "a"] {
            let mut view = cluster_of(3);
            let before = entries(&view)[1].generation;
            let mut copy = SliceFacts { name: name.into(), ..view.slices[0].clone() };
            edit(&mut copy.entries[1]);
            view.slices.push(copy);
            assert_sound(&view);
            step(&mut view);
            assert!(entries(&view)[1].generation > before, "{name}");
        }
    }
}

#[test]
fn of_a_refused_plan_only_revocations_are_left() {
    let mut view = cluster_of(4);
    let all = entries(&view);
    stored(&mut view, &name(1)).spec.suspended = true;
    view.nodes.retain(|node| node.name != name(2));
    // Node 3 falls out of the slices by a mistake in planning, which buries it as well.
    let mut broken = plan(&view);
    let slice = broken.slices.get_mut("peers-0001").unwrap();
    slice.entries.retain(|entry| entry.name != name(3));
    broken.tombstones.push(Tombstone {
        name: name(3),
        uid: all[2].uid.clone(),
        public_key: all[2].public_key,
        generation: all[2].generation,
    });
    let violations = errors(&view, &broken);
    assert!(!violations.is_empty());
    let left = broken.revocations(&view, &violations);
    let buried: Vec<&str> = left.tombstones.iter().map(|stone| stone.name.as_str()).collect();
    assert_eq!(buried, [name(1), name(2)]);
    assert!(left.tombstones_changed && left.events.len() == 2);
    assert!(left.nodes.is_empty() && left.retire.is_empty() && left.touched_slices().is_empty());
    let refused = left.mesh_conditions.iter().find(|raised| raised.kind == MeshConditionType::PlanRefused).unwrap();
    assert!(refused.message.contains("EntryMissing: node-0003"), "{}", refused.message);
    view.tombstones = left.tombstones.clone();
    assert!(!broken.revocations(&view, &violations).tombstones_changed, "once is enough");
}

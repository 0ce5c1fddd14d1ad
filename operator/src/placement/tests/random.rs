//! A mesh at random, in which time passes and an oracle says who truly reaches whom.

use super::*;

/// A node and whether others truly reach a relay on it.
#[derive(Clone, Debug)]
struct Truth {
    node: Node,
    open: bool,
}

fn truth() -> impl Strategy<Value = Truth> {
    let standing = prop_oneof![Just(Standing::Public), Just(Standing::Perhaps), Just(Standing::Hidden)];
    let wish = prop_oneof![6 => Just(Wish::Auto), 1 => Just(Wish::Always), 1 => Just(Wish::Never)];
    let label = prop_oneof![12 => Just(Label::None), 1 => Just(Label::Others), 1 => Just(Label::Refused)];
    (0..4u8, any::<bool>(), prop::bool::weighted(0.9), standing, wish, label, prop::bool::weighted(0.6)).prop_map(
        |(domain, control_plane, alive, standing, wish, label, open)| {
            let node =
                Node { domain: format!("zone-{domain}"), control_plane, alive, standing, wish, label, ..node("") };
            Truth { node, open: open && alive }
        },
    )
}

fn mesh() -> impl Strategy<Value = Vec<Truth>> {
    prop::collection::vec(truth(), 1..9).prop_map(|mut mesh| {
        for (number, truth) in mesh.iter_mut().enumerate() {
            let name = format!("n{number}");
            truth.node.site.clone_from(&name);
            truth.node.name = name;
        }
        mesh
    })
}

fn has_relay(node: &Node) -> bool {
    matches!(node.label, Label::Others | Label::Ours(_))
}

/// A minute: relays start or end, agents say whom they reach.
fn pass_time(mesh: &mut [Truth]) -> Vec<Relay> {
    let up: Vec<_> = mesh.iter().filter(|t| has_relay(&t.node)).map(|t| (t.node.name.clone(), t.open)).collect();
    for truth in mesh.iter_mut() {
        let own = truth.node.name.clone();
        let reached = up.iter().filter(|(name, open)| *open && *name != own);
        truth.node.reaches = reached.map(|(name, _)| (name.clone(), true)).collect();
    }
    let relay = |(name, _): &(String, bool)| Relay { name: name.clone(), node: Some(name.clone()), ..Relay::default() };
    up.iter().map(relay).collect()
}

/// Carries changes out and checks each of them.
fn carry_out(mesh: &mut [Truth], plan: &Plan, minute: i64) {
    for change in &plan.changes {
        let truth = mesh.iter_mut().find(|truth| truth.node.name == change.node).unwrap();
        let node = &mut truth.node;
        assert!(!change.place || node.wish != Wish::Never, "Never is labelled");
        assert!(!matches!(node.label, Label::Others | Label::Refused), "an admin's label is touched");
        assert_ne!(change.place, has_relay(node), "nothing changes");
        node.mark = change.mark(at(minute));
        node.label = if change.place { Label::Ours(at(minute)) } else { Label::None };
    }
}

/// Relays that the operator placed by itself.
fn automatic(mesh: &[Truth]) -> impl Iterator<Item = &Truth> {
    mesh.iter().filter(|t| matches!(t.node.label, Label::Ours(_)) && t.node.wish == Wish::Auto)
}

/// The relay that a change takes away is not the last one that is reached.
fn is_spared(plan: &Plan, change: &Change) -> bool {
    let proven = |(_, reach): &(&String, &Reach)| reach.proven() == Some(true);
    let mut others = plan.reach.iter().filter(|(name, _)| **name != change.node);
    let was = plan.reach.get(&change.node).and_then(Reach::proven) == Some(true);
    !was || others.any(|other| proven(&other))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn it_settles_on_reached_relays_and_breaks_no_rule_on_the_way(mut mesh in mesh()) {
        let (mut last_change, mut late) = (None, Vec::new());
        for minute in 0..10 * 60 {
            let relays = pass_time(&mut mesh);
            let nodes: Vec<Node> = mesh.iter().map(|truth| truth.node.clone()).collect();
            let plan = plan(&nodes, &relays, at(minute));
            prop_assert_eq!(&plan, &super::plan(&nodes, &relays, at(minute)), "the same in, the same out");
            let timed: Vec<_> = plan.changes.iter().filter(|change| change.why != Why::Ordered).collect();
            prop_assert!(timed.len() <= 1);
            if !timed.is_empty() {
                prop_assert!(last_change.is_none_or(|last| minute - last >= 3), "twice in three minutes");
                last_change = Some(minute);
            }
            prop_assert!(timed.iter().all(|change| change.place || is_spared(&plan, change)));
            carry_out(&mut mesh, &plan, minute);
            prop_assert!(automatic(&mesh).count() <= MOST);
            late.extend(plan.changes.iter().filter(|_| minute > 120).map(|change| (minute, change.node.clone())));
        }
        prop_assert!(late.is_empty(), "it never settles: {:?}", late);
        settled(&mesh)?;
    }
}

/// What stands in the end is what can be had.
fn settled(mesh: &[Truth]) -> Result<(), TestCaseError> {
    for Truth { node, .. } in mesh {
        prop_assert!(node.wish != Wish::Always || has_relay(node) || node.label == Label::Refused);
        prop_assert!(node.wish != Wish::Never || !matches!(node.label, Label::Ours(_)));
    }
    // Beside what an admin placed there is less to place, and two nodes are no witnesses.
    let by_admin = |t: &Truth| t.node.label == Label::Others || t.node.wish == Wish::Always;
    if mesh.iter().any(by_admin) || mesh.iter().filter(|t| t.node.alive).count() < 3 {
        return Ok(());
    }
    let may = |t: &&Truth| {
        let node = &t.node;
        node.alive && node.standing == Standing::Public && node.wish == Wish::Auto && node.label != Label::Refused
    };
    let reached: Vec<&Truth> = automatic(mesh).filter(|t| t.open).collect();
    prop_assert!(!reached.is_empty() || !mesh.iter().any(|t| may(&t) && t.open), "somebody could be reached");
    let workers: Vec<&Truth> = mesh.iter().filter(may).filter(|t| !t.node.control_plane).collect();
    if workers.iter().any(|t| t.open) {
        let fine = automatic(mesh).all(|t| t.open && !t.node.control_plane);
        prop_assert!(fine, "one that nobody reaches, or the control plane's, stays beside better ones");
    }
    if !workers.is_empty() && workers.iter().all(|t| t.open) {
        let domains = |list: &[&Truth]| list.iter().map(|t| &t.node.domain).collect::<BTreeSet<_>>().len();
        prop_assert_eq!(domains(&reached), domains(&workers).min(MOST), "not spread over the zones");
    }
    Ok(())
}

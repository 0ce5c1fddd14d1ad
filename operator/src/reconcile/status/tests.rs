use super::*;
use crate::index::Meta;
use topology::cluster::Counts;

fn plan(nodes: usize, accepted: usize, problems: &[MeshConditionType]) -> Plan {
    let problem = |kind: &MeshConditionType| MeshCondition { kind: *kind, message: format!("{kind:?} it is") };
    Plan {
        mesh_conditions: problems.iter().map(problem).collect(),
        counts: Counts { nodes, accepted, ..Counts::default() },
        ..Plan::default()
    }
}

fn report(plan: &Plan) -> Report {
    Report::new(plan, Protection::Broken("all of it is missing".into()), None)
}

/// The Mesh after `report` was written.
fn written(report: &Report) -> Stored<MeshValue> {
    let mut mesh = Stored {
        meta: Meta { name: MESH.into(), generation: Some(3), ..Meta::default() },
        value: MeshValue::default(),
    };
    let Verb::Apply(body) = write(&mesh, report, Timestamp::UNIX_EPOCH).verb else { panic!("expected an apply") };
    mesh.value.status = serde_json::from_value(body["status"].clone()).unwrap();
    mesh
}

#[test]
fn what_was_written_is_not_written_again() {
    let report = report(&plan(3, 2, &[MeshConditionType::NodeWritesUnprotected]));
    assert_eq!(compare(&written(&report), &report), Difference::None);
}

#[test]
fn numbers_alone_may_wait_and_anything_else_may_not() {
    let mesh = written(&report(&plan(3, 2, &[])));
    assert_eq!(compare(&mesh, &report(&plan(4, 2, &[]))), Difference::Counts);
    assert_eq!(compare(&mesh, &report(&plan(3, 2, &[MeshConditionType::RangesOverlap]))), Difference::Substance);
    let mut edited = mesh.clone();
    edited.meta.generation = Some(4);
    assert_eq!(compare(&edited, &report(&plan(3, 2, &[]))), Difference::Substance, "kstatus waits for the generation");
    let mut foreign = mesh;
    foreign.value.status.challenge = Some("of the leader before".into());
    assert_eq!(compare(&foreign, &report(&plan(3, 2, &[]))), Difference::Substance);
}

#[test]
fn ready_says_what_the_problem_is() {
    let fine = written(&report(&plan(1, 1, &[])));
    let broken = written(&report(&plan(1, 1, &[MeshConditionType::NodeWritesUnprotected])));
    let ready = |mesh: &Stored<MeshValue>| {
        let conditions = &mesh.value.status.conditions;
        conditions.iter().find(|condition| condition.type_ == READY).cloned().unwrap()
    };
    assert_eq!(ready(&fine).status, ConditionStatus::True);
    assert_eq!(ready(&broken).status, ConditionStatus::False);
    assert!(ready(&broken).message.contains("all of it is missing"));
}

#[test]
fn policies_that_are_about_to_act_are_no_problem() {
    let plan = plan(1, 1, &[MeshConditionType::NodeWritesUnprotected]);
    let settling = Report::new(&plan, Protection::InPlace, None);
    assert_eq!(settling.conditions.len(), 1);
    assert_eq!(settling.conditions[0].status, ConditionStatus::True);
}

#[test]
fn a_problem_is_told_once() {
    let (before, after) = (report(&plan(1, 1, &[])), report(&plan(1, 1, &[MeshConditionType::RangesOverlap])));
    let notice = notice(&written(&before), &after).unwrap();
    assert_eq!((notice.reason, notice.warning), ("RangesOverlap", true));
    assert_eq!(super::notice(&written(&after), &after), None);
}

#[test]
fn an_invalid_mesh_is_told_once() {
    let mut mesh = written(&report(&plan(1, 1, &[])));
    let Verb::Apply(body) = invalid(&mesh, "it is wrong").unwrap().verb else { panic!("expected an apply") };
    mesh.value.status = serde_json::from_value(body["status"].clone()).unwrap();
    assert_eq!(mesh.value.status.nodes.total, 1, "the numbers stay");
    assert_eq!(invalid(&mesh, "it is wrong"), None);
}

#[test]
fn a_refused_plan_is_the_first_thing_to_say() {
    let problems = [MeshConditionType::AddressPoolExhausted, MeshConditionType::PlanRefused];
    let mesh = written(&report(&plan(1, 1, &problems)));
    let ready = mesh.value.status.conditions.iter().find(|condition| condition.type_ == READY).unwrap();
    assert_eq!((ready.status, ready.reason.as_str()), (ConditionStatus::False, "PlanRefused"));
    assert!(ready.message.contains("PlanRefused it is"));
}

#[test]
fn a_report_overwrites_no_version_but_the_one_it_was_made_from() {
    let report = report(&plan(1, 1, &[]));
    let mut mesh = written(&report);
    mesh.meta.version = "77".into();
    for write in [write(&mesh, &report, Timestamp::UNIX_EPOCH), invalid(&mesh, "it is wrong").unwrap()] {
        let Verb::Apply(body) = write.verb else { panic!("expected an apply") };
        assert_eq!(body["metadata"]["resourceVersion"], "77");
    }
}

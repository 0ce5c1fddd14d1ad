use super::*;
use path::Reason;
use wgdev::DeviceError;

fn good() -> Facts {
    Facts {
        admission: Admission {
            state: AdmissionState::Accepted,
            own_key: true,
            listed: true,
            has_addresses: true,
            ..Admission::default()
        },
        device: Some(Ok(1420)),
        underlay_mtu: Some(1500),
        host_candidates: 1,
        reflexive_candidates: 1,
        stun_servers: 1,
        network: Some(Network::default()),
        cni: Cni::Ready,
        ..Facts::default()
    }
}

fn find(facts: &Facts, type_: &str) -> Option<(ConditionStatus, String)> {
    observe(facts).into_iter().find(|o| o.type_ == type_).map(|o| (o.status, o.reason))
}

fn ready_reason(facts: &Facts) -> String {
    find(facts, "Ready").unwrap().1
}

#[test]
fn a_programmed_and_admitted_node_is_ready_also_alone() {
    assert_eq!(find(&good(), "Ready"), Some((ConditionStatus::True, "Programmed".into())));
    assert_eq!(find(&good(), "PathsHealthy"), Some((ConditionStatus::True, "NoPeers".into())));
    assert!(observe(&good()).iter().all(|o| o.status == ConditionStatus::True));
}

#[test]
fn ready_says_what_is_missing() {
    let with = |change: fn(&mut Facts)| {
        let mut facts = good();
        change(&mut facts);
        ready_reason(&facts)
    };
    assert_eq!(with(|f| f.admission.listed = false), "NotInDirectory");
    assert_eq!(with(|f| f.device = None), "DeviceMissing");
    assert_eq!(with(|f| (f.device, f.admission.has_addresses) = (None, false)), "NoSpec");
    assert_eq!(with(|f| f.device = Some(Err(DeviceProblem::from(&DeviceError::Stopped)))), "DeviceFailed");
    assert_eq!(with(|f| f.network = None), "RoutesMissing");
    assert_eq!(with(|f| f.network.as_mut().unwrap().unfit = true), "RoutesFailed");
    assert_eq!(with(|f| f.network.as_mut().unwrap().failures = vec!["x".into()]), "Programmed", "one peer's route");
    assert_eq!(with(|f| f.cni = Cni::Waiting("w".into())), "CNIWaiting");
    assert_eq!(with(|f| f.cni = Cni::Failed("PluginsMissing", "ptp".into())), "CNINotReady");
    assert_eq!(with(|f| f.admission.suspended = true), "Suspended");
    assert_eq!(with(|f| f.admission.own_key = false), "KeyNotAdmitted");
    assert_eq!(
        with(|f| (f.admission.state, f.admission.reason) = (AdmissionState::Rejected, Some("DuplicateKey".into()))),
        "DuplicateKey"
    );
}

#[test]
fn a_kernel_without_wireguard_is_a_condition_of_its_own_while_it_is_demanded() {
    let mut facts = good();
    assert_eq!(find(&facts, "NoKernelWireGuard"), None);
    let error = DeviceError::NoKernelWireGuard { found: "one without".into() };
    facts.device = Some(Err(DeviceProblem::from(&error)));
    assert_eq!(ready_reason(&facts), "NoKernelWireGuard");
    assert_eq!(find(&facts, "NoKernelWireGuard"), Some((ConditionStatus::True, "ModuleMissing".into())));
    let told = observe(&facts).into_iter().find(|o| o.type_ == "NoKernelWireGuard").unwrap().message;
    assert_eq!(told, error.to_string());
}

#[test]
fn at_most_five_unconnected_peers_are_named() {
    let mut facts = good();
    facts.paths.unconnected = (0..crate::paths::NAMED_PEERS).map(|n| (format!("n{n}"), Reason::NoAnswer)).collect();
    facts.paths.down = 7;
    let all = observe(&facts);
    let message = &all.iter().find(|o| o.type_ == "PathsHealthy").unwrap().message;
    assert!(message.contains("n4 (NoAnswer) and 2 more"), "{message}");
    assert!(!message.contains("n5"), "{message}");
    assert_eq!(ready_reason(&facts), "Programmed", "paths are not part of Ready");
}

#[test]
fn an_mtu_that_the_underlay_cannot_carry_is_told() {
    let mut facts = good();
    facts.underlay_mtu = Some(1499);
    assert_eq!(find(&facts, "MTUConsistent"), Some((ConditionStatus::False, "DeviceTooLarge".into())));
}

#[test]
fn warnings_are_there_only_while_they_hold() {
    let mut facts = good();
    assert_eq!(find(&facts, "ForwardBlocked"), None);
    facts.network.as_mut().unwrap().forward_blocked = vec!["docker".into()];
    facts.guard = Some("3 peers kept".into());
    assert_eq!(find(&facts, "ForwardBlocked").unwrap().0, ConditionStatus::True);
    assert_eq!(find(&facts, "MassRemovalGuard").unwrap().0, ConditionStatus::True);
}

#[test]
fn pairs_without_a_port_on_any_relay_are_a_condition_while_there_are_any() {
    let mut facts = good();
    assert_eq!(find(&facts, RELAY_PORTS_EXHAUSTED), None);
    facts.paths.portless = 3;
    assert_eq!(find(&facts, RELAY_PORTS_EXHAUSTED), Some((ConditionStatus::True, "NoPortLeft".into())));
    assert_eq!(ready_reason(&facts), "Programmed", "paths are not part of Ready");
}

#[test]
fn a_transition_time_moves_only_with_the_status() {
    let at = |seconds| Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap());
    let first = with_history(observe(&good()), &[], Some(1), &at(1));
    let mut facts = good();
    facts.reflexive_candidates = 0;
    facts.network.as_mut().unwrap().failures = vec!["x".into()];
    let second = with_history(observe(&facts), &first, Some(2), &at(2));
    let time = |c: &[Condition], t: &str| c.iter().find(|c| c.type_ == t).unwrap().last_transition_time.clone();
    assert_eq!(time(&second, "EndpointDiscovered"), at(1), "another reason, the same status");
    assert_eq!(time(&second, "RoutesProgrammed"), at(2));
}

#[test]
fn a_long_message_is_cut_within_the_schema() {
    let mut facts = good();
    facts.guard = Some("ü".repeat(2000));
    assert!(observe(&facts).iter().all(|o| o.message.len() <= 1024));
}

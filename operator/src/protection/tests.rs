use super::*;
use crate::index::{Stored, Update};
use serde_json::{Value, json};

/// The objects as an API server would hold them, after `edit`.
fn cluster(
    edit: impl Fn(&mut Value),
) -> (Collection<ValidatingAdmissionPolicySpec>, Collection<ValidatingAdmissionPolicyBindingSpec>) {
    let text = ACCEPTED[0].replace(NAMESPACE_MARK, "warren-system");
    let values: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let (mut policies, mut bindings) = (Collection::default(), Collection::default());
    for mut value in values {
        edit(&mut value);
        if value.is_null() {
            continue;
        }
        if value["kind"] == "ValidatingAdmissionPolicy" {
            let policy = Stored::read::<ValidatingAdmissionPolicy>(serde_json::from_value(value).unwrap());
            policies.absorb(Update::Applied(policy.unwrap()));
        } else {
            let binding = Stored::read::<ValidatingAdmissionPolicyBinding>(serde_json::from_value(value).unwrap());
            bindings.absorb(Update::Applied(binding.unwrap()));
        }
    }
    (policies, bindings)
}

fn verdict(edit: impl Fn(&mut Value)) -> Protection {
    let (policies, bindings) = cluster(edit);
    check(&accepted("warren-system").unwrap(), &policies, &bindings)
}

fn named(value: &Value, kind: &str, name: &str) -> bool {
    value["kind"] == kind && value["metadata"]["name"] == name
}

#[test]
fn the_documents_cover_agents_and_relays() {
    let documents = &accepted("warren-system").unwrap()[0];
    for name in [crds::names::AGENT_POLICY, crds::names::RELAY_POLICY] {
        assert!(documents.policies.contains_key(name) && documents.bindings.contains_key(name), "{name}");
    }
}

#[test]
fn what_the_chart_installs_is_in_place_with_and_without_the_servers_defaults() {
    assert_eq!(verdict(|_| {}), Protection::InPlace);
    let defaulted = |value: &mut Value| {
        if value["kind"] == "ValidatingAdmissionPolicy" {
            value["spec"]["matchConstraints"]["matchPolicy"] = json!("Equivalent");
            value["spec"]["matchConstraints"]["namespaceSelector"] = json!({});
            value["spec"]["matchConstraints"]["objectSelector"] = json!({});
            value["spec"]["matchConstraints"]["resourceRules"][0]["scope"] = json!("*");
            value["metadata"]["labels"] = json!({ "added": "by somebody" });
            value["status"] = json!({ "observedGeneration": 1 });
        }
    };
    assert_eq!(verdict(defaulted), Protection::InPlace);
}

#[test]
fn every_missing_object_is_named() {
    for (kind, name) in [
        ("ValidatingAdmissionPolicy", crds::names::AGENT_POLICY),
        ("ValidatingAdmissionPolicy", crds::names::RELAY_POLICY),
        ("ValidatingAdmissionPolicyBinding", crds::names::AGENT_POLICY),
        ("ValidatingAdmissionPolicyBinding", crds::names::RELAY_POLICY),
    ] {
        let found = verdict(|value| {
            if named(value, kind, name) {
                *value = Value::Null;
            }
        });
        assert_eq!(found, Protection::Broken(format!("{kind} {name} is missing")));
    }
}

#[test]
fn every_weakening_is_noticed() {
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 9] = [
        ("failurePolicy", |policy| policy["spec"]["failurePolicy"] = json!("Ignore")),
        ("one validation less", |policy| drop(policy["spec"]["validations"].as_array_mut().unwrap().pop())),
        ("a validation that always holds", |policy| policy["spec"]["validations"][1]["expression"] = json!("true")),
        ("a variable", |policy| policy["spec"]["variables"][0]["expression"] = json!("[request.name]")),
        ("a condition more", |policy| {
            let never = json!({ "name": "never", "expression": "false" });
            policy["spec"]["matchConditions"].as_array_mut().unwrap().push(never);
        }),
        ("fewer resources", |policy| {
            policy["spec"]["matchConstraints"]["resourceRules"][0]["resources"] = json!(["meshnodes"]);
        }),
        ("an exclusion", |policy| {
            let rules = policy["spec"]["matchConstraints"]["resourceRules"].clone();
            policy["spec"]["matchConstraints"]["excludeResourceRules"] = rules;
        }),
        ("an object selector", |policy| {
            policy["spec"]["matchConstraints"]["objectSelector"] = json!({ "matchLabels": { "never": "there" } });
        }),
        ("parameters", |policy| policy["spec"]["paramKind"] = json!({ "apiVersion": "v1", "kind": "ConfigMap" })),
    ];
    for (what, edit) in edits {
        let found = verdict(|value| {
            if named(value, "ValidatingAdmissionPolicy", crds::names::AGENT_POLICY) {
                edit(value);
            }
        });
        assert!(
            matches!(found, Protection::Broken(text) if text.contains("is not what this release installs")),
            "{what}"
        );
    }
}

#[test]
fn a_binding_that_only_warns_or_looks_away_is_noticed() {
    type Edit = fn(&mut Value);
    let edits: [Edit; 3] = [
        |binding| binding["spec"]["validationActions"] = json!(["Warn", "Audit"]),
        |binding| binding["spec"]["matchResources"] = json!({ "objectSelector": { "matchLabels": { "a": "b" } } }),
        |binding| binding["spec"]["policyName"] = json!("another"),
    ];
    for edit in edits {
        let found = verdict(|value| {
            if named(value, "ValidatingAdmissionPolicyBinding", crds::names::AGENT_POLICY) {
                edit(value);
            }
        });
        assert!(matches!(found, Protection::Broken(_)));
    }
}

#[test]
fn the_policies_of_another_namespace_protect_nothing_here() {
    let (policies, bindings) = cluster(|_| {});
    let found = check(&accepted("elsewhere").unwrap(), &policies, &bindings);
    assert!(matches!(found, Protection::Broken(_)));
}

#[test]
fn the_previous_release_is_accepted_as_a_whole_only() {
    let (policies, bindings) = cluster(|_| {});
    let ours = accepted("warren-system").unwrap().remove(0);
    let newer = Documents { bindings: ours.bindings.clone(), ..accepted("newer").unwrap().remove(0) };
    assert_eq!(check(&[newer.clone(), ours], &policies, &bindings), Protection::InPlace);
    assert!(matches!(check(&[newer], &policies, &bindings), Protection::Broken(_)));
    assert!(matches!(check(&[], &policies, &bindings), Protection::Broken(_)));
}

#[test]
fn other_kinds_are_refused_with_their_name() {
    let error = parse("kind: ConfigMap\n").unwrap_err().to_string();
    assert!(error.contains("ConfigMap"), "{error}");
}

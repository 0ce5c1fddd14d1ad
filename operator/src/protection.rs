//! Reads the operator's own safeguards back: the admission policies that let a node write only its own status.
//!
//! RBAC can say that agents may patch `meshnodes/status`, but not whose. The policies say it; so as long as one is missing or
//! altered, any node could put its key into another node's status, and no new key may be admitted. The documents are those
//! of the chart, so there is one place to change them; [`ACCEPTED`] also takes the previous release's, because during an upgrade
//! the operator may be newer than the policies or the other way round.

use crate::index::{Cluster, Collection, Kind, Meta};
use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec,
};
use std::collections::BTreeMap;

/// The documents that protect node writes, this release's first.
pub const ACCEPTED: &[&str] = &[include_str!("../../charts/warren/files/admission-policies.yaml")];
/// What stands for the release's namespace in the documents.
const NAMESPACE_MARK: &str = "__NAMESPACE__";

/// The policies of one release.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    policies: BTreeMap<String, ValidatingAdmissionPolicySpec>,
    bindings: BTreeMap<String, ValidatingAdmissionPolicyBindingSpec>,
}

/// Why the documents cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("expected ValidatingAdmissionPolicies and their bindings as YAML, found: {0}")]
pub struct DocumentError(String);

/// Whether node writes are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Everything is as it shall be.
    InPlace,
    /// What is wrong, for people.
    Broken(String),
}

/// Every accepted set of documents, with the service accounts of `namespace`.
pub fn accepted(namespace: &str) -> Result<Vec<Documents>, DocumentError> {
    ACCEPTED.iter().map(|text| parse(&text.replace(NAMESPACE_MARK, namespace))).collect()
}

/// Parses one set of documents.
pub fn parse(text: &str) -> Result<Documents, DocumentError> {
    let error = |e: &dyn std::fmt::Display| DocumentError(e.to_string());
    let values: Vec<serde_json::Value> = serde_saphyr::from_multiple(text).map_err(|e| error(&e))?;
    let mut documents = Documents::default();
    for value in values {
        match value["kind"].as_str() {
            Some("ValidatingAdmissionPolicy") => {
                let policy: ValidatingAdmissionPolicy = serde_json::from_value(value).map_err(|e| error(&e))?;
                let name = policy.metadata.name.unwrap_or_default();
                documents.policies.insert(name, defaulted_policy(policy.spec.unwrap_or_default()));
            }
            Some("ValidatingAdmissionPolicyBinding") => {
                let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(value).map_err(|e| error(&e))?;
                let name = binding.metadata.name.unwrap_or_default();
                documents.bindings.insert(name, defaulted_binding(binding.spec));
            }
            other => return Err(DocumentError(format!("kind {other:?}"))),
        }
    }
    Ok(documents)
}

impl Documents {
    /// Whether it is one of ours; others in the cluster are no concern of ours.
    pub fn names(&self, name: &str) -> bool {
        self.policies.contains_key(name) || self.bindings.contains_key(name)
    }

    fn faults(
        &self,
        policies: &Collection<ValidatingAdmissionPolicySpec>,
        bindings: &Collection<ValidatingAdmissionPolicyBindingSpec>,
    ) -> Vec<String> {
        let policy_faults = self.policies.iter().filter_map(|(name, expected)| {
            let found = policies.get(name).map(|stored| defaulted_policy(stored.value.clone()));
            fault("ValidatingAdmissionPolicy", name, found.as_ref(), expected)
        });
        let binding_faults = self.bindings.iter().filter_map(|(name, expected)| {
            let found = bindings.get(name).map(|stored| defaulted_binding(stored.value.clone()));
            fault("ValidatingAdmissionPolicyBinding", name, found.as_ref(), expected)
        });
        policy_faults.chain(binding_faults).collect()
    }
}

/// UID and generation of the policies and bindings that are known: it changes whenever one is made again or altered, also if
/// it is as before by the time somebody looks.
pub type Seal = BTreeMap<(Kind, String), (String, Option<i64>)>;

/// The present seal.
pub fn seal(cluster: &Cluster) -> Seal {
    let known = |kind: Kind, meta: &Meta| ((kind, meta.name.clone()), (meta.uid.clone(), meta.generation));
    let policies = cluster.policies.iter().map(|(_, stored)| known(Kind::Policy, &stored.meta));
    let bindings = cluster.bindings.iter().map(|(_, stored)| known(Kind::Binding, &stored.meta));
    policies.chain(bindings).collect()
}

/// Compares what is in the cluster with what is accepted.
pub fn check(
    accepted: &[Documents],
    policies: &Collection<ValidatingAdmissionPolicySpec>,
    bindings: &Collection<ValidatingAdmissionPolicyBindingSpec>,
) -> Protection {
    let mut faults = accepted.iter().map(|documents| documents.faults(policies, bindings));
    let Some(newest) = faults.next() else { return Protection::Broken("no admission policy is known".into()) };
    if newest.is_empty() || faults.any(|older| older.is_empty()) {
        return Protection::InPlace;
    }
    Protection::Broken(newest.join("; "))
}

fn fault<T: PartialEq>(kind: &str, name: &str, found: Option<&T>, expected: &T) -> Option<String> {
    match found {
        None => Some(format!("{kind} {name} is missing")),
        Some(found) if found != expected => Some(format!("{kind} {name} is not what this release installs")),
        Some(_) => None,
    }
}

// What the API server fills in, and what it leaves out when it is empty.

fn defaulted_policy(mut spec: ValidatingAdmissionPolicySpec) -> ValidatingAdmissionPolicySpec {
    spec.failure_policy.get_or_insert_with(|| "Fail".into());
    spec.match_constraints = spec.match_constraints.map(defaulted_match);
    drop_empty(&mut spec.audit_annotations);
    drop_empty(&mut spec.match_conditions);
    drop_empty(&mut spec.variables);
    drop_empty(&mut spec.validations);
    spec
}

fn defaulted_binding(mut spec: ValidatingAdmissionPolicyBindingSpec) -> ValidatingAdmissionPolicyBindingSpec {
    spec.match_resources = spec.match_resources.map(defaulted_match);
    spec.validation_actions.sort();
    spec
}

fn defaulted_match(mut resources: MatchResources) -> MatchResources {
    resources.match_policy.get_or_insert_with(|| "Equivalent".into());
    resources.namespace_selector.get_or_insert_default();
    resources.object_selector.get_or_insert_default();
    for rules in [&mut resources.resource_rules, &mut resources.exclude_resource_rules] {
        rules.iter_mut().flatten().for_each(default_rule);
        drop_empty(rules);
    }
    resources
}

fn default_rule(rule: &mut NamedRuleWithOperations) {
    rule.scope.get_or_insert_with(|| "*".into());
    drop_empty(&mut rule.resource_names);
}

fn drop_empty<T>(list: &mut Option<Vec<T>>) {
    if list.as_ref().is_some_and(Vec::is_empty) {
        *list = None;
    }
}

#[cfg(test)]
mod tests;

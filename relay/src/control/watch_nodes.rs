//! Follows the MeshNodes. The API may be away at any time and for any length of it: the last list stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use crds::MeshNode;
use crds::mesh_node::AdmissionState;
use futures::StreamExt;
use kube::ResourceExt;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};

use super::Directory;
use crate::identity;
use crate::server::control::Member;

/// Objects of one page of a list: some 4 KiB each, so it is the page that takes memory and not the mesh.
const PAGE_SIZE: u32 = 100;

/// Keeps the directory up to date until it is dropped.
pub async fn watch_nodes(client: kube::Client, directory: Arc<Directory>) {
    let api: Api<DeserializeGuard<MeshNode>> = Api::all(client);
    let config = watcher::Config { page_size: Some(PAGE_SIZE), ..watcher::Config::default() };
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut listing = BTreeMap::new();
    let mut is_away = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if std::mem::take(&mut is_away) {
                    tracing::info!("the MeshNodes can be watched again");
                }
                take(event, &directory, &mut listing);
            }
            Err(error) if !is_away => {
                is_away = true;
                tracing::warn!(%error, "cannot watch the MeshNodes; the last list stands, new nodes are refused");
            }
            Err(error) => tracing::debug!(%error, "cannot watch the MeshNodes"),
        }
    }
}

fn take(event: Event<DeserializeGuard<MeshNode>>, directory: &Directory, listing: &mut BTreeMap<String, Member>) {
    match event {
        Event::Init => listing.clear(),
        Event::InitApply(object) => {
            let name = object.name_any();
            if let Some(member) = read(object, directory) {
                listing.insert(name, member);
            }
        }
        Event::InitDone => {
            tracing::debug!(members = listing.len(), "listed the MeshNodes");
            directory.replace(std::mem::take(listing));
        }
        Event::Apply(object) => {
            let name = object.name_any();
            directory.set(name, read(object, directory));
        }
        Event::Delete(object) => directory.set(object.name_any(), None),
    }
}

/// The member that an object describes. One that cannot be read says what it said before.
fn read(object: DeserializeGuard<MeshNode>, directory: &Directory) -> Option<Member> {
    match object.0 {
        Ok(node) => member(&node),
        Err(invalid) => {
            let name = invalid.metadata.name.unwrap_or_default();
            tracing::warn!(name, error = invalid.error, "cannot read a MeshNode; what it said before counts");
            directory.get(&name)
        }
    }
}

/// Who is admitted, not suspended and not being deleted. The operator has admitted the WireGuard key, so it is taken from `spec`; the
/// identity key is the node's own word about itself, and is worth something only together with the other.
fn member(node: &MeshNode) -> Option<Member> {
    let admission = &node.spec.admission;
    let is_in = admission.state == AdmissionState::Accepted
        && !node.spec.suspended
        && node.metadata.deletion_timestamp.is_none();
    let key = admission.public_key.as_ref().filter(|_| is_in)?.parse().ok()?;
    let text = node.status.as_ref().and_then(|status| status.identity_key.as_deref());
    Some(Member { node: key, identity: text.and_then(identity::from_text) })
}

#[cfg(test)]
mod tests {
    use crds::mesh_node::{MeshNodeStatus, NodeAdmission};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use wire::PublicKey;

    use super::*;

    const KEY: PublicKey = PublicKey::from_bytes([1; 32]);
    const IDENTITY: [u8; 32] = [2; 32];

    fn node() -> MeshNode {
        let mut node = MeshNode::default();
        node.metadata.name = Some("node".into());
        node.spec.admission = NodeAdmission {
            state: AdmissionState::Accepted,
            public_key: Some(KEY.to_string()),
            ..NodeAdmission::default()
        };
        let identity_key = Some(identity::to_text(&IDENTITY));
        node.status = Some(MeshNodeStatus { identity_key, ..MeshNodeStatus::default() });
        node
    }

    #[test]
    fn a_member_is_admitted_and_neither_suspended_nor_on_its_way_out() {
        assert_eq!(member(&node()), Some(Member { node: KEY, identity: Some(IDENTITY) }));
        let without: [fn(&mut MeshNode); 6] = [
            |node| node.spec.admission.state = AdmissionState::Pending,
            |node| node.spec.admission.state = AdmissionState::Rejected,
            |node| node.spec.admission.public_key = None,
            |node| node.spec.admission.public_key = Some("no key".into()),
            |node| node.spec.suspended = true,
            |node| node.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH)),
        ];
        for change in without {
            let mut node = node();
            change(&mut node);
            assert_eq!(member(&node), None);
        }
    }

    #[test]
    fn what_a_node_says_of_its_key_does_not_count_before_it_is_admitted() {
        let mut object = node();
        if let Some(status) = &mut object.status {
            status.public_key = Some(PublicKey::from_bytes([9; 32]).to_string());
        }
        assert_eq!(member(&object).map(|member| member.node), Some(KEY));
    }

    #[test]
    fn an_identity_that_is_no_key_is_none() {
        for text in ["", "AAAA", "!", &"A".repeat(44)] {
            let mut object = node();
            if let Some(status) = &mut object.status {
                status.identity_key = Some(text.to_owned());
            }
            assert_eq!(member(&object), Some(Member { node: KEY, identity: None }));
        }
    }

    #[test]
    fn an_object_that_cannot_be_read_says_what_it_said_before() {
        let directory = Directory::default();
        let broken: DeserializeGuard<MeshNode> = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "node" }, "spec": { "nodeUID": 7 },
        }))
        .unwrap();
        let fine = || DeserializeGuard(Ok(node()));
        let mut listing = BTreeMap::new();
        for event in [Event::Init, Event::InitApply(fine()), Event::InitDone, Event::Apply(broken.clone())] {
            take(event, &directory, &mut listing);
        }
        let known = Some(Member { node: KEY, identity: Some(IDENTITY) });
        assert_eq!(directory.get("node"), known);
        for event in [Event::Init, Event::InitApply(broken), Event::InitDone] {
            take(event, &directory, &mut listing);
        }
        assert_eq!(directory.get("node"), known);
        take(Event::Delete(fine()), &directory, &mut listing);
        assert_eq!(directory.get("node"), None);
    }
}

//! Who belongs to the mesh.

use std::collections::BTreeMap;

use wire::PublicKey;
use wire::control::DeniedReason;

use super::{Identity, Member, Output, Sessions};
use crate::server::plane::{self, NodeId};

#[derive(Debug, Default)]
pub(super) struct Members {
    by_name: BTreeMap<String, Member>,
    /// How many objects have a key, and with which identities. The operator admits a key once; for a moment two may have it.
    by_node: BTreeMap<PublicKey, Vec<Option<Identity>>>,
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.by_node.len()
    }

    /// Whether a member has this WireGuard key and has published this identity key.
    pub(super) fn is_proven(&self, node: PublicKey, identity: Identity) -> bool {
        self.by_node.get(&node).is_some_and(|identities| identities.contains(&Some(identity)))
    }

    fn is_member(&self, node: PublicKey) -> bool {
        self.by_node.contains_key(&node)
    }

    /// Returns what the name said before.
    fn set(&mut self, name: String, member: Option<Member>) -> Option<Member> {
        let before = match member {
            Some(member) => self.by_name.insert(name, member),
            None => self.by_name.remove(&name),
        };
        if let Some(before) = before
            && let Some(identities) = self.by_node.get_mut(&before.node)
        {
            if let Some(at) = identities.iter().position(|identity| *identity == before.identity) {
                identities.swap_remove(at);
            }
            if identities.is_empty() {
                self.by_node.remove(&before.node);
            }
        }
        if let Some(member) = member {
            self.by_node.entry(member.node).or_default().push(member.identity);
        }
        before
    }
}

impl Sessions {
    pub(super) fn set_members(&mut self, members: BTreeMap<String, Member>) {
        self.members = Members::default();
        for (name, member) in members {
            self.members.set(name, Some(member));
        }
        // A front end that has started anew does not know whom the data plane has admitted before, so it says who there is.
        let all = self.members.by_node.keys().map(node_id).collect();
        self.outputs.push_back(Output::Plane(plane::Input::Members(all)));
        let nodes: Vec<PublicKey> = self.by_node.keys().copied().collect();
        for node in nodes {
            self.look_again(node);
        }
    }

    pub(super) fn set_member(&mut self, name: String, member: Option<Member>) {
        let was_member = member.is_some_and(|member| self.members.is_member(member.node));
        let before = self.members.set(name, member);
        if let Some(before) = before {
            if !self.members.is_member(before.node) {
                self.outputs.push_back(Output::Plane(plane::Input::Remove(node_id(&before.node))));
            }
            self.look_again(before.node);
        }
        if let Some(member) = member
            && !was_member
        {
            self.outputs.push_back(Output::Plane(plane::Input::Admit(node_id(&member.node))));
        }
    }

    /// Ends the session of a node whose claim does not hold any more.
    fn look_again(&mut self, node: PublicKey) {
        if let Some(&id) = self.by_node.get(&node)
            && let Some(session) = self.sessions.get(&id)
            && !self.members.is_proven(node, session.identity)
        {
            self.deny(id, DeniedReason::NotAdmitted);
        }
    }
}

pub(super) fn node_id(node: &PublicKey) -> NodeId {
    NodeId(*node.as_bytes())
}

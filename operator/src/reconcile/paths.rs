//! Events for nodes that reach peers through relays, and for those that no longer do.
//!
//! A pair that is young, or whose network is uneasy, goes to and fro. So a change is told once it has lasted, of one node once in a
//! while, and of many nodes at once in one Event of the Mesh. What a replica finds when it begins to lead is no news.

use crate::{
    events::Notice,
    index::{Cluster, MeshNodeValue, Stored},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A change that does not last so long is not told: pairs start on a relay, and agents write twice a minute at most.
const LASTING: Duration = Duration::from_secs(45);
/// Between two Events of one node: what changes more often is seen in `MeshNode.status.paths`.
const SPACING: Duration = Duration::from_secs(600);
/// Nodes that are told of by themselves. More at once have one reason, mostly a relay or a provider.
const MOST_ALONE: usize = 5;

/// What was told of whom. One entry a node that there is.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    uid: String,
    /// Whether it reached peers through relays when it was last told, or first seen.
    relayed: bool,
    told: Option<Instant>,
    /// Since when it is otherwise.
    changed: Option<Instant>,
}

impl Told {
    /// What is to be told now, and when to look again. Whoever does not lead must not ask, and begins with none when it does.
    pub fn look(&mut self, cluster: &Cluster, now: Instant) -> (Vec<Notice>, Option<Instant>) {
        self.0.retain(|name, _| cluster.mesh_nodes.get(name).is_some());
        let (mut due, mut again) = ([Vec::new(), Vec::new()], None::<Instant>);
        for (name, node) in cluster.mesh_nodes.iter() {
            match self.0.get_mut(name).filter(|entry| entry.uid == node.meta.uid) {
                None => {
                    let relayed = node.value.relayed.unwrap_or(false);
                    let entry = Entry { uid: node.meta.uid.clone(), relayed, told: None, changed: None };
                    self.0.insert(name.clone(), entry);
                }
                Some(entry) => match entry.due(node.value.relayed, now) {
                    Some(at) if at <= now => {
                        entry.tell(now);
                        due[usize::from(entry.relayed)].push((name, node));
                    }
                    at => again = again.into_iter().chain(at).min(),
                },
            }
        }
        let [direct, relayed] = due;
        let notices = [(false, direct), (true, relayed)].into_iter();
        (notices.flat_map(|(relayed, nodes)| notices_of(cluster, relayed, &nodes)).collect(), again)
    }
}

impl Entry {
    /// When a change is to be told, if there is one.
    fn due(&mut self, relayed: Option<bool>, now: Instant) -> Option<Instant> {
        if relayed.is_none_or(|relayed| relayed == self.relayed) {
            self.changed = None;
            return None;
        }
        let lasts = *self.changed.get_or_insert(now) + LASTING;
        Some(self.told.map_or(lasts, |told| lasts.max(told + SPACING)))
    }

    fn tell(&mut self, now: Instant) {
        self.relayed = !self.relayed;
        (self.told, self.changed) = (Some(now), None);
    }
}

fn notices_of(cluster: &Cluster, relayed: bool, nodes: &[(&String, &Stored<MeshNodeValue>)]) -> Vec<Notice> {
    let reason = if relayed { "PathRelayed" } else { "PathDirect" };
    let what = match relayed {
        true => "reaches peers through a relay; `warren-agent paths` there says which and why",
        false => "reaches every peer that it reaches directly",
    };
    let notice =
        |kind, name: &str, uid, message| Notice { kind, name: name.to_owned(), uid, reason, warning: false, message };
    if nodes.len() <= MOST_ALONE {
        let alone = |(name, node): &(&String, &Stored<MeshNodeValue>)| {
            notice("MeshNode", name, Some(node.meta.uid.clone()), format!("this node {what}"))
        };
        return nodes.iter().map(alone).collect();
    }
    let named: Vec<&str> = nodes.iter().take(MOST_ALONE).map(|(name, _)| name.as_str()).collect();
    let message = format!("each of {} nodes {what}: {} and others", nodes.len(), named.join(", "));
    vec![notice("Mesh", crds::names::MESH, cluster.mesh().map(|mesh| mesh.meta.uid.clone()), message)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Change, Meta, Update};

    const MOMENT: Duration = Duration::from_millis(1);

    /// Node `name` says whether it has relayed peers.
    fn say(cluster: &mut Cluster, name: &str, relayed: Option<bool>) {
        let meta = Meta { name: name.into(), uid: format!("uid of {name}"), ..Meta::default() };
        let value = MeshNodeValue { relayed, ..MeshNodeValue::default() };
        cluster.absorb(Change::MeshNode(Update::Applied(Stored { meta, value })));
    }

    fn reasons(notices: &[Notice]) -> Vec<(&str, &str)> {
        notices.iter().map(|notice| (notice.reason, notice.name.as_str())).collect()
    }

    #[test]
    fn a_change_is_told_once_it_has_lasted_and_what_was_there_before_is_no_news() {
        let (mut cluster, mut told, start) = (Cluster::default(), Told::default(), Instant::now());
        say(&mut cluster, "before", Some(true));
        say(&mut cluster, "new", None);
        assert_eq!(told.look(&cluster, start), (vec![], None));
        say(&mut cluster, "new", Some(true));
        assert_eq!(told.look(&cluster, start), (vec![], Some(start + LASTING)));
        let (notices, again) = told.look(&cluster, start + LASTING);
        assert_eq!((reasons(&notices), again), (vec![("PathRelayed", "new")], None));
        assert_eq!((notices[0].kind, notices[0].uid.as_deref()), ("MeshNode", Some("uid of new")));
        assert_eq!(told.look(&cluster, start + LASTING * 100), (vec![], None));
        say(&mut cluster, "before", Some(false));
        let later = start + LASTING * 100;
        told.look(&cluster, later);
        assert_eq!(reasons(&told.look(&cluster, later + LASTING).0), [("PathDirect", "before")]);
    }

    #[test]
    fn paths_that_go_to_and_fro_all_day_are_told_of_once_in_ten_minutes() {
        let (mut cluster, mut told, start) = (Cluster::default(), Told::default(), Instant::now());
        say(&mut cluster, "n", Some(false));
        told.look(&cluster, start);
        // Too short to be told at all.
        for half_minute in 0..2880u32 {
            say(&mut cluster, "n", Some(half_minute % 2 == 0));
            assert_eq!(told.look(&cluster, start + Duration::from_secs(30) * half_minute).0, []);
        }
        let day = start + Duration::from_secs(86_400);
        let mut count = 0;
        for minute in 0..1440u32 {
            say(&mut cluster, "n", Some(minute % 2 == 0));
            let at = day + Duration::from_secs(60) * minute;
            count += told.look(&cluster, at).0.len() + told.look(&cluster, at + LASTING + MOMENT).0.len();
        }
        assert!((100..=145).contains(&count), "{count}");
    }

    #[test]
    fn many_nodes_at_once_are_one_event_of_the_mesh() {
        let (mut cluster, mut told, start) = (Cluster::default(), Told::default(), Instant::now());
        let names: Vec<String> = (0..1000).map(|number| format!("n{number:03}")).collect();
        names.iter().for_each(|name| say(&mut cluster, name, Some(false)));
        told.look(&cluster, start);
        names.iter().for_each(|name| say(&mut cluster, name, Some(true)));
        told.look(&cluster, start);
        let (notices, _) = told.look(&cluster, start + LASTING);
        assert_eq!(reasons(&notices), [("PathRelayed", "default")]);
        assert!(notices[0].message.starts_with("each of 1000 nodes") && notices[0].message.contains("n004 and others"));
    }

    #[test]
    fn a_node_that_is_gone_is_forgotten_and_one_that_is_made_anew_is_another() {
        let (mut cluster, mut told, start) = (Cluster::default(), Told::default(), Instant::now());
        say(&mut cluster, "n", Some(false));
        told.look(&cluster, start);
        let gone = Update::Deleted("n".into(), "uid of n".into());
        cluster.absorb(Change::MeshNode(gone));
        told.look(&cluster, start);
        assert!(told.0.is_empty());
        say(&mut cluster, "n", Some(true));
        assert_eq!(told.look(&cluster, start), (vec![], None), "it came with what it has");
    }
}

//! Events for nodes that reach peers through relays, for those that no longer do, and for those whose peers no relay has a port for.
//!
//! A pair that is young, or whose network is uneasy, goes to and fro. So a change is told once it has lasted, of one node once in a
//! while, and of many nodes at once in one Event of the Mesh. What a replica finds when it begins to lead is no news.

use crate::{
    events::Notice,
    index::{Cluster, MeshNodeValue, Stored},
};
use crds::names::RELAY_PORTS_EXHAUSTED;
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

/// What was told of whom.
#[derive(Debug, Default)]
pub struct Told {
    relayed: Seen,
    portless: Seen,
}

/// Of one fact about nodes: an entry for each node that there is.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    uid: String,
    /// What it was when it was last told, or first seen.
    holds: bool,
    told: Option<Instant>,
    /// Since when it is otherwise.
    changed: Option<Instant>,
}

/// How a change is told.
struct Words {
    reason: &'static str,
    warning: bool,
    /// What the node does, or each of several.
    what: &'static str,
}

const DIRECT: Words =
    Words { reason: "PathDirect", warning: false, what: "reaches every peer that it reaches directly" };
const RELAYED: Words = Words {
    reason: "PathRelayed",
    warning: false,
    what: "reaches peers through a relay; `warren-agent paths` there says which and why",
};
const PORTLESS: Words = Words {
    reason: RELAY_PORTS_EXHAUSTED,
    warning: true,
    what: "does not reach peers because no relay has a port left for them; its condition RelayPortsExhausted says how many and what helps",
};

/// Nodes of which something is to be told.
type Due<'a> = Vec<(&'a String, &'a Stored<MeshNodeValue>)>;

impl Told {
    /// What is to be told now, and when to look again. Whoever does not lead must not ask, and begins with none when it does.
    pub fn look(&mut self, cluster: &Cluster, now: Instant) -> (Vec<Notice>, Option<Instant>) {
        let (relayed, relayed_again) =
            self.relayed.look(cluster, |node| node.relayed, [Some(DIRECT), Some(RELAYED)], now);
        // That it is over is seen in the condition, which is gone.
        let (portless, portless_again) =
            self.portless.look(cluster, |node| Some(node.portless), [None, Some(PORTLESS)], now);
        let again = [relayed_again, portless_again].into_iter().flatten().min();
        (relayed.into_iter().chain(portless).collect(), again)
    }
}

impl Seen {
    /// The same of one fact, with the words for what holds no longer and for what holds from now on.
    fn look(
        &mut self,
        cluster: &Cluster,
        fact: fn(&MeshNodeValue) -> Option<bool>,
        words: [Option<Words>; 2],
        now: Instant,
    ) -> (Vec<Notice>, Option<Instant>) {
        self.0.retain(|name, _| cluster.mesh_nodes.get(name).is_some());
        let (mut due, mut again): ([Due<'_>; 2], _) = (Default::default(), None::<Instant>);
        for (name, node) in cluster.mesh_nodes.iter() {
            let holds = fact(&node.value);
            let Some(entry) = self.0.get_mut(name).filter(|entry| entry.uid == node.meta.uid) else {
                let (uid, holds) = (node.meta.uid.clone(), holds.unwrap_or(false));
                self.0.insert(name.clone(), Entry { uid, holds, told: None, changed: None });
                continue;
            };
            let said = words[usize::from(!entry.holds)].is_some();
            match entry.due(holds, said, now) {
                Some(at) if at <= now => {
                    entry.turn(said, now);
                    due[usize::from(entry.holds)].push((name, node));
                }
                at => again = again.into_iter().chain(at).min(),
            }
        }
        let told = words.into_iter().zip(due).filter_map(|(words, nodes)| Some((words?, nodes)));
        (told.flat_map(|(words, nodes)| notices_of(cluster, &words, &nodes)).collect(), again)
    }
}

impl Entry {
    /// When a change is due, if there is one. Only what is said is spaced.
    fn due(&mut self, holds: Option<bool>, said: bool, now: Instant) -> Option<Instant> {
        if holds.is_none_or(|holds| holds == self.holds) {
            self.changed = None;
            return None;
        }
        let lasts = *self.changed.get_or_insert(now) + LASTING;
        Some(self.told.filter(|_| said).map_or(lasts, |told| lasts.max(told + SPACING)))
    }

    fn turn(&mut self, said: bool, now: Instant) {
        self.holds = !self.holds;
        self.told = if said { Some(now) } else { self.told };
        self.changed = None;
    }
}

fn notices_of(cluster: &Cluster, words: &Words, nodes: &Due<'_>) -> Vec<Notice> {
    let Words { reason, warning, what } = *words;
    let notice = |kind, name: &str, uid, message| Notice { kind, name: name.to_owned(), uid, reason, warning, message };
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
        put(cluster, name, MeshNodeValue { relayed, ..MeshNodeValue::default() });
    }

    /// It says whether there are peers that no relay has a port for.
    fn say_portless(cluster: &mut Cluster, name: &str, portless: bool) {
        put(cluster, name, MeshNodeValue { portless, ..MeshNodeValue::default() });
    }

    fn put(cluster: &mut Cluster, name: &str, value: MeshNodeValue) {
        let meta = Meta { name: name.into(), uid: format!("uid of {name}"), ..Meta::default() };
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
        assert!(told.relayed.0.is_empty() && told.portless.0.is_empty());
        say(&mut cluster, "n", Some(true));
        assert_eq!(told.look(&cluster, start), (vec![], None), "it came with what it has");
    }

    #[test]
    fn a_node_whose_peers_no_relay_has_a_port_for_is_warned_of_once_that_has_lasted_and_not_when_it_is_over() {
        let (mut cluster, mut told, start) = (Cluster::default(), Told::default(), Instant::now());
        say_portless(&mut cluster, "n", false);
        told.look(&cluster, start);
        say_portless(&mut cluster, "n", true);
        assert_eq!(told.look(&cluster, start), (vec![], Some(start + LASTING)));
        let (notices, again) = told.look(&cluster, start + LASTING);
        assert_eq!((reasons(&notices), again), (vec![("RelayPortsExhausted", "n")], None));
        assert!(notices[0].warning && notices[0].kind == "MeshNode", "{notices:?}");
        // Over, and there again: told once more when ten minutes are over.
        let (over, back) = (start + Duration::from_secs(100), start + Duration::from_secs(200));
        say_portless(&mut cluster, "n", false);
        told.look(&cluster, over);
        assert_eq!(told.look(&cluster, over + LASTING), (vec![], None));
        say_portless(&mut cluster, "n", true);
        assert_eq!(told.look(&cluster, back), (vec![], Some(start + LASTING + SPACING)));
        assert_eq!(reasons(&told.look(&cluster, start + LASTING + SPACING).0), [("RelayPortsExhausted", "n")]);
    }

    #[test]
    fn relays_without_ports_under_many_nodes_are_one_event_of_the_mesh() {
        let (mut cluster, mut told, start) = (Cluster::default(), Told::default(), Instant::now());
        let names: Vec<String> = (0..20).map(|number| format!("n{number:03}")).collect();
        names.iter().for_each(|name| say_portless(&mut cluster, name, false));
        told.look(&cluster, start);
        names.iter().for_each(|name| say_portless(&mut cluster, name, true));
        told.look(&cluster, start);
        let (notices, _) = told.look(&cluster, start + LASTING);
        assert_eq!(reasons(&notices), [("RelayPortsExhausted", "default")]);
    }
}

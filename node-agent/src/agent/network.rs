//! What is known and programmed of the host network.

use super::{intent, plane::Planned};
use crate::{
    cni::CniPlan,
    host::{Host, Programmed, Survey},
    net::{Contention, NetPlan, PeerRoute, Rerouting},
    status::{bucket::TokenBucket, conditions::Cni},
};
use ipnet::IpNet;
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};
use topology::node::{PeerPlan, PlanChange};

/// Repairs at once: a restart of a firewall or a network service comes in a few waves.
const REPAIR_BURST: u32 = 5;
/// One more each: whoever removes our routes in a loop must not cost us the processor.
const REPAIR_INTERVAL: Duration = Duration::from_secs(2);
/// Between attempts while something could not be done, plugins that are to be installed among it: nobody announces those.
const FAILURE_RETRY: Duration = Duration::from_secs(10);

/// Claims that come and go with peers, up to which changing them alone is the cheaper way.
const FEW: usize = 64;

/// The host network, as found and as programmed.
pub struct NetworkState {
    /// The node's own network.
    pub survey: Survey,
    /// Whether the mesh carries the packets of pods.
    pods: bool,
    /// What was programmed last, without the routes to peers, and the revision of the plan that those are of.
    plan: Option<(NetPlan, Option<CniPlan>)>,
    routed: u64,
    programmed: Option<Programmed>,
    error: Option<String>,
    budget: TokenBucket,
    contention: Contention,
    /// When to program again although the plan is the same.
    again_at: Option<Instant>,
}

impl NetworkState {
    /// Nothing is known yet.
    pub fn new(pods: bool, now: Instant) -> Self {
        Self {
            survey: Survey::default(),
            pods,
            plan: None,
            routed: 0,
            programmed: None,
            error: None,
            budget: TokenBucket::new(REPAIR_BURST, REPAIR_INTERVAL, now),
            contention: Contention::default(),
            again_at: None,
        }
    }

    /// The last result.
    pub fn programmed(&self) -> Option<&Programmed> {
        self.programmed.as_ref()
    }

    /// Why nothing at all could be done, if so.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Why it looks as if somebody were undoing our work again and again, if it does.
    pub fn contended(&self, now: Instant) -> Option<String> {
        let message = "something on this node keeps removing Warren's routes, rules or firewall table, and the agent keeps putting \
                       them back; look for another network program (warren_route_repairs_total says what)";
        self.contention.is_fight(now).then(|| message.into())
    }

    /// The device is gone, and its addresses and routes with it.
    pub fn forget(&mut self) {
        self.suspend();
        self.programmed = None;
    }

    /// There is nothing to program at present. Whatever comes next is programmed as if it were new, so nothing is due until
    /// then.
    pub fn suspend(&mut self) {
        self.plan = None;
        self.again_at = None;
    }

    /// Somebody changed the host network: look, as soon as the budget allows. What was never programmed can't be repaired.
    pub fn repair(&mut self, now: Instant) {
        if self.plan.is_none() {
            return;
        }
        let at = self.budget.take(now).map_or_else(|later| later, |()| now);
        self.again_at = Some(self.again_at.map_or(at, |old| old.min(at)));
    }

    /// Looks for what is gone and nobody announces.
    pub fn look(&mut self, host: &dyn Host, now: Instant) {
        let published = self.programmed.as_ref().is_some_and(|p| p.cni == Cni::Ready);
        if let Some((net, Some(cni))) = self.plan.as_ref().filter(|_| published)
            && !host.cni_stands(cni, net.mtu)
        {
            tracing::warn!("the CNI configuration is gone or was changed; putting it back");
            self.repair(now);
        }
    }

    /// Changes the routes of the peers that changed, and what is claimed on their account, and nothing else. Returns whether
    /// that was all there is to do.
    async fn reroute(&self, host: &dyn Host, (plan, cni): &(NetPlan, Option<CniPlan>), change: &PlanChange) -> bool {
        let standing = self.plan.as_ref().filter(|(_, standing)| standing == cni);
        let Some((claim, unclaim)) = standing.and_then(|(standing, _)| differing_claims(standing, plan)) else {
            return false;
        };
        if self.is_unsettled() || self.programmed.is_none() {
            return false;
        }
        let of = |peer: &Option<Arc<PeerPlan>>| {
            peer.iter().flat_map(|peer| intent::routes(peer, self.pods)).collect::<Vec<_>>()
        };
        let before: BTreeSet<PeerRoute> = change.peers.values().flat_map(|(before, _)| of(before)).collect();
        let after: BTreeSet<PeerRoute> = change.peers.values().flat_map(|(_, after)| of(after)).collect();
        let change = Rerouting {
            add: after.difference(&before).cloned().collect(),
            remove: before.difference(&after).cloned().collect(),
            claim,
            unclaim,
        };
        if change == Rerouting::default() {
            return true;
        }
        host.reroute(plan, &change).await.unwrap_or_else(|error| {
            tracing::debug!(error = format!("{error:#}"), "routes were not changed alone");
            false
        })
    }

    /// Whether everything was programmed as planned when it was programmed last.
    pub fn stands(&self) -> bool {
        self.programmed.is_some() && !self.is_unsettled()
    }

    fn is_unsettled(&self) -> bool {
        let unsettled = |p: &Programmed| !p.network.failures.is_empty() || matches!(p.cni, Cni::Failed(..));
        self.error.is_some() || self.programmed.as_ref().is_some_and(unsettled)
    }

    /// When [`Self::program`] has something to do although the plan is the same.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.again_at
    }

    /// Makes it so, if the plan is another one or somebody interfered; `plan` is without the routes to peers. Returns the
    /// kinds of repairs made.
    pub async fn program(
        &mut self,
        host: &dyn Host,
        plan: NetPlan,
        cni: Option<CniPlan>,
        planned: Planned<'_>,
        now: Instant,
    ) -> Option<Vec<&'static str>> {
        let wanted = (plan, cni);
        let revision = planned.planner.revision();
        let same = self.plan.as_ref() == Some(&wanted) && self.routed == revision;
        let due = self.again_at.is_some_and(|at| at <= now);
        if same && !due {
            return None;
        }
        if !due && planned.follows(self.routed) && self.reroute(host, &wanted, planned.change).await {
            self.plan = Some(wanted);
            self.routed = revision;
            return Some(Vec::new());
        }
        self.again_at = None;
        let routes = planned.planner.plan().peers.values().flat_map(|peer| intent::routes(peer, self.pods)).collect();
        let whole = NetPlan { routes, ..wanted.0.clone() };
        let result = host.program(&whole, wanted.1.as_ref()).await;
        self.plan = Some(wanted);
        self.routed = revision;
        match result {
            Ok(mut programmed) => {
                self.error = None;
                let repairs = if same { std::mem::take(&mut programmed.repairs) } else { Vec::new() };
                if !repairs.is_empty() {
                    self.contention.repaired(now);
                }
                self.programmed = Some(programmed);
                if self.is_unsettled() {
                    self.again_at = Some(now + FAILURE_RETRY);
                }
                Some(repairs)
            }
            Err(e) => {
                let text = format!("{e:#}");
                if self.error.as_ref() != Some(&text) {
                    tracing::error!(error = text, "the host network can't be programmed; trying again");
                }
                self.error = Some(text);
                self.again_at = Some(now + FAILURE_RETRY);
                Some(Vec::new())
            }
        }
    }
}

/// The claims that one plan has and the other has not, new ones first, if they are few and nothing else differs.
fn differing_claims(standing: &NetPlan, plan: &NetPlan) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    let only_here = |here: &NetPlan, there: &NetPlan| {
        let there: BTreeSet<IpNet> = there.claims.iter().copied().collect();
        here.claims.iter().filter(|claim| !there.contains(claim)).copied().collect::<Vec<_>>()
    };
    let (claim, unclaim) = match standing.claims == plan.claims {
        true => Default::default(),
        false => (only_here(plan, standing), only_here(standing, plan)),
    };
    let few = claim.len() + unclaim.len() <= FEW;
    (few && standing.same_but_claims(plan)).then_some((claim, unclaim))
}

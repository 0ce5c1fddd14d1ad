//! One pass: fetch (from the index), validate, plan, compare, apply, report.
//!
//! [`diff`] and [`status`] are plain functions from what is known and what was planned to a list of writes; [`apply`] carries
//! them out, and `writing` learns from the answers. [`Reconciler`] owns the state that a replica keeps between passes.

pub mod apply;
mod confirm;
pub mod diff;
mod paths;
pub mod placement;
pub mod progress;
mod relays;
pub mod status;
mod writing;

use crate::{
    args::Placement,
    backoff::Retries,
    coalesce::Lane,
    convert,
    events::Recorder,
    index::{Change, Cluster, Effect},
    metrics::Metrics,
    proof::{Prover, Seed},
    protection::{self, Documents, Protection},
};
use apply::Applier;
use crds::MeshSpec;
use diff::Target;
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};
use topology::cluster::Plan;

/// `apiVersion` of our kinds.
pub const API_VERSION: &str = "warren.dev/v1alpha1";
/// Plans that are made anew in one pass because they rested on something that is not so.
const CONFIRMATIONS: usize = 3;
/// Between looks at where relays stand, whatever the clock says.
const LEAST_WAIT: Duration = Duration::from_secs(1);
/// Pause before a pass that could not confirm its plan is tried again.
const UNCONFIRMED_PAUSE: Duration = Duration::from_secs(1);

/// What a replica keeps between passes.
pub struct Reconciler {
    /// What it knows.
    pub cluster: Cluster,
    documents: Vec<Documents>,
    defaults: MeshSpec,
    places: Placement,
    prover: Prover,
    retries: Retries<Target>,
    applier: Applier,
    recorder: Recorder,
    told: paths::Told,
    metrics: Arc<Metrics>,
    leading: bool,
    wrote: bool,
    counts_written: Option<Instant>,
    reported_problem: Option<String>,
}

/// When to come back, if nothing changes until then.
pub type WakeUp = Option<Instant>;

impl Reconciler {
    /// A replica that knows nothing yet.
    pub fn new(
        documents: Vec<Documents>,
        defaults: MeshSpec,
        places: Placement,
        applier: Applier,
        recorder: Recorder,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            cluster: Cluster::default(),
            documents,
            defaults,
            places,
            prover: Prover::default(),
            retries: Retries::default(),
            applier,
            recorder,
            told: paths::Told::default(),
            metrics,
            leading: false,
            wrote: false,
            counts_written: None,
            reported_problem: None,
        }
    }

    /// Whether the last pass led to its end: everything that it planned was written, or is tried again.
    pub fn leading(&self) -> bool {
        self.leading
    }

    /// Takes a change in.
    pub fn absorb(&mut self, change: Change) -> Effect {
        absorb(&mut self.cluster, &mut self.prover, change)
    }

    /// Plans, and if this replica leads, writes. Nothing is concluded before every kind was listed.
    pub async fn pass(&mut self, lane: Lane) -> WakeUp {
        if !self.cluster.synced() {
            return None;
        }
        let timer = self.metrics.reconcile_duration.start_timer();
        self.metrics.passes.with_label_values(&[if lane == Lane::Fast { "fast" } else { "slow" }]).inc();
        self.wrote = false;
        let protection = self.observe_protection();
        let wake = match self.mesh_or_create().await {
            Some(mesh) => self.plan_and_write(lane, mesh, protection).await,
            None => None,
        };
        timer.observe_duration();
        let now = Instant::now();
        self.metrics.retrying.set(i64::try_from(self.retries.len()).unwrap_or(i64::MAX));
        let settles = self.prover.settles_at().filter(|at| *at > now);
        // What was just made may need more, a new node its conditions: the index has it already, so no watch event will say so.
        let again = self.wrote.then_some(now);
        [wake, again, self.retries.next(now), settles].into_iter().flatten().min()
    }

    fn observe_protection(&mut self) -> Protection {
        let protection = protection::check(&self.documents, &self.cluster.policies, &self.cluster.bindings);
        let now = Instant::now();
        self.prover.observe(protection == Protection::InPlace, now);
        self.metrics.node_writes_protected.set(i64::from(protection == Protection::InPlace));
        let leads = self.applier.fence().holds();
        if !leads || !self.leading {
            // A new term asks anew: the other replica's challenge has replaced ours in the Mesh meanwhile.
            self.prover.retire();
            self.told = paths::Told::default();
        }
        self.leading = leads;
        if leads {
            self.issue_challenge(now);
        }
        protection
    }

    fn issue_challenge(&mut self, now: Instant) {
        let older = || {
            let nodes = self.cluster.mesh_nodes.iter();
            nodes.filter_map(|(_, node)| node.value.status.key_proof.clone()).collect::<BTreeSet<_>>()
        };
        match self.prover.issue(now, seed, older) {
            Ok(true) => {
                self.metrics.challenges.inc();
                tracing::info!("the admission policies are in place; new keys are admitted");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "no randomness from the system: no new key is admitted"),
        }
    }

    async fn mesh_or_create(&mut self) -> Option<topology::mesh::MeshConfig> {
        let Some(mesh) = self.cluster.mesh() else {
            self.create_mesh().await;
            return None;
        };
        match convert::mesh_config(&mesh.value.spec) {
            Ok(config) => Some(config),
            Err(error) => {
                self.metrics.plan_errors.with_label_values(&["InvalidMesh"]).inc();
                let report = status::invalid(mesh, &error.to_string());
                self.problem(error.to_string());
                self.write(report.into_iter().collect()).await;
                None
            }
        }
    }

    async fn create_mesh(&mut self) {
        let mut random = [0; 5];
        if let Err(error) = getrandom::fill(&mut random) {
            tracing::warn!(%error, "no randomness from the system: no address range can be drawn");
            return;
        }
        let mesh = crate::defaults::mesh(self.defaults.clone(), random);
        self.write(diff::create_mesh(&mesh).into_iter().collect()).await;
    }

    async fn plan_and_write(&mut self, lane: Lane, mesh: topology::mesh::MeshConfig, protection: Protection) -> WakeUp {
        let Some(plan) = self.confirmed_plan(&mesh).await else { return Some(Instant::now() + UNCONFIRMED_PAUSE) };
        if !self.applier.fence().holds() {
            self.leading = false;
            return None;
        }
        let now = k8s_openapi::jiff::Timestamp::now();
        let placement = placement::plan(&self.cluster, now);
        let progress = self.write_plan(lane, &plan, &placement).await;
        self.tell(&plan, &placement, &progress).await;
        if lane == Lane::Fast {
            return None;
        }
        if progress.truncated() {
            return Some(Instant::now());
        }
        let look_again = placement.look_again.map(|at| at.duration_since(now).unsigned_abs());
        let look_again = look_again.map(|wait| Instant::now() + wait.max(LEAST_WAIT));
        let again = [self.write_mesh_status(&plan, protection).await, look_again, self.tell_paths().await];
        again.into_iter().flatten().min()
    }

    /// A plan that rests on no absence that the API server itself does not confirm; `None` when it can't be asked.
    async fn confirmed_plan(&mut self, mesh: &topology::mesh::MeshConfig) -> Option<Plan> {
        for _ in 0..CONFIRMATIONS {
            let protected = self.prover.protected(Instant::now());
            let view = convert::view(&self.cluster, mesh.clone(), &self.prover, protected);
            let plan = self.sound(&view, topology::cluster::plan(&view));
            self.export(&plan);
            if !self.applier.fence().holds() {
                return Some(plan);
            }
            match self.stands(&view, &plan).await {
                Ok(true) => return Some(plan),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot confirm what a plan rests on; nothing is written");
                    return None;
                }
            }
        }
        None
    }

    async fn stands(&mut self, view: &topology::cluster::ClusterView, plan: &Plan) -> kube::Result<bool> {
        let client = self.applier.client();
        if confirm::admits_keys(plan) {
            let seen = protection::seal(&self.cluster);
            if confirm::present_seal(client, &seen).await? != seen {
                tracing::warn!("the admission policies are not what they were when they were seen; no key is admitted");
                self.prover.disturb();
                return Ok(false);
            }
        }
        let absences = confirm::absences(&self.cluster, view, plan);
        let answers = confirm::look_for(client, absences).await?;
        let mut stands = true;
        for (absence, found) in answers {
            if confirm::settle(&mut self.cluster, &absence, found) {
                tracing::warn!(
                    name = absence.name(),
                    "an object that was taken for gone is there; the plan is made anew"
                );
                stands = false;
            }
        }
        Ok(stands)
    }

    /// The plan, or what may be written of it when it breaks an invariant.
    fn sound(&mut self, view: &topology::cluster::ClusterView, plan: Plan) -> Plan {
        if plan.is_settled() {
            return plan;
        }
        let mut broken = topology::check::check(view, &plan);
        broken.retain(|violation| !violation.is_warning());
        if broken.is_empty() {
            return plan;
        }
        self.metrics.violations.inc();
        let listed: Vec<_> = broken.iter().take(5).map(ToString::to_string).collect();
        self.problem(format!("a plan breaks invariants and is not written, revocations aside: {}", listed.join("; ")));
        plan.revocations(view, &broken)
    }

    fn export(&self, plan: &Plan) {
        let counts = &plan.counts;
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let states = [
            ("accepted", counts.accepted),
            ("pending", counts.pending),
            ("rejected", counts.rejected),
            ("suspended", counts.suspended),
        ];
        for (state, count) in states {
            self.metrics.nodes.with_label_values(&[state]).set(number(count));
        }
        self.metrics.entries.set(number(counts.entries));
        self.metrics.slices.set(number(counts.slices));
        self.metrics.conflicts.set(number(counts.conflicts));
        self.metrics.candidates_dropped.set(number(counts.candidates_dropped));
    }

    // Said once, not with every pass.
    fn problem(&mut self, text: String) {
        if self.reported_problem.as_ref() != Some(&text) {
            tracing::error!("{text}");
            self.reported_problem = Some(text);
        }
    }
}

// A policy that is altered and restored between two passes is noticed here, by its generation.
fn absorb(cluster: &mut Cluster, prover: &mut Prover, change: Change) -> Effect {
    let guards = matches!(change, Change::Policy(_) | Change::Binding(_));
    let before = guards.then(|| protection::seal(cluster));
    let effect = cluster.absorb(change);
    if before.is_some_and(|before| before != protection::seal(cluster)) {
        prover.disturb();
        return effect.max(Effect::Changed);
    }
    effect
}

fn seed() -> Result<Seed, getrandom::Error> {
    let (mut key, mut challenge) = ([0; 32], [0; 32]);
    getrandom::fill(&mut key)?;
    getrandom::fill(&mut challenge)?;
    Ok(Seed { key, challenge })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Meta, Stored, Update};
    use std::convert::Infallible;

    fn policy(version: u64, generation: i64, altered: bool) -> Change {
        let meta = Meta {
            name: crds::names::AGENT_POLICY.into(),
            uid: "u".into(),
            version: version.to_string(),
            generation: Some(generation),
            ..Meta::default()
        };
        let value = k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicySpec {
            failure_policy: altered.then(|| "Ignore".into()),
            ..Default::default()
        };
        Change::Policy(Update::Applied(Stored { meta, value }))
    }

    /// A replica with an open challenge.
    fn challenged() -> (Cluster, Prover) {
        let (mut cluster, mut prover) = (Cluster::default(), Prover::default());
        absorb(&mut cluster, &mut prover, policy(1, 1, false));
        let now = Instant::now();
        prover.observe(true, now);
        let seed = || Ok::<_, Infallible>(Seed { key: [1; 32], challenge: [2; 32] });
        prover.issue(now + crate::proof::SETTLE, seed, BTreeSet::new).unwrap();
        assert!(prover.challenge().is_some());
        (cluster, prover)
    }

    #[test]
    fn a_policy_altered_and_restored_between_two_passes_ends_the_challenge() {
        let (mut cluster, mut prover) = challenged();
        assert_eq!(absorb(&mut cluster, &mut prover, policy(2, 1, false)), Effect::Nothing);
        assert!(prover.challenge().is_some(), "its status or a label is no alteration");
        absorb(&mut cluster, &mut prover, policy(3, 2, true));
        absorb(&mut cluster, &mut prover, policy(4, 3, false));
        assert!(prover.challenge().is_none() && prover.settles_at().is_none());
    }

    #[test]
    fn a_list_that_shows_only_the_restored_policy_ends_the_challenge_too() {
        let (mut cluster, mut prover) = challenged();
        assert_eq!(absorb(&mut cluster, &mut prover, policy(4, 3, false)), Effect::Changed, "a pass must say so");
        assert!(prover.challenge().is_none());
    }
}

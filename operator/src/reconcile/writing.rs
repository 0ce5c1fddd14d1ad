//! Carries a plan out: writes in the order of their phases, learns from the answers, and tells of what has happened.

use super::{
    Reconciler, WakeUp,
    apply::Outcome,
    diff::{self, Phase, Target, Write},
    placement,
    progress::Progress,
    status::{self, Report},
};
use crate::{args::Placement, coalesce::Lane, events::Notice, index::Kind, protection::Protection};
use kube::api::DynamicObject;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use topology::cluster::Plan;

/// Pause between writes of `Mesh.status` for numbers alone: every agent watches the Mesh.
const COUNTS_SPACING: Duration = Duration::from_secs(10);

impl Reconciler {
    /// Carries the phases out in their order.
    pub(super) async fn write_plan(&mut self, lane: Lane, plan: &Plan, placement: &crate::placement::Plan) -> Progress {
        let now = k8s_openapi::jiff::Timestamp::now();
        let phases = diff::phases(&self.cluster, plan);
        let conditions = diff::conditions(&self.cluster, plan, now);
        let mut relays = placement::condition_writes(&self.cluster, placement, now);
        if self.places == Placement::Auto {
            relays.extend(placement::label_writes(&self.cluster, placement, now));
        }
        self.forget_unwanted(phases.iter().flat_map(|(_, writes)| writes).chain(&conditions).chain(&relays));
        let mut progress = Progress::new(lane);
        for (phase, writes) in phases {
            self.write_phase(&mut progress, phase, writes).await;
        }
        let conditions = diff::conditions(&self.cluster, plan, now);
        self.write_phase(&mut progress, Phase::Conditions, conditions).await;
        self.write_phase(&mut progress, Phase::Relays, relays).await;
        progress
    }

    async fn write_phase(&mut self, progress: &mut Progress, phase: Phase, writes: Vec<Write>) {
        let (now, wanted) = (Instant::now(), writes.len());
        let writes = progress.select(phase, writes, |target| self.retries.ready(target, now));
        let outcomes = self.write(writes).await;
        progress.note(phase, wanted, outcomes);
    }

    /// Writes, learns from the answers, and says which writes were fine.
    pub(super) async fn write(&mut self, mut writes: Vec<Write>) -> Vec<(Target, bool)> {
        let now = Instant::now();
        writes.retain(|write| self.retries.ready(&write.target, now));
        let outcomes = self.applier.apply(writes).await;
        let now = Instant::now();
        let mut results = Vec::with_capacity(outcomes.len());
        for (target, mut outcome) in outcomes {
            // A node may hold on to a condition of a type of ours: what can't be changed is not tried without a pause.
            if let Outcome::Written(object) = &outcome
                && diff::known_version(&self.cluster, &target) == object.metadata.resource_version.as_deref()
            {
                outcome = Outcome::WithoutEffect;
            }
            let fine = outcome.is_fine();
            if fine {
                self.wrote = true;
                self.retries.succeeded(&target);
            } else if outcome == Outcome::Conflict {
                self.retries.overtaken(target.clone(), now);
            } else if outcome == Outcome::NotLeading {
                self.leading = false;
            } else {
                self.retries.failed(target.clone(), now);
            }
            self.learn(&target, outcome);
            results.push((target, fine));
        }
        results
    }

    fn learn(&mut self, target: &Target, outcome: Outcome) {
        match outcome {
            Outcome::Written(object) => self.take_in(target, *object),
            Outcome::Gone => diff::forget(&mut self.cluster, target),
            _ => {}
        }
    }

    fn take_in(&mut self, target: &Target, object: DynamicObject) {
        if let Err(error) = diff::learn(&mut self.cluster, target, object) {
            tracing::warn!(name = target.name, %error, "cannot read the answer to a write; the watch will bring it");
        }
    }

    fn forget_unwanted<'a>(&mut self, writes: impl Iterator<Item = &'a Write>) {
        let wanted: BTreeSet<_> = writes.map(|write| &write.target).collect();
        self.retries.retain(|target| wanted.contains(target) || target.is_mesh());
    }

    pub(super) async fn write_mesh_status(&mut self, plan: &Plan, protection: Protection) -> WakeUp {
        let mesh = self.cluster.mesh()?;
        let report = Report::new(plan, protection, self.prover.challenge());
        let change = status::compare(mesh, &report);
        let now = Instant::now();
        let due = self.counts_written.map_or(now, |last| last + COUNTS_SPACING);
        match change {
            status::Difference::None => None,
            status::Difference::Counts if due > now => Some(due),
            _ => {
                let write = status::write(mesh, &report, k8s_openapi::jiff::Timestamp::now());
                let notice = status::notice(mesh, &report);
                // No outcome means that the object waits after a failure.
                let written = self.write(vec![write]).await.iter().any(|(_, fine)| *fine);
                if written {
                    self.counts_written = Some(now);
                }
                if let Some(notice) = notice.filter(|_| written) {
                    self.recorder.tell(&notice).await;
                }
                None
            }
        }
    }

    pub(super) async fn tell(&mut self, plan: &Plan, placement: &crate::placement::Plan, progress: &Progress) {
        for change in placement.changes.iter().filter(|change| progress.wrote(&Target::new(Kind::Node, &change.node))) {
            self.recorder.tell(&placement::notice(&self.cluster, change)).await;
        }
        for event in plan.events.iter().filter(|event| progress.has_happened(event)) {
            let uid = self.cluster.mesh_nodes.get(&event.node).map(|node| node.meta.uid.clone());
            let notice = Notice {
                kind: "MeshNode",
                name: event.node.clone(),
                uid,
                reason: event.reason.as_str(),
                warning: event.reason.is_warning(),
                message: event.message.clone(),
            };
            self.recorder.tell(&notice).await;
        }
    }

    /// Tells of nodes whose peers go by a relay now, or no longer; answers when to look again.
    pub(super) async fn tell_paths(&mut self) -> WakeUp {
        let (notices, again) = self.told.look(&self.cluster, Instant::now());
        for notice in &notices {
            self.recorder.tell(notice).await;
        }
        again
    }
}

//! What the operator counts. Every label is a closed list; no node is ever named.

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// The operator's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Moves with every update that a watch delivers, by kind.
    pub watch_events: IntCounterVec,
    /// Moves when a watch or a list fails, by kind.
    pub watch_errors: IntCounterVec,
    /// Moves when an object cannot be decoded, by kind.
    pub unreadable_objects: IntCounterVec,
    /// Moves with every request that writes, by kind, verb and result.
    pub writes: IntCounterVec,
    /// Moves with every pass, by lane.
    pub passes: IntCounterVec,
    /// Moves when a pass cannot plan, by reason.
    pub plan_errors: IntCounterVec,
    /// The time from the begin of a pass to the end of its writes.
    pub reconcile_duration: Histogram,
    /// Objects that wait before they are written again.
    pub retrying: IntGauge,
    /// 1 while this replica may write.
    pub lease_held: IntGauge,
    /// Moves when this replica becomes or ceases to be the writer.
    pub lease_transitions: IntCounter,
    /// Moves when the Lease cannot be read or written.
    pub lease_errors: IntCounter,
    /// `MeshNode`s by state of admission, and suspended ones.
    pub nodes: IntGaugeVec,
    /// Peers in slices.
    pub entries: IntGauge,
    /// Slices, `removed` aside.
    pub slices: IntGauge,
    /// Conditions of nodes that need attention.
    pub conflicts: IntGauge,
    /// Candidates that were not passed on.
    pub candidates_dropped: IntGauge,
    /// 1 while the admission policies are in place.
    pub node_writes_protected: IntGauge,
    /// Moves when a challenge is drawn.
    pub challenges: IntCounter,
    /// Moves with every Event, by reason and result.
    pub events: IntCounterVec,
    /// Moves when a plan breaks an invariant of the mesh and is therefore not written.
    pub violations: IntCounter,
}

impl Metrics {
    /// All metrics, registered in a registry of their own.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("warren".into()), None)?;
        let build =
            gauge_vec(&registry, "operator_build_info", "Always 1; the version is in the label.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            watch_events: counter_vec(
                &registry,
                "operator_watch_events_total",
                "Updates that watches delivered.",
                &["kind"],
            )?,
            watch_errors: counter_vec(
                &registry,
                "operator_watch_errors_total",
                "Watches or lists that failed.",
                &["kind"],
            )?,
            unreadable_objects: counter_vec(
                &registry,
                "operator_unreadable_objects_total",
                "Objects that could not be decoded.",
                &["kind"],
            )?,
            writes: counter_vec(
                &registry,
                "operator_writes_total",
                "Requests that write.",
                &["kind", "verb", "result"],
            )?,
            passes: counter_vec(&registry, "operator_passes_total", "Passes of planning.", &["lane"])?,
            plan_errors: counter_vec(
                &registry,
                "operator_plan_errors_total",
                "Passes that could not plan.",
                &["reason"],
            )?,
            reconcile_duration: duration(
                &registry,
                "operator_reconcile_duration_seconds",
                "Time of a pass with its writes.",
            )?,
            retrying: gauge(
                &registry,
                "operator_retrying_objects",
                "Objects that wait before they are written again.",
            )?,
            lease_held: gauge(&registry, "operator_lease_held", "1 while this replica may write.")?,
            lease_transitions: counter(
                &registry,
                "operator_lease_transitions_total",
                "Times this replica became or ceased to be the writer.",
            )?,
            lease_errors: counter(&registry, "operator_lease_errors_total", "Failed reads or writes of the Lease.")?,
            nodes: gauge_vec(&registry, "mesh_nodes", "MeshNodes by state.", &["state"])?,
            entries: gauge(&registry, "mesh_peer_entries", "Peers in the directory.")?,
            slices: gauge(&registry, "mesh_peer_slices", "Slices of the directory.")?,
            conflicts: gauge(&registry, "mesh_node_conflicts", "Conditions of nodes that need attention.")?,
            candidates_dropped: gauge(&registry, "mesh_candidates_dropped", "Candidates that were not passed on.")?,
            node_writes_protected: gauge(
                &registry,
                "mesh_node_writes_protected",
                "1 while the admission policies are in place.",
            )?,
            challenges: counter(&registry, "operator_challenges_total", "Challenges that were drawn.")?,
            events: counter_vec(&registry, "operator_events_total", "Events.", &["reason", "result"])?,
            violations: counter(
                &registry,
                "operator_plan_violations_total",
                "Plans not written because they break an invariant.",
            )?,
            registry,
        })
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("# cannot encode: {error}\n"),
        }
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let metric = IntCounter::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counter_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let metric = IntGauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn duration(registry: &Registry, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
    let metric = Histogram::with_opts(HistogramOpts::new(name, help))?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_our_prefix_and_counters_end_in_total() {
        let metrics = Metrics::new().unwrap();
        metrics.lease_errors.inc();
        metrics.writes.with_label_values(&["MeshNode", "create", "ok"]).inc();
        let text = metrics.render();
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            let mut words = line.split(' ').skip(2);
            let (name, kind) = (words.next().unwrap(), words.next().unwrap());
            assert!(name.starts_with("warren_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        }
        assert!(text.contains("warren_operator_lease_errors_total 1"));
    }
}

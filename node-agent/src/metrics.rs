//! What Prometheus may know. Peer names appear only in the series about peers; every other label is a closed set.

use path::Refusal;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::time::Duration;

/// Peers that get series of their own; above, only the sums are exported.
pub const MAX_PEER_SERIES: usize = 512;

/// The metrics of the agent.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Set once: always 1, the version is a label.
    pub build_info: IntGaugeVec,
    /// Set at each scrape: always 1, what the node is are labels.
    pub node_info: IntGaugeVec,
    /// Set at each scrape: peers by state.
    pub peers: IntGaugeVec,
    /// Set at each scrape: 1 for the path that a peer has.
    pub peer_path: IntGaugeVec,
    /// Set at each scrape from the device: bytes of authenticated messages from a peer.
    pub peer_receive: IntCounterVec,
    /// Set at each scrape from the device: bytes of messages to a peer.
    pub peer_transmit: IntCounterVec,
    /// Set at each scrape from the device.
    pub peer_last_handshake: GaugeVec,
    /// Set at each scrape: smoothed round-trip time of the probes on the path in use.
    pub peer_rtt: GaugeVec,
    /// Set at each scrape: how often a path went from one state to another, and why.
    pub path_transitions: IntCounterVec,
    /// Set at each scrape: channels to relays by state.
    pub relay_channels: IntGaugeVec,
    /// Set at each scrape: pairs whose packets go inside channels to relays.
    pub carried_legs: IntGauge,
    /// Set at each scrape: packets that went there, by direction.
    pub carried_packets: IntCounterVec,
    /// Set at each scrape: their bytes.
    pub carried_bytes: IntCounterVec,
    /// Set at each scrape: packets that were dropped instead, by reason.
    pub carried_dropped: IntCounterVec,
    /// Set at each scrape: STUN requests by result.
    pub stun_requests: IntCounterVec,
    /// Set at each scrape: addresses that were refused as endpoint, by kind.
    pub forbidden_endpoint: IntCounterVec,
    /// Grows when something of ours that somebody took away was put back.
    pub route_repairs: IntCounterVec,
    /// Moves with housekeeping: 1 while somebody undoes our work again and again.
    pub rules_contended: IntGauge,
    /// Set at each scrape from the device: packets that it dropped, by reason.
    pub device_dropped: IntCounterVec,
    /// One observation each time the node is brought in line.
    pub reconcile_duration: Histogram,
    /// Moves with every list, watch and write: whether the API answered the last one.
    pub apiserver_reachable: IntGauge,
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            build_info: int_gauges(&registry, "build_info", "The running version.", &["version"])?,
            node_info: int_gauges(&registry, "node_info", "What this node is.", &["nat_class", "backend"])?,
            peers: int_gauges(&registry, "peers", "Peers by state.", &["state"])?,
            peer_path: int_gauges(&registry, "peer_path", "The path of each peer.", &["peer", "path", "reason"])?,
            peer_receive: counters(&registry, "peer_receive_bytes_total", "Bytes from a peer.", &["peer"])?,
            peer_transmit: counters(&registry, "peer_transmit_bytes_total", "Bytes to a peer.", &["peer"])?,
            peer_last_handshake: gauges(
                &registry,
                "peer_last_handshake_timestamp_seconds",
                "When the last handshake with a peer was completed.",
                &["peer"],
            )?,
            peer_rtt: gauges(&registry, "peer_rtt_seconds", "Round-trip time to a peer.", &["peer"])?,
            path_transitions: counters(
                &registry,
                "path_transitions_total",
                "How often paths changed.",
                &["from", "to", "reason"],
            )?,
            relay_channels: int_gauges(&registry, "relay_channels", "Channels to relays by state.", &["state"])?,
            carried_legs: registered(
                &registry,
                IntGauge::with_opts(opts("carried_legs", "Pairs whose packets go inside channels to relays."))?,
            )?,
            carried_packets: counters(
                &registry,
                "carried_packets_total",
                "Packets inside channels to relays.",
                &["direction"],
            )?,
            carried_bytes: counters(&registry, "carried_bytes_total", "Bytes of those packets.", &["direction"])?,
            carried_dropped: counters(
                &registry,
                "carried_dropped_packets_total",
                "Packets for channels to relays that were dropped.",
                &["reason"],
            )?,
            stun_requests: counters(&registry, "stun_requests_total", "STUN requests by result.", &["result"])?,
            forbidden_endpoint: counters(
                &registry,
                "forbidden_endpoint_total",
                "Addresses refused as endpoint.",
                &["kind"],
            )?,
            route_repairs: counters(
                &registry,
                "route_repairs_total",
                "Things of ours put back after somebody took them.",
                &["kind"],
            )?,
            rules_contended: registered(
                &registry,
                IntGauge::with_opts(opts("rules_contended", "1 while somebody undoes our work again and again."))?,
            )?,
            device_dropped: counters(&registry, "device_dropped_total", "Packets dropped by the device.", &["reason"])?,
            reconcile_duration: registered(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new("warren_reconcile_duration_seconds", "Time to bring the node in line.")
                        .buckets(vec![0.001, 0.005, 0.025, 0.1, 0.5, 2.0]),
                )?,
            )?,
            apiserver_reachable: registered(
                &registry,
                IntGauge::with_opts(opts("apiserver_reachable", "1 if the Kubernetes API answered last time."))?,
            )?,
            registry,
        };
        // Alerts on an increase need the series before the first event.
        for kind in ["link", "address", "sysctl", "route", "rule", "firewall", "peer"] {
            metrics.route_repairs.with_label_values(&[kind]).inc_by(0);
        }
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(metrics)
    }

    /// Forgets everything that a scrape sets anew: peers that left must not stay behind as series.
    pub fn reset(&self) {
        self.node_info.reset();
        self.peer_path.reset();
        self.peer_last_handshake.reset();
        self.peer_rtt.reset();
        for counters in [&self.peer_receive, &self.peer_transmit, &self.path_transitions, &self.stun_requests] {
            counters.reset();
        }
        for counters in [&self.carried_packets, &self.carried_bytes, &self.carried_dropped] {
            counters.reset();
        }
        self.carried_legs.set(0);
        self.forbidden_endpoint.reset();
        self.device_dropped.reset();
        for kind in Refusal::ALL {
            self.forbidden_endpoint.with_label_values(&[kind.as_str()]).inc_by(0);
        }
    }

    /// Sets one peer's time of the last handshake, which the device knows as an age.
    pub fn set_last_handshake(&self, peer: &str, ago: Option<Duration>) {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        if let (Some(ago), Ok(now)) = (ago, since_epoch) {
            self.peer_last_handshake.with_label_values(&[peer]).set(now.saturating_sub(ago).as_secs_f64().floor());
        }
    }

    /// The text format.
    pub fn encode(&self) -> String {
        let mut text = Vec::new();
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(error = %e, "metrics can't be encoded");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("warren_{name}"), help)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
    registered(registry, GaugeVec::new(opts(name, help), labels)?)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    registered(registry, IntCounterVec::new(opts(name, help), labels)?)
}

fn int_gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    registered(registry, IntGaugeVec::new(opts(name, help), labels)?)
}

fn registered<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

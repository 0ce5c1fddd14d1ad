//! What the local API answers, as JSON and as text.

use crate::relays;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Version of these objects; grows when a field changes its meaning.
pub const SCHEMA: u32 = 2;

/// What is programmed on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusReport {
    /// Version of this object.
    pub schema: u32,
    /// Version of the agent.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Name of the device, if it is open.
    pub device: Option<String>,
    /// Which WireGuard it is: `kernel` or `userspace`.
    pub backend: Option<String>,
    /// The node's public key.
    pub public_key: String,
    /// UDP port of WireGuard.
    pub listen_port: Option<u16>,
    /// MTU of the device.
    pub mtu: u16,
    /// Punch round.
    pub round: u32,
    /// The node's mesh addresses.
    pub mesh_ips: Vec<String>,
    /// The node's candidates, as `kind address`.
    pub candidates: Vec<String>,
    /// NAT classes of IPv4 and IPv6.
    pub nat: [String; 2],
    /// Whether a stranger's packet moves the node's IPv4 port towards him; `None` while that is not known.
    pub poisonable: Option<bool>,
    /// Whether the Kubernetes API answered last time.
    pub api_reachable: Option<bool>,
    /// The sockets of the Kubernetes API that are kept out of the mesh.
    pub api_servers: Vec<String>,
    /// Why the status in Kubernetes could not be written.
    pub write_error: Option<String>,
    /// The conditions as they are now, whatever Kubernetes has.
    pub conditions: Vec<ConditionReport>,
    /// What this node did not take over from the directory.
    pub refusals: Vec<String>,
    /// Peers by state: direct, relayed, connecting, down, idle.
    pub peers: [u32; 5],
    /// The channels to relays, by identity key.
    pub relays: Vec<RelayReport>,
}

/// The channel to one relay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RelayReport {
    /// Name of its MeshRelay.
    pub name: String,
    /// `open`, `connecting` or `closed`.
    pub state: String,
    /// What carries it while it is open: `quic` or `tls`.
    pub transport: Option<String>,
    /// Why it is closed.
    pub error: Option<String>,
    /// Since how many seconds.
    pub since_seconds: u64,
    /// Where its relay ports are; empty for one on this node, which relays for others only.
    pub addresses: Vec<String>,
}

/// One condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConditionReport {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

/// How peers are reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathsReport {
    /// Version of this object.
    pub schema: u32,
    /// One each, by name.
    pub peers: Vec<PeerReport>,
}

/// How one peer is reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerReport {
    /// Name of its MeshNode.
    pub name: String,
    /// First characters of its key.
    pub key: String,
    /// Its mesh addresses.
    pub mesh_ips: Vec<String>,
    /// `direct`, `relayed`, `connecting`, `down`, or `idle`: nobody needs a path, and the first packet makes one.
    pub state: String,
    /// Why it is not direct; empty when it is.
    pub reason: String,
    /// Since how many seconds.
    pub since_seconds: u64,
    /// Where WireGuard sends its packets.
    pub endpoint: Option<String>,
    /// Name of the relay that its packets go through.
    pub relay: Option<String>,
    /// How they get to the relay: by `udp`, or inside its channel, over `tls` or `quic`, because UDP does not get there.
    pub transport: Option<String>,
    /// Class of a direct path: `lan`, `ipv6` or `ipv4`.
    pub tier: Option<String>,
    /// Round-trip time in milliseconds: of the probes of a direct path, of the echoes through the tunnel of a relayed one.
    pub rtt_ms: Option<f64>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Seconds since the last handshake.
    pub last_handshake_seconds: Option<u64>,
    /// What was tried.
    pub tried: Vec<TriedReport>,
    /// This node's ends of the pair on relays.
    pub legs: Vec<LegReport>,
}

/// This node's end of a pair on one relay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LegReport {
    /// Name of its MeshRelay.
    pub relay: String,
    /// Where WireGuard is pointed to use it: the relay's address and the pair's port on it, or the loopback address of one that goes inside
    /// the channel.
    pub endpoint: Option<String>,
    /// How packets get to the relay: by `udp`, or inside its channel, over `tls` or `quic`.
    pub transport: Option<String>,
    /// `wanted`, `binding`, `bound` (this end alone) or `ready`.
    pub phase: String,
}

/// One address that was tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TriedReport {
    /// The address.
    pub address: String,
    /// How it became known.
    pub kind: String,
    /// What came of it.
    pub outcome: String,
    /// Probes sent.
    pub sent: u32,
    /// Answers received.
    pub answered: u32,
    /// The peer's own probes heard from there.
    pub heard: u32,
}

impl StatusReport {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String can't fail.
            let _ = writeln!(text, "{name:<12}{value}");
        };
        let unknown = || "-".to_owned();
        line("node", self.node.clone());
        line("version", self.version.clone());
        line("device", self.device.clone().unwrap_or_else(unknown));
        line("backend", self.backend.clone().unwrap_or_else(unknown));
        line("port", self.listen_port.map_or_else(unknown, |p| p.to_string()));
        line("mtu", self.mtu.to_string());
        line("key", self.public_key.clone());
        line("addresses", self.mesh_ips.join(", "));
        line("candidates", self.candidates.join(", "));
        let poisonable = match self.poisonable {
            Some(true) => " (poisonable)",
            Some(false) => " (not poisonable)",
            None => "",
        };
        line("nat", format!("IPv4 {}{poisonable}, IPv6 {}", self.nat[0], self.nat[1]));
        let [direct, relayed, connecting, down, idle] = self.peers;
        let idle = if idle > 0 { format!(", {idle} idle") } else { String::new() };
        line("peers", format!("{direct} direct, {relayed} relayed, {connecting} connecting, {down} down{idle}"));
        for relay in &self.relays {
            line("relay", relay.to_text());
        }
        let reachable = match self.api_reachable {
            Some(true) => "reachable",
            Some(false) => "not reachable",
            None => "not tried yet",
        };
        line("api", format!("{reachable} ({})", self.api_servers.join(", ")));
        if let Some(error) = &self.write_error {
            line("write error", error.clone());
        }
        for refusal in &self.refusals {
            line("refused", refusal.clone());
        }
        let _ = writeln!(text);
        for c in &self.conditions {
            let _ = writeln!(text, "{:<20}{:<9}{:<18}{}", c.type_, c.status, c.reason, c.message);
        }
        text
    }
}

impl RelayReport {
    fn to_text(&self) -> String {
        let transport = self.transport.as_deref().map(|t| format!(" over {t}")).unwrap_or_default();
        let error = self.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
        format!("{} {}{transport} for {}s{error}", self.name, self.state, self.since_seconds)
    }
}

impl PathsReport {
    /// For people: a line a peer; with `detail` also what was tried.
    pub fn to_text(&self, detail: bool) -> String {
        let mut text = format!(
            "{:<24}{:<12}{:<14}{:>8}  {:<26}{:<16}{:>9}  {}\n",
            "PEER", "STATE", "REASON", "SINCE", "ENDPOINT", "RELAY", "RTT", "MESH-IP"
        );
        for p in &self.peers {
            let rtt = p.rtt_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms"));
            let endpoint = p.endpoint.as_deref().unwrap_or("-");
            let reason = if p.reason.is_empty() { "-" } else { &p.reason };
            let since = format!("{}s", p.since_seconds);
            let relay = over(p.relay.as_deref().unwrap_or("-"), p.transport.as_deref());
            let ips = p.mesh_ips.join(",");
            let _ = writeln!(
                text,
                "{:<24}{:<12}{reason:<14}{since:>8}  {endpoint:<26}{relay:<16}{rtt:>9}  {ips}",
                p.name, p.state
            );
            for leg in p.legs.iter().filter(|_| detail) {
                let endpoint = leg.endpoint.as_deref().unwrap_or("-");
                let _ = writeln!(
                    text,
                    "    {:<8}{endpoint:<30}{:<14}on {}",
                    "relay",
                    leg.phase,
                    over(&leg.relay, leg.transport.as_deref())
                );
            }
            for t in p.tried.iter().filter(|_| detail) {
                let _ = writeln!(
                    text,
                    "    {:<8}{:<30}{:<14}sent {}, answered {}, heard {}",
                    t.kind, t.address, t.outcome, t.sent, t.answered, t.heard
                );
            }
        }
        text
    }
}

/// A relay, and how packets get there if not as usual.
fn over(relay: &str, transport: Option<&str>) -> String {
    match transport {
        Some(transport) if transport != relays::UDP => format!("{relay} over {transport}"),
        _ => relay.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_nat_says_whether_it_is_poisonable_once_that_is_known() {
        let line = |poisonable| {
            let nat = ["EndpointIndependent".to_owned(), "Unknown".to_owned()];
            let text = StatusReport { nat, poisonable, ..StatusReport::default() }.to_text();
            text.lines().find_map(|line| line.strip_prefix("nat")).unwrap().trim().to_owned()
        };
        assert_eq!(line(None), "IPv4 EndpointIndependent, IPv6 Unknown");
        assert_eq!(line(Some(true)), "IPv4 EndpointIndependent (poisonable), IPv6 Unknown");
        assert_eq!(line(Some(false)), "IPv4 EndpointIndependent (not poisonable), IPv6 Unknown");
    }
}

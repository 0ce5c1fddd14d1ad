//! Names that operator, agent, relay and chart must agree on.

/// API group of every kind.
pub const GROUP: &str = "warren.dev";
/// The one `Mesh` there is.
pub const MESH: &str = "default";
/// The slice that holds tombstones instead of entries.
pub const REMOVED_SLICE: &str = "removed";
/// Field manager of the operator's server-side applies.
pub const OPERATOR_MANAGER: &str = "warren-operator";
/// Field manager of the agents' server-side applies.
pub const AGENT_MANAGER: &str = "warren-agent";
/// Field manager of the relays' server-side applies.
pub const RELAY_MANAGER: &str = "warren-relay";
/// Nodes with this label run a relay (the chart's DaemonSet selects it) and get a `MeshRelay`.
///
/// A kubelet may set it on its own Node: the NodeRestriction admission keeps only labels below
/// `node-restriction.kubernetes.io/` from it. So a node that was taken over can make itself a relay, which lets it see the public
/// addresses and ports of the nodes that ask it and answer them wrongly: it can add candidates that lead nowhere and delay direct
/// paths. It can read and change no traffic, since every path is proven by probes that only the two peers can make, and by
/// WireGuard itself.
pub const RELAY_LABEL: &str = "warren.dev/relay";
/// On a Node, what the operator did to that label last and when; a label without it is somebody else's, and left alone.
pub const RELAY_PLACEMENT: &str = "warren.dev/relay-placement";
/// The condition of a MeshNode with peers that are reached neither directly nor by a relay, because none has a port left; and the reason of
/// the Event that tells of it.
pub const RELAY_PORTS_EXHAUSTED: &str = "RelayPortsExhausted";
/// The admission policy that lets an agent write only its own status.
pub const AGENT_POLICY: &str = "warren-agent-writes.warren.dev";
/// The admission policy that lets a relay write only its own status.
pub const RELAY_POLICY: &str = "warren-relay-writes.warren.dev";

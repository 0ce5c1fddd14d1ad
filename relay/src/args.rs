//! The command line. Every flag is also an environment variable.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, ValueEnum, value_parser};

use crate::server::plane::MAX_PORTS;

/// The relay of a Warren mesh.
///
/// It tells nodes behind NATs which public address they have (STUN, RFC 8489), and carries the packets of pairs that cannot reach each
/// other directly: encrypted end to end by WireGuard, so it can read none of them. Run it on a host that others reach on UDP ports 3478,
/// 51899 and 51900 to 51963, and TCP port 8443. It needs no privilege. In a cluster it publishes where it is in the status of its
/// MeshRelay and serves the members of the mesh; without one it answers STUN alone, and its address goes into
/// `Mesh.spec.stun.servers`.
#[derive(Debug, Clone, Parser)]
#[command(name = "warren-relay", version)]
pub struct Args {
    /// Address and UDP port to answer STUN on. Repeat it, or separate by commas, for several.
    #[arg(
        long,
        env = "WARREN_LISTEN",
        value_name = "ADDR:PORT",
        value_delimiter = ',',
        default_values = ["0.0.0.0:3478", "[::]:3478"]
    )]
    pub listen: Vec<SocketAddr>,

    /// Address at which others reach this relay, with a port if it is not the one listened on. May be repeated. Without it the
    /// addresses of the interfaces with a default route are published. What a NAT outside makes of them is best written
    /// into `spec.addresses` of the MeshRelay, which is published first.
    #[arg(long, env = "WARREN_ADVERTISE", value_name = "ADDR[:PORT]", value_delimiter = ',', value_parser = advertised)]
    pub advertise: Vec<Advertised>,

    /// Name of the MeshRelay whose status this relay writes; the node's name by default.
    #[arg(long, env = "WARREN_RELAY_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// Name of the Node this relay runs on. A MeshRelay of another Node is left alone.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Kubeconfig to reach the Kubernetes API with, outside a cluster.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Whether to publish with the pod's service account. `auto` does where a pod's environment is found.
    #[arg(long, env = "WARREN_IN_CLUSTER", value_enum, default_value_t = InCluster::Auto, conflicts_with = "kubeconfig")]
    pub in_cluster: InCluster,

    /// Directory for the relay's identity key, which nodes recognise it by; made at the first start, readable by this user alone.
    /// Without it, or without a cluster, the relay answers STUN and carries nothing.
    #[arg(long, env = "WARREN_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// First UDP port that carries packets; the others follow it. Nodes must reach all of them.
    #[arg(long, env = "WARREN_RELAY_PORT", value_name = "PORT", default_value_t = 51900, value_parser = value_parser!(u16).range(1..))]
    pub relay_port: u16,

    /// How many UDP ports carry packets. A node has one pair on each at most.
    #[arg(long, env = "WARREN_RELAY_PORTS", value_name = "COUNT", default_value_t = 64, value_parser = value_parser!(u16).range(1..=i64::from(MAX_PORTS)))]
    pub relay_ports: u16,

    /// UDP port on which nodes talk to this relay by QUIC.
    #[arg(long, env = "WARREN_QUIC_PORT", value_name = "PORT", default_value_t = 51899, value_parser = value_parser!(u16).range(1..))]
    pub quic_port: u16,

    /// TCP port on which nodes talk to this relay by TLS, where UDP does not pass.
    #[arg(long, env = "WARREN_TLS_PORT", value_name = "PORT", default_value_t = 8443, value_parser = value_parser!(u16).range(1..))]
    pub tls_port: u16,

    /// Seconds to go on after SIGTERM while nodes move to another relay; none if no node is connected.
    #[arg(long, env = "WARREN_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 3)]
    pub drain_seconds: u16,

    /// TCP address for Prometheus metrics (/metrics) and health (/healthz, /readyz).
    #[arg(long, env = "WARREN_METRICS_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:21813")]
    pub metrics_listen: SocketAddr,

    /// A second TCP address for health alone, for probes that cannot reach the first.
    #[arg(long, env = "WARREN_HEALTH_LISTEN", value_name = "ADDR:PORT")]
    pub health_listen: Option<SocketAddr>,

    /// Form of the log on standard error.
    #[arg(long, env = "WARREN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What to log: error, warn, info, debug, trace, or a filter such as `info,relay=debug`. Addresses of clients are
    /// logged at debug and trace only.
    #[arg(long, env = "WARREN_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// Whether to use the pod's service account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InCluster {
    /// Where KUBERNETES_SERVICE_HOST is set.
    Auto,
    /// Always; fail without one.
    Always,
    /// Never: serve STUN and publish nothing, unless there is a kubeconfig.
    Never,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// JSON objects for programs.
    Json,
}

/// An address of `--advertise`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertised {
    /// The address.
    pub ip: IpAddr,
    /// The port, where it differs from the one listened on.
    pub port: Option<u16>,
}

fn advertised(text: &str) -> Result<Advertised, String> {
    let with_port = || text.parse().ok().map(|address: SocketAddr| (address.ip(), Some(address.port())));
    let without = || text.trim_matches(['[', ']']).parse().ok().map(|ip: IpAddr| (ip, None));
    let (ip, port) = with_port().or_else(without).ok_or("expected an IP address, or [IPv6]:port or IPv4:port")?;
    if ip.is_unspecified() || ip.is_multicast() || port == Some(0) {
        return Err("expected an address that others can send to, found one that nobody has".to_owned());
    }
    Ok(Advertised { ip, port })
}

//! The command line: every flag is an environment variable too, and `--help` documents both.

use crate::net::Originals;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf, str::FromStr};

/// Warren's agent: makes this node a member of the mesh.
///
/// Without a subcommand it runs: it keeps the node's WireGuard key, finds out how the node can be reached, programs the
/// mesh device, routes and firewall from what the operator published, and reports in `MeshNode.status`.
/// The other subcommands ask the agent that runs on this node, through its local socket.
#[derive(Clone, Debug, Parser)]
#[command(name = "warren-agent", version, max_term_width = 120)]
pub struct Args {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the running agent.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the binary can do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the agent (the default).
    Run,
    /// Show how each peer is reached, since when and why not directly.
    Paths {
        /// Only this peer: the name of its MeshNode.
        peer: Option<String>,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Show what this agent has programmed and its conditions.
    Status {
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Take everything that Warren made on this node away again: device, routes, rules, firewall table, CNI file.
    Cleanup {
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Exit with 0 when the running agent is fine: for the probes of a Pod.
    Probe {
        /// Which probe.
        #[arg(value_enum)]
        kind: ProbeKind,
    },
    /// The two halves of `helm test`: a small server in a DaemonSet, and the run that asks each to fetch every other.
    #[command(subcommand)]
    Selftest(Selftest),
}

/// A probe of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProbeKind {
    /// Programmed, and the key is published. A node without peers is ready.
    Ready,
    /// The event loop turns.
    Live,
}

/// The halves of the connectivity test.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Selftest {
    /// Answer `GET /` with the node's name, and `GET /check?url=U` with what a fetch of U found.
    Serve {
        /// Where to listen.
        #[arg(long, env = "WARREN_SELFTEST_LISTEN", default_value = ":8080")]
        listen: ListenAddress,
    },
    /// Ask every Pod of the DaemonSet to fetch every other, print the matrix, exit with 1 if a fetch failed.
    Run {
        /// Namespace of the Pods.
        #[arg(long, env = "POD_NAMESPACE")]
        namespace: String,
        /// Label selector of the Pods.
        #[arg(long, env = "WARREN_SELFTEST_SELECTOR")]
        selector: String,
        /// Name of the DaemonSet, which says how many Pods there are to be. By default the value of the selector's first label.
        #[arg(long, env = "WARREN_SELFTEST_DAEMONSET", value_name = "NAME")]
        daemonset: Option<String>,
        /// Port that the Pods listen on.
        #[arg(long, env = "WARREN_SELFTEST_PORT", default_value_t = 8080)]
        port: u16,
        /// Seconds to wait until all Pods are Ready.
        #[arg(long, env = "WARREN_SELFTEST_WAIT_SECONDS", default_value_t = 120)]
        wait_seconds: u64,
    },
}

/// Flags of the running agent; the subcommands use those that say where it lives.
#[derive(Clone, Debug, ClapArgs)]
pub struct RunArgs {
    /// Kubeconfig file. Without it the service account of the Pod is used.
    #[arg(long, env = "KUBECONFIG", global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the Kubernetes API as HOST:PORT, tried in this order; overrides the in-cluster address, which needs a
    /// working kube-proxy. May be repeated. What worked is kept in the state folder.
    #[arg(
        long = "api-server",
        env = "WARREN_API_SERVERS",
        global = true,
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    pub api_servers: Vec<HostPort>,
    /// Name of this node, which is the name of its MeshNode.
    #[arg(long, env = "NODE_NAME", global = true, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Folder for the private key and the cache. Mode 0700, one agent at a time.
    #[arg(long, env = "WARREN_STATE_DIR", global = true, default_value = "/var/lib/warren", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Unix socket of the local API.
    #[arg(long, env = "WARREN_SOCKET", global = true, default_value = "/run/warren/agent.sock", value_name = "FILE")]
    pub socket: PathBuf,
    /// `managed`: Warren is the cluster's CNI and writes its configuration. `none`: another CNI does pods, and Warren keeps out
    /// of their ranges. `external`: a machine without kubelet, which reaches the pods of a cluster with `managed`.
    #[arg(long, env = "WARREN_CNI_MODE", global = true, value_enum, default_value_t = CniMode::None)]
    pub cni_mode: CniMode,
    /// Folder of CNI configurations as the agent sees it.
    #[arg(long, env = "WARREN_CNI_CONF_DIR", global = true, default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub cni_conf_dir: PathBuf,
    /// Folder of CNI plugins as the agent sees it.
    #[arg(long, env = "WARREN_CNI_BIN_DIR", global = true, default_value = "/opt/cni/bin", value_name = "DIR")]
    pub cni_bin_dir: PathBuf,
    /// The folder of --socket as the host sees it, absolute. With it the CNI configuration lies there, where a reboot removes
    /// it, and --cni-conf-dir holds a link to it: no pod starts with the configuration of the boot before.
    #[arg(long, env = "WARREN_CNI_RUN_DIR", global = true, value_name = "DIR", value_parser = absolute)]
    pub cni_run_dir: Option<PathBuf>,
    /// TCP port of this node that leads to a relay on it, beside the one that the relay listens on, as long as no other program listens
    /// there; 0: none. Networks that let no UDP out mostly let this one out.
    #[arg(long, env = "WARREN_RELAY_TLS_PORT", global = true, default_value_t = 443, value_name = "PORT")]
    pub relay_tls_port: u16,
    /// Where metrics are served; `off` serves none. Keep it off public addresses.
    #[arg(long, env = "WARREN_METRICS_LISTEN", global = true, default_value = "127.0.0.1:21810", value_name = "ADDR")]
    pub metrics_listen: MetricsListen,
    /// Format of log lines.
    #[arg(long, env = "WARREN_LOG_FORMAT", global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Which log lines: a level, or directives like `info,node_agent=debug`.
    #[arg(long, env = "RUST_LOG", global = true, default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// HTTP proxy through which channels to relays go when they go over TLS, as http://HOST:PORT; without it that of the environment
    /// variable HTTPS_PROXY. The Kubernetes API is reached without. Credentials stand in --relay-proxy-credentials, never here.
    // Read later: an error here would repeat it, password and all.
    #[arg(long, env = "WARREN_RELAY_PROXY", global = true, value_name = "URL", hide_env_values = true)]
    pub relay_proxy: Option<String>,
    /// File with `user:password` for the proxy.
    #[arg(long, env = "WARREN_RELAY_PROXY_CREDENTIALS", global = true, value_name = "FILE")]
    pub relay_proxy_credentials: Option<PathBuf>,
    /// Relays that are reached without the proxy: addresses, networks or *, each perhaps with a port, separated by commas.
    #[arg(long, env = "NO_PROXY", global = true, default_value = "", value_name = "LIST")]
    pub no_proxy: String,
    /// Name of the mesh device.
    #[arg(long, env = "WARREN_DEVICE", global = true, default_value = "warren0", value_name = "NAME")]
    pub device: String,
}

impl RunArgs {
    /// Where the sysctls that the agent changes are remembered.
    pub fn originals(&self) -> Originals {
        Originals::new(self.socket.with_file_name("sysctls"))
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("expected a path that begins with /, found {text:?}")) }
}

/// Who configures the network of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CniMode {
    /// Another CNI, which carries their packets too.
    None,
    /// Warren.
    Managed,
    /// Warren, on the cluster's own nodes: none run here.
    External,
}

impl CniMode {
    /// Whether the mesh carries the packets of pods.
    pub fn carries_pods(self) -> bool {
        self != Self::None
    }
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// A host and port that need not be resolvable yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct HostPort {
    /// Address or name, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected HOST:PORT (IPv6 in brackets), found {text:?}");
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(expected)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            Some(_) => return Err(expected()),
            None if host.is_empty() || host.contains([':', '/', ' ', '@']) => return Err(expected()),
            None => host,
        };
        Ok(Self { host: host.into(), port })
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where metrics are served, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsListen(pub Option<SocketAddr>);

impl FromStr for MetricsListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            _ => text
                .parse()
                .map(|a| Self(Some(a)))
                .map_err(|_| format!("expected ADDRESS:PORT like 127.0.0.1:21810, or `off`, found {text:?}")),
        }
    }
}

/// `:PORT` for all addresses, or ADDRESS:PORT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let full = if text.starts_with(':') { format!("[::]{text}") } else { text.into() };
        full.parse().map(Self).map_err(|_| format!("expected :PORT or ADDRESS:PORT, found {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["warren-agent"], args].concat())
    }

    #[test]
    fn the_definition_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_of_the_agent_is_an_environment_variable_and_is_documented() {
        for arg in Args::command().get_arguments().filter(|a| a.get_long().is_some()) {
            let name = arg.get_long().unwrap_or_default();
            if matches!(name, "help" | "version") {
                continue;
            }
            assert!(arg.get_env().is_some(), "--{name} has no environment variable");
            assert!(arg.get_help().is_some(), "--{name} has no help");
        }
    }

    #[test]
    fn running_is_the_default_and_flags_may_stand_on_either_side() {
        for line in [&["--node-name", "a", "run"][..], &["run", "--node-name", "a"], &["--node-name", "a"]] {
            let args = parse(line).unwrap();
            assert_eq!(args.run.node_name.as_deref(), Some("a"), "{line:?}");
            assert!(matches!(args.command, None | Some(Command::Run)));
        }
    }

    #[test]
    fn api_servers_are_repeated_or_separated_by_commas() {
        let args = parse(&["--api-server", "10.0.0.1:6443,[fd00::1]:6443", "--api-server", "api.example:443"]).unwrap();
        let shown: Vec<String> = args.run.api_servers.iter().map(HostPort::to_string).collect();
        assert_eq!(shown, ["10.0.0.1:6443", "[fd00::1]:6443", "api.example:443"]);
    }

    #[test]
    fn a_host_without_port_or_with_a_scheme_is_refused() {
        for text in ["10.0.0.1", "https://10.0.0.1:6443", "fd00::1:6443", "[10.0.0.1]:6443", "a:0", ":6443", "a:70000"]
        {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }

    #[test]
    fn metrics_can_be_switched_off() {
        assert_eq!(parse(&["--metrics-listen", "off"]).unwrap().run.metrics_listen, MetricsListen(None));
        assert!(parse(&["--metrics-listen", "21810"]).is_err());
    }

    #[test]
    fn a_link_is_never_relative_to_whoever_follows_it() {
        let dir = |text: &str| parse(&["--cni-run-dir", text]).map(|args| args.run.cni_run_dir);
        assert_eq!(dir("/run/warren").unwrap(), Some("/run/warren".into()));
        assert!(dir("run/warren").is_err() && dir("").is_err());
    }

    #[test]
    fn listening_on_a_port_alone_means_all_addresses() {
        assert_eq!(":8080".parse::<ListenAddress>().unwrap().0, "[::]:8080".parse().unwrap());
    }
}

//! The command line: every flag is an environment variable too, and `--help` documents both.

use clap::{Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};

/// Warren's operator: decides who is in the mesh.
///
/// It makes a MeshNode for every Node, hands out mesh addresses and ports, admits the keys that nodes publish, and
/// publishes the directory of peers that agents configure. Several replicas may run; one of them writes.
#[derive(Clone, Debug, Parser)]
#[command(name = "warren-operator", version, max_term_width = 120)]
pub struct Args {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Socket on which the running operator answers /healthz, /readyz and /metrics, and which `probe` asks. A file and not a
    /// port, because two replicas on one node share the host's ports.
    #[arg(long, env = "WARREN_HEALTH_SOCKET", global = true, default_value = "/run/warren-operator/health.sock")]
    pub health_socket: PathBuf,
    /// Flags of the running operator.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the binary can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the operator (the default).
    Run,
    /// Exit with 0 when the running operator is fine: for the probes of a Pod.
    Probe {
        /// Which probe.
        #[arg(value_enum)]
        kind: ProbeKind,
    },
}

/// A probe of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProbeKind {
    /// The event loop turns.
    Live,
    /// Every kind that the operator watches has been listed once.
    Ready,
}

/// Flags of the running operator.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Kubeconfig to use; without it the service account of the Pod.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease, and of the service accounts that the admission policies bind.
    #[arg(long, env = "WARREN_NAMESPACE", default_value = "warren-system")]
    pub namespace: String,
    /// Name of this replica in the Lease; a random ending is added, since a restarted container is another holder.
    #[arg(long, env = "POD_NAME", default_value = "warren-operator")]
    pub identity: String,
    /// Address for /metrics, /healthz and /readyz over HTTP, or `none`. A taken port is no error: the second replica of a
    /// node goes on without. Not reachable from other machines by default, because a node may be public.
    #[arg(long, env = "WARREN_METRICS_LISTEN", default_value = "127.0.0.1:21811", value_name = "ADDRESS")]
    pub metrics_listen: Listen,
    /// The `spec` of Mesh/default, as JSON or YAML or the path of such a file, for when there is no Mesh yet. Never used to change one.
    #[arg(long, env = "WARREN_MESH_DEFAULTS", value_name = "JSON|FILE", default_value = "{}")]
    pub mesh_defaults: String,
    /// Who decides where relays stand: `auto`: the operator labels up to three nodes that others reach, unless an admin has labelled
    /// one, and obeys `MeshNode.spec.relay`; `label`: the labels of Nodes alone, which it does not write.
    #[arg(long, env = "WARREN_RELAY_PLACEMENT", value_enum, default_value = "auto")]
    pub relay_placement: Placement,
    /// How to write log lines.
    #[arg(long, env = "WARREN_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Directives of the log filter, for example `info,operator=debug`.
    #[arg(long, env = "WARREN_LOG", default_value = "info")]
    pub log: String,
}

/// Where to listen, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Off);
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| format!("expected ADDRESS:PORT like 127.0.0.1:21811 or `none`, found {text:?}"))
    }
}

/// Who decides where relays stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Placement {
    /// The operator.
    Auto,
    /// Whoever labels Nodes.
    Label,
}

/// Formats of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_has_a_variable() {
        let command = Args::command();
        command.clone().debug_assert();
        for arg in command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
            assert!(arg.get_env().is_some(), "--{} has no environment variable", arg.get_id());
            assert!(arg.get_help().is_some(), "--{} is not documented", arg.get_id());
        }
    }

    #[test]
    fn probes_are_asked_as_the_chart_asks_them() {
        let args = Args::parse_from(["warren-operator", "probe", "ready"]);
        assert_eq!(args.command, Some(Command::Probe { kind: ProbeKind::Ready }));
        assert_eq!(args.run.metrics_listen, Listen::At(SocketAddr::from(([127, 0, 0, 1], 21811))));
    }

    #[test]
    fn a_listen_address_is_explained() {
        assert_eq!("none".parse::<Listen>(), Ok(Listen::Off));
        assert!("21811".parse::<Listen>().unwrap_err().contains("127.0.0.1:21811"));
    }
}

//! What the lab's pods run: a server that says where it is, and the checks that reach others.

mod check;
mod endless;
mod http;
mod load;
mod proxy;
mod serve;
mod webhook;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde_json::json;

/// The lab's workload.
#[derive(Debug, Parser)]
#[command(name = "lab-pod", version)]
struct Args {
    /// Seconds after which a check gives up.
    #[arg(long, global = true, default_value_t = 5)]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve HTTP and UDP echo, and an admission webhook when a certificate is given.
    Serve {
        /// Port of HTTP and of UDP echo; the next UDP port tells senders how they are seen.
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Port of the webhook.
        #[arg(long, default_value_t = 8443)]
        webhook_port: u16,
        /// The pod's name.
        #[arg(long, env = "POD_NAME", default_value = "")]
        pod: String,
        /// The node's name.
        #[arg(long, env = "NODE_NAME", default_value = "")]
        node: String,
        /// The webhook's certificate in PEM.
        #[arg(long, env = "WEBHOOK_CERT", hide_env_values = true)]
        cert: Option<String>,
        /// The webhook's key in PEM.
        #[arg(long, env = "WEBHOOK_KEY", hide_env_values = true)]
        key: Option<String>,
    },
    /// Open connections for clients that ask an HTTP proxy for them, and say which.
    Proxy {
        /// Port of the proxy.
        #[arg(long)]
        port: u16,
    },
    /// Print what an http:// address answers.
    Get {
        /// The address.
        url: String,
    },
    /// Fetch several addresses at once and print JSON: name to milliseconds or to the error.
    Matrix {
        /// NAME=URL
        targets: Vec<String>,
    },
    /// Download bytes and print the throughput.
    Transfer {
        /// Where a lab-pod serves, as http://ADDRESS:PORT
        url: String,
        /// How many bytes.
        bytes: u64,
    },
    /// Upload bytes and print the throughput.
    Upload {
        /// Where a lab-pod serves, as http://ADDRESS:PORT
        url: String,
        /// How many bytes.
        bytes: u64,
    },
    /// Send one UDP packet of this payload size to an echo server, unfragmented.
    Udp {
        /// Address and port.
        to: SocketAddr,
        /// Payload bytes.
        size: usize,
    },
    /// Ask several observers, from one socket, how it is seen, and print what each says on a line.
    Observed {
        /// The socket's own port.
        #[arg(long)]
        from: u16,
        /// The observers.
        observers: Vec<SocketAddr>,
    },
    /// Send one ICMP echo request of this payload size, unfragmented.
    Icmp {
        /// Address.
        to: IpAddr,
        /// Payload bytes.
        size: usize,
    },
    /// Send UDP packets at a steady pace and print JSON: how many came back, and the longest silence in milliseconds.
    Stream {
        /// Address and port of an echo server.
        to: SocketAddr,
        /// For so many seconds.
        seconds: u64,
        /// Milliseconds between packets.
        #[arg(long, default_value_t = 20)]
        interval: u64,
    },
    /// Send UDP packets at a rate and print JSON: how many were sent and came back, by how many later ones any was overtaken, and the longest
    /// silence in milliseconds.
    Load {
        /// Address and port of an echo server.
        to: SocketAddr,
        /// For so many seconds.
        seconds: u64,
        /// Packets a second.
        #[arg(long)]
        rate: f64,
        /// Payload bytes of each.
        #[arg(long, default_value_t = 1000)]
        size: usize,
    },
    /// Stream to several echo servers at once until SIGTERM, and print JSON by their names.
    Pings {
        /// Milliseconds between two packets to the same server.
        #[arg(long, default_value_t = 100)]
        interval: u64,
        /// NAME=ADDRESS:PORT
        targets: Vec<String>,
    },
    /// Download by one connection, at leisure, until SIGTERM, and print JSON: how many bytes, and the longest pause in milliseconds.
    Flow {
        /// Where a lab-pod serves, as http://ADDRESS:PORT
        url: String,
    },
}

fn main() -> ExitCode {
    let Args { timeout, command } = Args::parse();
    let timeout = Duration::from_secs(timeout);
    let result = match command {
        Command::Serve { port, webhook_port, pod, node, cert, key } => {
            serve::run(port, webhook_port, serve::Identity { pod, node }, cert.zip(key))
        }
        Command::Proxy { port } => proxy::run(port, timeout),
        Command::Get { url } => http::get(&url, timeout),
        Command::Matrix { targets } => Ok(check::matrix(&targets, timeout)),
        Command::Transfer { url, bytes } => check::download(&url, bytes, timeout),
        Command::Upload { url, bytes } => check::upload(&url, bytes, timeout),
        Command::Udp { to, size } => check::udp(to, size, timeout),
        Command::Observed { from, observers } => check::observed(from, &observers, timeout),
        Command::Icmp { to, size } => check::icmp(to, size, timeout),
        Command::Stream { to, seconds, interval } => {
            let is_over = |now| now >= Duration::from_secs(seconds);
            check::stream(to, Duration::from_millis(interval), timeout, is_over).map(|steady| json!(steady).to_string())
        }
        Command::Load { to, seconds, rate, size } => {
            load::run(to, Duration::from_secs(seconds), rate, size, timeout).map(|load| json!(load).to_string())
        }
        Command::Pings { interval, targets } => endless::pings(&targets, Duration::from_millis(interval), timeout),
        Command::Flow { url } => endless::flow(&url, timeout),
    };
    match result {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lab-pod: {error:#}");
            ExitCode::FAILURE
        }
    }
}

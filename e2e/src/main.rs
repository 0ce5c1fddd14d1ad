//! `warren-lab`: brings labs up and down, and shows them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::parts::{self, Parts};
use e2e::progress::Progress;
use e2e::scenario::Scenario;
use e2e::{api, cluster, demo, guest, images, interrupt, net, teardown};

/// A real Kubernetes cluster behind real NATs on this machine, for Warren's demo and tests.
#[derive(Debug, Parser)]
#[command(name = "warren-lab", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring a cluster up to registered nodes; they stay NotReady until a CNI is configured.
    Up {
        /// Which situation: demo, single, dual-stack, nat-api.
        #[arg(long, default_value = "demo")]
        scenario: String,
        /// Name of the lab.
        #[arg(long, default_value = "demo", env = "WARREN_LAB")]
        name: String,
        /// Without Warren's own images.
        #[arg(long)]
        bare: bool,
    },
    /// Bring a cluster up, install Warren, and show that every pod reaches every pod.
    Demo {
        /// Which situation: demo, single, dual-stack, nat-api.
        #[arg(long, default_value = "demo")]
        scenario: String,
        /// Name of the lab.
        #[arg(long, default_value = "demo", env = "WARREN_LAB")]
        name: String,
    },
    /// Take a lab down and remove everything of it.
    Down {
        /// Name of the lab.
        #[arg(long, default_value = "demo", env = "WARREN_LAB")]
        name: String,
        /// Take every lab of this user down.
        #[arg(long)]
        all: bool,
        /// Report an interrupted run in the exit status.
        #[arg(long, hide = true)]
        interrupted: bool,
    },
    /// Print the exports that make plain kubectl and helm work: `eval "$(warren-lab env)"`.
    Env {
        /// Name of the lab.
        #[arg(long, default_value = "demo", env = "WARREN_LAB")]
        name: String,
    },
    /// Show nodes, processes and what the plaintext watch found.
    Status {
        /// Name of the lab.
        #[arg(long, default_value = "demo", env = "WARREN_LAB")]
        name: String,
    },
    /// Run a program inside a node.
    Exec {
        /// Name of the lab.
        #[arg(long, default_value = "demo", env = "WARREN_LAB")]
        name: String,
        /// The node.
        node: String,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Build the images; into a running lab, import them as well.
    Images {
        /// Name of the lab.
        #[arg(long, default_value = "demo", env = "WARREN_LAB")]
        name: String,
    },
    /// Pack the release programs into images for your own cluster: `make images`.
    Pack {
        /// Registry and path of the images, as the chart's image.repository.
        #[arg(long, env = "IMAGE_REPOSITORY", default_value = "warren.dev")]
        repository: String,
        /// Tag of the images, as the chart's image.tag.
        #[arg(long, env = "IMAGE_TAG", default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
    },
    /// Install missing packages and build the cluster's parts.
    Parts,
    /// What the lab runs in its namespaces.
    #[command(hide = true)]
    Internal {
        #[command(subcommand)]
        role: Internal,
    },
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// Process 1 of a node.
    Init {
        /// Its boot.json.
        boot: PathBuf,
    },
    /// What a guest runs: answers to the lab.
    Guest,
    /// The plaintext watch.
    Sniff {
        /// The lab's folder.
        dir: PathBuf,
    },
    /// The delay.
    Shape {
        /// One way, in milliseconds.
        delay: u64,
        /// Interfaces towards the sites.
        sites: Vec<String>,
    },
    /// Send one request to the API server.
    Api {
        /// Its address.
        server: String,
        /// The authority's certificate.
        ca: PathBuf,
        /// A file with the token.
        token: PathBuf,
        /// HTTP method.
        method: String,
        /// Path and query.
        path: String,
        /// What to send.
        #[arg(default_value = "")]
        body: String,
    },
    /// Send one UDP packet.
    Send {
        /// Address and port.
        to: String,
        /// What to send.
        payload: String,
    },
}

/// What a shell reports for a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("warren-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let progress = Progress::new();
    let exe = std::env::current_exe().context("finding this program")?;
    match command {
        Command::Up { scenario, name, bare } => up(&scenario, &name, bare, &exe, &progress)?,
        Command::Demo { scenario, name } => demo::run(Scenario::named(&scenario, &name)?, &exe, &progress)?,
        Command::Down { name, all, interrupted } => {
            down(&name, all, &progress)?;
            return Ok(ExitCode::from(if interrupted { INTERRUPTED } else { 0 }));
        }
        Command::Env { name } => env(&Lab::open(&name, &exe)?),
        Command::Status { name } => status(&Lab::open(&name, &exe)?)?,
        Command::Exec { name, node, command } => return exec(&Lab::open(&name, &exe)?, &node, &command),
        Command::Images { name } => load_images(&name, &exe, &progress)?,
        Command::Pack { repository, tag } => pack(&repository, &tag)?,
        Command::Parts => {
            parts::prepare(&progress)?;
            println!("{}", Parts::build(&progress)?.dir().display());
        }
        Command::Internal { role } => internal(role)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(scenario: &str, name: &str, bare: bool, exe: &Path, progress: &Progress) -> Result<()> {
    interrupt::take_down_on_interrupt(name, exe)?;
    let set = if bare { Set::LabOnly } else { Set::All };
    let lab = Lab::up(Scenario::named(scenario, name)?, exe, set, progress)?;
    println!("{}", lab.kubectl(&["get", "nodes", "-o", "wide"])?);
    println!(
        "eval \"$(warren-lab env --name {name})\" makes kubectl and helm work; warren-lab down --name {name} ends it"
    );
    Ok(())
}

fn down(name: &str, all: bool, progress: &Progress) -> Result<()> {
    let names = if all { teardown::labs()? } else { vec![name.to_owned()] };
    for name in names {
        progress.step(&format!("lab {name} is down"), || teardown::down(&name))?;
        teardown::ensure_gone(&name)?;
    }
    Ok(())
}

fn env(lab: &Lab) {
    println!("export KUBECONFIG='{}'", lab.state().kubeconfig().display());
    println!("export PATH='{}':\"$PATH\"", lab.state().dir().join("bin").display());
}

fn status(lab: &Lab) -> Result<()> {
    println!("{}", lab.kubectl(&["get", "nodes", "-o", "wide"])?);
    let running: Vec<_> = lab.running().iter().map(|node| node.name.as_str()).collect();
    println!("powered on: {}", running.join(", "));
    let report = lab.sniffer().verdict()?;
    println!("no inner packet in clear among {} packets on the internet", report.packets);
    Ok(())
}

fn exec(lab: &Lab, node: &str, command: &[String]) -> Result<ExitCode> {
    let (program, args) = command.split_first().context("a program to run")?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if lab.scenario().is_guest(node) {
        print!("{}", lab.exec(node, program, &args)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut inside = cluster::node::inside(lab, lab.node(node)?, program, &args)?;
    let status = inside.stdin(std::process::Stdio::inherit()).status().context("entering the node")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn load_images(name: &str, exe: &Path, progress: &Progress) -> Result<()> {
    match Lab::open(name, exe) {
        Ok(lab) => progress.step("images built and imported", || lab.reload_images()),
        Err(_) => progress
            .step("images built", || images::build_binaries().and_then(|()| images::archive(Set::All)).map(drop)),
    }
}

fn pack(repository: &str, tag: &str) -> Result<()> {
    for path in images::release(repository, tag)? {
        println!("{}", path.display());
    }
    println!(
        "
On a node:        ctr -n k8s.io images import FILE
Into a registry:  skopeo copy oci-archive:FILE docker://{repository}/IMAGE:{tag}
Then:             helm install .. --set image.repository={repository} --set-string image.tag={tag}"
    );
    Ok(())
}

fn internal(role: Internal) -> Result<()> {
    match role {
        Internal::Init { boot } => cluster::init::run_forever(&boot),
        Internal::Guest => guest::runner::run_forever(),
        Internal::Sniff { dir } => net::sniffer::run_forever(&dir),
        Internal::Shape { delay, sites } => {
            net::shaper::run_forever(net::shaper::DETOUR, &sites, || Duration::from_millis(delay))
        }
        Internal::Api { server, ca, token, method, path, body } => {
            println!("{}", api::send(&server, &ca, &token, &method, &path, &body)?);
            Ok(())
        }
        Internal::Send { to, payload } => {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("opening a socket")?;
            socket.send_to(payload.as_bytes(), &to).with_context(|| format!("sending to {to}")).map(drop)
        }
    }
}

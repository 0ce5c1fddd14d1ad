//! `warren-relay`: wires arguments, sockets, metrics and publishing together.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use relay::args::{Args, InCluster, LogFormat};
use relay::control::Board;
use relay::monitor::{self, Metrics};
use relay::publish::{self, Identity};
use relay::server::plane::Config;
use relay::{addresses, carry, control, hardening, serve};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    hardening::forbid_core_dumps()?;
    let args = Args::parse();
    start_log(&args)?;
    // One thread serves tens of thousands of requests a second, and the rest is idle.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    // Before anything that can take time: SIGTERM to process 1 of a container is ignored until there is a handler.
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let board = Arc::new(Board::default());
    let drain_seconds = args.drain_seconds;
    let mut work = std::pin::pin!(work(args, Arc::clone(&board)));
    tokio::select! {
        failed = &mut work => return failed.map(|never| match never {}),
        _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "stopping"),
        _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "stopping"),
    }
    tokio::select! {
        failed = work => failed.map(|never| match never {}),
        () = drain(&board, drain_seconds) => Ok(()),
        // Who asks twice does not want to wait.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Tells nodes to go elsewhere and gives them time to. Ends at once when there is none.
async fn drain(board: &Board, seconds: u16) {
    board.drain.send_replace(Some(seconds));
    let mut stats = board.stats.subscribe();
    let nobody = stats.wait_for(|stats| stats.sessions == 0);
    // Time is up, or everybody is gone: both are an end.
    let _ = tokio::time::timeout(Duration::from_secs(seconds.into()), nobody).await;
}

async fn work(args: Args, board: Arc<Board>) -> anyhow::Result<Infallible> {
    let Args {
        listen,
        advertise,
        name,
        node_name,
        kubeconfig,
        in_cluster,
        state_dir,
        relay_port,
        relay_ports,
        quic_port,
        tls_port,
        drain_seconds: _,
        metrics_listen,
        health_listen,
        log_format: _,
        log: _,
    } = args;

    let metrics = Arc::new(Metrics::new().context("cannot register metrics")?);
    let sockets = serve::bind(&listen)?;
    let listening: Vec<SocketAddr> = sockets
        .iter()
        .map(|socket| socket.local_addr())
        .collect::<Result<_, _>>()
        .context("cannot read a socket's address")?;
    tracing::info!(?listening, version = env!("CARGO_PKG_VERSION"), "answering STUN");

    let metrics_listener = monitor::listen(metrics_listen, "--metrics-listen").await?;
    tokio::spawn(axum::serve(metrics_listener, monitor::router(Arc::clone(&metrics))).into_future());
    if let Some(health_listen) = health_listen {
        let listener = monitor::listen(health_listen, "--health-listen").await?;
        tokio::spawn(axum::serve(listener, monitor::health_router()).into_future());
    }

    let has_cluster = match in_cluster {
        InCluster::Auto => std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
        InCluster::Always => true,
        InCluster::Never => false,
    };
    if kubeconfig.is_some() || has_cluster {
        let name = name.or_else(|| node_name.clone()).context(
            "publishing needs the name of a MeshRelay: give --name or --node-name, or --in-cluster=never to serve STUN alone",
        )?;
        let client = publish::client(kubeconfig.as_deref()).await?;
        let carrying = state_dir.map(|directory| {
            let ports = Config { first_port: relay_port, ports: relay_ports, ..Config::default() };
            carry::Settings { directory, ports, quic: control::anywhere(quic_port), tls: control::anywhere(tls_port) }
        });
        let service = carrying.and_then(|settings| {
            let started = carry::start(settings, client.clone(), board, &metrics);
            // STUN needs none of it, and a mesh without STUN is worse off than one without this relay.
            started.inspect_err(|error| tracing::error!(error = format!("{error:#}"), "answering STUN alone")).ok()
        });
        let reachable_at = move || addresses::to_publish(&advertise, &addresses_of_host(), &listening);
        let identity = Identity { name, node_name };
        tokio::spawn(publish::run(client, identity, reachable_at, service, Arc::clone(&metrics)));
    } else {
        tracing::info!("no cluster: serving without publishing");
    }
    serve::run(&sockets, &metrics).await
}

fn addresses_of_host() -> Vec<std::net::IpAddr> {
    addresses::of_host().unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "cannot tell this host's addresses; give --advertise");
        Vec::new()
    })
}

fn start_log(args: &Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| {
        format!("--log expects a level or filter such as info or relay=debug, found {:?}", args.log)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

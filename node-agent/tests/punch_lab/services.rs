//! A real relay and a fake API server, in one namespace and on one thread of their own.

use super::boxes::{RELAY, RELAY_TOO};
use super::support::fake_api::FakeApi;
use anyhow::{Context, Result};
use e2e::net::namespace::Namespace;
use relay::{
    carry,
    control::{self, Board},
    identity,
    monitor::Metrics,
    publish, serve,
    server::plane::Config,
};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

const API_PORT: u16 = 8080;
const STUN_PORT: u16 = 3478;
const RELAY_PORT: u16 = 51900;
const QUIC_PORT: u16 = 51899;
const TLS_PORT: u16 = 8443;

/// What nodes talk to.
pub struct Services {
    pub api: FakeApi,
    pub kubeconfig: PathBuf,
    identity: String,
}

impl Services {
    /// Starts both; they run for as long as this process does.
    pub fn start(namespace: &Namespace, dir: &Path) -> Result<Self> {
        let kubeconfig = dir.join("kubeconfig");
        let server = format!("http://{RELAY}:{API_PORT}");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server}}],
            "users": [{"name": "lab", "user": {"token": "none"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        });
        fs::write(&kubeconfig, text.to_string()).context("writing a kubeconfig")?;
        let (say, said) = mpsc::channel();
        let (namespace, config, state) = (namespace.clone(), kubeconfig.clone(), dir.join("relay"));
        fs::create_dir_all(&state).context("making a folder")?;
        thread::spawn(move || {
            namespace.enter(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(serve(&config, state, &say))
            })
        });
        let (api, identity) = said.recv().context("the relay did not start")?;
        Ok(Self { api, kubeconfig, identity })
    }

    /// Tells nodes of the relay: that it answers STUN, and perhaps that it carries packets and signals.
    pub fn publish_relay(&self, with_channel: bool) {
        let mut status: Value =
            json!({"stun": [format!("{RELAY}:{STUN_PORT}"), format!("{RELAY_TOO}:{STUN_PORT}")], "conditions": []});
        if with_channel {
            status["identityKey"] = json!(self.identity);
            status["addresses"] = json!([RELAY]);
            status["quicPort"] = json!(QUIC_PORT);
            status["tlsPort"] = json!(TLS_PORT);
        }
        self.api.put("meshrelays", json!({"metadata": {"name": "relay"}, "spec": {}, "status": status}));
    }
}

async fn serve(kubeconfig: &Path, directory: PathBuf, say: &mpsc::Sender<(FakeApi, String)>) -> Result<()> {
    let (api, _, _) = FakeApi::serve(SocketAddr::new(RELAY.into(), API_PORT)).await;
    let metrics = Metrics::new().context("registering metrics")?;
    let ports = Config { first_port: RELAY_PORT, ports: 64, ..Config::default() };
    let (quic, tls) = (control::anywhere(QUIC_PORT), control::anywhere(TLS_PORT));
    let client = publish::client(Some(kubeconfig)).await?;
    let service =
        carry::start(carry::Settings { directory, ports, quic, tls }, client, Arc::new(Board::default()), &metrics)?;
    let sockets = serve::bind(&[RELAY, RELAY_TOO].map(|address| SocketAddr::new(address.into(), STUN_PORT)))?;
    let mut doors = service.board.doors.subscribe();
    doors.wait_for(|doors| doors.quic.is_some() && doors.tls.is_some()).await.context("the relay has ended")?;
    say.send((api, identity::to_text(&service.identity))).context("nobody waits for the relay")?;
    serve::run(&sockets, &metrics).await.map(|never| match never {})
}

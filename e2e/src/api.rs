//! Single requests to the API server with a given token, exactly as an agent would send them: kubectl reads before it writes, and its
//! refusal would hide the one under test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::command::run;
use crate::lab::Lab;
use crate::net::topology;
use crate::scenario::API_PORT;

/// The API server answers within milliseconds.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest answer that is read.
const ANSWER_MAX: u64 = 16 << 20;

/// One client: a token and nothing else.
#[derive(Clone, Debug)]
pub struct Client {
    lab: Lab,
    token: PathBuf,
}

/// What the API server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Client {
    /// A client with a token of this service account, bound to a node or (without a name) to nothing.
    pub fn of(lab: &Lab, account: &str, node: Option<&str>) -> Result<Self> {
        let bound = node.map(|node| format!("--bound-object-name={node}"));
        let mut args = vec!["create", "token", account, "-n", crate::warren::NAMESPACE];
        args.extend(bound.as_deref().into_iter().flat_map(|bound| ["--bound-object-kind=Node", bound]));
        let path = lab.state().dir().join(format!("token-{account}-{}", node.unwrap_or("unbound")));
        crate::state::write(&path, lab.kubectl(&args)?.trim())?;
        Ok(Self { lab: lab.clone(), token: path })
    }

    /// Sends one request from the control plane's node.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let node = topology::node(&self.lab.scenario().name, &self.lab.scenario().control_plane().name);
        let ca = self.lab.state().pki().join("ca.crt");
        let (ca, token) = (ca.to_string_lossy(), self.token.to_string_lossy());
        let server = self.lab.scenario().control_plane().v4.addr().to_string();
        let exe = self.lab.exe().to_string_lossy();
        let said = run(&mut node.command(&exe, &["internal", "api", &server, &ca, &token, method, path, body]))?;
        let (status, body) = said.split_once('\n').context("an answer with a status")?;
        Ok(Answer { status: status.parse().context("reading the status")?, body: body.into() })
    }

    /// A JSON merge patch.
    pub fn patch(&self, path: &str, body: &serde_json::Value) -> Result<Answer> {
        self.request("PATCH", path, &body.to_string())
    }
}

/// The other half of [`Client::request`]: runs inside the node's network and prints the status and the body.
pub fn send(server: &str, ca: &Path, token: &Path, method: &str, path: &str, body: &str) -> Result<String> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(read(ca)?.as_bytes()) {
        roots.add(cert.context("reading the authority")?).context("trusting the authority")?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(server.to_owned()).context("the server's address")?;
    let stream = TcpStream::connect((server, API_PORT)).context("connecting to the API server")?;
    stream.set_read_timeout(Some(ANSWER)).context("setting a timeout")?;
    let connection = ClientConnection::new(Arc::new(config), name).context("starting TLS")?;
    let mut tls = StreamOwned::new(connection, stream);
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    write!(
        tls,
        "{method} {path} HTTP/1.0\r\nHost: {server}\r\nAuthorization: Bearer {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        read(token)?.trim(),
        body.len()
    )?;
    let mut answer = Vec::new();
    match tls.take(ANSWER_MAX).read_to_end(&mut answer) {
        // Go's server may close without a TLS goodbye; HTTP/1.0 ends with the connection.
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            return Err(error).context("reading the answer");
        }
        _ => {}
    }
    let text = String::from_utf8_lossy(&answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("no HTTP answer: {text:?}") };
    let status = head.split(' ').nth(1).context("an HTTP status")?;
    Ok(format!("{status}\n{body}"))
}

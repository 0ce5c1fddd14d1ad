//! A validating admission webhook: refuses what is named `refused`, and says on which node it runs.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::http;

/// The API server's own limit is 30 s.
const IDLE: Duration = Duration::from_secs(30);
/// Largest review taken: etcd's object limit with room to spare.
const REVIEW_MAX: u64 = 4 << 20;

/// Serves in the background.
pub fn serve(listener: TcpListener, cert: &str, key: &str, node: String) -> Result<()> {
    let certs = CertificateDer::pem_slice_iter(cert.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("reading the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("reading the key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .context("using the certificate")?;
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, node) = (config.clone(), node.clone());
            // The API server reports what goes wrong.
            std::thread::spawn(move || review(stream, config, &node));
        }
    });
    Ok(())
}

fn review(stream: TcpStream, config: Arc<ServerConfig>, node: &str) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    let mut tls = StreamOwned::new(ServerConnection::new(config)?, stream);
    let mut reader = BufReader::new(&mut tls);
    let Some(head) = http::read_head(&mut reader)? else { return Ok(()) };
    let mut body = Vec::new();
    reader.take(head.length.min(REVIEW_MAX)).read_to_end(&mut body)?;
    let answer = decide(&serde_json::from_slice(&body)?, node).to_string();
    write!(
        tls,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
        answer.len()
    )?;
    tls.conn.send_close_notify();
    tls.flush().context("answering")
}

fn decide(review: &Value, node: &str) -> Value {
    let allowed = review["request"]["name"] != "refused";
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"],
            "allowed": allowed,
            "status": {"message": format!("refused by the webhook on node {node}")},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_refused_is_refused() {
        let review = |name| decide(&json!({"request": {"uid": "u", "name": name}}), "home-a");
        assert_eq!(review("fine")["response"]["allowed"], true);
        let refused = review("refused");
        assert_eq!(refused["response"]["allowed"], false);
        assert_eq!(refused["response"]["uid"], "u");
        assert_eq!(refused["response"]["status"]["message"], "refused by the webhook on node home-a");
    }
}

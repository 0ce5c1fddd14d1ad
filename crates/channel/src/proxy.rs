//! The way through an HTTP proxy: CONNECT (RFC 9110, section 9.3.6), and nothing else of HTTP.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// Bytes of a proxy's answer at most, all headers counted: several times what proxies send.
const MAX_ANSWER: usize = 8 * 1024;

/// Addresses of a proxy's name that are tried.
const MAX_RESOLVED: usize = 4;

/// What every answer begins with.
const HTTP: &[u8] = b"HTTP/1.";

/// What ends the headers.
const END: &[u8] = b"\r\n\r\n";

/// A proxy that opens TCP connections for its clients. Shown without its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<Zeroizing<String>>,
}

impl Proxy {
    /// The proxy at this name or address, IPv6 without brackets.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port, authorization: None }
    }

    /// The same with a user and a password for it (RFC 7617).
    #[must_use]
    pub fn with_credentials(self, user: &str, password: &str) -> Self {
        let pair = Zeroizing::new(format!("{user}:{password}"));
        let authorization = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        Self { authorization: Some(authorization), ..self }
    }

    /// A connection to `target` through it. `dial` opens the one to the proxy.
    pub(crate) async fn connect<F>(&self, target: SocketAddr, dial: impl Fn(SocketAddr) -> F) -> io::Result<TcpStream>
    where
        F: Future<Output = io::Result<TcpStream>>,
    {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the proxy's name has no address");
        for address in tokio::net::lookup_host((&*self.host, self.port)).await?.take(MAX_RESOLVED) {
            match dial(address).await {
                Ok(mut stream) => {
                    self.ask(&mut stream, target).await?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(io::Error::new(last.kind(), format!("the proxy is not reached: {last}")))
    }

    /// Asks for the connection and reads the answer, and not a byte of what comes after it.
    async fn ask(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), target: SocketAddr) -> io::Result<()> {
        let mut request = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
        if let Some(authorization) = &self.authorization {
            request.push_str("Proxy-Authorization: ");
            request.push_str(authorization);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::with_capacity(512);
        loop {
            let room = MAX_ANSWER - answer.len();
            if stream.read_buf(&mut bytes::BufMut::limit(&mut answer, room)).await? == 0 {
                let what =
                    if answer.len() >= MAX_ANSWER { "the proxy's answer has no end" } else { "the proxy hung up" };
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            let known = answer.len().min(HTTP.len());
            if answer[..known] != HTTP[..known] {
                return Err(invalid("what is taken for a proxy does not speak HTTP"));
            }
            let end = answer.windows(END.len()).position(|window| window == END);
            match end.map(|at| at + END.len()) {
                None => {}
                Some(end) if end == answer.len() => return judge(&answer),
                // The relay says nothing before it is spoken to.
                Some(_) => return judge(&answer).and(Err(invalid("the proxy said more than its answer"))),
            }
        }
    }
}

/// What the status line says. Its words are the proxy's, and are not repeated.
fn judge(answer: &[u8]) -> io::Result<()> {
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    // "HTTP/1.x SP three digits", and then a space or nothing.
    let code = line.get(9..12).filter(|code| code.iter().all(u8::is_ascii_digit));
    let framed = line.get(8) == Some(&b' ') && matches!(line.get(12), None | Some(b' '));
    let Some(code) = code.filter(|_| framed) else { return Err(invalid("the proxy's answer has no status")) };
    match code {
        [b'2', ..] => Ok(()),
        b"407" => {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "the proxy wants credentials, or other ones (407)"))
        }
        code => {
            let code = String::from_utf8_lossy(code);
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("the proxy refuses ({code})")))
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_of_the_two_hundreds_opens_the_way() {
        for (answer, kind) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", None),
            ("HTTP/1.0 204\r\n\r\n", None),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", Some(io::ErrorKind::PermissionDenied)),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", Some(io::ErrorKind::ConnectionRefused)),
            ("HTTP/1.1 302 Found\r\n\r\n", Some(io::ErrorKind::ConnectionRefused)),
            ("HTTP/1.1 2000 many\r\n\r\n", Some(io::ErrorKind::InvalidData)),
            ("HTTP/1.1 2\r\n\r\n", Some(io::ErrorKind::InvalidData)),
            ("HTTP/1.10200 OK\r\n\r\n", Some(io::ErrorKind::InvalidData)),
            ("HTTP/1.\r\n\r\n", Some(io::ErrorKind::InvalidData)),
        ] {
            assert_eq!(judge(answer.as_bytes()).err().map(|error| error.kind()), kind, "{answer}");
        }
    }

    #[test]
    fn a_proxy_is_shown_without_its_credentials() {
        let proxy = Proxy::new("proxy.example", 3128).with_credentials("user", "secret");
        let shown = format!("{proxy:?}");
        assert!(shown.contains("proxy.example") && !shown.contains("secret") && !shown.contains("Basic"), "{shown}");
        assert_eq!(proxy.authorization.as_ref().map(|value| &***value), Some("Basic dXNlcjpzZWNyZXQ="));
    }
}

//! Asks the agent of this node: one request of HTTP/1.1, written out, since that is all there is to it.

use anyhow::{Context, bail};
use std::{path::Path, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// An agent that takes longer is stuck.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More than the report of 8,192 peers takes.
const MAX_RESPONSE: u64 = 32 << 20;

/// Status code and body of `GET path`.
pub async fn get(socket: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    let answer = async {
        let stream = UnixStream::connect(socket).await.with_context(|| {
            format!("expected a running agent at {}, found none; is --socket right?", socket.display())
        })?;
        exchange(stream, "localhost", path).await
    };
    timeout(TIMEOUT, answer).await.context("the agent did not answer in time")?
}

/// Sends `GET path` and reads the answer to its end.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    host: &str,
    path: &str,
) -> anyhow::Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("send the request")?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut response).await.context("read the answer")?;
    parse(&response)
}

fn parse(response: &[u8]) -> anyhow::Result<(u16, String)> {
    let text = str::from_utf8(response).context("the answer is not text")?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("the answer is not HTTP") };
    let status = head.split_ascii_whitespace().nth(1).and_then(|s| s.parse().ok());
    let status = status.context("the answer has no status")?;
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Ok((status, dechunk(body).context("the answer is cut short")?));
    }
    Ok((status, body.to_owned()))
}

/// Joins the chunks (RFC 9112, section 7.1).
fn dechunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_refused() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody").unwrap(), (200, "body".into()));
        assert_eq!(parse(b"HTTP/1.1 503 No\r\n\r\n").unwrap(), (503, String::new()));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), (200, "abcde".into()));
        for bad in [&b""[..], b"HTTP/1.1 200 OK", b"HTTP/1.1 x\r\n\r\n", b"\xff\r\n\r\n"] {
            assert!(parse(bad).is_err());
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc").is_err());
    }
}

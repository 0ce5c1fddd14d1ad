//! As much of HTTP/1.1 as the checks need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest head of a request or an answer.
const HEAD_MAX: u64 = 64 << 10;
/// Longest body that is kept in memory.
const BODY_MAX: u64 = 4 << 20;

/// The head of a request or an answer.
#[derive(Debug)]
pub struct Head {
    /// The first line, split at spaces.
    pub first: Vec<String>,
    /// What `Content-Length` says, 0 without.
    pub length: u64,
}

/// Fetches a small page.
pub fn get(url: &str, timeout: Duration) -> Result<String> {
    let (address, path) = parse(url)?;
    let (head, mut body) =
        request(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"), timeout)?;
    let mut text = String::new();
    body.by_ref().take(head.length.min(BODY_MAX)).read_to_string(&mut text).context("reading the answer")?;
    match head.first.get(1).map(String::as_str) {
        Some("200") => Ok(text),
        _ => bail!("{url} answered {:?}: {text}", head.first),
    }
}

/// Sends a request without a body and reads the head of the answer.
pub fn request(address: SocketAddr, request: &str, timeout: Duration) -> Result<(Head, BufReader<TcpStream>)> {
    let mut stream = connect(address, timeout)?;
    stream.write_all(request.as_bytes()).context("sending the request")?;
    let mut reader = BufReader::new(stream);
    Ok((read_head(&mut reader)?.context("it hung up without an answer")?, reader))
}

/// A connection whose every read and write gives up after the time.
pub fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(timeout)).context("setting a timeout")?;
    stream.set_write_timeout(Some(timeout)).context("setting a timeout")?;
    Ok(stream)
}

/// Reads the head of a request byte by byte, so that nothing of what follows is taken.
pub fn read_unbuffered_head(stream: &mut impl Read) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reading a request")?;
        head.extend(byte);
        if head.len() as u64 > HEAD_MAX {
            bail!("a head without end");
        }
    }
    String::from_utf8(head).context("a request that is text")
}

/// Reads a head; nothing when the other side hung up before it.
pub fn read_head(reader: &mut impl BufRead) -> Result<Option<Head>> {
    let mut reader = reader.take(HEAD_MAX);
    let mut line = String::new();
    if reader.read_line(&mut line).context("reading the first line")? == 0 {
        return Ok(None);
    }
    let mut head = Head { first: line.split_whitespace().map(String::from).collect(), length: 0 };
    loop {
        line.clear();
        reader.read_line(&mut line).context("reading a header")?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                head.length = value.trim().parse().context("reading Content-Length")?;
            }
            Some(_) => {}
            None => return Ok(Some(head)),
        }
    }
}

/// Splits `http://ADDRESS:PORT/PATH`. The lab has no DNS: the host is an address.
pub fn parse(url: &str) -> Result<(SocketAddr, &str)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} does not begin with http://"))?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let address =
        host.parse().or_else(|_| format!("{host}:80").parse()).with_context(|| format!("{host:?} is no address"))?;
    Ok((address, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_port_or_path() {
        let parsed = |url| parse(url).map(|(address, path)| (address.to_string(), path.to_owned())).unwrap();
        assert_eq!(parsed("http://10.0.0.1:8080/x/y"), ("10.0.0.1:8080".into(), "/x/y".into()));
        assert_eq!(parsed("http://10.0.0.1"), ("10.0.0.1:80".into(), "/".into()));
        assert_eq!(parsed("http://[fd00::1]:8080"), ("[fd00::1]:8080".into(), "/".into()));
        assert!(parse("http://name/").is_err());
    }

    #[test]
    fn a_head_ends_at_the_empty_line() {
        let mut text = &b"POST /sink HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"[..];
        let head = read_head(&mut text).unwrap().unwrap();
        assert_eq!((head.first[1].as_str(), head.length, text), ("/sink", 5, &b"hello"[..]));
    }
}

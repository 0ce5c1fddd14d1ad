//! `GET` of a plain `http://address:port/path`, with a deadline.

use crate::local::client::exchange;
use anyhow::{Context, bail};
use std::{net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// The body of a successful answer.
pub async fn fetch(url: &str, within: Duration) -> anyhow::Result<String> {
    let (address, path) = parse(url)?;
    let answer = async {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        exchange(stream, &address.to_string(), path).await
    };
    match timeout(within, answer).await {
        Ok(Ok((200, body))) => Ok(body),
        Ok(Ok((status, body))) => bail!("{status}: {}", body.trim_end()),
        Ok(Err(e)) => Err(e),
        Err(_) => bail!("no answer from {address} within {} s", within.as_secs()),
    }
}

fn parse(url: &str) -> anyhow::Result<(SocketAddr, &str)> {
    let expected = || format!("expected http://ADDRESS:PORT/PATH, found {url:?}");
    let rest = url.strip_prefix("http://").with_context(expected)?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let clean = path.chars().all(|c| c.is_ascii_graphic());
    let address = authority.parse().ok().filter(|_| clean).with_context(expected)?;
    Ok((address, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_and_everything_else_is_refused() {
        assert_eq!(parse("http://10.0.0.1:80/a?b=c").unwrap(), ("10.0.0.1:80".parse().unwrap(), "/a?b=c"));
        assert_eq!(parse("http://[fd00::1]:80").unwrap(), ("[fd00::1]:80".parse().unwrap(), "/"));
        for bad in [
            "https://10.0.0.1:80/",
            "http://name:80/",
            "http://10.0.0.1/",
            "http://10.0.0.1:80/a b",
            "http://10.0.0.1:80/\r\n",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

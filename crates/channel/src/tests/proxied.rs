//! A channel through an HTTP proxy: a small real one, and some that are none.

use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;

use super::*;

/// What a proxy does with its clients.
#[derive(Clone, Copy)]
enum Manner {
    /// Opens what they ask for, if they show these credentials, where there are any.
    Opens(Option<&'static str>),
    /// Says this and hangs up.
    Says(&'static str),
    /// Never ends its answer.
    Rambles,
    /// Takes the request and says nothing.
    Ponders,
}

/// Starts one; answers where it is.
async fn proxy(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK).await.expect("loopback has room");
    let at = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, manner));
        }
    });
    at
}

async fn serve(mut client: TcpStream, manner: Manner) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await?);
    }
    let request = String::from_utf8(request).expect("a request is text");
    match manner {
        Manner::Says(answer) => client.write_all(answer.as_bytes()).await,
        Manner::Ponders => std::future::pending().await,
        Manner::Rambles => {
            client.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                client.write_all(b"X-More: and more\r\n").await?;
            }
        }
        Manner::Opens(credentials) => {
            let shown = request.lines().find_map(|line| line.strip_prefix("Proxy-Authorization: "));
            if shown != credentials {
                return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
            }
            let target = request.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).expect("a target");
            let mut far = TcpStream::connect(target).await?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\nVia: a test\r\n\r\n").await?;
            copy_bidirectional(&mut client, &mut far).await.map(drop)
        }
    }
}

/// Connects to the relay through that proxy.
async fn through(relay: &Relay, proxy: Proxy) -> Result<Channel, ConnectError> {
    let target = relay.target(Transport::Tls);
    let proxied = Some((proxy, target.tls.clone()));
    let options = Options { timeout: Duration::from_secs(5), proxied, ..Options::default() };
    connect(&node(), &target, options).await
}

fn at(proxy: SocketAddr) -> Proxy {
    Proxy::new(&proxy.ip().to_string(), proxy.port())
}

#[tokio::test]
async fn a_channel_goes_through_a_proxy_and_shows_its_credentials_there() {
    for (wanted, shown) in [(None, None), (Some("Basic dXNlcjpzZWNyZXQ="), Some(("user", "secret")))] {
        let mut relay = Relay::open();
        let proxy = at(proxy(Manner::Opens(wanted)).await);
        let proxy = if let Some((user, password)) = shown { proxy.with_credentials(user, password) } else { proxy };
        let channel = through(&relay, proxy).await.expect("the proxy opens");
        assert_eq!(channel.transport(), Transport::Tls);
        channel_send(&channel, &hello()).await;
        let mut relays = relay.accept().await.channel;
        assert!(matches!(relays.receiver_mut().recv().await, Ok(Some(ToRelay::Hello { .. }))));
    }
}

#[tokio::test]
async fn a_proxy_that_does_not_open_is_named_as_the_reason() {
    let relay = Relay::open();
    for (manner, reason) in [
        (Manner::Opens(Some("Basic b3RoZXI=")), "wants credentials, or other ones (407)"),
        (Manner::Says("HTTP/1.1 403 Forbidden\r\nX: secret words of the proxy\r\n\r\n"), "the proxy refuses (403)"),
        (Manner::Says("SSH-2.0-OpenSSH_9.2\r\n"), "does not speak HTTP"),
        (Manner::Says("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), "said more than its answer"),
        (Manner::Says("HTTP/1.1 200 OK\r\n"), "the proxy hung up"),
        (Manner::Rambles, "has no end"),
    ] {
        let error = through(&relay, at(proxy(manner).await)).await.expect_err("nothing is open").to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_costs_no_more_than_the_time_there_is() {
    let relay = Relay::open();
    let target = relay.target(Transport::Tls);
    let proxied = Some((at(proxy(Manner::Ponders).await), target.tls.clone()));
    let options = Options { timeout: Duration::from_millis(300), proxied, ..Options::default() };
    let error = connect(&node(), &target, options).await.expect_err("nothing is open");
    assert!(matches!(error, ConnectError::Timeout(_)), "{error}");
}

#[tokio::test]
async fn addresses_that_are_not_in_the_list_are_reached_directly() {
    let relay = Relay::open();
    let target = relay.target(Transport::Tls);
    let nobody = at(proxy(Manner::Says("HTTP/1.1 403 Forbidden\r\n\r\n")).await);
    let options = Options { proxied: Some((nobody, Vec::new())), ..Options::default() };
    let channel = connect(&node(), &target, options).await.expect("no proxy is asked");
    assert_eq!(channel.transport(), Transport::Tls);
}

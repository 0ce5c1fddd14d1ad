//! An HTTP proxy that opens connections (CONNECT) and nothing else, as companies have them.

use std::io::{Write, copy};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::http;

/// A client that asks for nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(30);

/// Serves until it is killed; says on its output whom it connects with what.
pub fn run(port: u16, timeout: Duration) -> Result<String> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(any).with_context(|| format!("listening on port {port}"))?;
    loop {
        let (client, from) = listener.accept().context("taking a connection")?;
        std::thread::spawn(move || match serve(client, timeout) {
            Ok(target) => println!("{from} had {target}"),
            Err(error) => println!("{from}: {error:#}"),
        });
    }
}

fn serve(mut client: TcpStream, timeout: Duration) -> Result<SocketAddr> {
    client.set_read_timeout(Some(IDLE)).context("setting a timeout")?;
    let head = http::read_unbuffered_head(&mut client)?;
    let mut words = head.split_whitespace();
    ensure!(words.next() == Some("CONNECT"), "it asks for something else: {head:?}");
    let target: SocketAddr = words.next().context("a target")?.parse().context("an address as target")?;
    let far = TcpStream::connect_timeout(&target, timeout).with_context(|| format!("connecting to {target}"))?;
    println!("{} opens {target}", client.peer_addr().context("asking who it is")?);
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").context("answering")?;
    client.set_read_timeout(None).context("taking the timeout away")?;
    let (mut up, mut down) = (client.try_clone().context("sharing")?, far.try_clone().context("sharing")?);
    let there = std::thread::spawn(move || pass(&mut up, &mut down));
    pass(&mut &far, &mut &client);
    let _ = there.join();
    Ok(target)
}

/// Until one side ends; then both do.
fn pass(from: &mut impl Stream, to: &mut impl Stream) {
    let _ = copy(from, to);
    from.end();
    to.end();
}

trait Stream: std::io::Read + std::io::Write {
    fn end(&self);
}

impl Stream for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Stream for &TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

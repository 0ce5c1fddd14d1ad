//! The client side: can this pod reach that one, with which sizes, how fast, and with which silences.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::http;

/// Bytes written at once.
const CHUNK: usize = 64 << 10;
/// A prime, so that a lost or doubled segment of any usual size shifts the pattern.
const PERIOD: u64 = 251;

/// Fetches all targets at once.
pub fn matrix(targets: &[String], timeout: Duration) -> String {
    let fetch = |url: &str| -> Value {
        let begin = Instant::now();
        match http::get(url, timeout) {
            Ok(text) => json!({"ms": begin.elapsed().as_secs_f64() * 1000.0, "answer": text.trim_end()}),
            Err(error) => json!({"error": format!("{error:#}")}),
        }
    };
    let results: BTreeMap<&str, Value> = std::thread::scope(|scope| {
        let started: Vec<_> = targets
            .iter()
            .filter_map(|target| target.split_once('='))
            .map(|(name, url)| (name, scope.spawn(move || fetch(url))))
            .collect();
        let failed = |_| json!({"error": "the check panicked"});
        started.into_iter().map(|(name, thread)| (name, thread.join().unwrap_or_else(failed))).collect()
    });
    json!(results).to_string()
}

/// Downloads and verifies every byte.
pub fn download(url: &str, bytes: u64, timeout: Duration) -> Result<String> {
    let (address, _) = http::parse(url)?;
    let begin = Instant::now();
    let request = format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let (_, mut body) = http::request(address, &request, timeout)?;
    read_pattern(&mut body, bytes)?;
    Ok(throughput(bytes, begin.elapsed()))
}

/// Uploads; the other side verifies every byte.
pub fn upload(url: &str, bytes: u64, timeout: Duration) -> Result<String> {
    let (address, _) = http::parse(url)?;
    let begin = Instant::now();
    let mut stream = http::connect(address, timeout)?;
    write!(stream, "POST /sink HTTP/1.1\r\nHost: {address}\r\nContent-Length: {bytes}\r\n\r\n")?;
    write_pattern(&mut stream, bytes)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("waiting for the answer")?;
    if !answer.contains(&format!("took {bytes} bytes")) {
        bail!("{url} did not take all bytes: {answer}");
    }
    Ok(throughput(bytes, begin.elapsed()))
}

/// One UDP packet there and back.
pub fn udp(to: SocketAddr, size: usize, timeout: Duration) -> Result<String> {
    let socket = udp_socket(to, timeout)?;
    let payload = vec![0x5a; size];
    let begin = Instant::now();
    socket.send(&payload).with_context(|| format!("sending {size} bytes to {to}"))?;
    let mut buffer = vec![0; size + 1];
    let length = socket.recv(&mut buffer).with_context(|| format!("waiting for the echo of {size} bytes from {to}"))?;
    if buffer.get(..length) != Some(&payload[..]) {
        bail!("{to} answered {length} other bytes");
    }
    Ok(format!("{size} bytes in {:.1} ms", begin.elapsed().as_secs_f64() * 1000.0))
}

/// How one socket is seen by several observers.
pub fn observed(from: u16, observers: &[SocketAddr], timeout: Duration) -> Result<String> {
    let socket = UdpSocket::bind(("0.0.0.0", from)).with_context(|| format!("opening UDP port {from}"))?;
    socket.set_read_timeout(Some(timeout)).context("setting a timeout")?;
    let ask = |observer: &SocketAddr| -> Result<String> {
        let mut buffer = [0; 64];
        socket.send_to(b"?", observer).with_context(|| format!("asking {observer}"))?;
        let length = socket.recv(&mut buffer).with_context(|| format!("waiting for {observer}"))?;
        Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
    };
    Ok(observers.iter().map(ask).collect::<Result<Vec<_>>>()?.join("\n"))
}

/// One echo request there and back.
pub fn icmp(to: IpAddr, size: usize, timeout: Duration) -> Result<String> {
    let (domain, protocol, kind, reply, skip) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129, 0),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("opening a raw socket (CAP_NET_RAW)")?;
    socket.connect(&SocketAddr::new(to, 0).into()).with_context(|| format!("reaching {to}"))?;
    forbid_fragments(&socket, to)?;
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or(1).to_be_bytes();
    let mut request = vec![kind, 0, 0, 0, id[0], id[1], 0, 1];
    request.resize(8 + size, 0x5a);
    let sum = checksum(&request).to_be_bytes();
    // The kernel fills in the checksum of ICMPv6, which covers addresses that it chooses.
    if to.is_ipv4() {
        request.splice(2..4, sum);
    }
    let begin = Instant::now();
    socket.send(&request).with_context(|| format!("sending {size} bytes to {to}"))?;
    let mut buffer = vec![0; size + 128];
    while let Some(left) = timeout.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        let length =
            (&socket).read(&mut buffer).with_context(|| format!("waiting for the echo of {size} bytes from {to}"))?;
        let packet = buffer.get(skip..length).unwrap_or_default();
        if packet.first() == Some(&reply) && packet.get(4..6) == Some(&id) && packet.len() == request.len() {
            return Ok(format!("{size} bytes in {:.1} ms", begin.elapsed().as_secs_f64() * 1000.0));
        }
    }
    bail!("no echo of {size} bytes from {to}")
}

/// What came back of a steady stream of packets.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Steady {
    /// How many were sent.
    sent: u64,
    /// How many of them came back.
    received: u64,
    /// The longest time in which none did.
    silence_ms: f64,
}

/// A steady stream until `is_over` says so of the time since its begin; the last packets have `grace` to come back.
pub fn stream(
    to: SocketAddr,
    interval: Duration,
    grace: Duration,
    is_over: impl Fn(Duration) -> bool,
) -> Result<Steady> {
    let socket = udp_socket(to, interval)?;
    let begin = Instant::now();
    let (mut sent, mut received, mut silence, mut last) = (0_u64, 0_u64, Duration::ZERO, Duration::ZERO);
    let (mut seen, mut ended) = (std::collections::BTreeSet::new(), None);
    loop {
        let now = begin.elapsed();
        let due = interval * u32::try_from(sent).unwrap_or(u32::MAX);
        match ended {
            Some(at) if received == sent || now >= at + grace => break,
            None if is_over(now) => ended = Some(now),
            None if now >= due => {
                sent += 1;
                // A route that is missing for a moment is part of what is measured.
                let _ = socket.send(&sent.to_be_bytes());
            }
            _ => {}
        }
        let next = (interval * u32::try_from(sent).unwrap_or(u32::MAX)).saturating_sub(begin.elapsed());
        socket.set_read_timeout(Some(next.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 8];
        if socket.recv(&mut buffer).is_ok() && seen.insert(buffer) {
            received += 1;
            silence = silence.max(begin.elapsed().saturating_sub(last));
            last = begin.elapsed();
        }
    }
    silence = silence.max(ended.unwrap_or_default().saturating_sub(last));
    Ok(Steady { sent, received, silence_ms: silence.as_secs_f64() * 1000.0 })
}

/// Writes the bytes that [`read_pattern`] expects.
pub fn write_pattern(out: &mut impl Write, bytes: u64) -> Result<()> {
    let mut at = 0;
    while at < bytes {
        let size = CHUNK.min(usize::try_from(bytes - at).unwrap_or(CHUNK));
        let chunk: Vec<u8> = (at..).take(size).map(pattern).collect();
        out.write_all(&chunk).with_context(|| format!("stuck after {at} of {bytes} bytes"))?;
        at += size as u64;
    }
    Ok(())
}

/// Reads and verifies.
pub fn read_pattern(input: &mut impl Read, bytes: u64) -> Result<u64> {
    let (mut at, mut buffer) = (0, vec![0; CHUNK]);
    while at < bytes {
        let length = input.read(&mut buffer).with_context(|| format!("stuck after {at} of {bytes} bytes"))?;
        let chunk = buffer
            .get(..length)
            .filter(|chunk| !chunk.is_empty())
            .with_context(|| format!("it ended after {at} of {bytes} bytes"))?;
        if !is_pattern(chunk, at) {
            bail!("wrong bytes after {at} of {bytes}");
        }
        at += length as u64;
    }
    Ok(at)
}

/// Whether these are the bytes that follow the first `at`.
pub fn is_pattern(bytes: &[u8], at: u64) -> bool {
    bytes.iter().zip(at..).all(|(byte, at)| *byte == pattern(at))
}

fn pattern(at: u64) -> u8 {
    u8::try_from(at % PERIOD).unwrap_or_default()
}

fn throughput(bytes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(1e-9);
    format!("{bytes} bytes in {seconds:.3} s, {:.1} Mbit/s", bytes as f64 * 8.0 / seconds / 1e6)
}

/// A socket that is connected to `to` and sends nothing in fragments.
pub fn udp_socket(to: SocketAddr, timeout: Duration) -> Result<UdpSocket> {
    let local = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).context("opening a socket")?;
    socket.connect(to).with_context(|| format!("reaching {to}"))?;
    socket.set_read_timeout(Some(timeout)).context("setting a timeout")?;
    forbid_fragments(&socket, to.ip())?;
    Ok(socket)
}

/// Too large is an error, not two fragments: sizes are what these checks are about.
fn forbid_fragments(socket: &impl AsFd, to: IpAddr) -> Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    match to {
        IpAddr::V4(_) => dont_fragment::set(socket.as_fd()),
        IpAddr::V6(_) => setsockopt(&socket.as_fd(), sockopt::Ipv6DontFrag, &true).map_err(Into::into),
    }
    .context("forbidding fragments")
}

mod dont_fragment {
    #![allow(unsafe_code)]

    use std::os::fd::{AsRawFd, BorrowedFd};

    pub fn set(socket: BorrowedFd<'_>) -> anyhow::Result<()> {
        let (value, length) = (nix::libc::IP_PMTUDISC_DO, size_of::<nix::libc::c_int>() as nix::libc::socklen_t);
        let (level, option) = (nix::libc::IPPROTO_IP, nix::libc::IP_MTU_DISCOVER);
        // SAFETY: the descriptor is open; the kernel reads one int from `value`, which outlives the call.
        let result =
            unsafe { nix::libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
        nix::errno::Errno::result(result)?;
        Ok(())
    }
}

fn checksum(message: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = message.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_in_a_transfer_is_noticed() {
        let mut sent = Vec::new();
        write_pattern(&mut sent, 100_000).unwrap();
        assert_eq!(read_pattern(&mut &sent[..], 100_000).unwrap(), 100_000);
        sent.drain(50_000..51_400);
        assert!(read_pattern(&mut &sent[..], 98_600).is_err());
    }

    #[test]
    fn a_message_with_its_checksum_sums_to_nothing() {
        let mut message = vec![8, 0, 0, 0, 1, 2, 3, 4, 5];
        let sum = checksum(&message).to_be_bytes();
        message.splice(2..4, sum);
        assert_eq!(checksum(&message), 0);
    }
}

//! Traffic without an end of its own: it goes on until SIGTERM, so that whatever happens meanwhile may take its time.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;
use socket2::SockRef;

use crate::{check, http};

/// More than any change of a lab lets pass: the connection never ends first.
const WITHOUT_END: u64 = 1 << 50;
/// Bytes read before each pause. Little, and little in the kernel's buffer, so that a path that is gone shows as a pause.
const SIP: usize = 32 << 10;
/// What a machine that does other work carries easily: 3 MB/s.
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes that must still come after the signal: more than was under way then.
const PROOF: u64 = 1 << 20;

/// Pings every target at once.
pub fn pings(targets: &[String], interval: Duration, grace: Duration) -> Result<String> {
    let over = over()?;
    let parse = |target: &str| -> Result<(String, SocketAddr)> {
        let (name, address) = target.split_once('=').with_context(|| format!("{target:?} is not NAME=ADDRESS:PORT"))?;
        Ok((name.to_owned(), address.parse().with_context(|| format!("{address:?} is no address"))?))
    };
    let targets = targets.iter().map(|target| parse(target)).collect::<Result<Vec<_>>>()?;
    let ping = |address| check::stream(address, interval, grace, |_| over.load(Ordering::Relaxed));
    let results = std::thread::scope(|scope| {
        let started: Vec<_> = targets.iter().map(|(name, address)| (name, scope.spawn(|| ping(*address)))).collect();
        let joined = |(name, thread): (_, std::thread::ScopedJoinHandle<'_, Result<_>>)| {
            let result = thread.join().map_err(|_| anyhow::anyhow!("pinging {name} panicked"))?;
            Ok((name, result?))
        };
        started.into_iter().map(joined).collect::<Result<BTreeMap<_, _>>>()
    })?;
    Ok(json!(results).to_string())
}

/// One download, every byte verified.
pub fn flow(url: &str, timeout: Duration) -> Result<String> {
    let over = over()?;
    let (address, _) = http::parse(url)?;
    let request = format!("GET /bytes/{WITHOUT_END} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let (_, mut body) = http::request(address, &request, timeout)?;
    SockRef::from(body.get_ref()).set_recv_buffer_size(SIP).context("shrinking the receive buffer")?;
    let (mut at, mut pause, mut proof, mut buffer) = (0, Duration::ZERO, None, vec![0; SIP]);
    while proof.is_none_or(|proof| at < proof) {
        let begin = Instant::now();
        let length = body.read(&mut buffer).with_context(|| format!("stuck after {at} bytes"))?;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
            bail!("it ended after {at} bytes");
        };
        if !check::is_pattern(bytes, at) {
            bail!("wrong bytes after {at}");
        }
        pause = pause.max(begin.elapsed());
        at += length as u64;
        if over.load(Ordering::Relaxed) {
            proof.get_or_insert(at + PROOF);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(json!({"bytes": at, "pause_ms": pause.as_secs_f64() * 1000.0}).to_string())
}

/// True from SIGTERM on.
fn over() -> Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("blocking signals")?;
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    std::thread::spawn(move || {
        while signals.wait().is_err() {}
        told.store(true, Ordering::Relaxed);
    });
    Ok(over)
}

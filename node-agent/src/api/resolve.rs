//! The sockets of the API servers, whatever their names resolve to at present.
//!
//! Resolving may take many seconds when a resolver is away, and the resolver may be in the mesh that is to be made. So it is
//! a task's business, never the loop's: literal addresses are there at once, those of names when they are known, and a name
//! that no longer resolves keeps what it resolved to.

use super::endpoints::MAX_ENDPOINTS;
use crate::args::HostPort;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// How long things take.
#[derive(Clone, Copy)]
struct Pace {
    /// Longest that one name is waited for.
    lookup: Duration,
    /// Between looks at what the names resolve to.
    again: Duration,
    /// The same while a name never resolved.
    retry: Duration,
}

/// A resolver's own second attempt is waited for; addresses of API servers change by the month.
const PACE: Pace =
    Pace { lookup: Duration::from_secs(10), again: Duration::from_secs(300), retry: Duration::from_secs(10) };

/// Starts resolving; the receiver has the literal addresses from the start.
pub fn watch(endpoints: Vec<HostPort>) -> watch::Receiver<Vec<SocketAddr>> {
    watch_with(endpoints, PACE, |host, port| async move {
        Ok(tokio::net::lookup_host((host.as_str(), port)).await?.take(MAX_ENDPOINTS).collect())
    })
}

fn watch_with<L, F>(endpoints: Vec<HostPort>, pace: Pace, lookup: L) -> watch::Receiver<Vec<SocketAddr>>
where
    L: Fn(String, u16) -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<Vec<SocketAddr>>> + Send,
{
    let literal = |e: &HostPort| e.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, e.port));
    let literals: Vec<SocketAddr> = endpoints.iter().filter_map(literal).collect();
    let names: Vec<HostPort> = endpoints.into_iter().filter(|e| literal(e).is_none()).collect();
    let (out, found) = watch::channel(joined(&literals, &[]));
    if names.is_empty() {
        // The sender may go: nothing will change.
        return found;
    }
    tokio::spawn(async move {
        let mut known: Vec<Vec<SocketAddr>> = vec![Vec::new(); names.len()];
        while !out.is_closed() {
            for (name, known) in names.iter().zip(&mut known) {
                match timeout(pace.lookup, lookup(name.host.clone(), name.port)).await {
                    Ok(Ok(found)) if !found.is_empty() => *known = found,
                    Ok(Err(e)) => tracing::debug!(error = %e, "the name of an API server does not resolve"),
                    _ => tracing::debug!("the name of an API server does not resolve in time"),
                }
            }
            let all = joined(&literals, &known);
            out.send_if_modified(|old| std::mem::replace(old, all.clone()) != all);
            sleep(if known.iter().any(Vec::is_empty) { pace.retry } else { pace.again }).await;
        }
    });
    found
}

fn joined(literals: &[SocketAddr], names: &[Vec<SocketAddr>]) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = literals.iter().chain(names.iter().flatten()).copied().collect();
    all.sort();
    all.dedup();
    all.truncate(MAX_ENDPOINTS * 2);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    fn endpoints(names: &[&str]) -> Vec<HostPort> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn literal_addresses_wait_for_no_resolver() {
        let found = watch_with(endpoints(&["[fd00::1]:6443", "10.0.0.1:443", "api.example:6443"]), PACE, |_, _| {
            std::future::pending()
        });
        assert_eq!(*found.borrow(), addrs(&["10.0.0.1:443", "[fd00::1]:6443"]));
    }

    #[tokio::test]
    async fn a_name_is_told_when_it_resolves_and_kept_when_it_no_longer_does() {
        let soon = Duration::from_millis(20);
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let lookup = move |_, port| {
            let asked = count.fetch_add(1, Ordering::Relaxed);
            async move {
                match asked {
                    0 => std::future::pending().await,
                    1 => Ok(vec![SocketAddr::new([192, 0, 2, 7].into(), port)]),
                    _ => Err(io::ErrorKind::NotFound.into()),
                }
            }
        };
        let mut found = watch_with(
            endpoints(&["10.0.0.1:443", "api.example:6443"]),
            Pace { lookup: soon, again: soon, retry: soon },
            lookup,
        );
        found.changed().await.unwrap();
        assert_eq!(*found.borrow_and_update(), addrs(&["10.0.0.1:443", "192.0.2.7:6443"]));
        while asked.load(Ordering::Relaxed) < 5 {
            sleep(soon).await;
        }
        assert!(!found.has_changed().unwrap());
    }
}

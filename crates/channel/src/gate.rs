//! How many who have not shown yet that they belong here may be at work at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Newcomers at a time. A mesh that comes back as a whole has one handshake a node, each some milliseconds long.
pub const MAX_NEWCOMERS: usize = 1024;

/// Newcomers of one IPv4 address or IPv6 /64 at a time: a site behind one address restarts as a whole, and nobody fills all places alone.
pub const MAX_NEWCOMERS_OF_SOURCE: usize = 64;

/// From so many on, UDP sources must show first that they receive where they say they are: those who forge theirs fill no more.
pub(crate) const BUSY: usize = MAX_NEWCOMERS / 4;

#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Newcomers>);

#[derive(Debug, Default)]
struct Newcomers {
    all: usize,
    by_source: BTreeMap<IpAddr, usize>,
}

/// A newcomer's place, until this is dropped.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    source: IpAddr,
}

impl Gate {
    /// A place, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let source = network(source);
        let mut newcomers = self.lock();
        if newcomers.all >= MAX_NEWCOMERS {
            return None;
        }
        let of_source = newcomers.by_source.entry(source).or_default();
        if *of_source >= MAX_NEWCOMERS_OF_SOURCE {
            return None;
        }
        *of_source += 1;
        newcomers.all += 1;
        Some(Place { gate: Arc::clone(self), source })
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.lock().all >= BUSY
    }

    fn lock(&self) -> MutexGuard<'_, Newcomers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut newcomers = self.gate.lock();
        newcomers.all = newcomers.all.saturating_sub(1);
        if let Some(of_source) = newcomers.by_source.get_mut(&self.source) {
            *of_source = of_source.saturating_sub(1);
            if *of_source == 0 {
                newcomers.by_source.remove(&self.source);
            }
        }
    }
}

/// What one site has: an address, or a /64.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_never_takes_all_places_and_gives_back_what_it_took() {
        let gate = Arc::new(Gate::default());
        let one: IpAddr = "2001:db8::1".parse().expect("an address");
        let neighbour: IpAddr = "2001:db8::2".parse().expect("an address");
        let mut places: Vec<Place> = std::iter::from_fn(|| gate.enter(one)).collect();
        assert_eq!(places.len(), MAX_NEWCOMERS_OF_SOURCE);
        assert!(gate.enter(neighbour).is_none(), "the same site");
        assert!(gate.enter(IpAddr::from([192, 0, 2, 1])).is_some(), "another");
        places.pop();
        assert!(gate.enter(neighbour).is_some());
        places.clear();
        assert!(gate.lock().by_source.is_empty());
    }

    #[test]
    fn all_places_taken_is_the_end_for_every_source() {
        let gate = Arc::new(Gate::default());
        let places: Vec<Place> =
            (0..MAX_NEWCOMERS as u32).filter_map(|number| gate.enter(IpAddr::from(number.to_be_bytes()))).collect();
        assert_eq!(places.len(), MAX_NEWCOMERS);
        assert!(gate.is_busy());
        assert!(gate.enter(IpAddr::from([203, 0, 113, 1])).is_none());
    }
}

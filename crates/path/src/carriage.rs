//! Addresses of this machine's own: for legs that are a relay's channel, and for peers that sleep.
//!
//! WireGuard sends to an address. For a leg that is the channel itself, because UDP does not get to the relay, that is one of
//! 127.77.0.0/16 at a port that the shell has: it takes what WireGuard sends there, and hands WireGuard what the relay says from there.
//! The address alone tells the leg, in both directions. No other address of loopback is ever used, and these for nothing else.
//!
//! A peer that [sleeps](crate::peer) has one as well, for as long as it is known: what WireGuard sends there is a user's wish to talk to it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;

use wire::relay::AllocationId;

use crate::event::Event;
use crate::relay::RelayId;

/// First half of every such address.
const NETWORK: [u8; 2] = [127, 77];
/// Addresses there are, but for the first and the last: more than two legs and a bell for each of as many peers as there may be.
const LAST: u16 = u16::MAX - 1;

/// Which of them are taken.
#[derive(Debug, Default)]
pub(crate) struct Carriage {
    port: Option<u16>,
    taken: BTreeSet<u16>,
    /// The last one that was given out: one that was given back rests, for what is on its way.
    last: u16,
}

impl Carriage {
    /// The shell's port, or nothing if it carries nothing. Returns whether it is another one than before: then no address holds.
    pub(crate) fn set_port(&mut self, port: Option<u16>) -> bool {
        std::mem::replace(&mut self.port, port) != port
    }

    pub(crate) fn is_open(&self) -> bool {
        self.port.is_some()
    }

    /// An address for this leg, and what the shell must know of it.
    pub(crate) fn take(&mut self, relay: RelayId, allocation: AllocationId) -> Option<(SocketAddr, Event)> {
        let port = self.port?;
        let endpoint = socket(self.draw()?, port);
        Some((endpoint, Event::Carry { endpoint, relay, allocation }))
    }

    /// An address for a peer that sleeps.
    pub(crate) fn take_bell(&mut self) -> Option<NonZeroU16> {
        self.draw()
    }

    fn draw(&mut self) -> Option<NonZeroU16> {
        let after = (self.last.saturating_add(1)..=LAST).chain(1..=self.last.min(LAST));
        let free = after.into_iter().find(|number| !self.taken.contains(number))?;
        self.last = free;
        self.taken.insert(free);
        NonZeroU16::new(free)
    }

    /// The leg needs it no more.
    pub(crate) fn give_back(&mut self, endpoint: SocketAddr) -> Option<Event> {
        let SocketAddr::V4(v4) = endpoint else { return None };
        let [_, _, high, low] = v4.ip().octets();
        self.taken.remove(&u16::from_be_bytes([high, low])).then_some(Event::CarryNoMore { endpoint })
    }
}

/// The address of this number, at a port.
pub(crate) fn socket(number: NonZeroU16, port: u16) -> SocketAddr {
    let [high, low] = number.get().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_given_to_one_leg_at_a_time_and_rests_before_it_is_given_again() {
        let mut carriage = Carriage::default();
        let take = |carriage: &mut Carriage| {
            carriage.take(RelayId([1; 32]), AllocationId(1)).map(|(endpoint, _)| endpoint.to_string())
        };
        assert_eq!(take(&mut carriage), None, "nobody carries");
        assert!(carriage.set_port(Some(5000)) && !carriage.set_port(Some(5000)));
        let first = take(&mut carriage).unwrap();
        assert_eq!(first, "127.77.0.1:5000");
        assert!(carriage.give_back(first.parse().unwrap()).is_some());
        assert!(carriage.give_back(first.parse().unwrap()).is_none(), "once");
        let all: Vec<_> = std::iter::from_fn(|| take(&mut carriage)).collect();
        assert_eq!((all.len(), &*all[0], all.last()), (65_534, "127.77.0.2:5000", Some(&first)));
    }
}

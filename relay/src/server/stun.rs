//! The STUN responder as a state machine: bytes, source and time in, a verdict and at most one reply out.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wire::stun::{self, Class, DecodeError};

use super::Budget;

/// Answers a second to requests that are smaller than their answer. All clients of that sort on one relay share it: enough
/// to debug with common tools, worthless to a reflection attack.
pub const PLAIN_ANSWERS_PER_SECOND: u32 = 50;

/// What became of a datagram. The label of a metric, so the list is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Answered; the request was at least as large as the answer.
    AnsweredPadded,
    /// Answered from the budget; the request was smaller than the answer.
    AnsweredPlain,
    /// Would have been answered, but the budget was empty.
    OverBudget,
    /// The source cannot be answered: multicast, broadcast, unspecified, or port zero.
    BadSource,
    /// Not framed as STUN.
    NotStun,
    /// Framed as STUN, but not a well-formed Binding message.
    Malformed,
    /// A Binding message that wants no answer: a response or an indication.
    NotRequest,
    /// A request with an attribute that must be understood and is not.
    UnknownAttribute,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 8] = [
        Self::AnsweredPadded,
        Self::AnsweredPlain,
        Self::OverBudget,
        Self::BadSource,
        Self::NotStun,
        Self::Malformed,
        Self::NotRequest,
        Self::UnknownAttribute,
    ];

    /// The value of the metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::AnsweredPadded => "answered_padded",
            Self::AnsweredPlain => "answered_plain",
            Self::OverBudget => "over_budget",
            Self::BadSource => "bad_source",
            Self::NotStun => "not_stun",
            Self::Malformed => "malformed",
            Self::NotRequest => "not_request",
            Self::UnknownAttribute => "unknown_attribute",
        }
    }
}

/// The responder. One per relay, whatever the number of its sockets, so that the budget covers them all.
#[derive(Debug)]
pub struct Server {
    plain: Budget,
}

impl Server {
    /// A responder with a full budget.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let period = Duration::from_secs(1) / PLAIN_ANSWERS_PER_SECOND;
        Self { plain: Budget::new(period, PLAIN_ANSWERS_PER_SECOND, now) }
    }

    /// Judges one datagram. There is a reply exactly if the verdict is one of the two answers; it goes to `source`.
    pub fn handle_datagram(&mut self, datagram: &[u8], source: SocketAddr, now: Instant) -> (Verdict, Option<Vec<u8>>) {
        let reply = match answer(datagram, source) {
            Ok(reply) => reply,
            Err(verdict) => return (verdict, None),
        };
        if reply.len() <= datagram.len() {
            (Verdict::AnsweredPadded, Some(reply))
        } else if self.plain.take(now) {
            (Verdict::AnsweredPlain, Some(reply))
        } else {
            (Verdict::OverBudget, None)
        }
    }
}

/// The answer that a datagram deserves, or why it deserves none.
fn answer(datagram: &[u8], source: SocketAddr) -> Result<Vec<u8>, Verdict> {
    if !is_answerable(source) {
        return Err(Verdict::BadSource);
    }
    let message = stun::decode(datagram).map_err(|error| match error {
        DecodeError::NotStun => Verdict::NotStun,
        _ => Verdict::Malformed,
    })?;
    if message.class != Class::Request {
        return Err(Verdict::NotRequest);
    }
    if message.unknown_required.is_some() {
        return Err(Verdict::UnknownAttribute);
    }
    Ok(stun::encode_success(message.tx, source))
}

/// Whether a reply to this source reaches one host and one socket at most.
fn is_answerable(source: SocketAddr) -> bool {
    let unicast = match source.ip().to_canonical() {
        IpAddr::V4(ip) => !(ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified()),
        IpAddr::V6(ip) => !(ip.is_multicast() || ip.is_unspecified()),
    };
    unicast && source.port() != 0
}

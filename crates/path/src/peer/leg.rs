//! A leg: this node's end of a pair's allocation on one relay.
//!
//! ```text
//! wanted     Allocate is said to the relay, and said again ever more rarely until the leg is ready
//! allocated  the relay named port and key
//! binding    BIND, again after 100, 200, 400 .. ms with the next counter, until BOUND; each CHALLENGE is answered
//! bound      packets from this node's port reach the relay's table; BIND again every minute while it matters
//! ready      the partner's leg is bound as well: packets pass
//! ```
//!
//! Binding and asking go on side by side, because either may have lost a message of the other. A leg whose BINDs nobody answers becomes
//! the relay's channel instead, until a BOUND arrives after all ([`attached`]).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::PublicKey;
use wire::control::{self, ToRelay};
use wire::relay::{self, AllocationId, Body, Frame, Header, LegKey, Side};

use super::KEEPALIVE;
use crate::candidate::canonical;
use crate::relay::RelayId;
use crate::shared::Shared;
use crate::snapshot::{LegPhase, LegReport};
use crate::timer::earliest;

mod attached;
mod heard;

use attached::Carried;
pub(super) use heard::Heard;

/// After the first BIND without an answer, doubled each time: below one round trip of a far relay a second one is harmless.
const BIND_GAP: Duration = Duration::from_millis(100);
/// Between two BINDs without an answer at most.
const MAX_BIND_GAP: Duration = Duration::from_secs(5);
/// Unanswered BINDs after which another address of the relay is tried.
const BINDS_PER_ADDRESS: u32 = 5;
/// Between two BINDs of a leg in use: a NAT that moved this node's port is noticed within a minute also without traffic.
const REFRESH: Duration = Duration::from_secs(60);
/// A BOUND that is older tells nothing to a peer that asks for the leg once more.
const STALE: Duration = Duration::from_secs(1);
/// Between the first two requests for an allocation, doubled each time. The channel is reliable; what may be lost is what the
/// relay said over one before it.
const ASK_GAP: Duration = Duration::from_secs(2);
/// Between two requests at most.
const MAX_ASK_GAP: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Leg {
    pub(super) relay: RelayId,
    allocation: Option<Allocation>,
    /// The port that the pair had, for a relay that forgot it.
    hint: Option<u16>,
    /// When to ask the relay next, and how often it was asked.
    ask_at: Option<Instant>,
    asks: u32,
    /// The highest counter used.
    counter: u64,
    bind: Option<Bind>,
    bound: Option<Instant>,
    ready: bool,
    /// Since when BINDs are sent that nobody answers.
    unanswered: Option<Instant>,
    carried: Option<Carried>,
    /// When it becomes the relay's channel.
    attach_at: Option<Instant>,
    /// The counter of the first BIND after the path left this leg for a warm one, until it is answered.
    left: Option<u64>,
    /// When that channel is held for dead if the relay has not given a sign of life by then.
    renew_at: Option<Instant>,
    /// Whether the relay has named it over the channel that there is now.
    named: bool,
    /// Whether the relay was told to make it the channel before it has named it.
    attaches: bool,
}

/// What a peer lets its legs do now.
#[derive(Debug, Clone, Copy)]
pub(super) struct May {
    /// Ask the relay, and become its channel: the peer is there, and a relay is needed.
    pub(super) ask: bool,
    /// Keep a bound leg.
    pub(super) refresh: bool,
    /// It is not in use: no packets of WireGuard's hold the NATs open for it.
    pub(super) spare: bool,
    /// Go by a relay of this very node: nothing else has led to the peer, or will.
    pub(super) use_own: bool,
}

#[derive(Debug)]
struct Allocation {
    id: AllocationId,
    side: Side,
    port: u16,
    key: LegKey,
    /// Which of the relay's addresses is used, and with the port what WireGuard is pointed at. There is none on a relay of this very node:
    /// its leg can only be the channel.
    nth: usize,
    remote: Option<SocketAddr>,
    /// Where this node's packets come from, as the relay said last.
    seen: Option<SocketAddr>,
    since: Instant,
}

/// What came of a relay message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// An ANSWER is on its way, so long after its BIND.
    Answered(Duration),
    /// Something is known that was not.
    Heard,
}

/// A BIND without its BOUND.
#[derive(Debug)]
struct Bind {
    /// The counter of the first.
    first: u64,
    sent: u32,
    /// When the last was.
    sent_at: Instant,
    due: Instant,
}

impl Leg {
    /// A leg that is to be asked for at a time, and in answer to the peer if that is never.
    pub(super) fn wanted(relay: RelayId, hint: Option<u16>, ask_at: Option<Instant>) -> Self {
        Self {
            relay,
            allocation: None,
            hint,
            ask_at,
            asks: 0,
            counter: 0,
            bind: None,
            bound: None,
            ready: false,
            unanswered: None,
            carried: None,
            attach_at: None,
            left: None,
            renew_at: None,
            named: false,
            attaches: false,
        }
    }

    pub(super) fn phase(&self) -> LegPhase {
        match &self.allocation {
            None => LegPhase::Wanted,
            Some(_) if self.ready => LegPhase::Ready,
            Some(_) if self.bound.is_some() || self.is_attached() => LegPhase::Bound,
            Some(_) => LegPhase::Binding,
        }
    }

    pub(super) fn report(&self) -> LegReport {
        LegReport { relay: self.relay, endpoint: self.remote(), carried: self.is_attached(), phase: self.phase() }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.phase() == LegPhase::Ready
    }

    /// Whether this node's packets reach the relay's table.
    pub(super) fn is_bound(&self) -> bool {
        self.phase() >= LegPhase::Bound
    }

    pub(super) fn is_allocated(&self) -> bool {
        self.allocation.is_some()
    }

    /// Where WireGuard is pointed to use it.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.attached_at().or_else(|| self.socket())
    }

    /// The relay's own socket for it.
    pub(super) fn socket(&self) -> Option<SocketAddr> {
        self.allocation.as_ref().and_then(|allocation| allocation.remote)
    }

    /// Whether its packets may come from there.
    pub(super) fn is_at(&self, remote: SocketAddr) -> bool {
        self.socket() == Some(remote) || self.is_carried_at(remote)
    }

    /// Asks the relay at that time, as if for the first time.
    pub(super) fn ask_at(&mut self, at: Instant) {
        self.ask_at = Some(self.ask_at.map_or(at, |before| before.min(at)));
        self.asks = 0;
    }

    /// Asks no sooner than that.
    pub(super) fn ask_after(&mut self, at: Instant) {
        self.ask_at = Some(at);
    }

    /// The relay named the leg's port and key, maybe once more. Returns whether it can be bound.
    pub(super) fn on_allocated(
        &mut self,
        peer: PublicKey,
        told: control::Leg,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        if let Some(known) =
            self.allocation.as_ref().filter(|known| known.id == told.allocation && known.port == told.port)
        {
            let can_be_bound = known.remote.is_none_or(|remote| remote.port() == told.port);
            self.counter = self.counter.max(told.counter);
            self.named = true;
            let is_stale = self.bound.is_some_and(|at| now.saturating_duration_since(at) >= STALE);
            if is_stale && self.bind.is_none() {
                // Whoever asks has doubts, and this side may hear the peer without being heard.
                self.bind_now(now);
            }
            return can_be_bound;
        }
        let attaches = self.attaches;
        self.forget(shared);
        let control::Leg { allocation: id, side, port, key, counter } = told;
        self.hint = Some(port);
        let remote = shared.relay_socket(&self.relay, port, 0);
        if remote.is_none() && !shared.can_carry(&self.relay) {
            return false;
        }
        self.allocation = Some(Allocation { id, side, port, key, nth: 0, remote, seen: None, since: now });
        self.counter = counter;
        self.named = true;
        if let Some(remote) = remote {
            shared.legs.insert((remote, id), peer);
        }
        if attaches {
            self.take_address(shared);
        }
        self.bind_now(now);
        true
    }

    /// The partner's leg is bound, and so is this one, whether or not BOUND arrived.
    pub(super) fn on_ready(&mut self, now: Instant) {
        if self.allocation.is_some() {
            self.ready = true;
            self.bound.get_or_insert(now);
            self.ask_at = None;
            self.asks = 0;
        }
    }

    /// Another node has this leg's source now.
    pub(super) fn on_unbound(&mut self, now: Instant) {
        self.bound = None;
        self.ready = false;
        self.ask_at(now + ASK_GAP);
        self.leave_channel(now);
        self.bind_now(now);
    }

    /// The allocation is no more, but its port may be had again.
    pub(super) fn forget(&mut self, shared: &mut Shared) {
        if let Some(gone) = self.allocation.take()
            && let Some(remote) = gone.remote
        {
            shared.legs.remove(&(remote, gone.id));
        }
        self.bind = None;
        self.bound = None;
        self.ready = false;
        self.unanswered = None;
        self.left = None;
        self.named = false;
        self.attaches = false;
        self.uncarry(shared);
    }

    /// Packets do not pass, whatever the relay said: everything is to be shown anew.
    pub(super) fn doubt(&mut self, ask_at: Instant, now: Instant) {
        self.ready = false;
        self.ask_after(ask_at);
        self.bind_now(now);
    }

    /// The path has left it for a warm leg. If the relay answers the BIND of this very moment that was in vain.
    pub(super) fn leave(&mut self) {
        self.left = self.bind.as_ref().map(|bind| bind.first);
    }

    /// Whether this answers the BIND of when it was left.
    pub(super) fn was_there(&mut self, counter: u64) -> bool {
        self.left.take_if(|left| *left == counter).is_some()
    }

    /// Binds again from where this node's packets come from now.
    pub(super) fn bind_now(&mut self, now: Instant) {
        if self.socket().is_some() {
            let first = self.counter.saturating_add(1);
            self.bind = Some(Bind { first, sent: 0, sent_at: now, due: now });
        }
    }

    /// Sends what is due, and may.
    pub(super) fn drive(&mut self, peer: PublicKey, may: May, shared: &mut Shared, now: Instant) {
        self.drive_attachment(peer, may, shared, now);
        if may.spare {
            self.lose_hope(now);
        }
        if may.ask && self.ask_at.is_some_and(|at| at <= now) {
            let gap = ASK_GAP.saturating_mul(1 << self.asks.min(5)).min(MAX_ASK_GAP);
            self.asks = self.asks.saturating_add(1);
            self.ask_at = Some(now + gap);
            shared.send_control(self.relay, ToRelay::Allocate { partner: peer, hint: self.hint });
            self.attach_with_it(peer, shared);
        }
        if may.refresh && self.bind.is_none() && self.refresh_due(may).is_some_and(|at| at <= now) {
            self.bind_now(now);
        }
        if self.bind.as_ref().is_some_and(|bind| bind.due <= now) {
            self.send_bind(peer, shared, now);
        }
        self.attach_at = self.attach_due(may, shared);
    }

    fn refresh_due(&self, may: May) -> Option<Instant> {
        let gap = if may.spare { KEEPALIVE } else { REFRESH };
        self.bound.filter(|_| self.socket().is_some()).map(|at| at + gap)
    }

    pub(super) fn poll_timeout(&self, may: May) -> Option<Instant> {
        let bind = self.bind.as_ref().map(|bind| bind.due);
        let refresh = self.refresh_due(may).filter(|_| may.refresh && self.bind.is_none());
        let attachment = self.attachment_timeout(may.ask);
        earliest([self.ask_at.filter(|_| may.ask), bind, refresh, attachment])
    }

    fn send_bind(&mut self, peer: PublicKey, shared: &mut Shared, now: Instant) {
        let (Some(bind), Some(allocation)) = (&mut self.bind, &mut self.allocation) else {
            return;
        };
        let Some(before) = allocation.remote else {
            return;
        };
        self.counter = self.counter.saturating_add(1);
        let retry_gap = self.carried.as_ref().and_then(|carried| carried.retry_gap(self.counter));
        let attached = retry_gap.is_some();
        bind.due = now + retry_gap.unwrap_or_else(|| bind.gap());
        bind.sent = bind.sent.saturating_add(1);
        bind.sent_at = now;
        self.unanswered.get_or_insert(now);
        let has_had_its_share = bind.sent > 1 && bind.sent % BINDS_PER_ADDRESS == 1 && self.bound.is_none();
        // Whatever it was that had this one sent came by the address that is in use.
        let is_another_try = attached && bind.sent > 1;
        if (is_another_try || has_had_its_share)
            && let Some(remote) = shared.relay_socket(&self.relay, allocation.port, allocation.nth + 1)
        {
            shared.legs.remove(&(before, allocation.id));
            allocation.nth += 1;
            allocation.remote = Some(remote);
            shared.legs.insert((remote, allocation.id), peer);
        }
        shared.stats.binds_sent += 1;
        allocation.send(self.counter, &Body::Bind, shared, now);
    }

    /// Takes a relay message. Returns what came of it, if it was authentic and of use.
    pub(super) fn on_message(
        &mut self,
        from: SocketAddr,
        frame: &Frame<'_>,
        shared: &mut Shared,
        now: Instant,
    ) -> Option<Taken> {
        let Some(allocation) = &self.allocation else {
            return None;
        };
        let header = frame.header();
        let is_ours =
            allocation.remote == Some(from) && allocation.id == header.allocation && allocation.side == header.side;
        if !is_ours || frame.is_from_node() {
            return None;
        }
        // What answers a BIND that is over, or one that was never sent, is old or made up.
        let is_open = |bind: &Bind| (bind.first..=self.counter).contains(&header.counter);
        if !self.bind.as_ref().is_some_and(is_open) {
            return None;
        }
        match frame.open(&allocation.key) {
            Ok(Body::Challenge(_)) if self.is_overtaken(header.counter) => {
                self.unanswered = None;
                self.bind_now(now);
                Some(Taken::Heard)
            }
            Ok(Body::Challenge(token)) => {
                self.unanswered = None;
                allocation.send(header.counter, &Body::Answer(token), shared, now);
                let sent = self.bind.as_ref().map_or(now, |bind| bind.sent_at);
                Some(Taken::Answered(now.saturating_duration_since(sent)))
            }
            Ok(Body::Bound { observed }) => {
                let (seen, counter) = (canonical(observed), header.counter);
                let is_news = self.allocation.as_mut().is_some_and(|known| known.seen.replace(seen) != Some(seen));
                if is_news {
                    shared.on_leg_seen(seen);
                }
                self.unanswered = None;
                self.bind = None;
                self.bound = Some(now);
                if !self.ready {
                    // That it is ready may be lost as well, and was perhaps never asked for here.
                    self.ask_at.get_or_insert(now + ASK_GAP);
                }
                self.on_bound_while_attached(counter, shared, now);
                Some(Taken::Heard)
            }
            Ok(_) | Err(_) => None,
        }
    }
}

impl Bind {
    fn gap(&self) -> Duration {
        BIND_GAP.saturating_mul(1 << self.sent.min(6)).min(MAX_BIND_GAP)
    }
}

impl Allocation {
    fn send(&self, counter: u64, body: &Body, shared: &mut Shared, now: Instant) {
        let header = Header { allocation: self.id, side: self.side, counter };
        // The relay is authenticated and named the port: it has the allowance of a peer that answered.
        if let Some(remote) = self.remote.filter(|remote| shared.permit(*remote, true, now)) {
            shared.send(remote, None, None, relay::seal(&self.key, &header, body).to_vec());
        }
    }
}

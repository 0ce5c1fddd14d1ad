//! The path engine: finds, proves, chooses and watches the way between this node and each of its peers.
//!
//! # The model
//!
//! A node has one UDP port, WireGuard's own, and everything here leaves from it: the NAT mapping that is tested is the
//! mapping that is used. A *candidate* is an address at which a node may be reached. A *pair* is this node's port and one
//! candidate of a peer. A pair is *proven* when a PONG answered our own PING on it, *nominated* when both sides agreed to
//! try it, and a *path* only when an echo **through WireGuard** has come back over it. Nothing less is ever shown as
//! direct, and whatever is not direct has a [`Reason`].
//!
//! The engine is sans-IO. One [`Engine`] serves all peers of a node and speaks six verbs:
//! [`handle_input`](Engine::handle_input) takes a fact, [`handle_timeout`](Engine::handle_timeout) lets time pass,
//! [`poll_event`](Engine::poll_event), [`poll_transmit`](Engine::poll_transmit), [`poll_control`](Engine::poll_control) and
//! [`poll_timeout`](Engine::poll_timeout) say what to do. It has no clock, no socket and no random source; the same inputs
//! give the same outputs to the byte, which is how the simulator finds the one run in a thousand that goes wrong. After
//! every input the shell drains events, transmits and controls, in that order: a handshake must be on its way before the
//! nomination that lets the peer send, and a packet that opens a NAT before the word that it is open.
//!
//! # The life of a pair of nodes
//!
//! 1. **Gather.** Host addresses come from the shell; STUN servers tell what the port looks like from outside and, by
//!    comparing what they see, what kind of NAT is in the way. The result is published once and again only when its
//!    meaning changes, because it travels through the cluster's API. With a relay's help the node also learns whether its
//!    NAT is *poisonable*: whether a stranger's packet moves this node's port towards him.
//! 2. **Probe.** When both sides know each other's candidates, both send PINGs on all pairs at the rungs of a ladder,
//!    dense at first. Each opens its own NAT for the other. A PING only makes its source a candidate and is answered
//!    and probed back; a PONG to our own transaction proves the pair. With a relay's control channel, addresses behind a
//!    NAT wait until both sides have agreed in which order they open theirs (CALL, READY, GO): the poisonable side first,
//!    with short-lived packets if both are. Without one, or when no signal gets through, everything is probed at once.
//! 3. **Nominate.** The side with the smaller public key chooses: better [`Tier`] first, then the round-trip time, with
//!    hysteresis. Without a path it takes the first proven pair at once, because a better one can replace it without
//!    loss. It points WireGuard there, starts the handshake (only ever this side does: two initiations at once stall
//!    WireGuard for seconds) and sends NOMINATE with an epoch that only grows. The other side follows if it has proof of
//!    its own; it asks for a nomination, by the same message, when it has proof and no path.
//! 4. **Confirm.** Echoes run through the tunnel. The first answer makes the path, 3 round trips after both sides knew
//!    each other. None within 2 s means that the network lets probes pass and WireGuard not: back to the path before,
//!    and this pair comes last for ten seconds, and twice as long each time.
//! 5. **Watch.** WireGuard's counters tell of traffic without cost. Sending into silence, a minute without a sign of life,
//!    or a peer that suddenly probes elsewhere start a check: PING and echo together. Two PINGs and their echoes lost make
//!    the path dead. The ladder starts over, the dead path itself is probed every second, the STUN servers are asked
//!    whether this node's mapping moved, and WireGuard keeps its endpoint until something better is proven.
//! 6. **Rest.** A quiet pair costs WireGuard's keepalive and little else, at most twelve packets a minute in all. Pairs
//!    without success are tried again after 35 s, 90 s, 5 min, then every 15 min, and at once when anything changes.
//!
//! An agent that starts anew beside a device that went on (the kernel's) enters at step 4: the session that it finds is on
//! trial where it is, at the endpoint that WireGuard has. Nothing is moved and no handshake started; an echo, or data that
//! arrives, makes it the path. If neither comes it is treated as a path that died, and keeps its endpoint.
//!
//! # By a relay
//!
//! Beside all that, a wanted pair that is not direct has a *leg* on a relay: the one that both prefer of those where they have
//! met. The side that nominates asks for it; each side binds its own, from WireGuard's port, before anything is pointed at it.
//! With the ANSWER that binds its own leg the nominator points WireGuard at the relay and starts the handshake, whose first message the relay keeps
//! until the other leg is bound; beside a device that can't repeat a handshake at will it does so when both are known to be bound. The other side's
//! device follows that handshake. An echo makes it a path, shown as `Relayed` with the reason why it is not direct. Probing does not know of it, but for
//! one thing: there is a path to lose now, so a direct pair is tried only when the peer has agreed, without a new handshake, and
//! the relay is what a failed trial goes back to. A path that dies finds its way to the relay by the same door.
//!
//! Half a minute after it became direct the nominator releases the leg, unless the device still uses it. WireGuard sends where the
//! last authentic packet came from, so what circulates by the relay may hold both devices there; they are pointed at the direct pair
//! at a packet's distance until it is over. Whoever is led there later is no judge of the direct pair: if that answers, the nominator
//! nominates it once more, and the other side asks for it or goes along. A relay that falls silent, or loses its channel and does not
//! answer an echo, is left for the next one; one that starts anew is asked for the same port, and the session goes on. Without any
//! relay everything is as it was: probed at once.
//!
//! While packets of users flow there is a *warm* leg as well, on another relay than the one in use, or on any if the pair is direct.
//! A path that falls silent is then left soon, by whichever side notices: the session is there, and the other device follows.
//!
//! # By a relay's channel
//!
//! From some networks no UDP leaves, and the channel to a relay is TLS over TCP. A leg whose BINDs nobody answers is *attached*: the
//! channel itself is the leg, WireGuard is pointed at a loopback address that stands for it, and the shell carries what is sent there
//! ([`Event::Carry`]). Everything else is as with other legs: an echo proves it, a direct pair replaces it. BIND is tried again every half a
//! minute, and BOUND takes the leg back to UDP without a handshake. The leg goes with the channel.
//!
//! # Pairs that sleep
//!
//! Where paths are made on demand ([`Input::OnDemand`]) a pair that no packets of users go over is let go by both sides: no path, no leg, no timer.
//! WireGuard is pointed at a loopback address that stands for the peer, its bell. A packet that it sends there wakes the pair, and so does whatever the
//! peer says; both start at step 2 then. Whoever can't be called by a relay is never let go.
//!
//! # What it refuses
//!
//! * To send to an address that the filter names: it is asked when addresses are published, when they arrive, and before
//!   every packet.
//! * To flood: each unproven address has a small allowance whoever names it, each source a rate of answers, the node a
//!   total. Answers are never larger than what they answer.
//! * To believe: unknown key ids end before any cryptography; requests seen before, answers to nothing, stale epochs and
//!   nominations from the wrong side are counted and dropped. WireGuard's own roaming is followed only after proof.
//! * To obey a relay: its messages are authenticated by the leg's key and answer what was asked, its addresses pass the filter, and a
//!   leg is bound only for a peer that this node wants.
//! * To grow: relays, legs, candidates, learned addresses, transactions, queues and tables have caps beside their definitions.
//! * To remove what may still work.

mod budget;
mod candidate;
mod carriage;
mod control;
mod engine;
mod event;
mod filter;
mod gather;
mod input;
mod kept;
mod nat;
mod nonces;
mod pair;
mod peer;
mod relay;
mod seldom;
mod shared;
mod snapshot;
mod stats;
mod stray;
mod timer;

pub use candidate::{Candidate, CandidateKind, Tier};
pub use control::Control;
pub use engine::Engine;
pub use event::{Event, PathState, Reason, Selected, Transmit};
pub use filter::{Forbidden, Refusal};
pub use input::{Config, Input, OnDemand, PeerConfig, PeerCounters, Session};
pub use kept::KeptState;
pub use nat::{NatClass, NatReport};
pub use relay::{MAX_DOMAIN, RelayId, RelayNews};
pub use snapshot::{LegPhase, LegReport, PairOutcome, PairReport, PeerNat, PeerReport, Snapshot};
pub use stats::Stats;

//! Plain counters. The shell exports them.

use std::collections::BTreeMap;

use crate::filter::Refusal;

/// What the engine did since it was made. Every number only grows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// How often a peer was looked at: because something happened to it, or because it was due.
    pub looks: u64,
    /// How often a peer that slept was woken.
    pub woken: u64,
    /// PINGs sent.
    pub pings_sent: u64,
    /// Authentic PINGs received and not seen before.
    pub pings_received: u64,
    /// PONGs sent.
    pub pongs_sent: u64,
    /// PONGs to our own PINGs, from where those were sent.
    pub pongs_received: u64,
    /// Nominations sent, repeats included.
    pub nominations_sent: u64,
    /// Nominations taken up.
    pub nominations_accepted: u64,
    /// STUN requests sent.
    pub stun_requests: u64,
    /// STUN answers that fitted a request.
    pub stun_responses: u64,
    /// Signals sent, repeats included.
    pub signals_sent: u64,
    /// Authentic signals received and not seen before.
    pub signals_received: u64,
    /// Signals that were forged, seen before, or from nobody known.
    pub dropped_signals: u64,
    /// BINDs sent, repeats included.
    pub binds_sent: u64,
    /// Legs that became a relay's channel, repeats included.
    pub attached: u64,
    /// Legs that UDP took back from a relay's channel.
    pub taken_back: u64,
    /// Relay messages that belong to no leg, answer nothing, or do not authenticate.
    pub dropped_relay: u64,
    /// Relayed paths confirmed through WireGuard.
    pub relayed: u64,
    /// Confirmed relayed paths that died.
    pub relay_died: u64,
    /// Datagrams that are neither probes nor STUN answers.
    pub dropped_junk: u64,
    /// Probes under a key id of no peer.
    pub dropped_unknown_key: u64,
    /// Probes that did not authenticate, or that this version does not understand.
    pub dropped_forged: u64,
    /// Requests seen before.
    pub dropped_replayed: u64,
    /// Answers to nothing that was asked, or from elsewhere.
    pub dropped_unsolicited: u64,
    /// Nominations that were stale, or from the side that does not nominate.
    pub dropped_nominations: u64,
    /// Answers withheld because their source asked too often.
    pub dropped_reply_rate: u64,
    /// Packets withheld because the address had its share.
    pub dropped_budget: u64,
    /// Packets withheld because the shell does not collect them.
    pub dropped_queue: u64,
    /// Peers refused because their key yields no pair key, or because there are too many.
    pub refused_peers: u64,
    /// Relays refused because there are too many.
    pub refused_relays: u64,
    /// Candidates and packet addresses refused, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    /// Paths confirmed through WireGuard.
    pub confirmed: u64,
    /// Paths that carried probes and not WireGuard.
    pub data_blocked: u64,
    /// Confirmed paths that died.
    pub died: u64,
    /// Endpoints put back after WireGuard roamed to a forbidden address.
    pub put_back: u64,
}

impl Stats {
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        *self.refused.entry(refusal).or_default() += 1;
    }
}

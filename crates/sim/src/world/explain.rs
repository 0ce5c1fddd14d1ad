//! Reading probes for the record. Only the world knows every node's key, so only it can.

use std::collections::BTreeMap;

use wire::pair::{KeyId, PairKeys};
use wire::probe::signal::{self, Step};
use wire::probe::{self, Probe};

use super::{MESH, World};
use crate::packet::Payload;

/// The keys of all pairs by the id that their probes carry.
#[derive(Debug, Default)]
pub(super) struct Interpreter {
    keys: BTreeMap<KeyId, PairKeys>,
}

impl World {
    /// Lets the record name what probes say. It costs time, so it is for looking at one run.
    pub fn explain_probes(&mut self) {
        let mut interpreter = Interpreter::default();
        for receiver in &self.nodes {
            for sender in self.nodes.iter().filter(|sender| sender.key != receiver.key) {
                let keys = PairKeys::derive(&receiver.private_key(), &sender.key, MESH, None)
                    .expect("the keys of simulated nodes are valid");
                interpreter.keys.insert(keys.receive_id(), keys);
            }
        }
        self.interpreter = Some(interpreter);
    }

    /// What a signal is, in a few words.
    pub(super) fn describe_signal(&self, bytes: &[u8]) -> String {
        let signal = self.interpreter.as_ref().and_then(|interpreter| {
            let keys = interpreter.keys.get(&signal::key_id(bytes)?)?;
            Some(signal::open(keys, bytes).ok()?.1)
        });
        let Some(signal) = signal else {
            return "sealed".to_owned();
        };
        let step = match signal.step {
            Step::Call => "CALL",
            Step::Ready { .. } => "READY",
            Step::Go { .. } => "GO",
        };
        let poisonable = if signal.poisonable { " poisonable" } else { "" };
        format!("{step}{poisonable} {:?}", signal.candidates)
    }

    /// What a packet is, in a few words.
    pub(super) fn describe(&self, payload: &Payload) -> String {
        let bytes = match payload {
            Payload::WireGuard(message) => return message.name().to_owned(),
            Payload::Plain(bytes) => bytes,
        };
        let probe = self.interpreter.as_ref().and_then(|interpreter| {
            let keys = interpreter.keys.get(&probe::key_id(bytes)?)?;
            Some(probe::open(keys, bytes).ok()?.1)
        });
        match probe {
            Some(Probe::Ping) => "PING".to_owned(),
            Some(Probe::Pong { .. }) => "PONG".to_owned(),
            Some(Probe::Nominate { epoch }) => format!("NOMINATE {epoch}"),
            Some(Probe::NominateAck { epoch }) => format!("NOMINATE-ACK {epoch}"),
            None => "plain".to_owned(),
        }
    }
}

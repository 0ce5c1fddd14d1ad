//! Deficit round robin over ports: which port is read next, so that a flooded one does not starve the others.
//!
//! The queue of a port is its socket's own buffer, which the kernel caps. What a read will yield is not known before it, so a port may
//! overdraw by one read and pays it back in later rounds.

use std::collections::VecDeque;

/// Bytes a port earns each round: a batch of merged datagrams.
pub const QUANTUM: i64 = 64 * 1024;

/// What a datagram costs beside its bytes: about the ratio of the kernel's work for a packet to that for a byte.
pub const DATAGRAM_COST: usize = 256;

/// The order of service.
#[derive(Debug)]
pub struct Schedule {
    /// By port.
    deficit: Vec<i64>,
    waiting: Vec<bool>,
    /// Ports that have something to read, the next one first.
    turns: VecDeque<u16>,
}

impl Schedule {
    /// For ports 0 to `ports` - 1, none of them ready.
    #[must_use]
    pub fn new(ports: u16) -> Self {
        let ports = usize::from(ports);
        Self { deficit: vec![0; ports], waiting: vec![false; ports], turns: VecDeque::with_capacity(ports) }
    }

    /// A port has something to read. Says nothing new of one that waits already.
    pub fn ready(&mut self, port: u16) {
        if let Some(waiting @ false) = self.waiting.get_mut(usize::from(port)) {
            *waiting = true;
            self.turns.push_back(port);
        }
    }

    /// The port to read from now. Call [`Self::served`] with what came of it.
    #[must_use]
    pub fn turn(&mut self) -> Option<u16> {
        loop {
            let port = *self.turns.front()?;
            let deficit = &mut self.deficit[usize::from(port)];
            if *deficit > 0 {
                return Some(port);
            }
            *deficit += QUANTUM;
            self.turns.rotate_left(1);
        }
    }

    /// What reading from the port yielded, and whether nothing is left. A port has one quantum to its credit at most, so that being
    /// idle saves nothing up; its debt stays.
    pub fn served(&mut self, port: u16, datagrams: usize, bytes: usize, is_empty: bool) {
        let Some(deficit) = self.deficit.get_mut(usize::from(port)) else { return };
        let cost = datagrams.saturating_mul(DATAGRAM_COST).saturating_add(bytes);
        *deficit = deficit.saturating_sub(i64::try_from(cost).unwrap_or(i64::MAX));
        if is_empty {
            self.waiting[usize::from(port)] = false;
            self.turns.retain(|&turn| turn != port);
        }
    }
}

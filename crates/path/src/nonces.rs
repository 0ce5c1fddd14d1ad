//! Transaction ids and echo tokens from a seed.

use std::fmt;

use blake2::{Blake2s256, Digest};
use wire::stun::TransactionId;

/// Separates this use of the hash from every other.
const LABEL: &[u8] = b"warren path nonces v1";

/// A BLAKE2s counter generator. The same seed gives the same run; a secret random seed gives ids that nobody can guess
/// and that do not repeat after a restart.
pub(crate) struct Nonces {
    seed: [u8; 32],
    counter: u64,
}

impl Nonces {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    pub(crate) fn transaction_id(&mut self) -> TransactionId {
        let block = self.next_block();
        let mut id = [0; 12];
        id.copy_from_slice(&block[..12]);
        TransactionId(id)
    }

    pub(crate) fn token(&mut self) -> u64 {
        let block = self.next_block();
        let mut token = [0; 8];
        token.copy_from_slice(&block[..8]);
        u64::from_be_bytes(token)
    }

    fn next_block(&mut self) -> [u8; 32] {
        self.counter += 1;
        let mut hash = Blake2s256::new();
        hash.update(LABEL);
        hash.update(self.seed);
        hash.update(self.counter.to_be_bytes());
        hash.finalize().into()
    }
}

impl fmt::Debug for Nonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonces(..)")
    }
}

//! Secrets drawn from the seed, and the tokens of challenges.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use blake2::Blake2sMac;
use blake2::digest::consts::{U16, U32};
use blake2::digest::{FixedOutput, Mac};
use wire::relay::{Header, LegKey, Token};
use zeroize::Zeroizing;

use super::limits::TOKEN_PERIOD;

/// Separate the uses of the seed.
const KEY_PERSONA: &[u8; 8] = b"wrn legK";
const ID_PERSONA: &[u8; 8] = b"wrn alcI";
const TOKEN_PERSONA: &[u8; 8] = b"wrn chlT";

/// A deterministic source of secrets: BLAKE2s keyed with a seed that nobody else knows.
pub(super) struct Secrets {
    seed: Zeroizing<[u8; 32]>,
    start: Instant,
    drawn: u64,
}

impl Secrets {
    pub(super) fn new(seed: [u8; 32], start: Instant) -> Self {
        Self { seed: Zeroizing::new(seed), start, drawn: 0 }
    }

    pub(super) fn leg_key(&mut self) -> LegKey {
        LegKey::from_bytes(self.draw(KEY_PERSONA))
    }

    pub(super) fn random(&mut self) -> u64 {
        let drawn = self.draw(ID_PERSONA);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&drawn[..8]);
        u64::from_be_bytes(bytes)
    }

    /// The token for a BIND with this header from this source.
    pub(super) fn token(&self, source: SocketAddr, header: &Header, now: Instant) -> Token {
        Token(self.token_mac(self.period(now), source, header).finalize_fixed().into())
    }

    /// Whether this is the token that such a BIND got, in this period or the one before. In constant time.
    pub(super) fn is_token(&self, token: &Token, source: SocketAddr, header: &Header, now: Instant) -> bool {
        let period = self.period(now);
        let periods = [Some(period), period.checked_sub(1)];
        periods.into_iter().flatten().any(|period| {
            let expected = self.token_mac(period, source, header);
            expected.verify_slice(&token.0).is_ok()
        })
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / TOKEN_PERIOD.as_secs()
    }

    fn token_mac(&self, period: u64, source: SocketAddr, header: &Header) -> Blake2sMac<U16> {
        let ip = match source.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        self.mac::<U16>(TOKEN_PERSONA)
            .chain_update(period.to_be_bytes())
            .chain_update(ip.octets())
            .chain_update(source.port().to_be_bytes())
            .chain_update(header.allocation.0.to_be_bytes())
            .chain_update([header.side as u8])
            .chain_update(header.counter.to_be_bytes())
    }

    fn draw(&mut self, persona: &[u8; 8]) -> [u8; 32] {
        self.drawn += 1;
        self.mac::<U32>(persona).chain_update(self.drawn.to_be_bytes()).finalize_fixed().into()
    }

    fn mac<Size>(&self, persona: &[u8; 8]) -> Blake2sMac<Size>
    where
        Size: blake2::digest::array::ArraySize
            + blake2::digest::typenum::IsLessOrEqual<U32, Output = blake2::digest::typenum::True>,
    {
        Blake2sMac::new_with_salt_and_personal(Some(self.seed.as_slice()), &[], persona)
            .expect("the seed has 32 bytes and the personalisation 8, which is what BLAKE2s takes")
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

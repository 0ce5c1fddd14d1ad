//! Checks on a delta that every device makes alike.

use std::time::Duration;

use wire::key::PublicKey;

use crate::{MAX_ALLOWED_IPS, PeerUpdate, RefusalReason};

/// Why this update can't be applied, whatever the state of the device.
pub(crate) fn refuse(update: &PeerUpdate, own: &PublicKey) -> Option<RefusalReason> {
    let allowed_ips = update.allowed_ips.as_ref().map_or(0, Vec::len);
    if update.public_key.validate().is_err() {
        Some(RefusalReason::InvalidKey)
    } else if update.public_key == *own {
        Some(RefusalReason::OwnKey)
    } else if allowed_ips > MAX_ALLOWED_IPS {
        Some(RefusalReason::TooManyAllowedIps)
    } else {
        None
    }
}

/// Keepalive as WireGuard has it: whole seconds from 1 to 65,535, zero means off.
pub(crate) fn keepalive_secs(keepalive: Option<Duration>) -> Option<u16> {
    let keepalive = keepalive.filter(|k| !k.is_zero())?;
    let secs = keepalive.as_secs() + u64::from(keepalive.subsec_nanos() > 0);
    Some(u16::try_from(secs).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepalives_round_up_and_zero_is_off() {
        let of = |d| keepalive_secs(Some(d));
        assert_eq!(keepalive_secs(None), None);
        assert_eq!(of(Duration::ZERO), None);
        assert_eq!(of(Duration::from_millis(1)), Some(1));
        assert_eq!(of(Duration::from_secs(25)), Some(25));
        assert_eq!(of(Duration::from_millis(25_001)), Some(26));
        assert_eq!(of(Duration::from_secs(1 << 20)), Some(u16::MAX));
    }
}

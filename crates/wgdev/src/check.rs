//! Checks that every device makes alike.

use std::time::Duration;

use wire::key::PublicKey;

use crate::{DeviceError, MAX_ALLOWED_IPS, PeerUpdate, RefusalReason};

/// IPv6 needs this much of every link (RFC 8200, section 5).
const MIN_MTU: u16 = 1280;

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

/// Whether an interface of this name and MTU can be.
pub(crate) fn check_interface(name: &str, mtu: u16) -> Result<(), DeviceError> {
    check_name(name)?;
    if mtu < MIN_MTU { Err(DeviceError::BadMtu(mtu)) } else { Ok(()) }
}

fn check_name(name: &str) -> Result<(), DeviceError> {
    let shape = (1..libc::IFNAMSIZ).contains(&name.len()) && name != "." && name != "..";
    let letters = name
        .bytes()
        // A '%' would make the kernel number the interface.
        .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'));
    if shape && letters { Ok(()) } else { Err(DeviceError::BadName(name.into())) }
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

    #[test]
    fn names_that_the_kernel_would_refuse_or_change_are_refused() {
        for name in ["", ".", "..", "a/b", "wg%d", "a b", "a:1", "0123456789abcdef", "ü"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["warren0", "0123456789abcde"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}

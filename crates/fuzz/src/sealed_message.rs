use std::net::{Ipv6Addr, SocketAddr};
use std::sync::LazyLock;

use wire::PrivateKey;
use wire::pair::PairKeys;
use wire::probe::signal::{self, Signal, Step};
use wire::probe::{self, Probe};
use wire::stun::TransactionId;

/// The two ends of a pair.
static ENDS: LazyLock<[PairKeys; 2]> = LazyLock::new(|| {
    let keys = [PrivateKey::from_bytes([1; 32]), PrivateKey::from_bytes([2; 32])];
    let end = |own: usize| PairKeys::derive(&keys[own], &keys[1 - own].public_key(), "mesh", None).expect("two keys");
    [end(0), end(1)]
});

/// Any bytes as a probe and as a signal of a pair; and as the fields of both, which are sealed, opened, and opened again with one
/// byte changed.
///
/// # Panics
/// When a message does not come back as it went, or one opens that the peer did not seal.
pub fn sealed_message(bytes: &[u8]) {
    let [near, far] = &*ENDS;
    assert!(probe::open(far, bytes).is_err(), "nobody forges a probe");
    assert!(signal::open(far, bytes).is_err(), "nobody forges a signal");
    let Some((&[kind, at, flip, port], rest)) = bytes.split_first_chunk::<4>() else { return };
    let Some((&tx, rest)) = rest.split_first_chunk::<12>() else { return };
    let Some((&inside, rest)) = rest.split_first_chunk::<16>() else { return };
    let tx = TransactionId(tx);
    let address = SocketAddr::new(Ipv6Addr::from(inside).to_canonical(), u16::from(port));
    let epoch = u64::from_be_bytes(*inside.first_chunk().expect("16 bytes hold 8"));

    let probe = match kind % 4 {
        0 => Probe::Ping,
        1 => Probe::Pong { observed: address },
        2 => Probe::Nominate { epoch },
        _ => Probe::NominateAck { epoch },
    };
    let mut sealed = probe::seal(near, tx, &probe);
    assert_eq!(probe::open(far, &sealed), Ok((tx, probe)));
    change(&mut sealed, at, flip);
    assert!(flip == 0 || probe::open(far, &sealed).is_err());

    let step = match kind / 4 % 3 {
        0 => Step::Call,
        1 => Step::Ready { answers: tx },
        _ => Step::Go { answers: tx },
    };
    let candidates = rest.iter().take(signal::MAX_CANDIDATES).map(|kind| (*kind, address)).collect();
    let signal = Signal { step, poisonable: kind & 0x80 != 0, class: at, candidates };
    let mut sealed = signal::seal(near, tx, &signal);
    assert_eq!(signal::open(far, &sealed), Ok((tx, signal)));
    change(&mut sealed, at, flip);
    assert!(flip == 0 || signal::open(far, &sealed).is_err());
}

fn change(message: &mut [u8], at: u8, flip: u8) {
    let place = usize::from(at) % message.len();
    message[place] ^= flip;
}

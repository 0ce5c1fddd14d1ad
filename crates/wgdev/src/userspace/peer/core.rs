//! The Noise core of a peer. It takes 18 KiB even without a session, so it is made when it is first used: a large mesh has
//! many peers that never talk.

use std::sync::Arc;

use gotatun::{
    noise::{Tunn, index_table::IndexTable, rate_limiter::RateLimiter},
    tun::MtuWatcher,
    x25519,
};
use wire::key::PublicKey;

/// What the cores of a device have in common.
pub(in crate::userspace) struct Common {
    pub(in crate::userspace) private: x25519::StaticSecret,
    pub(in crate::userspace) limiter: Arc<RateLimiter>,
    /// Which receiver indexes sessions hold.
    pub(in crate::userspace) in_use: IndexTable,
    pub(in crate::userspace) mtu: MtuWatcher,
}

/// The core of one peer. Once made it stays for as long as the peer does: it remembers the peer's last initiation, without
/// which an old one could be played again.
pub(super) struct Core {
    common: Arc<Common>,
    peer: PublicKey,
    made: Option<Box<Made>>,
}

struct Made {
    core: Tunn,
    mtu: MtuWatcher,
}

impl Core {
    pub(super) fn new(common: Arc<Common>, peer: PublicKey) -> Self {
        Self { common, peer, made: None }
    }

    /// The core, which is made if there is none: that multiplies points.
    pub(super) fn get(&mut self) -> &mut Tunn {
        self.get_with_mtu().0
    }

    /// The same with the MTU that packets are padded to.
    pub(super) fn get_with_mtu(&mut self) -> (&mut Tunn, &mut MtuWatcher) {
        let Self { common, peer, made } = self;
        let made = made.get_or_insert_with(|| {
            let public = x25519::PublicKey::from(*peer.as_bytes());
            let (private, in_use, limiter) = (common.private.clone(), common.in_use.clone(), common.limiter.clone());
            let core = Tunn::new(private, public, None, None, in_use, limiter);
            Box::new(Made { core, mtu: common.mtu.clone() })
        });
        (&mut made.core, &mut made.mtu)
    }

    /// The core, if there is one.
    pub(super) fn if_made(&mut self) -> Option<&mut Tunn> {
        self.made.as_mut().map(|made| &mut made.core)
    }

    /// The persistent keepalive that the core knows of.
    pub(super) fn keepalive(&self) -> Option<u16> {
        self.made.as_ref().and_then(|made| made.core.persistent_keepalive())
    }
}

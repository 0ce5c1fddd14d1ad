//! Two nodes, each in a network namespace of its own, joined by a cable.
#![allow(dead_code, unused_imports, unused_macros, clippy::unwrap_used)]

mod namespace;
mod node;
pub mod other;
mod traffic;

pub use namespace::{Cable, Namespace};
pub use node::{
    AT_A, AT_B, DEVICE, MARK, MTU, Node, Open, PORT, Pair, address, config, open, open_error, peer, private_key,
};
pub use traffic::{Echo, receive, recv, relay_like, send_merged, stun_like, udp, wake};

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use wgdev::DeviceError;

/// How long a test waits for what must happen; far above what it takes, so it only bounds a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Makes two tests of each check, which is a function of the device's type: one with the userspace device, and one with the
/// kernel's where there is one.
macro_rules! on_both_devices {
    ($($check:ident),+ $(,)?) => {
        mod userspace {
            $(#[test]
            fn $check() {
                if crate::lab::available() {
                    super::$check::<wgdev::Userspace>();
                }
            })+
        }
        mod kernel {
            $(#[test]
            fn $check() {
                if crate::lab::kernel_available() {
                    super::$check::<wgdev::Kernel>();
                }
            })+
        }
    };
}

/// Whether namespaces can be made here. Says why not; with `REQUIRE_LAB=1` that is a failure.
pub fn available() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let tun = std::path::Path::new("/dev/net/tun").exists();
    let missing = match (root, tun) {
        (true, true) => return true,
        (false, _) => "not root",
        (_, false) => "no /dev/net/tun",
    };
    let required = std::env::var("REQUIRE_LAB").is_ok_and(|v| v == "1");
    assert!(!required, "REQUIRE_LAB=1, and the lab can't run: {missing}");
    eprintln!("skipped: {missing}");
    false
}

/// Whether the kernel's device can be tested here. Says why not; in the kernel lane that is a failure.
pub fn kernel_available() -> bool {
    let lane = std::env::var("WARREN_KERNEL_LANE").is_ok_and(|v| v == "1");
    match available().then(wgdev::kernel::available) {
        Some(Ok(())) => true,
        Some(Err(DeviceError::NoKernelWireGuard { found })) if !lane => {
            eprintln!("skipped: a kernel with WireGuard is needed, this is {found}; e2e/kernel/wgdev.sh has one");
            false
        }
        Some(Err(error)) => panic!("WARREN_KERNEL_LANE=1, or worse: {error}"),
        None => {
            assert!(!lane, "WARREN_KERNEL_LANE=1, and the lab can't run");
            false
        }
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Waits for something that another thread is about to count.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

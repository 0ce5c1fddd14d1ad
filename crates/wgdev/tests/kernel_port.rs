//! The raw sockets that share the port of the kernel's WireGuard.

#![allow(clippy::unwrap_used)]

mod lab;

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{AT_A, AT_B, Namespace, PATIENCE, Pair, block_on, eventually, stun_like, wake};
use wgdev::{Datagram, Device as _, Kernel};

#[test]
fn what_is_not_for_the_port_or_not_ours_is_left_alone() {
    if !lab::kernel_available() {
        return;
    }
    let pair = Pair::<Kernel>::new();
    pair.echo().ping(100);
    wake(&pair.a);
    let sender = pair.cable.b.bind("198.51.100.2:3478");
    let sender6 = pair.cable.b.bind("[2001:db8::2]:3478");
    // Another port, with somebody behind it and without; WireGuard's shape with the cookie.
    let _other = pair.cable.a.bind("198.51.100.1:3479");
    for port in [3479, 21821] {
        sender.send_to(&stun_like(1), ("198.51.100.1", port)).unwrap();
        sender6.send_to(&stun_like(1), ("2001:db8::1", port)).unwrap();
    }
    let mut shaped = stun_like(3);
    shaped[..4].copy_from_slice(&[4, 0, 0, 0]);
    sender.send_to(&shaped, AT_A).unwrap();
    sender.send_to(b"neither", AT_A).unwrap();
    // Framed as STUN, and cut short.
    sender.send_to(&stun_like(5)[..40], AT_A).unwrap();
    sender.send_to(&stun_like(4), AT_A).unwrap();
    assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(4));
    let nothing = block_on(async { tokio::time::timeout(Duration::from_millis(300), pair.a.device.recv()).await });
    assert!(nothing.is_err(), "{nothing:?}");
}

/// Its port answers "unreachable" then, so a server that hears of us would be told to forget us.
#[test]
fn nothing_is_sent_while_the_interface_is_down() {
    if !lab::kernel_available() {
        return;
    }
    let pair = Pair::<Kernel>::new();
    let stun = pair.cable.b.bind("198.51.100.2:3478");
    let send = || {
        let datagram = Datagram { remote: "198.51.100.2:3478".parse().unwrap(), local: None, payload: stun_like(1) };
        block_on(pair.a.device.send(datagram))
    };
    send().unwrap();
    pair.cable.a.ip("link set wd-tun down");
    eventually("it is refused", || send().is_err_and(|e| e.kind() == std::io::ErrorKind::NetworkDown));
    pair.cable.a.ip("link set wd-tun up");
    eventually("it is sent again", || send().is_ok());
    stun.recv(&mut [0; 64]).unwrap();
}

/// The raw sockets of a namespace.
fn sockets(namespace: &Namespace) -> usize {
    namespace.run(|| {
        let of = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        // Two lines of headings, and one for each socket.
        of("raw").lines().count() + of("raw6").lines().count() - 2
    })
}

#[test]
fn the_sockets_close_when_nobody_needs_them_and_open_again() {
    if !lab::kernel_available() {
        return;
    }
    /// Longer than the minute after which they close.
    const LONG: Duration = PATIENCE.saturating_mul(2);
    let Pair { cable, a, b } = &Pair::<Kernel>::new();
    let wait = || block_on(async { tokio::time::timeout(Duration::from_millis(10), a.device.recv()).await });
    assert_eq!(sockets(&cable.a) + sockets(&cable.b), 0, "nobody has asked yet");
    thread::scope(|scope| {
        let at_b = scope.spawn(|| block_on(async { tokio::time::timeout(LONG, b.device.recv()).await }));
        eventually("those that somebody receives from open", || sockets(&cable.b) == 2);
        assert!(wait().is_err());
        eventually("they open", || sockets(&cable.a) == 2);
        let began = Instant::now();
        while sockets(&cable.a) > 0 {
            assert!(began.elapsed() < LONG, "they never close");
            thread::yield_now();
        }
        cable.a.bind("198.51.100.1:3478").send_to(&stun_like(1), AT_B).unwrap();
        assert_eq!(
            at_b.join().unwrap().unwrap().unwrap().payload,
            stun_like(1),
            "there somebody has waited all the time"
        );
    });
    assert!(wait().is_err());
    eventually("they open again", || sockets(&cable.a) == 2);
    cable.b.bind("198.51.100.2:3478").send_to(&stun_like(2), AT_A).unwrap();
    assert_eq!(lab::recv(&a.device).unwrap().payload, stun_like(2));
}

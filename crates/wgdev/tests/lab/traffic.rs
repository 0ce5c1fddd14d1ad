//! What is sent through and beside the tunnel.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use socket2::{MsgHdr, SockRef};
use wgdev::{Datagram, Device};

use super::{PATIENCE, block_on, namespace::Cable, node::Node};

/// A client at `a` and an echo service at `b`.
pub struct Echo {
    client: UdpSocket,
    service: SocketAddr,
    next: u64,
}

impl Echo {
    pub fn new(cable: &Cable, client: &str, service: &str) -> Self {
        let echo = cable.b.bind(service);
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            // Ends with the patience of a test that is over.
            while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                let _ = echo.send_to(&buffer[..length], from);
            }
        });
        Self { client: cable.a.bind(client), service: service.parse().unwrap(), next: 0 }
    }

    /// Sends a numbered packet of this size (at least 8) and waits for its echo.
    pub fn ping(&mut self, size: usize) {
        assert!(self.try_ping(size, PATIENCE), "no echo of {size} bytes");
    }

    pub fn try_ping(&mut self, size: usize, patience: Duration) -> bool {
        self.next += 1;
        let mut payload: Vec<u8> = (0..size).map(|i| (i as u64 * self.next) as u8).collect();
        payload[..8].copy_from_slice(&self.next.to_be_bytes());
        // The kernel's device says at once that there is no peer; userspace drops.
        if self.client.send_to(&payload, self.service).is_err() {
            return false;
        }
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.client.set_read_timeout(Some(left)).unwrap();
            match self.client.recv(&mut buffer) {
                // An echo of an earlier one that was given up.
                Ok(length) if buffer[..8.min(length)] != payload[..8] => {}
                Ok(length) => {
                    assert_eq!(&buffer[..length], &payload[..], "the payload changed");
                    return true;
                }
                Err(_) => return false,
            }
        }
    }
}

/// `recv` with the patience of a test.
pub fn recv(device: &impl Device) -> std::io::Result<Datagram> {
    block_on(async { tokio::time::timeout(PATIENCE, device.recv()).await }).expect("a datagram or an error arrives")
}

/// A valid STUN request, as far as its framing goes.
pub fn stun_like(n: u8) -> Vec<u8> {
    let mut datagram = vec![n; 48];
    datagram[..8].copy_from_slice(&[0, 1, 0, 28, 0x21, 0x12, 0xa4, 0x42]);
    datagram
}

/// Framed as a relay's CHALLENGE, and different for each `n`.
pub fn relay_like(n: u8) -> Vec<u8> {
    let mut datagram = vec![n; wire::relay::MESSAGE_LEN];
    datagram[..4].copy_from_slice(&[0x82, 1, 0, 0]);
    datagram
}

/// Sends from the shared port, to nobody: the kernel device's sockets open with the first need, and hear only what comes
/// after.
pub fn wake<D: Device>(node: &Node<D>) {
    let datagram = Datagram { remote: "198.51.100.2:9".parse().unwrap(), local: None, payload: stun_like(0) };
    block_on(node.device.send(datagram)).unwrap();
}

/// The next datagram, and where it came from.
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}

/// A UDP packet from port 3478 as a raw socket sends it, with its checksum (RFC 768).
pub fn udp(from: IpAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let length = ((8 + payload.len()) as u16).to_be_bytes();
    let header = [3478u16.to_be_bytes(), to.port().to_be_bytes(), length, [0; 2]].concat();
    let covered = [&octets(from), &octets(to.ip()), &[0, 17][..], &length, &header, payload].concat();
    let mut sum: u32 =
        covered.chunks(2).map(|word| u32::from_be_bytes([0, 0, word[0], *word.get(1).unwrap_or(&0)])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    [&header[..6], &(!(sum as u16)).to_be_bytes(), payload].concat()
}

/// Sends datagrams of equal size with one call, segmented by whoever comes last.
pub fn send_merged(socket: &UdpSocket, to: &str, datagrams: &[Vec<u8>]) {
    let slices: Vec<_> = datagrams.iter().map(|d| IoSlice::new(d)).collect();
    let segment = datagrams[0].len() as u16;
    let mut control = [0u8; 24];
    control[..8].copy_from_slice(&18usize.to_ne_bytes());
    control[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    control[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    control[16..18].copy_from_slice(&segment.to_ne_bytes());
    let to = to.parse::<SocketAddr>().unwrap().into();
    let message = MsgHdr::new().with_addr(&to).with_buffers(&slices).with_control(&control);
    SockRef::from(socket).sendmsg(&message, 0).unwrap();
}

//! Many messages with one system call.
#![allow(unsafe_code)]

use std::{
    io, mem,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, RawFd},
};

use socket2::{SockAddr, Socket};

use crate::Control;

/// Segments of one message; the kernel takes no more (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;

/// Bytes of one message: an IP packet's worth, less the headers.
const MAX_BYTES: usize = 65_500;

/// Messages of one call: two full receptions, and a few small ones.
const BATCH: usize = 32;

/// Datagrams for one destination.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// The local address to send from; `None` lets routing choose.
    pub local: Option<IpAddr>,
    /// All of them, one after the other.
    pub data: &'a [u8],
    /// Bytes of each; the last may be shorter. Never 0.
    pub segment: usize,
}

impl<'a> Outgoing<'a> {
    /// The same datagrams, so many of them a message.
    fn pieces(self, segments: usize) -> impl Iterator<Item = Self> + use<'a> {
        let segments = segments.min(MAX_BYTES / self.segment).max(1);
        self.data.chunks(self.segment * segments).map(move |data| Self { data, ..self })
    }

    fn datagrams(&self) -> usize {
        self.data.len().div_ceil(self.segment)
    }
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Taken by the kernel.
    pub sent: usize,
    /// Dropped because the socket's buffer was full.
    pub full: usize,
    /// Refused for another reason, such as no route.
    pub errors: usize,
}

/// Sends for one socket.
#[derive(Debug)]
pub struct Sender {
    /// The socket is of IPv6, and takes IPv4 in its mapped form.
    v6: bool,
    /// Off once a network driver has refused it (`EIO`: no checksum offload).
    segmentation: bool,
}

impl Sender {
    /// For a socket of IPv6 (both families), or of IPv4.
    #[must_use]
    pub fn new(v6: bool) -> Self {
        Self { v6, segmentation: true }
    }

    /// Sends in order, as far as the socket takes it without waiting. One message that is refused does not stop the others.
    pub fn send(&mut self, socket: &Socket, outgoing: &[Outgoing<'_>]) -> Sent {
        let segments = if self.segmentation { MAX_SEGMENTS } else { 1 };
        let pieces: Vec<_> =
            outgoing.iter().filter(|o| o.segment > 0).flat_map(|outgoing| outgoing.pieces(segments)).collect();
        let mut sent = Sent::default();
        let mut rest = &pieces[..];
        while let Some(first) = rest.first() {
            match send_some(socket.as_raw_fd(), self.v6, &rest[..rest.len().min(BATCH)]) {
                Ok(count) => {
                    sent.sent += rest[..count].iter().map(Outgoing::datagrams).sum::<usize>();
                    rest = &rest[count..];
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_full(&error) => {
                    sent.full += rest.iter().map(Outgoing::datagrams).sum::<usize>();
                    return sent;
                }
                Err(error) if first.datagrams() > 1 && self.is_for_segments(&error) => {
                    for single in first.pieces(1) {
                        let result = send_some(socket.as_raw_fd(), self.v6, &[single]);
                        sent.count_single(&result);
                    }
                }
                Err(_) => sent.errors += first.datagrams(),
            }
            rest = &rest[1..];
        }
        sent
    }

    /// Whether the datagrams may pass one by one: the driver can't do checksums, so it can't do segments either; or a segment
    /// is larger than the path takes, and fragments do it.
    fn is_for_segments(&mut self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EIO) => {
                self.segmentation = false;
                true
            }
            Some(libc::EINVAL | libc::EMSGSIZE) => true,
            _ => false,
        }
    }
}

impl Sent {
    fn count_single(&mut self, result: &io::Result<usize>) {
        match result {
            Ok(_) => self.sent += 1,
            Err(error) if is_full(error) => self.full += 1,
            Err(_) => self.errors += 1,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// One call for at most [`BATCH`] messages. Returns how many were taken, at least one; the error is the first one's.
fn send_some(socket: RawFd, v6: bool, pieces: &[Outgoing<'_>]) -> io::Result<usize> {
    let mut names: [Option<SockAddr>; BATCH] = [const { None }; BATCH];
    let mut controls: [Control; BATCH] = std::array::from_fn(|_| Control::new());
    // SAFETY: `iovec` and `mmsghdr` are plain data for which zeros (null, none) are valid.
    let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    for (i, piece) in pieces.iter().enumerate().take(BATCH) {
        let control = &mut controls[i];
        if let Some(local) = piece.local {
            control.push_source(local, v6);
        }
        if piece.datagrams() > 1 {
            // No segment is larger than `MAX_BYTES`, which is less than 65,536.
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &(piece.segment as u16).to_ne_bytes());
        }
        let name = names[i].insert(name(piece.to, v6));
        vectors[i].iov_base = piece.data.as_ptr().cast_mut().cast();
        vectors[i].iov_len = piece.data.len();
        let header = &mut messages[i].msg_hdr;
        header.msg_name = name.as_ptr().cast_mut().cast();
        header.msg_namelen = name.len();
        header.msg_iov = &raw mut vectors[i];
        header.msg_iovlen = 1;
        if !control.is_empty() {
            header.msg_control = control.as_bytes().as_ptr().cast_mut().cast();
            header.msg_controllen = control.as_bytes().len() as _;
        }
    }
    let count = pieces.len().min(BATCH) as libc::c_uint;
    // SAFETY: every message points at a name, a vector and control bytes that live until after this call, and sendmmsg(2) only
    // reads them and writes `msg_len`.
    let taken = unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
    usize::try_from(taken).map_err(|_| io::Error::last_os_error())
}

/// The address as the socket's family has it.
fn name(to: SocketAddr, v6: bool) -> SockAddr {
    match to {
        SocketAddr::V4(v4) if v6 => SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0)).into(),
        to => to.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{Receiver, control};

    /// A receiver that takes merged datagrams, and a sender, on loopback.
    fn pair() -> (UdpSocket, Socket, SocketAddr) {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        (receiver, sender.into(), to)
    }

    #[test]
    fn segments_arrive_as_the_datagrams_they_were() {
        let (receiver, socket, to) = pair();
        let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        // 100 datagrams of 1,000 bytes are two messages, and the second outgoing ends with a short one.
        let outgoing = [
            Outgoing { to, local: None, data: &data, segment: 1000 },
            Outgoing { to, local: Some(to.ip()), data: &data[..2500], segment: 1000 },
            Outgoing { to, local: None, data: &data[..7], segment: 1000 },
        ];
        let sent = Sender::new(false).send(&socket, &outgoing);
        assert_eq!(sent, Sent { sent: 104, full: 0, errors: 0 });
        let mut buffer = [0; 2000];
        let mut lengths = Vec::new();
        for _ in 0..104 {
            lengths.push(receiver.recv(&mut buffer).unwrap());
        }
        assert!(lengths[..102].iter().all(|&length| length == 1000));
        assert_eq!(lengths[102..], [500, 7]);
    }

    #[test]
    fn one_that_is_refused_does_not_stop_the_others() {
        let (receiver, socket, to) = pair();
        let nowhere: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
        let one = |to, data| Outgoing { to, local: None, data, segment: 9 };
        let sent = Sender::new(false).send(&socket, &[one(to, b"first"), one(nowhere, b"lost"), one(to, b"last")]);
        assert_eq!(sent, Sent { sent: 2, full: 0, errors: 1 });
        let mut buffer = [0; 9];
        let mut next = || {
            let length = receiver.recv(&mut buffer).unwrap();
            buffer[..length].to_vec()
        };
        assert_eq!([next(), next()], [b"first".to_vec(), b"last".to_vec()]);
    }

    #[test]
    fn what_is_sent_merged_is_received_merged() {
        let (receiver, socket, to) = pair();
        let receiver = Socket::from(receiver);
        control::receive_merged(&receiver).unwrap();
        let data = [7; 12_000];
        Sender::new(false).send(&socket, &[Outgoing { to, local: None, data: &data, segment: 1000 }]);
        let mut received = Vec::new();
        Receiver::new().receive(receiver.as_raw_fd(), &mut received).unwrap();
        assert_eq!((received.len(), received[0].segment, received[0].data.len()), (1, 1000, 12_000));
    }
}

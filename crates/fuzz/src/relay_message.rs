use std::net::{Ipv6Addr, SocketAddr};

use wire::relay::{self, AllocationId, Body, Forged, Frame, Header, LegKey, Side, Token};
use wire::stun;

/// Any bytes as a datagram; and as the fields of a message that is sealed, opened, and opened again with one byte changed.
///
/// # Panics
/// When a message does not come back as it went, an altered one opens, or a datagram has two owners.
pub fn relay_message(bytes: &[u8]) {
    let key = LegKey::from_bytes([7; 32]);
    let owners = [relay::is_relay(bytes), stun::is_stun(bytes), stun::is_wireguard(bytes)];
    assert!(owners.into_iter().filter(|&owns| owns).count() <= 1, "a datagram has one owner");
    assert!(!relay::is_forwardable(bytes) || stun::is_wireguard(bytes));
    if let Some(frame) = Frame::parse(bytes) {
        assert!(relay::is_relay(bytes));
        let body = frame.open(&key);
        assert!(body.is_err() || frame.is_from_node() == matches!(body, Ok(Body::Bind | Body::Answer(_))));
    }
    let Some((header, body, at, flip)) = fields(bytes) else { return };
    let mut sealed = relay::seal(&key, &header, &body);
    let frame = Frame::parse(&sealed).expect("what is sealed is framed");
    assert_eq!((frame.header(), frame.open(&key)), (header, Ok(body)));
    let place = at % sealed.len();
    sealed[place] ^= flip;
    let opened = Frame::parse(&sealed).map(|frame| frame.open(&key));
    assert!(flip == 0 || matches!(opened, None | Some(Err(Forged))));
}

fn fields(bytes: &[u8]) -> Option<(Header, Body, usize, u8)> {
    let (&[kind, side, at, flip], rest) = bytes.split_first_chunk::<4>()?;
    let (&allocation, rest) = rest.split_first_chunk::<8>()?;
    let (&counter, rest) = rest.split_first_chunk::<8>()?;
    let (&inside, rest) = rest.split_first_chunk::<16>()?;
    let header = Header {
        allocation: AllocationId(u64::from_be_bytes(allocation)),
        side: Side::BOTH[usize::from(side % 2)],
        counter: u64::from_be_bytes(counter),
    };
    let body = match kind % 4 {
        0 => Body::Bind,
        1 => Body::Challenge(Token(inside)),
        2 => Body::Answer(Token(inside)),
        _ => {
            let &port = rest.first_chunk::<2>()?;
            let ip = Ipv6Addr::from(inside).to_canonical();
            Body::Bound { observed: SocketAddr::new(ip, u16::from_be_bytes(port)) }
        }
    };
    Some((header, body, usize::from(at), flip))
}

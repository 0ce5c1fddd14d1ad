use std::net::SocketAddr;
use std::time::Instant;

use ::relay::server::Server;
use wire::{probe, stun};

/// Any bytes as a STUN message, as a probe, and as a request to the relay's responder.
///
/// # Panics
/// When the responder answers with more than it should.
pub fn stun_message(bytes: &[u8]) {
    let decoded = stun::decode(bytes);
    assert!(decoded.is_err() || stun::is_stun(bytes));
    assert!(probe::key_id(bytes).is_none() || bytes.len() == probe::PROBE_LEN);
    let now = Instant::now();
    let (_, reply) = Server::new(now).handle_datagram(bytes, SocketAddr::from(([192, 0, 2, 1], 9)), now);
    if let Some(reply) = reply {
        assert!(decoded.is_ok() && reply.len() <= stun::MAX_SUCCESS_LEN);
    }
}

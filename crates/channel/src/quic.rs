//! What both ends ask of QUIC.

use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt};

use crate::ends::IDLE;

/// Bytes of a stream that may be under way: what a channel that carries packets needs for 50 Mbit/s over 40 ms. It is also
/// what one that does not read costs.
const WINDOW: u32 = 256 * 1024;

/// One stream in both directions, opened by the node; bounded windows, no datagrams. One end keeps the connection alive.
pub(crate) fn transport(keepalive: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE).expect("15 s fit into 62 bits of milliseconds");
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(keepalive)
        .max_idle_timeout(Some(idle));
    config
}

/// Time between two resets: a mesh of thousands of nodes hears within seconds that its relay has started anew.
const RESET_INTERVAL: Duration = Duration::from_millis(2);

/// Bytes of a connection's id.
const ID_LEN: usize = 8;

/// For a relay that resets what it does not know, with a key that outlives it. A reset is smaller than what it answers.
pub(crate) fn resetting(key: ring::hmac::Key) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(key));
    // The usual ids carry a mark of the process that made them, and what carries that of another is dropped without a word.
    config.cid_generator(|| Box::new(RandomIds)).min_reset_interval(RESET_INTERVAL);
    config
}

struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_LEN];
        getrandom::fill(&mut id).expect("a system that ran TLS until now has random numbers");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

//! What both ends ask of QUIC.

use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

use crate::ends::IDLE;

/// Bytes of a stream that may come before they were read: some messages of the longest.
const WINDOW: u32 = 64 * 1024;

/// One stream in both directions, opened by the node; small windows, no datagrams. One end keeps the connection alive.
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

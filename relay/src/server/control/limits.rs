//! Every cap of the control channel's logic, in one place. `docs/relay.md` repeats the list.

use std::time::Duration;

use crate::server::plane::MAX_NODES;

/// Sessions at a time: one for every node that the data plane admits.
pub const MAX_SESSIONS: usize = MAX_NODES;

/// Channels at a time that have not said who they are. The transport has a cap of its own; this one is a little above it, for those on the way.
pub const MAX_NEWCOMERS: usize = 2048;

/// Nodes that one node may ask about: everybody.
pub const MAX_MEETS: usize = MAX_NODES;

/// Time for Hello after the handshake: two ends that talk already need one way.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Signals of one node that are handed on at once: a call to every partner of a large mesh's cold start.
pub const SIGNAL_BURST: u32 = 1024;

/// One more signal of a node each: 200 a second, at most 1 KiB long.
pub const SIGNAL_PERIOD: Duration = Duration::from_millis(5);

/// Between two stray packets of a session: no flood, to whomever.
pub const STRAY_PERIOD: Duration = Duration::from_millis(100);

/// Stray packets of a session that wait for their turn. A test of a mapping asks for three at once.
pub const MAX_STRAYS: usize = 4;

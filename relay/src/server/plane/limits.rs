//! Every cap of the data plane, in one place. `docs/relay.md` repeats the list.

use std::time::Duration;

/// Ports that a relay can have. 64, the default, carry any node with 32 relayed partners and usually 60.
pub const MAX_PORTS: u16 = 256;

/// Nodes admitted at a time: more than a mesh of the size that Warren is tested for, at half a kilobyte each.
pub const MAX_NODES: usize = 8192;

/// Allocations at a time that a configuration may ask for: 16 bits of an id name the place, the other 48 are random.
pub const MAX_ALLOCATIONS: usize = 65_536;

/// Relay messages that wait to be sent. One arrival causes one at most and the shell sends after each batch.
pub const MAX_TRANSMITS: usize = 512;

/// Events that wait for the control channel. It can ask for the state again, so the oldest may go.
pub const MAX_EVENTS: usize = 4096;

/// A new allocation whose two legs are not both bound by then goes: the partner does not want it, or cannot reach this relay.
pub const BIND_DEADLINE: Duration = Duration::from_secs(30);

/// The same for one that was in use and lost a leg to another node with the same source; its agent binds anew every 60 s.
pub const REBIND_DEADLINE: Duration = Duration::from_secs(90);

/// A leg without data or BIND for so long ends its allocation. Above five of an agent's refreshes, and above an agent's restart.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(300);

/// BIND and ANSWER taken of one leg: a burst for a lossy start, then a rate far above a refresh every 60 s.
pub const CONTROL_BURST: u32 = 16;

/// One more BIND or ANSWER of a leg each.
pub const CONTROL_PERIOD: Duration = Duration::from_millis(200);

/// Requests for allocations taken of one node: twice a full port table at a cold start, then a steady few.
pub const REQUEST_BURST: u32 = 128;

/// One more request of a node each.
pub const REQUEST_PERIOD: Duration = Duration::from_millis(100);

/// Data that a node or pair with a rate may send at once, as time at that rate: the queue of a common router.
pub const RATE_BURST: Duration = Duration::from_millis(100);

/// The same at least, in bytes: two full batches, so that a small rate still lets a batch through.
pub const MIN_RATE_BURST: u64 = 128 * 1024;

/// How long a challenge's secret is used; tokens of this period and the one before are taken.
pub const TOKEN_PERIOD: Duration = Duration::from_secs(120);

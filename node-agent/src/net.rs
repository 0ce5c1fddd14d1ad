//! The host network: what a node needs besides its WireGuard device.
//!
//! [`apply`] takes a [`NetPlan`], the complete desired state, reads what the kernel has, changes only the difference and
//! says what it changed. A second call changes nothing; a call after somebody else meddled repairs exactly that. Nothing is
//! touched that does not carry our marks: route and rule protocol [`PROTOCOL`], tables [`TABLE_MESH`] and [`TABLE_NODES`],
//! nftables table `inet warren`, and the device named in the plan. Only CAP_NET_ADMIN is needed, no process is started and
//! `/proc/sys` is only read.
//!
//! # The order of the rules
//!
//! The base is the priority of the rule for the table `local` plus ten (`local` is 0 unless somebody moved it), so local
//! addresses always win. Then, in this order, each for the families that the plan uses:
//!
//! | offset | rule | why |
//! |---|---|---|
//! | 0 | `to <own podCIDR> lookup main suppress_prefixlength <len-1>` | a living pod is found by the route its CNI made; the default route is suppressed, so a dead pod falls through to `unreachable` in the mesh table |
//! | 1 | `not fwmark <mark> lookup 21820` | mesh addresses and pods, and `unreachable` for those ranges: nothing leaks while a peer is absent |
//! | 2 | `iif lo ipproto udp sport <port> goto 6` | WireGuard's and a local relay's own datagrams never enter a tunnel, marked or not; a relay's TCP likewise |
//! | 3 | `to <API address> goto 6` | the control path never needs the mesh |
//! | 4 | `iif lo ipproto tcp sport <API port> goto 6` | on a node that serves the API: what asked by the underlay is answered by the underlay, even while our nftables table is gone |
//! | 5 | `not fwmark <mark> lookup 21821` | carried node addresses |
//! | 6 | `nop` | where the exemptions land |
//!
//! A marked packet skips both tables and goes on with the host's own rules, as does every exempted one (`goto`, not
//! `lookup main`): for them the host routes as if Warren were not there, policy routing and other VPNs included.
//!
//! There are two tables because the exemptions are about *node* addresses. A pod that reaches the API server's node by the
//! mesh must be answered by the mesh although the answer's source port is the API port; in one table the exemption would send
//! that answer to the default route in clear. Mesh and pod addresses are therefore decided before any exemption, node
//! addresses after. A node address has a route only while its peer is programmed and never `unreachable`: the kernel looks
//! the answer's route up before nftables can restore its mark, and an unreachable address defeats every mark.
//!
//! # Marks
//!
//! The one mark bit means "by the underlay". A connection whose first packets came in by an underlay interface carries it as
//! connection mark, and every answer gets it back as packet mark: in `output` for sockets of the host (a chain of type
//! `route`, so the kernel routes again) and in `prerouting` for answers that are forwarded: from a pod behind a host port,
//! and from the mesh when a node port led to a pod elsewhere.
//! Packets that arrive by the underlay and claim to come from the mesh or a pod are never marked, so no forged source makes
//! the node answer a mesh address in clear.
//!
//! # What is refused
//!
//! Whatever the plan says, the node's own gateways, resolvers, the API addresses and everything in a directly connected
//! subnet is never routed into the mesh, nor this node's own pods, nor anything as wide as a part of the Internet ([`Overlap`]). A forward drop in somebody else's table is reported
//! ([`Problem::ForwardBlocked`]), not undone. Global sysctls are reported with the command, not written.

mod cleanup;
mod compile;
mod contention;
mod device;
mod firewall;
mod forward;
mod link;
mod originals;
mod own;
mod plan;
mod ranges;
mod report;
mod reroute;
mod routes;
mod rules;
mod sysctl;
mod underlay;
mod watch;

use nlink::{Connection, Nftables, Route};

pub use cleanup::cleanup;
pub use contention::Contention;
pub use link::{delete_link, link_exists, own_link};
pub use originals::Originals;
pub use own::OwnChanges;
pub use plan::{Mark, Masquerade, NetPlan, PeerRoute, PortRange, Redirect, RouteKind};
pub use report::{Change, ChangeKind, Failure, NetError, Overlap, Problem, Protected, Report, Standing};
pub use reroute::{Ground, Rerouting, least_claims, reroute};
pub use underlay::{Underlay, UnderlayDevice, read as underlay};
pub use watch::{Changed, Watch, watch};

/// Routing protocol number of our routes and rules, from the range that iproute2 leaves to others; it is what makes a route
/// ours.
pub const PROTOCOL: u8 = 218;

/// Routing table of mesh addresses, pods, and `unreachable` for what the mesh claims.
pub const TABLE_MESH: u32 = 21820;

/// Routing table of carried node addresses.
pub const TABLE_NODES: u32 = 21821;

/// Name of our nftables table, family inet.
pub const NFT_TABLE: &str = "warren";

/// Makes the host network what `plan` says and reports what was changed, refused or found in the way.
///
/// An error means that nothing could be done (no netlink, no device). Single failures are collected in
/// [`Report::failures`], so that one bad entry never keeps the rest from being applied. The order is such that at no point a
/// packet for the mesh has a way out in clear: the device and its addresses, the firewall, the routes with `unreachable`
/// first, then the rules that lead to them. Sysctls of the underlay are remembered in `originals` before they are changed.
pub async fn apply(plan: &NetPlan, originals: &Originals) -> Result<Report, NetError> {
    let route = Connection::<Route>::new().map_err(NetError::netlink("open a route socket"))?;
    let nft = Connection::<Nftables>::new().map_err(NetError::netlink("open an nftables socket"))?;
    let underlay = underlay::read_with(&route, &plan.device).await?;
    let mut report = Report::new(underlay);
    let plan = &sysctl::without_missing_ipv6(plan, &mut report);
    let desired = compile::compile(plan, &report.underlay);
    report.overlaps = desired.overlaps.clone();

    let index = device::apply(&route, plan, originals, &mut report).await?;
    firewall::apply(&nft, plan, &desired, &mut report).await;
    routes::apply(&route, index, &desired.routes, &mut report).await;
    rules::apply(&route, &desired.rules, &mut report).await;
    sysctl::check(plan, &mut report);
    forward::check(&nft, plan, &mut report).await;
    report.settle(plan);
    if report.failures.is_empty() {
        let families = [false, true].map(|v6| desired.rules.iter().any(|rule| rule.v6 == v6));
        report.ground = Some(Ground { device: index, underlay: report.underlay.clone(), families });
    }
    Ok(report)
}

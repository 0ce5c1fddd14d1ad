//! The CNI file of the managed mode: how containerd is told to wire this node's pods.
//!
//! One conflist of `ptp`, `host-local` and `portmap`, all of them standard plugins that are on the node already (a missing
//! one is named). It is published when the device, its addresses, routes and rules stand ([`Standing`] is the proof) and the
//! podCIDRs are known; it never waits for a peer, so a node becomes Ready by itself. It is written whole or not at all, its
//! name sorts before every usual one, and unchanged content is not written again, because every write makes containerd read
//! the folder anew. Files of others are never touched.
//!
//! # A file for this boot
//!
//! After a reboot kubelet starts pods as soon as the runtime has a network, with the file of the boot before if that is
//! still there: with podCIDRs that may be another node's by now. So the file itself lies in the runtime folder, which a
//! reboot empties ([`RunDir`]), and the folder that the runtime reads holds a link to it. A link that leads nowhere is no
//! configuration: go-cni gives up at the first file that it can't read, so containerd reports the network as not ready
//! until the agent has written the file for this boot, and does not take another network's file in its place. The runtime
//! watches the folder of the link only, so the link is made anew, by a rename, each time the file is written.
//!
//! For the same reason what the agent remembers from before never brings the file into being, only the API does: a node that
//! was deleted and joins again gets other podCIDRs, and a pod that started in the old ones would keep its address for life.
//! A file that stands is kept up from memory while the API is away.
//!
//! # Why `ptp` and not `bridge`
//!
//! With `ptp` every packet of a pod passes the host's IP layer, so that whatever works on IP works:
//!
//! - *kube-proxy, both ends on this node*: on a bridge the answer goes straight from pod to pod, past the connection that
//!   was translated, unless `br_netfilter` is loaded and `bridge-nf-call-iptables` set. The agent may do neither (no
//!   SYS_MODULE, `/proc/sys` read-only), and a node where it is missing fails only for pods that happen to share it.
//! - *Hairpin* (a pod that reaches itself by its own Service or host port): `ptp` routes it back like any packet; a bridge
//!   port needs `hairpinMode`, which sends broadcasts back as well.
//! - *A dead pod* has no route, so our `unreachable` answers at once; on a bridge the sender waits for ARP to give up.
//! - *Host ports* by `portmap` are translated before routing in both, but their answers need the mark that our table
//!   restores in `prerouting`, which on a bridge again takes `br_netfilter`.
//! - *Layer 2*: a pod cannot answer ARP for another.
//!
//! The price is one host route per pod (kubelet's limit is 110), no broadcast between pods, and the gateway's address on every
//! interface of a pod.

mod conflist;
mod install;
mod reservations;

pub use conflist::conflist;
pub use install::{CniError, CniPlan, Published, RunDir, is_published, publish, withdraw};
pub use reservations::{Reservations, release};

#[cfg(doc)]
use crate::net::Standing;

/// The file's name; sorts before `10-flannel.conflist` and its like.
pub const FILE: &str = "05-warren.conflist";

/// The network's name in the file, by which we know that a file is ours.
pub const NETWORK: &str = "warren";

/// Where `host-local` keeps which address is taken: gone after a reboot, as the pods are.
pub const IPAM_DIR: &str = "/run/warren/ipam";

/// The plugins that the file names.
pub const PLUGINS: [&str; 3] = ["ptp", "host-local", "portmap"];

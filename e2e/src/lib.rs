//! The lab: a real Kubernetes cluster on one Linux machine, its nodes behind real NATs and firewalls.
//!
//! # Model
//! A [`scenario::Scenario`] is plain data: nodes, the site each stands in, and all addresses. [`lab::Lab::up`] builds it:
//!
//! - **The internet** is a network namespace that routes between sites ([`net::topology`]). A site is a router namespace
//!   with nftables rules ([`net::router`]), or nothing for a public node. A TUN shaper delays packets ([`net::shaper`]), and a
//!   packet socket on all of the internet's links looks for inner packets in clear ([`net::sniffer`]). A machine
//!   outside the cluster answers HTTP and UDP.
//! - **A node** is a network, mount, UTS, IPC and PID namespace, a root in every cgroup hierarchy and a disk folder. Its process 1
//!   ([`cluster::init`]) runs containerd, kubelet and kube-proxy, which see default paths and ports. There is no CNI
//!   configuration and no route to a pod: that is Warren's job.
//! - **The control plane** ([`cluster::control_plane`]) is etcd, API server, controller manager and scheduler as plain processes in
//!   the network namespace of the first node, which is a node like every other.
//! - **A guest** ([`guest`]) is a node with a kernel of its own: a small virtual machine behind a router of the lab. There WireGuard
//!   is the kernel's, whatever this machine's kernel has.
//! - **The parts** ([`parts`]) are built from their Go modules, once per version; images ([`images`]) are single static programs
//!   packed without a container engine.
//!
//! # Life cycle
//! `up` removes what an earlier run of the same name left, builds what is missing, and ends with all nodes registered. A power cut
//! kills a node's process 1; a reboot also makes its network anew. `down` ends every process in the lab's namespaces and
//! removes namespaces, cgroups, files and changed sysctls; it needs no record of what was started. Several labs live side by
//! side: all names carry the lab's name, and all addresses exist only inside.
//!
//! # What it refuses to do
//! It never touches the root network namespace, never ends a process by name, writes nothing below the checkout except build output
//! and the logs of failed runs, and never says that nothing leaked when its watch was dead or overrun. A wait has a deadline
//! and tells what it saw last ([`wait`]); nothing sleeps for a time and hopes.

pub mod agent;
pub mod api;
pub mod bench;
pub mod checks;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod guest;
pub mod harness;
pub mod images;
pub mod interrupt;
pub mod lab;
pub mod net;
pub mod outage;
pub mod parts;
pub mod process;
pub mod progress;
pub mod removal;
pub mod scenario;
pub mod secrets;
pub mod state;
pub mod teardown;
pub mod traffic;
pub mod wait;
pub mod warren;
pub mod workload;

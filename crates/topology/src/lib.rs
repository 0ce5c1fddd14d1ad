//! Who is in the mesh, who owns which address, and what each node must configure.
//!
//! This crate decides; operator and agent fetch, convert and write. It knows no Kubernetes client, socket, file, clock or
//! random number, so that the same code runs in the operator, on every node, in the simulator and in the command line.
//!
//! # The model
//!
//! There are two halves, and slices are all that passes between them.
//!
//! [`cluster::plan()`] is the operator's half. It takes a [`cluster::ClusterView`] (Nodes, `MeshNode`s with what nodes say
//! about themselves, the stored slices and tombstones) and returns a [`cluster::Plan`]: every object as it shall be, with
//! conditions and events. It has no memory. Whatever it has to remember it reads back from what it wrote before: mesh
//! addresses and ports from specs, the packing from slices, the last generation of a removed peer from tombstones. So two
//! replicas compile the same bytes from the same view, a new leader writes nothing, and a plan cut short in the middle is
//! finished by the next one. Planning again after the plan was written finds nothing to do.
//!
//! [`node::PeerTable`] and [`node::plan_node`] are the agent's half: the table merges slices as they arrive, `plan_node`
//! turns it into WireGuard peers, allowed IPs and routes for one machine. [`node::NodePlanner`] gives the same plan, and how it
//! differs from the one before, at the cost of what changed.
//!
//! [`check`] is the list of invariants. It looks at outcomes only, and runs in tests, in the simulator and before every
//! write.
//!
//! # The life of a peer
//!
//! A Node appears: a `MeshNode` is created with the lowest free addresses and a listen port. Its agent publishes a key with
//! a proof of possession: the key is admitted (valid, unique, proven, approved if an admin wants to be asked, and never
//! while any node could write another's status), and an entry goes to the newest slice that has room. The entry changes:
//! its generation grows. The node is suspended or deleted: the entry goes and a tombstone stays, by which every agent
//! drops the peer at once. A node that is created again under its old name is another node, with another key.
//!
//! # Contests
//!
//! Whatever two nodes claim (an address, a port, a pod range, a key) the incumbent keeps, and the newcomer gets a
//! condition that names it. The incumbent is the one whose claim peers act upon already, then the one in whose spec it is
//! written, then the older object. So nothing that is written by hand, by mistake or on purpose takes away what works.
//!
//! # What it refuses to do
//!
//! - It never lets what a node writes decide who owns an address: allowed IPs come from operator-written data only, and a
//!   node's status contributes its key, port, candidates and round.
//! - It never removes a peer because a list is empty, short or old: see [`node::PeerTable`].
//! - It never routes a machine's own gateway, resolvers, API addresses or subnets into the mesh.
//! - It never hashes names into addresses, and never gives out what another one has.
//! - It never drops an admin's wish because it cannot be met now.

pub mod candidates;
pub mod check;
pub mod cluster;
pub mod mesh;
pub mod node;
pub mod peer;
pub mod prefix;
pub mod spec;

pub use wire::key::PublicKey;

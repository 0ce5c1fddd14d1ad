//! The operator: the one component that decides who is in the mesh.
//!
//! It watches Nodes, the kinds of `warren.dev` and the two admission policies that protect them, and keeps a reduced copy
//! of each object ([`index`]). When something changes it lets a moment pass, so that a burst costs one pass
//! ([`coalesce`]), turns the copy into a [`topology::cluster::ClusterView`] ([`convert`]), has `topology` plan everything that
//! shall exist, and turns the difference to what does exist into writes ([`reconcile::diff`]). Only then it acts
//! ([`reconcile::apply`]). Everything up to the writes is free of clocks, clients and chance, and is tested as tables.
//!
//! **Two replicas, one writer.** Every replica watches and plans; only the holder of the [`lease`] writes. A leader checks
//! by its own clock, which counts a suspend too, right before each single request, that its lease still runs, and gives up on a request before another replica
//! could take over; a process that was stopped and wakes up writes nothing. What it changes it changes by
//! `resourceVersion`, so that a write that was overtaken is refused. Allocation is read back from the objects, so a new leader
//! plans byte-identical output and a fail-over writes nothing.
//!
//! **Keys.** A key is admitted when its node proves possession against the leader's short-lived key ([`proof`]), and only while
//! the admission policies, which tie the status of a `MeshNode` to its node, are in place unaltered ([`protection`]).
//! Without them admitted keys stay and no new one comes in.
//!
//! **What it refuses to do.** It never reads a Secret or a Pod, never sees a private key of a node, writes no heartbeat,
//! and removes nothing because a list was empty. One object that cannot be read or written never stops the rest: it is
//! counted, logged and retried with growing pauses ([`backoff`]).

pub mod args;
pub mod backoff;
pub mod client;
pub mod coalesce;
pub mod convert;
pub mod defaults;
pub mod events;
pub mod index;
pub mod lease;
pub mod metrics;
pub mod placement;
pub mod process;
pub mod proof;
pub mod protection;
pub mod reconcile;
pub mod run;
pub mod server;
pub mod watch;

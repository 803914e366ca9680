//! The cluster in one thread, with simulated time, network and disks: a seed chooses every delay, fault
//! and operation, and the same seed gives the same run.
//!
//! What is real: openraft, the settings that a node gives it ([`raftnode::raft_config`]), the log with
//! its tail and writer ([`quorumfs_store::LogStore`]), the formats of entries and snapshots, the state
//! machine, the counting of leases ([`raftnode::lease`]). What is simulated: the network ([`network`]),
//! the disk below the log ([`disk`]), the runtime's randomness ([`runtime`]), and who asks ([`client`]).
//!
//! Each node has a runtime of its own with a paused clock that only the [`world`] moves: so its clock
//! can run fast or slow, a stopped process is one that is not run, and a killed one is a runtime that is
//! dropped, with all that was not on its disk.
//!
//! Everything that happens is told to the [`record`], which hashes it and holds it against the
//! [`invariant`]s, one file each. [`bug`] lists what can be broken on purpose to show that they bite.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod bug;
pub mod client;
pub mod disk;
pub mod fault;
pub mod invariant;
pub mod machine;
pub mod network;
pub mod node;
pub mod random;
pub mod record;
pub mod runtime;
pub mod service;
pub mod types;
pub mod watch;
pub mod world;

pub use bug::Bug;
pub use world::{Options, Report, run};

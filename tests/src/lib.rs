//! The test bench of quorumfs: real nodes, real mounts, real networks. The tests beside it prove one
//! promise each; nothing here imitates a part of the product.
//!
//! Everything that a test starts is ended and taken away again, also when the test panics, when it
//! hangs (see [`deadline::guard`]), and when an earlier run was killed (see [`cleanup`]).
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod binaries;
pub mod cgroup;
pub mod cleanup;
pub mod cluster;
pub mod deadline;
pub mod document;
pub mod faults;
pub mod follower;
pub mod history;
pub mod host;
pub mod inotify;
pub mod kv;
pub mod load;
pub mod locker;
pub mod network;
pub mod node;
pub mod pair;
pub mod process;
pub mod random;
pub mod shell;
pub mod tree;

pub use cluster::Cluster;
pub use deadline::{eventually, guard, until};
pub use faults::Faults;
pub use host::Host;
pub use inotify::Inotify;
pub use kv::Kv;
pub use network::Network;
pub use pair::{Pair, pair};

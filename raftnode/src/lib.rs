//! One member of the cluster: consensus by openraft, storage by `quorumfs-store`, transport by QUIC
//! with mutual TLS.
//!
//! ```text
//! client -> listener -> service -> openraft -> store -> machine
//! peer   -> listener -> network::serve -^
//!                       network (Links) <- openraft
//! ```
//!
//! [`Node`] is the way in: [`Node::init`] makes a cluster, [`Node::start`] runs a member. The counting
//! of leases and the settings of consensus are open to the simulation in `tests/sim`.

mod bounds;
mod clock;
pub mod config;
mod endpoint;
mod http;
mod join;
pub mod lease;
mod listener;
mod metrics;
mod network;
mod node;
mod progress;
mod retention;
pub mod run;
mod service;
mod stop;
mod watch;

pub use config::{Config, ConfigError};
pub use node::{Node, NodeError, raft_config};

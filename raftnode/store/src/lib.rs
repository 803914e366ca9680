//! Storage of one member: the Raft log in `raft.log`, the state of the store in `state.redb`, and
//! snapshots of the state as files.
//!
//! [`Store::open`] gives four handles. openraft takes [`LogStore`] and [`StateMachine`]; the node
//! reads through [`State`] and moves snapshots with [`Snapshots`]; [`StoreGuard::close`] ends it.
//!
//! ```text
//! openraft → LogStore     → tail (memory)   → writer thread  → LogBackend → raft.log
//! openraft → StateMachine → layers (memory) → flusher thread → state.redb
//! node     → State ─────────┘
//! ```
//!
//! What is on disk is what matters: a log write is acknowledged when it is durable, and the state is
//! made durable in steps behind it, each of them the state at exactly one log index. After the first
//! error of a disk nothing is acknowledged any more: the node has to stop and start again.

mod dir;
mod error;
pub mod format;
mod log;
mod machine;
mod snapshot;
mod state;
mod store;
mod types;

pub use dir::Identity;
pub use error::OpenError;
pub use log::{
    Batch, DiskFile, LogBackend, LogConfig, LogFile, LogReader, LogStart, LogStore, Op, SegmentLog,
};
pub use machine::{SnapshotBuilder, StateMachine};
pub use snapshot::{Receiving, Row, SnapshotError, SnapshotFile, Snapshots, read_snapshot, write_snapshot};
pub use state::{AppliedAt, Behind, EventsError, SnapshotView, State, View};
pub use store::{OpenDatabase, OpenLog, Options, Store, StoreGuard};
pub use types::{
    Entry, LeaderId, LogId, LogState, Logged, MemberNode, Membership, NodeId, Payload, Raft, Snapshot,
    SnapshotMeta, StoredMembership, TypeConfig, Vote,
};

//! The replicated state machine: a pure function from tables and a proposal to new tables and an
//! outcome. No clock, no randomness, no I/O but the tables.
//!
//! A command runs on an overlay over the tables, so that a refused one leaves them as they were.
//! [`apply`] → the commands (`write`, `tree`, `rename`, `attr`, `lock`, `lease`, `txn`) → `locate`
//! and `state` → `overlay` → [`tables`]. Readers go through [`view`]; watchers through [`filter()`].

pub mod apply;
mod attr;
pub mod filter;
#[cfg(test)]
mod golden;
mod guard;
mod lease;
mod locate;
mod lock;
mod overlay;
mod path;
mod range;
mod rename;
mod rows;
mod session;
pub mod sight;
mod size;
mod state;
pub mod tables;
mod tree;
mod txn;
pub mod view;
mod walk;
mod write;

pub use apply::{Applied, apply, apply_under, init};
pub use filter::{Filtered, filter};
pub use sight::see;
pub use size::{EVENT_BYTES_MAX, change_bytes, event_bytes};
pub use tables::{MemTables, ReadTables, StorageError, Table, Tables};
pub use view::{Compacted, Copy, Meta, Page, PageLimit};

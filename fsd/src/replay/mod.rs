//! Remote changes are performed once more through the own mount, so that the kernel fires the inotify
//! events that a local change fires.
//!
//! `queue` holds what waits, in order, and what the replayer sees meanwhile; `player` is the thread
//! that makes the system calls; `expect` recognises its requests.

pub mod expect;
pub mod player;
pub mod queue;

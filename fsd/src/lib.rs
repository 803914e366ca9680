//! The FUSE daemon: a subtree of the store as a directory, with the events of a local one.
//!
//! ```text
//! kernel ─► fuse ─► fs ─► core (mirror, kernel, handles)   reads
//!                    └──► core ─► store ─► cluster          writes
//! cluster ─► feed ─► core ─► replay queue ─► player ─► kernel (inotify)
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`mirror`] | the tree; events in, net changes out (pure) |
//! | [`kernel`] | what the kernel holds, and by which numbers |
//! | [`locked`] | locks that were taken here, and whether they still hold (pure) |
//! | [`swap`] | the `..data` links of directories that want them |
//! | [`handle`] | open files and what was written to them |
//! | [`core`] | all of that under one lock; committing, waiting, barriers |
//! | [`fs`] | what each system call means |
//! | [`fuse`] | translation to and from FUSE, no decision |
//! | [`replay`] | remote changes performed through the own mount |
//! | [`report`] | what the mount says of itself: `/.quorumfs` (pure) |
//! | [`feed`] | the watch stream |
//! | [`store`] | the cluster behind a trait |
//! | [`handover`] | what outlives a worker, for the one that takes its place |
//! | [`inherit`] | taking that up |
//! | [`errno`] | the one table of errors |
//! | [`serve`] | a mount, wired together |

pub mod asked;
pub mod attr;
pub mod core;
pub mod errno;
pub mod feed;
pub mod fs;
pub mod fuse;
pub mod handle;
pub mod handover;
pub mod inherit;
pub mod kernel;
pub mod locked;
pub mod mirror;
pub mod replay;
pub mod report;
pub mod rights;
pub mod serve;
pub mod state;
pub mod store;
pub mod swap;
pub mod told;

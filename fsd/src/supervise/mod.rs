//! The mount outlives the daemon: a small process opens `/dev/fuse`, mounts, and hands the descriptor to a
//! worker that serves it. When the worker is killed, or is to be replaced by a newer program, another one
//! gets the same descriptor, and the kernel notices nothing but a pause.
//!
//! | module | what |
//! |---|---|
//! | `supervisor` | which worker runs, and what becomes of the mount |
//! | `worker` | what a worker does in place of mounting |
//! | `channel` | what the two say to each other, descriptors included |
//! | `mounting` | the system call, or fusermount3 |
//! | `request` | `fsd upgrade`, and who listens to it |

mod channel;
mod mounting;
mod request;
mod supervisor;
mod worker;

pub use request::upgrade;
pub use supervisor::run;
pub use worker::run as run_worker;

/// The hidden flag that tells a worker the number of its end of the channel.
pub const WORKER_FLAG: &str = "--worker";
/// The hidden flag that tells a worker that the mount is there already.
pub const RESUME_FLAG: &str = "--resume";

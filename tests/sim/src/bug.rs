//! Mistakes that are made on purpose, one at a time, to show that the simulation finds them. They live
//! in the simulated parts and in the settings: nothing of them is in what people run.

use clap::ValueEnum;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// A vote is not written to disk: after a restart it is given again.
    VoteNotWritten,
    /// A truncation takes one entry too many off the disk.
    TruncateTooMuch,
    /// The disk says that it has synced, and has not.
    SyncSkipped,
    /// A leader that restarts goes on in its old term (`enable_leader_restore`).
    LeaderRestore,
    /// A node that believes that it leads answers reads without asking a quorum.
    StaleRead,
    /// A retry is proposed without the number of its request.
    RetryTwice,
    /// The leader counts only half of a lease's time.
    LeaseEarly,
    /// One node applies something else than the others.
    ApplyDiffers,
}

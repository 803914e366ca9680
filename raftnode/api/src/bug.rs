//! Bugs that can be put in on purpose, to show that the soak test finds them: `docs/soak.md` lists them.
//!
//! Only a build with the feature `bugs` has them, and only for a process whose environment chooses one.
//! In any other build [`planted`] is a constant, and what stands behind it is not compiled in.

/// Environment variable that chooses the bug of this process, by its name.
pub const VARIABLE: &str = "QUORUMFS_BUG";

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal,)*) => {
        /// A bug that can be put in.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[$doc])* $bug,)*
        }

        /// All of them, by name.
        pub const ALL: &[(&str, Bug)] = &[$(($name, Bug::$bug),)*];
    };
}

bugs! {
    /// A node that believes to lead answers linearizable reads at once, without asking a quorum.
    StaleRead = "stale-read",
    /// Entries are acknowledged before they are on disk; only some of the syncs are done.
    LostFsync = "lost-fsync",
    /// A request that is sent again is done again.
    RetryTwice = "retry-twice",
    /// Watches pass over some revisions.
    WatchSkip = "watch-skip",
    /// Watches show only a part of what a revision changed.
    WatchHalf = "watch-half",
    /// A renewal gives a lease only a part of its time.
    LeaseEarly = "lease-early",
    /// The end of leases is not proposed.
    LeaseForever = "lease-forever",
    /// A lock is granted although somebody else holds it.
    LockTwice = "lock-twice",
    /// A mount publishes a part of a value before the whole.
    TornPublication = "torn-publication",
    /// A mount does not fire the events of some changes.
    LostEvent = "lost-event",
    /// `fsync` on a mount does not wait for what others have committed.
    NoBarrier = "no-barrier",
    /// A node that comes up from a snapshot has some values wrong.
    WrongSnapshot = "wrong-snapshot",
}

/// Whether this bug was put in.
#[cfg(not(feature = "bugs"))]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}

/// Whether this bug was put in.
#[cfg(feature = "bugs")]
pub fn planted(bug: Bug) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(chosen) == Some(bug)
}

#[cfg(feature = "bugs")]
fn chosen() -> Option<Bug> {
    let name = std::env::var(VARIABLE).ok()?;
    let Some((_, bug)) = ALL.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = ALL.iter().map(|(known, _)| *known).collect();
        // A run that is to show that a bug is found must not go on without one.
        eprintln!("{VARIABLE}={name}: no such bug; there are {}", known.join(", "));
        std::process::exit(2);
    };
    eprintln!("{VARIABLE}={name}: this process has a bug on purpose");
    Some(*bug)
}

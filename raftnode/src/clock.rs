//! The time that goes into proposals.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use quorumfs_api::Timestamp;

/// A wall clock that never stands still and never goes back, also when the machine's does.
#[derive(Debug, Default)]
pub struct Clock {
    last: AtomicI64,
}

impl Clock {
    /// Now, and later than everything that was given out or [seen](Clock::saw) before.
    pub fn now(&self) -> Timestamp {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
        let step = |last: i64| Some(wall.max(last + 1));
        let last =
            self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).unwrap_or_else(|last| last);
        Timestamp(wall.max(last + 1))
    }

    /// Somebody else's clock gave this: what this one gives from now on is later.
    pub fn saw(&self, time: Timestamp) {
        self.last.fetch_max(time.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_goes_forward() {
        let clock = Clock::default();
        let first = clock.now();
        let later = Timestamp(first.0 + 3_600_000_000_000);
        clock.saw(later);
        assert_eq!(clock.now(), Timestamp(later.0 + 1));
        assert_eq!(clock.now(), Timestamp(later.0 + 2));
        clock.saw(first);
        assert!(clock.now() > later);
    }
}

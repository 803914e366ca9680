//! What the policy denied, in the log: each with its reason, but not without end. A program that tries
//! for ever must not fill a disk.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Denials that are logged in each [`SPAN`].
const LOGGED: u32 = 20;
/// See [`LOGGED`].
const SPAN: Duration = Duration::from_secs(1);

/// Puts denials into the log.
#[derive(Default)]
pub struct Denials(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    since: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl Denials {
    /// One that the policy decided, and why.
    pub fn log(&self, why: &str) {
        let Some(left_out) = self.0.lock().admit(Instant::now()) else { return };
        if left_out > 0 {
            tracing::warn!("{left_out} more denials were not logged");
        }
        tracing::warn!("denied: {why}");
    }
}

impl Counted {
    /// Whether one more is logged now, and how many were not since the last.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= SPAN) {
            let left_out = self.left_out;
            *self = Counted { since: Some(now), logged: 1, left_out: 0 };
            return Some(left_out);
        }
        if self.logged < LOGGED {
            self.logged += 1;
            return Some(0);
        }
        self.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_logged() {
        let mut counted = Counted::default();
        let begin = Instant::now();
        let logged = (0..1_000).filter(|_| counted.admit(begin).is_some()).count();
        assert_eq!(logged, LOGGED as usize);
        assert_eq!(counted.admit(begin + SPAN), Some(1_000 - u64::from(LOGGED)));
        assert_eq!(counted.admit(begin + SPAN), Some(0));
    }
}

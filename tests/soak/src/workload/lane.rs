//! Keys that several workers share, each for a short history: a checker needs little time for many
//! short ones, and for ever for a long one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use quorumfs_api::Key;

use crate::linear::{self, Operation, Verdict};
use crate::shared::Shared;
use crate::store::key;
use crate::workload::ROOT;

/// Operations on one key, before the next one is taken.
const PER_KEY: u64 = 120;

/// A row of keys, and what was done to each.
pub struct Lane {
    name: &'static str,
    count: AtomicU64,
    values: AtomicU64,
    histories: Mutex<BTreeMap<u64, Vec<Operation>>>,
}

impl Lane {
    /// An empty one.
    pub fn new(name: &'static str) -> Lane {
        Lane {
            name,
            count: AtomicU64::new(0),
            values: AtomicU64::new(1),
            histories: Mutex::new(BTreeMap::new()),
        }
    }

    /// The key for the next operation, and its number.
    pub fn next(&self) -> (u64, Key) {
        let number = self.count.fetch_add(1, Ordering::Relaxed) / PER_KEY;
        (number, self.key(number))
    }

    fn key(&self, number: u64) -> Key {
        key(&format!("{ROOT}/{}/{number}", self.name))
    }

    /// A value that was never used before.
    pub fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes an operation down.
    pub fn record(&self, number: u64, operation: Operation) {
        self.histories.lock().entry(number).or_default().push(operation);
    }

    /// Checks all histories.
    pub fn check(&self, shared: &Shared, check: &'static str) {
        let histories = self.histories.lock();
        let lines = histories
            .iter()
            .flat_map(|(number, all)| all.iter().map(move |operation| format!("{number} {operation:?}")));
        shared.keep(self.name, lines);
        for (number, history) in histories.iter() {
            let found = match linear::check(history) {
                Verdict::Legal => Vec::new(),
                Verdict::Illegal(why) | Verdict::Unknown(why) => vec![why],
            };
            let place = self.key(*number).to_string();
            shared.report.verdict(check, &place, history.len(), found);
        }
    }
}

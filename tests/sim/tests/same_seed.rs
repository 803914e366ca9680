//! The same seed gives the same run, down to every message; another one gives another.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::thread;

use quorumfs_sim::{Options, Report, run};

/// In a thread of its own, so that nothing is left from another run.
fn once(seed: u64) -> Report {
    thread::spawn(move || run(&Options { millis: 2_000, ..Options::new(seed) })).join().unwrap()
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut hashes = BTreeSet::new();
    for seed in 1..=8 {
        let first = once(seed);
        assert!(first.seen > 300, "something happens: {first:?}");
        assert_eq!(first, once(seed), "seed {seed}");
        hashes.insert(first.hash);
    }
    assert_eq!(hashes.len(), 8, "each seed gives a run of its own");
}

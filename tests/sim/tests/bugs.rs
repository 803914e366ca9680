//! The simulation finds what it is made for: with each mistake that is made on purpose some seed breaks a
//! promise, and it is one that the mistake can break.
#![allow(clippy::unwrap_used)]

use quorumfs_sim::{Bug, Options, run};

/// Seeds that are tried; without the mistake none of them fails.
const SEEDS: u64 = 120;

/// Runs seeds until one fails, and says how.
fn caught(bug: Bug, by: &[&str]) {
    for seed in 1..=SEEDS {
        let report = run(&Options { bug: Some(bug), ..Options::new(seed) });
        if let Some(violation) = report.violation {
            eprintln!("{bug:?} is caught with seed {seed}: {violation}");
            assert!(by.contains(&violation.invariant), "by another invariant than expected: {violation}");
            assert_eq!(run(&Options::new(seed)).violation, None, "without the mistake seed {seed} is good");
            return;
        }
    }
    panic!("{bug:?} is not caught within {SEEDS} seeds");
}

/// What a log that loses or changes entries breaks.
const LOG: &[&str] =
    &["election safety", "log matching", "leader completeness", "state machine safety", "convergence"];

#[test]
fn a_vote_that_is_not_written() {
    caught(Bug::VoteNotWritten, LOG);
}

#[test]
fn a_truncation_that_takes_too_much() {
    caught(Bug::TruncateTooMuch, &["log matching"]);
}

#[test]
fn a_sync_that_is_skipped() {
    caught(Bug::SyncSkipped, LOG);
}

#[test]
fn a_leader_that_goes_on_in_its_old_term() {
    caught(Bug::LeaderRestore, &["election safety", "leader completeness", "log matching"]);
}

#[test]
fn a_read_without_a_quorum() {
    caught(Bug::StaleRead, &["linearizability"]);
}

#[test]
fn a_retry_that_is_done_twice() {
    caught(Bug::RetryTwice, &["exactly once"]);
}

#[test]
fn a_lease_that_ends_early() {
    caught(Bug::LeaseEarly, &["lease"]);
}

#[test]
fn a_node_that_applies_something_else() {
    caught(Bug::ApplyDiffers, &["state machine safety"]);
}

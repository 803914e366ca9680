//! Some hundred seeds, none of which may break a promise. `QUORUMFS_SIM_SEEDS` asks for more,
//! `QUORUMFS_SIM_SEED` for others; what fails prints how to replay it.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use quorumfs_sim::{Options, run};

/// Seeds that are run if nobody says how many.
const SEEDS: u64 = 120;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn no_seed_breaks_a_promise() {
    let (first, count) = (number("QUORUMFS_SIM_SEED", 1), number("QUORUMFS_SIM_SEEDS", SEEDS));
    let (next, operations) = (AtomicU64::new(first), AtomicU64::new(0));
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
    let work = || {
        let mut broken = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return broken;
            }
            let report = run(&Options::new(seed));
            operations.fetch_add(report.operations, Ordering::Relaxed);
            if let Some(violation) = report.violation {
                eprintln!("seed {seed}: {violation}\n  replay with: scripts/sim 1 --seed {seed} --trace");
                broken.push(seed);
            }
        }
    };
    let broken: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(broken.is_empty(), "seeds {broken:?} of {first} to {} break a promise", first + count - 1);
    let operations = operations.into_inner();
    eprintln!("{count} seeds, {operations} operations");
    assert!(operations > count * 20, "only {operations} operations: the clusters hardly ever work");
}

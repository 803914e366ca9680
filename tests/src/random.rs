//! Random numbers for tests that must be repeatable.

use std::hash::{BuildHasher as _, Hasher as _};

/// Environment variable that repeats a random test with the seed it printed.
pub const SEED: &str = "QUORUMFS_TEST_SEED";

/// A seed that nobody has chosen.
pub fn seed() -> u64 {
    // The standard library seeds its hash maps from the kernel.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// SplitMix64: small, good enough to choose operations, and the same everywhere for a seed.
pub struct Random(u64);

impl Random {
    /// From the environment if it says so, else a new seed; prints how to repeat the run.
    pub fn for_test(name: &str) -> Random {
        let seed = match std::env::var(SEED) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{SEED}={text}: a number is wanted")),
            Err(_) => seed(),
        };
        eprintln!("{name}: repeat this run with {SEED}={seed}");
        Random(seed)
    }

    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// True so many times of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

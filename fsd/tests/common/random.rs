//! Random numbers that a seed says all about.

/// A simple generator (xorshift, Marsaglia 2003). Its seed must not be 0.
pub struct Random(pub u64);

impl Random {
    /// A number below `below`.
    pub fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// The seed of this run, printed so that it can be given again.
pub fn seed() -> u64 {
    let given = std::env::var("QUORUMFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1);
    eprintln!("QUORUMFS_SEED={seed} does this again");
    seed
}

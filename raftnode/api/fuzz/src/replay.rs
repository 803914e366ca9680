//! Runs a target on stable: over its whole corpus, and then for some seconds over what mutations make of
//! it. The crates with a `fuzz` folder include this file in a test.
//!
//! `QUORUMFS_FUZZ_SECONDS` asks for more or less; a case that fails is printed with its bytes, to be put
//! into the corpus.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Seconds of mutation for each target, if nobody says how many.
const SECONDS: u64 = 3;
/// Cases between two looks at the clock.
const CASES: u32 = 64;

/// One change of some bytes. Positions are parts of 65536 of the length.
#[derive(Clone, Debug)]
enum Mutation {
    Set(u16, u8),
    Flip(u16, u8),
    Insert(u16, Vec<u8>),
    Remove(u16, u8),
    /// A copy of so many bytes from the first to the second place.
    Copy(u16, u16, u8),
    /// Another sample's bytes from a place on.
    Splice(u16, usize, u16),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let odd = prop_oneof![Just(0u8), Just(1), Just(0x7f), Just(0x80), Just(0xff), any::<u8>()];
    prop_oneof![
        (any::<u16>(), odd).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<u16>(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (any::<u16>(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, new)| Mutation::Insert(at, new)),
        (any::<u16>(), any::<u8>()).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (any::<u16>(), any::<u16>(), any::<u8>())
            .prop_map(|(from, to, length)| Mutation::Copy(from, to, length)),
        (any::<u16>(), any::<usize>(), any::<u16>())
            .prop_map(|(at, other, from)| Mutation::Splice(at, other, from)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation, corpus: &[(String, Vec<u8>)]) {
    let place = |length: usize, part: u16| (length * usize::from(part)) >> 16;
    let length = bytes.len();
    match mutation {
        Mutation::Set(at, byte) if length > 0 => bytes[place(length, *at)] = *byte,
        Mutation::Flip(at, bit) if length > 0 => bytes[place(length, *at)] ^= 1 << bit,
        Mutation::Insert(at, new) => {
            drop(bytes.splice(place(length, *at)..place(length, *at), new.iter().copied()))
        }
        Mutation::Remove(at, count) => {
            let from = place(length, *at);
            bytes.drain(from..(from + usize::from(*count)).min(length));
        }
        Mutation::Copy(from, to, count) => {
            let from = place(length, *from);
            let part = bytes[from..(from + usize::from(*count)).min(length)].to_vec();
            bytes.splice(place(length, *to)..place(length, *to), part);
        }
        Mutation::Splice(at, other, from) => {
            let other = &corpus[other % corpus.len()].1;
            bytes.truncate(place(length, *at));
            bytes.extend_from_slice(&other[place(other.len(), *from)..]);
        }
        Mutation::Set(..) | Mutation::Flip(..) => {}
    }
}

fn fails(run: fn(&[u8]), bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| run(bytes))).is_err()
}

/// Runs `run` over the corpus in `fuzz/corpus/NAME` of the crate at `root`, and over mutations of it.
pub fn replay(root: &str, name: &str, run: fn(&[u8])) {
    let dir = Path::new(root).join("fuzz/corpus").join(name);
    let mut corpus: Vec<(String, Vec<u8>)> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    corpus.sort();
    assert!(!corpus.is_empty(), "{} is empty", dir.display());
    for (file, bytes) in &corpus {
        assert!(!fails(run, bytes), "{file} in {} fails", dir.display());
    }
    let seconds = std::env::var("QUORUMFS_FUZZ_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let first = match Config::default().rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => std::process::id().into(),
    };
    eprintln!("{name}: {} samples; replay with: PROPTEST_RNG_SEED={first}", corpus.len());
    let cases = (any::<usize>(), prop::collection::vec(mutation(), 1..8));
    for round in 0.. {
        if Instant::now() >= until {
            break;
        }
        let rng_seed = RngSeed::Fixed(first.wrapping_add(round));
        let config = Config { cases: CASES, failure_persistence: None, rng_seed, ..Config::default() };
        let tried = TestRunner::new(config).run(&cases, |(sample, mutations)| {
            let mut bytes = corpus[sample % corpus.len()].1.clone();
            mutations.iter().for_each(|mutation| mutate(&mut bytes, mutation, &corpus));
            let shown = || bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            prop_assert!(!fails(run, &bytes), "it fails for {}", shown());
            Ok(())
        });
        if let Err(error) = tried {
            panic!("{name}: {error}");
        }
    }
}

//! Faults inside of a node: a clock that is wrong, a disk that is slow, full or broken, datagrams that come
//! twice or late. A library that is loaded into the process makes them (crate `quorumfs-faults`).

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::binaries::binary;

/// The library.
const LIBRARY: &str = "libquorumfs_faults.so";
/// Numbers in the file that says what goes wrong, in the order of `tests/faults`.
const FIELDS: usize = 6;
const CLOCK: usize = 0;
const DISK_ERROR: usize = 1;
const SYNC_DELAY: usize = 2;
const TWICE: usize = 3;
const LATE: usize = 4;
const LATE_MAX: usize = 5;

/// What goes wrong in one process; nothing at first, and after [`Faults::heal`].
#[derive(Clone, Debug)]
pub struct Faults {
    file: PathBuf,
}

impl Faults {
    /// Said by a file of that name.
    pub fn new(file: PathBuf) -> Faults {
        fs::write(&file, [0; FIELDS * size_of::<i64>()]).unwrap_or_else(|e| panic!("{file:?}: {e}"));
        Faults { file }
    }

    /// Makes a command's process hear of it.
    pub fn enter(&self, command: &mut Command) {
        command.env("LD_PRELOAD", binary(LIBRARY)).env("QUORUMFS_FAULTS", &self.file);
    }

    fn set(&self, field: usize, value: i64) {
        set(&self.file, field, value);
    }

    /// Its clock is wrong by so many milliseconds.
    pub fn clock(&self, millis: i64) {
        self.set(CLOCK, millis * 1_000_000);
    }

    /// Its disk fails with this error number, or with none for 0.
    pub fn disk(&self, error: i32) {
        self.set(DISK_ERROR, error.into());
    }

    /// Each sync of its takes so much longer.
    pub fn slow_disk(&self, delay: Duration) {
        self.set(SYNC_DELAY, delay.as_micros() as i64);
    }

    /// Of a hundred datagrams that it sends, so many come twice, and so many up to `late_max` later.
    pub fn datagrams(&self, twice: u8, late: u8, late_max: Duration) {
        self.set(TWICE, twice.into());
        self.set(LATE_MAX, late_max.as_micros() as i64);
        self.set(LATE, late.into());
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        (0..FIELDS).for_each(|field| self.set(field, 0));
    }
}

fn set(file: &Path, field: usize, value: i64) {
    let written = fs::File::options()
        .write(true)
        .open(file)
        .and_then(|open| open.write_all_at(&value.to_ne_bytes(), (field * size_of::<i64>()) as u64));
    written.unwrap_or_else(|e| panic!("{file:?}: {e}"));
}

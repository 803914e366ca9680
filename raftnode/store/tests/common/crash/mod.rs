//! Power cuts: a run of the store on a disk that remembers everything, and for each moment of it what
//! a power cut would have left, opened again and compared with what was acknowledged.

pub mod check;
pub mod content;
pub mod disk;
pub mod image;
pub mod model;
pub mod random;
pub mod run;

/// A directory for files that need not be durable: syncs of them cost nothing where there is a file
/// system in memory.
pub fn quick_dir() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

//! A node of the replicated store: see `raftnode --help`.

use std::process::ExitCode;

/// Rows, entries and messages are many small pieces that come and go: here they cost half of what they do
/// with the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    raftnode::run::run()
}

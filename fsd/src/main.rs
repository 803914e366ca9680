//! `fsd`: mounts a quorumfs store. See `fsd --help`.

mod cli;
mod daemon;
mod dev;
mod log;
mod mount;
mod mountpoint;
mod options;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run().unwrap_or_else(|error| {
        // The whole chain: what was tried, and why it failed.
        eprintln!("fsd: {error:#}");
        ExitCode::FAILURE
    })
}

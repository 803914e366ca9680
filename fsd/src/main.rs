//! `fsd`: mounts a quorumfs store. See `fsd --help`.

mod cli;
mod daemon;
mod dev;
mod helper;
mod log;
mod mount;
mod mountpoint;
mod options;
mod status;
mod supervise;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}

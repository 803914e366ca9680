//! `soak MINUTES [--seed N]`: see the library.

use std::process::ExitCode;

use clap::Parser;
use quorumfs_soak::planted;
use quorumfs_soak::run::{Options, run};
use quorumfs_soak::workload::writer;

/// The argument that lists the bugs that can be put in, and how each is found, for scripts.
const LIST_BUGS: &str = "--list-bugs";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(writer::ARGUMENT) => {
            return if writer::serve().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Some(LIST_BUGS) => {
            planted::list().for_each(|line| println!("{line}"));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    match run(&Options::parse()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

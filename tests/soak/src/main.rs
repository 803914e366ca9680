//! `soak MINUTES [--seed N]`: see the library.

use std::process::ExitCode;

use clap::Parser;
use quorumfs_soak::run::{Options, run};
use quorumfs_soak::workload::writer;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == writer::ARGUMENT) {
        return if writer::serve().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match run(&Options::parse()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

//! `certs`: makes the CA and the identities of a quorumfs cluster, and shows them.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let mut text = String::new();
    let result = cli::run(cli::Cli::parse(), &mut text);
    // Written by hand: `print!` panics when the reader (`head`) is gone.
    let written = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    match result {
        Ok(()) if written.is_ok() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("certs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

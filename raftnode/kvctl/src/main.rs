//! The command line of quorumfs.

mod cli;
mod cluster;
mod error;
mod key;
mod lease;
mod lock;
mod output;
mod policy;
mod read;
mod session;
mod table;
mod txn;
mod watch;
mod write;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("QUORUMFS_LOG").unwrap_or_else(|_| "off".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match cli.run() {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}

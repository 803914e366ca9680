//! A node of the replicated store: see `raftnode --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    raftnode::run::run()
}

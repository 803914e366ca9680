//! `scripts/bench`: measures quorumfs and etcd side by side, in one run on one machine.

mod disk;
mod etcd;
mod etcd_api;
mod events;
mod files;
mod load;
mod output;
mod plot;
mod process;
mod quorum;
mod report;
mod run;
mod stats;

use std::process::ExitCode;

use clap::Parser;

fn main() -> anyhow::Result<ExitCode> {
    let args = output::Args::parse();
    let plan = args.plan()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = run::run(&plan) => report,
            // Dropping the run ends what it has started.
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    })?;
    print!("{}", report.table());
    output::write(&args, &report)?;
    Ok(ExitCode::SUCCESS)
}

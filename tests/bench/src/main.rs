//! `scripts/bench`: measures quorumfs and etcd side by side, in one run on one machine.

mod cost;
mod disk;
mod etcd;
mod etcd_api;
mod etcd_tls;
mod events;
mod failover;
mod fanout;
mod files;
mod load;
mod output;
mod plot;
mod process;
mod quorum;
mod replay;
mod report;
mod run;
mod scale;
mod stats;
mod trees;

use std::process::ExitCode;

use clap::Parser;

fn main() -> anyhow::Result<ExitCode> {
    let args = output::Args::parse();
    let plan = args.plan()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(clients) = args.cost() {
        runtime.block_on(async {
            tokio::select! {
                done = cost::run(&plan, clients, args.with_etcd()) => done,
                _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
            }
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(part) = args.only() {
        let rows = runtime.block_on(run::only(&plan, part))?;
        print!("{}", report::table(&rows));
        return Ok(ExitCode::SUCCESS);
    }
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

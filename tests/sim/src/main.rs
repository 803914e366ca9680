//! Runs seeds of the simulation, or one of them with everything that happens in it.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use quorumfs_sim::{Bug, Options, run};

/// Simulates a cluster that everything goes wrong in, and checks that no promise is broken.
#[derive(Parser)]
#[command(name = "sim")]
struct Cli {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// For how long things go wrong in each, in simulated milliseconds.
    #[arg(long, default_value_t = 4_000)]
    millis: u64,
    /// Make a mistake on purpose.
    #[arg(long, value_enum)]
    bug: Option<Bug>,
    /// Show everything that happens.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let began = Instant::now();
    let (mut millis, mut operations, mut failed) = (0, 0, 0);
    for seed in cli.seed..cli.seed.saturating_add(cli.seeds) {
        let options = Options { seed, bug: cli.bug, millis: cli.millis, print: cli.trace };
        let report = run(&options);
        millis += report.millis;
        operations += report.operations;
        if let Some(violation) = &report.violation {
            failed += 1;
            println!("seed {seed}: {violation}");
            println!("  replay with: scripts/sim 1 --seed {seed} --millis {} --trace", cli.millis);
        } else if cli.seeds == 1 {
            println!("seed {seed}: {report:?}");
        }
    }
    println!(
        "{} seed(s), {:.0} simulated seconds, {operations} operations, {failed} failed, in {:.1} s",
        cli.seeds,
        millis as f64 / 1e3,
        began.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

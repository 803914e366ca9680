//! The command line, and the files that a run leaves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use crate::plot;
use crate::report::Report;
use crate::run::{Part, Plan};

/// Measures quorumfs and etcd side by side.
#[derive(Debug, Parser)]
pub struct Args {
    /// Short rounds and a smaller store: a first look, in a few minutes.
    #[arg(long)]
    quick: bool,
    /// Only say what puts and gets cost, for these numbers of clients.
    #[arg(long, value_name = "CLIENTS", value_delimiter = ',')]
    cost: Option<Vec<usize>>,
    /// With `--cost`: without etcd beside it.
    #[arg(long)]
    alone: bool,
    /// Only measure this part.
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Length of a round in seconds.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Also write benchmarks.md, .json and .svg into this directory.
    #[arg(long, value_name = "DIR")]
    publish: Option<PathBuf>,
    /// Where the programs of quorumfs are (beside this one if not given).
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Where results go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where the data of both sides live during the run; to be on a disk.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

impl Args {
    /// Numbers of clients for which only the costs are asked.
    pub fn cost(&self) -> Option<&[usize]> {
        self.cost.as_deref()
    }

    /// Whether etcd runs beside.
    pub fn with_etcd(&self) -> bool {
        !self.alone
    }

    /// The one part that is asked, if it is only one.
    pub fn only(&self) -> Option<Part> {
        self.only
    }

    /// What is to be done.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        let beside = || -> anyhow::Result<PathBuf> {
            let program = std::env::current_exe().context("finding this program")?;
            Ok(program.parent().unwrap_or(Path::new("/")).to_path_buf())
        };
        let bin = self.bin.clone().map_or_else(beside, Ok)?;
        let data = self
            .data
            .canonicalize()
            .with_context(|| format!("the directory for the data, {:?}", self.data))?;
        let (rounds, seconds) = if self.quick { (2, 2) } else { (3, 5) };
        let seconds = self.seconds.unwrap_or(seconds);
        Ok(Plan { bin, data, rounds, time: Duration::from_secs(seconds), quick: self.quick })
    }
}

/// Writes the results, and says where.
pub fn write(args: &Args, report: &Report) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report).context("writing the figures as JSON")?;
    let mut directories = vec![args.out.as_path()];
    directories.extend(args.publish.as_deref());
    for dir in directories {
        std::fs::create_dir_all(dir).with_context(|| format!("making {dir:?}"))?;
        std::fs::write(dir.join("benchmarks.json"), format!("{json}\n"))?;
        std::fs::write(dir.join("benchmarks.md"), report.page())?;
        plot::draw(&report.puts, &dir.join("benchmarks.svg"))?;
        eprintln!("bench: figures, table and plot are in {}", dir.display());
    }
    Ok(())
}

//! The program: logs, signals, exit codes.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{Action, Cli, Config};
use crate::node::{Node, NodeError};

/// What is logged when RUST_LOG says nothing: openraft tells every vote and stream at `info`.
/// Streams that end because the node stops are errors to it.
const LOG_DEFAULT: &str = "info,openraft=error,openraft::raft=off";

/// Runs what the command line says. 0: done, or stopped as asked; 1: failed; 2: a bad command line or
/// configuration.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let config = match Config::load(&cli) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("raftnode: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match runtime(config.threads) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("raftnode: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match cli.action {
            Some(Action::Init) => Node::init(&config).await,
            None => serve(config).await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raftnode: {error}");
            ExitCode::FAILURE
        }
    }
}

/// On one thread nothing has to be handed from core to core: on a small host that is most of the price
/// of a request.
fn runtime(threads: usize) -> std::io::Result<Runtime> {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build()
}

/// Runs a node until it is asked to stop, or fails.
async fn serve(config: Config) -> Result<(), NodeError> {
    let handlers =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = handlers else {
        return Err(NodeError::Signals);
    };
    let node = Node::start(config).await?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return node.stop().await,
            _ = interrupt.recv() => return node.stop().await,
            _ = hangup.recv() => match node.reload_certificates() {
                Ok(true) => {}
                Ok(false) => tracing::info!("SIGHUP: the certificates are the ones in use"),
                // The reason is logged where it was found.
                Err(_) => {}
            },
            error = node.wait() => {
                tracing::error!("{error}");
                return Err(error);
            }
        }
    }
}

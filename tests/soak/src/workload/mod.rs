//! The workloads, each with its checker.

pub mod append;
pub mod lane;
pub mod lease;
pub mod lock;
pub mod mount;
pub mod register;
pub mod rename;
pub mod set;
pub mod swap;
pub mod watch;
pub mod writer;

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::shared::Shared;

/// Where all workloads keep their keys: the watchers watch this directory.
pub const ROOT: &str = "/soak";

/// Those that must have done something for a run to prove anything.
pub const NAMES: [&str; 9] = ["register", "swap", "append", "set", "lock", "lease", "rename", "txn", "watch"];

/// Starts all of them. Each ends after the run has settled, when it has checked what it has seen.
pub fn start(shared: &Arc<Shared>, from: u64) -> JoinSet<()> {
    let mut all = JoinSet::new();
    all.spawn(register::run(shared.clone()));
    all.spawn(swap::run(shared.clone()));
    all.spawn(append::run(shared.clone()));
    all.spawn(set::run(shared.clone()));
    all.spawn(lock::run(shared.clone()));
    all.spawn(lease::run(shared.clone()));
    all.spawn(rename::run(shared.clone()));
    all.spawn(watch::run(shared.clone(), from));
    for host in 0..shared.mounts.len() {
        let shared = shared.clone();
        // Calls on a mount block, however long the cluster is away.
        all.spawn(async move {
            let name = format!("mount {host}");
            let ended = tokio::task::spawn_blocking({
                let shared = shared.clone();
                move || mount::run(&shared, host)
            });
            if let Err(error) = ended.await {
                shared.report.violation("the harness works", name, error.to_string());
            }
        });
    }
    all
}

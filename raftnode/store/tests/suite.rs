//! openraft's own suite for logs and state machines.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use quorumfs_store::{LogStore, StateMachine, StoreGuard, TypeConfig};
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, (TempDir, StoreGuard)> for Builder {
    async fn build(
        &self,
    ) -> Result<((TempDir, StoreGuard), LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = common::open(dir.path());
        Ok(((dir, store.guard), store.log, store.machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}

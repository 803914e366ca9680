//! The fuzz target of this crate, on stable: see `raftnode/api/fuzz/src/replay.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../api/fuzz/src/replay.rs"]
mod replay;
#[path = "../fuzz/src/lib.rs"]
mod target;

#[test]
fn config() {
    replay::replay(env!("CARGO_MANIFEST_DIR"), "config", target::config);
}

//! The fuzz targets of this crate, on stable: see `fuzz/src/replay.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/src/replay.rs"]
mod replay;
#[path = "../fuzz/src/lib.rs"]
mod target;

#[test]
fn wire() {
    replay::replay(env!("CARGO_MANIFEST_DIR"), "wire", target::wire);
}

#[test]
fn keys() {
    replay::replay(env!("CARGO_MANIFEST_DIR"), "keys", target::keys);
}

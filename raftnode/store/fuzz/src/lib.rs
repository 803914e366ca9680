//! What is fuzzed: the stream of a snapshot, as a member gets it from another. The same function runs on
//! stable, in `tests/corpus.rs` of the crate above.
//!
//! `cargo +nightly fuzz run snapshot` in the crate's folder.

use quorumfs_api::codec::{FrameKind, VERSION};
use quorumfs_machine::{MemTables, Table, Tables};
use quorumfs_store::{Row, read_snapshot, write_snapshot};

/// A snapshot that can be read can be written, and is then read as the same. The input is read as it is,
/// and again with the lengths and checksums of its frames put right, so that what lies behind them is
/// reached, too.
pub fn snapshot(data: &[u8]) {
    check(data);
    check(&mended(data));
}

fn rows(bytes: &[u8]) -> Option<(Vec<Row>, quorumfs_store::SnapshotMeta)> {
    let mut rows = Vec::new();
    let meta = read_snapshot(bytes, |part| {
        rows.extend(part);
        Ok(())
    });
    meta.ok().map(|meta| (rows, meta))
}

fn check(bytes: &[u8]) {
    let Some((found, meta)) = rows(bytes) else { return };
    let mut tables = MemTables::default();
    for (table, key, value) in &found {
        let table = Table::from_number(*table);
        assert!(table.is_some(), "rows of a table that is not there were let through");
        let Some(table) = table else { return };
        assert!(tables.put(table, key, value.clone()).is_ok());
    }
    let mut written = Vec::new();
    assert!(write_snapshot(&tables, &meta, &mut written).is_ok());
    assert_eq!(rows(&written), Some((found, meta)), "what was written is read as something else");
}

/// The frames of `data`, each with the length that it says (or what is left) and its own checksum; a
/// trailer gets the checksum of all before it.
fn mended(mut data: &[u8]) -> Vec<u8> {
    /// Length in front, version and kind, checksum behind.
    const AROUND: (usize, usize, usize) = (4, 2, 4);
    /// How a trailer begins.
    const TRAILER: u8 = 2;
    let mut out = Vec::new();
    let mut all = crc32fast::Hasher::new();
    while let Some((length, rest)) = data.split_first_chunk::<{ AROUND.0 }>() {
        let length = (u32::from_le_bytes(*length) as usize).min(rest.len());
        let (frame, after) = rest.split_at(length);
        data = after;
        let mut content = vec![VERSION, FrameKind::Snapshot as u8];
        let end = frame.len().saturating_sub(AROUND.2).max(AROUND.1.min(frame.len()));
        content.extend_from_slice(&frame[AROUND.1.min(frame.len())..end]);
        if content.get(2) == Some(&TRAILER)
            && let Ok((count, _)) = postcard::take_from_bytes::<u64>(&content[3..])
            && let Ok(trailer) = postcard::to_stdvec(&(TRAILER, count, all.clone().finalize()))
        {
            content.truncate(2);
            content.extend_from_slice(&trailer);
        }
        let crc = crc32fast::hash(&content);
        content.extend_from_slice(&crc.to_le_bytes());
        let from = out.len();
        out.extend_from_slice(&(content.len() as u32).to_le_bytes());
        out.extend_from_slice(&content);
        all.update(&out[from..]);
    }
    out
}

//! What is fuzzed. The same functions run over the committed corpus on stable, in
//! `tests/corpus.rs` of the crate above.
//!
//! `cargo +nightly fuzz run wire` (or `keys`) in the crate's folder.

use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::wire::{Hello, Reply, Request, WatchFrame};
use quorumfs_api::{Key, Name, Proposal, Record};

/// The first byte chooses a kind, the rest is the body of a frame: what can be read can be written,
/// and is then read as the same.
pub fn wire(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    match which % 6 {
        0 => body_of::<Hello>(FrameKind::Hello, body),
        1 => body_of::<Request>(FrameKind::Request, body),
        2 => body_of::<Reply>(FrameKind::Reply, body),
        3 => body_of::<WatchFrame>(FrameKind::Watch, body),
        4 => body_of::<Proposal>(FrameKind::Entry, body),
        _ => body_of::<Record>(FrameKind::Row, body),
    }
    // The frame itself, as it comes.
    let _ = codec::decode_whole::<Reply>(FrameKind::Reply, data);
}

fn body_of<T>(kind: FrameKind, body: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let mut frame = vec![codec::VERSION, kind as u8];
    frame.extend_from_slice(body);
    let crc = crc32fast::hash(&frame);
    frame.extend_from_slice(&crc.to_le_bytes());
    let Ok(read) = codec::decode::<T>(kind, &frame) else { return };
    let Ok(written) = codec::encode(kind, &read) else { return };
    let again = codec::decode_whole::<T>(kind, &written);
    assert_eq!(again.ok().as_ref(), Some(&read), "what was written is read as something else");
}

/// Keys and names from any bytes.
pub fn keys(data: &[u8]) {
    let _ = Name::new(data);
    let Ok(key) = Key::from_user(data) else { return };
    assert_eq!(Key::parse(key.as_bytes().to_vec()).as_ref(), Ok(&key), "a key is canonical");
    match key.split() {
        Some((parent, name)) => assert_eq!(parent.join(&name).as_ref(), Ok(&key)),
        None => assert!(key.is_root()),
    }
    assert!(key.is_within(&Key::root()));
}

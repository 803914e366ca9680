//! Arbitrary and damaged bytes: decoding never panics, and never allocates more than came.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::limits::FRAME_MAX;
use quorumfs_api::wire::{Hello, Reply, Request, WatchFrame};
use quorumfs_api::{Key, Name, Proposal, Record};

/// Remembers the largest single allocation of the thread.
struct Watching;
thread_local!(static LARGEST: Cell<usize> = const { Cell::new(0) });
// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}
#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// The largest allocation while `work` runs.
fn largest(work: impl FnOnce()) -> usize {
    LARGEST.with(|largest| largest.set(0));
    work();
    LARGEST.with(Cell::get)
}

/// What a sequence may reserve ahead: serde stops at 1 MiB, whatever length is claimed.
const AHEAD: usize = 2 << 20;

fn decode_all(bytes: &[u8]) {
    let _ = codec::decode::<Hello>(FrameKind::Hello, bytes);
    let _ = codec::decode::<Request>(FrameKind::Request, bytes);
    let _ = codec::decode::<Reply>(FrameKind::Reply, bytes);
    let _ = codec::decode::<WatchFrame>(FrameKind::Watch, bytes);
    let _ = codec::decode_whole::<Proposal>(FrameKind::Entry, bytes);
    let _ = codec::decode_whole::<Record>(FrameKind::Row, bytes);
}

/// A frame around any body, with a checksum that is right, so that the body is really read.
fn framed(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![codec::VERSION, kind as u8];
    frame.extend_from_slice(body);
    let crc = crc32fast::hash(&frame);
    frame.extend_from_slice(&crc.to_le_bytes());
    frame
}

fn whole(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_le_bytes()[..], frame].concat()
}

fn check_body(body: &[u8]) -> Result<(), TestCaseError> {
    let used = largest(|| {
        decode_all(&framed(FrameKind::Hello, body));
        decode_all(&framed(FrameKind::Request, body));
        decode_all(&framed(FrameKind::Reply, body));
        decode_all(&framed(FrameKind::Watch, body));
        decode_all(&whole(&framed(FrameKind::Entry, body)));
        decode_all(&whole(&framed(FrameKind::Row, body)));
    });
    prop_assert!(used <= AHEAD + 4 * body.len(), "{} bytes made it allocate {used} at once", body.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let used = largest(|| decode_all(&bytes));
        prop_assert!(used <= AHEAD);
    }

    #[test]
    fn bodies_with_a_right_checksum(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_body(&body)?;
    }

    #[test]
    fn damaged_messages(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let messages = common::messages();
        let (_, bytes) = &messages[which.index(messages.len())];
        // Without length, version, kind and checksum: these are put right again.
        let mut body = bytes[6..bytes.len() - 4].to_vec();
        for (at, value) in damage {
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = value;
            }
        }
        if let Some(cut) = cut {
            body.truncate(cut.index(body.len() + 1));
        }
        check_body(&body)?;
    }

    #[test]
    fn a_stream_of_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let used = largest(|| {
            let mut stream = &bytes[..];
            let _ = futures::executor::block_on(codec::read::<Reply, _>(FrameKind::Reply, &mut stream));
        });
        prop_assert!(used <= AHEAD, "it allocated {used} at once");
    }

    #[test]
    fn keys_and_names(bytes in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..5000)) {
        if let Ok(key) = Key::parse(bytes.clone()) {
            prop_assert_eq!(key.as_bytes(), &bytes[..]);
            // The parts make the whole again.
            let mut built = Key::root();
            for name in key.names() {
                built = built.join(&name).unwrap();
            }
            prop_assert_eq!(&built, &key);
        }
        if let Ok(key) = Key::from_user(&bytes) {
            prop_assert_eq!(Key::parse(key.as_bytes().to_vec()).unwrap(), key);
        }
        let _ = Name::new(bytes);
    }
}

#[test]
fn a_length_that_lies_is_refused_before_it_costs_anything() {
    let used = largest(|| {
        let mut stream: &[u8] = &u32::MAX.to_le_bytes();
        let got = futures::executor::block_on(codec::read_frame(&mut stream));
        assert!(matches!(got, Err(codec::DecodeError::TooLong(_))));
        // The most that may be claimed, with nothing behind it.
        let claim = (FRAME_MAX as u32).to_le_bytes();
        let mut stream: &[u8] = &claim;
        assert!(futures::executor::block_on(codec::read_frame(&mut stream)).is_err());
    });
    assert!(used <= 256 << 10, "it allocated {used} at once");
}

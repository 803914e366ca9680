//! Events as frames. Most watchers of a store watch the same subtree and stand at the same revision:
//! what was rendered for one is kept for a moment, and serves the others.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quorumfs_api::Key;
use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::codec::{self, EncodeError, FrameKind};
use quorumfs_api::event::Event;
use quorumfs_api::record::Revision;
use quorumfs_api::rights::{Access, Rights};
use quorumfs_api::wire::WatchFrame;
use quorumfs_machine::{Filtered, event_bytes, filter, see};

/// Bytes of events in one frame. A larger event has a frame of its own.
const FRAME_BYTES: usize = 1 << 20;
/// Batches that are kept.
const KEPT: usize = 16;
/// A batch that is larger is not kept.
const KEPT_BYTES: usize = 256 << 10;

/// What a watcher of one prefix gets for some revisions.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Frames, one after the other; empty if nothing of it concerns the prefix.
    pub frames: Bytes,
    /// How many events are in them.
    pub events: u64,
    /// Revision of the last of these.
    pub passed: Option<Revision>,
    /// The last revision that was looked at.
    pub last: Revision,
    /// At this revision the watcher needs a new copy; what comes after is not in the frames.
    pub copy_at: Option<Revision>,
}

struct Kept {
    prefix: Key,
    mirrored: bool,
    lens: Option<Arc<Rights>>,
    after: Revision,
    last: Revision,
    batch: Arc<Batch>,
}

/// Renders batches.
#[derive(Default)]
pub(super) struct Renderer {
    kept: Mutex<VecDeque<Kept>>,
}

impl Renderer {
    /// `events` come after revision `after`, without a gap. Only what these rights let be seen is in it;
    /// those who see all of the prefix share what is rendered, and those who have the same rights. With
    /// `mirrored`, the watcher has a copy of the subtree, and takes a new one where events do not do.
    pub fn render(
        &self,
        prefix: &Key,
        mirrored: bool,
        rights: &Arc<Rights>,
        after: Revision,
        events: &[Arc<Event>],
    ) -> Result<Arc<Batch>, EncodeError> {
        let Some(last) = events.last().map(|event| event.revision) else {
            return Ok(Arc::new(Batch { last: after, ..Batch::default() }));
        };
        let lens = (!rights.covers(prefix, Access::Read)).then_some(rights);
        let same = |kept: &&Kept| {
            kept.after == after
                && kept.last == last
                && kept.mirrored == mirrored
                && kept.prefix == *prefix
                && kept.lens.as_ref().map(Arc::as_ptr) == lens.map(Arc::as_ptr)
        };
        if let Some(kept) = self.kept.lock().iter().find(same) {
            return Ok(kept.batch.clone());
        }
        let batch = Arc::new(render(prefix, mirrored, lens.map(Arc::as_ref), last, events)?);
        if batch.frames.len() <= KEPT_BYTES {
            let mut kept = self.kept.lock();
            kept.truncate(KEPT - 1);
            kept.push_front(Kept {
                prefix: prefix.clone(),
                mirrored,
                lens: lens.cloned(),
                after,
                last,
                batch: batch.clone(),
            });
        }
        Ok(batch)
    }
}

fn render(
    prefix: &Key,
    mirrored: bool,
    lens: Option<&Rights>,
    last: Revision,
    events: &[Arc<Event>],
) -> Result<Batch, EncodeError> {
    let mut batch = Batch { last, ..Batch::default() };
    let mut frames = Vec::new();
    let (mut frame, mut bytes) = (Vec::new(), 0);
    for event in events {
        let filtered = match (filter(event, prefix), lens) {
            (Filtered::Pass(event), Some(rights)) => see(event, rights),
            (Filtered::Root(event), Some(rights)) if !mirrored => see(event, rights),
            (filtered, _) => filtered,
        };
        let passed = match filtered {
            Filtered::Nothing => continue,
            Filtered::Pass(_) if planted(Bug::WatchSkip) && event.revision.is_multiple_of(SKIPPED_OF) => {
                continue;
            }
            Filtered::Pass(passed) => passed,
            Filtered::Root(passed) if !mirrored => passed,
            Filtered::Copy | Filtered::Root(_) => {
                batch.copy_at = Some(event.revision);
                batch.last = event.revision;
                break;
            }
        };
        let passed = if planted(Bug::WatchHalf) { half(passed) } else { passed };
        let cost = event_bytes(&passed);
        if bytes + cost > FRAME_BYTES && !frame.is_empty() {
            let full = std::mem::take(&mut frame);
            codec::encode_into(FrameKind::Watch, &WatchFrame::Events(full), &mut frames)?;
            bytes = 0;
        }
        bytes += cost;
        batch.events += 1;
        batch.passed = Some(event.revision);
        frame.push(passed);
    }
    if !frame.is_empty() {
        codec::encode_into(FrameKind::Watch, &WatchFrame::Events(frame), &mut frames)?;
    }
    batch.frames = frames.into();
    Ok(batch)
}

/// With [`Bug::WatchSkip`], one of so many revisions is passed over.
const SKIPPED_OF: Revision = 64;

/// With [`Bug::WatchHalf`], what is left of a revision that changed several things.
fn half(mut event: Event) -> Event {
    event.changes.truncate(event.changes.len().div_ceil(2));
    event
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use quorumfs_api::event::{Change, Place};
    use quorumfs_api::rights::Grant;
    use quorumfs_api::{Ino, Kind, Name, Record, Timestamp};

    fn put(revision: Revision, key: &str, bytes: usize) -> Arc<Event> {
        let key = Key::parse(key.to_owned()).unwrap();
        let name: Name = key.split().unwrap().1;
        let record = Record {
            ino: Ino(7),
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            atime: Timestamp(0),
            mtime: Timestamp(0),
            ctime: Timestamp(0),
            create_revision: 1,
            mod_revision: revision,
            version: 1,
            lease: None,
            author: "".into(),
            xattrs: vec![],
            value: vec![0; bytes].into(),
        };
        let place = Place { key, parent: Ino::ROOT, name };
        let changes = vec![Change::Update { place, record }];
        Arc::new(Event { revision, time: Timestamp(0), session: None, author: "a".into(), changes })
    }

    fn frames(mut bytes: &[u8]) -> Vec<Vec<Revision>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = 4 + u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
            match codec::decode_whole(FrameKind::Watch, &bytes[..length]).unwrap() {
                WatchFrame::Events(events) => found.push(events.iter().map(|event| event.revision).collect()),
                other => panic!("{other:?}"),
            }
            bytes = &bytes[length..];
        }
        found
    }

    #[test]
    fn events_are_filtered_batched_and_shared() {
        let renderer = Renderer::default();
        let events = [put(5, "/a/x", 10), put(6, "/b/x", 10), put(7, "/a/y", 10), put(8, "/b/y", 10)];
        let prefix = Key::parse("/a").unwrap();
        let all = Arc::new(Rights::all());
        let batch = renderer.render(&prefix, true, &all, 4, &events).unwrap();
        assert_eq!(frames(&batch.frames), [vec![5, 7]]);
        assert_eq!((batch.passed, batch.last, batch.events), (Some(7), 8, 2));
        assert!(Arc::ptr_eq(&batch, &renderer.render(&prefix, true, &all, 4, &events).unwrap()));
        let other = renderer.render(&Key::root(), true, &all, 4, &events).unwrap();
        assert_eq!(frames(&other.frames), [vec![5, 6, 7, 8]]);
    }

    #[test]
    fn who_has_no_copy_sees_the_watched_directory_go() {
        let place =
            Place { key: Key::parse("/a").unwrap(), parent: Ino::ROOT, name: Name::new("a").unwrap() };
        let changes = vec![Change::Remove { place, ino: Ino(7), kind: Kind::Dir }];
        let gone = Event { changes, ..(*put(5, "/a", 0)).clone() };
        let events = [Arc::new(gone), put(6, "/a/x", 10)];
        let prefix = Key::parse("/a").unwrap();
        let renderer = Renderer::default();
        let all = Arc::new(Rights::all());
        let follower = renderer.render(&prefix, false, &all, 4, &events).unwrap();
        assert_eq!((frames(&follower.frames), follower.copy_at), (vec![vec![5, 6]], None));
        let mirror = renderer.render(&prefix, true, &all, 4, &events).unwrap();
        assert_eq!((mirror.events, mirror.copy_at), (0, Some(5)));
    }

    #[test]
    fn each_sees_what_its_rights_show() {
        let renderer = Renderer::default();
        let events = [put(5, "/a/x", 10), put(6, "/b/x", 10), put(7, "/a/y", 10)];
        let path = |text: &str| Key::parse(text.to_owned()).unwrap();
        let some = |line| {
            let grant = Grant { path: path("/a/x"), access: Access::Read, line };
            Arc::new(Rights::new(false, [grant]))
        };
        let (one, other) = (some(1), some(2));
        let batch = renderer.render(&Key::root(), true, &one, 4, &events).unwrap();
        assert_eq!(frames(&batch.frames), [vec![5]]);
        assert!(Arc::ptr_eq(&batch, &renderer.render(&Key::root(), true, &one, 4, &events).unwrap()));
        assert!(!Arc::ptr_eq(&batch, &renderer.render(&Key::root(), true, &other, 4, &events).unwrap()));
        let all = renderer.render(&Key::root(), true, &Arc::new(Rights::all()), 4, &events).unwrap();
        assert_eq!(frames(&all.frames), [vec![5, 6, 7]]);
        // Who sees all of the prefix needs no lens.
        let batch = renderer.render(&path("/a/x"), true, &one, 4, &events).unwrap();
        assert!(Arc::ptr_eq(&batch, &renderer.render(&path("/a/x"), true, &other, 4, &events).unwrap()));
    }

    #[test]
    fn large_events_get_frames_of_their_own() {
        let events: Vec<_> = (1..=4).map(|revision| put(revision, "/a", 700 << 10)).collect();
        let batch =
            Renderer::default().render(&Key::root(), true, &Rights::all().into(), 0, &events).unwrap();
        assert_eq!(frames(&batch.frames), [vec![1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn nothing_new_is_an_empty_batch() {
        let batch = Renderer::default().render(&Key::root(), true, &Rights::all().into(), 9, &[]).unwrap();
        assert_eq!((batch.last, batch.passed, batch.frames.len()), (9, None, 0));
    }
}

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use quorumfs_api::key::Name;
use quorumfs_api::record::Timestamp;

use super::*;

fn at(name: &str) -> At {
    (Ino::ROOT, Name::new(Bytes::copy_from_slice(name.as_bytes())).unwrap())
}

fn record(ino: u64) -> Record {
    Record {
        ino: Ino(ino),
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        atime: Timestamp(0),
        mtime: Timestamp(0),
        ctime: Timestamp(0),
        create_revision: 1,
        mod_revision: 1,
        version: 1,
        lease: None,
        author: "".into(),
        xattrs: Vec::new(),
        value: Bytes::new(),
    }
}

fn create(name: &str, ino: u64) -> Net {
    Net::Create { at: at(name), ino: Ino(ino), kind: Kind::File }
}

#[test]
fn updates_that_wait_become_one_and_the_last_is_told() {
    let mut queue = Queue::default();
    for _ in 0..3 {
        queue.push(Net::Update { ino: Ino(7) });
    }
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.take(), Some(&Net::Update { ino: Ino(7) }));
    // It is under way: its event may have fired before this value could be read.
    queue.push(Net::Update { ino: Ino(7) });
    queue.finish();
    assert_eq!(queue.take(), Some(&Net::Update { ino: Ino(7) }));
    queue.finish();
    assert!(queue.is_idle());
}

#[test]
fn a_file_that_waits_to_be_made_tells_of_its_newest_value() {
    let mut queue = Queue::default();
    queue.push(create("f", 7));
    queue.push(Net::Update { ino: Ino(7) });
    assert_eq!(queue.len(), 1);
}

#[test]
fn a_file_that_comes_and_goes_does_not_fill_the_queue() {
    let mut queue = Queue::default();
    queue.push(create("kept", 5));
    for i in 0..3 * COMPACT_FROM as u64 {
        queue.push(create("f", 10 + i));
        queue.push(Net::Update { ino: Ino(10 + i) });
        queue.push(Net::Remove { at: at("f"), record: record(10 + i) });
    }
    assert!(queue.len() <= COMPACT_FROM, "{}", queue.len());
    let mirror = Mirror::default();
    assert_eq!(queue.lookup(&at("f"), &mirror), None);
    while queue.take().is_some() {
        queue.finish();
    }
    assert!(queue.names.is_empty() && queue.places.is_empty() && queue.ghosts.is_empty());
    assert!(queue.updates.is_empty() && queue.attrs.is_empty());
}

#[test]
fn an_update_that_was_overtaken_can_be_taken_out() {
    let mut queue = Queue::default();
    for ino in [7, 8] {
        queue.push(Net::Update { ino: Ino(ino) });
    }
    queue.drop_update(Ino(7));
    queue.drop_update(Ino(9));
    assert_eq!(queue.take(), Some(&Net::Update { ino: Ino(8) }));
    queue.finish();
    // It can come again.
    queue.push(Net::Update { ino: Ino(7) });
    assert_eq!(queue.take(), Some(&Net::Update { ino: Ino(7) }));
}

#[test]
fn a_swap_that_waits_tells_of_all_that_comes_before_it_is_shown() {
    let mut queue = Queue::default();
    for _ in 0..2 {
        queue.push(Net::Swap { dir: Ino::ROOT });
    }
    assert_eq!(queue.len(), 1);
    queue.take();
    // This one is under way: a watcher may have looked already.
    queue.push(Net::Swap { dir: Ino::ROOT });
    assert_eq!(queue.len(), 1);
}

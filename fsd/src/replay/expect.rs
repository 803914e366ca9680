//! Telling the replayer's own requests from all others: they come from its thread, and they are what
//! it is about to do. Either alone would not do (thread numbers mean other things in other pid
//! namespaces; a user may do by chance what is being replayed).

use std::sync::atomic::{AtomicU32, Ordering};

use quorumfs_api::record::{Ino, Kind};

use super::queue::Queue;
use crate::mirror::{At, Mirror, Net};
use crate::swap::DATA;

/// The replayer's thread number, once it runs.
#[derive(Debug, Default)]
pub struct Replayer(AtomicU32);

impl Replayer {
    /// It runs as this thread.
    pub fn set(&self, tid: u32) {
        self.0.store(tid, Ordering::Release);
    }

    /// Whether a request comes from its thread.
    pub fn is(&self, pid: u32) -> bool {
        pid != 0 && self.0.load(Ordering::Acquire) == pid
    }
}

/// Whether that is being made there now, and its number.
pub fn creates(queue: &mut Queue, at: &At, wanted: Kind) -> Option<Ino> {
    match queue.current() {
        Some(Net::Create { at: there, ino, kind }) if there == at && *kind == wanted => {
            let ino = *ino;
            queue.perform();
            Some(ino)
        }
        _ => None,
    }
}

/// Whether a directory (or something else) is being taken away there now.
pub fn removes(queue: &mut Queue, at: &At, dir: bool) -> bool {
    let expected = matches!(queue.current(), Some(Net::Remove { at: there, record })
        if there == at && (record.kind == Kind::Dir) == dir);
    if !expected || queue.challenge() {
        return false;
    }
    queue.perform();
    true
}

/// Whether that is being renamed now.
pub fn renames(queue: &mut Queue, old: &At, new: &At) -> bool {
    let expected = matches!(queue.current(), Some(Net::Rename { from, to, .. }) if from == old && to == new);
    if !expected || queue.challenge() {
        return false;
    }
    queue.perform();
    true
}

/// What is being moved to that name now, out of nowhere, if anything is.
pub fn moves_in(queue: &mut Queue, mirror: &Mirror, to: &At) -> Option<Net> {
    let net = queue.current()?.clone();
    let expected = match &net {
        Net::Create { at, kind: Kind::File, .. } => at == to,
        Net::Update { ino } => queue.place(*ino, mirror).as_ref() == Some(to),
        Net::Swap { dir } => to.0 == *dir && to.1.as_bytes() == DATA.as_bytes(),
        _ => false,
    };
    if !expected || queue.challenge() {
        return None;
    }
    queue.perform();
    Some(net)
}

/// Whether that file is being opened to show a new value.
pub fn updates(queue: &mut Queue, ino: Ino) -> bool {
    let expected = matches!(queue.current(), Some(Net::Update { ino: there }) if *there == ino);
    if expected {
        queue.perform();
    }
    expected
}

/// Whether a value or attributes of that are being shown: the set-attributes request belongs to it.
pub fn sets(queue: &mut Queue, ino: Ino) -> bool {
    let expected = match queue.current() {
        Some(Net::Update { ino: there } | Net::Attr { ino: there } | Net::Create { ino: there, .. }) => {
            *there == ino
        }
        _ => false,
    };
    if expected {
        queue.perform();
    }
    expected
}

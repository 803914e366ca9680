//! Telling the replayer's own requests from all others: they come from its thread, and they are what
//! it is about to do. Either alone would not do (thread numbers mean other things in other pid
//! namespaces; a user may do by chance what is being replayed).

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use quorumfs_api::record::{Ino, Kind};

use super::queue::Queue;
use crate::mirror::{At, Mirror, Net};
use crate::swap::DATA;

/// The replayer's thread number, once it runs; and those of earlier workers' replayers.
#[derive(Debug, Default)]
pub struct Replayer {
    thread: AtomicU32,
    earlier: OnceLock<Vec<(u32, u32)>>,
}

impl Replayer {
    /// It runs as this thread.
    pub fn set(&self, tid: u32) {
        self.thread.store(tid, Ordering::Release);
    }

    /// Processes and threads that replayed before.
    pub fn set_earlier(&self, mut earlier: Vec<(u32, u32)>) {
        earlier.retain(is_there);
        let _ = self.earlier.set(earlier);
    }

    /// Whether a request comes from its thread. A worker that was killed in the middle of a call on the
    /// mount cannot end before somebody answers it: it is not what is expected, so it is refused, and
    /// never taken for a user's wish.
    pub fn is(&self, pid: u32) -> bool {
        pid != 0 && (self.thread.load(Ordering::Acquire) == pid || self.is_earlier(pid))
    }

    fn is_earlier(&self, pid: u32) -> bool {
        self.earlier.get().into_iter().flatten().any(|thread| thread.1 == pid && is_there(thread))
    }

    /// Whether an earlier worker's is still in a call.
    pub fn waits_for_earlier(&self) -> bool {
        self.earlier.get().into_iter().flatten().any(is_there)
    }
}

/// Once a thread has ended, somebody else may have its number.
fn is_there((process, thread): &(u32, u32)) -> bool {
    Path::new(&format!("/proc/{process}/task/{thread}")).exists()
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

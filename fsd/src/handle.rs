//! Open files and directories.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use quorumfs_api::key::Name;
use quorumfs_api::record::{Kind, Timestamp};

use crate::kernel::NodeId;

/// Number of an open file.
pub type Fh = u64;

/// The number that the replayer's handles have: they hold nothing.
pub const REPLAY_FH: Fh = u64::MAX;

/// What the number of an open file says about it: the kernel hands it back when the worker that opened the
/// file is gone.
///
/// ```text
/// reader     00 | direct 1 | generation 5 | version 12 | length 24 | count 20
/// writer     01 | readable, at end, sync, emptied | generation 5 | count 53
/// directory  10 | 0000 | generation 5 | count 53
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Described {
    /// Open for reading.
    Reader {
        /// See [`Reader::direct`].
        direct: bool,
        /// The last bits of the value's version.
        version: u64,
        /// The value's length in bytes.
        length: usize,
    },
    /// Open for writing.
    Writer {
        /// See [`Writer::readable`].
        readable: bool,
        /// See [`Writer::at_end`].
        at_end: bool,
        /// See [`Writer::sync`].
        sync: bool,
        /// It was opened with `O_TRUNC`.
        emptied: bool,
    },
    /// A directory.
    Dir,
}

/// Workers of one mount are told apart by so many bits.
const GENERATIONS: u64 = 1 << 5;
/// Bits of a version that a number has room for.
const VERSION_MASK: u64 = (1 << 12) - 1;
/// Bits of a length; no value is longer.
const LENGTH_MASK: u64 = (1 << 24) - 1;
/// Bits of the count of a reader, and of anything else.
const READER_MASK: u64 = (1 << 20) - 1;
const COUNT_MASK: u64 = (1 << 53) - 1;

/// What a number says.
pub fn describe(fh: Fh) -> Described {
    let bit = |place: u32| fh >> place & 1 == 1;
    match fh >> 62 {
        0 => Described::Reader {
            direct: bit(61),
            version: fh >> 44 & VERSION_MASK,
            length: (fh >> 20 & LENGTH_MASK) as usize,
        },
        1 => Described::Writer { readable: bit(61), at_end: bit(60), sync: bit(59), emptied: bit(58) },
        _ => Described::Dir,
    }
}

/// Whether a number says that version, as far as it has room for it.
pub fn same_version(said: u64, version: u64) -> bool {
    said & VERSION_MASK == version & VERSION_MASK
}

/// Whether that is the version which the number of an open file says.
pub fn says_version(fh: Fh, version: u64) -> bool {
    matches!(describe(fh), Described::Reader { version: said, .. } if same_version(said, version))
}

/// A file opened for reading.
#[derive(Debug)]
pub struct Reader {
    /// What.
    pub node: NodeId,
    /// Version of the value with which it was opened.
    pub version: u64,
    /// The value that is being read.
    pub value: Bytes,
    /// Whether reads come here one by one; else they come through the page cache, which has room for
    /// one value only: the one whose attributes the kernel has.
    pub direct: bool,
    /// When it was opened.
    pub opened: Instant,
    /// Times of last change of the value and of anything, as the kernel was told of them with that value.
    pub times: (Timestamp, Timestamp),
    /// Its reader has been told that the file ends: what it asks for next belongs to a new pass.
    pub ended: bool,
    /// Somebody may be in the middle of a value of this length in bytes, of which an earlier worker was the last to
    /// know; 0 if not.
    pub torn: usize,
}

impl Reader {
    /// One that begins.
    pub fn new(
        node: NodeId,
        value: Bytes,
        version: u64,
        times: (Timestamp, Timestamp),
        direct: bool,
    ) -> Reader {
        Reader { node, version, value, direct, opened: Instant::now(), times, ended: false, torn: 0 }
    }

    /// What a read at `offset` is served from, where the file's value is `now`, and its version; and whether that is
    /// another value than before.
    ///
    /// Past the page cache, a value is taken anew at the beginning of a pass only, so that one pass never
    /// sees parts of two, and behind the end where it was appended to, so that `tail -f` sees what comes.
    /// What fills the page cache stays until the kernel takes the new length, too: [`Handles::refresh`].
    pub fn at(&mut self, offset: usize, now: Option<(Bytes, u64)>) -> (&Bytes, bool) {
        let at_end = offset >= self.value.len();
        let mut is_new = false;
        if let Some((now, version)) = now
            && self.direct
            && (self.torn > 0 || !same(&now, &self.value))
            && (offset == 0 || at_end && (self.ended || now.starts_with(&self.value)))
        {
            (self.value, self.version, self.torn) = (now, version, 0);
            is_new = true;
        }
        self.ended = offset >= self.value.len();
        (&self.value, is_new)
    }
}

/// Whether two values are one and the same in memory: a changed one never is.
pub fn same(one: &Bytes, other: &Bytes) -> bool {
    one.len() == other.len() && one.as_ptr() == other.as_ptr()
}

/// What was written to a handle and is not published yet.
#[derive(Debug)]
pub enum Buffer {
    /// Nothing: the file is as it is.
    Clean,
    /// The whole content.
    Whole(Vec<u8>),
    /// What comes behind the content, however long that is by then.
    Tail(Vec<u8>),
}

/// Number of the last change of any open file.
static EDITS: AtomicU64 = AtomicU64::new(0);

/// Changes of an earlier worker have the numbers up to this one.
pub fn count_edits_from(last: u64) {
    EDITS.fetch_max(last, Ordering::Relaxed);
}

/// A file opened for writing.
#[derive(Debug)]
pub struct Writer {
    /// What.
    pub node: NodeId,
    /// Whether it may be read as well.
    pub readable: bool,
    /// Every write goes to the end.
    pub at_end: bool,
    /// Each write is committed before it returns.
    pub sync: bool,
    /// What was written.
    pub buffer: Buffer,
    /// It has to be published at the next flush.
    pub dirty: bool,
    /// The file was emptied by `O_TRUNC` and nothing was written since: published at the end only,
    /// because a shell closes a duplicate before it writes.
    pub emptied: bool,
    /// A flush with nothing to publish has come: if it was the last, the release follows at once.
    pub flushed: bool,
    /// Publishing failed and the caller was told.
    pub failed: bool,
    /// A write did not fit. What came before it would be a part of a value, so none of it is published.
    pub refused: bool,
    /// Thread that opened it: it sees its own writes in `fstat`.
    pub pid: u32,
    /// Somebody wrote who may not keep the set-user-id and set-group-id bits of a file.
    pub strips: bool,
    /// Number of the last change, counted over all files: one that comes while others are being published is not
    /// taken for them, and of two handles it is known which was written to last.
    pub edits: u64,
    /// When that was.
    pub edited: SystemTime,
    /// The last request of the kernel that wrote: it may be asked again by a new worker.
    pub last: u64,
    /// Held while the handle is being published: duplicates may be closed at the same time.
    pub gate: Arc<tokio::sync::Mutex<()>>,
}

impl Writer {
    /// Whether it holds something that others do not see yet.
    pub fn is_pending(&self) -> bool {
        self.dirty || self.emptied
    }

    /// Drops all that was written: the value as a whole is too large.
    pub fn refuse(&mut self) {
        self.buffer = Buffer::Clean;
        (self.dirty, self.emptied) = (false, false);
        (self.failed, self.refused) = (true, true);
    }

    /// The content as seen through this handle, where the file's published content is `base`.
    pub fn content(&self, base: &Bytes) -> Bytes {
        match &self.buffer {
            Buffer::Clean => base.clone(),
            Buffer::Whole(data) => Bytes::copy_from_slice(data),
            Buffer::Tail(tail) => [base.as_ref(), tail].concat().into(),
        }
    }

    /// Its length.
    pub fn len(&self, base: usize) -> usize {
        match &self.buffer {
            Buffer::Clean => base,
            Buffer::Whole(data) => data.len(),
            Buffer::Tail(tail) => base + tail.len(),
        }
    }

    /// The whole content, to be changed.
    pub fn whole(&mut self, base: &Bytes) -> &mut Vec<u8> {
        if !matches!(self.buffer, Buffer::Whole(_)) {
            self.buffer = Buffer::Whole(self.content(base).to_vec());
        }
        match &mut self.buffer {
            Buffer::Whole(data) => data,
            // Was made just above.
            Buffer::Clean | Buffer::Tail(_) => unreachable!(),
        }
    }

    /// Writes at an offset, or at the end. `base` is the published content.
    pub fn write(&mut self, offset: u64, data: &[u8], base: &Bytes) {
        self.edit();
        self.emptied = false;
        self.flushed = false;
        self.failed = false;
        if self.at_end && !matches!(self.buffer, Buffer::Whole(_)) {
            match &mut self.buffer {
                Buffer::Tail(tail) => tail.extend_from_slice(data),
                _ => self.buffer = Buffer::Tail(data.to_vec()),
            }
            return;
        }
        let at_end = self.at_end;
        let whole = self.whole(base);
        let start = if at_end { whole.len() } else { offset as usize };
        if whole.len() < start + data.len() {
            whole.resize(start + data.len(), 0);
        }
        whole[start..start + data.len()].copy_from_slice(data);
    }

    /// What was written up to that edit is published, `appended` bytes of it at the end. What came later stays.
    pub fn published(&mut self, edits: u64, appended: usize) {
        if self.edits <= edits {
            (self.dirty, self.emptied, self.strips) = (false, false, false);
            self.buffer = Buffer::Clean;
        } else if let Buffer::Tail(tail) = &mut self.buffer {
            tail.drain(..appended.min(tail.len()));
        }
    }

    /// Something is about to be changed.
    fn edit(&mut self) {
        self.edits = EDITS.fetch_add(1, Ordering::Relaxed) + 1;
        self.edited = SystemTime::now();
        self.dirty = true;
    }

    /// Fills a range within it with NULs.
    pub fn clear(&mut self, range: std::ops::Range<usize>, base: &Bytes) {
        self.edit();
        self.emptied = false;
        self.failed = false;
        self.whole(base)[range].fill(0);
    }

    /// Cuts it, or fills it up with NULs.
    pub fn resize(&mut self, size: usize, base: &Bytes) {
        self.edit();
        self.emptied = false;
        self.failed = false;
        self.whole(base).resize(size, 0);
    }
}

/// One name of a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Number.
    pub node: NodeId,
    /// What it is.
    pub kind: Kind,
    /// Name; `None` for `.` and `..`.
    pub name: Option<Name>,
}

/// An open file or directory.
#[derive(Debug)]
pub enum Handle {
    /// For reading.
    Reader(Reader),
    /// For writing.
    Writer(Writer),
    /// A directory, as it was when it was opened or rewound.
    Dir {
        /// Which.
        node: NodeId,
        /// What is in it.
        names: Arc<Vec<Listed>>,
    },
}

impl Handle {
    /// What it is open on.
    pub fn node(&self) -> NodeId {
        match self {
            Handle::Reader(reader) => reader.node,
            Handle::Writer(writer) => writer.node,
            Handle::Dir { node, .. } => *node,
        }
    }
}

/// All open files.
#[derive(Debug, Default)]
pub struct Handles {
    open: HashMap<Fh, Handle>,
    by_node: HashMap<NodeId, Vec<Fh>>,
    last: u64,
    /// Which worker of the mount this is.
    generation: u64,
}

impl Handles {
    /// From here on numbers are those of this worker.
    pub fn set_generation(&mut self, generation: u32) {
        self.generation = u64::from(generation) % GENERATIONS;
    }

    /// Opens.
    pub fn add(&mut self, handle: Handle) -> Fh {
        loop {
            self.last += 1;
            let fh = self.number(&handle);
            if !self.open.contains_key(&fh) {
                self.restore(fh, handle);
                return fh;
            }
        }
    }

    /// Opens under a number that it was given before.
    pub fn restore(&mut self, fh: Fh, handle: Handle) {
        self.by_node.entry(handle.node()).or_default().push(fh);
        self.open.insert(fh, handle);
    }

    fn number(&self, handle: &Handle) -> Fh {
        let flag = |set: bool, place: u32| u64::from(set) << place;
        match handle {
            Handle::Reader(reader) => {
                flag(reader.direct, 61)
                    | self.generation << 56
                    | (reader.version & VERSION_MASK) << 44
                    | (reader.value.len() as u64 & LENGTH_MASK) << 20
                    | self.last & READER_MASK
            }
            Handle::Writer(writer) => {
                1 << 62
                    | flag(writer.readable, 61)
                    | flag(writer.at_end, 60)
                    | flag(writer.sync, 59)
                    | flag(writer.emptied, 58)
                    | self.generation << 53
                    | self.last & COUNT_MASK
            }
            Handle::Dir { .. } => 2 << 62 | self.generation << 53 | self.last & COUNT_MASK,
        }
    }

    /// An open file.
    pub fn get(&self, fh: Fh) -> Option<&Handle> {
        self.open.get(&fh)
    }

    /// An open file, to be changed.
    pub fn get_mut(&mut self, fh: Fh) -> Option<&mut Handle> {
        self.open.get_mut(&fh)
    }

    /// One that is open for writing.
    pub fn writer(&mut self, fh: Fh) -> Option<&mut Writer> {
        match self.open.get_mut(&fh) {
            Some(Handle::Writer(writer)) => Some(writer),
            _ => None,
        }
    }

    /// Closes.
    pub fn remove(&mut self, fh: Fh) -> Option<Handle> {
        let handle = self.open.remove(&fh)?;
        let node = handle.node();
        if let Some(open) = self.by_node.get_mut(&node) {
            open.retain(|other| *other != fh);
            if open.is_empty() {
                self.by_node.remove(&node);
            }
        }
        Some(handle)
    }

    /// What is open on a node.
    pub fn of(&self, node: NodeId) -> &[Fh] {
        self.by_node.get(&node).map_or(&[], Vec::as_slice)
    }

    /// Those open for writing on a node.
    pub fn writers(&self, node: NodeId) -> impl Iterator<Item = (Fh, &Writer)> {
        self.of(node).iter().filter_map(|fh| match self.open.get(fh) {
            Some(Handle::Writer(writer)) => Some((*fh, writer)),
            _ => None,
        })
    }

    /// Those who read a node through the page cache.
    pub fn cached(&self, node: NodeId) -> impl Iterator<Item = &Reader> {
        self.of(node).iter().filter_map(|fh| match self.open.get(fh) {
            Some(Handle::Reader(reader)) if !reader.direct => Some(reader),
            _ => None,
        })
    }

    /// What fills the page cache of a node is this from now on.
    pub fn refresh(&mut self, node: NodeId, value: &Bytes, times: (Timestamp, Timestamp)) {
        for fh in self.by_node.get(&node).into_iter().flatten() {
            if let Some(Handle::Reader(reader)) = self.open.get_mut(fh)
                && !reader.direct
            {
                reader.value = value.clone();
                reader.times = times;
            }
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }
    fn reader(text: &str, direct: bool) -> Reader {
        Reader::new(7, bytes(text), 1, Default::default(), direct)
    }

    #[test]
    fn a_pass_is_of_one_value() {
        let mut reader = reader("old value", true);
        let (newer, another) = ("newer and longer", "another that is longer still");
        assert_eq!(reader.at(0, Some((bytes(newer), 2))), (&bytes(newer), true), "it had not begun");
        assert_eq!(reader.at(5, Some((bytes(another), 3))), (&bytes(newer), false));
        assert_eq!(reader.version, 2);
        assert_eq!(
            reader.at(newer.len(), Some((bytes(another), 3))),
            (&bytes(newer), false),
            "it is told the end"
        );
        // Whoever asks again wants what comes next.
        assert_eq!(reader.at(newer.len(), Some((bytes(another), 3))), (&bytes(another), true));
        assert_eq!(reader.version, 3);
    }

    #[test]
    fn what_was_appended_comes_at_once() {
        let mut reader = reader("one\n", true);
        assert_eq!(reader.at(4, Some((bytes("one\ntwo\n"), 2))).0, "one\ntwo\n");
    }

    #[test]
    fn the_page_cache_is_filled_with_what_the_kernel_was_told() {
        let mut handles = Handles::default();
        let fh = handles.add(Handle::Reader(reader("old", false)));
        let read = |handles: &mut Handles| match handles.get_mut(fh) {
            Some(Handle::Reader(reader)) => reader.at(0, Some((bytes("new"), 2))).0.clone(),
            _ => Bytes::new(),
        };
        assert_eq!(read(&mut handles), "old");
        handles.refresh(7, &bytes("new"), Default::default());
        assert_eq!(read(&mut handles), "new");
    }

    fn writer(emptied: bool, at_end: bool) -> Writer {
        Writer {
            node: 5,
            readable: true,
            at_end,
            sync: false,
            buffer: Buffer::Clean,
            dirty: false,
            emptied,
            flushed: false,
            failed: false,
            refused: false,
            pid: 1,
            strips: false,
            edits: 0,
            edited: SystemTime::UNIX_EPOCH,
            last: 0,
            gate: Arc::default(),
        }
    }

    #[test]
    fn a_number_says_what_it_is() {
        let mut handles = Handles::default();
        handles.set_generation(37);
        let value = Bytes::from(vec![0; 8 << 20]);
        let fh = handles.add(Handle::Reader(Reader::new(5, value, 4096 + 7, Default::default(), true)));
        assert_eq!(describe(fh), Described::Reader { direct: true, version: 7, length: 8 << 20 });
        assert!(same_version(7, 4096 + 7) && !same_version(7, 4096 + 8));
        let fh = handles.add(Handle::Writer(writer(true, false)));
        assert_eq!(
            describe(fh),
            Described::Writer { readable: true, at_end: false, sync: false, emptied: true }
        );
        let fh = handles.add(Handle::Dir { node: 1, names: Arc::default() });
        assert_eq!(describe(fh), Described::Dir);
        assert_ne!(fh, REPLAY_FH);
    }

    #[test]
    fn no_number_is_given_twice_while_it_is_open() {
        let mut handles = Handles::default();
        let reader = || Handle::Reader(Reader::new(5, Bytes::new(), 1, Default::default(), false));
        let first = handles.add(reader());
        // The count of readers comes round.
        handles.last = (1 << 20) + (first & READER_MASK) - 1;
        assert_ne!(handles.add(reader()), first);
    }
}

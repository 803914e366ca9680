//! A disk that remembers every write, every change of a length and every sync of the databases on it,
//! in the one order in which they came.
//!
//! A database lives in memory. The file at its path only holds its number, so that renaming and
//! removing that file does to the database what it would do to a real one.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use quorumfs_store::{OpenDatabase, OpenLog};
use redb::{Database, StorageBackend};

use super::content::Content;
use super::image::Image;
use crate::common::{DEADLINE, OnBackend};

/// The files of a data directory: name from its root → content, which for a database is its number.
pub type Names = BTreeMap<PathBuf, Vec<u8>>;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Log,
    State,
}

/// One thing that happened to the disk. The number is that of a database.
#[derive(Clone, Debug)]
pub enum Op {
    Write(usize, u64, Arc<[u8]>),
    SetLen(usize, u64),
    Sync(usize),
    /// The directory looks like this from here on.
    Names(Arc<Names>),
    /// What the directory looks like is durable.
    NamesSynced,
}

/// What happened to a disk since it was `base`.
pub struct Trace {
    pub base: Image,
    pub ops: Vec<Op>,
}

impl Trace {
    /// The crash points: a crash just before each of these operations, and one after the last.
    pub fn points(&self) -> Vec<usize> {
        let disk = |op: &Op| matches!(op, Op::Write(..) | Op::SetLen(..) | Op::Sync(_));
        let before = (0..self.ops.len()).filter(|at| disk(&self.ops[*at]));
        before.chain([self.ops.len()]).collect()
    }

    /// Tells whether two runs did the same.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for op in &self.ops {
            match op {
                Op::Write(file, offset, data) => {
                    hasher.write_usize(*file);
                    hasher.write_u64(*offset);
                    hasher.write(data);
                }
                Op::SetLen(file, len) => hasher.write(&[*file as u8, *len as u8, 1]),
                Op::Sync(file) => hasher.write(&[*file as u8, 2]),
                Op::Names(_) | Op::NamesSynced => {}
            }
        }
        hasher.finish()
    }
}

/// Operations of a database wait, after some more of them.
struct Held {
    after: usize,
    waiting: bool,
}

struct Inner {
    base: Image,
    /// What each database holds now, durable or not.
    files: Vec<(Kind, Content)>,
    ops: Vec<Op>,
    /// Whether to look at the directory before each operation.
    watching: bool,
    names: Arc<Names>,
    /// For each [`Kind`].
    held: [Option<Held>; 2],
    /// A bug that was put in on purpose: syncs of this database do nothing.
    syncs_lost: Option<Kind>,
    /// Another: syncs of the directory do nothing.
    name_syncs_lost: bool,
}

/// The disk. Clones are handles to the same.
#[derive(Clone)]
pub struct Disk {
    dir: PathBuf,
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Condvar>,
}

impl Disk {
    /// A disk that holds `image`, with its files in `dir`.
    pub fn new(dir: &Path, image: Image) -> Disk {
        image.put_files(dir);
        let kinds = image.kinds();
        let files = kinds.into_iter().zip(image.files.iter().cloned()).collect();
        let names = Arc::new(image.names.clone());
        let inner = Inner {
            base: image,
            files,
            ops: Vec::new(),
            watching: false,
            names,
            held: [None, None],
            syncs_lost: None,
            name_syncs_lost: false,
        };
        Disk { dir: dir.to_owned(), inner: Arc::new(Mutex::new(inner)), changed: Arc::default() }
    }

    /// From now on syncs of one database do nothing, and say that they did.
    pub fn lose_syncs(&self, kind: Kind) {
        self.inner.lock().syncs_lost = Some(kind);
    }

    /// The same for the directory.
    pub fn lose_name_syncs(&self) {
        self.inner.lock().name_syncs_lost = true;
    }

    /// Number of things that have happened.
    pub fn position(&self) -> usize {
        self.inner.lock().ops.len()
    }

    /// From now on the directory is looked at before each operation; until [`Disk::names_synced`].
    pub fn watch_names(&self) {
        self.inner.lock().watching = true;
    }

    /// Looks at the directory now.
    pub fn look(&self) {
        self.inner.lock().look(&self.dir);
    }

    /// Whoever renamed something in the directory says that it is durable.
    pub fn names_synced(&self) {
        let mut inner = self.inner.lock();
        inner.look(&self.dir);
        inner.watching = false;
        if !inner.name_syncs_lost {
            inner.ops.push(Op::NamesSynced);
        }
    }

    /// What happened until now.
    pub fn trace(&self) -> Trace {
        let inner = self.inner.lock();
        Trace { base: inner.base.clone(), ops: inner.ops.clone() }
    }

    /// Lets `after` more operations of a database through; those after them wait.
    pub fn hold(&self, kind: Kind, after: usize) {
        self.inner.lock().held[kind as usize] = Some(Held { after, waiting: false });
    }

    /// Waits until somebody waits for [`Disk::release`].
    pub fn wait_until_held(&self, kind: Kind) {
        let mut inner = self.inner.lock();
        while inner.held[kind as usize].as_ref().is_some_and(|held| !held.waiting) {
            let late = self.changed.wait_for(&mut inner, DEADLINE).timed_out();
            assert!(!late, "nothing is written that could be held");
        }
    }

    /// Lets all operations of a database through.
    pub fn release(&self, kind: Kind) {
        self.inner.lock().held[kind as usize] = None;
        self.changed.notify_all();
    }

    /// Opens databases on this disk.
    pub fn opener(&self) -> OpenDatabase {
        let disk = self.clone();
        Arc::new(move |path: &Path, cache| {
            let number = disk.number(path).map_err(redb::StorageError::from)?;
            let file = DiskFile { disk: disk.clone(), number };
            Database::builder().set_cache_size(cache).create_with_backend(file)
        })
    }

    /// Opens logs on this disk.
    pub fn log_opener(&self) -> OpenLog {
        let disk = self.clone();
        Arc::new(move |path: &Path| {
            let number = disk.number(path)?;
            Ok(Box::new(OnBackend(DiskFile { disk: disk.clone(), number })))
        })
    }

    /// The number of the database at a path; a new one if nothing is there.
    fn number(&self, path: &Path) -> io::Result<usize> {
        match std::fs::read_to_string(path) {
            Ok(number) if !number.is_empty() => return number.parse().map_err(io::Error::other),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let kind = Image::kind_of(path).ok_or_else(|| io::Error::other("neither log nor state"))?;
        let mut inner = self.inner.lock();
        let number = inner.files.len();
        inner.files.push((kind, Content::default()));
        std::fs::write(path, number.to_string())?;
        Ok(number)
    }

    fn happens(&self, op: Op) {
        let number = match op {
            Op::Write(number, ..) | Op::SetLen(number, _) | Op::Sync(number) => number,
            Op::Names(_) | Op::NamesSynced => unreachable!("these are not of a database"),
        };
        let mut inner = self.inner.lock();
        let kind = inner.files[number].0;
        while let Some(held) = &mut inner.held[kind as usize] {
            if held.after > 0 {
                held.after -= 1;
                break;
            }
            held.waiting = true;
            self.changed.notify_all();
            let late = self.changed.wait_for(&mut inner, DEADLINE).timed_out();
            assert!(!late, "held for ever");
        }
        if inner.watching {
            inner.look(&self.dir);
        }
        if matches!(op, Op::Sync(_)) && inner.syncs_lost == Some(kind) {
            return;
        }
        apply(&mut inner.files[number].1, &op);
        inner.ops.push(op);
    }
}

impl Inner {
    fn look(&mut self, dir: &Path) {
        let names = Image::read_names(dir);
        if names != *self.names {
            self.names = Arc::new(names);
            self.ops.push(Op::Names(self.names.clone()));
        }
    }
}

/// Does to the content of a file what `op` says.
pub fn apply(content: &mut Content, op: &Op) {
    match op {
        Op::Write(_, offset, data) => content.write(*offset as usize, data),
        Op::SetLen(_, len) => content.set_len(*len as usize),
        Op::Sync(_) | Op::Names(_) | Op::NamesSynced => {}
    }
}

struct DiskFile {
    disk: Disk,
    number: usize,
}

impl std::fmt::Debug for DiskFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "database {}", self.number)
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.inner.lock().files[self.number].1.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.inner.lock().files[self.number].1.read(offset as usize, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.happens(Op::SetLen(self.number, len));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.disk.happens(Op::Sync(self.number));
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.happens(Op::Write(self.number, offset, data.into()));
        Ok(())
    }
}

//! Snapshots as files in a directory of their own. There is one current snapshot; others exist only
//! while they are written, received, or still being sent.

mod format;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

pub use self::format::{Row, SnapshotError, read as read_snapshot, write as write_snapshot};
use crate::dir::{remove_if_there, sync_dir};
use crate::state::SnapshotView;
use crate::types::{LogId, SnapshotMeta};

/// How names of complete snapshots end.
const COMPLETE: &str = "snap";
/// How names of unfinished ones end. They are removed at start.
const UNFINISHED: &str = "part";
/// Bytes that are read or written at a time.
const BUFFER: usize = 1 << 20;

/// A file that is removed unless it is kept.
#[derive(Debug)]
struct Temporary(Option<PathBuf>);

impl Temporary {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = remove_if_there(path)
        {
            tracing::warn!(path = %path.display(), %error, "a temporary snapshot file stays");
        }
    }
}

/// A complete snapshot that is open for reading; it can be read also after its name is gone.
#[derive(Debug)]
pub struct SnapshotFile {
    file: File,
    path: PathBuf,
    meta: SnapshotMeta,
    /// A received one goes with this value, unless it is installed.
    temporary: Option<Temporary>,
}

impl SnapshotFile {
    fn open(path: &Path) -> Result<SnapshotFile, SnapshotError> {
        let file = File::open(path)?;
        let meta = format::read_header(BufReader::new(&file))?;
        Ok(SnapshotFile { file, path: path.to_owned(), meta, temporary: None })
    }

    /// What it is a snapshot of, as its header says.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The file from its beginning, to be sent.
    ///
    /// # Errors
    /// When it cannot be positioned.
    pub fn into_reader(self) -> io::Result<tokio::fs::File> {
        (&self.file).rewind()?;
        Ok(tokio::fs::File::from_std(self.file))
    }

    /// The file from its beginning.
    pub(crate) fn reader(&self) -> io::Result<BufReader<&File>> {
        (&self.file).rewind()?;
        Ok(BufReader::with_capacity(BUFFER, &self.file))
    }
}

/// A snapshot that is being received. It leaves nothing behind when it is dropped.
#[derive(Debug)]
pub struct Receiving {
    file: tokio::fs::File,
    path: PathBuf,
    temporary: Temporary,
}

impl Receiving {
    /// Adds what has come.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await
    }

    /// The file, for those who copy a stream into it.
    pub fn file(&mut self) -> &mut tokio::fs::File {
        &mut self.file
    }

    /// All has come: makes it durable and checks all of it. What openraft gets to install is whole.
    ///
    /// # Errors
    /// When it is damaged or not complete.
    pub async fn finish(mut self) -> Result<SnapshotFile, SnapshotError> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        let Receiving { path, temporary, .. } = self;
        let check = tokio::task::spawn_blocking(move || {
            let file = File::open(&path)?;
            let meta = format::read(BufReader::with_capacity(BUFFER, &file), |_| Ok(()))?;
            Ok(SnapshotFile { file, path, meta, temporary: Some(temporary) })
        });
        check.await.map_err(io::Error::other)?
    }
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    current: Mutex<Option<(PathBuf, SnapshotMeta)>>,
    next: AtomicU64,
}

/// The snapshots of this node. Clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

fn name(last: Option<LogId>) -> String {
    match last {
        Some(last) => {
            let (term, node) = (last.leader_id.term, last.leader_id.node_id);
            format!("{:016x}-{term:x}-{node:x}.{COMPLETE}", last.index)
        }
        None => format!("empty.{COMPLETE}"),
    }
}

impl Snapshots {
    /// Opens the directory, finds the newest snapshot, and removes all else.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Snapshots> {
        let mut newest: Option<(PathBuf, SnapshotMeta)> = None;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension == Some(COMPLETE) {
                match SnapshotFile::open(&path) {
                    Ok(found)
                        if newest
                            .as_ref()
                            .is_none_or(|(_, meta)| found.meta.last_log_id > meta.last_log_id) =>
                    {
                        if let Some((older, _)) = newest.replace((path, found.meta.clone())) {
                            remove_if_there(&older)?;
                        }
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "a snapshot is removed: it cannot be read");
                    }
                }
            } else if extension != Some(UNFINISHED) {
                continue;
            }
            remove_if_there(&path)?;
        }
        let inner = Inner { dir, current: Mutex::new(newest), next: AtomicU64::new(0) };
        Ok(Snapshots { inner: Arc::new(inner) })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.inner.dir
    }

    /// A new file for a snapshot that comes over the network.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn receive(&self) -> io::Result<Receiving> {
        let (file, path, temporary) = self.temporary()?;
        Ok(Receiving { file: tokio::fs::File::from_std(file), path, temporary })
    }

    /// The current snapshot.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn current(&self) -> Result<Option<SnapshotFile>, SnapshotError> {
        loop {
            let Some((path, _)) = self.inner.current.lock().clone() else { return Ok(None) };
            match SnapshotFile::open(&path) {
                Ok(file) => return Ok(Some(file)),
                // A newer one took its place before this one was open.
                Err(SnapshotError::Io(error))
                    if error.kind() == io::ErrorKind::NotFound && !self.is_current(&path) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn is_current(&self, path: &Path) -> bool {
        self.inner.current.lock().as_ref().is_some_and(|(current, _)| current == path)
    }

    fn temporary(&self) -> io::Result<(File, PathBuf, Temporary)> {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.dir.join(format!("{number}.{UNFINISHED}"));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok((file, path.clone(), Temporary(Some(path))))
    }

    /// Writes a snapshot of `view` and makes it the current one, unless that is newer. Blocks.
    pub(crate) fn build(&self, view: &SnapshotView) -> Result<SnapshotFile, SnapshotError> {
        if let Some(current) = self.current()?
            && current.meta == *view.position()
        {
            return Ok(current);
        }
        let (file, path, temporary) = self.temporary()?;
        format::write(view, view.position(), BufWriter::with_capacity(BUFFER, &file))?;
        file.sync_all()?;
        self.adopt(SnapshotFile { file, path, meta: view.position().clone(), temporary: Some(temporary) })
    }

    /// Makes a complete, durable file the current snapshot. Blocks.
    pub(crate) fn adopt(&self, mut file: SnapshotFile) -> Result<SnapshotFile, SnapshotError> {
        if self.is_current(&file.path) {
            return Ok(file);
        }
        let path = self.inner.dir.join(name(file.meta.last_log_id));
        match file.temporary.take() {
            Some(temporary) => {
                fs::rename(&file.path, &path)?;
                temporary.keep();
            }
            None => {
                // It belongs to somebody else: take a copy.
                let (mut copy, from, temporary) = self.temporary()?;
                io::copy(&mut file.reader()?, &mut copy)?;
                copy.sync_all()?;
                fs::rename(&from, &path)?;
                temporary.keep();
            }
        }
        sync_dir(&self.inner.dir)?;
        file.path = path.clone();
        let gone = {
            let mut current = self.inner.current.lock();
            match &*current {
                Some((_, meta)) if meta.last_log_id > file.meta.last_log_id => Some(path),
                _ => current
                    .replace((path.clone(), file.meta.clone()))
                    .map(|(old, _)| old)
                    .filter(|old| *old != path),
            }
        };
        if let Some(gone) = gone {
            remove_if_there(&gone)?;
        }
        Ok(file)
    }
}

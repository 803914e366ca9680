//! Open, create, read, write, flush, fsync, release.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use quorumfs_api::command::{Command, CreateMode, LeaseChange, Target};
use quorumfs_api::outcome::Done;
use quorumfs_api::record::{Ino, Kind, Record};

use super::{Caller, Entry, Fs, name};
use crate::errno::{Errno, Result};
use crate::handle::{Buffer, Fh, Handle, REPLAY_FH, Reader, Writer};
use crate::handover::call::RESENT;
use crate::handover::note::{Note, PUT};
use crate::kernel::{NodeId, Object};
use crate::replay::expect;
use crate::report;
use crate::state::{State, Touch};

/// A file whose value changed within this time is read past the page cache: who reads it in pieces
/// must not get pieces of two values, and the page cache has room for one.
const BUSY: Duration = Duration::from_secs(2);
/// Longest value in bytes that is read through the page cache: one page comes whole or not at all.
const CACHED_MAX: usize = 4096;
/// How long an open waits for a release that must be on its way, because the last flush was seen.
const RELEASE_WAIT: Duration = Duration::from_millis(20);
/// How long `stat` of a directory waits for a file that was closed in it and is being published, so that it shows
/// the directory's new times. Without a quorum it goes on with the old ones.
const NEW_NAME_WAIT: Duration = Duration::from_secs(1);
/// While the leader is known to be away, it is looked for only so long.
const PROBE_AGAIN: Duration = Duration::from_millis(300);

/// An open file for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its number.
    pub fh: Fh,
    /// Reads and writes come here, past the page cache.
    pub direct: bool,
    /// What the page cache has is still good.
    pub keep_cache: bool,
    /// Closing it needs no flush.
    pub no_flush: bool,
}

impl Opened {
    const REPLAY: Opened = Opened { fh: REPLAY_FH, direct: true, keep_cache: false, no_flush: true };

    fn writer(fh: Fh) -> Opened {
        Opened { fh, direct: true, keep_cache: false, no_flush: false }
    }
}

fn is_for_writing(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

impl Fs {
    /// Opens a file.
    pub async fn open(&self, caller: Caller, node: NodeId, flags: i32) -> Result<Opened> {
        if self.is_replayer(caller) {
            let mut state = self.core.state.lock();
            let ino = state.kernel.ino(node);
            return match ino.is_some_and(|ino| expect::updates(&mut state.queue, ino)) {
                true => Ok(Opened::REPLAY),
                // The kernel came by a name that means something else now: it looks it up again. What the
                // replayer does must never be taken for a user's wish.
                false => Err(Errno::ESTALE),
            };
        }
        if is_for_writing(flags) {
            self.check_writable()?;
        }
        if report::is_own(node) {
            return self.open_own(node, is_for_writing(flags)).await;
        }
        if is_for_writing(flags) {
            self.require_leader().await?;
        }
        self.settle(node).await;
        if is_for_writing(flags) {
            self.core.let_readers_end(node).await;
        }
        let mut state = self.core.state.lock();
        let state = &mut *state;
        state.seen(node);
        if is_for_writing(flags) {
            return self.open_writer(state, caller, node, flags);
        }
        let (value, times, version, private) = match state.kernel.resolve(node, &state.mirror) {
            Object::Real(ino) => {
                let record = &state.mirror.get(ino).ok_or(Errno::ESTALE)?.record;
                check_file(record.kind)?;
                (record.value.clone(), (record.mtime, record.ctime), record.version, false)
            }
            Object::Private => (Bytes::new(), Default::default(), 0, true),
            Object::Orphan | Object::Link | Object::Gone => return Err(Errno::ESTALE),
        };
        let busy = state.untold.contains(&node)
            || state.kernel.last_change(node).is_some_and(|changed| changed.elapsed() < BUSY);
        let direct =
            private || busy || value.len() > CACHED_MAX || state.handles.writers(node).next().is_some();
        let keep_cache = !direct && state.kernel.keep_cache(node, version);
        if let Object::Real(ino) = state.kernel.resolve(node, &state.mirror) {
            state.keep_open(ino);
        }
        let fh = state.handles.add(Handle::Reader(Reader::new(node, value, version, times, direct)));
        Ok(Opened { fh, direct, keep_cache, no_flush: true })
    }

    fn open_writer(&self, state: &mut State, caller: Caller, node: NodeId, flags: i32) -> Result<Opened> {
        let size = match state.kernel.resolve(node, &state.mirror) {
            Object::Real(ino) => {
                self.core.check_write(state, ino, None)?;
                let record = &state.mirror.get(ino).ok_or(Errno::ESTALE)?.record;
                check_file(record.kind)?;
                record.value.len()
            }
            Object::Private => 0,
            Object::Orphan | Object::Link | Object::Gone => return Err(Errno::ESTALE),
        };
        let empties = flags & libc::O_TRUNC != 0;
        let readable = flags & libc::O_ACCMODE != libc::O_WRONLY;
        if let (Object::Real(ino), true, false) =
            (state.kernel.resolve(node, &state.mirror), readable, empties)
        {
            state.keep_open(ino);
        }
        // The kernel takes the length to be 0 from here until it asks again.
        if empties && let Some(ino) = state.kernel.ino(node) {
            state.kernel.value_changed(ino, Instant::now());
        }
        let writer = Writer {
            node,
            readable,
            at_end: flags & libc::O_APPEND != 0,
            sync: self.core.rules.sync || flags & (libc::O_SYNC | libc::O_DSYNC) != 0,
            buffer: if empties { Buffer::Whole(Vec::new()) } else { Buffer::Clean },
            dirty: false,
            emptied: empties && size > 0,
            flushed: false,
            failed: false,
            refused: false,
            pid: caller.pid,
            strips: false,
            edits: 0,
            edited: SystemTime::now(),
            last: 0,
            gate: Arc::default(),
        };
        Ok(Opened::writer(state.handles.add(Handle::Writer(writer))))
    }

    /// Makes a file, and opens it.
    pub async fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        bytes: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Entry, Opened)> {
        let name = name(bytes)?;
        if self.is_replayer(caller) {
            let mut state = self.core.state.lock();
            let dir = state.kernel.ino(parent).ok_or(Errno::ENOENT)?;
            let at = (dir, name.clone());
            let ino = expect::creates(&mut state.queue, &at, Kind::File).ok_or(Errno::ESTALE)?;
            return Ok((self.give_replayer(&mut state, &at, ino)?, Opened::REPLAY));
        }
        self.check_writable()?;
        self.check_name(parent, bytes).await?;
        self.require_leader().await?;
        let exclusive = flags & libc::O_EXCL != 0;
        let was_done = exclusive && self.core.was_done(PUT).await?;
        let (command, at) = {
            let mut state = self.core.state.lock();
            let state = &mut *state;
            let dir = self.dir(state, parent)?;
            let at = (dir, name);
            let known = match state.mirror.child(dir, &at.1) {
                Some(ino) => Some(state.kernel.node(ino)),
                None => state.kernel.private_at(&at),
            };
            // What an earlier worker made for this very call is new for the caller.
            let was_done = was_done && state.mirror.child(dir, &at.1).is_some();
            if let Some(node) = known.filter(|_| !was_done) {
                // The kernel did not know of it yet.
                if exclusive {
                    return Err(Errno::EEXIST);
                }
                let opened = self.open_writer(state, caller, node, flags)?;
                let entry = match state.mirror.child(dir, &at.1) {
                    Some(ino) => self.give(state, &at, ino)?,
                    None => self.give_private(state, node)?,
                };
                return Ok((entry, opened));
            }
            self.core.check_write(state, at.0, Some(&at.1))?;
            let owner = self.owner(state, dir, caller, mode, Kind::File);
            let sync = self.core.rules.sync || flags & (libc::O_SYNC | libc::O_DSYNC) != 0;
            // What cannot be written through this handle is as it will be.
            if !exclusive && !sync && is_for_writing(flags) {
                let now = Self::now();
                let node = state.kernel.make_private(at, |ino| Record {
                    mode: owner.mode,
                    uid: owner.uid,
                    gid: owner.gid,
                    atime: now,
                    mtime: now,
                    ctime: now,
                    ..Record::unmade(ino, Kind::File)
                });
                if let Some(private) = state.kernel.private(node) {
                    state.note(|| Note::Private(node, private.at.clone(), private.record.clone()));
                }
                let opened = self.open_writer(state, caller, node, flags)?;
                return Ok((self.give_private(state, node)?, opened));
            }
            let create = if exclusive { CreateMode::Exclusive } else { CreateMode::Allow };
            let target = Target::At(self.place(state, &at)?);
            // Without O_EXCL, what is there must stay.
            let command = if exclusive {
                let lease = LeaseChange::Keep;
                Command::Put { target, value: Bytes::new(), create, parents: false, owner, lease }
            } else {
                Command::Append { target, data: Bytes::new(), create, parents: false, owner }
            };
            (command, at)
        };
        let Done::Written { ino, .. } = self.core.commit(vec![Touch::Name(at.clone())], command).await?
        else {
            return Err(Errno::EPROTO);
        };
        let mut state = self.core.state.lock();
        let ino = state.mirror.inner(ino);
        let entry = self.give(&mut state, &at, ino)?;
        let opened = self.open_writer(&mut state, caller, entry.attr.node, flags)?;
        Ok((entry, opened))
    }

    /// Reads.
    pub fn read(&self, node: NodeId, fh: Fh, offset: u64, size: u32) -> Result<Bytes> {
        if fh == REPLAY_FH {
            return Ok(Bytes::new());
        }
        let mut state = self.core.state.lock();
        let node = state.handle_of(node, fh)?.node();
        let (published, version) = (state.published(node), state.version(node));
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if state.is_torn(fh, offset) {
            return Err(Errno::ESTALE);
        }
        let content = match state.handles.get_mut(fh) {
            Some(Handle::Reader(reader)) => {
                let (value, is_new) = reader.at(offset, published.zip(version));
                let value = value.clone();
                if is_new {
                    state.keep_pass(node, fh);
                }
                value
            }
            Some(Handle::Writer(writer)) if writer.readable => writer.content(&published.unwrap_or_default()),
            _ => return Err(Errno::EBADF),
        };
        let start = offset.min(content.len());
        let end = start.saturating_add(size as usize).min(content.len());
        Ok(content.slice(start..end))
    }

    /// Writes into the handle. With `strips`, the file loses what lets it run as its owner. Answers whether it has
    /// to be committed before the caller is told.
    ///
    /// `unique` is the number of the kernel's request: one that a new worker is asked again is not done twice.
    pub fn write(
        &self,
        node: NodeId,
        fh: Fh,
        unique: u64,
        offset: u64,
        data: &[u8],
        strips: bool,
    ) -> Result<bool> {
        if fh == REPLAY_FH {
            return Ok(false);
        }
        let mut state = self.core.state.lock();
        let state = &mut *state;
        state.locked.fence(fh)?;
        let limit = state.value_limit();
        let node = state.handle_of(node, fh)?.node();
        let base = state.published(node).unwrap_or_default();
        let writer = state.handles.writer(fh).ok_or(Errno::EBADF)?;
        let unique = unique & !RESENT;
        if unique != 0 && unique == writer.last {
            return Ok(writer.sync);
        }
        let from = if writer.at_end { writer.len(base.len()) as u64 } else { offset };
        if writer.refused || from.saturating_add(data.len() as u64) > limit {
            writer.refuse();
            return Err(Errno::EFBIG);
        }
        writer.write(offset, data, &base);
        writer.strips |= strips;
        writer.last = unique;
        let (edits, sync) = (writer.edits, writer.sync);
        state.note(|| {
            let data = Bytes::copy_from_slice(data);
            Note::Wrote { fh, node, unique, edits, offset, data, strips }
        });
        Ok(sync)
    }

    /// Commits what was written so far.
    pub async fn commit_write(&self, fh: Fh) -> Result<()> {
        self.publish(fh).await
    }

    /// Makes room: the file gets at least so long. A hole is a range of NULs, as a value has no other.
    pub fn allocate(&self, node: NodeId, fh: Fh, offset: u64, length: u64, mode: i32) -> Result<()> {
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let clears = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => false,
            libc::FALLOC_FL_ZERO_RANGE => true,
            // The kernel lets it through with KEEP_SIZE only.
            libc::FALLOC_FL_PUNCH_HOLE => true,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let mut state = self.core.state.lock();
        let state = &mut *state;
        state.locked.fence(fh)?;
        let limit = state.value_limit();
        let node = state.handle_of(node, fh)?.node();
        let base = state.published(node).unwrap_or_default();
        let writer = state.handles.writer(fh).ok_or(Errno::EBADF)?;
        let wanted = offset.checked_add(length).filter(|end| *end <= limit).ok_or(Errno::EFBIG)?;
        let size = writer.len(base.len());
        let mut notes = Vec::new();
        if clears && (offset as usize) < size {
            let end = size.min(wanted as usize);
            writer.clear(offset as usize..end, &base);
            let edits = writer.edits;
            notes.push(Note::Cleared { fh, node, edits, from: offset, to: end as u64 });
        }
        if !keeps_size && wanted as usize > size {
            writer.resize(wanted as usize, &base);
            let edits = writer.edits;
            notes.push(Note::Resized { fh, node, edits, size: wanted });
        }
        state.note_all(&notes);
        Ok(())
    }

    /// A descriptor is closed, perhaps a duplicate: what was written becomes visible.
    pub async fn flush(&self, fh: Fh, node: NodeId, owner: u64) -> Result<()> {
        if fh == REPLAY_FH {
            return Ok(());
        }
        self.unlock_owner(node, owner).await;
        let dirty = {
            let mut state = self.core.state.lock();
            state.revive(node, fh, 0);
            match state.handles.writer(fh) {
                Some(writer) if writer.refused => return Err(Errno::EFBIG),
                Some(writer) if writer.dirty => true,
                Some(writer) => {
                    writer.flushed = true;
                    false
                }
                None => false,
            }
        };
        if dirty { self.publish(fh).await } else { Ok(()) }
    }

    /// Publishes what was written, and waits for all that others have done.
    pub async fn fsync(&self, node: NodeId, fh: Fh) -> Result<()> {
        let writes = {
            let mut state = self.core.state.lock();
            state.revive(node, fh, 0);
            state.handles.writer(fh).is_some()
        };
        if writes {
            self.publish(fh).await?;
        }
        self.core.barrier().await
    }

    /// A file is closed for good.
    pub async fn release(&self, node: NodeId, fh: Fh) {
        if fh == REPLAY_FH {
            return;
        }
        self.unlock_handle(fh).await;
        let pending = {
            let mut state = self.core.state.lock();
            let state = &mut *state;
            state.revive(node, fh, 0);
            let Some(handle) = state.handles.get(fh) else { return };
            let node = handle.node();
            let last_private =
                state.kernel.private(node).is_some() && state.handles.writers(node).count() == 1;
            let pending = match handle {
                Handle::Writer(writer) => !writer.failed && (writer.is_pending() || last_private),
                _ => false,
            };
            if pending {
                *state.settling.entry(node).or_default() += 1;
            } else {
                state.close(fh);
                if last_private && matches!(state.handles.writers(node).count(), 0) {
                    state.abandon(node);
                }
            }
            pending.then_some(node)
        };
        let Some(node) = pending else { return };
        let published = self.publish(fh).await;
        let mut state = self.core.state.lock();
        let state = &mut *state;
        state.close(fh);
        if let Err(error) = published {
            tracing::warn!(%error, node, "what was written to a file and then closed could not be published");
            if state.handles.writers(node).count() == 0 {
                state.abandon(node);
            }
        }
        if let Some(count) = state.settling.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                state.settling.remove(&node);
            }
        }
        self.core.settled.notify_waiters();
    }

    /// Waits until what was closed before is published: a truncation becomes visible with the release,
    /// which comes after the close has returned, and an open that follows must see it.
    pub(super) async fn settle(&self, node: NodeId) {
        if self.unsettled(node).is_none() {
            return;
        }
        let begun = Instant::now();
        loop {
            let settled = self.core.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            let Some(limit) = self.unsettled(node) else { return };
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            // The release itself does not notify when it comes, so look again soon.
            let _ = tokio::time::timeout(left.min(Duration::from_millis(2)), settled).await;
        }
    }

    /// How long is to be waited for what is on its way, if anything is: for a file, its own release; for a
    /// directory, those of the files that appear in it.
    fn unsettled(&self, node: NodeId) -> Option<Duration> {
        let state = self.core.state.lock();
        if state.settling.contains_key(&node) {
            return Some(self.core.rules.write_timeout);
        }
        let is_coming = |node| {
            let is_new = state.kernel.private(node).is_some();
            state.handles.writers(node).any(|(_, w)| w.flushed && (w.emptied || is_new) && !w.failed)
        };
        if is_coming(node) {
            return Some(RELEASE_WAIT);
        }
        let dir = state.kernel.ino(node)?;
        let mut coming = false;
        for (_, node) in state.kernel.privates_in(dir) {
            if state.settling.contains_key(&node) {
                return Some(self.core.rules.write_timeout.min(NEW_NAME_WAIT));
            }
            coming |= is_coming(node);
        }
        coming.then_some(RELEASE_WAIT)
    }

    /// Refuses to begin what could not be committed: errors of `close` are ignored by many programs,
    /// those of `open` are not.
    pub(super) async fn require_leader(&self) -> Result<()> {
        let patience = self.core.rules.write_timeout;
        if self.core.store.last_contact().is_some_and(|contact| contact.elapsed() < patience) {
            return Ok(());
        }
        let down = self.core.down.lock().is_some();
        let patience = if down { patience.min(PROBE_AGAIN) } else { patience };
        let probe = self.core.store.barrier(patience).await;
        *self.core.down.lock() = probe.is_err().then(Instant::now);
        probe.map(drop).map_err(|error| {
            tracing::debug!(%error, "refused to open a file for writing");
            Errno::from(&error)
        })
    }

    /// What is known of a real file's number in the store.
    pub(super) fn target(state: &State, ino: Ino) -> Result<Target> {
        state.mirror.outer(ino).map(Target::Ino).ok_or(Errno::ESTALE)
    }
}

fn check_file(kind: Kind) -> Result<()> {
    match kind {
        Kind::File => Ok(()),
        Kind::Dir => Err(Errno::EISDIR),
        // The kernel serves these by itself.
        _ => Err(Errno::EINVAL),
    }
}

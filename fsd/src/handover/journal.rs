//! The notes, one behind the other, in a file in memory that the supervisor keeps open.
//!
//! ```text
//! start u64 LE | ... | frame | frame | ...
//! ```
//!
//! `start` says where the notes begin that count. A worker may be killed in the middle of a frame: what
//! does not check out is the end. When there are many notes, what they come to is written behind them,
//! `start` is set to it, and the memory of the old ones is given back.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::limits::FRAME_MAX;
use rustix::fs::FallocateFlags;

use super::image::Image;
use super::note::Note;

/// Bytes before the first note.
const HEADER: u64 = 8;
/// Bytes of notes beyond twice the last image after which they are brought down to a new one.
const SLACK: u64 = 32 << 20;
/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct Journal {
    file: File,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    start: u64,
    end: u64,
    /// Length of what was there when it was last brought down.
    image: u64,
    /// Writing failed: the notes are void, and the next worker is told so by their absence.
    broken: bool,
    buffer: Vec<u8>,
}

impl Journal {
    /// An empty one in that memory.
    ///
    /// # Errors
    /// When the memory cannot be written.
    pub fn begin(memory: OwnedFd) -> io::Result<Journal> {
        let file = File::from(memory);
        file.set_len(0)?;
        file.write_all_at(&HEADER.to_le_bytes(), 0)?;
        Ok(Journal::at(file, HEADER, HEADER))
    }

    /// Goes on with one: what its notes come to, and where the next is written.
    ///
    /// # Errors
    /// When the memory cannot be read.
    pub fn resume(memory: OwnedFd) -> io::Result<(Journal, Image)> {
        let file = File::from(memory);
        let mut header = [0; HEADER as usize];
        file.read_exact_at(&mut header, 0)?;
        let start = u64::from_le_bytes(header);
        let mut image = Image::default();
        let end = read(&file, start, &mut |note| image.take(note))?;
        Ok((Journal::at(file, start, end), image))
    }

    fn at(file: File, start: u64, end: u64) -> Journal {
        let inner = Inner { start, end, image: end - start, broken: false, buffer: Vec::new() };
        Journal { file, inner: Mutex::new(inner) }
    }

    /// The descriptor behind it.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Adds notes. They are there for the next worker when this returns.
    pub fn add<'a>(&self, notes: impl IntoIterator<Item = &'a Note>) {
        let mut inner = self.inner.lock();
        for note in notes {
            inner.encode(note);
            if inner.buffer.len() >= CHUNK {
                inner.write(&self.file);
            }
        }
        inner.write(&self.file);
    }

    /// Whether there are so many notes that they should be brought down.
    pub fn is_long(&self) -> bool {
        let inner = self.inner.lock();
        !inner.broken && inner.end - inner.start > 2 * inner.image + SLACK
    }

    /// Whether it could not be written.
    pub fn is_broken(&self) -> bool {
        self.inner.lock().broken
    }

    /// Brings the notes down to what they come to, less what `adjust` takes out of it.
    pub fn compact(&self, adjust: impl FnOnce(&mut Image)) {
        let mut inner = self.inner.lock();
        if let Err(error) = inner.compact(&self.file, adjust) {
            tracing::warn!(%error, "the notes for the next worker could not be brought down");
        }
    }
}

impl Inner {
    fn encode(&mut self, note: &Note) {
        if codec::encode_into(FrameKind::Note, note, &mut self.buffer).is_err() {
            // Longer than any frame: nothing that is noted is.
            self.broken = true;
        }
    }

    fn write(&mut self, file: &File) {
        if !self.buffer.is_empty() && !self.broken {
            match file.write_all_at(&self.buffer, self.end) {
                Ok(()) => self.end += self.buffer.len() as u64,
                Err(_) => {
                    self.broken = true;
                    // No logging here: the replayer has no descriptors for it.
                    let _ = file.write_all_at(&0u64.to_le_bytes(), 0);
                }
            }
        }
        self.buffer.clear();
    }

    fn compact(&mut self, file: &File, adjust: impl FnOnce(&mut Image)) -> io::Result<()> {
        let mut image = Image::default();
        read(file, self.start, &mut |note| image.take(note))?;
        adjust(&mut image);
        let (old, start) = (self.start, self.end);
        image.notes(&mut |note| {
            self.encode(&note);
            if self.buffer.len() >= CHUNK {
                self.write(file);
            }
        });
        self.write(file);
        if self.broken {
            return Err(io::Error::other("no memory"));
        }
        file.write_all_at(&start.to_le_bytes(), 0)?;
        (self.start, self.image) = (start, self.end - start);
        if old >= HEADER && start > old {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file.as_fd(), flags, old, start - old)?;
        }
        Ok(())
    }
}

/// Reads the notes from `start` on; answers where they end.
fn read(file: &File, start: u64, take: &mut dyn FnMut(Note)) -> io::Result<u64> {
    let mut at = start;
    if start < HEADER {
        return Ok(HEADER);
    }
    let mut buffer: Vec<u8> = Vec::new();
    let mut from = 0;
    loop {
        let whole = buffer[from..].first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize);
        if whole == Some(0) || whole.is_some_and(|length| length > FRAME_MAX) {
            return Ok(at);
        }
        match whole {
            Some(length) if buffer.len() - from >= 4 + length => {
                let frame = &buffer[from..from + 4 + length];
                match codec::decode_whole(FrameKind::Note, frame) {
                    Ok(note) => take(note),
                    // Written half, when its writer was killed.
                    Err(_) => return Ok(at),
                }
                from += 4 + length;
                at += 4 + length as u64;
            }
            _ => {
                buffer.drain(..from);
                from = 0;
                let have = buffer.len();
                buffer.resize(have + CHUNK, 0);
                let read = file.read_at(&mut buffer[have..], at + have as u64)?;
                buffer.truncate(have + read);
                if read == 0 {
                    return Ok(at);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use quorumfs_api::record::{Ino, LeaseId};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn memory() -> OwnedFd {
        memfd_create("test", MemfdFlags::CLOEXEC).unwrap()
    }

    fn kept(ino: u64, value: &'static [u8]) -> Note {
        Note::Kept { ino: Ino(ino), version: 1, value: Bytes::from_static(value) }
    }

    #[test]
    fn the_next_worker_reads_what_was_noted() {
        let memory = memory();
        let journal = Journal::begin(memory.try_clone().unwrap()).unwrap();
        journal.add(&[Note::Shown(7), Note::Session(LeaseId(3))]);
        journal.add(&[Note::Sent { number: 4, unique: 9, command: 1 }]);
        drop(journal);
        let (journal, image) = Journal::resume(memory.try_clone().unwrap()).unwrap();
        assert_eq!((image.shown, image.session, image.next), (7, Some(LeaseId(3)), 5));
        journal.add(&[Note::Shown(8)]);
        let (_, image) = Journal::resume(memory).unwrap();
        assert_eq!(image.shown, 8);
    }

    #[test]
    fn half_a_note_is_none() {
        let memory = memory();
        let journal = Journal::begin(memory.try_clone().unwrap()).unwrap();
        journal.add(&[Note::Shown(1), Note::Shown(2)]);
        let file = File::from(memory.try_clone().unwrap());
        let length = file.metadata().unwrap().len();
        for cut in 1..10 {
            file.set_len(length - cut).unwrap();
            assert_eq!(Journal::resume(memory.try_clone().unwrap()).unwrap().1.shown, 1, "{cut} bytes less");
        }
        let (journal, _) = Journal::resume(memory.try_clone().unwrap()).unwrap();
        journal.add(&[Note::Shown(3)]);
        assert_eq!(Journal::resume(memory).unwrap().1.shown, 3);
    }

    #[test]
    fn compacting_keeps_what_counts_and_gives_memory_back() {
        let memory = memory();
        let journal = Journal::begin(memory.try_clone().unwrap()).unwrap();
        let value: &'static [u8] = Box::leak(vec![7u8; 1 << 20].into_boxed_slice());
        for ino in 2..50 {
            journal.add(&[kept(ino, value)]);
        }
        assert!(journal.is_long());
        journal.compact(|image| image.kept.retain(|ino, _| *ino == Ino(3)));
        assert!(!journal.is_long());
        journal.add(&[Note::Shown(5)]);
        let stat = rustix::fs::fstat(&memory).unwrap();
        assert!(stat.st_blocks * 512 < 4 << 20, "{} blocks", stat.st_blocks);
        let (_, image) = Journal::resume(memory).unwrap();
        assert_eq!((image.kept.len(), image.shown), (1, 5));
        assert_eq!(image.kept[&Ino(3)][0].1.len(), 1 << 20);
    }
}

//! What a snapshot is made of: frames, each with its checksum, one after the other.
//!
//! ```text
//! header: format, position in the log    rows ...    trailer: number of rows, checksum of all before
//! ```
//!
//! The trailer shows that nothing is missing. Rows come in order, each once.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use bytes::Bytes;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::limits::FRAME_MAX;
use quorumfs_machine::{ReadTables, StorageError, Table};
use serde::{Deserialize, Serialize};

use crate::format::PositionRecord;
use crate::types::SnapshotMeta;

/// Version of the rows' meaning.
const FORMAT: u32 = 1;
/// Bytes of rows after which a frame is full. One row is never split.
const PART_BYTES: usize = 256 << 10;

/// Number of a table, key and value.
pub type Row = (u8, Bytes, Bytes);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Part {
    Header { format: u32, position: PositionRecord },
    Rows(Vec<Row>),
    Trailer { rows: u64, crc: u32 },
}

/// Why a snapshot was refused.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is damaged or not complete. What was there before stays.
    #[error("the snapshot is damaged: {0}; it has to be sent again")]
    Damaged(String),
    /// It is written by a later version.
    #[error("the snapshot has format {0}; this version knows {FORMAT}: upgrade this node")]
    Format(u32),
    /// It could not be read or written.
    #[error("the snapshot cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// The state could not be read or written.
    #[error(transparent)]
    State(#[from] StorageError),
}

fn damaged(reason: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Damaged(reason.to_string())
}

struct Out<W> {
    file: W,
    frame: Vec<u8>,
    crc: crc32fast::Hasher,
}

impl<W: Write> Out<W> {
    fn part(&mut self, part: &Part) -> Result<(), SnapshotError> {
        self.frame.clear();
        codec::encode_into(FrameKind::Snapshot, part, &mut self.frame).map_err(crate::error::to_io)?;
        self.crc.update(&self.frame);
        self.file.write_all(&self.frame)?;
        Ok(())
    }
}

/// Writes all of `tables` to `file`.
///
/// # Errors
/// When the tables cannot be read, or the file cannot be written.
pub fn write(
    tables: &impl ReadTables,
    position: &SnapshotMeta,
    file: impl Write,
) -> Result<(), SnapshotError> {
    let mut out = Out { file, frame: Vec::new(), crc: crc32fast::Hasher::new() };
    out.part(&Part::Header { format: FORMAT, position: position.into() })?;
    let mut count = 0;
    let mut rows = Vec::new();
    let mut bytes = 0;
    for table in Table::ALL {
        let mut failed = None;
        tables.scan(table, &[], None, &mut |key, value| {
            let size = key.len() + value.len();
            // A part that is not empty is written before a row that would make it too long.
            if bytes > 0 && bytes + size > PART_BYTES {
                let part = Part::Rows(std::mem::take(&mut rows));
                bytes = 0;
                if let Err(error) = out.part(&part) {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            rows.push((table as u8, Bytes::copy_from_slice(key), value.clone()));
            bytes += size;
            count += 1;
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    out.part(&Part::Rows(rows))?;
    let crc = out.crc.clone().finalize();
    out.part(&Part::Trailer { rows: count, crc })?;
    out.file.flush()?;
    Ok(())
}

struct In<R> {
    file: R,
    frame: Vec<u8>,
    crc: crc32fast::Hasher,
}

impl<R: Read> In<R> {
    /// The next part, with the checksum of all before it.
    fn part(&mut self) -> Result<Option<(Part, u32)>, SnapshotError> {
        self.frame.clear();
        (&mut self.file).take(4).read_to_end(&mut self.frame)?;
        let Some(length) = self.frame.first_chunk::<4>() else {
            return if self.frame.is_empty() {
                Ok(None)
            } else {
                Err(damaged("it ends in the middle of a frame"))
            };
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_MAX {
            return Err(damaged(format_args!("a frame claims {length} bytes")));
        }
        if (&mut self.file).take(length as u64).read_to_end(&mut self.frame)? < length {
            return Err(damaged("it ends in the middle of a frame"));
        }
        let before = self.crc.clone().finalize();
        self.crc.update(&self.frame);
        let part = codec::decode_whole(FrameKind::Snapshot, &self.frame).map_err(damaged)?;
        Ok(Some((part, before)))
    }
}

/// Reads the header only.
pub(crate) fn read_header(file: impl Read) -> Result<SnapshotMeta, SnapshotError> {
    header(&mut In { file, frame: Vec::new(), crc: crc32fast::Hasher::new() })
}

fn header<R: Read>(input: &mut In<R>) -> Result<SnapshotMeta, SnapshotError> {
    match input.part()? {
        Some((Part::Header { format: FORMAT, position }, _)) => position.try_into().map_err(damaged),
        Some((Part::Header { format, .. }, _)) => Err(SnapshotError::Format(format)),
        Some(_) => Err(damaged("it does not begin with a header")),
        None => Err(damaged("it is empty")),
    }
}

/// Reads and checks all of a snapshot, and hands on its rows, sorted by table and key.
///
/// # Errors
/// When it is damaged, not complete, or of a later version; or as `take` says. What was handed on is
/// good for nothing then.
pub fn read(
    file: impl Read,
    mut take: impl FnMut(Vec<Row>) -> Result<(), SnapshotError>,
) -> Result<SnapshotMeta, SnapshotError> {
    let mut input = In { file, frame: Vec::new(), crc: crc32fast::Hasher::new() };
    let meta = header(&mut input)?;
    let mut count = 0;
    let mut last: Option<(u8, Bytes)> = None;
    loop {
        match input.part()? {
            Some((Part::Rows(rows), _)) => {
                for (table, key, _) in &rows {
                    if Table::from_number(*table).is_none() {
                        return Err(damaged(format_args!(
                            "it has rows of table {table}, which this version does not know"
                        )));
                    }
                    let here = (*table, key.clone());
                    if last.is_some_and(|last| last >= here) {
                        return Err(damaged("its rows are not in order"));
                    }
                    last = Some(here);
                }
                count += rows.len() as u64;
                take(rows)?;
            }
            Some((Part::Trailer { rows, crc }, before)) => {
                if rows != count {
                    return Err(damaged(format_args!("it has {count} rows of {rows}")));
                }
                if crc != before {
                    return Err(damaged("its checksum does not match"));
                }
                break;
            }
            Some((Part::Header { .. }, _)) => return Err(damaged("it has two headers")),
            None => return Err(damaged("it ends before its trailer")),
        }
    }
    match input.part()? {
        None => Ok(meta),
        Some(_) => Err(damaged("something follows its trailer")),
    }
}

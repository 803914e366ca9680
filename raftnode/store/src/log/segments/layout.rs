//! How the log lies in its file.
//!
//! ```text
//! file     head (4 KiB) | segment | segment | ...
//! head     magic | format version | bytes of a segment | salt | crc32
//! segment  crc32 | length | start (postcard), padded | record | record | ... | zeros
//! record   stamp | length | crc32 | frames, padded
//! ```
//!
//! A record is all that one commit writes: it is there as a whole or not at all. Segments are used
//! again once their entries were purged, so what is behind the newest record may be anything. The
//! *stamp* tells: it depends on where the record is, on the number of its segment, which no other
//! segment ever had, and on a salt that no client can know.

use std::io;

use serde::{Deserialize, Serialize};

use crate::error::to_io;
use crate::format::{LogIdRecord, VoteRecord};

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"qfs-log\0";
/// Version of this layout.
const VERSION: u32 = 1;
/// Bytes of the head, a block of its own.
pub const HEAD: u64 = BLOCK;
/// Bytes of the head that mean something.
const HEAD_USED: usize = 32;
/// Bytes before the start of a segment, and before the frames of a record.
const SEGMENT_PREFIX: usize = 8;
const RECORD_PREFIX: usize = 16;
/// Records begin at multiples of this.
pub const ALIGN: u64 = 8;
/// A segment's start is shorter than this.
const START_MAX: usize = 256;
/// Segments begin at multiples of this, which is one of every disk's sector: a segment's start and the prefix
/// of its first record are in one sector. So no power cut leaves the start that was written last over a
/// record that an earlier cut left there.
pub const BLOCK: u64 = 4096;
/// Smallest and largest size of a segment in bytes.
pub const SEGMENT_MIN: u64 = BLOCK;
const SEGMENT_MAX: u64 = 1 << 30;

/// What the file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of a segment.
    pub segment: u64,
    /// Makes stamps and checksums this file's own.
    pub salt: u64,
}

/// What was known when a segment was begun: with it, nothing before the segment is needed but the
/// entries themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Number of the segment; each new one has the next.
    pub number: u64,
    /// Units that it takes, one behind the other.
    pub span: u64,
    /// Where the last record of the segment before ended.
    pub previous_end: u64,
    /// Index of the next entry.
    pub next: u64,
    /// The vote.
    pub vote: Option<VoteRecord>,
    /// The last committed position that was saved.
    pub committed: Option<LogIdRecord>,
    /// Up to where the log was purged.
    pub purged: Option<LogIdRecord>,
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// The next place where a record may begin.
pub fn aligned(offset: u64) -> u64 {
    offset.next_multiple_of(ALIGN)
}

impl Head {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(HEAD as usize, 0);
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// When this is no log, or one of a later version, or a damaged one.
    pub fn decode(bytes: &[u8]) -> io::Result<Head> {
        if !bytes.starts_with(&MAGIC) {
            return Err(invalid("this is no log"));
        }
        let short = || invalid("the head of the log is too short");
        let version = u32_at(bytes, 8).ok_or_else(short)?;
        if version != VERSION {
            let text = format!("the log has format {version}; this program knows {VERSION}: upgrade it");
            return Err(invalid(text));
        }
        let segment = u64_at(bytes, 12).ok_or_else(short)?;
        let salt = u64_at(bytes, 20).ok_or_else(short)?;
        let crc = u32_at(bytes, HEAD_USED - 4).ok_or_else(short)?;
        if crc32fast::hash(&bytes[..HEAD_USED - 4]) != crc {
            return Err(invalid("the head of the log is damaged"));
        }
        if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&segment) || !segment.is_multiple_of(BLOCK) {
            return Err(invalid(format!("the log has segments of {segment} bytes")));
        }
        Ok(Head { segment, salt })
    }

    /// Where unit number `unit` begins in the file.
    pub fn offset(&self, unit: u64) -> u64 {
        HEAD + unit * self.segment
    }

    /// How many whole units a file of `len` bytes has.
    pub fn units(&self, len: u64) -> u64 {
        len.saturating_sub(HEAD) / self.segment
    }

    fn crc(&self, place: [u64; 2], body: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for number in [self.salt, place[0], place[1], body.len() as u64] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(body);
        hasher.finalize()
    }

    /// What marks a record of this segment at this offset. A good mixture (SplitMix64), nothing secret
    /// but the salt.
    fn stamp(&self, number: u64, offset: u64) -> u64 {
        let mut mixed = self.salt;
        for part in [number, offset] {
            mixed = (mixed ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            mixed ^= mixed >> 31;
        }
        // Zeros are no record.
        mixed | 1
    }

    /// Adds the start of the segment in unit `unit` to `out`, which is empty.
    ///
    /// # Errors
    /// Never, in truth: the serializer takes all of it.
    pub fn encode_start(&self, unit: u64, start: &Start, out: &mut Vec<u8>) -> io::Result<()> {
        let body = postcard::to_stdvec(start).map_err(to_io)?;
        out.extend_from_slice(&self.crc([unit, 0], &body).to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        out.resize(aligned(out.len() as u64) as usize, 0);
        Ok(())
    }

    /// Reads the start of the segment in unit `unit`, and where its records begin; `None` if there is
    /// none: the unit was never used, or a power cut came while it was begun.
    pub fn decode_start(&self, unit: u64, bytes: &[u8]) -> Option<(Start, u64)> {
        let length = u32_at(bytes, 4)? as usize;
        let body = bytes.get(SEGMENT_PREFIX..SEGMENT_PREFIX + length.min(START_MAX))?;
        if length == 0 || self.crc([unit, 0], body) != u32_at(bytes, 0)? {
            return None;
        }
        let (start, rest) = postcard::take_from_bytes::<Start>(body).ok()?;
        (rest.is_empty() && start.span > 0)
            .then(|| (start, self.offset(unit) + aligned((SEGMENT_PREFIX + length) as u64)))
    }

    /// Bytes that must be read for [`Head::decode_start`].
    pub fn start_bytes(&self) -> usize {
        SEGMENT_PREFIX + START_MAX
    }

    /// Bytes that a record with `frames` bytes of frames takes.
    pub fn record_bytes(frames: usize) -> u64 {
        aligned((RECORD_PREFIX + frames) as u64)
    }

    /// Makes room for the prefix of a record at the end of `out`; the frames follow.
    pub fn begin_record(out: &mut Vec<u8>) -> usize {
        let at = out.len();
        out.resize(at + RECORD_PREFIX, 0);
        at
    }

    /// Fills in the prefix of the record that begins at `at` in `out`, and will be at `offset` in the
    /// file, in segment `number`.
    pub fn end_record(&self, number: u64, offset: u64, at: usize, out: &mut Vec<u8>) {
        let length = (out.len() - at - RECORD_PREFIX) as u32;
        let crc = self.crc([number, offset], &out[at + RECORD_PREFIX..]);
        out[at..at + 8].copy_from_slice(&self.stamp(number, offset).to_le_bytes());
        out[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
        out[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        out.resize(at + aligned((out.len() - at) as u64) as usize, 0);
    }

    /// The frames of the record of segment `number` at `offset`, which `bytes` begin with; `None` if
    /// there is no whole one.
    pub fn decode_record<'a>(&self, number: u64, offset: u64, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if u64_at(bytes, 0)? != self.stamp(number, offset) {
            return None;
        }
        let length = u32_at(bytes, 8)? as usize;
        let frames = bytes.get(RECORD_PREFIX..RECORD_PREFIX.checked_add(length)?)?;
        (self.crc([number, offset], frames) == u32_at(bytes, 12)?).then_some(frames)
    }

    /// Bytes of the record of segment `number` at `offset`, without padding, by its prefix, with which `bytes`
    /// begin; `None` if there is none.
    pub fn record_length(&self, number: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
        let begins = u64_at(bytes, 0)? == self.stamp(number, offset);
        begins.then_some(())?;
        Some(RECORD_PREFIX as u64 + u64::from(u32_at(bytes, 8)?))
    }

    /// Where frames begin in a record at `offset`.
    pub fn frames_at(offset: u64) -> u64 {
        offset + RECORD_PREFIX as u64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD_HERE: Head = Head { segment: 4096, salt: 7 };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_layout_has_the_bytes_of_version_1() {
        assert_eq!(hex(&HEAD_HERE.encode()[..HEAD_USED]), GOLDEN_HEAD);
        let start = Start {
            number: 300,
            span: 1,
            previous_end: 4097,
            next: 5,
            vote: Some(VoteRecord { term: 1, node: 2, committed: true }),
            committed: Some(LogIdRecord { term: 1, node: 2, index: 4 }),
            purged: None,
        };
        let mut out = Vec::new();
        HEAD_HERE.encode_start(3, &start, &mut out).unwrap();
        assert_eq!(hex(&out), GOLDEN_START);
        let (read, records) = HEAD_HERE
            .decode_start(3, &{
                let mut padded = out.clone();
                padded.resize(4096, 0);
                padded
            })
            .unwrap();
        assert_eq!((read, records), (start, HEAD_HERE.offset(3) + out.len() as u64));
        assert!(HEAD_HERE.decode_start(4, &out).is_none(), "it belongs to its place");

        let mut record = Vec::new();
        let at = Head::begin_record(&mut record);
        record.extend_from_slice(b"frames");
        HEAD_HERE.end_record(300, 8192, at, &mut record);
        assert_eq!(hex(&record), GOLDEN_RECORD);
        assert_eq!(HEAD_HERE.decode_record(300, 8192, &record), Some(b"frames".as_slice()));
        assert_eq!(HEAD_HERE.decode_record(301, 8192, &record), None, "it belongs to its segment");
        assert_eq!(HEAD_HERE.decode_record(300, 8200, &record), None, "and to its place");
        for byte in 0..RECORD_PREFIX + 6 {
            let mut bad = record.clone();
            bad[byte] ^= 1;
            assert_eq!(HEAD_HERE.decode_record(300, 8192, &bad), None, "byte {byte}");
        }
        assert_eq!(HEAD_HERE.decode_record(300, 8192, &[0; 64]), None);
    }

    #[test]
    fn a_head_that_is_none_is_refused() {
        let head = HEAD_HERE.encode();
        assert_eq!(Head::decode(&head).unwrap(), HEAD_HERE);
        for byte in 0..HEAD_USED {
            let mut bad = head.clone();
            bad[byte] ^= 1;
            assert!(Head::decode(&bad).is_err(), "byte {byte}");
        }
        assert!(Head::decode(&[]).is_err());
    }

    const GOLDEN_HEAD: &str = "7166732d6c6f670001000000001000000000000007000000000000006a33b6ac";
    const GOLDEN_START: &str = "67cee2c40f000000ac020181200501010201010102040000";
    const GOLDEN_RECORD: &str = "b15738d28dddae040600000069132de56672616d65730000";
}

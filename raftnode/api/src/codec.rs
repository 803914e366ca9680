//! Frames: how every message on every stream, and every entry on disk, is written.
//!
//! ```text
//! length u32 LE | version u8 | kind u8 | body (postcard) | crc32 u32 LE
//! ```
//!
//! `length` counts all that follows it. The checksum covers version, kind and body. A length over
//! the limit is refused before anything is allocated.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits::FRAME_MAX;

/// Version of all formats that this crate writes.
pub const VERSION: u8 = 1;
/// Bytes of a frame beyond its body: length, version, kind and checksum.
pub const OVERHEAD: usize = 4 + HEADER + CRC;
const HEADER: usize = 2;
const CRC: usize = 4;

/// What a frame is. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// First frame of a stream: what the stream is for.
    Hello = 1,
    /// A client's request.
    Request = 2,
    /// The answer to one.
    Reply = 3,
    /// A frame of a watch.
    Watch = 4,
    /// A message between members.
    Peer = 5,
    /// A Raft log entry.
    Entry = 6,
    /// A part of a snapshot.
    Snapshot = 7,
    /// A row of a table of the state.
    Row = 8,
    /// What one worker of a mount notes for the next.
    Note = 9,
}

/// Why some bytes are not the frame that was expected.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Too short to be anything.
    #[error("a frame of {0} bytes is too short to be one")]
    Short(usize),
    /// A claimed length over the limit.
    #[error("a frame claims {0} bytes; {FRAME_MAX} is the most")]
    TooLong(usize),
    /// Written by a later version.
    #[error("format version {0} is unknown here (this is version {VERSION}): upgrade this program")]
    Version(u8),
    /// A frame of another kind.
    #[error("a frame of kind {found} came where kind {expected} was expected")]
    Kind {
        /// What was expected.
        expected: u8,
        /// What came.
        found: u8,
    },
    /// Bytes were changed on the way or on disk.
    #[error("checksum mismatch: the frame was damaged")]
    Checksum,
    /// The body is not what it should be.
    #[error("malformed body: {0}")]
    Body(#[from] postcard::Error),
    /// Something follows the body.
    #[error("{0} bytes follow the body")]
    Trailing(usize),
    /// The stream failed or ended in the middle.
    #[error("the stream ended: {0}")]
    Io(#[from] std::io::Error),
}

/// Why a message cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Over [`FRAME_MAX`].
    #[error("a message of {0} bytes is too long for a frame; {FRAME_MAX} is the most")]
    TooLong(usize),
    /// The serializer refused.
    #[error("cannot be encoded: {0}")]
    Body(#[from] postcard::Error),
}

/// Adds one frame to `out`; on an error `out` is as it was.
pub fn encode_into<T: Serialize>(kind: FrameKind, message: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, VERSION, kind as u8]);
    match postcard::to_io(message, &mut *out) {
        Ok(_) => {}
        Err(error) => {
            out.truncate(start);
            return Err(error.into());
        }
    }
    let crc = crc32fast::hash(&out[start + 4..]);
    out.extend_from_slice(&crc.to_le_bytes());
    let length = out.len() - start - 4;
    if length > FRAME_MAX {
        out.truncate(start);
        return Err(EncodeError::TooLong(length));
    }
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// One frame.
pub fn encode<T: Serialize>(kind: FrameKind, message: &T) -> Result<Bytes, EncodeError> {
    let mut out = Vec::with_capacity(64);
    encode_into(kind, message, &mut out)?;
    Ok(out.into())
}

/// Reads the message in `frame`, which is a frame without its length.
pub fn decode<T: DeserializeOwned>(kind: FrameKind, frame: &[u8]) -> Result<T, DecodeError> {
    if frame.len() < HEADER + CRC {
        return Err(DecodeError::Short(frame.len()));
    }
    let (content, crc) = frame.split_at(frame.len() - CRC);
    if crc32fast::hash(content).to_le_bytes() != crc {
        return Err(DecodeError::Checksum);
    }
    if content[0] != VERSION {
        return Err(DecodeError::Version(content[0]));
    }
    if content[1] != kind as u8 {
        return Err(DecodeError::Kind { expected: kind as u8, found: content[1] });
    }
    let (message, rest) = postcard::take_from_bytes(&content[HEADER..])?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing(rest.len()));
    }
    Ok(message)
}

/// Reads the message in a whole frame, its length included, that stands alone (a log entry, a row).
pub fn decode_whole<T: DeserializeOwned>(kind: FrameKind, frame: &[u8]) -> Result<T, DecodeError> {
    let Some((length, rest)) = frame.split_first_chunk::<4>() else {
        return Err(DecodeError::Short(frame.len()));
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_MAX {
        return Err(DecodeError::TooLong(length));
    }
    match rest.len() {
        have if have < length => Err(DecodeError::Short(frame.len())),
        have if have > length => Err(DecodeError::Trailing(have - length)),
        _ => decode(kind, rest),
    }
}

/// Reads one frame, without its length, from a stream; `None` at a clean end. The buffer grows with
/// what really arrives, not with what the other side claims.
pub async fn read_frame<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<Vec<u8>>, DecodeError> {
    let mut length = [0u8; 4];
    let mut have = 0;
    while have < 4 {
        match stream.read(&mut length[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            n => have += n,
        }
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(DecodeError::TooLong(length));
    }
    let mut frame = Vec::with_capacity(length.min(64 << 10));
    let read = stream.take(length as u64).read_to_end(&mut frame).await?;
    if read < length {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(frame))
}

/// Reads one message from a stream; `None` at a clean end.
pub async fn read<T, R>(kind: FrameKind, stream: &mut R) -> Result<Option<T>, DecodeError>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    read_frame(stream).await?.map(|frame| decode(kind, &frame)).transpose()
}

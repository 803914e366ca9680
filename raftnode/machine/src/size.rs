//! How big an event is, without encoding it. The estimate is never below what encoding gives, so that
//! an event within [`EVENT_BYTES_MAX`] always fits into one frame.

use quorumfs_api::event::{Change, Event, Place};
use quorumfs_api::limits::FRAME_MAX;
use quorumfs_api::record::Record;

/// Most bytes of changes that one revision may hold: a frame has to take them, and what is around
/// them. A command that would make more is refused, but for the end of a lease, which has to work.
pub const EVENT_BYTES_MAX: usize = FRAME_MAX - (1 << 20);

/// The numbers and lengths of a place, at their longest.
const PLACE: usize = 24;
/// The numbers, times and lengths of a record, at their longest.
const RECORD: usize = 130;
/// The numbers of a change beyond its places and records.
const CHANGE: usize = 48;
/// Both lengths of an extended attribute.
const XATTR: usize = 8;

fn place(place: &Place) -> usize {
    PLACE + place.key.as_bytes().len() + place.name.as_bytes().len()
}

fn record(record: &Record) -> usize {
    let xattrs: usize = record.xattrs.iter().map(|(name, value)| XATTR + name.len() + value.len()).sum();
    RECORD + record.author.len() + record.value.len() + xattrs
}

/// Bytes that `change` takes at most.
pub fn change_bytes(change: &Change) -> usize {
    CHANGE
        + match change {
            Change::Create { place: at, record: what } | Change::Update { place: at, record: what } => {
                place(at) + record(what)
            }
            Change::Attr { place: at, record: what } => at.as_ref().map_or(0, place) + record(what),
            Change::Remove { place: at, .. } => place(at),
            Change::Rename { from, to, .. } => place(from) + place(to),
            Change::Unlocked { .. } => 0,
        }
}

/// Bytes that `event` takes at most.
pub fn event_bytes(event: &Event) -> usize {
    CHANGE + event.author.len() + event.changes.iter().map(change_bytes).sum::<usize>()
}

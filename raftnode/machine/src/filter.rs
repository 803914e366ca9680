//! What of an event a watcher of a subtree sees.
//!
//! A rename over the edge of the subtree cannot be shown as it is: what leaves is a removal, and what
//! comes in may be a whole tree that the event does not hold, so that the watcher needs a new copy.

use quorumfs_api::event::{Change, Event, Place};
use quorumfs_api::key::Key;
use quorumfs_api::record::Kind;

use crate::size::{EVENT_BYTES_MAX, event_bytes};

/// What a watcher of a prefix gets for one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// This event, which holds only the changes in the subtree.
    Pass(Event),
    /// The directory that is watched came or went, empty, and this event says so: all there is to see for
    /// who only follows events. A mirror of the subtree needs a new copy, because its root is another one.
    Root(Event),
    /// Nothing of it concerns the subtree (say so with `Progress`).
    Nothing,
    /// Something came into the subtree that the event does not describe, or the event is too big for
    /// a frame: send a new copy.
    Copy,
}

/// What a watcher of `prefix` sees of `event`. `prefix` may also be a file: its own creation, changes
/// and removal pass. When a directory that is the prefix, or one above it, comes or goes by a rename, that is
/// a new copy (perhaps of nothing). Unlocked files pass to everybody, because the
/// change does not say where they are.
pub fn filter(event: &Event, prefix: &Key) -> Filtered {
    let mut changes = Vec::new();
    let mut root = false;
    for change in &event.changes {
        match view(change, prefix) {
            Seen::Same => changes.push(change.clone()),
            Seen::Root => {
                root = true;
                changes.push(change.clone());
            }
            Seen::Other(change) => changes.push(*change),
            Seen::Not => {}
            Seen::Copy => return Filtered::Copy,
        }
    }
    if changes.is_empty() {
        return Filtered::Nothing;
    }
    let passed = Event { author: event.author.clone(), changes, ..*event };
    if event_bytes(&passed) > EVENT_BYTES_MAX {
        return Filtered::Copy;
    }
    if root { Filtered::Root(passed) } else { Filtered::Pass(passed) }
}

enum Seen {
    Same,
    Root,
    Other(Box<Change>),
    Not,
    Copy,
}

/// Where a place is, seen from the prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Below,
    Itself,
    Above,
    Aside,
}

fn side(place: &Place, prefix: &Key) -> Side {
    match (place.key.is_within(prefix), prefix.is_within(&place.key)) {
        (true, true) => Side::Itself,
        (true, false) => Side::Below,
        (false, true) => Side::Above,
        (false, false) => Side::Aside,
    }
}

fn view(change: &Change, prefix: &Key) -> Seen {
    match change {
        Change::Create { place, record } => appears(side(place, prefix), record.kind),
        Change::Remove { place, kind, .. } => appears(side(place, prefix), *kind),
        Change::Update { place, .. } | Change::Attr { place: Some(place), .. } => match side(place, prefix) {
            Side::Below | Side::Itself => Seen::Same,
            Side::Above | Side::Aside => Seen::Not,
        },
        // The root's own attributes.
        Change::Attr { place: None, .. } if prefix.is_root() => Seen::Same,
        Change::Attr { place: None, .. } => Seen::Not,
        Change::Unlocked { .. } => Seen::Same,
        Change::Rename { from, to, ino, kind, exchanged, .. } => {
            let leaves = match (side(from, prefix), side(to, prefix)) {
                (Side::Below, Side::Below) => return Seen::Same,
                (Side::Aside, Side::Aside) => return Seen::Not,
                (Side::Below, _) => true,
                // A file that is watched by its own name.
                (Side::Itself, Side::Aside) => *kind != Kind::Dir,
                _ => false,
            };
            if leaves && exchanged.is_none() {
                Seen::Other(Box::new(Change::Remove { place: from.clone(), ino: *ino, kind: *kind }))
            } else {
                Seen::Copy
            }
        }
    }
}

/// What is made or removed has nothing in it: above the prefix that is no concern.
fn appears(side: Side, kind: Kind) -> Seen {
    match (side, kind) {
        (Side::Below, _) => Seen::Same,
        (Side::Itself, Kind::Dir) => Seen::Root,
        (Side::Itself, _) => Seen::Same,
        (Side::Above | Side::Aside, _) => Seen::Not,
    }
}

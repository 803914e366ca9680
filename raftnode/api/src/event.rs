//! What a revision changed, as watchers see it.

use serde::{Deserialize, Serialize};

use crate::key::{Key, Name};
use crate::record::{Ino, Kind, LeaseId, Record, Revision, Timestamp};

/// All that one revision changed. It is seen as one, never in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The revision.
    pub revision: Revision,
    /// The leader's clock when the command was proposed.
    pub time: Timestamp,
    /// The session that asked: a mount knows its own changes by it, and does not replay them.
    pub session: Option<LeaseId>,
    /// Name in the certificate of who asked.
    pub author: String,
    /// What changed, in order. Applying them one after the other to the tree of the revision before
    /// gives the tree of this one.
    pub changes: Vec<Change>,
}

/// A name in a directory, both ways of saying it, as of this change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The whole path.
    pub key: Key,
    /// The directory's number.
    pub parent: Ino,
    /// The name in it. The root has no place.
    pub name: Name,
}

/// One change. The directories in which a name came or went have the event's time as their
/// modification and change time afterwards; that is not said again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A file, directory or symlink was made.
    Create {
        /// Where.
        place: Place,
        /// All of it, with its value.
        record: Record,
    },
    /// A file has a new value.
    Update {
        /// Where.
        place: Place,
        /// All of it, with its value.
        record: Record,
    },
    /// Attributes, extended attributes or the lease changed, the value did not.
    Attr {
        /// Where; `None` for the root.
        place: Option<Place>,
        /// All of it but the value, which is left empty.
        record: Record,
    },
    /// A file, symlink or directory is gone. A directory that a recursive delete took is preceded by
    /// the changes for all that was in it; one that left a watched subtree by a rename is not.
    Remove {
        /// Where it was.
        place: Place,
        /// Its number.
        ino: Ino,
        /// What it was.
        kind: Kind,
    },
    /// Something has another name; with `exchanged`, the two swapped. What had the new name before is
    /// gone if `replaced` says so.
    /// What was renamed (of an exchange: both) has the event's time as its change time, the event's
    /// revision as its `mod_revision` and the event's author afterwards.
    Rename {
        /// Old name.
        from: Place,
        /// New name.
        to: Place,
        /// What was renamed.
        ino: Ino,
        /// What it is.
        kind: Kind,
        /// Number and kind of what was replaced, and is gone.
        replaced: Option<(Ino, Kind)>,
        /// Number and kind of what has the old name now.
        exchanged: Option<(Ino, Kind)>,
    },
    /// Locks on a file were given up, or went with the file: who waits may try again.
    Unlocked {
        /// The file.
        ino: Ino,
    },
}

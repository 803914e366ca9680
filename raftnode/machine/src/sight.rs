//! What an identity sees: of records, of walks, of events.
//!
//! A rename over the edge of what is seen cannot be shown as it is, as at the edge of a watched subtree
//! (see [`filter`](crate::filter)): what leaves is a removal, what comes in needs a new copy.

use std::sync::Arc;

use quorumfs_api::event::{Change, Event};
use quorumfs_api::key::Key;
use quorumfs_api::record::{Kind, Record, Revision};
use quorumfs_api::rights::{Access, Rights, Sight};

use crate::filter::Filtered;
use crate::guard::concerns_policy;
use crate::tables::{ReadTables, StorageError};
use crate::walk::{Step, Walk};

/// Of what is only the way, the attributes that users set are hidden.
pub(crate) fn veil(sight: Sight, mut record: Record) -> Record {
    if sight == Sight::Way {
        record.xattrs.clear();
    }
    record
}

/// What an identity sees of a walk.
pub(crate) struct Lens {
    rights: Arc<Rights>,
    /// The keys of the directories down to where the walk is.
    dirs: Vec<Key>,
    /// All below the directory at this depth is seen: nothing is to be decided there.
    open: Option<usize>,
}

impl Lens {
    /// For a walk below `root`.
    pub fn new(rights: Arc<Rights>, root: Key) -> Lens {
        Lens { rights, dirs: vec![root], open: None }
    }

    /// What is seen of a step. The walk does not go on below what is hidden.
    pub fn look<T: ReadTables + ?Sized>(
        &mut self,
        tables: &T,
        walk: &mut Walk,
        step: &Step,
    ) -> Result<Sight, StorageError> {
        if self.open.is_some_and(|depth| step.depth > depth) {
            return Ok(Sight::Full);
        }
        self.open = None;
        self.dirs.truncate(step.depth);
        let key = self.dirs.last().map(|dir| dir.join(&step.name));
        let key = key.and_then(Result::ok).ok_or_else(|| StorageError::new("a key is too long"))?;
        let sight = self.rights.sight(&key);
        if step.entry.kind == Kind::Dir {
            match sight {
                Sight::Hidden => walk.skip(),
                Sight::Way => walk.only(tables, self.rights.ways(&key))?,
                Sight::Full if self.rights.covers(&key, Access::Read) => self.open = Some(step.depth),
                Sight::Full => {}
            }
            self.dirs.push(key);
        }
        Ok(sight)
    }
}

/// Whether an event may have brought another policy.
pub fn brings_policy(event: &Event) -> bool {
    event.changes.iter().any(concerns_policy)
}

/// What somebody with these rights sees of an event.
pub fn see(event: Event, rights: &Rights) -> Filtered {
    let mut changes = Vec::with_capacity(event.changes.len());
    let (revision, time, session, author) = (event.revision, event.time, event.session, event.author);
    for change in event.changes {
        match look(change, rights) {
            Seen::As(change) => changes.push(*change),
            Seen::Not => {}
            Seen::Copy => return Filtered::Copy,
        }
    }
    if changes.is_empty() {
        return Filtered::Nothing;
    }
    Filtered::Pass(Event { revision, time, session, author, changes })
}

enum Seen {
    As(Box<Change>),
    Not,
    Copy,
}

/// How much is seen of an object with all below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    All,
    Part,
    Nothing,
}

fn extent(rights: &Rights, key: &Key, kind: Kind) -> Extent {
    let (all, any) = match kind {
        Kind::Dir => (rights.covers(key, Access::Read), rights.reaches(key, Access::Read)),
        _ => {
            let all = rights.access(key) >= Access::Read;
            (all, all)
        }
    };
    match (all, any) {
        (true, _) => Extent::All,
        (false, true) => Extent::Part,
        (false, false) => Extent::Nothing,
    }
}

fn look(change: Change, rights: &Rights) -> Seen {
    let shown = |change: Change, key: &Key, kind: Kind| {
        let sight = rights.sight(key);
        match change {
            _ if !sight.shows(kind) => Seen::Not,
            Change::Create { place, record } => {
                Seen::As(Box::new(Change::Create { place, record: veil(sight, record) }))
            }
            Change::Attr { place, record } => {
                Seen::As(Box::new(Change::Attr { place, record: veil(sight, record) }))
            }
            change => Seen::As(Box::new(change)),
        }
    };
    match &change {
        Change::Create { place, record } | Change::Update { place, record } => {
            let (key, kind) = (place.key.clone(), record.kind);
            shown(change, &key, kind)
        }
        Change::Attr { place, record } => {
            let key = place.as_ref().map_or_else(Key::root, |place| place.key.clone());
            let kind = record.kind;
            shown(change, &key, kind)
        }
        Change::Remove { place, kind, .. } => {
            let (key, kind) = (place.key.clone(), *kind);
            shown(change, &key, kind)
        }
        // It does not say where the file is, and tells nobody anything.
        Change::Unlocked { .. } => Seen::As(Box::new(change)),
        Change::Rename { from, to, ino, kind, exchanged, .. } => {
            let (before, after) = (extent(rights, &from.key, *kind), extent(rights, &to.key, *kind));
            let mut extents = vec![before, after];
            if let Some((_, other)) = exchanged {
                extents.push(extent(rights, &to.key, *other));
                extents.push(extent(rights, &from.key, *other));
            }
            if extents.iter().all(|extent| *extent == Extent::All) {
                Seen::As(Box::new(change))
            } else if extents.iter().all(|extent| *extent == Extent::Nothing) {
                Seen::Not
            } else if after == Extent::Nothing && exchanged.is_none() {
                Seen::As(Box::new(Change::Remove { place: from.clone(), ino: *ino, kind: *kind }))
            } else {
                Seen::Copy
            }
        }
    }
}

/// The first of these revisions after `judged` that may have brought another policy.
pub fn next_policy<'a>(events: impl IntoIterator<Item = &'a Event>, judged: Revision) -> Option<Revision> {
    events
        .into_iter()
        .find(|event| event.revision > judged && brings_policy(event))
        .map(|event| event.revision)
}

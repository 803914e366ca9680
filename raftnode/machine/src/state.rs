//! The state while one command works on it: pending rows, counters, and the changes so far. The steps
//! that several commands share are here: making, writing and dropping objects.

use bytes::Bytes;
use quorumfs_api::command::{HeldLock, LeaseChange, Owner, Proposal};
use quorumfs_api::event::{Change, Place};
use quorumfs_api::key::Name;
use quorumfs_api::limits::{DELETE_TREE_MAX, RECORD_COST};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, Kind, LeaseId, Record, Revision};

use crate::guard::Author;
use crate::overlay::Overlay;
use crate::path;
use crate::rows::{self, Counters, Entry, LeaseRow, NodeRow, Row};
use crate::size::{EVENT_BYTES_MAX, change_bytes};
use crate::tables::{StorageError, Table, Tables};

/// Why a command went no further.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It is refused: nothing of it may stay.
    Refused(Refusal),
    /// The node has to stop.
    Storage(StorageError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Stop::Refused(refusal)
    }
}
impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Stop {
        Stop::Storage(error)
    }
}

/// What a step of a command gives.
pub(crate) type Step<R = Done> = Result<R, Stop>;

/// Permission bits of directories that are made along the way.
const PARENT_MODE: u32 = 0o755;
/// The bits of a mode that are kept.
pub(crate) const MODE_BITS: u32 = 0o7777;
/// The version with which everything begins.
const FIRST_VERSION: u64 = 1;

/// The state while one command works on it.
pub(crate) struct State<'a, T: Tables + ?Sized> {
    pub rows: Overlay<'a, T>,
    pub counters: Counters,
    pub proposal: &'a Proposal,
    pub author: Author<'a>,
    pub changes: Vec<Change>,
    /// Whether anything changed, be it nothing that watchers see.
    pub changed: bool,
    /// What renames added to the bytes of the store: they work in a full one.
    pub renamed_bytes: i64,
    /// Whether the changes have to fit into one frame.
    pub bounded: bool,
    change_bytes: usize,
}

impl<'a, T: Tables + ?Sized> State<'a, T> {
    pub fn new(tables: &'a mut T, counters: Counters, proposal: &'a Proposal, author: Author<'a>) -> Self {
        State {
            rows: Overlay::new(tables),
            counters,
            proposal,
            author,
            changes: Vec::new(),
            changed: false,
            renamed_bytes: 0,
            bounded: true,
            change_bytes: 0,
        }
    }

    /// Undoes all that the command did.
    pub fn roll_back(&mut self, counters: Counters) {
        self.rows.discard();
        self.counters = counters;
        self.changes.clear();
        self.changed = false;
    }

    /// The revision that this command makes if it changes anything.
    pub fn revision(&self) -> Revision {
        self.counters.revision + 1
    }

    /// Adds a change that watchers see.
    pub fn change(&mut self, change: Change) -> Step<()> {
        self.change_bytes += change_bytes(&change);
        if self.bounded && self.change_bytes > EVENT_BYTES_MAX {
            return Err(Refusal::TooMany(format!(
                "one command may change {EVENT_BYTES_MAX} bytes of keys and values; do it in parts"
            ))
            .into());
        }
        self.changes.push(change);
        self.changed = true;
        Ok(())
    }

    pub fn put<R: Row>(&mut self, key: &[u8], row: &R) -> Step<()> {
        self.rows.put(R::TABLE, key, rows::encode(row)?);
        Ok(())
    }

    pub fn node(&self, ino: Ino) -> Step<NodeRow> {
        Ok(rows::node(&self.rows, ino)?)
    }

    pub fn put_node(&mut self, ino: Ino, row: &NodeRow) -> Step<()> {
        self.put(&rows::number(ino.0), row)
    }

    /// The record of `row` without its value, as attribute changes carry it.
    pub fn bare_record(ino: Ino, row: &NodeRow) -> Record {
        row.clone().into_record(ino, Bytes::new())
    }

    /// What `row` counts against the quota. The root costs nothing but its attributes.
    pub fn cost(row: &NodeRow) -> u64 {
        let xattrs: usize = row.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let name = row.place.as_ref().map_or(0, |(_, name)| name.as_bytes().len() as u64 + RECORD_COST);
        name + row.size + xattrs as u64
    }

    /// Counts that something which cost `before` bytes costs `after`.
    pub fn recount(&mut self, before: u64, after: u64) -> Step<()> {
        let bytes = self.counters.store_bytes.checked_sub(before).map(|rest| rest + after);
        let damaged = || rows::damaged(Table::Meta, rows::counters_key(), "it counts less than what goes");
        self.counters.store_bytes = bytes.ok_or_else(damaged)?;
        Ok(())
    }

    /// A name came to a directory or went: its times are the event's. `reach` bytes of path come with
    /// the name, and every directory above has to know.
    pub fn touch_dir(&mut self, dir: Ino, reach: usize) -> Step<()> {
        let mut row = self.node(dir)?;
        row.mtime = self.proposal.time;
        row.ctime = self.proposal.time;
        let mut at = dir;
        let mut reach = reach as u32;
        let mut first = true;
        loop {
            let grew = row.reach < reach;
            row.reach = row.reach.max(reach);
            if first || grew {
                self.put_node(at, &row)?;
            }
            // A directory above always reaches at least as far as the one below it.
            match row.place {
                Some((above, name)) if grew => {
                    reach += 1 + name.as_bytes().len() as u32;
                    at = above;
                    row = self.node(at)?;
                    first = false;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Makes an object at a name that is free.
    pub fn create(&mut self, place: Place, new: NewObject) -> Step<Record> {
        let ino = Ino(self.counters.next_ino);
        self.counters.next_ino += 1;
        let mut row = NodeRow {
            place: Some((place.parent, place.name.clone())),
            size: new.value.len() as u64,
            reach: new.reach,
            kind: new.kind,
            mode: new.owner.mode & MODE_BITS,
            uid: new.owner.uid,
            gid: new.owner.gid,
            atime: self.proposal.time,
            mtime: self.proposal.time,
            ctime: self.proposal.time,
            create_revision: self.revision(),
            mod_revision: self.revision(),
            version: FIRST_VERSION,
            lease: None,
            author: self.proposal.author.clone(),
            xattrs: Vec::new(),
        };
        self.change_lease(ino, &mut row, new.lease)?;
        self.put_node(ino, &row)?;
        self.put_value(ino, &new.value);
        self.put_entry(place.parent, &place.name, Entry { ino, kind: new.kind })?;
        self.touch_dir(place.parent, 1 + place.name.as_bytes().len() + new.reach as usize)?;
        self.counters.keys += 1;
        self.recount(0, Self::cost(&row))?;
        let record = row.into_record(ino, new.value);
        self.change(Change::Create { place, record: record.clone() })?;
        Ok(record)
    }

    /// Makes a directory on the way to something else, to which `reach` bytes of path are left: said
    /// at once, so that a deep path does not tell every directory above about each step.
    pub fn create_parent(&mut self, place: Place, owner: Owner, reach: u32) -> Step<Ino> {
        let owner = Owner { mode: PARENT_MODE, ..owner };
        Ok(self.create(place, NewObject { reach, ..NewObject::dir(owner) })?.ino)
    }

    pub fn put_entry(&mut self, dir: Ino, name: &Name, entry: Entry) -> Step<()> {
        self.put(&rows::entry(dir, name.as_bytes()), &entry)
    }

    pub fn put_value(&mut self, ino: Ino, value: &[u8]) {
        if value.is_empty() {
            self.rows.delete(Table::Values, &rows::number(ino.0));
        } else {
            self.rows.put(Table::Values, &rows::number(ino.0), rows::encode_value(value));
        }
    }

    /// Takes away the object at `place`, which has nothing in it.
    pub fn remove(&mut self, place: Place, entry: Entry) -> Step<()> {
        self.rows.delete(Table::Entries, &rows::entry(place.parent, place.name.as_bytes()));
        let had_locks = self.drop_object(entry.ino)?;
        self.touch_dir(place.parent, 0)?;
        self.change(Change::Remove { place, ino: entry.ino, kind: entry.kind })?;
        if had_locks {
            self.change(Change::Unlocked { ino: entry.ino })?;
        }
        Ok(())
    }

    /// Takes away all rows of an object but its name. Says whether locks were held on it.
    pub fn drop_object(&mut self, ino: Ino) -> Step<bool> {
        let mut row = self.node(ino)?;
        self.counters.keys -= 1;
        self.recount(Self::cost(&row), 0)?;
        self.change_lease(ino, &mut row, LeaseChange::Clear)?;
        self.rows.delete(Table::Nodes, &rows::number(ino.0));
        self.rows.delete(Table::Values, &rows::number(ino.0));
        let locks: Vec<HeldLock> = rows::read(&self.rows, &rows::number(ino.0))?.unwrap_or_default();
        for lock in &locks {
            self.rows.delete(Table::LeaseLocks, &rows::pair(lock.owner.session.0, ino.0));
        }
        self.rows.delete(Table::Locks, &rows::number(ino.0));
        Ok(!locks.is_empty())
    }

    /// The row of a lease that has to be there.
    pub fn lease(&self, lease: LeaseId) -> Step<LeaseRow> {
        Ok(rows::read(&self.rows, &rows::number(lease.0))?.ok_or(Refusal::NoLease(lease))?)
    }

    /// Binds an object to a lease or frees it; the caller writes `row`.
    pub fn change_lease(&mut self, ino: Ino, row: &mut NodeRow, change: LeaseChange) -> Step<()> {
        let new = match change {
            LeaseChange::Keep => return Ok(()),
            LeaseChange::Bind(lease) => Some(lease),
            LeaseChange::Clear => None,
        };
        if let Some(lease) = new {
            let mut bound = self.lease(lease)?;
            self.check_lease(lease, &bound)?;
            if row.lease == new {
                return Ok(());
            }
            if bound.keys >= DELETE_TREE_MAX as u64 {
                return Err(Refusal::TooMany(format!("a lease can have {DELETE_TREE_MAX} keys")).into());
            }
            bound.keys += 1;
            self.put(&rows::number(lease.0), &bound)?;
            self.rows.put(Table::LeaseKeys, &rows::pair(lease.0, ino.0), rows::mark());
        }
        if let Some(old) = row.lease {
            let mut bound: LeaseRow = rows::read(&self.rows, &rows::number(old.0))?.ok_or_else(|| {
                rows::damaged(
                    Table::Leases,
                    &rows::number(old.0),
                    "it is missing, though a key is bound to it",
                )
            })?;
            bound.keys -= 1;
            self.put(&rows::number(old.0), &bound)?;
            self.rows.delete(Table::LeaseKeys, &rows::pair(old.0, ino.0));
        }
        row.lease = new;
        Ok(())
    }

    /// Where an object is, by its own row; `None` for the root.
    pub fn place_of(&self, ino: Ino, row: &NodeRow) -> Step<Option<Place>> {
        let Some((parent, name)) = row.place.clone() else { return Ok(None) };
        Ok(Some(Place { key: path::key_of(&self.rows, ino)?, parent, name }))
    }
}

/// What an object begins with.
pub(crate) struct NewObject {
    pub kind: Kind,
    pub owner: Owner,
    pub value: Bytes,
    pub lease: LeaseChange,
    /// See [`NodeRow::reach`].
    pub reach: u32,
}

impl NewObject {
    pub fn dir(owner: Owner) -> NewObject {
        NewObject { kind: Kind::Dir, owner, value: Bytes::new(), lease: LeaseChange::Keep, reach: 0 }
    }
}

//! Commands that change the value of a file.

use bytes::{Bytes, BytesMut};
use quorumfs_api::command::{CreateMode, LeaseChange, Owner, Target};
use quorumfs_api::event::{Change, Place};
use quorumfs_api::limits::VALUE_MAX_LIMIT;
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, Kind};

use crate::locate::{Located, Object};
use crate::rows::{self, NodeRow};
use crate::state::{NewObject, State, Step};
use crate::tables::Tables;

/// What a write found.
enum Opened {
    /// A file.
    File(Object),
    /// A name that is free, and may be taken.
    Free(Place),
}

/// How a write may come to its file.
pub(crate) struct Open<'a> {
    pub target: &'a Target,
    pub create: CreateMode,
    pub parents: bool,
    pub owner: Owner,
}

impl<T: Tables + ?Sized> State<'_, T> {
    /// Replaces the value of a file, or makes the file.
    pub fn put_file(&mut self, open: &Open<'_>, value: &Bytes, lease: LeaseChange) -> Step {
        self.check_value(value.len() as u64)?;
        match self.open(open)? {
            Opened::File(file) => self.write(file, value.clone(), lease),
            Opened::Free(place) => self.create_file(place, open.owner, value, lease),
        }
    }

    /// Adds to the end of a file, or makes the file.
    pub fn append(&mut self, open: &Open<'_>, data: &Bytes) -> Step {
        match self.open(open)? {
            Opened::File(file) if data.is_empty() => Ok(unchanged(&file)),
            Opened::File(file) => {
                self.check_value(file.row.size.saturating_add(data.len() as u64))?;
                let old = rows::value(&self.rows, file.ino, &file.row)?;
                let mut value = BytesMut::with_capacity(old.len() + data.len());
                value.extend_from_slice(&old);
                value.extend_from_slice(data);
                self.write(file, value.freeze(), LeaseChange::Keep)
            }
            Opened::Free(place) => {
                self.check_value(data.len() as u64)?;
                self.create_file(place, open.owner, data, LeaseChange::Keep)
            }
        }
    }

    /// Cuts a file or fills it with NULs. The size that it has changes nothing.
    pub fn truncate(&mut self, target: &Target, size: u64) -> Step {
        let file = self.target(target)?;
        check_file(&file)?;
        if size == file.row.size {
            return Ok(unchanged(&file));
        }
        // Making it smaller works even where it is over a limit that was lowered since.
        if size > file.row.size {
            self.check_value(size)?;
        }
        let old = rows::value(&self.rows, file.ino, &file.row)?;
        let value = if size < file.row.size {
            old.slice(..size as usize)
        } else {
            let mut value = BytesMut::with_capacity(size as usize);
            value.extend_from_slice(&old);
            value.resize(size as usize, 0);
            value.freeze()
        };
        self.write(file, value, LeaseChange::Keep)
    }

    fn check_value(&self, size: u64) -> Step<()> {
        let limit = self.proposal.value_max.min(VALUE_MAX_LIMIT);
        if size > limit {
            return Err(Refusal::ValueTooLarge { size, limit }.into());
        }
        Ok(())
    }

    fn open(&mut self, open: &Open<'_>) -> Step<Opened> {
        let file = match open.target {
            Target::Ino(ino) => self.object(*ino)?,
            Target::At(at) => match self.locate(at, open.parents.then_some(open.owner))? {
                Located::Root => self.object(Ino::ROOT)?,
                Located::Spot(spot) => match spot.entry {
                    Some(entry) => {
                        Object { ino: entry.ino, row: self.node(entry.ino)?, place: Some(spot.place) }
                    }
                    None if open.create == CreateMode::Never => {
                        return Err(Refusal::NotFound(spot.text()).into());
                    }
                    None => return Ok(Opened::Free(spot.place)),
                },
            },
        };
        if open.create == CreateMode::Exclusive {
            return Err(Refusal::Exists(file.text()).into());
        }
        check_file(&file)?;
        Ok(Opened::File(file))
    }

    fn create_file(&mut self, place: Place, owner: Owner, value: &Bytes, lease: LeaseChange) -> Step {
        let new = NewObject { kind: Kind::File, owner, value: value.clone(), lease, reach: 0 };
        let record = self.create(place, new)?;
        Ok(Done::Written { ino: record.ino, created: true, version: record.version })
    }

    fn write(&mut self, file: Object, value: Bytes, lease: LeaseChange) -> Step {
        let Object { ino, mut row, place } = file;
        // Only the root has no place, and it is no file.
        let Some(place) = place else { return Err(Refusal::IsDirectory("/".to_string()).into()) };
        let before = Self::cost(&row);
        row.size = value.len() as u64;
        row.version += 1;
        row.mtime = self.proposal.time;
        self.stamp(&mut row);
        self.change_lease(ino, &mut row, lease)?;
        self.recount(before, Self::cost(&row))?;
        self.put_node(ino, &row)?;
        self.put_value(ino, &value);
        let version = row.version;
        self.change(Change::Update { place, record: row.into_record(ino, value) })?;
        Ok(Done::Written { ino, created: false, version })
    }

    /// What every change of a record leaves on it.
    pub fn stamp(&self, row: &mut NodeRow) {
        row.ctime = self.proposal.time;
        row.mod_revision = self.revision();
        row.author.clone_from(&self.proposal.author);
    }
}

/// Only a file has a value.
fn check_file(object: &Object) -> Step<()> {
    match object.row.kind {
        Kind::File => Ok(()),
        Kind::Dir => Err(Refusal::IsDirectory(object.text()).into()),
        kind => Err(Refusal::NotFile(object.text(), kind).into()),
    }
}

fn unchanged(file: &Object) -> Done {
    Done::Written { ino: file.ino, created: false, version: file.row.version }
}

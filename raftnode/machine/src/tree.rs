//! Commands that make and take away names: directories, symlinks, special files, deletes.

use bytes::Bytes;
use quorumfs_api::command::{At, Owner, Special};
use quorumfs_api::event::Place;
use quorumfs_api::key::Key;
use quorumfs_api::limits::{DELETE_TREE_MAX, SYMLINK_MAX};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, Kind};

use crate::locate::Located;
use crate::rows::Entry;
use crate::state::{NewObject, State, Step};
use crate::tables::{StorageError, Tables};
use crate::walk::Walk;

/// Links have all permissions: those of what they point to count.
const SYMLINK_MODE: u32 = 0o777;

impl<T: Tables + ?Sized> State<'_, T> {
    /// Makes a directory.
    pub fn mkdir(&mut self, at: &At, parents: bool, owner: Owner) -> Step {
        let (existing, text) = match self.locate_dir(at, parents.then_some(owner))? {
            Located::Root => (Entry { ino: Ino::ROOT, kind: Kind::Dir }, "/".to_string()),
            Located::Spot(spot) => match spot.entry {
                Some(entry) => (entry, spot.text()),
                None => {
                    let record = self.create(spot.place, NewObject::dir(owner))?;
                    return Ok(Done::Written { ino: record.ino, created: true, version: record.version });
                }
            },
        };
        if !parents || existing.kind != Kind::Dir {
            return Err(Refusal::Exists(text).into());
        }
        let version = self.node(existing.ino)?.version;
        Ok(Done::Written { ino: existing.ino, created: false, version })
    }

    /// Makes a symbolic link.
    pub fn symlink(&mut self, at: &At, to: &Bytes, parents: bool, owner: Owner) -> Step {
        if to.is_empty() || to.contains(&0) {
            return Err(Refusal::Invalid("a link points to a path: not empty, without NUL".into()).into());
        }
        if to.len() > SYMLINK_MAX {
            let text = format!("a link to {} bytes; {SYMLINK_MAX} is the most", to.len());
            return Err(Refusal::NameTooLong(text).into());
        }
        let owner = Owner { mode: SYMLINK_MODE, ..owner };
        self.make(at, parents, NewObject { kind: Kind::Symlink, value: to.clone(), ..NewObject::dir(owner) })
    }

    /// Makes a fifo, a socket or a device node.
    pub fn mknod(&mut self, at: &At, special: Special, parents: bool, owner: Owner) -> Step {
        let (kind, value) = (special.kind(), special.value());
        self.make(at, parents, NewObject { kind, value, ..NewObject::dir(owner) })
    }

    /// Makes something at a name that has to be free.
    fn make(&mut self, at: &At, parents: bool, new: NewObject) -> Step {
        let spot = match self.locate(at, parents.then_some(new.owner))? {
            Located::Root => return Err(Refusal::Exists("/".to_string()).into()),
            Located::Spot(spot) => spot,
        };
        if spot.entry.is_some() {
            return Err(Refusal::Exists(spot.text()).into());
        }
        let record = self.create(spot.place, new)?;
        Ok(Done::Written { ino: record.ino, created: true, version: record.version })
    }

    /// Takes away an empty directory.
    pub fn rmdir(&mut self, at: &At) -> Step {
        let spot = self.locate(at, None)?.not_root("be removed")?;
        let entry = spot.existing()?;
        if entry.kind != Kind::Dir {
            return Err(Refusal::NotDirectory(spot.text()).into());
        }
        if !self.is_empty(entry.ino)? {
            return Err(Refusal::NotEmpty(spot.text()).into());
        }
        self.remove(spot.place, entry)?;
        Ok(Done::Deleted(1))
    }

    /// Takes away whatever is no directory, or a whole tree. The root stays, empty.
    pub fn delete(&mut self, at: &At, recursive: bool) -> Step {
        let (key, entry, place) = match self.locate(at, None)? {
            Located::Root => (Key::root(), Entry { ino: Ino::ROOT, kind: Kind::Dir }, None),
            Located::Spot(spot) => (spot.place.key.clone(), spot.existing()?, Some(spot.place)),
        };
        if entry.kind == Kind::Dir && !recursive {
            return Err(Refusal::IsDirectory(key.to_string()).into());
        }
        let mut doomed: Vec<(Place, Entry)> = place.map(|place| (place, entry)).into_iter().collect();
        if entry.kind == Kind::Dir {
            self.check_delete(&key)?;
            self.collect(entry.ino, key, &mut doomed)?;
        }
        let count = doomed.len() as u64;
        // Parents were found first, so backwards every directory is empty when its turn comes.
        for (place, entry) in doomed.into_iter().rev() {
            self.remove(place, entry)?;
        }
        Ok(Done::Deleted(count))
    }

    /// Adds all below `dir` to `found`, parents first.
    fn collect(&self, dir: Ino, key: Key, found: &mut Vec<(Place, Entry)>) -> Step<()> {
        let mut walk = Walk::below(dir);
        let mut dirs = vec![key];
        while let Some(step) = walk.next(&self.rows)? {
            if found.len() == DELETE_TREE_MAX {
                let text = format!("one delete takes {DELETE_TREE_MAX} keys at most; delete it in parts");
                return Err(Refusal::TooMany(text).into());
            }
            dirs.truncate(step.depth);
            let key = dirs.last().map(|dir| dir.join(&step.name));
            let key = key.and_then(Result::ok).ok_or_else(|| StorageError::new("a key is too long"))?;
            if step.entry.kind == Kind::Dir {
                dirs.push(key.clone());
            }
            found.push((Place { key, parent: step.parent, name: step.name }, step.entry));
        }
        Ok(())
    }

    /// Whether nothing is in a directory.
    pub fn is_empty(&self, dir: Ino) -> Result<bool, StorageError> {
        Ok(Walk::below(dir).next(&self.rows)?.is_none())
    }
}

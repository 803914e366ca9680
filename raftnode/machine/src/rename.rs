//! Renaming. Entries name inodes, and an inode knows its one name, so a directory with a million keys
//! moves by two entries.

use quorumfs_api::command::{At, RenameMode};
use quorumfs_api::event::Change;
use quorumfs_api::key::Key;
use quorumfs_api::limits::{DELETE_TREE_MAX, KEY_MAX};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, Kind};

use crate::locate::Spot;
use crate::path;
use crate::rows::{self, Entry};
use crate::state::{State, Step};
use crate::tables::{StorageError, Table, Tables};
use crate::walk::Walk;

impl<T: Tables + ?Sized> State<'_, T> {
    /// Renames, replaces or swaps.
    pub fn rename(&mut self, from: &At, to: &At, mode: RenameMode) -> Step {
        let from = self.locate(from, None)?.not_root("be renamed")?;
        let to = self.locate(to, None)?.not_root("be replaced")?;
        let moved = from.existing()?;
        match (mode, to.entry) {
            (RenameMode::NoReplace, Some(_)) => return Err(Refusal::Exists(to.text()).into()),
            (RenameMode::Exchange, None) => return Err(Refusal::NotFound(to.text()).into()),
            (_, Some(same)) if same == moved => return Ok(Done::Ok),
            _ => {}
        }
        if moved.kind == Kind::Dir || to.entry.is_some_and(|other| other.kind == Kind::Dir) {
            self.check_tree(&from.place.key)?;
            self.check_tree(&to.place.key)?;
        }
        self.check_loop(moved, &from, &to)?;
        match to.entry {
            Some(other) if mode == RenameMode::Exchange => self.exchange(from, moved, to, other)?,
            replaced => self.replace(from, moved, to, replaced)?,
        }
        Ok(Done::Ok)
    }

    fn replace(&mut self, from: Spot, moved: Entry, to: Spot, replaced: Option<Entry>) -> Step<()> {
        let mut had_locks = false;
        if let Some(old) = replaced {
            match (moved.kind, old.kind) {
                (Kind::Dir, Kind::Dir) if self.is_empty(old.ino)? => {}
                (Kind::Dir, Kind::Dir) => return Err(Refusal::NotEmpty(to.text()).into()),
                (Kind::Dir, _) => return Err(Refusal::NotDirectory(to.text()).into()),
                (_, Kind::Dir) => return Err(Refusal::IsDirectory(to.text()).into()),
                _ => {}
            }
            had_locks = self.drop_object(old.ino)?;
        }
        self.rows.delete(Table::Entries, &rows::entry(from.place.parent, from.place.name.as_bytes()));
        self.settle(moved, &to)?;
        self.touch_dir(from.place.parent, 0)?;
        self.change(Change::Rename {
            from: from.place,
            to: to.place,
            ino: moved.ino,
            kind: moved.kind,
            replaced: replaced.map(|old| (old.ino, old.kind)),
            exchanged: None,
        })?;
        if let Some(old) = replaced
            && had_locks
        {
            self.change(Change::Unlocked { ino: old.ino })?;
        }
        Ok(())
    }

    fn exchange(&mut self, from: Spot, moved: Entry, to: Spot, other: Entry) -> Step<()> {
        self.check_loop(other, &to, &from)?;
        self.settle(moved, &to)?;
        self.settle(other, &from)?;
        self.change(Change::Rename {
            from: from.place,
            to: to.place,
            ino: moved.ino,
            kind: moved.kind,
            replaced: None,
            exchanged: Some((other.ino, other.kind)),
        })
    }

    /// A directory cannot come to lie in itself.
    fn check_loop(&self, moved: Entry, from: &Spot, to: &Spot) -> Step<()> {
        if moved.kind == Kind::Dir && to.place.key.is_within(&from.place.key) {
            let text = format!("{} cannot move into itself, to {}", from.text(), to.text());
            return Err(Refusal::Invalid(text).into());
        }
        Ok(())
    }

    /// Gives `moved` the name of `to`.
    fn settle(&mut self, moved: Entry, to: &Spot) -> Step<()> {
        let mut row = self.node(moved.ino)?;
        if moved.kind == Kind::Dir {
            row.reach = self.check_reach(moved.ino, row.reach as usize, &to.place.key)? as u32;
        }
        let before = Self::cost(&row);
        row.place = Some((to.place.parent, to.place.name.clone()));
        self.stamp(&mut row);
        let after = Self::cost(&row);
        self.recount(before, after)?;
        self.renamed_bytes += after as i64 - before as i64;
        self.put_node(moved.ino, &row)?;
        self.put_entry(to.place.parent, &to.place.name, moved)?;
        self.touch_dir(to.place.parent, 1 + to.place.name.as_bytes().len() + row.reach as usize)
    }

    /// Refuses to make a key below `dir` too long. Gives what is known of the longest path below it.
    fn check_reach(&self, dir: Ino, reach: usize, to: &Key) -> Step<usize> {
        let room = KEY_MAX - path::length(to);
        if reach <= room {
            return Ok(reach);
        }
        // What reached that far may be gone since: measure, within reason.
        match self.measure(dir)? {
            Some(exact) if exact <= room => Ok(exact),
            _ => {
                Err(Refusal::NameTooLong(format!("keys below {to} would have more than {KEY_MAX} bytes"))
                    .into())
            }
        }
    }

    /// The longest path from `dir` to something below it, unless too much is there to look at.
    fn measure(&self, dir: Ino) -> Result<Option<usize>, StorageError> {
        let mut walk = Walk::below(dir);
        let mut lengths = vec![0];
        let mut longest = 0;
        let mut seen = 0;
        while let Some(step) = walk.next(&self.rows)? {
            seen += 1;
            if seen > DELETE_TREE_MAX {
                return Ok(None);
            }
            lengths.truncate(step.depth);
            let length = lengths.last().copied().unwrap_or_default() + 1 + step.name.as_bytes().len();
            longest = longest.max(length);
            if step.entry.kind == Kind::Dir {
                lengths.push(length);
            }
        }
        Ok(Some(longest))
    }
}

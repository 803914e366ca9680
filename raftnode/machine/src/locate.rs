//! Where a command means: from what it says to places in the tree.

use quorumfs_api::command::{At, Owner, Target};
use quorumfs_api::event::Place;
use quorumfs_api::key::{Key, Name};
use quorumfs_api::outcome::Refusal;
use quorumfs_api::record::{Ino, Kind};

use crate::guard::Purpose;
use crate::path::{self, Walked};
use crate::rows::{self, Entry, NodeRow};
use crate::state::{State, Step};
use crate::tables::Tables;

/// A name in a directory that exists.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub place: Place,
    /// What has the name now.
    pub entry: Option<Entry>,
}

impl Spot {
    /// The key, for a message.
    pub fn text(&self) -> String {
        self.place.key.to_string()
    }

    /// What has the name, or the refusal that nothing has it.
    pub fn existing(&self) -> Step<Entry> {
        Ok(self.entry.ok_or_else(|| Refusal::NotFound(self.text()))?)
    }
}

/// Where a name leads.
pub(crate) enum Located {
    /// The root, which is in no directory.
    Root,
    /// Anything else.
    Spot(Spot),
}

impl Located {
    /// The spot, or a refusal that says what cannot be done to the root.
    pub fn not_root(self, what: &str) -> Step<Spot> {
        match self {
            Located::Spot(spot) => Ok(spot),
            Located::Root => Err(Refusal::Invalid(format!("the root cannot {what}")).into()),
        }
    }
}

/// An object that exists.
pub(crate) struct Object {
    pub ino: Ino,
    pub row: NodeRow,
    /// `None` for the root.
    pub place: Option<Place>,
}

impl Object {
    /// The key, for a message.
    pub fn text(&self) -> String {
        self.place.as_ref().map_or_else(|| "/".to_string(), |place| place.key.to_string())
    }
}

impl<T: Tables + ?Sized> State<'_, T> {
    /// Finds a name, to change what has it. With `parents`, missing directories on the way are made for
    /// that owner. What the policy says comes before what is there: a refusal tells nothing of that.
    pub fn locate(&mut self, at: &At, parents: Option<Owner>) -> Step<Located> {
        self.locate_for(Purpose::Write, at, parents)
    }

    /// The same, to make a directory there: whoever may write below may make the way.
    pub fn locate_dir(&mut self, at: &At, parents: Option<Owner>) -> Step<Located> {
        self.locate_for(Purpose::MakeDir, at, parents)
    }

    fn locate_for(&mut self, purpose: Purpose, at: &At, parents: Option<Owner>) -> Step<Located> {
        match at {
            At::Key(key) => {
                self.check_write(purpose, key)?;
                self.locate_key(key, parents)
            }
            At::Entry(dir, name) => Ok(Located::Spot(self.locate_entry(purpose, *dir, name)?)),
        }
    }

    fn locate_key(&mut self, key: &Key, parents: Option<Owner>) -> Step<Located> {
        let Some((dir_key, name)) = key.split() else { return Ok(Located::Root) };
        let dir = match path::walk(&self.rows, &dir_key)? {
            Walked::Found(Entry { ino, kind: Kind::Dir }) => ino,
            Walked::Found(_) => return Err(Refusal::NotDirectory(dir_key.to_string()).into()),
            Walked::NotDirectory { depth } => {
                return Err(Refusal::NotDirectory(path::ancestor(&dir_key, depth + 1).to_string()).into());
            }
            Walked::Missing { dir, depth } => match parents {
                Some(owner) => self.make_parents(key, dir, depth, owner)?,
                None => {
                    return Err(Refusal::NotFound(path::ancestor(&dir_key, depth + 1).to_string()).into());
                }
            },
        };
        let entry = path::entry(&self.rows, dir, &name)?;
        Ok(Located::Spot(Spot { place: Place { key: key.clone(), parent: dir, name }, entry }))
    }

    /// Makes the directories on the way to `key` from component number `depth` on, the first of them
    /// in `dir`.
    fn make_parents(&mut self, key: &Key, mut dir: Ino, depth: usize, owner: Owner) -> Step<Ino> {
        let mut missing = Vec::new();
        let mut at = key.split();
        while let Some((above, _)) = at {
            at = above.split();
            missing.push(above);
        }
        // From the top down, without the root and what is there.
        for made in missing.into_iter().rev().skip(1 + depth) {
            let reach = (key.as_bytes().len() - made.as_bytes().len()) as u32;
            if let Some((_, name)) = made.split() {
                dir = self.create_parent(Place { key: made, parent: dir, name }, owner, reach)?;
            }
        }
        Ok(dir)
    }

    fn locate_entry(&mut self, purpose: Purpose, dir: Ino, name: &Name) -> Step<Spot> {
        let Some(row) = rows::read::<NodeRow, _>(&self.rows, &rows::number(dir.0))? else {
            return Err(Refusal::Stale(dir).into());
        };
        let dir_key = path::key_of(&self.rows, dir)?;
        if row.kind != Kind::Dir {
            return Err(Refusal::NotDirectory(dir_key.to_string()).into());
        }
        let key = dir_key.join(name).map_err(|error| Refusal::NameTooLong(error.to_string()))?;
        self.check_write(purpose, &key)?;
        let entry = path::entry(&self.rows, dir, name)?;
        Ok(Spot { place: Place { key, parent: dir, name: name.clone() }, entry })
    }

    /// An object by its number, to change it.
    pub fn object(&self, ino: Ino) -> Step<Object> {
        let row = rows::read(&self.rows, &rows::number(ino.0))?.ok_or(Refusal::Stale(ino))?;
        let place = self.place_of(ino, &row)?;
        self.check_write(Purpose::Write, place.as_ref().map_or(&Key::root(), |place| &place.key))?;
        Ok(Object { ino, row, place })
    }

    /// An object that has to exist, by name or number.
    pub fn target(&mut self, target: &Target) -> Step<Object> {
        match target {
            Target::Ino(ino) => self.object(*ino),
            Target::At(at) => match self.locate(at, None)? {
                Located::Root => self.object(Ino::ROOT),
                Located::Spot(spot) => {
                    let entry = spot.existing()?;
                    Ok(Object { ino: entry.ino, row: self.node(entry.ino)?, place: Some(spot.place) })
                }
            },
        }
    }
}

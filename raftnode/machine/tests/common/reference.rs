//! What the state machine has to do, written as simply as possible: a map from whole paths to records.
//! Renaming a directory rewrites every path below it, a lookup by number searches, and what is refused
//! is undone by going back to a clone. Texts of refusals are left empty.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorumfs_api::command::{
    At, Command, Compare, CreateMode, LeaseChange, Owner, Proposal, Relation, RenameMode, Target, TimeChange,
    XattrMode,
};
use quorumfs_api::key::{Key, Name};
use quorumfs_api::outcome::{Done, Outcome, Refusal};
use quorumfs_api::record::{Ino, Kind, LeaseId, Record, Timestamp};

use super::reference_locks::ByteLocks;

pub type Path = Vec<Name>;

#[derive(Clone)]
pub struct Session {
    pub ttl_ms: u64,
    floor: u64,
    answers: BTreeMap<u64, Outcome>,
}

#[derive(Clone)]
pub struct Reference {
    pub objects: BTreeMap<Path, Record>,
    pub revision: u64,
    pub sessions: BTreeMap<LeaseId, Session>,
    pub locks: ByteLocks,
    next_ino: u64,
    changed: bool,
    renamed_bytes: i64,
}

/// A refusal without its text.
pub fn shape(refusal: Refusal) -> Refusal {
    let no = String::new();
    match refusal {
        Refusal::NotFound(_) => Refusal::NotFound(no),
        Refusal::Exists(_) => Refusal::Exists(no),
        Refusal::NotDirectory(_) => Refusal::NotDirectory(no),
        Refusal::IsDirectory(_) => Refusal::IsDirectory(no),
        Refusal::NotFile(_, kind) => Refusal::NotFile(no, kind),
        Refusal::NotEmpty(_) => Refusal::NotEmpty(no),
        Refusal::Invalid(_) => Refusal::Invalid(no),
        Refusal::NameTooLong(_) => Refusal::NameTooLong(no),
        Refusal::TooMany(_) => Refusal::TooMany(no),
        other => other,
    }
}

type Run<R = Done> = Result<R, Refusal>;

fn not_found<R>() -> Run<R> {
    Err(Refusal::NotFound(String::new()))
}
fn exists<R>() -> Run<R> {
    Err(Refusal::Exists(String::new()))
}
fn invalid<R>() -> Run<R> {
    Err(Refusal::Invalid(String::new()))
}

impl Reference {
    pub fn new() -> Reference {
        let root = Record {
            ino: Ino(1),
            kind: Kind::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            atime: Timestamp(0),
            mtime: Timestamp(0),
            ctime: Timestamp(0),
            create_revision: 0,
            mod_revision: 0,
            version: 1,
            lease: None,
            author: "".into(),
            xattrs: Vec::new(),
            value: Bytes::new(),
        };
        Reference {
            objects: BTreeMap::from([(Vec::new(), root)]),
            revision: 0,
            sessions: BTreeMap::new(),
            locks: ByteLocks::default(),
            next_ino: 2,
            changed: false,
            renamed_bytes: 0,
        }
    }

    /// The bytes that count, summed up anew.
    pub fn bytes(&self) -> u64 {
        let cost = |(path, record): (&Path, &Record)| {
            let xattrs: usize = record.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
            let name = path.last().map_or(0, |name| 256 + name.as_bytes().len());
            name + xattrs + record.value.len()
        };
        self.objects.iter().map(cost).sum::<usize>() as u64
    }

    /// Whether something changed, and the outcome.
    pub fn apply(&mut self, p: &Proposal) -> (bool, Outcome) {
        if let Some(request) = p.session {
            let refusal = match self.sessions.get(&request.session) {
                None => Refusal::NoSession(request.session),
                Some(s) if request.number < s.floor => Refusal::Forgotten(request.number),
                Some(s) if s.answers.contains_key(&request.number) => {
                    return (false, s.answers[&request.number].clone());
                }
                _ => return self.apply_new(p),
            };
            return (false, Outcome { revision: self.revision, result: Err(refusal) });
        }
        self.apply_new(p)
    }

    fn apply_new(&mut self, p: &Proposal) -> (bool, Outcome) {
        let before = self.clone();
        self.changed = false;
        self.renamed_bytes = 0;
        let used = before.bytes();
        let mut result = self.run(p, &p.command);
        let grew = self.bytes() as i64 - used as i64 - self.renamed_bytes;
        if result.is_ok() && grew > 0 && self.bytes() > p.store_max {
            result = Err(Refusal::StoreFull { used, limit: p.store_max });
        }
        if result.is_err() {
            *self = before;
            self.changed = false;
        }
        self.revision += u64::from(self.changed);
        let outcome = Outcome { revision: self.revision, result };
        if let Some(request) = p.session
            && let Some(session) = self.sessions.get_mut(&request.session)
        {
            session.answers.insert(request.number, outcome.clone());
            session.floor = session.floor.max(request.done_below.min(request.number));
            session.answers.retain(|number, _| *number >= session.floor);
        }
        (self.changed, outcome)
    }

    fn run(&mut self, p: &Proposal, command: &Command) -> Run {
        match command.clone() {
            Command::Put { target, value, create, parents, owner, lease } => {
                self.fits(p, value.len() as u64)?;
                match self.open(p, &target, create, parents, owner)? {
                    Ok(path) => self.write(p, &path, value, lease),
                    Err(path) => self.create(p, path, Kind::File, value, owner, lease),
                }
            }
            Command::Append { target, data, create, parents, owner } => {
                match self.open(p, &target, create, parents, owner)? {
                    Ok(path) if data.is_empty() => Ok(self.written(&path, false)),
                    Ok(path) => {
                        let value: Bytes = [&self.objects[&path].value[..], &data[..]].concat().into();
                        self.fits(p, value.len() as u64)?;
                        self.write(p, &path, value, LeaseChange::Keep)
                    }
                    Err(path) => {
                        self.fits(p, data.len() as u64)?;
                        self.create(p, path, Kind::File, data, owner, LeaseChange::Keep)
                    }
                }
            }
            Command::Truncate { target, size } => {
                let path = self.target(&target)?;
                self.is_file(&path)?;
                let mut value = self.objects[&path].value.to_vec();
                if size == value.len() as u64 {
                    return Ok(self.written(&path, false));
                }
                if size > value.len() as u64 {
                    self.fits(p, size)?;
                }
                value.resize(size as usize, 0);
                self.write(p, &path, value.into(), LeaseChange::Keep)
            }
            Command::Delete { at, recursive } => {
                let path = self.existing(&at)?;
                if self.objects[&path].kind == Kind::Dir && !recursive {
                    return Err(Refusal::IsDirectory(String::new()));
                }
                let doomed: Vec<Path> =
                    self.objects.keys().filter(|k| k.starts_with(&path) && !k.is_empty()).cloned().collect();
                for path in doomed.iter().rev() {
                    self.remove(p, path);
                }
                Ok(Done::Deleted(doomed.len() as u64))
            }
            Command::Mkdir { at, parents, owner } => {
                let path = self.locate(p, &at, parents.then_some(owner))?;
                match self.objects.get(&path) {
                    None => self.create(p, path, Kind::Dir, Bytes::new(), owner, LeaseChange::Keep),
                    Some(record) if parents && record.kind == Kind::Dir => Ok(self.written(&path, false)),
                    Some(_) => exists(),
                }
            }
            Command::Rmdir { at } => {
                let path = self.locate(p, &at, None)?;
                if path.is_empty() {
                    return invalid();
                }
                match self.objects.get(&path).map(|r| r.kind) {
                    None => not_found(),
                    Some(Kind::Dir) if self.children(&path) > 0 => Err(Refusal::NotEmpty(String::new())),
                    Some(Kind::Dir) => {
                        self.remove(p, &path);
                        Ok(Done::Deleted(1))
                    }
                    Some(_) => Err(Refusal::NotDirectory(String::new())),
                }
            }
            Command::Rename { from, to, mode } => self.rename(p, &from, &to, mode),
            Command::Symlink { at, to, parents, owner } => {
                if to.is_empty() {
                    return invalid();
                }
                let path = self.locate(p, &at, parents.then_some(owner))?;
                if self.objects.contains_key(&path) {
                    return exists();
                }
                self.create(p, path, Kind::Symlink, to, Owner { mode: 0o777, ..owner }, LeaseChange::Keep)
            }
            Command::SetAttr { target, set } => {
                let path = self.target(&target)?;
                if set == Default::default() {
                    return Ok(Done::Ok);
                }
                let record = self.stamp(p, &path);
                if record.kind != Kind::Symlink {
                    record.mode = set.mode.map_or(record.mode, |mode| mode & 0o7777);
                }
                record.uid = set.uid.unwrap_or(record.uid);
                record.gid = set.gid.unwrap_or(record.gid);
                for (change, time) in [(set.atime, &mut record.atime), (set.mtime, &mut record.mtime)] {
                    match change {
                        Some(TimeChange::Now) => *time = p.time,
                        Some(TimeChange::At(at)) => *time = at,
                        None => {}
                    }
                }
                Ok(Done::Ok)
            }
            Command::SetXattr { target, name, value, mode } => {
                let styles = name == "user.kv.events";
                let is_style = |value: &Bytes| ["write", "rename", "swap"].iter().any(|word| value == word);
                if name.starts_with(b"user.kv.") && !(styles && value.as_ref().is_none_or(is_style)) {
                    return invalid();
                }
                let path = self.target(&target)?;
                if styles && self.objects[&path].kind != Kind::Dir {
                    return Err(Refusal::NotDirectory(String::new()));
                }
                let mut xattrs: BTreeMap<Bytes, Bytes> = self.objects[&path].xattrs.iter().cloned().collect();
                let had = xattrs.contains_key(&name);
                match value {
                    Some(_) if had && mode == XattrMode::Create => return exists(),
                    Some(_) if !had && mode == XattrMode::Replace => return Err(Refusal::NoAttribute),
                    None if !had => return Err(Refusal::NoAttribute),
                    Some(value) => drop(xattrs.insert(name, value)),
                    None => drop(xattrs.remove(&name)),
                }
                self.stamp(p, &path).xattrs = xattrs.into_iter().collect();
                Ok(Done::Ok)
            }
            Command::Mknod { at, special, parents, owner } => {
                let path = self.locate(p, &at, parents.then_some(owner))?;
                if self.objects.contains_key(&path) {
                    return exists();
                }
                self.create(p, path, special.kind(), special.value(), owner, LeaseChange::Keep)
            }
            Command::CancelWait { ino, owner } => {
                self.changed |= self.locks.stop_waiting(owner, |of, _, _| of == ino);
                Ok(Done::Ok)
            }
            Command::Lock { ino, owner, range, kind, pid, wait } => {
                if range.start > range.end {
                    return invalid();
                }
                self.path_of(ino)?;
                if !self.sessions.contains_key(&owner.session) {
                    return Err(Refusal::NoLease(owner.session));
                }
                if let Some(lock) = self.locks.conflict(ino, owner, range, kind) {
                    if !wait {
                        return Err(Refusal::Locked(lock));
                    }
                    if self.locks.would_wait_for_ever(ino, owner, range, kind) {
                        return Err(Refusal::Deadlock(lock));
                    }
                    self.changed |= self.locks.wait(ino, owner, range, kind);
                    return Ok(Done::Waiting(lock));
                }
                self.locks.stop_waiting(owner, |of, at, how| (of, at, how) == (ino, range, kind));
                self.locks.lock(ino, owner, range, kind, pid, self.revision + 1);
                self.changed = true;
                Ok(Done::Locked(self.revision + 1))
            }
            Command::Unlock { ino, owner, range } => {
                if range.start > range.end {
                    return invalid();
                }
                self.changed |= self.locks.unlock(ino, owner, range);
                Ok(Done::Ok)
            }
            Command::LeaseGrant { ttl_ms } => {
                let ttl_ms = ttl_ms.clamp(500, 365 * 24 * 3600 * 1000);
                let id = LeaseId(self.revision + 1);
                self.sessions.insert(id, Session { ttl_ms, floor: 1, answers: BTreeMap::new() });
                self.changed = true;
                Ok(Done::Lease { id, ttl_ms })
            }
            Command::LeaseRevoke { lease } => match self.end(p, lease) {
                true => Ok(Done::Ok),
                false => Err(Refusal::NoLease(lease)),
            },
            Command::LeaseExpire { leases } => {
                for lease in leases {
                    self.end(p, lease);
                }
                Ok(Done::Ok)
            }
            Command::Txn { compare, then, otherwise } => {
                let waits = |c: &Command| matches!(c, Command::Lock { wait: true, .. });
                if then.iter().chain(&otherwise).any(waits) {
                    return invalid();
                }
                let succeeded = compare.iter().all(|c| self.holds(c));
                let branch = if succeeded { then } else { otherwise };
                let results = branch.iter().map(|c| self.run(p, c)).collect::<Run<_>>()?;
                Ok(Done::Txn { succeeded, results })
            }
        }
    }

    fn fits(&self, p: &Proposal, size: u64) -> Run<()> {
        match p.value_max {
            limit if size > limit => Err(Refusal::ValueTooLarge { size, limit }),
            _ => Ok(()),
        }
    }

    pub fn path_of(&self, ino: Ino) -> Run<Path> {
        let found = self.objects.iter().find(|(_, record)| record.ino == ino);
        found.map(|(path, _)| path.clone()).ok_or(Refusal::Stale(ino))
    }

    fn path(key: &Key) -> Path {
        key.names().collect()
    }

    /// The path that is meant; its parent is a directory.
    fn locate(&mut self, p: &Proposal, at: &At, parents: Option<Owner>) -> Run<Path> {
        let path = match at {
            At::Key(key) => Self::path(key),
            At::Entry(dir, name) => {
                let mut path = self.path_of(*dir)?;
                path.push(name.clone());
                path
            }
        };
        for length in 1..path.len() {
            match self.objects.get(&path[..length]).map(|record| record.kind) {
                Some(Kind::Dir) => {}
                Some(_) => return Err(Refusal::NotDirectory(String::new())),
                None => {
                    let Some(owner) = parents else { return not_found() };
                    let (owner, lease) = (Owner { mode: 0o755, ..owner }, LeaseChange::Keep);
                    self.create(p, path[..length].to_vec(), Kind::Dir, Bytes::new(), owner, lease)?;
                }
            }
        }
        Ok(path)
    }

    fn existing(&self, at: &At) -> Run<Path> {
        // Nothing is made without an owner for it, so a clone does as well.
        let any = super::proposal(Command::LeaseGrant { ttl_ms: 0 });
        let path = self.clone().locate(&any, at, None)?;
        if self.objects.contains_key(&path) { Ok(path) } else { not_found() }
    }

    fn target(&self, target: &Target) -> Run<Path> {
        match target {
            Target::Ino(ino) => self.path_of(*ino),
            Target::At(at) => self.existing(at),
        }
    }

    /// `Ok`: a file that is there. `Err`: where one may be made.
    fn open(
        &mut self,
        p: &Proposal,
        target: &Target,
        create: CreateMode,
        parents: bool,
        owner: Owner,
    ) -> Run<Result<Path, Path>> {
        let path = match target {
            Target::Ino(ino) => self.path_of(*ino)?,
            Target::At(at) => self.locate(p, at, parents.then_some(owner))?,
        };
        match (self.objects.contains_key(&path), create) {
            (true, CreateMode::Exclusive) => exists(),
            (true, _) => self.is_file(&path).map(|()| Ok(path)),
            (false, CreateMode::Never) => not_found(),
            (false, _) => Ok(Err(path)),
        }
    }

    fn is_file(&self, path: &Path) -> Run<()> {
        match self.objects[path].kind {
            Kind::File => Ok(()),
            Kind::Dir => Err(Refusal::IsDirectory(String::new())),
            kind => Err(Refusal::NotFile(String::new(), kind)),
        }
    }

    fn written(&self, path: &Path, created: bool) -> Done {
        let record = &self.objects[path];
        Done::Written { ino: record.ino, created, version: record.version }
    }

    fn stamp(&mut self, p: &Proposal, path: &Path) -> &mut Record {
        self.changed = true;
        let record = self.objects.get_mut(path).unwrap();
        record.ctime = p.time;
        record.mod_revision = self.revision + 1;
        record.author = p.author.as_str().into();
        record
    }

    fn lease(&self, change: LeaseChange, old: Option<LeaseId>) -> Run<Option<LeaseId>> {
        match change {
            LeaseChange::Keep => Ok(old),
            LeaseChange::Clear => Ok(None),
            LeaseChange::Bind(id) if self.sessions.contains_key(&id) => Ok(Some(id)),
            LeaseChange::Bind(id) => Err(Refusal::NoLease(id)),
        }
    }

    fn write(&mut self, p: &Proposal, path: &Path, value: Bytes, lease: LeaseChange) -> Run {
        let lease = self.lease(lease, self.objects[path].lease)?;
        let record = self.stamp(p, path);
        record.value = value;
        record.version += 1;
        record.mtime = p.time;
        record.lease = lease;
        Ok(self.written(path, false))
    }

    fn create(
        &mut self,
        p: &Proposal,
        path: Path,
        kind: Kind,
        value: Bytes,
        owner: Owner,
        lease: LeaseChange,
    ) -> Run {
        let lease = self.lease(lease, None)?;
        let record = Record {
            ino: Ino(self.next_ino),
            kind,
            mode: owner.mode & 0o7777,
            uid: owner.uid,
            gid: owner.gid,
            atime: p.time,
            mtime: p.time,
            ctime: p.time,
            create_revision: self.revision + 1,
            mod_revision: self.revision + 1,
            version: 1,
            lease,
            author: p.author.as_str().into(),
            xattrs: Vec::new(),
            value,
        };
        self.next_ino += 1;
        self.objects.insert(path.clone(), record);
        self.touch(p, &path);
        Ok(self.written(&path, true))
    }

    /// A name came or went: the times of its directory.
    fn touch(&mut self, p: &Proposal, path: &Path) {
        let dir = self.objects.get_mut(&path[..path.len() - 1]).unwrap();
        dir.mtime = p.time;
        dir.ctime = p.time;
        self.changed = true;
    }

    fn remove(&mut self, p: &Proposal, path: &Path) {
        let gone = self.objects.remove(path).unwrap().ino;
        self.locks.forget(|ino, _| ino == gone);
        self.touch(p, path);
    }

    fn children(&self, path: &Path) -> usize {
        self.objects.keys().filter(|k| k.len() == path.len() + 1 && k.starts_with(path)).count()
    }

    fn rename(&mut self, p: &Proposal, from: &At, to: &At, mode: RenameMode) -> Run {
        let from = self.locate(p, from, None)?;
        if from.is_empty() {
            return invalid();
        }
        let to = self.locate(p, to, None)?;
        if to.is_empty() {
            return invalid();
        }
        let Some(moved) = self.objects.get(&from).map(|r| r.kind) else { return not_found() };
        let taken = self.objects.get(&to).map(|r| r.kind);
        match (mode, taken) {
            (RenameMode::NoReplace, Some(_)) => return exists(),
            (RenameMode::Exchange, None) => return not_found(),
            _ if from == to => return Ok(Done::Ok),
            _ => {}
        }
        if to.starts_with(&from) || (mode == RenameMode::Exchange && from.starts_with(&to)) {
            // Only a directory has something below it.
            return invalid();
        }
        let name_bytes = |path: &Path| path.last().unwrap().as_bytes().len() as i64;
        if mode == RenameMode::Exchange {
            let (a, b) = (self.take(&from), self.take(&to));
            self.give(&to, a);
            self.give(&from, b);
            self.stamp(p, &from);
        } else {
            match (moved, taken) {
                (_, None) => {}
                (Kind::Dir, Some(Kind::Dir)) if self.children(&to) > 0 => {
                    return Err(Refusal::NotEmpty(String::new()));
                }
                (Kind::Dir, Some(Kind::Dir)) => {}
                (Kind::Dir, Some(_)) => return Err(Refusal::NotDirectory(String::new())),
                (_, Some(Kind::Dir)) => return Err(Refusal::IsDirectory(String::new())),
                _ => {}
            }
            if taken.is_some() {
                self.remove(p, &to);
            }
            let tree = self.take(&from);
            self.give(&to, tree);
            self.renamed_bytes += name_bytes(&to) - name_bytes(&from);
        }
        self.stamp(p, &to);
        self.touch(p, &from);
        self.touch(p, &to);
        Ok(Done::Ok)
    }

    fn take(&mut self, path: &Path) -> Vec<(Path, Record)> {
        let keys: Vec<Path> = self.objects.keys().filter(|k| k.starts_with(path)).cloned().collect();
        keys.into_iter().map(|k| (k[path.len()..].to_vec(), self.objects.remove(&k).unwrap())).collect()
    }

    fn give(&mut self, path: &Path, tree: Vec<(Path, Record)>) {
        for (rest, record) in tree {
            self.objects.insert([&path[..], &rest[..]].concat(), record);
        }
    }

    fn end(&mut self, p: &Proposal, lease: LeaseId) -> bool {
        if self.sessions.remove(&lease).is_none() {
            return false;
        }
        let bound: Vec<Path> =
            self.objects.iter().filter(|(_, r)| r.lease == Some(lease)).map(|(k, _)| k.clone()).collect();
        for path in bound {
            self.remove(p, &path);
        }
        self.locks.end(lease);
        self.changed = true;
        true
    }

    fn holds(&self, compare: &Compare) -> bool {
        let get = |key: &Key| self.objects.get(&Self::path(key));
        let relate = |left: u64, relation: &Relation, right: u64| match relation {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::Greater => left > right,
        };
        match compare {
            Compare::Exists(key, yes) => get(key).is_some() == *yes,
            Compare::Value(key, value, yes) => {
                get(key).is_some_and(|r| r.kind == Kind::File && r.value == *value) == *yes
            }
            Compare::Version(key, relation, n) => relate(get(key).map_or(0, |r| r.version), relation, *n),
            Compare::CreateRevision(key, relation, n) => {
                relate(get(key).map_or(0, |r| r.create_revision), relation, *n)
            }
            Compare::ModRevision(key, relation, n) => {
                relate(get(key).map_or(0, |r| r.mod_revision), relation, *n)
            }
            Compare::Kind(key, kind) => get(key).is_some_and(|r| r.kind == *kind),
        }
    }
}

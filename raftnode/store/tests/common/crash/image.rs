//! What is on a disk after its power was cut: all that was synced, and of what came after the last
//! sync anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::content::Content;
use super::disk::{self, Kind, Names, Op, Trace};
use super::random::Random;

/// What a disk writes as a whole or not at all, in bytes.
const SECTOR: usize = 512;

/// What became of the writes since the last sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// None of them reached the disk.
    Lost,
    /// All of them did.
    Kept,
    /// Any of them did: the disk writes them in an order of its own.
    Some,
    /// As [`Variant::Some`], and of one of them only its first or last sectors did.
    Torn,
}

impl Variant {
    pub const ALL: [Variant; 4] = [Variant::Lost, Variant::Kept, Variant::Some, Variant::Torn];

    /// The one with this name.
    pub fn named(name: &str) -> Option<Variant> {
        Variant::ALL.into_iter().find(|variant| format!("{variant:?}").eq_ignore_ascii_case(name))
    }
}

/// The contents of databases, by their numbers, and the directory.
#[derive(Clone, Default)]
pub struct Image {
    pub files: Vec<Content>,
    pub names: Names,
}

impl Image {
    /// Which database a path is of.
    pub fn kind_of(path: &Path) -> Option<Kind> {
        let name = path.file_name()?.to_str()?;
        if name.starts_with("raft.log") {
            Some(Kind::Log)
        } else {
            name.starts_with("state.redb").then_some(Kind::State)
        }
    }

    /// Which databases they are. One without a name is dead: it does not matter which it was.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::State; self.files.len()];
        for (name, content) in &self.names {
            let number = str::from_utf8(content).ok().and_then(|number| number.parse::<usize>().ok());
            if let (Some(kind), Some(number)) = (Image::kind_of(name), number) {
                kinds[number] = kind;
            }
        }
        kinds
    }

    /// Puts the files into `dir`, and nothing else.
    pub fn put_files(&self, dir: &Path) {
        for name in Image::read_names(dir).into_keys() {
            if !self.names.contains_key(&name) {
                fs::remove_file(dir.join(name)).unwrap();
            }
        }
        for (name, content) in &self.names {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// The files in `dir`.
    pub fn read_names(dir: &Path) -> Names {
        let read = || -> io::Result<Names> {
            let mut names = Names::new();
            let mut dirs = vec![PathBuf::new()];
            while let Some(under) = dirs.pop() {
                for entry in fs::read_dir(dir.join(&under))? {
                    let entry = entry?;
                    let name = under.join(entry.file_name());
                    if entry.file_type()?.is_dir() {
                        dirs.push(name);
                    } else {
                        names.insert(name, fs::read(entry.path())?);
                    }
                }
            }
            Ok(names)
        };
        loop {
            match read() {
                Ok(names) => return names,
                // Something was renamed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => {}
                Err(error) => panic!("cannot read {}: {error}", dir.display()),
            }
        }
    }
}

/// Goes along a trace, from crash point to crash point.
pub struct Cursor<'a> {
    trace: &'a Trace,
    at: usize,
    durable: Image,
    /// For each database, what was done to it since it was synced.
    pending: Vec<Vec<&'a Op>>,
    /// How the directory looked since it was synced.
    pending_names: Vec<Arc<Names>>,
}

impl<'a> Cursor<'a> {
    pub fn new(trace: &'a Trace) -> Cursor<'a> {
        let durable = trace.base.clone();
        let pending = vec![Vec::new(); durable.files.len()];
        Cursor { trace, at: 0, durable, pending, pending_names: Vec::new() }
    }

    /// Goes on to where the first `point` operations have happened.
    pub fn advance(&mut self, point: usize) {
        assert!(point >= self.at, "a cursor only goes forward");
        for op in &self.trace.ops[self.at..point] {
            match op {
                Op::Write(number, ..) | Op::SetLen(number, _) => {
                    if self.pending.len() <= *number {
                        self.pending.resize(number + 1, Vec::new());
                        self.durable.files.resize(number + 1, Content::default());
                    }
                    self.pending[*number].push(op);
                }
                Op::Sync(number) => {
                    for op in self.pending[*number].drain(..) {
                        disk::apply(&mut self.durable.files[*number], op);
                    }
                }
                Op::Names(names) => self.pending_names.push(names.clone()),
                Op::NamesSynced => {
                    if let Some(names) = self.pending_names.drain(..).next_back() {
                        self.durable.names = Arc::unwrap_or_clone(names);
                    }
                }
            }
        }
        self.at = point;
    }

    /// Whether `variant` differs here from all before it.
    pub fn has(&self, variant: Variant) -> bool {
        let writes = self.pending.iter().map(Vec::len).sum::<usize>();
        match variant {
            Variant::Lost => true,
            Variant::Kept => writes + self.pending_names.len() > 0,
            Variant::Some => writes + self.pending_names.len() > 1,
            Variant::Torn => self.pending.iter().flatten().any(|op| sectors(op) > 1),
        }
    }

    /// What a power cut here leaves.
    pub fn image(&self, variant: Variant, random: &mut Random) -> Image {
        let mut image = self.durable.clone();
        let tearable = self.pending.iter().flatten().filter(|op| sectors(op) > 1).count();
        let mut torn = match variant {
            Variant::Torn if tearable > 0 => Some(random.below(tearable as u64)),
            _ => None,
        };
        // Of few or of many.
        let likely = 1 + random.below(7);
        for (number, ops) in self.pending.iter().enumerate() {
            for op in ops {
                let kept = match variant {
                    Variant::Lost => false,
                    Variant::Kept => true,
                    Variant::Some | Variant::Torn => random.below(8) < likely,
                };
                let content = &mut image.files[number];
                let tear = sectors(op) > 1 && torn == Some(0);
                if sectors(op) > 1 {
                    torn = torn.and_then(|left| left.checked_sub(1));
                }
                if tear {
                    disk::apply(content, &half(op, random));
                } else if kept {
                    disk::apply(content, op);
                }
            }
        }
        let newest = self.pending_names.len();
        let seen = match variant {
            Variant::Lost => 0,
            Variant::Kept => newest,
            Variant::Some | Variant::Torn => random.below(newest as u64 + 1) as usize,
        };
        if let Some(names) = seen.checked_sub(1).and_then(|at| self.pending_names.get(at)) {
            image.names = (**names).clone();
        }
        if !matches!(variant, Variant::Kept) {
            // What is not finished was not synced either.
            for (name, content) in &mut image.names {
                if name.extension().is_some_and(|extension| extension == "part") {
                    content.truncate(random.below(content.len() as u64 + 1) as usize);
                }
            }
        }
        // Databases that were made and never written.
        let numbers = image.names.iter().filter(|(name, _)| Image::kind_of(name).is_some());
        let numbers = numbers.filter_map(|(_, content)| str::from_utf8(content).ok()?.parse::<usize>().ok());
        let count = numbers.max().map_or(0, |number| number + 1);
        image.files.resize(count.max(image.files.len()), Content::default());
        image
    }
}

fn sectors(op: &Op) -> usize {
    match op {
        Op::Write(_, _, data) => data.len().div_ceil(SECTOR),
        _ => 0,
    }
}

/// The first or the last sectors of a write of at least two.
fn half(op: &Op, random: &mut Random) -> Op {
    let Op::Write(number, offset, data) = op else { unreachable!("only writes have sectors") };
    let cut = SECTOR * (1 + random.below(sectors(op) as u64 - 1) as usize);
    if random.below(2) == 0 {
        Op::Write(*number, *offset, data[..cut].into())
    } else {
        Op::Write(*number, *offset + cut as u64, data[cut..].into())
    }
}

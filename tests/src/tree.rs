//! A directory tree as a value that can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What one name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Dir,
    /// A file with this content.
    File(Vec<u8>),
    /// A symlink to this.
    Symlink(PathBuf),
    /// A fifo, socket or device: the type bits of its mode.
    Special(u32),
}

/// Everything below a directory, by its path from there.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// Reads a tree that nobody changes meanwhile.
#[track_caller]
pub fn read(root: &Path) -> Tree {
    try_read(root).unwrap_or_else(|e| panic!("tree of {root:?}: {e}"))
}

/// The same; an error where something went away under it.
pub fn try_read(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let path = dir.join(entry?.file_name());
            let here = look(&root.join(&path))?;
            if here == Entry::Dir {
                todo.push(path.clone());
            }
            tree.insert(path, here);
        }
    }
    Ok(tree)
}

/// What one path is now.
pub fn look(path: &Path) -> io::Result<Entry> {
    let kind = fs::symlink_metadata(path)?.file_type();
    Ok(if kind.is_dir() {
        Entry::Dir
    } else if kind.is_symlink() {
        Entry::Symlink(fs::read_link(path)?)
    } else if kind.is_file() {
        Entry::File(fs::read(path)?)
    } else {
        Entry::Special(fs::symlink_metadata(path)?.mode() & libc::S_IFMT)
    })
}

/// Permission bits of each path.
pub fn modes(root: &Path) -> BTreeMap<PathBuf, u32> {
    let mode =
        |path: &PathBuf| fs::symlink_metadata(root.join(path)).map_or(0, |m| m.permissions().mode() & 0o7777);
    read(root).into_keys().map(|path| (path.clone(), mode(&path))).collect()
}

/// Where two trees differ, in words; empty if they do not.
pub fn difference(left: (&str, &Tree), right: (&str, &Tree)) -> String {
    let mut lines = Vec::new();
    let short = |entry: Option<&Entry>| match entry {
        None => "nothing".to_string(),
        Some(Entry::Dir) => "a directory".to_string(),
        Some(Entry::Symlink(to)) => format!("a symlink to {to:?}"),
        Some(Entry::Special(kind)) => format!("a special file of type {kind:o}"),
        Some(Entry::File(value)) => {
            format!("{} bytes {:?}", value.len(), String::from_utf8_lossy(&value[..value.len().min(60)]))
        }
    };
    let paths: std::collections::BTreeSet<&PathBuf> = left.1.keys().chain(right.1.keys()).collect();
    for path in paths {
        let (a, b) = (left.1.get(path), right.1.get(path));
        if a != b {
            lines.push(format!("{path:?}: {} has {}, {} has {}", left.0, short(a), right.0, short(b)));
        }
    }
    lines.join("\n")
}

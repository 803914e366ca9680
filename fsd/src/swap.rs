//! The `..data` of a directory whose changes are to look like those of a Kubernetes ConfigMap.
//!
//! A kubelet keeps the files of such a volume in a directory with a time for its name, lets the symbolic
//! link `..data` point to it, and replaces that link by a rename once all files of a new version are there.
//! What programs wait for is that rename. So it is all that is made up here:
//!
//! ```text
//! ..data      -> ..REVISION.COUNT     another target after every change of what is in the directory
//! ..REVISION.COUNT -> .               the directory itself
//! ```
//!
//! The files stay where they are, and are files: whoever writes, lists, copies or removes sees the store as
//! it is. Both links are found by their names and are not listed, so that `rmdir` and `rm -r` work.

use bytes::Bytes;
use quorumfs_api::key::Name;
use quorumfs_api::record::{Ino, Kind, Record};
use quorumfs_api::style::EventStyle;
use serde::{Deserialize, Serialize};

use crate::kernel::NodeId;
use crate::mirror::At;
use crate::state::State;

/// Name of the link that is replaced.
pub const DATA: &str = "..data";

/// A made-up link of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Made {
    /// `..data`.
    Data,
    /// What it points to.
    Stamp,
}

impl Made {
    /// Which one the name means.
    fn of(name: &Name) -> Option<Made> {
        let name = std::str::from_utf8(name.as_bytes()).ok()?;
        if name == DATA {
            return Some(Made::Data);
        }
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let (revision, count) = name.strip_prefix("..")?.split_once('.')?;
        (is_number(revision) && is_number(count)).then_some(Made::Stamp)
    }
}

/// The link of that name, where a directory has it. What the store has under the name comes first.
pub fn lookup(state: &mut State, at: &At) -> Option<NodeId> {
    let made = Made::of(&at.1)?;
    if state.style(at.0) != EventStyle::Swap {
        return None;
    }
    if let Some(node) = state.kernel.link_of(at.0, made) {
        return Some(node);
    }
    let record = record(state, at.0, made)?;
    Some(state.make_link(at.0, made, record))
}

/// Whether the replayer has a link to replace there.
pub fn is_shown(state: &State, dir: Ino) -> bool {
    let taken = |name: Name| {
        state.mirror.child(dir, &name).is_some() || state.kernel.private_at(&(dir, name)).is_some()
    };
    state.style(dir) == EventStyle::Swap
        && Name::new(Bytes::from_static(DATA.as_bytes())).is_ok_and(|n| !taken(n))
}

/// The link as it is now. It belongs to whom the directory belongs.
pub fn record(state: &State, dir: Ino, made: Made) -> Option<Record> {
    let target = match made {
        Made::Data => format!("..{}", state.mirror.fingerprint(dir)?),
        Made::Stamp => ".".to_string(),
    };
    let dir = &state.mirror.get(dir)?.record;
    let xattrs = Vec::new();
    Some(Record { kind: Kind::Symlink, mode: 0o777, value: target.into(), xattrs, ..dir.clone() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_two_shapes_of_names_are_made_up() {
        let made = |name: &'static str| Made::of(&Name::new(Bytes::from_static(name.as_bytes())).unwrap());
        assert_eq!(made("..data"), Some(Made::Data));
        assert_eq!(made("..12.3"), Some(Made::Stamp));
        for name in ["data", "..data_tmp", "..12", "..12.", "...3", "..1.2.3", "..a.1", "12.3", "..+1.2"] {
            assert_eq!(made(name), None, "{name}");
        }
    }
}

//! What this mount may do, as the cluster told it. The cluster decides for itself; this is only for
//! refusing at `open` what would be refused at `close`, whose errors programs ignore.

use quorumfs_api::key::{Key, Name};
use quorumfs_api::record::Ino;
use quorumfs_api::rights::{Access, Rights};

use crate::mirror::Mirror;

/// Rights, and where the mount is in the store.
pub struct MountRights {
    /// Key of the mounted directory.
    pub prefix: Key,
    /// What may be done with keys.
    pub rights: Rights,
}

impl MountRights {
    /// Whether an object, or a name in a directory, may be written; if not, why.
    pub fn check_write(&self, mirror: &Mirror, ino: Ino, name: Option<&Name>) -> Result<(), String> {
        // Most mounts may write everything, or nothing.
        if self.rights.covers(&self.prefix, Access::Write) {
            return Ok(());
        }
        let Some(key) = self.key(mirror, ino, name) else { return Ok(()) };
        if self.rights.access(&key) >= Access::Write {
            return Ok(());
        }
        Err(self.rights.refusal("this mount", "write", &key, Access::Write))
    }

    /// The key in the store; `None` where there is none, which the store says better.
    fn key(&self, mirror: &Mirror, ino: Ino, name: Option<&Name>) -> Option<Key> {
        let mut names: Vec<Name> = name.cloned().into_iter().collect();
        let mut at = ino;
        while at != Ino::ROOT {
            let (dir, name) = mirror.get(at)?.at.clone()?;
            names.push(name);
            at = dir;
        }
        names.iter().rev().try_fold(self.prefix.clone(), |key, name| key.join(name)).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use quorumfs_api::rights::Grant;
    use quorumfs_api::{Kind, Record, Timestamp, wire};

    use super::*;

    fn record(ino: u64, kind: Kind) -> Record {
        Record {
            ino: Ino(ino),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            atime: Timestamp(0),
            mtime: Timestamp(0),
            ctime: Timestamp(0),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: None,
            author: "".into(),
            xattrs: Vec::new(),
            value: Default::default(),
        }
    }

    #[test]
    fn keys_are_those_of_the_store_wherever_the_mount_begins() {
        let name = |text: &str| Name::new(text).unwrap();
        let key = |text: &str| Key::parse(text.to_owned()).unwrap();
        // The mounted directory is /apps, number 7 in the store; web lies in it.
        let mut mirror = Mirror::begin(1, Some(record(7, Kind::Dir)));
        let node = |parent, text, ino, kind| wire::Node {
            parent: Ino(parent),
            name: name(text),
            record: record(ino, kind),
        };
        mirror.add(vec![node(7, "web", 8, Kind::Dir), node(8, "addr", 9, Kind::File)]).unwrap();
        let grant = Grant { path: key("/apps/web"), access: Access::Write, line: 4 };
        let rights = MountRights { prefix: key("/apps"), rights: Rights::new(false, [grant]) };
        assert_eq!(rights.check_write(&mirror, Ino(9), None), Ok(()));
        assert_eq!(rights.check_write(&mirror, Ino(8), Some(&name("new"))), Ok(()));
        let why = rights.check_write(&mirror, Ino::ROOT, Some(&name("db"))).unwrap_err();
        assert_eq!(why, "this mount may not write /apps/db: no line of the policy gives it anything there");
    }
}

//! Extended attributes: what the store knows of a key, computed; and what users set.

use bytes::Bytes;
use quorumfs_api::command::{Command, XattrMode};
use quorumfs_api::record::Record;
use quorumfs_api::style;

use super::Fs;
use crate::errno::{Errno, Result};
use crate::kernel::{NodeId, Object};
use crate::report;
use crate::state::Touch;

/// Prefix of the computed ones.
const COMPUTED: &str = "user.kv.";

/// A computed attribute of a record.
fn computed(record: &Record, name: &str) -> Option<String> {
    match name {
        "revision" => Some(record.mod_revision.to_string()),
        "create_revision" => Some(record.create_revision.to_string()),
        "version" => Some(record.version.to_string()),
        "lease" => record.lease.map(|lease| lease.to_string()),
        "author" => Some(record.author.to_string()),
        _ => None,
    }
}

/// The fencing number of the locks on a file. The cluster is asked for it, so it is not listed: who copies all
/// attributes of a file does not want it.
const LOCK_REVISION: &[u8] = b"user.kv.lock_revision";

/// Their names, in the order in which they are listed.
const NAMES: [&str; 5] = ["revision", "create_revision", "version", "lease", "author"];

/// Which namespaces can be stored. ACLs are refused: a mode that does not follow them would lie.
fn check_namespace(name: &[u8]) -> Result<()> {
    if name == style::ATTRIBUTE.as_bytes() {
        Ok(())
    } else if name.starts_with(COMPUTED.as_bytes()) {
        Err(Errno::EPERM)
    } else if name.starts_with(b"user.") || name.starts_with(b"trusted.") {
        Ok(())
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

impl Fs {
    fn with_record<T>(&self, node: NodeId, read: impl FnOnce(&Record) -> Result<T>) -> Result<T> {
        let state = self.core.state.lock();
        let record = match state.kernel.resolve(node, &state.mirror) {
            Object::Real(ino) => state.mirror.get(ino).map(|node| &node.record),
            Object::Private => state.kernel.private(node).map(|private| &private.record),
            Object::Orphan => state.kernel.orphaned(node),
            Object::Link => state.kernel.link(node),
            Object::Gone => None,
        };
        read(record.ok_or(Errno::ESTALE)?)
    }

    /// One attribute.
    pub async fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Bytes> {
        if name.starts_with(b"system.") {
            return Err(Errno::EOPNOTSUPP);
        }
        if report::is_own(node) {
            return Err(Errno::ENODATA);
        }
        if name == LOCK_REVISION {
            return self.lock_revision(node).await.map(|revision| revision.to_string().into());
        }
        self.with_record(node, |record| {
            let known =
                name.strip_prefix(COMPUTED.as_bytes()).and_then(|name| std::str::from_utf8(name).ok());
            if let Some(value) = known.and_then(|name| computed(record, name)) {
                return Ok(value.into());
            }
            let found = record.xattrs.iter().find(|(have, _)| have.as_ref() == name);
            found.map(|(_, value)| value.clone()).ok_or(Errno::ENODATA)
        })
    }

    /// All names, each ended by a NUL.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        if report::is_own(node) {
            return Ok(Vec::new());
        }
        self.with_record(node, |record| {
            let mut list = Vec::new();
            for name in NAMES.iter().filter(|name| computed(record, name).is_some()) {
                list.extend_from_slice(COMPUTED.as_bytes());
                list.extend_from_slice(name.as_bytes());
                list.push(0);
            }
            for (name, _) in &record.xattrs {
                list.extend_from_slice(name);
                list.push(0);
            }
            Ok(list)
        })
    }

    /// Sets one.
    pub async fn setxattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        self.change_xattr(node, name, Some(Bytes::copy_from_slice(value)), mode).await
    }

    /// Removes one.
    pub async fn removexattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        self.change_xattr(node, name, None, XattrMode::Replace).await
    }

    async fn change_xattr(
        &self,
        node: NodeId,
        name: &[u8],
        value: Option<Bytes>,
        mode: XattrMode,
    ) -> Result<()> {
        check_namespace(name)?;
        self.check_writable()?;
        if report::is_own(node) {
            return Err(Errno::EPERM);
        }
        let (ino, target) = self.settled_target(node).await?.ok_or(Errno::ESTALE)?;
        let command = Command::SetXattr { target, name: Bytes::copy_from_slice(name), value, mode };
        self.core.commit(vec![Touch::Ino(ino)], command).await.map(drop)
    }
}

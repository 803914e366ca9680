//! Commands that change attributes and leave the value alone.

use bytes::Bytes;
use quorumfs_api::command::{AttrChange, Target, TimeChange, XattrMode};
use quorumfs_api::event::Change;
use quorumfs_api::limits::{XATTR_NAME_MAX, XATTR_VALUE_MAX, XATTRS_MAX};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Kind, Timestamp};
use quorumfs_api::style::{self, EventStyle};

use crate::locate::Object;
use crate::state::{MODE_BITS, State, Step};
use crate::tables::Tables;

/// Names below this are computed from the record, and cannot be set, but for [`style::ATTRIBUTE`].
const COMPUTED: &[u8] = b"user.kv.";

impl<T: Tables + ?Sized> State<'_, T> {
    /// Changes mode, owner, group or times. One that is set to what it was counts as
    /// changed, as it does for `chmod(2)`; with none set, nothing changes.
    pub fn set_attr(&mut self, target: &Target, set: &AttrChange) -> Step {
        let mut object = self.target(target)?;
        if *set == AttrChange::default() {
            return Ok(Done::Ok);
        }
        let row = &mut object.row;
        // The mode of a link means nothing and stays as it is.
        if let Some(mode) = set.mode
            && row.kind != Kind::Symlink
        {
            row.mode = mode & MODE_BITS;
        }
        row.uid = set.uid.unwrap_or(row.uid);
        row.gid = set.gid.unwrap_or(row.gid);
        let now = self.proposal.time;
        let given = |change: Option<TimeChange>, old: Timestamp| match change {
            Some(TimeChange::Now) => now,
            Some(TimeChange::At(time)) => time,
            None => old,
        };
        row.atime = given(set.atime, row.atime);
        row.mtime = given(set.mtime, row.mtime);
        self.put_attr(object)
    }

    /// Sets or removes an extended attribute.
    pub fn set_xattr(
        &mut self,
        target: &Target,
        name: &Bytes,
        value: Option<&Bytes>,
        mode: XattrMode,
    ) -> Step {
        check_xattr(name, value)?;
        let mut object = self.target(target)?;
        if name == style::ATTRIBUTE.as_bytes() && object.row.kind != Kind::Dir {
            return Err(Refusal::NotDirectory(object.text()).into());
        }
        let before = Self::cost(&object.row);
        let xattrs = &mut object.row.xattrs;
        match (xattrs.binary_search_by(|(have, _)| have.cmp(name)), value) {
            (Ok(_), Some(_)) if mode == XattrMode::Create => {
                return Err(Refusal::Exists(String::from_utf8_lossy(name).into_owned()).into());
            }
            (Err(_), Some(_)) if mode == XattrMode::Replace => return Err(Refusal::NoAttribute.into()),
            (Err(_), None) => return Err(Refusal::NoAttribute.into()),
            (Ok(at), Some(value)) => xattrs[at].1 = value.clone(),
            (Ok(at), None) => drop(xattrs.remove(at)),
            (Err(_), Some(_)) if xattrs.len() >= XATTRS_MAX => {
                let text = format!("extended attributes; {XATTRS_MAX} is the most for one key");
                return Err(Refusal::TooMany(text).into());
            }
            (Err(at), Some(value)) => xattrs.insert(at, (name.clone(), value.clone())),
        }
        self.recount(before, Self::cost(&object.row))?;
        self.put_attr(object)
    }

    fn put_attr(&mut self, object: Object) -> Step {
        let Object { ino, mut row, place } = object;
        self.stamp(&mut row);
        self.put_node(ino, &row)?;
        let record = Self::bare_record(ino, &row);
        self.change(Change::Attr { place, record })?;
        Ok(Done::Ok)
    }
}

fn check_xattr(name: &[u8], value: Option<&Bytes>) -> Step<()> {
    let refusal = if name.is_empty() || name.contains(&0) {
        Refusal::Invalid("an attribute's name is not empty and holds no NUL".to_string())
    } else if name == style::ATTRIBUTE.as_bytes() {
        match value.map(|value| EventStyle::parse(value)) {
            None | Some(Ok(_)) => return Ok(()),
            Some(Err(error)) => Refusal::Invalid(error.to_string()),
        }
    } else if name.starts_with(COMPUTED) {
        Refusal::Invalid("attributes of user.kv are computed and cannot be set".to_string())
    } else if name.len() > XATTR_NAME_MAX {
        Refusal::NameTooLong(format!(
            "an attribute's name of {} bytes; {XATTR_NAME_MAX} is the most",
            name.len()
        ))
    } else if value.is_some_and(|value| value.len() > XATTR_VALUE_MAX) {
        Refusal::TooMany(format!("bytes in an extended attribute; {XATTR_VALUE_MAX} is the most"))
    } else {
        return Ok(());
    };
    Err(refusal.into())
}

//! What `stat` shows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorumfs_api::record::{Device, Kind, Record, Timestamp};

/// Attributes of one object as the kernel gets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The number that the kernel knows it by.
    pub node: u64,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Time of access, as somebody set it.
    pub atime: SystemTime,
    /// Time of the last change of the value.
    pub mtime: SystemTime,
    /// Time of the last change of anything.
    pub ctime: SystemTime,
    /// Permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of a device node: which device.
    pub device: Option<Device>,
}

/// What a mount shows in place of what the store says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Owner of everything.
    pub uid: Option<u32>,
    /// Group of everything.
    pub gid: Option<u32>,
    /// Permission bits taken away from everything.
    pub umask: Option<u32>,
}

/// A time of the store for the kernel.
pub fn time(stamp: Timestamp) -> SystemTime {
    let nanos = stamp.0;
    match u64::try_from(nanos) {
        Ok(nanos) => UNIX_EPOCH + Duration::from_nanos(nanos),
        Err(_) => UNIX_EPOCH - Duration::from_nanos(nanos.unsigned_abs()),
    }
}

/// A time of the kernel for the store; what does not fit becomes the nearest that does.
pub fn stamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)),
        Err(before) => Timestamp(i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n)),
    }
}

impl Attr {
    /// What `record` looks like under the number `node`. `subdirs` counts for the links of a directory.
    pub fn of(record: &Record, node: u64, subdirs: u32, shown: &Overrides) -> Attr {
        let mode = match record.kind {
            Kind::Symlink => record.mode,
            _ => record.mode & !shown.umask.unwrap_or(0),
        };
        let device = match record.kind {
            Kind::CharDevice | Kind::BlockDevice => {
                Device::from_value(&record.value).or(Some(Device::default()))
            }
            _ => None,
        };
        Attr {
            node,
            kind: record.kind,
            // What a device node has for a value is no content.
            size: if device.is_some() { 0 } else { record.value.len() as u64 },
            atime: time(record.atime),
            mtime: time(record.mtime),
            ctime: time(record.ctime),
            mode,
            nlink: if record.kind == Kind::Dir { 2 + subdirs } else { 1 },
            uid: shown.uid.unwrap_or(record.uid),
            gid: shown.gid.unwrap_or(record.gid),
            device,
        }
    }
}

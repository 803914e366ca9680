//! How a directory wants changes of its files to look to programs that watch it.
//!
//! The wish is an extended attribute of the directory, so it is replicated and survives as long as the
//! directory. It holds for the directory and for all below it that have none of their own.

use bytes::Bytes;

use crate::record::Record;

/// The attribute's name.
pub const ATTRIBUTE: &str = "user.kv.events";

/// How a new value of a file looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventStyle {
    /// As a write in place: OPEN, MODIFY, CLOSE_WRITE.
    #[default]
    Write,
    /// As the rename of a finished file over the name: MOVED_TO alone, for programs that act on nothing else.
    Rename,
    /// As a write in place, and after each revision the symbolic link `..data` of the directory is replaced by a
    /// rename, as the volumes of a Kubernetes ConfigMap do it.
    Swap,
}

/// A word that is no style.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to show changes: write, rename and swap are")]
pub struct UnknownStyle(pub String);

impl EventStyle {
    /// All of them.
    pub const ALL: [EventStyle; 3] = [EventStyle::Write, EventStyle::Rename, EventStyle::Swap];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            EventStyle::Write => "write",
            EventStyle::Rename => "rename",
            EventStyle::Swap => "swap",
        }
    }

    /// Reads an attribute's value.
    ///
    /// # Errors
    /// When it is none of the words.
    pub fn parse(value: &[u8]) -> Result<EventStyle, UnknownStyle> {
        EventStyle::ALL
            .into_iter()
            .find(|style| style.name().as_bytes() == value)
            .ok_or_else(|| UnknownStyle(String::from_utf8_lossy(value).into_owned()))
    }

    /// What this object itself says; `None` if it says nothing.
    pub fn of(record: &Record) -> Option<EventStyle> {
        let is_it = |(name, _): &&(Bytes, Bytes)| name == ATTRIBUTE.as_bytes();
        // A word that a later version has added is taken for none at all.
        record.xattrs.iter().find(is_it).and_then(|(_, value)| EventStyle::parse(value).ok())
    }
}

impl std::fmt::Display for EventStyle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for EventStyle {
    type Err = UnknownStyle;
    fn from_str(text: &str) -> Result<EventStyle, UnknownStyle> {
        EventStyle::parse(text.as_bytes())
    }
}

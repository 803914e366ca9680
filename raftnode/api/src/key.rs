//! Canonical absolute paths, parsed once at the edge into types that cannot hold anything else.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::{KEY_MAX, NAME_MAX};

/// Why some bytes are not a key or a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key is `/` or `/a/b`; this one is empty.
    #[error("a key cannot be empty; the root is \"/\"")]
    Empty,
    /// The key does not begin with a slash.
    #[error("the key {0:?} does not begin with a slash")]
    NotAbsolute(String),
    /// The key has an empty component (`//`, or a slash at its end).
    #[error("the key {0:?} has an empty component (two slashes together, or one at its end)")]
    EmptyComponent(String),
    /// `.` and `..` mean something else to every program that would read the key as a path.
    #[error("{0:?} cannot be the name of a key: \".\" and \"..\" are directories of their own")]
    Dots(String),
    /// A NUL byte, or a slash inside a name.
    #[error("the name {0:?} holds a byte that no file name may have (NUL or a slash)")]
    Byte(String),
    /// A component of more than [`NAME_MAX`] bytes.
    #[error("the name that begins with {0:?} has {1} bytes; {NAME_MAX} is the most")]
    NameTooLong(String, usize),
    /// A key of more than [`KEY_MAX`] bytes.
    #[error("the key that begins with {0:?} has {1} bytes; {KEY_MAX} is the most")]
    KeyTooLong(String, usize),
}

impl KeyError {
    /// Whether the complaint is about length (`ENAMETOOLONG`) and not about form (`EINVAL`).
    pub fn is_length(&self) -> bool {
        matches!(self, KeyError::NameTooLong(..) | KeyError::KeyTooLong(..))
    }
}

/// A few bytes of a bad key for a message, however long or binary it is.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned()
}

/// One component of a key: 1 to [`NAME_MAX`] bytes, none of them `/` or NUL, and not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
// A mirror holds every name twice, so its size counts: half that of `Bytes`, and one allocation for both.
pub struct Name(Arc<[u8]>);

impl Name {
    /// Checks `bytes`.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Name, KeyError> {
        let bytes = bytes.as_ref();
        check_name(bytes)?;
        Ok(Name(bytes.into()))
    }

    /// The bytes, which need not be UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn check_name(bytes: &[u8]) -> Result<(), KeyError> {
    match bytes {
        b"" => Err(KeyError::EmptyComponent(String::new())),
        b"." | b".." => Err(KeyError::Dots(excerpt(bytes))),
        _ if bytes.len() > NAME_MAX => Err(KeyError::NameTooLong(excerpt(bytes), bytes.len())),
        _ if bytes.iter().any(|b| matches!(b, 0 | b'/')) => Err(KeyError::Byte(excerpt(bytes))),
        _ => Ok(()),
    }
}

impl TryFrom<Bytes> for Name {
    type Error = KeyError;
    fn try_from(bytes: Bytes) -> Result<Self, KeyError> {
        Name::new(bytes)
    }
}
impl From<Name> for Bytes {
    fn from(name: Name) -> Bytes {
        Bytes::copy_from_slice(&name.0)
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// A canonical absolute path: `/`, or `/` and [`Name`]s with single slashes between them, at most
/// [`KEY_MAX`] bytes in all. Ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Key(Bytes);

impl Key {
    /// The root directory.
    pub fn root() -> Key {
        Key(Bytes::from_static(b"/"))
    }

    /// Takes exactly the canonical form.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Key, KeyError> {
        let bytes: Bytes = bytes.into();
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        if bytes.len() > KEY_MAX {
            return Err(KeyError::KeyTooLong(excerpt(&bytes), bytes.len()));
        }
        if bytes[0] != b'/' {
            return Err(KeyError::NotAbsolute(excerpt(&bytes)));
        }
        if bytes.len() > 1 {
            for component in bytes[1..].split(|b| *b == b'/') {
                check_name(component).map_err(|e| match e {
                    KeyError::EmptyComponent(_) => KeyError::EmptyComponent(excerpt(&bytes)),
                    other => other,
                })?;
            }
        }
        Ok(Key(bytes))
    }

    /// Takes what a person types: a missing leading slash is added, one at the end is dropped.
    pub fn from_user(bytes: &[u8]) -> Result<Key, KeyError> {
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        let mut path = Vec::with_capacity(bytes.len() + 1);
        if bytes[0] != b'/' {
            path.push(b'/');
        }
        path.extend_from_slice(bytes);
        if path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        Key::parse(path)
    }

    /// The canonical bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is `/`.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// The components from the root down; none for the root.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = Name> + '_ {
        let body = if self.is_root() { &[] } else { &self.0[1..] };
        // Slicing the shared buffer keeps every name free of copies.
        body.split(|b| *b == b'/').filter(|n| !n.is_empty()).map(|n| Name(n.into()))
    }

    /// The directory that holds this key and its name there; `None` for the root.
    pub fn split(&self) -> Option<(Key, Name)> {
        if self.is_root() {
            return None;
        }
        let slash = self.0.iter().rposition(|b| *b == b'/')?;
        let parent = if slash == 0 { Key::root() } else { Key(self.0.slice(..slash)) };
        Some((parent, Name(self.0[slash + 1..].into())))
    }

    /// The key of `name` in this directory.
    ///
    /// # Errors
    /// [`KeyError::KeyTooLong`] when the two together are too long.
    pub fn join(&self, name: &Name) -> Result<Key, KeyError> {
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.0.len());
        path.extend_from_slice(&self.0);
        if !self.is_root() {
            path.push(b'/');
        }
        path.extend_from_slice(&name.0);
        if path.len() > KEY_MAX {
            return Err(KeyError::KeyTooLong(excerpt(&path), path.len()));
        }
        Ok(Key(path.into()))
    }

    /// Whether this key is `other` or lies below it.
    pub fn is_within(&self, other: &Key) -> bool {
        other.is_root()
            || (self.0.starts_with(&other.0) && matches!(self.0.get(other.0.len()), None | Some(b'/')))
    }
}

impl TryFrom<Bytes> for Key {
    type Error = KeyError;
    fn try_from(bytes: Bytes) -> Result<Self, KeyError> {
        Key::parse(bytes)
    }
}
impl From<Key> for Bytes {
    fn from(key: Key) -> Bytes {
        key.0
    }
}
impl std::str::FromStr for Key {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Key, KeyError> {
        Key::from_user(text.as_bytes())
    }
}
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_canonical_paths_are_keys() {
        for good in ["/", "/a", "/a/b", "/...", "/.a", "/a b/ü"] {
            assert!(Key::parse(good.as_bytes().to_vec()).is_ok(), "{good}");
        }
        for bad in ["", "a", "//", "/a/", "/a//b", "/.", "/a/..", "/a\0b"] {
            assert!(Key::parse(bad.as_bytes().to_vec()).is_err(), "{bad:?}");
        }
        assert!(Key::parse(vec![b'/', 0xff, 0xfe]).is_ok(), "bytes that are not UTF-8 are a name");
    }

    #[test]
    fn lengths_are_bounded() {
        let name = vec![b'n'; NAME_MAX];
        assert!(Name::new(name.clone()).is_ok());
        assert!(Name::new([name.as_slice(), b"n"].concat()).unwrap_err().is_length());
        let mut key = Vec::new();
        while key.len() + 1 + NAME_MAX <= KEY_MAX {
            key.push(b'/');
            key.extend_from_slice(&name);
        }
        let key = Key::parse(key).unwrap();
        assert!(key.join(&Name::new(name).unwrap()).unwrap_err().is_length());
    }

    #[test]
    fn a_person_may_leave_out_the_slash() {
        assert_eq!(Key::from_user(b"hello").unwrap(), Key::parse("/hello").unwrap());
        assert_eq!(Key::from_user(b"/users/").unwrap(), Key::parse("/users").unwrap());
        assert_eq!(Key::from_user(b"/").unwrap(), Key::root());
    }

    #[test]
    fn split_join_and_names_agree() {
        let key = Key::parse("/a/b/c").unwrap();
        let (parent, name) = key.split().unwrap();
        assert_eq!(parent.join(&name).unwrap(), key);
        assert_eq!(key.names().count(), 3);
        assert_eq!(Key::root().names().count(), 0);
        assert!(Key::root().split().is_none());
    }

    #[test]
    fn within_stops_at_a_component() {
        let dir = Key::parse("/ab").unwrap();
        assert!(Key::parse("/ab").unwrap().is_within(&dir));
        assert!(Key::parse("/ab/c").unwrap().is_within(&dir));
        assert!(!Key::parse("/abc").unwrap().is_within(&dir));
        assert!(dir.is_within(&Key::root()));
    }
}

//! Keys and prefixes as they are typed. They need not be UTF-8.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use quorumfs_api::wire::Prefix;
use quorumfs_api::{Key, LeaseId, Name};

use crate::error::Error;

/// A key: the leading slash may be left out.
pub fn key(text: &OsStr) -> Result<Key, Error> {
    Ok(Key::from_user(text.as_bytes())?)
}

/// A prefix as etcd means it: all keys whose path begins with this text.
pub struct TextPrefix {
    /// The directory that all of them are in.
    pub dir: Key,
    /// What the name in it begins with; it may be empty.
    pub begin: Bytes,
    whole: Vec<u8>,
}

impl TextPrefix {
    pub fn parse(text: &OsStr) -> Result<TextPrefix, Error> {
        let mut whole = Vec::new();
        if !text.as_bytes().starts_with(b"/") {
            whole.push(b'/');
        }
        whole.extend_from_slice(text.as_bytes());
        let slash = whole.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let dir = if slash == 0 { Key::root() } else { Key::parse(whole[..slash].to_vec())? };
        let begin = Bytes::copy_from_slice(&whole[slash + 1..]);
        // "." and ".." begin many a name; everything else that no name may be, no name begins with.
        if !begin.is_empty() && begin != "." && begin != ".." {
            Name::new(begin.clone())?;
        }
        Ok(TextPrefix { dir, begin, whole })
    }

    pub fn range(&self) -> Prefix {
        Prefix::Text(self.dir.clone(), self.begin.clone())
    }

    pub fn matches(&self, key: &Key) -> bool {
        key.as_bytes().starts_with(&self.whole)
    }
}

/// A lease's id, as `kvctl lease grant` prints it.
pub fn lease(text: &str) -> Result<LeaseId, String> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
        .map(LeaseId)
        .map_err(|_| "a lease's id is a hexadecimal number, as `lease grant` prints it".to_string())
}

/// A value from the command line; `-`, or nothing, means standard input.
pub fn value(given: Option<OsString>) -> Result<Bytes, Error> {
    use std::io::Read;
    let limit = quorumfs_api::limits::VALUE_MAX_LIMIT;
    match given {
        Some(text) if text != "-" => Ok(Bytes::copy_from_slice(text.as_bytes())),
        _ => {
            let mut value = Vec::new();
            std::io::stdin().lock().take(limit + 1).read_to_end(&mut value)?;
            if value.len() as u64 > limit {
                return Err(Error::Refused(format!(
                    "the value on standard input has more than {limit} bytes, which no cluster takes"
                )));
            }
            Ok(value.into())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_prefix_is_a_directory_and_the_beginning_of_a_name() {
        for (text, dir, begin) in [
            ("/users/", "/users", ""),
            ("users/", "/users", ""),
            ("/us", "/", "us"),
            ("", "/", ""),
            ("/", "/", ""),
            ("/a/b/c", "/a/b", "c"),
            ("/a/.", "/a", "."),
        ] {
            let prefix = TextPrefix::parse(OsStr::new(text)).unwrap();
            assert_eq!(
                (prefix.dir.to_string(), &prefix.begin[..]),
                (dir.to_string(), begin.as_bytes()),
                "{text}"
            );
        }
        assert!(TextPrefix::parse(OsStr::new("/a//")).is_err());
    }

    #[test]
    fn a_prefix_matches_text_and_not_components() {
        let prefix = TextPrefix::parse(OsStr::new("us")).unwrap();
        for key in ["/us", "/users", "/users/a"] {
            assert!(prefix.matches(&Key::parse(key).unwrap()));
        }
        assert!(!prefix.matches(&Key::parse("/a/us").unwrap()));
        let below = TextPrefix::parse(OsStr::new("/users/")).unwrap();
        assert!(!below.matches(&Key::parse("/users").unwrap()));
    }

    #[test]
    fn bytes_that_are_no_text_are_a_key() {
        let key = key(OsStr::from_bytes(b"a\xff")).unwrap();
        assert_eq!(key.as_bytes(), b"/a\xff");
    }
}

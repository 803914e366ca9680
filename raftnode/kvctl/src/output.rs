//! What is printed: text for people, or one JSON document a line.

use std::io::{self, Write};

use quorumfs_api::{Key, Kind, Record, Timestamp};
use serde_json::{Map, Value, json};

/// Where and how to print.
pub struct Output {
    /// `--json`.
    pub json: bool,
}

impl Output {
    /// Prints one JSON document on a line of its own, and flushes.
    pub fn document(&self, value: &Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, value)?;
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Prints a line, or the document with `--json`.
    pub fn say(&self, text: &str, document: &Value) -> io::Result<()> {
        if self.json { self.document(document) } else { self.lines(&[text.as_bytes()]) }
    }

    /// Prints lines that need not be UTF-8, and flushes.
    pub fn lines(&self, lines: &[&[u8]]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for line in lines {
            out.write_all(line)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// Prints exactly these bytes.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }
}

/// Adds `name: text`, or `name_base64` for what is not UTF-8.
pub fn put_bytes(map: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => map.insert(name.into(), text.into()),
        Err(_) => map.insert(format!("{name}_base64"), base64(bytes).into()),
    };
}

/// A record with its key.
pub fn record(key: &Key, record: &Record, with_value: bool) -> Value {
    let mut map = Map::new();
    put_bytes(&mut map, "key", key.as_bytes());
    fill(&mut map, record, with_value);
    Value::Object(map)
}

/// Adds a record's fields.
pub fn fill(map: &mut Map<String, Value>, record: &Record, with_value: bool) {
    map.insert("kind".into(), kind(record.kind).into());
    if with_value && record.kind != Kind::Dir {
        put_bytes(map, "value", &record.value);
    }
    for (name, value) in [
        ("inode", json!(record.ino.0)),
        ("mode", json!(format!("{:04o}", record.mode))),
        ("uid", json!(record.uid)),
        ("gid", json!(record.gid)),
        ("atime", json!(moment(record.atime))),
        ("mtime", json!(moment(record.mtime))),
        ("create_revision", json!(record.create_revision)),
        ("mod_revision", json!(record.mod_revision)),
        ("version", json!(record.version)),
        ("lease", json!(record.lease.map(|lease| lease.to_string()))),
        ("author", json!(record.author)),
    ] {
        map.insert(name.into(), value);
    }
}

/// A kind in a word.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "dir",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "char-device",
        Kind::BlockDevice => "block-device",
    }
}

/// Mode bits as `ls -l` shows them.
pub fn mode(record: &Record) -> String {
    let mut text = String::from(match record.kind {
        Kind::File => "-",
        Kind::Dir => "d",
        Kind::Symlink => "l",
        Kind::Fifo => "p",
        Kind::Socket => "s",
        Kind::CharDevice => "c",
        Kind::BlockDevice => "b",
    });
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = record.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (record.mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A time in UTC.
pub fn moment(at: Timestamp) -> String {
    match time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0)) {
        Ok(t) => format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second(),
            t.millisecond()
        ),
        Err(_) => at.0.to_string(),
    }
}

/// A number of bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit < UNITS.len() - 1 {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// RFC 4648, with padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for n in 0..4 {
            if n <= chunk.len() {
                text.push(char::from(ALPHABET[(bits >> (18 - 6 * n)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(moment(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(moment(Timestamp(951_782_400_123_000_000)), "2000-02-29T00:00:00.123Z");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
    }
}

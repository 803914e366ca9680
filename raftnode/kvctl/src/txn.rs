//! `txn`: reads a transaction from standard input.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use quorumfs_api::command::Relation;
use quorumfs_api::{Command, Compare, CreateMode, Done, Key, LeaseChange, Owner, RenameMode};
use serde_json::{Value, json};

use crate::cli::Context;
use crate::error::Error;
use crate::session::write;

/// Most bytes of input.
const INPUT_MAX: u64 = 16 << 20;

/// For `--help`.
pub const HELP: &str = r#"The transaction is read from standard input, in three parts with an empty line between them: what has to
hold, what is done then, what is done otherwise. The later parts may be left out.

  version("/users/user1") > "0"          value, version, create, mod; = != < > (value: = and != only)
  exists /lock                           or: missing /lock

  put /users/user1 "a new value"         put KEY VALUE, append KEY VALUE, del KEY, del -r KEY, mkdir KEY, rmdir KEY,
  del /users/user2                       mv FROM TO, ln TARGET KEY

  put /users/log "it did not hold"

Words with spaces stand in quotes ("..." with \n, \t, \", \\ and \xFF). Lines that begin with # are left out. All of it
is one revision. Prints SUCCESS or FAILURE (which part was done); a failed comparison is no error, a refused
command (exit code 1) undoes the whole."#;

/// The three parts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    compare: Vec<Compare>,
    then: Vec<Command>,
    otherwise: Vec<Command>,
}

/// Reads it and does it.
pub async fn run(context: &Context) -> Result<(), Error> {
    let mut text = Vec::new();
    std::io::stdin().lock().take(INPUT_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > INPUT_MAX {
        return Err(Error::Usage(format!(
            "a transaction of more than {INPUT_MAX} bytes fits into no message"
        )));
    }
    let Parts { compare, then, otherwise } = parse(&text)?;
    match write(&context.client, Command::Txn { compare, then, otherwise }).await? {
        (revision, Done::Txn { succeeded, results }) => {
            let document = json!({
                "revision": revision,
                "succeeded": succeeded,
                "results": results.iter().map(describe).collect::<Vec<_>>(),
            });
            let mut lines = vec![if succeeded { "SUCCESS" } else { "FAILURE" }.to_string()];
            lines.extend(results.iter().map(|done| match done {
                Done::Deleted(count) => count.to_string(),
                _ => "OK".to_string(),
            }));
            Ok(context.output.say(&lines.join("\n"), &document)?)
        }
        (_, other) => Err(Error::Refused(format!("the cluster answered something else: {other:?}"))),
    }
}

fn describe(done: &Done) -> Value {
    match done {
        Done::Written { ino, created, version } => {
            json!({ "inode": ino.0, "created": created, "version": version })
        }
        Done::Deleted(count) => json!({ "deleted": count }),
        _ => json!({}),
    }
}

fn parse(text: &[u8]) -> Result<Parts, Error> {
    let mut parts = Parts::default();
    let mut part = 0;
    let mut empty_before = true;
    for (n, line) in text.split(|b| *b == b'\n').enumerate() {
        let fail = |reason: String| Error::Usage(format!("standard input, line {}: {reason}", n + 1));
        let line = line.trim_ascii();
        if line.starts_with(b"#") {
            continue;
        }
        if line.is_empty() {
            // The first part may be empty: then the input begins with an empty line.
            if !empty_before || (part == 0 && n == 0) {
                part += 1;
            }
            empty_before = true;
            continue;
        }
        empty_before = false;
        let words = words(line).map_err(fail)?;
        match part {
            0 => parts.compare.push(compare(&words).map_err(fail)?),
            1 => parts.then.push(command(&words).map_err(fail)?),
            2 => parts.otherwise.push(command(&words).map_err(fail)?),
            _ => return Err(fail("there are only three parts: comparisons, then, otherwise".into())),
        }
    }
    if parts == Parts::default() {
        return Err(Error::Usage("standard input holds no transaction; see `kvctl txn --help`".into()));
    }
    Ok(parts)
}

/// Words; parentheses outside of quotes only separate, so that etcd's way of writing is understood.
fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied();
    while let Some(b) = bytes.next() {
        match b {
            b'"' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next().ok_or("a quote is not closed")? {
                        b'"' => break,
                        b'\\' => word.push(escaped(&mut bytes)?),
                        other => word.push(other),
                    }
                }
            }
            b'(' | b')' | b' ' | b'\t' => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, String> {
    Ok(match bytes.next() {
        Some(b'n') => b'\n',
        Some(b't') => b'\t',
        Some(b'x') => {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
            match (digit(), digit()) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err("\\x is followed by two hexadecimal digits".into()),
            }
        }
        Some(other @ (b'"' | b'\\')) => other,
        _ => return Err("after a backslash comes n, t, x, \" or \\".into()),
    })
}

fn parse_key(word: &[u8]) -> Result<Key, String> {
    crate::key::key(std::ffi::OsStr::from_bytes(word)).map_err(|e| e.to_string())
}

fn compare(words: &[Vec<u8>]) -> Result<Compare, String> {
    let texts: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    match texts.as_slice() {
        [b"exists", key] => Ok(Compare::Exists(parse_key(key)?, true)),
        [b"missing", key] => Ok(Compare::Exists(parse_key(key)?, false)),
        [b"value" | b"val", key, relation, value] => {
            let equal = match *relation {
                b"=" | b"==" => true,
                b"!=" => false,
                _ => return Err("a value is compared with = or !=".into()),
            };
            Ok(Compare::Value(parse_key(key)?, Bytes::copy_from_slice(value), equal))
        }
        [what, key, relation, number] => {
            let key = parse_key(key)?;
            let relation = match *relation {
                b"=" | b"==" => Relation::Equal,
                b"!=" => Relation::NotEqual,
                b"<" => Relation::Less,
                b">" => Relation::Greater,
                _ => return Err("compare with =, !=, < or >".into()),
            };
            let number = std::str::from_utf8(number)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or("a version or revision is a number")?;
            match *what {
                b"version" | b"ver" => Ok(Compare::Version(key, relation, number)),
                b"create" | b"create_revision" => Ok(Compare::CreateRevision(key, relation, number)),
                b"mod" | b"mod_revision" => Ok(Compare::ModRevision(key, relation, number)),
                _ => Err("compare value, version, create or mod".into()),
            }
        }
        _ => Err("this is no comparison; for example: version(\"/a\") > \"0\", or: exists /a".into()),
    }
}

fn command(words: &[Vec<u8>]) -> Result<Command, String> {
    let texts: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let copy = Bytes::copy_from_slice;
    Ok(match texts.as_slice() {
        [b"put", key, value] => Command::Put {
            target: parse_key(key)?.into(),
            value: copy(value),
            create: CreateMode::Allow,
            parents: true,
            owner: Owner::FILE,
            lease: LeaseChange::Clear,
        },
        [b"append", key, data] => Command::Append {
            target: parse_key(key)?.into(),
            data: copy(data),
            create: CreateMode::Allow,
            parents: true,
            owner: Owner::FILE,
        },
        [b"del" | b"rm", b"-r", key] => Command::Delete { at: parse_key(key)?.into(), recursive: true },
        [b"del" | b"rm", key] => Command::Delete { at: parse_key(key)?.into(), recursive: false },
        [b"mkdir", key] => Command::Mkdir { at: parse_key(key)?.into(), parents: true, owner: Owner::DIR },
        [b"rmdir", key] => Command::Rmdir { at: parse_key(key)?.into() },
        [b"mv", from, to] => Command::Rename {
            from: parse_key(from)?.into(),
            to: parse_key(to)?.into(),
            mode: RenameMode::Replace,
        },
        [b"ln", to, key] => {
            Command::Symlink { at: parse_key(key)?.into(), to: copy(to), parents: true, owner: Owner::FILE }
        }
        _ => {
            return Err(
                "this is no command: put KEY VALUE, append KEY VALUE, del [-r] KEY, mkdir KEY, rmdir KEY, \
                        mv FROM TO, ln TARGET KEY"
                    .into(),
            );
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn etcd_and_plain_ways_of_writing() {
        let text = b"# a comment\nvalue(\"/a\") = \"x y\"\nmod /a > 3\n\nput /a \"1\\n\\xff\"\n\ndel -r /b\n";
        let parts = parse(text).unwrap();
        let key = |text: &'static str| Key::parse(text).unwrap();
        assert_eq!(
            parts.compare,
            [
                Compare::Value(key("/a"), Bytes::from_static(b"x y"), true),
                Compare::ModRevision(key("/a"), Relation::Greater, 3)
            ]
        );
        assert!(matches!(&parts.then[..], [Command::Put { value, .. }] if &value[..] == b"1\n\xff"));
        assert_eq!(parts.otherwise, [Command::Delete { at: key("/b").into(), recursive: true }]);
    }

    #[test]
    fn no_comparison_begins_with_an_empty_line() {
        let parts = parse(b"\nput a 1\nput b 2\n").unwrap();
        assert_eq!((parts.compare.len(), parts.then.len(), parts.otherwise.len()), (0, 2, 0));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, said) in [
            ("bogus\n", "line 1: this is no comparison"),
            ("exists /a\n\nput /a\n", "line 3: this is no command"),
            ("exists \"/a\n", "line 1: a quote is not closed"),
            ("version /a > x\n", "line 1: a version or revision is a number"),
            ("", "holds no transaction"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}

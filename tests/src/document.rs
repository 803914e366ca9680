//! Tables in the docs that say what a test has observed: the test compares them with the committed ones,
//! or writes them when `QUORUMFS_WRITE_DOCS` is set.
//!
//! A document holds each table between two lines, `<!-- NAME: made by TEST -->` and `<!-- end of NAME -->`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Set to write the tables instead of comparing them.
const WRITE: &str = "QUORUMFS_WRITE_DOCS";
/// Set where a program that is missing is a failure; without it, its rows are taken as they are committed.
const REQUIRE: &str = "QUORUMFS_REQUIRE_PROGRAMS";

/// A row of a table: its first cell, and the others if they were observed.
pub type Row = (String, Option<Vec<String>>);

/// Whether all these programs (or, with a slash in front, files) are here; [`not_tested`] where one is missing.
#[track_caller]
pub fn installed(what: &str, needs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    let is_here = |name: &&&str| match name.starts_with('/') {
        true => Path::new(name).exists(),
        false => dirs.iter().any(|dir| dir.join(name).exists()),
    };
    let missing: Vec<&&str> = needs.iter().filter(|name| !is_here(name)).collect();
    if missing.is_empty() {
        return true;
    }
    not_tested(what, &format!("this machine has no {missing:?}; scripts/setup --test installs it"))
}

/// Says so loudly, or panics if `QUORUMFS_REQUIRE_PROGRAMS` is set, as it is in CI.
#[track_caller]
pub fn not_tested(what: &str, why: &str) -> bool {
    let text = format!("{what} NOT TESTED: {why}");
    assert!(std::env::var_os(REQUIRE).is_none(), "{text}");
    eprintln!("=== {text}");
    false
}

/// Compares a table with the one in `docs/DOCUMENT`, or writes it there.
#[track_caller]
pub fn table(document: &str, name: &str, heads: &[&str], rows: &[Row]) {
    // Tests of one program may write into one document.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(document);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let (before, old, after) =
        split(&text, name).unwrap_or_else(|| panic!("{path:?} has no place for the table {name}"));
    let new = render(heads, rows, old);
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, format!("{before}{new}{after}")).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        return;
    }
    let changed: Vec<String> = difference(old, &new);
    assert!(
        changed.is_empty(),
        "docs/{document} does not say what was observed (-: committed, +: observed):\n{}\n{WRITE}=1 and this test write it",
        changed.join("\n")
    );
}

/// What is before a table, the table, and what is behind it.
fn split<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let begin = text.find(&format!("<!-- {name}: made by "))?;
    let begin = begin + text[begin..].find('\n')? + 1;
    let end = begin + text[begin..].find(&format!("<!-- end of {name} -->"))?;
    Some((&text[..begin], &text[begin..end], &text[end..]))
}

fn render(heads: &[&str], rows: &[Row], old: &str) -> String {
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let escaped: Vec<String> = cells.map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", escaped.join(" | "))
    };
    let mut text = line(&mut heads.iter().copied());
    text.push_str(&format!("|{}\n", "---|".repeat(heads.len())));
    for (first, rest) in rows {
        match rest {
            Some(rest) => {
                let cells = std::iter::once(first.as_str()).chain(rest.iter().map(String::as_str));
                text.push_str(&line(&mut { cells }));
            }
            None => {
                let begin = format!("| {} |", first.replace('|', "\\|"));
                let known = old.lines().find(|line| line.starts_with(&begin));
                text.extend(known.into_iter().flat_map(|line| [line, "\n"]));
            }
        }
    }
    text
}

/// Lines that only one of the two has.
fn difference(old: &str, new: &str) -> Vec<String> {
    let only = |one: &str, other: &str, sign: char| -> Vec<String> {
        let others: Vec<&str> = other.lines().collect();
        one.lines().filter(|line| !others.contains(line)).map(|line| format!("{sign} {line}")).collect()
    };
    let changed = [only(old, new, '-'), only(new, old, '+')].concat();
    if changed.is_empty() && old != new { vec!["the rows have another order".to_string()] } else { changed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str =
        "text\n<!-- t: made by me -->\n| a | b |\n|---|---|\n| x | 1 |\n<!-- end of t -->\nmore\n";

    #[test]
    fn what_was_not_observed_stays_as_it_is() {
        let (before, old, after) = split(DOCUMENT, "t").unwrap();
        let rows = [("x".to_string(), None), ("y".to_string(), Some(vec!["2 | 3".to_string()]))];
        let new = render(&["a", "b"], &rows, old);
        assert_eq!(new, "| a | b |\n|---|---|\n| x | 1 |\n| y | 2 \\| 3 |\n");
        assert_eq!(difference(old, &new), ["+ | y | 2 \\| 3 |"]);
        assert!(before.ends_with("-->\n") && after.ends_with("more\n"));
        assert!(difference(old, old).is_empty());
    }

    #[test]
    fn what_changed_is_said() {
        let (_, old, _) = split(DOCUMENT, "t").unwrap();
        let new = render(&["a", "b"], &[("x".to_string(), Some(vec!["2".to_string()]))], old);
        assert_eq!(difference(old, &new), ["- | x | 1 |", "+ | x | 2 |"]);
    }
}

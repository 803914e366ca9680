//! Every operation takes effect at one moment between its call and its answer. The store numbers its
//! changes, so the order is known, and it is enough that it agrees with time and with what was read: an
//! answer is as of a revision that is not below that of any answer that came before the call, and what
//! was read of a file is what its last change up to that revision has left there.

use std::collections::{BTreeMap, BTreeSet};

use super::Invariant;
use crate::record::{Millis, Seen, Told, What};

struct Read {
    modified: u64,
    revision: u64,
}

#[derive(Default)]
struct File {
    /// Revisions that are known to have changed it.
    changed: BTreeSet<u64>,
    /// What was read that they have left.
    values: BTreeMap<u64, u64>,
    reads: Vec<Read>,
}

/// See the module.
#[derive(Default)]
pub struct Linear {
    /// The highest revision of any answer until now.
    answered: u64,
    /// Operations under way, and the highest revision that was answered before they were called.
    called: BTreeMap<u64, (What, u64)>,
    files: BTreeMap<String, File>,
}

impl Invariant for Linear {
    fn name(&self) -> &'static str {
        "linearizability"
    }

    fn see(&mut self, _now: Millis, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Called { op, what } => {
                self.called.insert(*op, (what.clone(), self.answered));
                Ok(())
            }
            Seen::Returned { op, told: Some(told) } => {
                let Some((what, floor)) = self.called.remove(op) else { return Ok(()) };
                let (Told::Done { revision, .. } | Told::Value { revision, .. }) = told;
                if *revision < floor {
                    return Err(format!(
                        "{what:?} was answered as of revision {revision}, but before it was asked revision {floor} had been seen"
                    ));
                }
                self.answered = self.answered.max(*revision);
                match (what, told) {
                    (
                        What::Append { file, .. } | What::Put { file, .. },
                        Told::Done { revision, refused: None },
                    ) => {
                        self.files.entry(file).or_default().changed.insert(*revision);
                    }
                    (What::Read { file }, Told::Value { revision, modified, value }) => {
                        let known = self.files.entry(file.clone()).or_default();
                        known.changed.insert(*modified);
                        known.reads.push(Read { modified: *modified, revision: *revision });
                        let before = *known.values.entry(*modified).or_insert(*value);
                        if before != *value {
                            return Err(format!("{file} was read with two values as of revision {modified}"));
                        }
                    }
                    _ => {}
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        for (name, file) in &self.files {
            for read in &file.reads {
                let later = file.changed.iter().find(|revision| **revision > read.modified);
                if let Some(missed) = later.filter(|revision| **revision <= read.revision) {
                    return Err(format!(
                        "{name} was read as of revision {}, last changed at {}; but it was changed at {missed}",
                        read.revision, read.modified
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::check;
    use super::*;

    fn called(op: u64, what: What) -> Seen {
        Seen::Called { op, what }
    }
    fn put(op: u64) -> Seen {
        called(op, What::Put { file: "/r".into(), token: op })
    }
    fn get(op: u64) -> Seen {
        called(op, What::Read { file: "/r".into() })
    }
    fn done(op: u64, revision: u64) -> Seen {
        Seen::Returned { op, told: Some(Told::Done { revision, refused: None }) }
    }
    fn value(op: u64, revision: u64, modified: u64, value: u64) -> Seen {
        Seen::Returned { op, told: Some(Told::Value { revision, modified, value }) }
    }

    #[test]
    fn it_notices_stale_reads_lost_writes_and_two_values() {
        let legal = [put(1), get(2), done(1, 5), value(2, 4, 3, 9), get(3), value(3, 5, 5, 1)];
        assert_eq!(check(Linear::default(), &legal), Ok(()));
        let stale = [put(1), done(1, 5), get(2), value(2, 4, 3, 9)];
        assert!(check(Linear::default(), &stale).is_err());
        let lost = [put(1), done(1, 5), get(2), value(2, 6, 3, 9)];
        assert!(check(Linear::default(), &lost).is_err());
        let two = [get(1), value(1, 5, 3, 1), get(2), value(2, 5, 3, 2)];
        assert!(check(Linear::default(), &two).is_err());
    }
}

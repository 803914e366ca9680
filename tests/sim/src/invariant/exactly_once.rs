//! What a client asked for in its session is done once, however often it had to ask: every token is at
//! most once in the files at the end, every one that was acknowledged is there, every one that was
//! refused is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorumfs_api::key::Key;
use quorumfs_machine::{MemTables, view};

use super::Invariant;
use crate::record::{Millis, Seen, Told, What};

/// See the module.
#[derive(Default)]
pub struct ExactlyOnce {
    /// Operations under way: file and token.
    called: BTreeMap<u64, (String, u64)>,
    /// All files, with their tokens and whether each was acknowledged; `None` where nobody knows.
    files: BTreeMap<String, BTreeMap<u64, Option<bool>>>,
    state: Option<Arc<MemTables>>,
}

impl Invariant for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly once"
    }

    fn see(&mut self, _now: Millis, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Called { op, what: What::Append { file, token } } => {
                self.called.insert(*op, (file.clone(), *token));
                self.files.entry(file.clone()).or_default().insert(*token, None);
            }
            Seen::Returned { op, told } => {
                if let Some((file, token)) = self.called.remove(op)
                    && let Some(Told::Done { refused, .. }) = told
                {
                    self.files.entry(file).or_default().insert(token, Some(refused.is_none()));
                }
            }
            Seen::State { tables, .. } => self.state = Some(tables.0.clone()),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(state) = &self.state else { return Ok(()) };
        for (file, tokens) in &self.files {
            let key = Key::parse(file.clone().into_bytes()).map_err(|error| error.to_string())?;
            let record = view::get(&**state, &key).map_err(|error| error.to_string())?;
            let content = record.map(|record| String::from_utf8_lossy(&record.value).into_owned());
            let mut found = BTreeSet::new();
            for token in content.unwrap_or_default().split_terminator(';') {
                let token = token.parse().map_err(|_| format!("{file} holds {token:?}"))?;
                if !found.insert(token) {
                    return Err(format!("{token} was appended to {file} twice"));
                }
                if !tokens.contains_key(&token) {
                    return Err(format!("{token} is in {file}, and nobody has asked for that"));
                }
            }
            for (token, acknowledged) in tokens {
                match acknowledged {
                    Some(true) if !found.contains(token) => {
                        return Err(format!("{token} was acknowledged, and is not in {file}"));
                    }
                    Some(false) if found.contains(token) => {
                        return Err(format!("{token} was refused, and is in {file}"));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorumfs_api::command::{Command, CreateMode, Owner};

    use super::super::fixture::{check, entry};
    use super::*;
    use crate::record::Tables;

    /// A state in which these were appended.
    fn state(tokens: &[u64]) -> Seen {
        let mut tables = MemTables::default();
        quorumfs_machine::init(&mut tables).unwrap();
        for token in tokens {
            let carried = entry(
                1,
                1,
                Command::Append {
                    target: Key::parse(b"/log/1".to_vec()).unwrap().into(),
                    data: Bytes::from(format!("{token};")),
                    create: CreateMode::Allow,
                    parents: true,
                    owner: Owner::FILE,
                },
            );
            let openraft::EntryPayload::Normal(logged) = carried.entry.payload else { continue };
            quorumfs_machine::apply(&mut tables, logged.proposal()).unwrap();
        }
        Seen::State { node: 1, index: 0, tables: Tables(Arc::new(tables)) }
    }

    #[test]
    fn it_notices_what_was_done_twice_or_not_at_all() {
        let file = || "/log/1".to_owned();
        let called = Seen::Called { op: 1, what: What::Append { file: file(), token: 7 } };
        let told = Some(Told::Done { revision: 1, refused: None });
        let returned = Seen::Returned { op: 1, told };
        let history = |tokens: &[u64]| [called.clone(), returned.clone(), state(tokens)];
        assert_eq!(check(ExactlyOnce::default(), &history(&[7])), Ok(()));
        assert!(check(ExactlyOnce::default(), &history(&[7, 7])).is_err());
        assert!(check(ExactlyOnce::default(), &history(&[])).is_err());
        assert!(check(ExactlyOnce::default(), &history(&[7, 8])).is_err());
        assert_eq!(check(ExactlyOnce::default(), &[called.clone(), state(&[])]), Ok(()));
    }
}

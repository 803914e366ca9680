//! Transactions: comparisons, then one branch of commands, all or nothing.

use quorumfs_api::command::{Command, Compare, Relation};
use quorumfs_api::key::Key;
use quorumfs_api::limits::TXN_MAX;
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::Kind;

use crate::path;
use crate::rows::{self, Entry, NodeRow};
use crate::state::{State, Step};
use crate::tables::Tables;

impl<T: Tables + ?Sized> State<'_, T> {
    /// Runs the branch that the comparisons choose. A refusal inside refuses the whole.
    pub fn txn(&mut self, compare: &[Compare], then: &[Command], otherwise: &[Command]) -> Step {
        let longest = compare.len().max(then.len()).max(otherwise.len());
        if longest > TXN_MAX {
            let text = format!("{longest} parts in a transaction; {TXN_MAX} is the most");
            return Err(Refusal::TooMany(text).into());
        }
        if then.iter().chain(otherwise).any(|command| !may_be_inside(command)) {
            let text = "a transaction holds no leases, no transactions, and nothing that waits";
            return Err(Refusal::Invalid(text.to_string()).into());
        }
        let mut succeeded = true;
        for comparison in compare {
            succeeded &= self.holds(comparison)?;
        }
        let branch = if succeeded { then } else { otherwise };
        let results = branch.iter().map(|command| self.run(command)).collect::<Step<Vec<Done>>>()?;
        Ok(Done::Txn { succeeded, results })
    }

    fn holds(&self, comparison: &Compare) -> Step<bool> {
        self.check_compare(comparison)?;
        let number = |key: &Key, of: fn(&NodeRow) -> u64| -> Step<u64> {
            Ok(self.compared(key)?.map_or(0, |(_, row)| of(&row)))
        };
        Ok(match comparison {
            Compare::Exists(key, wanted) => path::find(&self.rows, key)?.is_some() == *wanted,
            Compare::Value(key, value, wanted) => self.has_value(key, value)? == *wanted,
            Compare::Version(key, relation, to) => relates(number(key, |row| row.version)?, *relation, *to),
            Compare::CreateRevision(key, relation, to) => {
                relates(number(key, |row| row.create_revision)?, *relation, *to)
            }
            Compare::ModRevision(key, relation, to) => {
                relates(number(key, |row| row.mod_revision)?, *relation, *to)
            }
            Compare::Kind(key, kind) => path::find(&self.rows, key)?.is_some_and(|entry| entry.kind == *kind),
        })
    }

    fn compared(&self, key: &Key) -> Step<Option<(Entry, NodeRow)>> {
        let Some(entry) = path::find(&self.rows, key)? else { return Ok(None) };
        Ok(Some((entry, self.node(entry.ino)?)))
    }

    fn has_value(&self, key: &Key, value: &[u8]) -> Step<bool> {
        let Some((entry, row)) = self.compared(key)? else { return Ok(false) };
        if row.kind != Kind::File || row.size != value.len() as u64 {
            return Ok(false);
        }
        Ok(rows::value(&self.rows, entry.ino, &row)? == value)
    }
}

fn may_be_inside(command: &Command) -> bool {
    !matches!(
        command,
        Command::LeaseGrant { .. }
            | Command::LeaseRevoke { .. }
            | Command::LeaseExpire { .. }
            | Command::Txn { .. }
            | Command::Lock { wait: true, .. }
    )
}

fn relates(left: u64, relation: Relation, right: u64) -> bool {
    match relation {
        Relation::Equal => left == right,
        Relation::NotEqual => left != right,
        Relation::Less => left < right,
        Relation::Greater => left > right,
    }
}

//! Applying a committed proposal: once for each request, all or nothing, with one event for each new
//! revision.

use std::sync::Arc;

use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::command::{Command, Proposal};
use quorumfs_api::event::Event;
use quorumfs_api::limits::{EVENT_LOG_BYTES, EVENT_LOG_REVISIONS};
use quorumfs_api::outcome::{Done, Outcome, Refusal};
use quorumfs_api::record::{Ino, Kind, Timestamp};
use quorumfs_policy::InForce;

use crate::guard::Author;
use crate::lock::Wanted;
use crate::rows::{self, Counters, NodeRow, Wait};
use crate::session::{self, Recalled};
use crate::state::{State, Step, Stop};
use crate::tables::{ReadTables, StorageError, Table, Tables};
use crate::view;
use crate::write::Open;

/// What came of applying one proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The answer for whoever proposed it.
    pub outcome: Outcome,
    /// What watchers see, if the store has a new revision. Its changes may be empty (a lease was
    /// granted, a lock was taken): every revision has an event.
    pub event: Option<Event>,
}

/// Makes the root directory in empty tables, as of revision 0; does nothing where it is already.
///
/// # Errors
/// When the storage fails.
pub fn init<T: Tables + ?Sized>(tables: &mut T) -> Result<(), StorageError> {
    if rows::counters_if_any(tables)?.is_some() {
        return Ok(());
    }
    let root = NodeRow {
        place: None,
        size: 0,
        reach: 0,
        kind: Kind::Dir,
        mode: 0o755,
        uid: 0,
        gid: 0,
        atime: Timestamp(0),
        mtime: Timestamp(0),
        ctime: Timestamp(0),
        create_revision: 0,
        mod_revision: 0,
        version: 1,
        lease: None,
        author: String::new(),
        xattrs: Vec::new(),
    };
    let counters = Counters {
        revision: 0,
        compacted: 0,
        keys: 0,
        store_bytes: 0,
        next_ino: Ino::ROOT.0 + 1,
        event_bytes: 0,
        policy: 0,
    };
    tables.put(Table::Nodes, &rows::number(Ino::ROOT.0), rows::encode(&root)?)?;
    tables.put(Table::Meta, rows::counters_key(), rows::encode(&counters)?)
}

/// Applies one committed proposal to tables on which [`init`] has run.
///
/// # Errors
/// When the storage fails or holds something that cannot be read: the node must stop. Nothing was
/// written then, unless writing itself failed.
pub fn apply<T: Tables + ?Sized>(tables: &mut T, proposal: &Proposal) -> Result<Applied, StorageError> {
    let mut in_force = view::policy(tables)?.into();
    apply_under(tables, &mut in_force, proposal)
}

/// The same for those who apply many: `in_force` is what [`view::policy`] gives for these tables, and
/// is kept so.
///
/// # Errors
/// As [`apply`].
pub fn apply_under<T: Tables + ?Sized>(
    tables: &mut T,
    in_force: &mut Arc<InForce>,
    proposal: &Proposal,
) -> Result<Applied, StorageError> {
    let before = rows::counters(tables)?;
    debug_assert_eq!(before.policy, in_force.revision, "the policy is not that of the tables");
    let author = Author::new(in_force, proposal);
    if let Err(refusal) = author.check(tables, proposal)? {
        // Not remembered: it is new if it is asked again under another policy.
        let outcome = Outcome { revision: before.revision, result: Err(refusal) };
        return Ok(Applied { outcome, event: None });
    }
    if let Some(request) = proposal.session {
        match session::recall(tables, request)? {
            Recalled::New => {}
            Recalled::Answered(_) if planted(Bug::RetryTwice) => {}
            Recalled::Answered(outcome) => return Ok(Applied { outcome, event: None }),
            Recalled::Refused(refusal) => {
                let outcome = Outcome { revision: before.revision, result: Err(refusal) };
                return Ok(Applied { outcome, event: None });
            }
        }
    }
    let mut state = State::new(tables, before, proposal, author);
    let ran = state.run(&proposal.command).and_then(|done| {
        state.check_quota(before)?;
        Ok((done, state.new_policy(before)?))
    });
    let mut new_policy = None;
    let result = match ran {
        Ok((done, policy)) => {
            new_policy = policy;
            Ok(done)
        }
        Err(Stop::Refused(refusal)) => {
            state.roll_back(before);
            Err(refusal)
        }
        Err(Stop::Storage(error)) => return Err(error),
    };
    match state.finish(before, result) {
        Ok((outcome, event)) => {
            state.rows.commit()?;
            if let Some(policy) = new_policy {
                *in_force = Arc::new(policy);
            }
            Ok(Applied { outcome, event })
        }
        Err(Stop::Storage(error)) => Err(error),
        Err(Stop::Refused(refusal)) => Err(StorageError::new(format!("refused too late: {refusal}"))),
    }
}

impl<T: Tables + ?Sized> State<'_, T> {
    /// Runs one command.
    pub fn run(&mut self, command: &Command) -> Step {
        match command {
            Command::Put { target, value, create, parents, owner, lease } => {
                let open = Open { target, create: *create, parents: *parents, owner: *owner };
                self.put_file(&open, value, *lease)
            }
            Command::Append { target, data, create, parents, owner } => {
                let open = Open { target, create: *create, parents: *parents, owner: *owner };
                self.append(&open, data)
            }
            Command::Truncate { target, size } => self.truncate(target, *size),
            Command::Delete { at, recursive } => self.delete(at, *recursive),
            Command::Mkdir { at, parents, owner } => self.mkdir(at, *parents, *owner),
            Command::Rmdir { at } => self.rmdir(at),
            Command::Rename { from, to, mode } => self.rename(from, to, *mode),
            Command::Symlink { at, to, parents, owner } => self.symlink(at, to, *parents, *owner),
            Command::SetAttr { target, set } => self.set_attr(target, set),
            Command::SetXattr { target, name, value, mode } => {
                self.set_xattr(target, name, value.as_ref(), *mode)
            }
            Command::Lock { ino, owner, range, kind, pid, wait } => {
                let wait_for = Wait { ino: *ino, range: *range, kind: *kind };
                self.lock(&Wanted { lock: wait_for, owner: *owner, pid: *pid, waits: *wait })
            }
            Command::Unlock { ino, owner, range } => self.unlock(*ino, *owner, *range),
            Command::LeaseGrant { ttl_ms } => self.grant(*ttl_ms),
            Command::LeaseRevoke { lease } => self.revoke(*lease),
            Command::LeaseExpire { leases } => self.expire(leases),
            Command::Txn { compare, then, otherwise } => self.txn(compare, then, otherwise),
            Command::Mknod { at, special, parents, owner } => self.mknod(at, *special, *parents, *owner),
            Command::CancelWait { ino, owner } => self.cancel_wait(*ino, *owner),
        }
    }

    /// Refuses what made a full store fuller. Renames work, though a name may be longer than before.
    fn check_quota(&self, before: Counters) -> Step<()> {
        let limit = self.proposal.store_max;
        let grew = self.counters.store_bytes as i64 - before.store_bytes as i64 - self.renamed_bytes;
        if grew > 0 && self.counters.store_bytes > limit {
            return Err(Refusal::StoreFull { used: before.store_bytes, limit }.into());
        }
        Ok(())
    }

    /// Gives what changed its revision and its event, and remembers the outcome for a retry.
    fn finish(&mut self, before: Counters, result: Result<Done, Refusal>) -> Step<(Outcome, Option<Event>)> {
        let mut event = None;
        if self.changed {
            self.counters.revision += 1;
            event = Some(self.log_event()?);
        }
        let outcome = Outcome { revision: self.counters.revision, result };
        if let Some(request) = self.proposal.session {
            self.remember(request, &outcome)?;
        }
        if self.counters != before {
            let counters = self.counters;
            self.put(rows::counters_key(), &counters)?;
        }
        Ok((outcome, event))
    }

    fn log_event(&mut self) -> Step<Event> {
        let event = Event {
            revision: self.counters.revision,
            time: self.proposal.time,
            session: self.proposal.session.map(|request| request.session),
            author: self.proposal.author.clone(),
            changes: std::mem::take(&mut self.changes),
        };
        let key = rows::number(event.revision);
        let row = rows::encode(&event)?;
        self.counters.event_bytes += event_cost(&row);
        self.rows.put(Table::Events, &key, row);
        self.trim_events()?;
        Ok(event)
    }

    /// Drops the oldest events while the log is too long. The newest stays whatever its size.
    fn trim_events(&mut self) -> Step<()> {
        while self.counters.compacted + 1 < self.counters.revision
            && (self.counters.revision - self.counters.compacted > EVENT_LOG_REVISIONS
                || self.counters.event_bytes > EVENT_LOG_BYTES)
        {
            let key = rows::number(self.counters.compacted + 1);
            let row = self.rows.get(Table::Events, &key)?;
            let row = row.ok_or_else(|| rows::damaged(Table::Events, &key, "it is missing"))?;
            let rest = self.counters.event_bytes.checked_sub(event_cost(&row));
            self.counters.event_bytes =
                rest.ok_or_else(|| rows::damaged(Table::Events, &key, "it is bigger than what was counted"))?;
            self.rows.delete(Table::Events, &key);
            self.counters.compacted += 1;
        }
        Ok(())
    }
}

/// What an event takes in the log.
fn event_cost(row: &[u8]) -> u64 {
    8 + row.len() as u64
}

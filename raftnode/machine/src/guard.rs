//! What the policy allows, decided when a command is applied: by the policy of that revision, on the
//! tree of that revision, for whoever proposed it. So every node decides alike, and nothing can change
//! between the decision and what it is about.

use std::sync::Arc;

use quorumfs_api::command::{Compare, LockKind, Proposal};
use quorumfs_api::event::{Change, Place};
use quorumfs_api::key::Key;
use quorumfs_api::outcome::Refusal;
use quorumfs_api::record::{Ino, Kind, LeaseId, Revision};
use quorumfs_api::rights::{Access, POLICY_KEY, Rights, SYSTEM_DIR};
use quorumfs_policy::{InForce, Policy, Who};

use crate::path;
use crate::rows::{self, Counters, LeaseRow};
use crate::state::{State, Step};
use crate::tables::{ReadTables, StorageError, Table, Tables};

/// What a name is looked up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To change what has it, to give it or to take it away.
    Write,
    /// To make a directory.
    MakeDir,
}

/// Who proposed a command, and what that is good for.
pub(crate) struct Author<'a> {
    who: Who<'a>,
    rights: Arc<Rights>,
    /// Leases and sessions are their owners' only. Without a policy everybody trusts everybody.
    governed: bool,
}

impl<'a> Author<'a> {
    pub fn new(in_force: &InForce, proposal: &'a Proposal) -> Author<'a> {
        let who = Who { name: &proposal.author, node: proposal.node };
        let rights = in_force.rights(who);
        let governed = in_force.policy().is_some() && !rights.admin;
        Author { who, rights, governed }
    }

    /// What is refused whatever the command is: nothing of a session is told to others, its remembered
    /// results included.
    pub fn check<T: ReadTables + ?Sized>(
        &self,
        tables: &T,
        proposal: &Proposal,
    ) -> Result<Result<(), Refusal>, StorageError> {
        if let Some(line) = self.rights.cut_off {
            let text = format!("{} is denied by line {line} of the policy", self.who);
            return Ok(Err(Refusal::Denied(text)));
        }
        let Some(request) = proposal.session.filter(|_| self.governed) else { return Ok(Ok(())) };
        let row: Option<LeaseRow> = rows::read(tables, &rows::number(request.session.0))?;
        Ok(row.map_or(Ok(()), |row| self.check_lease(request.session, &row)))
    }

    fn check_lease(&self, lease: LeaseId, row: &LeaseRow) -> Result<(), Refusal> {
        if self.governed && row.author != self.who.name {
            let text = format!("lease {lease} belongs to {}, not to {}", row.author, self.who);
            return Err(Refusal::Denied(text));
        }
        Ok(())
    }

    fn refuse(&self, what: &str, key: &Key, access: Access) -> Refusal {
        Refusal::Denied(self.rights.refusal(&self.who.to_string(), what, key, access))
    }
}

impl<T: Tables + ?Sized> State<'_, T> {
    /// Whether the author may do this at `key`.
    pub fn check_write(&self, purpose: Purpose, key: &Key) -> Step<()> {
        let rights = &self.author.rights;
        let may = match purpose {
            Purpose::Write => rights.access(key) >= Access::Write,
            Purpose::MakeDir => rights.reaches(key, Access::Write),
        };
        if may { Ok(()) } else { Err(self.author.refuse("write", key, Access::Write).into()) }
    }

    /// Whether the author may take away all that is below `key`.
    pub fn check_delete(&self, key: &Key) -> Step<()> {
        let rights = &self.author.rights;
        if rights.covers(key, Access::Write) {
            return Ok(());
        }
        for grant in rights.grants() {
            let hinders = grant.access < Access::Write && grant.path.is_within(key);
            if hinders && path::find(&self.rows, &grant.path)?.is_some() {
                return self.check_tree(key);
            }
        }
        Ok(())
    }

    /// Whether the author may change all that is below `key`, and could be: what moves as a whole is
    /// not looked through, and may bring names to where others are to be.
    pub fn check_tree(&self, key: &Key) -> Step<()> {
        if self.author.rights.covers(key, Access::Write) {
            return Ok(());
        }
        Err(self.author.refuse("write all below", key, Access::Write).into())
    }

    /// A comparison tells of its key: it has to be one that the author may read.
    pub fn check_compare(&self, compare: &Compare) -> Step<()> {
        let (Compare::Exists(key, _)
        | Compare::Value(key, _, _)
        | Compare::Version(key, _, _)
        | Compare::CreateRevision(key, _, _)
        | Compare::ModRevision(key, _, _)
        | Compare::Kind(key, _)) = compare;
        if self.author.rights.access(key) >= Access::Read {
            return Ok(());
        }
        Err(self.author.refuse("read", key, Access::Read).into())
    }

    /// Whoever may read may keep writers out for a while, but not other readers.
    pub fn check_lock(&self, ino: Ino, kind: LockKind) -> Step<()> {
        let (access, what) = match kind {
            LockKind::Shared => (Access::Read, "lock"),
            LockKind::Exclusive => (Access::Write, "lock exclusively"),
        };
        if self.author.rights.covers(&Key::root(), access) {
            return Ok(());
        }
        let key = path::key_of(&self.rows, ino)?;
        if self.author.rights.access(&key) >= access {
            return Ok(());
        }
        Err(self.author.refuse(what, &key, access).into())
    }

    /// Under a policy, leases are their owners'.
    pub fn check_lease(&self, lease: LeaseId, row: &LeaseRow) -> Step<()> {
        Ok(self.author.check_lease(lease, row)?)
    }

    /// The policy that the command wrote, if it did. What was written has to be one, and to leave its
    /// author an admin. A policy cannot be taken away: without one more is allowed, and a program that
    /// replaces a file in two steps must not open the cluster in between.
    pub fn new_policy(&mut self, before: Counters) -> Step<Option<InForce>> {
        if !self.changes.iter().any(concerns_policy) {
            return Ok(None);
        }
        let Some(entry) = path::find(&self.rows, &POLICY_KEY)? else {
            if before.policy == 0 {
                return Ok(None);
            }
            let text = "the policy can only be replaced; write one that gives everything to \"*\" instead";
            return Err(Refusal::Denied(text.to_owned()).into());
        };
        if entry.kind != Kind::File {
            return Err(Refusal::BadPolicy(format!("{} has to be a file", *POLICY_KEY)).into());
        }
        let row = self.node(entry.ino)?;
        if row.lease.is_some() {
            return Err(Refusal::BadPolicy("it would end with a lease".to_owned()).into());
        }
        let value = rows::value(&self.rows, entry.ino, &row)?;
        let policy = Policy::parse(&value).map_err(|error| Refusal::BadPolicy(error.to_string()))?;
        let who = self.author.who;
        if !who.node && !policy.rights(who.name).admin {
            let text = format!(
                "{who} could not change it again: it has no rule with admin = true for {:?}. Let another admin \
                 write it, or use a node's certificate",
                who.name
            );
            return Err(Refusal::BadPolicy(text).into());
        }
        self.counters.policy = self.revision();
        Ok(Some(InForce::new(self.revision(), policy)))
    }
}

/// Whether a change may have changed the policy.
pub(crate) fn concerns_policy(change: &Change) -> bool {
    let is = |place: &Place| place.key == *POLICY_KEY || place.key == *SYSTEM_DIR;
    match change {
        Change::Create { place, .. } | Change::Update { place, .. } | Change::Remove { place, .. } => {
            is(place)
        }
        Change::Rename { from, to, .. } => is(from) || is(to),
        Change::Attr { .. } | Change::Unlocked { .. } => false,
    }
}

/// The policy that `revision` wrote, which is there.
pub(crate) fn load<T: ReadTables + ?Sized>(tables: &T, revision: Revision) -> Result<InForce, StorageError> {
    let damaged = |what: &str| rows::damaged(Table::Meta, rows::counters_key(), what);
    let entry = path::find(tables, &POLICY_KEY)?.ok_or_else(|| damaged("the policy is missing"))?;
    let row = rows::node(tables, entry.ino)?;
    let value = rows::value(tables, entry.ino, &row)?;
    // It was good when it was written, by a program that took the same for good.
    let policy = Policy::parse(&value).map_err(|error| damaged(&format!("the policy is none: {error}")))?;
    Ok(InForce::new(revision, policy))
}

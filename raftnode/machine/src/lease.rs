//! Leases: granted, and ended with all that hangs on them.

use std::ops::ControlFlow;

use quorumfs_api::event::Place;
use quorumfs_api::limits::{LEASE_TTL_MAX_MS, LEASE_TTL_MIN_MS};
use quorumfs_api::outcome::Done;
use quorumfs_api::record::{Ino, LeaseId};

use crate::rows::{self, Entry, LeaseRow};
use crate::state::{State, Step};
use crate::tables::{ReadTables, StorageError, Table, Tables};

/// The number of the first request of a session.
const FIRST_REQUEST: u64 = 1;

impl<T: Tables + ?Sized> State<'_, T> {
    /// Grants a lease. A time to live out of bounds is brought to the nearest bound.
    pub fn grant(&mut self, ttl_ms: u64) -> Step {
        let id = LeaseId(self.revision());
        let ttl_ms = ttl_ms.clamp(LEASE_TTL_MIN_MS, LEASE_TTL_MAX_MS);
        let row = LeaseRow {
            ttl_ms,
            author: self.proposal.author.clone(),
            granted: self.proposal.time,
            keys: 0,
            floor: FIRST_REQUEST,
        };
        self.put(&rows::number(id.0), &row)?;
        self.changed = true;
        Ok(Done::Lease { id, ttl_ms })
    }

    /// Ends a lease that has to be there.
    pub fn revoke(&mut self, lease: LeaseId) -> Step {
        let row = self.lease(lease)?;
        self.check_lease(lease, &row)?;
        self.end(lease)?;
        Ok(Done::Ok)
    }

    /// Ends those leases that are there.
    pub fn expire(&mut self, leases: &[LeaseId]) -> Step {
        for lease in leases {
            if rows::read::<LeaseRow, _>(&self.rows, &rows::number(lease.0))?.is_some() {
                self.end(*lease)?;
            }
        }
        Ok(Done::Ok)
    }

    fn end(&mut self, lease: LeaseId) -> Step<()> {
        // It has to work whatever hangs on it.
        self.bounded = false;
        self.changed = true;
        for ino in numbers(&self.rows, Table::LeaseKeys, lease)? {
            let row = self.node(Ino(ino))?;
            let kind = row.kind;
            let place: Option<Place> = self.place_of(Ino(ino), &row)?;
            let place = place.ok_or_else(|| StorageError::new("the root is bound to a lease"))?;
            self.remove(place, Entry { ino: Ino(ino), kind })?;
        }
        for ino in numbers(&self.rows, Table::LeaseLocks, lease)? {
            self.unlock_session(Ino(ino), lease)?;
        }
        for owner in numbers(&self.rows, Table::Waits, lease)? {
            self.rows.delete(Table::Waits, &rows::pair(lease.0, owner));
        }
        for request in numbers(&self.rows, Table::Results, lease)? {
            self.rows.delete(Table::Results, &rows::pair(lease.0, request));
        }
        self.rows.delete(Table::Leases, &rows::number(lease.0));
        Ok(())
    }
}

/// The second numbers of the rows of a lease, in order.
pub(crate) fn numbers<T: ReadTables + ?Sized>(
    tables: &T,
    table: Table,
    lease: LeaseId,
) -> Result<Vec<u64>, StorageError> {
    let end = rows::after(lease.0);
    let mut found = Vec::new();
    let mut failed = None;
    tables.scan(table, &rows::number(lease.0), end.as_ref().map(|e| e.as_slice()), &mut |key, _| {
        match rows::second(table, key) {
            Ok(number) => found.push(number),
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(found), Err)
}

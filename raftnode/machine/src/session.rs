//! Exactly once: what a session asked before is answered from memory, and not done again.

use std::ops::Range;

use quorumfs_api::command::RequestId;
use quorumfs_api::limits::SESSION_WINDOW;
use quorumfs_api::outcome::{Outcome, Refusal};
use quorumfs_api::record::LeaseId;

use crate::rows::{self, LeaseRow};
use crate::state::{State, Step};
use crate::tables::{ReadTables, StorageError, Table, Tables};

/// What is known of a request.
pub(crate) enum Recalled {
    /// It is new.
    New,
    /// It was done, and this came of it.
    Answered(Outcome),
    /// It must not be done, because it cannot be known whether it was.
    Refused(Refusal),
}

/// Looks a request up.
pub(crate) fn recall<T: ReadTables + ?Sized>(
    tables: &T,
    request: RequestId,
) -> Result<Recalled, StorageError> {
    let RequestId { session, number, .. } = request;
    let Some(lease) = rows::read::<LeaseRow, _>(tables, &rows::number(session.0))? else {
        return Ok(Recalled::Refused(Refusal::NoSession(session)));
    };
    if number < lease.floor {
        return Ok(Recalled::Refused(Refusal::Forgotten(number)));
    }
    Ok(match rows::read(tables, &rows::pair(session.0, number))? {
        Some(outcome) => Recalled::Answered(outcome),
        None => Recalled::New,
    })
}

impl<T: Tables + ?Sized> State<'_, T> {
    /// Remembers what came of a request, and forgets what the client has. A session that the request
    /// itself ended remembers nothing: a retry hears that it has ended.
    pub fn remember(&mut self, request: RequestId, outcome: &Outcome) -> Step<()> {
        let RequestId { session, number, done_below } = request;
        let key = rows::number(session.0);
        let Some(mut lease) = rows::read::<LeaseRow, _>(&self.rows, &key)? else { return Ok(()) };
        // A client has no more than a window under way, so what is further back is done, too. The
        // request itself stays, whatever its client says.
        let floor = done_below.max(number.saturating_sub(SESSION_WINDOW - 1)).min(number);
        if floor > lease.floor {
            self.forget(session, lease.floor..floor)?;
            lease.floor = floor;
            self.put(&key, &lease)?;
        }
        // It was looked up before the command ran, and was not there.
        self.rows.put_new(Table::Results, &rows::pair(session.0, number), rows::encode(outcome)?);
        Ok(())
    }

    /// Forgets the results of these requests.
    fn forget(&mut self, session: LeaseId, numbers: Range<u64>) -> Step<()> {
        if numbers.end - numbers.start <= SESSION_WINDOW {
            // Nearly always a few, most of which are there: looking for them costs more than naming them.
            for number in numbers {
                self.rows.delete(Table::Results, &rows::pair(session.0, number));
            }
            return Ok(());
        }
        let mut forgotten = Vec::new();
        let (first, end) = (rows::pair(session.0, numbers.start), rows::pair(session.0, numbers.end));
        self.rows.scan(Table::Results, &first, Some(&end), &mut |key, _| {
            forgotten.push(key.to_vec());
            std::ops::ControlFlow::Continue(())
        })?;
        for key in forgotten {
            self.rows.delete(Table::Results, &key);
        }
        Ok(())
    }
}

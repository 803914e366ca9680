//! What counting leases needs of this node.

use quorumfs_api::command::Command;
use quorumfs_api::record::LeaseId;
use quorumfs_api::wire::{Failure, LeaseInfo};
use quorumfs_machine::{StorageError, view};
use quorumfs_policy::Who;
use tokio::time::Instant;

use super::{Context, write};
use crate::lease::{AUTHOR, Host, Stopped};
use crate::progress;

impl Host for Context {
    async fn until_leading(&self, leads: bool) -> Result<(), Stopped> {
        let mut metrics = self.raft.server_metrics();
        tokio::select! {
            biased;
            () = self.stop.raised() => Err(Stopped),
            seen = progress::wait_for(&mut metrics, |now| now.state.is_leader() == leads) => {
                seen.map(drop).map_err(|_| Stopped)
            }
        }
    }

    async fn take_over(&self, until: Instant) -> Result<(), Failure> {
        self.linear.read(until).await?;
        // The times of this leader are later than those of the one before, whatever the clocks say.
        let revision = self.state.applied().borrow().revision;
        if let Ok(events) = self.state.events_after(revision.saturating_sub(1), 1)
            && let Some(event) = events.last()
        {
            self.clock.saw(event.time);
        }
        Ok(())
    }

    fn leases(&self) -> Result<Vec<LeaseInfo>, StorageError> {
        self.state.read(|tables| view::leases(tables))
    }

    async fn expire(&self, leases: Vec<LeaseId>) -> Result<(), Failure> {
        let count = leases.len() as u64;
        write::propose(self, Who { name: AUTHOR, node: true }, None, Command::LeaseExpire { leases }).await?;
        self.metrics.leases_expired.increment(count);
        Ok(())
    }
}

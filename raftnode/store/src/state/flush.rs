//! The thread that brings the state to disk, off the path of the writers: it takes the layer that
//! was applied to as a whole, so that the database is always the state at exactly one log index.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use quorumfs_api::record::Revision;
use quorumfs_machine::StorageError;
use redb::Database;
use tokio::sync::oneshot;

use crate::dir::sync_dir;
use crate::state::base::{self, Base, failed};
use crate::state::layers::closed;
use crate::state::ring::Ring;
use crate::state::{Inner, SnapshotView};
use crate::types::SnapshotMeta;

/// Longest time that something applied stays in memory only.
const INTERVAL: Duration = Duration::from_secs(2);

type Reply<T> = oneshot::Sender<Result<T, StorageError>>;

/// Another state that takes the place of this one.
pub(crate) struct Install {
    pub database: Arc<Database>,
    pub position: SnapshotMeta,
    pub revision: Revision,
    /// Its file.
    pub from: PathBuf,
    /// The file that it replaces.
    pub to: PathBuf,
    pub done: Reply<()>,
}

#[derive(Default)]
struct Demands {
    /// The active layer is large enough.
    kick: bool,
    /// These want what is applied now to be durable.
    flush: Vec<Reply<SnapshotView>>,
    install: Option<Install>,
    close: Option<oneshot::Sender<Result<(), StorageError>>>,
    /// Nobody is left, or the state was closed.
    ended: bool,
}

impl Demands {
    fn only_kicked(&self) -> bool {
        self.kick && self.flush.is_empty() && self.install.is_none() && self.close.is_none() && !self.ended
    }
}

/// What is asked of the thread. All who ask while it writes share its next commit.
#[derive(Default)]
pub(crate) struct Desk {
    demands: Mutex<Demands>,
    bell: Condvar,
}

impl Desk {
    /// Asks for a flush, without waiting.
    pub fn kick(&self) {
        self.demands.lock().kick = true;
        self.bell.notify_one();
    }

    /// Asks for a flush of all that is applied now.
    pub async fn flush(&self) -> Result<SnapshotView, StorageError> {
        self.ask(|demands, reply| demands.flush.push(reply)).await
    }

    pub async fn install(&self, install: impl FnOnce(Reply<()>) -> Install) -> Result<(), StorageError> {
        self.ask(|demands, reply| demands.install = Some(install(reply))).await
    }

    /// Flushes and ends the thread. Nothing is accepted afterwards.
    pub async fn close(&self) -> Result<(), StorageError> {
        match self.ask(|demands, reply| demands.close = Some(reply)).await {
            Err(_) if self.demands.lock().ended => Ok(()),
            result => result,
        }
    }

    /// Ends the thread, without waiting for it.
    pub fn end(&self) {
        self.demands.lock().ended = true;
        self.bell.notify_one();
    }

    async fn ask<T>(&self, put: impl FnOnce(&mut Demands, Reply<T>)) -> Result<T, StorageError> {
        let (reply, wait) = oneshot::channel();
        {
            let mut demands = self.demands.lock();
            if demands.ended {
                return Err(closed());
            }
            put(&mut demands, reply);
        }
        self.bell.notify_one();
        wait.await.unwrap_or_else(|_| Err(closed()))
    }

    fn wait(&self) -> Demands {
        let mut demands = self.demands.lock();
        let idle = |demands: &mut Demands| {
            !demands.kick
                && demands.flush.is_empty()
                && demands.install.is_none()
                && demands.close.is_none()
                && !demands.ended
        };
        self.bell.wait_while_for(&mut demands, idle, INTERVAL);
        let ended = demands.ended;
        std::mem::replace(&mut demands, Demands { ended, ..Demands::default() })
    }
}

/// Runs until the state is closed or nobody is left.
pub(crate) fn run(inner: &Inner) {
    loop {
        let demands = inner.desk.wait();
        if demands.only_kicked() && !inner.layers.read().is_full() {
            // What it was about went to disk meanwhile.
            continue;
        }
        let flushed = flush(inner);
        for reply in demands.flush {
            let view = match &flushed {
                Ok(()) => view(inner),
                Err(error) => Err(again(error)),
            };
            // Whoever asked may have given up.
            let _ = reply.send(view);
        }
        if let Some(install) = demands.install {
            let installed = self::install(inner, &install);
            let _ = install.done.send(installed);
        }
        if demands.close.is_some() || demands.ended {
            inner.desk.demands.lock().ended = true;
            let base = inner.layers.write().base.take();
            // Closing the database writes to it: not under the lock.
            drop(base);
            if let Some(reply) = demands.close {
                let _ = reply.send(flushed);
            }
            return;
        }
    }
}

fn again(error: &StorageError) -> StorageError {
    StorageError::new(error.to_string())
}

/// What is on disk now. Only this thread changes it.
fn view(inner: &Inner) -> Result<SnapshotView, StorageError> {
    let durable = inner.durable.borrow().clone();
    let base = inner.layers.read().base.clone().ok_or_else(closed)?;
    let super::Durable { position, revision, policy } = durable;
    Ok(SnapshotView { base, position: Arc::new(position), revision, policy })
}

/// Brings all that is applied now to disk.
fn flush(inner: &Inner) -> Result<(), StorageError> {
    inner.check()?;
    let (frozen, database, durable) = {
        let mut layers = inner.layers.write();
        if layers.active.is_empty() {
            return Ok(());
        }
        let Some(base) = &layers.base else { return Err(closed()) };
        let database = base.database().clone();
        let frozen = Arc::new(std::mem::take(&mut layers.active));
        layers.frozen = Some(frozen.clone());
        let durable = super::Durable {
            position: layers.position.clone(),
            revision: layers.revision,
            policy: layers.policy.clone(),
        };
        (frozen, database, durable)
    };
    // openraft applies what a quorum has, which need not include our own disk. A state that is ahead of
    // a log whose end was to be truncated could not be started from after a crash.
    let log = inner.log.get().map_or(Ok(()), |log| log.wait().map_err(failed));
    let written = log.and_then(|()| base::write(&database, &frozen)).and_then(|()| Base::now(&database));
    let base = match written {
        Ok(base) => base,
        Err(error) => return Err(inner.fail(error)),
    };
    let (old, _) = {
        let mut layers = inner.layers.write();
        (layers.base.replace(Arc::new(base)), layers.frozen.take())
    };
    // Freeing many small rows takes a while, and so may closing: not under the lock.
    drop((old, frozen));
    inner.durable.send_replace(durable);
    Ok(())
}

/// Puts another database in the place of this one.
fn install(inner: &Inner, install: &Install) -> Result<(), StorageError> {
    inner.check()?;
    let base = Base::now(&install.database)?;
    let policy = Arc::new(quorumfs_machine::view::policy(&base)?);
    // From the rename on the new state is what a restart finds.
    std::fs::rename(&install.from, &install.to).map_err(failed)?;
    let synced = install.to.parent().map_or(Ok(()), sync_dir);
    synced.map_err(|error| inner.fail(failed(error)))?;
    let old = {
        let mut layers = inner.layers.write();
        let mut ring = inner.ring.lock();
        layers.position = install.position.clone();
        layers.revision = install.revision;
        layers.policy = policy.clone();
        *ring = Ring::new(install.revision);
        let active = std::mem::take(&mut layers.active);
        (layers.base.replace(Arc::new(base)), active)
    };
    drop(old);
    let (position, revision) = (install.position.clone(), install.revision);
    let policy_at = policy.revision;
    inner.durable.send_replace(super::Durable { position, revision, policy });
    inner.publish(&install.position, install.revision, policy_at);
    Ok(())
}

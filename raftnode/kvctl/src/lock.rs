//! `lock`: one holder in the whole cluster, for as long as a command runs.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorumfs_api::client::{Session, Watch, WatchItem};
use quorumfs_api::command::{LockKind, LockOwner, Range};
use quorumfs_api::wire::WatchStart;
use quorumfs_api::{Change, Command, CreateMode, Done, Ino, Owner, Refusal};

use crate::cli::Context;
use crate::error::Error;
use crate::key;

/// The lock of a host that died is free after this long.
const TTL: Duration = Duration::from_secs(10);
/// Who waits looks at least this often, should a notice have been missed.
const LOOK: Duration = Duration::from_secs(2);

/// Waits for the lock (as long as it takes), runs the command, and gives the lock back.
pub async fn run(context: &Context, key: &OsStr, command: &[OsString]) -> Result<(), Error> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::Usage("say what to run after --".into()));
    };
    let key = key::key(key)?;
    let timeout = context.timeout();
    let session = context.client.session(TTL, timeout).await?;
    let file = Command::Append {
        target: key.clone().into(),
        data: Bytes::new(),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
    };
    session.write(file, timeout).await?.result?;
    let start = WatchStart { prefix: key.clone(), after: None, copy_when_behind: true };
    let mut watch = context.client.watch(start);
    let (ino, fence) = loop {
        let (_, found) =
            context.client.get(key.clone(), quorumfs_api::wire::Consistency::Linearizable, timeout).await?;
        let Some(record) = found else {
            return Err(Error::Refused(format!("{key} was deleted while waiting for its lock")));
        };
        let owner = LockOwner { session: session.id(), owner: 1 };
        let lock = Command::Lock {
            ino: record.ino,
            owner,
            range: Range::WHOLE,
            kind: LockKind::Exclusive,
            pid: std::process::id(),
            // An owner with one lock is in no deadlock.
            wait: false,
        };
        match session.write(lock, timeout).await?.result {
            Ok(Done::Locked(fence)) => break (record.ino, fence),
            Ok(_) => break (record.ino, 0),
            Err(Refusal::Locked(_)) => wait(&mut watch, record.ino).await,
            Err(refusal) => return Err(refusal.into()),
        }
    };
    drop(watch);

    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env("QUORUMFS_LOCK_REVISION", fence.to_string())
        .spawn()
        .map_err(|e| Error::Usage(format!("{} cannot be run: {e}", program.display())))?;
    let mut lost = session.lost();
    let status = tokio::select! {
        status = child.wait() => status?,
        _ = lost.wait_for(|lost| *lost) => {
            // Somebody else may hold the lock now, so that the command must not go on.
            child.kill().await?;
            return Err(Error::Refused(format!(
                "the lock on {key} was lost (the cluster did not hear of us for {} s): the command was killed",
                TTL.as_secs()
            )));
        }
    };
    release(&session, ino, timeout).await;
    let _ = session.close(Duration::from_millis(300)).await;
    match status.code().or(status.signal().map(|signal| 128 + signal)) {
        Some(0) => Ok(()),
        code => Err(Error::Child(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
    }
}

/// Until the lock may be free.
async fn wait(watch: &mut Watch, ino: Ino) {
    let deadline = Instant::now() + LOOK;
    while let Ok(Some(item)) = tokio::time::timeout_at(deadline.into(), watch.next()).await {
        if let WatchItem::Events(events) = item {
            let freed = events.iter().flat_map(|event| &event.changes).any(|change| match change {
                Change::Unlocked { ino: freed } | Change::Remove { ino: freed, .. } => *freed == ino,
                _ => false,
            });
            if freed {
                return;
            }
        }
    }
}

async fn release(session: &Session, ino: Ino, timeout: Duration) {
    let owner = LockOwner { session: session.id(), owner: 1 };
    // If it fails, the end of the session frees it.
    let _ = session.write(Command::Unlock { ino, owner, range: Range::WHOLE }, timeout).await;
}

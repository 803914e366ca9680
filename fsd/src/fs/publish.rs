//! What was written to a handle becomes what everybody sees, at once or not at all.

use bytes::Bytes;
use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::command::{AttrChange, Command, CreateMode, LeaseChange, Owner, Target};
use quorumfs_api::outcome::Refusal;
use quorumfs_api::record::LeaseId;

use super::Fs;
use crate::errno::{Errno, Result};
use crate::handle::{Buffer, Fh};
use crate::handover::call;
use crate::handover::note::Note;
use crate::kernel::{NodeId, Object};
use crate::state::{State, Touch};

/// What has to be sent for a handle.
struct Plan {
    command: Command,
    touches: Vec<Touch>,
    edits: u64,
    /// What was taken out of the handle, and goes back if it certainly was not done.
    tail: Option<Vec<u8>>,
    /// The file exists here only.
    creates: bool,
    /// The session in which a lock is held through the handle: it is done in that or not at all.
    fence: Option<LeaseId>,
}

/// What comes next.
enum Next {
    Done,
    /// The private file's gate has to be held first.
    Gate(std::sync::Arc<tokio::sync::Mutex<()>>),
    Send(Plan),
}

impl Fs {
    /// Publishes what a handle holds, and makes sure that its file exists.
    pub(super) async fn publish(&self, fh: Fh) -> Result<()> {
        let gate = {
            let mut state = self.core.state.lock();
            state.handles.writer(fh).ok_or(Errno::EBADF)?.gate.clone()
        };
        let _held = gate.lock().await;
        self.core.settle_publishing(fh).await?;
        let mut private = None;
        loop {
            let next = {
                let mut state = self.core.state.lock();
                self.plan(&mut state, fh, private.is_some())?
            };
            match next {
                Next::Done => return Ok(()),
                Next::Gate(gate) => private = Some(gate.lock_owned().await),
                Next::Send(plan) => return self.send(fh, plan).await,
            }
        }
    }

    fn plan(&self, state: &mut State, fh: Fh, has_gate: bool) -> Result<Next> {
        let fence = state.locked.fence(fh)?;
        let node = state.handles.get(fh).ok_or(Errno::EBADF)?.node();
        let (target, at, owner) = match state.kernel.resolve(node, &state.mirror) {
            Object::Private => {
                let Some(private) = state.kernel.private(node) else { return Err(Errno::ESTALE) };
                if !has_gate {
                    return Ok(Next::Gate(private.gate.clone()));
                }
                let record = &private.record;
                let strips = state.handles.writers(node).any(|(_, writer)| writer.strips);
                let mode = if strips { stripped(record.mode) } else { record.mode };
                let owner = Owner { mode, uid: record.uid, gid: record.gid };
                let at = private.at.clone();
                (Target::At(self.place(state, &at)?), Some(at), owner)
            }
            Object::Real(ino) => (Self::target(state, ino)?, None, Owner::FILE),
            Object::Orphan | Object::Link | Object::Gone => {
                // It has no name any more: what was written goes with it, as it does everywhere.
                let base = state.published(node).unwrap_or_default();
                if let Some(writer) = state.handles.writer(fh) {
                    let content = writer.content(&base);
                    (writer.dirty, writer.emptied) = (false, false);
                    writer.buffer = Buffer::Clean;
                    let edits = writer.edits;
                    state.kernel.write_orphan(node, content);
                    state.refresh(node);
                    state.note(|| Note::Published(fh, edits));
                }
                return Ok(Next::Done);
            }
        };
        let creates = at.is_some();
        let touches = match (at, state.kernel.resolve(node, &state.mirror)) {
            (Some(at), _) => vec![Touch::Name(at)],
            (None, Object::Real(ino)) => vec![Touch::Ino(ino)],
            (None, _) => Vec::new(),
        };
        let mode = match state.kernel.resolve(node, &state.mirror) {
            Object::Real(ino) => state.mirror.get(ino).map(|node| node.record.mode),
            _ => None,
        };
        let writer = state.handles.writer(fh).ok_or(Errno::EBADF)?;
        if writer.refused {
            return Err(Errno::EFBIG);
        }
        if !writer.is_pending() && !creates {
            return Ok(Next::Done);
        }
        let create = if creates { CreateMode::Allow } else { CreateMode::Never };
        let mut tail = None;
        let command = match &mut writer.buffer {
            Buffer::Whole(_) if !writer.dirty && !creates => Command::Truncate { target, size: 0 },
            Buffer::Whole(data) if writer.dirty || !data.is_empty() => {
                let (value, lease) = (Bytes::copy_from_slice(data), LeaseChange::Keep);
                Command::Put { target, value, create, parents: false, owner, lease }
            }
            Buffer::Tail(data) => {
                // Taken out at once: what is appended meanwhile is another matter.
                let taken = std::mem::take(data);
                let data = Bytes::copy_from_slice(&taken);
                tail = Some(taken);
                Command::Append { target, data, create, parents: false, owner }
            }
            // Makes it where it is not there, and leaves it alone where somebody else made it.
            Buffer::Clean | Buffer::Whole(_) => {
                Command::Append { target, data: Bytes::new(), create, parents: false, owner }
            }
        };
        let command = match mode {
            Some(mode) if writer.strips && stripped(mode) != mode => strip(command, mode),
            _ => command,
        };
        Ok(Next::Send(Plan { command, touches, edits: writer.edits, tail, creates, fence }))
    }

    async fn send(&self, fh: Fh, plan: Plan) -> Result<()> {
        if planted(Bug::TornPublication)
            && let Command::Put { value, .. } = &plan.command
        {
            let mut part = plan.command.clone();
            let half = value.slice(..value.len() / 2);
            if let Command::Put { value, .. } = &mut part {
                *value = half;
            }
            let _ = self.core.propose(plan.touches.clone(), part).await;
        }
        call::publishes(Some((fh, plan.edits)));
        let proposed = self.core.propose_in(plan.fence, plan.touches, plan.command).await;
        call::publishes(None);
        let mut state = self.core.state.lock();
        let Some(writer) = state.handles.writer(fh) else { return proposed.map(drop) };
        let result = match proposed {
            Ok(Ok(_)) => Ok(()),
            // The file itself went: as with one that is unlinked. A directory that went is an error.
            Ok(Err(Refusal::Stale(_))) if !plan.creates => Ok(()),
            Ok(Err(Refusal::Stale(_))) => Err(Errno::ENOENT),
            Ok(Err(refusal)) => {
                if let (Some(mut taken), Buffer::Tail(tail)) = (plan.tail, &mut writer.buffer) {
                    taken.append(tail);
                    *tail = taken;
                }
                Err(Errno::from(&refusal))
            }
            // It may have been done, so it must not be sent again under another number.
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                writer.failed = false;
                if writer.edits == plan.edits {
                    writer.dirty = false;
                    writer.emptied = false;
                    writer.strips = false;
                    writer.buffer = Buffer::Clean;
                }
                state.note(|| Note::Published(fh, plan.edits));
            }
            Err(_) => writer.failed = true,
        }
        result
    }

    /// Makes sure that a file which is private until now is in the store: something is about to be
    /// done to it that needs that.
    pub(super) async fn publish_node(&self, node: NodeId) -> Result<()> {
        loop {
            let (fh, gate) = {
                let state = self.core.state.lock();
                let Some(private) = state.kernel.private(node) else { return Ok(()) };
                let latest = state.handles.writers(node).max_by_key(|(_, w)| (w.is_pending(), w.edits));
                (latest.map(|(fh, _)| fh), private.gate.clone())
            };
            match fh {
                Some(fh) => match self.publish(fh).await {
                    // It was closed in this moment: the release publishes it.
                    Err(Errno::EBADF) => {}
                    other => return other,
                },
                None => {
                    let _held = gate.lock().await;
                    let mut state = self.core.state.lock();
                    if state.kernel.private(node).is_some() {
                        state.abandon(node);
                    }
                }
            }
        }
    }

    /// Publishes what this thread has written to a file: an attribute that it sets now must not be
    /// overtaken by the value.
    pub(super) async fn publish_own(&self, node: NodeId, pid: u32) -> Result<()> {
        let pending: Vec<Fh> = {
            let state = self.core.state.lock();
            let own = state.handles.writers(node).filter(|(_, w)| w.pid == pid && w.is_pending());
            own.map(|(fh, _)| fh).collect()
        };
        for fh in pending {
            self.publish(fh).await?;
        }
        Ok(())
    }
}

/// A mode without what lets the file run as its owner or, where that is not a mark for locking, its group.
fn stripped(mode: u32) -> u32 {
    let group = if mode & 0o010 != 0 { 0o2000 } else { 0 };
    mode & !(0o4000 | group)
}

/// A write that also takes the set-user-id bits off, in one revision.
fn strip(write: Command, mode: u32) -> Command {
    let target = match &write {
        Command::Put { target, .. } | Command::Append { target, .. } | Command::Truncate { target, .. } => {
            target.clone()
        }
        _ => return write,
    };
    let set = AttrChange { mode: Some(stripped(mode)), ..AttrChange::default() };
    Command::Txn {
        compare: Vec::new(),
        then: vec![write, Command::SetAttr { target, set }],
        otherwise: Vec::new(),
    }
}

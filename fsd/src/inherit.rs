//! Taking the place of a worker that was killed or upgraded: the kernel goes on as if nothing had been.
//!
//! What the kernel knows is in the [`Image`] of the last worker's notes; what is true now is in the mirror. The
//! difference is replayed, as after a gap of the network. What the kernel *holds*, it is asked itself.
//! Open files are taken up when they are used next: their numbers say what they are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use quorumfs_api::command::Command;
use quorumfs_api::outcome::Outcome;
use quorumfs_api::record::{Ino, Record, Timestamp};

use crate::core::Core;
use crate::errno::{Errno, Result};
use crate::handle::{
    Buffer, Described, Fh, Handle, REPLAY_FH, Reader, Writer, count_edits_from, describe, same_version,
};
use crate::handover::call;
use crate::handover::image::{Edit, Image, Sent, Written};
use crate::handover::note::{self, Note, Row};
use crate::kernel::{NodeId, STAGE};
use crate::mirror::{At, Mirror, Net, difference};
use crate::state::{State, Touch};

/// How long the replayer waits for calls that were under way, once it is known what came of them: what they
/// did, the kernel shows by itself when they are answered.
const DOUBT_MAX: Duration = Duration::from_secs(1);
/// How long it waits until that is known: without a quorum it cannot be.
const UNSETTLED_MAX: Duration = Duration::from_secs(10);

/// What an earlier worker left, as far as it is not taken up yet.
#[derive(Debug, Default)]
pub struct Inherited {
    /// There was an earlier worker: the kernel may come with numbers that are not known here.
    pub any: bool,
    /// Values that are being read, with their versions.
    kept: HashMap<Ino, Vec<(u64, Bytes)>>,
    /// Handles with something that is not published.
    written: HashMap<Fh, Written>,
    /// Requests of the kernel that had something under way, and what came of it.
    calls: HashMap<u64, Vec<Sent>>,
    /// When nobody waits for those any more.
    doubt_until: Option<Instant>,
}

impl State {
    /// Notes that belong to the tree as the kernel will have it when it is mounted.
    fn base(&self) -> impl Iterator<Item = Note> + '_ {
        self.mirror.objects().map(|node| Note::Made(Row::of(node.at.clone(), &node.record)))
    }

    /// Whether calls are on their way that the last worker has begun: what they did must not be shown twice.
    pub fn is_in_doubt(&self) -> bool {
        !self.inherited.calls.is_empty()
            && self.inherited.doubt_until.is_none_or(|until| Instant::now() < until)
    }

    /// Takes up an open file of an earlier worker that the kernel comes with.
    pub fn revive(&mut self, node: NodeId, fh: Fh, pid: u32) {
        if !self.inherited.any || fh == REPLAY_FH || self.handles.get(fh).is_some() {
            return;
        }
        let handle = match describe(fh) {
            Described::Reader { direct, version, .. } => {
                let (value, version, times) = self.value_for_reader(node, version, direct);
                Handle::Reader(Reader::new(node, value, version, times, direct))
            }
            Described::Writer { readable, at_end, sync, emptied } => {
                let written = self.inherited.written.remove(&fh).unwrap_or_default();
                let base = self.published(node).unwrap_or_default();
                let emptied = emptied && !written.published;
                let buffer = if emptied { Buffer::Whole(Vec::new()) } else { Buffer::Clean };
                let mut writer = Writer {
                    node,
                    readable,
                    at_end,
                    sync,
                    buffer,
                    dirty: false,
                    emptied,
                    flushed: false,
                    failed: false,
                    refused: false,
                    pid,
                    strips: written.strips,
                    edits: 0,
                    edited: SystemTime::now(),
                    last: written.last,
                    gate: Arc::default(),
                };
                for (_, edit) in &written.edits {
                    match edit {
                        Edit::Write(offset, data) => writer.write(*offset, data, &base),
                        Edit::Clear(from, to) => writer.clear(*from as usize..*to as usize, &base),
                        Edit::Resize(size) => writer.resize(*size as usize, &base),
                    }
                }
                writer.edits = written.count;
                Handle::Writer(writer)
            }
            Described::Dir => Handle::Dir { node, names: Arc::new(self.list(node)) },
        };
        self.handles.restore(fh, handle);
    }

    /// What a reader goes on with who began at that version: its value, its version and its times. Through the
    /// page cache it is the newest, because the kernel has forgotten all attributes and takes new ones first.
    fn value_for_reader(
        &self,
        node: NodeId,
        said: u64,
        direct: bool,
    ) -> (Bytes, u64, (Timestamp, Timestamp)) {
        let ino = self.kernel.ino(node).unwrap_or(Ino(node));
        // What has lost its name is what it was then.
        let now = self.mirror.get(ino).map(|found| &found.record).or_else(|| self.kernel.orphaned(node));
        let times = now.map_or_else(Default::default, |record| (record.mtime, record.ctime));
        if let Some(record) = now.filter(|record| !direct || same_version(said, record.version)) {
            return (record.value.clone(), record.version, times);
        }
        let kept = self.inherited.kept.get(&ino).into_iter().flatten();
        if let Some((version, value)) = kept.into_iter().find(|(version, _)| same_version(said, *version)) {
            return (value.clone(), *version, times);
        }
        now.map_or((Bytes::new(), 0, times), |record| (record.value.clone(), record.version, times))
    }

    /// Whether a reader asks for the middle of a value that is nowhere any more.
    pub fn is_torn(&self, fh: Fh, offset: usize) -> bool {
        let Some(Handle::Reader(reader)) = self.handles.get(fh) else { return false };
        match describe(fh) {
            Described::Reader { direct: true, version, length } => {
                (1..length).contains(&offset) && !same_version(version, reader.version)
            }
            _ => false,
        }
    }
}

impl Core {
    /// Begins to note for a next worker, before the first request of the kernel.
    pub fn begin_notes(&self) {
        let mut state = self.state.lock();
        state.connected = true;
        if let Some(journal) = &state.journal {
            let notes: Vec<Note> = state.base().collect();
            journal.add(&notes);
            journal.add([&Note::Shown(state.mirror.revision)]);
        }
    }

    /// Takes the place of an earlier worker, before the first request of the kernel is read. `holds` asks the
    /// kernel whether it holds an inode, and makes it forget its attributes.
    pub fn inherit(&self, image: Image, holds: impl Fn(NodeId) -> bool) {
        let mut state = self.state.lock();
        let state = &mut *state;
        self.replayer.set_earlier(image.replayers);
        count_edits_from(image.written.values().map(|written| written.count).max().unwrap_or_default());
        let in_doubt = image.sent.iter().any(|sent| sent.unique != 0);
        self.settled_with_store.send_replace(!in_doubt);
        let mut calls: HashMap<u64, Vec<Sent>> = HashMap::new();
        for sent in image.sent {
            if sent.unique != 0 {
                calls.entry(sent.unique).or_default().push(sent);
            }
        }
        state.kept = image.kept.iter().filter_map(|(ino, have)| Some((*ino, have.last()?.0))).collect();
        state.inherited = Inherited {
            any: true,
            kept: image.kept,
            written: image.written,
            calls,
            doubt_until: Some(Instant::now() + UNSETTLED_MAX),
        };

        for (node, ino) in image.aliases {
            if holds(node) {
                state.kernel.inherit(node);
                state.kernel.restore_alias(node, ino, image.named.get(&ino) == Some(&node));
            }
        }
        for (node, record) in image.links {
            if holds(node) {
                state.kernel.inherit(node);
                state.kernel.restore_link(node, record);
            }
        }
        for ((dir, made), node) in image.linked {
            state.kernel.restore_link_of(dir, made, node);
        }
        if holds(STAGE) {
            state.kernel.inherit(STAGE);
        }
        let open: HashSet<NodeId> = state.inherited.written.values().map(|written| written.node).collect();
        for (node, (at, record)) in image.privates {
            if holds(node) || open.contains(&node) {
                state.kernel.inherit(node);
                state.kernel.restore_private(node, at, record);
            }
        }
        let mut inos: HashSet<Ino> = image.rows.keys().copied().collect();
        inos.extend(state.mirror.inos());
        inos.extend(image.orphans.keys());
        for ino in inos {
            if holds(ino.0) {
                state.kernel.inherit(ino.0);
            }
        }
        for (ino, row) in image.orphans {
            if state.mirror.get(ino).is_none() {
                let value = state.inherited.kept.get(&ino).and_then(|kept| kept.last());
                let value = value.map(|(_, value)| value.clone()).unwrap_or_default();
                let record = Record { value, ..row.record() };
                for node in state.kernel.nodes(ino) {
                    state.kernel.restore_orphan(node, record.clone());
                }
            }
        }

        state.connected = true;
        let missed = if image.rows.is_empty() {
            tracing::warn!(
                "the last worker has left no notes: what changed since then is not shown as events"
            );
            Vec::new()
        } else {
            let old = image.rows.into_values().map(|row| (row.at.clone(), row.record()));
            difference(&Mirror::of_parts(old), &state.mirror)
        };
        tracing::info!(
            missed = missed.len(),
            held = state.kernel.held().count(),
            under_way = state.inherited.calls.len(),
            "going on where the last worker ended"
        );
        // The kernel has forgotten all attributes already.
        let mut stale = HashSet::new();
        let mut swaps = state.swaps(&missed);
        swaps.extend(image.swaps);
        for mut net in missed {
            if let Some(record) = gone(&mut net)
                && let Some((version, value)) =
                    state.inherited.kept.get(&record.ino).and_then(|kept| kept.last())
            {
                (record.version, record.value) = (*version, value.clone());
            }
            state.take_in(net, false, &mut stale);
        }
        state.swap(swaps);
        if let Some(session) = image.session {
            for (ino, owner, fh) in image.locks {
                state.locked.inherit(fh, (ino, owner), session);
            }
        }
        let pending = state.inherited.written.iter().filter(|(_, written)| !written.edits.is_empty());
        let pending: Vec<(Fh, NodeId)> = pending.map(|(fh, written)| (*fh, written.node)).collect();
        for (fh, node) in pending {
            state.revive(node, fh, 0);
        }
        self.shown.send_if_modified(|shown| {
            let newer = state.mirror.revision > *shown;
            *shown = state.mirror.revision.max(*shown);
            newer
        });
    }

    /// What came of requests that the last worker had under way is known, or never will be.
    pub fn settle_calls(&self, outcomes: HashMap<u64, Option<Outcome>>) {
        let mut state = self.state.lock();
        for sent in state.inherited.calls.values_mut().flatten() {
            if sent.outcome.is_none()
                && let Some(outcome) = outcomes.get(&sent.number)
            {
                sent.outcome.clone_from(outcome);
            }
        }
        let forget: Vec<Note> = {
            let calls = &state.inherited.calls;
            let is_asked = |number| calls.values().flatten().any(|sent| sent.number == number);
            let of_use =
                |(number, outcome): &(&u64, &Option<Outcome>)| outcome.is_some() && is_asked(**number);
            outcomes.iter().filter(|one| !of_use(one)).map(|(number, _)| Note::Settled(*number)).collect()
        };
        state.note_all(&forget);
        state.inherited.calls.retain(|_, sent| sent.iter().any(|sent| sent.outcome.is_some()));
        state.inherited.doubt_until = Some(Instant::now() + DOUBT_MAX);
        drop(state);
        self.settled_with_store.send_replace(true);
        self.work.notify_all();
    }

    /// Whether the system call that is being served had this done for it before, by an earlier worker.
    pub async fn was_done(&self, command: u8) -> bool {
        self.find_call(command).await.is_some_and(|outcome| outcome.result.is_ok())
    }

    async fn find_call(&self, command: u8) -> Option<Outcome> {
        let unique = call::current();
        if unique == 0 || !self.state.lock().inherited.calls.contains_key(&unique) {
            return None;
        }
        let mut settled = self.settled_with_store.subscribe();
        let wait = settled.wait_for(|settled| *settled);
        let _ = tokio::time::timeout(self.rules.write_timeout, wait).await;
        let state = self.state.lock();
        let sent = state.inherited.calls.get(&unique)?;
        sent.iter().rev().find(|sent| sent.command == command)?.outcome.clone()
    }

    /// What came of a command that an earlier worker has sent for the system call that is being served. What
    /// it did the kernel shows by itself, so it is not replayed.
    pub(crate) async fn recall(&self, command: &Command, touches: &[Touch]) -> Option<Outcome> {
        let outcome = self.find_call(note::tag(command)).await?;
        call::noted();
        let mut state = self.state.lock();
        state.inherited.calls.remove(&call::current());
        let mut own = Vec::new();
        for touch in touches {
            while let Some(net) = state.queue.withdraw(|net| concerns(net, touch)) {
                own.push(net);
            }
        }
        own.into_iter().for_each(|net| state.take_in_own(net));
        drop(state);
        self.work.notify_all();
        Some(outcome)
    }

    /// Brings the notes down when there are many: what nobody has open any more is left out.
    pub(crate) fn bring_journal_down(&self) {
        let Some(journal) = self.journal().filter(|journal| journal.is_long()) else { return };
        let mut state = self.state.lock();
        let state = &mut *state;
        let (kernel, handles) = (&state.kernel, &state.handles);
        let is_open = |ino: &Ino| {
            let nodes = kernel.nodes(*ino);
            nodes.into_iter().any(|node| !handles.of(node).is_empty() || kernel.is_inherited(node))
        };
        journal.compact(|image| {
            image.kept.retain(|ino, _| is_open(ino));
            image.orphans.retain(|ino, _| is_open(ino));
            image.aliases.retain(|node, _| kernel.holds(*node));
            image.named.retain(|ino, node| kernel.node(*ino) == *node);
            image.links.retain(|node, _| kernel.link(*node).is_some());
            image.linked.retain(|(dir, made), node| kernel.link_of(*dir, *made) == Some(*node));
            image.privates.retain(|node, _| kernel.private(*node).is_some());
        });
        state.kept.retain(|ino, _| is_open(ino));
    }
}

/// What goes with a change.
fn gone(net: &mut Net) -> Option<&mut Record> {
    match net {
        Net::Remove { record, .. } | Net::Rename { replaced: Some(record), .. } => Some(record),
        _ => None,
    }
}

/// Whether a change is that which a call asked for.
fn concerns(net: &Net, touch: &Touch) -> bool {
    let is = |at: &At| *touch == Touch::Name(at.clone());
    match net {
        Net::Create { at, .. } | Net::Remove { at, .. } => is(at),
        Net::Rename { from, to, .. } => is(from) || is(to),
        Net::Update { ino } | Net::Attr { ino } => *touch == Touch::Ino(*ino),
        Net::Unlocked { .. } | Net::Swap { .. } => false,
    }
}

impl State {
    /// Closes a handle, and does away with what was noted of it.
    pub fn close(&mut self, fh: Fh) {
        if let Some(Handle::Writer(_)) = self.handles.remove(fh)
            && !call::closes(fh)
        {
            self.note(|| Note::Closed(fh));
        }
    }

    /// A handle, also one of an earlier worker.
    pub fn handle_of(&mut self, node: NodeId, fh: Fh) -> Result<&mut Handle> {
        self.revive(node, fh, 0);
        self.handles.get_mut(fh).ok_or(Errno::EBADF)
    }
}

//! Taking the place of a worker that was killed or upgraded: the kernel goes on as if nothing had been.
//!
//! What the kernel knows is in the [`Image`] of the last worker's notes; what is true now is in the mirror. The
//! difference is replayed, as after a gap of the network. What the kernel *holds*, it is asked itself.
//! Open files are taken up when they are used next: their numbers say what they are.

mod calls;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use quorumfs_api::record::{Ino, Record, Revision, Timestamp};

use calls::{Publishing, UNSETTLED_MAX};

use crate::core::Core;
use crate::errno::{Errno, Result};
use crate::handle::{
    Buffer, Described, Fh, Handle, REPLAY_FH, Reader, Writer, count_edits_from, describe, same_version,
    says_version,
};
use crate::handover::call;
use crate::handover::image::{Edit, Image, Sent, Written};
use crate::handover::note::{Note, Row};
use crate::kernel::{NodeId, STAGE};
use crate::mirror::{Mirror, Net, difference};
use crate::report;
use crate::state::State;

/// When the kernel is asked again for what it did not hold: an answer that the last worker wrote may not have come to
/// the process yet that waits for it.
const ASK_AGAIN: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(2)];

/// Asks the kernel again for what it did not hold, as in [`Core::inherit`].
pub async fn ask_again(core: Arc<Core>, holds: impl Fn(NodeId) -> bool + Send + Sync + 'static) {
    let holds = Arc::new(holds);
    for (round, pause) in ASK_AGAIN.into_iter().enumerate() {
        tokio::time::sleep(pause).await;
        let (core, holds) = (core.clone(), holds.clone());
        let last = round + 1 == ASK_AGAIN.len();
        if tokio::task::spawn_blocking(move || core.ask_again(last, &*holds)).await.is_err() {
            return;
        }
    }
}

/// What an earlier worker left, as far as it is not taken up yet.
#[derive(Debug, Default)]
pub struct Inherited {
    /// There was an earlier worker: the kernel may come with numbers that are not known here.
    pub any: bool,
    /// Values that are being read, with their versions.
    kept: HashMap<Ino, Vec<(u64, Bytes)>>,
    /// What is being read through handles.
    passes: HashMap<Fh, (u64, usize)>,
    /// Handles with something that is not published.
    written: HashMap<Fh, Written>,
    /// Requests of the kernel that had something under way, and what came of it.
    calls: HashMap<u64, Vec<Sent>>,
    /// Requests to the store that published what was written, and nobody knows whether they did.
    publishing: Vec<Publishing>,
    /// The newest revision at which one of them turned out to be done.
    published: Revision,
    /// When nobody waits for those any more.
    doubt_until: Option<Instant>,
    /// What the kernel did not hold when it was asked. An answer of the last worker may just have been on its way
    /// to the process that waited for it, so it is asked again.
    unproven: Vec<NodeId>,
}

impl State {
    /// Notes that belong to the tree as the kernel will have it when it is mounted.
    fn base(&self) -> impl Iterator<Item = Note> + '_ {
        self.mirror.objects().map(|node| Note::Made(Row::of(node.at.clone(), &node.record)))
    }

    /// The kernel asks about an inode, so it holds it.
    pub fn seen(&mut self, node: NodeId) {
        if self.inherited.any && !self.kernel.holds(node) && !report::is_own(node) {
            self.kernel.inherit(node);
        }
    }

    /// Takes up an open file of an earlier worker that the kernel comes with.
    pub fn revive(&mut self, node: NodeId, fh: Fh, pid: u32) {
        if !self.inherited.any || fh == REPLAY_FH || self.handles.get(fh).is_some() {
            return;
        }
        self.seen(node);
        let handle = match describe(fh) {
            Described::Reader { direct, version, length } => {
                let (said, length) = self.inherited.passes.remove(&fh).unwrap_or((version, length));
                let (value, version, times) = self.value_for_reader(node, said, direct);
                let mut reader = Reader::new(node, value, version, times, direct);
                if direct && !same_version(said, version) {
                    reader.torn = length;
                }
                Handle::Reader(reader)
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
        matches!(self.handles.get(fh), Some(Handle::Reader(reader)) if (1..reader.torn).contains(&offset))
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
        let in_doubt = image.sent.iter().any(|sent| sent.unique != 0) && image.session.is_some();
        self.settled_with_store.send_replace(!in_doubt);
        let mut calls: HashMap<u64, Vec<Sent>> = HashMap::new();
        let mut publishing = Vec::new();
        for sent in image.sent {
            match sent.publishes {
                Some(_) => publishing.extend(Publishing::of(sent, &image.written)),
                None if sent.unique != 0 => calls.entry(sent.unique).or_default().push(sent),
                None => {}
            }
        }
        state.kept = image.kept.iter().filter_map(|(ino, have)| Some((*ino, have.last()?.0))).collect();
        state.inherited = Inherited {
            any: true,
            kept: image.kept,
            passes: image.passes,
            written: image.written,
            calls,
            publishing,
            published: 0,
            doubt_until: Some(Instant::now() + UNSETTLED_MAX),
            unproven: Vec::new(),
        };

        let mut unproven = Vec::new();
        let mut is_held = |node| {
            let held = holds(node);
            if !held {
                unproven.push(node);
            }
            held
        };
        // What only we can say the meaning of is kept until it is sure that nobody will ask.
        for (node, ino) in image.aliases {
            is_held(node);
            state.kernel.inherit(node);
            state.kernel.restore_alias(node, ino, image.named.get(&ino) == Some(&node));
        }
        for (node, record) in image.links {
            is_held(node);
            state.kernel.inherit(node);
            state.kernel.restore_link(node, record);
        }
        for ((dir, made), node) in image.linked {
            state.kernel.restore_link_of(dir, made, node);
        }
        if is_held(STAGE) {
            state.kernel.inherit(STAGE);
        }
        for (node, (at, record)) in image.privates {
            is_held(node);
            state.kernel.inherit(node);
            state.kernel.restore_private(node, at, record);
        }
        for (ino, row) in image.opened {
            is_held(ino.0);
            state.kernel.inherit(ino.0);
            if state.mirror.get(ino).is_none() {
                let mut record = row.record();
                if let Some((version, value)) = state.inherited.kept.get(&ino).and_then(|kept| kept.last()) {
                    (record.version, record.value) = (*version, value.clone());
                }
                for node in state.kernel.nodes(ino) {
                    state.kernel.restore_orphan(node, record.clone());
                }
            }
        }
        let mut inos: HashSet<Ino> = image.rows.keys().copied().collect();
        inos.extend(state.mirror.inos());
        for ino in inos {
            if !state.kernel.is_inherited(ino.0) && is_held(ino.0) {
                state.kernel.inherit(ino.0);
            }
        }
        state.inherited.unproven = unproven;

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
                state.locked.take(fh, (ino, owner), session);
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

    /// Asks the kernel once more for what it did not hold. What it does not hold now either, it will not ask about, if
    /// this is the `last` time.
    pub fn ask_again(&self, last: bool, holds: impl Fn(NodeId) -> bool) {
        let asked = std::mem::take(&mut self.state.lock().inherited.unproven);
        let (held, unknown): (Vec<NodeId>, Vec<NodeId>) = asked.into_iter().partition(|node| holds(*node));
        let mut state = self.state.lock();
        held.into_iter().for_each(|node| state.seen(node));
        if !last {
            state.inherited.unproven = unknown;
            return;
        }
        for node in unknown {
            if state.kernel.private(node).is_some() && state.handles.of(node).is_empty() {
                state.abandon(node);
            }
            state.kernel.is_unknown(node);
        }
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
            image.opened.retain(|ino, _| is_open(ino));
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

impl State {
    /// Closes a handle, and does away with what was noted of it.
    pub fn close(&mut self, fh: Fh) {
        let is_noted = match self.handles.remove(fh) {
            Some(Handle::Writer(_)) => true,
            // It went on to another value than its number tells of.
            Some(Handle::Reader(reader)) => !says_version(fh, reader.version),
            _ => false,
        };
        if is_noted && !call::closes(fh) {
            self.note(|| Note::Closed(fh));
        }
    }

    /// A handle, also one of an earlier worker.
    pub fn handle_of(&mut self, node: NodeId, fh: Fh) -> Result<&mut Handle> {
        self.revive(node, fh, 0);
        self.handles.get_mut(fh).ok_or(Errno::EBADF)
    }
}

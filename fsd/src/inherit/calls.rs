//! Calls that an earlier worker had under way: what came of them at the store is found out before they are answered, or
//! done once more.
//!
//! A system call that is asked again finds what was done for it by the number of its request. What was written to a file is
//! published by whichever request comes first, so that is found by the handle.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use quorumfs_api::command::Command;
use quorumfs_api::outcome::Outcome;

use crate::core::Core;
use crate::errno::{Errno, Result};
use crate::handle::Fh;
use crate::handover::call;
use crate::handover::image::{Edit, Sent, Written};
use crate::handover::note::{self, Note};
use crate::mirror::{At, Net};
use crate::state::{State, Touch};
use crate::store::Fate;

/// How long the replayer waits for calls that were under way, once it is known what came of them: what they
/// did, the kernel shows by itself when they are answered.
const DOUBT_MAX: Duration = Duration::from_secs(1);
/// How long it waits until that is known: without a quorum it cannot be.
pub(super) const UNSETTLED_MAX: Duration = Duration::from_secs(10);

/// What an earlier worker was publishing.
#[derive(Debug)]
pub(super) struct Publishing {
    /// The request's number in the session.
    number: u64,
    /// What was written through this,
    fh: Fh,
    /// up to this edit,
    edits: u64,
    /// of which so many bytes were to be appended.
    appended: usize,
    /// What came of it, if that is known.
    outcome: Option<Outcome>,
    /// That will never be known.
    is_unknown: bool,
}

impl Publishing {
    pub(super) fn of(sent: Sent, written: &HashMap<Fh, Written>) -> Option<Publishing> {
        let Sent { number, outcome, is_unknown, publishes, .. } = sent;
        let (fh, edits) = publishes?;
        let known = written.get(&fh).map_or(&[][..], |written| &written.edits);
        let lengths = known.iter().filter(|(count, _)| *count <= edits).map(|(_, edit)| match edit {
            Edit::Write(_, data) => data.len(),
            Edit::Clear(..) | Edit::Resize(_) => 0,
        });
        let appended = lengths.sum();
        Some(Publishing { number, fh, edits, appended, outcome, is_unknown })
    }
}

impl Core {
    /// What came of requests that the last worker had under way is known, or never will be.
    pub fn settle_calls(&self, fates: HashMap<u64, Fate>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        for sent in state.inherited.calls.values_mut().flatten().filter(|sent| sent.outcome.is_none()) {
            match fates.get(&sent.number) {
                Some(Fate::Done(outcome)) => sent.outcome = Some(outcome.clone()),
                Some(Fate::Unknown) => sent.is_unknown = true,
                Some(Fate::NotDone) | None => {}
            }
        }
        for mut publishing in std::mem::take(&mut state.inherited.publishing) {
            match fates.get(&publishing.number) {
                Some(Fate::Done(outcome)) => publishing.outcome = Some(outcome.clone()),
                Some(Fate::Unknown) => publishing.is_unknown = true,
                Some(Fate::NotDone) | None => {}
            }
            state.was_published(publishing);
        }
        let calls = &state.inherited.calls;
        let is_asked = |number| calls.values().flatten().any(|sent| sent.number == number);
        // Not to be asked for once more by the worker after this one: the store forgets what was answered.
        let notes = fates.into_iter().filter_map(|(number, fate)| match fate {
            Fate::Done(outcome) if is_asked(number) => Some(Note::Answered(number, outcome)),
            Fate::Done(_) | Fate::NotDone => Some(Note::Settled(number)),
            Fate::Unknown => (!is_asked(number)).then_some(Note::Settled(number)),
        });
        state.note_all(&notes.collect::<Vec<_>>());
        let is_of_use = |sent: &Sent| sent.outcome.is_some() || sent.is_unknown;
        state.inherited.calls.retain(|_, sent| sent.iter().any(is_of_use));
        state.inherited.doubt_until = Some(Instant::now() + DOUBT_MAX);
        self.settled_with_store.send_replace(true);
        self.work.notify_all();
    }

    /// Before anything is published through a handle: waits until it is known what came of that which an earlier worker
    /// was publishing through it.
    ///
    /// # Errors
    /// ETIMEDOUT when that cannot be known.
    pub(crate) async fn settle_publishing(&self, fh: Fh) -> Result<()> {
        let (waits, published) = {
            let inherited = &self.state.lock().inherited;
            (inherited.publishing.iter().any(|publishing| publishing.fh == fh), inherited.published)
        };
        if waits {
            let mut settled = self.settled_with_store.subscribe();
            let wait = settled.wait_for(|settled| *settled);
            if tokio::time::timeout(self.rules.write_timeout, wait).await.is_err() {
                return Err(Errno::ETIMEDOUT);
            }
        }
        let published = self.state.lock().inherited.published.max(published);
        if *self.shown.borrow() < published {
            self.wait_for(published, self.deadline()).await?;
        }
        let publishing = &mut self.state.lock().inherited.publishing;
        let before = publishing.len();
        publishing.retain(|publishing| publishing.fh != fh);
        if publishing.len() < before { Err(Errno::ETIMEDOUT) } else { Ok(()) }
    }

    /// Whether the system call that is being served had this done for it before, by an earlier worker.
    ///
    /// # Errors
    /// ETIMEDOUT when that cannot be known.
    pub async fn was_done(&self, command: u8) -> Result<bool> {
        Ok(self.find_call(command).await?.is_some_and(|outcome| outcome.result.is_ok()))
    }

    async fn find_call(&self, command: u8) -> Result<Option<Outcome>> {
        let unique = call::current();
        if unique == 0 || !self.state.lock().inherited.calls.contains_key(&unique) {
            return Ok(None);
        }
        let mut settled = self.settled_with_store.subscribe();
        let wait = settled.wait_for(|settled| *settled);
        if tokio::time::timeout(self.rules.write_timeout, wait).await.is_err() {
            return Err(Errno::ETIMEDOUT);
        }
        let state = self.state.lock();
        let sent = state.inherited.calls.get(&unique).into_iter().flatten();
        match sent.rev().find(|sent| sent.command == command) {
            // Done twice, these come to the same: whoever asks holds the lock's gate.
            Some(sent) if sent.is_unknown && !note::IS_SAFE_TWICE.contains(&command) => Err(Errno::ETIMEDOUT),
            Some(sent) => Ok(sent.outcome.clone()),
            None => Ok(None),
        }
    }

    /// What came of a command that an earlier worker has sent for the system call that is being served. What
    /// it did the kernel shows by itself, so it is not replayed.
    ///
    /// # Errors
    /// ETIMEDOUT when that cannot be known: it may have been done, and must not be done again.
    pub(crate) async fn recall(&self, command: &Command, touches: &[Touch]) -> Result<Option<Outcome>> {
        let Some(outcome) = self.find_call(note::tag(command)).await? else { return Ok(None) };
        call::noted();
        let mut state = self.state.lock();
        state.inherited.calls.remove(&call::current());
        state.withdraw(touches);
        drop(state);
        self.work.notify_all();
        Ok(Some(outcome))
    }
}

impl State {
    /// Whether calls are on their way that the last worker has begun: what they did must not be shown twice.
    pub fn is_in_doubt(&self) -> bool {
        (!self.inherited.calls.is_empty() || !self.inherited.publishing.is_empty())
            && self.inherited.doubt_until.is_none_or(|until| Instant::now() < until)
    }

    /// It is known what came of that: what was published is not published once more.
    fn was_published(&mut self, publishing: Publishing) {
        let Publishing { fh, edits, appended, .. } = publishing;
        let is_done = match &publishing.outcome {
            Some(Outcome { revision, result: Ok(_) }) => {
                self.inherited.published = self.inherited.published.max(*revision);
                true
            }
            _ => false,
        };
        if !is_done && !publishing.is_unknown {
            return;
        }
        self.note(|| Note::Published(fh, edits));
        let node = match self.handles.writer(fh) {
            Some(writer) => {
                writer.published(edits, appended);
                writer.failed = !is_done;
                Some(writer.node)
            }
            // Nothing was written, so it is taken up when it is used next: it must not empty its file once more.
            None => {
                self.inherited.written.entry(fh).or_default().published = true;
                None
            }
        };
        if is_done {
            let ino = node.and_then(|node| self.kernel.ino(node));
            let at = ino.and_then(|ino| self.mirror.get(ino)).and_then(|node| node.at.clone());
            let touches: Vec<Touch> = ino.map(Touch::Ino).into_iter().chain(at.map(Touch::Name)).collect();
            self.withdraw(&touches);
        } else {
            // Whoever asks first is told.
            self.inherited.publishing.push(publishing);
        }
    }

    /// Changes that are not shown, because the kernel shows them by itself.
    fn withdraw(&mut self, touches: &[Touch]) {
        let mut own = Vec::new();
        for touch in touches {
            while let Some(net) = self.queue.withdraw(|net| concerns(net, touch)) {
                own.push(net);
            }
        }
        own.into_iter().for_each(|net| self.take_in_own(net));
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

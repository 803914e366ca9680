//! The state of a mount, and what changes it from the cluster's side.
//!
//! One lock holds the mirror, what the kernel knows, the open files and the replay queue: they have to
//! change together. It is never held over I/O or an await.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::client::ClientError;
use quorumfs_api::command::Command;
use quorumfs_api::denials::Denials;
use quorumfs_api::event::Event;
use quorumfs_api::key::{Key, Name};
use quorumfs_api::limits::VALUE_MAX_LIMIT;
use quorumfs_api::outcome::{Done, Outcome, Refusal};
use quorumfs_api::record::{Ino, Kind, LeaseId, Record, Revision};
use quorumfs_api::rights::{Access, Rights, Sight};
use quorumfs_api::style::EventStyle;
use tokio::sync::{Notify, watch};

use crate::attr::{self, Attr, Overrides};
use crate::errno::{Errno, Result};
use crate::handle::{Handles, Reader, same};
use crate::handover::journal::Journal;
use crate::handover::note::{Note, Row};
use crate::inherit::Inherited;
use crate::kernel::{Kernel, NodeId, Object, STAGE};
use crate::locked::Locked;
use crate::mirror::{At, Mirror, Net, OutOfStep, difference};
use crate::replay::expect::Replayer;
use crate::replay::queue::Queue;
use crate::report::{Link, Mounted};
use crate::rights::MountRights;
use crate::store::Store;

/// How long the kernel may believe what it was told: as good as for ever, because it is told of
/// every change.
pub const TTL: Duration = Duration::from_secs(3600);
/// How long a change is held back from the kernel, and a writer from opening a file, for the sake of
/// somebody who has just opened it through the page cache: he may read it in pieces, and must not get
/// pieces of two values. The kernel does not tell how far he has come, and the page cache has room for
/// one value, so somebody who takes longer can get pieces of two (SEMANTICS.md, edges).
pub const PASS: Duration = Duration::from_millis(100);
/// How often it is looked whether they are done.
const PASS_CHECK: Duration = Duration::from_micros(500);

/// How long a limit that a node told of is taken for granted: it may be raised.
const LIMIT_MEMORY: Duration = Duration::from_secs(60);

/// What a mount is told in `-o`, as far as the core is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Refuse every change.
    pub read_only: bool,
    /// Commit in each write.
    pub sync: bool,
    /// How long a system call may wait for the cluster.
    pub write_timeout: Duration,
    /// What is shown in place of owners and modes.
    pub shown: Overrides,
    /// How changes look in directories that do not say.
    pub events: EventStyle,
}

/// What a request to the store concerns: an event of our session that fits to one is the answer to a
/// system call that is under way, for which the kernel fires the events by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Touch {
    /// A name.
    Name(At),
    /// An object.
    Ino(Ino),
}

/// What the store answered: the revision and what was done, or why not.
pub type Answered = std::result::Result<(Revision, Done), Refusal>;

/// See the [module](self).
#[derive(Default)]
pub struct State {
    /// The tree.
    pub mirror: Mirror,
    /// How changes look in directories that do not say.
    pub events: EventStyle,
    /// What the kernel holds.
    pub kernel: Kernel,
    /// Open files.
    pub handles: Handles,
    /// What waits to be replayed.
    pub queue: Queue,
    /// Requests under way, with how many of each.
    pub inflight: HashMap<Touch, usize>,
    /// Files with a release that is still being published, with how many.
    pub settling: HashMap<NodeId, usize>,
    /// Locks taken through this mount.
    pub locked: Locked,
    /// What the kernel holds for names that a call under way here takes away or gives.
    pub believed: HashMap<At, Option<Ino>>,
    /// Names at which such a call met something else than the kernel holds.
    pub surprised: HashSet<At>,
    /// Who was asked to look up which name again before taking it away.
    pub looked_again: HashSet<(u32, At)>,
    /// The largest value that the nodes accept, from when they last refused a larger one.
    pub value_max: Option<(u64, Instant)>,
    /// What this mount may do, once it was told.
    pub rights: Option<MountRights>,
    /// The kernel has not been told yet of what the mirror has: nothing is replayed.
    pub held_back: bool,
    /// Of which files. Who reads them through the page cache still gets what the kernel believes in, with
    /// the length that goes with it.
    pub untold: HashSet<NodeId>,
    /// Files that are read through the page cache, of whose change the kernel was told: it takes the new
    /// value with the attributes that it asks for next, and not before.
    pub told: HashSet<NodeId>,
    /// Changes replayed or passed over since the start.
    pub replayed: u64,
    /// The kernel is connected: what changes from now on has to be shown to it.
    pub connected: bool,
    /// Where the next worker finds what it has to know, if there will be one.
    pub journal: Option<Arc<Journal>>,
    /// Version of each value that was noted for those who read it.
    pub kept: HashMap<Ino, u64>,
    /// What an earlier worker has left.
    pub inherited: Inherited,
}

/// Names that callers were sent to look up again and have not come back for; more than callers there are.
const LOOKED_AGAIN_MAX: usize = 4096;

/// Tells the kernel to forget what it cached. Must not block.
pub trait Invalidate: Send + Sync {
    /// The attributes of an inode, and by them its cached content. Answers whether the kernel holds it, as
    /// far as that can be known.
    fn inode(&self, node: NodeId) -> bool;
}

/// One mount.
pub struct Core {
    /// All that changes.
    pub state: Mutex<State>,
    /// Wakes the replayer.
    pub work: Condvar,
    /// Which requests are the replayer's.
    pub replayer: Replayer,
    /// The cluster.
    pub store: Arc<dyn Store>,
    /// What the mount was told.
    pub rules: Rules,
    /// How it was made, for the report.
    pub mounted: Mounted,
    /// From where the news come, for the report.
    pub link: Mutex<Link>,
    /// Up to which revision the mirror has come *and* the kernel was told.
    pub shown: watch::Sender<Revision>,
    /// Counts rounds of locks that were given up.
    pub unlocked: watch::Sender<u64>,
    /// A release was published.
    pub settled: Notify,
    /// When the leader could not be reached by a probe.
    pub down: Mutex<Option<Instant>>,
    /// What was denied goes to the log, but not without end.
    pub denials: Denials,
    /// Requests of the last worker are settled with the store: what came of them is known.
    pub settled_with_store: watch::Sender<bool>,
    /// The process that would replace this one; 0 if none would.
    supervisor: AtomicU32,
    journal: std::sync::OnceLock<Arc<Journal>>,
    invalidate: std::sync::OnceLock<Box<dyn Invalidate>>,
    stopping: AtomicBool,
}

impl Core {
    /// An empty mount of that store.
    pub fn new(store: Arc<dyn Store>, rules: Rules, mounted: Mounted) -> Arc<Core> {
        Arc::new(Core {
            state: Mutex::new(State { events: rules.events, ..State::default() }),
            work: Condvar::new(),
            replayer: Replayer::default(),
            store,
            rules,
            link: Mutex::new(Link { node: None, since: mounted.since, problem: None }),
            mounted,
            shown: watch::Sender::new(0),
            unlocked: watch::Sender::new(0),
            settled: Notify::new(),
            down: Mutex::new(None),
            denials: Denials::default(),
            settled_with_store: watch::Sender::new(true),
            supervisor: AtomicU32::new(0),
            journal: std::sync::OnceLock::new(),
            invalidate: std::sync::OnceLock::new(),
            stopping: AtomicBool::new(false),
        })
    }

    /// The kernel can be told from here on.
    pub fn connect(&self, invalidate: Box<dyn Invalidate>) {
        self.set_invalidate(invalidate);
        self.state.lock().connected = true;
    }

    /// The kernel can be told; what it has to be shown is another matter.
    pub fn set_invalidate(&self, invalidate: Box<dyn Invalidate>) {
        let _ = self.invalidate.set(invalidate);
    }

    /// From here on it is noted for a next worker what this one does.
    pub fn set_journal(&self, journal: Arc<Journal>) {
        self.state.lock().journal = Some(journal.clone());
        let _ = self.journal.set(journal);
    }

    /// That process would replace this one if it ended; `None` if none would any more.
    pub fn set_supervisor(&self, pid: Option<u32>) {
        self.supervisor.store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    /// See [`Core::set_supervisor`].
    pub fn supervisor(&self) -> Option<u32> {
        Some(self.supervisor.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Where that is noted.
    pub fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.get()
    }

    /// Ends the replayer, and everything that waits.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // Whoever is about to wait has looked at the flag under this lock.
        drop(self.state.lock());
        self.work.notify_all();
    }

    /// Whether [`Core::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The news come from that node now; or from none, for that reason.
    pub fn linked(&self, news: std::result::Result<String, String>) {
        let since = crate::report::unix_ms(SystemTime::now());
        let (node, problem) = match news {
            Ok(node) => (Some(node), None),
            Err(problem) => (None, Some(problem)),
        };
        let mut link = self.link.lock();
        // Another reason for the same silence is no new beginning.
        let since = if link.node == node { link.since } else { since };
        *link = Link { node, since, problem };
    }

    /// Takes in events.
    pub async fn events(&self, events: Vec<Event>) -> std::result::Result<(), OutOfStep> {
        let mut stale = HashSet::new();
        let mut unlocked = false;
        let revision = {
            let mut state = self.state.lock();
            let state = &mut *state;
            for event in events {
                let ours = event.session.is_some_and(|session| self.store.is_own(session));
                let net = state.mirror.apply(event)?;
                let own = ours && net.iter().any(|net| state.is_asked(net)) && !state.is_surprised(&net);
                let swaps = state.swaps(&net);
                for net in net {
                    unlocked |= matches!(net, Net::Unlocked { .. });
                    state.take_in(net, own, &mut stale);
                }
                state.swap(swaps);
            }
            state.hold_back(&stale);
            let revision = state.mirror.revision;
            state.note(|| Note::Shown(revision));
            revision
        };
        self.publish(revision, stale, unlocked).await;
        Ok(())
    }

    /// What this mount may do from here on, below the prefix that it shows.
    pub fn may(&self, prefix: &Key, rights: Rights) {
        if rights.sight(prefix) == Sight::Hidden {
            tracing::warn!(
                "nothing is shown: {}",
                rights.refusal("this mount", "read", prefix, Access::Read)
            );
        }
        self.state.lock().rights = Some(MountRights { prefix: prefix.clone(), rights });
    }

    /// Refuses what the policy would refuse later, when it may be too late for the program to notice.
    pub fn check_write(&self, state: &State, dir: Ino, name: Option<&Name>) -> Result<()> {
        let Some(rights) = &state.rights else { return Ok(()) };
        rights.check_write(&state.mirror, dir, name).map_err(|why| {
            self.denials.log(&why);
            Errno::EACCES
        })
    }

    /// Nothing more happened up to that revision.
    pub async fn progress(&self, revision: Revision) {
        {
            let mut state = self.state.lock();
            state.mirror.revision = state.mirror.revision.max(revision);
        }
        self.publish(revision, HashSet::new(), false).await;
    }

    /// Takes a new copy in place of the tree, and shows what is different.
    pub async fn replace(&self, new: Mirror) {
        let mut stale = HashSet::new();
        let revision = {
            let mut state = self.state.lock();
            let state = &mut *state;
            // The first copy comes before the kernel knows anything: there is nothing to show.
            let first = !state.connected || state.mirror.is_empty() && state.kernel.held().next().is_none();
            let net = if first { Vec::new() } else { difference(&state.mirror, &new) };
            state.mirror = new;
            let swaps = state.swaps(&net);
            for net in net {
                state.take_in(net, false, &mut stale);
            }
            state.swap(swaps);
            let root = state.mirror.get(Ino::ROOT).map(|node| Row::of(None, &node.record));
            if let Some(root) = root.filter(|_| state.connected) {
                state.note(|| Note::Made(root));
            }
            // Times and counts of directories change without a word of their own.
            stale.extend(state.kernel.held());
            state.hold_back(&stale);
            state.mirror.revision
        };
        self.publish(revision, stale, true).await;
    }

    /// Tells the kernel, then whoever waits, then the replayer.
    async fn publish(&self, revision: Revision, stale: HashSet<NodeId>, unlocked: bool) {
        let begun = Instant::now();
        while begun.elapsed() < PASS && self.is_being_read(&stale) {
            tokio::time::sleep(PASS_CHECK).await;
        }
        if let Some(kernel) = self.invalidate.get() {
            let mut nodes: Vec<NodeId> = stale.iter().copied().collect();
            nodes.append(&mut self.state.lock().kernel.take_doubtful());
            nodes.retain(|node| !kernel.inode(*node));
            if !nodes.is_empty() {
                let mut state = self.state.lock();
                nodes.into_iter().for_each(|node| state.kernel.is_unknown(node));
            }
        }
        self.state.lock().told_of(stale);
        self.bring_journal_down();
        self.shown.send_if_modified(|shown| {
            let newer = revision > *shown;
            *shown = revision.max(*shown);
            newer
        });
        if unlocked {
            self.unlocked.send_modify(|rounds| *rounds += 1);
        }
        self.state.lock().held_back = false;
        self.work.notify_all();
    }

    /// Whether somebody is in the middle of a value that is not the newest any more.
    fn is_being_read(&self, stale: &HashSet<NodeId>) -> bool {
        let state = self.state.lock();
        stale.iter().any(|node| {
            let mut behind = state.behind(*node);
            behind.any(|reader| reader.opened.elapsed() < PASS)
        })
    }

    /// Before a file is opened for writing: the kernel takes lengths of unpublished values for the file's
    /// own, so let those end who read it through the page cache. Who opens it from now on reads past that.
    pub async fn let_readers_end(&self, node: NodeId) {
        let begun = Instant::now();
        let is_read = || {
            let mut state = self.state.lock();
            if let Some(ino) = state.kernel.ino(node) {
                state.kernel.value_changed(ino, Instant::now());
            }
            state.handles.cached(node).any(|reader| reader.opened.elapsed() < PASS)
        };
        while is_read() && begun.elapsed() < PASS {
            tokio::time::sleep(PASS_CHECK).await;
        }
    }

    /// Waits until this mount shows a revision.
    pub async fn wait_for(&self, revision: Revision, deadline: Instant) -> Result<()> {
        let mut shown = self.shown.subscribe();
        match tokio::time::timeout_at(deadline.into(), shown.wait_for(|shown| *shown >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Errno::ETIMEDOUT),
        }
    }

    /// When a call that begins now has to be answered.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.rules.write_timeout
    }

    /// Does a command and waits until this mount shows it: durable, and read by whoever asked for it.
    /// The outer result says whether the cluster was reached in time.
    pub async fn propose(&self, touches: Vec<Touch>, command: Command) -> Result<Answered> {
        self.propose_in(None, touches, command).await
    }

    /// As [`Core::propose`], and in that session or not at all: ENOLCK once it has ended, because a lock was
    /// held in it.
    pub async fn propose_in(
        &self,
        fence: Option<LeaseId>,
        touches: Vec<Touch>,
        command: Command,
    ) -> Result<Answered> {
        let deadline = self.deadline();
        let asked = Asked::new(self, touches);
        let written = match self.recall(&command, &asked.touches).await {
            Some(outcome) => Ok(outcome),
            None => self.store.write(fence, command, self.rules.write_timeout).await,
        };
        let outcome = match written {
            Ok(outcome) => outcome,
            Err(ClientError::SessionLost { .. }) if fence.is_some() => return Err(Errno::ENOLCK),
            Err(error) => {
                tracing::debug!(%error, "a change could not be made");
                return Err(Errno::from(&error));
            }
        };
        let Outcome { revision, result } = outcome;
        match result {
            Ok(done) => {
                self.wait_for(revision, deadline).await?;
                Ok(Ok((revision, done)))
            }
            Err(refusal) => {
                match &refusal {
                    Refusal::ValueTooLarge { limit, .. } => {
                        self.state.lock().value_max = Some((*limit, Instant::now()));
                    }
                    Refusal::Denied(why) => self.denials.log(why),
                    Refusal::BadPolicy(_) => tracing::error!("{refusal}"),
                    _ => {}
                }
                // A refusal is about the tree of that revision: the caller may look at it next.
                let _ = self.wait_for(revision, deadline).await;
                Ok(Err(refusal))
            }
        }
    }

    /// As [`Core::propose`], with a refusal as an error number.
    pub async fn commit(&self, touches: Vec<Touch>, command: Command) -> Result<Done> {
        match self.propose(touches, command).await? {
            Ok((_, done)) => Ok(done),
            Err(refusal) => Err(Errno::from(&refusal)),
        }
    }

    /// This is the session from here on: what was locked in those before is lost.
    pub fn enter_session(&self, now: LeaseId) {
        let lost = self.state.lock().locked.change_session(now);
        if lost > 0 {
            tracing::warn!(
                lost,
                "the cluster did not hear of this host in time: locks of its programs are gone, and others may \
                 hold them; what is written through their descriptors is refused until they unlock"
            );
        }
    }

    /// Follows the sessions. Ends with the store.
    pub async fn follow_sessions(self: Arc<Core>) {
        let mut sessions = self.store.sessions();
        loop {
            let now = *sessions.borrow_and_update();
            if let Some(now) = now {
                self.enter_session(now);
                // Whoever waits does so in the new session.
                self.unlocked.send_modify(|rounds| *rounds += 1);
            }
            if sessions.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until this mount shows all that was committed anywhere before the call.
    pub async fn barrier(&self) -> Result<()> {
        if planted(Bug::NoBarrier) {
            return Ok(());
        }
        let deadline = self.deadline();
        let revision =
            self.store.barrier(self.rules.write_timeout).await.map_err(|error| Errno::from(&error))?;
        self.wait_for(revision, deadline).await
    }
}

/// What the kernel holds for the names of a call, for as long as the call is under way.
pub struct Believed<'a> {
    core: &'a Core,
    names: Vec<At>,
}

impl<'a> Believed<'a> {
    /// Notes what everybody finds there now, which is what the kernel was told last.
    pub fn new(core: &'a Core, state: &mut State, names: Vec<At>) -> Believed<'a> {
        for at in &names {
            let ino = state.mirror.child(at.0, &at.1);
            state.believed.insert(at.clone(), ino);
        }
        Believed { core, names }
    }

    /// What the kernel is told in the end.
    pub fn verdict(&self) -> Result<()> {
        let mut state = self.core.state.lock();
        let mut any = false;
        for at in &self.names {
            any |= state.surprised.remove(at);
        }
        if any { Err(Errno::ESTALE) } else { Ok(()) }
    }
}

impl Drop for Believed<'_> {
    fn drop(&mut self) {
        let mut state = self.core.state.lock();
        for at in &self.names {
            state.believed.remove(at);
            state.surprised.remove(at);
        }
    }
}

/// A request that is under way, for as long as it lives.
struct Asked<'a> {
    core: &'a Core,
    touches: Vec<Touch>,
}

impl<'a> Asked<'a> {
    fn new(core: &'a Core, touches: Vec<Touch>) -> Asked<'a> {
        let mut state = core.state.lock();
        for touch in &touches {
            *state.inflight.entry(touch.clone()).or_default() += 1;
        }
        drop(state);
        Asked { core, touches }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.core.state.lock();
        for touch in &self.touches {
            if let Some(count) = state.inflight.get_mut(touch) {
                *count -= 1;
                if *count == 0 {
                    state.inflight.remove(touch);
                }
            }
        }
    }
}

impl State {
    /// The largest value that can be written, as far as it is known.
    pub fn value_limit(&self) -> u64 {
        match self.value_max {
            Some((limit, learned)) if learned.elapsed() < LIMIT_MEMORY => limit,
            _ => VALUE_MAX_LIMIT,
        }
    }

    /// Whether a system call that is under way here asked for this change. One that was given up
    /// before it was done is not: the kernel fired nothing for it.
    fn is_asked(&self, net: &Net) -> bool {
        let asked = |touch: Touch| self.inflight.contains_key(&touch);
        match net {
            Net::Create { at, .. } | Net::Remove { at, .. } => asked(Touch::Name(at.clone())),
            Net::Rename { from, .. } => asked(Touch::Name(from.clone())),
            Net::Update { ino } | Net::Attr { ino } => {
                let at = self.mirror.get(*ino).and_then(|node| node.at.clone());
                asked(Touch::Ino(*ino)) || at.is_some_and(|at| asked(Touch::Name(at)))
            }
            Net::Unlocked { ino } => asked(Touch::Ino(*ino)),
            Net::Swap { .. } => false,
        }
    }

    /// Whether a change that was asked for here met a directory, or took something away, that is not what the
    /// kernel holds for that name. The caller is told to look again, and the change is replayed as others' are:
    /// if the kernel went on with what it holds, a living directory would be dead for it.
    fn is_surprised(&mut self, changes: &[Net]) -> bool {
        let mut surprised = Vec::new();
        for net in changes {
            match net {
                Net::Remove { at, record } if self.is_other(at, Some(record.ino)) => surprised.push(at),
                Net::Rename { from, to, ino, replaced, exchanged } => {
                    if self.is_other(from, Some(*ino)) {
                        surprised.push(from);
                    }
                    let there = replaced.as_ref().map(|record| record.ino).or(*exchanged);
                    if self.is_other(to, there) && (exchanged.is_some() || self.believes_in_dir(to)) {
                        surprised.push(from);
                    }
                }
                _ => {}
            }
        }
        let any = !surprised.is_empty();
        self.surprised.extend(surprised.into_iter().cloned());
        any
    }

    fn is_other(&self, at: &At, met: Option<Ino>) -> bool {
        self.believed.get(at).is_some_and(|believed| *believed != met)
    }

    fn believes_in_dir(&self, at: &At) -> bool {
        // What is gone may have been one.
        let kind = |ino: Ino| self.mirror.get(ino).map_or(Kind::Dir, |node| node.record.kind);
        self.believed.get(at).copied().flatten().is_some_and(|ino| kind(ino) == Kind::Dir)
    }

    /// Before a name is taken away: if changes of it are not shown yet, what the kernel holds for it may be
    /// old. It looks a name up again when it is told that it is stale, and asks again.
    pub fn look_again(&mut self, pid: u32, at: &At) -> Result<()> {
        let asked = (pid, at.clone());
        if self.looked_again.remove(&asked) || !self.queue.is_pending(at) {
            return Ok(());
        }
        if self.looked_again.len() >= LOOKED_AGAIN_MAX {
            self.looked_again.clear();
        }
        self.looked_again.insert(asked);
        Err(Errno::ESTALE)
    }

    /// What a change of the tree means for what the kernel holds, and for the replay.
    pub(crate) fn take_in(&mut self, net: Net, own: bool, stale: &mut HashSet<NodeId>) {
        if !self.connected {
            return;
        }
        let mut show = |kernel: &Kernel, ino: Ino| stale.extend(kernel.nodes(ino));
        let mut was_private = false;
        match &net {
            Net::Create { at, ino, kind } => {
                show(&self.kernel, at.0);
                was_private = *kind == Kind::File && self.kernel.private_at(at).is_some();
                self.came_to_be(at, *ino, *kind);
                self.kernel.value_changed(*ino, Instant::now());
                show(&self.kernel, *ino);
            }
            Net::Update { ino } => {
                self.kernel.value_changed(*ino, Instant::now());
                show(&self.kernel, *ino);
            }
            Net::Attr { ino } => show(&self.kernel, *ino),
            Net::Remove { at, record } => {
                show(&self.kernel, at.0);
                show(&self.kernel, record.ino);
                self.orphan(record);
            }
            Net::Rename { from, to, ino, replaced, exchanged } => {
                for ino in [Some(from.0), Some(to.0), Some(*ino), *exchanged].into_iter().flatten() {
                    show(&self.kernel, ino);
                }
                if let Some(record) = replaced {
                    show(&self.kernel, record.ino);
                    self.orphan(record);
                }
                if let Some(kind) = self.mirror.get(*ino).map(|node| node.record.kind) {
                    self.came_to_be(to, *ino, kind);
                }
            }
            Net::Unlocked { .. } | Net::Swap { .. } => {}
        }
        if own && !self.queue.concerns(&net) {
            return self.take_in_own(net);
        }
        if let (Net::Create { at, ino, .. }, true) = (&net, was_private) {
            self.note_name(at, *ino);
        }
        match net {
            // The kernel has fired the creation when the private file was made. What is new is the value.
            Net::Create { ino, .. } if was_private => self.queue.push(Net::Update { ino }),
            net => self.queue.push(net),
        }
    }

    /// The mirror has what the kernel was not told of yet.
    fn hold_back(&mut self, stale: &HashSet<NodeId>) {
        self.held_back = true;
        self.untold.extend(stale);
    }

    /// Those who read a file through the page cache and are to get another value than it has now.
    fn behind(&self, node: NodeId) -> impl Iterator<Item = &Reader> {
        let now = self.published(node);
        self.handles
            .cached(node)
            .filter(move |reader| now.as_ref().is_some_and(|now| !same(now, &reader.value)))
    }

    /// The kernel was told of these.
    fn told_of(&mut self, stale: HashSet<NodeId>) {
        for node in stale {
            self.untold.remove(&node);
            if self.behind(node).next().is_some() {
                self.told.insert(node);
            }
        }
    }

    /// The kernel asks for the attributes of a file. If it knows that they are old, it takes them together
    /// with the value that they are of.
    pub fn catch_up(&mut self, node: NodeId) {
        if self.told.remove(&node) {
            self.refresh(node);
        }
    }

    /// Who reads a file through the page cache gets what it has now from now on.
    pub fn refresh(&mut self, node: NodeId) {
        if let Some(record) = self.record(node) {
            let (value, times) = (record.value.clone(), (record.mtime, record.ctime));
            self.handles.refresh(node, &value, times);
        }
    }

    /// What a file holds for others, or held when it lost its name.
    pub fn published(&self, node: NodeId) -> Option<Bytes> {
        self.record(node).map(|record| record.value.clone())
    }

    fn record(&self, node: NodeId) -> Option<&Record> {
        match self.kernel.resolve(node, &self.mirror) {
            Object::Real(ino) => Some(&self.mirror.get(ino)?.record),
            Object::Orphan => self.kernel.orphaned(node),
            Object::Private | Object::Link | Object::Gone => None,
        }
    }

    /// While the kernel is not told of a new value, it gets the attributes of the old one: with the
    /// length of the one and the bytes of the other, a reader would get a part.
    fn as_told(&self, attr: Attr) -> Attr {
        let node = attr.node;
        let reader = if self.untold.contains(&node) { self.behind(node).next() } else { None };
        reader.map_or(attr, |reader| Attr {
            size: reader.value.len() as u64,
            mtime: attr::time(reader.times.0),
            ctime: attr::time(reader.times.1),
            ..attr
        })
    }

    /// The kernel has fired the events of a local change by itself. Where changes are to look like renames,
    /// programs of this host wait for one as well: until it has come, their value is not noted as shown.
    pub(crate) fn take_in_own(&mut self, net: Net) {
        let renames = |dir: Ino| self.style(dir) == EventStyle::Rename;
        let parent = |ino: Ino| self.mirror.get(ino).and_then(|node| node.at.as_ref()).map(|at| at.0);
        match net {
            Net::Create { at, ino, kind: Kind::File } if renames(at.0) => {
                self.note_name(&at, ino);
                self.queue.push(Net::Update { ino });
            }
            Net::Update { ino } if parent(ino).is_some_and(renames) => self.queue.push(net),
            // This is the rename that they wait for.
            Net::Rename { ref to, ino, .. } if renames(to.0) => {
                self.note_all(&self.notes_of(&net));
                if self.queue.drop_update(ino) {
                    self.note_all(&self.notes_of(&Net::Update { ino }));
                }
            }
            net => self.note_all(&self.notes_of(&net)),
        }
    }

    /// How changes in that directory look.
    pub fn style(&self, dir: Ino) -> EventStyle {
        self.mirror.style(dir).unwrap_or(self.events)
    }

    /// The directories with a `..data` in which something changed, each once.
    pub(crate) fn swaps(&self, changes: &[Net]) -> BTreeSet<Ino> {
        let parent = |ino: &Ino| self.mirror.get(*ino).and_then(|node| node.at.as_ref()).map(|at| at.0);
        let dirs = changes.iter().flat_map(|net| match net {
            Net::Create { at, .. } | Net::Remove { at, .. } => [Some(at.0), None],
            Net::Rename { from, to, .. } => [Some(from.0), Some(to.0)],
            Net::Update { ino } | Net::Attr { ino } => [parent(ino), None],
            Net::Unlocked { .. } | Net::Swap { .. } => [None, None],
        });
        dirs.flatten().filter(|dir| self.style(*dir) == EventStyle::Swap).collect()
    }

    /// Attributes of a number as everybody sees them.
    pub fn attr(&self, node: NodeId, shown: &Overrides) -> Option<Attr> {
        match self.kernel.resolve(node, &self.mirror) {
            Object::Real(ino) => self.attr_as(ino, node, shown),
            Object::Private => Some(Attr::of(&self.kernel.private(node)?.record, node, 0, shown)),
            Object::Orphan => self.kernel.orphaned(node).map(|record| orphan_attr(record, node, shown)),
            Object::Link => Some(Attr::of(self.kernel.link(node)?, node, 0, shown)),
            Object::Gone if node == STAGE => {
                // The kernel asks whether the replayer may take something away there, whoever it runs as.
                Some(Attr { mode: 0o777, ..Attr::of(&missing_root(), node, 0, shown) })
            }
            Object::Gone if node == Ino::ROOT.0 => Some(Attr::of(&missing_root(), node, 0, shown)),
            Object::Gone => None,
        }
    }

    /// Attributes of something in the tree.
    pub fn attr_of(&self, ino: Ino, shown: &Overrides) -> Option<Attr> {
        self.attr_as(ino, self.kernel.node(ino), shown)
    }

    /// The same under one of its numbers: each has readers of its own.
    pub fn attr_as(&self, ino: Ino, number: NodeId, shown: &Overrides) -> Option<Attr> {
        let node = self.mirror.get(ino)?;
        let subdirs = node.dir.as_ref().map_or(0, |dir| dir.subdirs);
        Some(self.as_told(Attr::of(&node.record, number, subdirs, shown)))
    }
}

/// What has no name has no links.
pub fn orphan_attr(record: &Record, node: NodeId, shown: &Overrides) -> Attr {
    Attr { nlink: 0, ..Attr::of(record, node, 0, shown) }
}

/// What is shown while the mounted prefix does not exist: an empty directory that nobody can write.
fn missing_root() -> Record {
    use quorumfs_api::record::Timestamp;
    Record {
        ino: Ino::ROOT,
        kind: Kind::Dir,
        mode: 0o555,
        uid: 0,
        gid: 0,
        atime: Timestamp(0),
        mtime: Timestamp(0),
        ctime: Timestamp(0),
        create_revision: 0,
        mod_revision: 0,
        version: 0,
        lease: None,
        author: String::new(),
        xattrs: Vec::new(),
        value: Bytes::new(),
    }
}

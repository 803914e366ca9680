//! One mount: what comes from the cluster goes into its [state](crate::state), then to the kernel, then to the replayer;
//! what programs ask for goes to the cluster.
//!
//! The state has one lock, because its parts have to change together. It is never held over I/O or an await.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use quorumfs_api::bug::{Bug, planted};
use quorumfs_api::client::ClientError;
use quorumfs_api::command::Command;
use quorumfs_api::denials::Denials;
use quorumfs_api::event::Event;
use quorumfs_api::key::{Key, Name};
use quorumfs_api::outcome::{Done, Outcome, Refusal};
use quorumfs_api::record::{Ino, LeaseId, Revision};
use quorumfs_api::rights::{Access, Rights, Sight};
use quorumfs_api::style::EventStyle;
use tokio::sync::{Notify, watch};

use crate::asked::Asked;
use crate::attr::Overrides;
use crate::errno::{Errno, Result};
use crate::handover::journal::Journal;
use crate::handover::note::{Note, Row};
use crate::kernel::NodeId;
use crate::mirror::{Mirror, Net, OutOfStep, difference};
use crate::replay::expect::Replayer;
use crate::report::{Link, Mounted};
use crate::rights::MountRights;
use crate::state::{State, Touch};
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

/// What the store answered: the revision and what was done, or why not.
pub type Answered = std::result::Result<(Revision, Done), Refusal>;

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
        let written = match self.recall(&command, &asked.touches).await? {
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

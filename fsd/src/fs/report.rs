//! The directory `/.quorumfs` of a mount, merged with the store's own directory of that name if there is one.
//!
//! Its names are found and not listed; no entry for one outlives the moment, so that the kernel asks again, and the
//! replayer, which sees the store's names only, can make and remove those.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use quorumfs_api::command::{Command, Owner};
use quorumfs_api::key::Name;
use quorumfs_api::record::{Ino, Kind};

use super::{Entry, Fs, Opened};
use crate::errno::{Errno, Result};
use crate::handle::{Handle, Listed, Reader};
use crate::kernel::{NodeId, Object};
use crate::mirror::At;
use crate::report::{
    self, Cluster, Daemon, File, Member, Mirror, Open, Replay, Report, Said, Session, UnixMs, unix_ms,
};
use crate::state::State;

/// How long a report waits for the cluster.
const ASK_TIMEOUT: Duration = Duration::from_millis(700);

/// An instant of the past for the report.
fn instant_ms(at: Instant) -> UnixMs {
    unix_ms(SystemTime::now() - at.elapsed())
}

/// Memory of this process in bytes; 0 where /proc does not say.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    resident.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// The store's directory of that name, which shows through.
fn stored_dir(state: &State) -> Option<Ino> {
    let name = Name::new(report::DIR_NAME).ok()?;
    let ino = state.mirror.child(Ino::ROOT, &name)?;
    state.mirror.dir(ino).map(|_| ino)
}

/// Whether a directory of the tree is the store's own `/.quorumfs`.
fn is_stored_dir(state: &State, dir: Ino) -> bool {
    let at = state.mirror.get(dir).and_then(|node| node.at.as_ref());
    at.is_some_and(|(parent, name)| *parent == Ino::ROOT && name.as_bytes() == report::DIR_NAME)
}

/// Whether a name of the tree is one that this mount gives a meaning of its own.
pub(super) fn is_reserved(state: &State, at: &At) -> bool {
    match at.0 {
        Ino::ROOT => at.1.as_bytes() == report::DIR_NAME,
        dir => File::named(at.1.as_bytes()).is_some() && is_stored_dir(state, dir),
    }
}

/// What a listing of a directory is to hold in place of `names`, which are those of the tree.
pub(super) fn listed(state: &State, node: NodeId, names: &mut Vec<Listed>) {
    let object = state.kernel.resolve(node, &state.mirror);
    match object {
        Object::Real(Ino::ROOT) => {
            names
                .retain(|listed| listed.name.as_ref().is_none_or(|name| name.as_bytes() != report::DIR_NAME));
        }
        Object::Real(dir) if !is_stored_dir(state, dir) => {}
        Object::Real(_) => {
            names.retain(|listed| {
                listed.name.as_ref().is_none_or(|name| File::named(name.as_bytes()).is_none())
            });
            names.extend(files());
        }
        _ if node == report::DIR => {
            let dots = [node, Ino::ROOT.0].map(|node| Listed { node, kind: Kind::Dir, name: None });
            names.extend(dots);
            names.extend(files());
        }
        _ => {}
    }
}

fn files() -> impl Iterator<Item = Listed> {
    File::ALL.into_iter().filter_map(|file| {
        let name = Name::new(file.name()).ok()?;
        Some(Listed { node: file.node(), kind: Kind::File, name: Some(name) })
    })
}

impl Fs {
    /// Attributes of the directory or a file of it.
    pub(super) fn own_attr(&self, node: NodeId) -> Option<crate::attr::Attr> {
        report::is_own(node).then(|| report::attr(node, SystemTime::now(), &self.core.rules.shown))?
    }

    fn give_own(&self, state: &mut State, node: NodeId) -> Result<Entry> {
        let attr = self.own_attr(node).ok_or(Errno::ENOENT)?;
        state.kernel.looked_up(node);
        Ok(Entry { attr, name_ttl: Duration::ZERO, attr_ttl: Duration::ZERO })
    }

    /// The entry of a name that is ours; `None` where the tree has to be asked.
    pub(super) fn lookup_own(&self, state: &mut State, parent: NodeId, name: &[u8]) -> Option<Result<Entry>> {
        if parent == report::DIR {
            return Some(match File::named(name) {
                Some(file) => self.give_own(state, file.node()),
                // Whoever came in before the store had one looks again, and comes into that.
                None if stored_dir(state).is_some() => Err(Errno::ESTALE),
                None => Err(Errno::ENOENT),
            });
        }
        match state.kernel.resolve(parent, &state.mirror) {
            Object::Real(Ino::ROOT) if name == report::DIR_NAME && stored_dir(state).is_none() => {
                Some(self.give_own(state, report::DIR))
            }
            Object::Real(dir) if is_stored_dir(state, dir) => {
                File::named(name).map(|file| self.give_own(state, file.node()))
            }
            _ => None,
        }
    }

    /// Before a name is made, taken away or moved: those of the mount stay as they are. In a directory that is
    /// only this mount's nothing can be made; where all of the store is mounted, the store gets such a
    /// directory then, and the caller is sent into it.
    pub(super) async fn check_name(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let (mounts_all, stored) = {
            let state = self.core.state.lock();
            let stored = stored_dir(&state);
            let reserved = match state.kernel.resolve(parent, &state.mirror) {
                Object::Real(Ino::ROOT) => name == report::DIR_NAME,
                Object::Real(dir) => File::named(name).is_some() && is_stored_dir(&state, dir),
                _ if parent == report::DIR => File::named(name).is_some(),
                _ => false,
            };
            if reserved {
                return Err(Errno::EPERM);
            }
            if parent != report::DIR {
                return Ok(());
            }
            (self.core.mounted.prefix == "/", stored.is_some())
        };
        if stored {
            return Err(Errno::ESTALE);
        }
        if !mounts_all {
            return Err(Errno::EPERM);
        }
        let key = [b"/", report::DIR_NAME].concat();
        let key = quorumfs_api::key::Key::parse(key).map_err(|error| Errno::from(&error))?;
        let command = Command::Mkdir { at: key.into(), parents: true, owner: Owner::DIR };
        self.core.commit(Vec::new(), command).await?;
        Err(Errno::ESTALE)
    }

    /// Opens a file of the directory: its content is made now.
    pub(super) async fn open_own(&self, node: NodeId, for_writing: bool) -> Result<Opened> {
        let file = File::numbered(node).ok_or(Errno::EISDIR)?;
        if for_writing {
            return Err(Errno::EPERM);
        }
        let content = Bytes::from(file.content(&self.report(file.asks_the_cluster()).await));
        let mut state = self.core.state.lock();
        let fh = state.handles.add(Handle::Reader(Reader::new(node, content, 0, Default::default(), true)));
        Ok(Opened { fh, direct: true, keep_cache: false, no_flush: true })
    }

    /// What is known of this mount now.
    pub async fn report(&self, ask: bool) -> Report {
        let store = &self.core.store;
        let asked = match ask {
            true => Some(tokio::join!(store.barrier(ASK_TIMEOUT), store.status(ASK_TIMEOUT))),
            false => None,
        };
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION").to_string(),
            at: unix_ms(SystemTime::now()),
            mount: self.core.mounted.clone(),
            daemon: Daemon { pid: std::process::id(), memory: memory(), supervisor: self.core.supervisor() },
            link: self.core.link.lock().clone(),
            ..Report::default()
        };
        report.session = store.session().map(|id| Session {
            id: id.to_string(),
            valid_ms: store
                .session_left()
                .map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        });
        {
            let state = self.core.state.lock();
            report.replay = Replay { waiting: state.queue.len() as u64, done: state.replayed };
            report.open = Open { handles: state.handles.len() as u64, locks: state.locked.len() as u64 };
            // All but the directory that is mounted.
            report.mirror.keys = (state.mirror.len() as u64).saturating_sub(1);
        }
        report.mirror.revision = *self.core.shown.borrow();
        if let Some((barrier, status)) = asked {
            let there = match (&barrier, &status) {
                (Ok(revision), _) => Some(*revision),
                (Err(_), Ok(status)) => Some(status.revision),
                (Err(_), Err(_)) => None,
            };
            report.mirror =
                Mirror { lag: there.map(|r| r.saturating_sub(report.mirror.revision)), ..report.mirror };
            report.cluster = cluster(barrier.err(), status.ok(), store.last_contact());
        }
        report
    }
}

fn cluster(
    problem: Option<quorumfs_api::client::ClientError>,
    status: Option<quorumfs_api::wire::Status>,
    last_contact: Option<Instant>,
) -> Cluster {
    let quorum = problem.is_none();
    let said = status.map(|status| Said {
        by: status.name,
        term: status.term,
        revision: status.revision,
        keys: status.keys,
        bytes: status.store_bytes,
        bytes_max: status.store_max,
        members: status
            .members
            .into_iter()
            .map(|member| Member {
                // A node that is cut off still believes in the leader that it knew.
                leader: quorum && status.leader == Some(member.id),
                id: member.id,
                name: member.name,
                addr: member.addr,
                voter: member.voter,
            })
            .collect(),
    });
    let without_quorum_since = last_contact.filter(|_| !quorum).map(instant_ms);
    Cluster { quorum, without_quorum_since, problem: problem.map(|error| error.to_string()), said }
}

//! A program that follows a directory tree by inotify alone.
//!
//! A path is a bad name for a directory while others rename: by the time an event is read, its path
//! may lead elsewhere. So this program holds a descriptor of each directory, watches what the descriptor
//! stands for, and looks names up in it: every event is of a name in one certain directory.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::ReadFlags;
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;

use crate::inotify::{Event, Inotify};
use crate::tree::{Entry, Tree};

/// The CREATE of this name at the top ends a run. What begins so is passed over otherwise.
pub const END: &str = "~end";
/// The number by which the top directory goes here, whatever its own is.
pub const TOP: u64 = 0;

/// A name in a directory, which is given by its inode number.
pub type Slot = (u64, OsString);

/// What a name stands for.
#[derive(Clone, PartialEq, Eq)]
pub enum Node {
    /// The directory with this inode number.
    Dir(u64),
    /// A file with this content.
    File(Vec<u8>),
    /// A symlink to this.
    Symlink(PathBuf),
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Node::Dir(number) => write!(f, "directory {number}"),
            Node::File(value) => {
                write!(
                    f,
                    "{} bytes {:?}",
                    value.len(),
                    String::from_utf8_lossy(&value[..value.len().min(12)])
                )
            }
            Node::Symlink(to) => write!(f, "symlink to {to:?}"),
        }
    }
}

/// All names.
pub type Graph = BTreeMap<Slot, Node>;

/// What an event says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// CREATE.
    Created,
    /// MODIFY.
    Modified,
    /// DELETE.
    Deleted,
    /// MOVED_FROM.
    Left,
    /// MOVED_TO.
    Came,
    /// CLOSE_WRITE. On the writer's own host the value is there only now: MODIFY is fired by the write
    /// itself, which nobody sees yet.
    Closed,
    /// Nothing: a directory was looked through.
    Scan,
}

/// One event, and what a look at its name gave right then.
#[derive(Clone, Debug)]
pub struct Observation {
    /// What the event said.
    pub said: Said,
    /// Of which name.
    pub slot: Slot,
    /// What was there.
    pub seen: Option<Node>,
}

/// What a run has found.
pub struct Log {
    /// All names as the events tell them.
    pub model: Graph,
    /// All that was seen, in order.
    pub observations: Vec<Observation>,
    /// How many events came.
    pub events: usize,
}

/// The program.
pub struct Follower {
    end: String,
    inotify: Inotify,
    /// Directory of each watch.
    watches: HashMap<i32, u64>,
    /// Descriptor of each directory. They are kept to the end: there is no telling by which name a
    /// directory that is gone will be asked for.
    directories: HashMap<u64, OwnedFd>,
    /// What left its place and has not come anywhere yet, by cookie.
    limbo: HashMap<u32, Option<Node>>,
    log: Log,
}

impl Follower {
    /// Begins to watch.
    #[track_caller]
    pub fn start(root: &Path) -> Follower {
        Follower::until(root, END)
    }

    /// The same with a sentinel of its own, whose name begins with [`END`].
    #[track_caller]
    pub fn until(root: &Path, end: &str) -> Follower {
        raise_descriptor_limit();
        let mut follower = Follower {
            end: end.to_string(),
            inotify: Inotify::new(),
            watches: HashMap::new(),
            directories: HashMap::new(),
            limbo: HashMap::new(),
            log: Log { model: Graph::new(), observations: Vec::new(), events: 0 },
        };
        let top =
            openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        follower.enter(TOP, top);
        follower
    }

    /// Follows until the sentinel comes.
    #[track_caller]
    pub fn run(mut self, timeout: Duration) -> Log {
        loop {
            let event = self.inotify.next(timeout).expect("events come until the sentinel");
            assert!(
                !event.mask.contains(ReadFlags::QUEUE_OVERFLOW),
                "the follower was too slow for the kernel's queue"
            );
            if event.is(ReadFlags::CREATE, &self.end) && self.watches.get(&event.watch) == Some(&TOP) {
                return self.log;
            }
            self.log.events += 1;
            self.take(&event);
        }
    }

    fn take(&mut self, event: &Event) {
        let (Some(dir), Some(name)) = (self.watches.get(&event.watch), &event.name) else { return };
        if is_sentinel(name) {
            return;
        }
        let slot = (*dir, name.clone());
        let told = |flag| event.mask.contains(flag);
        if told(ReadFlags::CREATE) {
            self.look(Said::Created, slot);
        } else if told(ReadFlags::MODIFY) {
            self.look(Said::Modified, slot);
        } else if told(ReadFlags::CLOSE_WRITE) {
            self.look(Said::Closed, slot);
        } else if told(ReadFlags::DELETE) {
            self.log.model.remove(&slot);
            self.see(Said::Deleted, slot);
        } else if told(ReadFlags::MOVED_FROM) {
            let node = self.log.model.remove(&slot);
            self.limbo.insert(event.cookie, node);
            self.see(Said::Left, slot);
        } else if told(ReadFlags::MOVED_TO) {
            self.log.model.remove(&slot);
            if let Some(node) = self.limbo.remove(&event.cookie).flatten() {
                self.log.model.insert(slot.clone(), node);
            }
            self.look(Said::Came, slot);
        }
    }

    /// Looks at a name, and takes what is there for what the event meant. It may be newer; then an
    /// event that says so is on its way. If nothing is there, what was known stays, for the same reason.
    fn look(&mut self, said: Said, slot: Slot) {
        if let Some(node) = self.see(said, slot.clone()) {
            self.log.model.insert(slot, node);
        }
    }

    /// Looks at a name, enters a directory that is new here, and writes down what was seen.
    fn see(&mut self, said: Said, slot: Slot) -> Option<Node> {
        let (seen, descriptor) = match look_at(&self.directories[&slot.0], &slot.1) {
            Some((node, descriptor)) => (Some(node), descriptor),
            None => (None, None),
        };
        self.log.observations.push(Observation { said, slot, seen: seen.clone() });
        if let (Some(Node::Dir(number)), Some(descriptor)) = (&seen, descriptor)
            && !self.directories.contains_key(number)
        {
            self.enter(*number, descriptor);
        }
        seen
    }

    /// Watches a directory, and only then looks at what is in it already.
    fn enter(&mut self, number: u64, descriptor: OwnedFd) {
        let place = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        // It may be gone: then nothing will happen in it.
        let Ok(watch) = self.inotify.watch(&place, "") else { return };
        self.watches.insert(watch, number);
        self.directories.insert(number, descriptor);
        let names: Vec<OsString> = match fs::read_dir(&place) {
            Ok(entries) => entries.flatten().map(|e| e.file_name()).collect(),
            Err(_) => return,
        };
        for name in names.into_iter().filter(|name| !is_sentinel(name)) {
            self.look(Said::Scan, (number, name));
        }
    }
}

fn is_sentinel(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(END.as_bytes())
}

/// What a name in a directory stands for; of a directory, a descriptor as well.
#[track_caller]
fn look_at(dir: &OwnedFd, name: &OsStr) -> Option<(Node, Option<OwnedFd>)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match openat(dir.as_fd(), name, flags, Mode::empty()) {
        Ok(descriptor) => {
            let about = fstat(&descriptor).unwrap_or_else(|e| panic!("fstat of {name:?}: {e}"));
            if rustix::fs::FileType::from_raw_mode(about.st_mode) == rustix::fs::FileType::Directory {
                return Some((Node::Dir(about.st_ino), Some(descriptor)));
            }
            let mut value = Vec::new();
            File::from(descriptor)
                .read_to_end(&mut value)
                .unwrap_or_else(|e| panic!("read of {name:?}: {e}"));
            Some((Node::File(value), None))
        }
        // That is what NOFOLLOW says of a symlink.
        Err(Errno::LOOP) => match readlinkat(dir.as_fd(), name, Vec::new()) {
            Ok(to) => Some((Node::Symlink(OsString::from_vec(to.into_bytes()).into()), None)),
            // It became something else between the two calls: look again.
            Err(Errno::INVAL) => look_at(dir, name),
            Err(Errno::NOENT) => None,
            Err(e) => panic!("readlink of {name:?}: {e}"),
        },
        Err(Errno::NOENT) => None,
        // The directory itself is gone.
        Err(Errno::STALE | Errno::NOTDIR) => None,
        Err(e) => panic!("open of {name:?}: {e}"),
    }
}

/// Every directory has a descriptor here; the usual 1024 are not enough.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
}

/// The tree that is reached from the top.
pub fn tree(graph: &Graph) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![(TOP, PathBuf::new())];
    while let Some((number, path)) = todo.pop() {
        for ((_, name), node) in
            graph.range((number, OsString::new())..).take_while(|((dir, _), _)| *dir == number)
        {
            let full = path.join(name);
            let entry = match node {
                Node::Dir(below) => {
                    todo.push((*below, full.clone()));
                    Entry::Dir
                }
                Node::File(value) => Entry::File(value.clone()),
                Node::Symlink(to) => Entry::Symlink(to.clone()),
            };
            tree.insert(full, entry);
        }
    }
    tree
}

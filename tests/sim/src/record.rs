//! What happened: everything that matters is told to the [`Record`], which hashes it (two runs of one
//! seed must give the same hash) and holds it against all invariants.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use quorumfs_machine::MemTables;
use quorumfs_store::{Entry, LogId, Vote};
use serde::Serialize;

use crate::invariant::{self, Invariant};

/// Milliseconds of simulated time since the start, as nobody in the simulation can know them.
pub type Millis = u64;

/// Who leads when: term and node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mandate {
    /// Term.
    pub term: u64,
    /// Node.
    pub node: u64,
}

impl fmt::Debug for Mandate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T{}-n{}", self.term, self.node)
    }
}

impl Mandate {
    /// The one that a vote is for.
    pub fn of(vote: &Vote) -> Mandate {
        Mandate { term: vote.leader_id.term, node: vote.leader_id.node_id }
    }
}

/// A position in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Index.
    pub index: u64,
    /// Leader that proposed the entry.
    pub mandate: Mandate,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:?}", self.index, self.mandate)
    }
}

impl Place {
    /// The one that an entry has.
    pub fn of(id: LogId) -> Place {
        let mandate = Mandate { term: id.leader_id.term, node: id.leader_id.node_id };
        Place { index: id.index, mandate }
    }
}

/// An entry, with what tells two contents apart.
#[derive(Clone)]
pub struct Carried {
    /// The entry.
    pub entry: Entry,
    /// Fingerprint of its content.
    pub content: u64,
}

impl Carried {
    /// One entry.
    pub fn new(entry: &Entry) -> Carried {
        let mut frame = Vec::new();
        let encoded = quorumfs_store::format::encode_entry(entry, &mut frame);
        encoded.expect("an entry that was proposed can be encoded");
        let mut hasher = DefaultHasher::new();
        frame.hash(&mut hasher);
        Carried { entry: entry.clone(), content: hasher.finish() }
    }
}
impl Hash for Carried {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.content.hash(state);
    }
}
impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.content)
    }
}

/// The state of one node.
#[derive(Clone)]
pub struct Tables(pub Arc<MemTables>);

impl Hash for Tables {
    fn hash<H: Hasher>(&self, _state: &mut H) {}
}
impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A token at the end of a file.
    Append {
        /// The file.
        file: String,
        /// The token, unique in the run.
        token: u64,
    },
    /// A value in the place of another.
    Put {
        /// The file.
        file: String,
        /// The value, unique in the run.
        token: u64,
    },
    /// What is in a file now.
    Read {
        /// The file.
        file: String,
    },
    /// A change of the tree.
    Tree(String),
    /// A session.
    Open,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// It was done, or refused, at this revision.
    Done {
        /// Revision of the outcome.
        revision: u64,
        /// Why it was refused.
        refused: Option<String>,
    },
    /// What is there.
    Value {
        /// Revision of the answer.
        revision: u64,
        /// Revision that wrote it; 0 where nothing is.
        modified: u64,
        /// Fingerprint of the value.
        value: u64,
    },
}

/// One thing that happened.
#[derive(Clone, Debug, Hash)]
pub enum Seen {
    /// A message arrives.
    Delivered {
        /// Sender.
        from: u64,
        /// Receiver.
        to: u64,
        /// What.
        kind: &'static str,
    },
    /// Something is broken or mended.
    Fault(String),
    /// An entry is on a disk.
    Appended {
        /// Whose.
        node: u64,
        /// Where.
        at: Place,
        /// What is before it.
        before: Option<Place>,
        /// What it is.
        content: u64,
    },
    /// A node starts, with this on its disk.
    Opened {
        /// Which.
        node: u64,
        /// The log, in order.
        log: Vec<Place>,
    },
    /// A node has told somebody that it follows this mandate, or will if it comes to be.
    Promised {
        /// Which.
        node: u64,
        /// To whom.
        to: Mandate,
    },
    /// A node leads.
    Leads {
        /// Which.
        node: u64,
        /// How often it has started.
        life: u64,
        /// Its mandate.
        mandate: Mandate,
        /// Up to where its log was purged.
        purged: Option<Place>,
        /// The log behind that.
        log: Vec<Place>,
    },
    /// An entry is applied.
    Applied {
        /// Where.
        node: u64,
        /// What.
        entry: Carried,
        /// Fingerprint of outcome and event.
        outcome: u64,
        /// The revision then.
        revision: u64,
    },
    /// A client asks for the first time.
    Called {
        /// Number of the operation.
        op: u64,
        /// What for.
        what: What,
    },
    /// A client has an answer, or (`None`) has given up.
    Returned {
        /// Number of the operation.
        op: u64,
        /// The answer.
        told: Option<Told>,
    },
    /// A client was promised that its lease lives so long. (What is written in a session renews it, too,
    /// but promises nothing: the end of the lease may be on its way already.)
    Renewed {
        /// Which.
        lease: u64,
        /// When the client asked.
        asked: Millis,
        /// For how long from then, in milliseconds.
        ttl: u64,
    },
    /// The state of a node, as of an index.
    State {
        /// Which.
        node: u64,
        /// Index of what was applied last.
        index: u64,
        /// All of it.
        tables: Tables,
    },
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When.
    pub at: Millis,
    /// Which invariant.
    pub invariant: &'static str,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} ms: {}", self.invariant, self.at, self.what)
    }
}

struct Inner {
    now: Millis,
    hash: DefaultHasher,
    seen: u64,
    print: bool,
    invariants: Vec<Box<dyn Invariant>>,
    violation: Option<Violation>,
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Record(Arc<Mutex<Inner>>);

impl Record {
    /// An empty one; with `print` everything is written to stdout.
    pub fn new(print: bool) -> Record {
        Record(Arc::new(Mutex::new(Inner {
            now: 0,
            hash: DefaultHasher::new(),
            seen: 0,
            print,
            invariants: invariant::all(),
            violation: None,
        })))
    }

    /// The time.
    pub fn now(&self) -> Millis {
        self.0.lock().now
    }

    /// Time goes on.
    pub fn set_now(&self, now: Millis) {
        self.0.lock().now = now;
    }

    /// Something happened.
    pub fn see(&self, seen: Seen) {
        let mut inner = self.0.lock();
        let Inner { now, hash, seen: count, print, invariants, violation } = &mut *inner;
        (*now, &seen).hash(hash);
        *count += 1;
        if *print {
            println!("{now:>6} {seen:?}");
        }
        for invariant in invariants {
            if let Err(what) = invariant.see(*now, &seen) {
                violation.get_or_insert(Violation { at: *now, invariant: invariant.name(), what });
            }
        }
    }

    /// Everything is over: what can only be said now.
    pub fn end(&self) {
        let mut inner = self.0.lock();
        let Inner { now, invariants, violation, .. } = &mut *inner;
        for invariant in invariants {
            if let Err(what) = invariant.end() {
                violation.get_or_insert(Violation { at: *now, invariant: invariant.name(), what });
            }
        }
    }

    /// The run did not come to an end.
    pub fn fail(&self, invariant: &'static str, what: String) {
        let mut inner = self.0.lock();
        let at = inner.now;
        inner.violation.get_or_insert(Violation { at, invariant, what });
    }

    /// The first violation.
    pub fn violation(&self) -> Option<Violation> {
        self.0.lock().violation.clone()
    }

    /// The hash of all that was seen, and how much that is.
    pub fn hash(&self) -> (u64, u64) {
        let inner = self.0.lock();
        (inner.hash.finish(), inner.seen)
    }
}

/// What tells two values apart.
pub fn fingerprint(value: &impl Serialize) -> u64 {
    let bytes = postcard::to_stdvec(value).expect("it is our own");
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

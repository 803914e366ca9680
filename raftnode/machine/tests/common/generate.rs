//! Random commands over few names, numbers and sessions, so that they meet.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use quorumfs_api::command::{
    At, AttrChange, Command, Compare, CreateMode, LeaseChange, LockKind, LockOwner, Owner, Proposal, Range,
    Relation, RenameMode, RequestId, Special, Target, TimeChange, XattrMode,
};
use quorumfs_api::key::{Key, Name};
use quorumfs_api::record::{Device, Ino, Kind, LeaseId, Timestamp};

use super::reference_locks::BYTES;

/// A command, with how it is asked for.
#[derive(Clone, Debug)]
pub struct Op {
    /// Leases in it are positions among those that were granted.
    pub command: Command,
    /// What it names is made to be there: the key at this position of the tree.
    aim: (Option<usize>, Option<usize>),
    session: Option<Asked>,
    time_step: i64,
    author: &'static str,
    value_max: u64,
    store_max: u64,
}

#[derive(Clone, Debug)]
struct Asked {
    pick: u64,
    number: Numbering,
    /// So many requests before this one the client may miss a result.
    open: u64,
}

#[derive(Clone, Copy, Debug)]
enum Numbering {
    Next,
    /// Leaves out some, which may be asked for later.
    Ahead(u64),
    /// So many before the next.
    Again(u64),
}

fn name() -> impl Strategy<Value = Name> {
    // Slashes sort in the middle of these: the order of components is not that of bytes.
    prop_oneof![8 => Just("a"), 8 => Just("b"), 4 => Just("c"), 1 => Just("a-"), 1 => Just("longer-name")]
        .prop_map(|name| Name::new(name.as_bytes()).unwrap())
}

fn key() -> impl Strategy<Value = Key> {
    let depth = prop_oneof![1 => Just(0usize), 8 => Just(1), 8 => Just(2), 5 => Just(3)];
    (depth, vec(name(), 3)).prop_map(|(depth, names)| {
        names.iter().take(depth).fold(Key::root(), |key, name| key.join(name).unwrap())
    })
}

fn ino() -> impl Strategy<Value = Ino> {
    prop_oneof![1 => Just(Ino(1)), 12 => (2..12u64).prop_map(Ino)]
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![4 => key().prop_map(At::Key), 1 => (ino(), name()).prop_map(|(dir, name)| At::Entry(dir, name))]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![3 => at().prop_map(Target::At), 1 => ino().prop_map(Target::Ino)]
}

fn value() -> impl Strategy<Value = Bytes> {
    (0..40usize, prop_oneof![Just(b'x'), Just(b'y')]).prop_map(|(len, byte)| vec![byte; len].into())
}

fn owner() -> impl Strategy<Value = Owner> {
    (any::<u32>(), 0..3u32, 0..3u32).prop_map(|(mode, uid, gid)| Owner { mode, uid, gid })
}

fn create() -> impl Strategy<Value = CreateMode> {
    prop_oneof![6 => Just(CreateMode::Allow), 1 => Just(CreateMode::Never), 1 => Just(CreateMode::Exclusive)]
}

fn parents() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.75)
}

fn pick() -> impl Strategy<Value = LeaseId> {
    (0..8u64).prop_map(LeaseId)
}

fn range() -> impl Strategy<Value = Range> {
    (0..BYTES, prop_oneof![4 => (0..6u64).prop_map(Some), 1 => Just(None)]).prop_map(|(start, length)| {
        match length {
            // One in a while ends before it begins.
            Some(length) if start + length < BYTES => Range { start: start + 1, end: start + length },
            _ => Range { start, end: u64::MAX },
        }
    })
}

fn lock_owner() -> impl Strategy<Value = LockOwner> {
    (pick(), 0..2u64).prop_map(|(session, owner)| LockOwner { session, owner })
}

fn attr() -> impl Strategy<Value = AttrChange> {
    let time = || prop_oneof![Just(TimeChange::Now), (-5..5i64).prop_map(|t| TimeChange::At(Timestamp(t)))];
    (
        option::of(any::<u32>()),
        option::of(0..3u32),
        option::of(0..3u32),
        option::of(time()),
        option::of(time()),
    )
        .prop_map(|(mode, uid, gid, atime, mtime)| AttrChange { mode, uid, gid, atime, mtime })
}

fn compare() -> impl Strategy<Value = Compare> {
    let relation = || {
        prop_oneof![
            Just(Relation::Equal),
            Just(Relation::NotEqual),
            Just(Relation::Less),
            Just(Relation::Greater)
        ]
    };
    let kind = prop_oneof![Just(Kind::File), Just(Kind::Dir), Just(Kind::Symlink)];
    prop_oneof![
        (key(), any::<bool>()).prop_map(|(k, yes)| Compare::Exists(k, yes)),
        (key(), value(), any::<bool>()).prop_map(|(k, v, yes)| Compare::Value(k, v, yes)),
        (key(), relation(), 0..3u64).prop_map(|(k, r, n)| Compare::Version(k, r, n)),
        (key(), relation(), 0..30u64).prop_map(|(k, r, n)| Compare::CreateRevision(k, r, n)),
        (key(), relation(), 0..30u64).prop_map(|(k, r, n)| Compare::ModRevision(k, r, n)),
        (key(), kind).prop_map(|(k, kind)| Compare::Kind(k, kind)),
    ]
}

/// Commands that a transaction may hold; of the locks, this part waits.
fn plain(wait: f64) -> impl Strategy<Value = Command> {
    let lease = prop_oneof![
        4 => Just(LeaseChange::Keep),
        4 => pick().prop_map(LeaseChange::Bind),
        1 => Just(LeaseChange::Clear)
    ];
    let mode = || {
        prop_oneof![
            3 => Just(RenameMode::Replace),
            1 => Just(RenameMode::NoReplace),
            2 => Just(RenameMode::Exchange)
        ]
    };
    let xattr = prop_oneof![
        4 => Just("user.a"), 4 => Just("user.b"), 1 => Just("user.kv.revision"), 3 => Just("user.kv.events")
    ];
    let xattr_value = prop_oneof![2 => value(), 1 => Just("rename".into()), 1 => Just("swap".into())];
    let xattr_mode = prop_oneof![Just(XattrMode::Set), Just(XattrMode::Create), Just(XattrMode::Replace)];
    let kind = prop_oneof![Just(LockKind::Shared), Just(LockKind::Exclusive)];
    // Inside of a transaction one that waits refuses the whole.
    let wait = prop::bool::weighted(wait);
    let special = prop_oneof![
        Just(Special::Fifo),
        Just(Special::Socket),
        Just(Special::BlockDevice(Device { major: 8, minor: 1 }))
    ];
    prop_oneof![
        14 => (target(), value(), create(), parents(), owner(), lease).prop_map(
            |(target, value, create, parents, owner, lease)| Command::Put {
                target, value, create, parents, owner, lease
            }
        ),
        4 => (target(), value(), create(), parents(), owner()).prop_map(
            |(target, data, create, parents, owner)| Command::Append { target, data, create, parents, owner }
        ),
        3 => (target(), 0..60u64).prop_map(|(target, size)| Command::Truncate { target, size }),
        4 => (at(), prop::bool::weighted(0.3)).prop_map(|(at, recursive)| Command::Delete { at, recursive }),
        6 => (at(), parents(), owner()).prop_map(
            |(at, parents, owner)| Command::Mkdir { at, parents, owner }
        ),
        3 => at().prop_map(|at| Command::Rmdir { at }),
        16 => (at(), at(), mode()).prop_map(|(from, to, mode)| Command::Rename { from, to, mode }),
        3 => (at(), value(), parents(), owner()).prop_map(
            |(at, to, parents, owner)| Command::Symlink { at, to, parents, owner }
        ),
        3 => (target(), attr()).prop_map(|(target, set)| Command::SetAttr { target, set }),
        4 => (target(), xattr, option::of(xattr_value), xattr_mode).prop_map(
            |(target, name, value, mode)| Command::SetXattr {
                target, name: Bytes::from_static(name.as_bytes()), value, mode
            }
        ),
        9 => (ino(), lock_owner(), range(), kind, 0..3u32, wait).prop_map(
            |(ino, owner, range, kind, pid, wait)| Command::Lock { ino, owner, range, kind, pid, wait }
        ),
        1 => (ino(), lock_owner()).prop_map(|(ino, owner)| Command::CancelWait { ino, owner }),
        2 => (at(), special, parents(), owner()).prop_map(
            |(at, special, parents, owner)| Command::Mknod { at, special, parents, owner }
        ),
        3 => (ino(), lock_owner(), range()).prop_map(
            |(ino, owner, range)| Command::Unlock { ino, owner, range }
        ),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        60 => plain(0.6),
        2 => (0..2_000u64).prop_map(|ttl_ms| Command::LeaseGrant { ttl_ms }),
        1 => pick().prop_map(|lease| Command::LeaseRevoke { lease }),
        1 => vec(pick(), 0..3).prop_map(|leases| Command::LeaseExpire { leases }),
        6 => (vec(compare(), 0..2), vec(plain(0.02), 0..4), vec(plain(0.02), 0..3)).prop_map(
            |(compare, then, otherwise)| Command::Txn { compare, then, otherwise }
        ),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let number = prop_oneof![
        6 => Just(Numbering::Next),
        1 => (1..4u64).prop_map(Numbering::Ahead),
        3 => (1..6u64).prop_map(Numbering::Again)
    ];
    (0..8u64, number, 0..5u64).prop_map(|(pick, number, open)| Asked { pick, number, open })
}

pub fn op() -> impl Strategy<Value = Op> {
    (
        command(),
        (option::weighted(0.5, 0..64usize), option::weighted(0.35, 0..64usize)),
        option::weighted(0.4, asked()),
        -2..50i64,
        prop_oneof![Just("alice"), Just("bob")],
        prop_oneof![8 => Just(1_000u64), 1 => Just(20)],
        prop_oneof![8 => Just(1_000_000u64), 1 => Just(1_500)],
    )
        .prop_map(|(command, aim, session, time_step, author, value_max, store_max)| Op {
            command,
            aim,
            session,
            time_step,
            author,
            value_max,
            store_max,
        })
}

/// Turns operations into proposals, as clients and a leader would.
#[derive(Default)]
pub struct Stamper {
    /// All leases that were ever granted, with the next request number of each.
    pub granted: Vec<(LeaseId, u64)>,
    time: i64,
}

impl Stamper {
    pub fn stamp(&mut self, op: &Op, existing: &[Key]) -> Proposal {
        self.time += op.time_step;
        let mut command = op.command.clone();
        self.fill_in(&mut command);
        let pick = |aim: Option<usize>| existing.get(aim?.checked_rem(existing.len())?);
        take_aim(&mut command, pick(op.aim.0), pick(op.aim.1));
        let session = op.session.as_ref().and_then(|asked| self.request(asked));
        Proposal {
            time: Timestamp(self.time),
            author: op.author.to_string(),
            node: false,
            session,
            value_max: op.value_max,
            store_max: op.store_max,
            command,
        }
    }

    fn request(&mut self, asked: &Asked) -> Option<RequestId> {
        let count = self.granted.len() as u64;
        let (session, next) = self.granted.get_mut(asked.pick.checked_rem(count)? as usize)?;
        let number = match asked.number {
            Numbering::Next => *next,
            Numbering::Ahead(by) => *next + by,
            Numbering::Again(by) => next.saturating_sub(by),
        };
        let done_below = next.saturating_sub(asked.open);
        *next = (*next).max(number + 1);
        Some(RequestId { session: *session, number, done_below })
    }

    fn lease(&self, pick: LeaseId) -> LeaseId {
        let known = usize::try_from(pick.0).ok().and_then(|pick| self.granted.get(pick % 6));
        known.map_or(LeaseId(1 << 40), |(lease, _)| *lease)
    }

    fn fill_in(&self, command: &mut Command) {
        match command {
            Command::Put { lease: LeaseChange::Bind(lease), .. } | Command::LeaseRevoke { lease } => {
                *lease = self.lease(*lease);
            }
            Command::Lock { owner, .. }
            | Command::Unlock { owner, .. }
            | Command::CancelWait { owner, .. } => {
                owner.session = self.lease(owner.session);
            }
            Command::LeaseExpire { leases } => leases.iter_mut().for_each(|l| *l = self.lease(*l)),
            Command::Txn { then, otherwise, .. } => {
                then.iter_mut().chain(otherwise).for_each(|command| self.fill_in(command));
            }
            _ => {}
        }
    }
}

/// Makes a command name keys that are there.
fn take_aim(command: &mut Command, first: Option<&Key>, second: Option<&Key>) {
    let set_at = |at: &mut At, key: Option<&Key>| {
        if let Some(key) = key {
            *at = At::Key(key.clone());
        }
    };
    match command {
        Command::Put { target, .. }
        | Command::Append { target, .. }
        | Command::Truncate { target, .. }
        | Command::SetAttr { target, .. }
        | Command::SetXattr { target, .. } => {
            if let Some(key) = first {
                *target = Target::At(At::Key(key.clone()));
            }
        }
        Command::Delete { at, .. } | Command::Rmdir { at } => set_at(at, first),
        Command::Rename { from, to, .. } => {
            set_at(from, first);
            set_at(to, second);
        }
        Command::Txn { then, otherwise, .. } => {
            // In turn, so that a branch does not do all to one key.
            for (i, command) in then.iter_mut().chain(otherwise).enumerate() {
                let aim = if i % 2 == 0 { (first, second) } else { (second, None) };
                take_aim(command, aim.0, aim.1);
            }
        }
        _ => {}
    }
}

//! What the policy allows, case by case, and against a reference that knows only paths and names; and
//! what watchers see under it, against all that is there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::generate::{Op, Stamper, op};
use common::{asked, at, delete, entry, fresh, key, mkdir, put, rows};
use proptest::prelude::*;
use quorumfs_api::command::{
    AttrChange, Command, Compare, CreateMode, LeaseChange, LockKind, LockOwner, Owner, Proposal, Range,
    RenameMode, XattrMode,
};
use quorumfs_api::event::{Change, Event};
use quorumfs_api::key::{Key, Name};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, Kind, LeaseId, Record};
use quorumfs_api::rights::{Access, Grant, Rights, Sight};
use quorumfs_api::wire::Node;
use quorumfs_machine::{Applied, Filtered, MemTables, Table, apply, filter, see, view};
use quorumfs_policy::Who;

const POLICY: &str = "/.quorumfs/policy";

fn by(name: &str, command: Command) -> Proposal {
    Proposal { author: name.to_owned(), ..common::proposal(command) }
}

fn by_node(command: Command) -> Proposal {
    Proposal { node: true, ..by("n1", command) }
}

fn done(tables: &mut MemTables, proposal: Proposal) -> Applied {
    let applied = apply(tables, &proposal).unwrap();
    assert!(applied.outcome.result.is_ok(), "{proposal:?}: {:?}", applied.outcome.result);
    applied
}

/// It has to be denied, and to leave no trace.
fn denied(tables: &mut MemTables, proposal: Proposal) -> String {
    let before = tables.clone();
    match apply(tables, &proposal).unwrap().outcome.result {
        Err(Refusal::Denied(why)) => {
            assert_eq!(*tables, before, "a denied command changed something");
            why
        }
        other => panic!("{proposal:?} is not denied: {other:?}"),
    }
}

fn grant(tables: &mut MemTables, name: &str) -> LeaseId {
    match done(tables, by(name, Command::LeaseGrant { ttl_ms: 10_000 })).outcome.result {
        Ok(Done::Lease { id, .. }) => id,
        other => panic!("{other:?}"),
    }
}

fn ino(tables: &MemTables, path: &str) -> Ino {
    view::resolve(tables, &key(path)).unwrap().unwrap()
}

const RULES: &str = r#"
deny = ["lost"]
[[rule]]
who = ["boss"]
admin = true
write = ["/"]
[[rule]]
who = ["web"]
read = ["/shared"]
write = ["/web", "/deep/er/web"]
none = ["/web/secret"]
"#;

/// Some files, and the rules.
fn world() -> MemTables {
    let mut tables = fresh();
    for file in ["/web/f", "/web/d/x", "/web/secret/s", "/shared/f", "/other/f"] {
        done(&mut tables, by_node(put(key(file), "1")));
    }
    done(&mut tables, by_node(put(key(POLICY), RULES)));
    tables
}

fn rename(from: &str, to: &str, mode: RenameMode) -> Command {
    Command::Rename { from: at(from), to: at(to), mode }
}

#[test]
fn each_command_needs_what_it_touches() {
    use RenameMode::{Exchange, Replace};
    let inner = world();
    let (web_f, web_dir) = (ino(&inner, "/web/f"), ino(&inner, "/web"));
    let (other_f, shared_f) = (ino(&inner, "/other/f"), ino(&inner, "/shared/f"));
    let symlink =
        |text| Command::Symlink { at: at(text), to: "x".into(), parents: false, owner: Owner::FILE };
    let chmod = |target: Ino| Command::SetAttr {
        target: target.into(),
        set: AttrChange { mode: Some(0o600), ..AttrChange::default() },
    };
    let xattr = |target: Ino| Command::SetXattr {
        target: target.into(),
        name: "user.x".into(),
        value: Some("1".into()),
        mode: XattrMode::Set,
    };
    let txn = |compare, then| Command::Txn { compare, then, otherwise: vec![] };
    let allowed = vec![
        put(key("/web/new"), "v"),
        put(web_f, "v"),
        Command::Append {
            target: entry(web_dir.0, "log").into_target(),
            data: "l".into(),
            create: CreateMode::Allow,
            parents: false,
            owner: Owner::FILE,
        },
        Command::Truncate { target: web_f.into(), size: 0 },
        delete("/web/f", false),
        delete("/web/d", true),
        mkdir("/web/e/f"),
        // The way to what may be written may be made.
        mkdir("/deep"),
        put(key("/deep/er/web/x"), "v"),
        rename("/web/f", "/web/g", Replace),
        rename("/web/d", "/deep/er/web", Replace),
        symlink("/web/l"),
        chmod(web_f),
        xattr(web_f),
        txn(vec![Compare::Exists(key("/shared/f"), true)], vec![put(key("/web/t"), "v")]),
    ];
    for command in allowed {
        let mut tables = world();
        if matches!(&command, Command::Rename { to, .. } if *to == at("/deep/er/web")) {
            done(&mut tables, by("web", mkdir("/deep/er")));
        }
        done(&mut tables, by("web", command));
    }
    let refused = vec![
        (put(key("/shared/f"), "v"), "line 9 of the policy gives read on /shared"),
        (put(key("/nowhere/f"), "v"), "no line"),
        // Whether it exists is not told.
        (put(key("/other/f"), "v"), "no line"),
        (put(other_f, "v"), "/other/f"),
        (Command::Truncate { target: shared_f.into(), size: 0 }, "/shared/f"),
        (put(key("/web/secret/new"), "v"), "line 11 of the policy gives none on /web/secret"),
        (delete("/shared/f", false), "/shared/f"),
        (delete("/web", true), "line 11"),
        (delete("/", true), "write /"),
        (mkdir("/elsewhere"), "no line"),
        (mkdir("/shared/d"), "line 9"),
        (rename("/web/f", "/shared/g", Replace), "/shared/g"),
        (rename("/shared/f", "/web/g", Replace), "/shared/f"),
        (rename("/web", "/deep/er/web", Replace), "line 11"),
        (rename("/web/f", "/shared/f", Exchange), "/shared/f"),
        (symlink("/shared/l"), "line 9"),
        (chmod(shared_f), "/shared/f"),
        (xattr(other_f), "/other/f"),
        (Command::Rmdir { at: at("/other") }, "/other"),
        (txn(vec![Compare::Exists(key("/other/f"), true)], vec![put(key("/web/t"), "v")]), "read /other/f"),
        (txn(vec![], vec![put(key("/web/t"), "v"), put(key("/shared/t"), "v")]), "/shared/t"),
        (put(key(POLICY), RULES), "for admins"),
        (mkdir("/.quorumfs/x"), "for admins"),
    ];
    for (command, word) in refused {
        let mut tables = world();
        done(&mut tables, by_node(mkdir("/deep/er")));
        let why = denied(&mut tables, by("web", command.clone()));
        assert!(why.starts_with("client/web ") && why.contains(word), "{command:?}: {why}");
        // The others may do all of it, or meet what is there.
        for other in [by("boss", command.clone()), by_node(command.clone())] {
            let result = apply(&mut world(), &other).unwrap().outcome.result;
            assert!(
                !matches!(result, Err(Refusal::Denied(ref why)) if !why.contains("only be replaced")),
                "{result:?}"
            );
        }
    }
}

trait IntoTarget {
    fn into_target(self) -> quorumfs_api::Target;
}
impl IntoTarget for quorumfs_api::At {
    fn into_target(self) -> quorumfs_api::Target {
        quorumfs_api::Target::At(self)
    }
}

#[test]
fn locks_leases_and_sessions_are_their_owners() {
    let mut tables = world();
    let (mine, others) = (grant(&mut tables, "web"), grant(&mut tables, "boss"));
    let lock = |ino, session, kind| Command::Lock {
        ino,
        owner: LockOwner { session, owner: 1 },
        range: Range::WHOLE,
        kind,
        pid: 1,
        wait: false,
    };
    let (web, shared, other) = (ino(&tables, "/web/f"), ino(&tables, "/shared/f"), ino(&tables, "/other/f"));
    done(&mut tables, by("web", lock(web, mine, LockKind::Exclusive)));
    done(&mut tables, by("web", lock(shared, mine, LockKind::Shared)));
    assert!(
        denied(&mut tables, by("web", lock(shared, mine, LockKind::Exclusive))).contains("lock exclusively")
    );
    assert!(denied(&mut tables, by("web", lock(other, mine, LockKind::Shared))).contains("/other/f"));
    assert!(denied(&mut tables, by("web", lock(web, others, LockKind::Shared))).contains("belongs to boss"));
    let unlock =
        |session| Command::Unlock { ino: web, owner: LockOwner { session, owner: 1 }, range: Range::WHOLE };
    denied(&mut tables, by("web", unlock(others)));
    done(&mut tables, by("web", unlock(mine)));
    denied(&mut tables, by("web", Command::LeaseRevoke { lease: others }));
    let bound = |lease| match put(key("/web/bound"), "v") {
        Command::Put { target, value, create, parents, owner, .. } => {
            Command::Put { target, value, create, parents, owner, lease: LeaseChange::Bind(lease) }
        }
        other => other,
    };
    denied(&mut tables, by("web", bound(others)));
    done(&mut tables, by("web", bound(mine)));

    // What a session remembers is told to nobody else.
    let request = |name: &str, session| Proposal {
        author: name.to_owned(),
        ..asked(session, 1, 1, put(key("/web/once"), "v"))
    };
    let first = done(&mut tables, request("web", mine)).outcome;
    assert!(denied(&mut tables, request("web", others)).contains("belongs to boss"));
    assert_eq!(apply(&mut tables, &request("web", mine)).unwrap().outcome, first, "a retry is answered");
    // An admin can free what somebody else holds.
    done(&mut tables, by("boss", Command::LeaseRevoke { lease: mine }));
}

#[test]
fn a_denied_name_can_do_nothing_and_nothing_is_remembered_of_it() {
    let mut tables = world();
    for command in [Command::LeaseGrant { ttl_ms: 1_000 }, put(key("/x"), "v"), mkdir("/")] {
        assert_eq!(denied(&mut tables, by("lost", command)), "client/lost is denied by line 2 of the policy");
    }
}

#[test]
fn a_policy_is_a_good_one_or_not_written_at_all() {
    let mut tables = fresh();
    let refused = |tables: &mut MemTables, proposal: Proposal| {
        let before = tables.clone();
        match apply(tables, &proposal).unwrap().outcome.result {
            Err(Refusal::BadPolicy(why)) => {
                assert_eq!(*tables, before);
                why
            }
            other => panic!("{proposal:?}: {other:?}"),
        }
    };
    assert!(denied(&mut tables, by("web", put(key(POLICY), RULES))).contains("for admins"));
    let why =
        refused(&mut tables, by("admin", put(key(POLICY), "[[rule]]\nwho = [\"x\"]\nread = [\"x\"]\n")));
    assert!(why.starts_with("line 3, column 9: "), "{why}");
    // Nobody locks himself out by accident.
    let why = refused(&mut tables, by("admin", put(key(POLICY), RULES)));
    assert!(why.contains("no rule with admin = true for \"admin\""), "{why}");
    assert!(refused(&mut tables, by("admin", mkdir(POLICY))).contains("has to be a file"));
    // By whatever way it comes.
    done(&mut tables, by("admin", put(key("/draft"), "nonsense")));
    refused(&mut tables, by("admin", mkdir("/.quorumfs")).renaming("/draft", POLICY));
    let mine = "[[rule]]\nwho = [\"admin\"]\nadmin = true\nwrite = [\"/\"]\n";
    done(&mut tables, by("admin", put(key("/draft"), mine)));
    done(&mut tables, by("admin", mkdir("/.quorumfs")));
    done(&mut tables, by("admin", rename("/draft", POLICY, RenameMode::Replace)));
    assert_eq!(view::policy(&tables).unwrap().revision, view::meta(&tables).unwrap().revision);
    denied(&mut tables, by("web", put(key("/x"), "v")));
    let append = Command::Append {
        target: key(POLICY).into(),
        data: "x".into(),
        create: CreateMode::Never,
        parents: false,
        owner: Owner::FILE,
    };
    assert!(refused(&mut tables, by("admin", append)).starts_with("line 5, column "));
    refused(&mut tables, by("admin", Command::Truncate { target: key(POLICY).into(), size: 0 }));

    // Once there is one, it can only be replaced.
    for command in [
        delete(POLICY, false),
        delete("/.quorumfs", true),
        delete("/", true),
        rename(POLICY, "/away", RenameMode::Replace),
        rename("/.quorumfs", "/away", RenameMode::Replace),
    ] {
        assert!(denied(&mut tables, by("admin", command)).contains("only be replaced"));
    }
    let lease = grant(&mut tables, "admin");
    let bind = match put(key(POLICY), mine) {
        Command::Put { target, value, create, parents, owner, .. } => {
            Command::Put { target, value, create, parents, owner, lease: LeaseChange::Bind(lease) }
        }
        other => other,
    };
    assert!(refused(&mut tables, by("admin", bind)).contains("end with a lease"));

    // A node's certificate is the way back, whatever the policy says.
    done(&mut tables, by_node(put(key(POLICY), "")));
    denied(&mut tables, by("admin", put(key(POLICY), mine)));
    done(&mut tables, by_node(put(key(POLICY), mine)));
    done(&mut tables, by("admin", put(key("/x"), "v")));
}

trait Renaming {
    fn renaming(self, from: &str, to: &str) -> Proposal;
}
impl Renaming for Proposal {
    /// The same with a rename behind it, in one transaction.
    fn renaming(self, from: &str, to: &str) -> Proposal {
        let then = vec![self.command.clone(), rename(from, to, RenameMode::Replace)];
        Proposal { command: Command::Txn { compare: vec![], then, otherwise: vec![] }, ..self }
    }
}

/// Rules over the few names that random commands use, for alice and bob.
fn random_rules() -> impl Strategy<Value = String> {
    let path = prop_oneof![
        2 => Just("/"), 3 => Just("/a"), 3 => Just("/b"), 2 => Just("/a/b"), 1 => Just("/a/b/c"), 1 => Just("/b/a"),
    ];
    let word = prop_oneof![4 => Just("write"), 3 => Just("read"), 2 => Just("none")];
    let who = prop_oneof![Just("alice"), Just("bob"), Just("*")];
    proptest::collection::vec((who, word, path), 0..6).prop_map(|rules| {
        let rule = |(who, word, path)| format!("[[rule]]\nwho = [\"{who}\"]\n{word} = [\"{path}\"]\n");
        rules.into_iter().map(rule).collect()
    })
}

/// All objects with their keys.
fn tree(tables: &MemTables) -> BTreeMap<Key, Record> {
    let mut keys = BTreeMap::from([(Ino::ROOT, Key::root())]);
    let mut tree = BTreeMap::from([(Key::root(), view::get(tables, &Key::root()).unwrap().unwrap())]);
    view::copy(tables, &Key::root(), &mut |node| {
        let key = keys[&node.parent].join(&node.name).unwrap();
        keys.insert(node.record.ino, key.clone());
        tree.insert(key, node.record);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    tree
}

/// The keys that a change is about, and whether making a directory is all that happened there.
fn touched(change: &Change, before: &BTreeMap<Key, Record>) -> Vec<(Key, bool)> {
    match change {
        Change::Create { place, record } => vec![(place.key.clone(), record.kind == Kind::Dir)],
        Change::Update { place, .. } | Change::Remove { place, .. } => vec![(place.key.clone(), false)],
        Change::Attr { place, .. } => {
            vec![(place.as_ref().map_or(Key::root(), |place| place.key.clone()), false)]
        }
        Change::Rename { from, to, .. } => {
            let below =
                |dir: &Key| before.keys().filter(|key| key.is_within(dir)).cloned().collect::<Vec<_>>();
            let moved = below(&from.key).into_iter().chain(below(&to.key));
            let both = [from.key.clone(), to.key.clone()];
            moved.chain(both).map(|key| (key, false)).collect()
        }
        Change::Unlocked { .. } => vec![],
    }
}

fn ends_leases(command: &Command) -> bool {
    matches!(command, Command::LeaseRevoke { .. } | Command::LeaseExpire { .. })
}

fn compares(command: &Command) -> Vec<Key> {
    let Command::Txn { compare, .. } = command else { return vec![] };
    let key = |compare: &Compare| match compare {
        Compare::Exists(key, _)
        | Compare::Value(key, _, _)
        | Compare::Version(key, _, _)
        | Compare::CreateRevision(key, _, _)
        | Compare::ModRevision(key, _, _)
        | Compare::Kind(key, _) => key.clone(),
    };
    compare.iter().map(key).collect()
}

fn uses_sessions(proposal: &Proposal) -> bool {
    fn inner(command: &Command) -> bool {
        match command {
            Command::Lock { .. } | Command::Unlock { .. } | Command::CancelWait { .. } => true,
            Command::LeaseRevoke { .. } => true,
            Command::Put { lease: LeaseChange::Bind(_), .. } => true,
            Command::Txn { then, otherwise, .. } => then.iter().chain(otherwise).any(inner),
            _ => false,
        }
    }
    proposal.session.is_some() || inner(&proposal.command)
}

/// Where something is, what it is, and its value.
type Thing = (Option<(Ino, Name)>, Kind, Vec<u8>);

/// A tree kept from what somebody is shown.
#[derive(Debug, PartialEq)]
struct Shown(BTreeMap<Ino, Thing>);

impl Shown {
    fn copy(tables: &MemTables, rights: &Arc<Rights>) -> Shown {
        let mut shown = Shown(BTreeMap::new());
        if let Some(root) = view::get_seen(tables, &Key::root(), rights).unwrap() {
            shown.0.insert(root.ino, (None, root.kind, vec![]));
        }
        let mut copy = view::Copy::begin_seen(tables, &Key::root(), rights).unwrap();
        while let Some(Node { parent, name, record }) = copy.next(tables).unwrap() {
            assert!(shown.0.contains_key(&parent), "{name} comes before its directory");
            shown.0.insert(record.ino, (Some((parent, name)), record.kind, record.value.to_vec()));
        }
        shown
    }

    fn remove(&mut self, ino: Ino) {
        let below: Vec<Ino> = self
            .0
            .iter()
            .filter(|(_, (at, _, _))| at.as_ref().is_some_and(|at| at.0 == ino))
            .map(|(i, _)| *i)
            .collect();
        for child in below {
            self.remove(child);
        }
        assert!(self.0.remove(&ino).is_some(), "what is removed was shown");
    }

    fn take(&mut self, event: &Event) {
        for change in &event.changes {
            match change {
                Change::Create { place, record } => {
                    assert!(self.0.contains_key(&place.parent), "made in a directory that is shown");
                    let at = Some((place.parent, place.name.clone()));
                    assert!(self.0.insert(record.ino, (at, record.kind, record.value.to_vec())).is_none());
                }
                Change::Update { record, .. } => {
                    self.0.get_mut(&record.ino).expect("it is shown").2 = record.value.to_vec();
                }
                Change::Attr { record, .. } => assert!(self.0.contains_key(&record.ino)),
                Change::Remove { ino, .. } => self.remove(*ino),
                Change::Rename { from, to, ino, replaced, exchanged, .. } => {
                    if let Some((old, _)) = replaced {
                        self.remove(*old);
                    }
                    if let Some((other, _)) = exchanged {
                        self.0.get_mut(other).expect("it is shown").0 =
                            Some((from.parent, from.name.clone()));
                    }
                    self.0.get_mut(ino).expect("it is shown").0 = Some((to.parent, to.name.clone()));
                }
                Change::Unlocked { .. } => {}
            }
        }
    }

    /// What has to be shown, by the definition.
    fn expected(tree: &BTreeMap<Key, Record>, grants: &[Grant]) -> Shown {
        let access = |key: &Key| {
            let over = grants.iter().filter(|grant| key.is_within(&grant.path));
            over.max_by_key(|g| (g.path.names().count(), g.access)).map_or(Access::None, |g| g.access)
        };
        let shown = tree.iter().filter(|(key, record)| {
            let leads = grants.iter().any(|g| g.path.is_within(key) && g.access >= Access::Read);
            access(key) >= Access::Read || (record.kind == Kind::Dir && leads)
        });
        let entry = |(key, record): (&Key, &Record)| {
            let at = key.split().map(|(parent, name)| (tree[&parent].ino, name));
            (record.ino, (at, record.kind, record.value.to_vec()))
        };
        Shown(shown.map(entry).collect())
    }
}

struct History {
    tables: MemTables,
    stamper: Stamper,
    watchers: Vec<(&'static str, Shown)>,
}

impl History {
    fn rights(&self, name: &str) -> Arc<Rights> {
        view::policy(&self.tables).unwrap().rights(Who { name, node: false })
    }

    fn step(&mut self, op: &Op) {
        let before = tree(&self.tables);
        let keys: Vec<Key> =
            before.keys().filter(|key| !key.is_within(&common::key("/.quorumfs"))).cloned().collect();
        let proposal = self.stamper.stamp(op, &keys);
        let rights = self.rights(&proposal.author);
        let mut unchecked = self.tables.clone();
        let free = apply(&mut unchecked, &Proposal { node: true, ..proposal.clone() }).unwrap();
        let untouched = self.tables.clone();
        let applied = apply(&mut self.tables, &proposal).unwrap();

        let compared = compares(&proposal.command);
        if let Some(event) = &applied.event {
            // Nothing is done that may not be done.
            for change in event.changes.iter().filter(|_| !ends_leases(&proposal.command)) {
                for (key, makes_dir) in touched(change, &before) {
                    let may = rights.access(&key) >= Access::Write
                        || (makes_dir && rights.reaches(&key, Access::Write));
                    assert!(may, "{proposal:?} changed {key}: {event:?}");
                }
            }
            assert!(compared.iter().all(|key| rights.access(key) >= Access::Read), "{proposal:?}");
            // What is done is what would be done without a policy.
            assert_eq!(applied, free);
        }
        if let Err(Refusal::Denied(why)) = &applied.outcome.result {
            for table in Table::ALL {
                if proposal.session.is_none() || !matches!(table, Table::Results | Table::Leases) {
                    assert_eq!(rows(&self.tables, table), rows(&untouched, table), "denied: {why}");
                }
            }
            // Nothing is denied without need: something of it is not allowed, or belongs to others.
            let changes = free.event.iter().flat_map(|event| &event.changes);
            let allowed = changes
                .flat_map(|change| touched(change, &before))
                .all(|(key, _)| rights.covers(&key, Access::Write));
            let needless = free.event.is_some()
                && allowed
                && compared.iter().all(|key| rights.access(key) >= Access::Read)
                && !uses_sessions(&proposal)
                && !matches!(proposal.command, Command::Txn { .. });
            assert!(!needless, "{proposal:?} is denied: {why}");
        }
        if let Ok(Done::Lease { id, .. }) = applied.outcome.result {
            self.stamper.granted.push((id, 1));
        }
        let Some(event) = applied.event else { return };
        let now = tree(&self.tables);
        for index in 0..self.watchers.len() {
            let rights = self.rights(self.watchers[index].0);
            let shown = &mut self.watchers[index].1;
            let seen = match filter(&event, &Key::root()) {
                Filtered::Pass(event) => see(event, &rights),
                other => other,
            };
            match seen {
                Filtered::Nothing => {}
                Filtered::Copy | Filtered::Root(_) => *shown = Shown::copy(&self.tables, &rights),
                Filtered::Pass(event) => shown.take(&event),
            }
            assert_eq!(
                *shown,
                Shown::expected(&now, &rights.grants()),
                "{:?} after {event:?}",
                rights.grants()
            );
        }
        let rights = self.rights("alice");
        let limit = quorumfs_machine::PageLimit { keys: usize::MAX, bytes: usize::MAX };
        let prefix = quorumfs_api::wire::Prefix::Tree(Key::root());
        let page = view::range_seen(&self.tables, &prefix, None, limit, false, &rights).unwrap();
        for (key, record) in &now {
            let shown = !key.is_root() && rights.sight(key).shows(record.kind);
            assert_eq!(page.items.iter().any(|(k, _)| k == key), shown, "{key} in a range");
        }
        assert!(page.items.iter().all(|(key, r)| rights.sight(key) == Sight::Full || r.xattrs.is_empty()));
    }
}

#[test]
fn random_commands_under_random_policies() {
    let config = common::config(160);
    let test = (random_rules(), proptest::collection::vec(op(), 1..60));
    proptest!(config, |((rules, ops) in test)| {
        let mut tables = fresh();
        for dir in ["/a/b", "/b"] {
            done(&mut tables, by_node(mkdir(dir)));
        }
        done(&mut tables, by_node(put(key(POLICY), rules)));
        let mut history = History { tables, stamper: Stamper::default(), watchers: vec![] };
        for name in ["alice", "bob"] {
            let shown = Shown::copy(&history.tables, &history.rights(name));
            history.watchers.push((name, shown));
        }
        for op in &ops {
            history.step(op);
        }
    });
}

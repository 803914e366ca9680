//! Owners that wait for each other: whoever would close the circle is refused, and nobody else is.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{grant, put, run};
use proptest::prelude::*;
use quorumfs_api::command::{Command, LockKind, LockOwner, Range};
use quorumfs_api::outcome::{Done, Refusal};
use quorumfs_api::record::{Ino, LeaseId};
use quorumfs_machine::{MemTables, Table, view};

/// Makes files to lock.
fn files(tables: &mut MemTables, count: usize) -> Vec<Ino> {
    let names = (0..count).map(|n| common::key(&format!("/f{n}")));
    names
        .map(|key| {
            run(tables, put(key.clone(), "x")).outcome.result.unwrap();
            view::resolve(tables, &key).unwrap().unwrap()
        })
        .collect()
}

fn wait_for(ino: Ino, owner: LockOwner, range: Range, kind: LockKind) -> Command {
    Command::Lock { ino, owner, range, kind, pid: owner.owner as u32, wait: true }
}

fn ask(tables: &mut MemTables, command: Command) -> Result<Done, Refusal> {
    run(tables, command).outcome.result
}

fn owner(session: LeaseId) -> LockOwner {
    LockOwner { session, owner: 1 }
}

#[test]
fn two_hosts_that_lock_crosswise() {
    let mut tables = common::fresh();
    let files = files(&mut tables, 2);
    let (a, b) = (owner(grant(&mut tables)), owner(grant(&mut tables)));
    let exclusive = |file: usize, who| wait_for(files[file], who, Range::WHOLE, LockKind::Exclusive);
    ask(&mut tables, exclusive(0, a)).unwrap();
    ask(&mut tables, exclusive(1, b)).unwrap();
    assert!(matches!(ask(&mut tables, exclusive(1, a)), Ok(Done::Waiting(held)) if held.owner == b));
    let before = tables.clone();
    assert!(matches!(ask(&mut tables, exclusive(0, b)), Err(Refusal::Deadlock(held)) if held.owner == a));
    assert_eq!(tables, before, "a refusal changed something");
    // Asking again changes nothing.
    let again = run(&mut tables, exclusive(1, a));
    assert!(matches!(again.outcome.result, Ok(Done::Waiting(_))) && again.event.is_none());
    // One that does not wait is no part of it.
    let look = Command::Lock {
        ino: files[0],
        owner: b,
        range: Range::WHOLE,
        kind: LockKind::Shared,
        pid: 1,
        wait: false,
    };
    assert!(matches!(ask(&mut tables, look), Err(Refusal::Locked(_))));
    // The one that was refused gives way.
    ask(&mut tables, Command::Unlock { ino: files[1], owner: b, range: Range::WHOLE }).unwrap();
    assert!(matches!(ask(&mut tables, exclusive(1, a)), Ok(Done::Locked(_))));
    assert_eq!(common::rows(&tables, Table::Waits).len(), 0);
    assert!(matches!(ask(&mut tables, exclusive(0, b)), Ok(Done::Waiting(_))), "nobody waits for B now");
}

#[test]
fn two_that_share_and_both_want_more() {
    let mut tables = common::fresh();
    let file = files(&mut tables, 1)[0];
    let (a, b) = (owner(grant(&mut tables)), owner(grant(&mut tables)));
    for who in [a, b] {
        ask(&mut tables, wait_for(file, who, Range::WHOLE, LockKind::Shared)).unwrap();
    }
    let more = |who| wait_for(file, who, Range::WHOLE, LockKind::Exclusive);
    assert!(matches!(ask(&mut tables, more(a)), Ok(Done::Waiting(_))));
    assert!(matches!(ask(&mut tables, more(b)), Err(Refusal::Deadlock(_))));
}

#[test]
fn a_wait_ends_with_its_session_or_when_it_is_given_up() {
    let mut tables = common::fresh();
    let files = files(&mut tables, 2);
    let (a, b) = (owner(grant(&mut tables)), owner(grant(&mut tables)));
    let exclusive = |file: usize, who| wait_for(files[file], who, Range::WHOLE, LockKind::Exclusive);
    ask(&mut tables, exclusive(0, a)).unwrap();
    ask(&mut tables, exclusive(1, b)).unwrap();
    ask(&mut tables, exclusive(1, a)).unwrap();
    ask(&mut tables, Command::CancelWait { ino: files[1], owner: a }).unwrap();
    assert!(matches!(ask(&mut tables, exclusive(0, b)), Ok(Done::Waiting(_))), "A does not wait any more");
    assert_eq!(run(&mut tables, Command::CancelWait { ino: files[1], owner: a }).event, None);
    ask(&mut tables, Command::LeaseRevoke { lease: b.session }).unwrap();
    assert_eq!(common::rows(&tables, Table::Waits).len(), 0);
    assert!(matches!(ask(&mut tables, exclusive(1, a)), Ok(Done::Locked(_))));
}

/// One process: what it wants to lock, one after the other, and how far it is.
#[derive(Debug)]
struct Process {
    owner: LockOwner,
    wants: Vec<(usize, Range, LockKind)>,
    next: usize,
    waits: bool,
}

fn wants() -> impl Strategy<Value = Vec<(usize, Range, LockKind)>> {
    let kind = prop_oneof![2 => Just(LockKind::Exclusive), 1 => Just(LockKind::Shared)];
    let range = (0..4u64, 0..4u64).prop_map(|(start, length)| Range { start, end: start + length });
    prop::collection::vec((0..4usize, range, kind), 1..5)
}

/// Who cannot go on before whom, by looking at every lock of everybody.
fn blockers(tables: &MemTables, files: &[Ino], process: &Process) -> Vec<LockOwner> {
    let (file, range, kind) = process.wants[process.next];
    let held = view::locks(tables, files[file]).unwrap().into_iter().filter(|lock| {
        let excludes = lock.kind == LockKind::Exclusive || kind == LockKind::Exclusive;
        lock.owner != process.owner && excludes && lock.range.overlaps(&range)
    });
    held.map(|lock| lock.owner).collect()
}

/// Whether a process would wait for itself in the end.
fn is_in_a_circle(tables: &MemTables, files: &[Ino], all: &[Process], me: usize) -> bool {
    let mut reached = blockers(tables, files, &all[me]);
    let mut at = 0;
    while let Some(owner) = reached.get(at).copied() {
        at += 1;
        if owner == all[me].owner {
            return true;
        }
        let waiting = all.iter().find(|process| process.owner == owner && process.waits);
        for more in waiting.map(|process| blockers(tables, files, process)).unwrap_or_default() {
            if !reached.contains(&more) {
                reached.push(more);
            }
        }
    }
    false
}

proptest! {
    #![proptest_config(common::config(192))]

    /// Processes that lock in any order and give all up when they are refused: every refusal is a circle
    /// indeed, every circle is refused, and all come to their end.
    #[test]
    fn nobody_waits_for_ever_and_nobody_is_refused_for_nothing(
        plans in prop::collection::vec(wants(), 2..6),
        turns in prop::collection::vec(any::<prop::sample::Index>(), 400),
    ) {
        let mut tables = common::fresh();
        let files = files(&mut tables, 4);
        let mut all: Vec<Process> = plans
            .into_iter()
            .map(|wants| Process { owner: owner(grant(&mut tables)), wants, next: 0, waits: false })
            .collect();
        for turn in turns {
            let busy: Vec<usize> = (0..all.len()).filter(|i| all[*i].next < all[*i].wants.len()).collect();
            if busy.is_empty() {
                break;
            }
            let me = busy[turn.index(busy.len())];
            let (file, range, kind) = all[me].wants[all[me].next];
            let who = all[me].owner;
            let circle = is_in_a_circle(&tables, &files, &all, me);
            let blocked = !blockers(&tables, &files, &all[me]).is_empty();
            match ask(&mut tables, wait_for(files[file], who, range, kind)) {
                Ok(Done::Locked(_)) => {
                    prop_assert!(!blocked);
                    all[me].waits = false;
                    all[me].next += 1;
                }
                Ok(Done::Waiting(_)) => {
                    prop_assert!(blocked && !circle, "{who:?} waits in a circle");
                    all[me].waits = true;
                }
                Err(Refusal::Deadlock(_)) => {
                    prop_assert!(circle, "{who:?} is refused for nothing");
                    all[me].waits = false;
                    all[me].next = 0;
                }
                other => prop_assert!(false, "{other:?}"),
            }
            if (all[me].next == 0 && !all[me].waits) || all[me].next == all[me].wants.len() {
                for file in &files {
                    ask(&mut tables, Command::CancelWait { ino: *file, owner: who }).unwrap();
                    ask(&mut tables, Command::Unlock { ino: *file, owner: who, range: Range::WHOLE }).unwrap();
                }
            }
            let stuck = |process: &&Process| process.next < process.wants.len() && process.waits;
            let working = all.iter().filter(|process| process.next < process.wants.len()).count();
            let waiting: Vec<&Process> = all.iter().filter(stuck).collect();
            let free = waiting.iter().any(|process| blockers(&tables, &files, process).is_empty());
            prop_assert!(waiting.len() < working || working == 0 || free, "all wait for each other: {all:?}");
        }
    }
}

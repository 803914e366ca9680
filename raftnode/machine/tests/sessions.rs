//! Exactly once: what a retry gets, and when it is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{asked, delete, fresh, grant, key, put, run};
use quorumfs_api::command::{Command, CreateMode, Owner};
use quorumfs_api::limits::SESSION_WINDOW;
use quorumfs_api::outcome::Refusal;
use quorumfs_api::record::LeaseId;
use quorumfs_machine::{Applied, MemTables, Table, apply, view};

fn append(text: &str) -> Command {
    let (target, create) = (key("/log").into(), CreateMode::Allow);
    Command::Append { target, data: text.to_string().into(), create, parents: false, owner: Owner::FILE }
}

fn ask(tables: &mut MemTables, session: LeaseId, number: u64, done_below: u64, command: Command) -> Applied {
    apply(tables, &asked(session, number, done_below, command)).unwrap()
}

#[test]
fn a_retry_gets_the_first_answer_and_does_nothing() {
    let mut tables = fresh();
    let session = grant(&mut tables);
    let first = ask(&mut tables, session, 1, 1, append("a"));
    assert!(first.event.is_some());
    ask(&mut tables, session, 2, 1, append("b"));
    let after = tables.clone();
    let again = ask(&mut tables, session, 1, 1, append("a"));
    assert_eq!((again.outcome, again.event), (first.outcome, None));
    assert_eq!(tables, after);
    assert_eq!(&view::get(&tables, &key("/log")).unwrap().unwrap().value[..], b"ab");
}

#[test]
fn a_refusal_is_remembered_too() {
    let mut tables = fresh();
    let session = grant(&mut tables);
    let first = ask(&mut tables, session, 1, 1, delete("/x", false)).outcome;
    assert!(matches!(first.result, Err(Refusal::NotFound(_))));
    run(&mut tables, put(key("/x"), "now it is there"));
    assert_eq!(ask(&mut tables, session, 1, 1, delete("/x", false)).outcome, first);
    assert!(view::get(&tables, &key("/x")).unwrap().is_some());
}

#[test]
fn what_the_client_has_is_forgotten() {
    let mut tables = fresh();
    let session = grant(&mut tables);
    for number in 1..=5 {
        ask(&mut tables, session, number, number, append("x"));
    }
    assert_eq!(common::rows(&tables, Table::Results).len(), 1);
    let late = ask(&mut tables, session, 4, 1, append("y"));
    assert_eq!(late.outcome.result, Err(Refusal::Forgotten(4)));
    assert_eq!(ask(&mut tables, session, 0, 0, append("y")).outcome.result, Err(Refusal::Forgotten(0)));
    // A client that says that it has what it asks for now is still answered, and again.
    let early = ask(&mut tables, session, 6, 100, append("z"));
    assert!(early.outcome.result.is_ok());
    assert_eq!(ask(&mut tables, session, 6, 100, append("z")).outcome, early.outcome);
    // Numbers may come out of order.
    assert!(ask(&mut tables, session, 9, 6, append("9")).event.is_some());
    assert!(ask(&mut tables, session, 7, 6, append("7")).event.is_some());
    assert!(ask(&mut tables, session, 8, 6, append("8")).event.is_some());
}

#[test]
fn no_more_than_a_window_is_remembered() {
    let mut tables = fresh();
    let session = grant(&mut tables);
    for number in 1..=SESSION_WINDOW + 10 {
        ask(&mut tables, session, number, 0, Command::LeaseExpire { leases: vec![] });
    }
    assert_eq!(common::rows(&tables, Table::Results).len() as u64, SESSION_WINDOW);
    assert_eq!(ask(&mut tables, session, 10, 0, append("x")).outcome.result, Err(Refusal::Forgotten(10)));
    let far = u64::MAX;
    assert!(ask(&mut tables, session, far, 0, append("x")).outcome.result.is_ok());
    assert_eq!(common::rows(&tables, Table::Results).len(), 1);
}

#[test]
fn a_session_that_ended_is_refused_and_leaves_nothing() {
    let mut tables = fresh();
    let session = grant(&mut tables);
    ask(&mut tables, session, 1, 1, append("x"));
    // A session may end itself; the answer of that is not remembered.
    let revoke = Command::LeaseRevoke { lease: session };
    let ended = ask(&mut tables, session, 2, 1, revoke.clone());
    assert!(ended.outcome.result.is_ok());
    assert!(common::rows(&tables, Table::Results).is_empty());
    let before = tables.clone();
    for (number, command) in [(1, append("x")), (2, revoke), (3, append("y"))] {
        let late = ask(&mut tables, session, number, 1, command);
        assert_eq!(late.outcome.result, Err(Refusal::NoSession(session)));
        assert_eq!(late.event, None);
    }
    assert_eq!(tables, before);
}

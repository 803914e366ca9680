//! The state: the same on each node, readable while it is written, whole on disk, and moved as
//! snapshots.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;

use common::{apply, dump, id, open, proposal, put, put_command};
use openraft::EntryPayload;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use quorumfs_api::Key;
use quorumfs_api::command::{At, Command, RenameMode};
use quorumfs_machine::{MemTables, view};
use quorumfs_store::{
    AppliedAt, Entry, EventsError, Logged, MemberNode, Membership, SnapshotError, SnapshotFile, Snapshots,
    Store,
};
use tokio::io::AsyncReadExt;

fn key(path: String) -> At {
    Key::parse(path).unwrap().into()
}

/// A log with some of everything, the same for the same length.
fn entries(count: u64) -> Vec<Entry> {
    let node = MemberNode { name: "a".into(), addr: "h:1".into() };
    let command = |index: u64| match index % 7 {
        0 => put_command(&format!("/d{}/f", index % 5), vec![b'x'; (index % 400) as usize]),
        1 => Command::Mkdir { at: key(format!("/d{index}")), parents: true, owner: quorumfs_api::Owner::DIR },
        2 => put_command(&format!("/f{}", index % 11), index.to_string()),
        3 => Command::LeaseGrant { ttl_ms: 1000 },
        4 => Command::Delete { at: key(format!("/f{}", index % 11)), recursive: false },
        5 => Command::Rename {
            from: key(format!("/d{}", index % 5)),
            to: key(format!("/moved{index}")),
            mode: RenameMode::Replace,
        },
        _ => put_command("/hot", index.to_string()),
    };
    let mut all = Vec::new();
    for index in 0..count {
        let payload = match index {
            0 => EntryPayload::Membership(
                Membership::new(
                    vec![[1].into()],
                    [(1, node.clone())].into_iter().collect::<std::collections::BTreeMap<_, _>>(),
                )
                .unwrap(),
            ),
            1 => EntryPayload::Blank,
            _ => EntryPayload::Normal(Logged::new(proposal(command(index))).unwrap()),
        };
        all.push(Entry { log_id: id(1, index), payload });
    }
    all
}

async fn contents(store: &Store) -> MemTables {
    dump(&store.state.snapshot_view().await.unwrap())
}

async fn send(from: SnapshotFile, to: &Snapshots, cut: Option<u64>) -> Result<SnapshotFile, SnapshotError> {
    let mut bytes = Vec::new();
    from.into_reader().unwrap().read_to_end(&mut bytes).await.unwrap();
    bytes.truncate(cut.map_or(bytes.len(), |cut| cut as usize));
    let mut receiving = to.receive().unwrap();
    for chunk in bytes.chunks(10_000) {
        receiving.write(chunk).await.unwrap();
    }
    receiving.finish().await
}

#[tokio::test]
async fn a_snapshot_and_the_rest_of_the_log_equal_the_whole_log() {
    let log = entries(600);
    let (a, b, c) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut a, mut b, mut c) = (open(a.path()), open(b.path()), open(c.path()));
    // The whole log at once, and in pieces with flushes in between.
    apply(&mut a.machine, log.clone()).await.unwrap();
    for (number, piece) in log[..400].chunks(37).enumerate() {
        apply(&mut b.machine, piece.to_vec()).await.unwrap();
        if number % 3 == 0 {
            b.state.flush().await.unwrap();
        }
    }
    let snapshot = b.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(id(1, 399)));
    // What C had before has to go.
    apply(&mut c.machine, vec![put(0, "/old", "x")]).await.unwrap();
    let received = send(snapshot.snapshot, &c.snapshots, None).await.unwrap();
    assert_eq!(received.meta(), &snapshot.meta);
    c.machine.install_snapshot(&snapshot.meta, received).await.unwrap();
    assert_eq!(contents(&c).await, contents(&b).await);
    assert_eq!(c.state.applied().borrow().index, 399);

    apply(&mut b.machine, log[400..].to_vec()).await.unwrap();
    apply(&mut c.machine, log[400..].to_vec()).await.unwrap();
    let whole = contents(&a).await;
    assert_eq!(contents(&b).await, whole);
    assert_eq!(contents(&c).await, whole);
    let current = c.machine.get_current_snapshot().await.unwrap().expect("what was installed is current");
    assert_eq!(current.meta, snapshot.meta);
}

#[tokio::test]
async fn a_view_stays_as_it_is_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let log = entries(900);
    let mut views = Vec::new();
    let mut copies = Vec::new();
    for piece in log.chunks(100) {
        apply(&mut store.machine, piece.to_vec()).await.unwrap();
        let view = store.state.snapshot_view().await.unwrap();
        copies.push(dump(&view));
        views.push(view);
        let direct = store.state.read(|tables| Ok(dump(tables))).unwrap();
        assert_eq!(Some(&direct), copies.last(), "a view is what is read directly");
    }
    for (view, copy) in views.iter().zip(&copies) {
        assert_eq!(&dump(view), copy);
    }
    assert_eq!(views.last().unwrap().position().last_log_id, Some(id(1, 899)));
}

#[tokio::test]
async fn a_closed_state_needs_no_log_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    apply(&mut store.machine, entries(300)).await.unwrap();
    let before = store.state.read(|tables| Ok(dump(tables))).unwrap();
    let applied = *store.state.applied().borrow();
    let position = store.state.position();
    store.guard.close().await.unwrap();
    assert!(store.state.read(|_| Ok(())).is_err(), "a closed state says so");

    let mut store = open(dir.path());
    assert_eq!(store.state.read(|tables| Ok(dump(tables))).unwrap(), before);
    assert_eq!(*store.state.applied().borrow(), applied);
    assert_eq!(store.state.position(), position);
    let (last, membership) = store.machine.applied_state().await.unwrap();
    assert_eq!((last, membership.log_id()), (Some(id(1, 299)), &Some(id(1, 0))));
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_the_old_state_stays() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut a, mut b) = (open(a.path()), open(b.path()));
    apply(&mut a.machine, entries(200)).await.unwrap();
    apply(&mut b.machine, vec![put(0, "/old", "x")]).await.unwrap();
    let old = contents(&b).await;
    let build = a.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let size = build.snapshot.bytes().unwrap();
    for cut in [0, 3, 10, size / 2, size - 1] {
        let snapshot = a.snapshots.current().unwrap().unwrap();
        let refused = send(snapshot, &b.snapshots, Some(cut)).await.expect_err("a part of a snapshot");
        assert!(matches!(refused, SnapshotError::Damaged(_)), "cut at {cut}: {refused}");
    }
    let mut bytes = Vec::new();
    a.snapshots.current().unwrap().unwrap().into_reader().unwrap().read_to_end(&mut bytes).await.unwrap();
    for at in (0..bytes.len()).step_by(bytes.len() / 50) {
        let mut receiving = b.snapshots.receive().unwrap();
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        receiving.write(&bad).await.unwrap();
        assert!(receiving.finish().await.is_err(), "byte {at}");
    }
    // Damage that comes after it was received is found too.
    let received = send(a.snapshots.current().unwrap().unwrap(), &b.snapshots, None).await.unwrap();
    let dir = b.snapshots.path().to_owned();
    let part = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "part"))
        .unwrap();
    std::fs::OpenOptions::new().write(true).open(part).unwrap().set_len(size / 2).unwrap();
    assert!(b.machine.install_snapshot(&build.meta, received).await.is_err());
    assert_eq!(contents(&b).await, old);
    assert_eq!(b.state.applied().borrow().index, 0);
    assert!(b.snapshots.current().unwrap().is_none());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "nothing is left over");
}

#[tokio::test]
async fn what_was_half_installed_is_cleaned_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    apply(&mut store.machine, entries(50)).await.unwrap();
    let snapshot = store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let before = contents(&store).await;
    store.guard.close().await.unwrap();
    let left = [
        dir.path().join("state.redb.new"),
        dir.path().join("snapshots/7.part"),
        dir.path().join("snapshots/x.snap"),
    ];
    for path in &left {
        std::fs::write(path, "half").unwrap();
    }
    let mut store = open(dir.path());
    assert!(left.iter().all(|path: &std::path::PathBuf| !Path::new(path).exists()));
    assert_eq!(contents(&store).await, before);
    assert_eq!(store.machine.get_current_snapshot().await.unwrap().unwrap().meta, snapshot.meta);
}

#[tokio::test]
async fn there_is_one_current_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let log = entries(90);
    for piece in log.chunks(30) {
        apply(&mut store.machine, piece.to_vec()).await.unwrap();
        let first = store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let again = store.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        assert_eq!(first.meta, again.meta);
    }
    assert_eq!(std::fs::read_dir(store.snapshots.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn events_come_from_memory_from_the_tables_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut applied = store.state.applied();
    let log: Vec<_> = (0..10_300).map(|index| put(index, "/k", index.to_string())).collect();
    apply(&mut store.machine, log[..100].to_vec()).await.unwrap();
    assert!(applied.has_changed().unwrap());
    assert_eq!(*applied.borrow_and_update(), AppliedAt { index: 99, revision: 100, policy: 0 });
    let revisions = |store: &Store, after, max| -> Vec<u64> {
        store.state.events_after(after, max).unwrap().iter().map(|event| event.revision).collect()
    };
    assert_eq!(revisions(&store, 0, 1000), (1..=100).collect::<Vec<_>>());
    assert_eq!(revisions(&store, 97, 2), [98, 99]);
    assert_eq!(revisions(&store, 100, 2), [0; 0]);
    store.guard.close().await.unwrap();

    // After a start the memory is empty: the tables have them.
    let mut store = open(dir.path());
    assert_eq!(revisions(&store, 0, 1000), (1..=100).collect::<Vec<_>>());
    apply(&mut store.machine, log[100..].to_vec()).await.unwrap();
    assert_eq!(revisions(&store, 10_298, 9), [10_299, 10_300]);
    let Err(EventsError::Behind(behind)) = store.state.events_after(5, 10) else { panic!("it is compacted") };
    assert_eq!(revisions(&store, behind.compacted, 1), [behind.compacted + 1]);
    let compacted = store.state.read(|tables| view::meta(tables)).unwrap().compacted;
    assert_eq!(behind.compacted, compacted);
}

#[tokio::test]
async fn a_snapshot_without_its_state_is_installed_again() {
    // What a crash leaves after a snapshot was received and before the state was switched.
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut a = open(a.path());
    apply(&mut a.machine, entries(200)).await.unwrap();
    a.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let mut store = open(b.path());
    apply(&mut store.machine, entries(100)).await.unwrap();
    store.guard.close().await.unwrap();
    for file in std::fs::read_dir(a.snapshots.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), b.path().join("snapshots").join(file.file_name())).unwrap();
    }

    let mut store = open(b.path());
    assert_eq!(store.state.applied().borrow().index, 99);
    let current = store.machine.get_current_snapshot().await.unwrap().unwrap();
    // openraft does this at its start.
    store.machine.install_snapshot(&current.meta, current.snapshot).await.unwrap();
    assert_eq!(contents(&store).await, contents(&a).await);
    store.guard.close().await.unwrap();
    let store = open(b.path());
    assert_eq!(contents(&store).await, contents(&a).await);
}

//! A client of a cluster, and what the scenarios do with it.
#![allow(dead_code)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use quorumfs_api::client::{Client, Session, Settings, Watch, WatchItem};
use quorumfs_api::event::Event;
use quorumfs_api::wire::{Consistency, WatchStart};
use quorumfs_api::{Command, Revision};
use quorumfs_soak::store::{key, put};
use quorumfs_tests::Cluster;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a watch is listened to when nothing more need come.
pub const QUIET: Duration = Duration::from_millis(300);

/// Threads for the client.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A client that knows these nodes.
pub fn client(cluster: &Cluster, nodes: String) -> Client {
    let nodes = nodes.split(',').map(str::to_string).collect();
    let (certs, name) = (cluster.certs().to_path_buf(), "admin".to_string());
    Client::new(Settings { nodes, certs, name, timeout: PATIENCE }).unwrap()
}

/// Writes, however long it takes; gives the revision.
pub async fn write(session: &Session, command: Command) -> Revision {
    let outcome = session.write(command, PATIENCE).await.unwrap();
    outcome.result.unwrap();
    outcome.revision
}

/// Puts a text.
pub async fn put_text(session: &Session, path: &str, value: impl ToString) -> Revision {
    write(session, put(&key(path), value.to_string())).await
}

/// Deletes a key.
pub async fn delete(session: &Session, path: &str) -> Revision {
    write(session, Command::Delete { at: key(path).into(), recursive: false }).await
}

/// The text of a key.
pub async fn get_text(client: &Client, path: &str) -> Option<String> {
    let (_, record) = client.get(key(path), Consistency::Linearizable, PATIENCE).await.unwrap();
    record.map(|record| String::from_utf8_lossy(&record.value).into_owned())
}

/// So many bytes on a key that nobody watches: when the event log is full, its oldest events go.
pub async fn fill_the_log(session: &Session, bytes: usize) -> Revision {
    write(session, put(&key("/elsewhere/large"), Bytes::from(vec![b'x'; bytes]))).await
}

/// Watches a directory for what comes after a revision; without a copy.
pub fn watch(client: &Client, dir: &str, after: Revision) -> Watch {
    client.watch(WatchStart { prefix: key(dir), after: Some(after), copy_when_behind: false })
}

/// What a watcher was told.
#[derive(Debug, Default)]
pub struct Heard {
    /// All events.
    pub events: Vec<Event>,
    /// Up to where it knows that it has everything.
    pub to: Revision,
    /// It was told that what comes next is gone; a watch can begin after this.
    pub compacted: Option<Revision>,
    /// The nodes it came from.
    pub nodes: Vec<String>,
}

impl Heard {
    /// Revisions of the events.
    pub fn revisions(&self) -> Vec<Revision> {
        self.events.iter().map(|event| event.revision).collect()
    }
}

/// Listens until everything up to `goal` has come, or the watch says that it cannot.
pub async fn listen(watch: &mut Watch, goal: Revision) -> Heard {
    listen_until(watch, |heard| heard.to >= goal).await
}

/// Listens until so many events have come, or the watch says that it cannot.
pub async fn listen_for(watch: &mut Watch, events: usize) -> Heard {
    listen_until(watch, |heard| heard.events.len() >= events).await
}

async fn listen_until(watch: &mut Watch, enough: impl Fn(&Heard) -> bool) -> Heard {
    let mut heard = Heard::default();
    let begun = Instant::now();
    while !enough(&heard) && heard.compacted.is_none() {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        let item = timeout(left, watch.next()).await;
        match item {
            Ok(Some(WatchItem::Events(events))) => {
                heard.to = events.last().map_or(heard.to, |event| heard.to.max(event.revision));
                heard.events.extend(events);
            }
            Ok(Some(WatchItem::Progress(revision))) => heard.to = heard.to.max(revision),
            Ok(Some(WatchItem::Compacted(revision))) => heard.compacted = Some(revision),
            Ok(Some(WatchItem::Connected(node))) => heard.nodes.push(node),
            Ok(Some(WatchItem::Disconnected(_) | WatchItem::Rights(_))) => {}
            other => panic!("a watch got {other:?} after {heard:?}"),
        }
    }
    heard
}

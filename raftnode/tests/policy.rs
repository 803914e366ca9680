//! The policy on a running cluster: on every node, on watches that run, on connections that are open.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use certs::Paths;
use common::{ADMIN, Client, Cluster, eventually, within};
use quorumfs_api::command::Command;
use quorumfs_api::event::Change;
use quorumfs_api::outcome::Refusal;
use quorumfs_api::rights::Access;
use quorumfs_api::wire::{Admin, Answer, Call, Consistency, Failure, Prefix, WatchFrame};
use quorumfs_api::{Ino, Key, LeaseId};

const POLICY: &str = "/.quorumfs/policy";
const RULES: &str = "\
deny = [\"lost\"]
[[rule]]
who = [\"admin\"]
admin = true
write = [\"/\"]
[[rule]]
who = [\"web*\"]
read = [\"/shared\"]
write = [\"/apps/{name}\"]
";

fn key(text: &str) -> Key {
    Key::parse(text.to_owned()).unwrap()
}

async fn connect(cluster: &Cluster, id: u64, name: &str) -> Client {
    let paths = Paths::in_dir(&cluster.site.certs(), name);
    if !paths.cert.exists() {
        cluster.site.client(name);
    }
    Client::connect(cluster.addr(id), &paths).await.unwrap()
}

async fn set_policy(cluster: &Cluster, text: &str) -> u64 {
    let outcome = cluster.leader().await.put(POLICY, text.as_bytes()).await.unwrap();
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    outcome.revision
}

async fn keys_of(client: &Client, prefix: &str, consistency: Consistency) -> Result<Vec<String>, Failure> {
    let prefix = Prefix::Tree(key(prefix));
    let call = Call::Range { prefix, keys_only: true, after: None, limit: 1000, consistency };
    match client.call(call).await? {
        Answer::Range { items, .. } => Ok(items.into_iter().map(|(key, _)| key.to_string()).collect()),
        other => panic!("{other:?}"),
    }
}

fn denied<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    match result {
        Err(Failure::Denied(why)) => why,
        other => panic!("it is not denied: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_decides_alike_for_reads_and_writes() {
    let cluster = Cluster::of(3).await;
    let admin = cluster.leader().await;
    for path in ["/shared/x", "/apps/web1/x", "/apps/web2/x", "/private/x"] {
        admin.put(path, b"1").await.unwrap();
    }
    let leader = cluster.leader_id().await;
    let web = connect(&cluster, leader, "web1").await;
    assert_eq!(web.get("/private/x").await.unwrap().unwrap(), "1", "without a policy all is open");
    let revision = set_policy(&cluster, RULES).await;

    assert!(denied(web.get("/private/x").await).contains("client/web1 may not read /private/x: no line"));
    assert_eq!(web.get("/shared/x").await.unwrap().unwrap(), "1");
    assert!(web.put("/apps/web1/x", b"2").await.unwrap().result.is_ok());
    match web.put("/shared/x", b"2").await.unwrap().result {
        Err(Refusal::Denied(why)) => {
            assert!(why.contains("line 8 of the policy gives read on /shared"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    let seen = ["/apps", "/apps/web1", "/apps/web1/x", "/shared", "/shared/x"];
    assert_eq!(keys_of(&web, "/", Consistency::Linearizable).await.unwrap(), seen);
    assert!(denied(keys_of(&web, "/private", Consistency::Linearizable).await).contains("list /private"));
    assert!(denied(web.get(POLICY).await).contains("for admins"));
    // What it may do, it is told.
    match web.call(Call::Rights).await.unwrap() {
        Answer::Rights { policy, rights } => {
            assert_eq!((policy, rights.admin), (revision, false));
            assert_eq!(rights.access(&key("/apps/web1/new")), Access::Write);
        }
        other => panic!("{other:?}"),
    }
    // The others answer by it as soon as they have it.
    for id in (1..=3).filter(|id| *id != leader) {
        let web = connect(&cluster, id, "web1").await;
        eventually("the node has the policy", || async {
            (cluster.applied(id).await >= cluster.applied(leader).await).then_some(())
        })
        .await;
        assert_eq!(keys_of(&web, "/", Consistency::Serializable).await.unwrap(), seen);
        denied(web.get_with("/private/x", Consistency::Serializable).await);
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_outlives_restarts_and_snapshots() {
    let mut cluster = Cluster::one_with(|config| config.snapshot_every = 20).await;
    cluster.leader().await.put("/private/x", b"1").await.unwrap();
    set_policy(&cluster, RULES).await;
    cluster.leader().await.put_many("/private/x", 60).await;
    cluster.admin(Admin::Snapshot).await;
    // A node that joins gets it by the snapshot.
    cluster.join(2, |_| {}).await;
    let web = connect(&cluster, 2, "web1").await;
    eventually("the new node has the policy", || async {
        matches!(web.get_with("/private/x", Consistency::Serializable).await, Err(Failure::Denied(_)))
            .then_some(())
    })
    .await;
    cluster.stop(1).await;
    cluster.start(1).await;
    cluster.leader_id().await;
    let web = connect(&cluster, 1, "web1").await;
    denied(web.get("/private/x").await);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_the_cluster_is_for_admins() {
    let cluster = Cluster::one().await;
    let tester = connect(&cluster, 1, "tester").await;
    for admin in [Admin::Remove(1), Admin::Snapshot, Admin::Transfer(None), Admin::Promote(1)] {
        let why = denied(tester.call(Call::Admin(admin)).await);
        assert!(why.contains("only nodes and the client \"admin\""), "{why}");
    }
    cluster.admin(Admin::Snapshot).await;
    set_policy(&cluster, RULES).await;
    assert!(denied(tester.call(Call::Admin(Admin::Snapshot)).await).contains("no rule of the policy"));
    cluster.admin(Admin::Snapshot).await;
    // The way back of those who have locked themselves out: a node's certificate.
    let node = connect(&cluster, 1, "n1").await;
    assert!(node.put(POLICY, b"").await.unwrap().result.is_ok());
    let admin = cluster.client(1).await;
    denied(admin.call(Call::Admin(Admin::Snapshot)).await);
    assert!(matches!(node.call(Call::Admin(Admin::Snapshot)).await, Ok(Answer::Done)));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_and_locks_of_others_are_none_of_ones_business() {
    let cluster = Cluster::one().await;
    let admin = cluster.client(1).await;
    admin.put("/private/x", b"1").await.unwrap();
    set_policy(&cluster, RULES).await;
    let web = connect(&cluster, 1, "web1").await;
    let (mine, others) = (web.grant(60_000).await, admin.grant(60_000).await);
    assert!(matches!(web.call(Call::KeepAlive(mine)).await, Ok(Answer::KeptAlive(_))));
    assert!(denied(web.call(Call::KeepAlive(others)).await).contains("belongs to admin"));
    denied(web.call(Call::Leases(Some(others))).await);
    let all = |answer| match answer {
        Ok(Answer::Leases(found)) => found.iter().map(|info| info.id).collect::<Vec<LeaseId>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(all(web.call(Call::Leases(None)).await), [mine]);
    assert_eq!(all(admin.call(Call::Leases(None)).await), [mine, others]);
    let revoked = web.write_in(None, Command::LeaseRevoke { lease: others }).await.unwrap();
    assert!(matches!(revoked.result, Err(Refusal::Denied(_))), "{revoked:?}");
    let Ok(Some(hidden)) = admin.get_with("/private/x", Consistency::Linearizable).await else { panic!() };
    denied(web.call(Call::Locks(hidden.ino)).await);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_name_is_cut_off_at_once_and_the_others_are_not() {
    let cluster = Cluster::of(3).await;
    let mut cut = Vec::new();
    for id in 1..=3 {
        let client = connect(&cluster, id, "lost").await;
        assert!(matches!(client.call(Call::Status).await, Ok(Answer::Status(_))));
        // One that only listens is cut off, too.
        let watch = client.watch("/", None, true).await;
        cut.push((id, client, watch));
    }
    let web = connect(&cluster, 1, "web1").await;
    set_policy(&cluster, RULES).await;
    for (id, client, _watch) in &cut {
        let reason = match within("the end", client.connection.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                String::from_utf8_lossy(&close.reason).into_owned()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(reason, "client/lost is denied by line 1 of the policy");
        // And does not come in again.
        let again = connect(&cluster, *id, "lost").await;
        within("the end", again.connection.closed()).await;
    }
    assert!(matches!(web.call(Call::Status).await, Ok(Answer::Status(_))));
    assert_eq!(web.connection.close_reason(), None);
    // Until the policy says otherwise.
    set_policy(&cluster, &RULES.replace("\"lost\"", "")).await;
    eventually("it is let in again", || async {
        let client = connect(&cluster, 1, "lost").await;
        tokio::select! {
            status = client.call(Call::Status) => status.ok().map(drop),
            _ = client.connection.closed() => None,
        }
    })
    .await;
    cluster.end().await;
}

/// What a watcher has been shown, by names.
#[derive(Default)]
struct Mirror {
    at: std::collections::BTreeMap<Ino, (Ino, String)>,
    root: Option<Ino>,
    copies: usize,
}

impl Mirror {
    fn paths(&self) -> BTreeSet<String> {
        let path = |mut ino: Ino| {
            let mut text = String::new();
            while let Some((parent, name)) = self.at.get(&ino) {
                text = format!("/{name}{text}");
                ino = *parent;
            }
            text
        };
        self.at.keys().map(|ino| path(*ino)).collect()
    }

    fn take(&mut self, frame: WatchFrame) {
        match frame {
            WatchFrame::CopyBegin { root, .. } => {
                self.at.clear();
                self.root = root.map(|record| record.ino);
                self.copies += 1;
            }
            WatchFrame::CopyPart(nodes) => {
                for node in nodes {
                    let known = Some(node.parent) == self.root || self.at.contains_key(&node.parent);
                    assert!(known, "{} without its directory", node.name);
                    self.at.insert(node.record.ino, (node.parent, node.name.to_string()));
                }
            }
            WatchFrame::Events(events) => {
                for change in events.into_iter().flat_map(|event| event.changes) {
                    match change {
                        Change::Create { place, record } => {
                            let at = (place.parent, place.name.to_string());
                            assert!(self.at.insert(record.ino, at).is_none());
                        }
                        Change::Update { record, .. } => assert!(self.at.contains_key(&record.ino)),
                        Change::Remove { ino, .. } => {
                            assert!(self.at.remove(&ino).is_some());
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            WatchFrame::CopyEnd | WatchFrame::Progress(_) | WatchFrame::Rights(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_runs_shows_what_each_policy_lets_be_seen() {
    let cluster = Cluster::of(3).await;
    let admin = cluster.leader().await;
    let paths = ["/a/x", "/a/sub/y", "/b/x", "/c/d/e/f"];
    for path in paths {
        admin.put(path, b"0").await.unwrap();
    }
    let rules =
        |rules: &str| format!("[[rule]]\nwho = [\"{ADMIN}\"]\nadmin = true\nwrite = [\"/\"]\n{rules}");
    // A follower serves it.
    let follower = (1..=3).find(|id| *id != 1).unwrap();
    let web = connect(&cluster, follower, "web1").await;
    let mut watch = web.watch("/", None, true).await;
    let mut mirror = Mirror::default();
    // What comes into the directory of the policy is not always one.
    admin.put("/.quorumfs/notes", b"1").await.unwrap();
    let marker = admin.put("/a/x", b"1").await.unwrap().revision;
    loop {
        let frame = watch.frame().await.expect("the watch goes on");
        let reached = matches!(&frame, WatchFrame::Events(events) if events.iter().any(|e| e.revision >= marker))
            || matches!(&frame, WatchFrame::CopyBegin { revision, .. } if *revision >= marker);
        mirror.take(frame);
        if reached {
            break;
        }
    }
    let web_rule = |lines: &str| rules(&format!("[[rule]]\nwho = [\"web*\"]\n{lines}\n"));
    let all = ["/a", "/a/x", "/a/sub", "/a/sub/y", "/b", "/b/x", "/c", "/c/d", "/c/d/e", "/c/d/e/f"];
    let steps: Vec<(String, Vec<&str>, bool)> = vec![
        // Everything goes but the way to what is read; then it comes back; and a rule about others changes nothing.
        (web_rule("read = [\"/a/sub\"]"), vec!["/a", "/a/sub", "/a/sub/y"], true),
        (web_rule("read = [\"/\"]"), all.to_vec(), true),
        (web_rule("read = [\"/\"]") + "# a remark\n", all.to_vec(), false),
        (web_rule("read = [\"/\"]\nnone = [\"/a/sub\", \"/c\"]"), vec!["/a", "/a/x", "/b", "/b/x"], true),
        (rules(""), vec![], true),
        (
            web_rule("read = [\"/c/d/e/f\", \"/b\"]"),
            vec!["/b", "/b/x", "/c", "/c/d", "/c/d/e", "/c/d/e/f"],
            true,
        ),
    ];
    for (step, (policy, seen, copies)) in steps.into_iter().enumerate() {
        set_policy(&cluster, &policy).await;
        // What is done under it, for all to see and for some.
        let mut marker = 0;
        for path in paths {
            marker = cluster.leader().await.put(path, step.to_string().as_bytes()).await.unwrap().revision;
        }
        let before = mirror.copies;
        loop {
            let frame = watch.frame().await.expect("the watch goes on");
            let reached = match &frame {
                WatchFrame::Progress(at) => *at >= marker,
                WatchFrame::Events(events) => events.last().is_some_and(|event| event.revision >= marker),
                _ => false,
            };
            mirror.take(frame);
            if reached {
                break;
            }
        }
        let mut seen: BTreeSet<String> = seen.iter().map(|path| path.to_string()).collect();
        if policy.contains("read = [\"/\"]") {
            // Of what is for admins nothing is seen, whatever "/" gives.
            seen.retain(|path| !path.starts_with("/.quorumfs"));
        }
        assert_eq!(mirror.paths(), seen, "under\n{policy}");
        if step > 0 {
            assert_eq!(mirror.copies > before, copies, "step {step}: {} copies", mirror.copies - before);
        }
    }
    cluster.end().await;
}

//! The store under a real openraft: three members in one process, which call each other directly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{DEADLINE, dump, open, proposal, put_command};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, Config, OptionalSend, SnapshotPolicy};
use parking_lot::Mutex;
use quorumfs_machine::view;
use quorumfs_store::{
    Logged, MemberNode, NodeId, Raft, Snapshot, SnapshotFile, Snapshots, State, StoreGuard, TypeConfig, Vote,
};
use tokio::io::AsyncReadExt;

/// Members that can be reached.
type Members = Arc<Mutex<BTreeMap<NodeId, (Raft, Snapshots)>>>;

#[derive(Clone)]
struct Network {
    members: Members,
    target: NodeId,
}

impl Network {
    fn peer(&self) -> Result<(Raft, Snapshots), Unreachable<TypeConfig>> {
        let peer = self.members.lock().get(&self.target).cloned();
        peer.ok_or_else(|| Unreachable::new(&AnyError::error("not running")))
    }
}

fn unreachable<E: std::error::Error + 'static>(error: E) -> Unreachable<TypeConfig> {
    Unreachable::new(&error)
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Network;
    async fn new_client(&mut self, target: NodeId, _: &MemberNode) -> Network {
        Network { members: self.members.clone(), target }
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.peer()?.0.append_entries(rpc).await.map_err(unreachable)?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.peer()?.0.vote(rpc).await.map_err(unreachable)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (raft, snapshots) = self.peer()?;
        let mut receiving = snapshots.receive().map_err(unreachable)?;
        let mut from = snapshot.snapshot.into_reader().map_err(unreachable)?;
        let mut chunk = vec![0; 64 << 10];
        loop {
            match from.read(&mut chunk).await.map_err(unreachable)? {
                0 => break,
                read => receiving.write(&chunk[..read]).await.map_err(unreachable)?,
            }
        }
        let snapshot = receiving.finish().await.map_err(unreachable)?;
        let snapshot = Snapshot { meta: snapshot.meta().clone(), snapshot };
        Ok(raft.install_full_snapshot(vote, snapshot).await.map_err(unreachable)?)
    }
}

struct Member {
    raft: Raft,
    state: State,
    guard: StoreGuard,
}

async fn start(id: NodeId, dir: &Path, members: &Members) -> Member {
    let config = Config {
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        purge_batch_size: 1,
        // Long enough for a machine that does much else.
        heartbeat_interval: 200,
        election_timeout_min: 1000,
        election_timeout_max: 2000,
        ..Config::default()
    };
    let store = open(dir);
    let network = Network { members: members.clone(), target: id };
    let config = Arc::new(config.validate().unwrap());
    let raft = Raft::new(id, config, network, store.log, store.machine).await.unwrap();
    members.lock().insert(id, (raft.clone(), store.snapshots));
    Member { raft, state: store.state, guard: store.guard }
}

async fn stop(id: NodeId, member: Member, members: &Members) {
    members.lock().remove(&id);
    member.raft.shutdown().await.unwrap();
    drop(member.raft);
    member.guard.close().await.unwrap();
}

fn node(id: NodeId) -> MemberNode {
    MemberNode { name: format!("n{id}"), addr: format!("n{id}:1") }
}

async fn write(member: &Member, from: u64, count: u64) {
    let writes = (from..from + count).map(|number| {
        let logged =
            Logged::new(proposal(put_command(&format!("/k{}", number % 300), number.to_string()))).unwrap();
        member.raft.client_write(logged)
    });
    for written in futures::future::join_all(writes).await {
        let outcome = written.unwrap().data;
        outcome.result.unwrap();
        let applied = member.state.applied().borrow().revision;
        assert!(applied >= outcome.revision, "who has an answer can read what it says");
    }
}

async fn reach(member: &Member, index: u64) {
    let wait = member.raft.wait(Some(DEADLINE));
    wait.applied_index_at_least(Some(index), "the log is applied").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_agree_after_snapshots_purges_and_restarts() {
    let members = Members::default();
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let one = start(1, dirs[0].path(), &members).await;
    one.raft.initialize(BTreeMap::from([(1, node(1))])).await.unwrap();
    one.raft.wait(Some(DEADLINE)).current_leader(1, "a leader").await.unwrap();
    let two = start(2, dirs[1].path(), &members).await;
    one.raft.add_learner(2, node(2), true).await.unwrap();
    write(&one, 0, 1000).await;
    one.raft.add_learner(3, node(3), false).await.unwrap();

    // The log goes, so that the third can only come by a snapshot.
    one.raft.trigger().snapshot().await.unwrap();
    let last = one.state.applied().borrow().index;
    let wait = one.raft.wait(Some(DEADLINE));
    wait.metrics(|metrics| metrics.purged.is_some_and(|purged| purged.index >= last), "purged")
        .await
        .unwrap();
    let three = start(3, dirs[2].path(), &members).await;
    reach(&three, last).await;
    one.raft.change_membership(BTreeSet::from([1, 2, 3]), false).await.unwrap();
    write(&one, 1000, 1000).await;

    // A follower is away, and comes back by the log.
    stop(3, three, &members).await;
    write(&one, 2000, 500).await;
    let last = one.state.applied().borrow().index;
    let three = start(3, dirs[2].path(), &members).await;
    assert!(three.state.applied().borrow().index > 1000, "it begins where it was");
    for member in [&one, &two, &three] {
        reach(member, last).await;
    }
    let mut dumps = Vec::new();
    for member in [&one, &two, &three] {
        dumps.push(dump(&member.state.snapshot_view().await.unwrap()));
    }
    assert!(dumps[0] == dumps[1] && dumps[1] == dumps[2], "all have the same rows");
    assert_eq!(one.state.read(|tables| view::meta(tables)).unwrap().revision, 2500);

    // All restart, from clean directories.
    for (id, member) in [(3, three), (2, two), (1, one)] {
        stop(id, member, &members).await;
    }
    let one = start(1, dirs[0].path(), &members).await;
    assert_eq!(one.state.read(|tables| view::meta(tables)).unwrap().revision, 2500);
    let two = start(2, dirs[1].path(), &members).await;
    // Leadership may move again right after it was seen: whoever has it takes the write.
    let start = Instant::now();
    let mut written = false;
    while !written {
        assert!(start.elapsed() < DEADLINE, "no leader takes a write");
        for member in [&one, &two] {
            let logged = Logged::new(proposal(put_command("/after", "restart"))).unwrap();
            let wait = member.raft.wait(Some(DEADLINE));
            wait.metrics(|metrics| metrics.current_leader.is_some(), "a leader").await.unwrap();
            written |= member.raft.client_write(logged).await.is_ok();
        }
    }
    assert!(one.state.applied().borrow().revision > 2500 || two.state.applied().borrow().revision > 2500);
    for (id, member) in [(2, two), (1, one)] {
        stop(id, member, &members).await;
    }
}

/// Not a claim, a figure to look at: run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn how_fast_one_member_writes() {
    let members = Members::default();
    let dir = tempfile::tempdir().unwrap();
    let one = start(1, dir.path(), &members).await;
    one.raft.initialize(BTreeMap::from([(1, node(1))])).await.unwrap();
    one.raft.wait(Some(DEADLINE)).current_leader(1, "a leader").await.unwrap();
    for clients in [1u64, 16, 64, 256] {
        let start = Instant::now();
        let end = start + Duration::from_secs(3);
        let tasks = (0..clients).map(|client| {
            let raft = one.raft.clone();
            tokio::spawn(async move {
                let mut count = 0u64;
                while Instant::now() < end {
                    let command = put_command(&format!("/k{client}/{}", count % 1000), vec![b'v'; 256]);
                    raft.client_write(Logged::new(proposal(command)).unwrap()).await.unwrap();
                    count += 1;
                }
                count
            })
        });
        let counts = futures::future::join_all(tasks).await;
        let total: u64 = counts.into_iter().map(|count| count.unwrap()).sum();
        println!("{clients:>4} clients: {:>8.0} puts a second", total as f64 / start.elapsed().as_secs_f64());
    }
    stop(1, one, &members).await;
}

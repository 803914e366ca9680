//! A new node asks the members it was told of to be added, until one does it.

use std::sync::Arc;
use std::time::Duration;

use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::wire::{Admin, Answer, Call, Failure, Hello, Member, Reply, Request};

use crate::config::split_addr;
use crate::endpoint::Endpoint;
use crate::progress;
use crate::service::Context;

/// Time for one try at one node.
const TRY: Duration = Duration::from_secs(5);
/// Between two rounds through all nodes.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a leader's address is followed before the round goes on.
const HINTS: usize = 4;

/// Asks until this node is in a cluster, or stops.
pub async fn run(endpoint: Endpoint, context: Arc<Context>) {
    let config = &context.config;
    if config.join.is_empty() || is_member(&context) {
        return;
    }
    let me =
        Member { id: config.id, name: config.name.clone(), addr: context.advertise.clone(), voter: false };
    let mut said = String::new();
    loop {
        for addr in &config.join {
            match ask(&endpoint, addr, &me).await {
                Ok(()) => return tracing::info!("this node was added to the cluster as a learner"),
                Err(why) => {
                    let why = format!("cannot join through {addr}: {why}");
                    if why != said {
                        tracing::warn!("{why}; trying again");
                        said = why;
                    }
                }
            }
            if is_member(&context) {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = context.stop.raised() => return,
        }
    }
}

fn is_member(context: &Context) -> bool {
    progress::now(&context.raft.metrics()).membership_config.nodes().next().is_some()
}

/// Asks the node at `addr`, and the leader that it names.
async fn ask(endpoint: &Endpoint, addr: &str, me: &Member) -> Result<(), String> {
    let mut addr = addr.to_owned();
    for _ in 0..HINTS {
        let answer =
            tokio::time::timeout(TRY, call(endpoint, &addr, Call::Admin(Admin::AddLearner(me.clone()))))
                .await;
        match answer.map_err(|_| format!("{addr} does not answer"))?? {
            Ok(Answer::Done) => return Ok(()),
            Err(Failure::NotLeader(Some(leader))) => addr = leader.addr,
            Ok(other) => return Err(format!("{addr} gave a strange answer: {other:?}")),
            Err(failure) => return Err(failure.to_string()),
        }
    }
    Err("the leader moves too often".into())
}

/// One call on a connection of its own.
async fn call(endpoint: &Endpoint, addr: &str, call: Call) -> Result<Result<Answer, Failure>, String> {
    let (host, port) = split_addr(addr)?;
    let addrs = tokio::net::lookup_host((host, port)).await.map_err(|e| e.to_string())?;
    let addr = addrs
        .into_iter()
        .find(|addr| endpoint.can_reach(addr))
        .ok_or("it has no address that can be reached")?;
    let connection = endpoint.connect_client(addr, host).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        let hello = codec::encode(FrameKind::Hello, &Hello::Calls).map_err(|e| e.to_string())?;
        let request = Request { id: 1, timeout_ms: TRY.as_millis() as u32, call };
        let request = codec::encode(FrameKind::Request, &request).map_err(|e| e.to_string())?;
        send.write_all_chunks(&mut [hello, request]).await.map_err(|e| e.to_string())?;
        let reply = codec::read::<Reply, _>(FrameKind::Reply, &mut recv).await.map_err(|e| e.to_string())?;
        reply.map(|reply| reply.answer).ok_or_else(|| "it ended without an answer".to_owned())
    };
    let answer = exchange.await;
    connection.close(0u32.into(), b"done");
    answer
}

//! Clients that break the rules get a clear error and take nobody down.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Cluster, client::Client, client::put, eventually, within};
use proptest::prelude::*;
use proptest::test_runner::{Config as PropConfig, TestRunner};
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::command::LeaseChange;
use quorumfs_api::limits::FRAME_MAX;
use quorumfs_api::wire::{Answer, Call, Failure, Hello, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn cut_off(client: &Client) -> String {
    match within("the connection is closed", client.connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        other => panic!("{other:?}"),
    }
}

async fn send(client: &Client, bytes: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, recv) = client.connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    (send, recv)
}

fn calls() -> Vec<u8> {
    codec::encode(FrameKind::Hello, &Hello::Calls).unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_protocol_is_answered_with_a_reason() {
    let cluster = Cluster::one().await;
    let client = cluster.client(1).await;
    let _streams = send(&client, b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n").await;
    let why = cut_off(&client).await;
    assert!(why.contains("bytes; "), "{why}");

    // A length over the limit, before anything else of it has come.
    let client = cluster.client(1).await;
    let mut bytes = calls();
    bytes.extend_from_slice(&(FRAME_MAX as u32 + 1).to_le_bytes());
    let _streams = send(&client, &bytes).await;
    let why = cut_off(&client).await;
    assert!(why.contains("is the most"), "{why}");

    // A frame that was changed on the way.
    let client = cluster.client(1).await;
    let request = Request { id: 1, timeout_ms: 1000, call: Call::Status };
    let mut frame = codec::encode(FrameKind::Request, &request).unwrap().to_vec();
    *frame.last_mut().unwrap() ^= 1;
    let _streams = send(&client, &[calls(), frame].concat()).await;
    let why = cut_off(&client).await;
    assert!(why.contains("checksum"), "{why}");

    // A frame of the wrong kind.
    let client = cluster.client(1).await;
    let frame = codec::encode(FrameKind::Watch, &request).unwrap();
    let _streams = send(&client, &[calls(), frame.to_vec()].concat()).await;
    let why = cut_off(&client).await;
    assert!(why.contains("kind"), "{why}");
    cluster.end().await;
}

#[test]
fn arbitrary_bytes_never_bring_a_node_down() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cluster = runtime.block_on(Cluster::one());
    // Proptest prints the seed of a case that fails, and writes it beside this file.
    let mut runner = TestRunner::new(PropConfig { cases: 150, ..PropConfig::default() });
    let bytes = proptest::collection::vec(any::<u8>(), 0..600);
    let shape = (0u8..4, bytes);
    runner
        .run(&shape, |(shape, body)| {
            runtime.block_on(async {
                let client = cluster.client(1).await;
                let framed = |kind: FrameKind, body: &[u8]| {
                    let mut content = vec![codec::VERSION, kind as u8];
                    content.extend_from_slice(body);
                    let crc = crc32fast::hash(&content);
                    let mut frame = ((content.len() + 4) as u32).to_le_bytes().to_vec();
                    frame.extend_from_slice(&content);
                    frame.extend_from_slice(&crc.to_le_bytes());
                    frame
                };
                let bytes = match shape {
                    0 => body,
                    1 => framed(FrameKind::Hello, &body),
                    2 => [calls(), body].concat(),
                    _ => [calls(), framed(FrameKind::Request, &body)].concat(),
                };
                let Ok((mut send, mut recv)) = client.connection.open_bi().await else { return };
                let _ = send.write_all(&bytes).await;
                let _ = send.shutdown().await;
                // It answers, ends the stream or the connection; what it must not do is hang.
                let mut answer = Vec::new();
                let mut some = (&mut recv).take(4096);
                let ended = tokio::time::timeout(common::PATIENCE, some.read_to_end(&mut answer)).await;
                assert!(ended.is_ok() || !answer.is_empty());
            });
            Ok(())
        })
        .unwrap();
    runtime.block_on(async {
        assert!(cluster.client(1).await.put("/alive", b"1").await.is_ok());
        cluster.end().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_are_told_so() {
    let cluster = Cluster::one_with(|config| config.requests_per_connection = 4).await;
    let client = cluster.client(1).await;
    let mut frames = calls();
    const COUNT: u64 = 400;
    for id in 0..COUNT {
        let call = Call::Write { session: None, command: put("/x", &[1; 100], LeaseChange::Keep) };
        codec::encode_into(FrameKind::Request, &Request { id, timeout_ms: 10_000, call }, &mut frames)
            .unwrap();
    }
    let (_send, mut recv) = send(&client, &frames).await;
    let (mut done, mut busy) = (0, 0);
    for _ in 0..COUNT {
        let reply: Reply =
            within("a reply", codec::read(FrameKind::Reply, &mut recv)).await.unwrap().unwrap();
        match reply.answer {
            Ok(Answer::Written(_)) => done += 1,
            Err(Failure::Busy(_)) => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(done > 0 && busy > 0, "{done} done, {busy} busy");
    // And afterwards there is room again.
    assert!(client.put("/y", b"1").await.is_ok());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_watches_are_bounded() {
    let cluster = Cluster::one_with(|config| {
        config.connections_per_identity = 3;
        config.watches_max = 2;
    })
    .await;
    let clients = [cluster.client(1).await, cluster.client(1).await, cluster.client(1).await];
    for client in &clients {
        assert!(client.call(Call::Status).await.is_ok());
    }
    let one_more = cluster.client(1).await;
    assert!(cut_off(&one_more).await.contains("too many connections"));
    let mut first = clients[0].watch("/", None, true).await;
    let mut second = clients[1].watch("/", None, true).await;
    first.copy().await;
    second.copy().await;
    let (mut send, mut recv) = clients[2].connection.open_bi().await.unwrap();
    let start = quorumfs_api::wire::WatchStart {
        prefix: quorumfs_api::Key::root(),
        after: None,
        copy_when_behind: true,
    };
    send.write_all(&codec::encode(FrameKind::Hello, &Hello::Watch(start)).unwrap()).await.unwrap();
    assert!(within("the refusal", recv.read_to_end(1024)).await.is_err(), "the stream was reset");
    drop(first);
    let mut third = eventually("there is room again", || async {
        let mut watch = clients[2].watch("/", None, true).await;
        watch.try_next().await.map(|_| watch)
    })
    .await;
    assert!(third.next().await.is_some());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_over_the_limit_and_half_requests_are_refused() {
    let cluster = Cluster::one_with(|config| config.value_max = 1000).await;
    let client = cluster.client(1).await;
    let refused = client.put("/x", &[0; 1001]).await.unwrap();
    assert!(matches!(refused.result, Err(quorumfs_api::Refusal::ValueTooLarge { size: 1001, limit: 1000 })));
    // Half a request, and then the end.
    let request = Request { id: 1, timeout_ms: 1000, call: Call::Status };
    let frame = codec::encode(FrameKind::Request, &request).unwrap();
    let (mut half, mut recv) = send(&client, &[&calls(), &frame[..frame.len() / 2]].concat()).await;
    half.finish().unwrap();
    let _ = within("the end of the stream", recv.read_to_end(1024)).await;
    // The rest of the connection is none the worse.
    assert!(client.put("/x", &[0; 1000]).await.unwrap().result.is_ok());
    cluster.end().await;
}

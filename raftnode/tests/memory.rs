//! However bad its clients are, a node's memory stays bounded, and the others are served. The bounds are
//! in docs/limits.md; here they are measured. Node and clients are in this one process, so that what is
//! measured is more than what the node takes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use certs::{Credentials, Paths};
use common::client::{Client, put, quic_config};
use common::{Cluster, PATIENCE, eventually, within};
use quorumfs_api::client::{Client as RealClient, Settings, WatchItem};
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::command::LeaseChange;
use quorumfs_api::transport::{ALPN_CLIENT, close};
use quorumfs_api::wire::{Answer, Call, Hello, Request, WatchStart};
use quorumfs_api::{Key, Revision};
use tokio::sync::{Mutex, MutexGuard};

/// One test at a time: the memory is that of the process.
static TURN: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Resident memory of this process, in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

fn grown(since: u64) -> u64 {
    resident().saturating_sub(since)
}

/// Watches that are open on the first node.
async fn open_watches(client: &Client) -> u64 {
    match client.call(Call::Status).await {
        Ok(Answer::Status(status)) => status.watches,
        other => panic!("{other:?}"),
    }
}

fn real_client(cluster: &Cluster) -> RealClient {
    let settings = Settings {
        nodes: vec![cluster.addr(1).to_string()],
        certs: cluster.site.certs(),
        name: "tester".into(),
        timeout: PATIENCE,
    };
    RealClient::new(settings).unwrap()
}

fn everything(after: Option<Revision>) -> WatchStart {
    WatchStart { prefix: Key::root(), after, copy_when_behind: false }
}

/// Median time of some puts, one after the other.
async fn put_time(client: &Client) -> Duration {
    let mut times = Vec::new();
    for _ in 0..41 {
        let begun = Instant::now();
        client.put("/time", b"x").await.unwrap().result.unwrap();
        times.push(begun.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// Watchers that read nothing cost their QUIC windows and no more; the one that reads sees everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_do_not_read_cost_little() {
    const WATCHERS: usize = 30;
    const VALUE: usize = 512 << 10;
    const PUTS: usize = 60;
    let _turn = alone().await;
    let cluster = Cluster::one().await;
    let mut asleep = Vec::new();
    for _ in 0..WATCHERS {
        let client = cluster.client(1).await;
        let mut watch = client.watch("/", None, true).await;
        watch.copy().await;
        asleep.push((client, watch));
    }
    let writer = cluster.client(1).await;
    let awake = cluster.client(1).await;
    let mut watch = awake.watch("/", None, true).await;
    let (from, _) = watch.copy().await;
    let before = resident();
    let reader = tokio::spawn(async move { watch.revisions(PUTS).await });
    let value = vec![7; VALUE];
    for number in 0..PUTS {
        writer.put(&format!("/f{}", number % 8), &value).await.unwrap().result.unwrap();
    }
    let seen = within("all events", reader).await.unwrap();
    assert_eq!(seen.len(), PUTS, "the reader misses nothing");
    assert!(seen.windows(2).all(|two| two[0] < two[1]) && seen[0] > from);
    // Queued whole for each, it would be 900 MiB. The log in memory and the state take their share.
    let (grew, queued) = (grown(before), (WATCHERS * PUTS * VALUE) >> 20);
    eprintln!("{WATCHERS} watchers that do not read, {queued} MiB withheld: {grew} MiB more");
    assert!(grew < 450, "{grew} MiB more");
    cluster.end().await;
}

/// One that does not read is let go of after a while; it is told why, and goes on without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_is_let_go_of_and_resumes_without_a_gap() {
    const VALUE: usize = 1 << 20;
    // More than the stream's and the client's own buffers hold.
    const PUTS: usize = 48;
    let _turn = alone().await;
    let cluster = Cluster::one_with(|config| config.watch_stall = Duration::from_secs(2)).await;
    let writer = cluster.client(1).await;
    let from = writer.put("/f", b"first").await.unwrap().revision;
    let client = real_client(&cluster);
    let mut watch = client.watch(everything(Some(from)));
    let value = vec![7; VALUE];
    for number in 0..PUTS {
        writer.put(&format!("/f{}", number % 4), &value).await.unwrap().result.unwrap();
    }
    eventually("the node lets go of it", || async { (open_watches(&writer).await == 0).then_some(()) }).await;
    let (mut seen, mut why) = (Vec::new(), Vec::new());
    while seen.len() < PUTS {
        match within("an item", watch.next()).await.unwrap() {
            WatchItem::Events(events) => seen.extend(events.iter().map(|event| event.revision)),
            WatchItem::Disconnected(error) => why.push(error.to_string()),
            _ => {}
        }
    }
    let expected: Vec<Revision> = (from + 1..=from + PUTS as u64).collect();
    assert_eq!(seen, expected, "every event once, in order");
    let told = close::explain(close::SILENT.into());
    assert!(why.iter().any(|why| why.contains(&told)), "{why:?}");
    client.close().await;
    cluster.end().await;
}

/// A watch too many is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_too_many_is_told_why() {
    let _turn = alone().await;
    let cluster = Cluster::one_with(|config| config.watches_max = 1).await;
    let holder = cluster.client(1).await;
    let mut first = holder.watch("/", None, true).await;
    first.copy().await;
    let client = real_client(&cluster);
    let mut watch = client.watch(everything(Some(0)));
    let why = loop {
        if let WatchItem::Disconnected(error) = within("an item", watch.next()).await.unwrap() {
            break error.to_string();
        }
    };
    assert!(why.contains(&close::explain(close::BUSY.into())), "{why}");
    client.close().await;
    cluster.end().await;
}

/// Ten thousand watches on one node: what they cost, and what a put costs then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watches() {
    const WATCHES: usize = 10_000;
    const CONNECTIONS: usize = 10;
    let _turn = alone().await;
    let cluster = Cluster::one().await;
    let writer = cluster.client(1).await;
    let alone = put_time(&writer).await;
    let before = resident();
    let mut watches = Vec::new();
    for number in 0..CONNECTIONS {
        let client = cluster.client(1).await;
        for watch in 0..WATCHES / CONNECTIONS {
            // Half of them watch what is written, the others something else.
            let prefix = if watch % 2 == 0 { "/".to_owned() } else { format!("/other/{number}/{watch}") };
            watches.push((client.watch(&prefix, Some(0), true).await, watch % 2 == 0));
        }
        watches.last_mut().unwrap().0.next().await;
        // The connection lives as long as its watches.
        std::mem::forget(client.endpoint.clone());
        std::mem::forget(client);
    }
    eventually("all are open", || async { (open_watches(&writer).await == WATCHES as u64).then_some(()) })
        .await;
    let grew = grown(before);
    let begun = Instant::now();
    let revision = writer.put("/seen", b"by all").await.unwrap().revision;
    let answered = begun.elapsed();
    for (watch, concerned) in &mut watches {
        while *concerned && watch.revisions(1).await.iter().all(|seen| *seen < revision) {}
    }
    let all = begun.elapsed();
    let busy = put_time(&writer).await;
    eprintln!(
        "{WATCHES} watches: {grew} MiB more (node and clients); a put took {alone:?} before and takes {busy:?}; \
         one answered in {answered:?} was seen by the last of {} in {all:?}",
        WATCHES / 2
    );
    assert!(grew < 600, "{grew} MiB more");
    assert!(all < PATIENCE);
    cluster.end().await;
}

/// A client that sends and does not read: what waits is bounded, and others are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_held_back() {
    const FLOODERS: usize = 12;
    const VALUE: usize = 2 << 20;
    let _turn = alone().await;
    let cluster = Cluster::one_with(|config| {
        config.value_max = 8 << 20;
        config.request_bytes_max = 64 << 20;
    })
    .await;
    let before = resident();
    let call = Call::Write { session: None, command: put("/flood", &vec![1; VALUE], LeaseChange::Keep) };
    let mut frames = codec::encode(FrameKind::Hello, &Hello::Calls).unwrap().to_vec();
    codec::encode_into(FrameKind::Request, &Request { id: 1, timeout_ms: 10_000, call }, &mut frames)
        .unwrap();
    let frames = bytes::Bytes::from(frames);
    let mut floods = Vec::new();
    for _ in 0..FLOODERS {
        let (client, frames) = (cluster.client(1).await, frames.clone());
        floods.push(tokio::spawn(async move {
            // Each stream holds one request; nobody reads the answers.
            let mut streams = Vec::new();
            for _ in 0..20 {
                let Ok((mut send, recv)) = client.connection.open_bi().await else { break };
                if send.write_chunk(frames.clone()).await.is_err() {
                    break;
                }
                streams.push((send, recv));
            }
            streams.len()
        }));
    }
    let other = cluster.client(1).await;
    let mut most = 0;
    for number in 0..10 {
        // The disk has a lot to do, but everybody has a turn.
        let put = other.call_for(
            Call::Write { session: None, command: put("/other", &[number], LeaseChange::Keep) },
            30_000,
        );
        assert!(put.await.is_ok());
        most = most.max(grown(before));
    }
    floods.iter().for_each(|flood| flood.abort());
    eprintln!("{FLOODERS} clients that flood: {most} MiB more at most");
    // Their own send buffers (16 MiB each) are in this process, too.
    assert!(most < 900, "{most} MiB more");
    cluster.end().await;
}

/// Streams that say nothing, or half of something, are ended; so many of them cost next to nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_never_say_what_they_want_are_ended() {
    const STREAMS: usize = 1_500;
    let _turn = alone().await;
    let cluster = Cluster::one().await;
    let client = cluster.client(1).await;
    let before = resident();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let (mut send, recv) = client.connection.open_bi().await.unwrap();
        send.write_all(&[40]).await.unwrap();
        streams.push((send, recv));
    }
    // Others of the same client are served meanwhile, on another connection.
    assert!(cluster.client(1).await.put("/alive", b"1").await.is_ok());
    let grew = grown(before);
    eprintln!("{STREAMS} streams that say nothing: {grew} MiB more");
    assert!(grew < 150, "{grew} MiB more");
    let (_, recv) = &mut streams[0];
    let ended = within("the end of the first", recv.read_to_end(16)).await;
    assert!(
        matches!(ended, Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) if code.into_inner() == u64::from(close::PROTOCOL)),
        "{ended:?}"
    );
    cluster.end().await;
}

/// Handshakes whose other side never answers: they are given up, and clients come in meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_finish() {
    const HANDSHAKES: usize = 600;
    let _turn = alone().await;
    let cluster = Cluster::one().await;
    // What goes to the node passes, what it answers does not.
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (entry, node) = (relay.local_addr().unwrap(), cluster.addr(1));
    relay.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut packet = [0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = relay.recv_from(&mut packet)
                    && from != node
                {
                    let _ = relay.send_to(&packet[..length], node);
                }
            }
        }
    });
    let before = resident();
    let paths = Paths::in_dir(&cluster.site.certs(), "tester");
    let tls = Credentials::load(&paths).unwrap().client_config(&[ALPN_CLIENT]).unwrap();
    let config = quic_config(tls);
    let endpoint = common::client::endpoint();
    let waiting: Vec<_> = (0..HANDSHAKES)
        .map(|_| tokio::spawn(endpoint.connect_with(config.clone(), entry, "127.0.0.1").unwrap()))
        .collect();
    for _ in 0..5 {
        assert!(cluster.client(1).await.put("/alive", b"1").await.is_ok());
    }
    let grew = grown(before);
    // The other ends are in this process, too.
    eprintln!("{HANDSHAKES} handshakes that never finish: {grew} MiB more");
    assert!(grew < 400, "{grew} MiB more");
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    waiting.iter().for_each(|task| task.abort());
    cluster.end().await;
}

/// Connections of one identity are bounded; another one comes in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_of_one_identity() {
    const CONNECTIONS: usize = 200;
    let _turn = alone().await;
    let cluster = Cluster::one_with(|config| config.connections_per_identity = CONNECTIONS).await;
    let before = resident();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(cluster.client(1).await);
    }
    // A connection is taken up a moment after it stands.
    eventually("the bound is reached", || async {
        let client = cluster.client(1).await;
        let refused = tokio::time::timeout(Duration::from_millis(300), client.connection.closed()).await;
        refused.ok().map(|why| assert!(why.to_string().contains("too many connections of this identity")))
    })
    .await;
    let other = cluster.site.client("other");
    let other = Client::connect(cluster.addr(1), &other).await.unwrap();
    assert!(other.put("/alive", b"1").await.is_ok());
    let grew = grown(before);
    eprintln!("{CONNECTIONS} connections: {grew} MiB more (node and clients)");
    assert!(grew < 300, "{grew} MiB more");
    cluster.end().await;
}

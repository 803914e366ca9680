//! A client of one node that speaks the bare protocol, so that the tests see what really goes over
//! the wire.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use certs::{Credentials, Paths};
use quinn::crypto::rustls::QuicClientConfig;
use quorumfs_api::codec::{self, FrameKind};
use quorumfs_api::command::{Command, CreateMode, LeaseChange, Owner, RequestId};
use quorumfs_api::transport::{self, ALPN_CLIENT};
use quorumfs_api::wire::{Answer, Call, Consistency, Failure, Hello, Reply, Request, WatchFrame, WatchStart};
use quorumfs_api::{Done, Key, LeaseId, Outcome, Record, Revision};
use tokio::sync::Mutex;

use super::within;

pub struct Client {
    pub endpoint: quinn::Endpoint,
    pub connection: quinn::Connection,
    calls: Mutex<Option<(quinn::SendStream, quinn::RecvStream)>>,
    next: AtomicU64,
}

pub fn endpoint() -> quinn::Endpoint {
    quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap()
}

pub fn quic_config(tls: rustls::ClientConfig) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(transport::config());
    config
}

impl Client {
    pub async fn connect(addr: SocketAddr, paths: &Paths) -> Result<Client, quinn::ConnectionError> {
        Client::connect_as(addr, &Credentials::load(paths).unwrap(), ALPN_CLIENT).await
    }

    pub async fn connect_as(
        addr: SocketAddr,
        who: &Credentials,
        alpn: &[u8],
    ) -> Result<Client, quinn::ConnectionError> {
        let config = quic_config(who.client_config(&[alpn]).unwrap());
        let endpoint = endpoint();
        let connection =
            within("a connection", endpoint.connect_with(config, addr, "127.0.0.1").unwrap()).await?;
        Ok(Client { endpoint, connection, calls: Mutex::new(None), next: AtomicU64::new(1) })
    }

    pub async fn call(&self, call: Call) -> Result<Answer, Failure> {
        self.call_for(call, 10_000).await
    }

    /// One call after the other. A broken connection is `Unavailable`.
    pub async fn call_for(&self, call: Call, timeout_ms: u32) -> Result<Answer, Failure> {
        within("an answer", self.exchange(call, timeout_ms))
            .await
            .unwrap_or_else(|why| Err(Failure::Unavailable(why)))
    }

    async fn exchange(&self, call: Call, timeout_ms: u32) -> Result<Result<Answer, Failure>, String> {
        let mut calls = self.calls.lock().await;
        if calls.is_none() {
            let (mut send, recv) = self.connection.open_bi().await.map_err(|e| e.to_string())?;
            send.write_all(&codec::encode(FrameKind::Hello, &Hello::Calls).unwrap())
                .await
                .map_err(|e| e.to_string())?;
            *calls = Some((send, recv));
        }
        let (send, recv) = calls.as_mut().unwrap();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let request = codec::encode(FrameKind::Request, &Request { id, timeout_ms, call }).unwrap();
        send.write_all(&request).await.map_err(|e| e.to_string())?;
        let reply: Option<Reply> = codec::read(FrameKind::Reply, recv).await.map_err(|e| e.to_string())?;
        let reply = reply.ok_or("the stream ended")?;
        assert_eq!(reply.id, id);
        Ok(reply.answer)
    }

    pub async fn write_in(&self, session: Option<RequestId>, command: Command) -> Result<Outcome, Failure> {
        match self.call(Call::Write { session, command }).await? {
            Answer::Written(outcome) => Ok(outcome),
            other => panic!("{other:?}"),
        }
    }

    pub async fn put(&self, key: &str, value: &[u8]) -> Result<Outcome, Failure> {
        self.write_in(None, put(key, value, LeaseChange::Keep)).await
    }

    /// Many writes at once on a stream of their own.
    pub async fn put_many(&self, key: &str, count: u64) {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        let mut frames = Vec::new();
        codec::encode_into(FrameKind::Hello, &Hello::Calls, &mut frames).unwrap();
        for id in 0..count {
            let call = Call::Write { session: None, command: put(key, &id.to_le_bytes(), LeaseChange::Keep) };
            codec::encode_into(FrameKind::Request, &Request { id, timeout_ms: 10_000, call }, &mut frames)
                .unwrap();
        }
        send.write_all(&frames).await.unwrap();
        send.finish().unwrap();
        for _ in 0..count {
            let reply: Reply =
                within("a reply", codec::read(FrameKind::Reply, &mut recv)).await.unwrap().unwrap();
            assert!(matches!(reply.answer, Ok(Answer::Written(_))), "{reply:?}");
        }
    }

    pub async fn get_with(&self, key: &str, consistency: Consistency) -> Result<Option<Record>, Failure> {
        match self.call(Call::Get { key: Key::parse(key.to_owned()).unwrap(), consistency }).await? {
            Answer::Got { record, .. } => Ok(record),
            other => panic!("{other:?}"),
        }
    }

    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Failure> {
        Ok(self.get_with(key, Consistency::Linearizable).await?.map(|record| record.value))
    }

    pub async fn local(&self, key: &str) -> Option<Bytes> {
        self.get_with(key, Consistency::Serializable).await.ok()?.map(|record| record.value)
    }

    pub async fn grant(&self, ttl_ms: u64) -> LeaseId {
        match self.write_in(None, Command::LeaseGrant { ttl_ms }).await.unwrap().result {
            Ok(Done::Lease { id, .. }) => id,
            other => panic!("{other:?}"),
        }
    }

    pub async fn watch(&self, prefix: &str, after: Option<Revision>, copy_when_behind: bool) -> Watch {
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        let start = WatchStart { prefix: Key::parse(prefix.to_owned()).unwrap(), after, copy_when_behind };
        send.write_all(&codec::encode(FrameKind::Hello, &Hello::Watch(start)).unwrap()).await.unwrap();
        Watch { _send: send, recv }
    }
}

pub fn put(key: &str, value: &[u8], lease: LeaseChange) -> Command {
    Command::Put {
        target: Key::parse(key.to_owned()).unwrap().into(),
        value: Bytes::copy_from_slice(value),
        create: CreateMode::Allow,
        parents: true,
        owner: Owner::FILE,
        lease,
    }
}

pub struct Watch {
    _send: quinn::SendStream,
    recv: quinn::RecvStream,
}

impl Watch {
    /// The next frame that does not tell rights; `None` when the watch has ended.
    pub async fn next(&mut self) -> Option<WatchFrame> {
        loop {
            match self.frame().await {
                Some(WatchFrame::Rights(_)) => {}
                other => return other,
            }
        }
    }

    /// The next frame; `None` when the watch has ended.
    pub async fn frame(&mut self) -> Option<WatchFrame> {
        within("a watch frame", codec::read(FrameKind::Watch, &mut self.recv)).await.unwrap()
    }

    /// The next frame; `None` also when the node has refused the watch.
    pub async fn try_next(&mut self) -> Option<WatchFrame> {
        within("a watch frame", codec::read(FrameKind::Watch, &mut self.recv)).await.ok().flatten()
    }

    /// The next frame that is neither progress nor rights.
    pub async fn next_news(&mut self) -> Option<WatchFrame> {
        loop {
            match self.next().await {
                Some(WatchFrame::Progress(_)) => {}
                other => return other,
            }
        }
    }

    /// The whole copy that comes now: its revision, and the names and values in it.
    pub async fn copy(&mut self) -> (Revision, Vec<(String, Bytes)>) {
        let Some(WatchFrame::CopyBegin { revision, .. }) = self.next_news().await else {
            panic!("no copy begins")
        };
        let mut found = Vec::new();
        loop {
            match self.next().await.unwrap() {
                WatchFrame::CopyPart(nodes) => {
                    found.extend(nodes.into_iter().map(|node| (node.name.to_string(), node.record.value)));
                }
                WatchFrame::CopyEnd => return (revision, found),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Revisions of the next events, at least `count` of them.
    pub async fn revisions(&mut self, count: usize) -> Vec<Revision> {
        let mut found = Vec::new();
        while found.len() < count {
            match self.next_news().await.unwrap() {
                WatchFrame::Events(events) => found.extend(events.iter().map(|event| event.revision)),
                other => panic!("{other:?}"),
            }
        }
        found
    }
}

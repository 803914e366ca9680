//! As much of etcd's gRPC as is measured. The messages are few, so they are written down here: no
//! compiler for protocol files is needed to build this.

use anyhow::Context;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use crate::etcd_tls::Tls;

/// etcdserverpb.PutRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: bytes::Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: bytes::Bytes,
}

/// etcdserverpb.PutResponse; its header is not looked at.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutResponse {}

/// etcdserverpb.RangeRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: bytes::Bytes,
    #[prost(bool, tag = "7")]
    serializable: bool,
}

/// etcdserverpb.RangeResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

/// mvccpb.KeyValue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: bytes::Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    value: bytes::Bytes,
}

/// etcdserverpb.WatchRequest, of which only the creation is used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreate>,
}

/// etcdserverpb.WatchCreateRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchCreate {
    #[prost(bytes = "bytes", tag = "1")]
    key: bytes::Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    range_end: bytes::Bytes,
}

/// etcdserverpb.WatchResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<WatchEvent>,
}

impl WatchResponse {
    /// Whether this only says that the watch is there.
    pub fn is_creation(&self) -> bool {
        self.created
    }

    /// The values that were put.
    pub fn values(&self) -> impl Iterator<Item = &[u8]> {
        self.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.value.as_ref())
    }
}

/// mvccpb.Event.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchEvent {
    #[prost(message, optional, tag = "2")]
    kv: Option<KeyValue>,
}

/// etcdserverpb.CompactionRequest.
#[derive(Clone, PartialEq, prost::Message)]
struct CompactionRequest {
    #[prost(int64, tag = "1")]
    revision: i64,
    #[prost(bool, tag = "2")]
    physical: bool,
}

/// etcdserverpb.CompactionResponse, and DefragmentRequest and DefragmentResponse: nothing of them is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// etcdserverpb.StatusRequest.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

/// etcdserverpb.StatusResponse.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// etcdserverpb.ResponseHeader.
#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
}

/// A member on this machine, and how it is dialled.
#[derive(Clone)]
pub struct Address {
    /// Its port for clients.
    pub port: u16,
    /// Without, it speaks plain text.
    pub tls: Option<Tls>,
}

/// One HTTP/2 connection to one member.
#[derive(Clone)]
pub struct Etcd {
    grpc: Grpc<Channel>,
}

impl Etcd {
    /// Connects.
    pub async fn connect(address: &Address) -> anyhow::Result<Etcd> {
        let port = address.port;
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true);
        let channel = match &address.tls {
            Some(tls) => endpoint.connect_with_connector(tls.clone()).await,
            None => endpoint.connect().await,
        };
        let channel = channel.with_context(|| format!("connecting to etcd on port {port}"))?;
        Ok(Etcd { grpc: Grpc::new(channel) })
    }

    async fn unary<Q, A>(&mut self, path: &'static str, message: Q) -> anyhow::Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.grpc.ready().await.context("etcd's connection")?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let answer = self.grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await;
        Ok(answer.with_context(|| format!("etcd, {path}"))?.into_inner())
    }

    /// Puts.
    pub async fn put(&mut self, key: bytes::Bytes, value: bytes::Bytes) -> anyhow::Result<()> {
        let _: PutResponse = self.unary("/etcdserverpb.KV/Put", PutRequest { key, value }).await?;
        Ok(())
    }

    /// Gets.
    pub async fn get(
        &mut self,
        key: bytes::Bytes,
        serializable: bool,
    ) -> anyhow::Result<Option<bytes::Bytes>> {
        let request = RangeRequest { key, serializable };
        let mut answer: RangeResponse = self.unary("/etcdserverpb.KV/Range", request).await?;
        Ok(answer.kvs.pop().map(|kv| kv.value))
    }

    /// Whether this member leads.
    pub async fn leads(&mut self) -> anyhow::Result<bool> {
        let status: StatusResponse = self.unary("/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        Ok(status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader))
    }

    /// Forgets all old revisions, and gives the disk what is free of the database.
    pub async fn compact(&mut self) -> anyhow::Result<()> {
        // The status says what the newest revision is.
        let status: StatusResponse = self.unary("/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        let revision = status.header.map_or(0, |header| header.revision);
        let request = CompactionRequest { revision, physical: true };
        let _: Nothing = self.unary("/etcdserverpb.KV/Compact", request).await?;
        let _: Nothing = self.unary("/etcdserverpb.Maintenance/Defragment", Nothing {}).await?;
        Ok(())
    }

    /// Watches all keys from `key` up to `range_end`.
    pub async fn watch(&mut self, key: &str, range_end: &str) -> anyhow::Result<Streaming<WatchResponse>> {
        self.grpc.ready().await.context("etcd's connection")?;
        let create = WatchCreate {
            key: bytes::Bytes::copy_from_slice(key.as_bytes()),
            range_end: bytes::Bytes::copy_from_slice(range_end.as_bytes()),
        };
        // The request side stays open: etcd ends the watch when it closes.
        let requests = futures::StreamExt::chain(
            futures::stream::iter([WatchRequest { create: Some(create) }]),
            futures::stream::pending(),
        );
        let codec: ProstCodec<WatchRequest, WatchResponse> = ProstCodec::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let answer = self.grpc.streaming(Request::new(requests), path, codec).await;
        Ok(answer.context("etcd's watch")?.into_inner())
    }
}

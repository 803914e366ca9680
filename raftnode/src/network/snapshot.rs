//! A snapshot goes whole, as one stream of bytes from file to file. It is checked at its end, before
//! anything of it is used; what comes of half a snapshot is nothing.

use std::io;
use std::time::Duration;

use openraft::errors::StreamingError;
use openraft::raft::SnapshotResponse;
use quorumfs_store::{Raft, Snapshot, Snapshots, TypeConfig, Vote};
use tokio::io::{AsyncReadExt, BufReader};

use super::message::{self, Purpose, SnapshotReply, SnapshotStart};
use super::serve::ServeError;
use super::{Link, network_error};

/// Bytes that are read and written at a time.
const CHUNK: usize = 256 << 10;
/// When nothing moved for this long, the transfer has failed.
const STALL: Duration = Duration::from_secs(10);
/// Time that the other side has to check and install what it received.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Sends `snapshot`, and waits until it is installed. Dropping this ends the transfer.
pub(super) async fn send(
    link: &Link,
    vote: Vote,
    snapshot: Snapshot,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
    let mut wire = link.open(Purpose::Snapshot).await?;
    let what = snapshot.meta.to_string();
    let bytes = snapshot.snapshot.bytes().map_err(network_error)?;
    tracing::info!(peer = link.peer.id, bytes, "sending a snapshot: {what}");
    let start = message::encode(&SnapshotStart { vote: vote.into(), bytes }).map_err(network_error)?;
    wire.send.write_chunk(start).await.map_err(network_error)?;
    let mut file = snapshot.snapshot.into_reader().map_err(network_error)?.take(bytes);
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = file.read(&mut buffer).await.map_err(network_error)?;
        if read == 0 {
            break;
        }
        let written = tokio::time::timeout(STALL, wire.send.write_all(&buffer[..read])).await;
        written.map_err(|_| network_error("the snapshot does not move on"))?.map_err(network_error)?;
    }
    let _ = wire.send.finish();
    let reply =
        tokio::time::timeout(INSTALL_TIMEOUT, message::read::<SnapshotReply, _>(&mut wire.recv)).await;
    let reply =
        reply.map_err(|_| network_error("the snapshot was not installed in time"))?.map_err(network_error)?;
    tracing::info!(peer = link.peer.id, bytes, "the snapshot was installed");
    Ok(SnapshotResponse::new(reply.vote.into()))
}

/// Receives a snapshot into a file, checks it, and has openraft install it.
pub(super) async fn receive(
    raft: &Raft,
    snapshots: &Snapshots,
    recv: &mut BufReader<quinn::RecvStream>,
) -> Result<SnapshotReply, ServeError> {
    let start: SnapshotStart = message::read(recv).await?;
    tracing::info!(bytes = start.bytes, "receiving a snapshot");
    let mut receiving = snapshots.receive()?;
    let mut buffer = vec![0; CHUNK];
    let mut left = start.bytes;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = tokio::time::timeout(STALL, recv.read(&mut buffer[..want])).await;
        let read = read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        receiving.write(&buffer[..read]).await?;
        left -= read as u64;
    }
    let file = receiving.finish().await.map_err(io::Error::other)?;
    let meta = file.meta().clone();
    tracing::info!("installing a snapshot: {meta}");
    let answer = raft.install_full_snapshot(start.vote.into(), Snapshot { meta, snapshot: file }).await?;
    Ok(SnapshotReply { vote: answer.vote.into() })
}

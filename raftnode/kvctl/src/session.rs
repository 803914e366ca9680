//! One write of a command: in a session of its own, so that it is done once however often it is sent.

use std::time::Duration;

use quorumfs_api::client::Client;
use quorumfs_api::{Command, Done, Outcome, Refusal};

use crate::error::Error;

/// Lives long enough for a change of leaders; ends with the command anyway.
const TTL: Duration = Duration::from_secs(15);
/// How long the end of the session may hold the command up. It runs out by itself otherwise.
const CLOSE: Duration = Duration::from_millis(300);

/// Does it, and answers the revision and what was done. A refusal is an error.
pub async fn write(client: &Client, command: Command) -> Result<(u64, Done), Error> {
    match write_outcome(client, command).await? {
        Outcome { revision, result: Ok(done) } => Ok((revision, done)),
        Outcome { result: Err(refusal), .. } => Err(refusal.into()),
    }
}

/// The same for who wants to look at the refusal.
pub async fn write_outcome(client: &Client, command: Command) -> Result<Outcome, Error> {
    let timeout = client.settings().timeout;
    let begun = std::time::Instant::now();
    let session = client.session(TTL, timeout).await?;
    let left = timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
    let outcome = session.write(command, left).await;
    let _ = session.close(CLOSE).await;
    Ok(outcome?)
}

/// Does what is no harm to repeat, without a session: leases.
pub async fn write_once(client: &Client, command: Command) -> Result<(u64, Done), Error> {
    match client.write_once(command, client.settings().timeout).await? {
        Outcome { revision, result: Ok(done) } => Ok((revision, done)),
        Outcome { result: Err(refusal), .. } => Err(refusal.into()),
    }
}

/// Whether a refusal says that a key went away meanwhile.
pub fn is_gone(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::NotFound(_) | Refusal::Stale(_))
}

//! What can go wrong for a client, told apart by what its user can do about it.

use std::time::Duration;

use super::settings::SettingsError;
use crate::outcome::Refusal;
use crate::record::LeaseId;

/// Why a call gave no answer.
///
/// The important question after a failed write is whether it may have been done all the same:
/// [`ClientError::maybe_done`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The settings are incomplete or wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The certificates cannot be loaded from this machine.
    #[error("{0}")]
    Credentials(String),
    /// A node was reached, and one side refuses the other's certificate.
    #[error("{addr}: {reason}")]
    Certificate {
        /// The node's address.
        addr: String,
        /// Which certificate is refused, and why.
        reason: String,
    },
    /// No node could be reached, so nothing was done.
    #[error("no node could be reached within {} ({tried})", show(*waited))]
    Unreachable {
        /// How long it was tried.
        waited: Duration,
        /// Each address with what happened there.
        tried: String,
    },
    /// A stream from a node ended; it is being resumed.
    #[error("the connection was lost ({0})")]
    Lost(String),
    /// Nodes answer, but none of them leads, so nothing was done: a majority is down or cut off.
    #[error("the cluster has had no leader for {} ({tried}); nothing was done", show(*waited))]
    NoLeader {
        /// How long it was waited.
        waited: Duration,
        /// What the nodes said.
        tried: String,
    },
    /// The leader did not get a quorum's agreement in time.
    #[error("no quorum of nodes agreed within {}; {}", show(*waited), may_be(*maybe_done))]
    NoQuorum {
        /// How long it was waited.
        waited: Duration,
        /// Whether a write may still be done later.
        maybe_done: bool,
    },
    /// A request was sent, and no answer came in time.
    #[error("no answer within {}; {} ({tried})", show(*waited), may_be(*maybe_done))]
    Unknown {
        /// How long it was waited.
        waited: Duration,
        /// Whether a write may have been done.
        maybe_done: bool,
        /// What happened meanwhile.
        tried: String,
    },
    /// The session ended while the write was under way.
    #[error("session {id} has ended (it was not heard of for longer than its time to live); {}", may_be(*maybe_done))]
    SessionLost {
        /// The session.
        id: LeaseId,
        /// Whether the write may have been done before.
        maybe_done: bool,
    },
    /// This identity may not do that.
    #[error("denied: {0}")]
    Denied(String),
    /// The request makes no sense to the node.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// The cluster had too much to do until the deadline.
    #[error("the node is busy: {0}; nothing was done, try again")]
    Busy(String),
    /// A lease that does not exist.
    #[error("lease {0} does not exist: it ended, or it never was")]
    NoLease(LeaseId),
    /// The store refused. Only the calls that say so turn a refusal into an error.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A node answered something that makes no sense.
    #[error("{addr} does not keep to the protocol: {reason}")]
    Protocol {
        /// The node's address.
        addr: String,
        /// What it did.
        reason: String,
    },
    /// The session or client was closed by its owner.
    #[error("closed")]
    Closed,
}

impl ClientError {
    /// Whether a write that failed with this may have been done, or may be done later.
    pub fn maybe_done(&self) -> bool {
        match self {
            ClientError::NoQuorum { maybe_done, .. }
            | ClientError::Unknown { maybe_done, .. }
            | ClientError::SessionLost { maybe_done, .. } => *maybe_done,
            _ => false,
        }
    }

    /// Whether time ran out: the cluster could not be reached, had no leader or no quorum, or did not
    /// answer. Trying again later may help.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            ClientError::Unreachable { .. }
                | ClientError::NoLeader { .. }
                | ClientError::NoQuorum { .. }
                | ClientError::Unknown { .. }
                | ClientError::Busy(_)
        )
    }

    /// Whether who we are is the trouble: a certificate or a policy.
    pub fn is_denied(&self) -> bool {
        matches!(self, ClientError::Denied(_) | ClientError::Certificate { .. } | ClientError::Credentials(_))
    }
}

fn may_be(maybe_done: bool) -> &'static str {
    if maybe_done { "it may or may not have been done" } else { "nothing was done" }
}

fn show(time: Duration) -> String {
    super::settings::format_duration(time)
}

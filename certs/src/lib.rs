//! Certificates of a quorumfs cluster: makes the CA and the identities, loads them, and loads
//! them again while a process runs.
//!
//! Every connection in quorumfs is mutual TLS 1.3, and *who* a peer is comes from its certificate
//! alone: an [`Identity`] (a role and a name) that is carried as a URI. A node may serve and may
//! dial; a client may only dial. Host names decide whether the right machine was dialled, and
//! never what a peer may do.
//!
//! | module | what it holds |
//! |---|---|
//! | [`identity`] | role and name, and how a certificate carries them |
//! | [`authority`] | the CA: create, open, issue |
//! | [`load`] | files to [`Credentials`], checked to fit together |
//! | [`tls`] | `rustls` configurations for both sides |
//! | [`reload`] | new files taken up without a restart |
//! | [`explain`](mod@explain) | TLS errors as sentences to act on |
//! | [`inspect`] | what a certificate says, for people |

pub mod authority;
pub mod error;
pub mod explain;
mod files;
pub mod identity;
pub mod inspect;
pub mod load;
pub mod reload;
pub mod tls;

pub use authority::{Authority, Issued, Request, Validity};
pub use error::Error;
pub use explain::{explain, explain_alert};
pub use identity::{Identity, Role, peer_identity};
pub use inspect::Summary;
pub use load::{Credentials, Paths};
pub use reload::Reloader;

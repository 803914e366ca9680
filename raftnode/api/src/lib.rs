//! What a client of the store and the store itself share: keys, records, commands, events, the wire
//! format, and the client. It knows neither consensus nor storage, so that the FUSE daemon and the
//! command-line client link against this crate alone.
//!
//! Data flows one way: [`client`] → [`wire`] → [`codec`] → QUIC.

pub mod bug;
pub mod client;
pub mod codec;
pub mod command;
pub mod denials;
pub mod event;
pub mod key;
pub mod limits;
pub mod outcome;
pub mod record;
pub mod rights;
pub mod style;
pub mod transport;
pub mod wire;

pub use command::{At, Command, Compare, CreateMode, LeaseChange, Owner, Proposal, RenameMode, Target};
pub use event::{Change, Event, Place};
pub use key::{Key, KeyError, Name};
pub use outcome::{Done, Outcome, Refusal};
pub use record::{Ino, Kind, LeaseId, Record, Revision, Timestamp};
pub use style::EventStyle;

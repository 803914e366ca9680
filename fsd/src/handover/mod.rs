//! What outlives a worker: the mount goes on when the process that serves it is killed or upgraded.
//!
//! The supervisor holds `/dev/fuse` and a piece of memory, the *journal*. The worker notes in it what the
//! next one could learn from nobody else: the tree *as the kernel knows it* (which events were fired),
//! what was written to open files and not published, the session, and what was under way in it. The
//! rest the next worker asks the cluster for (the tree), or the kernel itself (what it holds).
//!
//! | module | what it holds |
//! |---|---|
//! | [`note`] | what is noted |
//! | `noting` | when: changes of the state, each with its note |
//! | [`journal`] | the notes, one behind the other, in memory that the supervisor keeps |
//! | [`image`] | what they come to |
//! | [`call`] | which system call is being served: what it did must not be done again for it |
//! | [`device`] | going on with a FUSE connection that somebody else began |

pub mod call;
pub mod device;
pub mod image;
pub mod journal;
pub mod note;
mod noting;

/// Version of the notes. A worker that writes others cannot take the place of one with these.
pub const FORMAT: u32 = 2;

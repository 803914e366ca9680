//! Which system call is being served. A request of the kernel that the last worker did not answer is
//! asked again; what it had done for it already must not be done once more.

use std::cell::Cell;
use std::future::Future;

use super::journal::Journal;
use super::note::Note;
use crate::handle::Fh;

/// Set in the number of a request that the kernel asks again (`FUSE_UNIQUE_RESEND`).
pub const RESENT: u64 = 1 << 63;

tokio::task_local! {
    static CALL: Call;
}

struct Call {
    unique: u64,
    noted: Cell<bool>,
    publishes: Cell<Option<(Fh, u64)>>,
    closed: Cell<Option<Fh>>,
}

/// Runs what serves the request with that number, its reply included.
pub async fn serve(unique: u64, journal: &Journal, work: impl Future<Output = ()>) {
    let call = Call {
        unique: unique & !RESENT,
        noted: Cell::new(false),
        publishes: Cell::new(None),
        closed: Cell::new(None),
    };
    CALL.scope(call, async {
        work.await;
        // The kernel has its answer: nobody will ask what came of it.
        if CALL.with(|call| call.noted.get()) {
            journal.add(&[Note::Replied(unique & !RESENT)]);
        }
        if let Some(fh) = CALL.with(|call| call.closed.get()) {
            journal.add(&[Note::Closed(fh)]);
        }
    })
    .await;
}

/// Number of the request that is being served; 0 outside of any.
pub fn current() -> u64 {
    CALL.try_with(|call| call.unique).unwrap_or(0)
}

/// This request closes an open file. What was noted of that is of no use when the kernel has its answer, and not before: asked
/// again, a new worker must find that it was published, or would empty the file once more. Answers whether there is a request.
pub fn closes(fh: Fh) -> bool {
    CALL.try_with(|call| call.closed.set(Some(fh))).is_ok()
}

/// What is sent next publishes what was written to an open file, up to that edit; `None`: it does not. Several requests
/// may wait for that (a child that closes a duplicate, a `fsync`), and whichever is asked again first must find it.
pub fn publishes(edits: Option<(Fh, u64)>) {
    let _ = CALL.try_with(|call| call.publishes.set(edits));
}

/// See [`publishes`].
pub fn published() -> Option<(Fh, u64)> {
    CALL.try_with(|call| call.publishes.get()).ok().flatten()
}

/// Something was asked of the store for this request, and noted.
pub fn noted() {
    let _ = CALL.try_with(|call| call.noted.set(true));
}

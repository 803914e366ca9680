//! Waiting for what openraft tells of itself, without holding on to it meanwhile.

use openraft::async_runtime::watch::{RecvError, WatchReceiver};
use openraft::type_config::alias::{WatchOf, WatchReceiverOf};
use quorumfs_store::TypeConfig;

/// What openraft publishes, as of now and from now on.
pub type Published<T> = WatchReceiverOf<TypeConfig, T>;

/// A copy of what is published now.
pub fn now<T: Clone + Send + Sync + 'static>(published: &Published<T>) -> T {
    WatchReceiver::<WatchOf<TypeConfig>, T>::borrow_watched(published).clone()
}

/// Waits until `good` holds, and gives what it held for; an error when openraft has ended.
pub async fn wait_for<T: Clone + Send + Sync + 'static>(
    published: &mut Published<T>,
    good: impl Fn(&T) -> bool,
) -> Result<T, RecvError> {
    loop {
        {
            let seen = published.borrow_and_update();
            if good(&seen) {
                return Ok(seen.clone());
            }
        }
        published.changed().await?;
    }
}

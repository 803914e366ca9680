//! A flag that is raised once, and wakes everybody who waits for it.

use std::sync::Arc;

use tokio::sync::watch;

/// Raised when something has to end.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Stop {
        Stop(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Raises it. Doing so again changes nothing.
    pub fn raise(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is raised; returns at once if it was.
    pub async fn raised(&self) {
        let mut flag = self.0.subscribe();
        // The sender lives as long as `self`, so this cannot fail while somebody waits here.
        let _ = flag.wait_for(|raised| *raised).await;
    }
}

#[cfg(test)]
mod tests {
    use super::Stop;

    #[tokio::test]
    async fn who_waits_is_woken_and_who_comes_late_does_not_wait() {
        let stop = Stop::default();
        assert!(!stop.is_raised());
        let waiter = tokio::spawn({
            let stop = stop.clone();
            async move { stop.raised().await }
        });
        stop.raise();
        assert!(waiter.await.is_ok());
        stop.raised().await;
    }
}

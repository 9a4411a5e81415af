//! The end of the process: tells tasks to finish and knows when they have. `app` holds the [`Trigger`]; everything that
//! lives longer than one call holds a [`Drain`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Makes the two ends.
pub fn channel() -> (Trigger, Drain) {
    let drain = Drain { started: Arc::default(), token: CancellationToken::new(), open: TaskTracker::new() };
    (Trigger { drain: drain.clone() }, drain)
}

/// Starts the drain, once.
#[derive(Debug)]
pub struct Trigger {
    drain: Drain,
}

impl Trigger {
    /// Tells everybody to finish and waits up to `grace`; true when nothing was left open.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.drain.started.store(true, Ordering::Release);
        self.drain.token.cancel();
        self.drain.open.close();
        tokio::time::timeout(grace, self.drain.open.wait()).await.is_ok()
    }

    /// Connections and tunnels that are still open.
    pub fn open(&self) -> usize {
        self.drain.open.len()
    }
}

/// Hears about the end.
#[derive(Clone, Debug)]
pub struct Drain {
    /// Asked for at every turn of a connection, so it costs one load and no lock.
    started: Arc<AtomicBool>,
    token: CancellationToken,
    open: TaskTracker,
}

impl Drain {
    /// Waits until the drain starts.
    pub async fn started(&self) {
        self.token.cancelled().await;
    }

    /// Whether the drain has started.
    pub fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Work that the end waits for, until the guard is dropped.
    pub fn hold(&self) -> TaskTrackerToken {
        self.open.token()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_open_work_but_not_for_ever() {
        let (trigger, drain) = channel();
        let held = drain.hold();

        assert!(!trigger.drain(Duration::from_secs(1)).await);
        assert!(drain.has_started());
        drop(held);
        assert!(trigger.drain(Duration::from_secs(1)).await);
    }
}

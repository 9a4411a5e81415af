//! The end of the process: tells tasks to finish and knows when they have. `app` holds the [`Trigger`]; everything that
//! lives longer than one call holds a [`Drain`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long a quiet connection is kept after the start of the drain: a request that was just on its way is answered.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Makes the two ends.
pub fn channel() -> (Trigger, Drain) {
    let drain = Drain { state: Arc::default(), token: CancellationToken::new(), open: TaskTracker::new() };
    (Trigger { drain: drain.clone() }, drain)
}

/// Starts the drain, once.
#[derive(Debug)]
pub struct Trigger {
    drain: Drain,
}

impl Trigger {
    /// Tells everybody to finish; they will have `grace` for it.
    pub fn start(&self, grace: Duration) {
        let state = &self.drain.state;
        let last_word = LAST_WORD.min(grace / 4);
        state.last_word.store(u64::try_from(last_word.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        state.started.store(true, Ordering::Release);
        self.drain.token.cancel();
        self.drain.open.close();
    }

    /// Waits until nothing is left open, but no longer than this; true when nothing is.
    pub async fn finished(&self, within: Duration) -> bool {
        tokio::time::timeout(within, self.drain.open.wait()).await.is_ok()
    }

    /// Tells everybody to finish and waits up to `grace`; true when nothing was left open.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.start(grace);
        self.finished(grace).await
    }

    /// The grace is over: what is still open will be cut.
    pub fn cut(&self) {
        self.drain.state.cut.store(true, Ordering::Release);
    }

    /// Connections and tunnels that are still open.
    pub fn open(&self) -> usize {
        self.drain.open.len().saturating_sub(self.drain.state.attending.load(Ordering::Relaxed))
    }
}

/// Hears about the end.
#[derive(Clone, Debug)]
pub struct Drain {
    /// Asked for at every turn of a connection, so it costs one load and no lock.
    state: Arc<State>,
    token: CancellationToken,
    open: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    started: AtomicBool,
    cut: AtomicBool,
    /// In milliseconds.
    last_word: AtomicU64,
    /// Work that is held and is no connection.
    attending: AtomicUsize,
}

/// Holds the end up without being anybody's connection, until it is dropped.
#[derive(Debug)]
pub struct Attendance {
    state: Arc<State>,
    _held: TaskTrackerToken,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.state.attending.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drain {
    /// Waits until the drain starts.
    pub async fn started(&self) {
        self.token.cancelled().await;
    }

    /// Whether the drain has started.
    pub fn has_started(&self) -> bool {
        self.state.started.load(Ordering::Acquire)
    }

    /// Whether the grace is over and what is open is being cut.
    pub fn is_cut(&self) -> bool {
        self.state.cut.load(Ordering::Acquire)
    }

    /// How long a quiet connection is kept once the drain has started: a short part of the grace.
    pub fn last_word(&self) -> Duration {
        Duration::from_millis(self.state.last_word.load(Ordering::Relaxed))
    }

    /// Work that the end waits for, until the guard is dropped.
    pub fn hold(&self) -> TaskTrackerToken {
        self.open.token()
    }

    /// The same for whoever only waits for connections.
    pub fn attend(&self) -> Attendance {
        self.state.attending.fetch_add(1, Ordering::Relaxed);
        Attendance { state: self.state.clone(), _held: self.hold() }
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

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_connections_is_none_but_holds_the_end_up() {
        let (trigger, drain) = channel();
        let (attendance, held) = (drain.attend(), drain.hold());
        assert_eq!(trigger.open(), 1);

        drop(held);
        assert_eq!(trigger.open(), 0);
        assert!(!trigger.drain(Duration::from_secs(1)).await);
        drop(attendance);
        assert!(trigger.drain(Duration::from_secs(1)).await);
    }

    #[test]
    fn a_short_grace_leaves_a_shorter_last_word() {
        for (grace, expected) in [(30_000, 1000), (4_000, 1000), (1_000, 250), (0, 0)] {
            let (trigger, drain) = channel();
            trigger.start(Duration::from_millis(grace));

            assert_eq!(drain.last_word(), Duration::from_millis(expected), "{grace} ms");
        }
    }
}

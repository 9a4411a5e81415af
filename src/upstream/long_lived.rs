//! Exchanges that last: upgraded connections from their first byte on, and responses that have streamed for more than a
//! minute. One registry for each service and cluster counts them and can send them home, spread over a time so that their
//! clients do not all come back in the same moment. It outlives reloads, so what began before one is still known.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// A response that streams for this long counts as one that lasts.
pub const LONG: Duration = Duration::from_secs(60);

/// The long-lived exchanges of one service on one cluster.
#[derive(Debug, Default)]
pub struct LongLived {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: HashMap<u64, Arc<Entry>>,
    closing: Option<Closing>,
}

/// The last time that everybody was told to go.
#[derive(Clone, Copy, Debug)]
struct Closing {
    told_at: Instant,
    until: Instant,
    /// Whoever comes later has to go too.
    for_good: bool,
}

#[derive(Debug, Default)]
struct Entry {
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    waker: Option<Waker>,
}

/// Counts an exchange until it is dropped, and hears when it has to end.
#[derive(Debug)]
pub struct Guard {
    registry: Arc<LongLived>,
    number: u64,
    entry: Arc<Entry>,
}

impl LongLived {
    /// Counts an exchange that began at `began`. One that had begun when the others were told to go has to go as well.
    pub fn enter(self: &Arc<Self>, began: Instant) -> Guard {
        let entry = Arc::new(Entry::default());
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, entry.clone());
        let now = Instant::now();
        if let Some(closing) = state.closing
            && (closing.for_good || began <= closing.told_at && now < closing.until)
        {
            let left = closing.until.saturating_duration_since(now);
            entry.tell(now + left.mul_f64(rand::random_range(0.0..1.0)));
        }
        drop(state);
        Guard { registry: self.clone(), number, entry }
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.lock().open.len()
    }

    /// Ends all that are open, one after the other, spread over this time.
    pub fn close(&self, over: Duration) {
        self.send_home(over, false);
    }

    /// The same, and whatever comes later ends within this time too: the process is on its way out.
    pub fn close_for_good(&self, over: Duration) {
        self.send_home(over, true);
    }

    fn send_home(&self, over: Duration, for_good: bool) {
        let now = Instant::now();
        let open: Vec<Arc<Entry>> = {
            let mut state = self.lock();
            let for_good = for_good || state.closing.is_some_and(|closing| closing.for_good);
            state.closing = Some(Closing { told_at: now, until: now + over, for_good });
            state.open.values().cloned().collect()
        };
        // A slice of the time for each, and a random moment in it: even, and never in step with anything.
        let slice = over.div_f64(open.len().max(1) as f64);
        let mut start = now;
        for entry in open {
            entry.tell(start + slice.mul_f64(rand::random_range(0.0..1.0)));
            start += slice;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn tell(&self, at: Instant) {
        let mut told = self.lock();
        told.at = Some(told.at.map_or(at, |earlier| earlier.min(at)));
        let waker = told.waker.take();
        drop(told);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    /// When the exchange has to end, if it was told; whoever asks is woken when that changes.
    pub fn ends_at(&self, cx: &mut Context<'_>) -> Option<Instant> {
        let mut told = self.entry.lock();
        if told.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            told.waker = Some(cx.waker().clone());
        }
        told.at
    }

    /// Waits until the exchange has to end.
    pub async fn told(&self) {
        let mut sleep: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| {
            let Some(at) = self.ends_at(cx) else { return Poll::Pending };
            let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            sleep.as_mut().poll(cx)
        })
        .await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.registry.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVER: Duration = Duration::from_secs(10);

    /// When each of these was sent home, counted from now, in order.
    async fn ends(guards: Vec<Guard>) -> Vec<Duration> {
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for guard in guards {
            tasks.spawn(async move {
                guard.told().await;
                start.elapsed()
            });
        }
        let mut ends = tasks.join_all().await;
        ends.sort_unstable();
        ends
    }

    fn enter(registry: &Arc<LongLived>, count: usize) -> Vec<Guard> {
        std::iter::repeat_with(|| registry.enter(Instant::now())).take(count).collect()
    }

    #[test]
    fn what_is_open_is_counted_until_it_is_dropped() {
        let registry = Arc::new(LongLived::default());

        let mut guards = enter(&registry, 3);
        assert_eq!(registry.open(), 3);
        guards.pop();
        assert_eq!(registry.open(), 2);
        drop(guards);
        assert_eq!(registry.open(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn all_go_within_the_time_and_evenly() {
        let registry = Arc::new(LongLived::default());
        let guards = enter(&registry, 100);

        registry.close(OVER);
        let ends = ends(guards).await;

        assert_eq!(registry.open(), 0);
        assert!(ends[99] <= OVER, "{ends:?}");
        for (index, end) in ends.iter().enumerate() {
            let even = OVER.mul_f64(index as f64 / 100.0);
            assert!(end.abs_diff(even) <= Duration::from_millis(110), "{index}: {end:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_began_afterwards_stay() {
        let registry = Arc::new(LongLived::default());
        let before = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        registry.close(OVER);
        tokio::time::advance(Duration::from_secs(1)).await;

        let slow = registry.enter(before);
        let late = registry.enter(Instant::now());

        slow.told().await;
        assert!(before.elapsed() <= Duration::from_secs(12));
        assert!(tokio::time::timeout(OVER * 10, late.told()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_stays_when_the_process_ends() {
        let registry = Arc::new(LongLived::default());
        registry.close_for_good(OVER);
        tokio::time::advance(Duration::from_secs(1)).await;

        let ends = ends(enter(&registry, 10)).await;

        assert!(ends[9] <= OVER - Duration::from_secs(1), "{ends:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_call_only_makes_it_sooner() {
        let registry = Arc::new(LongLived::default());
        let start = Instant::now();
        let guard = registry.enter(start);

        registry.close(OVER * 100);
        registry.close(Duration::ZERO);
        registry.close(OVER * 100);

        guard.told().await;
        assert!(start.elapsed() < Duration::from_millis(10));
    }
}

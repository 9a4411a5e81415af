//! Whether a cluster passes its health check: thresholds that turn results into a state, and the tasks that probe until
//! the snapshot that wants them is gone. Probes never touch the breaker, and requests never touch the state.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connect::Wanted;
use super::pool::Pool;
use super::probe::{Fault, Question, probe};
use crate::config::{self, Cluster};

/// Probers that start together begin this far apart.
const APART: Duration = Duration::from_millis(20);

/// A prober's first checks follow each other quickly, so that a process that has just started soon knows.
const QUICK_CHECKS: u32 = 3;

/// As quickly as this, when there are not so many of them that it would be felt.
const QUICK: Duration = Duration::from_secs(1);

/// Checks of one slot start together: handshakes in a batch share wake-ups and warm caches, which is most of what a check
/// costs when the process does nothing else. An interval much longer than a slot does not notice.
const SLOT: Duration = Duration::from_millis(250);
const SLOTTED_FROM: Duration = Duration::from_secs(10);

/// As many characters of a reason are kept.
const LONGEST_ERROR: usize = 600;

/// What is known of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Too little: requests may go there.
    Unknown,
    /// It passes.
    Up,
    /// It fails.
    Down,
}

impl State {
    /// The word in `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Results in a row that change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Failures that make it down.
    pub down: u32,
    /// Successes that make it up.
    pub up: u32,
}

/// The state moved, to be logged once by whoever got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state before.
    pub from: State,
    /// The state now.
    pub to: State,
}

/// The state of one cluster of one service. Reading it takes no lock.
#[derive(Debug)]
pub struct Health {
    thresholds: Thresholds,
    state: AtomicU8,
    recent: Mutex<Recent>,
}

/// What results leave behind.
#[derive(Clone, Debug, Default)]
struct Recent {
    passed: bool,
    in_a_row: u32,
    error: Option<Arc<str>>,
}

impl Health {
    /// Nothing is known.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, state: AtomicU8::new(State::Unknown as u8), recent: Mutex::default() }
    }

    /// New thresholds that go on where `other` is.
    pub fn with_state_of(other: &Self, thresholds: Thresholds) -> Self {
        let recent = other.recent();
        Self { thresholds, state: AtomicU8::new(other.state() as u8), recent: Mutex::new(recent.clone()) }
    }

    /// What is known.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            0 => State::Unknown,
            1 => State::Up,
            _ => State::Down,
        }
    }

    /// Why the newest failed check failed.
    pub fn last_error(&self) -> Option<Arc<str>> {
        self.recent().error.clone()
    }

    /// Takes one result.
    pub fn observe(&self, passed: bool) -> Option<Change> {
        self.take(passed, None)
    }

    /// Takes one failure and its reason.
    pub fn observe_error(&self, error: &str) -> Option<Change> {
        self.take(false, Some(error.into()))
    }

    fn take(&self, passed: bool, error: Option<Arc<str>>) -> Option<Change> {
        let mut recent = self.recent();
        if recent.passed != passed {
            recent.in_a_row = 0;
        }
        recent.passed = passed;
        recent.in_a_row = recent.in_a_row.saturating_add(1);
        if error.is_some() {
            recent.error = error;
        }
        let (to, needed) = if passed { (State::Up, self.thresholds.up) } else { (State::Down, self.thresholds.down) };
        let from = self.state();
        if from == to || recent.in_a_row < needed {
            return None;
        }
        self.state.store(to as u8, Ordering::Relaxed);
        Some(Change { from, to })
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a cluster is checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    question: Question,
    interval: Duration,
    timeout: Duration,
    thresholds: Thresholds,
}

impl Check {
    /// The check of one cluster; `None` when it is off. `wanted` is what requests ask of a connection there.
    pub fn new(service: &config::Service, cluster: Cluster, wanted: Wanted) -> Option<Self> {
        let settings = &service.health_check;
        settings.enabled.then(|| Self {
            question: Question::new(service, cluster, wanted),
            interval: settings.interval,
            timeout: settings.timeout,
            thresholds: Thresholds { down: settings.unhealthy_threshold, up: settings.healthy_threshold },
        })
    }

    /// The time from the start of one check to that of the next, a tenth more or less. `dice` lies between 0 and 1.
    fn pause(&self, checks: u32, quick: Duration, dice: f64) -> Duration {
        let pause = if checks < QUICK_CHECKS { self.interval.min(quick) } else { self.interval };
        pause.mul_f64(0.9 + 0.2 * dice)
    }

    /// The beginning of the slot in which a check at `at` falls; slots are counted from `epoch`.
    fn slot(&self, epoch: Instant, at: Instant) -> Instant {
        if self.interval < SLOTTED_FROM {
            return at;
        }
        let since = at.saturating_duration_since(epoch);
        let into = since.as_nanos() % SLOT.as_nanos();
        at - Duration::from_nanos(u64::try_from(into).unwrap_or(0))
    }
}

/// Checks one cluster while a snapshot holds it.
pub struct Prober {
    check: Check,
    pool: Arc<Pool>,
    health: Arc<Health>,
    is_started: AtomicBool,
}

impl Prober {
    /// A prober that has not started; `earlier` is what was known of the same backend.
    pub fn new(check: Check, pool: Arc<Pool>, earlier: Option<&Health>) -> Arc<Self> {
        let thresholds = check.thresholds;
        let health =
            earlier.map_or_else(|| Health::new(thresholds), |earlier| Health::with_state_of(earlier, thresholds));
        Arc::new(Self { check, pool, health: Arc::new(health), is_started: AtomicBool::new(false) })
    }

    /// A prober for this check of this pool's target would be this one.
    pub fn serves(&self, check: &Check, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool) && self.check == *check
    }

    /// What it finds out.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    async fn check(&self) {
        let result = probe(&self.pool, &self.check.question, self.check.timeout).await;
        let (service, cluster) = (self.pool.service(), self.pool.target().cluster);
        let target = cluster.as_str();
        let Err(fault) = result else {
            if self.health.observe(true).is_some() {
                tracing::info!(service, target, "up by its health check");
            }
            return;
        };
        if matches!(&fault, Fault::Connect(error) if error.is_own_shortage()) {
            tracing::warn!(service, target, error = %fault, "a health check could not be made");
            return;
        }
        // Some of it is the peer's own words.
        let error: String = fault.to_string().chars().take(LONGEST_ERROR).collect();
        if self.health.observe_error(&error).is_none() {
            tracing::debug!(service, target, error, "a health check failed");
            return;
        }
        tracing::warn!(service, target, error, "down by its health check");
        // What waits there may be dead as well, and would cost the first requests after it is back their time. Old is asked
        // whatever its state, so its connections are judged by requests alone.
        if cluster == Cluster::New {
            self.pool.drop_idle();
        }
    }
}

/// Checks after `first` and then at the check's interval, in slots counted from `epoch`, until the prober is gone.
async fn probe_until_dropped(prober: Weak<Prober>, epoch: Instant, first: Duration, quick: Duration) {
    let mut next = Instant::now() + first;
    let mut checks = 0_u32;
    loop {
        tokio::time::sleep_until(next).await;
        let Some(prober) = prober.upgrade() else { return };
        let start = Instant::now();
        prober.check().await;
        checks = checks.saturating_add(1);
        next = prober.check.slot(epoch, start + prober.check.pause(checks, quick, rand::random()));
    }
}

/// The tasks that probe. They end with their probers, and at the latest when this is dropped.
#[derive(Debug)]
pub struct Probers {
    epoch: Instant,
    tasks: JoinSet<()>,
}

impl Default for Probers {
    fn default() -> Self {
        Self { epoch: Instant::now(), tasks: JoinSet::new() }
    }
}

impl Probers {
    /// Starts those that have not started yet, one after the other. Must be called inside a runtime.
    pub fn start<'a>(&mut self, probers: impl IntoIterator<Item = &'a Arc<Prober>>) {
        while self.tasks.try_join_next().is_some() {}
        let is_new = |prober: &&Arc<Prober>| !prober.is_started.swap(true, Ordering::Relaxed);
        let new: Vec<_> = probers.into_iter().filter(is_new).collect();
        let spread = APART.saturating_mul(u32::try_from(new.len()).unwrap_or(u32::MAX));
        for (place, prober) in new.iter().enumerate() {
            let turn = (place as f64 + rand::random::<f64>()) / new.len() as f64;
            let first = spread.min(prober.check.interval).mul_f64(turn);
            let checks = probe_until_dropped(Arc::downgrade(prober), self.epoch, first, QUICK.max(spread));
            self.tasks.spawn(checks);
        }
    }

    /// How many are under way.
    pub fn count(&mut self) -> usize {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::tests::service;
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { down: 3, up: 2 };

    fn check(interval: Duration) -> Check {
        let question = Question::new(&service(""), Cluster::New, Wanted::Http1);
        Check { question, interval, timeout: Duration::from_secs(5), thresholds: THRESHOLDS }
    }

    fn observed(health: &Health, results: &str) -> Vec<Option<State>> {
        results.chars().map(|result| health.observe(result == '+').map(|change| change.to)).collect()
    }

    #[test]
    fn only_results_in_a_row_change_the_state() {
        for (results, changes, state) in [
            ("", vec![], State::Unknown),
            ("+", vec![], State::Unknown),
            ("++", vec![(1, State::Up)], State::Up),
            ("--", vec![], State::Unknown),
            ("---", vec![(2, State::Down)], State::Down),
            ("+-+-+-+-", vec![], State::Unknown),
            ("++--+--+--", vec![(1, State::Up)], State::Up),
            ("++---", vec![(1, State::Up), (4, State::Down)], State::Down),
            ("-----+-+-", vec![(2, State::Down)], State::Down),
            ("---++", vec![(2, State::Down), (4, State::Up)], State::Up),
            ("----------++++++++++", vec![(2, State::Down), (11, State::Up)], State::Up),
        ] {
            let health = Health::new(THRESHOLDS);

            let found: Vec<_> = observed(&health, results).into_iter().enumerate().collect();

            let found: Vec<_> = found.into_iter().filter_map(|(at, to)| Some((at, to?))).collect();
            assert_eq!(found, changes, "{results}");
            assert_eq!(health.state(), state, "{results}");
        }
    }

    #[test]
    fn a_change_says_what_was_before_and_the_reason_stays() {
        let health = Health::new(Thresholds { down: 1, up: 1 });

        let down = health.observe_error("TLS: refused");
        assert_eq!(down, Some(Change { from: State::Unknown, to: State::Down }));
        assert_eq!(health.observe_error("status 503"), None);
        assert_eq!(health.last_error().as_deref(), Some("status 503"));
        assert_eq!(health.observe(true), Some(Change { from: State::Down, to: State::Up }));
    }

    #[test]
    fn the_state_survives_new_thresholds() {
        let before = Health::new(THRESHOLDS);
        observed(&before, "---+");

        let after = Health::with_state_of(&before, Thresholds { down: 1, up: 3 });

        assert_eq!(after.state(), State::Down);
        assert_eq!(observed(&after, "++"), [None, Some(State::Up)], "the success before the change counts");
    }

    #[test]
    fn checks_are_spread_and_the_first_ones_are_quick() {
        let (long, short) = (check(Duration::from_secs(30)), check(Duration::from_millis(300)));
        let milliseconds = |check: &Check, checks, dice| check.pause(checks, QUICK, dice).as_millis();

        for (checks, dice, of_long, of_short) in [
            (1, 0.0, 900, 270),
            (2, 1.0, 1_100, 330),
            (3, 0.0, 27_000, 270),
            (9, 1.0, 33_000, 330),
            (9, 0.5, 30_000, 300),
        ] {
            assert_eq!(milliseconds(&long, checks, dice), of_long);
            assert_eq!(milliseconds(&short, checks, dice), of_short);
        }
    }

    #[test]
    fn checks_far_apart_start_in_slots() {
        let epoch = Instant::now();
        let slot = |interval, at| {
            let at = check(Duration::from_secs(interval)).slot(epoch, epoch + Duration::from_millis(at));
            at.duration_since(epoch).as_millis()
        };

        for (interval, at, begins) in [(30, 0, 0), (30, 249, 0), (30, 250, 250), (10, 30_999, 30_750), (9, 999, 999)] {
            assert_eq!(slot(interval, at), begins, "{interval} s, {at} ms");
        }
    }
}

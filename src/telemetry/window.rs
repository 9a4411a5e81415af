//! What happened lately, for `/status`: the cumulative meters are read every 10 s and their growth is kept in slots.
//! The request path pays nothing, time is an argument, and a slot in which nothing happened takes 8 bytes.

use std::array;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::ServiceMeters;
use super::labels::{Cluster, Outcome};
use super::metrics::DURATION_BOUNDS;

/// Seconds of a fine slot, and how many are kept.
const SLOT: u64 = 10;
const SLOTS: usize = 30;
/// Fine slots of a coarse one, and how many are kept.
const SLOTS_PER_MINUTE: u64 = 6;
const MINUTES: usize = 60;

const BUCKETS: usize = DURATION_BOUNDS.len() + 1;
const CLUSTERS: [Cluster; 2] = [Cluster::Old, Cluster::New];

/// Lengths of the windows. A window reaches back at least so far, and at most one slot further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minutes {
    /// The last minute.
    One,
    /// The last 5 minutes.
    Five,
    /// The last hour.
    Sixty,
}

/// What happened in a window on one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Tries.
    pub requests: u64,
    /// Tries that failed.
    pub errors: u64,
    /// The median, in seconds.
    pub p50: Option<f64>,
    /// The 99th percentile, in seconds.
    pub p99: Option<f64>,
}

/// Both clusters in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sides {
    /// The old cluster.
    pub old: Summary,
    /// The new cluster.
    pub new: Summary,
}

/// All windows, as `/status` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Windows {
    /// The last minute.
    #[serde(rename = "1m")]
    pub one: Sides,
    /// The last 5 minutes.
    #[serde(rename = "5m")]
    pub five: Sides,
    /// The last hour.
    #[serde(rename = "60m")]
    pub sixty: Sides,
}

/// The recent past of one service.
#[derive(Debug)]
pub struct Window {
    /// The number of the present slot since the clock's zero.
    slot: u64,
    sides: [Side; 2],
}

/// The recent past of one cluster. The newest entries are at the front; `None` is a slot without events.
#[derive(Debug, Default)]
struct Side {
    /// What the meters showed at the last tick.
    seen: Counts,
    slots: VecDeque<Option<Box<Growth>>>,
    /// The part of the present minute whose slots are over.
    minute: Growth,
    minutes: VecDeque<Option<Box<Growth>>>,
}

/// A reading of the cumulative meters.
type Counts = Sample<u64>;
/// What was added in one slot; 32 bits hold four million tries each millisecond.
type Growth = Sample<u32>;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sample<N> {
    requests: N,
    errors: N,
    buckets: [N; BUCKETS],
}

impl Window {
    /// Starts with what the meters show; `now` is in seconds of any steady clock.
    pub fn new(now: u64, meters: &ServiceMeters) -> Self {
        let sides = CLUSTERS.map(|cluster| Side { seen: Counts::read(meters, cluster), ..Side::default() });
        Self { slot: now / SLOT, sides }
    }

    /// Takes what was counted since the last tick. Called every 10 s; earlier calls do nothing, later ones leave gaps.
    pub fn tick(&mut self, now: u64, meters: &ServiceMeters) {
        let now = now / SLOT;
        // After a longer gap everything kept is old, and a step for each slot would be work without an end.
        let first = now.saturating_sub(MINUTES as u64 * SLOTS_PER_MINUTE + SLOTS_PER_MINUTE).max(self.slot);
        if now > self.slot {
            for (side, cluster) in self.sides.iter_mut().zip(CLUSTERS) {
                side.close(self.slot, Counts::read(meters, cluster));
                for slot in first.max(self.slot + 1)..now {
                    side.push(slot, None);
                }
            }
            self.slot = now;
        }
    }

    /// What happened on one cluster, what was counted since the last tick included.
    pub fn summary(&self, length: Minutes, cluster: Cluster, meters: &ServiceMeters) -> Summary {
        let side = &self.sides[cluster as usize];
        let mut total = Counts::read(meters, cluster).minus(&side.seen);
        let (slots, minutes) = match length {
            Minutes::One => (SLOTS_PER_MINUTE as usize, 0),
            Minutes::Five => (SLOTS, 0),
            Minutes::Sixty => {
                total.add(&side.minute);
                (0, MINUTES)
            }
        };
        let kept = side.slots.iter().take(slots).chain(side.minutes.iter().take(minutes));
        kept.flatten().for_each(|growth| total.add(growth));
        total.summary()
    }

    /// All of it.
    pub fn windows(&self, meters: &ServiceMeters) -> Windows {
        let sides = |length| Sides {
            old: self.summary(length, Cluster::Old, meters),
            new: self.summary(length, Cluster::New, meters),
        };
        Windows { one: sides(Minutes::One), five: sides(Minutes::Five), sixty: sides(Minutes::Sixty) }
    }
}

impl Side {
    fn close(&mut self, slot: u64, counts: Counts) {
        let growth = counts.minus(&self.seen).narrow();
        self.seen = counts;
        self.push(slot, (growth != Growth::default()).then(|| Box::new(growth)));
    }

    fn push(&mut self, slot: u64, growth: Option<Box<Growth>>) {
        if let Some(growth) = &growth {
            self.minute.add(growth);
        }
        push_bounded(&mut self.slots, growth, SLOTS);
        if (slot + 1).is_multiple_of(SLOTS_PER_MINUTE) {
            let minute = std::mem::take(&mut self.minute);
            let minute = (minute != Growth::default()).then(|| Box::new(minute));
            push_bounded(&mut self.minutes, minute, MINUTES);
        }
    }
}

fn push_bounded<T>(ring: &mut VecDeque<T>, value: T, limit: usize) {
    ring.truncate(limit - 1);
    ring.push_front(value);
}

impl Counts {
    fn read(meters: &ServiceMeters, cluster: Cluster) -> Self {
        let mut counts = Self { buckets: meters.attempt_duration(cluster).counts(), ..Self::default() };
        for outcome in Outcome::ALL {
            let count = meters.attempts(cluster, *outcome);
            counts.requests += count;
            counts.errors += if is_error(*outcome) { count } else { 0 };
        }
        counts
    }

    fn minus(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            buckets: array::from_fn(|index| self.buckets[index].saturating_sub(before.buckets[index])),
        }
    }

    fn narrow(&self) -> Growth {
        let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Growth { requests: narrow(self.requests), errors: narrow(self.errors), buckets: self.buckets.map(narrow) }
    }

    fn add(&mut self, growth: &Growth) {
        self.requests += u64::from(growth.requests);
        self.errors += u64::from(growth.errors);
        for (total, count) in self.buckets.iter_mut().zip(growth.buckets) {
            *total += u64::from(count);
        }
    }

    fn summary(&self) -> Summary {
        Summary { requests: self.requests, errors: self.errors, p50: self.quantile(0.5), p99: self.quantile(0.99) }
    }

    /// As Prometheus does: evenly spread inside of a bucket, and the largest bound for what lies beyond it.
    fn quantile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.buckets.iter().sum();
        let rank = share * total as f64;
        let mut below = 0.0;
        let mut lower = 0.0;
        for (count, bound) in self.buckets.iter().zip(DURATION_BOUNDS) {
            let (count, upper) = (*count as f64, bound as f64 / 1e9);
            if count > 0.0 && below + count >= rank {
                return Some(microseconds(lower + (upper - lower) * (rank - below) / count));
            }
            below += count;
            lower = upper;
        }
        (total > 0).then_some(lower)
    }
}

impl Growth {
    fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        for (total, count) in self.buckets.iter_mut().zip(other.buckets) {
            *total = total.saturating_add(count);
        }
    }
}

/// Digits beyond a microsecond would only pretend precision.
fn microseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

/// The client's leaving says nothing about a cluster.
fn is_error(outcome: Outcome) -> bool {
    match outcome {
        Outcome::ServerError
        | Outcome::Status500
        | Outcome::Status502
        | Outcome::Status503
        | Outcome::Status504
        | Outcome::Connect
        | Outcome::Tls
        | Outcome::Timeout
        | Outcome::Reset
        | Outcome::Header => true,
        Outcome::Informational | Outcome::Success | Outcome::Redirection | Outcome::ClientError | Outcome::Aborted => {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn started(now: u64) -> (Arc<ServiceMeters>, Window) {
        let meters = ServiceMeters::new("a", &[]);
        let window = Window::new(now, &meters);
        (meters, window)
    }

    fn tries(meters: &ServiceMeters, count: usize, outcome: Outcome, millis: u64) {
        for _ in 0..count {
            meters.attempt(Cluster::New, outcome, Duration::from_millis(millis));
        }
    }

    fn requests(window: &Window, meters: &ServiceMeters) -> [u64; 3] {
        [Minutes::One, Minutes::Five, Minutes::Sixty]
            .map(|length| window.summary(length, Cluster::New, meters).requests)
    }

    #[test]
    fn quiet_is_zeros_and_nulls() {
        let (meters, window) = started(0);
        let json = serde_json::to_value(window.windows(&meters)).unwrap();
        for length in ["1m", "5m", "60m"] {
            let quiet = serde_json::json!({"requests": 0, "errors": 0, "p50": null, "p99": null});
            assert_eq!(json[length], serde_json::json!({"old": quiet, "new": quiet}));
        }
    }

    #[test]
    fn what_came_after_the_last_tick_counts_at_once() {
        let (meters, mut window) = started(1000);
        tries(&meters, 3, Outcome::Success, 1);
        assert_eq!(requests(&window, &meters), [3; 3]);
        window.tick(1010, &meters);
        tries(&meters, 2, Outcome::Success, 1);
        assert_eq!(requests(&window, &meters), [5; 3]);
        assert_eq!(window.summary(Minutes::One, Cluster::Old, &meters), Summary::default());
    }

    #[test]
    fn a_window_reaches_back_its_length_and_at_most_one_slot_more() {
        for phase in 0..6 {
            let start = 6000 + phase * SLOT;
            let (meters, mut window) = started(start);
            tries(&meters, 1, Outcome::Success, 1);
            let mut gone = [None; 3];
            for age in (0..4000).step_by(10) {
                window.tick(start + age, &meters);
                for (gone, count) in gone.iter_mut().zip(requests(&window, &meters)) {
                    if count == 0 && gone.is_none() {
                        *gone = Some(age);
                    }
                }
            }
            let [one, five, sixty] = gone.map(Option::unwrap);
            assert_eq!((one, five), (70, 310), "phase {phase}");
            assert!((3610..=3670).contains(&sixty), "phase {phase}: {sixty}");
        }
    }

    #[test]
    fn what_was_there_before_the_window_does_not_count() {
        let meters = ServiceMeters::new("a", &[]);
        tries(&meters, 7, Outcome::Success, 1);
        let window = Window::new(50, &meters);
        assert_eq!(requests(&window, &meters), [0; 3]);
    }

    #[test]
    fn missed_ticks_age_what_is_kept() {
        for (gap, expected) in [(10, [1, 1, 1]), (100, [0, 1, 1]), (1000, [0, 0, 1]), (1_000_000_000, [0, 0, 0])] {
            let (meters, mut window) = started(0);
            tries(&meters, 1, Outcome::Success, 1);
            window.tick(10, &meters);
            window.tick(10 + gap, &meters);
            assert_eq!(requests(&window, &meters), expected, "gap {gap}");
        }
    }

    #[test]
    fn early_ticks_and_a_clock_that_stands_change_nothing() {
        let (meters, mut window) = started(100);
        tries(&meters, 4, Outcome::Success, 1);
        for now in [100, 105, 109, 3] {
            window.tick(now, &meters);
            assert_eq!(requests(&window, &meters), [4; 3]);
        }
    }

    #[test]
    fn errors_are_what_the_cluster_is_to_blame_for() {
        let (meters, window) = started(0);
        for outcome in Outcome::ALL {
            tries(&meters, 1, *outcome, 1);
        }
        let summary = window.summary(Minutes::One, Cluster::New, &meters);
        assert_eq!((summary.requests, summary.errors), (15, 10));
    }

    #[test]
    fn quantiles_are_interpolated_inside_of_their_bucket() {
        for (what, counts, p50, p99) in [
            ("one bucket", &[(100, 3)][..], 0.0025, 0.00495),
            ("two buckets", &[(50, 3), (50, 8)], 0.005, 0.0099),
            ("a gap", &[(10, 3), (90, 900)], 0.722222, 0.994444),
            ("beyond the last bound", &[(1, 30_000)], 10.0, 10.0),
            ("one try", &[(1, 20)], 0.0175, 0.02485),
        ] {
            let (meters, window) = started(0);
            for (count, millis) in counts {
                tries(&meters, *count, Outcome::Success, *millis);
            }
            let summary = window.summary(Minutes::Five, Cluster::New, &meters);
            assert_eq!((summary.p50, summary.p99), (Some(p50), Some(p99)), "{what}");
        }
    }

    #[test]
    fn a_quiet_day_keeps_no_growth() {
        let (meters, mut window) = started(0);
        for now in (0..86_400).step_by(10) {
            window.tick(now, &meters);
        }
        for side in &window.sides {
            assert_eq!((side.slots.len(), side.minutes.len()), (SLOTS, MINUTES));
            assert!(side.slots.iter().chain(&side.minutes).all(Option::is_none));
        }
    }
}

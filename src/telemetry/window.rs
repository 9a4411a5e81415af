//! What happened lately, for `/status` and the page: the cumulative meters are read every 10 s and their growth is kept in
//! slots. The request path pays nothing, time is an argument, and a slot takes two or three bytes for each counter that
//! grew in it: nothing at all when none did.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::ServiceMeters;
use super::labels::{Cluster, Outcome};
use super::latency::{self, quantile};

/// Seconds of a fine slot, and how many are kept.
const SLOT: u64 = 10;
const SLOTS: usize = 30;
/// Fine slots of a coarse one, and how many are kept.
const SLOTS_PER_MINUTE: u64 = 6;
const MINUTES: usize = 60;

const CLUSTERS: [Cluster; 2] = [Cluster::Old, Cluster::New];

/// What is kept of one cluster: tries by outcome, tries by duration, then new connections and their microseconds.
const OUTCOMES: usize = Outcome::ALL.len();
const DURATIONS: usize = OUTCOMES + latency::BUCKETS;
const COUNTERS: usize = DURATIONS + 2;

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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Tries.
    pub requests: u64,
    /// Tries that failed.
    pub errors: u64,
    /// The same, by kind: a status or what went wrong.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, u64>,
    /// The median, in seconds.
    pub p50: Option<f64>,
    /// The 90th percentile, in seconds.
    #[serde(default)]
    pub p90: Option<f64>,
    /// The 99th percentile, in seconds.
    pub p99: Option<f64>,
    /// New connections.
    #[serde(default)]
    pub connects: u64,
    /// How long one of them took on average, in seconds.
    #[serde(default)]
    pub connect: Option<f64>,
}

/// Both clusters in one window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sides {
    /// The old cluster.
    pub old: Summary,
    /// The new cluster.
    pub new: Summary,
    /// How far it reaches back, in seconds: a little more than its name, or less when the process is younger.
    #[serde(default)]
    pub seconds: u64,
}

impl Sides {
    /// What this count makes in a second.
    pub fn rate(&self, count: u64) -> f64 {
        count as f64 / self.seconds.max(1) as f64
    }
}

/// All windows, as `/status` shows them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// The last hour, minute by minute, the oldest first; each entry is tries and failed tries.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Series {
    /// The old cluster.
    pub old: Vec<[u64; 2]>,
    /// The new cluster.
    pub new: Vec<[u64; 2]>,
}

/// The recent past of one service.
#[derive(Debug)]
pub struct Window {
    /// Seconds of the clock at the start.
    born: u64,
    /// The number of the present slot since the clock's zero.
    slot: u64,
    sides: [Side; 2],
}

/// The recent past of one cluster. The newest entries are at the front.
#[derive(Debug, Default)]
struct Side {
    /// What the meters showed at the last tick.
    seen: Packed,
    slots: VecDeque<Packed>,
    minutes: VecDeque<Packed>,
}

impl Window {
    /// Starts with what the meters show; `now` is in seconds of any steady clock.
    pub fn new(now: u64, meters: &ServiceMeters) -> Self {
        let sides = CLUSTERS.map(|cluster| Side { seen: Counts::read(meters, cluster).pack(), ..Side::default() });
        Self { born: now, slot: now / SLOT, sides }
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
                    side.push(slot, Packed::default());
                }
            }
            self.slot = now;
        }
    }

    /// What happened on one cluster, what was counted since the last tick included.
    pub fn summary(&self, length: Minutes, cluster: Cluster, meters: &ServiceMeters) -> Summary {
        let side = &self.sides[cluster as usize];
        let mut total = Counts::read(meters, cluster).minus(&side.seen.unpack());
        let (slots, minutes) = match length {
            Minutes::One => (SLOTS_PER_MINUTE as usize, 0),
            Minutes::Five => (SLOTS, 0),
            Minutes::Sixty => (self.slots_of_minute(), MINUTES),
        };
        let kept = side.slots.iter().take(slots).chain(side.minutes.iter().take(minutes));
        kept.for_each(|growth| total.add(growth));
        total.summary()
    }

    /// All of it, `now` in the seconds of [`Window::tick`].
    pub fn windows(&self, now: u64, meters: &ServiceMeters) -> Windows {
        let sides = |length| Sides {
            old: self.summary(length, Cluster::Old, meters),
            new: self.summary(length, Cluster::New, meters),
            seconds: now.saturating_sub(self.reach(length)),
        };
        Windows { one: sides(Minutes::One), five: sides(Minutes::Five), sixty: sides(Minutes::Sixty) }
    }

    /// The last hour in steps of whole minutes. A young process has fewer of them.
    pub fn series(&self) -> Series {
        let [old, new] = [0, 1].map(|side: usize| {
            let minutes = self.sides[side].minutes.iter().rev();
            minutes.map(|minute| minute.unpack()).map(|counts| [counts.requests(), counts.errors()]).collect()
        });
        Series { old, new }
    }

    /// The second in which this window begins.
    fn reach(&self, length: Minutes) -> u64 {
        let slots = match length {
            Minutes::One => SLOTS_PER_MINUTE,
            Minutes::Five => SLOTS as u64,
            Minutes::Sixty => MINUTES as u64 * SLOTS_PER_MINUTE + self.slots_of_minute() as u64,
        };
        (self.slot.saturating_sub(slots) * SLOT).max(self.born)
    }

    /// Fine slots of the present minute that are over.
    fn slots_of_minute(&self) -> usize {
        (self.slot % SLOTS_PER_MINUTE) as usize
    }
}

impl Side {
    fn close(&mut self, slot: u64, counts: Counts) {
        let seen = std::mem::replace(&mut self.seen, counts.pack());
        let growth = counts.minus(&seen.unpack());
        self.push(slot, growth.pack());
    }

    fn push(&mut self, slot: u64, growth: Packed) {
        push_bounded(&mut self.slots, growth, SLOTS);
        if (slot + 1).is_multiple_of(SLOTS_PER_MINUTE) {
            let mut minute = Counts::default();
            self.slots.iter().take(SLOTS_PER_MINUTE as usize).for_each(|growth| minute.add(growth));
            push_bounded(&mut self.minutes, minute.pack(), MINUTES);
        }
    }
}

fn push_bounded<T>(ring: &mut VecDeque<T>, value: T, limit: usize) {
    ring.truncate(limit - 1);
    ring.push_front(value);
}

/// A reading of the cumulative meters, or what was added between two.
#[derive(Clone, Debug, PartialEq)]
struct Counts([u64; COUNTERS]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Counts {
    fn read(meters: &ServiceMeters, cluster: Cluster) -> Self {
        let mut counts = Self::default();
        let outcomes = Outcome::ALL.iter().map(|outcome| meters.attempts(cluster, *outcome));
        let durations = meters.attempt_duration(cluster).counts();
        for (place, count) in counts.0.iter_mut().zip(outcomes.chain(durations).chain(meters.connects(cluster))) {
            *place = count;
        }
        counts
    }

    fn minus(mut self, before: &Self) -> Self {
        for (count, before) in self.0.iter_mut().zip(before.0) {
            *count = count.saturating_sub(before);
        }
        self
    }

    fn add(&mut self, growth: &Packed) {
        growth.each(|place, count| self.0[place] = self.0[place].saturating_add(count));
    }

    fn requests(&self) -> u64 {
        self.0[..OUTCOMES].iter().sum()
    }

    fn errors(&self) -> u64 {
        self.failures().map(|(_, count)| count).sum()
    }

    fn failures(&self) -> impl Iterator<Item = (Outcome, u64)> {
        let outcomes = Outcome::ALL.iter().copied().zip(self.0);
        outcomes.filter(|(outcome, count)| is_error(*outcome) && *count > 0)
    }

    fn summary(&self) -> Summary {
        let [connects, microseconds] = [self.0[DURATIONS], self.0[DURATIONS + 1]];
        let quantile = |share| quantile(&self.0[OUTCOMES..DURATIONS], share);
        Summary {
            requests: self.requests(),
            errors: self.errors(),
            kinds: self.failures().map(|(outcome, count)| (outcome.as_str().to_owned(), count)).collect(),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            connects,
            connect: microseconds.checked_div(connects).map(|each| each as f64 / 1e6),
        }
    }

    fn pack(&self) -> Packed {
        let mut bytes = Vec::new();
        let mut next = 0;
        for (place, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            push_number(&mut bytes, (place - next) as u64);
            push_number(&mut bytes, *count);
            next = place + 1;
        }
        Packed(bytes.into())
    }
}

/// Counts without their zeros: how many places are left out, then the count, both seven bits a byte.
#[derive(Clone, Debug, Default, PartialEq)]
struct Packed(Box<[u8]>);

impl Packed {
    fn unpack(&self) -> Counts {
        let mut counts = Counts::default();
        counts.add(self);
        counts
    }

    fn each(&self, mut take: impl FnMut(usize, u64)) {
        let mut bytes = self.0.iter().copied();
        let mut next = 0;
        while let (Some(left_out), Some(count)) = (number(&mut bytes), number(&mut bytes)) {
            let place = next + left_out as usize;
            take(place, count);
            next = place + 1;
        }
    }
}

fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn number(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = bytes.next()?;
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return Some(number);
        }
    }
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
        let json = serde_json::to_value(window.windows(7, &meters)).unwrap();
        for length in ["1m", "5m", "60m"] {
            let quiet = serde_json::json!({
                "requests": 0, "errors": 0, "p50": null, "p90": null, "p99": null, "connects": 0, "connect": null,
            });
            assert_eq!(json[length], serde_json::json!({"old": quiet, "new": quiet, "seconds": 7}));
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
    fn rates_are_those_of_the_time_that_a_window_really_covers() {
        let (meters, mut window) = started(3);
        for second in 4..8000 {
            tries(&meters, 5, Outcome::Success, 1);
            window.tick(second, &meters);
            let windows = window.windows(second, &meters);
            for sides in [windows.one, windows.five, windows.sixty] {
                let rate = sides.rate(sides.new.requests);
                assert!((4.2..=5.0).contains(&rate) || sides.seconds < 60, "{rate} in {second}");
                assert!(sides.seconds + 3 <= second && sides.seconds < 3661, "{} in {second}", sides.seconds);
            }
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
    fn kinds_quantiles_and_connections_are_those_of_the_window() {
        let (meters, mut window) = started(0);
        tries(&meters, 7, Outcome::Timeout, 9_000);
        meters.connected(Cluster::New, Duration::from_secs(9));
        window.tick(10, &meters);
        window.tick(100, &meters);
        tries(&meters, 89, Outcome::Success, 3);
        tries(&meters, 10, Outcome::Status503, 80);
        tries(&meters, 1, Outcome::Connect, 2_000);
        for millis in [10, 30] {
            meters.connected(Cluster::New, Duration::from_millis(millis));
        }

        let minute = window.summary(Minutes::One, Cluster::New, &meters);

        let kinds = BTreeMap::from([("503".to_owned(), 10), ("connect".to_owned(), 1)]);
        assert_eq!((minute.requests, minute.errors, &minute.kinds), (100, 11, &kinds));
        assert_eq!((minute.connects, minute.connect), (2, Some(0.02)));
        let [p50, p90, p99] = [minute.p50, minute.p90, minute.p99].map(Option::unwrap);
        assert!((0.0028..0.00315).contains(&p50) && (0.071..=0.08).contains(&p90) && p99 <= 0.08, "{minute:?}");
        let hour = window.summary(Minutes::Sixty, Cluster::New, &meters);
        assert_eq!((hour.requests, hour.kinds["timeout"], hour.connects), (107, 7, 3));
    }

    #[test]
    fn the_series_has_whole_minutes_the_oldest_first() {
        let (meters, mut window) = started(0);
        tries(&meters, 3, Outcome::Success, 1);
        tries(&meters, 1, Outcome::Reset, 1);
        window.tick(30, &meters);
        assert_eq!(window.series(), Series::default());

        window.tick(60, &meters);
        tries(&meters, 2, Outcome::Success, 1);
        window.tick(130, &meters);
        tries(&meters, 9, Outcome::Success, 1);

        assert_eq!(window.series(), Series { old: vec![[0, 0], [0, 0]], new: vec![[4, 1], [2, 0]] });
        for now in (130..10_000).step_by(10) {
            window.tick(now, &meters);
        }
        assert_eq!(window.series().new.len(), MINUTES);
    }

    #[test]
    fn what_is_packed_comes_back_whole() {
        for places in [&[][..], &[(0, 1)], &[(COUNTERS - 1, u64::MAX)], &[(3, 127), (4, 128), (90, 300)]] {
            let mut counts = Counts::default();
            for (place, count) in places {
                counts.0[*place] = *count;
            }
            assert_eq!(counts.pack().unpack(), counts, "{places:?}");
        }
        assert!(Counts::default().pack().0.is_empty());
    }

    #[test]
    fn a_busy_hour_takes_a_few_kilobytes() {
        let (meters, mut window) = started(0);
        for slot in 1..=400_u64 {
            for millis in 0..2_000_u64 {
                meters.attempt(Cluster::New, Outcome::Success, Duration::from_millis(5 + millis % 40 + millis / 100));
            }
            window.tick(slot * SLOT, &meters);
        }
        let side = &window.sides[Cluster::New as usize];
        let bytes: usize = side.slots.iter().chain(&side.minutes).map(|packed| packed.0.len()).sum();
        assert!(bytes < 8_000, "{bytes}");
    }

    #[test]
    fn a_quiet_day_keeps_no_growth() {
        let (meters, mut window) = started(0);
        for now in (0..86_400).step_by(10) {
            window.tick(now, &meters);
        }
        for side in &window.sides {
            assert_eq!((side.slots.len(), side.minutes.len()), (SLOTS, MINUTES));
            assert!(side.slots.iter().chain(&side.minutes).all(|packed| packed.0.is_empty()));
        }
    }
}

//! How long tries took, fine enough to tell 38 ms from 42: twenty buckets for each power of ten from 100 µs to 100 s. The
//! buckets of `/metrics` are sums of these, so that a page and a scrape can never disagree.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::metrics::{DURATION_BOUNDS, DurationHistogram};

/// How many buckets there are; the last one has no upper bound.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// Steps of about 12 %, by the preferred numbers R20: they meet 1, 2.5 and 5, and so every bound of `/metrics`.
const STEPS: [u64; 20] =
    [100, 112, 125, 140, 160, 180, 200, 224, 250, 280, 315, 355, 400, 450, 500, 560, 630, 710, 800, 900];

/// Upper bounds in nanoseconds.
const BOUNDS: [u64; 6 * STEPS.len() + 1] = bounds();

const fn bounds() -> [u64; 6 * STEPS.len() + 1] {
    let mut bounds = [0; 6 * STEPS.len() + 1];
    let (mut index, mut unit) = (0, 1_000);
    while index < bounds.len() {
        bounds[index] = STEPS[index % STEPS.len()] * unit;
        index += 1;
        if index % STEPS.len() == 0 {
            unit *= 10;
        }
    }
    bounds
}

/// A histogram of durations.
#[derive(Debug)]
pub struct LatencyHistogram {
    counts: [AtomicU64; BUCKETS],
    /// Nanoseconds.
    sum: AtomicU64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { counts: array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

impl LatencyHistogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let index = BOUNDS.partition_point(|bound| *bound < nanoseconds);
        self.counts[index].fetch_add(1, Relaxed);
        self.sum.fetch_add(nanoseconds, Relaxed);
    }

    /// What each bucket holds by itself, not added up.
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().map(|count| count.load(Relaxed))
    }

    /// The same durations in the buckets of `/metrics`.
    pub fn coarse(&self) -> DurationHistogram {
        let mut counts = [0; DURATION_BOUNDS.len() + 1];
        for (index, count) in self.counts().enumerate() {
            let bound = BOUNDS.get(index).copied().unwrap_or(u64::MAX);
            counts[DURATION_BOUNDS.partition_point(|coarse| *coarse < bound)] += count;
        }
        DurationHistogram::with(&DURATION_BOUNDS, counts, self.sum.load(Relaxed))
    }
}

/// The duration in seconds that this share (0 to 1) of what `counts` holds does not exceed: evenly spread inside of a
/// bucket, as Prometheus takes it, and the largest bound for what lies beyond it.
pub fn quantile(counts: &[u64], share: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let rank = share * total as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for (count, bound) in counts.iter().zip(BOUNDS) {
        let (count, upper) = (*count as f64, bound as f64 / 1e9);
        if count > 0.0 && below + count >= rank {
            return Some(microseconds(lower + (upper - lower) * (rank - below) / count));
        }
        below += count;
        lower = upper;
    }
    (total > 0).then_some(lower)
}

/// Digits beyond a microsecond would only pretend precision.
fn microseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(durations: &[(usize, Duration)]) -> LatencyHistogram {
        let histogram = LatencyHistogram::default();
        for (count, duration) in durations {
            (0..*count).for_each(|_| histogram.observe(*duration));
        }
        histogram
    }

    #[test]
    fn bounds_rise_in_small_steps_and_meet_those_of_the_metrics() {
        assert_eq!((BOUNDS[0], BOUNDS[BUCKETS - 2]), (100_000, 100_000_000_000));
        for pair in BOUNDS.windows(2) {
            let step = pair[1] as f64 / pair[0] as f64;
            assert!(step > 1.09 && step < 1.151, "{pair:?}");
        }
        for bound in DURATION_BOUNDS {
            assert!(BOUNDS.contains(&bound), "{bound}");
        }
    }

    #[test]
    fn the_coarse_buckets_are_those_that_each_duration_would_have_met() {
        let fine = LatencyHistogram::default();
        let coarse = DurationHistogram::new(&DURATION_BOUNDS);
        let around = BOUNDS.iter().flat_map(|bound| [bound - 1, *bound, bound + 1]);
        for nanoseconds in around.chain([0, u64::MAX / 1_000_000]) {
            fine.observe(Duration::from_nanos(nanoseconds));
            coarse.observe(Duration::from_nanos(nanoseconds));
        }

        assert_eq!(fine.coarse().counts(), coarse.counts());
        assert_eq!(fine.coarse().sum(), coarse.sum());
        fine.observe(Duration::MAX);
        assert_eq!(fine.coarse().counts()[10], coarse.counts()[10] + 1);
    }

    #[test]
    fn quantiles_are_interpolated_inside_of_their_bucket() {
        let millis = Duration::from_millis;
        for (what, durations, p50, p99) in [
            ("one bucket", &[(100, millis(3))][..], 0.002975, 0.003147),
            ("two buckets", &[(50, millis(3)), (50, millis(8))], 0.00315, 0.007982),
            ("a gap", &[(10, millis(3)), (90, millis(900))], 0.844444, 0.898889),
            ("beyond the last bound", &[(1, millis(200_000))], 100.0, 100.0),
            ("below the first", &[(2, Duration::from_micros(10))], 0.00005, 0.000099),
        ] {
            let counts: Vec<u64> = observed(durations).counts().collect();
            assert_eq!((quantile(&counts, 0.5), quantile(&counts, 0.99)), (Some(p50), Some(p99)), "{what}");
        }
        assert_eq!(quantile(&[0; BUCKETS], 0.5), None);
    }
}

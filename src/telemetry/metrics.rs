//! The meters of one service: plain atomics, found once when the service is compiled, so that recording costs a few
//! nanoseconds and no look-up. A scrape reads them while they are written; it holds nothing that recording needs.

use std::array;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;

use super::labels::{BreakerState, Cluster, FallbackCause, Outcome, Phase, Reason, Target};
use super::latency::LatencyHistogram;

/// Upper bounds of the duration buckets, in nanoseconds; one more bucket holds what is longer.
pub const DURATION_BOUNDS: [u64; 10] = [
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// Upper bounds of the connect phases: a cached name takes no time, `timeouts.connect` ends most of the rest.
pub const CONNECT_BOUNDS: [u64; 7] =
    [1_000_000, 5_000_000, 25_000_000, 100_000_000, 500_000_000, 1_000_000_000, 5_000_000_000];

/// Upper bounds of our own share of a request's time.
pub const OVERHEAD_BOUNDS: [u64; 10] =
    [10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000, 25_000_000, 100_000_000];

/// A histogram of durations below 10 s in the contract's buckets.
pub type DurationHistogram = Histogram<10, 11>;
/// A histogram of one connect phase.
pub type ConnectHistogram = Histogram<7, 8>;

/// A Prometheus histogram with fixed bounds. `COUNTS` is one more than `BOUNDS`: the last one has no upper bound.
#[derive(Debug)]
pub struct Histogram<const BOUNDS: usize, const COUNTS: usize> {
    bounds: &'static [u64; BOUNDS],
    counts: [AtomicU64; COUNTS],
    /// Nanoseconds: integers add without a compare-and-swap loop, and wrap only after 584 years.
    sum: AtomicU64,
}

impl<const BOUNDS: usize, const COUNTS: usize> Histogram<BOUNDS, COUNTS> {
    /// An empty histogram.
    pub fn new(bounds: &'static [u64; BOUNDS]) -> Self {
        Self::with(bounds, [0; COUNTS], 0)
    }

    /// A histogram that holds this already; `sum` is in nanoseconds.
    pub fn with(bounds: &'static [u64; BOUNDS], counts: [u64; COUNTS], sum: u64) -> Self {
        const { assert!(COUNTS == BOUNDS + 1) };
        Self { bounds, counts: counts.map(AtomicU64::new), sum: AtomicU64::new(sum) }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // Counting the smaller bounds has no branch to mispredict, unlike a search.
        let index: usize = self.bounds.iter().map(|bound| usize::from(nanoseconds > *bound)).sum();
        self.counts[index].fetch_add(1, Relaxed);
        self.sum.fetch_add(nanoseconds, Relaxed);
    }

    /// Upper bounds in nanoseconds.
    pub fn bounds(&self) -> &'static [u64; BOUNDS] {
        self.bounds
    }

    /// What each bucket holds by itself, not added up.
    pub fn counts(&self) -> [u64; COUNTS] {
        array::from_fn(|index| self.counts[index].load(Relaxed))
    }

    /// All durations together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum.load(Relaxed))
    }
}

/// How many connections to one cluster are open, by what they do.
#[derive(Debug, Default)]
pub struct ConnectionGauge {
    idle: AtomicI64,
    active: AtomicI64,
}

impl ConnectionGauge {
    /// One more waits in the pool.
    pub fn idle_inc(&self) {
        self.idle.fetch_add(1, Relaxed);
    }

    /// One less waits in the pool.
    pub fn idle_dec(&self) {
        self.idle.fetch_sub(1, Relaxed);
    }

    /// One more is held by a request.
    pub fn active_inc(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    /// One less is held by a request.
    pub fn active_dec(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    /// Connections that wait.
    pub fn idle(&self) -> i64 {
        self.idle.load(Relaxed)
    }

    /// Connections that are held.
    pub fn active(&self) -> i64 {
        self.active.load(Relaxed)
    }
}

/// Requests of one reason: by target, then by status class.
type RequestCounts = [[AtomicU64; 5]; 3];

/// What each outcome, or its part, was counted.
type OutcomeCounts = [AtomicU64; Outcome::ALL.len()];

/// What is recorded once for each target.
#[derive(Debug)]
struct TargetMeters {
    duration: DurationHistogram,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
}

/// What is recorded once for each cluster.
#[derive(Debug)]
struct ClusterMeters {
    outcomes: OutcomeCounts,
    retries: OutcomeCounts,
    duration: LatencyHistogram,
    /// New connections, and the microseconds that they took altogether.
    connects: [AtomicU64; 2],
    connections: ConnectionGauge,
}

/// Everything that is counted for one service.
#[derive(Debug)]
pub struct ServiceMeters {
    service: Box<str>,
    /// A service meets few reasons, so each gets its counts when it is first met.
    requests: [OnceLock<Box<RequestCounts>>; Reason::ALL.len()],
    targets: [TargetMeters; Target::ALL.len()],
    clusters: [ClusterMeters; 2],
    connect: [ConnectHistogram; Phase::ALL.len()],
    fallbacks: [AtomicU64; FallbackCause::ALL.len()],
    keys: Box<[(Box<str>, AtomicU64)]>,
    transitions: [AtomicU64; BreakerState::ALL.len()],
    cookie_domains_dropped: AtomicU64,
}

impl ServiceMeters {
    /// Meters at zero. `keys` are the entries of `sticky.by` as written.
    pub fn new(service: &str, keys: &[&str]) -> Arc<Self> {
        let keys = keys.iter().copied().chain(["none"]).map(|key| (key.into(), AtomicU64::new(0))).collect();
        Arc::new(Self {
            service: service.into(),
            requests: array::from_fn(|_| OnceLock::new()),
            targets: array::from_fn(|_| TargetMeters {
                duration: Histogram::new(&DURATION_BOUNDS),
                request_bytes: AtomicU64::new(0),
                response_bytes: AtomicU64::new(0),
            }),
            clusters: array::from_fn(|_| ClusterMeters {
                outcomes: zeros(),
                retries: zeros(),
                duration: LatencyHistogram::default(),
                connects: zeros(),
                connections: ConnectionGauge::default(),
            }),
            connect: array::from_fn(|_| Histogram::new(&CONNECT_BOUNDS)),
            fallbacks: zeros(),
            keys,
            transitions: zeros(),
            cookie_domains_dropped: AtomicU64::new(0),
        })
    }

    /// The service's name.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Whether these meters fit a service after a reload; otherwise it needs new ones, whose counts start at zero.
    pub fn has_keys(&self, keys: &[&str]) -> bool {
        let (_none, own) = self.keys.split_last().expect("new adds the key none");
        own.iter().map(|(key, _)| &**key).eq(keys.iter().copied())
    }

    /// A request has ended: who answered, why there, with what, how long it took and how large the bodies were.
    pub fn request(
        &self,
        target: Target,
        reason: Reason,
        status: StatusCode,
        duration: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        let counts = self.requests[reason as usize].get_or_init(|| Box::new(array::from_fn(|_| zeros())));
        counts[target as usize][status_class(status)].fetch_add(1, Relaxed);
        let meters = &self.targets[target as usize];
        meters.duration.observe(duration);
        meters.request_bytes.fetch_add(request_bytes, Relaxed);
        meters.response_bytes.fetch_add(response_bytes, Relaxed);
    }

    /// One try on a cluster has ended, until its response head.
    pub fn attempt(&self, cluster: Cluster, outcome: Outcome, duration: Duration) {
        let meters = &self.clusters[cluster as usize];
        meters.outcomes[outcome as usize].fetch_add(1, Relaxed);
        meters.duration.observe(duration);
    }

    /// A response whose head was counted ended early: one more, by what cut it.
    pub fn cut(&self, cluster: Cluster, outcome: Outcome) {
        self.clusters[cluster as usize].outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    /// A new connection to a cluster is there, name look-up and handshake included.
    pub fn connected(&self, cluster: Cluster, duration: Duration) {
        let [count, microseconds] = &self.clusters[cluster as usize].connects;
        count.fetch_add(1, Relaxed);
        microseconds.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// One step of a new connection to the new cluster is done.
    pub fn connect_phase(&self, phase: Phase, duration: Duration) {
        self.connect[phase as usize].observe(duration);
    }

    /// A try on `cluster` that ended so is tried again there.
    pub fn retry(&self, cluster: Cluster, outcome: Outcome) {
        self.clusters[cluster as usize].retries[outcome as usize].fetch_add(1, Relaxed);
    }

    /// A request for new is answered by old.
    pub fn fallback(&self, cause: FallbackCause) {
        self.fallbacks[cause as usize].fetch_add(1, Relaxed);
    }

    /// A decision took its key from this entry of `sticky.by`; `None`: there was no key.
    pub fn key(&self, index: Option<usize>) {
        let none = self.keys.len() - 1;
        let index = index.filter(|index| *index < none).unwrap_or(none);
        self.keys[index].1.fetch_add(1, Relaxed);
    }

    /// A cookie's Domain that would not hold for the client's host was removed.
    pub fn cookie_domain_dropped(&self) {
        self.cookie_domains_dropped.fetch_add(1, Relaxed);
    }

    /// The breaker of new changed its state.
    pub fn breaker_transition(&self, to: BreakerState) {
        self.transitions[to as usize].fetch_add(1, Relaxed);
    }

    /// The open connections to a cluster.
    pub fn connections(&self, cluster: Cluster) -> &ConnectionGauge {
        &self.clusters[cluster as usize].connections
    }

    /// Requests so far, by reason, target and status class (0 is `1xx`). Only sets that have occurred.
    pub fn requests(&self) -> impl Iterator<Item = (Target, Reason, usize, u64)> + '_ {
        Reason::ALL.iter().filter_map(|reason| Some((reason, self.requests[*reason as usize].get()?))).flat_map(
            |(reason, counts)| {
                Target::ALL.iter().flat_map(move |target| {
                    let classes = counts[*target as usize].iter().enumerate();
                    classes
                        .map(move |(class, count)| (*target, *reason, class, count.load(Relaxed)))
                        .filter(|(.., count)| *count > 0)
                })
            },
        )
    }

    /// How long requests took.
    pub fn request_duration(&self, target: Target) -> &DurationHistogram {
        &self.targets[target as usize].duration
    }

    /// Body bytes received from clients and sent to them.
    pub fn bytes(&self, target: Target) -> (u64, u64) {
        let meters = &self.targets[target as usize];
        (meters.request_bytes.load(Relaxed), meters.response_bytes.load(Relaxed))
    }

    /// Tries so far that ended so.
    pub fn attempts(&self, cluster: Cluster, outcome: Outcome) -> u64 {
        self.clusters[cluster as usize].outcomes[outcome as usize].load(Relaxed)
    }

    /// How long tries took.
    pub fn attempt_duration(&self, cluster: Cluster) -> &LatencyHistogram {
        &self.clusters[cluster as usize].duration
    }

    /// New connections so far, and the microseconds that they took altogether.
    pub fn connects(&self, cluster: Cluster) -> [u64; 2] {
        let [count, microseconds] = &self.clusters[cluster as usize].connects;
        [count.load(Relaxed), microseconds.load(Relaxed)]
    }

    /// How long steps of connecting to new took.
    pub fn connect_duration(&self, phase: Phase) -> &ConnectHistogram {
        &self.connect[phase as usize]
    }

    /// Tries so far that ended so and were repeated.
    pub fn retries(&self, cluster: Cluster, outcome: Outcome) -> u64 {
        self.clusters[cluster as usize].retries[outcome as usize].load(Relaxed)
    }

    /// Requests for new so far that old answered.
    pub fn fallbacks(&self, cause: FallbackCause) -> u64 {
        self.fallbacks[cause as usize].load(Relaxed)
    }

    /// Decisions so far, by the entry of `sticky.by`; the last is `none`.
    pub fn keys(&self) -> impl Iterator<Item = (&str, u64)> {
        self.keys.iter().map(|(key, count)| (&**key, count.load(Relaxed)))
    }

    /// Changes of the breaker to this state so far.
    pub fn breaker_transitions(&self, to: BreakerState) -> u64 {
        self.transitions[to as usize].load(Relaxed)
    }

    /// Removed cookie Domains so far.
    pub fn cookie_domains_dropped(&self) -> u64 {
        self.cookie_domains_dropped.load(Relaxed)
    }
}

/// The place of a status in the counts; what no class names is our fault or an upstream's.
fn status_class(status: StatusCode) -> usize {
    match status.as_u16() {
        100..=199 => 0,
        200..=299 => 1,
        300..=399 => 2,
        400..=499 => 3,
        _ => 4,
    }
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    array::from_fn(|_| AtomicU64::new(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed() {
        for (nanoseconds, bucket) in
            [(0, 0), (5_000_000, 0), (5_000_001, 1), (10_000_000, 1), (1_000_000_000, 7), (10_000_000_000, 9)]
        {
            let histogram = DurationHistogram::new(&DURATION_BOUNDS);
            histogram.observe(Duration::from_nanos(nanoseconds));
            let counts = histogram.counts();
            assert_eq!(counts.iter().position(|count| *count == 1), Some(bucket), "{nanoseconds} ns");
            assert_eq!((counts.iter().sum::<u64>(), histogram.sum()), (1, Duration::from_nanos(nanoseconds)));
        }
        let histogram = DurationHistogram::new(&DURATION_BOUNDS);
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.counts()[10], 1);
    }

    #[test]
    fn every_status_has_a_class() {
        for (status, class) in
            [(100, 0), (101, 0), (200, 1), (304, 2), (499, 3), (500, 4), (599, 4), (600, 4), (999, 4)]
        {
            assert_eq!(status_class(StatusCode::from_u16(status).unwrap()), class, "{status}");
        }
    }

    #[test]
    fn meters_fit_the_keys_that_they_were_made_with() {
        let meters = ServiceMeters::new("a", &["cookie:a", "client_ip"]);
        for (keys, fits) in [(&["cookie:a", "client_ip"][..], true), (&["client_ip", "cookie:a"], false), (&[], false)]
        {
            assert_eq!(meters.has_keys(keys), fits, "{keys:?}");
        }
        assert!(ServiceMeters::new("a", &[]).has_keys(&[]));
    }

    #[test]
    fn requests_are_counted_by_target_reason_and_class() {
        let meters = ServiceMeters::new("a", &[]);
        let request = |target, reason, status| {
            meters.request(target, reason, status, Duration::from_millis(3), 10, 20);
        };

        request(Target::New, Reason::User, StatusCode::OK);
        request(Target::New, Reason::User, StatusCode::CREATED);
        request(Target::Old, Reason::User, StatusCode::NOT_FOUND);
        request(Target::None, Reason::None, StatusCode::BAD_REQUEST);

        let counts: Vec<_> = meters.requests().collect();
        assert_eq!(
            counts,
            [(Target::Old, Reason::User, 3, 1), (Target::New, Reason::User, 1, 2), (Target::None, Reason::None, 3, 1)]
        );
        assert_eq!(meters.bytes(Target::New), (20, 40));
        assert_eq!(meters.request_duration(Target::New).counts()[0], 2);
    }

    #[test]
    fn counts_from_several_threads_are_all_there() {
        let meters = ServiceMeters::new("a", &[]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        meters.request(Target::New, Reason::Weight, StatusCode::OK, Duration::from_millis(1), 1, 1);
                        meters.attempt(Cluster::New, Outcome::Success, Duration::from_millis(1));
                    }
                });
            }
        });
        assert_eq!(meters.requests().collect::<Vec<_>>(), [(Target::New, Reason::Weight, 1, 40_000)]);
        assert_eq!(meters.attempts(Cluster::New, Outcome::Success), 40_000);
        assert_eq!(meters.attempt_duration(Cluster::New).coarse().sum(), Duration::from_secs(40));
    }
}

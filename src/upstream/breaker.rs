//! The circuit breaker of one new cluster: closed, open, half-open with one probe at a time, and a ramp after that.
//! It takes the time as an argument and touches no socket. A success on a closed breaker takes no lock, and nothing
//! that only reads ever changes it. Verdicts of requests that were admitted before the state last changed are ignored.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ratio::Ratio;
use crate::config::{Fallback, Percent};

/// No ramp is under way.
const NO_RAMP: u64 = u64::MAX;

/// Whether a cluster may be asked, as a decision and `/status` see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It may be asked.
    Available,
    /// It recovers: only this part of its share may ask, lowest buckets first.
    Ramp(Percent),
    /// The breaker is open, or half-open with a probe under way.
    Open,
    /// The health check fails.
    Unhealthy,
}

/// States of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Requests pass.
    Closed,
    /// None pass.
    Open,
    /// One probe at a time passes.
    HalfOpen,
}

impl State {
    /// Every state.
    pub const ALL: &'static [Self] = &[Self::Closed, Self::Open, Self::HalfOpen];

    /// The word in `/status` and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A change of state, to be logged and counted once by whoever got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state now.
    pub to: State,
}

/// What became of an admitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The cluster answered well enough.
    Success,
    /// The cluster is to blame.
    Failure,
}

/// Leave to ask the cluster once; goes back through [`Breaker::settle`] or [`Breaker::abandon`].
#[derive(Debug)]
#[must_use = "a probe's place comes back only through settle or abandon"]
pub struct Permit {
    generation: u64,
    probe: bool,
    transition: Option<Transition>,
}

impl Permit {
    /// Whether this request probes a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// What to keep after the verdict, in case the answer's body ends early.
    pub fn admitted(&self) -> Admitted {
        Admitted { generation: self.generation }
    }

    /// The change of state that giving this permit caused: the first probe makes an open breaker half-open.
    pub fn transition(&self) -> Option<Transition> {
        self.transition
    }
}

/// The state in which a request was admitted; see [`Breaker::fail_after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    generation: u64,
}

/// What `/status` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The state.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// When an open breaker lets the first probe pass.
    pub retry_at: Option<Instant>,
    /// The part of the share that is back, while a closed breaker ramps up.
    pub ramp: Option<Percent>,
}

/// A circuit breaker. Times inside are microseconds since `origin`.
#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    origin: Instant,
    /// The state in the lowest two bits, above them a generation that each change of state raises.
    phase: AtomicU64,
    since: AtomicU64,
    ramp_start: AtomicU64,
    probing: AtomicBool,
    /// Failures in a row; a success sets it to zero without touching `slow`.
    streak: AtomicU32,
    ratio: Ratio,
    slow: Mutex<Slow>,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    enabled: bool,
    max_failures: u32,
    failure_window: u64,
    recovery_time: u64,
    failure_ratio: Percent,
    ratio_window: u64,
    min_requests: u64,
    probes: u32,
    ramp: u64,
}

impl Settings {
    fn new(fallback: &Fallback) -> Self {
        Self {
            enabled: fallback.enabled,
            max_failures: fallback.max_failures.max(1),
            failure_window: micros(fallback.failure_window),
            recovery_time: micros(fallback.recovery_time),
            failure_ratio: fallback.failure_ratio,
            ratio_window: micros(fallback.ratio_window),
            min_requests: u64::from(fallback.min_requests.max(1)),
            probes: fallback.probes.max(1),
            ramp: micros(fallback.ramp),
        }
    }
}

/// What failures, probes and changes of state need.
#[derive(Clone, Debug, Default)]
struct Slow {
    /// When the failures in a row happened, at most `max_failures` of them.
    failures: VecDeque<u64>,
    probes_passed: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Phase {
    state: State,
    generation: u64,
}

impl Phase {
    fn pack(self) -> u64 {
        self.generation << 2 | self.state as u64
    }

    fn unpack(word: u64) -> Self {
        let state = match word & 3 {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        };
        Self { state, generation: word >> 2 }
    }
}

impl Breaker {
    /// A closed breaker; one that never opens when `fallback.enabled` is false.
    pub fn new(fallback: &Fallback, now: Instant) -> Self {
        let settings = Settings::new(fallback);
        Self {
            origin: now,
            phase: AtomicU64::new(Phase { state: State::Closed, generation: 0 }.pack()),
            since: AtomicU64::new(0),
            ramp_start: AtomicU64::new(NO_RAMP),
            probing: AtomicBool::new(false),
            streak: AtomicU32::new(0),
            ratio: Ratio::new(settings.ratio_window),
            slow: Mutex::default(),
            settings,
        }
    }

    /// A breaker with new settings that goes on where another one is. Permits stay with the breaker that gave them, so
    /// a probe under way there does not occupy the place here.
    pub fn with_state_of(other: &Self, fallback: &Fallback, now: Instant) -> Self {
        let settings = Settings::new(fallback);
        if !settings.enabled || !other.settings.enabled {
            return Self::new(fallback, now);
        }
        let slow = other.lock();
        let copy = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Relaxed));
        Self {
            origin: other.origin,
            phase: copy(&other.phase),
            since: copy(&other.since),
            ramp_start: copy(&other.ramp_start),
            probing: AtomicBool::new(false),
            streak: AtomicU32::new(other.streak.load(Ordering::Relaxed)),
            ratio: Ratio::with_counts_of(&other.ratio, settings.ratio_window),
            slow: Mutex::new(slow.clone()),
            settings,
        }
    }

    /// Whether a request would be admitted; changes nothing.
    pub fn availability(&self, now: Instant) -> Availability {
        match self.phase().state {
            State::Closed => self.ramp(self.at(now)).map_or(Availability::Available, Availability::Ramp),
            State::Open if self.at(now) >= self.retry_at() => Availability::Available,
            State::HalfOpen if !self.probing.load(Ordering::Acquire) => Availability::Available,
            State::Open | State::HalfOpen => Availability::Open,
        }
    }

    /// Leave to send one request, or `None`. In a ramp everybody is admitted, because the decision has compared the
    /// bucket with [`Availability::Ramp`] already, and only it knows the share.
    pub fn admit(&self, now: Instant) -> Option<Permit> {
        let phase = self.phase();
        match phase.state {
            State::Closed => Some(Permit { generation: phase.generation, probe: false, transition: None }),
            State::Open if self.at(now) < self.retry_at() => None,
            State::Open | State::HalfOpen => self.admit_probe(now),
        }
    }

    /// Takes a permit back with what became of the request.
    #[expect(clippy::needless_pass_by_value, reason = "a permit goes back once")]
    pub fn settle(&self, permit: Permit, verdict: Verdict, now: Instant) -> Option<Transition> {
        if !self.settings.enabled || permit.generation != self.phase().generation {
            return None;
        }
        match (permit.probe, verdict) {
            (true, verdict) => self.settle_probe(permit.generation, verdict, now),
            (false, Verdict::Failure) => self.settle_failure(permit.generation, now),
            (false, Verdict::Success) => {
                self.ratio.add(1, 0, self.at(now));
                if self.streak.load(Ordering::Relaxed) != 0 {
                    self.streak.store(0, Ordering::Relaxed);
                }
                None
            }
        }
    }

    /// Counts one more failure for a request whose verdict was given at the head, because its body ended early. Bodies of
    /// probes do not count: the head was their verdict.
    pub fn fail_after(&self, admitted: Admitted, now: Instant) -> Option<Transition> {
        let phase = self.phase();
        let counts = self.settings.enabled && phase.state == State::Closed && phase.generation == admitted.generation;
        if counts { self.settle_failure(admitted.generation, now) } else { None }
    }

    /// Takes a permit back without a verdict: the client left, or a limit of ours ended the request. A probe's place
    /// is free again.
    #[expect(clippy::needless_pass_by_value, reason = "a permit goes back once")]
    pub fn abandon(&self, permit: Permit) {
        if permit.probe {
            let _slow = self.lock();
            if permit.generation == self.phase().generation {
                self.probing.store(false, Ordering::Release);
            }
        }
    }

    /// What `/status` shows.
    pub fn report(&self, now: Instant) -> Report {
        let _slow = self.lock();
        let state = self.phase().state;
        let time = |at: u64| self.origin.checked_add(Duration::from_micros(at));
        Report {
            state,
            since: time(self.since.load(Ordering::Relaxed)).unwrap_or(self.origin),
            retry_at: if state == State::Open { time(self.retry_at()) } else { None },
            ramp: if state == State::Closed { self.ramp(self.at(now)) } else { None },
        }
    }

    fn admit_probe(&self, now: Instant) -> Option<Permit> {
        let mut slow = self.lock();
        let phase = self.phase();
        let transition = match phase.state {
            State::Closed => return Some(Permit { generation: phase.generation, probe: false, transition: None }),
            State::Open if self.at(now) < self.retry_at() => return None,
            State::Open => Some(self.enter(State::HalfOpen, &mut slow, now)),
            State::HalfOpen => None,
        };
        if self.probing.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(Permit { generation: self.phase().generation, probe: true, transition })
    }

    fn settle_probe(&self, generation: u64, verdict: Verdict, now: Instant) -> Option<Transition> {
        let mut slow = self.lock();
        if generation != self.phase().generation {
            return None;
        }
        self.probing.store(false, Ordering::Release);
        match verdict {
            Verdict::Failure => Some(self.enter(State::Open, &mut slow, now)),
            Verdict::Success => {
                slow.probes_passed += 1;
                (slow.probes_passed >= self.settings.probes).then(|| self.enter(State::Closed, &mut slow, now))
            }
        }
    }

    fn settle_failure(&self, generation: u64, now: Instant) -> Option<Transition> {
        let mut slow = self.lock();
        if generation != self.phase().generation {
            return None;
        }
        let at = self.at(now);
        self.ratio.add(1, 1, at);
        let in_a_row = self.count_in_a_row(&mut slow, at);
        let too_many = in_a_row >= self.settings.max_failures || self.is_ratio_reached(at);
        too_many.then(|| self.enter(State::Open, &mut slow, now))
    }

    /// Adds one failure to those in a row and tells how many lie within the window.
    fn count_in_a_row(&self, slow: &mut Slow, at: u64) -> u32 {
        if self.streak.load(Ordering::Relaxed) == 0 {
            slow.failures.clear();
        }
        slow.failures.push_back(at);
        let earliest = at.saturating_sub(self.settings.failure_window);
        while slow.failures.front().is_some_and(|failure| *failure < earliest) {
            slow.failures.pop_front();
        }
        // Opening at max_failures clears the list, so it never grows beyond that.
        let in_a_row = slow.failures.len() as u32;
        self.streak.store(in_a_row, Ordering::Relaxed);
        in_a_row
    }

    fn is_ratio_reached(&self, at: u64) -> bool {
        let (verdicts, failures) = self.ratio.totals(at);
        let whole = u64::from(Percent::HUNDRED.basis_points());
        verdicts >= self.settings.min_requests
            && failures * whole >= verdicts * u64::from(self.settings.failure_ratio.basis_points())
    }

    /// Changes the state. Everything that belongs to the state before is forgotten.
    fn enter(&self, to: State, slow: &mut Slow, now: Instant) -> Transition {
        let Phase { state: from, generation } = self.phase();
        let at = self.at(now);
        *slow = Slow::default();
        self.ratio.clear();
        self.streak.store(0, Ordering::Relaxed);
        self.probing.store(false, Ordering::Relaxed);
        self.since.store(at, Ordering::Relaxed);
        let ramp_start = if to == State::Closed && self.settings.ramp > 0 { at } else { NO_RAMP };
        self.ramp_start.store(ramp_start, Ordering::Relaxed);
        self.phase.store(Phase { state: to, generation: generation + 1 }.pack(), Ordering::Release);
        Transition { from, to }
    }

    /// The part of the share that is back, while it is not all of it.
    fn ramp(&self, at: u64) -> Option<Percent> {
        let start = self.ramp_start.load(Ordering::Relaxed);
        if start == NO_RAMP {
            return None;
        }
        let (elapsed, whole) = (at.saturating_sub(start), u64::from(Percent::HUNDRED.basis_points()));
        if elapsed >= self.settings.ramp {
            return None;
        }
        Percent::from_basis_points((u128::from(elapsed) * u128::from(whole) / u128::from(self.settings.ramp)) as u16)
    }

    fn retry_at(&self) -> u64 {
        self.since.load(Ordering::Relaxed).saturating_add(self.settings.recovery_time)
    }

    fn phase(&self) -> Phase {
        Phase::unpack(self.phase.load(Ordering::Acquire))
    }

    fn at(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.origin))
    }

    fn lock(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const RECOVERY: Duration = Duration::from_secs(300);
    const RAMP: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    fn fallback() -> Fallback {
        Fallback {
            enabled: true,
            max_failures: 5,
            failure_window: Duration::from_secs(60),
            recovery_time: RECOVERY,
            failure_ratio: percent(5_000),
            ratio_window: Duration::from_secs(10),
            min_requests: 20,
            failures: Vec::new(),
            probes: 3,
            ramp: RAMP,
            retry_on_old: true,
        }
    }

    fn percent(basis_points: u16) -> Percent {
        Percent::from_basis_points(basis_points).expect("at most 10 000")
    }

    fn settle(breaker: &Breaker, verdict: Verdict, now: Instant) -> Option<Transition> {
        let permit = breaker.admit(now).expect("the request is admitted");
        breaker.settle(permit, verdict, now)
    }

    fn tripped(now: Instant) -> Breaker {
        let breaker = Breaker::new(&fallback(), now);
        for _ in 0..5 {
            settle(&breaker, Verdict::Failure, now);
        }
        assert_eq!(breaker.report(now).state, State::Open);
        breaker
    }

    /// Open, then half-open, then closed again: a ramp begins at the returned time.
    fn recovered(start: Instant) -> (Breaker, Instant) {
        let (breaker, later) = (tripped(start), start + RECOVERY);
        for _ in 0..3 {
            settle(&breaker, Verdict::Success, later);
        }
        assert_eq!(breaker.report(later).state, State::Closed);
        (breaker, later)
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_starts_again() {
        let start = Instant::now();
        let breaker = Breaker::new(&fallback(), start);

        for verdict in [Verdict::Failure; 4].into_iter().chain([Verdict::Success]).chain([Verdict::Failure; 4]) {
            assert_eq!(settle(&breaker, verdict, start), None);
        }
        assert_eq!(
            settle(&breaker, Verdict::Failure, start),
            Some(Transition { from: State::Closed, to: State::Open })
        );
        assert_eq!(breaker.availability(start), Availability::Open);
        assert!(breaker.admit(start + RECOVERY - SECOND).is_none());
    }

    #[test]
    fn failures_in_a_row_must_lie_within_the_window() {
        let start = Instant::now();
        let breaker = Breaker::new(&fallback(), start);

        for seconds in [0, 59, 61, 62] {
            assert_eq!(settle(&breaker, Verdict::Failure, start + SECOND * seconds), None);
        }
        assert_eq!(settle(&breaker, Verdict::Failure, start + SECOND * 63), None);
        assert!(settle(&breaker, Verdict::Failure, start + SECOND * 64).is_some());
    }

    #[test]
    fn half_of_enough_requests_open_it_although_successes_come_between() {
        let start = Instant::now();
        let breaker = Breaker::new(&fallback(), start);

        for number in 0..19 {
            let verdict = if number % 3 == 2 { Verdict::Success } else { Verdict::Failure };
            assert_eq!(settle(&breaker, verdict, start), None, "request {number}");
        }
        assert!(settle(&breaker, Verdict::Failure, start).is_some());

        let tenth = Breaker::new(&fallback(), start);
        for number in 0..300 {
            let verdict = if number % 10 == 9 { Verdict::Failure } else { Verdict::Success };
            assert_eq!(settle(&tenth, verdict, start), None, "request {number}");
        }
    }

    #[test]
    fn one_probe_at_a_time_while_half_open() {
        let start = Instant::now();
        let (breaker, later) = (tripped(start), start + RECOVERY);
        assert_eq!(breaker.availability(later), Availability::Available);

        for probe in 0..3 {
            let permit = breaker.admit(later).expect("a probe passes");
            assert!(permit.is_probe());
            let half_open = Transition { from: State::Open, to: State::HalfOpen };
            assert_eq!(permit.transition(), (probe == 0).then_some(half_open));
            assert!(breaker.admit(later).is_none());
            assert_eq!(breaker.availability(later), Availability::Open);

            let closed = Transition { from: State::HalfOpen, to: State::Closed };
            assert_eq!(breaker.settle(permit, Verdict::Success, later), (probe == 2).then_some(closed));
        }
        assert_eq!(breaker.availability(later + RAMP), Availability::Available);
    }

    #[test]
    fn a_failed_probe_opens_it_for_the_whole_time_again() {
        let start = Instant::now();
        let (breaker, later) = (tripped(start), start + RECOVERY);

        settle(&breaker, Verdict::Success, later);
        let reopened = settle(&breaker, Verdict::Failure, later);

        assert_eq!(reopened, Some(Transition { from: State::HalfOpen, to: State::Open }));
        let report = breaker.report(later);
        assert_eq!((report.state, report.since, report.retry_at), (State::Open, later, Some(later + RECOVERY)));
        assert!(breaker.admit(later + RECOVERY - SECOND).is_none());
        assert!(breaker.admit(later + RECOVERY).is_some_and(|permit| permit.is_probe()));
    }

    #[test]
    fn an_abandoned_probe_gives_its_place_back() {
        let start = Instant::now();
        let (breaker, later) = (tripped(start), start + RECOVERY);

        for _ in 0..10 {
            let permit = breaker.admit(later).expect("the place is free");
            breaker.abandon(permit);
        }
        assert_eq!(breaker.report(later).state, State::HalfOpen);
    }

    #[test]
    fn late_verdicts_of_an_earlier_state_change_nothing() {
        let start = Instant::now();
        let breaker = Breaker::new(&fallback(), start);
        let mut early: Vec<Permit> = (0..20).map(|_| breaker.admit(start).expect("closed")).collect();
        for _ in 0..5 {
            settle(&breaker, Verdict::Failure, start);
        }
        let later = start + RECOVERY;
        let probe = breaker.admit(later).expect("a probe passes");

        for verdict in [Verdict::Failure, Verdict::Success] {
            let permit = early.pop().expect("twenty were admitted");
            assert_eq!(breaker.settle(permit, verdict, later), None);
        }
        breaker.abandon(early.pop().expect("twenty were admitted"));
        assert_eq!(breaker.report(later).state, State::HalfOpen);
        assert!(breaker.admit(later).is_none(), "the probe still holds the place");

        breaker.settle(probe, Verdict::Success, later);
        settle(&breaker, Verdict::Success, later);
        settle(&breaker, Verdict::Success, later);
        for permit in early {
            assert_eq!(breaker.settle(permit, Verdict::Failure, later), None);
        }
        assert_eq!(breaker.report(later).state, State::Closed);
    }

    #[test]
    fn the_ramp_rises_evenly_and_a_relapse_opens_again() {
        let (breaker, start) = recovered(Instant::now());

        for (seconds, expected) in [
            (0, Availability::Ramp(Percent::ZERO)),
            (15, Availability::Ramp(percent(5_000))),
            (29, Availability::Ramp(percent(9_666))),
            (30, Availability::Available),
        ] {
            assert_eq!(breaker.availability(start + SECOND * seconds), expected);
        }
        assert_eq!(breaker.report(start + SECOND * 15).ramp, Some(percent(5_000)));

        for _ in 0..4 {
            assert_eq!(settle(&breaker, Verdict::Failure, start + SECOND), None);
        }
        assert!(settle(&breaker, Verdict::Failure, start + SECOND).is_some());
        assert_eq!(breaker.availability(start + SECOND * 2), Availability::Open);
    }

    #[test]
    fn bodies_that_end_early_count_while_nothing_changed() {
        let start = Instant::now();
        let breaker = Breaker::new(&fallback(), start);
        let admitted = breaker.admit(start).map(|permit| permit.admitted()).expect("closed");

        for _ in 0..4 {
            assert_eq!(breaker.fail_after(admitted, start), None);
        }
        assert!(breaker.fail_after(admitted, start).is_some());
        assert_eq!(breaker.fail_after(admitted, start), None);

        let later = start + RECOVERY;
        let probe = breaker.admit(later).expect("a probe passes");
        let admitted = probe.admitted();
        breaker.settle(probe, Verdict::Success, later);
        assert_eq!(breaker.fail_after(admitted, later), None);
        assert_eq!(breaker.report(later).state, State::HalfOpen);
    }

    #[test]
    fn without_a_ramp_everything_comes_back_at_once() {
        let start = Instant::now();
        let breaker =
            Breaker::with_state_of(&tripped(start), &Fallback { ramp: Duration::ZERO, probes: 1, ..fallback() }, start);
        settle(&breaker, Verdict::Success, start + RECOVERY);
        assert_eq!(breaker.availability(start + RECOVERY), Availability::Available);
    }

    #[test]
    fn a_disabled_breaker_never_opens() {
        let start = Instant::now();
        let breaker = Breaker::new(&Fallback { enabled: false, ..fallback() }, start);
        for _ in 0..100 {
            assert_eq!(settle(&breaker, Verdict::Failure, start), None);
        }
        assert_eq!(breaker.availability(start), Availability::Available);
    }

    #[test]
    fn the_state_survives_new_settings() {
        let start = Instant::now();
        let old = tripped(start);
        let shorter = Fallback { recovery_time: SECOND * 10, ..fallback() };

        let breaker = Breaker::with_state_of(&old, &shorter, start + SECOND);
        assert_eq!(breaker.report(start).retry_at, Some(start + SECOND * 10));
        let probe = breaker.admit(start + SECOND * 10).expect("a probe passes");

        // The probe belongs to the breaker before the reload; its place must not be lost with it.
        let again = Breaker::with_state_of(&breaker, &shorter, start + SECOND * 11);
        assert!(again.admit(start + SECOND * 11).is_some_and(|permit| permit.is_probe()));
        breaker.abandon(probe);

        let counting = Breaker::new(&fallback(), start);
        for _ in 0..4 {
            settle(&counting, Verdict::Failure, start);
        }
        let counting = Breaker::with_state_of(&counting, &fallback(), start);
        assert!(settle(&counting, Verdict::Failure, start).is_some());
    }

    /// Ten minutes at 1 000 requests a second with 0.1 % errors, a thousand times. Successes between two failures are
    /// counted a second at a time, which is all that the breaker can tell apart.
    #[test]
    fn noise_never_opens_it() {
        const REQUESTS: u64 = 600_000;
        let start = Instant::now();
        for seed in 0..1_000 {
            let mut dice = StdRng::seed_from_u64(seed);
            let breaker = Breaker::new(&fallback(), start);
            let mut done = 0;
            while done < REQUESTS {
                let gap = (dice.random::<f64>().max(f64::MIN_POSITIVE).ln() / 0.999_f64.ln()) as u64;
                let failure = (done + gap).min(REQUESTS);
                while done < failure {
                    let now = start + Duration::from_millis(done);
                    let together = (failure - done).min(1_000 - done % 1_000);
                    settle(&breaker, Verdict::Success, now);
                    breaker.ratio.add(together - 1, 0, breaker.at(now));
                    done += together;
                }
                let opened = settle(&breaker, Verdict::Failure, start + Duration::from_millis(done));
                assert_eq!(opened, None, "seed {seed} after {done} requests");
                done += 1;
            }
        }
    }

    #[test]
    fn an_outage_of_half_the_requests_opens_it_within_two_seconds_after_hours_of_health() {
        let start = Instant::now();
        let healthy = Breaker::new(&fallback(), start);
        let hours = 3 * 60 * 60;
        for second in 0..hours {
            let now = start + SECOND * second;
            settle(&healthy, Verdict::Success, now);
            healthy.ratio.add(999, 0, healthy.at(now));
        }
        let outage = start + SECOND * hours;

        for seed in 0..1_000 {
            let mut dice = StdRng::seed_from_u64(seed);
            let breaker = Breaker::with_state_of(&healthy, &fallback(), outage);
            let opened = (0..2_000).find(|millisecond| {
                let verdict = if dice.random() { Verdict::Success } else { Verdict::Failure };
                settle(&breaker, verdict, outage + Duration::from_millis(*millisecond)).is_some()
            });
            assert!(opened.is_some(), "seed {seed}");
        }
    }

    #[test]
    fn every_second_request_failing_opens_it_within_the_ratio_window() {
        let start = Instant::now();
        let breaker = Breaker::new(&fallback(), start);
        breaker.ratio.add(10_000, 0, 0);

        let opened = (0..11_000_u64).find(|millisecond| {
            let verdict = if millisecond % 2 == 0 { Verdict::Success } else { Verdict::Failure };
            settle(&breaker, verdict, start + Duration::from_millis(*millisecond)).is_some()
        });

        assert!(opened.is_some_and(|millisecond| millisecond <= 10_001), "{opened:?}");
    }

    /// How long chance takes to make five failures in a row, which the documents tell: (1 - p^5) / ((1 - p) p^5) requests.
    #[test]
    fn failures_in_a_row_happen_as_often_as_documented() {
        let patient = Fallback { failure_ratio: Percent::HUNDRED, min_requests: u32::MAX, ..fallback() };
        let start = Instant::now();
        for (failing, documented, runs) in [(0.5_f64, 62.0, 10_000_u32), (0.2, 3_905.0, 400), (0.1, 111_110.0, 30)] {
            let five = failing.powi(5);
            let expected = (1.0 - five) / ((1.0 - failing) * five);
            assert_eq!(expected.round(), documented, "at {failing}");

            let mut requests = 0;
            for seed in 0..runs {
                let mut dice = StdRng::seed_from_u64(u64::from(seed));
                let breaker = Breaker::new(&patient, start);
                loop {
                    // Of successes in a row one is as good as many: it ends the streak.
                    let gap = (dice.random::<f64>().max(f64::MIN_POSITIVE).ln() / (1.0 - failing).ln()) as u64;
                    if gap > 0 {
                        settle(&breaker, Verdict::Success, start);
                    }
                    requests += gap + 1;
                    if settle(&breaker, Verdict::Failure, start).is_some() {
                        break;
                    }
                }
            }

            // The time until a rare event varies as much as it is long.
            let (mean, sigma) = (requests as f64 / f64::from(runs), expected / f64::from(runs).sqrt());
            assert!((mean - expected).abs() < 5.0 * sigma, "at {failing}: {mean} instead of {expected}");
        }
    }

    /// Requests that leave no verdict, because their clients left or a limit of ours ended them, are as good as never sent:
    /// two breakers go through the same history, one of them with such requests in between.
    #[test]
    fn requests_without_a_verdict_never_count() {
        let start = Instant::now();
        for seed in 0..1_000 {
            let mut dice = StdRng::seed_from_u64(seed);
            let (alone, crowded) = (Breaker::new(&fallback(), start), Breaker::new(&fallback(), start));
            let failing: f64 = dice.random();
            let (mut now, mut left) = (start, Vec::new());
            for _ in 0..200 {
                now += Duration::from_millis(dice.random_range(0..5_000));
                let [one, other] = [&alone, &crowded].map(|breaker| breaker.admit(now));
                assert_eq!(one.is_some(), other.is_some(), "seed {seed}");
                if let (Some(one), Some(other)) = (one, other) {
                    left.extend((!other.is_probe()).then(|| crowded.admit(now)).flatten());
                    let verdict = if dice.random_bool(failing) { Verdict::Failure } else { Verdict::Success };
                    let changes = (alone.settle(one, verdict, now), crowded.settle(other, verdict, now));
                    assert_eq!(changes.0, changes.1, "seed {seed}");
                }
                if dice.random() {
                    left.drain(..).for_each(|permit| crowded.abandon(permit));
                }
                assert_eq!(alone.report(now), crowded.report(now), "seed {seed}");
            }
        }
    }

    /// Random histories of admissions, verdicts, abandoned requests, pauses and new settings keep the promises of each
    /// state.
    #[test]
    fn random_histories_keep_the_promises() {
        let start = Instant::now();
        for seed in 0..2_000 {
            let mut dice = StdRng::seed_from_u64(seed);
            let mut breaker = Breaker::new(&fallback(), start);
            let failing: f64 = dice.random();
            let (mut now, mut under_way, mut opened) = (start, Vec::new(), start);
            let mut ramp = (0, Percent::ZERO);
            for _ in 0..300 {
                now += Duration::from_millis(dice.random_range(0..3_000));
                if dice.random_ratio(1, 50) {
                    now += RECOVERY;
                }
                if dice.random_ratio(1, 50) {
                    // A reload. Verdicts of what is under way go to the breaker before it.
                    let next = Breaker::with_state_of(&breaker, &fallback(), now);
                    assert_eq!(next.report(now), breaker.report(now), "seed {seed}");
                    breaker = next;
                    under_way.clear();
                }
                let before = breaker.availability(now);
                let generation = breaker.phase().generation;
                if ramp.0 != generation {
                    ramp = (generation, Percent::ZERO);
                }
                let reached = breaker.report(now).ramp.unwrap_or(Percent::HUNDRED);
                if breaker.phase().state == State::Closed {
                    assert!(reached >= ramp.1, "seed {seed}: a ramp never falls");
                    ramp.1 = reached;
                }
                if dice.random() {
                    let permit = breaker.admit(now);
                    assert_eq!(permit.is_none(), before == Availability::Open, "seed {seed}");
                    under_way.extend(permit);
                } else if !under_way.is_empty() {
                    let permit = under_way.swap_remove(dice.random_range(0..under_way.len()));
                    let verdict = if dice.random_bool(failing) { Verdict::Failure } else { Verdict::Success };
                    if dice.random_ratio(1, 5) {
                        breaker.abandon(permit);
                    } else if breaker.settle(permit, verdict, now).is_some_and(|change| change.to == State::Open) {
                        opened = now;
                    }
                }
                let current = breaker.phase();
                let probes = under_way.iter().filter(|permit| permit.probe && permit.generation == current.generation);
                let busy = usize::from(breaker.probing.load(Ordering::Relaxed));
                assert_eq!(probes.count(), busy, "seed {seed}");
                assert!(current.state != State::Open || breaker.report(now).retry_at == Some(opened + RECOVERY));
            }
        }
    }

    #[test]
    fn threads_never_hold_two_probes_at_once() {
        let start = Instant::now();
        let breaker = Breaker::new(&fallback(), start);
        let (clock, probes, transitions) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));

        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (breaker, clock, probes, transitions) = (&breaker, &clock, &probes, &transitions);
                scope.spawn(move || {
                    let mut dice = StdRng::seed_from_u64(seed);
                    for _ in 0..20_000 {
                        let now = start + Duration::from_millis(clock.fetch_add(100, Ordering::Relaxed));
                        let Some(permit) = breaker.admit(now) else { continue };
                        transitions.fetch_add(usize::from(permit.transition().is_some()), Ordering::Relaxed);
                        let is_probe = permit.is_probe();
                        if is_probe {
                            assert_eq!(probes.fetch_add(1, Ordering::SeqCst), 0, "two probes at once");
                        }
                        std::thread::yield_now();
                        if is_probe {
                            probes.fetch_sub(1, Ordering::SeqCst);
                        }
                        let verdict = if dice.random_ratio(1, 3) { Verdict::Failure } else { Verdict::Success };
                        if dice.random_ratio(1, 10) {
                            breaker.abandon(permit);
                        } else if breaker.settle(permit, verdict, now).is_some() {
                            transitions.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });

        let generation = breaker.phase().generation;
        assert_eq!(generation as usize, transitions.load(Ordering::Relaxed), "each change is told once");
        assert!(generation > 10);
    }
}

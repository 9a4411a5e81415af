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

    /// The change of state that giving this permit caused: the first probe makes an open breaker half-open.
    pub fn transition(&self) -> Option<Transition> {
        self.transition
    }
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
    pub fn settle(&self, permit: Permit, verdict: Verdict, now: Instant) -> Option<Transition> {
        if !self.settings.enabled || permit.generation != self.phase().generation {
            return None;
        }
        match (permit.probe, verdict) {
            (true, verdict) => self.settle_probe(permit.generation, verdict, now),
            (false, Verdict::Failure) => self.settle_failure(permit.generation, now),
            (false, Verdict::Success) => {
                self.ratio.record(verdict, self.at(now));
                if self.streak.load(Ordering::Relaxed) != 0 {
                    self.streak.store(0, Ordering::Relaxed);
                }
                None
            }
        }
    }

    /// Takes a permit back without a verdict: the client left, or a limit of ours ended the request. A probe's place
    /// is free again.
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
        self.ratio.record(Verdict::Failure, at);
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

//! The circuit breaker of one new cluster.

use std::time::Instant;

use crate::config::{Fallback, Percent};

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

/// A circuit breaker.
#[derive(Debug)]
pub struct Breaker {}

impl Breaker {
    /// A closed breaker.
    pub fn new(_settings: &Fallback, _now: Instant) -> Self {
        Self {}
    }

    /// A breaker with new settings that goes on where another one is.
    pub fn with_state_of(_other: &Self, _settings: &Fallback, _now: Instant) -> Self {
        Self {}
    }

    /// Whether a request would be admitted; changes nothing.
    pub fn availability(&self, _now: Instant) -> Availability {
        Availability::Available
    }

    /// Leave to send one request. In a ramp the decision has already compared the bucket.
    pub fn admit(&self, _now: Instant) -> Option<Permit> {
        Some(Permit { generation: 0, probe: false, transition: None })
    }

    /// Takes a permit back with what became of the request.
    pub fn settle(&self, permit: Permit, _verdict: Verdict, _now: Instant) -> Option<Transition> {
        permit.transition
    }

    /// Takes a permit back without a verdict: the client left, or a limit of ours ended the request.
    pub fn abandon(&self, _permit: Permit) {}

    /// What `/status` shows.
    pub fn report(&self, now: Instant) -> Report {
        Report { state: State::Closed, since: now, retry_at: None, ramp: None }
    }
}

//! One cluster's backend of one service: where it is, its pooled connections, its breaker, its health, and how
//! much waits for it.

mod advice;
pub mod apart;
pub mod body;
pub mod breaker;
pub mod budget;
pub mod connect;
pub mod direct;
pub mod dns;
pub mod endpoints;
pub mod examine;
pub mod finding;
pub mod health;
pub mod long_lived;
pub mod pool;
pub mod probe;
pub mod ratio;
pub mod resolve;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use breaker::{Admitted, Availability, Breaker, Permit, State, Transition, Verdict};
use health::Health;
use long_lived::LongLived;
use pool::Pool;

use crate::telemetry::labels::BreakerState;
use crate::telemetry::metrics::ServiceMeters;

/// A cluster as one service sees it.
pub struct Upstream {
    /// Its connections.
    pub pool: Arc<Pool>,
    /// Its circuit breaker; old has none.
    pub breaker: Option<Arc<Breaker>>,
    /// What probes say of it, when there are any.
    pub health: Option<Arc<Health>>,
    /// Its exchanges that last.
    pub long_lived: Arc<LongLived>,
    waiting: Arc<AtomicUsize>,
    max_waiting: Option<usize>,
    meters: Arc<ServiceMeters>,
}

impl Upstream {
    /// An upstream on these parts; `previous` hands over how much waits and what lasts, also when the target is another.
    pub fn new(
        pool: Arc<Pool>,
        breaker: Option<Arc<Breaker>>,
        max_waiting: Option<usize>,
        meters: Arc<ServiceMeters>,
        previous: Option<&Self>,
    ) -> Self {
        let waiting = previous.map_or_else(Arc::default, |previous| previous.waiting.clone());
        let long_lived = previous.map_or_else(Arc::default, |previous| previous.long_lived.clone());
        Self { pool, breaker, health: None, long_lived, waiting, max_waiting, meters }
    }

    /// The same with a health check.
    pub fn with_health(self, health: Option<Arc<Health>>) -> Self {
        Self { health, ..self }
    }

    /// Whether the cluster would be asked; changes nothing.
    pub fn availability(&self, now: Instant) -> Availability {
        // Without a breaker, which old never has, a failing check is only reported.
        let Some(breaker) = &self.breaker else { return Availability::Available };
        match self.health_state() {
            health::State::Down => Availability::Unhealthy,
            health::State::Unknown | health::State::Up => breaker.availability(now),
        }
    }

    /// What the health check says; unknown without one.
    pub fn health_state(&self) -> health::State {
        self.health.as_ref().map_or(health::State::Unknown, |health| health.state())
    }

    /// Leave to send one request; `None` while the breaker is open.
    pub fn admit(&self, now: Instant) -> Option<Admission> {
        let Some(breaker) = &self.breaker else {
            return Some(Admission { permit: None, meters: self.meters.clone() });
        };
        let permit = breaker.admit(now)?;
        if let Some(transition) = permit.transition() {
            announce(&self.meters, transition);
        }
        Some(Admission { permit: Some((breaker.clone(), permit)), meters: self.meters.clone() })
    }

    /// A place among the requests that wait for a response head; `None` when there are enough.
    pub fn wait(&self) -> Option<Waiting> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Waiting(self.waiting.clone());
        // The place that was one too many is given back by its drop.
        self.max_waiting.is_none_or(|most| waiting < most).then_some(place)
    }
}

/// A place among the waiting.
#[derive(Debug)]
pub struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leave to send one request. Dropped without a verdict it leaves no trace, and a probe's place is free again.
pub struct Admission {
    permit: Option<(Arc<Breaker>, Permit)>,
    meters: Arc<ServiceMeters>,
}

impl Admission {
    /// The upstream did what it should, or not. What comes back can still tell of a body that ends early.
    pub fn settle(mut self, verdict: Verdict, now: Instant) -> Settled {
        let Some((breaker, permit)) = self.permit.take() else { return Settled(Judged::Free) };
        let admitted = permit.admitted();
        if let Some(transition) = breaker.settle(permit, verdict, now) {
            announce(&self.meters, transition);
        }
        Settled(Judged::AtHead(breaker, admitted, self.meters.clone()))
    }

    /// The verdict comes with the trailers, but for a probe: others wait for it.
    pub fn settle_at_trailers(self, now: Instant) -> Settled {
        match &self.permit {
            None => Settled(Judged::Free),
            Some((_, permit)) if permit.is_probe() => self.settle(Verdict::Success, now),
            Some(_) => Settled(Judged::AtTrailers(self)),
        }
    }
}

/// A request whose response head has come.
pub struct Settled(Judged);

enum Judged {
    /// Nobody asks.
    Free,
    /// The verdict was given at the head.
    AtHead(Arc<Breaker>, Admitted, Arc<ServiceMeters>),
    /// It is still to come.
    AtTrailers(Admission),
}

impl Settled {
    /// The body has come to its end, with this verdict; one that was given at the head stays.
    pub fn ended(&mut self, verdict: Verdict, now: Instant) {
        match std::mem::replace(&mut self.0, Judged::Free) {
            Judged::AtTrailers(admission) => self.0 = admission.settle(verdict, now).0,
            given => self.0 = given,
        }
    }

    /// The body ended early: one more failure.
    pub fn failed_after(self) {
        let now = Instant::now();
        match self.0 {
            Judged::Free => {}
            Judged::AtHead(breaker, admitted, meters) => {
                if let Some(transition) = breaker.fail_after(admitted, now) {
                    announce(&meters, transition);
                }
            }
            Judged::AtTrailers(admission) => {
                admission.settle(Verdict::Failure, now);
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some((breaker, permit)) = self.permit.take() {
            breaker.abandon(permit);
        }
    }
}

fn announce(meters: &ServiceMeters, transition: Transition) {
    let to = BreakerState::from(transition.to);
    meters.breaker_transition(to);
    let (service, from, to) = (meters.service(), transition.from.as_str(), to.as_str());
    if transition.to == State::Open {
        tracing::warn!(service, from, to, "breaker opened, the old cluster answers");
    } else {
        tracing::info!(service, from, to, "breaker changed");
    }
}

impl From<State> for BreakerState {
    fn from(state: State) -> Self {
        match state {
            State::Closed => Self::Closed,
            State::Open => Self::Open,
            State::HalfOpen => Self::HalfOpen,
        }
    }
}

//! What follows a failed try: the other cluster, the same one once more, or nothing. Touches no socket, so that requests
//! and relayed connections share it.

use std::time::{Duration, Instant};

use super::failure::{Failure, Refusal};
use crate::config::{Cluster, FailureKind};
use crate::routing::decide::Decision;
use crate::routing::service::Service;
use crate::telemetry::labels::{FallbackCause, Reason};

/// The tries of one request.
pub struct Tries<'a> {
    service: &'a Service,
    decision: &'a Decision,
    start: Instant,
    deadline: Instant,
    raced: bool,
    again: u32,
}

/// What follows a failed try.
#[derive(Debug)]
pub enum Next {
    /// The other cluster.
    Old(FallbackCause),
    /// The same cluster, on a new connection, after a pause.
    Again(Duration),
    /// Nothing.
    GiveUp,
}

/// Why nothing was forwarded.
pub enum Stop {
    /// Every try failed; this is the last one.
    Failed(Failure),
    /// A limit or a rule of ours.
    Refused(Refusal),
}

impl<'a> Tries<'a> {
    /// The first one begins at `start`; all of them must be over at the deadline.
    pub fn new(service: &'a Service, decision: &'a Decision, start: Instant, deadline: Instant) -> Self {
        Self { service, decision, start, deadline, raced: false, again: 0 }
    }

    /// What follows a try on `cluster` that failed so. `may_repeat`: sending it once more cannot repeat an effect.
    pub fn next(&mut self, cluster: Cluster, failure: &Failure, may_repeat: bool, now: Instant) -> Next {
        if matches!(failure, Failure::Upload(_)) || now >= self.deadline {
            return Next::GiveUp;
        }
        if failure.is_connection_race() && may_repeat && !self.raced {
            self.raced = true;
            return Next::Again(Duration::ZERO);
        }
        if cluster == Cluster::New {
            match failure {
                Failure::Open | Failure::Full if self.decision.keeps_to_new => return Next::GiveUp,
                Failure::Open => return self.old(FallbackCause::Breaker),
                Failure::Full => return self.old(FallbackCause::Full),
                _ => {}
            }
        }
        let Some(kind) = failure.kind() else { return Next::GiveUp };
        if !may_repeat {
            return Next::GiveUp;
        }
        if self.may_fall_back(cluster) && self.service.is_failure(kind) {
            return self.old(failure.fallback_cause());
        }
        self.again(cluster, failure, kind, now)
    }

    /// Old has tries of its own.
    fn old(&mut self, cause: FallbackCause) -> Next {
        (self.raced, self.again) = (false, 0);
        Next::Old(cause)
    }

    /// Another try on the same cluster, within the number, the budget and the deadline.
    fn again(&mut self, cluster: Cluster, failure: &Failure, kind: FailureKind, now: Instant) -> Next {
        let retry = &self.service.config.retry;
        let has_alternative = matches!(failure, Failure::Connect(error) if error.has_alternative);
        let is_wanted = cluster == Cluster::New && !self.service.replays_on_old() && retry.when.contains(&kind);
        if !(has_alternative || is_wanted)
            || self.again >= retry.attempts
            || !self.service.lasting.budget.try_again(now, retry.budget)
        {
            return Next::GiveUp;
        }
        self.again += 1;
        if has_alternative {
            return Next::Again(Duration::ZERO);
        }
        let most = retry.backoff_max.min(retry.backoff_base.saturating_mul(1 << (self.again - 1).min(16)));
        let pause = most.mul_f64(rand::random_range(0.0..=1.0));
        if now + pause >= self.deadline { Next::GiveUp } else { Next::Again(pause) }
    }

    fn may_fall_back(&self, cluster: Cluster) -> bool {
        cluster == Cluster::New && self.service.replays_on_old() && !self.decision.keeps_to_new
    }

    /// When a try must be over that may take `longest`. A try on new leaves old a third of the time where old may still
    /// answer; `repeatable`: it may, whatever becomes of the try.
    pub fn limit(&self, cluster: Cluster, repeatable: bool, now: Instant, longest: Duration) -> Instant {
        let limit = self.deadline.min(now + longest);
        if self.may_fall_back(cluster) && repeatable {
            return limit.min(self.start + (self.deadline - self.start) * 2 / 3);
        }
        limit
    }

    /// What the client hears of the last failure.
    pub fn stop(&self, cluster: Cluster, failure: Failure) -> Stop {
        match failure {
            Failure::Open | Failure::Full if cluster == Cluster::New && self.decision.keeps_to_new => {
                Stop::Refused(Refusal::Pinned)
            }
            failure => Stop::Failed(failure),
        }
    }
}

/// The reason of a request that old answers for this cause.
pub fn reason_of(cause: FallbackCause) -> Reason {
    match cause {
        FallbackCause::Breaker => Reason::Breaker,
        FallbackCause::Unhealthy => Reason::Unhealthy,
        FallbackCause::Full => Reason::Full,
        _ => Reason::Fallback,
    }
}

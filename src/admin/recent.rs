//! `GET /api/v1/decisions` and `GET /api/v1/callers`: the last requests with their reasons, and who still comes.

use std::time::Instant;

use http::{Method, Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;

use super::answer::{self, Body};
use super::query;
use crate::routing::live::Live;
use crate::routing::snapshot::Snapshot;
use crate::telemetry::Recent;
use crate::telemetry::callers::{self, Caller};
use crate::telemetry::recent::Recorded;
use crate::telemetry::text::rfc3339_time;

/// Decisions that one answer has at most, and unless the query says otherwise.
const MOST_DECISIONS: usize = 1_000;
const SOME_DECISIONS: usize = 100;

/// Callers that one answer has at most, of all services together.
const MOST_CALLERS: usize = 10_000;

/// One entry of `decisions`.
#[derive(Serialize)]
struct ShownDecision {
    time: String,
    service: String,
    client: String,
    method: Option<String>,
    path: String,
    path_cut: bool,
    target: &'static str,
    reason: &'static str,
    bucket: Option<f64>,
    status: u16,
}

/// One entry of `callers`.
#[derive(Serialize)]
struct ShownCaller {
    service: String,
    network: String,
    agent: String,
    requests: u64,
    last_seen: String,
}

/// The last decisions, the newest first.
pub(super) fn decisions(recent: &Recent, live: &Live, query: &str) -> Response<Body> {
    let wanted = match Wanted::read(query, SOME_DECISIONS, MOST_DECISIONS) {
        Ok(wanted) => wanted,
        Err(text) => return answer::error(StatusCode::UNPROCESSABLE_ENTITY, &text),
    };
    let moment = Moment::now();
    let decisions: Vec<_> =
        recent.newest(wanted.service.as_deref(), wanted.limit).iter().map(|one| moment.decision(one)).collect();
    if let (true, Some(name)) = (decisions.is_empty(), &wanted.service)
        && live.snapshot().service(name).is_none()
    {
        return unknown(&live.snapshot(), name);
    }
    answer::json(StatusCode::OK, &json!({"decisions": decisions}))
}

/// The heaviest callers, most requests first.
pub(super) fn callers(live: &Live, query: &str) -> Response<Body> {
    let wanted = match Wanted::read(query, MOST_CALLERS, MOST_CALLERS) {
        Ok(wanted) => wanted,
        Err(text) => return answer::error(StatusCode::UNPROCESSABLE_ENTITY, &text),
    };
    let snapshot = live.snapshot();
    if let Some(name) = wanted.service.as_deref().filter(|name| snapshot.service(name).is_none()) {
        return unknown(&snapshot, name);
    }
    let is_wanted = |name: &str| wanted.service.as_deref().is_none_or(|wanted| wanted == name);
    let services = snapshot.services.iter().filter(|service| is_wanted(service.name()));
    let mut callers: Vec<(&str, Caller)> = services
        .flat_map(|service| {
            let heaviest = service.lasting.callers.heaviest(callers::SHOWN);
            heaviest.into_iter().map(|caller| (service.name(), caller))
        })
        .collect();
    callers.sort_by(|(_, a), (_, b)| b.requests.cmp(&a.requests).then(b.last.cmp(&a.last)));
    callers.truncate(wanted.limit);
    let moment = Moment::now();
    let callers: Vec<_> = callers.iter().map(|(service, caller)| moment.caller(service, caller)).collect();
    answer::json(StatusCode::OK, &json!({"callers": callers}))
}

fn unknown(snapshot: &Snapshot, service: &str) -> Response<Body> {
    answer::error(StatusCode::NOT_FOUND, &snapshot.unknown(service))
}

/// What a query asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of this service; `None`: of all.
    pub(super) service: Option<String>,
    /// So many at most.
    pub(super) limit: usize,
}

impl Wanted {
    /// Reads `service` and `limit`.
    pub(super) fn read(query: &str, usual: usize, most: usize) -> Result<Self, String> {
        let mut wanted = Self { service: None, limit: usual };
        for pair in query::pairs(query) {
            let (name, value) = pair.ok_or("the query is not UTF-8")?;
            match name.as_str() {
                "service" => wanted.service = (!value.is_empty()).then_some(value),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=most).contains(limit));
                    wanted.limit = limit.ok_or_else(|| format!("limit: a number from 1 to {most}"))?;
                }
                _ => return Err("unknown parameter: service and limit are known".to_owned()),
            }
        }
        Ok(wanted)
    }
}

/// Now, on both clocks.
pub(super) struct Moment {
    time: Timestamp,
    instant: Instant,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { time: Timestamp::now(), instant: Instant::now() }
    }

    /// When that was, as RFC 3339 writes it.
    pub(super) fn time(&self, at: Instant) -> String {
        let age = SignedDuration::try_from(self.instant.saturating_duration_since(at)).unwrap_or_default();
        rfc3339_time(self.time.checked_sub(age).unwrap_or(self.time))
    }

    fn decision(&self, recorded: &Recorded) -> ShownDecision {
        ShownDecision {
            time: self.time(recorded.at),
            service: recorded.service.to_string(),
            client: recorded.client.to_string(),
            method: recorded.method.as_ref().map(Method::to_string),
            path: recorded.path.as_str().to_owned(),
            path_cut: recorded.path.is_cut(),
            target: recorded.target.as_str(),
            reason: recorded.reason.as_str(),
            bucket: recorded.bucket.map(|bucket| f64::from(bucket) / 100.0),
            status: recorded.status,
        }
    }

    fn caller(&self, service: &str, caller: &Caller) -> ShownCaller {
        ShownCaller {
            service: service.to_owned(),
            network: caller.network.to_string(),
            agent: caller.agent.clone(),
            requests: caller.requests,
            last_seen: self.time(caller.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_name_a_service_and_a_limit() {
        let wanted = |service: Option<&str>, limit| Ok(Wanted { service: service.map(str::to_owned), limit });
        for (query, expected) in [
            ("", wanted(None, 10)),
            ("service=", wanted(None, 10)),
            ("service=a%2Fb&limit=1", wanted(Some("a/b"), 1)),
            ("limit=100", wanted(None, 100)),
            ("limit=0", Err("limit: a number from 1 to 100".to_owned())),
            ("limit=101", Err("limit: a number from 1 to 100".to_owned())),
            ("limit=x", Err("limit: a number from 1 to 100".to_owned())),
            ("service=%ff", Err("the query is not UTF-8".to_owned())),
            ("hash=1", Err("unknown parameter: service and limit are known".to_owned())),
        ] {
            assert_eq!(Wanted::read(query, 10, 100), expected, "{query}");
        }
    }
}

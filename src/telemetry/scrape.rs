//! The exposition text of `GET /metrics`, made piece by piece while it is sent: families one after the other, in each
//! the services one after the other. Recording goes on meanwhile; nothing is locked.

use std::sync::Arc;

use bytes::Bytes;

use super::exposition::{push_head, push_histogram, push_sample};
use super::labels::{BreakerState, Cluster, FallbackCause, Outcome, Phase, Target};
use super::names::{self, Family};
use super::{ProcessMeters, ServiceMeters};

/// A piece is sent when it is this long; one service's samples of one family may come on top.
const PIECE: usize = 32 << 10;
const PIECE_CAPACITY: usize = 64 << 10;

/// Requests by status class.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const CLUSTERS: [Cluster; 2] = [Cluster::Old, Cluster::New];

/// What is so for a service at the moment of a scrape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceGauges {
    /// The share in force, in percent; what would be in force without a safe mode.
    pub percentage: f64,
    /// The share in the file.
    pub declared: f64,
    /// Safe mode is on, for this service or for all.
    pub safe_mode: bool,
    /// The breaker of new.
    pub breaker: BreakerState,
    /// Whether old passes its health check; `None`: there is none.
    pub health_old: Option<bool>,
    /// Whether new passes its health check; `None`: there is none.
    pub health_new: Option<bool>,
    /// Certificates of a cluster are not verified.
    pub verify_off: bool,
}

/// One scrape: yields the exposition text in pieces of at most about 64 KiB.
#[derive(Debug)]
pub struct Scrape {
    services: Vec<(Arc<ServiceMeters>, ServiceGauges)>,
    /// The text of the process, until it is sent.
    process: Option<String>,
    family: usize,
    service: usize,
}

impl Scrape {
    /// A scrape of the process and of these services.
    pub fn new(process: &ProcessMeters, services: Vec<(Arc<ServiceMeters>, ServiceGauges)>) -> Self {
        Self { services, process: Some(process.render()), family: 0, service: 0 }
    }
}

impl Iterator for Scrape {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(process) = self.process.take() {
            return Some(process.into());
        }
        if self.services.is_empty() {
            return None;
        }
        let mut out = String::new();
        while let Some((family, push)) = FAMILIES.get(self.family) {
            if out.capacity() == 0 {
                out.reserve(PIECE_CAPACITY);
            }
            if self.service == 0 {
                push_head(&mut out, family);
            }
            while let Some((meters, gauges)) = self.services.get(self.service) {
                push(&mut out, family, meters, gauges);
                self.service += 1;
                if out.len() >= PIECE {
                    return Some(out.into());
                }
            }
            self.service = 0;
            self.family += 1;
        }
        (!out.is_empty()).then(|| out.into())
    }
}

type Push = fn(&mut String, &Family, &ServiceMeters, &ServiceGauges);

/// The families of a service with what writes one service's samples.
const FAMILIES: [(Family, Push); 19] = [
    (names::REQUESTS, push_requests),
    (names::REQUEST_DURATION, push_request_duration),
    (names::REQUEST_BYTES, |out, family, meters, _| push_bytes(out, family, meters, |(request, _)| request)),
    (names::RESPONSE_BYTES, |out, family, meters, _| push_bytes(out, family, meters, |(_, response)| response)),
    (names::UPSTREAM_RESPONSES, |out, family, meters, _| push_outcomes(out, family, meters, ServiceMeters::attempts)),
    (names::UPSTREAM_DURATION, push_upstream_duration),
    (names::UPSTREAM_CONNECT_DURATION, push_connect_duration),
    (names::UPSTREAM_CONNECTIONS, push_connections),
    (names::RETRIES, |out, family, meters, _| push_outcomes(out, family, meters, ServiceMeters::retries)),
    (names::FALLBACKS, push_fallbacks),
    (names::TRAFFIC_PERCENTAGE, |out, family, meters, gauges| push_one(out, family, meters, gauges.percentage)),
    (names::TRAFFIC_PERCENTAGE_DECLARED, |out, family, meters, gauges| push_one(out, family, meters, gauges.declared)),
    (names::DECISION_KEYS, push_keys),
    (names::BREAKER_STATE, push_breaker_state),
    (names::BREAKER_TRANSITIONS, push_breaker_transitions),
    (names::HEALTH_CHECK_UP, push_health),
    (names::SAFE_MODE, |out, family, meters, gauges| push_one(out, family, meters, u8::from(gauges.safe_mode))),
    (names::TLS_VERIFY_OFF, |out, family, meters, gauges| push_one(out, family, meters, u8::from(gauges.verify_off))),
    (names::COOKIE_DOMAINS_DROPPED, |out, family, meters, _| {
        push_one(out, family, meters, meters.cookie_domains_dropped());
    }),
];

fn push_one(out: &mut String, family: &Family, meters: &ServiceMeters, value: impl std::fmt::Display) {
    push_sample(out, family.name, "", &[("service", meters.service())], value);
}

fn push_requests(out: &mut String, family: &Family, meters: &ServiceMeters, _: &ServiceGauges) {
    for (target, reason, class, count) in meters.requests() {
        let labels = [
            ("service", meters.service()),
            ("target", target.as_str()),
            ("reason", reason.as_str()),
            ("status_class", CLASSES[class]),
        ];
        push_sample(out, family.name, "", &labels, count);
    }
}

fn push_request_duration(out: &mut String, family: &Family, meters: &ServiceMeters, _: &ServiceGauges) {
    for target in Target::ALL {
        let labels = [("service", meters.service()), ("target", target.as_str())];
        push_histogram(out, family, &labels, meters.request_duration(*target));
    }
}

fn push_bytes(out: &mut String, family: &Family, meters: &ServiceMeters, choose: fn((u64, u64)) -> u64) {
    for target in Target::ALL {
        let labels = [("service", meters.service()), ("target", target.as_str())];
        push_sample(out, family.name, "", &labels, choose(meters.bytes(*target)));
    }
}

fn push_outcomes(
    out: &mut String,
    family: &Family,
    meters: &ServiceMeters,
    count: fn(&ServiceMeters, Cluster, Outcome) -> u64,
) {
    for cluster in CLUSTERS {
        for outcome in Outcome::ALL {
            let count = count(meters, cluster, *outcome);
            if count > 0 {
                let labels =
                    [("service", meters.service()), ("target", cluster.as_str()), ("outcome", outcome.as_str())];
                push_sample(out, family.name, "", &labels, count);
            }
        }
    }
}

fn push_upstream_duration(out: &mut String, family: &Family, meters: &ServiceMeters, _: &ServiceGauges) {
    for cluster in CLUSTERS {
        let labels = [("service", meters.service()), ("target", cluster.as_str())];
        push_histogram(out, family, &labels, &meters.attempt_duration(cluster).coarse());
    }
}

fn push_connect_duration(out: &mut String, family: &Family, meters: &ServiceMeters, _: &ServiceGauges) {
    for phase in Phase::ALL {
        let labels = [("service", meters.service()), ("target", Cluster::New.as_str()), ("phase", phase.as_str())];
        push_histogram(out, family, &labels, meters.connect_duration(*phase));
    }
}

fn push_connections(out: &mut String, family: &Family, meters: &ServiceMeters, _: &ServiceGauges) {
    for cluster in CLUSTERS {
        let gauge = meters.connections(cluster);
        for (state, count) in [("idle", gauge.idle()), ("active", gauge.active())] {
            let labels = [("service", meters.service()), ("target", cluster.as_str()), ("state", state)];
            push_sample(out, family.name, "", &labels, count);
        }
    }
}

fn push_fallbacks(out: &mut String, family: &Family, meters: &ServiceMeters, _: &ServiceGauges) {
    for cause in FallbackCause::ALL {
        let count = meters.fallbacks(*cause);
        if count > 0 {
            push_sample(out, family.name, "", &[("service", meters.service()), ("cause", cause.as_str())], count);
        }
    }
}

fn push_keys(out: &mut String, family: &Family, meters: &ServiceMeters, _: &ServiceGauges) {
    for (key, count) in meters.keys() {
        push_sample(out, family.name, "", &[("service", meters.service()), ("key", key)], count);
    }
}

fn push_breaker_state(out: &mut String, family: &Family, meters: &ServiceMeters, gauges: &ServiceGauges) {
    for state in BreakerState::ALL {
        let labels = [("service", meters.service()), ("state", state.as_str())];
        push_sample(out, family.name, "", &labels, u8::from(*state == gauges.breaker));
    }
}

fn push_breaker_transitions(out: &mut String, family: &Family, meters: &ServiceMeters, _: &ServiceGauges) {
    for state in BreakerState::ALL {
        let labels = [("service", meters.service()), ("to", state.as_str())];
        push_sample(out, family.name, "", &labels, meters.breaker_transitions(*state));
    }
}

fn push_health(out: &mut String, family: &Family, meters: &ServiceMeters, gauges: &ServiceGauges) {
    for (cluster, health) in [(Cluster::Old, gauges.health_old), (Cluster::New, gauges.health_new)] {
        if let Some(up) = health {
            let labels = [("service", meters.service()), ("target", cluster.as_str())];
            push_sample(out, family.name, "", &labels, u8::from(up));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::time::Duration;

    use http::StatusCode;

    use super::super::labels::Reason;
    use super::super::names::Kind;
    use super::*;

    const GAUGES: ServiceGauges = ServiceGauges {
        percentage: 40.0,
        declared: 12.5,
        safe_mode: false,
        breaker: BreakerState::HalfOpen,
        health_old: None,
        health_new: Some(true),
        verify_off: true,
    };

    fn scrape(services: Vec<(Arc<ServiceMeters>, ServiceGauges)>) -> String {
        let pieces: Vec<Bytes> = Scrape::new(&ProcessMeters::new(1), services).collect();
        String::from_utf8(pieces.concat()).unwrap()
    }

    fn samples<'a>(text: &'a str, family: &Family) -> Vec<&'a str> {
        let of_family = |line: &&str| line.strip_prefix(family.name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        text.lines().filter(of_family).map(|line| &line[family.name.len()..]).collect()
    }

    #[test]
    fn sets_of_events_show_from_their_first_one() {
        let meters = ServiceMeters::new("a", &["header:X-U"]);
        let before = scrape(vec![(Arc::clone(&meters), GAUGES)]);

        meters.request(Target::Old, Reason::Fallback, StatusCode::OK, Duration::from_millis(7), 100, 2000);
        meters.attempt(Cluster::New, Outcome::Status503, Duration::from_millis(2));
        meters.attempt(Cluster::Old, Outcome::Success, Duration::from_millis(3));
        meters.retry(Cluster::New, Outcome::Connect);
        meters.fallback(FallbackCause::Status503);
        meters.key(Some(0));
        meters.key(None);
        meters.key(Some(99));
        meters.breaker_transition(BreakerState::Open);
        let after = scrape(vec![(meters, GAUGES)]);

        for (family, expected) in [
            (names::REQUESTS, r#"{service="a",target="old",reason="fallback",status_class="2xx"} 1"#),
            (names::RETRIES, r#"{service="a",target="new",outcome="connect"} 1"#),
            (names::FALLBACKS, r#"{service="a",cause="503"} 1"#),
        ] {
            assert!(samples(&before, &family).is_empty(), "{}", family.name);
            assert_eq!(samples(&after, &family), [expected]);
        }
        assert_eq!(
            samples(&after, &names::UPSTREAM_RESPONSES),
            [r#"{service="a",target="old",outcome="2xx"} 1"#, r#"{service="a",target="new",outcome="503"} 1"#]
        );
        assert_eq!(
            samples(&after, &names::DECISION_KEYS),
            [r#"{service="a",key="header:X-U"} 1"#, r#"{service="a",key="none"} 2"#]
        );
        assert_eq!(samples(&before, &names::BREAKER_TRANSITIONS)[1], r#"{service="a",to="open"} 0"#);
        assert_eq!(samples(&after, &names::BREAKER_TRANSITIONS)[1], r#"{service="a",to="open"} 1"#);
        assert_eq!(samples(&after, &names::REQUEST_BYTES)[0], r#"{service="a",target="old"} 100"#);
        assert_eq!(samples(&after, &names::RESPONSE_BYTES)[0], r#"{service="a",target="old"} 2000"#);
    }

    #[test]
    fn gauges_show_what_is_so() {
        let meters = ServiceMeters::new("a", &[]);
        meters.connections(Cluster::New).idle_inc();
        meters.connections(Cluster::New).active_inc();
        meters.connections(Cluster::New).active_dec();
        let text = scrape(vec![(meters, GAUGES)]);

        for (family, expected) in [
            (names::TRAFFIC_PERCENTAGE, &[r#"{service="a"} 40"#][..]),
            (names::TRAFFIC_PERCENTAGE_DECLARED, &[r#"{service="a"} 12.5"#]),
            (names::SAFE_MODE, &[r#"{service="a"} 0"#]),
            (names::TLS_VERIFY_OFF, &[r#"{service="a"} 1"#]),
            (names::HEALTH_CHECK_UP, &[r#"{service="a",target="new"} 1"#]),
            (
                names::BREAKER_STATE,
                &[
                    r#"{service="a",state="closed"} 0"#,
                    r#"{service="a",state="open"} 0"#,
                    r#"{service="a",state="half_open"} 1"#,
                ],
            ),
            (
                names::UPSTREAM_CONNECTIONS,
                &[
                    r#"{service="a",target="old",state="idle"} 0"#,
                    r#"{service="a",target="old",state="active"} 0"#,
                    r#"{service="a",target="new",state="idle"} 1"#,
                    r#"{service="a",target="new",state="active"} 0"#,
                ],
            ),
        ] {
            assert_eq!(samples(&text, &family), expected);
        }
    }

    #[test]
    fn durations_have_ten_buckets_and_connect_phases_seven_only_for_new() {
        let text = scrape(vec![(ServiceMeters::new("a", &[]), GAUGES)]);

        let bounds = |name: &str, label: &str| -> Vec<String> {
            text.lines()
                .filter(|line| line.starts_with(&format!("{name}_bucket{{")) && line.contains(label))
                .map(|line| line.split("le=\"").nth(1).unwrap().split('"').next().unwrap().to_owned())
                .collect()
        };
        let ten = ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "10", "+Inf"];
        assert_eq!(bounds(names::REQUEST_DURATION.name, "target=\"none\""), ten);
        assert_eq!(bounds(names::UPSTREAM_DURATION.name, "target=\"new\""), ten);
        assert_eq!(bounds(names::UPSTREAM_CONNECT_DURATION.name, "phase=\"tls\"").len(), 8);
        assert_eq!(bounds(names::UPSTREAM_CONNECT_DURATION.name, "target=\"old\"").len(), 0);
    }

    #[test]
    fn every_family_is_whole_and_has_one_head() {
        let services = (0..50).map(|index| (ServiceMeters::new(&format!("s{index}"), &[]), GAUGES)).collect();
        let text = scrape(services);

        let mut kinds = BTreeMap::new();
        let mut current = "";
        let mut series = HashSet::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(kinds.insert(name, kind).is_none(), "{name} has two heads");
                assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
                current = name;
            } else if !line.starts_with('#') {
                let rest = line.strip_prefix(current).unwrap_or_else(|| panic!("{line} stands under {current}"));
                assert!(["{", " ", "_bucket", "_sum", "_count"].iter().any(|start| rest.starts_with(start)), "{line}");
                assert!(series.insert(line.rsplit_once(' ').unwrap().0), "{line} stands there twice");
            }
        }
        for family in names::ALL {
            assert_eq!(kinds.get(family.name), Some(&family.kind.as_str()), "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
        }
        assert_eq!(kinds.len(), names::ALL.len());
    }

    #[test]
    fn many_services_come_in_small_pieces() {
        let services = (0..2_000).map(|_| (ServiceMeters::new("api-name01", &["client_ip"]), GAUGES)).collect();

        let pieces: Vec<usize> = Scrape::new(&ProcessMeters::new(1), services).map(|piece| piece.len()).collect();

        assert!(pieces.iter().all(|length| *length <= 64 << 10), "{:?}", pieces.iter().max());
        assert!(pieces.iter().sum::<usize>() > 10 << 20);
    }

    /// A service that has met whatever one configuration can meet: rules of all kinds and a share of its own, every
    /// status class from both clusters, every failure on new and the usual ones on old.
    fn busy_service() -> Arc<ServiceMeters> {
        let meters = ServiceMeters::new("a", &["header:X-User-Id", "cookie:session", "jwt:sub", "client_ip"]);
        let request = |target, reason, status: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            meters.request(target, reason, status, Duration::ZERO, 0, 0);
        };
        for status in [200, 301, 404, 503] {
            for reason in [Reason::Header, Reason::User, Reason::Weight] {
                request(Target::Old, reason, status);
                request(Target::New, reason, status);
            }
            for reason in [Reason::Scope, Reason::Breaker, Reason::Unhealthy, Reason::Fallback] {
                request(Target::Old, reason, status);
            }
        }
        for reason in [Reason::User, Reason::Weight, Reason::Fallback, Reason::None] {
            request(Target::None, reason, 499);
            request(Target::None, reason, 502);
        }
        for outcome in Outcome::ALL {
            meters.attempt(Cluster::New, *outcome, Duration::ZERO);
            if !matches!(outcome, Outcome::Header | Outcome::Tls) {
                meters.attempt(Cluster::Old, *outcome, Duration::ZERO);
            }
        }
        for outcome in [Outcome::Connect, Outcome::Reset, Outcome::Timeout, Outcome::Status503] {
            meters.retry(Cluster::Old, outcome);
            meters.retry(Cluster::New, outcome);
        }
        for cause in FallbackCause::ALL {
            meters.fallback(*cause);
        }
        meters
    }

    #[test]
    fn a_service_has_at_most_250_series() {
        let own = |text: &str| text.lines().filter(|line| line.contains("service=\"a\"")).count();
        let gauges = ServiceGauges { health_old: Some(true), ..GAUGES };

        let quiet = own(&scrape(vec![(ServiceMeters::new("a", &["client_ip"]), gauges)]));
        let busy = own(&scrape(vec![(busy_service(), gauges)]));

        assert_eq!(quiet, 120);
        assert!((200..=250).contains(&busy), "{busy}");
    }

    #[test]
    fn a_service_costs_less_than_four_kilobytes() {
        assert!(size_of::<ServiceMeters>() < 4096, "{}", size_of::<ServiceMeters>());
    }
}

//! What `/status` shows, and what of it is not as it should be. Reports are made from what is there when somebody asks;
//! nothing is kept for them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, Serializer};

use super::fleet::{Fleet, View};
use super::history::Pinned;
use super::keeper::Keeper;
use super::status::{Configuration, Status};
use crate::config::{Mode, Percent, Protocol};
use crate::readiness::Readiness;
use crate::routing::client_address::Suspicion;
use crate::routing::live::Live;
use crate::routing::service::Service;
use crate::routing::snapshot::Snapshot;
use crate::telemetry::labels::{BreakerState, CertificateSide};
use crate::telemetry::text::rfc3339_time;
use crate::telemetry::window::Windows;
use crate::telemetry::{ServiceGauges, ServiceMeters};
use crate::upstream::{Upstream, breaker, health};

/// Certificates that end sooner than this are worth a word.
const SOON: i64 = 14 * DAY;
const DAY: i64 = 24 * 60 * 60;

/// `/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The program's version.
    pub version: String,
    /// The process among its replicas.
    pub replica: String,
    /// This one process, whatever its name.
    #[serde(default)]
    pub instance: String,
    /// Traffic may come.
    pub ready: bool,
    /// What is not as it should be, one line each.
    pub degraded: Vec<String>,
    /// Safe mode of everything.
    pub safe_mode: bool,
    /// Increases of everything are refused.
    #[serde(default)]
    pub frozen: bool,
    /// The file.
    pub config: ConfigReport,
    /// Private peers that send X-Forwarded-* fields and are no trusted proxies.
    pub untrusted_forwarders: Vec<IpAddr>,
    /// Every service, in the order of the file.
    pub services: Vec<ServiceReport>,
    /// The other replicas.
    pub replicas: Vec<ReplicaReport>,
}

/// `config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigReport {
    /// The file as it was named.
    pub file: String,
    /// SHA-256 of the text that is served.
    pub hash: String,
    /// How many configurations have been served.
    pub generation: u64,
    /// Since when this one is served.
    pub loaded_at: String,
    /// Why the file as it is now is not served.
    pub last_error: Option<String>,
    /// Changed keys that wait for a restart.
    pub restart_needed: Vec<String>,
    /// What works, but hardly as meant.
    pub warnings: Vec<String>,
    /// This configuration serves instead of the file, until the file changes.
    #[serde(default)]
    pub pinned: Option<PinnedReport>,
    /// The hash of an earlier configuration that all replicas were told to serve and this one cannot.
    #[serde(default)]
    pub lacks: Option<String>,
}

/// `config.pinned`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PinnedReport {
    /// The hash of what serves.
    pub hash: String,
    /// Since when.
    pub since: String,
    /// Who wanted it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

/// One entry of `services`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// The name.
    pub name: String,
    /// Hosts of clients.
    pub old_host: Vec<String>,
    /// The host in the new cluster.
    pub new_host: String,
    /// `proxy` or `redirect`.
    pub mode: String,
    /// `migration.enabled`, as it is in force.
    pub enabled: bool,
    /// Everything goes to old, by the service's own safe mode or that of everything.
    pub safe_mode: bool,
    /// Increases are refused, by the service's own freeze or that of everything.
    #[serde(default)]
    pub frozen: bool,
    /// `fallback.enabled`: when it is off, clients get the errors of new.
    #[serde(default = "yes")]
    pub fallback: bool,
    /// The share of new.
    pub percentage: PercentageReport,
    /// Where a share goes back to that is not confirmed.
    #[serde(default)]
    pub back_to: Option<Percent>,
    /// How far the share may rise at once; `None` where the proxy does not tell.
    #[serde(default)]
    pub max_step: Option<Percent>,
    /// Long-lived exchanges open on new: upgraded connections, and responses that have streamed for more than a minute. It
    /// is what stays there when the share goes back, and what `--close-streams` ends.
    pub open_on_new: u64,
    /// The breaker of new.
    pub breaker: BreakerReport,
    /// Active checks.
    pub health: HealthReport,
    /// The recent past.
    pub windows: Windows,
}

/// `percentage`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PercentageReport {
    /// By the file.
    #[serde(serialize_with = "short_number")]
    pub declared: f64,
    /// In force.
    #[serde(serialize_with = "short_number")]
    pub effective: f64,
    /// When a share that is not confirmed goes back.
    pub confirm_by: Option<String>,
}

/// `breaker`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BreakerReport {
    /// `closed`, `open` or `half_open`.
    pub state: String,
    /// Since when; `None` when there is no breaker.
    pub since: Option<String>,
    /// When an open breaker lets the first probe pass.
    pub retry_at: Option<String>,
}

/// `health`: `unknown`, `up` or `down`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Of old.
    pub old: String,
    /// Of new.
    pub new: String,
}

/// One entry of `replicas`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The replica.
    pub name: String,
    /// It serves the same.
    pub agrees: bool,
    /// How old this knowledge is, in seconds.
    pub age: f64,
    /// `agree`, `differ` or `unreachable`.
    #[serde(default)]
    pub state: String,
    /// Where it was asked.
    #[serde(default)]
    pub address: String,
    /// The file that it serves.
    #[serde(default)]
    pub config_hash: Option<String>,
    /// The hash of an earlier one that all replicas were told to serve and this one cannot.
    #[serde(default)]
    pub lacks: Option<String>,
    /// Safe mode of everything there.
    #[serde(default)]
    pub safe_mode: bool,
    /// Why it does not answer.
    #[serde(default)]
    pub error: Option<String>,
    /// What it serves; of very many services only what differs.
    #[serde(default)]
    pub services: Vec<ReplicaService>,
}

/// One entry of `services` of a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaService {
    /// The name.
    pub name: String,
    /// The share of new that is in force there.
    #[serde(serialize_with = "short_number")]
    pub effective: f64,
    /// `migration.enabled`, as it is in force there.
    pub enabled: bool,
    /// Everything goes to old there.
    pub safe_mode: bool,
    /// The state of the breaker of new there.
    pub breaker: String,
}

/// What reports are made of.
#[derive(Clone, Copy)]
pub struct Reporter<'a> {
    /// What is served.
    pub live: &'a Live,
    /// What is known about the configuration and the recent past.
    pub status: &'a Status,
    /// Whether traffic may come.
    pub readiness: &'a Readiness,
    /// Peers that forward without being trusted.
    pub suspicion: &'a Suspicion,
    /// What operators changed.
    pub keeper: &'a Keeper,
}

impl Reporter<'_> {
    /// `/status` as it is now.
    pub fn report(&self) -> StatusReport {
        let snapshot = self.live.snapshot();
        let configuration = self.status.configuration();
        let moment = Moment::now();
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replica: self.status.replica().to_owned(),
            instance: self.status.instance().to_owned(),
            ready: self.readiness.is_ready(),
            degraded: self.degraded_in(&snapshot, &configuration, moment),
            safe_mode: snapshot.safe_mode.is_on(),
            frozen: self.keeper.is_frozen(None),
            untrusted_forwarders: self.untrusted_forwarders(&snapshot).collect(),
            services: snapshot.services.iter().map(|service| self.service(service, moment)).collect(),
            replicas: self.of_replicas(Fleet::replicas, &snapshot, &configuration),
            config: configuration.into(),
        }
    }

    /// What is not as it should be, one line each.
    pub fn degraded(&self) -> Vec<String> {
        self.degraded_in(&self.live.snapshot(), &self.status.configuration(), Moment::now())
    }

    fn degraded_in(&self, snapshot: &Snapshot, configuration: &Configuration, moment: Moment) -> Vec<String> {
        let rejected = configuration.last_error.iter().map(|error| format!("configuration rejected: {error}"));
        let safe_mode = snapshot.safe_mode.is_on().then(|| "safe mode is on: everything goes to old".to_owned());
        let services = snapshot.services.iter().flat_map(|service| degraded_service(service, moment));
        let forwarders = self.untrusted_forwarders(snapshot).map(|peer| {
            let network = ipnet::IpNet::from(peer);
            format!("{peer} sends X-Forwarded-* and is not believed: add \"{network}\" to listen.trusted_proxies")
        });
        let ends = ending(configuration, moment.time);
        let troubles = self.status.troubles();
        let replicas = self.of_replicas(Fleet::troubles, snapshot, configuration);
        let pinned = configuration.pinned.iter().filter(|pinned| pinned.hash == configuration.hash).map(|pinned| {
            let hash = super::history::short(&pinned.hash);
            format!("configuration {hash} was pinned by {}: the file is not followed until it changes", pinned.by)
        });
        rejected
            .chain(pinned)
            .chain(troubles)
            .chain(replicas)
            .chain(safe_mode)
            .chain(services)
            .chain(ends)
            .chain(forwarders)
            .collect()
    }

    /// What is told of the other replicas, where there are any to compare with.
    fn of_replicas<T>(
        &self,
        tell: fn(&Fleet, &View) -> Vec<T>,
        snapshot: &Snapshot,
        configuration: &Configuration,
    ) -> Vec<T> {
        let fleet = &self.status.fleet;
        if fleet.is_empty() { Vec::new() } else { tell(fleet, &View::own(snapshot, &configuration.hash)) }
    }

    fn untrusted_forwarders(&self, snapshot: &Snapshot) -> impl Iterator<Item = IpAddr> {
        self.suspicion.peers().filter(|peer| !snapshot.edge.trust.contains(*peer))
    }

    fn service(&self, service: &Service, moment: Moment) -> ServiceReport {
        let weight = &service.lasting.weight;
        ServiceReport {
            name: service.name().to_owned(),
            old_host: service.config.old_host.iter().map(ToString::to_string).collect(),
            new_host: service.config.new_host.clone(),
            mode: match service.config.mode {
                Mode::Proxy => "proxy",
                Mode::Redirect => "redirect",
                Mode::Passthrough => "passthrough",
            }
            .to_owned(),
            enabled: service.switches().enabled,
            safe_mode: service.is_in_safe_mode(),
            frozen: self.keeper.is_frozen(Some(service.name())),
            fallback: service.config.fallback.enabled,
            percentage: PercentageReport {
                declared: weight.declared().as_f64(),
                effective: weight.effective().as_f64(),
                confirm_by: self.keeper.confirm_by(service.name()).map(rfc3339_time),
            },
            back_to: self.keeper.back_to(service.name()),
            max_step: Some(service.config.migration.max_step),
            open_on_new: u64::try_from(service.new.long_lived.open()).unwrap_or(u64::MAX),
            breaker: BreakerReport::new(service.new.breaker.as_deref(), moment),
            health: HealthReport {
                old: service.old.health_state().as_str().to_owned(),
                new: service.new.health_state().as_str().to_owned(),
            },
            windows: self.status.windows(service),
        }
    }
}

/// The meters of every service, with what is so at this moment.
pub fn gauges(snapshot: &Snapshot) -> Vec<(Arc<ServiceMeters>, ServiceGauges)> {
    let now = Instant::now();
    let gauges = |service: &Arc<Service>| {
        let weight = &service.lasting.weight;
        let state = service.new.breaker.as_ref().map_or(breaker::State::Closed, |breaker| breaker.report(now).state);
        let gauges = ServiceGauges {
            percentage: weight.effective().as_f64(),
            declared: weight.declared().as_f64(),
            safe_mode: service.is_in_safe_mode(),
            breaker: BreakerState::from(state),
            health_old: is_up(&service.old),
            health_new: is_up(&service.new),
            verify_off: unverified(service).next().is_some(),
        };
        (service.meters.clone(), gauges)
    };
    snapshot.services.iter().map(gauges).collect()
}

/// The result of the health check; `None` while there is none.
fn is_up(upstream: &Upstream) -> Option<bool> {
    match upstream.health_state() {
        health::State::Unknown => None,
        health::State::Up => Some(true),
        health::State::Down => Some(false),
    }
}

/// One moment on both clocks, so that steady times can be told as times of day.
#[derive(Clone, Copy)]
struct Moment {
    instant: Instant,
    time: Timestamp,
}

impl Moment {
    fn now() -> Self {
        Self { instant: Instant::now(), time: Timestamp::now() }
    }

    fn time_of(self, instant: Instant) -> Option<String> {
        let ago = SignedDuration::try_from(self.instant.saturating_duration_since(instant)).ok()?;
        let ahead = SignedDuration::try_from(instant.saturating_duration_since(self.instant)).ok()?;
        let time = self.time.checked_sub(ago).ok()?.checked_add(ahead).ok()?;
        Some(rfc3339_time(time))
    }
}

impl BreakerReport {
    fn new(breaker: Option<&breaker::Breaker>, moment: Moment) -> Self {
        let report = breaker.map(|breaker| breaker.report(moment.instant));
        Self {
            state: report.map_or(breaker::State::Closed, |report| report.state).as_str().to_owned(),
            since: report.and_then(|report| moment.time_of(report.since)),
            retry_at: report.and_then(|report| moment.time_of(report.retry_at?)),
        }
    }
}

impl From<Configuration> for ConfigReport {
    fn from(configuration: Configuration) -> Self {
        Self {
            file: configuration.file,
            hash: configuration.hash,
            generation: configuration.generation,
            loaded_at: rfc3339_time(configuration.loaded_at),
            last_error: configuration.last_error,
            restart_needed: configuration.restart_needed,
            pinned: configuration.pinned.map(|Pinned { hash, since, by, reason, .. }| PinnedReport {
                hash,
                since: rfc3339_time(since),
                by,
                reason,
            }),
            lacks: configuration.lacks,
            warnings: configuration.warnings,
        }
    }
}

fn degraded_service(service: &Service, moment: Moment) -> impl Iterator<Item = String> {
    let name = service.name();
    let breaker = service.new.breaker.as_ref().map(|breaker| breaker.report(moment.instant).state);
    let breaker = match breaker {
        Some(breaker::State::Open) => Some(format!("{name}: breaker open")),
        Some(breaker::State::HalfOpen) => Some(format!("{name}: breaker half-open")),
        Some(breaker::State::Closed) | None => None,
    };
    let safe_mode = service.lasting.safe_mode.is_on().then(|| format!("{name}: safe mode is on"));
    let unverified =
        unverified(service).map(move |side| format!("{name}: {side}.verify is off, its certificates are not checked"));
    let down = [("old", &service.old), ("new", &service.new)].into_iter().filter_map(move |(side, upstream)| {
        let health = upstream.health.as_ref().filter(|health| health.state() == health::State::Down)?;
        let error = health.last_error().unwrap_or_default();
        Some(format!("{name}: {side} is down: {error}"))
    });
    breaker.into_iter().chain(down).chain(safe_mode).chain(unverified)
}

/// The clusters whose certificates nobody checks.
fn unverified(service: &Service) -> impl Iterator<Item = &'static str> + use<> {
    let clusters = [("old", &service.config.old), ("new", &service.config.new)];
    let is_unverified = clusters.map(|(side, options)| {
        let is_unverified = options.protocol == Protocol::Https && !options.verify;
        is_unverified.then_some(side)
    });
    is_unverified.into_iter().flatten()
}

/// Certificates that end soon, each file once. A root is believed whatever it says of its own end.
fn ending(configuration: &Configuration, now: Timestamp) -> impl Iterator<Item = String> {
    let now = now.as_second();
    let mut ending: Vec<_> = configuration
        .certificates
        .iter()
        .filter(|certificate| certificate.side != CertificateSide::Authority && certificate.not_after - now < SOON)
        .map(|certificate| (&certificate.file, certificate.not_after))
        .collect();
    ending.sort_unstable();
    ending.dedup_by_key(|(file, _)| *file);
    ending.into_iter().map(move |(file, end)| match end - now {
        left if left < 0 => format!("the certificate in {} has ended", file.display()),
        left => format!("the certificate in {} ends in {} days", file.display(), left / DAY),
    })
}

/// What a proxy that does not tell does.
fn yes() -> bool {
    true
}

/// 20 instead of 20.0.
fn short_number<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.fract() == 0.0 { serializer.serialize_i64(*number as i64) } else { serializer.serialize_f64(*number) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue};
    use serde_json::Value;

    use super::*;
    use crate::control::reload::Outcome;
    use crate::control::testing::{Bench, TEXT};
    use crate::upstream::breaker::Verdict;

    fn reporter(bench: &Bench) -> Reporter<'_> {
        let Bench { live, status, readiness, suspicion, keeper, .. } = bench;
        Reporter { live, status, readiness, suspicion, keeper }
    }

    #[tokio::test]
    async fn a_healthy_proxy_reports_every_field_of_the_contract() {
        let bench = Bench::start(TEXT);

        let report = reporter(&bench).report();

        let json: Value = serde_json::to_value(&report).unwrap();
        assert_eq!(json["degraded"], serde_json::json!([]));
        assert_eq!(json["ready"], true);
        assert_eq!(json["config"]["generation"], 1);
        assert_eq!(json["config"]["last_error"], Value::Null);
        assert_eq!(json["config"]["hash"].as_str().unwrap().len(), 64);
        assert!(json["config"]["loaded_at"].as_str().unwrap().parse::<Timestamp>().is_ok());
        let [a, b] = [&json["services"][0], &json["services"][1]];
        assert_eq!(a["percentage"].to_string(), r#"{"confirm_by":null,"declared":20,"effective":20}"#);
        assert_eq!((&json["frozen"], &a["frozen"], &a["fallback"]), (&false.into(), &false.into(), &true.into()));
        assert_eq!(b["old_host"], serde_json::json!(["b.old.example", "*.b.example"]));
        assert_eq!((&a["mode"], &b["mode"]), (&"proxy".into(), &"redirect".into()));
        assert_eq!(a["breaker"]["state"], "closed");
        assert!(a["breaker"]["since"].is_string() && a["breaker"]["retry_at"].is_null());
        assert_eq!(a["health"], serde_json::json!({"old": "unknown", "new": "unknown"}));
        for window in ["1m", "5m", "60m"] {
            assert_eq!(a["windows"][window]["new"]["requests"], 0);
        }
        assert_eq!(serde_json::from_value::<StatusReport>(json).unwrap(), report);
    }

    #[tokio::test]
    async fn what_is_not_as_it_should_be_is_named() {
        let off = "new: {verify: off}";
        let text = TEXT.replace("    mode:", &format!("    {off}\n    safe_mode: on\n    mode:"));
        let mut bench = Bench::start(&text);
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-forwarded-for"),
            HeaderValue::from_static("203.0.113.7"),
        )]);
        bench.suspicion.note("10.1.2.3".parse().unwrap(), &headers);
        let service = bench.live.snapshot().service("a").unwrap().clone();
        for _ in 0..service.config.fallback.max_failures {
            service.new.admit(Instant::now()).expect("the breaker is closed").settle(Verdict::Failure, Instant::now());
        }

        assert_eq!(
            reporter(&bench).degraded(),
            [
                "a: breaker open",
                "b: safe mode is on",
                "b: new.verify is off, its certificates are not checked",
                "10.1.2.3 sends X-Forwarded-* and is not believed: add \"10.1.2.3/32\" to listen.trusted_proxies",
            ]
        );
        let report = reporter(&bench).report();
        assert!(report.services[0].breaker.retry_at.is_some());
        let (_, gauges) = gauges(&bench.live.snapshot())[1].clone();
        assert!(gauges.safe_mode && gauges.verify_off);

        assert_eq!(bench.reload("services: ["), Outcome::Rejected);
        let degraded = reporter(&bench).degraded();
        assert!(degraded[0].starts_with("configuration rejected: "), "{degraded:?}");
        let trusted = text.replace("listen: {", "listen: {trusted_proxies: [10.0.0.0/8], ");
        assert_eq!(bench.reload(&trusted), Outcome::Applied);
        assert!(reporter(&bench).report().untrusted_forwarders.is_empty());
    }

    #[tokio::test]
    async fn certificates_are_named_before_and_after_their_end() {
        use crate::telemetry::process::CertificateExpiry;
        let bench = Bench::start(TEXT);
        let now = Timestamp::now().as_second();
        let certificate = |file: &str, left: i64, service: Option<&str>| CertificateExpiry {
            side: CertificateSide::Client,
            service: service.map(str::to_owned),
            file: file.into(),
            not_after: now + left,
        };
        bench.status.update(|configuration| {
            configuration.certificates = vec![
                certificate("/soon", 3 * DAY + 60, Some("a")),
                certificate("/later", 15 * DAY, None),
                certificate("/over", -1, None),
                certificate("/soon", 3 * DAY + 60, Some("b")),
            ];
        });

        assert_eq!(
            reporter(&bench).degraded(),
            ["the certificate in /over has ended", "the certificate in /soon ends in 3 days"]
        );
    }

    #[test]
    fn steady_times_are_told_as_times_of_day() {
        let moment = Moment { instant: Instant::now(), time: Timestamp::from_second(1_704_110_400).unwrap() };

        let (minute, now) = (Duration::from_secs(60), moment.instant);
        assert_eq!(moment.time_of(now + minute).unwrap(), "2024-01-01T12:01:00Z");
        assert_eq!(moment.time_of(now - minute).unwrap(), "2024-01-01T11:59:00Z");
    }
}

//! One entry of `services`, its template variables known: every key of a service.

use std::time::Duration;

use http::uri::PathAndQuery;

use super::decode::{Decoder, Path, Section};
use super::document::tls_version;
use super::expand::Mappings;
use super::headers;
use super::model::*;
use super::problem::{Place, quote};
use super::rules;
use super::tree::{Node, Value};
use super::units::{Authority, HostPattern, Percent};
use super::values::{self, Parsed, Wrong};

/// Health checks more often than this are load, not knowledge.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// What a service takes from the rest of the file.
pub(super) struct Context<'c> {
    pub global: &'c Global,
    pub mappings: &'c Mappings,
}

/// A service and the places of its hosts. Where a key is wrong or missing the service holds a stand-in, and the file is
/// refused.
pub(super) struct Draft {
    pub service: Service,
    pub hosts: Vec<(Place, HostPattern)>,
}

pub(super) fn read(s: &mut Section<'_, '_>, context: &Context<'_>) -> Draft {
    if !s.decoder.partial {
        s.skip("expand");
    }
    // The flat form was nested already, what is not available is looked at elsewhere; typing errors may mean them.
    for key in ["migration_percentage", "strategy", "enabled", "shadow", "rollout"] {
        s.skip(key);
    }
    let name = s.required("name", values::service_name).unwrap_or_default();
    let hosts = old_hosts(s);
    let new_host = s.required("new_host", values::host_name).unwrap_or_default();
    let old_backend = old_backend(s, context, &new_host);
    let new_backend = s.optional("new_backend", values::authority).unwrap_or_else(|| Authority::new(&new_host, 443));
    let cohort = s.optional("cohort", values::word).unwrap_or_else(|| name.clone());
    let modes = [("proxy", Mode::Proxy), ("redirect", Mode::Redirect), ("passthrough", Mode::Passthrough)];
    let service = Service {
        safe_mode: s.value("safe_mode", false, values::switch),
        old_host: hosts.iter().map(|(_, host)| host.clone()).collect(),
        old_backend,
        new_backend,
        mode: s.choice("mode", Mode::Proxy, &modes),
        paths: s.sections("paths", rules::path).unwrap_or_default(),
        migration: s.section("migration", |s| migration(s, &cohort)),
        canary: s.section("canary", rules::canary),
        old: s.section("old", |s| cluster(s, Cluster::Old)),
        new: s.section("new", |s| cluster(s, Cluster::New)),
        timeouts: s.section("timeouts", |s| timeouts(s, context.global)),
        retry: s.section("retry", |s| retry(s, context.global)),
        fallback: s.section("fallback", fallback),
        health_check: s.section("health_check", health_check),
        headers: s.section("headers", headers::read),
        redirect_code: s.section("redirect", redirect_code),
        cohort,
        new_host,
        name,
    };
    Draft { service, hosts }
}

fn old_hosts(s: &mut Section<'_, '_>) -> Vec<(Place, HostPattern)> {
    let read = |decoder: &mut Decoder<'_>, node: &Node, path: &Path<'_>| {
        Some((node.place, decoder.parse(node, path, values::host_pattern)?))
    };
    match s.get("old_host") {
        Some(node) if matches!(node.value, Value::List(_)) => {
            if matches!(&node.value, Value::List(items) if items.is_empty()) {
                s.error("old_host", Wrong::new("the list is empty").help("name the host that clients ask for"));
            }
            s.items("old_host", read).unwrap_or_default()
        }
        Some(node) => read(s.decoder, node, &s.path.key("old_host")).into_iter().collect(),
        None => {
            s.missing("old_host");
            Vec::new()
        }
    }
}

fn old_backend(s: &mut Section<'_, '_>, context: &Context<'_>, new_host: &str) -> Vec<Authority> {
    match s.one_or_many("old_backend", values::authority) {
        Some(backends) => {
            if s.get("old_backend").is_some_and(|node| matches!(&node.value, Value::List(items) if items.is_empty())) {
                s.error("old_backend", Wrong::new("the list is empty").help("name at least one host:port"));
            }
            backends
        }
        None => match context.mappings.backend(new_host) {
            Some(backend) => vec![backend.clone()],
            None => {
                if s.get("old_backend").is_none() {
                    s.missing("old_backend");
                }
                Vec::new()
            }
        },
    }
}

fn migration(s: &mut Section<'_, '_>, cohort: &str) -> Migration {
    let default = Migration::default();
    let strategies = [
        ("weight", (Strategy::Weight, false)),
        ("header", (Strategy::RulesOnly, false)),
        ("ip", (Strategy::RulesOnly, false)),
        ("user", (Strategy::Weight, true)),
    ];
    let (strategy, user) = s.choice("strategy", (default.strategy, false), &strategies);
    let sticky = match s.get("sticky") {
        Some(_) => s.section("sticky", |s| sticky(s, cohort)),
        None if user => Some(Sticky {
            by: ["header:X-User-Id", "cookie:user_id"].iter().filter_map(|text| key_source(text).ok()).collect(),
            salt: cohort.to_owned(),
            set_cookie: None,
        }),
        None => None,
    };
    Migration {
        enabled: s.value("enabled", default.enabled, values::switch),
        strategy,
        percentage: s.value("percentage", default.percentage, values::percent),
        max_step: s.value("max_step", default.max_step, values::percent),
        methods: s.list("methods", values::method).unwrap_or(default.methods),
        sticky,
    }
}

fn sticky(s: &mut Section<'_, '_>, cohort: &str) -> Option<Sticky> {
    let set_cookie = s.optional("set_cookie", values::cookie_name);
    let by = s.list("by", key_source);
    if by.is_none() && set_cookie.is_none() && !s.is_empty() && s.get("by").is_none() {
        s.missing("by");
    }
    let mut by = by.unwrap_or_default();
    if let Some(name) = &set_cookie {
        let source = KeySource { text: format!("cookie:{name}"), kind: KeyKind::Cookie(name.clone()) };
        if !by.contains(&source) {
            by.push(source);
        }
    }
    let salt = s.optional("salt", values::word).unwrap_or_else(|| cohort.to_owned());
    (!by.is_empty()).then_some(Sticky { by, salt, set_cookie })
}

fn key_source(text: &str) -> Parsed<KeySource> {
    let kind = match text.split_once(':') {
        Some(("header", name)) => KeyKind::Header(values::header_name(name)?),
        Some(("cookie", name)) => KeyKind::Cookie(values::cookie_name(name)?),
        Some(("jwt", name)) if !name.is_empty() => KeyKind::Jwt(name.to_owned()),
        None if text == "client_ip" => KeyKind::ClientIp,
        _ => {
            return Err(Wrong::new(format!("unknown key source {}", quote(text)))
                .help("write header:NAME, cookie:NAME, jwt:CLAIM or client_ip"));
        }
    };
    Ok(KeySource { text: text.to_owned(), kind })
}

fn cluster(s: &mut Section<'_, '_>, cluster: Cluster) -> ClusterOptions {
    let default = ClusterOptions::default_of(cluster);
    let host_header = |text: &str| match (text, cluster) {
        ("preserve", Cluster::Old) => Ok(None),
        ("preserve", Cluster::New) => Err(Wrong::new("new cannot be sent the client's Host")
            .help("leave the key out for new_host, or write the host that new expects")),
        _ => values::host_header(text).map(Some),
    };
    ClusterOptions {
        protocol: s.choice(
            "protocol",
            default.protocol,
            &[("http", Protocol::Http), ("h2c", Protocol::H2c), ("https", Protocol::Https)],
        ),
        host_header: s.optional("host_header", host_header).flatten(),
        sni: s.optional("sni", values::host_name),
        ca_file: s.file("ca_file"),
        client: client(s),
        verify: s.choice("verify", default.verify, &[("full", true), ("off", false), ("on", true)]),
        min_version: tls_version(s, default.min_version),
        http_version: s.choice(
            "http_version",
            default.http_version,
            &[("auto", HttpVersion::Auto), ("1.1", HttpVersion::Http1), ("2", HttpVersion::Http2)],
        ),
        max_idle: s.value("max_idle", default.max_idle, values::amount(0..=1_000_000)),
        idle_timeout: s.value("idle_timeout", default.idle_timeout, values::duration),
        max_waiting: s.value("max_waiting", default.max_waiting, |text| {
            values::amount(0..=1_000_000)(text).map(|number| (number != 0).then_some(number))
        }),
    }
}

fn client(s: &mut Section<'_, '_>) -> Option<CertificateFiles> {
    match (s.file("client_cert"), s.file("client_key")) {
        (Some(cert), Some(key)) => Some(CertificateFiles { cert, key }),
        (Some(_), None) => {
            s.missing("client_key");
            None
        }
        (None, Some(_)) => {
            s.missing("client_cert");
            None
        }
        (None, None) => None,
    }
}

fn timeouts(s: &mut Section<'_, '_>, global: &Global) -> Timeouts {
    let default = Timeouts::default_of(global);
    Timeouts {
        connect: s.value("connect", default.connect, values::duration),
        response_header: s.value("response_header", default.response_header, values::duration),
        total: s.value("total", default.total, values::duration),
        idle: s.value("idle", default.idle, values::duration),
        tunnel: s.value("tunnel", default.tunnel, values::duration),
    }
}

fn retry(s: &mut Section<'_, '_>, global: &Global) -> Retry {
    let default = Retry::default_of(global);
    let (backoff_base, backoff_max) = s.section("backoff", |s| {
        let base = s.value("base", default.backoff_base, values::duration_or_zero);
        let max = s.value("max", default.backoff_max.max(base), values::duration_or_zero);
        if max < base {
            s.error("max", Wrong::new("max is shorter than base"));
        }
        (base, max)
    });
    Retry {
        attempts: s.value("attempts", default.attempts, values::count(0..=100)),
        when: s.list("when", failure_kind).unwrap_or(default.when),
        after_send: s.choice("after_send", default.after_send, &[("safe_methods", true), ("never", false)]),
        budget: s.value("budget", default.budget, values::percent),
        backoff_base,
        backoff_max,
    }
}

fn failure_kind(text: &str) -> Parsed<FailureKind> {
    match text {
        "connect" => Ok(FailureKind::Connect),
        "tls" => Ok(FailureKind::Tls),
        "timeout" => Ok(FailureKind::Timeout),
        "reset" | "reset_before_response" => Ok(FailureKind::Reset),
        _ => match text.parse::<u16>() {
            Ok(status @ 500..=599) => Ok(FailureKind::Status(status)),
            Ok(status @ 100..=499) => Err(Wrong::new(format!("status {status} is no failure of a cluster"))
                .help("only statuses from 500 to 599 are")),
            _ => Err(Wrong::new(format!("unknown failure {}", quote(text))).help(super::decode::suggestion(
                text,
                &["connect", "tls", "timeout", "reset", "reset_before_response", "500", "502", "503", "504"],
            ))),
        },
    }
}

fn fallback(s: &mut Section<'_, '_>) -> Fallback {
    let default = Fallback::default();
    let recovery_time = s.value("recovery_time", default.recovery_time, values::duration);
    let (probes, ramp) = s.section("half_open", |s| {
        (
            s.value("probes", default.probes, values::count(1..=1000)),
            s.value("ramp", default.ramp, values::duration_or_zero),
        )
    });
    let ramp = ramp.min(recovery_time / 10);
    Fallback {
        enabled: s.value("enabled", default.enabled, values::switch),
        max_failures: s.value("max_failures", default.max_failures, values::count(1..=1_000_000)),
        failure_window: s.value("failure_window", default.failure_window, values::duration),
        recovery_time,
        failure_ratio: s.value("failure_ratio", default.failure_ratio, |text| match values::percent(text)? {
            Percent::ZERO => Err(Wrong::new("0 would open the breaker without any failure").help("write 1 to 100")),
            ratio => Ok(ratio),
        }),
        ratio_window: s.value("ratio_window", default.ratio_window, values::duration),
        min_requests: s.value("min_requests", default.min_requests, values::count(1..=1_000_000)),
        failures: s.list("failures", failure_kind).unwrap_or(default.failures),
        probes,
        ramp: if ramp < Duration::from_secs(1) { Duration::ZERO } else { ramp },
        retry_on_old: s.value("retry_on_old", default.retry_on_old, values::switch),
    }
}

fn health_check(s: &mut Section<'_, '_>) -> HealthCheck {
    let default = HealthCheck::default();
    let path = |text: &str| {
        // A fragment is never sent, so asking for one is a mistake.
        let is_target = text.parse::<PathAndQuery>().is_ok() && !text.contains('#');
        if text.starts_with('/') && text.is_ascii() && is_target {
            return Ok(text.to_owned());
        }
        Err(Wrong::new(format!("{} is not a path", quote(text)))
            .help("write /healthz, or leave it empty to connect only"))
    };
    let interval = |text: &str| match values::duration(text)? {
        interval if interval >= LEAST_INTERVAL => Ok(interval),
        _ => Err(Wrong::new(format!("{} is too often", quote(text))).help("100ms is the least, 30s the default")),
    };
    let expect = s.one_or_many("expect", values::status_ranges).map(|ranges| ranges.into_iter().flatten().collect());
    HealthCheck {
        enabled: s.value("enabled", default.enabled, values::switch),
        interval: s.value("interval", default.interval, interval),
        timeout: s.value("timeout", default.timeout, values::duration),
        path: s.optional("path", path).unwrap_or(default.path),
        expect: expect.unwrap_or(default.expect),
        unhealthy_threshold: s.value("unhealthy_threshold", default.unhealthy_threshold, values::count(1..=1000)),
        healthy_threshold: s.value("healthy_threshold", default.healthy_threshold, values::count(1..=1000)),
    }
}

fn redirect_code(s: &mut Section<'_, '_>) -> u16 {
    s.choice("code", 307, &[("301", 301), ("302", 302), ("303", 303), ("307", 307), ("308", 308)])
}

//! Active health checks: when they move requests to old, what they ask and how, and what they leave alone.

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::origin::{Answer, End, OnAccept, Origin, refused_port};
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";
const REVEAL: &str = "headers: {reveal: always}";
const AGENT: &str = "migration-proxy-health/";

/// A check that is quick enough for a test, with the usual thresholds.
fn check(more: &str) -> String {
    format!("health_check: {{enabled: true, interval: 100ms{more}}}")
}

fn checked(clusters: &Clusters, more: &str) -> Service {
    clusters.service("a").percentage(100).with(REVEAL).with(&check(more))
}

/// What is known of old and of new.
fn health(proxy: &Proxy, service: &str) -> (String, String) {
    let health = &proxy.service(service)["health"];
    let word = |side: &str| health[side].as_str().unwrap().to_owned();
    (word("old"), word("new"))
}

#[track_caller]
fn wait_for(proxy: &Proxy, service: &str, old: &str, new: &str) {
    let wanted = (old.to_owned(), new.to_owned());
    eventually(PATIENCE, &format!("{service}: old is {old}, new is {new}"), || health(proxy, service) == wanted);
}

fn degraded(proxy: &Proxy) -> Vec<String> {
    let status = proxy.status();
    status["degraded"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

/// The side and the reason of one request.
fn decided(proxy: &Proxy, headers: &[(&str, &str)]) -> (String, String) {
    let response = proxy.get_with(HOST, "/", headers);
    let side = response.side().map_or_else(|| response.status.to_string(), str::to_owned);
    (side, response.header("x-migration-reason").unwrap_or("none").to_owned())
}

fn pair(side: &str, reason: &str) -> (String, String) {
    (side.to_owned(), reason.to_owned())
}

fn gauge(proxy: &Proxy, target: &str) -> f64 {
    proxy.metrics().sum("health_check_up", &[("service", "a"), ("target", target)])
}

#[test]
fn new_goes_down_after_three_failures_and_comes_back_after_two_successes() {
    let clusters = Clusters::new();
    let pin = "canary: {on_unavailable: fail, header_rules: [{header: X-Pin, value: new, target: new_cluster}]}";
    let service = checked(&clusters, ", path: /healthz").with(pin);
    let proxy = Proxy::start(&Setup::new([service]));
    wait_for(&proxy, "a", "up", "up");
    assert_eq!((gauge(&proxy, "old"), gauge(&proxy, "new")), (1.0, 1.0));
    assert_eq!(decided(&proxy, &[]), pair("new", "hundred"));

    clusters.new.on("/healthz", Answer::status(503));
    wait_for(&proxy, "a", "up", "down");
    assert_eq!(decided(&proxy, &[]), pair("old", "unhealthy"));
    assert_eq!(decided(&proxy, &[("X-Pin", "new")]).0, "503", "old must never answer a pinned request");
    assert_eq!(proxy.metrics().sum("fallbacks_total", &[("service", "a"), ("cause", "unhealthy")]), 1.0);
    assert_eq!((gauge(&proxy, "old"), gauge(&proxy, "new")), (1.0, 0.0));
    assert_eq!(degraded(&proxy), ["a: new is down: status 503"]);
    assert_eq!(proxy.breaker("a"), "closed", "a failed check is no failed request");
    let explained = proxy.admin(&format!("/api/v1/explain?host={HOST}")).json();
    assert_eq!((&explained["target"], &explained["reason"]), (&"old".into(), &"unhealthy".into()));
    assert_eq!(proxy.admin("/ready").status, 200);

    clusters.new.well_behaved();
    wait_for(&proxy, "a", "up", "up");
    assert_eq!(decided(&proxy, &[]), pair("new", "hundred"));
    assert_eq!(degraded(&proxy), [""; 0]);
}

#[test]
fn results_in_a_row_are_counted() {
    let clusters = Clusters::new();
    let (good, bad) = (|| Answer::status(200), || Answer::status(500));
    let proxy = Proxy::start(&Setup::new([checked(&clusters, ", path: /")]));
    wait_for(&proxy, "a", "up", "up");

    // Everything that is asked of new is a check; the ninth of these is the third bad one in a row.
    clusters.new.next([bad(), bad(), good(), bad(), bad(), good(), bad(), bad(), bad(), good()]).otherwise(bad());
    let asked = clusters.new.requests();
    wait_for(&proxy, "a", "up", "down");
    assert!(clusters.new.requests() >= asked + 8, "two in a row are not enough");

    eventually(PATIENCE, "all answers were given", || clusters.new.requests() > asked + 12);
    assert_eq!(health(&proxy, "a"), pair("up", "down"), "one is not enough either");
}

#[test]
fn checks_ask_as_requests_do_on_connections_of_their_own() {
    let clusters = Clusters::new();
    let service = checked(&clusters, ", path: '/healthz?deep=1'").old_host("['*.old.test', b.test]");
    let proxy = Proxy::start(&Setup::new([service]));
    wait_for(&proxy, "a", "up", "up");

    let (new, old) = (clusters.new.last(), clusters.old.last());

    assert_eq!((new.header("host"), new.sni.as_deref()), (Some("a.new.test"), Some("a.new.test")));
    assert_eq!(old.header("host"), Some("health.old.test"));
    for request in [&new, &old] {
        assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/healthz?deep=1"));
        assert!(request.header("user-agent").unwrap().starts_with(AGENT));
    }
    let requests = clusters.new.requests();
    assert!(clusters.new.connections() >= requests, "none is used twice");
    let metrics = proxy.metrics();
    for name in ["upstream_connections", "upstream_responses_total", "requests_total"] {
        assert_eq!(metrics.sum(name, &[("service", "a")]), 0.0, "{name} counts requests only");
    }
    assert_eq!(metrics.sum("upstream_connect_duration_seconds_count", &[("service", "a")]), 0.0);
}

#[test]
fn every_way_to_fail_is_named() {
    let clusters = Clusters::new();
    let other = Authority::new("somebody else");
    let elsewhere = Origin::tls("new", other.server(&["*.new.test"]).server_config(&[], None));
    let named = Origin::tls("new", clusters.authority.server(&["other.test"]).server_config(&[], None));
    let silent = Origin::plain("new");
    silent.on_accept(OnAccept::Hang);
    let service = |name: &str, more: &str| clusters.service(name).with(&check(more));
    let answering = |name: &str| service(name, &format!(", timeout: 1s, path: /{name}"));
    clusters.new.on("/reset", Answer::nothing(End::Reset)).on("/silence", Answer::nothing(End::Hang));
    clusters.new.on("/garbage", Answer::raw("SSH-2.0-nonsense\r\n\r\n", End::Fin));
    clusters.new.on("/missing", Answer::status(404));
    let proxy = Proxy::start(&Setup::new([
        service("refused", "").new_backend(format!("127.0.0.1:{}", refused_port())),
        service("authority", "").new_backend(elsewhere.address()),
        service("name", "").new_backend(named.address()),
        service("handshake", ", timeout: 1s").new_backend(silent.address()),
        answering("reset"),
        answering("garbage"),
        answering("silence"),
        answering("missing"),
    ]));

    for (name, words) in [
        ("refused", "connect: Connection refused"),
        ("authority", "TLS: unknown issuer: the certificate 'CN=*.new.test' for *.new.test is signed by"),
        ("name", "TLS: wrong name: the certificate 'CN=other.test', signed by"),
        ("handshake", "tls timed out"),
        ("reset", "no answer: "),
        ("garbage", "no answer: "),
        ("silence", "no answer within 1s"),
        ("missing", "status 404"),
    ] {
        wait_for(&proxy, name, "up", "down");
        let line = degraded(&proxy).into_iter().find(|line| line.starts_with(&format!("{name}: "))).unwrap();
        assert!(line.starts_with(&format!("{name}: new is down: {words}")), "{line}");
    }
    assert_eq!(elsewhere.requests() + named.requests(), 0);
}

#[test]
fn a_server_that_refuses_our_certificate_after_the_handshake_is_down() {
    let clusters = Clusters::new();
    let clients = Authority::new("clients");
    let identity = clients.client("migration-proxy");
    let server = clusters.authority.server(&["*.new.test"]);
    let new = Origin::tls("new", server.server_config(&[], Some(&clients)));
    let service = |name: &str| clusters.service(name).new_backend(new.address()).with(&check(""));
    let (cert, key) = (identity.cert.display(), identity.key.display());
    let with = service("a").new_option(&format!("client_cert: {cert}, client_key: {key}"));

    let proxy = Proxy::start(&Setup::new([with, service("without")]));

    wait_for(&proxy, "a", "up", "up");
    wait_for(&proxy, "without", "up", "down");
    assert!(degraded(&proxy)[0].contains("a client certificate is demanded"), "{:?}", degraded(&proxy));
}

#[test]
fn http2_is_asked_where_requests_speak_it() {
    let clusters = Clusters::with_alpn(&["h2"]);
    let clear = Origin::h2c("new");
    let tls = checked(&clusters, ", path: /healthz").new_option("http_version: \"2\"");
    let plain = clusters.service("clear").new_backend(clear.address()).new_options(&["protocol: h2c"]);
    let proxy = Proxy::start(&Setup::new([tls, plain.with(&check(", path: /healthz"))]));

    wait_for(&proxy, "a", "up", "up");
    wait_for(&proxy, "clear", "up", "up");
    for (origin, authority) in [(&clusters.new, "a.new.test"), (&clear, "clear.new.test")] {
        let request = origin.last();
        assert_eq!((request.version.as_str(), request.host()), ("HTTP/2.0", Some(authority)));
    }
    eventually(PATIENCE, "no connection stays", || clear.open_connections() <= 1);
}

#[test]
fn new_is_proven_before_the_first_shift() {
    let clusters = Clusters::new();
    let service = |name: &str| clusters.service(name).with(&check(", path: /healthz"));
    let off = service("off").with("migration: {enabled: false, percentage: 50}");
    let proxy = Proxy::start(&Setup::new([service("a").percentage(0), off]));

    for name in ["a", "off"] {
        wait_for(&proxy, name, "up", "up");
    }
}

#[test]
fn old_is_shown_and_changes_nothing() {
    let clusters = Clusters::new();
    let service = clusters.service("a").percentage(0).with(REVEAL).with(&check(", path: /healthz"));
    let proxy = Proxy::start(&Setup::new([service]));
    wait_for(&proxy, "a", "up", "up");

    clusters.old.on("/healthz", Answer::status(500));
    wait_for(&proxy, "a", "down", "up");

    assert_eq!(decided(&proxy, &[]), pair("old", "zero"));
    assert_eq!(degraded(&proxy), ["a: old is down: status 500"]);
    assert_eq!((gauge(&proxy, "old"), gauge(&proxy, "new")), (0.0, 1.0));
}

#[test]
fn without_fallback_health_is_only_reported() {
    let clusters = Clusters::new();
    let service = checked(&clusters, ", path: /healthz").with("fallback: {enabled: false}");
    let proxy = Proxy::start(&Setup::new([service]));
    clusters.new.on("/healthz", Answer::status(500));

    wait_for(&proxy, "a", "up", "down");

    assert_eq!(decided(&proxy, &[]), pair("new", "hundred"));
    assert_eq!(degraded(&proxy), ["a: new is down: status 500"]);
}

#[test]
fn connections_that_wait_are_closed_when_new_goes_down() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([checked(&clusters, ", path: /healthz")]));
    wait_for(&proxy, "a", "up", "up");
    assert_eq!(decided(&proxy, &[]), pair("new", "hundred"));
    let idle = |target| {
        let labels = [("service", "a"), ("target", target), ("state", "idle")];
        proxy.metrics().sum("upstream_connections", &labels)
    };
    eventually(PATIENCE, "the connection waits", || idle("new") == 1.0);

    clusters.new.on("/healthz", Answer::status(500));
    wait_for(&proxy, "a", "up", "down");

    eventually(PATIENCE, "nothing waits", || idle("new") == 0.0);
}

#[test]
fn failing_requests_are_the_breaker_s_business() {
    let clusters = Clusters::new();
    let service = checked(&clusters, ", path: /healthz").with("fallback: {max_failures: 3}");
    let proxy = Proxy::start(&Setup::new([service]));
    wait_for(&proxy, "a", "up", "up");
    clusters.new.otherwise(Answer::status(503)).on("/healthz", Answer::status(200));

    for _ in 0..3 {
        assert_eq!(decided(&proxy, &[]), pair("old", "fallback"));
    }

    assert_eq!(decided(&proxy, &[]), pair("old", "breaker"));
    let asked = clusters.new.requests();
    eventually(PATIENCE, "checks go on", || clusters.new.requests() > asked + 3);
    assert_eq!((proxy.breaker("a"), health(&proxy, "a")), ("open".to_owned(), pair("up", "up")));
}

#[test]
fn what_is_known_survives_reloads() {
    let clusters = Clusters::new();
    let slow = "health_check: {enabled: true, interval: 300s, path: /healthz}";
    let service = |percentage: u8, more: &str| clusters.service("a").percentage(percentage).with(REVEAL).with(more);
    clusters.new.on("/healthz", Answer::status(500));
    let quick = check(", path: /healthz");
    let proxy = Proxy::start(&Setup::new([service(100, &quick)]));
    wait_for(&proxy, "a", "up", "down");

    // Another service, another share: neither is a reason to forget.
    proxy.reload(&Setup::new([service(50, &quick), clusters.service("b")]));
    assert_eq!(health(&proxy, "a"), pair("up", "down"));
    assert_eq!(health(&proxy, "b"), pair("unknown", "unknown"));

    // Another check of the same backend goes on from what is known.
    proxy.reload(&Setup::new([service(100, slow)]));
    assert_eq!(decided(&proxy, &[]), pair("old", "unhealthy"));

    // Another backend is another story.
    let other = Origin::tls("new", clusters.authority.server(&["*.new.test"]).server_config(&[], None));
    proxy.reload(&Setup::new([service(100, &quick).new_backend(other.address())]));
    wait_for(&proxy, "a", "up", "up");
    assert_eq!(decided(&proxy, &[]), pair("new", "hundred"));

    // Without a check there is nothing to know, and nobody asks any more.
    proxy.reload(&Setup::new([service(100, "").new_backend(other.address())]));
    assert_eq!(health(&proxy, "a"), pair("unknown", "unknown"));
    assert!(!proxy.metrics().has("health_check_up"));
}

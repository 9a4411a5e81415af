//! When the new cluster fails: what the clients see, what is sent twice and what never, and how the breaker behaves.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::app::Proxy;
use crate::support::client::{Client, Load};
use crate::support::origin::{Answer, End, Gate, OnAccept, Origin, refused_port};
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";
const REVEAL: &str = "headers: {reveal: always}";
/// A breaker that opens at the third failure and soon tries again.
const QUICK: &str = "fallback: {max_failures: 3, recovery_time: 1s, half_open: {probes: 2}}";
/// A breaker that stays out of the way.
const PATIENT: &str = "fallback: {max_failures: 100000, min_requests: 100000}";

fn all_on_new(clusters: &Clusters) -> Service {
    clusters.service("a").percentage(100).with(REVEAL)
}

fn reason(proxy: &Proxy) -> (String, String) {
    let response = proxy.get(HOST, "/");
    let side = response.side().unwrap_or("none").to_owned();
    (side, response.header("x-migration-reason").unwrap_or("none").to_owned())
}

#[test]
fn no_get_fails_while_new_is_killed_and_comes_back() {
    let mut clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(QUICK)]));
    let load = Load::new(proxy.addresses.http, HOST).start();
    load.more(100);

    clusters.new.kill();
    load.more(200);
    clusters.new.restart();
    eventually(PATIENCE, "the breaker closes again", || proxy.breaker("a") == "closed");
    let answered = clusters.new.requests();
    eventually(PATIENCE, "new serves again", || clusters.new.requests() > answered + 50);

    let tally = load.stop();
    tally.assert_all_ok();
    assert!(tally.side("old") >= 100 && tally.side("new") >= 100, "{tally:?}");
}

#[test]
fn a_post_is_sent_at_most_once_while_new_dies() {
    let mut clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(PATIENT)]));
    let load = Load::new(proxy.addresses.http, HOST)
        .request("POST", "/order")
        .body(b"one order")
        .fields(|number| vec![("X-Order".into(), number.to_string())])
        .start();
    load.more(100);
    clusters.new.kill();
    load.more(100);

    let tally = load.stop();

    let mut sent: BTreeMap<String, u32> = BTreeMap::new();
    for request in clusters.new.recorded().iter().chain(&clusters.old.recorded()) {
        *sent.entry(request.header("x-order").unwrap().to_owned()).or_default() += 1;
    }
    assert!(sent.values().all(|times| *times == 1), "no order twice: {tally:?}");
    assert_eq!(tally.failed, 0, "each one has an answer, an error of ours at worst: {tally:?}");
    assert!(tally.statuses.keys().all(|status| matches!(status, 200 | 502)), "{tally:?}");
}

#[test]
fn a_safe_request_moves_to_old_whatever_went_wrong() {
    let clusters = Clusters::new();
    let timeouts = "timeouts: {connect: 300ms, response_header: 300ms, total: 3s}";
    let failures = [
        ("reset", Answer::nothing(End::Reset), "reset"),
        ("closed", Answer::nothing(End::Fin), "reset"),
        ("garbage", Answer::raw("SSH-2.0-nonsense\r\n\r\n", End::Fin), "reset"),
        ("silence", Answer::nothing(End::Hang), "timeout"),
        ("500", Answer::status(500), "500"),
        ("503", Answer::status(503), "503"),
    ];
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(PATIENT).with(timeouts)]));

    for (what, answer, cause) in failures {
        clusters.new.otherwise(answer);
        let before = proxy.metrics().sum("fallbacks_total", &[("service", "a"), ("cause", cause)]);
        assert_eq!(reason(&proxy), ("old".into(), "fallback".into()), "{what}");
        let after = proxy.metrics().sum("fallbacks_total", &[("service", "a"), ("cause", cause)]);
        assert_eq!(after - before, 1.0, "{what}");
    }
}

#[test]
fn an_unsafe_request_is_repeated_only_when_nothing_was_sent() {
    let clusters = Clusters::new();
    let refused = refused_port();
    let proxy = Proxy::start(&Setup::new([
        all_on_new(&clusters).with(PATIENT),
        clusters.service("refused").new_backend(format!("127.0.0.1:{refused}")).percentage(100).with(PATIENT),
    ]));

    for (answer, status) in [
        (Answer::nothing(End::Reset), 502),
        (Answer::nothing(End::Fin), 502),
        (Answer::status(503), 503),
        (Answer::status(500), 500),
    ] {
        clusters.new.otherwise(answer);
        for (method, body) in
            [("POST", "x"), ("PUT", "x"), ("DELETE", "x"), ("PATCH", "x"), ("DELETE", ""), ("POST", "")]
        {
            let response = proxy.client().exchange(method, HOST, "/", &[], body.as_bytes()).unwrap();
            assert_eq!(response.status, status, "{method} {body:?}: what new said, or that it failed, is passed on");
        }
    }
    assert_eq!(clusters.old.requests(), 0);

    let moved = proxy.client().post("refused.old.test", "/", b"x");
    assert_eq!((moved.status, moved.side()), (200, Some("old")));
}

#[test]
fn the_breaker_opens_spares_new_and_recovers() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(QUICK)]));
    clusters.new.otherwise(Answer::status(503));

    for _ in 0..3 {
        assert_eq!(reason(&proxy), ("old".into(), "fallback".into()));
    }
    assert_eq!(proxy.breaker("a"), "open");
    let tried = clusters.new.requests();
    for _ in 0..20 {
        assert_eq!(reason(&proxy), ("old".into(), "breaker".into()));
    }
    assert_eq!((tried, clusters.new.requests()), (3, 3), "an open breaker sends nothing");
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("breaker_state", &[("service", "a"), ("state", "open")]), 1.0);
    assert_eq!(metrics.sum("breaker_transitions_total", &[("service", "a"), ("to", "open")]), 1.0);

    clusters.new.well_behaved();
    eventually(PATIENCE, "new is tried again", || reason(&proxy).0 == "new");
    eventually(PATIENCE, "the breaker closes", || {
        proxy.get(HOST, "/");
        proxy.breaker("a") == "closed"
    });
    assert_eq!(reason(&proxy), ("new".into(), "hundred".into()));
}

#[test]
fn a_failed_probe_opens_the_breaker_again_and_costs_no_client_anything() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(QUICK)]));
    clusters.new.otherwise(Answer::status(503));
    for _ in 0..3 {
        proxy.get(HOST, "/");
    }
    let opened =
        |times: f64| proxy.metrics().sum("breaker_transitions_total", &[("service", "a"), ("to", "open")]) >= times;
    assert!(opened(1.0));

    eventually(PATIENCE, "a probe fails", || {
        assert_eq!(proxy.get(HOST, "/").status, 200);
        opened(2.0)
    });

    assert!(clusters.new.requests() <= 5, "one probe at a time");
}

#[test]
fn a_success_resets_the_count_and_client_errors_are_none() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(QUICK)]));

    for _ in 0..5 {
        clusters.new.next([Answer::status(503), Answer::status(503), Answer::status(404), Answer::side()]);
        for _ in 0..4 {
            proxy.get(HOST, "/");
        }
    }

    assert_eq!(proxy.breaker("a"), "closed");
}

#[test]
fn the_ratio_rule_opens_although_successes_come_between() {
    let clusters = Clusters::new();
    let ratio = "fallback: {max_failures: 1000, failure_ratio: 50%, min_requests: 20, ratio_window: 30s}";
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(ratio)]));
    clusters.new.next((0..40).map(|number| if number % 2 == 0 { Answer::side() } else { Answer::status(503) }));

    for _ in 0..19 {
        proxy.get(HOST, "/");
    }
    assert_eq!(proxy.breaker("a"), "closed", "too few to judge");
    for _ in 0..3 {
        proxy.get(HOST, "/");
    }
    assert_eq!(proxy.breaker("a"), "open");
}

#[test]
fn leaving_clients_are_never_new_s_fault() {
    let clusters = Clusters::new();
    clusters.new.otherwise(Answer::nothing(End::Hang));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(QUICK)]));

    for number in 1..=6 {
        let mut client = proxy.client();
        client.send(format!("GET /left HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        eventually(PATIENCE, "the request arrives", || clusters.new.requests() == number);
        drop(client);
    }

    eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
    assert_eq!(proxy.breaker("a"), "closed");
}

#[test]
fn one_service_s_breaker_is_nobody_else_s() {
    let clusters = Clusters::new();
    let broken = Origin::plain("new");
    broken.otherwise(Answer::status(503));
    let proxy = Proxy::start(&Setup::new([
        clusters
            .service("broken")
            .new_options(&["protocol: http"])
            .new_backend(broken.address())
            .percentage(100)
            .with(QUICK),
        all_on_new(&clusters).with(QUICK),
    ]));

    for _ in 0..5 {
        proxy.get("broken.old.test", "/");
    }

    assert_eq!((proxy.breaker("broken").as_str(), proxy.breaker("a").as_str()), ("open", "closed"));
    assert_eq!(reason(&proxy).0, "new");
}

#[test]
fn without_fallback_the_client_sees_what_new_does() {
    let clusters = Clusters::new();
    let proxy =
        Proxy::start(&Setup::new([all_on_new(&clusters).with("fallback: {enabled: false}\nretry: {attempts: 0}")]));

    for _ in 0..10 {
        clusters.new.otherwise(Answer::status(503));
        assert_eq!(proxy.get(HOST, "/").status, 503);
        clusters.new.otherwise(Answer::nothing(End::Reset));
        assert_eq!(proxy.get(HOST, "/").status, 502);
    }

    assert_eq!(clusters.old.requests(), 0);
}

#[test]
fn a_pinned_tester_can_insist_on_new() {
    let clusters = Clusters::new();
    let pin = "canary: {header_rules: [{header: X-Pin, value: new, target: new_cluster}], on_unavailable: fail}";
    let proxy = Proxy::start(&Setup::new([clusters.service("a").with(pin).with(QUICK)]));
    clusters.new.otherwise(Answer::status(500));
    let pinned = || proxy.get_with(HOST, "/", &[("X-Pin", "new")]);

    for _ in 0..3 {
        assert_eq!(pinned().status, 500, "a failed try is passed on as it is");
    }
    let refused = pinned();

    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(clusters.old.requests(), 0);
    assert_eq!(proxy.get(HOST, "/").side(), Some("old"));
}

#[test]
fn the_try_on_new_leaves_old_time_to_answer() {
    let clusters = Clusters::new();
    clusters.new.otherwise(Answer::nothing(End::Hang));
    let timeouts = "timeouts: {total: 1500ms, response_header: 1500ms}";
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(PATIENT).with(timeouts)]));

    let response = proxy.get(HOST, "/late");

    assert_eq!((response.status, response.side()), (200, Some("old")));
    let line = proxy.access_line("/late");
    let seconds: f64 = line.field("request_time").parse().unwrap();
    assert!((0.9..1.5).contains(&seconds), "two thirds of the total: {seconds}");
    assert_eq!((line.field("tries"), line.field("backend")), ("2", "old_backend"));
    assert_eq!(line.field("upstream_status"), "-, 200");
}

#[test]
fn what_old_says_is_passed_on() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));

    for status in [500, 502, 503, 504, 404] {
        clusters.old.otherwise(Answer::status(status));
        assert_eq!(proxy.get(HOST, "/").status, status);
    }

    assert_eq!(clusters.old.requests(), 5, "and never asked for twice");
}

#[test]
fn a_dead_old_cluster_is_a_plain_error_without_addresses() {
    let mut clusters = Clusters::new();
    let timeouts = "timeouts: {connect: 300ms, response_header: 300ms, total: 600ms}";
    let proxy = Proxy::start(&Setup::new([clusters.service("a").with(timeouts)]));
    clusters.old.otherwise(Answer::nothing(End::Hang));
    let silent = proxy.get(HOST, "/");
    clusters.old.well_behaved().on_accept(OnAccept::Reset);
    let reset = proxy.get(HOST, "/");
    clusters.old.kill();
    let dead = proxy.get(HOST, "/");

    assert_eq!((silent.status, reset.status, dead.status), (504, 502, 502));
    for response in [silent, reset, dead] {
        let text = response.text();
        assert!(text.starts_with(&response.status.to_string()) && !text.contains("127.0.0.1"), "{text}");
        assert!(text.contains(response.header("x-request-id").unwrap()) && text.len() <= 200, "{text}");
    }
}

#[test]
fn several_addresses_of_one_backend_cover_for_each_other() {
    let clusters = Clusters::new();
    let backends = format!("[\"127.0.0.1:{}\", \"{}\"]", refused_port(), clusters.old.address());
    let proxy = Proxy::start(&Setup::new([clusters.service("a").old_backend(backends)]));

    for _ in 0..20 {
        assert_eq!(proxy.client().post(HOST, "/", b"x").status, 200);
    }
}

#[test]
fn an_overlong_response_head_is_blamed_on_new() {
    let clusters = Clusters::new();
    clusters.new.otherwise(Answer::side().header("X-Long", &"x".repeat(80 * 1024)));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(PATIENT)]));

    assert_eq!(reason(&proxy), ("old".into(), "fallback".into()));
    assert_eq!(proxy.client().post(HOST, "/", b"x").status, 502);
    assert_eq!(proxy.metrics().sum("fallbacks_total", &[("cause", "header")]), 1.0);
}

#[test]
fn an_upload_to_a_backend_that_stops_reading_ends_with_its_deadline() {
    let clusters = Clusters::new();
    // Nobody accepts: the kernel takes what fits into its buffers, and no more.
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let service = clusters.service("a").old_backend(frozen.local_addr().unwrap());
    let proxy = Proxy::start(&Setup::new([service.with("timeouts: {total: 1s, response_header: 1s}")]));
    let body = vec![b'x'; 32 << 20];

    let mut client = proxy.client();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send(head);
    let _ = client.try_send(&body);

    eventually(PATIENCE, "the connection is given back", || {
        proxy.metrics().sum("connections", &[("listener", "http")]) == 0.0
    });
    assert_eq!(proxy.metrics().sum("upstream_responses_total", &[("outcome", "timeout")]), 1.0);
    drop(client);
}

#[test]
fn failures_on_a_shared_connection_blame_new_too() {
    let clusters = Clusters::new();
    let new = Origin::h2c("new");
    let service = clusters.service("a").new_backend(new.address().to_string()).new_option("protocol: h2c");
    let proxy = Proxy::start(&Setup::new([service.percentage(100).with(QUICK)]));
    assert_eq!(proxy.get(HOST, "/").side(), Some("new"));

    new.otherwise(Answer::nothing(End::Reset));
    for _ in 0..3 {
        assert_eq!(proxy.get(HOST, "/").side(), Some("old"), "the request itself is saved");
    }

    assert_eq!(proxy.breaker("a"), "open");
}

#[test]
fn a_frozen_new_cluster_cannot_use_up_what_old_needs() {
    let clusters = Clusters::new();
    let gate = Gate::default();
    clusters.new.otherwise(Answer::side().hold_head(&gate));
    let service = all_on_new(&clusters).new_option("max_waiting: 4").with(PATIENT);
    let proxy = Proxy::start(&Setup::new([service]));
    let mut waiting: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut waiting {
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    }
    eventually(PATIENCE, "new is full", || clusters.new.requests() == 4);

    assert_eq!(reason(&proxy), ("old".into(), "full".into()));
    gate.open();

    for client in &mut waiting {
        client.patience(Duration::from_secs(5));
        assert_eq!(client.response("GET").unwrap().side(), Some("new"));
    }
    assert_eq!(proxy.metrics().sum("fallbacks_total", &[("cause", "full")]), 1.0);
    assert_eq!(proxy.breaker("a"), "closed");
}

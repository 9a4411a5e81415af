//! Every time limit and every bound: what the client is told, what is counted, and what the access log says of it.

use std::time::Duration;

use crate::support::app::Proxy;
use crate::support::client::frames::{
    DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, block,
};
use crate::support::client::{Client, Failure, Response};
use crate::support::origin::{Answer, Blackhole, End, Gate, OnAccept};
use crate::support::reach::AccessLine;
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually, eventually_some};

const HOST: &str = "a.old.test";
const SHORT: &str = "timeouts: {connect: 300ms, response_header: 400ms, total: 400ms, idle: 300ms, tunnel: 400ms}";

/// A metric and the labels that show the cause.
type Cause<'a> = (&'a str, &'a [(&'a str, &'a str)]);

const NOTHING: Cause<'static> = ("rejected_total", &[]);

fn service(clusters: &Clusters) -> Service {
    clusters.service("a").with(SHORT)
}

/// New alone: no breaker, no replay.
fn alone_on_new(clusters: &Clusters) -> Service {
    service(clusters).percentage(100).with("fallback: {enabled: false}\nretry: {attempts: 0}")
}

fn count(proxy: &Proxy, (name, labels): Cause<'_>) -> f64 {
    proxy.metrics().sum(name, labels)
}

/// One of our own answers: the status, a line that says it again with the request's id, and no address.
#[track_caller]
fn assert_ours(response: &Response, status: u16) {
    let text = response.text();
    assert_eq!(response.status, status, "{text}");
    assert!(text.starts_with(&format!("{status} ")) && text.ends_with('\n') && text.len() <= 200, "{text}");
    assert!(text.contains(response.header("x-request-id").expect("a request id")), "{text}");
    assert!(!text.contains("127.0.0.1"), "{text}");
    assert_eq!(response.header("retry-after").is_some(), status == 503, "{text}");
    let closes = response.header("connection") == Some("close");
    assert_eq!(closes, matches!(status, 400 | 408 | 413 | 431), "{status}");
}

/// The cause is counted once, and the line of `/limit` has this status and backend.
#[track_caller]
fn assert_recorded(proxy: &Proxy, before: f64, cause: Cause<'_>, status: u16, backend: &str) {
    eventually(PATIENCE, &format!("it is counted: {cause:?}"), || count(proxy, cause) == before + 1.0);
    let line = proxy.access_line("/limit");
    assert_eq!((line.status(), line.field("backend")), (status, backend), "{line:?}");
    assert_eq!(line.field("tries") == "0", backend == "-", "{line:?}");
}

fn get(proxy: &Proxy) -> Response {
    proxy.get(HOST, "/limit")
}

#[test]
fn towards_the_clusters() {
    let blackhole = Blackhole::new();
    let on_old = |outcome| ("upstream_responses_total", [("target", "old"), ("outcome", outcome)]);
    let on_new = |outcome| ("upstream_responses_total", [("target", "new"), ("outcome", outcome)]);
    let lost = |clusters: &Clusters| service(clusters).old_backend(blackhole.address());
    let silent = Answer::nothing(End::Hang);
    let long = Answer::side().header("X-Long", &"x".repeat(80 * 1024));
    type Row<'a> = (&'a str, &'a dyn Fn(&Clusters) -> Service, Option<Answer>, (&'a str, [(&'a str, &'a str); 2]), u16);
    let rows: [Row<'_>; 6] = [
        ("connect", &lost, None, on_old("connect"), 502),
        ("head of old", &service, Some(silent.clone()), on_old("timeout"), 504),
        ("head of new", &alone_on_new, Some(silent), on_new("timeout"), 504),
        ("over-long head of old", &service, Some(long.clone()), on_old("header"), 502),
        ("over-long head of new", &alone_on_new, Some(long), on_new("header"), 502),
        ("garbage", &service, Some(Answer::raw("nonsense\r\n\r\n", End::Fin)), on_old("reset"), 502),
    ];

    for (what, service, answer, (name, labels), status) in rows {
        let clusters = Clusters::new();
        if let Some(answer) = answer {
            clusters.old.otherwise(answer.clone());
            clusters.new.otherwise(answer);
        }
        let proxy = Proxy::start(&Setup::new([service(&clusters)]));

        let response = get(&proxy);

        assert_ours(&response, status);
        let backend = if labels[0].1 == "old" { "old_backend" } else { "new_backend" };
        assert_recorded(&proxy, 0.0, (name, &labels), status, backend);
        assert_eq!(proxy.metrics().sum("rejected_total", &[]), 0.0, "{what}: no limit of ours");
    }
}

#[test]
fn the_handshake_with_new() {
    let clusters = Clusters::new();
    clusters.new.on_accept(OnAccept::Hang);
    let proxy = Proxy::start(&Setup::new([alone_on_new(&clusters)]));

    assert_ours(&get(&proxy), 502);

    let of_new = ("upstream_responses_total", &[("target", "new"), ("outcome", "tls")][..]);
    assert_recorded(&proxy, 0.0, of_new, 502, "new_backend");
}

/// Slower than the cluster's deadline, not slower than the client's own limit: nobody but the client is to blame.
#[test]
fn a_client_s_pause_in_its_body_is_no_failure_of_the_cluster() {
    let clusters = Clusters::new();
    let strict = "fallback: {max_failures: 1}";
    let setup = Setup::new([service(&clusters).percentage(100).with(strict)]).listen("timeouts: {body_idle: 900ms}");
    let proxy = Proxy::start(&setup);
    let start = |target: &str| {
        let mut client = proxy.client();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 8\r\n\r\nsome"));
        client
    };

    let mut slow = start("/slow");
    slow.patience(Duration::from_millis(600));
    assert!(matches!(slow.response("POST"), Err(Failure::Timeout)), "it has time");
    slow.send("more").patience(PATIENCE);
    let mut stalled = start("/limit");

    assert_eq!(slow.response("POST").unwrap().side(), Some("new"));
    assert_ours(&stalled.response("POST").unwrap(), 408);
    assert_recorded(&proxy, 0.0, ("rejected_total", &[("cause", "timeout")]), 408, "new_backend");
    assert_eq!(proxy.breaker("a"), "closed");
    assert_eq!(count(&proxy, ("upstream_responses_total", &[("outcome", "timeout")])), 0.0);
}

/// A head that came is all that could be told; the answer is cut, and looks cut.
#[test]
fn a_body_of_a_cluster_that_stands_still() {
    let clusters = Clusters::new();
    let gate = Gate::default();
    for answer in [Answer::pattern(1_000), Answer::pattern(1_000).chunked()] {
        clusters.old.on("/limit", answer.hold_body(&gate));
        let proxy = Proxy::start(&Setup::new([service(&clusters)]));

        let failure = proxy.client().exchange("GET", HOST, "/limit", &[], b"").unwrap_err();

        assert!(matches!(failure, Failure::Reset | Failure::Truncated(_)), "{failure}");
        let line = proxy.access_line("/limit");
        assert_eq!((line.status(), line.field("backend")), (200, "old_backend"), "{line:?}");
        eventually(PATIENCE, "old is left", || clusters.old.open_connections() == 0);
    }
}

#[test]
fn a_tunnel_without_a_byte() {
    let clusters = Clusters::new();
    clusters.old.on("/limit", Answer::upgrade("echo"));
    let proxy = Proxy::start(&Setup::new([service(&clusters)]));
    let mut client = proxy.client();
    client.send(format!("GET /limit HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"));
    assert_eq!(client.response("GET").unwrap().status, 101);

    assert!(client.is_closed_within(PATIENCE));

    assert_eq!(proxy.access_line("/limit").status(), 101);
    eventually(PATIENCE, "old is left", || clusters.old.open_connections() == 0);
}

#[test]
fn what_a_client_sends() {
    let clusters = Clusters::new();
    let limits = "limits: {request_body: 1000, uri_bytes: 100, header_bytes: 2KiB, header_count: 20}";
    let setup = Setup::new([service(&clusters)]).listen("timeouts: {header: 400ms, body_idle: 400ms}").top(limits);
    let proxy = Proxy::start(&setup);
    let head = |method: &str, more: &str| format!("{method} /limit HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n");
    let chunks = format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    let rows = [
        ("a body that is announced too long", head("POST", "Content-Length: 1001\r\n"), 413, "body", "-"),
        (
            "a body that becomes too long",
            format!("{}{chunks}", head("POST", "Transfer-Encoding: chunked\r\n")),
            413,
            "body",
            "old_backend",
        ),
        ("a body that stands still", head("POST", "Content-Length: 10\r\n") + "some", 408, "timeout", "old_backend"),
        (
            "chunks that stand still",
            head("POST", "Transfer-Encoding: chunked\r\n") + "4\r\nsome\r\n",
            408,
            "timeout",
            "old_backend",
        ),
        ("many bytes", head("GET", &format!("X-Long: {}\r\n", "x".repeat(2_048))), 431, "header", "-"),
        ("many fields", head("GET", &"X: y\r\n".repeat(20)), 431, "header", "-"),
    ];

    for (number, (what, bytes, status, cause, backend)) in rows.into_iter().enumerate() {
        let cause = ("rejected_total", &[("cause", cause)][..]);
        let before = count(&proxy, cause);
        let mut client = proxy.client();
        client.send(bytes);

        let response = client.response("POST").unwrap_or_else(|failure| panic!("{what}: {failure}"));

        assert_ours(&response, status);
        assert!(client.is_closed_within(PATIENCE), "{what}");
        eventually(PATIENCE, what, || count(&proxy, cause) == before + 1.0);
        let logged = eventually_some(PATIENCE, what, || proxy.access_lines().get(number).cloned().map(AccessLine));
        assert_eq!((logged.status(), logged.field("backend")), (status, backend), "{what}: {logged:?}");
    }
    let long = format!("/{}", "x".repeat(100));
    assert_ours(&proxy.get(HOST, &long), 414);
    assert!(clusters.old.recorded().iter().all(|request| !request.complete), "no application saw a whole one");
}

#[test]
fn a_head_that_does_not_come_to_its_end() {
    let clusters = Clusters::new();
    let setup = Setup::new([service(&clusters)]).listen("timeouts: {header: 300ms, keepalive: 400ms}");
    let proxy = Proxy::start(&setup);
    let timeouts = ("rejected_total", &[("cause", "timeout")][..]);
    let mut silent = proxy.client();
    let mut idle = proxy.client();
    idle.get(HOST, "/");
    assert!(silent.is_closed_within(PATIENCE) && idle.is_closed_within(PATIENCE), "both end without a word");
    assert_eq!(count(&proxy, timeouts), 0.0, "nobody has asked for anything");

    let mut slow = proxy.client();
    slow.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: "));
    assert_eq!(slow.response("GET").unwrap().status, 408);

    eventually(PATIENCE, "it is counted", || count(&proxy, timeouts) == 1.0);
    eventually(PATIENCE, "it is logged", || proxy.access_lines().iter().any(|line| line.contains("\" 408 ")));
    let mut second = proxy.client();
    second.get(HOST, "/");
    second.send("GET / HT");
    assert_eq!(second.response("GET").unwrap().status, 408, "later requests have the same limit");
}

#[test]
fn a_client_that_takes_nothing() {
    let clusters = Clusters::new();
    clusters.old.on("/limit", Answer::pattern(1 << 30));
    let setup = Setup::new([clusters.service("a")]).listen("timeouts: {write_idle: 400ms}");
    let proxy = Proxy::start(&setup);
    let mut client = proxy.client();
    client.send(format!("GET /limit HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));

    eventually(PATIENCE, "it is let go", || count(&proxy, ("connections", &[("listener", "http")])) == 0.0);

    assert_eq!(proxy.access_line("/limit").status(), 200);
    eventually(PATIENCE, "old is left", || clusters.old.open_connections() == 0);
    assert!(!matches!(client.response("GET"), Ok(response) if response.body.len() == 1 << 30));
}

/// What hyper has taken of an answer waits for the client's window, who talks but grants none.
#[test]
fn a_client_of_http2_that_takes_nothing_of_an_answer_that_is_over() {
    let clusters = Clusters::new();
    clusters.old.on("/limit", Answer::side().body("x".repeat(16_000)));
    let setup = Setup::new([clusters.service("a")]).listen("timeouts: {keepalive: 200ms, write_idle: 3s}");
    let proxy = Proxy::start(&setup);
    let timeouts = ("rejected_total", &[("cause", "timeout")][..]);
    let [mut patient, mut leaving] = [(); 2].map(|()| Frames::open(proxy.client()));
    for client in [&mut patient, &mut leaving] {
        client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 3, 0xe8]);
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/limit")];
        let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        assert_eq!(client.next_of(DATA).payload.len(), 1_000);
    }

    leaving.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    leaving.next_of(GOAWAY);
    assert_eq!(count(&proxy, timeouts), 0.0, "an idle connection is no slow one");
    while patient.try_send(&Frames::bytes(PING, 0, 0, b"01234567")).is_ok() && patient.next().is_ok() {
        // Not so often that it would be a flood.
        patient.is_quiet_for(Duration::from_millis(50));
    }

    eventually(PATIENCE, "it is counted", || count(&proxy, timeouts) == 1.0);
    eventually(PATIENCE, "both are let go", || count(&proxy, ("connections", &[("listener", "http")])) == 0.0);
}

#[test]
fn at_the_limit_of_connections_a_client_waits_and_the_admin_port_does_not() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]).top("limits: {max_connections: 2}"));
    let mut held: Vec<Client> = (0..2).map(|_| proxy.client()).collect();
    for client in &mut held {
        client.get(HOST, "/");
    }
    let mut waiting: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for client in &mut waiting {
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"));
    }

    assert_eq!(proxy.admin("/ready").status, 200);
    assert_eq!(clusters.old.requests(), 2, "they wait");
    held.pop();

    for client in &mut waiting {
        assert_eq!(client.response("GET").unwrap().side(), Some("old"), "one after the other");
    }
    assert_eq!(count(&proxy, NOTHING), 0.0);
}

#[test]
fn at_the_limits_of_requests_the_next_one_is_told_to_come_back() {
    let rows = [("limits: {max_in_flight: 2}", "", "in_flight", "zero"), ("", "old: {max_waiting: 2}", "full", "full")];

    for (top, more, cause, _reason) in rows {
        let clusters = Clusters::new();
        let gate = Gate::default();
        clusters.old.on("/held", Answer::side().hold_head(&gate));
        clusters.old.on("/streaming", Answer::pattern(1 << 40));
        let proxy = Proxy::start(&Setup::new([clusters.service("a").with(more)]).top(top));
        let mut streaming = proxy.client();
        streaming.send(format!("GET /streaming HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        assert_eq!(streaming.head().unwrap().status, 200, "it stops counting at its head");
        let mut waiting: Vec<Client> = (0..2).map(|_| proxy.client()).collect();
        for client in &mut waiting {
            client.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        }
        eventually(PATIENCE, "both wait", || clusters.old.requests() == 3);

        let mut refused = proxy.client();
        let response = refused.get(HOST, "/limit");

        assert_ours(&response, 503);
        assert_recorded(&proxy, 0.0, ("rejected_total", &[("cause", cause)]), 503, "-");
        gate.open();
        for client in &mut waiting {
            client.patience(Duration::from_secs(5));
            assert_eq!(client.response("GET").unwrap().status, 200);
        }
        assert_eq!(refused.get(HOST, "/").status, 200, "the refused one keeps its connection");
    }
}

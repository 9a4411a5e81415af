//! Clients that leave while their request waits for something: everything that it held is given back, and nobody is blamed.

use std::time::Duration;

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::client::frames::{DATA, END_HEADERS, Frames, HEADERS, RST_STREAM, block};
use crate::support::client::{Client, Http2};
use crate::support::dns::{Dns, Reply, at};
use crate::support::frame_origin::{Ending, FrameOrigin};
use crate::support::origin::{Answer, Blackhole, End, Gate, OnAccept, Origin};
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually, eventually_some};

const HOST: &str = "a.old.test";
/// One place more than is taken at a time: what is not given back is missed at the second request.
const LIMITS: &str = "limits: {max_in_flight: 2}";
/// One failure would open it.
const STRICT: &str = "fallback: {max_failures: 1, recovery_time: 300}";
/// A name that failed is soon asked for again.
const SOON: &str = "dns: {min_ttl: 100ms, negative_ttl: 100ms}";
/// How often each client leaves.
const TIMES: u64 = 3;

fn all_on_new(clusters: &Clusters) -> Service {
    clusters.service("a").percentage(100).new_option("max_waiting: 2").with("headers: {reveal: always}")
}

fn send_get(proxy: &Proxy) -> Client {
    let mut client = proxy.client();
    client.send(format!("GET /left HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    client
}

fn aborted(proxy: &Proxy, target: &str) -> f64 {
    proxy.metrics().sum("upstream_responses_total", &[("target", target), ("outcome", "aborted")])
}

/// Nothing is held any more, nothing was blamed, and each request has left its line.
#[track_caller]
fn assert_all_given_back(proxy: &Proxy, status: u16) {
    for (what, name, labels) in [
        ("connections in use are given back", "upstream_connections", &[("state", "active")][..]),
        ("the clients' connections are closed", "connections", &[("listener", "http")]),
        ("the clients' TLS connections are closed", "connections", &[("listener", "https")]),
    ] {
        eventually(PATIENCE, what, || proxy.metrics().sum(name, labels) == 0.0);
    }
    let lines = || {
        let lines = proxy.access_lines();
        lines.iter().filter(|line| line.contains("/left") && line.contains(&format!("\" {status} "))).count() as u64
    };
    eventually(PATIENCE, "each request has its line", || lines() == TIMES);
    assert_eq!(proxy.service("a")["open_on_new"], 0, "nothing counts as open on new");
    assert_eq!(proxy.breaker("a"), "closed");
}

/// The next request is served as the first one would have been.
#[track_caller]
fn assert_serves(proxy: &Proxy, side: &str, reason: &str) {
    let response = proxy.get(HOST, "/after");
    let found = (response.status, response.side(), response.header("x-migration-reason"));
    assert_eq!(found, (200, Some(side), Some(reason)));
}

#[test]
fn while_it_waits_for_the_head() {
    let clusters = Clusters::new();
    clusters.new.on("/left", Answer::nothing(End::Hang));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT)]).top(LIMITS));

    for number in 1..=TIMES {
        let client = send_get(&proxy);
        eventually(PATIENCE, "it arrives", || clusters.new.requests() == number);
        drop(client);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "new") == number as f64);
    }

    assert_all_given_back(&proxy, 499);
    eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn while_it_waits_for_the_head_over_http2() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    clusters.new.on("/left", Answer::nothing(End::Hang));
    let setup = Setup::new([all_on_new(&clusters).with(STRICT)]).https(&public.server(&[HOST])).top(LIMITS);
    let proxy = Proxy::start(&setup);
    let client = Http2::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&["h2"]));

    for number in 1..=TIMES {
        let request = http::Request::get(format!("https://{HOST}/left")).body(bytes::Bytes::new()).unwrap();
        client.leave(request, || clusters.new.requests() == number);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "new") == number as f64);
    }
    assert_eq!(client.get(&format!("https://{HOST}/")).side(), Some("new"), "its neighbours on the connection live");
    drop(client);

    assert_all_given_back(&proxy, 499);
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn while_the_name_of_new_is_looked_up() {
    let (clusters, dns) = (Clusters::new(), Dns::new());
    dns.on("a.new.test", Reply::Silence);
    let named = format!("a.new.test:{}", clusters.new.port());
    let service = all_on_new(&clusters).new_backend(named).with(STRICT).with("timeouts: {connect: 30s}");
    let proxy = Proxy::start(&Setup::new([service]).top(LIMITS).top(SOON).names_from(dns.sources()));

    for number in 1..=TIMES {
        let client = send_get(&proxy);
        // There is nothing to be seen from outside: a whole exchange on the same worker later it waits.
        proxy.get("nobody.test", "/");
        drop(client);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "new") == number as f64);
    }

    assert_all_given_back(&proxy, 499);
    dns.on("a.new.test", at(clusters.new.address().ip()));
    // Old answers until the name is known, and then new is asked.
    eventually(PATIENCE * 2, "the name is known", || proxy.get(HOST, "/").side() == Some("new"));
}

#[test]
fn while_the_handshake_with_new_hangs() {
    let clusters = Clusters::new();
    clusters.new.on_accept(OnAccept::Hang);
    let slow = "timeouts: {connect: 30s}";
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT).with(slow)]).top(LIMITS));

    for number in 1..=TIMES {
        let client = send_get(&proxy);
        eventually(PATIENCE, "it connects", || clusters.new.connections() >= number);
        drop(client);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "new") == number as f64);
    }

    assert_all_given_back(&proxy, 499);
    clusters.new.well_behaved();
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn while_new_does_not_even_answer_the_connection() {
    let clusters = Clusters::new();
    let blackhole = Blackhole::new();
    let service = all_on_new(&clusters).new_backend(blackhole.address()).with(STRICT);
    let setup = |service: Service| Setup::new([service.with("timeouts: {connect: 30s}")]).top(LIMITS);
    let proxy = Proxy::start(&setup(service));

    for number in 1..=TIMES {
        let client = send_get(&proxy);
        // There is nothing to be seen from outside: a whole exchange on the same worker later it waits.
        proxy.get("nobody.test", "/");
        drop(client);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "new") == number as f64);
    }

    assert_all_given_back(&proxy, 499);
    proxy.reload(&setup(all_on_new(&clusters).with(STRICT)));
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn in_the_middle_of_its_own_body() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT)]).top(LIMITS));

    for number in 1..=TIMES {
        let mut client = proxy.client();
        client.send(format!("POST /left HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\n\r\nsome"));
        eventually(PATIENCE, "it arrives", || clusters.new.requests() == number);
        client.reset();
        eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
    }

    assert_all_given_back(&proxy, 499);
    assert!(clusters.new.recorded().iter().all(|request| !request.complete), "new saw no whole request");
    assert_eq!(clusters.old.requests(), 0, "and nobody else was asked");
    assert_serves(&proxy, "new", "hundred");
}

/// Whatever the reset is called, and although its body has no length that would tell.
#[test]
fn in_the_middle_of_its_own_body_over_http2() {
    const TWO: &str = "two.old.test";
    let clusters = Clusters::new();
    let two = FrameOrigin::start(None, |_| vec![]);
    let other = clusters.service("two").old_backend(two.address()).with("old: {protocol: h2c}");
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT), other]));
    let mut sent = 0;

    for code in [0_u32, 2, 5, 8] {
        for host in [HOST, TWO] {
            for with_data in [false, true] {
                for _ in 0..TIMES {
                    let mut client = Frames::open(proxy.client());
                    let fields = [(":method", "POST"), (":scheme", "http"), (":authority", host), (":path", "/left")];
                    let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
                    client.send(HEADERS, END_HEADERS, 1, &block(&fields));
                    client.send(DATA, 0, 1, b"some");
                    sent += 1;
                    let arrived = || clusters.new.requests() + two.requests() == sent;
                    eventually(PATIENCE, "it arrives", arrived);
                    let more = if with_data { Frames::bytes(DATA, 0, 1, b"more") } else { Vec::new() };
                    let reset = Frames::bytes(RST_STREAM, 0, 1, &code.to_be_bytes());
                    client.try_send(&[more, reset].concat()).unwrap();
                    let has_ended =
                        || clusters.new.open_connections() == 0 && two.endings().len() as u64 == two.requests();
                    eventually(PATIENCE, "it is given up", has_ended);
                }
            }
        }
    }

    let whole = clusters.new.recorded().iter().filter(|request| request.complete).count();
    assert_eq!((clusters.new.requests(), whole), (sent / 2, 0), "new saw no whole request");
    assert!(!two.endings().contains(&Ending::Whole), "{:?}", two.endings());
    assert_eq!((clusters.old.requests(), proxy.breaker("a")), (0, "closed".to_owned()));
}

#[test]
fn between_the_head_and_the_body_of_the_answer() {
    let clusters = Clusters::new();
    let gate = Gate::default();
    clusters.new.on("/left", Answer::side().hold_body(&gate));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT)]).top(LIMITS));

    for _ in 1..=TIMES {
        let mut client = send_get(&proxy);
        assert_eq!(client.head().unwrap().status, 200);
        drop(client);
        eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
    }

    assert_all_given_back(&proxy, 200);
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn in_the_pause_between_two_tries() {
    let clusters = Clusters::new();
    clusters.new.on("/left", Answer::status(503));
    let pause = "fallback: {retry_on_old: false, max_failures: 1000, min_requests: 1000}
retry: {attempts: 1, backoff: {base: 1h, max: 1h}}
timeouts: {total: 2h, response_header: 2h}";
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(pause)]).top(LIMITS));

    for number in 1..=TIMES {
        let client = send_get(&proxy);
        eventually(PATIENCE, "the first try has failed", || {
            let failed = &[("target", "new"), ("outcome", "503")];
            proxy.metrics().sum("upstream_responses_total", failed) == number as f64
        });
        drop(client);
    }

    assert_all_given_back(&proxy, 499);
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn while_old_is_asked_instead() {
    let clusters = Clusters::new();
    clusters.new.on("/left", Answer::status(503));
    clusters.old.on("/left", Answer::nothing(End::Hang));
    let patient = "fallback: {max_failures: 1000, min_requests: 1000}";
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(patient)]).top(LIMITS));

    for number in 1..=TIMES {
        let client = send_get(&proxy);
        eventually(PATIENCE, "it arrives", || clusters.old.requests() == number);
        drop(client);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "old") == number as f64);
    }

    assert_all_given_back(&proxy, 499);
    eventually(PATIENCE, "old is left", || clusters.old.open_connections() == 0);
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn as_the_probe_of_a_breaker_that_wants_to_close() {
    let clusters = Clusters::new();
    let quick = "fallback: {max_failures: 1, recovery_time: 1s, half_open: {probes: 1}}";
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(quick)]).top(LIMITS));
    clusters.new.otherwise(Answer::status(503));
    proxy.get(HOST, "/");
    assert_eq!(proxy.breaker("a"), "open");
    clusters.new.otherwise(Answer::nothing(End::Hang));
    let tried = clusters.new.requests();

    let probe = eventually_some(PATIENCE, "a probe is sent", || {
        let mut client = send_get(&proxy);
        let answered = client.patience(Duration::from_millis(300)).response("GET").is_ok();
        (!answered && clusters.new.requests() > tried).then_some(client)
    });
    assert_eq!(proxy.get(HOST, "/").side(), Some("old"), "while the probe is out");
    clusters.new.well_behaved();
    drop(probe);

    eventually(PATIENCE, "the next request is the probe", || proxy.get(HOST, "/").side() == Some("new"));
    assert_eq!(proxy.breaker("a"), "closed");
}

#[test]
fn as_the_probe_that_has_no_connection_yet() {
    let clusters = Clusters::new();
    let quick = "fallback: {max_failures: 1, recovery_time: 1s, half_open: {probes: 1}}\ntimeouts: {connect: 30s}";
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(quick)]).top(LIMITS));
    clusters.new.otherwise(Answer::status(503).close());
    proxy.get(HOST, "/");
    assert_eq!(proxy.breaker("a"), "open");
    clusters.new.well_behaved().on_accept(OnAccept::Hang);
    let opened = clusters.new.connections();

    let probe = eventually_some(PATIENCE, "a probe connects", || {
        let mut client = send_get(&proxy);
        let answered = client.patience(Duration::from_millis(300)).response("GET").is_ok();
        (!answered && clusters.new.connections() > opened).then_some(client)
    });
    assert_eq!(proxy.breaker("a"), "half_open");
    clusters.new.well_behaved();
    drop(probe);

    eventually(PATIENCE, "the next request is the probe", || proxy.get(HOST, "/").side() == Some("new"));
    assert_eq!(proxy.breaker("a"), "closed");
    assert_eq!(proxy.metrics().sum("upstream_responses_total", &[("target", "new"), ("outcome", "tls")]), 0.0);
}

#[test]
fn while_another_request_opens_the_connection_that_both_want() {
    let clusters = Clusters::with_alpn(&["h2"]);
    clusters.new.on_accept(OnAccept::Hang);
    let service = all_on_new(&clusters).new_option("http_version: 2").with(STRICT).with("timeouts: {connect: 30s}");
    let proxy = Proxy::start(&Setup::new([service]).top("limits: {max_in_flight: 3}"));
    let mut opener = proxy.client();
    opener.send(format!("GET /opens HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    eventually(PATIENCE, "it connects", || clusters.new.connections() == 1);

    for number in 1..=TIMES {
        let client = send_get(&proxy);
        // There is nothing to be seen from outside: a whole exchange on the same worker later it waits.
        proxy.get("nobody.test", "/");
        drop(client);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "new") == number as f64);
    }
    assert_eq!(clusters.new.connections(), 1, "they waited for the one that is being opened");
    drop(opener);
    eventually(PATIENCE, "the one that opened leaves too", || aborted(&proxy, "new") == (TIMES + 1) as f64);

    assert_all_given_back(&proxy, 499);
    clusters.new.well_behaved();
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn while_a_shared_connection_waits_for_the_head() {
    let clusters = Clusters::new();
    let new = Origin::h2c("new");
    new.on("/left", Answer::nothing(End::Hang));
    let service = all_on_new(&clusters).new_backend(new.address()).new_option("protocol: h2c").with(STRICT);
    let proxy = Proxy::start(&Setup::new([service]).top(LIMITS));

    for number in 1..=TIMES {
        let client = send_get(&proxy);
        eventually(PATIENCE, "it arrives", || new.requests() == number);
        drop(client);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "new") == number as f64);
    }

    assert_all_given_back(&proxy, 499);
    assert_serves(&proxy, "new", "hundred");
    assert_eq!(new.connections(), 1, "the streams end, the connection lives");
}

#[test]
fn in_an_upload_that_new_does_not_take() {
    let clusters = Clusters::new();
    let gate = Gate::default();
    // The head is answered to nobody and the body is not read: what the kernels take is all that moves.
    clusters.new.on("/left", Answer::side().before_request_body().hold_head(&gate));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT)]).top(LIMITS));
    let body = vec![b'x'; 1 << 20];

    for number in 1..=TIMES {
        let mut client = proxy.client();
        client.send(format!("POST /left HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40));
        client.send(&body);
        eventually(PATIENCE, "it arrives", || clusters.new.requests() == number);
        client.reset();
        eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
    }

    assert_all_given_back(&proxy, 499);
    assert_eq!(clusters.old.requests(), 0, "and nobody else was asked");
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn in_the_middle_of_an_answer_that_it_does_not_read() {
    let clusters = Clusters::new();
    clusters.new.on("/left", Answer::pattern(1 << 40));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT)]).top(LIMITS));

    for _ in 1..=TIMES {
        let mut client = send_get(&proxy);
        assert_eq!(client.head().unwrap().status, 200);
        client.bytes(1 << 20).unwrap();
        client.reset();
        eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
    }

    assert_all_given_back(&proxy, 200);
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn a_tunnel() {
    let clusters = Clusters::new();
    clusters.new.on("/left", Answer::upgrade("echo"));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT)]).top(LIMITS));

    for _ in 1..=TIMES {
        let mut client = proxy.client();
        client.send(format!("GET /left HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"));
        assert_eq!(client.response("GET").unwrap().status, 101);
        client.send("ping");
        assert_eq!(client.bytes(4).unwrap(), b"ping");
        client.reset();
        eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
    }

    assert_all_given_back(&proxy, 101);
    assert_serves(&proxy, "new", "hundred");
}

#[test]
fn before_new_agrees_to_a_tunnel() {
    let clusters = Clusters::new();
    clusters.new.on("/left", Answer::nothing(End::Hang));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters).with(STRICT)]).top(LIMITS));

    for number in 1..=TIMES {
        let mut client = proxy.client();
        client.send(format!("GET /left HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"));
        eventually(PATIENCE, "it arrives", || clusters.new.requests() == number);
        drop(client);
        eventually(PATIENCE, "it is given up", || aborted(&proxy, "new") == number as f64);
    }

    assert_all_given_back(&proxy, 499);
    eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
    assert_serves(&proxy, "new", "hundred");
}

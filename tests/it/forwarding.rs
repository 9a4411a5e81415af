//! What the clusters see of a request, and what the client sees of their answers.

use std::time::Duration;

use crate::support::app::Proxy;
use crate::support::cli::Server;
use crate::support::client::{Client, Failure, Framing};
use crate::support::origin::{Answer, End, Gate, Origin, pattern};
use crate::support::scale::Scale;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

/// A proxy that sends everything to old, but what asks for new.
fn pinnable(clusters: &Clusters, more: &str) -> Proxy {
    Proxy::start(&pinnable_setup(clusters, more))
}

fn pinnable_setup(clusters: &Clusters, more: &str) -> Setup {
    let pin = "canary: {header_rules: [{header: X-Pin, value: new, target: new_cluster}]}";
    Setup::new([clusters.service("a").with(pin).with(more)])
}

const NEW: (&str, &str) = ("X-Pin", "new");

#[test]
fn new_gets_its_own_name_and_old_the_name_that_the_client_used() {
    let clusters = Clusters::new();
    let proxy = pinnable(&clusters, "");

    proxy.get_with("A.old.test:8000", "/x?y=%20", &[]);
    proxy.get_with("A.old.test:8000", "/x?y=%20", &[NEW]);

    let (old, new) = (clusters.old.last(), clusters.new.last());
    assert_eq!((old.host(), old.all("host").len()), (Some("A.old.test:8000"), 1));
    assert_eq!((new.host(), new.sni.as_deref(), new.all("host").len()), (Some("a.new.test"), Some("a.new.test"), 1));
    assert_eq!((new.method.as_str(), new.target.as_str(), new.version.as_str()), ("GET", "/x?y=%20", "HTTP/1.1"));
    assert_eq!(new.header("x-forwarded-host"), Some("A.old.test:8000"));
}

#[test]
fn host_and_server_name_can_be_told_apart() {
    let clusters = Clusters::new();
    let setup = Setup::new([clusters
        .service("a")
        .percentage(100)
        .new_option("host_header: inner.test")
        .new_option("sni: other.new.test")]);
    let proxy = Proxy::start(&setup);

    proxy.get(HOST, "/");

    let new = clusters.new.last();
    assert_eq!((new.host(), new.sni.as_deref()), (Some("inner.test"), Some("other.new.test")));
}

#[test]
fn forwarded_headers_of_strangers_are_replaced() {
    let clusters = Clusters::new();
    let proxy = pinnable(&clusters, "");
    let forged = [
        ("X-Forwarded-For", "203.0.113.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.test"),
        ("X-Forwarded-Port", "444"),
        ("X-Real-IP", "203.0.113.1"),
        ("Forwarded", "for=203.0.113.1"),
        ("X-Request-Id", "kept-1"),
    ];

    Client::plain_from(proxy.addresses.http, "127.0.0.9").get_with("a.old.test:8123", "/", &forged);

    let seen = clusters.old.last();
    for (name, value) in [
        ("X-Forwarded-For", Some("127.0.0.9")),
        ("X-Forwarded-Proto", Some("http")),
        ("X-Forwarded-Host", Some("a.old.test:8123")),
        ("X-Forwarded-Port", Some("8123")),
        ("X-Real-IP", Some("127.0.0.9")),
        ("Forwarded", None),
        ("X-Request-Id", Some("kept-1")),
    ] {
        assert_eq!((seen.header(name), seen.all(name).len()), (value, usize::from(value.is_some())), "{name}");
    }
}

#[test]
fn forwarded_headers_of_trusted_proxies_are_kept() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&pinnable_setup(&clusters, "").listen("trusted_proxies: [127.0.0.2/32]"));
    let ask = |headers: &[(&str, &str)]| {
        Client::plain_from(proxy.addresses.http, "127.0.0.2").get_with(HOST, "/", headers);
        clusters.old.last()
    };

    let full = ask(&[
        ("X-Forwarded-For", "203.0.113.1"),
        ("X-Forwarded-For", "198.51.100.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "outer.test"),
        ("X-Forwarded-Port", "444"),
        ("X-Real-IP", "203.0.113.5"),
        ("Forwarded", "for=203.0.113.1"),
    ]);
    let bare = ask(&[("X-Forwarded-For", "203.0.113.1")]);

    assert_eq!(full.all("x-forwarded-for").join(", "), "203.0.113.1, 198.51.100.7, 127.0.0.2");
    for (name, value) in [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "outer.test"),
        ("X-Forwarded-Port", "444"),
        ("X-Real-IP", "203.0.113.5"),
        ("Forwarded", "for=203.0.113.1"),
    ] {
        assert_eq!(full.all(name), [value], "{name}");
    }
    assert_eq!((bare.header("x-real-ip"), bare.header("x-forwarded-proto")), (Some("203.0.113.1"), Some("http")));
    assert_eq!(bare.header("x-forwarded-port"), Some("80"));
}

#[test]
fn every_request_has_an_id() {
    let clusters = Clusters::new();
    let proxy = pinnable(&clusters, "");
    let long = "x".repeat(129);
    let mut ids = Vec::new();

    for sent in ["", "two words", long.as_str()] {
        proxy.get_with(HOST, "/", &[("X-Request-Id", sent)]);
        let id = clusters.old.last().header("x-request-id").unwrap().to_owned();
        assert_ne!(id, sent);
        ids.push(id);
    }
    let own = proxy.get("nobody.test", "/");

    ids.push(own.header("x-request-id").expect("our own answers carry it").to_owned());
    assert!(own.text().contains(&ids[3]), "{}", own.text());
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "each one is different");
}

#[test]
fn hop_by_hop_fields_end_here() {
    let clusters = Clusters::new();
    let answer = Answer::side()
        .header("Connection", "keep-alive, X-Private")
        .header("Keep-Alive", "timeout=5")
        .header("X-Private", "1")
        .header("X-Public", "1")
        .header("Alt-Svc", "h3=\":443\"");
    clusters.old.otherwise(answer.clone());
    clusters.new.otherwise(answer);
    let proxy = pinnable(&clusters, "");
    let request: &[(&str, &str)] = &[
        ("Connection", "X-Secret, Host, X-Forwarded-For"),
        ("X-Secret", "1"),
        ("Keep-Alive", "1"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers, gzip"),
        ("Upgrade", "nothing"),
        ("X-Open", "1"),
    ];

    for (pin, origin, alt_svc) in [(("X-Pin", "no"), &clusters.old, true), (NEW, &clusters.new, false)] {
        let response = proxy.get_with(HOST, "/", &[request, &[pin]].concat());
        let seen = origin.last();
        for name in ["X-Secret", "Keep-Alive", "Proxy-Connection", "Upgrade"] {
            assert!(!seen.has(name), "{name} was forwarded: {:?}", seen.headers);
        }
        assert!(seen.has("x-open") && seen.has("host") && seen.has("x-forwarded-for"));
        assert!(seen.all("te").iter().all(|value| *value == "trailers"));
        for name in ["Keep-Alive", "X-Private"] {
            assert_eq!(response.header(name), None, "{name} was forwarded");
        }
        assert_eq!(response.header("x-public"), Some("1"));
        assert_eq!(response.header("alt-svc").is_some(), alt_svc);
    }
}

#[test]
fn addresses_of_the_new_cluster_become_those_of_the_old_one() {
    let clusters = Clusters::new();
    let proxy = pinnable(&clusters, "");
    let port = clusters.new.port();
    let with_port = format!("https://a.new.test:{port}/b");
    let rows = [
        ("Location", "https://a.new.test/a?b#c", "http://a.old.test:8000/a?b#c"),
        ("Location", "http://A.NEW.test:80/a", "http://a.old.test:8000/a"),
        ("Location", with_port.as_str(), "http://a.old.test:8000/b"),
        ("Location", "//a.new.test/a", "//a.old.test:8000/a"),
        ("Location", "/relative", "/relative"),
        ("Location", "https://a.new.test:8443/a", "https://a.new.test:8443/a"),
        ("Location", "https://a.new.test.evil.test/", "https://a.new.test.evil.test/"),
        ("Location", "https://other.test/?u=https://a.new.test/", "https://other.test/?u=https://a.new.test/"),
        ("Content-Location", "https://a.new.test/a", "http://a.old.test:8000/a"),
        ("Refresh", "5; url=https://a.new.test/a", "5; url=http://a.old.test:8000/a"),
        ("Set-Cookie", "a=b; Domain=a.new.test; Path=/", "a=b; Domain=a.old.test; Path=/"),
        ("Set-Cookie", "a=b; domain=.A.new.test;Secure", "a=b; domain=.a.old.test;Secure"),
        ("Set-Cookie", "a=b; Domain=new.test; Path=/", "a=b; Path=/"),
        ("Set-Cookie", "a=b; Domain=other.test", "a=b; Domain=other.test"),
        ("Set-Cookie", "__Host-a=b; Path=/; Secure", "__Host-a=b; Path=/; Secure"),
    ];

    for (name, sent, expected) in rows {
        clusters.new.otherwise(Answer::status(302).header(name, sent));
        clusters.old.otherwise(Answer::status(302).header(name, sent));
        let response = proxy.get_with("a.old.test:8000", "/", &[NEW]);
        assert_eq!(response.header(name), Some(expected), "{name}: {sent}");
        let from_old = proxy.get("a.old.test:8000", "/");
        assert_eq!(from_old.header(name), Some(sent), "old is left alone");
    }
    assert_eq!(proxy.metrics().sum("cookie_domains_dropped_total", &[("service", "a")]), 1.0);
}

#[test]
fn operators_change_heads_in_the_order_remove_set_add() {
    let clusters = Clusters::new();
    let operations = "headers:
  request:
    remove: [X-Gone]
    set: {X-Set: \"${client_ip} ${old_host} ${new_host} ${target} $$\"}
    add: {X-Add: two}
  response: {remove: [X-Side], set: {X-Id: \"${request_id}\"}}";
    let proxy = pinnable(&clusters, operations);

    let response = proxy.get_with(
        HOST,
        "/",
        &[("X-Gone", "1"), ("X-Set", "client"), ("X-Add", "one"), ("X-Request-Id", "id-1"), NEW],
    );

    let seen = clusters.new.last();
    assert!(!seen.has("x-gone"));
    assert_eq!(seen.all("x-set"), ["127.0.0.1 a.old.test a.new.test new $"]);
    assert_eq!(seen.all("x-add"), ["one", "two"]);
    assert_eq!((response.header("x-side"), response.header("x-id")), (None, Some("id-1")));
    assert_eq!(proxy.get("nobody.test", "/").header("x-id"), None, "our own answers are left alone");
}

#[test]
fn answers_without_body_stay_without_body() {
    let clusters = Clusters::new();
    clusters
        .old
        .on("/empty", Answer::status(204))
        .on("/same", Answer::status(304).header("ETag", "\"1\""))
        .on("/length", Answer::side().header("Content-Length", "12345").header("X-Head", "1"));
    let proxy = pinnable(&clusters, "");
    let mut client = proxy.client();

    let empty = client.get(HOST, "/empty");
    let same = client.get(HOST, "/same");
    let head = client.exchange("HEAD", HOST, "/length", &[], b"").unwrap();
    let last = client.get(HOST, "/");

    assert_eq!((empty.status, empty.body.len()), (204, 0));
    assert_eq!((same.status, same.header("etag")), (304, Some("\"1\"")));
    assert_eq!((head.header("content-length"), head.header("x-head")), (Some("12345"), Some("1")));
    assert_eq!(last.side(), Some("old"), "the connection still makes sense");
}

#[test]
fn framing_is_ours_and_bodies_are_not_changed() {
    let clusters = Clusters::new();
    let proxy = pinnable(&clusters, "");
    clusters
        .old
        .on("/length", Answer::side().body("12345"))
        .on("/chunked", Answer::side().body("12345").chunked().drip(1, Duration::from_millis(1)))
        .on("/close", Answer::side().body("12345").until_close());

    for (path, framings) in
        [("/length", vec![Framing::Length]), ("/chunked", vec![Framing::Chunked]), ("/close", vec![Framing::Chunked])]
    {
        let response = proxy.get(HOST, path);
        assert_eq!(response.text(), "12345", "{path}");
        assert!(framings.contains(&response.framing), "{path}: {:?}", response.framing);
    }

    let mut client = proxy.client();
    client.send(
        "POST /up HTTP/1.1\r\nHost: a.old.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    client.response("POST").unwrap();
    let seen = clusters.old.last();
    assert_eq!((seen.body.as_slice(), seen.header("transfer-encoding")), (&b"abcde"[..], Some("chunked")));
    client.post(HOST, "/up", b"abc");
    assert_eq!(clusters.old.last().header("content-length"), Some("3"));
    client.get(HOST, "/");
    assert!(!clusters.old.last().has("content-length") && !clusters.old.last().has("transfer-encoding"));
}

#[test]
fn large_bodies_cost_no_memory() {
    let scale = Scale::begin();
    let length: u64 = scale.pick(64 << 20, 1 << 30);
    let clusters = Clusters::new();
    clusters.old.on("/down", Answer::pattern(length)).on("/up", Answer::side());
    let proxy = Server::start(&pinnable_setup(&clusters, ""));
    let mut client = proxy.client();
    client.get(HOST, "/");
    let before = proxy.memory();

    client.send("GET /down HTTP/1.1\r\nHost: a.old.test\r\n\r\n");
    let head = client.head().unwrap();
    let (mut seen, mut right) = (0, true);
    let mut piece = |bytes: &[u8]| {
        for part in bytes.chunks(32 * 1024) {
            right &= part == pattern(seen, part.len() as u64);
            seen += part.len() as u64;
        }
    };
    client.stream_body("GET", head, &mut piece).unwrap();
    assert_eq!((seen, right), (length, true));

    client.send(format!("PUT /up HTTP/1.1\r\nHost: a.old.test\r\nContent-Length: {length}\r\n\r\n"));
    for offset in (0..length).step_by(64 * 1024) {
        client.send(pattern(offset, 64 * 1024));
    }
    assert_eq!(client.response("PUT").unwrap().status, 200);
    let up = clusters.old.last();
    assert_eq!((up.body_length, up.body_is_pattern), (length, true));
    let grown = proxy.peak_memory().saturating_sub(before);
    assert!(grown < 24 * 1024 * 1024, "{grown} bytes more than before");
    scale.report(&format!("{} MiB down and up, at most {} KiB more", length >> 20, grown / 1024));
}

#[test]
fn a_slow_reader_holds_the_origin_back() {
    const LENGTH: u64 = 256 * 1024 * 1024;
    let clusters = Clusters::new();
    clusters.old.otherwise(Answer::pattern(LENGTH));
    let proxy = Server::start(&pinnable_setup(&clusters, ""));
    let before = proxy.memory();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a.old.test\r\n\r\n");
    client.head().unwrap();

    // A second request proves that time has passed for the first one, without a clock.
    for _ in 0..50 {
        proxy.get("nobody.test", "/");
    }

    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 24 * 1024 * 1024, "{grown} bytes more than before");
}

#[test]
fn the_client_learns_of_a_cut_answer() {
    let clusters = Clusters::new();
    clusters
        .old
        .on("/length", Answer::side().body("12345").cut(3, End::Fin))
        .on("/chunked", Answer::side().body("12345").chunked().cut(3, End::Fin))
        .on("/reset", Answer::side().body("12345").chunked().cut(3, End::Reset));
    let proxy = pinnable(&clusters, "");

    for path in ["/length", "/chunked", "/reset"] {
        let failure = proxy.client().exchange("GET", HOST, path, &[], b"").unwrap_err();
        assert!(matches!(failure, Failure::Truncated(_) | Failure::Reset), "{path}: {failure}");
    }
}

#[test]
fn a_leaving_client_ends_the_exchange_at_the_origin() {
    let clusters = Clusters::new();
    clusters.old.on("/hang", Answer::nothing(End::Hang));
    let proxy = pinnable(&clusters, "");
    let mut client = proxy.client();
    client.send("GET /hang HTTP/1.1\r\nHost: a.old.test\r\n\r\n");
    eventually(PATIENCE, "the request arrives", || clusters.old.requests() == 1);

    drop(client);

    eventually(PATIENCE, "the origin is left", || clusters.old.open_connections() == 0);
    assert_eq!(proxy.access_line("/hang").status(), 499);
}

#[test]
fn an_answer_may_come_before_the_body_was_read() {
    let clusters = Clusters::new();
    clusters.old.otherwise(Answer::status(413).before_request_body().close());
    let proxy = pinnable(&clusters, "");
    let mut client = proxy.client();

    client.send("POST / HTTP/1.1\r\nHost: a.old.test\r\nContent-Length: 1000000\r\n\r\nabc");

    assert_eq!(client.response("POST").unwrap().status, 413);
}

#[test]
fn upgrades_become_tunnels() {
    let clusters = Clusters::new();
    clusters.old.otherwise(Answer::upgrade("echo"));
    clusters.new.otherwise(Answer::upgrade("echo"));
    let proxy = pinnable(&clusters, "");

    for pin in ["old", "new"] {
        let mut client = proxy.client();
        client.send(format!(
            "GET /chat HTTP/1.1\r\nHost: a.old.test\r\nX-Pin: {pin}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly"
        ));
        let response = client.response("GET").unwrap();
        assert_eq!((response.status, response.header("upgrade")), (101, Some("echo")));
        client.send("later");
        assert_eq!(client.bytes(10).unwrap(), b"earlylater");
    }
}

#[test]
fn a_response_head_of_60_kib_passes() {
    let clusters = Clusters::new();
    clusters.old.on("/", Answer::side().header("X-Large", &"x".repeat(60_000)));
    clusters.new.on("/", Answer::side().header("X-Large", &"x".repeat(60_000)));
    let proxy = Proxy::start(&Setup::new([clusters.service("a"), clusters.service("b").percentage(100)]));

    for host in [HOST, "b.old.test"] {
        let answer = proxy.get(host, "/");
        assert_eq!((answer.status, answer.header("x-large").map(str::len)), (200, Some(60_000)), "{host}");
    }
}

#[test]
fn a_response_of_many_small_fields_passes() {
    let clusters = Clusters::new();
    let crowded = (0..150).fold(Answer::side(), |answer, number| answer.header(&format!("x-field-{number}"), "v"));
    clusters.old.on("/crowded", crowded);
    let proxy = pinnable(&clusters, "");
    let mut client = proxy.client();

    for method in ["GET", "POST", "GET"] {
        let response = client.exchange(method, HOST, "/crowded", &[], b"").unwrap();
        assert_eq!((response.status, response.header("x-field-149")), (200, Some("v")), "{method}");
    }
    assert_eq!(client.get(HOST, "/").status, 200);
}

#[test]
fn a_request_that_comes_round_for_the_third_time_is_a_loop() {
    let clusters = Clusters::new();
    let server_setup = |backend: String| Setup::new([clusters.service("a").old_backend(backend)]);
    let port = crate::support::cli::free_port();
    let setup = server_setup(format!("127.0.0.1:{port}"));
    let relay = relay_to(port);
    let proxy = Server::start(&setup);
    relay.point_at(proxy.addresses.http);

    let response = proxy.get(HOST, "/round");

    assert_eq!(response.status, 508);
    let lines = || proxy.access_lines().iter().filter(|line| line.contains("/round")).count();
    eventually(PATIENCE, "each pass has its line", || lines() == 3);
    assert_eq!(proxy.metrics().sum("rejected_total", &[("cause", "loop")]), 1.0);
}

/// A byte relay on a known port, because a configuration cannot name the port that the proxy itself will get.
struct Relay(std::sync::mpsc::Sender<std::net::SocketAddr>);

impl Relay {
    fn point_at(&self, target: std::net::SocketAddr) {
        self.0.send(target).unwrap();
    }
}

fn relay_to(port: u16) -> Relay {
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let Ok(target) = receiver.recv() else { return };
        while let Ok((near, _)) = listener.accept() {
            let far = std::net::TcpStream::connect(target).unwrap();
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    Relay(sender)
}

#[test]
fn old_can_be_reached_in_other_ways() {
    let clusters = Clusters::new();
    let authority = &clusters.authority;
    let secure = Origin::tls("old", authority.server(&["a.old.test"]).server_config(&["h2", "http/1.1"], None));
    let prior = Origin::h2c("old");
    let ca = authority.file();
    let ca = ca.display();
    let rows = [
        (&secure, format!("old: {{protocol: https, ca_file: {ca}}}"), "HTTP/1.1"),
        (&secure, format!("old: {{protocol: https, ca_file: {ca}, http_version: 2}}"), "HTTP/2.0"),
        (&prior, "old: {protocol: h2c}".to_owned(), "HTTP/2.0"),
    ];

    for (origin, options, version) in rows {
        let proxy = Proxy::start(&Setup::new([clusters.service("a").old_backend(origin.address()).with(&options)]));
        let response = proxy.client().post(HOST, "/x", b"hello");
        assert_eq!((response.status, response.side()), (200, Some("old")), "{options}");
        let seen = origin.last();
        assert_eq!((seen.version.as_str(), seen.host(), seen.body.as_slice()), (version, Some(HOST), &b"hello"[..]));
    }
    assert_eq!(secure.last().sni.as_deref(), Some(HOST), "the client's Host is the server name");
}

#[test]
fn requests_in_flight_finish_when_the_proxy_stops() {
    let clusters = Clusters::new();
    let gate = Gate::default();
    clusters.old.on("/slow", Answer::side().hold_body(&gate));
    let mut proxy = Server::start(&pinnable_setup(&clusters, ""));
    let mut client = proxy.client();
    client.send("GET /slow HTTP/1.1\r\nHost: a.old.test\r\n\r\n");
    let head = client.head().unwrap();

    proxy.signal("TERM");
    let address = proxy.addresses.http;
    eventually(PATIENCE, "it accepts no more", || Client::try_plain(address, None).is_err());
    gate.open();

    let mut body = Vec::new();
    client.stream_body("GET", head, |piece| body.extend_from_slice(piece)).unwrap();
    assert_eq!(body, b"side=old\n");
    assert_eq!(proxy.exit_code(), Some(0));
}

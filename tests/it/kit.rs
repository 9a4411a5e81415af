//! The kit tests itself: a client of ours against an origin of ours, without a proxy between them.

use std::time::Duration;

use crate::support::certs::Authority;
use crate::support::client::{Client, Failure, Framing, Http2, Load, get};
use crate::support::origin::{Answer, End, Gate, OnAccept, Origin, pattern};
use crate::support::peers::{Nginx, available};
use crate::support::reach::{AccessLine, Metrics};
use crate::support::setup::ConfigFile;
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.test";

#[test]
fn an_origin_names_its_side_and_records_the_request() {
    let origin = Origin::plain("old");
    let mut client = Client::plain_from(origin.address(), "127.0.0.9");

    let first = client.get_with(HOST, "/a?b=c", &[("X-One", "1"), ("x-one", "2")]);
    let second = client.post(HOST, "/d", b"hello");

    assert_eq!((first.status, first.side(), second.side()), (200, Some("old"), Some("old")));
    let recorded = origin.recorded();
    assert_eq!((recorded[0].path(), recorded[0].all("x-one")), ("/a", vec!["1", "2"]));
    assert_eq!(recorded[0].peer.ip().to_string(), "127.0.0.9");
    assert_eq!((recorded[1].body.as_slice(), recorded[1].complete), (&b"hello"[..], true));
    assert_eq!((origin.connections(), origin.requests()), (1, 2));
}

#[test]
fn every_framing_is_read_back() {
    let origin = Origin::plain("old");
    origin
        .on("/length", Answer::side().body("12345"))
        .on("/chunked", Answer::side().body("12345").chunked().drip(2, Duration::from_millis(1)))
        .on("/trailers", Answer::side().body("12345").trailer("X-End", "yes"))
        .on("/close", Answer::side().body("12345").until_close());

    for (path, framing) in [
        ("/length", Framing::Length),
        ("/chunked", Framing::Chunked),
        ("/trailers", Framing::Chunked),
        ("/close", Framing::UntilClose),
    ] {
        let response = get(origin.address(), HOST, path);
        assert_eq!((response.text().as_str(), response.framing), ("12345", framing), "{path}");
        assert_eq!(response.trailers.len(), usize::from(path == "/trailers"), "{path}");
    }
}

#[test]
fn misbehaviour_is_told_apart() {
    let origin = Origin::plain("old");
    origin
        .on("/reset", Answer::nothing(End::Reset))
        .on("/fin", Answer::nothing(End::Fin))
        .on("/hang", Answer::nothing(End::Hang))
        .on("/cut", Answer::side().body("12345").cut(3, End::Fin))
        .on("/cut-chunk", Answer::side().body("12345").chunked().cut(3, End::Fin))
        .on("/garbage", Answer::raw("SSH-2.0-OpenSSH\r\n", End::Fin));
    let failure = |path| {
        let mut client = Client::plain(origin.address());
        client.patience(Duration::from_millis(200)).exchange("GET", HOST, path, &[], b"").unwrap_err()
    };

    assert!(matches!(failure("/reset"), Failure::Reset));
    assert!(matches!(failure("/fin"), Failure::Closed));
    assert!(matches!(failure("/hang"), Failure::Timeout));
    assert!(matches!(failure("/cut"), Failure::Truncated(_)));
    assert!(matches!(failure("/cut-chunk"), Failure::Truncated(_)));
    assert!(matches!(failure("/garbage"), Failure::Malformed(_)));
    eventually(PATIENCE, "connections end", || origin.open_connections() == 0);
}

#[test]
fn connections_are_refused_reset_or_closed_before_their_first_byte() {
    let origin = Origin::plain("old");
    let exchange = || Client::try_plain(origin.address(), None)?.exchange("GET", HOST, "/", &[], b"");

    for (what, name) in [(OnAccept::Reset, "reset"), (OnAccept::Close, "closed or reset")] {
        origin.on_accept(what);
        assert!(matches!(exchange(), Err(Failure::Reset | Failure::Closed)), "{name}");
    }
    origin.well_behaved();
    assert_eq!(exchange().unwrap().status, 200);
}

#[test]
fn interim_answers_gates_and_upgrades_work() {
    let origin = Origin::plain("old");
    let gate = Gate::default();
    origin
        .on("/hints", Answer::side().interim(103, &[("Link", "</a.css>")]))
        .on("/gate", Answer::side().hold_body(&gate))
        .on("/upgrade", Answer::upgrade("echo"));

    assert_eq!(get(origin.address(), HOST, "/hints").interim[0].0, 103);

    let mut client = Client::plain(origin.address());
    client.send("GET /gate HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 200);
    gate.open();
    assert_eq!(client.bytes(9).unwrap(), b"side=old\n");

    client.send("GET /upgrade HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.response("GET").unwrap().status, 101);
    client.send("ping");
    assert_eq!(client.bytes(4).unwrap(), b"ping");

    client = Client::plain(origin.address());
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 100);
    client.send("ok");
    assert_eq!(client.response("POST").unwrap().status, 200);
}

#[test]
fn a_killed_origin_refuses_until_it_is_back() {
    let mut origin = Origin::plain("new");
    let mut kept = Client::plain(origin.address());
    kept.get(HOST, "/");

    origin.kill();
    assert!(kept.is_closed_within(PATIENCE));
    assert!(Client::try_plain(origin.address(), None).is_err());

    origin.restart();
    assert_eq!(get(origin.address(), HOST, "/").side(), Some("new"));
}

#[test]
fn tls_records_name_protocol_and_client_certificate() {
    let authority = Authority::new("test authority");
    let identity = authority.server(&[HOST]);
    let client_identity = authority.client("proxy");
    let origin = Origin::tls("new", identity.server_config(&["h2", "http/1.1"], Some(&authority)));
    let config = |alpn| authority.client_config(&[alpn], Some(&client_identity), rustls::ALL_VERSIONS);

    let mut first = Client::tls(origin.address(), HOST, &config("http/1.1"));
    assert_eq!(
        (first.get(HOST, "/").side(), first.server_certificate().as_ref()),
        (Some("new"), Some(identity.leaf()))
    );
    let second = Http2::tls(origin.address(), HOST, &config("h2"));
    let response = second.get("https://a.test/x?y");

    assert_eq!((response.side(), response.version.as_str()), (Some("new"), "HTTP/2.0"));
    for request in origin.recorded() {
        assert_eq!((request.sni.as_deref(), request.host()), (Some(HOST), Some(HOST)));
        assert_eq!(request.client_certificate.as_deref(), Some(client_identity.leaf().as_ref()));
    }
    assert_eq!(origin.last().target, "/x?y");
}

#[test]
fn bad_certificates_are_refused() {
    let authority = Authority::new("test authority");
    let other = Authority::new("another authority");
    let bad = [
        authority.expired(&[HOST]),
        authority.not_yet_valid(&[HOST]),
        authority.server(&["b.test"]),
        other.server(&[HOST]),
    ];

    for identity in bad {
        let origin = Origin::tls("new", identity.server_config(&[], None));
        let result = Client::try_tls(origin.address(), HOST, &authority.trusting(&[]));
        assert!(result.is_err());
        eventually(PATIENCE, "the origin hears of it", || !origin.handshake_errors().is_empty());
    }
}

#[test]
fn http2_in_clear_carries_bodies_and_trailers() {
    let origin = Origin::h2c("old");
    origin.on("/echo", Answer::echo().trailer("x-end", "yes")).on("/reset", Answer::nothing(End::Reset));
    let client = Http2::plain(origin.address());
    let request = |path: &str| http::Request::post(format!("http://a.test{path}")).body("hello".into()).unwrap();

    let mut results = client.exchanges(vec![request("/echo"), request("/reset")]);

    assert!(results.pop().unwrap().is_err());
    let response = results.pop().unwrap().unwrap();
    assert_eq!((response.text().as_str(), response.trailers.len()), ("hello", 1));
}

#[test]
fn large_bodies_stream_both_ways() {
    const LENGTH: u64 = 4 * 1024 * 1024;
    let origin = Origin::plain("old");
    origin.on("/big", Answer::pattern(LENGTH).chunked());
    let mut client = Client::plain(origin.address());
    client.send("GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let head = client.head().unwrap();
    let (mut seen, mut right) = (0, true);
    client
        .stream_body("GET", head, |piece| {
            right &= piece.chunks(1024).all(|part| {
                let expected = pattern(seen, part.len() as u64);
                seen += part.len() as u64;
                part == expected
            });
        })
        .unwrap();
    assert_eq!((seen, right), (LENGTH, true));

    client.send(format!("PUT /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: {LENGTH}\r\n\r\n"));
    for offset in (0..LENGTH).step_by(64 * 1024) {
        client.send(pattern(offset, 64 * 1024));
    }
    client.response("PUT").unwrap();
    assert_eq!((origin.last().body_length, origin.last().body_is_pattern), (LENGTH, true));
}

#[test]
fn load_is_counted_by_side_and_status() {
    let origin = Origin::plain("old");
    origin.script(|request| (request.header("x-number") == Some("7")).then(|| Answer::status(503)));
    let load = Load::new(origin.address(), HOST).fields(|number| vec![("X-Number".into(), number.to_string())]);

    let tally = load.run(200);

    assert_eq!((tally.total(), tally.failed, tally.side("old")), (200, 0, 200));
    assert_eq!((tally.statuses[&200], tally.statuses[&503]), (199, 1));
    assert_eq!(origin.connections(), 4);
}

#[test]
fn nginx_as_the_new_cluster_refuses_other_names() {
    if !available(&["nginx"]) {
        return;
    }
    let authority = Authority::new("new cluster");
    let (old, mut new) = (Nginx::old(), Nginx::new("a.new.test", &authority.server(&["a.new.test"])));
    let trust = authority.trusting(&[]);

    assert_eq!(get(old.address(), HOST, "/").text(), "side=old host=a.test\n");
    let mut client = Client::tls(new.address(), "a.new.test", &trust);
    assert_eq!(client.get("a.new.test", "/").text(), "side=new host=a.new.test sni=a.new.test\n");
    assert_eq!(client.get(HOST, "/").status, 421);
    assert!(Client::try_tls(new.address(), HOST, &trust).is_err());

    new.kill();
    assert!(Client::try_plain(new.address(), None).is_err());
    new.restart();
    assert_eq!(Client::tls(new.address(), "a.new.test", &trust).get("a.new.test", "/").side(), Some("new"));
}

#[test]
fn a_configmap_volume_is_swapped_as_the_kubelet_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = ConfigFile::kubelet(folder.path(), "one");
    let read = || std::fs::read_to_string(file.path()).unwrap();
    assert_eq!(read(), "one");

    file.swap("two");

    assert_eq!(read(), "two");
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!((names.len(), names[1].as_str(), names[2].as_str()), (3, "..data", "migration.yaml"), "{names:?}");
}

#[test]
fn metrics_and_access_lines_are_taken_apart() {
    let metrics = Metrics::parse(
        "# HELP x y\nmigration_proxy_requests_total{service=\"a\",target=\"old\"} 3\n\
         migration_proxy_requests_total{service=\"a\",target=\"new\"} 4\nmigration_proxy_config_generation 2\n",
    );
    assert_eq!(metrics.sum("requests_total", &[("service", "a")]), 7.0);
    assert_eq!(metrics.sum("requests_total", &[("target", "new"), ("service", "a")]), 4.0);
    assert_eq!((metrics.sum("config_generation", &[]), metrics.has("nothing")), (2.0, false));

    let line = AccessLine(
        "127.0.0.1 - - [01/Jan/2024:12:00:00 +0000] \"GET /a HTTP/1.1\" 200 12 backend=\"old_backend\" \
         upstream_response_time=\"0.002, 0.123\" tries=2 host=\"a.test\""
            .into(),
    );
    assert_eq!((line.status(), line.field("backend"), line.field("tries")), (200, "old_backend", "2"));
    assert_eq!(line.field("upstream_response_time"), "0.002, 0.123");
}

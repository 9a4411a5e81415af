//! TLS on both sides: certificates that must be refused, certificates by name, protocols, sessions and key exchange.

use std::fs;
use std::sync::Arc;

use rustls::client::Tls12Resumption;
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, ProtocolVersion, SupportedProtocolVersion};

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::client::{Client, Http2};
use crate::support::origin::Origin;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

#[test]
fn a_certificate_that_does_not_verify_is_a_failed_try() {
    let clusters = Clusters::new();
    let other = Authority::new("somebody else");
    let authority = &clusters.authority;
    let bad = [
        ("expired", authority.expired(&["*.new.test"])),
        ("not yet valid", authority.not_yet_valid(&["*.new.test"])),
        ("another name", authority.server(&["other.test"])),
        ("another authority", other.server(&["*.new.test"])),
    ];

    for (what, identity) in bad {
        let new = Origin::tls("new", identity.server_config(&[], None));
        let service = |name| clusters.service(name).new_backend(new.address()).percentage(100);
        let proxy = Proxy::start(&Setup::new([service("a"), service("alone").with("fallback: {enabled: false}")]));

        let posted = proxy.client().post(HOST, "/posted", b"once");
        let alone = proxy.get("alone.old.test", "/alone");

        assert_eq!(
            (posted.status, posted.side()),
            (200, Some("old")),
            "{what}: nothing was sent, so even a POST moves"
        );
        assert_eq!(alone.status, 502, "{what}");
        assert_eq!(proxy.access_line("/posted").field("reason"), "fallback", "{what}");
        assert_eq!(proxy.metrics().sum("fallbacks_total", &[("service", "a"), ("cause", "tls")]), 1.0, "{what}");
        assert_eq!(new.requests(), 0, "{what}");
    }
}

#[test]
fn verification_can_be_switched_off_and_is_shown_then() {
    let clusters = Clusters::new();
    let other = Authority::new("somebody else").server(&["wrong.test"]);
    let new = Origin::tls("new", other.server_config(&[], None));
    let service = clusters.service("a").new_backend(new.address()).new_options(&["verify: off"]).percentage(100);
    let proxy = Proxy::start(&Setup::new([service]));

    assert_eq!(proxy.get(HOST, "/").side(), Some("new"));
    assert_eq!(proxy.metrics().sum("tls_verify_off", &[("service", "a")]), 1.0);
    let told = "a: new.verify is off, its certificates are not checked";
    assert_eq!(proxy.status()["degraded"], serde_json::json!([told]));
}

#[test]
fn listeners_choose_certificates_by_name() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let first = public.server(&["a.old.test"]);
    let second = public.server(&["*.wild.test", "b.old.test"]);
    let setup = Setup::new([clusters.service("a"), clusters.service("b").old_host("[b.old.test, \"*.wild.test\"]")]);
    let proxy = Proxy::start(&setup.https(&first).https(&second));
    let address = proxy.addresses.https.unwrap();
    let trust = public.trusting(&["http/1.1"]);

    for (name, identity) in
        [("a.old.test", &first), ("b.old.test", &second), ("x.wild.test", &second), ("A.OLD.test", &first)]
    {
        let mut client = Client::tls(address, name, &trust);
        assert_eq!(client.server_certificate().as_ref(), Some(identity.leaf()), "{name}");
        assert_eq!(client.get(name, "/").side(), Some("old"), "{name}");
        assert_eq!(clusters.old.last().header("x-forwarded-proto"), Some("https"));
    }
    assert!(Client::try_tls(address, "nobody.test", &trust).is_err(), "the first certificate does not cover it");
}

#[test]
fn a_host_outside_of_the_certificate_is_misdirected() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let setup = Setup::new([clusters.service("a"), clusters.service("b")]);
    let proxy = Proxy::start(&setup.https(&public.server(&["a.old.test", "unknown.test"])));
    let mut client = Client::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&[]));

    assert_eq!(client.get(HOST, "/").status, 200);
    assert_eq!(client.get("b.old.test", "/").status, 421, "known, but not covered");
    assert_eq!(client.get("unknown.test", "/").status, 404, "covered, but unknown");

    let two = Http2::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&["h2"]));
    for (host, status) in [(HOST, 200), ("b.old.test", 421), ("unknown.test", 404), (HOST, 200)] {
        assert_eq!(two.get(&format!("https://{host}/")).status, status, "{host} over HTTP/2");
    }
    assert_eq!(proxy.metrics().sum("rejected_total", &[("cause", "host")]), 4.0);
}

#[test]
fn protocols_are_agreed_by_alpn() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]).https(&public.server(&[HOST])));
    let address = proxy.addresses.https.unwrap();

    for (offer, agreed) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let client = Client::tls(address, HOST, &public.trusting(offer));
        assert_eq!(client.alpn().as_deref(), agreed, "{offer:?}");
    }
    assert!(Client::try_tls(address, HOST, &public.trusting(&["spdy/3"])).is_err());
}

#[test]
fn http2_clients_reach_http1_origins_side_by_side() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let setup = Setup::new([clusters.service("a").percentage(50)]).https(&public.server(&[HOST]));
    let proxy = Proxy::start(&setup);
    let client = Http2::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&["h2"]));
    let request = |number: usize| {
        http::Request::post(format!("https://{HOST}/x?{number}"))
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(format!("body {number}").into())
            .unwrap()
    };

    let results = client.exchanges((0..100).map(request).collect());

    for result in results {
        let response = result.unwrap();
        assert!((response.status, response.version.as_str()) == (200, "HTTP/2.0") && response.side().is_some());
    }
    assert!(clusters.old.requests() > 10 && clusters.new.requests() > 10);
    let seen = clusters.old.last();
    assert_eq!(
        (seen.all("cookie"), seen.host(), seen.header("x-forwarded-proto")),
        (vec!["a=1; b=2"], Some(HOST), Some("https"))
    );
    eventually(PATIENCE, "the lines name the protocol", || {
        proxy.access_lines().iter().any(|line| line.contains("HTTP/2.0\""))
    });
}

#[test]
fn http2_in_clear_is_understood_on_the_plain_listener() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));

    let response = Http2::plain(proxy.addresses.http).get(&format!("http://{HOST}/"));

    assert_eq!((response.status, response.side()), (200, Some("old")));
}

#[test]
fn http2_towards_new_where_it_is_asked_for() {
    let clusters = Clusters::with_alpn(&["h2", "http/1.1"]);
    let proxy = Proxy::start(&Setup::new([
        clusters.service("a").percentage(100).new_option("http_version: 2"),
        clusters.service("b").percentage(100),
    ]));
    let mut client = proxy.client();

    for (host, version) in [(HOST, "HTTP/2.0"), ("b.old.test", "HTTP/1.1")] {
        assert_eq!(client.post(host, "/x", b"hello").side(), Some("new"));
        let seen = clusters.new.last();
        assert_eq!((seen.version.as_str(), seen.body.as_slice()), (version, &b"hello"[..]));
        assert_eq!(seen.host(), seen.sni.as_deref());
    }
}

#[test]
fn versions_below_the_minimum_are_refused_on_both_sides() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let server = clusters.authority.server(&["*.new.test"]);
    let origin = |versions: &[&'static SupportedProtocolVersion]| {
        Origin::tls("new", server.server_config_of(&[], None, versions))
    };
    let (older, newer) = (origin(&[&TLS12]), origin(&[&TLS13]));

    for (minimum, refuses_older) in [("1.2", false), ("1.3", true)] {
        let option = format!("min_version: \"{minimum}\"");
        let service = |name: &str, origin: &Origin| {
            clusters.service(name).new_backend(origin.address()).percentage(100).new_option(&option)
        };
        let setup = Setup::new([service("a", &older), service("b", &newer)]).https(&public.server(&[HOST]));
        let proxy = Proxy::start(&setup.listen_tls(&option));
        let address = proxy.addresses.https.unwrap();

        let shaken = |version| Client::try_tls(address, HOST, &public.client_config(&[], None, &[version]));
        assert_eq!(shaken(&TLS12).is_err(), refuses_older, "{minimum}");
        assert_eq!(shaken(&TLS13).unwrap().tls_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(proxy.get(HOST, "/").side(), Some(if refuses_older { "old" } else { "new" }), "{minimum}");
        assert_eq!(proxy.get("b.old.test", "/").side(), Some("new"));
        let refused = proxy.metrics().sum("rejected_total", &[("cause", "tls")]);
        assert_eq!(refused, f64::from(u8::from(refuses_older)), "{minimum}");
    }
}

#[test]
fn clients_resume_their_sessions() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]).https(&public.server(&[HOST])));
    let address = proxy.addresses.https.unwrap();

    for (what, version, by_id) in [("1.3", &TLS13, false), ("1.2, ticket", &TLS12, false), ("1.2, id", &TLS12, true)] {
        let mut config = Arc::unwrap_or_clone(public.client_config(&["http/1.1"], None, &[version]));
        if by_id {
            config.resumption = config.resumption.tls12_resumption(Tls12Resumption::SessionIdOnly);
        }
        let config = Arc::new(config);
        let resumed: Vec<bool> = (0..3)
            .map(|_| {
                let mut client = Client::tls(address, HOST, &config);
                // With the answer comes the ticket of TLS 1.3.
                assert_eq!(client.get(HOST, "/").status, 200);
                client.handshake_result().unwrap().is_resumed
            })
            .collect();
        assert_eq!(resumed, [false, true, true], "{what}");
    }
}

#[test]
fn sessions_with_upstreams_are_resumed_and_belong_to_one_name() {
    let clusters = Clusters::new();
    let identity = clusters.authority.server(&["*.new.test"]);
    let with_tickets = |versions: &[&'static SupportedProtocolVersion]| {
        let mut config = Arc::unwrap_or_clone(identity.server_config_of(&[], None, versions));
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        Arc::new(config)
    };

    for (what, config) in [
        ("1.3", identity.server_config_of(&[], None, &[&TLS13])),
        ("1.3, without state", with_tickets(&[&TLS13])),
        ("1.2, id", identity.server_config_of(&[], None, &[&TLS12])),
        ("1.2, ticket", with_tickets(&[&TLS12])),
    ] {
        let new = Origin::tls("new", config);
        new.close_after(1);
        let service = |name| clusters.service(name).new_backend(new.address()).percentage(100);
        let proxy = Proxy::start(&Setup::new([service("a"), service("b")]));

        let resumed: Vec<bool> = [HOST, HOST, HOST, "b.old.test", "b.old.test"]
            .map(|host| {
                assert_eq!(proxy.get(host, "/").side(), Some("new"), "{what}");
                new.last().handshake.unwrap().is_resumed
            })
            .into();

        assert_eq!(resumed, [false, true, true, false, true], "{what}");
    }
}

#[test]
fn keys_are_exchanged_safe_from_quantum_computers_where_the_peer_can() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let setup = Setup::new([clusters.service("a").percentage(100)]).https(&public.server(&[HOST]));
    let proxy = Proxy::start(&setup);
    let address = proxy.addresses.https.unwrap();

    let mut client = Client::tls(address, HOST, &public.trusting(&["http/1.1"]));
    assert_eq!(client.get(HOST, "/").side(), Some("new"));

    assert_eq!(client.handshake_result().unwrap().group, Some(NamedGroup::X25519MLKEM768));
    assert_eq!(clusters.new.last().handshake.unwrap().group, Some(NamedGroup::X25519MLKEM768));
    let classical = Client::tls(address, HOST, &public.client_config(&[], None, &[&TLS12]));
    assert_eq!(classical.handshake_result().unwrap().group, Some(NamedGroup::X25519), "others are served too");
}

#[test]
fn a_renewed_certificate_is_shown_without_closing_anything() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let identity = public.server(&[HOST]);
    let renewed = public.server(&[HOST]);
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]).https(&identity));
    let (address, trust) = (proxy.addresses.https.unwrap(), public.trusting(&[]));
    let mut kept = Client::tls(address, HOST, &trust);
    kept.get(HOST, "/");

    fs::copy(&renewed.key, &identity.key).unwrap();
    fs::copy(&renewed.cert, &identity.cert).unwrap();

    eventually(PATIENCE, "the new certificate is shown", || {
        Client::try_tls(address, HOST, &trust)
            .is_ok_and(|client| client.server_certificate().as_ref() == Some(renewed.leaf()))
    });
    assert_eq!(kept.get(HOST, "/").side(), Some("old"));
}

#[test]
fn handshakes_that_come_to_nothing_are_counted_and_harm_nobody() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let setup =
        Setup::new([clusters.service("a")]).https(&public.server(&[HOST])).listen("timeouts: {tls_handshake: 500ms}");
    let proxy = Proxy::start(&setup);
    let address = proxy.addresses.https.unwrap();
    let mut kept = Client::tls(address, HOST, &public.trusting(&[]));
    let count = |cause| proxy.metrics().sum("rejected_total", &[("cause", cause)]);

    let garbage: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: a.old.test\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x16\x03\x01\xff\xff\x01\x00\xff\xff",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
        &[0; 1024],
    ];
    for bytes in garbage {
        let mut client = Client::plain(address);
        client.send(bytes);
        let answer = client.rest().unwrap_or_default();
        assert!(answer.is_empty() || answer[0] == 21, "an alert at most: {answer:?}");
    }
    eventually(PATIENCE, "each is counted", || count("tls") == garbage.len() as f64);

    let mut half = Client::plain(address);
    half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc");
    assert!(half.is_closed_within(PATIENCE));
    eventually(PATIENCE, "it was too slow", || count("timeout") == 1.0);
    assert!(Client::plain(address).is_closed_within(PATIENCE), "silence ends too");
    drop(Client::plain(address));

    assert_eq!(kept.get(HOST, "/").status, 200);
    assert_eq!(Client::tls(address, HOST, &public.trusting(&[])).get(HOST, "/").status, 200);
    assert_eq!((count("tls"), count("timeout")), (garbage.len() as f64, 1.0), "who says nothing is not counted");
}

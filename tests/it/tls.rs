//! TLS on both sides: certificates that must be refused, certificates by name, protocols, and client certificates.

use std::fs;

use rustls::ProtocolVersion;
use rustls::version::{TLS12, TLS13};

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
}

#[test]
fn the_new_cluster_may_ask_for_our_certificate() {
    let clusters = Clusters::new();
    let clients = Authority::new("clients");
    let identity = clients.client("migration-proxy");
    let server = clusters.authority.server(&["*.new.test"]);
    let new = Origin::tls("new", server.server_config(&[], Some(&clients)));
    let service = |name| clusters.service(name).new_backend(new.address()).percentage(100);
    let (cert, key) = (identity.cert.display(), identity.key.display());
    let with = service("a").new_option(&format!("client_cert: {cert}, client_key: {key}"));
    let proxy = Proxy::start(&Setup::new([with, service("without")]));

    assert_eq!(proxy.get(HOST, "/").side(), Some("new"));
    assert_eq!(new.last().client_certificate.as_deref(), Some(identity.leaf().as_ref()));
    assert_eq!(proxy.get("without.old.test", "/").side(), Some("old"));
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
fn old_versions_and_strangers_are_refused() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let clients = Authority::new("clients");
    let known = clients.client("known");
    let stranger = Authority::new("others").client("stranger");
    let setup = Setup::new([clusters.service("a")])
        .https(&public.server(&[HOST]))
        .listen_tls("min_version: \"1.3\"")
        .listen_tls(&format!("client_ca: {}", clients.file().display()));
    let proxy = Proxy::start(&setup);
    let address = proxy.addresses.https.unwrap();
    let ask = |identity, versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut client = Client::try_tls(address, HOST, &public.client_config(&[], identity, versions)).ok()?;
        assert_eq!(client.tls_version(), Some(ProtocolVersion::TLSv1_3));
        client.exchange("GET", HOST, "/", &[], b"").ok().map(|response| response.status)
    };

    assert_eq!(ask(Some(&known), &[&TLS13]), Some(200));
    assert_eq!(ask(Some(&known), &[&TLS12]), None, "too old");
    assert_eq!(ask(None, &[&TLS13]), None, "no certificate");
    assert_eq!(ask(Some(&stranger), &[&TLS13]), None, "somebody else's certificate");
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
fn plain_bytes_on_the_tls_port_and_silence_end_soon() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let setup =
        Setup::new([clusters.service("a")]).https(&public.server(&[HOST])).listen("timeouts: {tls_handshake: 200ms}");
    let proxy = Proxy::start(&setup);
    let address = proxy.addresses.https.unwrap();

    let mut plain = Client::plain(address);
    plain.send("GET / HTTP/1.1\r\nHost: a.old.test\r\n\r\n");
    assert!(plain.rest().is_ok_and(|bytes| !bytes.starts_with(b"HTTP/1.1 200")), "an alert at most");
    assert!(Client::plain(address).is_closed_within(PATIENCE));
    assert_eq!(Client::tls(address, HOST, &public.trusting(&[])).get(HOST, "/").status, 200);
}

//! `mode: redirect` on the wire: where clients are sent, with which code, and what is never redirected.

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::client::Http2;
use crate::support::setup::{Clusters, Service, Setup};

const HOST: &str = "a.old.test";

fn redirecting(clusters: &Clusters, percentage: u8, more: &str) -> Service {
    clusters.service("a").percentage(percentage).with("mode: redirect").with(more)
}

#[test]
fn every_code_keeps_path_and_query_for_every_method() {
    let clusters = Clusters::new();

    for (more, code) in [
        ("", 307),
        ("redirect: {code: 301}", 301),
        ("redirect: {code: 302}", 302),
        ("redirect: {code: 303}", 303),
        ("redirect: {code: 307}", 307),
        ("redirect: {code: 308}", 308),
    ] {
        let proxy = Proxy::start(&Setup::new([redirecting(&clusters, 100, more)]));
        for (method, target, location) in [
            ("GET", "/", "https://a.new.test/"),
            ("GET", "/x/y?z=1&u=http%3A%2F%2Fb", "https://a.new.test/x/y?z=1&u=http%3A%2F%2Fb"),
            ("GET", "//a%20b/../c?", "https://a.new.test//a%20b/../c?"),
            ("GET", "http://a.old.test/absolute?x", "https://a.new.test/absolute?x"),
            ("HEAD", "/head", "https://a.new.test/head"),
            ("POST", "/form?x", "https://a.new.test/form?x"),
            ("DELETE", "/thing", "https://a.new.test/thing"),
        ] {
            let answer = proxy.client().exchange(method, HOST, target, &[], b"").unwrap();
            assert_eq!((answer.status, answer.header("location")), (code, Some(location)), "{more} {method} {target}");
            assert_eq!(answer.text().is_empty(), method == "HEAD", "{more} {method}");
        }
        assert_eq!(proxy.metrics().sum("requests_total", &[("target", "none"), ("reason", "redirect")]), 7.0);
    }
    assert_eq!(clusters.old.requests() + clusters.new.requests(), 0);
}

#[test]
fn targets_without_a_path_are_malformed() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([redirecting(&clusters, 100, "")]));

    for (method, target) in [("OPTIONS", "*"), ("CONNECT", "a.old.test:443")] {
        let mut client = proxy.client();
        let host = if method == "CONNECT" { target } else { HOST };
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));

        let answer = client.response(method).unwrap();

        assert_eq!((answer.status, answer.header("location")), (400, None), "{method} {target}");
    }
    assert_eq!(proxy.metrics().sum("rejected_total", &[("cause", "malformed")]), 2.0);
}

#[test]
fn what_old_would_get_is_forwarded() {
    let clusters = Clusters::new();
    let more = "paths: [{prefix: /in/}]
canary: {header_rules: [{header: X-Pin, value: old, target: old_cluster}, {header: X-Pin, value: new, target: new_cluster}]}";
    let none = Proxy::start(&Setup::new([redirecting(&clusters, 0, more)]));
    let all = Proxy::start(&Setup::new([redirecting(&clusters, 100, more)]));

    for (proxy, path, pin, expected) in [
        (&none, "/in/", "", "old"),
        (&none, "/in/", "new", "307"),
        (&all, "/in/", "old", "old"),
        (&all, "/out", "new", "old"),
        (&all, "/in/", "", "307"),
    ] {
        assert_eq!(proxy.side(HOST, path, &[("X-Pin", pin)]), expected, "{path} {pin}");
    }
    assert_eq!(clusters.new.connections(), 0, "new is not even connected to");
}

#[test]
fn the_port_is_told_only_where_new_names_itself_with_another_one() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");

    for (backend, location) in [
        ("a.new.test:443", "https://a.new.test/x?y"),
        ("a.new.test:8443", "https://a.new.test:8443/x?y"),
        ("192.0.2.1:8443", "https://a.new.test/x?y"),
        ("other.new.test:8443", "https://a.new.test/x?y"),
    ] {
        let setup = Setup::new([redirecting(&clusters, 100, "").new_backend(backend)]).https(&public.server(&[HOST]));
        let proxy = Proxy::start(&setup);

        let one = proxy.get(HOST, "/x?y");
        let two = Http2::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&["h2"]))
            .get(&format!("https://{HOST}/x?y"));

        for answer in [one, two] {
            assert_eq!((answer.status, answer.header("location")), (307, Some(location)), "{backend}");
        }
    }
}

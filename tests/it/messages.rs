//! What is said of certificates that do not hold, and to whom: the log, `/status` and trusted clients read what the
//! certificate held, others nothing.

use crate::support::certs::{Authority, Identity};
use crate::support::cli::Server;
use crate::support::client::Client;
use crate::support::origin::Origin;
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

/// What is said of a certificate, and the certificate.
fn bad(authority: &Authority, other: &Authority) -> [(&'static str, Identity, Vec<String>); 3] {
    let file = authority.file().display().to_string();
    let said = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    [
        (
            "wrong-name",
            authority.server(&["other.test", "*.more.test"]),
            said(&["wrong name", "is for other.test, *.more.test, not for wrong-name.new.test"]),
        ),
        (
            "unknown",
            other.server(&["*.new.test"]),
            said(&[
                "unknown issuer",
                "CN=*.new.test",
                "for *.new.test",
                "is signed by",
                "CN=somebody else",
                &format!("is not in ca_file {file}"),
                "CN=new cluster",
            ]),
        ),
        (
            "expired",
            authority.expired(&["*.new.test"]),
            said(&["expired", "CN=*.new.test", "ended 2020-02-01T00:00:00Z"]),
        ),
    ]
}

#[test]
fn a_bad_certificate_is_explained_in_the_log_the_status_and_to_trusted_clients_only() {
    let clusters = Clusters::new();
    let other = Authority::new("somebody else");
    let bad = bad(&clusters.authority, &other);
    let origins: Vec<Origin> =
        bad.iter().map(|(_, identity, _)| Origin::tls("new", identity.server_config(&[], None))).collect();
    let services: Vec<Service> = bad
        .iter()
        .zip(&origins)
        .map(|((name, ..), origin)| {
            clusters.service(name).new_backend(origin.address()).percentage(100).with(
                "fallback: {enabled: false}\nhealth_check: {enabled: true, interval: 100ms, unhealthy_threshold: 1}",
            )
        })
        .collect();
    let server = Server::start(&Setup::new(services).listen("trusted_proxies: [127.0.0.2/32]"));

    for (name, _, said) in &bad {
        let host = format!("{name}.old.test");
        let ask = |source: &str| Client::plain_from(server.addresses.http, source).get(&host, "/");
        let (stranger, trusted) = (ask("127.0.0.3"), ask("127.0.0.2"));

        assert_eq!((stranger.status, trusted.status), (502, 502), "{name}");
        assert!(stranger.text().starts_with("502 Bad Gateway: the upstream could not answer (request "), "{name}");
        assert!(trusted.text().contains(&said[0]), "{name}: {}", trusted.text());
        let parts: Vec<&str> = ["WARN", name, "no connection to the upstream"]
            .into_iter()
            .chain(said.iter().map(String::as_str))
            .collect();
        server.wait_for_line(&parts);
        eventually(PATIENCE, "the status says it", || {
            let status = server.status();
            let lines = status["degraded"].as_array().unwrap();
            let start = format!("{name}: new is down: TLS: {}", said[0]);
            lines
                .iter()
                .filter_map(|line| line.as_str())
                .any(|line| line.starts_with(&start) && said.iter().all(|part| line.contains(part)))
        });
        for _ in 0..20 {
            assert_eq!(ask("127.0.0.3").status, 502);
        }
        let lines = server.stderr();
        let complaints =
            lines.lines().filter(|line| line.contains("no connection to") && line.contains(&host_of(name)));
        assert_eq!(complaints.count(), 1, "not a line for each request: {lines}");
    }
}

/// How a line names a service.
fn host_of(name: &str) -> String {
    format!("service={name} ")
}

#[test]
fn garbage_at_the_edge_is_logged_at_debug_only() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");

    for level in ["info", "debug"] {
        let setup = Setup::new([clusters.service("a")])
            .https(&public.server(&["a.old.test"]))
            .log(&format!("level: {level}"))
            .listen("proxy_protocol: v1v2");
        let server = Server::start(&setup);
        for (address, bytes) in [
            (server.addresses.https.unwrap(), &b"GET / HTTP/1.1\r\n\r\n"[..]),
            (server.addresses.http, b"PROXY nonsense\r\n"),
        ] {
            for _ in 0..20 {
                let mut client = Client::plain(address);
                client.send(bytes);
                let _ = client.rest();
            }
        }

        let count = |cause| server.metrics().sum("rejected_total", &[("cause", cause)]);
        eventually(PATIENCE, "all of it is counted", || (count("tls"), count("proxy")) == (20.0, 20.0));
        if level == "debug" {
            server.wait_for_line(&["DEBUG", "connection ended before a request", "peer=127.0.0.1:", "error="]);
        } else {
            let text = server.stderr();
            assert!(!text.contains("connection ended"), "{text}");
            assert!(text.lines().filter(|line| line.contains("PROXY headers")).count() <= 1, "{text}");
        }
    }
}

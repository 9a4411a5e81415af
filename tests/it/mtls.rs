//! Certificates of clients: ours towards new, as the Secret has it now, and those that we ask of clients at the edge.

use std::fs;

use rustls::version::{TLS12, TLS13};

use crate::support::app::Proxy;
use crate::support::certs::{Authority, Identity};
use crate::support::client::Client;
use crate::support::origin::Origin;
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

/// A new cluster that asks for a certificate of `clients`.
struct Scene {
    clusters: Clusters,
    clients: Authority,
    new: Origin,
}

impl Scene {
    fn new() -> Self {
        Self::of(rustls::ALL_VERSIONS)
    }

    fn of(versions: &[&'static rustls::SupportedProtocolVersion]) -> Self {
        let (clusters, clients) = (Clusters::new(), Authority::new("clients"));
        let server = clusters.authority.server(&["*.new.test"]);
        let new = Origin::tls("new", server.server_config_of(&["h2", "http/1.1"], Some(&clients), versions));
        Self { clusters, clients, new }
    }

    fn service(&self, name: &str, identity: Option<&Identity>) -> Service {
        let service = self.clusters.service(name).new_backend(self.new.address()).percentage(100);
        match identity {
            None => service,
            Some(Identity { cert, key, .. }) => {
                service.new_option(&format!("client_cert: {}, client_key: {}", cert.display(), key.display()))
            }
        }
    }
}

#[test]
fn new_gets_the_configured_certificate_and_refuses_others() {
    for (version, versions) in [("1.2", [&TLS12]), ("1.3", [&TLS13])] {
        let scene = Scene::of(&versions);
        let right = scene.clients.client("migration-proxy");
        let others = Authority::new("others");
        let wrong = others.client("migration-proxy");
        let check = "health_check: {enabled: true, interval: 100ms, unhealthy_threshold: 1}";
        let proxy = Proxy::start(&Setup::new([
            scene.service("a", Some(&right)),
            scene.service("wrong", Some(&wrong)),
            scene.service("without", None),
            scene.service("right2", Some(&right)).new_option("http_version: 2"),
            scene.service("wrong2", Some(&wrong)).new_option("http_version: 2"),
            scene.service("checked", None).with(check),
            scene.service("checked-wrong", Some(&wrong)).with(check),
        ]));

        assert_eq!(proxy.get(HOST, "/").side(), Some("new"), "{version}");
        assert_eq!(scene.new.last().client_certificate.as_deref(), Some(right.leaf().as_ref()), "{version}");
        assert_eq!(proxy.get("right2.old.test", "/").side(), Some("new"), "{version}");
        for name in ["wrong", "without", "wrong2"] {
            let host = format!("{name}.old.test");
            assert_eq!(proxy.get(&host, "/").side(), Some("old"), "{version} {name}");
            // A server that closes over the bytes of our request may take its alert along.
            let count = |cause| proxy.metrics().sum("fallbacks_total", &[("service", name), ("cause", cause)]);
            assert_eq!((count("tls") + count("reset"), count("connect")), (1.0, 0.0), "{version} {name}");
        }
        assert_eq!(scene.new.requests(), 2, "{version}");
        let degraded = || proxy.status()["degraded"].to_string();
        eventually(PATIENCE, "the checks say why", || {
            let text = degraded();
            // TLS 1.2 servers have no word for a certificate that is missing.
            let without = if version == "1.3" {
                "checked: new is down: TLS: a client certificate is demanded"
            } else {
                "checked: new is down: TLS: "
            };
            text.contains(without)
                && text.contains("checked-wrong: new is down: TLS: our client certificate is refused")
        });
    }
}

#[test]
fn a_renewed_secret_is_shown_to_new_from_the_next_connection_on() {
    let scene = Scene::new();
    let identity = scene.clients.client("migration-proxy");
    let renewed = scene.clients.client("migration-proxy");
    let proxy = Proxy::start(&Setup::new([scene.service("a", Some(&identity))]));
    let shown = || {
        let answer = proxy.get(HOST, "/");
        assert_eq!(answer.side(), Some("new"), "no request fails over it");
        scene.new.last().client_certificate
    };
    assert_eq!(shown().as_deref(), Some(identity.leaf().as_ref()));

    // Half of it is no pair: what was loaded before goes on.
    fs::copy(&renewed.key, &identity.key).unwrap();
    let rejected = || proxy.metrics().sum("config_reloads_total", &[("result", "rejected")]) >= 1.0;
    eventually(PATIENCE, "the pair does not match", rejected);
    assert_eq!(shown().as_deref(), Some(identity.leaf().as_ref()));
    fs::copy(&renewed.cert, &identity.cert).unwrap();

    eventually(PATIENCE, "the new one is shown", || shown().as_deref() == Some(renewed.leaf().as_ref()));
    eventually(PATIENCE, "no connection is left that knows the former", || scene.new.open_connections() == 1);
}

#[test]
fn the_edge_lets_in_only_clients_of_its_authority() {
    let clusters = Clusters::new();
    let (public, clients) = (Authority::new("old hosts"), Authority::new("clients"));
    let known = clients.client("known");
    let stranger = Authority::new("clients").client("known");
    let over = clients.expired(&["known"]);
    let setup = Setup::new([clusters.service("a")])
        .https(&public.server(&[HOST]))
        .listen_tls(&format!("client_ca: {}", clients.file().display()));
    let proxy = Proxy::start(&setup);
    let address = proxy.addresses.https.unwrap();
    let mut refused = 0.0;

    for (what, identity, is_let_in) in [
        ("of the authority", Some(&known), true),
        ("none", None, false),
        ("of an authority of that name", Some(&stranger), false),
        ("expired", Some(&over), false),
    ] {
        for version in [&TLS12, &TLS13] {
            let status = Client::try_tls(address, HOST, &public.client_config(&[], identity, &[version]))
                .ok()
                .and_then(|mut client| client.exchange("GET", HOST, "/", &[], b"").ok())
                .map(|answer| answer.status);
            assert_eq!(status, is_let_in.then_some(200), "{what} {version:?}");
            refused += f64::from(u8::from(!is_let_in));
        }
    }
    let counted = || proxy.metrics().sum("rejected_total", &[("cause", "tls")]) == refused;
    eventually(PATIENCE, "each one is counted", counted);
    assert_eq!(clusters.old.requests(), 2);
}

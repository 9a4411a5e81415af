//! TLS that the proxy does not end: relayed by server name to the cluster that the client's address decides.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::ClientConfig;

use crate::support::app::Proxy;
use crate::support::certs::{Authority, Identity};
use crate::support::cli::Server;
use crate::support::client::{Client, Http2};
use crate::support::origin::{Origin, refused_port};
use crate::support::reach::Reach;
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually_some};

const HOST: &str = "a.old.test";

/// Two clusters that end TLS themselves, and a listener that does so for the other hosts.
struct Scene {
    clusters: Clusters,
    public: Authority,
    ours: Identity,
    theirs: [Identity; 2],
    old: Origin,
    new: Origin,
}

impl Scene {
    fn new() -> Self {
        let public = Authority::new("old hosts");
        let theirs = [public.server(&[HOST]), public.server(&[HOST])];
        let origin = |side, index: usize| Origin::tls(side, theirs[index].server_config(&["h2", "http/1.1"], None));
        let (old, new) = (origin("old", 0), origin("new", 1));
        Self { clusters: Clusters::new(), ours: public.server(&["*.old.test"]), public, theirs, old, new }
    }

    fn service(&self) -> Service {
        let service = self.clusters.service("a").old_backend(self.old.address()).new_backend(self.new.address());
        service.with("mode: passthrough")
    }

    /// That service and an ordinary one.
    fn setup(&self, service: Service) -> Setup {
        Setup::new([service, self.clusters.service("b")]).https(&self.ours)
    }

    fn trust(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        self.public.trusting(alpn)
    }

    fn connect(&self, proxy: &Proxy) -> Client {
        Client::tls(https(proxy), HOST, &self.trust(&["http/1.1"]))
    }
}

fn https(proxy: &Reach) -> SocketAddr {
    proxy.addresses.https.unwrap()
}

#[track_caller]
fn last_line(proxy: &Reach, count: usize) -> String {
    eventually_some(PATIENCE, "a line for each connection", || {
        let lines: Vec<String> =
            proxy.access_lines().into_iter().filter(|line| line.contains(r#"service="a""#)).collect();
        assert!(lines.len() <= count, "{lines:?}");
        if lines.len() == count { lines.last().cloned() } else { None }
    })
}

#[test]
fn both_protocols_pass_untouched_and_each_connection_has_one_line() {
    let scene = Scene::new();

    for (percentage, side, reason) in [(0, "old", "zero"), (100, "new", "hundred")] {
        let proxy = Proxy::start(&scene.setup(scene.service().percentage(percentage)));
        let (origin, certificate) =
            if side == "old" { (&scene.old, &scene.theirs[0]) } else { (&scene.new, &scene.theirs[1]) };

        let mut one = scene.connect(&proxy);
        assert_eq!(one.server_certificate().as_ref(), Some(certificate.leaf()), "the cluster's own");
        for _ in 0..2 {
            assert_eq!(one.get(HOST, "/").side(), Some(side));
        }
        let seen = origin.last();
        assert_eq!((seen.sni.as_deref(), seen.header("x-forwarded-for")), (Some(HOST), None), "not a byte is ours");
        drop(one);
        let line = last_line(&proxy, 1);
        let two = Http2::tls(https(&proxy), HOST, &scene.trust(&["h2"]));
        assert_eq!(two.get(&format!("https://{HOST}/")).side(), Some(side));
        drop(two);
        last_line(&proxy, 2);

        assert!(line.contains(r#"] "-" 000 "#), "{line}");
        for part in [
            format!(r#"backend="{side}_backend""#),
            format!(r#"reason="{reason}""#),
            format!(r#"upstream_addr="{}""#, origin.address()),
            format!(r#"host="{HOST}""#),
            "upstream_status=- tries=1".to_owned(),
        ] {
            assert!(line.contains(&part), "{part} in {line}");
        }
        let metrics = proxy.metrics();
        let labels = [("service", "a"), ("target", side)];
        assert_eq!(metrics.sum("requests_total", &labels), 2.0);
        assert!(metrics.sum("request_bytes_total", &labels) > 500.0);
        assert!(metrics.sum("response_bytes_total", &labels) > 500.0);
        assert_eq!(metrics.sum("upstream_connections", &labels), 0.0, "nothing is kept");
    }
}

#[test]
fn other_names_on_the_listener_are_ended_here() {
    let scene = Scene::new();
    let proxy = Proxy::start(&scene.setup(scene.service()));
    let trust = scene.trust(&["http/1.1"]);

    let mut other = Client::tls(https(&proxy), "b.old.test", &trust);
    let unknown = Client::tls(https(&proxy), "unknown.old.test", &trust).get("unknown.old.test", "/");

    assert_eq!(other.server_certificate().as_ref(), Some(scene.ours.leaf()));
    assert_eq!(other.get("b.old.test", "/").side(), Some("old"));
    assert_eq!(unknown.status, 404);
    assert_eq!(other.get(HOST, "/").status, 421, "the client shall open a connection of its own for it");
    assert_eq!(proxy.get(HOST, "/").status, 404, "there is nothing in clear");
    assert_eq!(scene.old.connections() + scene.new.connections(), 0);
    assert_eq!(proxy.metrics().sum("rejected_total", &[("cause", "host")]), 3.0);
}

#[test]
fn a_hello_may_be_split_anywhere() {
    let scene = Scene::new();
    let proxy = Proxy::start(&scene.setup(scene.service().percentage(100)));
    let trust = scene.trust(&["http/1.1"]);

    let by_byte = |socket: &mut TcpStream, hello: &[u8]| hello.iter().try_for_each(|byte| socket.write_all(&[*byte]));
    let in_records = |socket: &mut TcpStream, hello: &[u8]| {
        let records = hello[5..].chunks(7).flat_map(|piece| [&hello[..3], &[0, piece.len() as u8], piece].concat());
        socket.write_all(&records.collect::<Vec<u8>>())
    };
    let slow = Client::try_tls_from(https(&proxy), "127.0.0.1", HOST, &trust, by_byte);
    let scattered = Client::try_tls_from(https(&proxy), "127.0.0.1", HOST, &trust, in_records);

    for client in [slow, scattered] {
        assert_eq!(client.unwrap().get(HOST, "/").side(), Some("new"));
    }
}

#[test]
fn a_long_hello_is_read_to_its_end() {
    let scene = Scene::new();
    let proxy = Proxy::start(&scene.setup(scene.service().percentage(100)));
    // Many protocols that nobody has heard of: 50 KiB in four records.
    let mut config = Arc::unwrap_or_clone(scene.trust(&["http/1.1"]));
    let unheard = (0..200).map(|number| format!("{number:0250}").into_bytes());
    config.alpn_protocols.splice(0..0, unheard);
    let config = Arc::new(config);

    let at_once = |socket: &mut TcpStream, hello: &[u8]| socket.write_all(hello);
    let in_packets = |socket: &mut TcpStream, hello: &[u8]| {
        hello.chunks(1_000).try_for_each(|packet| {
            std::thread::yield_now();
            socket.write_all(packet)
        })
    };
    for (name, side) in [(HOST, "new"), ("b.old.test", "old")] {
        let whole = Client::try_tls_from(https(&proxy), "127.0.0.1", name, &config, at_once);
        let split = Client::try_tls_from(https(&proxy), "127.0.0.1", name, &config, in_packets);
        for client in [whole, split] {
            assert_eq!(client.unwrap().get(name, "/").side(), Some(side), "{name}");
        }
    }
}

#[test]
fn the_clients_address_decides_and_keeps_its_cluster() {
    let scene = Scene::new();
    let service = scene.service().with("migration: {percentage: 50, sticky: {by: [client_ip]}}").with(
        "canary: {ip_rules: [{cidr: 127.0.9.1/32, target: new_cluster}, {cidr: 127.0.9.2/32, target: old_cluster}]}",
    );
    let proxy = Proxy::start(&scene.setup(service));
    let trust = scene.trust(&["http/1.1"]);
    let side = |source: &str| {
        let send = |socket: &mut TcpStream, hello: &[u8]| socket.write_all(hello);
        let mut client = Client::try_tls_from(https(&proxy), source, HOST, &trust, send).unwrap();
        client.get(HOST, "/").side().unwrap().to_owned()
    };

    let sources: Vec<String> = (1..=24).map(|last| format!("127.0.8.{last}")).collect();
    for source in &sources {
        let explained = proxy.admin(&format!("/api/v1/explain?host={HOST}&client_ip={source}")).json();
        assert_eq!((explained["reason"].as_str(), explained["mode"].as_str()), (Some("user"), Some("passthrough")));
        for _ in 0..2 {
            assert_eq!(explained["target"], side(source), "{source}");
        }
    }
    assert_eq!((side("127.0.9.1").as_str(), side("127.0.9.2").as_str()), ("new", "old"));
    let metrics = proxy.metrics();
    for target in ["old", "new"] {
        let count = metrics.sum("requests_total", &[("service", "a"), ("target", target), ("reason", "user")]);
        assert!(count >= 2.0, "{target}: {count}");
    }
    assert_eq!(metrics.sum("decision_keys_total", &[("key", "client_ip")]), 50.0);
}

#[test]
fn a_believed_proxy_header_names_the_client() {
    let scene = Scene::new();
    let service = scene.service().with("canary: {ip_rules: [{cidr: 203.0.113.0/24, target: new_cluster}]}");
    let setup = scene.setup(service).listen("proxy_protocol: v1v2").listen("trusted_proxies: [127.0.0.2/32]");
    let proxy = Proxy::start(&setup);
    let header = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n";

    let send = |socket: &mut TcpStream, hello: &[u8]| socket.write_all(&[&header[..], hello].concat());
    let client = Client::try_tls_from(https(&proxy), "127.0.0.2", HOST, &scene.trust(&["http/1.1"]), send);

    assert_eq!(client.unwrap().get(HOST, "/").side(), Some("new"));
    assert!(last_line(&proxy, 1).starts_with("203.0.113.7 "));
}

#[test]
fn old_takes_what_new_does_not_until_the_breaker_knows() {
    let scene = Scene::new();
    let service = scene.service().percentage(100).new_backend(format!("127.0.0.1:{}", refused_port()));
    let proxy = Proxy::start(&scene.setup(service.with("fallback: {max_failures: 2}")));

    for (count, reason, tries) in [(1, "fallback", 2), (2, "fallback", 2), (3, "breaker", 1)] {
        assert_eq!(scene.connect(&proxy).get(HOST, "/").side(), Some("old"));
        let line = last_line(&proxy, count);
        assert!(line.contains(&format!(r#"reason="{reason}""#)), "{line}");
        assert!(line.contains(&format!(" tries={tries} ")), "{line}");
    }
    assert_eq!(proxy.breaker("a"), "open");
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("fallbacks_total", &[("service", "a"), ("cause", "connect")]), 2.0);
    assert_eq!(metrics.sum("fallbacks_total", &[("service", "a"), ("cause", "breaker")]), 1.0);
}

#[test]
fn a_connection_that_no_cluster_takes_is_closed() {
    let scene = Scene::new();
    let nowhere = format!("127.0.0.1:{}", refused_port());
    let pinned = "canary: {on_unavailable: fail, ip_rules: [{cidr: 127.0.0.1/32, target: new_cluster}]}";
    let trust = scene.trust(&["http/1.1"]);

    for (what, service) in [
        ("old is dead", scene.service().old_backend(&nowhere)),
        ("pinned to new, which is dead", scene.service().new_backend(&nowhere).with(pinned)),
    ] {
        let proxy = Proxy::start(&scene.setup(service));

        assert!(Client::try_tls(https(&proxy), HOST, &trust).is_err(), "{what}");

        assert!(last_line(&proxy, 1).contains(r#"] "-" 000 0 "#), "{what}");
        assert_eq!(proxy.metrics().sum("requests_total", &[("service", "a"), ("target", "none")]), 1.0, "{what}");
    }
    assert_eq!(scene.old.connections() + scene.new.connections(), 0);
}

#[test]
fn relayed_connections_outlive_a_reload_and_end_with_the_process() {
    let scene = Scene::new();
    let setup = scene.setup(scene.service().percentage(100)).drain("delay: 0s, grace: 2s");
    let mut server = Server::start(&setup);
    let mut client = Client::tls(https(&server), HOST, &scene.trust(&["http/1.1"]));
    assert_eq!(client.get(HOST, "/").side(), Some("new"));
    assert_eq!(server.service("a")["open_on_new"], 1);
    let before = server.generation();

    server
        .file
        .replace(&server.text(&scene.setup(scene.clusters.service("a").percentage(100)).drain("delay: 0s, grace: 2s")));
    server.wait_for_generation_after(before);
    assert_eq!(client.get(HOST, "/").side(), Some("new"));
    assert_eq!(server.service("a")["mode"], "proxy");
    server.signal("TERM");

    assert!(client.rest().is_ok_and(|rest| rest.is_empty()) || client.is_closed_within(PATIENCE));
    assert_eq!(server.exit_code(), Some(0));
    assert!(last_line(&server, 1).contains(r#"] "-" 000 "#));
}

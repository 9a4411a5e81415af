//! PROXY headers on the wire: who is believed, who is not, and that nothing else of the connection is touched.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::client::{Client, Http2};
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";
const TRUSTED: &str = "127.0.0.2";
const STRANGER: &str = "127.0.0.3";
const V1: &[u8] = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n";

fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, payload].concat()
}

fn ipv4() -> Vec<u8> {
    let source = Ipv4Addr::new(203, 0, 113, 7);
    [&source.octets()[..], &Ipv4Addr::LOCALHOST.octets(), &4711_u16.to_be_bytes(), &80_u16.to_be_bytes()].concat()
}

/// Clients of 203.0.113.0/24 go to new.
fn by_address(clusters: &Clusters) -> Service {
    clusters.service("a").with("canary: {ip_rules: [{cidr: 203.0.113.0/24, target: new_cluster}]}")
}

fn believing(service: Service) -> Setup {
    Setup::new([service])
        .listen("proxy_protocol: v1v2")
        .listen(&format!("trusted_proxies: [{TRUSTED}/32]"))
        .listen("timeouts: {header: 300ms}")
}

#[track_caller]
fn from(proxy: &Proxy, source: &str) -> Client {
    Client::plain_from(proxy.addresses.http, source)
}

#[test]
fn the_source_of_a_trusted_peers_header_is_the_peer_for_everything() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&believing(by_address(&clusters)));
    let with_more = [ipv4(), vec![4, 0, 3, 1, 2, 3]].concat();

    for (what, header, side, client) in [
        ("version 1", V1.to_vec(), "new", "203.0.113.7"),
        ("version 1, unknown", b"PROXY UNKNOWN\r\n".to_vec(), "old", TRUSTED),
        ("version 2", v2(0x21, 0x11, &ipv4()), "new", "203.0.113.7"),
        ("version 2 with more fields", v2(0x21, 0x11, &with_more), "new", "203.0.113.7"),
        ("version 2, local", v2(0x20, 0x11, &ipv4()), "old", TRUSTED),
        ("version 2, unspecified", v2(0x21, 0x00, b"whatever"), "old", TRUSTED),
        ("version 2, a local socket", v2(0x21, 0x31, &[0; 216]), "old", TRUSTED),
        ("none", Vec::new(), "old", TRUSTED),
    ] {
        let mut connection = from(&proxy, TRUSTED);
        connection.send(&header);

        for _ in 0..2 {
            let forged = [("X-Forwarded-For", "192.0.2.1")];
            let response = connection.get_with(HOST, "/", &forged);
            // A source that is no trusted proxy is not believed either.
            let believed = client == TRUSTED;
            let chain = if believed { format!("192.0.2.1, {client}") } else { client.to_owned() };
            let real_ip = if believed { "192.0.2.1" } else { client };
            assert_eq!(response.side(), Some(side), "{what}");
            let seen = if side == "new" { clusters.new.last() } else { clusters.old.last() };
            assert_eq!(seen.header("x-forwarded-for"), Some(chain.as_str()), "{what}");
            assert_eq!(seen.header("x-real-ip"), Some(real_ip), "{what}");
        }
    }
    assert_eq!(proxy.metrics().sum("rejected_total", &[]), 0.0);
}

#[test]
fn a_header_that_is_not_believed_or_not_valid_ends_the_connection_and_is_counted() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&believing(by_address(&clusters)));
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes();
    let mut count = 0.0;

    for (source, header) in [
        (STRANGER, V1.to_vec()),
        (STRANGER, v2(0x21, 0x11, &ipv4())),
        (STRANGER, v2(0x20, 0x00, b"")),
        (STRANGER, b"PROXY nonsense\r\n".to_vec()),
        (TRUSTED, b"PROXY TCP4 203.0.113.7 127.0.0.1 4711\r\n".to_vec()),
        (TRUSTED, [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat()),
        (TRUSTED, v2(0x31, 0x11, &ipv4())),
        (TRUSTED, v2(0x21, 0x11, &ipv4()[..8])),
        (TRUSTED, v2(0x21, 0x11, &[0; 60_000])),
    ] {
        let mut connection = from(&proxy, source);
        // The proxy may have closed before all of it was sent.
        let _ = connection.try_send(&[&header[..], &request].concat());

        let answer = connection.rest().unwrap_or_default();

        assert!(answer.is_empty(), "{source} {header:?}: {}", String::from_utf8_lossy(&answer));
        count += 1.0;
        assert_eq!(proxy.metrics().sum("rejected_total", &[("cause", "proxy")]), count, "{source} {header:?}");
    }
    assert_eq!(clusters.old.requests() + clusters.new.requests(), 0, "nothing was read as HTTP");
    assert_eq!(from(&proxy, STRANGER).get(HOST, "/").side(), Some("old"), "strangers may come without one");
}

#[test]
fn without_the_setting_a_header_is_malformed_http() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([by_address(&clusters)]).listen(&format!("trusted_proxies: [{TRUSTED}/32]")));

    for header in [V1.to_vec(), v2(0x21, 0x11, &ipv4())] {
        let mut connection = from(&proxy, TRUSTED);
        connection.send(header);
        let _ = connection.try_send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes());
        assert_eq!(connection.response("GET").unwrap().status, 400);
    }
    // It is counted when the connection has ended, behind its answer.
    let counted = || proxy.metrics().sum("rejected_total", &[("cause", "malformed")]) == 2.0;
    eventually(PATIENCE, "both are counted", counted);
    assert_eq!(clusters.old.requests(), 0);
}

#[test]
fn a_header_may_come_in_pieces_and_half_of_one_is_not_waited_for_for_ever() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&believing(by_address(&clusters)));
    let header = v2(0x21, 0x11, &ipv4());
    let mut slow = from(&proxy, TRUSTED);

    for byte in header.iter().chain(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()) {
        slow.send([*byte]);
    }
    assert_eq!(slow.response("GET").unwrap().side(), Some("new"));

    for half in [&V1[..1], &V1[..20], &header[..12], &header[..20]] {
        let mut silent = from(&proxy, TRUSTED);
        silent.send(half);
        assert!(silent.is_closed_within(PATIENCE), "{half:?}");
    }
    assert_eq!(clusters.new.requests(), 1);
}

#[test]
fn the_header_stands_before_tls_and_before_http2() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let proxy = Proxy::start(&believing(by_address(&clusters)).https(&public.server(&[HOST])));

    let send = |socket: &mut TcpStream, hello: &[u8]| socket.write_all(&[V1, hello].concat());
    let (address, trust) = (proxy.addresses.https.unwrap(), public.trusting(&["http/1.1"]));
    let mut tls = Client::try_tls_from(address, TRUSTED, HOST, &trust, send).unwrap();
    let plain = Http2::plain_behind(proxy.addresses.http, TRUSTED, V1);

    assert_eq!(tls.get(HOST, "/").side(), Some("new"));
    assert_eq!(plain.get(&format!("http://{HOST}/")).side(), Some("new"));
    assert_eq!(clusters.new.last().header("x-real-ip"), Some("203.0.113.7"));
}

#[test]
fn a_reload_changes_who_is_believed() {
    let clusters = Clusters::new();
    let off = Setup::new([by_address(&clusters)]).listen(&format!("trusted_proxies: [{TRUSTED}/32]"));
    let proxy = Proxy::start(&off);

    proxy.reload(&off.listen("proxy_protocol: v1v2"));

    let mut connection = from(&proxy, TRUSTED);
    connection.patience(Duration::from_secs(5)).send(V1);
    assert_eq!(connection.get(HOST, "/").side(), Some("new"));
    assert_eq!(proxy.status()["config"]["restart_needed"], serde_json::json!([]));
}

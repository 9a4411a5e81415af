//! Connections to the clusters: kept, shared by the requests of one service and by nobody else, and never many.

use http::Request;
use hyper::body::Incoming;
use migration_proxy::proxy;

use crate::support::app::Proxy;
use crate::support::client::Load;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

#[test]
fn connections_to_an_origin_are_kept_and_never_shared_between_services() {
    let clusters = Clusters::new();
    let service = |name| clusters.service(name).percentage(100);
    let proxy = Proxy::start(&Setup::new([service("a"), service("b")]));
    let mut client = proxy.client();

    for _ in 0..10 {
        client.get("a.old.test", "/");
        client.get("b.old.test", "/");
    }

    assert_eq!(clusters.new.connections(), 2);
    for request in clusters.new.recorded() {
        assert_eq!(request.sni.as_deref(), request.host(), "a connection never leaves its service");
    }
}

#[test]
fn many_requests_need_no_more_connections_than_are_in_flight_at_once() {
    const CLIENTS: u64 = 4;
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a").percentage(50)]));

    Load::new(proxy.addresses.http, HOST).connections(CLIENTS as usize).run(2_000).assert_all_ok();

    for (origin, side) in [(&clusters.old, "old"), (&clusters.new, "new")] {
        assert!(origin.requests() > 500, "{side} had its part");
        assert!((1..=CLIENTS).contains(&origin.connections()), "{side}: {} connections", origin.connections());
    }
    let gauge = |state| proxy.metrics().sum("upstream_connections", &[("service", "a"), ("state", state)]);
    eventually(PATIENCE, "every connection waits for the next request", || gauge("active") == 0.0);
    assert_eq!(gauge("idle"), (clusters.old.connections() + clusters.new.connections()) as f64);
}

#[test]
fn short_lived_clients_share_the_connections_too() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));

    for _ in 0..100 {
        assert_eq!(proxy.get(HOST, "/").side(), Some("old"));
    }

    assert_eq!(clusters.old.connections(), 1);
}

#[test]
fn a_connection_that_died_while_idle_costs_nobody_anything() {
    let clusters = Clusters::new();
    clusters.old.close_after(1);
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));
    let mut client = proxy.client();

    for number in 0..20 {
        let response = client.post(HOST, "/", format!("body {number}").as_bytes());
        assert_eq!(response.status, 200, "request {number}");
        eventually(PATIENCE, "the origin has closed", || clusters.old.open_connections() == 0);
    }

    assert_eq!(clusters.old.requests(), 20, "each one was sent once");
}

/// What a waiting request costs, times the thousands that wait when a cluster hangs.
#[test]
fn the_future_of_a_request_is_small() {
    fn output_size<'a, F>(
        _: impl Fn(&'a proxy::Proxy, &'a proxy::connection::Connection, Request<Incoming>) -> F,
    ) -> usize {
        size_of::<F>()
    }

    let size = output_size(proxy::Proxy::handle);

    assert!(size < 4096, "{size} bytes");
    println!("{size} bytes");
}

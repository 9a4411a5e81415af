//! An origin that closes waiting connections at random moments, also just when the next request is on its way: what every
//! keep-alive client has to live with.

use std::net::SocketAddr;
use std::time::Duration;

use super::{HOST, Orders};
use crate::support::cli::Server;
use crate::support::client::{Load, Tally};
use crate::support::origin::Origin;
use crate::support::peers::{Nginx, available};
use crate::support::scale::Scale;
use crate::support::setup::{Clusters, Setup};

/// Connections wait at most this long for their next request, a time near to what passes between two requests, so that
/// the end and the request often meet.
const LONGEST_REST: Duration = Duration::from_millis(2);

/// Two well-behaved clusters but for the old one's impatience.
fn impatient() -> (Clusters, Orders) {
    let (clusters, orders) = (Clusters::new(), Orders::default());
    orders.count(&clusters, || None);
    clusters.old.close_idle(LONGEST_REST, 7);
    (clusters, orders)
}

fn send(address: SocketAddr, method: &'static str, first: u64, count: u64) -> Tally {
    let load = Load::new(address, HOST).request(method, "/order").connections(8);
    let load = load.fields(move |number| vec![("X-Order".into(), (first + number).to_string())]);
    let load = if method == "POST" { load.body(b"one order, once") } else { load };
    load.run(count)
}

fn failed(tally: &Tally) -> u64 {
    tally.total() - tally.statuses.get(&200).copied().unwrap_or(0)
}

#[test]
fn no_get_fails() {
    let scale = Scale::begin();
    let (clusters, _) = impatient();
    let mut server = Server::start(&Setup::new([clusters.service("a")]));

    let tally = send(server.addresses.http, "GET", 0, scale.pick(3_000, 100_000));

    tally.assert_all_ok();
    assert_raced(&clusters.old);
    let metrics = server.metrics();
    let again = metrics.sum("retries_total", &[("target", "old")]);
    assert_eq!(metrics.sum("upstream_responses_total", &[("target", "old"), ("outcome", "2xx")]), tally.total() as f64);
    server.assert_sound();
    scale.report(&format!(
        "{} GETs, 0 errors, {again} tried again, {} connections, slowest {:.1?}",
        tally.total(),
        clusters.old.connections(),
        tally.slowest
    ));
}

/// The same for new, where nobody may be blamed either: with one failure the breaker would open.
#[test]
fn new_is_not_blamed() {
    let scale = Scale::begin();
    let (clusters, _) = impatient();
    clusters.new.close_idle(LONGEST_REST, 8);
    let strict = "fallback: {max_failures: 1, recovery_time: 300}";
    let service = clusters.service("a").percentage(100).with(strict);
    let mut server = Server::start(&Setup::new([service]));

    let tally = send(server.addresses.http, "GET", 0, scale.pick(2_000, 100_000));

    tally.assert_all_ok();
    assert_eq!((server.breaker("a").as_str(), tally.side("new")), ("closed", tally.total()));
    assert_raced(&clusters.new);
    server.assert_sound();
    scale.report(&format!("{} GETs to new, 0 errors, {} connections", tally.total(), clusters.new.connections()));
}

/// The origin has closed many connections, not all of them before they were used.
#[track_caller]
fn assert_raced(origin: &Origin) {
    assert!(origin.connections() > 20, "{} connections", origin.connections());
}

#[test]
fn no_post_is_sent_twice_and_no_more_fail_than_behind_nginx() {
    let scale = Scale::begin();
    let (clusters, orders) = impatient();
    let mut server = Server::start(&Setup::new([clusters.service("a")]));
    let count = scale.pick(2_000, 100_000);

    let ours = send(server.addresses.http, "POST", 0, count);
    server.assert_sound();
    let connections = clusters.old.connections();
    let nginx_s = available(&["nginx"]).then(|| {
        let nginx = Nginx::in_front_of(clusters.old.address());
        send(nginx.address(), "POST", count, count)
    });

    orders.assert_none_twice();
    assert_eq!(ours.failed, 0, "each has an answer, an error of ours at worst: {ours:?}");
    assert!(ours.statuses.keys().all(|status| matches!(status, 200 | 502)), "{ours:?}");
    let reached = orders.arrived_below(count);
    assert!(reached >= ours.statuses[&200], "{reached} arrived: {ours:?}");
    let theirs = nginx_s.as_ref().map(failed);
    scale.report(&format!(
        "{count} POSTs, 0 twice, {} failed over {connections} connections; nginx in the same run: {theirs:?} failed",
        failed(&ours)
    ));
    if let Some(theirs) = theirs {
        // Two draws of the same dice differ by a few standard deviations.
        let most = theirs as f64 + 4.0 * (theirs as f64).sqrt() + 5.0;
        assert!(failed(&ours) as f64 <= most, "{} failed, {theirs} behind nginx", failed(&ours));
    }
}

//! An origin that closes waiting connections at random moments, also just when the next request is on its way: what every
//! keep-alive client has to live with.

use std::net::SocketAddr;
use std::time::Duration;

use super::{HOST, Orders};
use crate::support::cli::Server;
use crate::support::client::{Call, Load, Paced, Record, Tally};
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

fn get(address: SocketAddr, count: u64) -> Tally {
    Load::new(address, HOST).connections(8).run(count)
}

#[test]
fn no_get_fails() {
    let scale = Scale::begin();
    let (clusters, _) = impatient();
    let mut server = Server::start(&Setup::new([clusters.service("a")]));

    let tally = get(server.addresses.http, scale.pick(3_000, 100_000));

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

    let tally = get(server.addresses.http, scale.pick(2_000, 100_000));

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

/// POSTs at the same rate for each proxy: a faster one would otherwise leave its connections less time to end.
fn post(scale: &Scale, address: SocketAddr, first: u64) -> Record {
    let calls = move |number: u64| {
        let fields = vec![("X-Order", (first + number).to_string())];
        Call { method: "POST", target: "/order".into(), fields, body: b"one order, once" }
    };
    Paced::new(address, HOST, scale.pick(500, 2_500)).calls(calls).run(scale.pick(1_000, 100_000))
}

#[test]
fn no_post_is_sent_twice_and_no_more_fail_than_behind_nginx() {
    let scale = Scale::begin();
    let (clusters, orders) = impatient();
    clusters.old.close_idle(LONGEST_REST * 10, 9);
    let mut server = Server::start(&Setup::new([clusters.service("a")]));

    let ours = post(&scale, server.addresses.http, 0);
    server.assert_sound();
    assert_raced(&clusters.old);
    let closed = clusters.old.connections();
    let second = 1_000_000;
    let theirs = available(&["nginx"]).then(|| {
        let nginx = Nginx::in_front_of(clusters.old.address());
        post(&scale, nginx.address(), second).only(|seen| !seen.is_ok()).0.len()
    });

    orders.assert_none_twice();
    let failed = ours.only(|seen| !seen.is_ok());
    let odd = failed.only(|seen| seen.status() != 502);
    assert!(odd.0.is_empty(), "each has an answer: {:#?}", odd.some());
    assert!(orders.arrived_below(second) >= ours.count(|seen| seen.is_ok()) as u64);
    let again = server.metrics().sum("retries_total", &[]);
    scale.report(&format!(
        "{} POSTs, 0 twice, {} failed and {again} tried again over {closed} connections; nginx in the same run: {theirs:?} \
         failed over {}",
        ours.0.len(),
        failed.0.len(),
        clusters.old.connections() - closed,
    ));
    if let Some(theirs) = theirs.filter(|_| scale.is_full()) {
        // Two draws of the same dice differ by a few standard deviations.
        let most = theirs as f64 + 4.0 * (theirs as f64).sqrt() + 5.0;
        assert!(failed.0.len() as f64 <= most, "{} failed, {theirs} behind nginx", failed.0.len());
    }
}

//! Ten times what the new cluster can do: what is accepted stays fast, the rest is told so at once, and memory stays flat.

use std::time::Duration;

use super::{HOST, statuses};
use crate::support::cli::Server;
use crate::support::client::{Paced, Record};
use crate::support::scale::Scale;
use crate::support::setup::{Clusters, Setup};

/// One request's time at the origin.
const WORK: Duration = Duration::from_millis(100);
/// How much memory may grow.
const GROWTH: u64 = 32 << 20;

/// What was seen at three rates.
struct Rates {
    below: Record,
    over: Record,
    at_capacity: u64,
    after: u64,
}

/// `places` at the origin, and as many in the limit under test: whoever is accepted is served at once.
fn overload(scale: &Scale, server: &Server, places: u64) -> Rates {
    let capacity = places * 1_000 / WORK.as_millis() as u64;
    // So many seconds' worth of what the origin can do, at so many tenths of that.
    let run = |tenths: u64, seconds: u64| {
        let rate = capacity * tenths / 10;
        Paced::new(server.addresses.http, HOST, rate).run(rate * seconds)
    };
    run(10, scale.pick(1, 10));
    let at_capacity = server.memory();
    let below = run(8, scale.pick(2, 20));
    let over = run(100, scale.pick(3, 60));
    Rates { below, over, at_capacity, after: server.memory() }
}

fn served(record: &Record) -> Record {
    record.only(|seen| seen.is_ok())
}

#[track_caller]
fn assert_shed(scale: &Scale, rates: &Rates) {
    let refused = rates.over.only(|seen| !seen.is_ok());
    let odd = refused.only(|seen| !seen.answer.as_ref().is_ok_and(|answer| answer.status == 503 && answer.retry_after));
    assert!(odd.0.is_empty(), "each refusal is 503 with Retry-After: {:#?}", odd.some());
    assert!(refused.0.len() > rates.over.0.len() / 2, "{:?}", statuses(&rates.over));
    let growth = rates.after.saturating_sub(rates.at_capacity);
    assert!(growth < GROWTH, "{} KiB more", growth / 1024);
    let (usual, under_load) = (served(&rates.below).quantile(0.99), served(&rates.over).quantile(0.99));
    if scale.is_full() {
        rates.below.assert_all_ok();
        assert!(under_load < usual * 2, "{usual:?} became {under_load:?}");
    }
    scale.report(&format!(
        "at 10x {:?}, p99 of the accepted {under_load:.1?} ({usual:.1?} at 0.8x), of the refused {:.1?}, memory {} KiB at 1x, \
         {} KiB after",
        statuses(&rates.over),
        refused.quantile(0.99),
        rates.at_capacity / 1024,
        rates.after / 1024,
    ));
}

#[test]
fn the_limit_of_the_house_sheds_what_is_too_much() {
    let scale = Scale::begin();
    let places = scale.pick(5, 50);
    let clusters = Clusters::new();
    clusters.new.slots(places as usize, WORK);
    let service = clusters.service("a").percentage(100).with("fallback: {max_failures: 1}");
    let top = format!("limits: {{max_in_flight: {places}}}");
    let mut server = Server::start(&Setup::new([service]).top(&top));

    let rates = overload(&scale, &server, places);

    assert_shed(&scale, &rates);
    let metrics = server.metrics();
    let refused = metrics.sum("rejected_total", &[("cause", "in_flight")]);
    assert!(refused >= rates.over.count(|seen| !seen.is_ok()) as f64, "{refused} counted");
    assert_nobody_is_blamed(&mut server, &clusters);
}

#[test]
fn the_limit_of_old_sheds_what_is_too_much() {
    let scale = Scale::begin();
    let places = scale.pick(5, 50);
    let clusters = Clusters::new();
    clusters.old.slots(places as usize, WORK);
    let service = clusters.service("a").with(&format!("old: {{max_waiting: {places}}}"));
    let mut server = Server::start(&Setup::new([service]));

    let rates = overload(&scale, &server, places);

    assert_shed(&scale, &rates);
    let metrics = server.metrics();
    let refused = metrics.sum("rejected_total", &[("cause", "full")]);
    assert!(refused >= rates.over.count(|seen| !seen.is_ok()) as f64, "{refused} counted");
    assert_nobody_is_blamed(&mut server, &clusters);
}

/// Every try that a cluster got was answered well, and nobody was asked instead.
#[track_caller]
fn assert_nobody_is_blamed(server: &mut Server, clusters: &Clusters) {
    server.assert_sound();
    let metrics = server.metrics();
    let tries = metrics.sum("upstream_responses_total", &[]);
    assert_eq!(metrics.sum("upstream_responses_total", &[("outcome", "2xx")]), tries);
    assert_eq!(metrics.sum("fallbacks_total", &[]), 0.0);
    assert_eq!(server.breaker("a"), "closed");
    assert!(clusters.old.requests() == 0 || clusters.new.requests() == 0, "only one of them was asked");
}

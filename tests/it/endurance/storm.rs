//! The new cluster fails in every way that is known, at a fifth of the traffic: no GET fails, no POST arrives twice, and
//! each failed POST is one that the metrics account for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{HOST, Orders, mixed, statuses, sum_over};
use crate::support::certs::Authority;
use crate::support::cli::Server;
use crate::support::client::{Paced, Pacing, Record};
use crate::support::eventually;
use crate::support::origin::{Answer, End};
use crate::support::scale::Scale;
use crate::support::setup::{Clusters, Setup};

/// Everything that counts as a failure of new, in `upstream_responses_total`.
const FAILURES: [&str; 9] = ["connect", "tls", "timeout", "reset", "header", "500", "502", "503", "504"];

/// The two clusters, and what new does at the moment.
pub(super) struct Storm {
    pub clusters: Clusters,
    pub orders: Orders,
    answer: Arc<Mutex<Option<Answer>>>,
    /// Whoever holds it has frozen new: its thread stops at the next request, as a stopped process does.
    running: Arc<Mutex<()>>,
}

impl Storm {
    pub fn new() -> Self {
        Self::with_alpn("http/1.1")
    }

    fn with_alpn(alpn: &str) -> Self {
        let storm = Self {
            clusters: Clusters::with_alpn(&[alpn]),
            orders: Orders::default(),
            answer: Arc::default(),
            running: Arc::default(),
        };
        let (answer, running) = (storm.answer.clone(), storm.running.clone());
        storm.orders.count(&storm.clusters, move || {
            drop(running.lock().unwrap());
            answer.lock().unwrap().clone()
        });
        storm
    }

    /// What new says from now on; `None`: what it is scripted to.
    pub fn says(&self, answer: Option<Answer>) {
        *self.answer.lock().unwrap() = answer;
    }

    /// Frozen for as long as the guard lives.
    pub fn freeze(&self) -> MutexGuard<'_, ()> {
        self.running.lock().unwrap()
    }
}

/// What the run says about one kind of failure.
struct Figures {
    /// When the breaker was first seen open, from the beginning of the fault.
    protected: Option<Duration>,
    /// When it was closed again, from the end of the fault.
    recovered: Duration,
    record: Record,
}

/// Runs the load; `fault` breaks new, waits with the given function, and mends it.
fn weather(fault: impl FnOnce(&mut Storm, &dyn Fn())) -> (Scale, Figures) {
    weather_over("http/1.1", fault)
}

/// The same over one connection for all requests.
fn weather_over_http2(fault: impl FnOnce(&mut Storm, &dyn Fn())) -> (Scale, Figures) {
    weather_over("h2", fault)
}

fn weather_over(alpn: &str, fault: impl FnOnce(&mut Storm, &dyn Fn())) -> (Scale, Figures) {
    let scale = Scale::begin();
    let mut storm = Storm::with_alpn(alpn);
    let version = if alpn == "h2" { "2" } else { "1.1" };
    let service = storm.clusters.service("a").new_option(&format!("http_version: {version}"));
    let service = service.percentage(20).with(&format!("fallback: {{recovery_time: {}}}", scale.pick("1s", "5s")));
    let top = format!("global: {{default_timeout: {}}}", scale.pick("900ms", "3s"));
    let mut server = Server::start(&Setup::new([service]).top(&top).workers(scale.pick(1, 2)));
    let (calm, storming) = (scale.pick(50, 6_000), scale.pick(250, 20_000));

    let load = Paced::new(server.addresses.http, HOST, scale.pick(100, 2_000)).calls(mixed).start();
    load.wait_for(calm);
    let begun = load.elapsed();
    let opened = Mutex::new(None);
    fault(&mut storm, &|| {
        *opened.lock().unwrap() = watch_opening(&server, &load, storming).map(|at| at.saturating_sub(begun));
    });
    let mended = load.elapsed();
    eventually(Duration::from_secs(30), "the breaker closes again", || server.breaker("a") == "closed");
    let recovered = load.elapsed().saturating_sub(mended);
    load.wait_for(calm);
    let record = load.stop();

    storm.orders.assert_posts_once(&record);
    assert_accounted_for(&server, &record);
    server.assert_sound();
    let after = record.only(|seen| seen.at > mended + recovered);
    after.assert_all_ok();
    assert!(
        after.count(|seen| seen.answer.as_ref().is_ok_and(|answer| answer.from_new)) > 0,
        "new has its share again"
    );
    let protected = opened.into_inner().unwrap();
    report(&scale, &server, &record, protected, recovered);
    (scale, Figures { protected, recovered, record })
}

/// Waits out so many requests of the storm; gives the moment at which the breaker was first seen open.
#[track_caller]
fn watch_opening(server: &Server, load: &Pacing, storming: u64) -> Option<Duration> {
    let mut opened = None;
    load.watch_for(storming, || {
        if opened.is_none() && server.breaker("a") == "open" {
            opened = Some(load.elapsed());
        }
    });
    opened
}

/// Every GET was saved, every POST has an answer, and each failure of new became a replay on old, another try, or the
/// answer to one of the failed POSTs.
#[track_caller]
fn assert_accounted_for(server: &Server, record: &Record) {
    let gets = record.only(|seen| seen.method == "GET");
    gets.assert_all_ok();
    let failed = record.only(|seen| !seen.is_ok());
    let unexplained = failed.only(|seen| !matches!(seen.status(), 502..=504));
    assert!(unexplained.0.is_empty(), "{:#?}", unexplained.some());
    let new = [("target", "new")];
    let failures = sum_over(server, "upstream_responses_total", &new, "outcome", &FAILURES);
    let saved = sum_over(server, "fallbacks_total", &[], "cause", &FAILURES);
    let again = sum_over(server, "retries_total", &new, "outcome", &FAILURES);
    assert_eq!(
        failures,
        saved + again + failed.0.len() as f64,
        "{saved} replayed, {again} tried again: {:?}",
        failed.some()
    );
}

fn report(scale: &Scale, server: &Server, record: &Record, protected: Option<Duration>, recovered: Duration) {
    let posts = record.only(|seen| seen.method == "POST");
    let metrics = server.metrics();
    let outcomes: BTreeMap<&str, f64> = FAILURES
        .into_iter()
        .map(|outcome| (outcome, metrics.sum("upstream_responses_total", &[("target", "new"), ("outcome", outcome)])))
        .filter(|(_, count)| *count > 0.0)
        .collect();
    scale.report(&format!(
        "{} requests, GET errors 0, POSTs twice 0, POST {:?}, failures of new {outcomes:?}, protected after {protected:.1?}, \
         closed again {recovered:.1?} after the end, slowest GET {:.2?}",
        record.0.len(),
        statuses(&posts),
        record.only(|seen| seen.method == "GET").quantile(1.0),
    ));
}

/// The breaker does its work within a few deadlines, and new is back soon after it recovered.
#[track_caller]
fn assert_protected(scale: &Scale, figures: &Figures) {
    let protected = figures.protected.expect("the breaker opens");
    if scale.is_full() {
        assert!(protected < Duration::from_secs(5), "protected after {protected:?}");
        assert!(figures.recovered < Duration::from_secs(12), "recovered after {:?}", figures.recovered);
    }
}

#[test]
fn killed() {
    let (scale, figures) = weather(|storm, wait| {
        storm.clusters.new.kill();
        wait();
        storm.clusters.new.restart();
    });

    assert_protected(&scale, &figures);
}

#[test]
fn killed_with_a_shared_connection() {
    let (scale, figures) = weather_over_http2(|storm, wait| {
        storm.clusters.new.kill();
        wait();
        storm.clusters.new.restart();
    });

    assert_protected(&scale, &figures);
}

#[test]
fn frozen_with_a_shared_connection() {
    let (scale, figures) = weather_over_http2(|storm, wait| {
        let frozen = storm.freeze();
        wait();
        drop(frozen);
    });

    assert_protected(&scale, &figures);
}

#[test]
fn resetting_streams() {
    let (scale, figures) = weather_over_http2(|storm, wait| {
        storm.says(Some(Answer::nothing(End::Reset)));
        wait();
        storm.says(None);
    });

    assert_protected(&scale, &figures);
}

#[test]
fn frozen() {
    let (scale, figures) = weather(|storm, wait| {
        let frozen = storm.freeze();
        wait();
        drop(frozen);
    });

    assert_protected(&scale, &figures);
}

/// Frozen, and the kernel's queue is full: connections hang as well.
#[test]
fn swallowed_by_the_network() {
    let (scale, figures) = weather(|storm, wait| {
        storm.clusters.new.backlog(0);
        let frozen = storm.freeze();
        wait();
        drop(frozen);
        storm.clusters.new.backlog(1024);
    });

    assert_protected(&scale, &figures);
}

#[test]
fn resetting() {
    let (scale, figures) = weather(|storm, wait| {
        storm.says(Some(Answer::nothing(End::Reset)));
        wait();
        storm.says(None);
    });

    assert_protected(&scale, &figures);
}

#[test]
fn answering_503() {
    let (scale, figures) = weather(|storm, wait| {
        storm.says(Some(Answer::status(503)));
        wait();
        storm.says(None);
    });

    assert_protected(&scale, &figures);
    let failed = figures.record.only(|seen| !seen.is_ok());
    assert_eq!(failed.count(|seen| seen.status() != 503), 0, "its own answer is passed on");
}

#[test]
fn answering_nonsense() {
    let (scale, figures) = weather(|storm, wait| {
        storm.says(Some(Answer::raw("SSH-2.0-nonsense\r\n\r\n", End::Fin)));
        wait();
        storm.says(None);
    });

    assert_protected(&scale, &figures);
}

#[test]
fn dripping_its_heads() {
    let (scale, figures) = weather(|storm, wait| {
        storm.says(Some(Answer::side().drip_head(Duration::from_millis(100))));
        wait();
        storm.says(None);
    });

    assert_protected(&scale, &figures);
}

/// Slow, but whole: nothing fails and nobody is blamed.
#[test]
fn dripping_its_bodies() {
    let (_, figures) = weather(|storm, wait| {
        storm.says(Some(Answer::side().drip(1, Duration::from_millis(50))));
        wait();
        storm.says(None);
    });

    figures.record.assert_all_ok();
}

/// Connections that were open stay good until new closes them; no new one is trusted.
#[test]
fn showing_a_wrong_certificate() {
    let (scale, figures) = weather(|storm, wait| {
        let stranger = Authority::new("a stranger").server(&["*.new.test"]);
        storm.clusters.new.show(Some(stranger.server_config(&["http/1.1"], None))).close_after(1);
        wait();
        storm.clusters.new.show(None).close_after(usize::MAX);
    });

    assert_protected(&scale, &figures);
    // A POST may have met the very end of an old connection; nothing was ever sent on a new one.
    let failed = figures.record.count(|seen| !seen.is_ok());
    assert!(failed <= 10, "{failed} POSTs failed");
}

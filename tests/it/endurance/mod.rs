//! Long scenarios: load at a fixed rate while things fail. Quick with every `cargo test`; `ENDURANCE=full` runs them at the
//! size that the promises name, one after the other, each with a line of figures.

mod crowd;
mod idle;
mod overload;
mod restart;
mod soak;
mod storm;
mod swaps;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::support::cli::Server;
use crate::support::client::{Call, Record};
use crate::support::origin::{Answer, Recorded};
use crate::support::setup::Clusters;

pub const HOST: &str = "a.old.test";

/// A request in four is a POST with a body; each has its number in a field.
pub fn mixed(number: u64) -> Call {
    let fields = vec![("X-Order", number.to_string())];
    let target = format!("/order/{number}");
    if number.is_multiple_of(4) {
        Call { method: "POST", target, fields, body: b"one order, once" }
    } else {
        Call { method: "GET", target, fields, body: b"" }
    }
}

/// How often each numbered request reached an application, over both clusters.
#[derive(Clone, Default)]
pub struct Orders(Arc<Mutex<BTreeMap<u64, u32>>>);

impl Orders {
    /// Counts at both clusters; `new` also chooses what the new one says.
    pub fn count(&self, clusters: &Clusters, new: impl Fn() -> Option<Answer> + Send + Sync + 'static) {
        let at_old = self.clone();
        clusters.old.script(move |request| {
            at_old.note(request);
            None
        });
        let at_new = self.clone();
        clusters.new.script(move |request| {
            at_new.note(request);
            new()
        });
    }

    /// Begins anew, for numbers that come again.
    pub fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    /// One more arrival.
    pub fn note(&self, request: &Recorded) {
        if let Some(number) = request.header("x-order").and_then(|text| text.parse().ok()) {
            *self.0.lock().unwrap().entry(number).or_default() += 1;
        }
    }

    /// Fails the test when any number arrived twice.
    #[track_caller]
    pub fn assert_none_twice(&self) {
        let arrived = self.0.lock().unwrap();
        let twice: Vec<_> = arrived.iter().filter(|(_, times)| **times > 1).take(5).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }

    /// How many numbers below this one arrived.
    pub fn arrived_below(&self, end: u64) -> u64 {
        self.0.lock().unwrap().range(..end).count() as u64
    }

    /// Fails the test when a POST arrived twice, or got a 200 and arrived nowhere.
    #[track_caller]
    pub fn assert_posts_once(&self, record: &Record) {
        let arrived = self.0.lock().unwrap();
        for seen in record.0.iter().filter(|seen| seen.method == "POST") {
            let times = arrived.get(&seen.number).copied().unwrap_or(0);
            assert!(times <= 1, "sent {times} times: {seen:?}");
            assert!(times == 1 || !seen.is_ok(), "answered, but it arrived nowhere: {seen:?}");
        }
    }
}

/// Statuses and how often they came; 0 is no answer.
pub fn statuses(record: &Record) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for seen in &record.0 {
        *counts.entry(seen.status()).or_default() += 1;
    }
    counts
}

/// The sum of a metric of service `a` over several values of one label.
pub fn sum_over(server: &Server, name: &str, target: &[(&str, &str)], label: &str, values: &[&str]) -> f64 {
    let metrics = server.metrics();
    values.iter().map(|value| metrics.sum(name, &[target, &[("service", "a"), (label, value)]].concat())).sum()
}

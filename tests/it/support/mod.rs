//! The test kit: certificates, scripted origins, a raw client, and the product itself in process or as a program.
//!
//! Everything listens on loopback with ports from the system. Origins run on threads of their own, clients block, so
//! that a test reads from top to bottom.

pub mod app;
pub mod balancer;
pub mod browser;
pub mod certs;
pub mod cli;
pub mod client;
pub mod dns;
pub mod frame_origin;
pub mod grpc;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod listening;
pub mod origin;
pub mod peers;
pub mod reach;
pub mod recorder;
pub mod replicas;
pub mod scale;
pub mod setup;
mod stream;
pub mod websocket;

use std::time::{Duration, Instant};

/// How long a condition may take before a test gives up: generous, as the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Polls `condition` until it gives a value; `None` after `deadline`.
pub fn polled<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        let found = condition();
        if found.is_some() || Instant::now() > end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Polls `condition` until it gives a value; panics with `what` after `deadline`.
#[track_caller]
pub fn eventually_some<T>(deadline: Duration, what: &str, condition: impl FnMut() -> Option<T>) -> T {
    polled(deadline, condition).unwrap_or_else(|| panic!("after {deadline:?} still waiting: {what}"))
}

/// Polls `condition` until it holds; panics with `what` after `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(deadline, what, || condition().then_some(()));
}

/// Whether `share` of `total` draws lies within five standard deviations of `expected` (0 to 1).
pub fn within_five_sigma(hits: u64, total: u64, expected: f64) -> bool {
    let total = total as f64;
    let sigma = (expected * (1.0 - expected) / total).sqrt();
    (hits as f64 / total - expected).abs() <= 5.0 * sigma
}

//! Nanoseconds that a breaker adds to one request.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use migration_proxy::config::{Fallback, Percent};
use migration_proxy::upstream::breaker::{Breaker, Verdict};

fn fallback() -> Fallback {
    Fallback {
        enabled: true,
        max_failures: 5,
        failure_window: Duration::from_secs(60),
        recovery_time: Duration::from_secs(300),
        failure_ratio: Percent::from_basis_points(5_000).expect("a share of at most 100"),
        ratio_window: Duration::from_secs(10),
        min_requests: 20,
        failures: Vec::new(),
        probes: 3,
        ramp: Duration::from_secs(30),
        retry_on_old: true,
    }
}

fn paths(c: &mut Criterion) {
    let start = Instant::now();
    let mut group = c.benchmark_group("breaker");

    let breaker = Breaker::new(&fallback(), start);
    group.bench_function("success while closed", |bencher| {
        let mut now = start;
        bencher.iter(|| {
            now += Duration::from_micros(10);
            let _ = black_box(breaker.availability(now));
            let permit = breaker.admit(now).expect("a breaker without failures is closed");
            breaker.settle(permit, Verdict::Success, now)
        });
    });

    let open = Breaker::new(&fallback(), start);
    for _ in 0..5 {
        if let Some(permit) = open.admit(start) {
            open.settle(permit, Verdict::Failure, start);
        }
    }
    group.bench_function("refusal while open", |bencher| bencher.iter(|| open.admit(black_box(start)).is_none()));
    group.finish();
}

criterion_group!(benches, paths);
criterion_main!(benches);

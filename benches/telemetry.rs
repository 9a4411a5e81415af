//! What telemetry costs: an access line, the meters of a request, and a scrape.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{Method, StatusCode, Version};
use migration_proxy::config::{AccessFormat, Log, LogFormat, Percent};
use migration_proxy::telemetry::access_line::{self, Line, RequestText, Try};
use migration_proxy::telemetry::labels::{BreakerState, Cluster, Outcome, Reason, Target};
use migration_proxy::telemetry::recent::{self, PathStart, Recorded};
use migration_proxy::telemetry::{
    AccessLog, Callers, ProcessMeters, Recent, Scrape, ServiceGauges, ServiceMeters, Window,
};

/// Lines that fit into a worker's buffer twice.
const CHUNK: u32 = 1000;

const GAUGES: ServiceGauges = ServiceGauges {
    percentage: 20.0,
    declared: 20.0,
    safe_mode: false,
    breaker: BreakerState::Closed,
    health_old: None,
    health_new: Some(true),
    verify_off: false,
};

fn line(tries: &[Try]) -> Line<'_> {
    Line {
        client: [192, 168, 1, 1].into(),
        request: RequestText::Parsed {
            method: "GET",
            path_and_query: "/api/v1/orders/4711?expand=items",
            version: Version::HTTP_11,
        },
        status: 200,
        bytes: 1234,
        tries,
        request_time: Duration::from_millis(125),
        service: "api-name01",
        reason: "user",
        bucket: Some(1834),
        request_id: b"7f3c0d1e5a6b48c9a0b1c2d3e4f50617",
        host: b"api-name01.teamname.dev.aliyun.intracloud.cn.aibang",
        user_agent:
            b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36",
    }
}

fn access_log(criterion: &mut Criterion) {
    let address = SocketAddr::from(([203, 0, 113, 10], 443));
    let tries = [Try {
        cluster: Cluster::New,
        address: Some(address),
        status: Some(200),
        duration: Duration::from_millis(123),
    }];
    let line = line(&tries);
    let mut group = criterion.benchmark_group("access log");
    let mut out = Vec::with_capacity(4096);
    group.bench_function("format a line for nginx", |bencher| {
        bencher.iter(|| {
            out.clear();
            access_line::push_nginx(&mut out, "01/Jan/2024:12:00:00 +0000", black_box(&line));
        });
    });
    group.bench_function("format a line as JSON", |bencher| {
        bencher.iter(|| {
            out.clear();
            access_line::push_json(&mut out, "2024-01-01T12:00:00Z", black_box(&line));
        });
    });
    let settings = Log {
        level: tracing::Level::ERROR,
        format: LogFormat::Text,
        access: AccessFormat::Nginx,
        access_path: "/dev/null".into(),
        access_sample: Percent::HUNDRED,
        audit_path: "/dev/null".into(),
    };
    let dropped = Arc::new(AtomicU64::new(0));
    let log = AccessLog::new(&settings, 2, metrics::Counter::from_arc(Arc::clone(&dropped)));
    let log = log.expect("/dev/null can be opened");
    // A loop without pauses would fill the buffer and measure dropping, so each sample is a chunk that fits into it.
    group.bench_function("write a line", |bencher| {
        bencher.iter_custom(|iterations| {
            thread::sleep(Duration::from_millis(50));
            let start = Instant::now();
            for _ in 0..CHUNK {
                log.write(0, black_box(&line));
            }
            start.elapsed().mul_f64(iterations as f64 / f64::from(CHUNK))
        });
    });
    assert_eq!(dropped.load(Ordering::Relaxed), 0, "dropped lines are cheap and would count as fast ones");
    group.finish();
}

fn meters(criterion: &mut Criterion) {
    let meters = ServiceMeters::new("api-name01", &["header:X-User-Id", "client_ip"]);
    let duration = Duration::from_millis(7);
    let mut group = criterion.benchmark_group("meters");
    group.bench_function("a request", |bencher| {
        bencher.iter(|| {
            meters.request(Target::New, Reason::User, StatusCode::OK, black_box(duration), black_box(100), 2000);
        });
    });
    group.bench_function("a try", |bencher| {
        bencher.iter(|| meters.attempt(Cluster::New, Outcome::Success, black_box(duration)));
    });
    group.bench_function("a tick of the windows", |bencher| {
        let mut window = Window::new(0, &meters);
        let mut now = 0;
        bencher.iter(|| {
            now += 10;
            meters.attempt(Cluster::New, Outcome::Success, duration);
            window.tick(now, &meters);
        });
    });
    group.finish();
}

fn recent(criterion: &mut Criterion) {
    let recent = Recent::default();
    let callers = Callers::new("api-name01");
    let now = Instant::now();
    let host = "api-name01.teamname.dev.aliyun.intracloud.cn.aibang";
    let browser: &[u8] =
        b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36";
    let mut group = criterion.benchmark_group("recent");
    group.bench_function("a decision", |bencher| {
        bencher.iter(|| {
            recent.record(Recorded {
                at: now,
                service: callers.service().clone(),
                client: [192, 168, 1, 1].into(),
                method: recent::short_method(&Method::GET),
                path: PathStart::of(black_box("/api/v1/orders/4711")),
                decided: Cluster::New,
                rule: None,
                bucket: Some(1834),
                target: Target::New,
                reason: Reason::User,
                status: 200,
            });
        });
    });
    group.bench_function("a caller that is known", |bencher| {
        bencher.iter(|| callers.note(black_box(host), [192, 168, 1, 1].into(), black_box(b"curl/8.5"), now));
    });
    group.bench_function("a browser that is known", |bencher| {
        bencher.iter(|| callers.note(black_box(host), [192, 168, 1, 1].into(), black_box(browser), now));
    });
    group.bench_function("a flood of strangers", |bencher| {
        let mut number = 0_u32;
        bencher.iter(|| {
            number = number.wrapping_add(2_654_435_761);
            callers.note(black_box(host), number.to_be_bytes().into(), black_box(b"curl/8.5"), now);
        });
    });
    group.finish();
}

fn scrape(criterion: &mut Criterion) {
    let process = ProcessMeters::new(2);
    let services: Vec<_> =
        (0..500).map(|index| (ServiceMeters::new(&format!("s{index}"), &["client_ip"]), GAUGES)).collect();
    criterion.bench_function("scrape 500 services", |bencher| {
        bencher.iter(|| {
            let services = services.iter().map(|(meters, gauges)| (Arc::clone(meters), *gauges)).collect();
            Scrape::new(&process, services).map(|piece| piece.len()).sum::<usize>()
        });
    });
}

criterion_group!(benches, access_log, meters, recent, scrape);
criterion_main!(benches);

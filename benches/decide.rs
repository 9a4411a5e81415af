//! Nanoseconds of one decision, by what decides it.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ipnet::{IpNet, Ipv4Net};
use migration_proxy::config::{
    Canary, Cluster, HeaderRule, HostPattern, IpRule, KeyKind, KeySource, Migration, Percent, Sticky, Strategy,
    ValueTest,
};
use migration_proxy::routing::bucket::bucket;
use migration_proxy::routing::decide::{Availability, Facts, Rules, Switches, Untraced, decide};
use migration_proxy::routing::table::Table;

const SHARE: u16 = 2_000;

fn share() -> Percent {
    Percent::from_basis_points(SHARE).expect("a share of at most 100")
}

fn migration(by: &[(&str, KeyKind)]) -> Migration {
    let by: Vec<KeySource> =
        by.iter().map(|(text, kind)| KeySource { text: (*text).to_owned(), kind: kind.clone() }).collect();
    Migration {
        enabled: true,
        strategy: Strategy::Weight,
        percentage: share(),
        max_step: Percent::HUNDRED,
        methods: Vec::new(),
        sticky: (!by.is_empty()).then(|| Sticky { by, salt: "api-name01".to_owned(), set_cookie: None }),
    }
}

/// Twelve fields, as a browser behind an Ingress sends them.
fn request_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "api-name01.teamname.dev.aliyun.intracloud.cn.aibang"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0"),
        ("accept", "application/json, text/plain, */*"),
        ("accept-language", "zh-CN,zh;q=0.9,en;q=0.8"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("cookie", "theme=dark; locale=zh-CN; session=8f14e45fceea167a5a36dedd4bea2543; _ga=GA1.2.1"),
        ("x-user-id", "4711"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "api-name01.teamname.dev.aliyun.intracloud.cn.aibang"),
        ("x-request-id", "7f3c8d1e2b4a4f6e9d0c1b2a3f4e5d6c"),
        ("referer", "https://api-name01.teamname.dev.aliyun.intracloud.cn.aibang/shop"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
}

fn header_rules() -> Vec<HeaderRule> {
    [("x-migration-target", "new"), ("x-migration-target", "old"), ("x-canary", "always")]
        .map(|(name, value)| HeaderRule {
            header: HeaderName::from_static(name),
            test: ValueTest::OneOf(vec![value.to_owned()]),
            target: Cluster::New,
        })
        .into()
}

/// Networks of all sizes from /9 to /32, spread over the address space.
fn ip_rules(count: u32) -> Vec<IpRule> {
    (0..count)
        .map(|number| {
            let address = Ipv4Addr::from(number.wrapping_mul(2_654_435_761));
            let length = 9 + (number % 24) as u8;
            let network = Ipv4Net::new(address, length).expect("a length of at most 32").trunc();
            IpRule { network: IpNet::V4(network), target: if number % 2 == 0 { Cluster::New } else { Cluster::Old } }
        })
        .collect()
}

fn decisions(c: &mut Criterion) {
    let headers = request_headers();
    let header_key = ("header:X-User-Id", KeyKind::Header(HeaderName::from_static("x-user-id")));
    let cookie_key = ("cookie:session", KeyKind::Cookie("session".to_owned()));
    let cases = [
        ("weight only", migration(&[]), Canary::default()),
        ("sticky header", migration(&[header_key]), Canary::default()),
        ("sticky cookie", migration(&[cookie_key]), Canary::default()),
        ("sticky address", migration(&[("client_ip", KeyKind::ClientIp)]), Canary::default()),
        ("header rules", migration(&[]), Canary { header_rules: header_rules(), ..Canary::default() }),
        ("10 000 networks", migration(&[]), Canary { ip_rules: ip_rules(10_000), ..Canary::default() }),
    ];

    let mut group = c.benchmark_group("decide");
    for (name, migration, canary) in cases {
        let rules = Rules::new(&[], &migration, &canary);
        let switches = Switches { safe_mode: false, enabled: true };
        let mut client = 0_u32;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                // Another client each time, so that no look-up runs in a warm cache line only.
                client = client.wrapping_add(2_246_822_519);
                let facts = Facts {
                    method: &Method::GET,
                    path: "/api/v1/orders/4711",
                    headers: &headers,
                    client: IpAddr::V4(Ipv4Addr::from(client)),
                };
                decide(
                    &rules,
                    switches,
                    black_box(share()),
                    || Availability::Available,
                    black_box(&facts),
                    rand::random,
                    &mut Untraced,
                )
            });
        });
    }
    group.finish();
}

fn parts(c: &mut Criterion) {
    c.bench_function("bucket", |bencher| bencher.iter(|| bucket(black_box("api-name01"), black_box(b"user-4711"))));

    let mut table = Table::default();
    for number in 0..500 {
        let host = format!("api-name{number}.teamname.dev.aliyun.intracloud.cn.aibang");
        table.insert(&HostPattern::Exact(host.into()), number);
    }
    let host = "api-name42.teamname.dev.aliyun.intracloud.cn.aibang:8000";
    c.bench_function("host look-up", |bencher| bencher.iter(|| table.find(black_box(host)).copied()));
}

criterion_group!(benches, decisions, parts);
criterion_main!(benches);

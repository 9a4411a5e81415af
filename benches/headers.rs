//! What request and response heads cost: a request of a stranger, one behind an Ingress, and two kinds of answers.

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, Version, request, response};
use migration_proxy::config::{self, Cluster};
use migration_proxy::proxy::headers::{self, Destination, Length};
use migration_proxy::proxy::host::{Host, host};
use migration_proxy::proxy::sender::{RequestId, Scheme, Sender};
use migration_proxy::routing::header_plan::HeaderPlan;

include!("support/service.rs");

type Fields = &'static [(&'static str, &'static str)];

const STRANGER: Fields = &[
    ("host", "old.example"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
    ("accept", "*/*"),
    ("accept-encoding", "gzip, deflate, br"),
    ("cookie", "session=0123456789abcdef"),
    ("connection", "keep-alive"),
];

const BEHIND_INGRESS: Fields = &[
    ("host", "old.example"),
    ("x-request-id", "7f3c0123456789abcdef0123456789ab"),
    ("x-real-ip", "198.51.100.7"),
    ("x-forwarded-for", "198.51.100.7"),
    ("x-forwarded-host", "old.example"),
    ("x-forwarded-port", "443"),
    ("x-forwarded-proto", "https"),
    ("x-scheme", "https"),
    ("user-agent", "curl/8.5"),
    ("accept", "*/*"),
];

const PLAIN_ANSWER: Fields = &[
    ("server", "nginx"),
    ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
    ("content-type", "application/json"),
    ("content-length", "1234"),
    ("connection", "keep-alive"),
];

const LOGIN_ANSWER: Fields = &[
    ("server", "nginx"),
    ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
    ("content-length", "0"),
    ("location", "https://new.example/home"),
    ("set-cookie", "session=0123456789abcdef; Path=/; Domain=new.example; HttpOnly"),
    ("alt-svc", "h3=\":443\""),
];

/// Fields as hyper delivers them: values share one buffer with a counter.
fn map(fields: Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        let shared = bytes::Bytes::from_owner(value.as_bytes().to_vec());
        let value = HeaderValue::from_maybe_shared(shared).expect("the fields above are valid");
        map.append(HeaderName::from_static(name), value);
    }
    map
}

fn head(fields: Fields) -> request::Parts {
    let (mut head, ()) = Request::builder().uri("/api/items?page=2").body(()).expect("a valid head").into_parts();
    head.headers = map(fields);
    head
}

fn answer(fields: Fields) -> response::Parts {
    let (mut head, ()) = Response::new(()).into_parts();
    head.headers = map(fields);
    head
}

fn host_of(fields: Fields) -> Host {
    host(&Request::from_parts(head(fields), ())).expect("a valid host")
}

fn sender<'a>(peer_text: &'a HeaderValue, host: &'a Host, trusted: bool) -> Sender<'a> {
    let peer = IpAddr::from([10, 0, 0, 1]);
    let client = if trusted { IpAddr::from([198, 51, 100, 7]) } else { peer };
    Sender { peer, peer_text, client, trusted, scheme: Scheme::Https, host }
}

fn requests(criterion: &mut Criterion) {
    let plan = HeaderPlan::compile(&default_service());
    let peer_text = HeaderValue::from_static("10.0.0.1");
    let to = Destination { cluster: Cluster::New, version: Version::HTTP_11, tls: true, body: Length::Ended };
    for (name, fields, trusted) in [("stranger", STRANGER, false), ("behind an ingress", BEHIND_INGRESS, true)] {
        let host = host_of(fields);
        let sender = sender(&peer_text, &host, trusted);
        criterion.bench_function(&format!("id, passes, prepare and address: {name}"), |bencher| {
            bencher.iter_batched_ref(
                || head(fields),
                |head| {
                    let id = RequestId::of(&head.headers, &plan);
                    black_box(headers::passes(&head.headers, &plan));
                    headers::prepare(head, &plan, &sender, &id, None);
                    headers::address(head, &plan, &sender, &id, &to);
                },
                BatchSize::SmallInput,
            );
        });
    }
    let kept = head(STRANGER);
    criterion.bench_function("copy of a head", |bencher| bencher.iter(|| headers::copy(black_box(&kept))));
    let request = Request::from_parts(head(STRANGER), ());
    criterion.bench_function("host", |bencher| bencher.iter(|| host(black_box(&request)).map(drop)));
}

fn responses(criterion: &mut Criterion) {
    let plan = HeaderPlan::compile(&default_service());
    let peer_text = HeaderValue::from_static("10.0.0.1");
    let host = host_of(STRANGER);
    let sender = sender(&peer_text, &host, false);
    let id = RequestId::of(&HeaderMap::new(), &plan);
    for (name, fields) in [("plain", PLAIN_ANSWER), ("login", LOGIN_ANSWER)] {
        criterion.bench_function(&format!("to_downstream: {name}"), |bencher| {
            bencher.iter_batched_ref(
                || answer(fields),
                |head| headers::to_downstream(head, &plan, Cluster::New, &sender, &id, Version::HTTP_11),
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group!(benches, requests, responses);
criterion_main!(benches);

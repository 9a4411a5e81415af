//! gRPC, spoken by tonic on both sides: calls of every kind, what surrounds them, their failures and ours.

use std::time::Duration;

use http::Request as HttpRequest;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::support::app::Proxy;
use crate::support::client::Http2;
use crate::support::grpc::{Backend, Caller, Text};
use crate::support::origin::{Answer, End, refused_port};
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

/// Both clusters in clear.
struct Stage {
    clusters: Clusters,
    old: Backend,
    new: Backend,
}

impl Stage {
    fn new() -> Self {
        Self { clusters: Clusters::new(), old: Backend::start("old", None), new: Backend::start("new", None) }
    }

    fn service(&self) -> Service {
        self.clusters
            .service("a")
            .old_backend(self.old.address())
            .new_backend(self.new.address())
            .new_options(&["protocol: h2c"])
            .with("old: {protocol: h2c}")
    }

    fn proxy(&self, service: Service) -> Proxy {
        Proxy::start(&Setup::new([service]))
    }
}

fn caller(proxy: &Proxy) -> Caller {
    Caller::new(proxy.addresses.http, HOST)
}

#[track_caller]
fn assert_calls_of_every_kind(caller: &Caller, side: &str) {
    let said = |text: &str| format!("{side}: {text}");
    assert_eq!(caller.ask("Unary", "hello").unwrap(), said("hello"));
    let long = "x".repeat(3 << 20);
    assert_eq!(caller.ask("Unary", &long).unwrap().len(), said(&long).len());
    assert_eq!(caller.collect(&["a", "b", "c"]).unwrap(), said("a+b+c"));
    assert_eq!(caller.collect(&[]).unwrap(), said(""));
    let (texts, end) = caller.repeat("Repeat", Request::new(Text::new("again")));
    assert_eq!(texts, [0, 1, 2].map(|number| format!("{side} {number}: again")));
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(caller.chat(&["one", "two", "three"]).unwrap(), ["one", "two", "three"].map(said));
}

#[test]
fn calls_of_every_kind_pass_in_clear() {
    let stage = Stage::new();

    for (percentage, side) in [(0, "old"), (100, "new")] {
        let proxy = stage.proxy(stage.service().percentage(percentage));
        assert_calls_of_every_kind(&caller(&proxy), side);
    }
}

#[test]
fn http2_is_agreed_with_new_for_grpc_alone() {
    let clusters = Clusters::with_alpn(&["h2", "http/1.1"]);
    let tls = clusters.authority.server(&["a.new.test"]).server_config(&["h2", "http/1.1"], None);
    let new = Backend::start("new", Some(tls));
    let grpc = clusters.service("a").percentage(100).new_backend(new.address());
    let proxy = Proxy::start(&Setup::new([grpc, clusters.service("b").percentage(100)]));

    assert_calls_of_every_kind(&caller(&proxy), "new");

    proxy.get("b.old.test", "/");
    assert_eq!(clusters.new.last().version, "HTTP/1.1");
}

#[test]
fn metadata_and_trailers_pass_both_ways() {
    let stage = Stage::new();
    let proxy = stage.proxy(stage.service().percentage(100));
    let mut request = Request::new(Text::new("hello"));
    for text in ["one", "two"] {
        request.metadata_mut().append("x-text", MetadataValue::try_from(text).unwrap());
    }
    request.metadata_mut().append_bin("x-bytes-bin", MetadataValue::from_bytes(&[0, 255, 13, 10]));

    let response = caller(&proxy).unary("Unary", request).unwrap();

    let texts: Vec<_> = response.metadata().get_all("x-text").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(texts, ["one", "two"]);
    let bytes = response.metadata().get_bin("x-bytes-bin").unwrap().to_bytes().unwrap();
    assert_eq!(bytes.as_ref(), [0, 255, 13, 10]);
    let (path, asked) = stage.new.last();
    assert_eq!(path, "/test.Echo/Unary");
    assert_eq!(asked.get("te").unwrap(), "trailers");
    assert_eq!(asked.get("content-type").unwrap(), "application/grpc");
}

#[test]
fn errors_pass_as_they_are_with_and_without_a_body() {
    let stage = Stage::new();
    let proxy = stage.proxy(stage.service());
    let caller = caller(&proxy);

    for code in 1..=16 {
        for (method, before) in [("Fail", vec![]), ("FailLate", vec!["one".to_owned(), "two".to_owned()])] {
            let mut request = Request::new(Text::new(""));
            request.metadata_mut().insert("code", code.into());
            let (texts, end) = caller.repeat(method, request);
            let status = end.unwrap_err();
            assert_eq!((status.code(), texts), (Code::from(code), before), "{method} {status:?}");
            assert_eq!((status.message(), status.details()), ("nö: \"50 %\"\n", &[1, 2, 0][..]), "{method}");
            assert_eq!(status.metadata().get("x-why").unwrap(), "asked for", "{method}");
            let bytes = status.metadata().get_bin("x-bytes-bin").unwrap().to_bytes().unwrap();
            assert_eq!(bytes.as_ref(), [0, 255, 10], "{method}");
        }
    }
}

#[test]
fn our_own_failures_are_grpc_statuses() {
    let stage = Stage::new();
    let nowhere = refused_port();
    let alone = stage.service().percentage(100).new_backend(format!("127.0.0.1:{nowhere}"));
    let alone = alone.with("fallback: {enabled: false}\nretry: {attempts: 0}");
    let proxy = stage.proxy(alone);

    let unknown = Caller::new(proxy.addresses.http, "nobody.test").ask("Unary", "").unwrap_err();
    let down = caller(&proxy).ask("Unary", "").unwrap_err();

    assert_eq!((unknown.code(), down.code()), (Code::Unimplemented, Code::Unavailable));
    for status in [&unknown, &down] {
        assert!(status.message().contains("(request "), "{status:?}");
        assert!(!status.message().contains("127.0.0.1"), "{status:?}");
    }
    assert_eq!((stage.old.calls(), stage.new.calls()), (0, 0));
}

#[test]
fn old_answers_while_new_is_down() {
    let mut stage = Stage::new();
    let proxy = stage.proxy(stage.service().percentage(100));
    let caller = caller(&proxy);
    assert_eq!(caller.ask("Unary", "hello").unwrap(), "new: hello");

    stage.new.kill();

    for _ in 0..20 {
        assert_eq!(caller.ask("Unary", "hello").unwrap(), "old: hello");
    }
    stage.old.kill();
    assert_eq!(caller.ask("Unary", "hello").unwrap_err().code(), Code::Unavailable);
}

#[test]
fn the_breaker_hears_of_unavailable_wherever_it_is_said() {
    for (method, is_late) in [("Unary", false), ("FailLate", true)] {
        let stage = Stage::new();
        let proxy = stage.proxy(stage.service().percentage(100).with("fallback: {max_failures: 5}"));
        let caller = caller(&proxy);
        if !is_late {
            stage.new.fail(Some(Code::Unavailable));
        }

        for number in 0..5 {
            assert_eq!(proxy.breaker("a"), "closed", "{method}: after {number} calls");
            let mut request = Request::new(Text::new(""));
            request.metadata_mut().insert("code", 14.into());
            let (_, end) = caller.repeat(method, request);
            assert_eq!(end.unwrap_err().code(), Code::Unavailable, "{method}: it is passed on");
        }

        eventually(PATIENCE, "the breaker opens", || proxy.breaker("a") == "open");
        assert_eq!(caller.ask("Unary", "hello").unwrap(), "old: hello");
    }
}

#[test]
fn other_statuses_are_answers_of_a_sound_cluster() {
    let stage = Stage::new();
    let proxy = stage.proxy(stage.service().percentage(100).with("fallback: {max_failures: 2}"));
    let caller = caller(&proxy);

    for code in [Code::NotFound, Code::InvalidArgument, Code::PermissionDenied, Code::Internal, Code::Unknown] {
        stage.new.fail(Some(code));
        for _ in 0..3 {
            assert_eq!(caller.ask("Unary", "").unwrap_err().code(), code);
        }
    }

    assert_eq!((proxy.breaker("a").as_str(), stage.old.calls()), ("closed", 0));
}

#[test]
fn a_call_without_a_deadline_waits_as_long_as_it_takes() {
    let stage = Stage::new();
    stage.clusters.old.on("/hang", Answer::nothing(End::Hang));
    let timeouts = "timeouts: {response_header: 300ms, total: 300ms}";
    let plain = stage.clusters.service("b").with(timeouts);
    let proxy = Proxy::start(&Setup::new([stage.service().percentage(100).with(timeouts), plain]));

    let answer = std::thread::scope(|scope| {
        let address = proxy.addresses.http;
        let call = scope.spawn(move || Caller::new(address, HOST).ask("Hold", ""));
        eventually(PATIENCE, "the call waits", || stage.new.held() == 1);
        // Another request that began later runs into the deadline.
        assert_eq!(proxy.get("b.old.test", "/hang").status, 504);
        assert_eq!(stage.new.held(), 1);
        stage.new.let_go();
        call.join().unwrap()
    });

    assert_eq!(answer.unwrap(), "new: at last");
}

/// tonic keeps the client's deadline on either side by itself, so the client here is a plain one and the origin hangs.
#[test]
fn the_deadline_of_a_call_is_kept() {
    let stage = Stage::new();
    let hanging = crate::support::origin::Origin::h2c("old");
    hanging.otherwise(Answer::nothing(End::Hang));
    let proxy = stage.proxy(stage.service().old_backend(hanging.address()));
    let client = Http2::plain(proxy.addresses.http);

    for deadline in ["200m", "200000u", "99999999n"] {
        let request = HttpRequest::post(format!("http://{HOST}/test.Echo/Unary"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", deadline)
            .body(vec![0; 5].into())
            .unwrap();
        let response = client.exchange(request).unwrap();

        assert_eq!((response.status, response.header("grpc-status")), (200, Some("4")), "{deadline}: {response:?}");
        assert_eq!(hanging.last().header("grpc-timeout"), Some(deadline), "the origin may keep it too");
    }

    let mut request = Request::new(Text::new(""));
    request.set_timeout(Duration::from_millis(200));
    let status = caller(&proxy).unary("Hold", request).unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
}

#[test]
fn a_call_that_is_left_ends_at_the_backend() {
    let stage = Stage::new();
    let proxy = stage.proxy(stage.service().percentage(100));
    let caller = caller(&proxy);

    caller.leave(|| stage.new.held() == 1);

    // The connection goes on, and its next turn tells of the end.
    assert_eq!(caller.ask("Unary", "hello").unwrap(), "new: hello");
    eventually(PATIENCE, "the backend hears of it", || stage.new.held() == 0);
}

//! `verify`: the same request to both clusters, as those of clients are sent, and what differs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::app::Proxy;
use crate::support::cli::{Finished, finish, program};
use crate::support::origin::{Answer, Origin};
use crate::support::setup::{Clusters, Setup};

/// The field in which the origins of the kit differ.
const SIDES: &str = "headers: {response: {remove: [X-Side]}}";

struct Scene {
    clusters: Clusters,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Self {
        let clusters = Clusters::new();
        let proxy = Proxy::start(&Setup::new([clusters.service("a").with(SIDES)]));
        Self { clusters, proxy }
    }

    /// Both clusters answer `path` so.
    fn both(&self, path: &'static str, old: Answer, new: Answer) {
        self.clusters.old.on(path, old);
        self.clusters.new.on(path, new);
    }

    #[track_caller]
    fn verify(&self, arguments: &[&str]) -> Finished {
        verify(&self.proxy, arguments)
    }
}

#[track_caller]
fn verify(proxy: &Proxy, arguments: &[&str]) -> Finished {
    let mut command = program();
    command.args(["verify", "a"]).args(arguments).args(["--admin", &format!("http://{}", proxy.addresses.admin)]);
    finish(command)
}

#[test]
fn equal_answers_are_equal_whatever_stands_around_them() {
    let scene = Scene::new();
    let body = |text: &str| Answer::side().body(text.to_owned());
    scene.both(
        "/x",
        body(r#"{"a": 1, "b": [true]}"#).header("Server", "nginx").header("Set-Cookie", "s=1; Path=/"),
        body(r#"{"b":[true],"a":1}"#).header("Server", "kong").header("Set-Cookie", "s=2; Path=/").chunked(),
    );
    scene.both("/y", body("same"), body("same"));

    let finished = scene.verify(&["--path", "/x", "--path", "/y"]);

    let text = finished.expect(0);
    assert!(text.contains("GET /x   old 200") && text.contains("~ header server"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("GET /y") && line.ends_with("   equal")), "{text}");
    let json = scene.verify(&["--path", "/x", "--json"]).json();
    assert_eq!((&json["equal"], &json["differences"][0]["volatile"]), (&true.into(), &true.into()));
}

#[test]
fn differences_are_shown_and_end_with_5() {
    let scene = Scene::new();
    scene.both(
        "/x",
        Answer::status(200).body(r#"{"a": 1, "links": ["http://a.old.test/1"]}"#),
        Answer::status(404).body(r#"{"a": 2, "links": ["http://a.new.test/1"]}"#).header("X-Frame-Options", "DENY"),
    );

    let finished = scene.verify(&["--path", "/x"]);

    let text = finished.expect(5);
    for part in ["! status\n    old  200\n    new  404", "! header x-frame-options\n    old  -\n    new  DENY"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    for part in ["! body $.a\n    old  1\n    new  2", "! body names a.new.test", "4 differences"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("$.links"), "one cause is told once: {text}");
}

#[test]
fn both_get_what_a_client_s_request_becomes_and_answers_are_mapped_back() {
    let scene = Scene::new();
    let answer = |scheme: &str, host: &str| {
        let answer = Answer::status(302).body("").header("Location", &format!("{scheme}://{host}/there"));
        answer.header("Set-Cookie", &format!("s=1; Domain={host}"))
    };
    scene.both("/go", answer("http", "a.old.test"), answer("https", "a.new.test"));

    let finished =
        scene.verify(&["--path", "/go?x=1", "--header", "Cookie: k=v", "--header", "X-Forwarded-For: 203.0.113.7"]);

    let text = finished.expect(0);
    assert!(text.contains("note: both redirect"), "{text}");
    let (old, new) = (scene.clusters.old.last(), scene.clusters.new.last());
    assert_eq!(
        (old.host(), new.host(), new.sni.as_deref()),
        (Some("a.old.test"), Some("a.new.test"), Some("a.new.test"))
    );
    for request in [&old, &new] {
        assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/go?x=1"));
        assert_eq!(
            (request.header("cookie"), request.header("x-forwarded-for")),
            (Some("k=v"), Some("203.0.113.7, 127.0.0.1"))
        );
        assert!(request.header("x-request-id").is_some() && request.header("cdn-loop").is_some());
    }
    assert_eq!(scene.proxy.metrics().sum("requests_total", &[("service", "a")]), 0.0);
}

#[test]
fn what_old_says_otherwise_every_time_is_no_difference() {
    let scene = Scene::new();
    let counter = AtomicU64::new(0);
    scene.clusters.old.script(move |request| {
        let seat = counter.fetch_add(1, Ordering::Relaxed);
        (request.target == "/seat").then(|| Answer::side().body(format!(r#"{{"seat": {seat}}}"#)))
    });
    scene.clusters.new.on("/seat", Answer::side().body(r#"{"seat": 77}"#));

    let finished = scene.verify(&["--path", "/seat"]);

    assert!(finished.expect(0).contains("~ body $.seat"), "{finished:?}");
    assert_eq!(scene.clusters.old.requests(), 2);
}

#[test]
fn only_a_method_that_is_named_has_an_effect_and_it_has_it_once() {
    let scene = Scene::new();
    scene.both("/", Answer::status(201), Answer::status(500));

    scene.verify(&["--method", "POST"]).expect(5);

    for origin in [&scene.clusters.old, &scene.clusters.new] {
        assert_eq!((origin.requests(), origin.last().method.as_str()), (1, "POST"));
        assert_eq!(origin.last().header("content-length"), Some("0"));
    }
    for arguments in [["--method", "TRACE"], ["--path", "nowhere"]] {
        scene.verify(&arguments).expect(2);
    }
    let unknown = {
        let mut command = program();
        command.args(["verify", "b", "--admin", &format!("http://{}", scene.proxy.addresses.admin)]);
        finish(command)
    };
    unknown.expect(1);
}

#[test]
fn another_host_of_the_service_can_be_asked_for_and_no_other() {
    let clusters = Clusters::new();
    let service = clusters.service("a").old_host("['*.old.test', b.test]").with(SIDES);
    let proxy = Proxy::start(&Setup::new([service, clusters.service("other").old_host("c.test")]));
    for origin in [&clusters.old, &clusters.new] {
        origin.otherwise(Answer::side().body("same"));
    }

    assert!(verify(&proxy, &[]).expect(0).contains("note: asked for the host health.old.test"));
    verify(&proxy, &["--header", "Host: B.test:8000"]).expect(0);
    assert_eq!(clusters.old.last().host(), Some("B.test:8000"));
    assert_eq!(clusters.new.last().host(), Some("a.new.test"));
    let refused = verify(&proxy, &["--header", "Host: c.test"]);
    refused.expect(2);
    assert!(refused.stderr.contains("no host of this service"), "{refused:?}");
}

#[test]
fn a_side_that_does_not_answer_is_a_difference() {
    let mut scene = Scene::new();
    scene.clusters.new.kill();

    let finished = scene.verify(&[]);

    let text = finished.expect(5);
    // What is said depends on how far the dying cluster got.
    assert!(text.contains("new no answer") && text.contains("! answer"), "{text}");
    assert_eq!(scene.proxy.breaker("a"), "closed");
}

#[test]
fn long_bodies_are_compared_by_their_beginning() {
    let scene = Scene::new();
    let long = 3 << 20;
    scene.both("/long", Answer::pattern(long), Answer::pattern(long + 1));
    scene.both("/cut", Answer::pattern(5_000), Answer::pattern(5_001));

    assert!(scene.verify(&["--path", "/long"]).expect(0).contains("only its beginning is compared"));
    scene.verify(&["--path", "/cut"]).expect(5);
}

#[test]
fn http2_and_clear_text_are_spoken_where_requests_do() {
    let clusters = Clusters::with_alpn(&["h2"]);
    let old = Origin::h2c("old");
    let service = clusters.service("a").old_backend(old.address()).new_option("http_version: \"2\"");
    let proxy = Proxy::start(&Setup::new([service.with("old: {protocol: h2c}").with(SIDES)]));
    old.on("/", Answer::side().body("same"));
    clusters.new.on("/", Answer::side().body("same"));

    verify(&proxy, &[]).expect(0);

    assert_eq!((old.last().version.as_str(), clusters.new.last().version.as_str()), ("HTTP/2.0", "HTTP/2.0"));
    assert_eq!((old.last().host(), clusters.new.last().host()), (Some("a.old.test"), Some("a.new.test")));
}

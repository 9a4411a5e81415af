//! `doctor`: what it finds, what it advises, how it ends, and what it leaves alone.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::support::app::Proxy;
use crate::support::certs::{Authority, Identity};
use crate::support::cli::{Finished, Scratch, Server, finish, program};
use crate::support::client::{Client, Response};
use crate::support::dns::{Dns, at};
use crate::support::origin::{Answer, OnAccept, Origin, refused_port};
use crate::support::setup::{Clusters, Ports, Service, Setup};

/// `doctor` against a proxy in this process.
#[track_caller]
fn doctor(proxy: &Proxy, arguments: &[&str]) -> Finished {
    let mut command = program();
    command.arg("doctor").args(arguments).args(["--admin", &format!("http://{}", proxy.addresses.admin)]);
    finish(command)
}

/// What the API answers.
#[track_caller]
fn post(proxy: &Proxy, path: &str, fields: &[(&str, &str)], body: &str) -> Response {
    let mut client = Client::plain(proxy.addresses.admin);
    client.exchange("POST", "127.0.0.1", path, fields, body.as_bytes()).unwrap()
}

/// The checks of one service.
#[track_caller]
fn checks(proxy: &Proxy, service: &str) -> Vec<Value> {
    let body = json!({"service": service}).to_string();
    let response = post(proxy, "/api/v1/doctor", &[("Content-Type", "application/json")], &body);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["checks"].as_array().expect("checks").clone()
}

/// One check of a cluster, level, finding and fix.
#[track_caller]
fn check(checks: &[Value], cluster: &str, name: &str) -> (String, String, String) {
    let found = checks.iter().filter(|check| check["cluster"] == cluster && check["name"] == name);
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    // The worst counts where there are several.
    let worst = found.max_by_key(|check| ["ok", "warn", "fail"].iter().position(|level| check["level"] == *level));
    let worst = worst.unwrap_or_else(|| panic!("no {cluster} {name} in {checks:#?}"));
    assert_eq!(worst["ok"], worst["level"] != "fail");
    (text(worst, "level"), text(worst, "found"), text(worst, "fix"))
}

#[track_caller]
fn assert_check(checks: &[Value], cluster: &str, name: &str, expected: (&str, &str, &str)) {
    let (level, found, fix) = check(checks, cluster, name);
    assert!(
        level == expected.0 && found.contains(expected.1) && fix.contains(expected.2),
        "{cluster} {name}: {level}: {found}\n  fix: {fix}"
    );
}

fn has(checks: &[Value], name: &str) -> bool {
    checks.iter().any(|check| check["name"] == name)
}

#[test]
fn a_service_that_is_well_has_nothing_to_fix_and_hears_no_request_of_it() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));

    let found = checks(&proxy, "a");

    let port = clusters.new.port();
    assert_check(&found, "old", "tcp", ("ok", "127.0.0.1:", ""));
    assert_check(&found, "new", "tcp", ("ok", &format!("127.0.0.1:{port} in "), ""));
    assert_check(&found, "new", "tls", ("ok", "a.new.test: certificate for *.new.test", ""));
    assert_check(&found, "new", "http", ("ok", "GET / \u{2192} 200 in ", ""));
    assert_check(&found, "new", "websocket", ("ok", "", ""));
    assert_check(&found, "new", "origin", ("ok", "Origin https://a.old.test \u{2192} 200", ""));
    assert!(!has(&found, "mtls") && !has(&found, "loop") && !has(&found, "dns"), "{found:#?}");
    let request = clusters.new.recorded().into_iter().find(|request| request.method == "GET").unwrap();
    assert_eq!((request.host(), request.header("x-forwarded-host")), (Some("a.new.test"), Some("a.old.test")));
    assert!(request.header("cdn-loop").is_some(), "it is made as those of clients are");

    doctor(&proxy, &["a"]).expect(0);
    let metrics = proxy.metrics();
    for name in ["requests_total", "upstream_responses_total", "upstream_connections"] {
        assert_eq!(metrics.sum(name, &[("service", "a")]), 0.0, "{name}");
    }
}

#[test]
fn every_way_not_to_arrive_is_named_with_its_fix() {
    let clusters = Clusters::new();
    let (others, clients) = (Authority::new("somebody else"), Authority::new("clients"));
    let authority = &clusters.authority;
    let tls = |identity: &Identity| Origin::tls("new", identity.server_config(&[], None));
    let stranger = tls(&others.server(&["*.new.test"]));
    let named = tls(&authority.server(&["other.test"]));
    let expired = tls(&authority.expired(&["*.new.test"]));
    let strict = Origin::tls("new", authority.server(&["*.new.test"]).server_config(&[], Some(&clients)));
    let (plain, silent) = (Origin::plain("new"), Origin::plain("new"));
    silent.on_accept(OnAccept::Hang);
    let to = |name: &str, origin: &Origin| clusters.service(name).new_backend(origin.address());
    let (good, bad) = (clients.client("migration-proxy"), others.client("stranger"));
    let with = |service: Service, identity: &Identity| {
        let (cert, key) = (identity.cert.display(), identity.key.display());
        service.new_option(&format!("client_cert: {cert}, client_key: {key}"))
    };
    let proxy = Proxy::start(&Setup::new([
        clusters.service("refused").new_backend(format!("127.0.0.1:{}", refused_port())),
        to("authority", &stranger),
        to("name", &named),
        to("expired", &expired),
        to("plain", &plain),
        to("silent", &silent).with("timeouts: {connect: 1s}"),
        to("unasked", &strict),
        with(to("asked", &strict), &good),
        with(to("wrong", &strict), &bad),
        clusters.service("off").new_options(&["verify: off"]),
    ]));

    for (service, name, expected) in [
        ("refused", "tcp", ("fail", "connection refused", "nothing listens on port")),
        ("authority", "tls", ("fail", "somebody else", "new.ca_file")),
        ("name", "tls", ("fail", "name", "new.sni")),
        ("expired", "tls", ("fail", "expired", "renew")),
        ("plain", "tls", ("fail", "", "new.protocol")),
        ("silent", "tls", ("fail", "no handshake within 1s", "new.protocol")),
        ("unasked", "mtls", ("fail", "client certificate is required", "new.client_cert")),
        ("asked", "mtls", ("ok", "asked for and taken", "")),
        ("wrong", "mtls", ("fail", "refused", "authority that the gateway trusts")),
        ("off", "verify", ("warn", "not verified", "new.ca_file")),
    ] {
        let found = checks(&proxy, service);
        assert_check(&found, "new", name, expected);
        let is_open = matches!(service, "asked" | "off");
        assert_eq!(
            found.iter().any(|check| check["cluster"] == "new" && check["name"] == "http"),
            is_open,
            "{service}"
        );
    }
    let all = doctor(&proxy, &[]);
    let text = all.expect(4);
    assert!(text.contains("fix: set new.sni") && text.contains("fail  new tcp"), "{text}");
    assert!(all.stderr.contains("10 of 10"), "progress of many is told: {}", all.stderr);
}

#[test]
fn names_are_looked_up_and_lead_not_back() {
    let dns = Dns::new();
    let clusters = Clusters::new();
    let old_port = clusters.old.port();
    dns.on("new.cluster.test", at(Ipv4Addr::LOCALHOST.into()));
    dns.on("a.old.test", at(Ipv4Addr::new(127, 0, 0, 9).into()));
    dns.on("b.old.test", at(Ipv4Addr::LOCALHOST.into()));
    dns.on("api.team.svc.cluster.test", at(Ipv4Addr::LOCALHOST.into()));
    dns.resolv_conf(&format!("search svc.cluster.test\nnameserver {}\noptions ndots:5\n", dns.ip()));
    let new_port = clusters.new.port();
    let backend = |name: &str, backend: &str| clusters.service(name).new_backend(format!("{backend}:{new_port}"));
    let proxy = Proxy::start(
        &Setup::new([
            backend("a", "new.cluster.test"),
            backend("b", "new.cluster.test"),
            backend("c", "nobody.some.cluster.test"),
            backend("e", "api.team"),
            clusters.service("d").new_backend(format!("127.0.0.1:{old_port}")).new_options(&["protocol: http"]),
        ])
        .names_from(dns.sources()),
    );

    let found = checks(&proxy, "a");
    assert_check(&found, "new", "dns", ("ok", "new.cluster.test \u{2192} 127.0.0.1 (TTL 1 s)", ""));
    assert!(!has(&found, "loop"));
    assert_check(&checks(&proxy, "b"), "new", "loop", ("fail", "where b.old.test leads", "set new_backend"));
    let found = checks(&proxy, "c");
    assert_check(&found, "new", "dns", ("fail", "no such name", "correct new_backend"));
    assert!(!found.iter().any(|check| check["cluster"] == "new" && check["name"] == "tcp"));
    let longer = "write api.team.svc.cluster.test in new_backend";
    assert_check(&checks(&proxy, "e"), "new", "dns", ("warn", "only as api.team.svc.cluster.test", longer));
    assert_check(&checks(&proxy, "d"), "new", "loop", ("warn", "are both 127.0.0.1", "set new_backend"));
}

#[test]
fn a_new_backend_that_is_the_proxy_itself_is_found() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a")]));
    let itself = clusters.service("a").new_backend(server.addresses.http).new_options(&["protocol: http"]);
    server.file.swap(&server.text(&Setup::new([itself])));
    server.wait_for_generation_after(1);

    let finished = server.command(&["doctor", "a"]);

    let text = finished.expect(4);
    assert!(text.contains("fail  new loop") && text.contains("is this proxy itself"), "{text}");
    assert!(text.contains("a request to new_backend came back"), "what answers knows the id: {text}");
}

#[test]
fn answers_of_new_are_judged_beside_those_of_old() {
    let clusters = Clusters::new();
    let pages = [
        ("gone", Answer::status(404)),
        ("both", Answer::status(404)),
        ("misdirected", Answer::status(421)),
        ("forbidden", Answer::status(403)),
        ("empty", Answer::status(503)),
        ("loops", Answer::status(301).header("Location", "https://loops.new.test/")),
        ("unhealthy", Answer::status(302)),
    ];
    clusters.new.script(move |request| {
        if request.host() == Some("csrf.new.test") && request.method == "POST" {
            let is_own = request.header("origin") == Some("https://csrf.new.test");
            return Some(Answer::status(if is_own { 404 } else { 403 }));
        }
        let is_page = request.method == "GET" && !request.has("upgrade");
        let name = request.host().and_then(|host| host.strip_suffix(".new.test"));
        let page = pages.iter().find(|(page, _)| Some(*page) == name);
        page.filter(|_| is_page).map(|(_, answer)| answer.clone())
    });
    clusters.old.script(|request| match (request.host(), request.header("upgrade")) {
        (Some("both.old.test"), _) => Some(Answer::status(404)),
        (Some("sockets.old.test"), Some("websocket")) => Some(Answer::upgrade("websocket")),
        _ => None,
    });
    let service = |name: &str| clusters.service(name);
    let proxy = Proxy::start(&Setup::new([
        service("gone"),
        service("both"),
        service("misdirected"),
        service("forbidden"),
        service("empty"),
        service("loops"),
        service("unhealthy").with("health_check: {path: /healthz, expect: '200'}"),
        service("sockets"),
        service("csrf"),
        service("mapped").new_host("csrf.new.test").with("headers: {rewrite_origin: true}"),
    ]));

    for (service, name, expected) in [
        ("gone", "http", ("fail", "404", "no route for Host gone.new.test")),
        ("both", "http", ("ok", "404", "")),
        ("misdirected", "http", ("fail", "421", "new.host_header and new.sni")),
        ("forbidden", "http", ("fail", "403", "let 127.0.0.1 in")),
        ("empty", "http", ("fail", "503", "nothing ready behind it")),
        ("loops", "http", ("warn", "a redirect to itself", "listen.trusted_proxies")),
        ("unhealthy", "http", ("fail", "GET /healthz \u{2192} 302", "")),
        ("sockets", "websocket", ("fail", "old answers 101", "allow WebSockets on the new gateway")),
        ("csrf", "origin", ("fail", "a CSRF check", "headers.rewrite_origin: true")),
        ("mapped", "origin", ("ok", "404", "")),
    ] {
        assert_check(&checks(&proxy, service), "new", name, expected);
    }
}

#[test]
fn only_what_the_mode_uses_is_asked() {
    let clusters = Clusters::new();
    let services =
        [clusters.service("relayed").with("mode: passthrough"), clusters.service("sent").with("mode: redirect")];
    let identity = clusters.authority.server(&["*.old.test"]);
    let proxy = Proxy::start(&Setup::new(services).https(&identity));
    let names = |service: &str| -> Vec<String> {
        let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
        let found = checks(&proxy, service).into_iter().filter(|check| check["cluster"].is_string());
        found.map(|check| format!("{} {}", text(&check, "cluster"), text(&check, "name"))).collect()
    };

    assert_eq!(names("relayed"), ["old tcp", "new tcp"]);
    assert_eq!(names("sent"), ["old tcp", "new tcp", "new tls", "old http"]);
    assert_eq!(clusters.new.requests(), 0);
    let body = post(&proxy, "/api/v1/services/relayed/verify", &[("Content-Type", "application/json")], "{}");
    assert_eq!(body.status, 422);
}

#[test]
fn the_process_is_looked_at_too() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));
    let quiet = doctor(&proxy, &["--json"]);
    quiet.expect(0);
    let names = |finished: &Finished| -> Vec<String> {
        let all = finished.json()["checks"].as_array().unwrap().clone();
        let of_process = all.iter().filter(|check| check["service"].is_null());
        of_process.map(|check| check["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&quiet), ["config", "proxies", "state"]);
    let of_service = quiet.json()["checks"].as_array().unwrap().iter().any(|check| check["name"] == "expiry");
    assert!(of_service, "the file of the authority has an end: {quiet:?}");

    proxy.get_with("a.old.test", "/", &[("X-Forwarded-For", "203.0.113.7")]);
    let (seen, text) = (doctor(&proxy, &["--json"]), doctor(&proxy, &[]));

    seen.expect(4);
    assert!(text.expect(4).contains("127.0.0.1 sends X-Forwarded-*"), "{text:?}");
    assert!(text.stdout.contains("fix: add the network of the Ingress pods to listen.trusted_proxies"), "{text:?}");
}

#[test]
fn whoever_may_not_write_may_not_make_the_proxy_ask() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));
    let json = [("Content-Type", "application/json")];
    for path in ["/api/v1/doctor", "/api/v1/services/a/verify"] {
        assert_eq!(post(&proxy, path, &[], "{}").status, 415, "{path}");
        assert_eq!(post(&proxy, path, &json, "{").status, 400, "{path}");
        assert_eq!(post(&proxy, path, &json, r#"{"pfad": 1}"#).status, 422, "{path}");
        let mut client = Client::plain(proxy.addresses.admin);
        assert_eq!(client.exchange("POST", "evil.example", path, &json, b"{}").unwrap().status, 421, "{path}");
        assert_eq!(
            Client::plain(proxy.addresses.admin).exchange("PUT", "127.0.0.1", path, &json, b"{}").unwrap().status,
            405
        );
    }
    assert_eq!(post(&proxy, "/api/v1/doctor", &json, r#"{"service": "nobody"}"#).status, 404);
    assert_eq!(post(&proxy, "/api/v1/services/nobody/verify", &json, "{}").status, 404);
    assert_eq!(clusters.new.requests() + clusters.old.requests(), 0);
    let finished = doctor(&proxy, &["b"]);
    finished.expect(1);
    assert!(finished.stderr.contains("no service b"), "{finished:?}");
}

#[test]
fn with_a_file_no_proxy_is_needed() {
    let clusters = Clusters::new();
    let dead = clusters.service("dead").new_backend(format!("127.0.0.1:{}", refused_port()));
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::new([clusters.service("a"), dead]);
    let file = Scratch::new(setup.text(directory.path(), Ports::ANY));
    let path = file.path();
    let offline = |arguments: &[&str]| {
        let mut command = program();
        command.arg("doctor").args(arguments).arg("-c").arg(&path).args(["--admin", "http://127.0.0.1:9"]);
        finish(command)
    };

    offline(&["a"]).expect(0);
    let all = offline(&[]);
    let text = all.expect(4);
    assert!(text.contains("dead\n") && text.contains("connection refused"), "{text}");
    assert_eq!(offline(&["--json"]).json()["checks"][0]["name"], "config");
    offline(&["b"]).expect(1);
    let broken = Scratch::new("services: [");
    let mut command = program();
    command.args(["doctor", "-c"]).arg(broken.path());
    assert!(finish(command).expect(3).is_empty());
}

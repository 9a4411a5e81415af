//! What operators may change in heads, and what is told of ourselves: operations with every variable, `strip`, `reveal`,
//! `via`, and the switches that leave answers as they are.

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::client::Http2;
use crate::support::origin::{Answer, refused_port};
use crate::support::setup::{Clusters, Setup};

const HOST: &str = "a.old.test";
const NEW: (&str, &str) = ("X-Pin", "new");

fn pinnable(clusters: &Clusters, more: &str) -> Setup {
    let pin = "canary: {header_rules: [{header: X-Pin, value: new, target: new_cluster}]}";
    Setup::new([clusters.service("a").with(pin).with(more)])
}

#[test]
fn every_variable_is_known_in_both_directions_and_on_both_clusters() {
    let clusters = Clusters::new();
    let all = "\"${client_ip}|${old_host}|${new_host}|${request_id}|${target}|$$\"";
    let more = format!("headers: {{request: {{set: {{X-All: {all}}}}}, response: {{add: {{X-All: {all}}}}}}}");
    let setup = pinnable(&clusters, &more).listen("trusted_proxies: [127.0.0.0/8]");
    let proxy = Proxy::start(&setup);

    for (target, pin) in [("old", ("X-Pin", "")), ("new", NEW)] {
        let sent = [pin, ("X-Forwarded-For", "2001:db8::7"), ("X-Request-Id", "id-1")];
        let answer = proxy.get_with("A.Old.Test:8000", "/", &sent);

        let expected = format!("2001:db8::7|a.old.test|a.new.test|id-1|{target}|$");
        let origin = if target == "new" { &clusters.new } else { &clusters.old };
        assert_eq!(origin.last().header("x-all"), Some(expected.as_str()));
        assert_eq!(answer.header("x-all"), Some(expected.as_str()));
    }
}

#[test]
fn old_is_told_that_it_is_old_after_a_failed_try_on_new() {
    let clusters = Clusters::new();
    let more = "headers: {request: {set: {X-To: \"${target}\"}, add: {X-Way: \"to ${target}\"}}}";
    let service = clusters.service("a").percentage(100).with(more);
    let proxy = Proxy::start(&Setup::new([service.new_backend(format!("127.0.0.1:{}", refused_port()))]));

    assert_eq!(proxy.get_with(HOST, "/", &[("X-Way", "from the client")]).side(), Some("old"));

    let seen = clusters.old.last();
    assert_eq!(seen.all("x-to"), ["old"]);
    assert_eq!(seen.all("x-way"), ["from the client", "to old"]);
}

#[test]
fn strip_names_what_is_taken_from_answers_of_new() {
    let clusters = Clusters::new();
    let answer =
        Answer::side().header("Alt-Svc", "h3=\":443\"").header("X-Powered-By", "a").header("X-Powered-By", "b");
    clusters.new.otherwise(answer.clone());
    clusters.old.otherwise(answer);

    for (more, alt_svc, powered_by) in [
        ("", 0, 2),
        ("headers: {strip: [X-Powered-By]}", 1, 0),
        ("headers: {strip: [alt-svc, x-powered-by]}", 0, 0),
        ("headers: {strip: []}", 1, 2),
    ] {
        let proxy = Proxy::start(&pinnable(&clusters, more));
        let count = |pin, name| proxy.get_with(HOST, "/", &[pin]).all(name).len();
        assert_eq!((count(NEW, "alt-svc"), count(NEW, "x-powered-by")), (alt_svc, powered_by), "{more}");
        assert_eq!(
            (count(("X-Pin", ""), "alt-svc"), count(("X-Pin", ""), "x-powered-by")),
            (1, 2),
            "old is left alone"
        );
    }
}

#[test]
fn decisions_are_revealed_to_whom_they_may_be() {
    let clusters = Clusters::new();
    let names = ["x-migration-target", "x-migration-reason", "x-migration-bucket"];
    let sticky = "migration: {percentage: 50, sticky: {by: [\"header:X-User-Id\"]}}";
    let insider: &[(&str, &str)] = &[("X-User-Id", "u1"), ("X-Forwarded-For", "127.0.0.9")];
    let outsider: &[(&str, &str)] = &[("X-User-Id", "u1"), ("X-Forwarded-For", "203.0.113.7")];
    let keyless: &[(&str, &str)] = &[("X-Forwarded-For", "127.0.0.9")];

    for (reveal, sent, expected) in [
        ("off", insider, [false; 3]),
        ("trusted", insider, [true; 3]),
        ("trusted", outsider, [false; 3]),
        ("trusted", keyless, [true, true, false]),
        ("always", outsider, [true; 3]),
    ] {
        let service = clusters.service("a").with(sticky).with(&format!("headers: {{reveal: {reveal}}}"));
        let proxy = Proxy::start(&Setup::new([service]).listen("trusted_proxies: [127.0.0.0/8]"));
        let forged = [("X-Migration-Target", "nowhere")];

        let answer = proxy.get_with(HOST, "/", &[sent, &forged].concat());

        assert_eq!(names.map(|name| answer.header(name).is_some()), expected, "{reveal} {sent:?}");
        if expected[0] {
            assert_eq!(answer.header("x-migration-target"), answer.side(), "{reveal}");
        }
    }
    let default = Proxy::start(&Setup::new([clusters.service("a").with(sticky)]));
    assert_eq!(default.get_with(HOST, "/", outsider).header(names[0]), None, "a stranger sees nothing by default");
}

#[test]
fn via_is_added_both_ways_where_it_is_asked_for() {
    let clusters = Clusters::new();
    clusters.new.otherwise(Answer::side().header("Via", "1.1 gateway"));
    let public = Authority::new("old hosts");

    for (more, client, answered) in [
        ("headers: {via: on}", vec!["1.0 before", "1.1 migration-proxy"], vec!["1.1 gateway", "1.1 migration-proxy"]),
        ("", vec!["1.0 before"], vec!["1.1 gateway"]),
    ] {
        let proxy = Proxy::start(&pinnable(&clusters, more).https(&public.server(&[HOST])));

        let answer = proxy.get_with(HOST, "/", &[NEW, ("Via", "1.0 before")]);
        assert_eq!((clusters.new.last().all("via"), answer.all("via")), (client.clone(), answered), "{more}");
        let from_old = proxy.get(HOST, "/");
        assert_eq!(clusters.old.last().all("via"), &client[1..], "{more}");
        assert_eq!(from_old.all("via"), &client[1..], "{more}");

        let two = Http2::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&["h2"]));
        two.get(&format!("https://{HOST}/"));
        let expected = if more.is_empty() { None } else { Some("2.0 migration-proxy") };
        assert_eq!(clusters.old.last().header("via"), expected, "{more}");
    }
}

#[test]
fn answers_stay_as_they_are_where_nothing_is_to_be_mapped() {
    let clusters = Clusters::new();
    let fields = [
        ("Location", "https://a.new.test/x"),
        ("Content-Location", "https://a.new.test/y"),
        ("Refresh", "5; url=https://a.new.test/z"),
        ("Set-Cookie", "a=b; Domain=a.new.test"),
    ];
    let answer = fields.iter().fold(Answer::status(302), |answer, (name, value)| answer.header(name, value));
    clusters.new.otherwise(answer);
    let more = "headers: {rewrite_location: false, rewrite_cookie_domain: false}";
    let proxy = Proxy::start(&pinnable(&clusters, more));

    let answer = proxy.get_with(HOST, "/", &[NEW]);

    for (name, value) in fields {
        assert_eq!(answer.header(name), Some(value));
    }
}

#[test]
fn scopes_are_judged_on_the_path_as_sent() {
    let clusters = Clusters::new();
    let paths = "paths: [{prefix: /v2/}, {exact: /login}, {regex: \"^/a/[0-9]+$\"}]";
    let scoped = clusters.service("a").percentage(100).with(paths);
    let reads = clusters.service("b").with("migration: {percentage: 100, methods: [GET, OPTIONS]}");
    let proxy = Proxy::start(&Setup::new([scoped, reads]));

    for (target, expected) in [
        ("/v2/x", "new"),
        ("/v2/", "new"),
        ("/v2", "old"),
        ("/V2/x", "old"),
        ("/%762/x", "old"),
        ("//v2/x", "old"),
        ("/login", "new"),
        ("/login?next=/v2/", "new"),
        ("/login/", "old"),
        ("/other?/v2/", "old"),
        ("/a/17", "new"),
        ("/a/17/b", "old"),
        ("/x/a/17", "old"),
    ] {
        assert_eq!(proxy.side(HOST, target, &[]), expected, "{target}");
    }
    for (method, expected) in [("GET", "new"), ("OPTIONS", "new"), ("POST", "old"), ("HEAD", "old"), ("get", "old")] {
        let answer = proxy.client().exchange(method, "b.old.test", "/", &[], b"");
        let side = answer.unwrap();
        let seen = if expected == "new" { clusters.new.last() } else { clusters.old.last() };
        assert_eq!(seen.method, method, "{method}: {}", side.status);
    }
}

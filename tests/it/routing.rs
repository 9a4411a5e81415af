//! Which cluster answers, and why: the decision order, hosts, shares and sticky keys, all seen on the wire.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use crate::support::app::Proxy;
use crate::support::client::{Client, Load, Response};
use crate::support::setup::{Clusters, Setup};
use crate::support::within_five_sigma;

/// Everybody sees the reasons.
const REVEAL: &str = "headers: {reveal: always}";

/// The bucket that CONFIG.md promises, from 0 to 9 999.
fn bucket(salt: &str, key: &str) -> u64 {
    let digest = Sha256::digest([salt.as_bytes(), b"\0", key.as_bytes()].concat());
    u64::from_be_bytes(digest[..8].try_into().unwrap()) % 10_000
}

/// A key of this salt whose bucket lies in the range.
fn key_in(salt: &str, range: std::ops::Range<u64>) -> String {
    (0..).map(|number| format!("user-{number}")).find(|key| range.contains(&bucket(salt, key))).unwrap()
}

fn decision(response: &Response) -> (&str, &str) {
    (response.side().unwrap_or("none"), response.header("x-migration-reason").unwrap_or("none"))
}

/// Source address, method, path, fields, and the side and reason that are expected.
type Row<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], (&'a str, &'a str));

#[test]
fn the_decision_order_holds() {
    let clusters = Clusters::new();
    let service = clusters.service("a").with(REVEAL).with(
        "paths: [{prefix: /in/}]
migration: {percentage: 100, methods: [GET]}
canary:
  header_rules:
    - {header: X-Pin, value: new, target: new_cluster}
    - {header: X-Pin, value: old, target: old_cluster}
  cookie_rules:
    - {cookie: pin, value: old, target: old_cluster}
    - {cookie: pin, value: new, target: new_cluster}
  ip_rules: [{cidr: 127.0.0.0/24, target: new_cluster}, {cidr: 127.0.0.77/32, target: old_cluster}]",
    );
    let proxy = Proxy::start(&Setup::new([service]));
    let (home, elsewhere, pinned_address) = ("127.0.0.1", "127.0.1.1", "127.0.0.77");
    let rows: &[Row] = &[
        (elsewhere, "GET", "/out", &[("X-Pin", "new")], ("old", "scope")),
        (elsewhere, "GET", "/in/", &[], ("new", "hundred")),
        (elsewhere, "POST", "/in/", &[], ("old", "scope")),
        (elsewhere, "POST", "/in/", &[("X-Pin", "new")], ("new", "header")),
        (elsewhere, "GET", "/in/", &[("X-Pin", "old"), ("Cookie", "pin=new")], ("old", "header")),
        (elsewhere, "GET", "/in/", &[("Cookie", "a=b; pin=old")], ("old", "cookie")),
        (elsewhere, "GET", "/in/", &[("X-Pin", "other")], ("new", "hundred")),
        (home, "POST", "/in/", &[], ("new", "ip")),
        (pinned_address, "GET", "/in/", &[], ("old", "ip")),
        (pinned_address, "GET", "/in/", &[("Cookie", "pin=new")], ("new", "cookie")),
    ];

    for (source, method, path, headers, expected) in rows {
        let mut client = Client::plain_from(proxy.addresses.http, source);
        let response = client.exchange(method, "a.old.test", path, headers, b"").unwrap();
        assert_eq!(decision(&response), *expected, "{method} {path} {headers:?} from {source}");
    }
}

#[test]
fn safe_mode_and_disabled_beat_every_rule() {
    let clusters = Clusters::new();
    let pin = "canary: {header_rules: [{header: X-Pin, value: new, target: new_cluster}]}";
    let service = |name| clusters.service(name).with(REVEAL).with(pin);
    let proxy = Proxy::start(&Setup::new([
        service("safe").with("safe_mode: on").with("migration: {enabled: false, percentage: 100}"),
        service("off").with("migration: {enabled: false, percentage: 100}"),
        service("rules").with("migration: {strategy: header, percentage: 100}"),
        service("none").percentage(0),
    ]));

    let ask = |host: &str, headers: &[(&str, &str)]| {
        let response = proxy.get_with(host, "/", headers);
        let (side, reason) = decision(&response);
        format!("{side} {reason}")
    };
    assert_eq!(ask("safe.old.test", &[("X-Pin", "new")]), "old safe_mode");
    assert_eq!(ask("off.old.test", &[("X-Pin", "new")]), "old disabled");
    assert_eq!(ask("rules.old.test", &[("X-Pin", "new")]), "new header");
    assert_eq!(ask("rules.old.test", &[]), "old zero");
    assert_eq!(ask("none.old.test", &[]), "old zero");
}

#[test]
fn hosts_match_without_case_port_and_trailing_dot_and_wildcards_stand_for_one_label() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([
        clusters.service("wild").old_host("\"*.apps.test\"").percentage(0).new_host("wild.new.test"),
        clusters.service("exact").old_host("[exact.apps.test, second.test]").percentage(100),
    ]));

    for (host, expected) in [
        ("one.apps.test", "old"),
        ("ONE.Apps.Test:8000", "old"),
        ("exact.apps.test", "new"),
        ("EXACT.apps.test.", "new"),
        ("second.test:80", "new"),
        ("a.b.apps.test", "404"),
        ("apps.test", "404"),
        ("other.test", "404"),
    ] {
        assert_eq!(proxy.side(host, "/", &[]), expected, "{host}");
    }
}

#[test]
fn an_unknown_host_is_answered_as_configured_counted_and_logged() {
    let clusters = Clusters::new();
    for (setting, status) in [("404", Some(404)), ("421", Some(421)), ("close", None)] {
        let setup = Setup::new([clusters.service("a")]).listen(&format!("unknown_host: {setting}"));
        let proxy = Proxy::start(&setup);

        let result = proxy.client().exchange("GET", "nobody.test", "/unknown", &[], b"");

        assert_eq!(result.ok().map(|response| response.status), status, "{setting}");
        let line = proxy.access_line("/unknown");
        assert_eq!((line.field("service"), line.field("backend")), ("-", "-"), "{setting}");
        assert_eq!(proxy.metrics().sum("rejected_total", &[("cause", "host")]), 1.0, "{setting}");
    }
}

#[test]
fn a_share_without_keys_is_drawn_for_each_request() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a").percentage(20)]).workers(2));

    let tally = Load::new(proxy.addresses.http, "a.old.test").connections(8).run(20_000);

    tally.assert_all_ok();
    assert!(within_five_sigma(tally.side("new"), 20_000, 0.2), "{tally:?}");
    assert_eq!((clusters.new.requests(), clusters.old.requests()), (tally.side("new"), tally.side("old")));
}

#[test]
fn users_are_served_where_their_bucket_says_and_never_move_back() {
    let clusters = Clusters::new();
    let service = |percentage: u64| {
        let sticky = format!("migration: {{percentage: {percentage}, sticky: {{by: [\"header:X-User-Id\"]}}}}");
        clusters.service("a").with("cohort: team").with(REVEAL).with(&sticky)
    };
    let proxy = Proxy::start(&Setup::new([service(20)]));
    let ask = |percentage: u64| -> BTreeMap<String, bool> {
        let mut client = proxy.client();
        let mut seen = BTreeMap::new();
        for number in 0..300 {
            let user = format!("user-{number}");
            let response = client.get_with("a.old.test", "/", &[("X-User-Id", &user)]);
            let bucket = bucket("team", &user);
            let expected = if bucket < percentage * 100 { "new" } else { "old" };
            assert_eq!(decision(&response), (expected, "user"), "{user} has bucket {bucket}");
            let shown = response.header("x-migration-bucket").unwrap();
            assert_eq!(shown, format!("{}.{:02}", bucket / 100, bucket % 100));
            seen.insert(user, expected == "new");
        }
        seen
    };

    let before = ask(20);
    proxy.reload(&Setup::new([service(50)]));
    let after = ask(50);

    assert!(before.iter().all(|(user, new)| !new || after[user]), "a higher share moves nobody back");
}

#[test]
fn the_first_present_key_decides() {
    let clusters = Clusters::new();
    let sticky =
        "migration: {percentage: 50, sticky: {by: [\"header:X-User-Id\", \"cookie:session\", \"jwt:sub\", client_ip]}}";
    let proxy = Proxy::start(&Setup::new([clusters.service("a").with(REVEAL).with(sticky)]));
    let (low, high) = (key_in("a", 0..5_000), key_in("a", 5_000..10_000));
    let token = |subject: &str| {
        let part = |text: String| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text);
        format!("bearer {}.{}.sig", part("{\"alg\":\"none\"}".into()), part(format!("{{\"sub\":\"{subject}\"}}")))
    };
    let cookies = [format!("x=1; session={low}"), format!("session=; session={high}")];
    let address_side = if bucket("a", "127.0.0.1") < 5_000 { "new" } else { "old" };
    let rows: Vec<(Vec<(&str, String)>, &str)> = vec![
        (vec![("X-User-Id", low.clone()), ("Cookie", cookies[1].clone())], "new"),
        (vec![("X-User-Id", format!("  {high}\t")), ("Cookie", cookies[0].clone())], "old"),
        (vec![("X-User-Id", " ".into()), ("Cookie", cookies[0].clone())], "new"),
        (vec![("Cookie", cookies[1].clone()), ("Authorization", token(&low))], "old"),
        (vec![("Authorization", token(&low))], "new"),
        (vec![("Authorization", token(&high))], "old"),
        (vec![("Authorization", "Bearer nonsense".into())], address_side),
        (vec![], address_side),
    ];

    for (headers, expected) in rows {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let response = proxy.get_with("a.old.test", "/", &headers);
        assert_eq!(decision(&response), (expected, "user"), "{headers:?}");
    }
}

#[test]
fn one_cohort_moves_the_same_users() {
    let clusters = Clusters::new();
    let sticky = "migration: {percentage: 30, sticky: {by: [\"header:X-User-Id\"]}}";
    let service = |name| clusters.service(name).with("cohort: together").with(sticky);
    let proxy = Proxy::start(&Setup::new([service("a"), service("b")]));

    for number in 0..100 {
        let user = format!("u{number}");
        let sides = ["a.old.test", "b.old.test"].map(|host| proxy.side(host, "/", &[("X-User-Id", &user)]));
        assert_eq!(sides[0], sides[1], "{user}");
    }
}

#[test]
fn a_browser_without_key_gets_one_that_decides_at_once() {
    let clusters = Clusters::new();
    let sticky = "migration: {percentage: 50, sticky: {by: [\"header:X-User-Id\"], set_cookie: MIGRATION_ID}}";
    let service = clusters.service("a").with(REVEAL).with(sticky);
    let proxy = Proxy::start(&Setup::new([service]));

    for _ in 0..20 {
        let first = proxy.get("a.old.test", "/");
        let cookie = first.header("set-cookie").expect("a key").to_owned();
        let value = cookie.strip_prefix("MIGRATION_ID=").unwrap().split(';').next().unwrap().to_owned();
        let again = proxy.get_with("a.old.test", "/", &[("Cookie", &format!("MIGRATION_ID={value}"))]);

        let expected = if bucket("a", &value) < 5_000 { "new" } else { "old" };
        assert_eq!((decision(&first), decision(&again)), ((expected, "user"), (expected, "user")));
        for attribute in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=2592000"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert!(!cookie.contains("Secure") && again.header("set-cookie").is_none(), "{cookie}");
    }
    let keyed = proxy.get_with("a.old.test", "/", &[("X-User-Id", "somebody")]);
    assert_eq!(keyed.header("set-cookie"), None);
}

#[test]
fn no_key_cookie_on_public_answers() {
    let clusters = Clusters::new();
    let answer = crate::support::origin::Answer::side().header("Cache-Control", "public, max-age=60");
    clusters.old.otherwise(answer.clone());
    clusters.new.otherwise(answer);
    let sticky = "migration: {percentage: 50, sticky: {by: [\"header:X-User-Id\"], set_cookie: MIGRATION_ID}}";
    let proxy = Proxy::start(&Setup::new([clusters.service("a").with(sticky)]));

    assert_eq!(proxy.get("a.old.test", "/").header("set-cookie"), None);
}

#[test]
fn an_address_rule_believes_only_trusted_proxies() {
    let clusters = Clusters::new();
    let service = clusters.service("a").with("canary: {ip_rules: [{cidr: 203.0.113.0/24, target: new_cluster}]}");
    let proxy = Proxy::start(&Setup::new([service]).listen("trusted_proxies: [127.0.0.2/32, 10.0.0.0/8]"));
    let ask = |source: &str, forwarded: &str| {
        let mut client = Client::plain_from(proxy.addresses.http, source);
        client.get_with("a.old.test", "/", &[("X-Forwarded-For", forwarded)]).side().unwrap().to_owned()
    };

    for (source, forwarded, expected) in [
        ("127.0.0.2", "203.0.113.9", "new"),
        ("127.0.0.2", "203.0.113.9, 10.1.1.1", "new"),
        ("127.0.0.2", "203.0.113.9, 198.51.100.1", "old"),
        ("127.0.0.2", "198.51.100.1, 203.0.113.9:4711", "new"),
        ("127.0.0.2", "203.0.113.9, nonsense, 10.1.1.1", "old"),
        ("127.0.0.1", "203.0.113.9", "old"),
    ] {
        assert_eq!(ask(source, forwarded), expected, "{forwarded} from {source}");
    }
}

#[test]
fn only_listed_clients_may_choose_and_their_header_can_be_hidden() {
    let clusters = Clusters::new();
    let service = clusters.service("a").with(
        "canary:
  header_rules: [{header: X-Pin, present: true, target: new_cluster}]
  only_from: [127.0.0.5/32]
  strip_header: true",
    );
    let proxy = Proxy::start(&Setup::new([service]));
    let ask = |source: &str| {
        let mut client = Client::plain_from(proxy.addresses.http, source);
        client.get_with("a.old.test", "/", &[("X-Pin", "")]).side().unwrap().to_owned()
    };

    assert_eq!((ask("127.0.0.5").as_str(), ask("127.0.0.6").as_str()), ("new", "old"));
    assert!(!clusters.new.last().has("x-pin") && !clusters.old.last().has("x-pin"));
}

#[test]
fn a_redirect_is_for_requests_that_new_would_get() {
    let clusters = Clusters::new();
    let service = clusters.service("a").with("mode: redirect").with("redirect: {code: 308}").with(
        "migration: {percentage: 100}
canary: {header_rules: [{header: X-Pin, value: old, target: old_cluster}]}",
    );
    let proxy = Proxy::start(&Setup::new([service]));

    let response = proxy.get("a.old.test", "/x/y?z=1");

    assert_eq!(response.status, 308);
    assert_eq!(response.header("location"), Some("https://a.new.test/x/y?z=1"));
    assert_eq!(proxy.access_line("/x/y?z=1").field("reason"), "redirect");
    assert_eq!(proxy.side("a.old.test", "/", &[("X-Pin", "old")]), "old");
    assert_eq!(clusters.new.requests(), 0);
}

/// Requests that every step of the decision has a word in, with a fixed seed.
#[test]
fn explanations_and_traffic_agree() {
    let clusters = Clusters::new();
    let service = clusters.service("a").with(REVEAL).with(
        "paths: [{prefix: /shop}, {regex: \"/a/[0-9]+\"}]
migration: {percentage: 35, methods: [GET, HEAD], sticky: {by: [\"header:X-User-Id\", \"cookie:session\"]}}
canary: {header_rules: [{header: X-Pin, value: new, target: new_cluster}, {header: X-Pin, prefix: old, target: old_cluster}],
  cookie_rules: [{cookie: beta, present: true, target: new_cluster}],
  ip_rules: [{cidr: 203.0.113.0/24, target: new_cluster}, {cidr: 203.0.113.7/32, target: old_cluster}]}",
    );
    let proxy = Proxy::start(&Setup::new([service]).listen("trusted_proxies: [127.0.0.1/32]"));
    let mut client = proxy.client();
    let mut dice = StdRng::seed_from_u64(20_260_101);
    let mut seen = BTreeMap::new();

    for _ in 0..1_000 {
        let (method, target, headers) = random_request(&mut dice);
        let fields: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let response = client.exchange(method, "a.old.test", target, &fields, b"").unwrap();
        let query: String = headers.iter().map(|(name, value)| format!("&header={name}:{value}")).collect();
        let address = headers.iter().find(|(name, _)| *name == "X-Forwarded-For").map_or("127.0.0.1", |(_, ip)| ip);
        let query = format!("host=a.old.test&path={target}&method={method}&client_ip={address}{query}");
        let told = proxy.admin(&format!("/api/v1/explain?{query}")).json();

        let header = |name| response.header(name).unwrap_or("none");
        let (side, reason) = (header("x-migration-target"), header("x-migration-reason"));
        let target = told["target"].as_str().unwrap();
        assert_eq!(told["reason"], reason, "{query}: {told}");
        assert!(target == side || target == "draw", "{query}: {side}, {told}");
        *seen.entry(reason.to_owned()).or_insert(0) += 1;
    }

    for reason in ["scope", "header", "cookie", "ip", "user", "weight"] {
        assert!(seen.get(reason).is_some_and(|count| *count >= 10), "{reason} in {seen:?}");
    }
    let pinned = proxy.admin("/api/v1/explain?host=a.old.test&path=/shop&header=x-pin:new").json();
    assert_eq!(pinned["rule"], "canary.header_rules[0]");
}

fn random_request(dice: &mut StdRng) -> (&'static str, &'static str, Vec<(&'static str, String)>) {
    let mut headers = Vec::new();
    if dice.random_ratio(1, 2) {
        headers.push(("X-User-Id", format!("u{}", dice.random_range(0..500))));
    }
    if dice.random_ratio(1, 8) {
        headers.push(("X-Pin", ["new", "old-1", "other"][dice.random_range(0..3)].to_owned()));
    }
    if dice.random_ratio(1, 3) {
        let name = ["session", "beta", "theme"][dice.random_range(0..3)];
        headers.push(("Cookie", format!("{name}={}", dice.random_range(0..500))));
    }
    if dice.random_ratio(1, 4) {
        headers.push(("X-Forwarded-For", format!("203.0.{}.{}", dice.random_range(112..115), dice.random_range(6..9))));
    }
    let method = ["GET", "GET", "GET", "HEAD", "DELETE"][dice.random_range(0..5)];
    let target = ["/shop", "/shop/cart", "/a/17", "/a/b", "/"][dice.random_range(0..5)];
    (method, target, headers)
}

#[test]
fn two_workers_decide_alike() {
    let clusters = Clusters::new();
    let sticky = "migration: {percentage: 50, sticky: {by: [\"header:X-User-Id\"]}}";
    let proxy = Proxy::start(&Setup::new([clusters.service("a").with(sticky)]).workers(2));
    let users: Arc<Vec<String>> = Arc::new((0..10).map(|number| format!("u{number}")).collect());
    let expected = users.iter().filter(|user| bucket("a", user) < 5_000).count() as u64;

    let load = Load::new(proxy.addresses.http, "a.old.test")
        .connections(8)
        .fields(move |number| vec![("X-User-Id".into(), users[number as usize % users.len()].clone())]);
    let tally = load.run(1_000);

    tally.assert_all_ok();
    assert_eq!(tally.side("new"), expected * 100);
}

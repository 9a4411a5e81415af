//! What changed, who comes, what a file would change, and the way back to an earlier file.

use std::fs;

use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::cli::{Finished, Scratch, Server};
use crate::support::eventually;
use crate::support::setup::{Clusters, Setup};

const A: &str = "a.old.test";
const B: &str = "b.old.test";

fn two(clusters: &Clusters, a: u64, b: u64) -> Setup {
    Setup::new([clusters.service("a").percentage(a), clusters.service("b").percentage(b)])
}

fn history(server: &Server, query: &str) -> Vec<Value> {
    let answer = server.admin(&format!("/api/v1/history{query}")).json();
    answer["history"].as_array().unwrap().clone()
}

fn share(server: &Server, service: &str) -> Value {
    server.service(service)["percentage"]["effective"].clone()
}

fn hash(server: &Server) -> String {
    server.status()["config"]["hash"].as_str().unwrap().to_owned()
}

/// Writes another file and waits until it serves.
fn serve(server: &Server, setup: &Setup) -> String {
    let before = server.generation();
    server.file.swap(&server.text(setup));
    server.wait_for_generation_after(before);
    hash(server)
}

fn check(server: &Server, text: &str, flags: &[&str]) -> Finished {
    let url = server.admin_url();
    let flags: Vec<&str> = ["--against", &url].into_iter().chain(flags.iter().copied()).collect();
    Scratch::new(text).check(&flags)
}

#[test]
fn what_happened_is_told_with_the_way_back() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 10, 0));
    let first = hash(&server);
    server.command(&["update", "*", "60", "--reason", "ticket 1"]).expect(0);
    server.command(&["freeze", "on", "b"]).expect(0);
    server.command(&["update", "nobody", "5"]).expect(1);
    let second = serve(&server, &two(&clusters, 25, 0));

    let entries = history(&server, "");
    let config = &entries[0];
    assert_eq!((&config["config"], &config["before"]), (&json!(second), &json!(first)));
    assert_eq!(config["by"], "file");
    assert_eq!(config["undo"], json!([format!("migration-proxy rollback --config {}", &first[..12])]));
    assert_eq!(config["changes"], json!([{"kind": "cleared", "service": "a", "from": 60, "to": 25}]));
    assert_eq!(entries[1]["changes"][0]["kind"], "freeze");
    assert_eq!(entries[1]["undo"], json!(["migration-proxy freeze off b"]));
    assert_eq!((&entries[2]["by"], &entries[2]["reason"]), (&json!("loopback"), &json!("ticket 1")));
    assert_eq!(
        entries[2]["undo"],
        json!(["migration-proxy rollback a --to 10", "migration-proxy rollback b --to 0"]),
        "a pattern is one entry"
    );
    assert_eq!((&entries[3]["config"], entries.len()), (&json!(first), 4), "a refusal changed nothing");
    assert_eq!(history(&server, "?service=b&limit=1")[0]["changes"][0]["kind"], "freeze");

    eventually(PATIENCE, "it is stored", || {
        fs::read_to_string(server.state_file("history/events.jsonl")).is_ok_and(|text| text.lines().count() == 4)
    });
    server.kill_and_restart();
    assert_eq!(history(&server, ""), entries);
    let told = server.command(&["history", "a"]);
    let text = told.expect(0);
    for part in [
        "60 % \u{2192} 25 %",
        "a: 10 % \u{2192} 60 %",
        "\u{201c}ticket 1\u{201d}",
        "back: migration-proxy rollback a --to 10",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("b:"), "{text}");
    server.command(&["history", "nobody"]).expect(1);
    assert!(server.command(&["history", "--json"]).json()["history"].is_array());
}

#[test]
fn every_change_of_a_file_is_audited_once_with_its_generation() {
    let clusters = Clusters::new();
    let server = Server::start(&two(&clusters, 10, 0));
    server.command(&["update", "a", "60"]).expect(0);
    let changed = Setup::new([
        clusters.service("a").percentage(25).with("paths: [{prefix: /v2/}]"),
        clusters.service("b").percentage(5).new_host("c.new.test"),
    ]);
    serve(&server, &changed);

    let lines = server.audit_lines();
    let lines: Vec<&str> = lines
        .iter()
        .map(|line| line.split_once("AUDIT - ").unwrap().1)
        .filter(|line| line.contains("\"file\""))
        .collect();
    let expected = [
        r#"cleared service="a" from=60 to=25 by="file" generation=2"#,
        r#"percentage service="b" from=0 to=5 by="file" generation=2"#,
        r#"config service="a" key="paths" from="all" to="/v2/*" by="file" generation=2"#,
        r#"config service="b" key="new_host" from="b.new.test" to="c.new.test" by="file" generation=2"#,
    ];
    assert_eq!(&lines[..4], expected, "{lines:#?}");
    assert!(lines[4].starts_with("config from=") && lines.len() == 5, "{lines:#?}");
    let first = &server.audit_lines()[0];
    assert!(first.contains(r#"from=10 to=60 by="loopback" claimed="#) && first.ends_with(" generation=1"), "{first}");
}

#[test]
fn an_earlier_file_serves_until_the_file_changes() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 10, 0));
    let first = hash(&server);
    let second = serve(&server, &two(&clusters, 80, 0));
    server.command(&["update", "a", "90"]).expect(0);

    let told = server.command(&["rollback", "--config", &first[..8], "--reason", "p99"]);
    assert!(told.expect(0).contains("a: 90 % \u{2192} 10 %"), "{told:?}");
    assert_eq!((hash(&server), share(&server, "a")), (first.clone(), json!(10)), "overrides are judged against it");
    let status = server.status();
    assert_eq!(status["config"]["pinned"]["hash"], json!(first));
    assert_eq!(
        (&status["config"]["pinned"]["by"], &status["config"]["pinned"]["reason"]),
        (&json!("loopback"), &json!("p99"))
    );
    assert!(status["degraded"].to_string().contains("pinned"), "{}", status["degraded"]);
    let audit = server.audit_lines().join("\n");
    assert!(
        audit.contains(&format!(r#"config from="{}" to="{}" by="loopback""#, &second[..12], &first[..12])),
        "{audit}"
    );
    assert!(audit.contains(r#"cleared service="a" from=90 to=10 by="loopback""#), "{audit}");
    assert_eq!(
        (&history(&server, "")[0]["by"], &history(&server, "")[0]["reason"]),
        (&json!("loopback"), &json!("p99"))
    );

    server.kill_and_restart();
    assert_eq!((hash(&server), share(&server, "a")), (first.clone(), json!(10)), "also after a restart");
    server.file.swap(&server.text(&two(&clusters, 80, 0)));
    server.signal("HUP");
    server.wait_for_line(&["reload requested"]);
    eventually(PATIENCE, "the same text is no change", || server.stderr().contains("configuration unchanged"));
    assert_eq!(hash(&server), first);

    serve(&server, &two(&clusters, 81, 0));
    assert_eq!(share(&server, "a"), json!(81));
    assert!(server.status()["config"]["pinned"].is_null());
    server.kill_and_restart();
    assert_eq!(share(&server, "a"), json!(81));
}

#[test]
fn a_start_follows_a_file_that_changed_while_an_earlier_one_was_pinned() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 10, 0));
    let first = hash(&server);
    serve(&server, &two(&clusters, 80, 0));
    server.command(&["rollback", "--config", &first]).expect(0);
    server.file.swap("services: [");
    eventually(PATIENCE, "the broken file is noticed", || server.status()["config"]["last_error"].is_string());
    assert_eq!(hash(&server), first);

    server.file.swap(&server.text(&two(&clusters, 80, 0)));
    eventually(PATIENCE, "it is as it was", || server.status()["config"]["last_error"].is_null());
    assert_eq!(hash(&server), first);

    server.file.swap(&server.text(&two(&clusters, 70, 0)));
    server.kill_and_restart();
    assert_eq!(share(&server, "a"), json!(70));
    assert!(server.status()["config"]["pinned"].is_null());
}

/// A server whose file declares 80 % of `a` on new, while an earlier one with 10 % is pinned and everything is stored.
/// Gives the hash of what is pinned.
fn with_pin(first: &Setup, second: &Setup) -> (Server, String) {
    let server = Server::start(first);
    let pinned = hash(&server);
    serve(&server, second);
    server.command(&["rollback", "--config", &pinned]).expect(0);
    let holds = |name: &str| fs::read_to_string(server.state_file(name)).is_ok_and(|text| text.contains(&pinned));
    eventually(PATIENCE, "it is stored", || holds("history/pinned.json") && holds("last-good.yaml"));
    (server, pinned)
}

fn pinned(server: &Server) -> Value {
    server.status()["config"]["pinned"]["hash"].clone()
}

fn degraded(server: &Server) -> String {
    server.status()["degraded"].to_string()
}

#[test]
fn a_pin_that_cannot_be_followed_at_a_start_stays_and_is_loud() {
    const LOUD: &str = "the pinned configuration cannot serve, the file does";
    let clusters = Clusters::new();
    let scratch = tempfile::tempdir().unwrap();
    let trusted = scratch.path().join("ca.crt");
    fs::copy(clusters.authority.file(), &trusted).unwrap();
    let option = format!("ca_file: {}", trusted.display());
    let first =
        Setup::new([clusters.service("a").percentage(10).new_options(&[&option]), clusters.service("b").percentage(0)]);
    let (mut server, first) = with_pin(&first, &two(&clusters, 80, 0));
    let stored = server.state_file(&format!("history/{first}.yaml"));
    let (text, last_good) = (fs::read(&stored).unwrap(), server.state_file("last-good.yaml"));

    // Once it is not to be had, once it cannot be served: only what it names is missing.
    for (lost, why) in [(&stored, "is lost"), (&trusted, "ca.crt")] {
        let kept = fs::read(lost).unwrap();
        fs::remove_file(lost).unwrap();
        fs::write(&last_good, "damaged").unwrap();
        server.kill_and_restart();

        assert_eq!((share(&server, "a"), pinned(&server)), (json!(80), json!(first)), "{why}");
        let said = degraded(&server);
        assert!(said.contains(LOUD) && said.contains(why) && !said.contains("is not followed"), "{said}");
        server.wait_for_line(&["ERROR", LOUD, why]);
        fs::write(lost, kept).unwrap();

        server.kill_and_restart();
        assert_eq!((share(&server, "a"), pinned(&server)), (json!(10), json!(first)), "it serves as soon as it can");
        assert!(!degraded(&server).contains(LOUD), "{}", degraded(&server));
    }

    fs::remove_file(&trusted).unwrap();
    fs::write(&stored, text).unwrap();
    server.kill_and_restart();
    assert!(degraded(&server).contains(LOUD));
    serve(&server, &two(&clusters, 81, 0));
    assert_eq!((share(&server, "a"), pinned(&server)), (json!(81), Value::Null), "another file ends it");
    assert!(!degraded(&server).contains(LOUD), "{}", degraded(&server));
}

#[test]
fn the_last_good_copy_serves_a_pin_whose_own_copy_is_lost() {
    let clusters = Clusters::new();
    let (mut server, first) = with_pin(&two(&clusters, 10, 0), &two(&clusters, 80, 0));
    let stored = server.state_file(&format!("history/{first}.yaml"));
    fs::remove_file(&stored).unwrap();

    server.kill_and_restart();

    assert_eq!((hash(&server), share(&server, "a"), pinned(&server)), (first.clone(), json!(10), json!(first)));
    assert!(!degraded(&server).contains("cannot serve"), "{}", degraded(&server));
    eventually(PATIENCE, "there is a copy again", || stored.exists());
}

#[test]
fn a_start_with_a_broken_file_ends_no_pin() {
    let clusters = Clusters::new();
    let (mut server, first) = with_pin(&two(&clusters, 10, 0), &two(&clusters, 80, 0));
    let follows_pin = |server: &Server| {
        assert_eq!((hash(server), share(server, "a"), pinned(server)), (first.clone(), json!(10), json!(first)));
    };

    server.file.swap("services: [");
    server.kill_and_restart();
    follows_pin(&server);
    assert!(server.status()["config"]["last_error"].is_string());
    server.kill_and_restart();
    follows_pin(&server);

    server.file.swap(&server.text(&two(&clusters, 80, 0)));
    eventually(PATIENCE, "it is as it was", || server.status()["config"]["last_error"].is_null());
    follows_pin(&server);
    assert!(!degraded(&server).contains("last good"), "nothing is broken any more: {}", degraded(&server));
    serve(&server, &two(&clusters, 70, 0));
    assert_eq!((share(&server, "a"), pinned(&server)), (json!(70), Value::Null));
}

#[test]
fn unknown_and_damaged_configurations_change_nothing() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 10, 0));
    let first = hash(&server);
    let second = serve(&server, &two(&clusters, 80, 0));

    let told = server.command(&["rollback", "--config", "0123456789abcdef"]);
    told.expect(4);
    assert!(told.stderr.contains("known are") && told.stderr.contains(&first[..12]), "{}", told.stderr);
    server.command(&["rollback", "--config", ""]).expect(2);
    server.command(&["rollback"]).expect(2);
    server.command(&["rollback", "a", "--config", &first]).expect(2);

    let file = server.state_file(&format!("history/{first}.yaml"));
    eventually(PATIENCE, "it is stored", || file.exists());
    fs::write(&file, "nonsense").unwrap();
    fs::write(server.state_file("history/events.jsonl"), "nonsense\n").unwrap();
    server.kill_and_restart();
    server.command(&["rollback", "--config", &first]).expect(4);
    assert_eq!(hash(&server), second);
    assert!(server.stderr().contains("an accepted file of the history cannot be used"), "{}", server.stderr());
    assert!(server.stderr().contains("entries of the history cannot be read"), "{}", server.stderr());
}

#[test]
fn decisions_and_callers_are_listed() {
    let clusters = Clusters::new();
    let server = Server::start(&two(&clusters, 100, 0));
    server.get_with(A, "/secret/path?token=s3cret", &[("User-Agent", "curl/8.5"), ("X-Token", "s3cret")]);
    server.get_with(B, "/b", &[("User-Agent", "Go-http-client/1.1")]);
    server.get_with(B, "/b", &[("User-Agent", "Go-http-client/1.1")]);

    let newest = |query: &str| server.admin(&format!("/api/v1/decisions{query}")).json();
    eventually(PATIENCE, "all have ended", || newest("")["decisions"].as_array().unwrap().len() == 3);
    let one = &newest("?service=a")["decisions"][0];
    let expected = json!({"service": "a", "client": "127.0.0.1", "method": "GET", "path": "/secret/path",
        "path_cut": false, "target": "new", "reason": "hundred", "bucket": null, "status": 200});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&one[key], value, "{key}");
    }
    assert!(!newest("").to_string().contains("s3cret"));
    assert_eq!(newest("?limit=1")["decisions"][0]["service"], "b");
    assert_eq!(server.admin("/api/v1/decisions?limit=1001").status, 422);
    assert_eq!(server.admin("/api/v1/decisions?service=x").status, 404);

    let callers = server.command(&["callers", "--json"]).json();
    assert_eq!(callers["callers"][0]["agent"], "Go-http-client");
    assert_eq!(callers["callers"][0]["requests"], 2);
    assert_eq!(callers["callers"][1]["network"], "127.0.0.0/24");
    let told = server.command(&["callers", "a"]);
    let text = told.expect(0);
    assert!(text.contains("curl") && !text.contains("Go-http") && text.contains(" ago"), "{text}");
    server.command(&["callers", "x"]).expect(1);
}

#[test]
fn a_file_is_compared_with_what_serves_and_changes_nothing() {
    let clusters = Clusters::new();
    let setup = two(&clusters, 10, 0);
    let server = Server::start(&setup);
    for _ in 0..50 {
        server.get(A, "/");
    }
    eventually(PATIENCE, "all have ended", || {
        server.admin("/api/v1/decisions").json()["decisions"].as_array().unwrap().len() == 50
    });

    let same = check(&server, &server.text(&setup), &[]);
    assert!(same.expect(0).contains("serves the same already"), "{same:?}");

    let other = Setup::new([clusters.service("a").percentage(60), clusters.service("fresh").percentage(0)]);
    let told = check(&server, &server.text(&other), &[]);
    let text = told.expect(5);
    for part in [
        "a: 10 % \u{2192} 60 %",
        "b: loses b.old.test",
        "fresh: gains fresh.old.test",
        "25 would move to new, 0 back to old",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json = check(&server, &server.text(&other), &["--json"]).json();
    assert_eq!((&json["traffic"]["requests"], &json["traffic"]["to_new"]), (&json!(50), &json!(25)));
    assert!(json["problems"].is_array() && json["changes"].as_array().unwrap().len() >= 4, "{json:#}");

    let lost = Setup::new([clusters.service("a").old_host("x.old.test").percentage(10)]);
    let told = check(&server, &server.text(&lost), &[]);
    assert!(told.expect(5).contains("would be lost: a.old.test"), "{told:?}");
    check(&server, "services: [", &[]).expect(3);
    assert_eq!((share(&server, "a"), server.generation()), (json!(10), 1));
}

#[test]
fn a_host_with_traffic_is_not_lost_in_silence() {
    let clusters = Clusters::new();
    let wild = |hosts: &str| Setup::new([clusters.service("a").old_host(hosts).percentage(0)]);
    let server = Server::start(&wild("[a.old.test, '*.wild.test']"));
    server.get("x.wild.test", "/");

    let refusing = wild("a.old.test").top("# refuse").with_reload("on_lost_host: refuse");
    server.file.swap(&server.text(&refusing));
    eventually(PATIENCE, "it is refused", || server.status()["config"]["last_error"].is_string());
    let status = server.status();
    let error = status["config"]["last_error"].as_str().unwrap();
    assert!(error.contains("reload.on_lost_host") && error.contains("x.wild.test"), "{error}");
    assert_eq!(server.get("x.wild.test", "/").status, 200);

    serve(&server, &wild("a.old.test"));
    assert_eq!(server.get("x.wild.test", "/").status, 404);
    let degraded = server.status()["degraded"].to_string();
    assert!(degraded.contains("dropped hosts that had traffic: x.wild.test"), "{degraded}");
    server.wait_for_line(&["WARN", "x.wild.test"]);

    serve(&server, &wild("a.old.test").top("# another"));
    assert!(!server.status()["degraded"].to_string().contains("x.wild.test"));
}

//! What commands change apart from the file, what survives, and what happens when it cannot.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::certs::Authority;
use crate::support::cli::Server;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::setup::{Clusters, Setup};

const A: &str = "a.old.test";
const B: &str = "b.old.test";

fn two(clusters: &Clusters, a: u64, b: u64) -> Setup {
    Setup::new([clusters.service("a").percentage(a), clusters.service("b").percentage(b)])
}

fn share(server: &Server, service: &str) -> Value {
    server.service(service)["percentage"].clone()
}

fn audit(server: &Server) -> String {
    server.audit_lines().join("\n")
}

fn shares(declared: f64, effective: f64) -> Value {
    let number = |value: f64| if value.fract() == 0.0 { json!(value as i64) } else { json!(value) };
    json!({"declared": number(declared), "effective": number(effective), "confirm_by": null})
}

#[test]
fn commands_survive_kill_and_a_resync_but_not_another_declared_value() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 10, 0));

    let told = server.command(&["update", "a", "100", "--reason", "go"]);
    assert_eq!(told.expect(0), "a: 10 % \u{2192} 100 %      undo: migration-proxy rollback a --to 10\n");
    assert_eq!(server.side(A, "/", &[]), "new");
    server.command(&["update", "*", "+12.5"]).expect(0);
    assert_eq!(share(&server, "b"), shares(0.0, 12.5));

    server.kill_and_restart();
    assert_eq!((share(&server, "a"), share(&server, "b")), (shares(10.0, 100.0), shares(0.0, 12.5)));
    server.file.swap(&format!("{}# a comment\n", server.text(&two(&clusters, 10, 0))));
    eventually(PATIENCE, "the file is read again", || server.generation() == 2);
    assert_eq!(share(&server, "a"), shares(10.0, 100.0));

    server.file.swap(&server.text(&two(&clusters, 25, 0)));
    eventually(PATIENCE, "the file wins", || share(&server, "a") == shares(25.0, 25.0));
    assert_eq!(share(&server, "b"), shares(0.0, 12.5), "the other service keeps its override");
    server.file.swap(&server.text(&two(&clusters, 10, 0)));
    eventually(PATIENCE, "going back revives nothing", || share(&server, "a") == shares(10.0, 10.0));

    let lines = audit(&server);
    for line in [
        r#"AUDIT - percentage service="a" from=10 to=100 by="loopback" claimed=""#,
        r#"AUDIT - cleared service="a" from=100 to=25 by="file""#,
    ] {
        assert!(lines.contains(line), "{line} in {lines}");
    }
    assert!(lines.contains(r#"reason="go""#), "{lines}");
}

#[test]
fn safe_mode_by_command_survives_and_ends_by_command() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 100, 100));

    server.command(&["safe-mode", "on", "a", "--reason", "drill"]).expect(0);
    assert_eq!((server.side(A, "/", &[]), server.side(B, "/", &[])), ("old".to_owned(), "new".to_owned()));
    server.command(&["safe-mode", "on"]).expect(0);
    server.kill_and_restart();
    assert_eq!((server.side(A, "/", &[]), server.side(B, "/", &[])), ("old".to_owned(), "old".to_owned()));
    assert!(server.status()["degraded"][0].as_str().unwrap().starts_with("safe mode is on"));

    server.command(&["safe-mode", "off"]).expect(0);
    assert_eq!((server.side(A, "/", &[]), server.side(B, "/", &[])), ("old".to_owned(), "new".to_owned()));
    server.command(&["safe-mode", "off", "a"]).expect(0);
    assert_eq!(server.side(A, "/", &[]), "new");
}

#[test]
fn a_share_that_nobody_confirms_goes_back_also_after_a_restart() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 10, 10));
    server.command(&["update", "*", "60", "--for", "2s"]).expect(0);
    server.command(&["confirm", "b"]).expect(0);
    assert!(share(&server, "a")["confirm_by"].is_string());

    server.kill_and_restart();

    eventually(PATIENCE, "a goes back", || share(&server, "a") == shares(10.0, 10.0));
    assert_eq!(share(&server, "b"), shares(10.0, 60.0));
    eventually(PATIENCE, "it is audited", || audit(&server).contains(r#"expired service="a" from=60 to=10"#));
}

#[test]
fn a_change_is_made_to_its_end_also_when_its_author_leaves() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 0, 0));
    for percentage in 1..=40_u64 {
        let body = format!("{{\"percentage\": {percentage}}}");
        let head = format!("PUT /api/v1/services/a/migration HTTP/1.1\r\nHost: {}\r\n", server.addresses.admin);
        let rest = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut author = std::net::TcpStream::connect(server.addresses.admin).unwrap();
        author.write_all(format!("{head}{rest}").as_bytes()).unwrap();
        drop(author);
    }
    server.command(&["update", "b", "7"]).expect(0);
    let before = share(&server, "a");

    server.kill_and_restart();

    assert_eq!(share(&server, "a"), before, "what is in force is what is stored");
}

#[test]
fn a_start_without_its_tokens_serves_and_lets_nobody_write() {
    let clusters = Clusters::new();
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, "ops:s3cret-token-1\n").unwrap();
    let setup = two(&clusters, 100, 0).top(&format!("admin: {{token_file: {}}}", tokens.display()));
    let mut server = Server::start(&setup);
    fs::remove_file(&tokens).unwrap();

    server.kill_and_restart();

    assert_eq!(server.side(A, "/", &[]), "new");
    assert!(server.status()["degraded"].to_string().contains("nobody may write"), "{}", server.status());
    server.command(&["rollback", "a"]).expect(1);
    fs::write(&tokens, "ops:s3cret-token-1\n").unwrap();
    server.command(&["rollback", "a", "--token-file", tokens.to_str().unwrap()]).expect(0);
}

#[test]
fn methods_by_command_outlive_a_reload_without_another_audit_line() {
    let clusters = Clusters::new();
    let server = Server::start(&two(&clusters, 100, 0));
    let body = r#"{"methods": ["POST"]}"#;
    let mut author = std::net::TcpStream::connect(server.addresses.admin).unwrap();
    let head = format!("PUT /api/v1/services/a/migration HTTP/1.1\r\nHost: {}\r\n", server.addresses.admin);
    let rest = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    author.write_all(format!("{head}{rest}").as_bytes()).unwrap();
    eventually(PATIENCE, "only POST moves", || server.side(A, "/", &[]) == "old");

    server.file.swap(&server.text(&two(&clusters, 100, 5)));
    eventually(PATIENCE, "the file is read again", || share(&server, "b") == shares(5.0, 5.0));

    assert_eq!(server.side(A, "/", &[]), "old");
    let lines = server.audit_lines();
    assert_eq!(lines.iter().filter(|line| line.contains(" methods ")).count(), 1, "{lines:?}");
}

#[test]
fn refusals_say_what_would_work_and_change_nothing() {
    let clusters = Clusters::new();
    let service = clusters.service("a").with("migration: {percentage: 20, max_step: 10}");
    let server = Server::start(&Setup::new([service]));
    let refused = |arguments: &[&str], code, part: &str| {
        let told = server.command(arguments);
        told.expect(code);
        assert!(told.stderr.contains(part), "{part} in {}", told.stderr);
    };

    refused(&["update", "aa", "5"], 1, "did you mean a?");
    refused(&["update", "x*", "5"], 1, "no service matches");
    refused(&["update", "a", "101"], 2, "not between 0 and 100");
    refused(&["update", "a", "12.345"], 2, "finer than steps of 0.01");
    refused(&["update", "a", "lots"], 2, "not a percentage");
    refused(&["update", "a", "50"], 6, "update a 30 first");
    refused(&["rollback", "a", "--to", "30"], 2, "migration-proxy update a 30");
    refused(&["rollback", "a*", "--to", "30"], 2, "migration-proxy update a 30");
    server.command(&["freeze", "on", "--reason", "release week"]).expect(0);
    refused(&["update", "a", "+1"], 6, "(release week): freeze off allows them again");
    assert_eq!(share(&server, "a"), shares(20.0, 20.0));
    server.command(&["rollback", "a"]).expect(0);
    assert_eq!(share(&server, "a"), shares(20.0, 0.0));
}

#[test]
fn a_broken_file_at_the_start_is_replaced_by_the_last_good_one() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 30, 0));
    server.command(&["update", "a", "100"]).expect(0);
    server.command(&["safe-mode", "on", "b"]).expect(0);

    // Nothing in it says where the state is.
    server.file.swap("services: [\n  - {name: x\n");
    server.kill_and_restart();

    assert_eq!((server.side(A, "/", &[]), server.side(B, "/", &[])), ("new".to_owned(), "old".to_owned()));
    assert_eq!(share(&server, "a"), shares(30.0, 100.0));
    let status = server.status();
    assert!(status["config"]["last_error"].is_string() && status["ready"] == true, "{status:#}");
    let degraded = status["degraded"].to_string();
    assert!(degraded.contains("the last good configuration serves"), "{degraded}");
    assert!(server.stderr().contains("the configuration is broken, the last good one serves"));
    assert_eq!(server.metrics().sum("config_last_reload_successful", &[]), 0.0);

    server.file.swap(&server.text(&two(&clusters, 30, 0)));
    eventually(PATIENCE, "the repaired file serves", || server.status()["config"]["last_error"].is_null());
    assert!(!server.status()["degraded"].to_string().contains("last good"));
    assert_eq!(server.metrics().sum("config_last_reload_successful", &[]), 1.0);
    assert_eq!(share(&server, "a"), shares(30.0, 100.0));
}

#[test]
fn a_start_without_its_certificates_serves_in_clear_and_takes_them_when_they_are_good_again() {
    let (clusters, authority) = (Clusters::new(), Authority::new("public"));
    let identity = authority.server(&[A]);
    let mut server = Server::start(&two(&clusters, 30, 0).https(&identity));
    let good = fs::read(&identity.cert).unwrap();
    let secure = |server: &Server| Client::try_tls(server.addresses.https.unwrap(), A, &authority.trusting(&[]));

    for bad in [None, Some(fs::read(authority.server(&[A]).cert).unwrap())] {
        match bad {
            None => fs::remove_file(&identity.cert).unwrap(),
            Some(another) => fs::write(&identity.cert, another).unwrap(),
        }
        server.kill_and_restart_unready();

        assert_eq!(server.get(A, "/").status, 200);
        assert!(secure(&server).is_err());
        let ready = server.admin("/ready");
        assert!(ready.status == 503 && ready.text().contains(r#""missing":["certificates"]"#), "{}", ready.text());
        let degraded = server.status()["degraded"].to_string();
        assert!(degraded.contains("without a listener certificate: "), "{degraded}");
        server.wait_for_line(&["ERROR", "handshakes that need it fail"]);

        fs::write(&identity.cert, &good).unwrap();
        eventually(PATIENCE, "it is ready", || server.admin("/ready").status == 200);
        assert_eq!(secure(&server).unwrap().get(A, "/").status, 200);
        let status = server.status();
        assert!(status["config"]["last_error"].is_null(), "{status:#}");
        let degraded = status["degraded"].to_string();
        assert!(!degraded.contains("certificate") && !degraded.contains("last good"), "{degraded}");
    }
}

#[test]
fn one_bad_certificate_at_a_start_takes_none_from_the_others() {
    let (clusters, authority) = (Clusters::new(), Authority::new("public"));
    let (first, second) = (authority.server(&[A]), authority.server(&[B]));
    let mut server = Server::start(&two(&clusters, 30, 0).https(&first).https(&second));
    fs::remove_file(&second.key).unwrap();
    // What is wrong beside that changes nothing about it.
    server.file.swap("services: [");

    server.kill_and_restart();

    let secure = |host| Client::try_tls(server.addresses.https.unwrap(), host, &authority.trusting(&[]));
    assert_eq!(secure(A).unwrap().get(A, "/").status, 200);
    assert!(secure(B).is_err());
    assert!(server.status()["degraded"].to_string().contains("without a listener certificate: "));
}

#[test]
fn a_damaged_copy_never_serves() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 30, 0));
    let copy = server.state_file("last-good.yaml");
    let text = fs::read_to_string(&copy).unwrap();
    fs::write(&copy, &text[..text.len() - 40]).unwrap();

    server.file.swap("services: [");
    assert_eq!(server.kill_and_fail(), Some(3));
    let told = server.stderr();
    assert!(told.contains("migration.yaml:1:"), "every problem of the file itself: {told}");
    assert!(told.contains("the last good copy cannot serve in its place"), "{told}");

    server.file.swap(&server.text(&two(&clusters, 30, 0)));
    server.kill_and_restart();
    assert_eq!(fs::read_to_string(&copy).unwrap().lines().count(), text.lines().count(), "the copy is whole again");
}

#[test]
fn a_state_that_makes_no_sense_is_kept_aside_and_loud() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 30, 0));
    server.command(&["update", "a", "100"]).expect(0);
    let (state, whole) =
        (server.state_file("state.yaml"), fs::read_to_string(server.state_file("state.yaml")).unwrap());
    let directory = server.state_file("");
    let kept = || {
        let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("state.yaml.unreadable-")).count()
    };
    // What was cut short may still be a state, of nothing at all.
    let cut = &whole[..whole.find("services:").unwrap()];

    for (text, why) in [("services: {a: {percentage: {value: 1000}}}", ""), (cut, "its end is missing")] {
        fs::write(&state, text).unwrap();
        server.kill_and_restart();

        assert_eq!(share(&server, "a"), shares(30.0, 30.0), "{text}");
        let degraded = server.status()["degraded"].to_string();
        assert!(degraded.contains("it is kept as") && degraded.contains(why), "{text}: {degraded}");
        assert_eq!(server.metrics().sum("state_failures_total", &[]), 1.0, "{text}");
        assert!(kept() > 0);
        server.command(&["update", "a", "40"]).expect(0);
    }
}

#[test]
fn special_files_in_the_place_of_what_is_kept_hold_up_no_start() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 30, 0));
    let hash = server.status()["config"]["hash"].as_str().unwrap().to_owned();
    let stored = format!("history/{hash}.yaml");
    eventually(PATIENCE, "the history is kept", || server.state_file(&stored).exists());
    let names = ["history/events.jsonl", "history/pinned.json", "history/handled.json", &stored];

    for name in names.into_iter().chain(["last-good.yaml", "state.yaml", "state-shared.yaml"]) {
        let path = server.state_file(name);
        let _ = fs::remove_file(&path);
        // Whoever opens it to read waits for a writer.
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    }
    server.kill_and_restart();

    assert_eq!(server.side(A, "/", &[]).len(), 3);
    let degraded = server.status()["degraded"].to_string();
    assert!(degraded.contains("state.yaml cannot be used (it is no regular file)"), "{degraded}");
    for told in ["what is known of rollbacks cannot be read", "entries of the history cannot be read"] {
        assert!(server.stderr().contains(told), "{told}: {}", server.stderr());
    }
    server.command(&["update", "a", "40"]).expect(0);
    server.command(&["history"]).expect(0);
    eventually(PATIENCE, "everything is kept again", || {
        ["last-good.yaml", "state.yaml", "history/events.jsonl", &stored]
            .iter()
            .all(|name| server.state_file(name).metadata().is_ok_and(|metadata| metadata.is_file()))
    });
}

#[test]
fn without_a_place_for_the_state_only_less_goes_to_new() {
    let clusters = Clusters::new();
    let mut server = Server::start(&two(&clusters, 30, 0));
    // Also root cannot make a directory where a file is.
    fs::remove_dir_all(server.state_file("")).unwrap();
    fs::write(server.state_file("").to_string_lossy().trim_end_matches('/'), "").unwrap();
    server.kill_and_restart();
    let degraded = server.status()["degraded"].to_string();
    assert!(degraded.contains("last-good.yaml"), "{degraded}");
    eventually(PATIENCE, "the history says so too", || {
        server.status()["degraded"].to_string().contains("the history is not kept: cannot write ")
    });
    assert!(server.metrics().sum("state_failures_total", &[]) >= 2.0);

    let told = server.command(&["update", "a", "50"]);
    told.expect(1);
    assert!(told.stderr.contains("nothing was changed: cannot write"), "{}", told.stderr);
    assert_eq!(share(&server, "a"), shares(30.0, 30.0));

    let told = server.command(&["safe-mode", "on"]);
    told.expect(4);
    assert!(told.stderr.contains("lost at the next restart"), "{}", told.stderr);
    assert_eq!(server.side(A, "/", &[]), "old");
    assert!(server.status()["degraded"].to_string().contains("state.yaml"));

    // It is stored as soon as that is possible.
    fs::remove_file(server.state_file("").to_string_lossy().trim_end_matches('/')).unwrap();
    eventually(PATIENCE, "the state is stored", || server.state_file("state.yaml").exists());
    eventually(PATIENCE * 2, "and the rest without another change", || {
        let degraded = server.status()["degraded"].to_string();
        !degraded.contains("cannot write") && server.state_file("last-good.yaml").exists()
    });
    assert!(server.state_file("history/events.jsonl").exists());
    server.kill_and_restart();
    assert_eq!(server.side(A, "/", &[]), "old");
}

#[test]
fn a_token_is_needed_where_tokens_are_configured() {
    let clusters = Clusters::new();
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, "# rotated monthly\nops-team:s3cret-token-1\n").unwrap();
    let setup = two(&clusters, 10, 0).top(&format!("admin: {{token_file: {}}}", tokens.display()));
    let server = Server::start(&setup);

    let told = server.command(&["update", "a", "20"]);
    told.expect(1);
    assert!(told.stderr.contains("--token-file"), "{}", told.stderr);
    assert_eq!(share(&server, "a"), shares(10.0, 10.0));
    server.command(&["update", "a", "20", "--token-file", tokens.to_str().unwrap()]).expect(1);

    let mine = directory.path().join("mine");
    fs::write(&mine, "ops-team:s3cret-token-1\n").unwrap();
    server.command(&["update", "a", "20", "--token-file", mine.to_str().unwrap()]).expect(0);
    assert!(audit(&server).contains(r#"by="ops-team""#));
    let everything = format!("{}{}{}", audit(&server), server.stderr(), server.stdout());
    assert!(!everything.contains("s3cret"), "{everything}");
}

#[test]
fn outside_of_a_cluster_a_shared_state_is_an_error_and_auto_is_the_file() {
    let clusters = Clusters::new();
    let setup = Setup::new([clusters.service("a").percentage(20)]);
    let alone = Server::start(&setup.clone().state("backend: auto"));
    alone.command(&["update", "a", "50"]).expect(0);
    assert!(alone.state_file("state.yaml").exists());

    let told = Server::start_and_fail(&setup.state("backend: kubernetes"));
    told.expect(3);
    for part in ["state.backend: Kubernetes cannot keep the state", "use auto or file"] {
        assert!(told.stderr.contains(part), "{part} in {}", told.stderr);
    }
}

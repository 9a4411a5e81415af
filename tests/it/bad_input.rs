//! Mistakes of operators and of clients: one clear message, or the right 4xx, and never a panic.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::cli::{Finished, Scratch, finish, program};
use crate::support::client::{Failure, Http2};
use crate::support::setup::{Clusters, Ports, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

/// A file without mistakes, six lines of one service.
const GOOD: &str = "services:
  - name: api
    old_host: api.old.test
    old_backend: 127.0.0.1:8078
    new_host: api.new.test
    migration:
      percentage: 0
";

#[track_caller]
fn assert_no_panic(finished: &Finished) {
    assert!(!finished.all().contains("panicked") && finished.code.is_some(), "{finished:#?}");
}

#[test]
fn each_mistake_is_named_with_its_place_and_a_way_out() {
    // What is replaced, by what, line and column of the mistake, words that must be said.
    let rows: &[(&str, &str, &str, &[&str])] = &[
        ("services:", "servces: []\nservices:", "1:1", &["servces", "did you mean \"services\""]),
        (
            "    migration:",
            "    migation: {}\n    migration:",
            "6:5",
            &["services[0].migation", "did you mean \"migration\""],
        ),
        ("percentage: 0", "percentge: 0", "7:7", &["percentge", "did you mean \"percentage\""]),
        ("percentage: 0", "strategy: wieght", "7:17", &["wieght", "did you mean \"weight\""]),
        ("percentage: 0", "percentage: 120", "7:19", &["services[0].migration.percentage", "120"]),
        ("percentage: 0", "percentage: 12.345", "7:19", &["12.345"]),
        ("percentage: 0", "percentage: [1]", "7:19", &["percentage"]),
        ("percentage: 0", "enabled: yes", "7:16", &["yes"]),
        (
            "    migration:",
            "    timeouts: {connect: soon}\n    migration:",
            "6:25",
            &["services[0].timeouts.connect", "soon"],
        ),
        ("127.0.0.1:8078", "127.0.0.1:99999", "4:18", &["99999"]),
        ("127.0.0.1:8078", "somewhere", "4:18", &["port"]),
        (
            "    migration:",
            "    canary: {ip_rules: [{cidr: 10.0.0.0/99, target: new_cluster}]}\n    migration:",
            "6:32",
            &["10.0.0.0/99"],
        ),
        ("    migration:", "    paths: [{regex: \"[\"}]\n    migration:", "6:21", &["regex"]),
        ("name: api", "name: Api_1", "2:11", &["Api_1"]),
        ("    new_host: api.new.test\n", "", "2:5", &["new_host"]),
        ("    migration:", "    name: twice\n    migration:", "6:5", &["name"]),
        (
            "    migration:",
            "    shadow: {percentage: 5}\n    migration:",
            "6:13",
            &["services[0].shadow", "not available in this version", "leave the key out"],
        ),
        (
            "services:",
            "admin: {token_file: /etc/tokens}\nservices:",
            "1:21",
            &["admin.token_file", "cannot be read", "NAME:TOKEN"],
        ),
        (
            "services:",
            "reload: {on_lost_host: perhaps}\nservices:",
            "1:24",
            &["reload.on_lost_host", "perhaps", "refuse"],
        ),
        ("percentage: 0", "percentage: ${NOWHERE_TO_BE_FOUND}", "7:19", &["NOWHERE_TO_BE_FOUND"]),
    ];

    for (from, to, place, words) in rows {
        let finished = Scratch::new(GOOD.replacen(from, to, 1)).check(&[]);
        let text = finished.expect(3);
        assert!(text.contains(&format!("migration.yaml:{place}")) && text.contains("error: "), "{to}: {text}");
        for word in *words {
            assert!(text.contains(word), "{to}: no {word} in {text}");
        }
        assert_no_panic(&finished);
    }
    Scratch::new(GOOD).check(&[]).expect(0);
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_lines() {
    let text = "services:
  - name: api
    old_host: api.old.test
    old_backend: 127.0.0.1:8078
    new_host: api.new.test
    migration:
      strategy: \"wieght\"
      percentage: 150
  - name: web
    old_host: api.old.test
    old_backend: 127.0.0.1:8079
    new_host: web.new.test
    timeouts: {connect: soon}
    fallbak: {}
";
    let file = Scratch::new(text);

    let finished = file.check(&[]);
    let shown = finished.expect(3);
    for place in ["7:17", "8:19", "10:15", "13:25", "14:5"] {
        assert!(shown.contains(&format!("migration.yaml:{place}: error: ")), "no {place}: {shown}");
    }
    assert!(shown.contains("   7 |       strategy: \"wieght\"\n"), "{shown}");
    assert!(shown.contains("     |                 ^^^^^^^^ did you mean \"weight\"?"), "{shown}");

    let json = file.check(&["--json"]).json();
    let problems = json["problems"].as_array().unwrap();
    let errors = problems.iter().filter(|problem| problem["severity"] == "error");
    assert_eq!(errors.map(|problem| problem["line"].as_u64().unwrap()).collect::<Vec<_>>(), [7, 8, 10, 13, 14]);
}

#[test]
fn files_that_are_no_configuration_are_refused_quickly() {
    let bomb: String = ('a'..'i')
        .map(|name| {
            let next = (name as u8 + 1) as char;
            format!("x-{next}: &{next} [*{name},*{name},*{name},*{name},*{name},*{name},*{name},*{name},*{name}]\n")
        })
        .collect();
    let rows: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", Vec::new(), &["empty"]),
        ("blank", b"# nothing\n\n".to_vec(), &["empty"]),
        ("no services", b"version: 1\n".to_vec(), &["services"]),
        ("empty services", b"services: []\n".to_vec(), &["services"]),
        ("tab", GOOD.replacen("    old_host", "\told_host", 1).into_bytes(), &["migration.yaml:3", "tab"]),
        ("unclosed", b"services: [".to_vec(), &["migration.yaml:1"]),
        ("two documents", format!("{GOOD}---\n{GOOD}").into_bytes(), &["document"]),
        ("not UTF-8", b"services: \xff\xfe\n".to_vec(), &["UTF-8"]),
        ("zeros", vec![0; 1000], &["migration.yaml"]),
        ("a list", b"- a\n- b\n".to_vec(), &["migration.yaml"]),
        ("8 MiB and more", format!("{GOOD}#{}\n", "x".repeat(8 << 20)).into_bytes(), &["8 MiB"]),
        ("100 MB", vec![b'#'; 100_000_000], &["8 MiB"]),
        ("alias bomb", format!("x-a: &a [l,l,l,l,l,l,l,l,l]\n{bomb}{GOOD}").into_bytes(), &["alias"]),
        ("deep", ["[".repeat(100_000), "]".repeat(100_000)].concat().into_bytes(), &["migration.yaml"]),
    ];

    for (what, bytes, words) in rows {
        let file = Scratch::new(bytes);
        let started = Instant::now();
        let finished = file.check(&[]);
        assert_eq!(finished.code, Some(3), "{what}: {finished:#?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{what}: {:?}", started.elapsed());
        let text = finished.all().to_lowercase();
        for word in words {
            assert!(text.contains(&word.to_lowercase()), "{what}: no {word} in {text}");
        }
        assert_no_panic(&finished);
    }
}

#[test]
fn files_that_cannot_be_read_say_which_one() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.yaml");
    for path in [missing.as_path(), folder.path()] {
        for arguments in [&["check"][..], &["run", "-c"]] {
            let mut command = program();
            command.args(arguments).arg(path);
            let finished = finish(command);
            assert_eq!(finished.code, Some(3), "{finished:#?}");
            assert!(finished.all().contains(&path.display().to_string()), "{finished:#?}");
            assert_no_panic(&finished);
        }
    }
}

#[test]
fn a_file_without_permission_says_so() {
    let file = Scratch::new(GOOD);
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(file.path()).is_ok() {
        println!("left out: this user may read everything");
        return;
    }

    let finished = file.check(&[]);

    finished.expect(3);
    assert!(finished.all().to_lowercase().contains("permission denied"), "{finished:#?}");
}

#[track_caller]
fn run_with(text: &str) -> Finished {
    let file = Scratch::new(text);
    let mut command = program();
    command.args(["run", "-c"]).arg(file.path());
    finish(command)
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let clusters = Clusters::new();
    let folder = tempfile::tempdir().unwrap();

    for (ports, key) in
        [(Ports { http: port, ..Ports::ANY }, "listen.http"), (Ports { admin: port, ..Ports::ANY }, "listen.admin")]
    {
        let finished = run_with(&Setup::new([clusters.service("a")]).text(folder.path(), ports));
        assert!(finished.code.is_some_and(|code| code != 0), "{key}: {finished:#?}");
        assert!(finished.stderr.contains(&format!("127.0.0.1:{port}")), "{key}: {finished:#?}");
        assert!(finished.stderr.to_lowercase().contains("in use"), "{key}: {finished:#?}");
        assert_no_panic(&finished);
    }
}

#[test]
fn certificates_that_cannot_be_used_say_which_file_and_why() {
    let clusters = Clusters::new();
    let authority = Authority::new("old hosts");
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let good = authority.server(&[HOST]);
    let other = authority.server(&[HOST]);
    let rows = [
        ("missing certificate", folder.path().join("none.crt"), good.key.clone(), "none.crt"),
        ("missing key", good.cert.clone(), folder.path().join("none.key"), "none.key"),
        ("empty certificate", write("empty.crt", ""), good.key.clone(), "empty.crt"),
        ("text as key", good.cert.clone(), write("text.key", "hello\n"), "text.key"),
        ("certificate as key", good.cert.clone(), good.cert.clone(), "tls.crt"),
        ("another key", good.cert.clone(), other.key, "tls.key"),
        (
            "encrypted key",
            good.cert.clone(),
            write("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"),
            "locked.key",
        ),
    ];

    for (what, cert, key, named) in rows {
        let mut identity = good.clone();
        (identity.cert, identity.key) = (cert, key);
        let finished = run_with(&Setup::new([clusters.service("a")]).https(&identity).text(folder.path(), Ports::ANY));
        assert_eq!(finished.code, Some(3), "{what}: {finished:#?}");
        assert!(finished.all().contains(named), "{what}: {finished:#?}");
        assert_no_panic(&finished);
    }
    let missing_ca = clusters.service("a").new_options(&["ca_file: /nowhere/ca.crt"]);
    let finished = run_with(&Setup::new([missing_ca]).text(folder.path(), Ports::ANY));
    assert_eq!((finished.code, finished.all().contains("/nowhere/ca.crt")), (Some(3), true), "{finished:#?}");
}

#[test]
fn a_broken_file_at_the_start_opens_no_port() {
    let folder = tempfile::tempdir().unwrap();
    let clusters = Clusters::new();
    let text = Setup::new([clusters.service("a")]).text(folder.path(), Ports::ANY).replace("old_host", "old_hots");

    let finished = run_with(&text);

    assert_eq!(finished.code, Some(3), "{finished:#?}");
    assert!(finished.all().contains("did you mean \"old_host\""), "{finished:#?}");
}

#[test]
fn requests_over_a_limit_get_the_right_answer_and_are_counted() {
    let clusters = Clusters::new();
    let setup =
        Setup::new([clusters.service("a")]).top("limits: {request_body: 1000, uri_bytes: 1000, header_bytes: 8KiB}");
    let proxy = Proxy::start(&setup);
    let long = "x".repeat(2_000);
    let huge = "x".repeat(9_000);
    let enormous = "x".repeat(200_000);
    let rows: Vec<(&str, String, u16)> = vec![
        ("unknown host", "GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n".into(), 404),
        ("long target", format!("GET /{long} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), 414),
        ("long head", format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Long: {huge}\r\n\r\n"), 431),
        ("endless head", format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Long: {enormous}\r\n\r\n"), 431),
        ("many fields", format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "X: y\r\n".repeat(120)), 431),
        ("long body", format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1001\r\n\r\n"), 413),
    ];

    for (what, bytes, status) in &rows {
        let before = proxy.metrics().sum("rejected_total", &[]);
        let mut client = proxy.client();
        // The server may answer and close before it has read all of it.
        let _ = client.try_send(bytes.as_bytes());
        match client.response("GET") {
            Ok(response) => assert_eq!(response.status, *status, "{what}"),
            Err(Failure::Reset) if *what == "endless head" => {}
            Err(failure) => panic!("{what}: {failure}"),
        }
        eventually(PATIENCE, "it is counted", || proxy.metrics().sum("rejected_total", &[]) == before + 1.0);
    }
    assert_eq!(clusters.old.requests(), 0);
    eventually(PATIENCE, "each one is logged", || proxy.access_lines().len() >= rows.len());
    assert_eq!(proxy.get(HOST, "/").status, 200);
}

#[test]
fn a_client_that_never_finishes_its_head_is_let_go() {
    let clusters = Clusters::new();
    let proxy =
        Proxy::start(&Setup::new([clusters.service("a")]).listen("timeouts: {header: 300ms, keepalive: 600ms}"));
    let mut slow = proxy.client();
    slow.send("GET / HTTP/1.1\r\nHost: a.old");
    let mut idle = proxy.client();
    idle.get(HOST, "/");

    let answer = slow.response("GET").map(|response| response.status);

    assert!(matches!(answer, Ok(408)), "{answer:?}");
    assert!(slow.is_closed_within(PATIENCE), "and nothing is left over behind the answer");
    assert!(idle.is_closed_within(PATIENCE), "an idle connection is closed after keepalive");
}

#[test]
fn http2_requests_that_make_no_sense_leave_the_connection_alone() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]).top("limits: {request_body: 1000, uri_bytes: 1000}"));
    let client = Http2::plain(proxy.addresses.http);
    let post = |uri: String, body: usize| {
        client.exchange(http::Request::post(uri).body(vec![0; body].into()).unwrap()).map(|response| response.status)
    };

    assert_eq!(post("http://nobody.test/".into(), 0), Ok(404));
    assert_eq!(post(format!("http://{HOST}/{}", "x".repeat(2_000)), 0), Ok(414));
    assert_eq!(post(format!("http://{HOST}/"), 1_001), Ok(413));
    assert_eq!(post(format!("http://{HOST}/"), 1_000), Ok(200));
}

#[test]
fn every_example_is_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let mut command = program();
            command.arg("check").arg(&path);
            finish(command).expect(0);
            seen += 1;
        }
    }
    assert!(seen >= 3, "minimal, example and full");
}

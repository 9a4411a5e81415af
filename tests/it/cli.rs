//! The commands, as a person or a script meets them.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::app::Proxy;
use crate::support::cli::{Background, Scratch, Server, finish, free_port, program, run};
use crate::support::client::Load;
use crate::support::peers::available;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

const FILE: &str = "services:
  - name: a
    old_host: a.old.test
    old_backend: 127.0.0.1:8078
    new_host: a.new.test
    new_backend: 127.0.0.1:8443
    migration: {percentage: 20, sticky: {by: [\"header:X-User-Id\"]}}
    canary:
      header_rules: [{header: X-Pin, value: new, target: new_cluster}]
      ip_rules: [{cidr: 203.0.113.0/24, target: new_cluster}]
";

#[test]
fn help_fits_one_screen() {
    let commands = ["run", "check", "status", "explain", "health", "demo"];
    let main = run(&["--help"]);
    for command in commands {
        assert!(main.expect(0).contains(command), "{command} is listed: {main:#?}");
    }
    let pages = commands.iter().map(|command| run(&[command, "--help"])).chain([main, run(&["-h"])]);

    for page in pages {
        let text = page.expect(0);
        assert!(text.lines().count() <= 40, "{} lines: {text}", text.lines().count());
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        assert!(!text.contains('\u{1b}'), "no colour on a pipe: {text}");
    }
}

#[test]
fn usage_errors_are_exit_2_and_suggest() {
    let typo = run(&["chekc", "x.yaml"]);
    typo.expect(2);
    assert!(typo.stderr.contains("check"), "{typo:#?}");
    for arguments in [&["check"][..], &["explain"], &["run", "--nonsense"]] {
        run(arguments).expect(2);
    }
}

#[test]
fn the_version_is_the_same_everywhere() {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));

    let status: Value = serde_json::from_str(&proxy.admin("/status").text()).unwrap();
    let metrics = proxy.admin("/metrics").text();
    let changes = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/CHANGELOG.md")).unwrap();

    assert_eq!(run(&["--version"]).expect(0).trim(), format!("migration-proxy {VERSION}"));
    assert_eq!(status["version"], VERSION);
    let sample = format!("migration_proxy_build_info{{version=\"{VERSION}\"}} 1");
    assert_eq!(metrics.lines().filter(|line| line.contains("build_info{")).collect::<Vec<_>>(), [sample]);
    assert!(changes.contains(&format!("\n## [{VERSION}] - ")), "the changelog tells of this version first");
}

#[test]
fn run_without_a_file_says_what_to_do() {
    if std::path::Path::new("/etc/migration-proxy/migration.yaml").exists() {
        println!("left out: this machine has a configuration of its own");
        return;
    }

    let finished = run(&["run"]);

    finished.expect(3);
    for word in ["/etc/migration-proxy/migration.yaml", "MIGRATION_PROXY_CONFIG", "-c", "demo"] {
        assert!(finished.stderr.contains(word), "no {word}: {finished:#?}");
    }
}

#[test]
fn check_says_what_is_good_and_what_is_doubtful() {
    let file = Scratch::new(FILE.replace("sticky: {by: [\"header:X-User-Id\"]}", "methods: []"));

    let finished = file.check(&[]);
    let text = finished.expect(0);
    assert!(text.contains("warning") && text.contains("sticky"), "{text}");
    file.check(&["--strict"]).expect(3);
    let json = file.check(&["--json"]).json();
    assert!(
        json["problems"]
            .as_array()
            .is_some_and(|problems| problems.iter().any(|problem| problem["severity"] == "warning")),
        "{json}"
    );
}

#[test]
fn explain_works_offline() {
    let file = Scratch::new(FILE);
    let path = file.path();
    let explain = |arguments: &[&str]| {
        let mut command = program();
        command.args(["explain", "-c"]).arg(&path).args(arguments).arg("--json");
        finish(command)
    };

    let pinned = explain(&["--host", "A.old.test:80", "--header", "x-pin: new"]);
    pinned.expect(0);
    let pinned = pinned.json();
    assert_eq!((&pinned["target"], &pinned["reason"]), (&"new".into(), &"header".into()));
    assert_eq!((&pinned["rule"], &pinned["service"]), (&"canary.header_rules[0]".into(), &"a".into()));
    assert_eq!(pinned["upstream"], "127.0.0.1:8443");

    let addressed = explain(&["--host", HOST, "--client-ip", "203.0.113.7"]).json();
    assert_eq!((&addressed["target"], &addressed["reason"]), (&"new".into(), &"ip".into()));
    let drawn = explain(&["--host", HOST]).json();
    assert_eq!((&drawn["target"], &drawn["reason"]), (&"draw".into(), &"weight".into()));
    assert!(drawn["key"].is_null() && drawn["bucket"].is_null(), "{drawn}");
    let order =
        ["safe_mode", "disabled", "paths", "header", "cookie", "ip", "methods", "percentage", "availability", "mode"];
    let mut targets = Vec::new();
    for user in 0..30 {
        let keyed = explain(&["--host", HOST, "--header", &format!("X-User-Id:u{user}")]).json();
        assert_eq!((&keyed["reason"], &keyed["key"]), (&"user".into(), &"header:X-User-Id".into()));
        let is_new = keyed["bucket"].as_f64().unwrap() < 20.0;
        assert_eq!(keyed["target"], if is_new { "new" } else { "old" });
        let steps = keyed["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap());
        // Whether new is available is only asked for those who go there.
        let expected = order.iter().filter(|step| is_new || **step != "availability");
        assert!(steps.eq(expected.copied()), "{keyed}");
        targets.push(is_new);
    }
    assert!(targets.contains(&true) && targets.contains(&false));

    let unknown = explain(&["--host", "nobody.test"]);
    unknown.expect(1);
    assert!(unknown.json()["service"].is_null());
}

#[test]
fn status_health_and_explain_speak_to_a_running_proxy() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a").percentage(20)]));
    let url = server.admin_url();
    Load::new(server.addresses.http, HOST).run(100).assert_all_ok();

    let table = run(&["status", "--admin", &url]);
    let table = table.expect(0);
    assert!(table.contains('a') && table.contains("20"), "{table}");
    let json = run(&["status", "--admin", &url, "--json"]).json();
    assert_eq!((&json["ready"], &json["services"][0]["name"]), (&true.into(), &"a".into()));
    run(&["status", "a", "--admin", &url]).expect(0);
    run(&["status", "nobody", "--admin", &url]).expect(1);
    run(&["health", &url]).expect(0);
    let told = run(&["explain", "--host", HOST, "--admin", &url, "--json"]).json();
    assert_eq!(told["percentage"].as_f64(), Some(20.0));

    let mut by_environment = program();
    by_environment.args(["status", "--json"]).env("MIGRATION_PROXY_ADMIN", &url);
    assert_eq!(finish(by_environment).json()["ready"], true);
}

#[test]
fn an_unreachable_admin_port_is_exit_7() {
    let url = format!("http://127.0.0.1:{}", free_port());

    for arguments in
        [&["status", "--admin", &url][..], &["health", &url], &["explain", "--host", HOST, "--admin", &url]]
    {
        let finished = run(arguments);
        finished.expect(7);
        assert!(finished.stderr.contains("127.0.0.1:"), "{finished:#?}");
    }
}

#[test]
fn status_tells_when_something_is_degraded() {
    let mut clusters = Clusters::new();
    clusters.new.kill();
    let service = clusters.service("a").percentage(100).with("fallback: {max_failures: 1}");
    let server = Server::start(&Setup::new([service]));
    server.get(HOST, "/");
    let url = server.admin_url();

    run(&["status", "--admin", &url]).expect(0);
    run(&["status", "--strict", "--admin", &url]).expect(4);
    assert_eq!(server.admin("/ready").status, 200, "never because an upstream is down");
    assert!(server.status()["degraded"].to_string().contains('a'));
}

#[test]
fn termination_is_orderly() {
    let clusters = Clusters::new();
    let mut server = Server::start(&Setup::new([clusters.service("a")]));
    let mut client = server.client();
    client.get(HOST, "/last-words");

    server.signal("TERM");

    assert_eq!(server.exit_code(), Some(0));
    assert!(client.is_closed_within(PATIENCE));
    assert!(server.access_lines().iter().any(|line| line.contains("/last-words")), "the access log is complete");
}

#[test]
fn the_access_log_moves_to_a_new_file_on_usr1() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a")]));
    let (log, moved) = (server.directory.join("access.log"), server.directory.join("access.log.1"));
    let load = Load::new(server.addresses.http, HOST).start();
    load.more(100);

    std::fs::rename(&log, &moved).unwrap();
    server.signal("USR1");
    eventually(PATIENCE, "the log is opened again", || log.exists());
    load.more(100);
    let tally = load.stop();

    tally.assert_all_ok();
    let lines = || {
        let count = |path| std::fs::read_to_string(path).unwrap_or_default().lines().count() as u64;
        count(&log) + count(&moved)
    };
    eventually(PATIENCE, "every request has its line", || lines() >= tally.total());
    assert_eq!(lines(), tally.total());
}

#[test]
fn access_lines_are_as_documented_and_cannot_be_forged() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a").percentage(100)]));
    let agent = "q\" status=200 \\ caf\u{e9}\t.";
    let mut client = server.client();
    client.send(
        format!("GET /x%20y?q=1 HTTP/1.1\r\nHost: {HOST}\r\nX-Request-Id: id-1\r\nUser-Agent: {agent}\r\n\r\n")
            .chars()
            .map(|letter| letter as u8)
            .collect::<Vec<u8>>(),
    );
    let response = client.response("GET").unwrap();

    let line = server.access_line("/x%20y?q=1");
    assert_eq!(line.status(), 200);
    for (field, value) in [
        ("backend", "new_backend"),
        ("service", "a"),
        ("reason", "hundred"),
        ("bucket", "-"),
        ("upstream_addr", clusters.new.address().to_string().as_str()),
        ("upstream_status", "200"),
        ("tries", "1"),
        ("request_id", "id-1"),
        ("host", HOST),
        ("user_agent", "q\\x22 status=200 \\x5C caf\\xE9\\x09."),
    ] {
        assert_eq!(line.field(field), value, "{}", line.0);
    }
    assert!(line.0.starts_with("127.0.0.1 - - ["), "{}", line.0);
    assert!(line.0.contains(&format!("\"GET /x%20y?q=1 HTTP/1.1\" 200 {} ", response.body.len())), "{}", line.0);
}

#[test]
fn json_access_lines_are_one_object_each() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a")]).log("access: json").log("format: json"));
    server.get(HOST, "/x?y");

    eventually(PATIENCE, "a line", || !server.access_lines().is_empty());
    let line: serde_json::Value = serde_json::from_str(&server.access_lines()[0]).unwrap();

    assert_eq!(
        (&line["status"], &line["path"], &line["backend"]),
        (&200.into(), &"/x?y".into(), &"old_backend".into())
    );
    assert!(line["bucket"].is_null() && line["request_time"].is_number(), "{line}");
    for line in server.stderr().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn control_lines_tell_of_a_reload_and_of_a_refused_file() {
    let clusters = Clusters::new();
    let setup = |percentage: u64| Setup::new([clusters.service("a").percentage(percentage)]);
    let server = Server::start(&setup(10));

    server.file.swap(&server.text(&setup(20)));
    server.wait_for_line(&[" - migration_proxy - INFO - configuration changed ", "generation=2", "services=1"]);
    server.file.swap("services: [");
    server.wait_for_line(&[" - migration_proxy - ERROR - "]);
}

#[test]
fn a_private_stranger_with_forwarded_headers_is_warned_of_once() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a")]));

    for _ in 0..3 {
        server.get_with(HOST, "/", &[("X-Forwarded-For", "203.0.113.1")]);
    }

    server.wait_for_line(&["WARN", "127.0.0.1", "trusted_proxies"]);
    let warnings = server.stderr().lines().filter(|line| line.contains("trusted_proxies")).count();
    assert_eq!(warnings, 1);
    assert!(server.status().to_string().contains("trusted_proxies"));
}

#[test]
fn demo_shows_its_table_and_ends() {
    let finished = run(&["demo", "--exit"]);

    let text = finished.expect(0);
    for word in ["shop", "search", "billing", "200 users at 25 %", "ANSWERED BY"] {
        assert!(text.contains(word), "no {word}: {text}");
    }
    assert!(!text.contains("failure") && !finished.all().contains("panicked"), "{finished:#?}");
}

#[test]
fn demo_waits_for_an_interrupt_and_its_next_steps_work() {
    let mut demo = Background::start(&["demo"]);
    demo.wait_for_text("Ctrl-C", Duration::from_secs(60));
    let text = demo.text();
    assert!(!text.contains('\u{1b}'), "no colour in a file: {text}");
    let commands: Vec<&str> = text.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(commands.len(), 3, "{text}");

    if available(&["curl"]) {
        for (command, side) in commands.iter().zip([None, Some("new"), None]) {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(command);
            let answer = finish(shell);
            let shown = answer.expect(0);
            assert!(shown.starts_with("HTTP/") && shown.contains(" 200"), "{command}: {answer:#?}");
            assert!(shown.contains(&format!("hello from the {}", side.unwrap_or_default())), "{command}: {answer:#?}");
        }
    }

    demo.signal("INT");
    let text = demo.end();
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn demo_leaves_no_file_behind() {
    let place = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["demo", "--exit"]).env("TMPDIR", place.path());

    finish(command).expect(0);

    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_share_that_goes_back_is_told_wherever_one_looks() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("shop").percentage(25)]));

    let update = server.command(&["update", "shop", "50", "--for", "10m"]);

    for (what, told) in [
        ("update", update),
        ("status", server.command(&["status"])),
        ("status of one", server.command(&["status", "shop"])),
        ("history", server.command(&["history"])),
        ("history of one", server.command(&["history", "shop"])),
    ] {
        let text = told.expect(0);
        let parts = ["goes back to 25 % in ", " unless confirmed: migration-proxy confirm shop"];
        assert!(parts.iter().all(|part| text.contains(part)), "{what}: {text}");
    }
    server.command(&["confirm", "shop"]).expect(0);
    for arguments in [&["status"][..], &["status", "shop"], &["history"]] {
        let told = server.command(arguments);
        assert!(!told.expect(0).contains("goes back"), "{arguments:?}: {told:?}");
    }
}

#[test]
fn a_freeze_is_seen_in_status() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a"), clusters.service("b")]));

    server.command(&["freeze", "on", "a"]).expect(0);
    let told = server.command(&["status"]);
    assert!(told.expect(0).contains("Increases of a are frozen: migration-proxy freeze off a"), "{told:?}");
    assert_eq!((&server.service("a")["frozen"], &server.service("b")["frozen"]), (&true.into(), &false.into()));
    server.command(&["freeze", "on"]).expect(0);
    let told = server.command(&["status", "b"]);
    assert!(told.expect(0).contains("increases are frozen: migration-proxy freeze off\n"), "{told:?}");
    assert_eq!(server.status()["frozen"], true);
}

#[test]
fn what_a_change_does_not_do_is_said() {
    let clusters = Clusters::new();
    let stepping = clusters.service("shop").with("migration: {percentage: 75, max_step: 25}");
    let server = Server::start(&Setup::new([stepping, clusters.service("b")]));

    let down = server.command(&["rollback", "shop"]);
    assert!(down.expect(0).contains("undo, in steps of 25 points: migration-proxy update shop 25\n"), "{down:?}");
    let past = server.command(&["history", "shop"]);
    assert!(past.expect(0).contains("back: migration-proxy update shop 25\n"), "{past:?}");
    server.command(&["update", "shop", "25"]).expect(0);

    server.command(&["safe-mode", "on"]).expect(0);
    let up = server.command(&["update", "b", "5"]);
    assert!(up.expect(0).contains("safe mode is on, nothing moves until it is off"), "{up:?}");

    let hash = server.status()["config"]["hash"].as_str().unwrap().to_owned();
    let generation = server.generation();
    server.file.swap(&format!("{}# more\n", std::fs::read_to_string(server.file.path()).unwrap()));
    server.wait_for_generation_after(generation);
    let pinned = server.command(&["rollback", "--config", &hash]);
    assert!(pinned.expect(0).contains(&format!("serves {} until the file changes\n", &hash[..12])), "{pinned:?}");
    let again = server.command(&["rollback", "--config", &hash]);
    assert_eq!(again.expect(0), format!("serves {} until the file changes\n", &hash[..12]));
}

#[test]
fn a_name_or_a_port_that_is_none_is_told_with_the_right_one() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("shop")]));

    for verb in [&["callers"][..], &["history"], &["verify"], &["doctor"], &["status"], &["rollback"]] {
        let told = server.command(&[verb, &["shp"]].concat());
        told.expect(1);
        assert!(told.stderr.contains("did you mean shop?") && !told.stderr.contains("http://"), "{verb:?}: {told:?}");
    }
    let traffic = format!("http://{}", server.addresses.http);
    for arguments in [&["status"][..], &["history"], &["update", "shop", "5"]] {
        let told = run(&[arguments, &["--admin", &traffic]].concat());
        told.expect(1);
        assert!(told.stderr.contains("this is not the admin port"), "{told:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_not_replaced_by_that_of_another() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a")]));
    eventually(PATIENCE, "the copy is there", || server.state_file("last-good.yaml").exists());
    let state = server.state_file("");
    let wrong = Scratch::new(format!("reload: {{state_dir: {}}}\nservices: [", state.display()));

    let told = run(&["run", "-c", wrong.path().to_str().unwrap()]);

    told.expect(3);
    let file = server.file.path();
    for part in ["the last good copy", file.to_str().unwrap(), "name the right file"] {
        assert!(told.stderr.contains(part), "{part}: {told:?}");
    }
}

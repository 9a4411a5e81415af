//! A changed file: how it is noticed, what it changes, and what it must never touch.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::cli::free_port;
use crate::support::client::{Client, Http2, Load};
use crate::support::origin::{Answer, Gate, pattern};
use crate::support::setup::{Clusters, Ports, Setup};
use crate::support::{PATIENCE, eventually, eventually_some};

const HOST: &str = "a.old.test";

fn at(clusters: &Clusters, percentage: u64) -> Setup {
    Setup::new([clusters.service("a").percentage(percentage)])
}

fn effective(proxy: &Proxy) -> f64 {
    proxy.service("a")["percentage"]["effective"].as_f64().unwrap()
}

#[test]
fn a_kubelet_swap_is_noticed_within_a_second() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&at(&clusters, 0));

    proxy.file.swap(&proxy.text(&at(&clusters, 100)));

    eventually(Duration::from_secs(1), "new serves", || proxy.side(HOST, "/", &[]) == "new");
}

#[test]
fn an_editor_s_rename_and_a_write_in_place_are_noticed() {
    let clusters = Clusters::new();
    let proxy = Proxy::start_from_plain_file(&at(&clusters, 0));

    proxy.file.rename(&proxy.text(&at(&clusters, 100)));
    eventually(Duration::from_secs(1), "the renamed file is taken", || effective(&proxy) == 100.0);
    proxy.file.write_in_place(&proxy.text(&at(&clusters, 30)));
    eventually(Duration::from_secs(1), "the file written in place is taken", || effective(&proxy) == 30.0);
    proxy.file.rename(&proxy.text(&at(&clusters, 40)));
    eventually(Duration::from_secs(1), "the next rename is taken", || effective(&proxy) == 40.0);
}

#[test]
fn a_folder_that_is_made_anew_is_found_by_the_poll() {
    let clusters = Clusters::new();
    let proxy = Proxy::start_from_plain_file(&at(&clusters, 0));
    let folder = proxy.file.path().parent().unwrap().to_owned();

    std::fs::rename(&folder, folder.with_extension("gone")).unwrap();
    std::fs::create_dir(&folder).unwrap();
    proxy.file.write_in_place(&proxy.text(&at(&clusters, 70)));

    eventually(PATIENCE, "the file is found again", || effective(&proxy) == 70.0);
}

#[test]
fn each_switch_that_a_file_turns_is_audited() {
    let clusters = Clusters::new();
    let service = || clusters.service("a").percentage(100);
    let proxy = Proxy::start(&Setup::new([service()]));

    proxy.reload(&Setup::new([service().with("safe_mode: on")]));
    assert_eq!(proxy.side(HOST, "/", &[]), "old");
    proxy.reload(&Setup::new([service().with("safe_mode: off")]).top("safe_mode: on"));
    assert_eq!(proxy.side(HOST, "/", &[]), "old");
    proxy.reload(&Setup::new([service()]));
    assert_eq!(proxy.side(HOST, "/", &[]), "new");

    for change in [
        r#"safe_mode service="a" from="off" to="on" by="file""#,
        r#"safe_mode service="a" from="on" to="off" by="file""#,
        r#"safe_mode from="off" to="on" by="file""#,
        r#"safe_mode from="on" to="off" by="file""#,
    ] {
        eventually(PATIENCE, change, || proxy.audit_lines().iter().any(|line| line.contains(change)));
    }
}

#[test]
fn a_bad_file_changes_nothing_but_status_and_metric() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&at(&clusters, 100));
    let good = proxy.status()["config"].clone();
    let bad = [
        proxy.text(&at(&clusters, 100)).replace("percentage: 100", "percentage: 120"),
        "services: [".to_owned(),
        String::new(),
        "\tservices: []\n".to_owned(),
    ];

    for (number, text) in bad.iter().enumerate() {
        proxy.file.swap(text);
        eventually(PATIENCE, "the file is refused", || {
            proxy.metrics().sum("config_reloads_total", &[("result", "rejected")]) == (number + 1) as f64
        });
        assert_eq!(proxy.side(HOST, "/", &[]), "new");
        let config = &proxy.status()["config"];
        assert!(config["last_error"].is_string(), "{config}");
        assert_eq!((&config["hash"], &config["generation"]), (&good["hash"], &good["generation"]));
        assert_eq!(proxy.metrics().sum("config_last_reload_successful", &[]), 0.0);
        assert_eq!(proxy.admin("/ready").status, 200);
    }

    proxy.reload(&at(&clusters, 0));
    assert!(proxy.status()["config"]["last_error"].is_null());
    assert_eq!(proxy.metrics().sum("config_last_reload_successful", &[]), 1.0);
    assert_eq!(proxy.side(HOST, "/", &[]), "old");
}

#[test]
fn the_same_text_again_is_no_new_generation() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&at(&clusters, 10));
    let before = proxy.generation();

    proxy.file.swap(&proxy.text(&at(&clusters, 10)));

    eventually(PATIENCE, "it is counted", || {
        proxy.metrics().sum("config_reloads_total", &[("result", "unchanged")]) >= 1.0
    });
    assert_eq!(proxy.generation(), before);
}

#[test]
fn twenty_swaps_under_load_lose_no_request_and_work_within_a_second() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&at(&clusters, 20));
    let load = Load::new(proxy.addresses.http, HOST).start();
    load.more(50);

    for round in 0..20 {
        let percentage = if round % 2 == 0 { 50 } else { 20 };
        let text = proxy.text(&at(&clusters, percentage));
        let started = Instant::now();
        proxy.file.swap(&text);
        eventually(PATIENCE, "the share is in force", || effective(&proxy) == percentage as f64);
        assert!(started.elapsed() < Duration::from_secs(1), "round {round}: {:?}", started.elapsed());
        load.more(20);
    }

    load.stop().assert_all_ok();
    assert_eq!(proxy.generation(), 21);
}

#[test]
fn pools_breakers_and_connections_survive_another_service_s_change() {
    let clusters = Clusters::new();
    let quick = "fallback: {max_failures: 2, recovery_time: 300}";
    let setup = |other: u64| {
        Setup::new([
            clusters.service("a").percentage(100),
            clusters.service("broken").percentage(100).with(quick),
            clusters.service("other").percentage(other),
        ])
    };
    let proxy = Proxy::start(&setup(0));
    let mut client = proxy.client();
    client.get(HOST, "/");
    clusters.new.script(|request| (request.host() == Some("broken.new.test")).then(|| Answer::status(503)));
    for _ in 0..2 {
        client.get("broken.old.test", "/");
    }
    assert_eq!(proxy.breaker("broken"), "open");
    let connections = clusters.new.connections();

    proxy.reload(&setup(100));

    assert_eq!(proxy.breaker("broken"), "open");
    assert_eq!(client.get(HOST, "/").side(), Some("new"), "the client's connection lives");
    assert_eq!(clusters.new.connections(), connections, "and so does the one to new");
    assert_eq!(client.get("other.old.test", "/").side(), Some("new"));
}

#[test]
fn a_change_of_the_share_keeps_the_service_s_own_pool() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&at(&clusters, 100));
    let mut client = proxy.client();
    client.get(HOST, "/");

    proxy.reload(&at(&clusters, 99));
    client.get(HOST, "/");
    proxy.reload(&at(&clusters, 100));
    client.get(HOST, "/");

    assert_eq!(clusters.new.connections(), 1);
}

#[test]
fn a_request_in_flight_keeps_the_configuration_that_it_began_with() {
    let clusters = Clusters::new();
    let gate = Gate::default();
    clusters.new.on("/slow", Answer::side().hold_head(&gate));
    let proxy = Proxy::start(&at(&clusters, 100));
    let mut client = proxy.client();
    client.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    eventually(PATIENCE, "it waits at new", || clusters.new.requests() == 1);

    proxy.reload(&Setup::new([clusters.service("b")]));
    gate.open();

    assert_eq!(client.response("GET").unwrap().side(), Some("new"));
    assert_eq!(client.get(HOST, "/").status, 404, "the next request finds its service gone");
}

#[test]
fn new_targets_get_new_connections() {
    let clusters = Clusters::new();
    let other = Clusters::new();
    let proxy = Proxy::start(&at(&clusters, 100));
    proxy.get(HOST, "/");

    proxy.reload(&at(&other, 100));

    assert_eq!(proxy.side(HOST, "/", &[]), "new");
    assert_eq!(other.new.requests(), 1);
    eventually(PATIENCE, "the connections of before are closed", || clusters.new.open_connections() == 0);
}

#[test]
fn what_needs_a_restart_is_named() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&at(&clusters, 10));

    proxy.reload(&at(&clusters, 20).workers(2));

    let needed = proxy.status()["config"]["restart_needed"].to_string();
    assert!(needed.contains("workers"), "{needed}");
    assert_eq!(proxy.metrics().sum("config_restart_needed", &[]), 1.0);
    assert_eq!(effective(&proxy), 20.0);
}

#[test]
fn users_stay_where_they_are_when_another_service_changes() {
    let clusters = Clusters::new();
    let setup = |other: u64| {
        let sticky = "migration: {percentage: 50, sticky: {by: [\"header:X-User-Id\"]}}";
        Setup::new([clusters.service("a").with(sticky), clusters.service("other").percentage(other)])
    };
    let proxy = Proxy::start(&setup(0));
    let sides = || -> Vec<String> {
        (0..50).map(|user| proxy.side(HOST, "/", &[("X-User-Id", &format!("u{user}"))])).collect()
    };
    let before = sides();
    assert!(before.iter().any(|side| side == "old") && before.iter().any(|side| side == "new"), "{before:?}");

    proxy.reload(&setup(100));

    assert_eq!(sides(), before);
}

#[test]
fn no_connection_is_touched_whatever_it_is_doing() {
    const LENGTH: u64 = 256 * 1024;
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let identity = public.server(&[HOST]);
    let gate = Gate::default();
    clusters
        .new
        .on("/held", Answer::pattern(LENGTH).hold_body(&gate))
        .on("/slow", Answer::pattern(LENGTH).chunked().drip(4096, Duration::from_millis(5)))
        .on("/tunnel", Answer::upgrade("echo"));
    let setup = |percentage: u64| {
        let setup = Setup::new([clusters.service("a").percentage(percentage), clusters.service("b")]);
        setup.https(&identity)
    };
    let proxy = Proxy::start(&setup(100));
    let mut plain = proxy.client();
    plain.get(HOST, "/");
    let mut secure = Client::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&["http/1.1"]));
    secure.get(HOST, "/");
    let second = Http2::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&["h2"]));
    second.get(&format!("https://{HOST}/"));
    let mut tunnel = proxy.client();
    tunnel.send(format!("GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"));
    assert_eq!(tunnel.response("GET").unwrap().status, 101);
    let downloads = ["/held", "/slow"].map(|path| {
        let mut client = proxy.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let head = client.head().unwrap();
        (path, client, head)
    });
    let open = |listener| proxy.metrics().sum("connections", &[("listener", listener)]);
    let before = (open("http"), open("https"));

    for percentage in [90, 0, 100, 0, 100] {
        proxy.reload(&setup(percentage));
        tunnel.send("ping");
        assert_eq!(tunnel.bytes(4).unwrap(), b"ping");
    }
    assert_eq!((open("http"), open("https")), before);
    gate.open();

    for (path, mut client, head) in downloads {
        let mut seen = 0;
        let mut is_right = true;
        client
            .stream_body("GET", head, |piece| {
                for part in piece.chunks(4096) {
                    is_right &= part == pattern(seen, part.len() as u64);
                    seen += part.len() as u64;
                }
            })
            .unwrap_or_else(|failure| panic!("{path}: {failure}"));
        assert_eq!((seen, is_right), (LENGTH, true), "{path}");
    }
    assert_eq!(plain.get(HOST, "/").side(), Some("new"));
    assert_eq!(secure.get(HOST, "/").side(), Some("new"));
    assert_eq!(second.get(&format!("https://{HOST}/")).side(), Some("new"));
}

#[test]
fn a_changed_port_serves_before_the_old_one_closes_and_keeps_its_connections() {
    let clusters = Clusters::new();
    let setup = at(&clusters, 100);
    let proxy = Proxy::start(&setup);
    let mut kept = proxy.client();
    assert_eq!(kept.get(HOST, "/").side(), Some("new"));
    let (http, admin) = (free_port(), free_port());
    let text = setup.text(&proxy.directory, Ports { http, https: 0, admin });

    proxy.file.replace(&text);

    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let refuses = |address| Client::try_plain(address, None).is_err();
    eventually(PATIENCE, "the new ports serve", || !refuses(at(http)) && !refuses(at(admin)));
    assert_eq!(Client::plain(at(http)).get(HOST, "/").side(), Some("new"));
    eventually(PATIENCE, "the old ones are given up", || {
        refuses(proxy.addresses.http) && refuses(proxy.addresses.admin)
    });
    assert_eq!(kept.get(HOST, "/").side(), Some("new"), "a connection to the old port lives on");
    let status = Client::plain(at(admin)).get("127.0.0.1", "/status").json();
    assert_eq!(status["config"]["restart_needed"].to_string(), "[]");
}

#[test]
fn a_port_in_use_is_a_mistake_of_the_file() {
    let clusters = Clusters::new();
    let setup = at(&clusters, 100);
    let proxy = Proxy::start(&setup);
    let taken = clusters.old.address().port();

    proxy.file.replace(&setup.text(&proxy.directory, Ports { http: taken, ..Ports::ANY }));

    let error = eventually_some(PATIENCE, "it is refused", || {
        proxy.status()["config"]["last_error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("listen.http") && error.contains(&taken.to_string()), "{error}");
    assert_eq!(proxy.get(HOST, "/").side(), Some("new"));
}

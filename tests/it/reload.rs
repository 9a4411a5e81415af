//! A changed file: how it is noticed, what it changes, and what it must never touch.

use std::time::{Duration, Instant};

use crate::support::app::Proxy;
use crate::support::client::{Client, Load};
use crate::support::origin::{Answer, Gate};
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

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
fn a_lost_host_is_refused_when_told_so() {
    let clusters = Clusters::new();
    let both = |hosts: &[&str]| {
        let services = hosts.iter().map(|name| clusters.service(name));
        Setup::new(services)
    };
    let strict =
        |setup: Setup, proxy: &Proxy| proxy.text(&setup).replace("reload: {", "reload: {on_lost_host: refuse, ");
    let proxy = Proxy::start(&both(&["a", "b"]));
    proxy.file.swap(&strict(both(&["a", "b"]), &proxy));
    eventually(PATIENCE, "the strict file is taken", || proxy.generation() == 2);
    proxy.get("b.old.test", "/");

    proxy.file.swap(&strict(both(&["a"]), &proxy));

    eventually(PATIENCE, "the file is refused", || proxy.status()["config"]["last_error"].is_string());
    assert_eq!(proxy.side("b.old.test", "/", &[]), "old");
    let mut client = Client::plain(proxy.addresses.http);
    assert_eq!(client.get(HOST, "/").status, 200);
}

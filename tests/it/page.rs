//! The page of the admin port in a real browser, and the events that feed it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::app::Proxy;
use crate::support::browser::{self, Browser};
use crate::support::client::Client;
use crate::support::origin::Answer;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

/// Finds what people with other eyes or other tools would stumble over: contrast, names, order, language.
const AXE: &str = include_str!("../assets/axe-4.14.1.min.js");

/// A browser on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn url(proxy: &Proxy) -> String {
    format!("http://{}/", proxy.addresses.admin)
}

/// Waits until the sentence on top contains this.
#[track_caller]
fn wait_for_sentence(browser: &Browser, part: &str) {
    eventually(LONG, &format!("the sentence says {part}"), || sentence(browser).contains(part));
}

fn sentence(browser: &Browser) -> String {
    browser.run("return document.querySelector('h1').textContent").as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn assert_quiet(browser: &Browser, origin: &str) {
    let heard = browser.heard();
    assert!(heard.complaints.is_empty(), "{:#?}", heard.complaints);
    let elsewhere: Vec<&String> =
        heard.requests.iter().filter(|url| !url.starts_with(origin) && !url.starts_with("data:")).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    assert!(heard.requests.iter().any(|url| url.starts_with(origin)), "{heard:?}");
}

/// What axe-core finds, one line each.
#[track_caller]
fn findings(browser: &Browser) -> Vec<String> {
    browser.run(AXE);
    let script = "const done = arguments[arguments.length - 1]; axe.run().then(
        found => done(found.violations.map(v => `${v.id}: ${v.nodes.map(n => n.failureSummary + n.html).join()}`)),
        error => done([String(error)]))";
    let found = browser.run_until_called(script);
    found.as_array().unwrap().iter().map(|line| line.as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn it_suits_both_languages_both_themes_phones_and_desks() {
    if !browser::is_there() {
        return;
    }
    let clusters = Clusters::new();
    let services = ["a", "b", "a-service-with-quite-a-long-name-in-front-of-the-teams-domain"];
    let proxy = Proxy::start(&Setup::new(services.map(|name| clusters.service(name).percentage(50))));
    for turn in 0..40 {
        proxy.get(&format!("{}.old.test", services[turn % 3]), "/");
    }
    let (browser, url) = (Browser::start(), url(&proxy));
    browser.open(&url);

    for (language, well) in [("en", "All well. 3 services"), ("zh", "一切正常。3 个服务")] {
        for theme in ["light", "dark"] {
            for (width, opened) in [(375, ""), (375, "#a"), (1440, ""), (1440, "#a")] {
                let what = format!("{language}-{theme}-{width}{}", if opened.is_empty() { "" } else { "-open" });
                browser.run(&format!(
                    "localStorage.setItem('migration-proxy.language', '{language}');
                     localStorage.setItem('migration-proxy.theme', '{theme}')"
                ));
                browser.resize(width).open(&format!("{url}{opened}")).reload();
                wait_for_sentence(&browser, well);

                let document = browser.run(
                    "const root = document.documentElement, body = getComputedStyle(root);
                     return {overflow: root.scrollWidth - innerWidth, language: root.lang, ground: body.backgroundColor,
                             details: document.querySelectorAll('tr.detail').length, rows: document.querySelectorAll('tr.row').length}",
                );
                assert!(document["overflow"].as_i64().unwrap() <= 0, "{what}: {document}");
                assert!(document["language"].as_str().unwrap().starts_with(language), "{what}: {document}");
                let is_dark = document["ground"].as_str().unwrap().starts_with("rgb(1");
                assert_eq!(is_dark, theme == "dark", "{what}: {document}");
                assert_eq!((&document["rows"], document["details"] == 1), (&3.into(), !opened.is_empty()), "{what}");
                let found = findings(&browser);
                assert!(found.is_empty(), "{what}: {found:#?}");
                browser.picture(&what);
            }
        }
    }
    assert_quiet(&browser, &url);
}

#[test]
fn an_open_breaker_is_seen_within_two_seconds_and_leads_the_page() {
    if !browser::is_there() {
        return;
    }
    let mut clusters = Clusters::new();
    let breaker = "fallback: {max_failures: 3, recovery_time: 300s}";
    let services = ["a", "b", "c"].map(|name| clusters.service(name).percentage(100).with(breaker));
    let proxy = Proxy::start(&Setup::new(services));
    let browser = Browser::start();
    browser.open(&url(&proxy));
    wait_for_sentence(&browser, "All well");
    clusters.new.kill();

    // The machine may be busy; what counts is how fast it can be.
    let times = ["a", "b", "c"].map(|name| {
        eventually(PATIENCE, "the breaker opens", || {
            proxy.get(&format!("{name}.old.test"), "/");
            proxy.breaker(name) == "open"
        });
        let opened = Instant::now();
        eventually(LONG, "the page says so", || browser.text().contains(&format!("{name}: breaker open, old answers")));
        opened.elapsed()
    });

    println!("shown after {times:?}");
    assert!(*times.iter().min().unwrap() < Duration::from_secs(2), "{times:?}");
    assert!(sentence(&browser).starts_with("a: breaker open, old answers everything; new is tried again in "));
    let commands = browser.run("return [...document.querySelectorAll('code')].map(code => code.textContent)");
    let expected = format!("migration-proxy rollback a --admin http://{}", proxy.addresses.admin);
    assert!(commands.as_array().unwrap().contains(&Value::from(expected)), "{commands}");
    browser.picture("trouble");
    assert_quiet(&browser, &url(&proxy));
}

#[test]
fn the_table_holds_its_columns_at_every_width() {
    if !browser::is_there() {
        return;
    }
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a").percentage(50)]));
    let browser = Browser::start();
    for width in [900, 1080, 1089, 1100, 1120, 1151, 1153, 1200, 1440] {
        browser.resize(width).open(&url(&proxy));
        wait_for_sentence(&browser, "All well");
        let over = browser.run(
            "const table = document.getElementById('table').getBoundingClientRect();
             const ends = [...document.querySelectorAll('tr.row > td, #heads > th')].map(cell => cell.getBoundingClientRect().right);
             return Math.round(Math.max(...ends) - table.right)",
        );
        assert!(over.as_i64().unwrap() <= 0, "{width}: {over} pixels stick out");
    }
}

#[test]
fn what_clients_get_and_what_is_frozen_is_said() {
    if !browser::is_there() {
        return;
    }
    let mut clusters = Clusters::new();
    let check = "health_check: {enabled: true, interval: 1s, unhealthy_threshold: 1}";
    let bare = clusters.service("bare").percentage(100).with("fallback: {enabled: false}").with(check);
    let proxy = Proxy::start(&Setup::new([bare, clusters.service("calm")]));
    proxy.change("PUT", "/api/v1/freeze", &serde_json::json!({"on": true}));
    let browser = Browser::start();
    browser.open(&url(&proxy));
    wait_for_sentence(&browser, "All well");
    eventually(LONG, "the freeze is shown", || browser.text().contains("Increases are frozen."));

    clusters.new.kill();

    wait_for_sentence(&browser, "bare: new is down and fallback is off: clients get its errors.");
    assert_quiet(&browser, &url(&proxy));
}

#[test]
fn text_from_outside_stays_text() {
    if !browser::is_there() {
        return;
    }
    const HOSTILE: &str = "<img/src=x/onerror=window.hit=1><script>window.hit=1</script>";
    let clusters = Clusters::new();
    let setup = Setup::new([clusters.service("a").percentage(50)]);
    let proxy = Proxy::start(&setup);
    let target = format!("/{}", HOSTILE.replace('<', "%3C").replace('>', "%3E"));
    for agent in [HOSTILE, "javascript:window.hit=1"] {
        proxy.get_with("a.old.test", &target, &[("User-Agent", agent), ("Referer", HOSTILE)]);
    }
    let hostile = format!("{{name: '{HOSTILE}', old_host: x, old_backend: '127.0.0.1:1', new_host: y}}");
    proxy.file.replace(&format!("{}\n  - {hostile}\n", proxy.text(&setup).trim_end()));
    let browser = Browser::start();

    browser.open(&format!("{}#a", url(&proxy)));

    wait_for_sentence(&browser, "was refused");
    eventually(LONG, "the error is shown as it is", || browser.text().contains("<img/src=x"));
    let foreign = browser.run(
        "return {hit: window.hit || 0, images: document.images.length, scripts: document.scripts.length,
                 frames: frames.length, links: document.querySelectorAll('a').length}",
    );
    assert_eq!(foreign, serde_json::json!({"hit": 0, "images": 0, "scripts": 1, "frames": 0, "links": 0}));
    let policy = proxy.admin("/").header("content-security-policy").unwrap_or_default().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    assert_quiet(&browser, &url(&proxy));
}

#[test]
fn switches_work_where_nothing_may_be_remembered() {
    if !browser::is_there() {
        return;
    }
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));
    let browser = Browser::start_with(serde_json::json!({"profile.default_content_setting_values.cookies": 2}));
    browser.open(&url(&proxy));
    wait_for_sentence(&browser, "All well");
    let blocked = browser.run("try { localStorage.length; return false } catch { return true }");
    assert_eq!(blocked, true, "the setting blocks storage");

    browser.run("document.getElementById('language').click(); document.getElementById('theme').click()");

    wait_for_sentence(&browser, "一切正常");
    assert_eq!(browser.run("return document.documentElement.dataset.theme"), "dark");
    assert_quiet(&browser, &url(&proxy));
}

#[test]
fn fifty_services_are_found_by_keyboard_and_printed() {
    if !browser::is_there() {
        return;
    }
    let clusters = Clusters::new();
    let services = (1..=50).map(|number| clusters.service(&format!("api-name{number:02}")).percentage(number));
    let proxy = Proxy::start(&Setup::new(services));
    let browser = Browser::start();
    browser.resize(1440).open(&url(&proxy));
    wait_for_sentence(&browser, "All well. 50 services");
    let page = proxy.admin("/");
    assert!(page.body.len() < 100 << 10, "{}", page.body.len());

    let shown = "return [...document.querySelectorAll('tr.row')].filter(row => row.offsetParent).length";
    assert_eq!(browser.run(shown), 50);
    let type_text = "const box = document.getElementById('filter');
        document.dispatchEvent(new KeyboardEvent('keydown', {key: '/', bubbles: true, cancelable: true}));
        if (document.activeElement !== box) return 'no focus';
        box.value = 'NAME4'; box.dispatchEvent(new Event('input')); ";
    assert_eq!(browser.run(&format!("{type_text}{shown}")), 10);
    let open = "const row = [...document.querySelectorAll('button.open')].find(row => row.offsetParent);
        row.focus(); row.click(); return [row.getAttribute('aria-expanded'), location.hash]";
    assert_eq!(browser.run(open), serde_json::json!(["true", "#api-name40"]));
    let close = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}));
        return [document.activeElement.className, document.querySelectorAll('tr.detail').length]";
    assert_eq!(browser.run(close), serde_json::json!(["open", 0]));
    browser.picture("fifty");

    browser.devtools("Emulation.setEmulatedMedia", serde_json::json!({"media": "print"}));
    let printed = browser.run("return [...document.querySelectorAll('button.copy, #theme')].some(b => b.offsetParent)");
    assert_eq!(printed, false, "paper has no buttons");
    assert!(findings(&browser).is_empty(), "{:#?}", findings(&browser));
    let pages = browser.devtools("Page.printToPDF", serde_json::json!({}));
    assert!(pages["data"].as_str().unwrap().len() > 10_000);
    assert_quiet(&browser, &url(&proxy));
}

/// Opens an event stream; gives its status and the connection.
fn subscribe(proxy: &Proxy) -> (u16, Client) {
    let mut client = Client::plain(proxy.addresses.admin);
    client.send("GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    (client.head().expect("a head").status, client)
}

#[test]
fn readers_are_bounded_and_a_page_without_a_place_asks_instead() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));
    let mut readers = Vec::new();
    for _ in 0..32 {
        let (status, client) = subscribe(&proxy);
        assert_eq!(status, 200);
        readers.push(client);
    }

    let refused = proxy.admin("/api/v1/events");

    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("30")));
    if browser::is_there() {
        let browser = Browser::start();
        browser.open(&url(&proxy));
        wait_for_sentence(&browser, "All well");
        proxy.reload(&Setup::new([clusters.service("a"), clusters.service("b")]));
        wait_for_sentence(&browser, "2 services");
    }
    drop(readers);
    eventually(PATIENCE, "the places are free again", || subscribe(&proxy).0 == 200);
}

#[test]
fn a_change_is_told_at_once_and_silence_still_beats() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a").percentage(20)]));
    let (_, mut client) = subscribe(&proxy);
    let mut text = String::new();
    let mut wait_for = |part: &str| {
        let end = Instant::now() + PATIENCE;
        while !text.contains(part) {
            assert!(Instant::now() < end, "no {part} in {text}");
            text.push_str(&String::from_utf8_lossy(&client.bytes(1).expect("more")));
        }
        std::mem::take(&mut text)
    };

    let first = wait_for("\"replicas\":");
    wait_for("event: same\n");
    proxy.reload(&Setup::new([clusters.service("a").percentage(30)]));
    wait_for("\"effective\":30");

    let order: Vec<&str> = first.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(order, ["series", "status"], "{first}");
    assert!(first.contains("retry: 1000"), "{first}");
}

#[test]
fn a_lost_proxy_is_told_with_the_age_of_what_is_shown() {
    if !browser::is_there() {
        return;
    }
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([clusters.service("a")]));
    let browser = Browser::start();
    browser.open(&url(&proxy));
    wait_for_sentence(&browser, "All well");

    drop(proxy);

    wait_for_sentence(&browser, "Data is ");
    let told = sentence(&browser);
    assert!(told.ends_with("old: the proxy does not answer."), "{told}");
}

#[test]
fn the_last_hour_agrees_with_the_metrics() {
    let clusters = Clusters::new();
    clusters.new.on("/broken", Answer::status(503));
    let calm = "fallback: {max_failures: 100000, min_requests: 100000}";
    let proxy = Proxy::start(&Setup::new([clusters.service("a").percentage(50).with(calm)]));
    for number in 0..60 {
        proxy.get("a.old.test", if number % 4 == 0 { "/broken" } else { "/" });
    }
    // An answer is complete a moment before it is counted.
    eventually(PATIENCE, "all are counted", || proxy.metrics().sum("requests_total", &[("service", "a")]) == 60.0);

    let (hour, metrics) = (proxy.service("a")["windows"]["60m"].clone(), proxy.metrics());

    for side in ["old", "new"] {
        let counted = |outcome: &[(&str, &str)]| {
            metrics.sum("upstream_responses_total", &[&[("service", "a"), ("target", side)], outcome].concat())
        };
        assert_eq!(hour[side]["requests"].as_f64(), Some(counted(&[])), "{hour}");
        assert_eq!(hour[side]["errors"].as_f64(), Some(counted(&[("outcome", "503")])), "{hour}");
        let quick = metrics.sum("upstream_duration_seconds_count", &[("service", "a"), ("target", side)]);
        assert_eq!(hour[side]["requests"].as_f64(), Some(quick), "{hour}");
    }
    let new = &hour["new"];
    assert!(new["errors"].as_u64() > Some(0) && new["errors"] == new["kinds"]["503"], "{hour}");
    assert!(new["p50"].as_f64() > Some(0.0) && new["p50"].as_f64() <= new["p90"].as_f64(), "{hour}");
    assert!(new["connects"].as_u64() > Some(0) && new["connect"].as_f64() > Some(0.0), "{hour}");
}

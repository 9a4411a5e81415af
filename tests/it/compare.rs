//! The bench that compares proxies: its pure parts, and whether every proxy that is installed does the job.

#[expect(dead_code, unreachable_pub, reason = "the bench has a main of its own and uses the rest")]
#[path = "../../benches/compare/main.rs"]
mod bench;

use clap::Parser as _;
use serde_json::Value;

use bench::children::Stop;
use bench::report::{Entry, Report, Row, figure, median, percentile, time};
use bench::sides::Sides;
use bench::{chart, ground, load, peers, proof, scenario};
use peers::OURS;

use crate::support::peers::available;

#[test]
fn every_proxy_that_is_installed_does_the_job() {
    if !available(&["nginx", "h2load", "taskset"]) {
        return;
    }
    let options = bench::Options::parse_from(["compare", "--prove"]);

    let report = bench::run(&options, &Stop::default());

    assert_eq!(report.map(|report| report.failures().len()), Ok(0));
}

#[test]
fn scenarios_are_chosen_by_name_in_any_case() {
    let ids = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        scenario::chosen(&names).map(|found| found.iter().map(|scenario| scenario.id).collect::<Vec<_>>())
    };

    assert_eq!(ids(&["s3", "S1"]), Ok(vec!["S3", "S1"]));
    assert_eq!(ids(&[]).map(|all| all.len()), Ok(scenario::ALL.len()));
    assert_eq!(ids(&["S9"]), Err("no scenario \"S9\"; there are S1, S2, S3, S4, S5, S6".to_owned()));
}

#[test]
fn versions_are_found_in_what_programs_say() {
    for (text, expected) in [
        ("migration-proxy 0.1.0\n", "0.1.0"),
        ("nginx version: nginx/1.22.1\n", "1.22.1"),
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12"),
        ("envoy  version: 9e5580933739775e8b/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
        ("no idea", ""),
    ] {
        assert_eq!(peers::version_in(text), expected);
    }
}

#[test]
fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
    for (list, expected) in [("\t0-1\n", vec![0, 1]), ("3", vec![3]), ("0,2-4,8", vec![0, 2, 3, 4, 8]), ("", vec![])] {
        assert_eq!(ground::cpus_of(list), expected, "{list:?}");
    }
}

#[test]
fn no_configuration_has_a_name_that_nobody_fills() {
    let known = ["DIR", "LOG", "OLD_HOST", "NEW_HOST", "OLD", "NEW", "PLAIN", "TLS", "ADMIN", "LOAD_CPUS"];
    let values = known.map(|name| (name, String::from("1")));
    let templates =
        peers::ALL.iter().map(|program| program.template).chain([include_str!("../../benches/compare/backends.conf")]);
    for template in templates {
        let filled = ground::fill(template, &values);
        assert!(!filled.contains('@') || filled.contains("\"@type\""), "{filled}");
    }
}

#[test]
fn fields_of_an_echo_may_hold_spaces_and_may_be_empty() {
    let body = "host=shop.new.test sni= for=192.0.2.7, 127.0.0.1 proto=https nth=12";

    let fields = ["host", "sni", "for", "proto", "nth", "else"].map(|name| proof::field(body, name));

    assert_eq!(fields, ["shop.new.test", "", "192.0.2.7, 127.0.0.1", "https", "12", ""]);
}

#[test]
fn what_h2load_prints_is_read() {
    let output = "TLS Protocol: TLSv1.3\nApplication protocol: h2\n\nfinished in 211.50ms, 379.31 req/s, 0B/s\n\
        requests: 800 total, 800 started, 800 done, 795 succeeded, 5 failed, 2 errored, 1 timeout\n\
        status codes: 790 2xx, 5 3xx, 3 4xx, 0 5xx\n";
    let log = "1795296293113358\t200\t300\n1795296293113359\t502\t1\n1795296293113360\t204\t100\n";

    let counted = load::parse(output, log).expect("both are as h2load writes them");

    assert_eq!((counted.good, counted.failed, counted.protocol.as_str()), (790, 10, "h2"));
    assert_eq!(counted.latencies, [100, 300]);
    assert!((counted.seconds - 0.2115).abs() < 1e-9);
}

#[test]
fn what_is_no_report_is_not_read() {
    assert!(load::parse("", "").is_none());
    assert!(load::parse("finished in 1s, 0 req/s\nrequests: 0 total\nstatus codes: \n", "").is_none());
}

const ROW: Row = Row { cpu: 16.0, rate: 24_310.4, p50: Some(1900.0), p99: Some(421.0), failed: 0 };

/// A report with two scenarios; Envoy is absent and HAProxy broke.
fn example() -> Report {
    let entry = |scenario, name, cpus: &[f64]| Entry {
        scenario,
        name,
        rounds: cpus.iter().map(|cpu| Row { cpu: *cpu, ..ROW }).collect(),
        sides: Sides::default(),
        failures: Vec::new(),
    };
    let (first, mixed) = (&scenario::ALL[0], &scenario::ALL[2]);
    let mut entries = vec![
        entry(first, OURS, &[12.0, 18.0, 13.0]),
        entry(first, "nginx", &[15.0, 16.25]),
        entry(mixed, OURS, &[16.0]),
        entry(mixed, "haproxy", &[]),
    ];
    entries[2].sides = Sides { old: (1..=100).collect(), new: (201..=300).collect() };
    entries[3].failures.push("it does not serve: no such file".to_owned());
    Report {
        peers: [(OURS, "0.1.0"), ("nginx", "1.22.1"), ("haproxy", "2.6.12")].map(|(n, v)| (n, v.to_owned())).to_vec(),
        absent: vec!["envoy"],
        entries,
        seconds: 5.0,
        rounds: 3,
        machine: "a machine".to_owned(),
    }
}

#[test]
fn the_tables_hold_medians_and_name_what_is_missing() {
    let expected = "\
migration-proxy 0.1.0, nginx 1.22.1, haproxy 2.6.12, envoy absent; medians of 3 rounds of 5 s
a machine

S1 HTTP/1.1 in clear, all to old in clear, 64 connections

| proxy           | CPU µs/request | to best peer | requests/s |    p50 |    p99 | failed |
| --------------- | -------------: | -----------: | ---------: | -----: | -----: | -----: |
| migration-proxy |           13.0 |         0.83 |     24 310 | 1.9 ms | 421 µs |      0 |
| nginx           |           15.6 |         1.00 |     24 310 | 1.9 ms | 421 µs |      0 |

S3 HTTP/1.1 over TLS, 20 % to new over verified TLS, 80 % to old, 64 connections

| proxy           | CPU µs/request | to best peer | requests/s |    p50 |    p99 | failed |
| --------------- | -------------: | -----------: | ---------: | -----: | -----: | -----: |
| migration-proxy |           16.0 |            - |     24 310 | 1.9 ms | 421 µs |      0 |
| haproxy         |              - |            - |          - |      - |      - |      - |

Old and new of this mix at a fixed 1 000 requests/s, told apart by who answered

| proxy           | timed on old | on new | p50 old | p50 new | p99 old | p99 new |
| --------------- | -----------: | -----: | ------: | ------: | ------: | ------: |
| migration-proxy |          100 |    100 |   51 µs |  251 µs |  100 µs |  300 µs |

S3 haproxy: it does not serve: no such file
";

    assert_eq!(example().text(), expected);
}

#[test]
fn json_holds_every_round() {
    let document: Value = serde_json::from_str(&example().json()).expect("it is JSON");

    assert_eq!(document["scenarios"][0]["proxies"][0]["rounds"][1]["cpu_us"], 18.0);
    assert_eq!(document["scenarios"][1]["proxies"][0]["sides"]["p99_us"]["new"], 300.0);
    assert_eq!(document["scenarios"][1]["proxies"][1]["median"], Value::Null);
    assert_eq!(document["absent"][0], "envoy");
}

#[test]
fn percentiles_and_medians_of_few_values() {
    assert_eq!(percentile(&[], 0.5), None);
    assert_eq!(percentile(&[7], 0.99), Some(7.0));
    assert_eq!(percentile(&[1, 2, 3, 4], 0.5), Some(3.0));
    assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
    assert_eq!(median(vec![]), None);
}

#[test]
fn numbers_are_short() {
    assert_eq!([13.04, 99.96, 104.2, 1234.5].map(figure), ["13.0", "100.0", "104", "1 234"]);
    assert_eq!([12.4, 999.0, 1900.0, 123_456.0].map(time), ["12 µs", "999 µs", "1.9 ms", "123 ms"]);
}

#[test]
fn the_longest_bar_of_a_panel_is_the_most_expensive_proxy() {
    let picture = chart::draw(&example());

    let bars: Vec<&str> = picture.lines().filter(|line| line.contains("height=\"13\"")).collect();
    let width = |bar: &str| bar.split("width=\"").nth(1)?.split('"').next()?.parse::<f64>().ok();
    assert_eq!(bars.len(), 3, "{picture}");
    assert!(bars[0].contains("class=\"us\"") && bars[1].contains("class=\"peer\""), "{bars:?}");
    assert!(width(bars[0]) < width(bars[1]), "{bars:?}");
    assert!(picture.contains("in clear, to old: migration-proxy 13.0, nginx 15.6 µs (0.83 of the best peer)."));
    assert!(picture.contains(">no figures<") && picture.contains("old 51 µs, 100 µs"), "{picture}");
}

#[test]
fn lines_break_between_words() {
    assert_eq!(chart::wrapped("one two three", 7), ["one two", "three"]);
    assert_eq!(chart::wrapped("longer-than-this", 7), ["longer-than-this"]);
}

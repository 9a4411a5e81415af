//! What differs between two configurations, key by key: hosts lost and gained, shares, rules, targets, trust and the
//! rest. Pure; the audit, the history and `check --against` tell the same list. Values that may be secrets (of header
//! rules and header operations) are compared and never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};
use std::path::Path;
use std::time::Duration;

use crate::config::{
    ClusterOptions, Config, CookieRule, FailureKind, HeaderOperations, HeaderRule, HttpVersion, Mode, Percent,
    Protocol, Service, Strategy, TlsVersion, ValueTest,
};
use crate::telemetry::audit::Kind;
use crate::telemetry::difference::{Difference, Said};

/// A longer list is cut where it is shown.
const LONGEST_TEXT: usize = 200;

/// What `after` says otherwise than `before`: hosts first, then services in the order of the file, then the rest.
pub fn between(before: &Config, after: &Config) -> Vec<Difference> {
    let mut differences = hosts(before, after);
    let known: BTreeMap<&str, &Service> =
        before.services.iter().map(|service| (service.name.as_str(), service)).collect();
    for service in &after.services {
        match known.get(service.name.as_str()) {
            Some(earlier) => differences.extend(of_service(earlier, service)),
            None => differences.push(share(service, None, Some(service.migration.percentage))),
        }
    }
    let names: BTreeSet<&str> = after.services.iter().map(|service| service.name.as_str()).collect();
    let gone = before.services.iter().filter(|service| !names.contains(service.name.as_str()));
    differences.extend(gone.map(|service| share(service, Some(service.migration.percentage), None)));
    if before.safe_mode != after.safe_mode {
        differences.push(Difference::switch(Kind::SafeMode, None, before.safe_mode, after.safe_mode));
    }
    differences.extend(of_keys(None, &global(before), &global(after)));
    differences
}

fn share(service: &Service, from: Option<Percent>, to: Option<Percent>) -> Difference {
    let (from, to) = (from.map(Said::Share), to.map(Said::Share));
    Difference { kind: Kind::Percentage, service: Some(service.name.clone()), key: None, from, to }
}

fn hosts(before: &Config, after: &Config) -> Vec<Difference> {
    let (before, after) = (owners(before), owners(after));
    let host = |service: &str, key: Option<&str>, from: Option<&str>, to: Option<&str>| Difference {
        kind: Kind::Host,
        service: Some(service.to_owned()),
        key: key.map(str::to_owned),
        from: from.map(Said::text),
        to: to.map(Said::text),
    };
    let lost = before.iter().filter(|(name, _)| !after.contains_key(*name));
    let lost = lost.map(|(name, service)| host(service, None, Some(name), None));
    let gained = after.iter().filter_map(|(name, service)| match before.get(name) {
        None => Some(host(service, None, None, Some(name))),
        Some(earlier) if earlier != service => Some(host(service, Some(name), Some(earlier), Some(service))),
        Some(_) => None,
    });
    lost.chain(gained).collect()
}

/// The service of each host.
fn owners(config: &Config) -> BTreeMap<String, &str> {
    let hosts = |service| move |host: &crate::config::HostPattern| (host.to_string(), service);
    config.services.iter().flat_map(|service| service.old_host.iter().map(hosts(service.name.as_str()))).collect()
}

fn of_service(before: &Service, after: &Service) -> Vec<Difference> {
    let name = Some(&after.name);
    let (was, is) = (&before.migration, &after.migration);
    let mut differences = Vec::new();
    if was.percentage != is.percentage {
        differences.push(share(after, Some(was.percentage), Some(is.percentage)));
    }
    for (kind, was, is) in
        [(Kind::Enabled, was.enabled, is.enabled), (Kind::SafeMode, before.safe_mode, after.safe_mode)]
    {
        if was != is {
            differences.push(Difference::switch(kind, name, was, is));
        }
    }
    if was.methods != is.methods {
        let (from, to) = (Some(Said::methods(&was.methods)), Some(Said::methods(&is.methods)));
        differences.push(Difference { kind: Kind::Methods, service: name.cloned(), key: None, from, to });
    }
    differences.extend(of_keys(name, &service(before), &service(after)));
    differences
}

/// One key with its value.
struct Key {
    kind: Kind,
    name: &'static str,
    /// What is compared.
    exact: String,
    /// What is shown; `None`: only that it changed.
    shown: Option<String>,
}

/// A value that is shown as it is compared.
fn open(kind: Kind, name: &'static str, value: impl Display) -> Key {
    let exact = value.to_string();
    Key { kind, name, shown: Some(exact.clone()), exact }
}

/// A value that is too much to be shown.
fn closed(kind: Kind, name: &'static str, value: &impl Debug) -> Key {
    Key { kind, name, exact: format!("{value:?}"), shown: None }
}

/// A value of which only this is shown.
fn veiled(kind: Kind, name: &'static str, value: &impl Debug, shown: String) -> Key {
    Key { kind, name, exact: format!("{value:?}"), shown: Some(shown) }
}

fn of_keys(service: Option<&String>, before: &[Key], after: &[Key]) -> Vec<Difference> {
    let changed = before.iter().zip(after).filter(|(before, after)| before.exact != after.exact);
    let difference = |(before, after): (&Key, &Key)| {
        // Where both look the same, the difference is in what is not shown.
        let shown = before.shown.as_ref().zip(after.shown.as_ref()).filter(|(before, after)| before != after);
        let (from, to) = shown.map(|(before, after)| (said(before), said(after))).unzip();
        Difference { kind: after.kind, service: service.cloned(), key: Some(after.name.to_owned()), from, to }
    };
    changed.map(difference).collect()
}

fn said(text: &str) -> Said {
    let end = text.floor_char_boundary(LONGEST_TEXT);
    Said::Text(if end < text.len() { format!("{} \u{2026}", &text[..end]) } else { text.to_owned() })
}

fn service(service: &Service) -> Vec<Key> {
    let mut keys = targets(service);
    keys.extend(trust(service));
    keys.extend(rules(service));
    keys.extend(settings(service));
    keys
}

fn targets(service: &Service) -> Vec<Key> {
    let Service { old, new, .. } = service;
    let target = |name, value: &dyn Display| open(Kind::Target, name, value);
    let or = |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
    vec![
        target("mode", &mode(service.mode)),
        target("new_host", &service.new_host),
        target("new_backend", &service.new_backend),
        target("old_backend", &listed(&service.old_backend, "none", ", ")),
        target("old.protocol", &protocol(old.protocol)),
        target("old.host_header", &or(&old.host_header, "preserve")),
        target("old.sni", &or(&old.sni, "the client's host")),
        target("old.http_version", &http_version(old.http_version)),
        target("new.protocol", &protocol(new.protocol)),
        target("new.host_header", &or(&new.host_header, "new_host")),
        target("new.sni", &or(&new.sni, "new_host")),
        target("new.http_version", &http_version(new.http_version)),
        target("redirect.code", &service.redirect_code),
    ]
}

fn trust(service: &Service) -> Vec<Key> {
    const OLD: [&str; 5] = ["old.ca_file", "old.client_cert", "old.client_key", "old.verify", "old.min_version"];
    const NEW: [&str; 5] = ["new.ca_file", "new.client_cert", "new.client_key", "new.verify", "new.min_version"];
    let of = |names: [&'static str; 5], options: &ClusterOptions| {
        let [ca, cert, key, verify, version] = names;
        [
            open(Kind::Trust, ca, file(options.ca_file.as_deref())),
            open(Kind::Trust, cert, file(options.client.as_ref().map(|files| files.cert.as_path()))),
            open(Kind::Trust, key, file(options.client.as_ref().map(|files| files.key.as_path()))),
            open(Kind::Trust, verify, if options.verify { "full" } else { "off" }),
            open(Kind::Trust, version, tls_version(options.min_version)),
        ]
    };
    of(OLD, &service.old).into_iter().chain(of(NEW, &service.new)).collect()
}

fn rules(service: &Service) -> Vec<Key> {
    let crate::config::Migration { strategy, max_step, sticky, .. } = &service.migration;
    let canary = &service.canary;
    let rule = |name, value: &dyn Display| open(Kind::Rules, name, value);
    let paths: Vec<String> = service.paths.iter().map(path).collect();
    let keys = sticky.iter().flat_map(|sticky| &sticky.by).map(|source| source.text.as_str());
    let headers = canary.header_rules.iter().map(|HeaderRule { header, test, target }| of_test(header, test, *target));
    let cookies = canary.cookie_rules.iter().map(|CookieRule { cookie, test, target }| of_test(cookie, test, *target));
    let networks = canary.ip_rules.iter().map(|rule| format!("{} to {}", rule.network, rule.target.as_str()));
    let strategy = if *strategy == Strategy::Weight { "weight" } else { "rules only" };
    vec![
        rule("paths", &joined(paths, "all")),
        rule("cohort", &service.cohort),
        rule("migration.strategy", &strategy),
        rule("migration.max_step", max_step),
        // The salt decides who is who, and is nobody's business.
        veiled(Kind::Rules, "migration.sticky", sticky, joined(keys, "none")),
        veiled(Kind::Rules, "canary.header_rules", &canary.header_rules, joined(headers, "none")),
        veiled(Kind::Rules, "canary.cookie_rules", &canary.cookie_rules, joined(cookies, "none")),
        rule("canary.ip_rules", &joined(networks, "none")),
        rule("canary.only_from", &listed(&canary.only_from, "everybody", ", ")),
        rule("canary.strip_header", &on(canary.strip_header)),
        rule("canary.on_unavailable", &if canary.fail_when_unavailable { "fail" } else { "fallback" }),
    ]
}

fn settings(service: &Service) -> Vec<Key> {
    let Service { timeouts, retry, fallback, health_check, headers, old, new, .. } = service;
    let set = |name, value: &dyn Display| open(Kind::Setting, name, value);
    let bound = |bound: Option<usize>| bound.map_or_else(|| "no limit".to_owned(), |bound| bound.to_string());
    let operations = |name, operations: &HeaderOperations| closed(Kind::Setting, name, operations);
    vec![
        set("timeouts.connect", &span(timeouts.connect)),
        set("timeouts.response_header", &span(timeouts.response_header)),
        set("timeouts.total", &span(timeouts.total)),
        set("timeouts.idle", &span(timeouts.idle)),
        set("timeouts.tunnel", &span(timeouts.tunnel)),
        set("retry.attempts", &retry.attempts),
        set("retry.when", &failures(&retry.when)),
        set("retry.after_send", &if retry.after_send { "safe_methods" } else { "never" }),
        set("retry.budget", &format!("{} %", retry.budget)),
        set("retry.backoff.base", &span(retry.backoff_base)),
        set("retry.backoff.max", &span(retry.backoff_max)),
        set("fallback.enabled", &on(fallback.enabled)),
        set("fallback.max_failures", &fallback.max_failures),
        set("fallback.failure_window", &span(fallback.failure_window)),
        set("fallback.recovery_time", &span(fallback.recovery_time)),
        set("fallback.failure_ratio", &format!("{} %", fallback.failure_ratio)),
        set("fallback.ratio_window", &span(fallback.ratio_window)),
        set("fallback.min_requests", &fallback.min_requests),
        set("fallback.failures", &failures(&fallback.failures)),
        set("fallback.half_open.probes", &fallback.probes),
        set("fallback.half_open.ramp", &span(fallback.ramp)),
        set("fallback.retry_on_old", &on(fallback.retry_on_old)),
        set("health_check.enabled", &on(health_check.enabled)),
        closed(Kind::Setting, "health_check", &health_check_but_its_switch(service)),
        operations("headers.request", &headers.request),
        operations("headers.response", &headers.response),
        set("headers.request_id", &headers.request_id),
        set("headers.rewrite_location", &on(headers.rewrite_location)),
        set("headers.rewrite_cookie_domain", &on(headers.rewrite_cookie_domain)),
        set("headers.rewrite_origin", &on(headers.rewrite_origin)),
        set("headers.strip", &listed(&headers.strip, "none", ", ")),
        closed(Kind::Setting, "headers.reveal", &headers.reveal),
        set("headers.via", &on(headers.via)),
        set("old.max_idle", &old.max_idle),
        set("old.idle_timeout", &span(old.idle_timeout)),
        set("old.max_waiting", &bound(old.max_waiting)),
        set("new.max_idle", &new.max_idle),
        set("new.idle_timeout", &span(new.idle_timeout)),
        set("new.max_waiting", &bound(new.max_waiting)),
    ]
}

fn health_check_but_its_switch(service: &Service) -> crate::config::HealthCheck {
    crate::config::HealthCheck { enabled: true, ..service.health_check.clone() }
}

fn global(config: &Config) -> Vec<Key> {
    let Config { listen, limits, log, admin, reload, dns, drain, .. } = config;
    let pairs = listen.tls.certificates.iter().map(|files| files.cert.display());
    let trust = |name, value: &dyn Display| open(Kind::Trust, name, value);
    let set = |name, value: &dyn Display| open(Kind::Setting, name, value);
    vec![
        trust("listen.trusted_proxies", &listed(&listen.trusted_proxies, "nobody", ", ")),
        closed(Kind::Trust, "listen.client_ip", &listen.client_ip),
        trust("listen.proxy_protocol", &on(listen.proxy_protocol)),
        veiled(Kind::Trust, "listen.tls.certificates", &listen.tls.certificates, joined(pairs, "none")),
        trust("listen.tls.min_version", &tls_version(listen.tls.min_version)),
        trust("listen.tls.client_ca", &file(listen.tls.client_ca.as_deref())),
        trust("admin.token_file", &file(admin.token_file.as_deref())),
        set("workers", &config.workers.map_or_else(|| "automatic".to_owned(), |workers| workers.to_string())),
        set("listen.http", &listed(&listen.http, "none", ", ")),
        set("listen.https", &listed(&listen.https, "none", ", ")),
        set("listen.admin", &listen.admin),
        closed(Kind::Setting, "listen.unknown_host", &listen.unknown_host),
        closed(Kind::Setting, "listen.timeouts", &listen.timeouts),
        closed(Kind::Setting, "limits", limits),
        closed(Kind::Setting, "log", log),
        closed(Kind::Setting, "reload", reload),
        closed(Kind::Setting, "state", &config.state),
        set("fleet.peers", &config.fleet.peers.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)),
        closed(Kind::Setting, "dns", dns),
        closed(Kind::Setting, "drain", drain),
    ]
}

fn listed<T: ToString>(items: &[T], none: &str, separator: &str) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    if items.is_empty() { none.to_owned() } else { items.join(separator) }
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>, none: &str) -> String {
    listed(&items.into_iter().collect::<Vec<_>>(), none, ", ")
}

/// `X-Pin (2 values) to new`: the values may be what only testers know.
fn of_test(name: &impl Display, test: &ValueTest, target: crate::config::Cluster) -> String {
    let test = match test {
        ValueTest::OneOf(values) if values.len() == 1 => " (a value)".to_owned(),
        ValueTest::OneOf(values) => format!(" ({} values)", values.len()),
        ValueTest::Prefix(_) => " (a prefix)".to_owned(),
        ValueTest::Regex(_) => " (an expression)".to_owned(),
        ValueTest::Present => String::new(),
    };
    format!("{name}{test} to {}", target.as_str())
}

fn path(rule: &crate::config::PathRule) -> String {
    match rule {
        crate::config::PathRule::Prefix(prefix) => format!("{prefix}*"),
        crate::config::PathRule::Exact(exact) => exact.clone(),
        crate::config::PathRule::Regex(regex) => regex.to_string(),
    }
}

fn failures(kinds: &[FailureKind]) -> String {
    let name = |kind: &FailureKind| match kind {
        FailureKind::Connect => "connect".to_owned(),
        FailureKind::Tls => "tls".to_owned(),
        FailureKind::Timeout => "timeout".to_owned(),
        FailureKind::Reset => "reset".to_owned(),
        FailureKind::Status(status) => status.to_string(),
    };
    joined(kinds.iter().map(name), "none")
}

fn file(file: Option<&Path>) -> String {
    file.map_or_else(|| "none".to_owned(), |file| file.display().to_string())
}

fn on(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn span(duration: Duration) -> String {
    format!("{duration:?}")
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Proxy => "proxy",
        Mode::Redirect => "redirect",
        Mode::Passthrough => "passthrough",
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::H2c => "h2c",
        Protocol::Https => "https",
    }
}

fn http_version(version: HttpVersion) -> &'static str {
    match version {
        HttpVersion::Auto => "auto",
        HttpVersion::Http1 => "1.1",
        HttpVersion::Http2 => "2",
    }
}

fn tls_version(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Text, parse};

    const TEXT: &str = "
services:
  - name: a
    old_host: [a.old.example, a2.old.example]
    old_backend: 10.0.0.1:80
    new_host: a.new.example
    canary: {header_rules: [{header: X-Pin, value: s3cret, target: new_cluster}]}
    headers: {request: {set: {Authorization: s3cret}}}
    migration: {percentage: 20}
  - name: b
    old_host: '*.b.example'
    old_backend: 10.0.0.1:80
    new_host: b.new.example
    migration: {percentage: 0, sticky: {by: [client_ip]}}
";

    fn config(text: &str) -> Config {
        parse(&Text::new("x.yaml", text), &Environment::new()).unwrap_or_else(|error| panic!("{error}")).config
    }

    fn words(before: &str, after: &str) -> Vec<String> {
        between(&config(before), &config(after)).iter().map(Difference::words).collect()
    }

    #[test]
    fn what_means_the_same_does_not_differ() {
        assert!(words(TEXT, TEXT).is_empty());
        assert!(words(TEXT, &TEXT.replace("percentage: 20", "percentage: 20%, enabled: true")).is_empty());
        let service = TEXT.replace("    migration: {percentage: 20}", "    migration_percentage: 20");
        assert!(words(TEXT, &service).is_empty());
    }

    #[test]
    fn every_change_is_told_with_its_values() {
        for (from, to, expected) in [
            ("percentage: 20", "percentage: 12.5", &["a: 20 % \u{2192} 12.5 %"][..]),
            ("percentage: 20", "percentage: 20, enabled: false", &["a: enabled on \u{2192} off"]),
            ("percentage: 20", "percentage: 20, methods: [GET, HEAD]", &["a: methods all \u{2192} GET,HEAD"]),
            ("  - name: b\n", "  - name: b\n    safe_mode: on\n", &["b: safe mode is on, old answers"]),
            ("\nservices:", "\nsafe_mode: on\nservices:", &["everything: safe mode is on, old answers"]),
            (", a2.old.example]", "]", &["a: loses a2.old.example"]),
            (", a2.old.example]", ", a2.old.example, x.example]", &["a: gains x.example"]),
            ("'*.b.example'", "'*.c.example'", &["b: loses *.b.example", "b: gains *.c.example"]),
            (
                "new_host: a.new.example",
                "new_host: c.new.example",
                &[
                    "a: new_host a.new.example \u{2192} c.new.example",
                    "a: new_backend a.new.example:443 \u{2192} c.new.example:443",
                ],
            ),
            ("    canary", "    mode: redirect\n    canary", &["a: mode proxy \u{2192} redirect"]),
            ("    canary", "    new: {verify: off}\n    canary", &["a: new.verify full \u{2192} off"]),
            ("    canary", "    new: {ca_file: /x.pem}\n    canary", &["a: new.ca_file none \u{2192} /x.pem"]),
            ("    canary", "    paths: [{prefix: /v2/}]\n    canary", &["a: paths all \u{2192} /v2/*"]),
            ("value: s3cret", "value: other", &["a: canary.header_rules changed"]),
            (
                "value: s3cret, target",
                "present: true, target",
                &["a: canary.header_rules x-pin (a value) to new \u{2192} x-pin to new"],
            ),
            ("Authorization: s3cret", "Authorization: other", &["a: headers.request changed"]),
            (
                "[client_ip]",
                "['cookie:id', client_ip]",
                &["b: migration.sticky client_ip \u{2192} cookie:id, client_ip"],
            ),
            ("    canary", "    timeouts: {connect: 5s}\n    canary", &["a: timeouts.connect 2s \u{2192} 5s"]),
            ("    canary", "    fallback: {max_failures: 9}\n    canary", &["a: fallback.max_failures 5 \u{2192} 9"]),
            (
                "\nservices:",
                "\nlisten: {trusted_proxies: [10.0.0.0/8]}\nservices:",
                &["listen.trusted_proxies nobody \u{2192} 10.0.0.0/8"],
            ),
            ("\nservices:", "\nlimits: {header_count: 50}\nservices:", &["limits changed"]),
            (
                "name: b\n",
                "name: c\n",
                &[
                    "c: takes *.b.example over from b",
                    "c: a new service, at 0 %",
                    "b: the service is gone, it was at 0 %",
                ],
            ),
        ] {
            assert!(TEXT.contains(from), "{from}");
            assert_eq!(words(TEXT, &TEXT.replace(from, to)), expected, "{to}");
        }
    }

    #[test]
    fn no_difference_shows_a_secret() {
        for after in [TEXT.replace("s3cret", "0ther"), TEXT.replace("    headers: ", "    x-headers: ")] {
            let told = format!("{:?}", between(&config(TEXT), &config(&after)));
            assert!(!told.contains("s3cret") && !told.contains("0ther") && told.len() > 2, "{told}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let many: Vec<String> = (0..99).map(|number| format!("10.0.{number}.0/24")).collect();
        let after =
            TEXT.replace("\nservices:", &format!("\nlisten: {{trusted_proxies: [{}]}}\nservices:", many.join(",")));
        let told = &words(TEXT, &after)[0];
        assert!(told.len() < 300 && told.ends_with(" \u{2026}"), "{told}");
    }
}

//! Old against new at a glance: first a sentence about the worst thing that is true, then a table with trouble on top,
//! then how to go back.

use std::time::Duration;

use anstyle::Style;
use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::AdminArguments;
use super::output::{self, ALARM, Exit, Failure, NOTICE, nearest, printable, wrap};
use super::table::{Align, Cell, Table};
use super::watch::{Form, watch};
use super::words::{count, counted, duration, latency, part, rate, share};
use crate::control::report::{ServiceReport, StatusReport};
use crate::telemetry::window::{Sides, Summary};

/// Longer names are cut: the numbers matter more.
const LONGEST_NAME: usize = 32;
/// More sentences than this are counted.
const MOST_SENTENCES: usize = 6;
/// Fewer failed tries than this say nothing about a cluster.
const FEW_ERRORS: u64 = 5;

/// Arguments of `status`.
#[derive(Args, Debug)]
#[command(after_help = "Exit: 0 shown, 1 no such service, 4 degraded (with --strict), 7 the proxy is unreachable.")]
pub struct Arguments {
    /// Show this service alone, with its recent past
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// Print what the proxy reports as JSON
    #[arg(long)]
    json: bool,
    /// Exit with 4 when something is degraded
    #[arg(long, conflicts_with = "watch")]
    strict: bool,
    /// Show it again every two seconds until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs `status`.
///
/// # Errors
///
/// The proxy does not answer, or there is no such service.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let client = arguments.admin.client()?;
    let look = || View::new(arguments, &client.json("/status")?);
    if arguments.watch {
        let form = if arguments.json { Form::Lines } else { Form::Text };
        return watch(form, || Ok(look()?.text));
    }
    let view = look()?;
    output::print(&view.text)?;
    Ok(if arguments.strict && view.is_degraded { Exit::Degraded } else { Exit::Done })
}

/// What is shown.
struct View {
    text: String,
    is_degraded: bool,
}

impl View {
    fn new(arguments: &Arguments, document: &Value) -> Result<Self, Failure> {
        let report: StatusReport = serde_json::from_value(document.clone()).map_err(|error| {
            Failure::new(Exit::Failed, format!("the proxy is of another version: /status: {error}"))
        })?;
        let (now, width) = (Timestamp::now(), output::width());
        // One line for each look, so that whoever reads knows where it ends.
        let json = |value: &Value| if arguments.watch { format!("{value}\n") } else { format!("{value:#}\n") };
        let Some(name) = &arguments.service else {
            let text = if arguments.json { json(document) } else { overview(&report, width, now) };
            return Ok(Self { text, is_degraded: !report.degraded.is_empty() || !report.ready });
        };
        let service = find(&report, name)?;
        let is_degraded = report.safe_mode || trouble(service, now).is_some() || is_named(&report.degraded, name);
        let text = match of_service(document, name) {
            Some(service) if arguments.json => json(service),
            _ => detail(&report, service, width, now),
        };
        Ok(Self { text, is_degraded })
    }
}

pub(super) fn find<'a>(report: &'a StatusReport, name: &str) -> Result<&'a ServiceReport, Failure> {
    let found = report.services.iter().find(|service| service.name == name);
    found.ok_or_else(|| {
        let names = || report.services.iter().map(|service| service.name.as_str());
        let near = nearest(name, names());
        let hint = match near.as_slice() {
            [] => format!("known: {}", names().take(10).collect::<Vec<_>>().join(", ")),
            near => format!("did you mean {}?", near.join(" or ")),
        };
        Failure::new(Exit::Failed, format!("no service {name}; {}", printable(&hint)))
    })
}

fn of_service<'a>(document: &'a Value, name: &str) -> Option<&'a Value> {
    let services = document.get("services")?.as_array()?;
    services.iter().find(|service| service.get("name").and_then(Value::as_str) == Some(name))
}

/// Everything, for a terminal of that width.
pub(super) fn overview(report: &StatusReport, width: usize, now: Timestamp) -> String {
    let mut out = sentences(report, width, now);
    out.push('\n');
    out.push_str(&table(report, now).render(width));
    out.push_str("\nrate, errors and p99 of the last minute\n");
    out.push_str("go back:     percentage: 0 in the file, no restart\neverything:  safe_mode: on at its top\n");
    out
}

/// The state in words, the worst first.
fn sentences(report: &StatusReport, width: usize, now: Timestamp) -> String {
    let mut troubles = troubles(report, now);
    let services = counted(report.services.len(), "service", "services");
    let head = match replicas(report) {
        Some((agreeing, all)) => format!("{services}, {agreeing} of {all} replicas agree."),
        None => format!("{services}."),
    };
    if troubles.is_empty() {
        return wrap(&format!("All well. {} {}", head, traffic(report)), width) + "\n";
    }
    let more = troubles.len().saturating_sub(MOST_SENTENCES);
    troubles.truncate(MOST_SENTENCES);
    let mut lines = vec![head];
    lines.extend(troubles.iter().map(|sentence| printable(sentence)));
    if more > 0 {
        lines.push(format!("And {more} more."));
    }
    // The worst stands beside the head when both fit, and in any case above everything else.
    if lines[0].chars().count() + 1 + lines[1].chars().count() <= width {
        let worst = lines.remove(1);
        lines[0] = format!("{} {worst}", lines[0]);
    }
    lines.into_iter().map(|line| wrap(&line, width) + "\n").collect()
}

fn replicas(report: &StatusReport) -> Option<(usize, usize)> {
    let others = report.replicas.iter().filter(|replica| replica.name != report.replica);
    let all = others.clone().count();
    (all > 0).then(|| (others.filter(|replica| replica.agrees).count() + 1, all + 1))
}

/// How much really arrives at new, and whether new adds errors.
fn traffic(report: &StatusReport) -> String {
    let total = |side: fn(&Sides) -> &Summary| {
        let sides = report.services.iter().map(|service| side(&service.windows.one));
        sides.fold((0, 0), |(requests, errors), side| (requests + side.requests, errors + side.errors))
    };
    let ((old, _), (new, errors)) = (total(|sides| &sides.old), total(|sides| &sides.new));
    match (old + new, errors) {
        (0, _) => "No traffic in the last minute.".to_owned(),
        (all, 0) => format!("{} of the traffic on new, no errors there.", part(new, all)),
        (all, errors) => format!("{} of the traffic on new, {} of it fails there.", part(new, all), part(errors, new)),
    }
}

/// One sentence for each thing that is not as it should be, the worst first.
fn troubles(report: &StatusReport, now: Timestamp) -> Vec<String> {
    let mut out = Vec::new();
    if report.safe_mode {
        out.push("Safe mode: everything goes to old.".to_owned());
    }
    if let Some(error) = &report.config.last_error {
        out.push(format!("The file as it is now was refused: {error}. The one before it serves."));
    }
    if let Some((agreeing, all)) = replicas(report).filter(|(agreeing, all)| agreeing < all) {
        out.push(format!("{} of {all} replicas do not agree or do not answer.", all - agreeing));
    }
    let mut services: Vec<_> = report.services.iter().filter_map(|s| Some((trouble(s, now)?, s))).collect();
    services.sort_by(|(a, first), (b, second)| b.rank.cmp(&a.rank).then_with(|| first.name.cmp(&second.name)));
    // Under the global switch the switches of services change nothing.
    let services = services.iter().filter(|(trouble, _)| !(report.safe_mode && trouble.rank == Rank::SafeMode));
    out.extend(services.map(|(trouble, service)| format!("{} {}", service.name, trouble.text)));
    if !report.config.restart_needed.is_empty() {
        out.push(format!("A restart is needed for {}.", report.config.restart_needed.join(", ")));
    }
    out.extend(report.degraded.iter().filter(|text| !is_told(text, report)).map(|text| sentence(text)));
    if !report.ready && out.is_empty() {
        out.push("Not ready: it is starting or draining.".to_owned());
    }
    out
}

/// Whether a sentence of ours says what this entry of `degraded` says.
fn is_told(text: &str, report: &StatusReport) -> bool {
    let of_service = |name: &str| text.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "));
    let state = report.services.iter().find_map(|service| of_service(&service.name));
    state.is_some_and(|state| state.starts_with("breaker") || state.starts_with("safe mode"))
        || (report.safe_mode && text.starts_with("safe mode"))
        || (report.config.last_error.is_some() && text.starts_with("configuration rejected"))
}

/// An entry of `degraded` as a sentence. A name stays as it is written.
fn sentence(text: &str) -> String {
    let stop = if text.ends_with('.') { "" } else { "." };
    match text.strip_prefix("the ") {
        Some(rest) => format!("The {rest}{stop}"),
        None => format!("{text}{stop}"),
    }
}

fn is_named(degraded: &[String], name: &str) -> bool {
    degraded.iter().any(|text| text.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')))
}

/// What a person should look at, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    SafeMode,
    Recovering,
    Worse,
    Unhealthy,
    Open,
}

impl Rank {
    fn style(self) -> Style {
        match self {
            Self::Open | Self::Unhealthy | Self::Worse => ALARM,
            Self::Recovering | Self::SafeMode => NOTICE,
        }
    }
}

struct Trouble {
    rank: Rank,
    /// Goes on after the service's name.
    text: String,
}

fn trouble(service: &ServiceReport, now: Timestamp) -> Option<Trouble> {
    let some = |rank, text: String| Some(Trouble { rank, text });
    let breaker = &service.breaker;
    if breaker.state == "open" {
        let since = time(&breaker.since).map_or_else(String::new, |at| format!(" for {}", ago(at, now)));
        let again = match time(&breaker.retry_at) {
            Some(at) if at > now => format!("; new is tried again in {}", ago(now, at)),
            _ => String::new(),
        };
        return some(Rank::Open, format!("needs attention: breaker open{since}, old answers{again}."));
    }
    if service.health.new == "down" {
        return some(Rank::Unhealthy, "needs attention: the health check of new fails, old answers.".to_owned());
    }
    if service.health.old == "down" {
        return some(Rank::Unhealthy, "needs attention: the health check of old fails.".to_owned());
    }
    let Sides { old, new, .. } = &service.windows.one;
    let failing = |side: &Summary| side.errors as f64 / side.requests.max(1) as f64;
    if new.errors >= FEW_ERRORS && failing(new) > failing(old) + 0.01 {
        let (new, old) = (part(new.errors, new.requests), part(old.errors, old.requests));
        return some(Rank::Worse, format!("needs attention: {new} fail on new, {old} on old."));
    }
    if breaker.state == "half_open" {
        return some(
            Rank::Recovering,
            "recovers: new is tried with a few requests, old answers the others.".to_owned(),
        );
    }
    if service.safe_mode {
        return some(Rank::SafeMode, "is in safe mode: old answers everything.".to_owned());
    }
    None
}

/// RFC 3339; anything else is no time.
fn time(text: &Option<String>) -> Option<Timestamp> {
    text.as_ref()?.parse().ok()
}

/// From one time to a later one.
fn ago(from: Timestamp, to: Timestamp) -> String {
    duration(Duration::from_secs(u64::try_from(to.duration_since(from).as_secs()).unwrap_or(0)))
}

fn table(report: &StatusReport, now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("SHARE ON NEW", Align::Left),
        ("BREAKER", Align::Left),
        ("RATE", Align::Right),
        ("ERRORS old | new", Align::Left),
        ("P99 old | new", Align::Left),
        ("OPEN ON NEW", Align::Right),
    ]);
    let mut services: Vec<_> =
        report.services.iter().map(|s| (trouble(s, now).map(|trouble| trouble.rank), s)).collect();
    services.sort_by(|(a, first), (b, second)| b.cmp(a).then_with(|| first.name.cmp(&second.name)));
    for (rank, service) in services {
        let style = rank.map_or(Style::new(), Rank::style);
        let (breaker_style, errors_style) = match rank {
            Some(Rank::Worse) => (Style::new(), style),
            _ => (style, Style::new()),
        };
        let Sides { old, new, .. } = &service.windows.one;
        table.push(vec![
            Cell::new(cut(&printable(&service.name))).styled(style),
            Cell::new(share_text(report, service)),
            Cell::new(breaker_text(service)).styled(breaker_style),
            Cell::new(rate(service.windows.one.rate(old.requests + new.requests))),
            Cell::pair(part(old.errors, old.requests), part(new.errors, new.requests)).styled(errors_style),
            Cell::pair(latency(old.p99), latency(new.p99)),
            Cell::new(count(service.open_on_new)),
        ]);
    }
    table
}

fn share_text(report: &StatusReport, service: &ServiceReport) -> String {
    let effective = share(service.percentage.effective);
    match service {
        _ if report.safe_mode || service.safe_mode => format!("0 % (safe mode, else {effective})"),
        ServiceReport { enabled: false, .. } => "0 % (disabled)".to_owned(),
        ServiceReport { percentage, .. } if percentage.effective == percentage.declared => effective,
        ServiceReport { percentage, .. } => format!("{effective} (file: {})", share(percentage.declared)),
    }
}

fn breaker_text(service: &ServiceReport) -> String {
    let state = match service.breaker.state.as_str() {
        "half_open" => "half-open".to_owned(),
        "" => "-".to_owned(),
        state => printable(state),
    };
    match (service.health.old.as_str(), service.health.new.as_str()) {
        (_, "down") => format!("{state}, new down"),
        ("down", _) => format!("{state}, old down"),
        _ => state,
    }
}

fn cut(name: &str) -> String {
    match name.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// One service with its recent past.
fn detail(report: &StatusReport, service: &ServiceReport, width: usize, now: Timestamp) -> String {
    let name = printable(&service.name);
    let state = trouble(service, now).map_or_else(|| "is well.".to_owned(), |trouble| trouble.text);
    let mut out = wrap(&format!("{name} {state}"), width);
    let lines = [
        ("share on new", share_text(report, service)),
        ("breaker", breaker_text(service)),
        ("health", format!("old {}, new {}", service.health.old, service.health.new)),
        ("hosts", service.old_host.join(", ")),
        (if service.mode == "redirect" { "redirects to" } else { "new host" }, service.new_host.clone()),
        ("open on new", count(service.open_on_new)),
    ];
    out.push_str("\n\n");
    for (key, value) in lines {
        out.push_str(&format!("{key:<12}  {}\n", printable(&value)));
    }
    let mut table = Table::new(&[
        ("WINDOW", Align::Left),
        ("REQUESTS old | new", Align::Left),
        ("ERRORS old | new", Align::Left),
        ("P50 old | new", Align::Left),
        ("P99 old | new", Align::Left),
    ]);
    let windows = &service.windows;
    for (title, Sides { old, new, .. }) in [("1 m", &windows.one), ("5 m", &windows.five), ("60 m", &windows.sixty)] {
        table.push(vec![
            Cell::new(title),
            Cell::pair(count(old.requests), count(new.requests)),
            Cell::pair(part(old.errors, old.requests), part(new.errors, new.requests)),
            Cell::pair(latency(old.p50), latency(new.p50)),
            Cell::pair(latency(old.p99), latency(new.p99)),
        ]);
    }
    out.push('\n');
    out.push_str(&table.render(width));
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::telemetry::window::Windows;

    fn service(name: &str, share: f64) -> ServiceReport {
        let windows = json!({
            "1m": {"old": {"requests": 60_000, "errors": 6, "p50": 0.02, "p99": 0.038},
                   "new": {"requests": 14_400, "errors": 1, "p50": 0.02, "p99": 0.035}, "seconds": 60},
            "5m": quiet(), "60m": quiet(),
        });
        let json = json!({
            "name": name, "old_host": [format!("{name}.old.example")], "new_host": format!("{name}.new.example"),
            "mode": "proxy", "enabled": true, "safe_mode": false, "open_on_new": 0,
            "percentage": {"declared": share, "effective": share, "confirm_by": null},
            "breaker": {"state": "closed", "since": null, "retry_at": null},
            "health": {"old": "unknown", "new": "unknown"}, "windows": windows,
        });
        serde_json::from_value(json).unwrap()
    }

    fn quiet() -> Value {
        let side = json!({"requests": 0, "errors": 0, "p50": null, "p99": null});
        json!({"old": side, "new": side})
    }

    fn report(services: Vec<ServiceReport>) -> StatusReport {
        let json = json!({
            "version": "0.1.0", "replica": "pod-1", "ready": true, "degraded": [], "safe_mode": false,
            "config": {"file": "migration.yaml", "hash": "9f2c", "generation": 4, "loaded_at": "2024-01-01T11:00:00Z",
                       "last_error": null, "restart_needed": [], "warnings": []},
            "untrusted_forwarders": [], "services": [], "replicas": [],
        });
        StatusReport { services, ..serde_json::from_value(json).unwrap() }
    }

    fn now() -> Timestamp {
        "2024-01-01T12:00:00Z".parse().unwrap()
    }

    fn troubled() -> StatusReport {
        let mut second = service("api-name02", 25.0);
        second.percentage.declared = 5.0;
        second.breaker.state = "open".to_owned();
        second.breaker.since = Some("2024-01-01T11:57:50Z".to_owned());
        second.breaker.retry_at = Some("2024-01-01T12:02:50Z".to_owned());
        second.windows.one = Sides {
            old: Summary { requests: 18_600, errors: 4, p99: Some(0.042), ..Summary::default() },
            new: Summary { requests: 21, errors: 8, ..Summary::default() },
            seconds: 60,
        };
        let first = ServiceReport { open_on_new: 12, ..service("api-name01", 50.0) };
        let replicas = serde_json::from_value(json!([{"name": "pod-2", "agrees": true, "age": 0.4}])).unwrap();
        let degraded = vec!["api-name02: breaker open".to_owned()];
        StatusReport { replicas, degraded, ..report(vec![first, second]) }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn trouble_comes_first_in_words_and_in_the_table() {
        let expected = "\
2 services, 2 of 2 replicas agree.
api-name02 needs attention: breaker open for 2 m 10 s, old answers; new is tried again in 2 m 50 s.

SERVICE     SHARE ON NEW      BREAKER     RATE  ERRORS old | new     P99 old | new    OPEN ON NEW
api-name02  25 % (file: 5 %)  open       310/s      0.02 % | 38.1 %    42 ms |     -            0
api-name01  50 %              closed   1 240/s      0.01 % | 0.01 %    38 ms | 35 ms           12
";
        let text = plain(&overview(&troubled(), 100, now()));
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("go back:"), "{text}");
    }

    #[test]
    fn a_narrow_terminal_loses_columns_from_the_right() {
        let text = plain(&overview(&troubled(), 80, now()));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("ERRORS old") && !text.contains("OPEN ON NEW"), "{text}");
    }

    #[test]
    fn all_well_is_one_sentence_with_the_real_share() {
        let text = sentences(&report(vec![service("a", 20.0)]), 100, now());
        assert_eq!(text, "All well. 1 service. 19.4 % of the traffic on new, 0.01 % of it fails there.\n");

        let mut silent = service("a", 20.0);
        silent.windows = Windows::default();
        let text = sentences(&report(vec![silent]), 100, now());
        assert_eq!(text, "All well. 1 service. No traffic in the last minute.\n");
    }

    #[test]
    fn every_trouble_has_its_sentence_and_is_told_once() {
        let told = |change: fn(&mut StatusReport)| {
            let mut report = report(vec![service("a", 20.0)]);
            change(&mut report);
            sentences(&report, 200, now())
        };
        for (text, expected) in [
            (
                told(|r| {
                    r.safe_mode = true;
                    r.services[0].safe_mode = true;
                    r.degraded = vec!["safe mode is on: everything goes to old".to_owned()];
                }),
                "Safe mode: everything goes to old.",
            ),
            (
                told(|r| {
                    r.config.last_error = Some("line 9: bad".to_owned());
                    r.degraded = vec!["configuration rejected: line 9: bad".to_owned()];
                }),
                "The file as it is now was refused: line 9: bad. The one before it serves.",
            ),
            (told(|r| r.ready = false), "Not ready: it is starting or draining."),
            (
                told(|r| r.degraded = vec!["a: certificates of new are not verified".to_owned()]),
                "a: certificates of new are not verified.",
            ),
            (
                told(|r| {
                    r.services[0].safe_mode = true;
                    r.degraded = vec!["a: safe mode is on".to_owned()];
                }),
                "a is in safe mode: old answers everything.",
            ),
            (
                told(|r| r.services[0].health.new = "down".to_owned()),
                "a needs attention: the health check of new fails, old answers.",
            ),
            (
                told(|r| r.services[0].windows.one.new = Summary { requests: 100, errors: 38, ..Summary::default() }),
                "a needs attention: 38.0 % fail on new, 0.01 % on old.",
            ),
            (told(|r| r.config.restart_needed = vec!["workers".to_owned()]), "A restart is needed for workers."),
        ] {
            assert_eq!(text, format!("1 service. {expected}\n"));
        }
    }

    #[test]
    fn shares_say_why_they_are_not_the_declared_one() {
        let normal = report(Vec::new());
        let safe = StatusReport { safe_mode: true, ..report(Vec::new()) };
        let disabled = ServiceReport { enabled: false, ..service("a", 50.0) };
        let mut moved = service("a", 12.5);
        moved.percentage.declared = 5.0;
        for (report, service, expected) in [
            (&normal, &service("a", 50.0), "50 %"),
            (&normal, &disabled, "0 % (disabled)"),
            (&normal, &moved, "12.5 % (file: 5 %)"),
            (&safe, &moved, "0 % (safe mode, else 12.5 %)"),
        ] {
            assert_eq!(share_text(report, service), expected);
        }
    }

    #[test]
    fn an_unknown_service_names_the_nearest_ones() {
        let failure = find(&troubled(), "api-name3").unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("api-name01 or api-name02"), "{}", failure.message);
    }

    #[test]
    fn one_service_shows_its_windows() {
        let report = troubled();
        let text = detail(&report, &report.services[0], 100, now());
        assert!(text.starts_with("api-name01 is well.\n"), "{text}");
        assert!(text.contains("1 m           60 000 | 14 400"), "{text}");
    }
}

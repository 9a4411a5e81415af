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
            let admin = arguments.admin.argument();
            let text = if arguments.json { json(document) } else { overview(&report, width, now, &admin) };
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

/// Everything, for a terminal of that width. `admin` is the argument that commands need to come to the same proxy.
pub(super) fn overview(report: &StatusReport, width: usize, now: Timestamp, admin: &str) -> String {
    let mut out = sentences(report, width, now);
    out.push('\n');
    out.push_str(&table(report, now).render(width));
    out.push_str("\nrate, errors and p99 of the last minute\n");
    out.push_str(&ways_back(report, now, admin));
    out
}

/// The commands that go back: for the worst service, and for everything.
fn ways_back(report: &StatusReport, now: Timestamp, admin: &str) -> String {
    if report.safe_mode {
        return format!("end it:      migration-proxy safe-mode off{admin}\n");
    }
    let on_new = |service: &&ServiceReport| service.percentage.effective > 0.0 && !service.safe_mode && service.enabled;
    let mut on_new: Vec<_> = report.services.iter().filter(on_new).map(|s| (rank(s, now), s)).collect();
    on_new.sort_by(|(a, first), (b, second)| b.cmp(a).then_with(|| first.name.cmp(&second.name)));
    let service = match on_new.as_slice() {
        [] => None,
        [(_, only)] => Some(printable(&only.name)),
        [(Some(_), worst), ..] => Some(printable(&worst.name)),
        _ => Some("SERVICE".to_owned()),
    };
    let one = service.map(|name| format!("go back:     migration-proxy rollback {name}{admin}\n")).unwrap_or_default();
    format!("{one}everything:  migration-proxy safe-mode on{admin}\n")
}

/// The state in words, the worst first.
fn sentences(report: &StatusReport, width: usize, now: Timestamp) -> String {
    let mut troubles = troubles(report, now);
    let services = counted(report.services.len(), "service", "services");
    let head = match replicas(report) {
        Some((agreeing, all)) => format!("{services}, {agreeing} of {all} replicas agree."),
        None => format!("{services}."),
    };
    let notes: String = notes(report, now).iter().map(|note| wrap(&printable(note), width) + "\n").collect();
    if troubles.is_empty() {
        return wrap(&format!("{}{} {}", well(report), head, traffic(report)), width) + "\n" + &notes;
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
    lines.into_iter().map(|line| wrap(&line, width) + "\n").collect::<String>() + &notes
}

/// What somebody wanted so, and others should know: freezes, and shares that go back by themselves.
fn notes(report: &StatusReport, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    let mut going: Vec<_> = report.services.iter().filter(|service| service.percentage.confirm_by.is_some()).collect();
    let more = going.len().saturating_sub(MOST_SENTENCES);
    going.truncate(MOST_SENTENCES);
    for service in going {
        let Some(goes_back) = goes_back(service, now) else { continue };
        notes.push(format!("{0} {goes_back}: migration-proxy confirm {0}", service.name));
    }
    if more > 0 {
        notes.push(format!("And {more} more shares go back by themselves."));
    }
    let frozen: Vec<&str> =
        report.services.iter().filter(|service| service.frozen).map(|service| service.name.as_str()).collect();
    match frozen.as_slice() {
        _ if report.frozen => notes.push("Increases are frozen: migration-proxy freeze off".to_owned()),
        [] => {}
        [one] => notes.push(format!("Increases of {one} are frozen: migration-proxy freeze off {one}")),
        some => notes.push(format!("Increases of {} are frozen.", listed(some))),
    }
    notes
}

/// `a, b, c and 4 more`.
fn listed(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MOST_SENTENCES);
    let some = names.iter().take(MOST_SENTENCES).copied().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{some} and {more} more") } else { some }
}

/// `goes back to 25 % in 8 m unless confirmed`; `None` where the share stays.
pub(super) fn goes_back(service: &ServiceReport, now: Timestamp) -> Option<String> {
    let at = time(&service.percentage.confirm_by)?;
    let to = service.back_to.map(|to| format!(" to {}", share(to.as_f64()))).unwrap_or_default();
    Some(format!("goes back{to} in {} unless confirmed", ago(now, at)))
}

fn replicas(report: &StatusReport) -> Option<(usize, usize)> {
    let others = report.replicas.iter().filter(|replica| replica.name != report.replica);
    let all = others.clone().count();
    (all > 0).then(|| (others.filter(|replica| replica.agrees).count() + 1, all + 1))
}

/// Nothing is well where most of what goes to new fails, however little that is.
fn well(report: &StatusReport) -> &'static str {
    let is_well = |service: &ServiceReport| {
        let Sides { old, new, .. } = &service.windows.one;
        new.errors == 0 || failing(new) <= failing(old) + 0.01
    };
    if report.services.iter().all(is_well) { "All well. " } else { "" }
}

fn failing(side: &Summary) -> f64 {
    side.errors as f64 / side.requests.max(1) as f64
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

fn rank(service: &ServiceReport, now: Timestamp) -> Option<Rank> {
    trouble(service, now).map(|trouble| trouble.rank)
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
    let is_on_new = service.enabled && !service.safe_mode && service.percentage.effective > 0.0;
    let is_exposed = is_on_new && !service.fallback;
    if service.health.new == "down" {
        let what = if is_exposed {
            "new is down and fallback is off: clients get its errors."
        } else {
            "the health check of new fails, old answers."
        };
        return some(Rank::Unhealthy, format!("needs attention: {what}"));
    }
    if service.health.old == "down" {
        return some(Rank::Unhealthy, "needs attention: the health check of old fails.".to_owned());
    }
    let Sides { old, new, .. } = &service.windows.one;
    // A few say little, but where nothing answers in place of new, clients see every one of them.
    let is_worse = failing(new) > failing(old) + 0.01;
    if is_worse && (new.errors >= FEW_ERRORS || (is_exposed && new.errors == new.requests)) {
        let on_old = match old.requests {
            0 => String::new(),
            all => format!(", {} on old", part(old.errors, all)),
        };
        let end = if is_exposed { "; fallback is off: clients get its errors." } else { "." };
        let on_new = part(new.errors, new.requests);
        return some(Rank::Worse, format!("needs attention: {on_new} fail on new{on_old}{end}"));
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
    let mut services: Vec<_> = report.services.iter().map(|s| (rank(s, now), s)).collect();
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
    let mut lines = vec![("share on new", share_text(report, service))];
    lines.extend(goes_back(service, now).map(|goes_back| ("", format!("{goes_back}: migration-proxy confirm {name}"))));
    if service.frozen {
        let scope = if report.frozen { String::new() } else { format!(" {name}") };
        lines.push(("", format!("increases are frozen: migration-proxy freeze off{scope}")));
    }
    lines.push(("breaker", breaker_text(service)));
    if !service.fallback {
        lines.push(("fallback", "off: clients get the errors of new".to_owned()));
    }
    lines.extend(failures(service));
    lines.extend([
        ("health", format!("old {}, new {}", health_text(&service.health.old), health_text(&service.health.new))),
        ("hosts", service.old_host.join(", ")),
        (if service.mode == "redirect" { "redirects to" } else { "new host" }, service.new_host.clone()),
        ("open on new", count(service.open_on_new)),
    ]);
    out.push_str("\n\n");
    for (key, value) in lines {
        out.push_str(&format!("{key:<13}  {}\n", printable(&value)));
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

fn health_text(state: &str) -> &str {
    if state == "unknown" { "not checked" } else { state }
}

/// What went wrong on each side, in the shortest window that knows of anything.
fn failures(service: &ServiceReport) -> Vec<(&'static str, String)> {
    let windows = &service.windows;
    let all = [("1 m", &windows.one), ("5 m", &windows.five), ("60 m", &windows.sixty)];
    let of = |key: &'static str, side: fn(&Sides) -> &Summary| {
        let (title, found) = all.iter().find(|(_, sides)| !side(sides).kinds.is_empty())?;
        let mut kinds: Vec<_> = side(found).kinds.iter().collect();
        kinds.sort_by(|(a, few), (b, many)| many.cmp(few).then_with(|| a.cmp(b)));
        let kinds: Vec<_> =
            kinds.iter().map(|(kind, number)| format!("{} {}", count(**number), kind_text(kind))).collect();
        Some((key, format!("{} in the last {title}", kinds.join(", "))))
    };
    of("failed on new", |sides| &sides.new).into_iter().chain(of("failed on old", |sides| &sides.old)).collect()
}

/// A kind of failure as people say it, after a number.
fn kind_text(kind: &str) -> String {
    match kind {
        "connect" => "without a connection".to_owned(),
        "tls" => "in TLS".to_owned(),
        "timeout" => "timed out".to_owned(),
        "reset" => "cut off".to_owned(),
        "header" => "with too large a head".to_owned(),
        status => format!("× {status}"),
    }
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
        let text = plain(&overview(&troubled(), 100, now(), ""));
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn it_ends_with_the_commands_that_go_back() {
        let safe = StatusReport { safe_mode: true, ..troubled() };
        let [quiet, two] = [vec![service("a", 0.0)], vec![service("a", 5.0), service("b", 5.0)]].map(report);
        for (report, expected) in [
            (
                troubled(),
                "go back:     migration-proxy rollback api-name02 --x\neverything:  migration-proxy safe-mode on --x\n",
            ),
            (two, "go back:     migration-proxy rollback SERVICE --x\neverything:  migration-proxy safe-mode on --x\n"),
            (quiet, "last minute\neverything:  migration-proxy safe-mode on --x\n"),
            (safe, "last minute\nend it:      migration-proxy safe-mode off --x\n"),
        ] {
            let text = plain(&overview(&report, 100, now(), " --x"));
            assert!(text.ends_with(expected), "{text}");
        }
    }

    #[test]
    fn freezes_and_shares_that_go_back_are_told() {
        let mut report = report(vec![service("a", 50.0), service("b", 5.0)]);
        report.services[0].percentage.confirm_by = Some("2024-01-01T12:08:00Z".to_owned());
        report.services[0].back_to = Some("25".parse().unwrap());
        report.services[1].frozen = true;

        let text = sentences(&report, 100, now());
        let notes = "\na goes back to 25 % in 8 m unless confirmed: migration-proxy confirm a\n\
                     Increases of b are frozen: migration-proxy freeze off b\n";
        assert!(text.starts_with("All well. ") && text.ends_with(notes), "{text}");
        let text = detail(&report, &report.services[0], 100, now());
        let line = "share on new   50 %\n               goes back to 25 % in 8 m unless confirmed: migration-proxy confirm a\n";
        assert!(text.contains(line), "{text}");

        report.frozen = true;
        let text = sentences(&report, 100, now());
        assert!(text.ends_with("\nIncreases are frozen: migration-proxy freeze off\n"), "{text}");
    }

    #[test]
    fn what_failed_is_told_of_one_service() {
        let mut report = report(vec![service("a", 50.0)]);
        let kinds = [("503".to_owned(), 1_200), ("connect".to_owned(), 3)].into();
        report.services[0].windows.five.new = Summary { requests: 1_300, errors: 1_203, kinds, ..Summary::default() };
        let text = detail(&report, &report.services[0], 100, now());
        let line = "failed on new  1 200 × 503, 3 without a connection in the last 5 m\n";
        assert!(text.contains(line) && text.contains("health         old not checked, new not checked\n"), "{text}");
    }

    #[test]
    fn a_narrow_terminal_loses_columns_from_the_right() {
        let text = plain(&overview(&troubled(), 80, now(), ""));
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
            (
                told(|r| {
                    r.services[0].health.new = "down".to_owned();
                    r.services[0].fallback = false;
                }),
                "a needs attention: new is down and fallback is off: clients get its errors.",
            ),
            (
                told(|r| {
                    r.services[0].windows.one.old = Summary::default();
                    r.services[0].windows.one.new = Summary { requests: 3, errors: 3, ..Summary::default() };
                    r.services[0].fallback = false;
                }),
                "a needs attention: 100 % fail on new; fallback is off: clients get its errors.",
            ),
            (
                told(|r| {
                    r.services[0].windows.one.old = Summary::default();
                    r.services[0].windows.one.new = Summary { requests: 3, errors: 3, ..Summary::default() };
                }),
                "100 % of the traffic on new, 100 % of it fails there.",
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

//! Looks at everything that can keep a service from working on new, and says what to do about each thing. A running proxy
//! looks for itself; with a file, this process does, from where it stands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::Args;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminArguments;
use super::client::Client;
use super::output::{self, ALARM, Exit, Failure, NOTICE, printable, wrap};
use super::status;
use super::words::counted;
use crate::admin::doctor;
use crate::config::{self, Config};
use crate::control::candidate::Candidate;
use crate::control::examine::{self, Process};
use crate::control::report::StatusReport;
use crate::control::{expiry, state_file};
use crate::routing::snapshot::Means;
use crate::upstream::dns::Sources;
use crate::upstream::finding::{Finding, Level};
use crate::upstream::resolve::Resolver;

const GOOD: Style = AnsiColor::Green.on_default();

/// Services that a running proxy is asked about at the same time.
const AT_ONCE: usize = 4;

/// A service takes half a minute at most, and waits for its turn.
const PATIENCE: Duration = Duration::from_secs(110);

/// With more services than this those that are well get one line each.
const FEW: usize = 3;

/// Arguments of `doctor`.
#[derive(Args, Debug)]
#[command(
    after_help = "Requests are sent to both clusters: GET, a WebSocket's beginning, and a POST to a path that nobody has.\n\
                        Exit: 0 nothing failed, 1 no such service, 3 the file is invalid, 4 something failed,\n      7 the proxy is \
                        unreachable.\n\n\
                        Examples:\n  \
                        migration-proxy doctor api-name01\n  \
                        migration-proxy doctor -c migration.yaml     before there is a proxy, from this machine"
)]
pub struct Arguments {
    /// Look at this service alone
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// Look from here, with this file and without a running proxy
    #[arg(short = 'c', long = "local-config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the checks as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// The answer of `/api/v1/doctor`.
#[derive(Deserialize)]
struct Answer {
    checks: Vec<Finding>,
}

/// Runs `doctor`.
///
/// # Errors
///
/// There is no such service, the file is invalid, or the proxy does not answer.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let findings = match &arguments.config {
        Some(file) => offline(file, arguments.service.as_deref())?,
        None => live(&arguments.admin.client()?.patient_for(PATIENCE), arguments.service.as_deref())?,
    };
    if arguments.json {
        output::print_json(&json!({"checks": findings}))?;
    } else {
        output::print(&text(&findings, arguments.service.is_some(), output::width()))?;
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed { Exit::Degraded } else { Exit::Done })
}

/// What a running proxy finds: one question for each service, so that progress can be told.
fn live(client: &Client, service: Option<&str>) -> Result<Vec<Finding>, Failure> {
    let report: StatusReport = client.json("/status")?;
    if let Some(name) = service {
        status::find(&report, name)?;
        return ask(client, &json!({"service": name}));
    }
    let names: Vec<&str> = report.services.iter().map(|service| service.name.as_str()).collect();
    let mut findings = ask(client, &json!({"only": "process"}))?;
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let answers: Mutex<BTreeMap<usize, Result<Vec<Finding>, Failure>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(names.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(name) = names.get(index) else { return };
                    let answer = ask(client, &json!({"service": name}));
                    answers.lock().unwrap_or_else(PoisonError::into_inner).insert(index, answer);
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, names.len(), name);
                }
            });
        }
    });
    for (index, answer) in answers.into_inner().unwrap_or_else(PoisonError::into_inner) {
        // One that does not come does not take the others with it.
        findings.extend(answer.unwrap_or_else(|failure| {
            let fix = format!("try it alone: migration-proxy doctor {}", names[index]);
            vec![Finding::fail("doctor", failure.message, fix).of_service(names[index])]
        }));
    }
    Ok(findings)
}

fn ask(client: &Client, question: &Value) -> Result<Vec<Finding>, Failure> {
    let answer = client.change(Method::POST, "/api/v1/doctor", question)?;
    let answer: Result<Answer, _> = serde_json::from_value(answer);
    answer
        .map(|answer| answer.checks)
        .map_err(|error| Failure::new(Exit::Failed, format!("the proxy is of another version: {error}")))
}

fn progress(done: usize, all: usize, name: &str) {
    if all > FEW {
        output::tell(&format!("{done} of {all}  {}", printable(name)));
    }
}

/// What this process finds with a file.
fn offline(file: &Path, service: Option<&str>) -> Result<Vec<Finding>, Failure> {
    let refused = |error: config::ConfigError| {
        output::tell(error.render(true).trim_end());
        Failure::new(Exit::Invalid, "")
    };
    let environment = config::environment();
    let candidate = Candidate::read(file, &environment).map_err(refused)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    let _inside = runtime.enter();
    let config = candidate.config();
    let resolver = Resolver::new(config.dns, Sources::default(), runtime.handle().clone());
    let compiled = candidate.compile(None, &Means { environment: &environment, resolver: &resolver, workers: 1 });
    let compiled = compiled.map_err(refused)?;
    let snapshot = &compiled.snapshot;
    let certificates = expiry::of(&compiled.certificates, snapshot);
    let mut findings = Vec::new();
    let chosen = match service {
        Some(name) => vec![snapshot.service(name).ok_or_else(|| unknown(config, name))?.clone()],
        None => {
            let (certificates, forwarders) = (certificates.as_slice(), Vec::new());
            let in_pod = examine::is_pod(&environment);
            let process = Process { file, config, last_error: None, certificates, forwarders, in_pod };
            findings.extend(examine::process(&process));
            // The directory is that of the pod, and this may be another machine.
            findings.push(state_file::examine(&config.reload.state_dir).softened());
            snapshot.services.clone()
        }
    };
    let done = AtomicUsize::new(0);
    let tell = |name: &str| progress(done.fetch_add(1, Ordering::Relaxed) + 1, chosen.len(), name);
    findings.extend(runtime.block_on(doctor::services(&chosen, config, &certificates, tell)));
    // A look-up that nobody waits for any more keeps us no longer.
    runtime.shutdown_background();
    Ok(findings)
}

fn unknown(config: &Config, name: &str) -> Failure {
    let near = output::nearest(name, config.services.iter().map(|service| service.name.as_str()));
    let hint = if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) };
    Failure::new(Exit::Failed, format!("no service {name}{hint}"))
}

/// The findings by service and cluster, and what they come to.
fn text(findings: &[Finding], in_full: bool, width: usize) -> String {
    let mut groups: Vec<(Option<&str>, Vec<&Finding>)> = Vec::new();
    for finding in findings {
        let service = finding.service.as_deref();
        match groups.last_mut() {
            Some((last, group)) if *last == service => group.push(finding),
            _ => groups.push((service, vec![finding])),
        }
    }
    let in_full = in_full || groups.iter().filter(|(service, _)| service.is_some()).count() <= FEW;
    let mut out = String::new();
    for (service, group) in &groups {
        let worst = group.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
        let name = service.unwrap_or("this proxy");
        if !in_full && worst == Level::Ok {
            out.push_str(&format!("{}    {}, {}\n", styled(Level::Ok), printable(name), checks(group.len())));
            continue;
        }
        out.push_str(&format!("{}\n", printable(name)));
        for finding in group {
            out.push_str(&line(finding, width));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (failed, warned) = (count(Level::Fail), count(Level::Warn));
    let warnings = if warned == 0 { String::new() } else { format!(", {}", counted(warned, "warning", "warnings")) };
    out.push_str(&match failed {
        0 => format!("\nAll well: {}{warnings}.\n", checks(findings.len())),
        _ => format!("\n{failed} of {} failed{warnings}.\n", checks(findings.len())),
    });
    out
}

fn checks(number: usize) -> String {
    counted(number, "check", "checks")
}

/// `fail  new tls    what is there`, and below it what to do.
fn line(finding: &Finding, width: usize) -> String {
    /// Columns before the text.
    const INDENT: usize = 22;
    let name = format!("{} {}", finding.cluster.as_deref().unwrap_or("  "), finding.name);
    let room = width.saturating_sub(INDENT);
    let indented = |text: &str| wrap(&printable(text), room).replace('\n', &format!("\n{:INDENT$}", ""));
    let pad = 6 - finding.level.as_str().len();
    let mut out = format!("{}{:pad$}{:<16}{}\n", styled(finding.level), "", printable(&name), indented(&finding.found));
    if let Some(fix) = &finding.fix {
        out.push_str(&format!("{:INDENT$}{}\n", "", indented(&format!("fix: {fix}"))));
    }
    out
}

fn styled(level: Level) -> String {
    let style = match level {
        Level::Ok => GOOD,
        Level::Warn => NOTICE,
        Level::Fail => ALARM,
    };
    format!("{style}{}{style:#}", level.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cluster;

    fn plain(findings: &[Finding], in_full: bool) -> String {
        anstream::adapter::strip_str(&text(findings, in_full, 80)).to_string()
    }

    #[test]
    fn each_failure_stands_with_its_fix() {
        let of = |finding: Finding| finding.of_service("api-name01").of_cluster(Cluster::New);
        let findings = [
            Finding::ok("config", "migration.yaml, changes are seen"),
            of(Finding::ok("tcp", "203.0.113.10:443 in 4 ms")),
            of(Finding::fail("tls", "certificate is for *.kong.example", "set new.sni to a name in the certificate")),
        ];

        let expected = "\
this proxy
ok       config       migration.yaml, changes are seen
api-name01
ok    new tcp         203.0.113.10:443 in 4 ms
fail  new tls         certificate is for *.kong.example
                      fix: set new.sni to a name in the certificate

1 of 3 checks failed.
";
        assert_eq!(plain(&findings, false), expected);
    }

    #[test]
    fn of_many_services_only_those_with_trouble_are_shown_in_full() {
        let mut findings: Vec<Finding> =
            ["a", "b", "c"].iter().map(|name| Finding::ok("dns", "x").of_service(name)).collect();
        findings.push(Finding::warn("tls", "ends in 3 days", "renew").of_service("d"));

        let short = plain(&findings, false);

        assert!(short.starts_with("ok    a, 1 check\nok    b, 1 check\n"), "{short}");
        assert!(short.contains("d\nwarn") && short.ends_with("All well: 4 checks, 1 warning.\n"), "{short}");
        assert!(!plain(&findings, true).contains("1 check\n"));
    }

    #[test]
    fn long_texts_stay_in_their_column() {
        let finding = Finding::fail("dns", "word ".repeat(40).trim_end(), "\u{1b}[2Jfix it ".repeat(20));
        let text = plain(&[finding], true);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}

//! What every verb that changes something has in common: arguments, the request, and the lines that tell what changed.

use std::time::{Duration, Instant};

use clap::Args;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::AdminArguments;
use super::client::{Client, encoded};
use super::output::{self, Exit, Failure, NOTICE, printable};
use super::status::goes_back;
use super::words::counted;
use crate::config::{self, Percent};
use crate::control::report::{ReplicaReport, ServiceReport, StatusReport};
use crate::telemetry::audit::Kind;
use crate::telemetry::difference::{Difference, Reach, Said};

/// Between two looks at what the replicas serve.
const LOOK: Duration = Duration::from_millis(100);

/// How long replicas may take to be heard of when nobody asked to wait for them.
const MOMENT: Duration = Duration::from_secs(5);

/// Arguments of every verb that changes something.
#[derive(Args, Debug)]
pub struct ChangeArguments {
    /// Why, for the audit and the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Change this replica only, although there may be others
    #[arg(long)]
    this_replica: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

impl ChangeArguments {
    /// Asks for a change and tells what changed.
    pub(super) fn make(&self, method: Method, target: &str, body: Map<String, Value>) -> Result<Outcome, Failure> {
        self.make_or(method, target, body, |_| None)
    }

    /// The same where some statuses have exit codes of their own.
    pub(super) fn make_or(
        &self,
        method: Method,
        target: &str,
        mut body: Map<String, Value>,
        exit: impl Fn(StatusCode) -> Option<Exit>,
    ) -> Result<Outcome, Failure> {
        let client = self.admin.client()?;
        if let Some(reason) = &self.reason {
            body.insert("reason".to_owned(), json!(reason));
        }
        let query = if self.this_replica { "?this_replica=true" } else { "" };
        let answer = client.change_or(method, &format!("{target}{query}"), &Value::Object(body), exit)?;
        Ok(Outcome { answer, client, as_json: self.json })
    }
}

/// A change that was made.
pub(super) struct Outcome {
    answer: Value,
    client: Client,
    as_json: bool,
}

impl Outcome {
    /// Prints it; exit 4 when it would not survive a restart.
    pub(super) fn tell(&self) -> Result<Exit, Failure> {
        let unstored = self.answer["unstored"].as_str();
        if self.as_json {
            output::print_json(&self.answer)?;
        } else {
            output::print(&self.lines(Timestamp::now()))?;
            if let Some(error) = unstored {
                let error = printable(error);
                output::tell(&format!("{NOTICE}warning{NOTICE:#}: in force, but lost at the next restart: {error}"));
            }
        }
        Ok(if unstored.is_some() { Exit::Degraded } else { Exit::Done })
    }

    /// Waits until every replica serves the shares of this change.
    pub(super) fn wait(&self, patience: Duration) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            let report: StatusReport = self.client.json("/status")?;
            let behind: Vec<&str> =
                report.replicas.iter().filter(|replica| !replica.agrees).map(|replica| &*replica.name).collect();
            if behind.is_empty() && self.shares().all(|(name, share)| is_at(&report, &name, share)) {
                let replicas = report.replicas.len() + 1;
                output::tell(&format!(
                    "{} after {:.1} s",
                    counted(replicas, "replica", "replicas"),
                    start.elapsed().as_secs_f64()
                ));
                return Ok(());
            }
            if start.elapsed() > patience {
                let who = if behind.is_empty() { "this replica".to_owned() } else { behind.join(", ") };
                return Err(Failure::new(
                    Exit::TimedOut,
                    format!("made, but not everywhere within {} s: {}", patience.as_secs(), printable(&who)),
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Looks whether every replica serves the configuration of this one, for as long as asked: exit 4 when one cannot. By
    /// itself it looks for as long as replicas take when all is well.
    pub(super) fn followed(&self, patience: Option<Duration>) -> Result<Exit, Failure> {
        let start = Instant::now();
        loop {
            let report: StatusReport = self.client.json("/status")?;
            let hash = Some(&report.config.hash);
            let others = report.replicas.iter().filter(|replica| replica.config_hash.as_ref() != hash);
            let (lacking, late): (Vec<_>, Vec<_>) = others.partition(|replica| replica.lacks.as_ref() == hash);
            let names = |replicas: &[&ReplicaReport]| {
                printable(&replicas.iter().map(|replica| &*replica.name).collect::<Vec<_>>().join(", "))
            };
            let waited = start.elapsed();
            if late.is_empty() && lacking.is_empty() {
                if patience.is_some() || !report.replicas.is_empty() {
                    let replicas = counted(report.replicas.len() + 1, "replica", "replicas");
                    output::tell(&format!("{replicas} after {:.1} s", waited.as_secs_f64()));
                }
                return Ok(Exit::Done);
            }
            if late.is_empty() {
                let names = names(&lacking);
                output::tell(&format!("{NOTICE}warning{NOTICE:#}: not followed, for want of this file, by {names}"));
                return Ok(Exit::Degraded);
            }
            if waited > patience.unwrap_or(MOMENT) {
                let text = format!("made, but not everywhere within {:.0} s: {}", waited.as_secs_f64(), names(&late));
                if patience.is_some() {
                    return Err(Failure::new(Exit::TimedOut, text));
                }
                output::tell(&format!("{NOTICE}warning{NOTICE:#}: {text}"));
                return Ok(Exit::Degraded);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn changes(&self) -> impl Iterator<Item = Difference> {
        let changes = self.answer["changes"].as_array().into_iter().flatten();
        changes.filter_map(|change| serde_json::from_value(change.clone()).ok())
    }

    fn shares(&self) -> impl Iterator<Item = (String, f64)> {
        self.changes().filter(|change| change.kind == Kind::Percentage).filter_map(|change| match change.to {
            Some(Said::Share(to)) => Some((change.service?, to.as_f64())),
            _ => None,
        })
    }

    /// What a service of this change is now.
    fn service(&self, name: &str) -> Option<ServiceReport> {
        let all = self.answer["services"].as_array().into_iter().flatten().chain([&self.answer]);
        let found = all.into_iter().find(|service| service["name"].as_str() == Some(name))?;
        serde_json::from_value(found.clone()).ok()
    }

    fn lines(&self, now: Timestamp) -> String {
        if let Some(before) = self.answer["before"].as_str() {
            return self.lines_of_file(before);
        }
        let mut lines = String::new();
        for change in self.changes() {
            let service = change.service.as_deref().and_then(|name| self.service(name));
            let reach = service.as_ref().and_then(reach);
            lines.push_str(&format!("{}\n", printable(&line(&change, reach))));
            let share = service.filter(|_| change.kind == Kind::Percentage);
            for note in share.iter().flat_map(|service| notes(service, now)) {
                lines.push_str(&format!("  {}\n", printable(&note)));
            }
        }
        if lines.is_empty() {
            "nothing to change\n".clone_into(&mut lines);
        }
        lines
    }

    /// What an earlier file changed comes back with the file, not value by value.
    fn lines_of_file(&self, before: &str) -> String {
        let config = &self.answer["config"];
        let short = |hash: &str| printable(&hash.chars().take(SHOWN_HASH).collect::<String>());
        let mut lines: String = self.changes().map(|change| format!("{}\n", printable(&change.words()))).collect();
        let pinned = config["pinned"]["hash"].as_str();
        match pinned {
            Some(hash) => lines.push_str(&format!("serves {} until the file changes\n", short(hash))),
            None if lines.is_empty() => lines.push_str("nothing to change\n"),
            None => {}
        }
        if config["hash"].as_str() != Some(before) {
            lines.push_str(&format!("undo: migration-proxy rollback --config {}\n", short(before)));
        }
        lines
    }
}

/// As much of a hash as people compare.
const SHOWN_HASH: usize = 12;

/// What changed, and the way back where the change asks for one.
fn line(change: &Difference, reach: Option<Reach>) -> String {
    let is_on = matches!(&change.to, Some(Said::Text(to)) if to == "on");
    let wants_undo = change.kind == Kind::Percentage || (change.kind == Kind::SafeMode && is_on);
    let undo =
        change.undo(reach).filter(|_| wants_undo).map(|undo| format!("      {}: {undo}", undo_word(change, reach)));
    format!("{}{}", change.words(), undo.unwrap_or_default())
}

/// One command does not always go all the way back.
fn undo_word(change: &Difference, reach: Option<Reach>) -> String {
    match (&change.from, reach) {
        (Some(Said::Share(from)), Some(reach)) if reach.towards(*from) < *from => {
            format!("undo, in steps of {} points", reach.max_step)
        }
        _ => "undo".to_owned(),
    }
}

fn reach(service: &ServiceReport) -> Option<Reach> {
    let hundredths = (service.percentage.effective * 100.0).round() as u16;
    Some(Reach { at: Percent::from_basis_points(hundredths)?, max_step: service.max_step? })
}

/// What else is to be known of a share that was changed.
fn notes(service: &ServiceReport, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    if service.percentage.effective > 0.0 {
        if service.safe_mode {
            notes.push("safe mode is on, nothing moves until it is off".to_owned());
        } else if !service.enabled {
            notes.push("migration.enabled is false, nothing moves until it is true".to_owned());
        }
    }
    let name = &service.name;
    notes.extend(goes_back(service, now).map(|goes_back| format!("{goes_back}: migration-proxy confirm {name}")));
    notes
}

fn is_at(report: &StatusReport, name: &str, share: f64) -> bool {
    let service = report.services.iter().find(|service| service.name == name);
    // Shares are hundredths of a percent.
    service.is_none_or(|service| (service.percentage.effective - share).abs() < 0.005)
}

/// The path of one service's API.
pub(super) fn service_path(service: &str, what: &str) -> String {
    format!("/api/v1/services/{}/{what}", encoded(service))
}

/// `on` and `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Switch {
    /// From now on.
    On,
    /// Not any more.
    Off,
}

impl Switch {
    /// The body that turns something on or off.
    pub(super) fn body(self, service: Option<&str>) -> Map<String, Value> {
        let mut body = Map::from_iter([("on".to_owned(), json!(self == Self::On))]);
        if let Some(service) = service {
            body.insert("service".to_owned(), json!(service));
        }
        body
    }
}

/// Asks for the end of what lasts on new.
pub(super) fn close_streams(body: &mut Map<String, Value>, over: Option<Duration>) {
    if let Some(over) = over {
        body.insert("close_streams".to_owned(), json!(seconds(over)));
    }
}

/// A duration as the file writes it.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// A duration of the command line, as the file writes them.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text)
}

//! What every verb that changes something has in common: arguments, the request, and the lines that tell what changed.

use std::time::{Duration, Instant};

use clap::Args;
use http::Method;
use serde_json::{Map, Value, json};

use super::AdminArguments;
use super::client::{Client, encoded};
use super::output::{self, Exit, Failure, NOTICE, printable};
use super::words::counted;
use crate::config;
use crate::control::report::StatusReport;

/// Between two looks at what the replicas serve.
const LOOK: Duration = Duration::from_millis(100);

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

/// One entry of `changes` in an answer.
struct Changed<'a> {
    kind: &'a str,
    service: Option<&'a str>,
    from: &'a Value,
    to: &'a Value,
}

impl ChangeArguments {
    /// Asks for a change and tells what changed.
    pub(super) fn make(&self, method: Method, target: &str, mut body: Map<String, Value>) -> Result<Outcome, Failure> {
        let client = self.admin.client()?;
        if let Some(reason) = &self.reason {
            body.insert("reason".to_owned(), json!(reason));
        }
        let query = if self.this_replica { "?this_replica=true" } else { "" };
        let answer = client.change(method, &format!("{target}{query}"), &Value::Object(body))?;
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
            output::print(&self.lines())?;
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
            if behind.is_empty() && self.shares().all(|(name, share)| is_at(&report, name, share)) {
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

    fn changes(&self) -> impl Iterator<Item = Changed<'_>> {
        self.answer["changes"].as_array().into_iter().flatten().map(|change| Changed {
            kind: change["kind"].as_str().unwrap_or_default(),
            service: change["service"].as_str(),
            from: &change["from"],
            to: &change["to"],
        })
    }

    fn shares(&self) -> impl Iterator<Item = (&str, f64)> {
        self.changes()
            .filter(|change| change.kind == "percentage")
            .filter_map(|change| Some((change.service?, change.to.as_f64()?)))
    }

    fn lines(&self) -> String {
        let mut lines: String = self.changes().map(|change| format!("{}\n", printable(&change.line()))).collect();
        if lines.is_empty() {
            "nothing to change\n".clone_into(&mut lines);
        }
        lines
    }
}

impl Changed<'_> {
    fn line(&self) -> String {
        let service = self.service.unwrap_or("everything");
        let (from, to) = (said(self.from), said(self.to));
        match self.kind {
            "percentage" if self.from == self.to => format!("{service}: stays at {to} %"),
            "percentage" => {
                let undo = match self.to.as_f64() < self.from.as_f64() {
                    true => format!("migration-proxy update {service} {from}"),
                    false => format!("migration-proxy rollback {service} --to {from}"),
                };
                format!("{service}: {from} % \u{2192} {to} %      undo: {undo}")
            }
            "confirm" => format!("{service}: stays at {to} %"),
            "safe_mode" if to == "on" => {
                let name = self.service.map(|service| format!(" {service}")).unwrap_or_default();
                format!("{service}: safe mode is on, old answers      undo: migration-proxy safe-mode off{name}")
            }
            "safe_mode" => format!("{service}: safe mode is off"),
            "freeze" => format!("{service}: increases are {}", if to == "on" { "frozen" } else { "allowed again" }),
            kind => format!("{service}: {kind} {from} \u{2192} {to}"),
        }
    }
}

fn said(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
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

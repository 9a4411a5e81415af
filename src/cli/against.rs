//! `check FILE --against URL`: what the file would change in a running proxy, and which of its last requests would move.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::callers::ago;
use super::client::{AdminUrl, Client};
use super::output::{Exit, Failure, NOTICE, printable};
use super::words::{count, counted};
use crate::config::Text;
use crate::telemetry::audit::Kind;
use crate::telemetry::difference::{Difference, Said};

/// More changes are counted instead of listed.
const MOST_CHANGES: usize = 100;

/// A large file takes a while.
const PATIENCE: Duration = Duration::from_secs(30);

/// More hosts are counted instead of listed.
const MOST_HOSTS: usize = 10;

/// The answer to `POST /api/v1/check`.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Against {
    /// What the file would change.
    pub changes: Vec<Difference>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lost_hosts: Vec<LostHost>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traffic: Option<Traffic>,
}

#[derive(Clone, Serialize, Deserialize)]
struct LostHost {
    host: String,
    service: String,
    last_request: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Traffic {
    since: Option<String>,
    requests: u64,
    to_new: u64,
    to_old: u64,
    lost: u64,
    unknown: u64,
    services: Value,
}

impl Against {
    /// Asks what this text would change.
    ///
    /// # Errors
    ///
    /// Nothing came back, or the proxy would not take the file.
    pub fn ask(url: &AdminUrl, token_file: Option<&Path>, text: &Text) -> Result<Self, Failure> {
        let client = Client::with_token_file(url.clone(), token_file)?.patient_for(PATIENCE);
        let answer = client.send_file("/api/v1/check", text.content.clone())?;
        match answer.status {
            StatusCode::OK => serde_json::from_slice(&answer.body)
                .map_err(|error| Failure::new(Exit::Failed, format!("{url} answers something else: {error}"))),
            StatusCode::UNPROCESSABLE_ENTITY => {
                let failure = client.refused("/api/v1/check", &answer);
                Err(Failure::new(Exit::Invalid, format!("the proxy would refuse this file: {}", failure.message)))
            }
            _ => Err(client.refused("/api/v1/check", &answer)),
        }
    }

    /// The changes, one in a line, and what they mean for requests.
    pub fn shown(&self, url: &AdminUrl) -> String {
        if self.changes.is_empty() {
            return format!("{url} serves the same already\n");
        }
        // Writing to a String never fails.
        let mut out = format!("{url} would change:\n");
        let changes: Vec<_> = self.changes.iter().filter(|change| !self.is_told_better(change)).collect();
        for change in changes.iter().take(MOST_CHANGES) {
            let _ = writeln!(out, "  {}", printable(&change.words()));
        }
        if let Some(more) = changes.len().checked_sub(MOST_CHANGES).filter(|more| *more > 0) {
            let _ = writeln!(out, "  and {more} more, see --json");
        }
        if let Some(traffic) = &self.traffic {
            let _ = writeln!(out, "{}", traffic.words(Timestamp::now()));
        }
        if !self.lost_hosts.is_empty() {
            let hosts: Vec<String> =
                self.lost_hosts.iter().take(MOST_HOSTS).map(|lost| printable(&lost.host)).collect();
            let more = self.lost_hosts.len().saturating_sub(MOST_HOSTS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let hosts = hosts.join(", ");
            let _ = writeln!(
                out,
                "{NOTICE}warning{NOTICE:#}: these hosts had traffic in the last 5 minutes and would be lost: {hosts}{more}"
            );
        }
        out
    }

    /// Where a command set a share, the line that tells what becomes of that is enough.
    fn is_told_better(&self, change: &Difference) -> bool {
        let is_of = |other: &Difference| other.kind == Kind::Cleared && other.service == change.service;
        let told = self.changes.iter().filter(|other| is_of(other));
        change.kind == Kind::Percentage && told.into_iter().any(|other| matches!(other.to, Some(Said::Share(_))))
    }
}

impl Traffic {
    fn words(&self, now: Timestamp) -> String {
        if self.requests == 0 {
            return "no request has come that could tell what would move".to_owned();
        }
        let since = self.since.as_ref().map(|since| format!(" (the first {})", ago(since, now))).unwrap_or_default();
        let requests = counted(usize::try_from(self.requests).unwrap_or(usize::MAX), "request", "requests");
        let mut parts = vec![format!("{} would move to new", count(self.to_new))];
        parts.push(format!("{} back to old", count(self.to_old)));
        if self.lost > 0 {
            parts.push(format!("{} would be lost", count(self.lost)));
        }
        if self.unknown > 0 {
            parts.push(format!("{} are unknown, because they depend on headers", count(self.unknown)));
        }
        format!("of the last {requests}{since}: {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_and_moves_are_told() {
        let url: AdminUrl = "http://127.0.0.1:8080".parse().unwrap();
        let answer = json!({
            "changes": [{"kind": "percentage", "service": "a", "from": 10, "to": 60},
                        {"kind": "percentage", "service": "b", "from": 5, "to": 10},
                        {"kind": "cleared", "service": "b", "from": 25, "to": 10}],
            "lost_hosts": [{"host": "x.old", "service": "a", "last_request": 3}],
            "traffic": {"since": "2024-01-01T12:00:00Z", "requests": 1_200, "to_new": 600, "to_old": 0, "lost": 3,
                        "unknown": 7, "services": {}},
        });
        let against: Against = serde_json::from_value(answer).unwrap();

        let shown = anstream::adapter::strip_str(&against.shown(&url)).to_string();

        assert!(
            shown.starts_with(
                "http://127.0.0.1:8080 would change:\n  a: 10 % \u{2192} 60 %\n  b: 25 % \u{2192} 10 %, because"
            ),
            "{shown}"
        );
        assert!(shown.ends_with("would be lost: x.old\n"), "{shown}");
        let traffic = against.traffic.unwrap().words("2024-01-01T12:01:00Z".parse().unwrap());
        assert_eq!(
            traffic,
            "of the last 1 200 requests (the first 1 m ago): 600 would move to new, 0 back to old, 3 would be lost, 7 are \
             unknown, because they depend on headers"
        );
        assert_eq!(Against::default().shown(&url), "http://127.0.0.1:8080 serves the same already\n");
    }
}

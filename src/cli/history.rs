//! What changed, when, by whom and why, each entry with the command that goes back.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::AdminArguments;
use super::callers::ago;
use super::client::encoded;
use super::output::{self, Exit, Failure, printable};
use super::words::duration;
use crate::config::Percent;
use crate::telemetry::difference::Difference;

/// More changes of one entry are counted instead of listed.
const MOST_CHANGES: usize = 12;

/// More commands that go back are counted too.
const MOST_COMMANDS: usize = 3;

/// As much of a hash as people compare.
const SHORT_HASH: usize = 12;

/// Arguments of `history`.
#[derive(Args, Debug)]
#[command(after_help = "Times are UTC.\n\nExamples:\n  migration-proxy history\n  \
                        migration-proxy history api-name01 --limit 5\n  \
                        migration-proxy rollback --config 9f2c1a")]
pub struct Arguments {
    /// One service only
    service: Option<String>,
    /// So many entries at most
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: u16,
    /// Print the entries as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

#[derive(Deserialize)]
struct Answer {
    history: Vec<Entry>,
    pinned: Option<Pinned>,
    #[serde(default)]
    pending: Vec<Pending>,
}

/// A share that goes back by itself.
#[derive(Deserialize)]
struct Pending {
    service: String,
    back_to: Option<Percent>,
    confirm_by: Timestamp,
}

#[derive(Deserialize)]
struct Entry {
    time: String,
    by: String,
    claimed: Option<String>,
    reason: Option<String>,
    config: Option<String>,
    changes: Vec<Difference>,
    #[serde(default)]
    more: usize,
    undo: Vec<String>,
}

#[derive(Deserialize)]
struct Pinned {
    hash: String,
    by: String,
}

/// Runs `history`.
///
/// # Errors
///
/// The admin port does not answer, or knows no such service.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let service = arguments.service.as_ref().map(|service| format!("&service={}", encoded(service)));
    let target = format!("/api/v1/history?limit={}{}", arguments.limit, service.unwrap_or_default());
    let answer: Value = arguments.admin.client()?.json(&target)?;
    if arguments.json {
        output::print_json(&answer)?;
        return Ok(Exit::Done);
    }
    let answer: Answer = serde_json::from_value(answer)
        .map_err(|error| Failure::new(Exit::Failed, format!("the answer is another one than expected: {error}")))?;
    output::print(&answer.shown(Timestamp::now()))?;
    Ok(Exit::Done)
}

impl Answer {
    fn shown(&self, now: Timestamp) -> String {
        let mut out = String::new();
        if let Some(Pinned { hash, by }) = &self.pinned {
            let (hash, by) = (short(hash), printable(by));
            out.push_str(&format!(
                "configuration {hash} was pinned by {by}: the file is not followed until it changes\n\n"
            ));
        }
        for Pending { service, back_to, confirm_by } in &self.pending {
            let to = back_to.map(|to| format!(" to {to} %")).unwrap_or_default();
            let left = Duration::try_from(confirm_by.duration_since(now)).unwrap_or_default();
            let left = duration(Duration::from_secs(left.as_secs()));
            let line = format!("{service} goes back{to} in {left} unless confirmed: migration-proxy confirm {service}");
            out.push_str(&format!("{}\n", printable(&line)));
        }
        if !self.pending.is_empty() {
            out.push('\n');
        }
        if self.history.is_empty() {
            out.push_str("nothing has changed yet\n");
        }
        for (index, entry) in self.history.iter().enumerate() {
            if index > 0 {
                out.push('\n');
            }
            entry.show(&mut out, now);
        }
        out
    }
}

impl Entry {
    // Writing to a String never fails.
    fn show(&self, out: &mut String, now: Timestamp) {
        let time = self.time.parse::<Timestamp>().map(|time| time.strftime("%F %T").to_string());
        let time = time.unwrap_or_else(|_| printable(&self.time));
        let _ = write!(out, "{time}  {}  by {}", ago(&self.time, now), printable(&self.by));
        if let Some(claimed) = &self.claimed {
            let _ = write!(out, " ({})", printable(claimed));
        }
        if let Some(config) = &self.config {
            let _ = write!(out, "  configuration {}", short(config));
        }
        if let Some(reason) = &self.reason {
            let _ = write!(out, "  \u{201c}{}\u{201d}", printable(reason));
        }
        out.push('\n');
        for change in self.changes.iter().take(MOST_CHANGES) {
            let _ = writeln!(out, "  {}", printable(&change.words()));
        }
        let more = self.changes.len().saturating_sub(MOST_CHANGES) + self.more;
        if more > 0 {
            let _ = writeln!(out, "  and {more} more, see --json");
        }
        for command in self.undo.iter().take(MOST_COMMANDS) {
            let _ = writeln!(out, "  back: {}", printable(command));
        }
        let more = self.undo.len().saturating_sub(MOST_COMMANDS);
        if more > 0 {
            let _ = writeln!(out, "  and {more} more commands, see --json");
        }
    }
}

fn short(hash: &str) -> String {
    printable(hash.get(..SHORT_HASH).unwrap_or(hash))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_tell_who_and_why_and_the_way_back() {
        let answer = json!({
            "pinned": {"hash": "9f2c1a2b3c4d5e6f", "by": "ops"},
            "pending": [{"service": "a", "back_to": 25, "confirm_by": "2024-01-01T12:09:00Z"}],
            "history": [{
                "time": "2024-01-01T12:00:10Z", "generation": 4, "by": "loopback", "claimed": "me@host",
                "reason": "ticket\u{1b} 1", "config": null, "before": null, "more": 0,
                "changes": [{"kind": "percentage", "service": "a", "from": 10, "to": 60}],
                "undo": ["migration-proxy rollback a --to 10"],
            }, {
                "time": "2024-01-01T11:00:00Z", "by": "file", "config": "9f2c1a2b3c4d5e6f", "before": "1a2b", "more": 3,
                "changes": [{"kind": "host", "service": "a", "from": "x.old", "to": null}],
                "undo": ["migration-proxy rollback --config 1a2b"],
            }],
        });
        let answer: Answer = serde_json::from_value(answer).unwrap();

        let shown = answer.shown("2024-01-01T12:01:00Z".parse().unwrap());

        let expected = "\
configuration 9f2c1a2b3c4d was pinned by ops: the file is not followed until it changes

a goes back to 25 % in 8 m unless confirmed: migration-proxy confirm a

2024-01-01 12:00:10  50 s ago  by loopback (me@host)  \u{201c}ticket\u{fffd} 1\u{201d}
  a: 10 % \u{2192} 60 %
  back: migration-proxy rollback a --to 10

2024-01-01 11:00:00  1 h 1 m ago  by file  configuration 9f2c1a2b3c4d
  a: loses x.old
  and 3 more, see --json
  back: migration-proxy rollback --config 1a2b
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        let empty = Answer { history: Vec::new(), pinned: None, pending: Vec::new() };
        assert_eq!(empty.shown(Timestamp::now()), "nothing has changed yet\n");
    }
}

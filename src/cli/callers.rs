//! Who still comes by the old names: networks, agents, when they were last seen.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::AdminArguments;
use super::client::encoded;
use super::output::{self, Exit, Failure, printable};
use super::table::{Align, Cell, Table};
use super::words::{count, duration};

/// Arguments of `callers`.
#[derive(Args, Debug)]
#[command(after_help = "Networks are /24, and /48 of IPv6; of each service the 100 with the most requests since the \
                        start.\n\nExamples:\n  migration-proxy callers\n  migration-proxy callers api-name01 --json")]
pub struct Arguments {
    /// One service only
    service: Option<String>,
    /// Print the callers as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// `/api/v1/callers`.
#[derive(Serialize, Deserialize)]
struct Answer {
    callers: Vec<Caller>,
}

#[derive(Serialize, Deserialize)]
struct Caller {
    service: String,
    network: String,
    agent: String,
    requests: u64,
    last_seen: String,
}

/// Runs `callers`.
///
/// # Errors
///
/// The admin port does not answer, or knows no such service.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let query = arguments.service.as_ref().map(|service| format!("?service={}", encoded(service)));
    let target = format!("/api/v1/callers{}", query.unwrap_or_default());
    let answer: Answer = arguments.admin.client()?.json(&target)?;
    if arguments.json {
        output::print_json(&answer)?;
    } else {
        output::print(&shown(&answer.callers, Timestamp::now()))?;
    }
    Ok(Exit::Done)
}

fn shown(callers: &[Caller], now: Timestamp) -> String {
    if callers.is_empty() {
        return "nobody has come yet\n".to_owned();
    }
    let columns = [
        ("SERVICE", Align::Left),
        ("NETWORK", Align::Left),
        ("AGENT", Align::Left),
        ("REQUESTS", Align::Right),
        ("LAST SEEN", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for caller in callers {
        table.push(vec![
            Cell::new(printable(&caller.service)),
            Cell::new(printable(&caller.network)),
            Cell::new(printable(&caller.agent)),
            Cell::new(count(caller.requests)),
            Cell::new(ago(&caller.last_seen, now)),
        ]);
    }
    table.render(output::width())
}

/// `2 m 50 s ago`; a time that is none stays as it is.
pub(super) fn ago(time: &str, now: Timestamp) -> String {
    let Ok(at) = time.parse::<Timestamp>() else { return printable(time) };
    let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
    format!("{} ago", duration(Duration::from_secs(age.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_a_table_and_nobody_is_said() {
        let now: Timestamp = "2024-01-01T12:03:00Z".parse().unwrap();
        let caller = Caller {
            service: "api".to_owned(),
            network: "10.0.1.0/24".to_owned(),
            agent: "curl\u{1b}".to_owned(),
            requests: 1_234,
            last_seen: "2024-01-01T12:00:10.123Z".to_owned(),
        };

        assert_eq!(shown(&[], now), "nobody has come yet\n");
        assert_eq!(
            shown(&[caller], now),
            "SERVICE  NETWORK      AGENT  REQUESTS  LAST SEEN\n\
             api      10.0.1.0/24  curl\u{fffd}     1 234  2 m 49 s ago\n"
        );
        assert_eq!(ago("nonsense\n", now), "nonsense\u{fffd}");
    }
}

//! Changes the share of services.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Map, json};

use super::change::{self, ChangeArguments};
use super::output::{Exit, Failure};
use crate::config::Percent;

/// Arguments of `update`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit: 0 done, 1 unknown service, 2 no share, 4 done but not stored, 6 refused by freeze or max_step, \
                        8 not everywhere in time.\n\nExamples:\n  \
                        migration-proxy update api-name01 50 --reason \"step 3\" --wait 2m\n  \
                        migration-proxy update 'api-*' +10 --for 30m      goes back unless confirmed"
)]
pub struct Arguments {
    /// A service, or a pattern such as 'api-*'
    #[arg(value_name = "SERVICE|GLOB")]
    services: String,
    /// 50, 12.5, +10 or -5
    #[arg(allow_hyphen_values = true, value_parser = share)]
    share: String,
    /// Wait so long until every replica serves it
    #[arg(long, value_name = "2m", value_parser = change::duration)]
    wait: Option<Duration>,
    /// Go back after this time unless it is confirmed
    #[arg(long = "for", value_name = "30m", value_parser = change::duration)]
    clock: Option<Duration>,
    #[command(flatten)]
    change: ChangeArguments,
}

/// Runs `update`.
///
/// # Errors
///
/// It was refused, or not every replica follows in time.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut body = Map::from_iter([("percentage".to_owned(), json!(arguments.share))]);
    if let Some(clock) = arguments.clock {
        body.insert("for".to_owned(), json!(change::seconds(clock)));
    }
    let outcome = arguments.change.make(Method::PUT, &change::service_path(&arguments.services, "migration"), body)?;
    let exit = outcome.tell()?;
    if let Some(patience) = arguments.wait {
        outcome.wait(patience)?;
    }
    Ok(exit)
}

fn share(text: &str) -> Result<String, String> {
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    number.parse::<Percent>().map(|_| text.to_owned())
}

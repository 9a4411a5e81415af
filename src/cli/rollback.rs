//! Takes traffic off the new cluster at once. Nothing refuses it.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Map, json};

use super::change::{self, ChangeArguments};
use super::output::{Exit, Failure};
use crate::config::Percent;

/// Arguments of `rollback`.
#[derive(Args, Debug)]
#[command(after_help = "Immediate, never asks.\n\nExamples:\n  migration-proxy rollback api-name01\n  \
                        migration-proxy rollback api-name01 --to 25 --reason \"p99\"")]
pub struct Arguments {
    /// A service, or a pattern such as 'api-*'
    #[arg(value_name = "SERVICE|GLOB")]
    services: String,
    /// The share that stays on new
    #[arg(long, value_name = "PERCENT", default_value = "0")]
    to: Percent,
    /// End WebSockets and streams on new within this time, spread out
    #[arg(long, value_name = "30s", value_parser = change::duration)]
    close_streams: Option<Duration>,
    #[command(flatten)]
    change: ChangeArguments,
}

/// Runs `rollback`.
///
/// # Errors
///
/// There is no such service, or its share is lower already.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut body =
        Map::from_iter([("percentage".to_owned(), json!(arguments.to)), ("only_down".to_owned(), json!(true))]);
    change::close_streams(&mut body, arguments.close_streams);
    arguments.change.make(Method::PUT, &change::service_path(&arguments.services, "migration"), body)?.tell()
}

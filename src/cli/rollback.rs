//! Takes traffic off the new cluster at once. Nothing refuses it.

use std::time::Duration;

use clap::Args;
use http::{Method, StatusCode};
use serde_json::{Map, json};

use super::change::{self, ChangeArguments};
use super::output::{Exit, Failure};
use crate::config::Percent;

/// Arguments of `rollback`.
#[derive(Args, Debug)]
#[command(after_help = "Immediate, never asks.\n\nExamples:\n  migration-proxy rollback api-name01\n  \
                        migration-proxy rollback api-name01 --to 25 --reason \"p99\"\n  \
                        migration-proxy rollback --config 9f2c1a     an earlier file, see history")]
pub struct Arguments {
    /// A service, or a pattern such as 'api-*'
    #[arg(value_name = "SERVICE|GLOB", required_unless_present = "config")]
    services: Option<String>,
    /// Serve this earlier configuration until the file changes; the beginning of its hash
    #[arg(long, value_name = "HASH", conflicts_with_all = ["services", "to", "close_streams"])]
    config: Option<String>,
    /// With --config: wait so long until every replica serves it
    #[arg(long, value_name = "2m", requires = "config", value_parser = change::duration)]
    wait: Option<Duration>,
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
/// There is no such service or configuration, or the share is lower already.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if let Some(hash) = &arguments.config {
        let body = Map::from_iter([("hash".to_owned(), json!(hash))]);
        let outcome = arguments.change.make_or(Method::POST, "/api/v1/config/rollback", body, exit)?;
        let exit = outcome.tell()?;
        return outcome.followed(arguments.wait).map(|followed| if exit == Exit::Done { followed } else { exit });
    }
    let services = arguments.services.as_deref().unwrap_or_default();
    let mut body =
        Map::from_iter([("percentage".to_owned(), json!(arguments.to)), ("only_down".to_owned(), json!(true))]);
    change::close_streams(&mut body, arguments.close_streams);
    arguments.change.make(Method::PUT, &change::service_path(services, "migration"), body)?.tell()
}

/// A replica that lacks a configuration says so and stays as it is.
fn exit(status: StatusCode) -> Option<Exit> {
    match status {
        StatusCode::NOT_FOUND => Some(Exit::Degraded),
        StatusCode::GONE => Some(Exit::Invalid),
        _ => None,
    }
}

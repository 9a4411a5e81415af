//! Lets the share of a service stay that would go back by itself.

use clap::Args;
use http::Method;
use serde_json::Map;

use super::change::{self, ChangeArguments};
use super::output::{Exit, Failure};

/// Arguments of `confirm`.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  migration-proxy update api-name01 50 --for 30m\n  migration-proxy confirm api-name01"
)]
pub struct Arguments {
    /// A service, or a pattern such as 'api-*'
    #[arg(value_name = "SERVICE|GLOB")]
    services: String,
    #[command(flatten)]
    change: ChangeArguments,
}

/// Runs `confirm`.
///
/// # Errors
///
/// There is no such service.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let path = change::service_path(&arguments.services, "confirm");
    arguments.change.make(Method::POST, &path, Map::new())?.tell()
}

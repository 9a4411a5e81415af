//! Sends everything to the old cluster, or lets the rules decide again.

use std::time::Duration;

use clap::Args;
use http::Method;

use super::change::{self, ChangeArguments, Switch};
use super::output::{Exit, Failure};

/// Arguments of `safe-mode`.
#[derive(Args, Debug)]
#[command(
    after_help = "It survives restarts. A safe mode that the file declares ends in the file only (exit 6).\n\nExample:\n  \
                        migration-proxy safe-mode on --reason \"new cluster is down\""
)]
pub struct Arguments {
    /// On or off
    switch: Switch,
    /// A service, or a pattern such as 'api-*'; everything when left out
    #[arg(value_name = "SERVICE|GLOB")]
    services: Option<String>,
    /// End WebSockets and streams on new within this time, spread out
    #[arg(long, value_name = "30s", value_parser = change::duration)]
    close_streams: Option<Duration>,
    #[command(flatten)]
    change: ChangeArguments,
}

/// Runs `safe-mode`.
///
/// # Errors
///
/// There is no such service, or the file declares it.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut body = arguments.switch.body(arguments.services.as_deref());
    change::close_streams(&mut body, arguments.close_streams);
    arguments.change.make(Method::PUT, "/api/v1/safe-mode", body)?.tell()
}

//! Forbids increases, and allows them again.

use clap::Args;
use http::Method;

use super::change::{ChangeArguments, Switch};
use super::output::{Exit, Failure};

/// Arguments of `freeze`.
#[derive(Args, Debug)]
#[command(after_help = "Decreases, rollback and safe-mode are never refused.\n\nExample:\n  \
                        migration-proxy freeze on --reason \"release week\"")]
pub struct Arguments {
    /// On or off
    switch: Switch,
    /// A service, or a pattern such as 'api-*'; all of them when left out
    #[arg(value_name = "SERVICE|GLOB")]
    services: Option<String>,
    #[command(flatten)]
    change: ChangeArguments,
}

/// Runs `freeze`.
///
/// # Errors
///
/// There is no such service.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let body = arguments.switch.body(arguments.services.as_deref());
    arguments.change.make(Method::PUT, "/api/v1/freeze", body)?.tell()
}

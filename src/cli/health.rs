//! Asks one replica whether it serves. Made for HEALTHCHECK and probes: quick, and silent when all is well.

use clap::Args;
use http::StatusCode;
use serde_json::json;

use super::client::{AdminUrl, Client, DEFAULT_ADMIN};
use super::output::{self, Exit, Failure};

/// Arguments of `health`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit: 0 it serves, 1 it answers something else (503: stuck), 7 nothing answers.\n\nExample:\n  \
                        HEALTHCHECK CMD [\"migration-proxy\", \"health\"]"
)]
pub struct Arguments {
    /// The admin port; with a path, that path is asked instead of /health
    #[arg(value_name = "URL", env = "MIGRATION_PROXY_ADMIN", default_value = DEFAULT_ADMIN)]
    url: AdminUrl,
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `health`.
///
/// # Errors
///
/// Nothing answers, or not 200.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let target = if arguments.url.path().is_empty() { "/health" } else { "" };
    let client = Client::new(arguments.url);
    let answer = client.get(target)?;
    let healthy = answer.status == StatusCode::OK;
    if arguments.json {
        output::print_json(&json!({"healthy": healthy, "status": answer.status.as_u16()}))?;
        return Ok(if healthy { Exit::Done } else { Exit::Failed });
    }
    if healthy { Ok(Exit::Done) } else { Err(client.refused(target, &answer)) }
}

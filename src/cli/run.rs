//! Serves until a signal. Finds the file, says what to do when there is none, and leaves the rest to [`App`].

use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{self, Exit, Failure};
use crate::app::{self, App, StartError};
use crate::config::{self, Environment};
use crate::telemetry::logs;

/// The variable that names the file.
const VARIABLE: &str = "MIGRATION_PROXY_CONFIG";
/// Where the file is in the image.
const DEFAULT_FILE: &str = "/etc/migration-proxy/migration.yaml";

/// Arguments of `run`.
#[derive(Args, Debug, Default)]
#[command(after_help = "Without -c: $MIGRATION_PROXY_CONFIG, else /etc/migration-proxy/migration.yaml.\n\
                        The file is read again whenever it changes. SIGTERM drains and ends, SIGUSR1 reopens the logs.")]
pub struct Arguments {
    /// The configuration file
    #[arg(short = 'c', long = "local-config", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs `run`.
///
/// # Errors
///
/// There is no configuration, it cannot be used, or the process cannot start.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let environment = config::environment();
    let config = file(arguments.config, &environment, Path::new(DEFAULT_FILE))?;
    logs::tell_panics();
    let app = start(app::Options { config, environment, heeds_signals: true, ..app::Options::default() })?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        http = ?app.addresses.http,
        https = ?app.addresses.https,
        admin = %app.addresses.admin,
        "serving"
    );
    Ok(if app.run_until_signal() { Exit::Done } else { Exit::Failed })
}

/// Starts the proxy; what keeps it from starting becomes the exit code of CONFIG.md.
pub(super) fn start(options: app::Options) -> Result<App, Failure> {
    App::start(options).map_err(|error| match error {
        // The problems are complete in themselves: place, reason, line and suggestion.
        StartError::Config(problems) => {
            output::tell(problems.render(true).trim_end());
            Failure::new(Exit::Invalid, "")
        }
        StartError::Other(message) => Failure::new(Exit::Failed, message),
    })
}

fn file(named: Option<PathBuf>, environment: &Environment, default: &Path) -> Result<PathBuf, Failure> {
    let variable = environment.get(VARIABLE).filter(|value| !value.is_empty());
    let found = named.or_else(|| variable.map(PathBuf::from)).or_else(|| default.exists().then(|| default.to_owned()));
    found.ok_or_else(|| {
        let message = format!(
            "no configuration. Name one in one of three ways:\n  \
             migration-proxy run -c migration.yaml\n  \
             {VARIABLE}=migration.yaml migration-proxy run\n  \
             put it at {}\n\
             Just looking? This needs no file:\n  \
             migration-proxy demo",
            default.display()
        );
        Failure::new(Exit::Invalid, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_beats_the_variable_and_the_variable_the_default() {
        let default = tempfile::NamedTempFile::new().unwrap();
        let set = Environment::from([(VARIABLE.to_owned(), "from-variable".to_owned())]);
        let empty = Environment::from([(VARIABLE.to_owned(), String::new())]);
        for (named, environment, expected) in [
            (Some("named"), &set, Path::new("named")),
            (None, &set, Path::new("from-variable")),
            (None, &empty, default.path()),
            (None, &Environment::new(), default.path()),
        ] {
            let found = file(named.map(PathBuf::from), environment, default.path()).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn without_a_file_the_message_names_every_way() {
        let missing = Path::new("/nonexistent/migration.yaml");

        let failure = file(None, &Environment::new(), missing).unwrap_err();

        assert_eq!(failure.exit, Exit::Invalid);
        for way in ["run -c", VARIABLE, "/nonexistent/migration.yaml", "migration-proxy demo"] {
            assert!(failure.message.contains(way), "{way} in {}", failure.message);
        }
    }
}

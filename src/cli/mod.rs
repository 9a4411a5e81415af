//! The command line: one file for each verb. Results go to stdout, everything else to stderr, and every exit code means
//! one thing ([`output::Exit`]).

pub mod against;
pub mod callers;
pub mod change;
pub mod check;
pub mod client;
pub mod completion;
pub mod confirm;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod freeze;
pub mod generate;
pub mod health;
pub mod history;
pub mod import;
pub mod output;
pub mod rollback;
pub mod run;
pub mod safe_mode;
pub mod status;
pub mod table;
pub mod update;
pub mod verify;
pub mod watch;
pub mod words;

mod toy_clusters;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use client::{AdminUrl, Client, DEFAULT_ADMIN};
use output::{Exit, Failure};

const AFTER_HELP: &str = "\
Examples:
  migration-proxy demo                           see it work in ten seconds, offline
  migration-proxy run -c migration.yaml          serve; the file is read again when it changes
  migration-proxy status --strict --json         for scripts: exit 4 when something is degraded
From elsewhere: kubectl port-forward deployment/migration-proxy 8080:8080

Environment: MIGRATION_PROXY_CONFIG (file of run), MIGRATION_PROXY_ADMIN (URL of --admin), NO_COLOR
Exit: 0 done, 1 failed, 2 usage, 3 configuration invalid, 4 degraded, 5 differences found,
      6 refused by policy, 7 admin port unreachable, 8 timed out";

/// Moves the traffic of fixed host names from an old Kubernetes cluster to a new one, step by step and back.
#[derive(Parser, Debug)]
#[command(
    name = "migration-proxy",
    version,
    max_term_width = 100,
    override_usage = "migration-proxy <COMMAND>\n       migration-proxy -c FILE",
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Serve with this file, as `run -c FILE` does
    #[arg(short = 'c', long = "local-config", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Serve until SIGTERM
    Run(run::Arguments),
    /// Validate a file: every mistake with its line and a suggestion
    Check(check::Arguments),
    /// Old against new: shares, breakers, errors, latencies
    Status(status::Arguments),
    /// Where a request would go, and why
    Explain(explain::Arguments),
    /// Change the share of a service: 50, +10 or -5
    Update(update::Arguments),
    /// Let a share stay that would go back by itself
    Confirm(confirm::Arguments),
    /// Take traffic off new at once
    Rollback(rollback::Arguments),
    /// Send everything to old, or end that
    SafeMode(safe_mode::Arguments),
    /// Forbid increases, or allow them again
    Freeze(freeze::Arguments),
    /// Kubernetes manifests, alerts, the dashboard, the schema of the file
    Generate(generate::Arguments),
    /// A file from Ingress and Service manifests of the old cluster
    Import(import::Arguments),
    /// What keeps a service from working on new, each with its fix
    Doctor(doctor::Arguments),
    /// The same request to old and new, differences shown
    Verify(verify::Arguments),
    /// What changed, by whom and why, and the way back
    History(history::Arguments),
    /// Who still comes by the old names
    Callers(callers::Arguments),
    /// Whether a replica serves, for HEALTHCHECK and probes
    Health(health::Arguments),
    /// What bash, zsh and fish complete
    Completion(completion::Arguments),
    /// Two toy clusters and a proxy between them, offline
    Demo(demo::Arguments),
}

/// Where the admin port is; shared by every verb that asks it.
#[derive(Args, Debug)]
pub struct AdminArguments {
    /// The admin port
    #[arg(long, value_name = "URL", env = "MIGRATION_PROXY_ADMIN", default_value = DEFAULT_ADMIN)]
    admin: AdminUrl,
    /// A file whose first line is the token to send, NAME:TOKEN or the token alone
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl AdminArguments {
    fn client(&self) -> Result<Client, Failure> {
        Client::with_token_file(self.admin.clone(), self.token_file.as_deref())
    }

    /// What commands need that shall come to the same proxy: nothing, or ` --admin URL`.
    fn argument(&self) -> String {
        let usual = std::env::var("MIGRATION_PROXY_ADMIN").unwrap_or_else(|_| DEFAULT_ADMIN.to_owned());
        let is_usual = usual.parse().is_ok_and(|usual: AdminUrl| usual == self.admin);
        if is_usual { String::new() } else { format!(" --admin {}", self.admin) }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() {
                output::echo(&error);
                return Exit::Usage.into();
            }
            // Help and version are results; nobody reads the message of a failure to print them.
            let _ = error.print();
            return Exit::Done.into();
        }
    };
    let exit = dispatch(cli).unwrap_or_else(|failure| {
        output::complain(&failure);
        failure.exit
    });
    output::end();
    exit.into()
}

fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let verb = cli.verb.unwrap_or(Verb::Run(run::Arguments { config: cli.config }));
    match verb {
        Verb::Run(arguments) => run::run(arguments),
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Explain(arguments) => explain::run(&arguments),
        Verb::Update(arguments) => update::run(&arguments),
        Verb::Confirm(arguments) => confirm::run(&arguments),
        Verb::Rollback(arguments) => rollback::run(&arguments),
        Verb::SafeMode(arguments) => safe_mode::run(&arguments),
        Verb::Freeze(arguments) => freeze::run(&arguments),
        Verb::Generate(arguments) => generate::run(&arguments),
        Verb::Import(arguments) => import::run(&arguments),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Verify(arguments) => verify::run(&arguments),
        Verb::History(arguments) => history::run(&arguments),
        Verb::Callers(arguments) => callers::run(&arguments),
        Verb::Health(arguments) => health::run(arguments),
        Verb::Completion(arguments) => completion::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_parser_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_fits_one_screen() {
        let help = Cli::command().term_width(100).render_help().to_string();
        let lines = help.lines().count();
        assert!((24..=40).contains(&lines), "{lines} lines:\n{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn the_help_of_every_verb_fits_too() {
        for verb in Cli::command().get_subcommands_mut() {
            let help = verb.clone().term_width(100).render_help().to_string();
            assert!(help.lines().count() <= 40 && help.lines().all(|line| line.chars().count() <= 100), "{help}");
        }
    }

    #[test]
    fn a_file_alone_runs() {
        for arguments in [
            &["migration-proxy", "-c", "f.yaml"][..],
            &["migration-proxy", "--local-config", "f.yaml"],
            &["migration-proxy", "run", "-c", "f.yaml"],
            &["migration-proxy", "run", "--local-config=f.yaml"],
        ] {
            let cli = Cli::try_parse_from(arguments).unwrap();
            let config = match cli.verb {
                None => cli.config,
                Some(Verb::Run(arguments)) => arguments.config,
                Some(other) => panic!("{other:?}"),
            };
            assert_eq!(config, Some(PathBuf::from("f.yaml")), "{arguments:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for arguments in [
            &["migration-proxy", "-c", "f.yaml", "status"][..],
            &["migration-proxy", "frobnicate"],
            &["migration-proxy", "check"],
            &["migration-proxy", "explain"],
            &["migration-proxy", "explain", "--host", "a", "--header", "nonsense"],
            &["migration-proxy", "explain", "--host", "a", "--client-ip", "nonsense"],
            &["migration-proxy", "status", "--admin", "https://proxy:8443"],
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert!(error.use_stderr(), "{arguments:?}");
        }
    }

    #[test]
    fn the_admin_address_may_stand_before_and_after_the_service() {
        for arguments in [
            ["migration-proxy", "status", "--admin", "http://127.0.0.1:9", "api"],
            ["migration-proxy", "status", "api", "--admin", "http://127.0.0.1:9"],
        ] {
            let Some(Verb::Status(_)) = Cli::try_parse_from(arguments).unwrap().verb else { panic!("{arguments:?}") };
        }
    }
}

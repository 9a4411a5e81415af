//! What shells complete: verbs, options and file names, generated from the parser itself.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{Generator, Shell};

use super::Cli;
use super::output::{self, Exit, Failure};

/// Arguments of `completion`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
                        source <(migration-proxy completion bash)\n  \
                        migration-proxy completion zsh > \"${fpath[1]}/_migration-proxy\"\n  \
                        migration-proxy completion fish > ~/.config/fish/completions/migration-proxy.fish")]
pub struct Arguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Known,
}

/// Shells that we know to work.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

/// Runs `completion`.
///
/// # Errors
///
/// The result cannot be written.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let shell = match arguments.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut command = Cli::command();
    command.set_bin_name("migration-proxy");
    command.build();
    let mut script = Vec::new();
    shell.generate(&command, &mut script);
    let script = String::from_utf8_lossy(&script);
    // The generator for bash calls a program with a hyphen by two names, and finds no options under the second.
    output::print(&script.replace("migration__subcmd__proxy", "migration__proxy"))?;
    Ok(Exit::Done)
}

//! What shells complete: verbs, options and file names, generated from the parser itself.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Generator as _;
use clap_complete::shells::{Bash, Fish, Zsh};

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
    let mut command = Cli::command();
    command.set_bin_name("migration-proxy");
    command.build();
    let mut script = Vec::new();
    // Named one by one: the enum of all of them would bring the others along.
    match arguments.shell {
        Known::Bash => Bash.generate(&command, &mut script),
        Known::Zsh => Zsh.generate(&command, &mut script),
        Known::Fish => Fish.generate(&command, &mut script),
    }
    let script = String::from_utf8_lossy(&script);
    // The generator for bash calls a program with a hyphen by two names, and finds no options under the second.
    output::print(&script.replace("migration__subcmd__proxy", "migration__proxy"))?;
    Ok(Exit::Done)
}

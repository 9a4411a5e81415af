//! Turns manifests of the old cluster into a configuration, and says what it could not take over.

use std::path::PathBuf;

use clap::Args;

use super::output::{self, Exit, Failure, NOTICE};
use super::words::counted;
use crate::config::{self, source};
use crate::manifest::import::{self, Imported, Note, Options, Weight};

/// Arguments of `import`.
#[derive(Args, Debug)]
#[command(after_help = "\
Reads Ingress, Service, Endpoints and ConfigMap (an nginx configuration, or a migration.yaml). The configuration goes to
stdout, what is to be said about it to stderr.

Exit: 0 done, 4 something is unmapped that changes what requests get, 1 there was nothing to take over

Examples:
  kubectl get ingress,service,endpoints -n team -o yaml >team.yaml
  migration-proxy import -f team.yaml --new-domain kong.new.example >migration.yaml")]
pub struct Arguments {
    /// Manifests, YAML with any number of documents; may be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// The new host of a service: the first label of its old host, a dot and this
    #[arg(long, value_name = "SUFFIX", value_parser = suffix)]
    new_domain: Option<String>,
    /// Print the configuration and the notes as JSON
    #[arg(long)]
    json: bool,
}

fn suffix(text: &str) -> Result<String, String> {
    config::host_name(text.trim_start_matches('.'))
}

/// Runs `import`.
///
/// # Errors
///
/// A file cannot be read, or holds nothing to take over.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut texts = Vec::with_capacity(arguments.files.len());
    for file in &arguments.files {
        if file.metadata().is_ok_and(|metadata| metadata.len() > source::MAX_BYTES) {
            let message = format!("{}: larger than 8 MiB: split it, -f takes several files", file.display());
            return Err(Failure::new(Exit::Failed, message));
        }
        let text = source::read(file).map_err(|error| {
            output::tell(error.render(true).trim_end());
            Failure::new(Exit::Failed, "")
        })?;
        texts.push(text);
    }
    let options = Options { new_domain: arguments.new_domain.clone(), environment: config::environment() };
    let imported = import::import(&texts, &options);
    if arguments.json {
        output::print_json(&imported)?;
    } else {
        output::print(&imported.config)?;
        for note in &imported.notes {
            output::tell(&shown(note));
        }
    }
    ending(&imported)
}

fn ending(imported: &Imported) -> Result<Exit, Failure> {
    if imported.services == 0 {
        return Err(Failure::new(
            Exit::Failed,
            "no service was found: name the files with the Ingress of the old hosts",
        ));
    }
    let unmapped = imported.unmapped();
    let services = counted(imported.services, "service", "services");
    match unmapped {
        0 => output::tell(&format!("{services}; next: migration-proxy check")),
        _ => output::tell(&format!("{services}; {unmapped} unmapped: read these before anything moves")),
    }
    Ok(if unmapped == 0 { Exit::Done } else { Exit::Degraded })
}

fn shown(note: &Note) -> String {
    let Note { weight, file, line, column, about, message } = note;
    let about = if about.is_empty() { String::new() } else { format!("{about}: ") };
    let word = weight.word();
    let word = match weight {
        Weight::Unmapped => format!("{}{word}{:#}", output::ALARM, output::ALARM),
        Weight::Warning => format!("{NOTICE}{word}{NOTICE:#}"),
        Weight::Note => word.to_owned(),
    };
    // Names come from the files of others, and so may the names of these.
    let (file, text) = (output::printable(file), output::printable(&format!("{about}{message}")));
    format!("{file}:{line}:{column}: {word}: {text}")
}

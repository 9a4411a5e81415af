//! Prints Kubernetes manifests, the Grafana dashboard, or the JSON schema of the file.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::output::{self, Exit, Failure};
use crate::config::{self, Text, source};
use crate::manifest::generate::{self, File, Options, SETTINGS, Source};

/// Arguments of `generate`.
#[derive(Args, Debug)]
#[command(after_help = after_help())]
pub struct Arguments {
    /// What to write
    what: What,
    /// The configuration; default: the shipped example
    #[arg(short = 'c', long = "local-config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write files into this directory instead of to stdout
    #[arg(short = 'o', long = "output", value_name = "DIR")]
    output: Option<PathBuf>,
    /// Where everything lives
    #[arg(long, value_name = "N", value_parser = name)]
    namespace: Option<String>,
    /// The Secret with the certificate of the old hosts
    #[arg(long, value_name = "S", value_parser = name)]
    tls_secret: Option<String>,
    /// A value of this cluster; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(&'static str, String)>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Everything for `kubectl apply -f -`
    K8s,
    /// Base, overlays and monitoring as a tree; needs -o
    Kustomize,
    /// An Ingress for each service that sends its hosts to the proxy
    Ingress,
    /// Alerts for the Prometheus operator
    Alerts,
    /// The Grafana dashboard
    Dashboard,
    /// The JSON schema of the configuration, for editors
    Schema,
}

fn after_help() -> String {
    let mut help = "Values of --set:\n".to_owned();
    for setting in SETTINGS {
        help.push_str(&format!("  {:<22}{}\n", setting.key, setting.about));
    }
    help + "\nExamples:\n  migration-proxy generate k8s -c migration.yaml --namespace team --set new_cidr=192.0.2.0/24 | kubectl apply -f -\n  \
            migration-proxy generate schema >migration.schema.json"
}

/// A name of Kubernetes (RFC 1123) that YAML takes for a text.
fn name(text: &str) -> Result<String, String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let is_name = text.len() <= 253 && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(is_part);
    let is_word = matches!(text, "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n");
    if is_name && !is_word && !text.ends_with(['-', '.']) {
        return Ok(text.to_owned());
    }
    Err("write small letters, digits, - and ., a letter first".to_owned())
}

fn setting(text: &str) -> Result<(&'static str, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let known = SETTINGS.iter().find(|setting| setting.key == key).map(|setting| setting.key);
    let keys = || SETTINGS.map(|setting| setting.key).join(", ");
    let key = known.ok_or_else(|| format!("no such value; known: {}", keys()))?;
    // It becomes part of a YAML scalar.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/:@".contains(c);
    if !value.starts_with(|c: char| c.is_ascii_alphanumeric()) || !value.chars().all(is_plain) {
        return Err("the value begins with a letter or digit and may hold -._/:@ too, nothing else".to_owned());
    }
    Ok((key, value.to_owned()))
}

/// Runs `generate`.
///
/// # Errors
///
/// The configuration is invalid, or the files cannot be written.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let options = Options {
        namespace: arguments.namespace.clone(),
        tls_secret: arguments.tls_secret.clone(),
        set: arguments.set.iter().cloned().collect(),
    };
    let text = match &arguments.config {
        Some(file) => source::read(file),
        None => Ok(Text::new("k8s/base/configmap.yaml", generate::shipped(&options))),
    };
    let text = text.map_err(|error| refused(&error))?;
    let parsed = config::parse(&text, &config::environment()).map_err(|error| refused(&error))?;
    let inner = config::without_manifest(&text);
    let source = Source { config: &parsed.config, text: &inner };
    let files = match arguments.what {
        What::K8s => generate::k8s(source, &options),
        What::Kustomize if arguments.output.is_none() => {
            return Err(Failure::new(Exit::Usage, "kustomize is a tree of files: name its directory with -o DIR"));
        }
        What::Kustomize => generate::kustomize(source, &options),
        What::Ingress => vec![generate::ingress(source, &options)],
        What::Alerts => vec![generate::alerts(&options)],
        What::Dashboard => vec![generate::dashboard()],
        What::Schema => {
            let text = serde_json::to_string_pretty(&config::schema::schema())
                .map_err(|error| Failure::new(Exit::Failed, format!("the schema cannot be written: {error}")))?;
            vec![File { path: "migration.schema.json", text: text + "\n" }]
        }
    };
    match &arguments.output {
        Some(directory) => write(directory, &files, arguments.what == What::Kustomize)?,
        None => {
            let texts: Vec<&str> = files.iter().map(|file| file.text.as_str()).collect();
            output::print(&texts.join("---\n"))?;
        }
    }
    Ok(Exit::Done)
}

fn refused(error: &config::ConfigError) -> Failure {
    output::tell(error.render(true).trim_end());
    Failure::new(Exit::Invalid, "")
}

/// Writes the files, each in its folder when they form a tree.
fn write(directory: &Path, files: &[File], is_tree: bool) -> Result<(), Failure> {
    for file in files {
        let relative = Path::new(file.path);
        let name = if is_tree { relative } else { relative.file_name().map_or(relative, Path::new) };
        let path = directory.join(name);
        let folder = path.parent().unwrap_or(directory);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, &file.text))
            .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", path.display())))?;
        output::tell(&format!("wrote {}", output::printable(&path.display().to_string())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kubernetes() {
        assert_eq!(name("team-1.a"), Ok("team-1.a".to_owned()));
        for text in ["", "123", "true", "a b", "a\nb: c", "A", "-a", "a-", "x\" y"] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_cannot_break_out_of_their_place() {
        assert_eq!(
            setting("image=registry.example:5000/a/b@sha256:00"),
            Ok(("image", "registry.example:5000/a/b@sha256:00".to_owned()))
        );
        for text in ["image", "image=", "immage=a", "image=a b", "image=a\nb: c", "new_cidr=\"", "new_cidr=[a]"] {
            assert!(setting(text).is_err(), "{text}");
        }
    }
}

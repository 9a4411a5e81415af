//! What the operator wrote: text in, a checked [`Config`] or every problem out.
//!
//! A file goes through four steps: `source` reads it, `tree` gives every key and value its place, `expand` brings all
//! accepted forms to one, and `document` and `service` decode that form, collecting every mistake on the way.

pub mod model;
pub mod plain;
pub mod problem;
pub mod schema;
pub mod source;
pub mod units;

pub(crate) mod tree;

mod check;
mod decode;
mod defaults;
mod document;
mod expand;
mod headers;
mod interpolate;
mod rules;
mod service;
mod unavailable;
mod values;

pub use model::*;
pub(crate) use problem::quote;
pub use problem::{ConfigError, Place, Places, Problem, Severity, render_all};
pub use source::Text;
pub use units::{Authority, HostPattern, Percent};

use decode::{Decoder, Path};
use values::Wrong;

/// A file that can be used.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What it says.
    pub config: Config,
    /// What works, but hardly as meant.
    pub warnings: Vec<Problem>,
    /// Where keys stand, for problems that later stages find.
    pub places: Places,
}

/// Decodes a file, or reports everything that is wrong with it.
pub fn parse(text: &Text, environment: &Environment) -> Result<Parsed, ConfigError> {
    let mut decoder = Decoder::new(&text.name, environment);
    let config = root(text, &mut decoder).map(|root| document::read(&mut decoder, &root));
    let failed = decoder.problems.has_errors();
    let problems = decoder.problems.into_sorted();
    match config {
        Some(config) if !failed => Ok(Parsed { config, warnings: problems, places: decoder.places }),
        _ => Err(ConfigError { problems, text: text.clone() }),
    }
}

/// The file itself: what the ConfigMap manifest around it holds, else the text as it is.
pub fn without_manifest(text: &Text) -> String {
    let root = tree::parse(text.body(), tree::Shift::default(), &mut Vec::new());
    let inside = root.as_ref().and_then(expand::text_inside);
    inside.unwrap_or_else(|| text.body().to_owned())
}

/// A duration as the file writes it, `30m` or a number of seconds.
///
/// # Errors
///
/// What is wrong with it, in one line.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    values::duration(text).map_err(|wrong| wrong.message)
}

/// What is said of a service that does not exist, with those of `known` that may have been meant.
pub fn unknown_service<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known = known.into_iter().map(|known| (strsim::jaro_winkler(known, name), known));
    let mut near: Vec<_> = known.filter(|(likeness, _)| *likeness > 0.8).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<&str> = near.iter().take(3).map(|(_, name)| *name).collect();
    let hint = if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) };
    format!("no service is called {name:?}{hint}")
}

/// A method as the file writes it.
///
/// # Errors
///
/// What is wrong with it, in one line.
pub fn method(text: &str) -> Result<http::Method, String> {
    values::method(text).map_err(|wrong| wrong.message)
}

/// A host that clients ask for as the file writes it, `*.suffix` too.
///
/// # Errors
///
/// What is wrong with it, in one line.
pub fn host_pattern(text: &str) -> Result<HostPattern, String> {
    values::host_pattern(text).map_err(|wrong| wrong.message)
}

/// A host as the file writes it, without a port.
///
/// # Errors
///
/// What is wrong with it, in one line.
pub fn host_name(text: &str) -> Result<String, String> {
    values::host_name(text).map_err(|wrong| wrong.message)
}

/// `host:port` as the file writes it.
///
/// # Errors
///
/// What is wrong with it, in one line.
pub fn authority(text: &str) -> Result<Authority, String> {
    values::authority(text).map_err(|wrong| wrong.message)
}

/// The environment of this process; what is not UTF-8 does not exist.
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The tree of the file, a ConfigMap manifest unwrapped.
fn root(text: &Text, decoder: &mut Decoder<'_>) -> Option<tree::Node> {
    let mut mistakes = Vec::new();
    let root = tree::parse(text.body(), tree::Shift::default(), &mut mistakes);
    let empty = mistakes.is_empty() && root.as_ref().is_none_or(tree::Node::is_null);
    let root = root.and_then(|root| expand::unwrap_manifest(root, text.body(), &mut mistakes));
    for tree::Mistake { place, message, help } in mistakes {
        decoder.problems.error(place, &Path::TOP, Wrong { message, help });
    }
    if empty {
        let wrong = Wrong::new("the file is empty").help("write at least one entry under services:");
        decoder.problems.error(Place { line: 1, column: 1, width: 1 }, &Path::TOP, wrong);
        return None;
    }
    if let Some(root) = root.as_ref().filter(|root| root.entries().is_none()) {
        let wrong = Wrong::new(format!("expected a mapping, found {}", root.kind()));
        decoder.problems.error(root.place, &Path::TOP, wrong.help("write at least one entry under services:"));
        return None;
    }
    root
}

#[cfg(test)]
mod tests;

//! The configuration that a process starts with: the file, or the last good one when the file is broken.

use std::path::Path;

use super::candidate::{Candidate, one_line};
use super::last_good::{self, LastGood};
use super::watch::Watch;
use crate::config::{ConfigError, Environment, Problem};

/// What a start serves.
pub struct Opening<T> {
    /// The configuration.
    pub first: Candidate,
    /// What `compile` made of it.
    pub compiled: T,
    /// Watches the file and everything that is named.
    pub watch: Watch,
    /// Why the file itself is not served.
    pub broken: Option<ConfigError>,
    /// What was served when this process last ran; `None` when it never did.
    pub before: Option<Candidate>,
    /// Where accepted files are kept.
    pub last_good: LastGood,
    /// Why the last good copy cannot be used.
    pub damaged: Option<String>,
}

/// Reads a file for the first time, and watches it and what it names from then on. `compile` makes of it what can be
/// served, or tells why nothing can.
///
/// # Errors
///
/// Every mistake in the file, when no last good one can serve in its place.
pub fn open<T>(
    path: &Path,
    environment: &Environment,
    compile: impl Fn(&Candidate) -> Result<T, ConfigError>,
) -> Result<Opening<T>, ConfigError> {
    let mut watch = Watch::new(path);
    let attempt = |candidate: Result<Candidate, ConfigError>| {
        let candidate = candidate?;
        let compiled = compile(&candidate)?;
        Ok::<_, ConfigError>((candidate, compiled))
    };
    let (opened, last_good) = match attempt(Candidate::read(path, environment)) {
        Ok((first, compiled)) => {
            let directory = &first.config().reload.state_dir;
            let last_good = LastGood::in_directory(directory);
            last_good::remember(path, directory);
            (Ok((first, compiled)), last_good)
        }
        Err(error) => {
            let directory = last_good::locate(path, &error.text);
            (Err(error), LastGood::in_directory(&directory))
        }
    };
    let (kept, damaged) = match last_good.read() {
        Ok(text) => (text, None),
        Err(error) => (None, Some(error)),
    };
    let kept = kept.map(|text| Candidate::decode(text, environment));
    let (first, compiled, broken, before) = match opened {
        // What was served last cannot be told from a damaged copy: nothing has changed, as far as we know.
        Ok((first, compiled)) => {
            let before = if damaged.is_some() { Some(first.clone()) } else { kept.map(|k| k.unwrap_or(first.clone())) };
            (first, compiled, None, before)
        }
        Err(mut error) => match kept.map(attempt) {
            Some(Ok((first, compiled))) => (first.clone(), compiled, Some(error), Some(first)),
            Some(Err(why)) => {
                let why = why.problems.first().map(one_line).unwrap_or_default();
                return Err(also(error, &format!("the last good copy cannot serve in its place: {why}")));
            }
            None => {
                if let Some(why) = damaged {
                    error = also(error, &format!("the last good copy cannot serve in its place: {why}"));
                }
                return Err(error);
            }
        },
    };
    watch.configure(&first.config().reload);
    watch.set_files(first.files(environment));
    Ok(Opening { first, compiled, watch, broken, before, last_good, damaged })
}

fn also(mut error: ConfigError, message: &str) -> ConfigError {
    error.problems.push(Problem::file(&error.text.name, message, None));
    error
}

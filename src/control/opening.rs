//! The configuration that a process starts with: the file, or the last good one when the file is broken.

use std::path::Path;
use std::sync::Arc;

use super::candidate::{Candidate, one_line};
use super::differences;
use super::history::{Author, History};
use super::last_good::{self, LastGood};
use super::watch::Watch;
use crate::config::{ConfigError, Environment, Problem, Severity, Text};

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
    /// The file serves, and has changed since this replica ran last, or never served here.
    pub is_file_new: bool,
    /// Where accepted files are kept.
    pub last_good: LastGood,
    /// Why the last good copy cannot be used.
    pub damaged: Option<String>,
    /// Why the file serves although an earlier configuration is pinned.
    pub unserved: Option<String>,
    /// Why some listener certificate is left out.
    pub lacking: Option<String>,
    /// What was served, and when.
    pub history: Arc<History>,
}

/// Reads a file for the first time, and watches it and what it names from then on. `compile` makes of it what can be
/// served, or tells why nothing can. The last good copy may lack listener certificates: they were good once, and will be
/// taken when they are good again.
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
    let opened = attempt(Candidate::read(path, environment));
    let (directory, seen) = match &opened {
        Ok((first, _)) => {
            let directory = first.config().reload.state_dir.clone();
            last_good::remember(path, &directory);
            (directory, first.text().hash())
        }
        Err(error) => (last_good::locate(path, &error.text), error.text.hash()),
    };
    let (last_good, history) = (LastGood::in_directory(&directory).of(path), History::open(&directory));
    let seen_before = history.pinned().map(|pinned| pinned.seen);
    let (kept, damaged) = match last_good.read() {
        Ok(text) => (text, None),
        Err(error) => (None, Some(error)),
    };
    // A broken text was never accepted, so it ends no pin; the last good copy is the pinned one.
    let mut unserved = None;
    let opened = match opened.is_ok().then(|| pinned(&history, &seen, kept.as_ref())).flatten() {
        Some(text) => match text.and_then(|text| attempt(Candidate::decode(text, environment)).map_err(summary)) {
            Ok(pinned) => Ok(pinned),
            Err(error) => {
                unserved = Some(error);
                opened
            }
        },
        None => opened,
    };
    // A wrong path is a slip that happens; to serve another file in its place would hide it.
    let stranger = opened.is_err().then(|| last_good.stranger()).flatten();
    let opened = match (opened, stranger) {
        (Err(error), Some(source)) => return Err(also(error, &not_its_copy(&last_good, &source))),
        (opened, _) => opened,
    };
    let kept = kept.map(|text| Candidate::decode(text, environment));
    let lenient = kept.as_ref().and_then(|kept| kept.clone().ok());
    let mut lacking = None;
    let (first, compiled, broken, before) = match opened {
        // What was served last cannot be told from a damaged copy: nothing has changed, as far as we know.
        Ok((first, compiled)) => {
            let before = if damaged.is_some() { Some(first.clone()) } else { kept.map(|k| k.unwrap_or(first.clone())) };
            (first, compiled, None, before)
        }
        Err(mut error) => match kept.map(attempt) {
            Some(Ok((first, compiled))) => (first.clone(), compiled, Some(error), Some(first)),
            Some(Err(why)) => {
                let why = why.problems.iter().find(|problem| problem.severity == Severity::Error);
                let why = why.map(one_line).unwrap_or_default();
                let opened = lenient.map(|first| (compile(&first.clone().without_unusable_certificates()), first));
                let Some((Ok(compiled), first)) = opened else {
                    return Err(also(error, &format!("the last good copy cannot serve in its place: {why}")));
                };
                lacking = Some(why);
                (first.clone(), compiled, Some(error), Some(first))
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
    remember(&history, &first, before.as_ref());
    let seen_before = seen_before.or_else(|| before.as_ref().map(|before| before.text().hash()));
    let is_file_new = broken.is_none() && history.pinned().is_none() && seen_before.as_ref() != Some(&seen);
    Ok(Opening { first, compiled, watch, broken, before, is_file_new, last_good, damaged, unserved, lacking, history })
}

/// The configuration that serves instead of the file whose text has the hash `seen`, or why it is lost. Another text of the
/// file is newer than the wish for an earlier one. The pin stays where it cannot be followed: the next start may.
fn pinned(history: &History, seen: &str, kept: Option<&Text>) -> Option<Result<Text, String>> {
    let pinned = history.pinned()?;
    if !pinned.overrules(seen) {
        tracing::info!(hash = pinned.hash, "the file has changed and serves again");
        history.pin(None);
        return None;
    }
    let hash = pinned.hash.clone();
    history.pin(Some(pinned.over(seen.to_owned())));
    let kept = kept.filter(|kept| kept.hash() == hash);
    Some(history.text(&hash).or_else(|error| kept.cloned().ok_or_else(|| error.to_string())))
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn summary(error: ConfigError) -> String {
    error.summary()
}

/// Whether something else than before is served belongs to the history too.
fn remember(history: &Arc<History>, first: &Candidate, before: Option<&Candidate>) {
    let hash = first.text().hash();
    let newest = history.newest();
    if newest.as_deref() == Some(&hash) {
        return history.keep(first.text());
    }
    let changes = before.map(|before| differences::between(before.config(), first.config())).unwrap_or_default();
    let before = before.map(|before| before.text().hash()).filter(|before| *before != hash).or(newest);
    history.accepted(first.text(), before.as_deref(), changes, 1, &Author::file());
}

fn not_its_copy(last_good: &LastGood, source: &Path) -> String {
    let (copy, source) = (last_good.path().display(), source.display());
    format!(
        "the last good copy {copy} is one of {source}, and does not serve in the place of another file: name the right file, \
         or another reload.state_dir"
    )
}

fn also(mut error: ConfigError, message: &str) -> ConfigError {
    error.problems.push(Problem::file(&error.text.name, message, None));
    error
}

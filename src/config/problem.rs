//! A mistake in a file with its place, and how it is shown: one line for the place and the reason, the source line, a
//! caret and a suggestion. Later stages that open the files which a configuration names report at the same places.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Style};
use serde::{Serialize, Serializer};

use super::source::Text;

/// Longest part of a source line that is shown.
const SHOWN_LINE: usize = 160;
/// Longest value that a message quotes.
const SHOWN_VALUE: usize = 80;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file works, perhaps not as meant.
    Warning,
}

/// Where something stands in a file. Lines and columns count from 1, columns in characters; all zero is no place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column of the first character.
    pub column: u32,
    /// How many characters the caret underlines.
    pub width: u32,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// The file as it was named.
    pub file: String,
    /// Line from 1; 0 (`null` in JSON) when the file has no place to show.
    #[serde(serialize_with = "zero_as_null")]
    pub line: u32,
    /// Column in characters from 1; 0 (`null` in JSON) when the file has no place to show.
    #[serde(serialize_with = "zero_as_null")]
    pub column: u32,
    /// Characters to underline.
    #[serde(skip)]
    pub width: u32,
    /// The key, as in `services[0].migration.percentage`; empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

fn zero_as_null<S: Serializer>(number: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    (*number != 0).then_some(*number).serialize(serializer)
}

impl Problem {
    /// An error without a place, about the file as a whole.
    pub fn file(file: &str, message: impl Into<String>, help: Option<String>) -> Self {
        Self::new(Severity::Error, file, Place::default(), String::new(), message.into(), help)
    }

    /// An error at the value of the key `path`, whose service index counts the entries of `Config::services`.
    pub fn at(places: &Places, path: &str, message: impl Into<String>, help: Option<String>) -> Self {
        let path = places.written(path);
        Self::new(Severity::Error, &places.file, places.find(&path), path, message.into(), help)
    }

    /// The same as a warning.
    #[must_use]
    pub fn into_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    pub(super) fn new(
        severity: Severity,
        file: &str,
        place: Place,
        path: String,
        message: String,
        help: Option<String>,
    ) -> Self {
        let Place { line, column, width } = place;
        Self { severity, file: file.to_owned(), line, column, width, path, message, help }
    }

    /// Place, reason, source line, caret and suggestion. A warning without a suggestion is one line.
    pub fn render(&self, text: &Text, color: bool) -> String {
        self.render_with(self.line.checked_sub(1).and_then(|index| text.lines().nth(index as usize)), color)
    }

    fn render_with(&self, source: Option<&str>, color: bool) -> String {
        let (name, style) = match self.severity {
            Severity::Error => ("error", AnsiColor::Red.on_default().bold()),
            Severity::Warning => ("warning", AnsiColor::Yellow.on_default().bold()),
        };
        let style = if color { style } else { Style::new() };
        let mut out = printable(&self.file);
        if self.line != 0 {
            // Writing to a String never fails.
            let _ = write!(out, ":{}:{}", self.line, self.column);
        }
        let _ = write!(out, ": {style}{name}{style:#}: ");
        if self.severity == Severity::Error && !self.path.is_empty() {
            let _ = write!(out, "{}: ", printable(&self.path));
        }
        out.push_str(&printable(&self.message));
        match (source, self.help.as_deref().map(printable)) {
            (Some(source), help) if help.is_some() || self.severity == Severity::Error => {
                self.render_source(&mut out, source, help.as_deref(), style);
            }
            (None, Some(help)) => {
                let _ = write!(out, "\n     = {help}");
            }
            _ => {}
        }
        out.push('\n');
        out
    }

    fn render_source(&self, out: &mut String, source: &str, help: Option<&str>, style: Style) {
        let column = self.column.saturating_sub(1) as usize;
        let skipped = column.saturating_sub(SHOWN_LINE / 2);
        let shown: Vec<char> = source.chars().skip(skipped).take(SHOWN_LINE).collect();
        let before = (column - skipped).min(shown.len());
        let width = (self.width.max(1) as usize).min((shown.len() - before).max(1));
        let digits = self.line.to_string().len().max(4);

        let _ = write!(out, "\n{:>digits$} | ", self.line);
        out.extend(shown.iter().map(|&c| if c == '\t' { c } else { visible(c) }));
        let _ = write!(out, "\n{:>digits$} | ", "");
        out.extend(shown[..before].iter().map(|&c| if c == '\t' { '\t' } else { ' ' }));
        let _ = write!(out, "{style}{:^>width$}{style:#}", "");
        if let Some(help) = help {
            let _ = write!(out, " {help}");
        }
    }
}

/// Every problem as [`Problem::render`] shows it.
pub fn render_all(problems: &[Problem], text: &Text, color: bool) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let source = |problem: &Problem| lines.get((problem.line as usize).checked_sub(1)?).copied();
    problems.iter().map(|problem| problem.render_with(source(problem), color)).collect()
}

/// A value as it is quoted in messages: escaped and cut.
pub(crate) fn quote(value: &str) -> String {
    match value.char_indices().nth(SHOWN_VALUE) {
        Some((end, _)) => format!("{:?}…", &value[..end]),
        None => format!("{value:?}"),
    }
}

/// A text of somebody else's for a terminal: control characters, which could be commands, are replaced, and so are those that
/// turn the direction of what follows.
pub fn printable(text: &str) -> String {
    text.chars().map(visible).collect()
}

fn visible(c: char) -> char {
    let is_command = c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if is_command { char::REPLACEMENT_CHARACTER } else { c }
}

/// Where keys stand in the file, for stages that find their mistakes later: files, listen addresses, services.
#[derive(Clone, Debug, Default)]
pub struct Places {
    file: String,
    keys: BTreeMap<String, Place>,
    /// For each entry of `Config::services` its index in the file.
    entries: Vec<usize>,
}

impl Places {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), ..Self::default() }
    }

    pub(super) fn keep(&mut self, path: String, place: Place) {
        self.keys.insert(path, place);
    }

    pub(super) fn add_service(&mut self, entry: usize) {
        self.entries.push(entry);
    }

    /// The place of a key or of the nearest key above it; the service index counts the entries of `Config::services`.
    pub fn of(&self, path: &str) -> Place {
        self.find(&self.written(path))
    }

    fn find(&self, written: &str) -> Place {
        let mut path = written;
        loop {
            if let Some(place) = self.keys.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Place { line: 1, column: 1, width: 1 },
            }
        }
    }

    /// The path with the service's index in the file, where templates are one entry.
    fn written(&self, path: &str) -> String {
        let translated = path.strip_prefix("services[").and_then(|rest| {
            let (index, rest) = rest.split_once(']')?;
            let entry = self.entries.get(index.parse::<usize>().ok()?)?;
            Some(format!("services[{entry}]{rest}"))
        });
        translated.unwrap_or_else(|| path.to_owned())
    }
}

/// Every problem of a file that cannot be used, warnings too, in the order of their places.
#[derive(Clone, Debug)]
pub struct ConfigError {
    /// The problems.
    pub problems: Vec<Problem>,
    /// The file that they are about; its content is empty when it could not be read.
    pub text: Text,
}

impl ConfigError {
    /// Every problem as [`Problem::render`] shows it.
    pub fn render(&self, color: bool) -> String {
        render_all(&self.problems, &self.text, color)
    }

    /// The first error in one line, for status pages and logs.
    pub fn summary(&self) -> String {
        let errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error);
        let Some(first) = errors.clone().next() else { return String::new() };
        let mut out = first.file.clone();
        if first.line != 0 {
            let _ = write!(out, ":{}:{}", first.line, first.column);
        }
        if !first.path.is_empty() {
            let _ = write!(out, ": {}", first.path);
        }
        let _ = write!(out, ": {}", first.message);
        match errors.count() - 1 {
            0 => {}
            more => {
                let _ = write!(out, " (and {more} more)");
            }
        }
        out
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for ConfigError {}

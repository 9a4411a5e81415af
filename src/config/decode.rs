//! A small typed decoder over the tree. A [`Section`] is one mapping: every key that is asked for is known, and what was
//! never asked for is reported as unknown when the section ends. Mistakes are collected and a default stands in, so that
//! one run finds them all.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use regex::{Regex, RegexBuilder, bytes};

use super::interpolate::{self, Variables};
use super::model::{Environment, Template};
use super::problem::{Place, Places, Problem, Severity, quote};
use super::schema::{Keys, Shape};
use super::tree::{Entry, Node, Value};
use super::values::{self, Parsed, Wrong};

/// More problems of one file help nobody.
const MAX_PROBLEMS: usize = 1000;
/// Largest compiled regular expression, in bytes.
const MAX_REGEX: usize = 1 << 20;

/// The way from the top of the file to a value.
#[derive(Clone, Copy)]
pub(super) struct Path<'p> {
    pub parent: Option<&'p Path<'p>>,
    pub step: Step<'p>,
}

#[derive(Clone, Copy)]
pub(super) enum Step<'p> {
    Top,
    Key(&'p str),
    Index(usize),
}

impl<'p> Path<'p> {
    pub(super) const TOP: Path<'static> = Path { parent: None, step: Step::Top };

    pub(super) fn key(&'p self, key: &'p str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }

    pub(super) fn index(&'p self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(index) }
    }

    pub(super) fn render(&self) -> String {
        let mut out = self.parent.map(Path::render).unwrap_or_default();
        match self.step {
            Step::Top => {}
            Step::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Step::Index(index) => {
                // Writing to a String never fails.
                let _ = write!(out, "[{index}]");
            }
        }
        out
    }
}

/// Problems so far. A template makes many services out of one place: the same mistake counts once.
pub(super) struct Problems {
    file: String,
    list: Vec<Problem>,
    seen: HashSet<(Place, String)>,
}

impl Problems {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), list: Vec::new(), seen: HashSet::new() }
    }

    pub(super) fn error(&mut self, place: Place, path: &Path<'_>, wrong: Wrong) {
        self.add(Severity::Error, place, path, wrong);
    }

    pub(super) fn warn(&mut self, place: Place, path: &Path<'_>, wrong: Wrong) {
        self.add(Severity::Warning, place, path, wrong);
    }

    fn add(&mut self, severity: Severity, place: Place, path: &Path<'_>, wrong: Wrong) {
        if self.list.len() < MAX_PROBLEMS && self.seen.insert((place, wrong.message.clone())) {
            self.list.push(Problem::new(severity, &self.file, place, path.render(), wrong.message, wrong.help));
        }
    }

    pub(super) fn has_errors(&self) -> bool {
        self.list.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// In the order of their places.
    pub(super) fn into_sorted(mut self) -> Vec<Problem> {
        self.list.sort_by_key(|problem| (problem.line, problem.column));
        self.list
    }
}

/// `did you mean "weight"? (weight, header, ip, user)`, without the question when nothing is alike.
pub(super) fn suggestion(written: &str, known: &[&str]) -> String {
    let list = known.join(", ");
    match most_alike(written, known) {
        Some(best) => format!("did you mean \"{best}\"? ({list})"),
        None => format!("known: {list}"),
    }
}

fn most_alike<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    // Similarity of long texts is quadratic, and no known word is long.
    if written.len() > 64 {
        return None;
    }
    let likeness = |word: &&str| strsim::jaro_winkler(word, written);
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) > 0.8).then_some(best)
}

/// What decoding needs and collects.
pub(super) struct Decoder<'e> {
    environment: &'e Environment,
    pub variables: Variables,
    /// While `defaults` are read: what is missing or does not fit together there may be completed by the services.
    pub partial: bool,
    /// Values read so far, templates multiplied.
    pub values: usize,
    pub problems: Problems,
    pub places: Places,
    /// Every question, when the schema is made.
    pub keys: Option<Keys>,
    texts: HashMap<String, Parsed<Regex>>,
    bytes: HashMap<String, Parsed<bytes::Regex>>,
}

impl<'e> Decoder<'e> {
    pub(super) fn new(file: &str, environment: &'e Environment) -> Self {
        Self {
            environment,
            variables: Vec::new(),
            partial: false,
            values: 0,
            problems: Problems::new(file),
            places: Places::new(file),
            keys: None,
            texts: HashMap::new(),
            bytes: HashMap::new(),
        }
    }

    /// Decodes a mapping; anything else is a mistake and counts as an empty one.
    pub(super) fn section<T>(
        &mut self,
        node: Option<&Node>,
        path: &Path<'_>,
        read: impl FnOnce(&mut Section<'_, 'e>) -> T,
    ) -> T {
        let entries = match node {
            Some(Node { value: Value::Map(entries), .. }) => entries.as_slice(),
            Some(node) => {
                let message = format!("expected a mapping, found {}", node.kind());
                self.problems.error(node.place, path, Wrong::new(message));
                &[]
            }
            None => &[],
        };
        let place = node.map(Node::first_key).unwrap_or_default();
        let mut section = Section { decoder: self, entries, place, path, asked: Vec::new() };
        let out = read(&mut section);
        section.report_unknown();
        out
    }

    /// A scalar with its variables put in.
    pub(super) fn text<'t>(&mut self, node: &'t Node, path: &Path<'_>) -> Option<Cow<'t, str>> {
        self.values += 1;
        let Some(raw) = node.text() else {
            let message = format!("expected one value, found {}", node.kind());
            self.problems.error(node.place, path, Wrong::new(message));
            return None;
        };
        let text = interpolate::text(raw, self.environment, &self.variables);
        self.or_report(text, node, path)
    }

    /// A scalar's value.
    pub(super) fn parse<T>(
        &mut self,
        node: &Node,
        path: &Path<'_>,
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) -> Option<T> {
        let text = self.text(node, path)?;
        self.or_report(parse(&text), node, path)
    }

    /// The value of a header operation.
    pub(super) fn template(&mut self, node: &Node, path: &Path<'_>) -> Option<Template> {
        let Some(raw) = node.text() else { return self.parse(node, path, |_| Ok(Template(Vec::new()))) };
        let template = interpolate::template(raw, self.environment, &self.variables);
        self.or_report(template, node, path)
    }

    /// A regular expression that must match a whole text. Equal ones are compiled once.
    pub(super) fn regex(&mut self, node: &Node, path: &Path<'_>) -> Option<Regex> {
        let pattern = self.text(node, path)?;
        let compiled = match self.texts.get(&*pattern) {
            Some(compiled) => compiled.clone(),
            None => {
                let compiled = RegexBuilder::new(&anchored(&pattern)).size_limit(MAX_REGEX).build();
                let compiled = compiled.map_err(|error| bad_regex(&pattern, &error));
                self.texts.insert(pattern.into_owned(), compiled.clone());
                compiled
            }
        };
        self.or_report(compiled, node, path)
    }

    /// As [`Decoder::regex`], for values that need not be UTF-8.
    pub(super) fn bytes_regex(&mut self, node: &Node, path: &Path<'_>) -> Option<bytes::Regex> {
        let pattern = self.text(node, path)?;
        let compiled = match self.bytes.get(&*pattern) {
            Some(compiled) => compiled.clone(),
            None => {
                let compiled = bytes::RegexBuilder::new(&anchored(&pattern)).size_limit(MAX_REGEX).build();
                let compiled = compiled.map_err(|error| bad_regex(&pattern, &error));
                self.bytes.insert(pattern.into_owned(), compiled.clone());
                compiled
            }
        };
        self.or_report(compiled, node, path)
    }

    fn or_report<T>(&mut self, value: Parsed<T>, node: &Node, path: &Path<'_>) -> Option<T> {
        value.map_err(|wrong| self.problems.error(node.place, path, wrong)).ok()
    }
}

fn anchored(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

fn bad_regex(pattern: &str, error: &regex::Error) -> Wrong {
    let reason = match error {
        regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
        // The library draws the pattern over several lines; its last line says what is wrong.
        error => error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    };
    Wrong::new(format!("{} is not a regular expression: {reason}", quote(pattern)))
}

/// One mapping while it is decoded.
pub(super) struct Section<'a, 'e> {
    pub decoder: &'a mut Decoder<'e>,
    entries: &'a [Entry],
    place: Place,
    pub path: &'a Path<'a>,
    asked: Vec<&'static str>,
}

impl<'a, 'e> Section<'a, 'e> {
    /// Nothing is written here.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key, unless it is empty or absent.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Node> {
        self.note(key, || Shape::Any, false);
        self.find(key)
    }

    fn find(&mut self, key: &'static str) -> Option<&'a Node> {
        self.asked.push(key);
        let entry = self.entries.iter().find(|entry| &*entry.key == key);
        entry.map(|entry| &entry.value).filter(|node| !node.is_null())
    }

    /// Writes the question down when the schema is made.
    fn note(&mut self, key: &'static str, shape: impl FnOnce() -> Shape, is_required: bool) {
        if let Some(keys) = &mut self.decoder.keys {
            let entry = self.entries.iter().find(|entry| &*entry.key == key);
            keys.note(self.path, key, shape(), is_required, entry.map(|entry| entry.key_place.line));
        }
    }

    /// Reports how a key fits the others, at its value, or at the section's first key when it is absent.
    pub(super) fn error(&mut self, key: &'static str, wrong: Wrong) {
        let place = self.find(key).map_or(self.place, |node| node.place);
        if !self.decoder.partial {
            self.decoder.problems.error(place, &self.path.key(key), wrong);
        }
    }

    /// The same for what works, but hardly as meant.
    pub(super) fn warn(&mut self, key: &'static str, wrong: Wrong) {
        let place = self.find(key).map_or(self.place, |node| node.place);
        if !self.decoder.partial {
            self.decoder.problems.warn(place, &self.path.key(key), wrong);
        }
    }

    /// A value, or its default.
    pub(super) fn value<T>(&mut self, key: &'static str, default: T, parse: impl FnOnce(&str) -> Parsed<T>) -> T {
        self.note(key, || Shape::Scalar, false);
        self.found(key, default, parse)
    }

    fn found<T>(&mut self, key: &'static str, default: T, parse: impl FnOnce(&str) -> Parsed<T>) -> T {
        match self.find(key) {
            Some(node) => self.decoder.parse(node, &self.path.key(key), parse).unwrap_or(default),
            None => default,
        }
    }

    /// A value that may be absent; an empty text means the same.
    pub(super) fn optional<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Parsed<T>) -> Option<T> {
        self.note(key, || Shape::Scalar, false);
        let node = self.find(key)?;
        let path = self.path.key(key);
        self.decoder.parse(node, &path, |text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) })?
    }

    /// The name of a file, whose place is kept for whoever opens it.
    pub(super) fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        self.keep_place(key);
        self.optional(key, values::path)
    }

    /// As [`Section::file`], for a file that must be named.
    pub(super) fn required_file(&mut self, key: &'static str) -> Option<PathBuf> {
        self.keep_place(key);
        self.required(key, values::path)
    }

    /// Keeps the place of a value for later stages.
    pub(super) fn keep_place(&mut self, key: &'static str) {
        if let Some(node) = self.find(key) {
            self.decoder.places.keep(self.path.key(key).render(), node.place);
        }
    }

    /// A value that must be there.
    pub(super) fn required<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Parsed<T>) -> Option<T> {
        self.note(key, || Shape::Scalar, true);
        match self.find(key) {
            Some(node) => self.decoder.parse(node, &self.path.key(key), parse),
            None => {
                self.missing(key);
                None
            }
        }
    }

    /// Reports that a key is missing.
    pub(super) fn missing(&mut self, key: &'static str) {
        if !self.decoder.partial {
            self.decoder.problems.error(self.place, &self.path.key(key), Wrong::new(format!("{key} is missing")));
        }
    }

    /// Reports that something is missing here which has no key of its own.
    pub(super) fn lacks(&mut self, message: &str) {
        if !self.decoder.partial {
            self.decoder.problems.error(self.place, self.path, Wrong::new(message));
        }
    }

    /// One of some words. Where `off` is one of them, `false` is the same, and `true` is the same as `on`.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        self.note(key, || Shape::Words(choices.iter().map(|(word, _)| (*word).to_owned()).collect()), false);
        let may_be_off = choices.iter().any(|(word, _)| *word == "off");
        self.found(key, default, |text| {
            let word = match text {
                "false" if may_be_off => "off",
                "true" if may_be_off => "on",
                text => text,
            };
            choices.iter().find(|(known, _)| *known == word).map(|(_, value)| *value).ok_or_else(|| {
                let known: Vec<&str> = choices.iter().map(|(word, _)| *word).filter(|word| *word != "on").collect();
                Wrong::new(format!("unknown value {}", quote(text))).help(suggestion(text, &known))
            })
        })
    }

    /// A list of values, or `None` when it is absent.
    pub(super) fn list<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Parsed<T>) -> Option<Vec<T>> {
        self.items(key, |decoder, node, path| decoder.parse(node, path, &parse))
    }

    /// A value or a list of values.
    pub(super) fn one_or_many<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Parsed<T>) -> Option<Vec<T>> {
        let node = self.get(key)?;
        match &node.value {
            Value::List(_) => self.list(key, parse),
            Value::Scalar(_) | Value::Map(_) => {
                Some(self.decoder.parse(node, &self.path.key(key), parse).into_iter().collect())
            }
        }
    }

    /// A list of whatever `read` makes of its items.
    pub(super) fn items<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Decoder<'e>, &'a Node, &Path<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.note(key, || Shape::List, false);
        let node = self.find(key)?;
        let path = self.path.key(key);
        let Value::List(items) = &node.value else {
            let wrong = Wrong::new(format!("expected a list, found {}", node.kind()));
            let wrong = if node.text().is_some() { wrong.help("write it in brackets: [a, b]") } else { wrong };
            self.decoder.problems.error(node.place, &path, wrong);
            return None;
        };
        let read = |(index, item)| read(self.decoder, item, &path.index(index));
        Some(items.iter().enumerate().filter_map(read).collect())
    }

    /// A list of mappings.
    pub(super) fn sections<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Section<'_, 'e>) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.items(key, |decoder, node, path| decoder.section(Some(node), path, &read))
    }

    /// A mapping inside this one, empty when it is absent.
    pub(super) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 'e>) -> T) -> T {
        self.note(key, || Shape::Nested, false);
        let node = self.find(key);
        self.decoder.section(node, &self.path.key(key), read)
    }

    /// The entries of a mapping whose keys are names of the operator's.
    pub(super) fn entries(&mut self, key: &'static str) -> &'a [Entry] {
        self.note(key, || Shape::Names, false);
        let Some(node) = self.find(key) else { return &[] };
        match &node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Scalar(_) | Value::List(_) => {
                let wrong = Wrong::new(format!("expected a mapping, found {}", node.kind()));
                self.decoder.problems.error(node.place, &self.path.key(key), wrong);
                &[]
            }
        }
    }

    /// Accepts a key that something else reads.
    pub(super) fn skip(&mut self, key: &'static str) {
        self.note(key, || Shape::Any, false);
        self.asked.push(key);
    }

    fn report_unknown(&mut self) {
        for entry in self.entries {
            let key = &*entry.key;
            if key.starts_with("x-") || self.asked.contains(&key) {
                continue;
            }
            let mut known = self.asked.clone();
            known.sort_unstable();
            known.dedup();
            let help = match most_alike(key, &known) {
                Some(best) => format!("did you mean \"{best}\"?"),
                None => format!("known keys: {}", known.join(", ")),
            };
            let wrong = Wrong::new(format!("unknown key {}", quote(key))).help(help);
            self.decoder.problems.error(entry.key_place, &self.path.key(key), wrong);
        }
    }
}

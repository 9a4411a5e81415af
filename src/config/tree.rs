//! YAML text to a tree in which every key and value knows its place. Scalars stay text: what they mean is decided by the
//! key that they belong to. Aliases share what they name, merges are done, and what YAML allows but this format does not
//! (a second document, duplicate keys, tags) is reported here.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use serde_saphyr::granit_parser::{ErrorKind, Event, Marker, Options, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::problem::{Place, quote};

/// A value and its place. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    List(Rc<Vec<Node>>),
    Map(Rc<Vec<Entry>>),
}

#[derive(Clone, Debug)]
pub(crate) struct Scalar {
    pub text: Rc<str>,
    /// Written without quotes and not as a block.
    pub plain: bool,
    /// A block of literal lines (`|`), whose lines can be found again in the file.
    pub literal: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Rc<str>,
    pub key_place: Place,
    pub value: Node,
}

impl Node {
    /// The entries, when this is a mapping.
    pub(crate) fn entries(&self) -> Option<&Rc<Vec<Entry>>> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            Value::Scalar(_) | Value::List(_) => None,
        }
    }

    /// The value of a key, when this is a mapping that has it and it is not empty.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        let entry = self.entries()?.iter().find(|entry| &*entry.key == key)?;
        (!entry.value.is_null()).then_some(&entry.value)
    }

    /// The value behind several keys.
    pub(crate) fn find(&self, keys: &[&str]) -> Option<&Node> {
        keys.iter().try_fold(self, |node, key| node.get(key))
    }

    /// The text, when this is a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Nothing was written, or `null`: the same as an absent key.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.plain && matches!(&*scalar.text, "" | "~" | "null"))
    }

    /// What this is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(_) if self.is_null() => "nothing",
            Value::Scalar(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// Where to report that something is missing here: the first key, else the value.
    pub(crate) fn first_key(&self) -> Place {
        self.entries().and_then(|entries| entries.first()).map_or(self.place, |entry| entry.key_place)
    }
}

/// A mistake in the YAML itself.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub place: Place,
    pub message: String,
    pub help: Option<String>,
}

/// Turns places in a text into places in the file that it stands in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shift {
    pub lines: u32,
    pub columns: u32,
    /// Everything is here, when lines cannot be told apart.
    pub fixed: Option<Place>,
}

impl Shift {
    fn place(self, start: Marker, end: Marker) -> Place {
        let width = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 1 };
        self.fixed.unwrap_or(Place {
            line: start.line() as u32 + self.lines,
            column: start.col() as u32 + 1 + self.columns,
            width: width.max(1) as u32,
        })
    }
}

/// A text below this size may expand as if it had it.
const SMALL_FILE: usize = 64 << 10;
/// Aliases may make a file so many times longer.
const MAX_EXPANSION: usize = 10;
/// Deepest nesting, aliases followed. Decoding and dropping recurse.
const MAX_DEPTH: usize = 200;

/// The tree of a text, or `None` when it is empty or cannot be read; everything that is wrong goes to `mistakes`.
pub(crate) fn parse(text: &str, shift: Shift, mistakes: &mut Vec<Mistake>) -> Option<Node> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        text,
        shift,
        expanded: 0,
        limit: MAX_EXPANSION * text.len().max(SMALL_FILE),
        mistakes,
    };
    match builder.document() {
        Ok(node) => node,
        Err(mistake) => {
            builder.mistakes.push(mistake);
            None
        }
    }
}

struct Builder<'t, 'm> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Anchor>,
    text: &'t str,
    shift: Shift,
    /// Bytes of all scalars so far, aliases followed; an empty value and a collection count as one.
    expanded: usize,
    limit: usize,
    mistakes: &'m mut Vec<Mistake>,
}

struct Anchor {
    node: Node,
    bytes: usize,
    depth: usize,
}

struct Built {
    node: Node,
    depth: usize,
}

impl<'t> Builder<'t, '_> {
    fn document(&mut self) -> Result<Option<Node>, Mistake> {
        let mut root = None;
        let mut documents = 0;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(..) if documents > 0 => {
                    return Err(self.mistake(span, "a second document starts here", "keep one document in a file"));
                }
                Event::DocumentStart(..) => documents += 1,
                Event::StreamStart | Event::DocumentEnd => {}
                event => root = Some(self.node(event, span)?.node),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Mistake> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span) -> Result<Built, Mistake> {
        let place = self.shift.place(span.start, span.end);
        let before = self.expanded;
        if let Some(tag) = event.tag().filter(|tag| !tag.is_yaml_core_schema()) {
            let message = format!("unknown YAML tag {}", quote(&tag.original()));
            self.mistakes.push(Mistake { place, message, help: Some("remove the tag".to_owned()) });
        }
        let (built, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                self.count(text.len().max(1), span)?;
                let plain = style == ScalarStyle::Plain;
                let scalar = Scalar { text: text.into(), plain, literal: style == ScalarStyle::Literal };
                (Built { node: Node { place, value: Value::Scalar(scalar) }, depth: 0 }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list(place, span)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(place, span)?, anchor),
            Event::Alias(anchor) => return self.alias(anchor, span),
            _ => return Err(self.mistake(span, "unexpected YAML", "")),
        };
        if built.depth > MAX_DEPTH {
            return Err(self.mistake(span, "nested too deeply", ""));
        }
        if anchor != 0 {
            let bytes = self.expanded - before;
            self.anchors.insert(anchor, Anchor { node: built.node.clone(), bytes, depth: built.depth });
        }
        Ok(built)
    }

    fn list(&mut self, place: Place, span: Span) -> Result<Built, Mistake> {
        self.count(1, span)?;
        let (mut items, mut depth) = (Vec::new(), 0);
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                let value = Value::List(Rc::new(items));
                return Ok(Built { node: Node { place: Place { width: 1, ..place }, value }, depth: depth + 1 });
            }
            let item = self.node(event, span)?;
            depth = depth.max(item.depth);
            items.push(item.node);
        }
    }

    fn map(&mut self, place: Place, span: Span) -> Result<Built, Mistake> {
        self.count(1, span)?;
        let (mut entries, mut merges, mut depth) = (Vec::new(), Vec::new(), 0);
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, span)?.node;
            let (event, span) = self.next()?;
            let value = self.node(event, span)?;
            depth = depth.max(value.depth);
            match key.value {
                Value::Scalar(scalar) if scalar.plain && &*scalar.text == "<<" => merges.push((key.place, value.node)),
                Value::Scalar(scalar) => {
                    entries.push(Entry { key: scalar.text, key_place: key.place, value: value.node });
                }
                Value::List(_) | Value::Map(_) => {
                    let message = "a key must be a word".to_owned();
                    self.mistakes.push(Mistake { place: key.place, message, help: None });
                }
            }
        }
        self.drop_duplicates(&mut entries);
        for (key_place, value) in merges {
            self.merge(&mut entries, key_place, &value);
        }
        let value = Value::Map(Rc::new(entries));
        Ok(Built { node: Node { place: Place { width: 1, ..place }, value }, depth: depth + 1 })
    }

    fn drop_duplicates(&mut self, entries: &mut Vec<Entry>) {
        let mut first = HashMap::with_capacity(entries.len());
        let mut duplicates = Vec::new();
        entries.retain(|entry| match first.get(&entry.key) {
            Some(&line) => {
                duplicates.push((entry.key_place, entry.key.clone(), line));
                false
            }
            None => first.insert(entry.key.clone(), entry.key_place.line).is_none(),
        });
        for (place, key, line) in duplicates {
            let message = format!("duplicate key {}, already given in line {line}", quote(&key));
            self.mistakes.push(Mistake { place, message, help: Some("remove one of them".to_owned()) });
        }
    }

    /// `<<`: keys that are not there yet come from a mapping or from several, the first one first.
    fn merge(&mut self, entries: &mut Vec<Entry>, key_place: Place, value: &Node) {
        let mut known: HashSet<Rc<str>> = entries.iter().map(|entry| entry.key.clone()).collect();
        let sources = match &value.value {
            Value::List(items) => items.as_slice(),
            Value::Scalar(_) | Value::Map(_) => std::slice::from_ref(value),
        };
        for source in sources {
            match source.entries() {
                Some(merged) => {
                    entries.extend(merged.iter().filter(|entry| known.insert(entry.key.clone())).cloned());
                }
                None => self.mistakes.push(Mistake {
                    place: key_place,
                    message: format!("<< merges mappings, not {}", source.kind()),
                    help: Some("name a mapping, as in <<: *name".to_owned()),
                }),
            }
        }
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<Built, Mistake> {
        let Some(anchor) = self.anchors.get(&id) else {
            return Err(self.mistake(span, "an alias cannot stand inside what it names", ""));
        };
        let (bytes, built) = (anchor.bytes, Built { node: anchor.node.clone(), depth: anchor.depth });
        self.count(bytes, span)?;
        Ok(built)
    }

    fn count(&mut self, bytes: usize, span: Span) -> Result<(), Mistake> {
        self.expanded = self.expanded.saturating_add(bytes);
        if self.expanded <= self.limit {
            return Ok(());
        }
        Err(self.mistake(span, "aliases make the file more than ten times longer", "write out what differs"))
    }

    fn mistake(&self, span: Span, message: &str, help: &str) -> Mistake {
        let help = (!help.is_empty()).then(|| help.to_owned());
        Mistake { place: self.shift.place(span.start, span.end), message: message.to_owned(), help }
    }

    fn syntax(&self, error: &ScanError) -> Mistake {
        let mut at = *error.marker();
        let (message, help) = match error.kind() {
            ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation
            | ErrorKind::TabAtBlockScalarStart
            | ErrorKind::TabInPlainScalar => {
                at = self.tab_below(at);
                ("a tab cannot indent YAML".to_owned(), "use spaces")
            }
            ErrorKind::UnknownAnchor => {
                ("no anchor of this name stands above".to_owned(), "define it with &name first")
            }
            ErrorKind::RecursionLimitExceeded => ("nested too deeply".to_owned(), ""),
            ErrorKind::UnclosedQuotedScalar | ErrorKind::InvalidQuotedScalarIndent => {
                ("a quote above is never closed".to_owned(), "close it on its line")
            }
            ErrorKind::InvalidIndentation
            | ErrorKind::ExpectedBlockMappingKey
            | ErrorKind::ExpectedBlockSequenceEntry => {
                ("the indentation fits nothing above".to_owned(), "align the keys of one mapping in one column")
            }
            ErrorKind::MappingValueNotAllowed => {
                ("a colon is not expected here".to_owned(), "quote a value that contains a colon and a space")
            }
            ErrorKind::UnclosedFlowCollection { open } => (format!("this {open} is never closed"), ""),
            kind => (format!("this is not YAML: {kind}"), ""),
        };
        self.mistake(Span::empty(self.within(at)), &message, help)
    }

    /// The first tab that indents a line; the parser may notice it late or early.
    fn tab_below(&self, at: Marker) -> Marker {
        let lines = self.text.lines().enumerate().skip(at.line().saturating_sub(1));
        let indentation = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
        let tab = |(number, line): (usize, &str)| Some((number, line[..indentation(line)].find('\t')?));
        lines.map(tab).find_map(|tab| tab).map_or(at, |(number, column)| Marker::new(0, number + 1, column))
    }

    /// The same place, or the end of the text when it lies behind it.
    fn within(&self, at: Marker) -> Marker {
        match self.text.lines().enumerate().last() {
            Some((last, line)) if at.line() > last + 1 => Marker::new(0, last + 1, line.chars().count()),
            _ => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        let mut mistakes = Vec::new();
        let node = parse(text, Shift::default(), &mut mistakes);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        node.unwrap()
    }

    #[test]
    fn merged_keys_keep_their_places_and_own_keys_win() {
        let root = tree("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 5}\n");

        let merged = root.get("c").unwrap();

        let found: Vec<_> =
            ["x", "y", "z"].map(|key| merged.get(key).map(|node| (node.text(), node.place.line))).into();
        assert_eq!(found, [Some((Some("5"), 3)), Some((Some("2"), 1)), Some((Some("4"), 2))]);
    }

    #[test]
    fn columns_count_characters_from_one() {
        let root = tree("\u{56e2}\u{961f}: {a: \u{4e8c}, b: \"c\"}\n");

        let node = root.find(&["\u{56e2}\u{961f}", "b"]).unwrap();

        assert_eq!(node.place, Place { line: 1, column: 15, width: 3 });
    }

    #[test]
    fn aliases_may_make_a_small_file_640_kib_long_and_no_longer() {
        let file = |aliases: usize| {
            let text = "x".repeat(6400);
            format!("a: &a {text}\nb: [{}]\n", vec!["*a"; aliases].join(","))
        };
        let mistakes = |aliases| {
            let mut mistakes = Vec::new();
            parse(&file(aliases), Shift::default(), &mut mistakes);
            mistakes.len()
        };

        assert_eq!((mistakes(101), mistakes(103)), (0, 1));
    }

    #[test]
    fn long_chains_of_aliases_end_before_the_stack_does() {
        let mut text = "- &a0 [x]\n".to_owned();
        for index in 1..5000 {
            text.push_str(&format!("- &a{index} [*a{}]\n", index - 1));
        }
        let mut mistakes = Vec::new();

        parse(&text, Shift::default(), &mut mistakes);

        assert_eq!(mistakes[0].message, "nested too deeply");
    }
}

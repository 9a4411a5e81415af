//! Files to objects: several documents in a file, lists of objects, and what cannot be read said at its place. A document
//! that is broken takes no other one with it.

use super::note::{Notes, Origin};
use crate::config::tree::{self, Node, Scalar, Shift, Value};
use crate::config::{Place, Text, quote};

/// One object of a manifest.
#[derive(Debug)]
pub(super) struct Object {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub node: Node,
    /// The document of a configuration, and how many lines stand above it.
    pub document: Option<(u32, String)>,
    /// The file, and where the object begins.
    pub origin: Origin,
}

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Every object of the files. A document without a kind that has keys of a configuration is an object of the kind
/// `migration.yaml`.
pub(super) fn read(texts: &[Text], notes: &mut Notes) -> Vec<Object> {
    let mut objects = Vec::new();
    for text in texts {
        let before = objects.len();
        for (lines, document) in documents(text.body()) {
            let mut mistakes = Vec::new();
            let root = tree::parse(document, Shift { lines, ..Shift::default() }, &mut mistakes);
            let origin = Origin { file: text.name.clone(), ..Origin::default() };
            for mistake in mistakes {
                let help = mistake.help.map(|help| format!(": {help}")).unwrap_or_default();
                let lost = if root.is_none() { "; this document is left out" } else { "" };
                notes.unmapped(&origin.at(mistake.place), format!("{}{help}{lost}", mistake.message));
            }
            if let Some(root) = root.filter(|root| !root.is_null()) {
                add(root, (Some((lines, document)), ""), &origin, notes, &mut objects);
            }
        }
        if objects.len() == before {
            let origin = Origin { file: text.name.clone(), place: FIRST, ..Origin::default() };
            notes.warn(&origin, "no object of Kubernetes was found in this file");
        }
    }
    objects
}

const FIRST: Place = Place { line: 1, column: 1, width: 1 };

/// The documents of a file, each with the number of lines above it. A line that begins with `---` can be nothing else in
/// YAML than the begin of a document.
fn documents(body: &str) -> Vec<(u32, &str)> {
    let (mut found, mut start, mut first_line, mut offset) = (Vec::new(), 0, 0, 0);
    let mut has_content = false;
    for (number, line) in body.split_inclusive('\n').enumerate() {
        // A mark at the begin of a file survives where files were joined.
        let plain = line.trim_start_matches('\u{feff}');
        let begins =
            plain.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if begins {
            if has_content {
                found.push((first_line, &body[start..offset]));
            }
            (start, first_line) = (offset + line.len() - plain.len(), number as u32);
            has_content = true;
        } else if !plain.trim().is_empty() && !plain.starts_with(['#', '%']) {
            has_content = true;
        }
        offset += line.len();
    }
    if has_content {
        found.push((first_line, &body[start..]));
    }
    found
}

/// Adds an object, or those of a list. `implied` is the kind of items that name none, as in a list of one kind.
fn add(
    root: Node,
    (document, implied): (Option<(u32, &str)>, &str),
    origin: &Origin,
    notes: &mut Notes,
    objects: &mut Vec<Object>,
) {
    let origin = origin.at(root.first_key());
    if root.entries().is_none() {
        notes.unmapped(&origin, format!("expected an object of Kubernetes, found {}; it is left out", root.kind()));
        return;
    }
    let kind = root.get("kind").and_then(Node::text).unwrap_or(implied).to_owned();
    if kind.is_empty() {
        if root.get("services").is_some() || root.get("service_mappings").is_some() {
            let origin = Origin { about: "migration.yaml".to_owned(), ..origin };
            objects.push(Object {
                kind: "migration.yaml".to_owned(),
                namespace: String::new(),
                name: String::new(),
                node: root,
                document: document.map(|(lines, text)| (lines, text.to_owned())),
                origin,
            });
        } else {
            notes.unmapped(&origin, "this document has no kind, so nobody can say what it is; it is left out");
        }
        return;
    }
    if let Some(implied) = kind.strip_suffix("List") {
        match root.get("items") {
            Some(Node { value: Value::List(items), .. }) => {
                for item in items.iter() {
                    add(item.clone(), (None, implied), &origin, notes, objects);
                }
            }
            Some(items) if !items.is_null() => {
                notes.unmapped(
                    &origin.at(items.place),
                    format!("items is no list but {}; it is left out", items.kind()),
                );
            }
            Some(_) | None => notes.note(&origin, format!("this {kind} has no items")),
        }
        return;
    }
    let metadata = |key: &str| root.find(&["metadata", key]).and_then(Node::text).map(str::to_owned);
    let name = metadata("name").unwrap_or_default();
    let namespace = metadata("namespace");
    let shown = namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let origin = Origin { about: format!("{kind} {shown}/{name}"), ..origin };
    if namespace.is_none() && matches!(&*kind, "Ingress" | "Service" | "Endpoints" | "EndpointSlice") {
        let message = format!("no namespace is written, so {DEFAULT_NAMESPACE} is meant: a backend's name contains it");
        notes.warn(&origin, message);
    }
    let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    objects.push(Object { kind, namespace, name, node: root, document: None, origin });
}

/// The entries of a mapping below an object, or none.
pub(super) fn entries<'n>(node: &'n Node, keys: &[&str]) -> &'n [tree::Entry] {
    node.find(keys).and_then(Node::entries).map(|entries| entries.as_slice()).unwrap_or_default()
}

/// The items of a list below an object, or none.
pub(super) fn items<'n>(node: &'n Node, keys: &[&str]) -> &'n [Node] {
    node.find(keys).map(items_of).unwrap_or_default()
}

/// The items, when this is a list.
pub(super) fn items_of(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        Value::Scalar(_) | Value::Map(_) => &[],
    }
}

/// The text below an object.
pub(super) fn text<'n>(node: &'n Node, keys: &[&str]) -> Option<&'n str> {
    node.find(keys).and_then(Node::text)
}

/// The place of a line (from 1) of a text that stands in a manifest: in a literal block its own line, else the text.
pub(super) fn line_inside(scalar: &Scalar, place: Place, line: u32) -> Place {
    let first = scalar.text.lines().position(|line| !line.trim().is_empty()).unwrap_or_default() as u32;
    match scalar.literal {
        true => Place { line: (place.line + line).saturating_sub(first + 1).max(1), ..place },
        false => place,
    }
}

/// A scalar as YAML reads it again: as it is where that is safe, else quoted.
pub(super) fn scalar(text: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-._/:".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    let is_word =
        !matches!(&*text.to_ascii_lowercase(), "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n");
    let is_number = text.parse::<f64>().is_ok();
    if begins && is_word && !is_number && text.chars().all(is_safe) && !text.ends_with(':') && !text.contains(": ") {
        return text.to_owned();
    }
    quoted(text)
}

/// In double quotes.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value in a message, escaped and cut.
pub(super) fn shown(text: &str) -> String {
    quote(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_at_their_lines() {
        let cases: &[(&str, &[(u32, &str)])] = &[
            ("", &[]),
            ("# only\n\n", &[]),
            ("a: 1\n", &[(0, "a: 1\n")]),
            ("---\na: 1\n---\nb: 2\n", &[(0, "---\na: 1\n"), (2, "---\nb: 2\n")]),
            ("a: 1\r\n---\r\nb: 2\r\n", &[(0, "a: 1\r\n"), (1, "---\r\nb: 2\r\n")]),
            ("# head\n%YAML 1.2\n---\na: 1\n", &[(2, "---\na: 1\n")]),
            ("a: |\n  --- inside\n", &[(0, "a: |\n  --- inside\n")]),
            ("a: 1\n\u{feff}---\nb: 2", &[(0, "a: 1\n"), (1, "---\nb: 2")]),
            ("--- {a: 1}\n--- {b: 2}\n", &[(0, "--- {a: 1}\n"), (1, "--- {b: 2}\n")]),
        ];
        for (body, expected) in cases {
            assert_eq!(documents(body), *expected, "{body:?}");
        }
    }

    #[test]
    fn scalars_are_quoted_where_yaml_would_read_something_else() {
        for (text, expected) in [
            ("api.old.example", "api.old.example"),
            ("a:80", "a:80"),
            ("/v2/", "/v2/"),
            ("*.old.example", "\"*.old.example\""),
            ("[::1]:80", "\"[::1]:80\""),
            ("always", "always"),
            ("true", "\"true\""),
            ("1e3", "\"1e3\""),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("a\nb", "\"a\\nb\""),
        ] {
            assert_eq!(scalar(text), expected);
        }
    }
}

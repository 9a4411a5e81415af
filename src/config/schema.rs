//! The JSON schema of the file, for editors. It is written down while the decoder reads the reference file, which has every
//! key: keys and words cannot differ from what is accepted, and what a key means is said by its comment there.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::decode::{Decoder, Path};
use super::source::Text;
use super::{Environment, document, root};

/// The reference file.
const REFERENCE: &str = include_str!("../../config/full.yaml");

/// What a key may hold, as far as the decoder's question tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One value.
    Scalar,
    /// One of these words.
    Words(Vec<String>),
    /// A list of single values.
    List,
    /// A mapping with keys of its own, or a list of them.
    Nested,
    /// A mapping from names to values.
    Names,
    /// More than one of these.
    Any,
}

/// Keys by the name that they have inside their mapping.
#[derive(Debug, Default)]
pub(super) struct Keys(BTreeMap<String, Key>);

#[derive(Debug, Default)]
struct Key {
    shapes: Vec<Shape>,
    is_required: bool,
    /// In the reference file.
    line: Option<u32>,
    inner: Keys,
}

impl Keys {
    /// Writes down a question; `path` is that of the mapping.
    pub(super) fn note(&mut self, path: &Path<'_>, key: &str, shape: Shape, is_required: bool, line: Option<u32>) {
        let key = self.inside(path).0.entry(key.to_owned()).or_default();
        key.is_required |= is_required;
        key.line = key.line.or(line);
        if !key.shapes.contains(&shape) {
            key.shapes.push(shape);
        }
    }

    fn inside(&mut self, path: &Path<'_>) -> &mut Self {
        let text = path.render();
        let names = text.split(['.', '[', ']']).filter(|name| !name.is_empty());
        // The items of a list are all alike.
        let names = names.filter(|name| !name.bytes().all(|byte| byte.is_ascii_digit()));
        names.fold(self, |keys, name| &mut keys.0.entry(name.to_owned()).or_default().inner)
    }
}

/// The schema, JSON Schema 2020-12.
pub fn schema() -> Value {
    let text = Text::new("config/full.yaml", REFERENCE);
    let environment = Environment::new();
    let mut decoder = Decoder::new(&text.name, &environment);
    decoder.keys = Some(Keys::default());
    if let Some(root) = root(&text, &mut decoder) {
        document::read(&mut decoder, &root);
    }
    let mut keys = decoder.keys.take().unwrap_or_default();
    let service = keys.0.remove("services").unwrap_or_default();
    let lines: Vec<&str> = REFERENCE.lines().collect();
    let mut whole = object(&keys, &lines);
    if let Some(Value::Object(properties)) = whole.get_mut("properties") {
        let described = |what: &str, mut value: Value| {
            value["description"] = json!(what);
            value
        };
        let list = json!({"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/service", "required": ["name"]}});
        properties.insert("services".to_owned(), described("The applications that move", list));
        let defaults = described("Any key of a service, once for all", json!({"$ref": "#/$defs/service"}));
        properties.insert("defaults".to_owned(), defaults);
    }
    whole.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    whole.insert("title".to_owned(), json!("migration-proxy"));
    whole.insert("required".to_owned(), json!(["services"]));
    // `defaults` may hold what a service must have.
    let mut service = object(&service.inner, &lines);
    service.remove("required");
    whole.insert("$defs".to_owned(), json!({"service": service}));
    Value::Object(whole)
}

fn object(keys: &Keys, lines: &[&str]) -> Map<String, Value> {
    let properties: Map<String, Value> = keys.0.iter().map(|(name, key)| (name.clone(), key.value(lines))).collect();
    let required: Vec<&String> = keys
        .0
        .iter()
        .filter(|(_, key)| key.is_required && !key.shapes.contains(&Shape::Any))
        .map(|(name, _)| name)
        .collect();
    let mut out = Map::new();
    out.insert("type".to_owned(), json!("object"));
    out.insert("properties".to_owned(), Value::Object(properties));
    out.insert("patternProperties".to_owned(), json!({"^x-": {}}));
    out.insert("additionalProperties".to_owned(), json!(false));
    if !required.is_empty() {
        out.insert("required".to_owned(), json!(required));
    }
    out
}

impl Key {
    fn value(&self, lines: &[&str]) -> Value {
        let mut out = match self.shapes.as_slice() {
            [Shape::Scalar] => json!({"type": ["string", "number", "boolean", "null"]}),
            [Shape::Words(words)] => json!({"enum": accepted(words)}),
            [Shape::List] if self.inner.0.is_empty() => json!({"type": ["array", "null"]}),
            [Shape::List] => json!({"type": ["array", "null"], "items": object(&self.inner, lines)}),
            [Shape::Names] => json!({"type": ["object", "null"]}),
            [Shape::Nested] => {
                let mut nested = object(&self.inner, lines);
                nested.insert("type".to_owned(), json!(["object", "null"]));
                Value::Object(nested)
            }
            _ if self.inner.0.is_empty() => json!({}),
            // The other shapes of such a key have no keys, so these do not concern them.
            _ => {
                let mut nested = object(&self.inner, lines);
                nested.remove("type");
                Value::Object(nested)
            }
        };
        let line = self.line.and_then(|line| lines.get(line.saturating_sub(1) as usize));
        if let Some((_, comment)) = line.and_then(|line| line.split_once(" # ")) {
            out["description"] = json!(comment.trim());
        }
        out
    }
}

/// Words, and what YAML makes of some of them when they are not quoted.
fn accepted(words: &[String]) -> Vec<Value> {
    let mut values: Vec<Value> = words.iter().map(|word| json!(word)).collect();
    if words.iter().any(|word| word == "off") {
        values.extend([json!(false), json!(true)]);
    }
    values.extend(
        words.iter().filter_map(|word| serde_json::from_str::<serde_json::Number>(word).ok()).map(Value::Number),
    );
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'v>(schema: &'v Value, path: &str) -> &'v Value {
        path.split('.').fold(schema, |value, key| &value["properties"][key])
    }

    #[test]
    fn keys_and_words_are_those_of_the_decoder() {
        let schema = schema();
        let service = &schema["$defs"]["service"];

        assert_eq!(at(&schema, "log.format")["enum"], json!(["text", "json"]));
        assert_eq!(at(&schema, "drain.grace")["description"], json!("then the time for open work"));
        assert_eq!(at(service, "mode")["enum"], json!(["proxy", "redirect", "passthrough"]));
        assert_eq!(at(service, "headers.request.set")["type"], json!(["object", "null"]));
        assert_eq!(at(service, "canary.ip_rules")["items"]["required"], json!(["cidr"]));
        for key in ["migration.sticky.by", "new.ca_file", "fallback.half_open.ramp", "migration_percentage", "expand"] {
            assert!(!at(service, key).is_null(), "{key}");
        }
        assert_eq!(at(service, "new")["additionalProperties"], json!(false));
        assert!(at(service, "old_host").get("type").is_none(), "one host or several");
    }

    #[test]
    fn writing_keys_down_changes_nothing_that_is_read() {
        let text = Text::new("config/full.yaml", REFERENCE);
        let environment = Environment::new();
        let mut decoder = Decoder::new(&text.name, &environment);
        decoder.keys = Some(Keys::default());
        let root = root(&text, &mut decoder).unwrap();
        document::read(&mut decoder, &root);

        assert!(!decoder.problems.has_errors());
    }
}

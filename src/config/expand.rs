//! The forms a file may take, all turned into plain services: a ConfigMap manifest is unwrapped, the flat form nested,
//! `defaults` merged, templates multiplied, and `service_mappings` give backends.

use std::collections::HashMap;
use std::rc::Rc;

use super::decode::{Decoder, Path, Section};
use super::interpolate::Variables;
use super::problem::{Place, quote};
use super::tree::{self, Entry, Mistake, Node, Scalar, Shift, Value};
use super::units::Authority;
use super::values::{self, Parsed, Wrong};

/// Most services that one template makes.
const MAX_EXPANSION: usize = 10_000;
/// The key of a ConfigMap that holds the file.
const CONFIG_MAP_KEY: &str = "migration.yaml";
/// Keys of the flat form and where they belong in `migration`.
const FLAT: [(&str, &str); 3] =
    [("migration_percentage", "percentage"), ("strategy", "strategy"), ("enabled", "enabled")];

/// The tree of the file inside a ConfigMap manifest, with the places of the manifest; any other tree as it is.
pub(super) fn unwrap_manifest(root: Node, source: &str, mistakes: &mut Vec<Mistake>) -> Option<Node> {
    if root.get("kind").and_then(Node::text) != Some("ConfigMap") {
        return Some(root);
    }
    let mistake = |place: Place, message: &str| Mistake {
        place,
        message: message.to_owned(),
        help: Some(format!("put the file under data, as in {CONFIG_MAP_KEY}: |")),
    };
    let Some(data) = root.get("data") else {
        mistakes.push(mistake(root.first_key(), "this ConfigMap has no data"));
        return None;
    };
    let keys = data.entries().map(|entries| entries.as_slice()).unwrap_or_default();
    let file = match (data.get(CONFIG_MAP_KEY), keys) {
        (Some(file), _) => file,
        (None, [only]) => &only.value,
        (None, []) => {
            mistakes.push(mistake(data.place, "this ConfigMap has no data"));
            return None;
        }
        (None, [first, ..]) => {
            mistakes.push(mistake(first.key_place, &format!("several keys, and none of them is {CONFIG_MAP_KEY}")));
            return None;
        }
    };
    let Value::Scalar(scalar) = &file.value else {
        mistakes.push(mistake(file.place, "a ConfigMap holds text, and this is none: the | is missing"));
        return None;
    };
    let before = mistakes.len();
    let inner = tree::parse(&scalar.text, shift(scalar, file.place, source), mistakes);
    if inner.is_none() && mistakes.len() == before {
        mistakes.push(mistake(file.place, "the file inside this ConfigMap is empty"));
    }
    inner
}

/// The text that a ConfigMap manifest holds.
pub(super) fn text_inside(root: &Node) -> Option<String> {
    root.get("kind").and_then(Node::text).filter(|kind| *kind == "ConfigMap")?;
    let data = root.get("data")?;
    let only = data.entries().and_then(|entries| entries.first()).map(|entry| &entry.value);
    data.get(CONFIG_MAP_KEY).or(only)?.text().map(str::to_owned)
}

/// Lines of a literal block are lines of the manifest, without its indentation.
fn shift(scalar: &Scalar, place: Place, source: &str) -> Shift {
    let fixed = Shift { fixed: Some(Place { width: 1, ..place }), ..Shift::default() };
    if !scalar.literal {
        return fixed;
    }
    let Some((index, first)) = scalar.text.lines().enumerate().find(|(_, line)| !line.trim().is_empty()) else {
        return fixed;
    };
    // The place of a block is its first line that is not blank.
    let lines = (place.line as usize).checked_sub(1 + index);
    let Some((outer, lines)) = source.lines().nth(place.line.saturating_sub(1) as usize).zip(lines) else {
        return fixed;
    };
    match outer.strip_suffix(first) {
        Some(indent) => Shift { lines: lines as u32, columns: indent.chars().count() as u32, fixed: None },
        None => fixed,
    }
}

/// The entry with the keys of the flat form moved into `migration`.
pub(super) fn nested(decoder: &mut Decoder<'_>, node: &Node, path: &Path<'_>) -> Node {
    let Some(entries) = node.entries() else { return node.clone() };
    if !entries.iter().any(|entry| FLAT.iter().any(|(flat, _)| *flat == &*entry.key)) {
        return node.clone();
    }
    let (mut rest, mut moved) = (Vec::with_capacity(entries.len()), Vec::new());
    for entry in entries.iter() {
        match FLAT.iter().find(|(flat, _)| *flat == &*entry.key) {
            Some((_, key)) => moved.push(Entry { key: Rc::from(*key), ..entry.clone() }),
            None => rest.push(entry.clone()),
        }
    }
    let migration = rest.iter_mut().find(|entry| &*entry.key == "migration");
    match migration {
        Some(entry) if !entry.value.is_null() => {
            let Some(own) = entry.value.entries() else {
                return Node { place: node.place, value: Value::Map(Rc::new(rest)) };
            };
            let mut own = own.as_ref().clone();
            for entry in moved {
                if own.iter().any(|known| known.key == entry.key) {
                    let wrong = Wrong::new(format!("migration.{} is given too", entry.key)).help("keep one of them");
                    decoder.problems.error(entry.key_place, path, wrong);
                } else {
                    own.push(entry);
                }
            }
            entry.value.value = Value::Map(Rc::new(own));
        }
        Some(entry) => entry.value.value = Value::Map(Rc::new(moved)),
        None => {
            let value = Node { place: node.place, value: Value::Map(Rc::new(moved)) };
            rest.push(Entry { key: Rc::from("migration"), key_place: node.place, value });
        }
    }
    Node { place: node.place, value: Value::Map(Rc::new(rest)) }
}

/// `own` over `defaults`: mappings key by key at every depth, everything else replaced.
pub(super) fn merge(defaults: &Node, own: &Node) -> Node {
    let (Some(defaults), Some(entries)) = (defaults.entries(), own.entries()) else { return own.clone() };
    let mut merged = entries.as_ref().clone();
    for default in defaults.iter() {
        match merged.iter_mut().find(|entry| entry.key == default.key) {
            Some(entry) if entry.value.is_null() => entry.value = default.value.clone(),
            Some(entry) => entry.value = merge(&default.value, &entry.value),
            None => merged.push(default.clone()),
        }
    }
    Node { place: own.place, value: Value::Map(Rc::new(merged)) }
}

/// The variables of each service that the entry stands for: one empty set without `expand`.
pub(super) fn combinations(decoder: &mut Decoder<'_>, node: &Node, path: &Path<'_>) -> Vec<Variables> {
    let once = || vec![Variables::new()];
    let Some(expand) = node.get("expand") else { return once() };
    let path = path.key("expand");
    let Some(entries) = expand.entries() else {
        let wrong = Wrong::new(format!("expected a mapping, found {}", expand.kind()));
        decoder.problems.error(expand.place, &path, wrong.help("write expand: {NN: \"02..20\"}"));
        return once();
    };
    let name = node.get("name").and_then(Node::text).unwrap_or_default();
    let mut all = once();
    // Stand-ins let the rest of a wrong template be read.
    let stand_in = || vec![entries.iter().map(|entry| (entry.key.clone(), "0".to_owned())).collect()];
    for entry in entries.iter().filter(|entry| !entry.key.starts_with("x-")) {
        let path = path.key(&entry.key);
        if !name.contains(&format!("{{{}}}", entry.key)) {
            let wrong = Wrong::new(format!("the name does not contain {{{}}}", entry.key));
            decoder.problems.error(entry.key_place, &path, wrong.help("every service needs its own name"));
            return stand_in();
        }
        let Some(values) = values_of(decoder, &entry.value, &path) else { return stand_in() };
        if all.len() * values.len() > MAX_EXPANSION {
            let wrong = Wrong::new(format!("this makes more than {MAX_EXPANSION} services"));
            decoder.problems.error(entry.value.place, &path, wrong);
            return stand_in();
        }
        let with = |base: &Variables, value: &String| {
            let mut variables = base.clone();
            variables.push((entry.key.clone(), value.clone()));
            variables
        };
        all = all.iter().flat_map(|base| values.iter().map(move |value| with(base, value))).collect();
    }
    all
}

/// A value for each variable of all templates, so that `defaults` which use them can be read.
pub(super) fn stand_ins(services: &Node) -> Variables {
    let Value::List(entries) = &services.value else { return Variables::new() };
    let names = entries.iter().filter_map(|entry| entry.get("expand")?.entries()).flat_map(|names| names.iter());
    let mut variables: Variables = names.map(|name| (name.key.clone(), "0".to_owned())).collect();
    variables.sort_unstable();
    variables.dedup();
    variables
}

/// `02..20`, or a list.
fn values_of(decoder: &mut Decoder<'_>, node: &Node, path: &Path<'_>) -> Option<Vec<String>> {
    let Value::List(items) = &node.value else { return decoder.parse(node, path, range) };
    if items.is_empty() {
        decoder.problems.error(node.place, path, Wrong::new("the list is empty"));
        return None;
    }
    let mut values = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        values.push(decoder.parse(item, &path.index(index), values::word)?);
    }
    Some(values)
}

/// Both ends included, as wide as the first one is written.
fn range(text: &str) -> Parsed<Vec<String>> {
    let wrong = || Wrong::new(format!("{} is not a range", quote(text))).help("write \"02..20\" or a list: [a, b]");
    let number = |text: &str| -> Option<u32> {
        (text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let (low, high) = number(first).zip(number(last)).ok_or_else(wrong)?;
    if low > high {
        return Err(wrong().help("the first number is the smaller one"));
    }
    if (high - low) as usize >= MAX_EXPANSION {
        return Err(Wrong::new(format!("this makes more than {MAX_EXPANSION} services")));
    }
    Ok((low..=high).map(|number| format!("{number:0width$}", width = first.len())).collect())
}

/// `service_mappings`, by the new host that they name.
pub(super) struct Mappings {
    backends: HashMap<String, Authority>,
    /// Every mapping's host and the place of it.
    pub hosts: Vec<(Place, String)>,
}

impl Mappings {
    /// The old backend of the service with this new host.
    pub(super) fn backend(&self, new_host: &str) -> Option<&Authority> {
        self.backends.get(new_host)
    }
}

/// Reads `service_mappings`.
pub(super) fn mappings(top: &mut Section<'_, '_>) -> Mappings {
    let list = top.sections("service_mappings", |s| {
        s.skip("new_service");
        s.skip("new_namespace");
        let service = s.required("old_service", values::host_name);
        let namespace = s.required("old_namespace", values::host_name);
        let port = s.value("old_port", 80, values::count(1..=65_535));
        let endpoint = s.required("new_cluster_endpoint", values::host_name);
        let place = s.get("new_cluster_endpoint").map(|node| node.place);
        let name = format!("{}.{}.svc.cluster.local", service?, namespace?);
        Some((place?, endpoint?, Authority::new(&name, u16::try_from(port).unwrap_or(80))))
    });
    let mut mappings = Mappings { backends: HashMap::new(), hosts: Vec::new() };
    for (place, endpoint, backend) in list.unwrap_or_default() {
        mappings.hosts.push((place, endpoint.clone()));
        mappings.backends.entry(endpoint).or_insert(backend);
    }
    mappings
}

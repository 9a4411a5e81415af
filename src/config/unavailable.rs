//! The list of settings whose behaviour is not built yet. Asking for one is an error at its place, never ignored.

use super::decode::{Decoder, Path};
use super::tree::{Node, Value};
use super::values::Wrong;

/// Where a key stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// At the top.
    File,
    /// In a service.
    Service,
}

/// Remove a line when its behaviour is built. Empty values are no wish.
const LIST: &[(Scope, &[&str])] = &[(Scope::Service, &["shadow"]), (Scope::Service, &["rollout"])];

/// Reports every setting below `node` that is not available.
pub(super) fn refuse(decoder: &mut Decoder<'_>, node: &Node, path: &Path<'_>, scope: Scope) {
    for (_, keys) in LIST.iter().filter(|(known, _)| *known == scope) {
        let Some(value) = node.find(keys) else { continue };
        if is_asked_for(decoder, value, path) {
            report(decoder, value, path, keys);
        }
    }
}

/// Whether the value is anything but an empty text, list or mapping.
fn is_asked_for(decoder: &mut Decoder<'_>, value: &Node, path: &Path<'_>) -> bool {
    match &value.value {
        Value::Scalar(_) => decoder.text(value, path).is_some_and(|text| !text.is_empty()),
        Value::List(items) => !items.is_empty(),
        Value::Map(entries) => !entries.is_empty(),
    }
}

fn report(decoder: &mut Decoder<'_>, value: &Node, path: &Path<'_>, keys: &[&str]) {
    match keys.split_first() {
        Some((key, rest)) => report(decoder, value, &path.key(key), rest),
        None => {
            let wrong = Wrong::new("not available in this version").help("leave the key out");
            decoder.problems.error(value.place, path, wrong);
        }
    }
}

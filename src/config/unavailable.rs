//! The list of settings whose behaviour is not built yet. Asking for one is an error at its place, never ignored.

use super::decode::{Decoder, Path};
use super::tree::{Node, Value};
use super::values::Wrong;

/// Which values of a key are refused.
enum Refused {
    /// These words.
    Words(&'static [&'static str]),
    /// Everything but nothing: an empty text, list or mapping.
    Anything,
}

/// Where a key stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// At the top.
    File,
    /// In a service.
    Service,
}

/// Remove a line when its behaviour is built.
const LIST: &[(Scope, &[&str], Refused)] = &[
    (Scope::File, &["reload", "on_lost_host"], Refused::Words(&["refuse"])),
    (Scope::Service, &["shadow"], Refused::Anything),
    (Scope::Service, &["rollout"], Refused::Anything),
];

/// Reports every setting below `node` that is not available.
pub(super) fn refuse(decoder: &mut Decoder<'_>, node: &Node, path: &Path<'_>, scope: Scope) {
    for (_, keys, refused) in LIST.iter().filter(|(known, ..)| *known == scope) {
        let Some(value) = node.find(keys) else { continue };
        if refused.includes(decoder, value, path) {
            report(decoder, value, path, keys);
        }
    }
}

impl Refused {
    fn includes(&self, decoder: &mut Decoder<'_>, value: &Node, path: &Path<'_>) -> bool {
        match (self, &value.value) {
            (Self::Words(words), Value::Scalar(_)) => {
                decoder.text(value, path).is_some_and(|text| words.contains(&&*text))
            }
            // Decoding says what is wrong with them.
            (Self::Words(_), Value::List(_) | Value::Map(_)) => false,
            (Self::Anything, Value::Scalar(_)) => decoder.text(value, path).is_some_and(|text| !text.is_empty()),
            (Self::Anything, Value::List(items)) => !items.is_empty(),
            (Self::Anything, Value::Map(entries)) => !entries.is_empty(),
        }
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

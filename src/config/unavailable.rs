//! The keys of a service whose behaviour is not built yet. Asking for one is an error at its place, never ignored.

use super::decode::{Decoder, Path};
use super::tree::{Node, Value};
use super::values::Wrong;

/// Remove a name when its behaviour is built.
const KEYS: [&str; 2] = ["shadow", "rollout"];

/// Reports every key of a service that is not available. An empty text, list or mapping asks for nothing.
pub(super) fn refuse(decoder: &mut Decoder<'_>, service: &Node, path: &Path<'_>) {
    for key in KEYS {
        let Some(value) = service.get(key) else { continue };
        let path = path.key(key);
        let asks = match &value.value {
            Value::Scalar(_) => decoder.text(value, &path).is_some_and(|text| !text.is_empty()),
            Value::List(items) => !items.is_empty(),
            Value::Map(entries) => !entries.is_empty(),
        };
        if asks {
            let wrong = Wrong::new("not available in this version").help("leave the key out");
            decoder.problems.error(value.place, &path, wrong);
        }
    }
}

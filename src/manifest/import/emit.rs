//! Writes a tree as YAML again, for services that somebody wrote before.

use super::objects::{quoted, scalar};
use crate::config::tree::{Node, Value};

/// Writes a list or mapping at this indentation.
pub(super) fn emit(node: &Node, indent: usize, out: &mut String) {
    let spaces = " ".repeat(indent);
    match &node.value {
        Value::Scalar(_) => out.push_str(&format!("{spaces}{}\n", word(node))),
        Value::List(items) => {
            for item in items.iter() {
                match item.entries().is_some_and(|entries| !entries.is_empty()) {
                    true => {
                        let at = out.len();
                        emit(item, indent + 2, out);
                        out.replace_range(at..at + indent + 2, &format!("{spaces}- "));
                    }
                    false => {
                        out.push_str(&format!("{spaces}-"));
                        emit_value(item, indent + 2, out);
                    }
                }
            }
        }
        Value::Map(entries) => {
            for entry in entries.iter() {
                out.push_str(&format!("{spaces}{}:", scalar(&entry.key)));
                emit_value(&entry.value, indent + 2, out);
            }
        }
    }
}

/// Writes the value of a key, which stands before it on the line.
pub(super) fn emit_value(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        Value::Scalar(_) => out.push_str(&format!(" {}\n", word(node))),
        Value::List(items) if items.is_empty() => out.push_str(" []\n"),
        Value::Map(entries) if entries.is_empty() => out.push_str(" {}\n"),
        Value::List(_) | Value::Map(_) => {
            out.push('\n');
            emit(node, indent, out);
        }
    }
}

/// A scalar; every key decides for itself what a text means, so quotes change nothing but `null`.
fn word(node: &Node) -> String {
    match node.text() {
        _ if node.is_null() => "~".to_owned(),
        Some(text) => quoted(text),
        None => String::new(),
    }
}

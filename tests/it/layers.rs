//! Imports point down. Reads every source file and compares the rank of its own module with the rank of every
//! `crate::module` that it names.

use std::fs;
use std::path::{Path, PathBuf};

/// The lowest first. A module may name its own rank's module only when that is itself.
const RANKS: [(&str, u8); 15] = [
    ("config", 0),
    ("shutdown", 0),
    ("readiness", 0),
    ("net", 0),
    ("telemetry", 1),
    ("tls", 1),
    ("manifest", 2),
    ("upstream", 2),
    ("routing", 3),
    ("proxy", 4),
    ("control", 4),
    ("server", 5),
    ("admin", 5),
    ("app", 6),
    ("cli", 7),
];

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The top-level modules that a source names behind `crate::`, groups taken apart, comments left out.
fn named_modules(source: &str) -> Vec<String> {
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(group_members(group)),
            None => modules.push(identifier(rest)),
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

fn identifier(text: &str) -> String {
    text.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

fn group_members(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut members) = (0, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                members.push(identifier(&group[start..at]));
                start = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    members
}

/// What is wrong with a source of this top-level module.
fn faults(module: &str, source: &str) -> Vec<String> {
    let Some(own) = rank(module) else { return vec![format!("the module {module} has no rank")] };
    named_modules(source)
        .into_iter()
        .filter(|named| named != module)
        .filter_map(|named| match rank(&named) {
            Some(other) if other < own => None,
            Some(other) => Some(format!("{module} (rank {own}) names crate::{named} (rank {other})")),
            None => Some(format!("{module} names crate::{named}, which has no rank")),
        })
        .collect()
}

#[test]
fn modules_name_only_lower_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut found = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let top = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = top.strip_suffix(".rs").unwrap_or(top);
        if !matches!(module, "lib" | "main") {
            let source = fs::read_to_string(&file).unwrap();
            found.extend(faults(module, &source).into_iter().map(|fault| format!("{}: {fault}", inside.display())));
        }
    }

    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn an_upward_import_is_found_in_every_form() {
    for source in [
        "use crate::proxy::handle;",
        "use crate::{config, proxy::{self, handle}};",
        "use crate::{\n    config::Config,\n    proxy,\n};",
        "fn f() { crate::proxy::handle(); }",
    ] {
        assert_eq!(faults("routing", source), ["routing (rank 3) names crate::proxy (rank 4)"], "{source}");
    }
    for source in [
        "use crate::config::Config;",
        "use crate::routing::table;",
        "// see crate::proxy",
        "use crate::{tls, net::{a, b}};",
    ] {
        assert!(faults("routing", source).is_empty(), "{source}");
    }
    assert_eq!(faults("proxy", "use crate::control::reload;").len(), 1, "the same rank is not lower");
}

//! The documents say what is so: snippets load, commands parse, links lead somewhere, and the map names tests that exist.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::support::cli::{finish, program, run};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    let after = text.split(&opening).skip(1);
    after.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// The words of a command line as a shell takes them: a comment ends it, single quotes keep spaces.
fn words(line: &str) -> Vec<String> {
    let line = line.split(" #").next().unwrap_or_default();
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in line.trim().chars() {
        match letter {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            letter => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_configuration_in_the_readme_is_valid_without_a_warning() {
    let directory = TempDir::new().unwrap();
    let found = blocks(&read("README.md"), "yaml");
    assert!(!found.is_empty());
    for text in found {
        let file = directory.path().join("migration.yaml");
        fs::write(&file, &text).unwrap();
        run(&["check", "--strict", file.to_str().unwrap()]).expect(0);
    }
}

#[test]
fn every_command_in_the_readme_exists() {
    let mut seen = 0;
    for line in blocks(&read("README.md"), "sh").iter().flat_map(|block| block.lines()) {
        let words = words(line);
        if words.first().is_some_and(|word| word == "migration-proxy") {
            let mut command = program();
            // Everything before --help is judged first.
            command.args(&words[1..]).arg("--help");
            finish(command).expect(0);
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} commands");
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    for document in ["README.md", "CHANGELOG.md"] {
        let text = read(document);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let exists = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).exists();
            assert!(target.starts_with("https://") || exists, "{document} links to {target}");
        }
    }
}

#[test]
fn the_demo_s_picture_shows_the_demo_s_tables() {
    let picture = read("docs/demo.svg");
    let demo = run(&["demo", "--exit"]);
    let titles: Vec<&str> = demo.expect(0).lines().filter(|line| line.starts_with("SERVICE")).collect();
    assert_eq!(titles.len(), 2, "{demo:#?}");
    for word in titles.iter().flat_map(|line| line.split_whitespace()) {
        assert!(picture.contains(word), "{word} is not in the picture");
    }
    assert!(demo.stderr.is_empty(), "a newcomer sees no complaint: {}", demo.stderr);
}

#[test]
fn the_map_names_only_tests_that_exist() {
    let map = read("src/lib.rs");
    let named: Vec<(&str, &str)> = map
        .split('`')
        .filter_map(|code| code.split_once("::"))
        .filter(|(file, test)| {
            test.contains('_') && test.chars().all(|c| c.is_alphanumeric() || c == '_') && !file.is_empty()
        })
        .collect();
    assert!(named.len() > 10, "{named:?}");
    for (file, test) in named {
        let source = read(&format!("tests/it/{file}.rs"));
        assert!(source.contains(&format!("fn {test}()")), "{file}::{test}");
    }
}

//! The documents say what is so: snippets load, commands parse, links lead somewhere, and the map names tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use migration_proxy::cli::output::Exit;
use migration_proxy::config::schema;
use migration_proxy::manifest::generate::SETTINGS;
use migration_proxy::proxy::failure::Refusal;
use migration_proxy::telemetry::labels::{FallbackCause, Outcome, Reason, RejectCause};
use migration_proxy::telemetry::names;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::cli::{finish, program, run};

/// Whatever a fragment of a file leaves out.
const A_SERVICE: &str = "
services: [{name: shop, old_host: shop.old.example, old_backend: 'shop:8080', new_host: shop.new.example}]
";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every document, by its path.
fn documents() -> Vec<String> {
    let folder = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap();
    let names = folder.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    let mut all: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    all.extend(["README.md", "README.zh-CN.md", "CHANGELOG.md"].map(str::to_owned));
    all
}

/// The fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    let after = text.split(&opening).skip(1);
    after.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// Code between back-quotes outside of blocks.
fn spans(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The words of a command line as a shell takes them: a comment, a pipe or a redirection ends it, quotes keep spaces.
fn words(line: &str) -> Vec<String> {
    let line = line.split(" #").next().unwrap_or_default();
    let mut words = vec![String::new()];
    let mut quote = None;
    for letter in line.trim().chars() {
        match letter {
            '\'' | '"' if quote.is_none() => quote = Some(letter),
            letter if quote == Some(letter) => quote = None,
            ';' | '|' | '>' if quote.is_none() => break,
            ' ' if quote.is_none() => words.push(String::new()),
            letter => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The arguments of a line that runs the program, here or in a pod.
fn arguments(line: &str) -> Option<Vec<String>> {
    let line = line.rsplit_once("; do ").map_or(line, |(_, body)| body);
    let words = words(line);
    let program = words.iter().position(|word| word == "migration-proxy" || word == "/migration-proxy")?;
    (program == 0 || words[program - 1] == "--").then(|| words[program + 1..].to_vec())
}

/// Rows of tables, as cells; the last one is what follows the last bar.
fn rows(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| line.trim_start_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).map(cells).collect()
}

/// Every code span that stands first in a row.
fn first_words(text: &str) -> BTreeSet<String> {
    rows(text).iter().flat_map(|row| spans(&row[0])).collect()
}

#[test]
fn every_configuration_in_the_documents_is_valid_without_a_warning() {
    let directory = TempDir::new().unwrap();
    let mut seen = 0;
    for document in documents() {
        for (index, text) in blocks(&read(&document), "yaml").iter().enumerate() {
            let is_whole = text.lines().any(|line| line.starts_with("services:"));
            let file = directory.path().join(format!("{}-{index}.yaml", document.replace('/', "-")));
            fs::write(&file, if is_whole { text.clone() } else { format!("{text}{A_SERVICE}") }).unwrap();
            run(&["check", "--strict", file.to_str().unwrap()]).expect(0);
            seen += 1;
        }
    }
    assert!(seen >= 9, "{seen} configurations");
}

#[test]
fn other_yaml_in_the_documents_is_yaml() {
    for document in documents() {
        for text in blocks(&read(&document), "yml") {
            let parsed: Result<Value, _> = serde_saphyr::from_str(&text);
            assert!(parsed.is_ok(), "{document}: {parsed:?}");
        }
    }
}

#[test]
fn the_access_line_has_the_fields_that_are_documented() {
    let example = blocks(&read("docs/operating.md"), "json").into_iter().next().unwrap();
    let example: BTreeMap<String, Value> = serde_json::from_str(&example).unwrap();
    let source = read("src/telemetry/access_line.rs");
    assert!(example.len() > 15);
    for field in example.keys() {
        assert!(source.contains(&format!("\\\"{field}\\\":")), "{field}");
    }
}

#[test]
fn every_command_in_the_documents_exists() {
    let mut seen = 0;
    for document in documents() {
        let text = read(&document);
        let lines = blocks(&text, "sh").iter().flat_map(|block| block.lines()).map(str::to_owned).collect::<Vec<_>>();
        let in_prose =
            spans(&text).into_iter().filter(|span| !span.split(' ').next_back().is_some_and(|w| w.starts_with('-')));
        let verbs = ["update", "confirm", "rollback", "safe-mode", "freeze", "callers", "verify", "doctor"];
        let in_prose = in_prose.filter(|span| verbs.iter().any(|verb| span.starts_with(&format!("{verb} "))));
        for line in lines.into_iter().chain(in_prose.map(|span| format!("migration-proxy {span}"))) {
            let Some(arguments) = arguments(&line) else { continue };
            let mut command = program();
            // Everything before --help is judged first.
            command.args(&arguments).arg("--help");
            let finished = finish(command);
            assert_eq!(finished.code, Some(0), "{document}: {line}: {finished:#?}");
            seen += 1;
        }
    }
    assert!(seen >= 50, "{seen} commands");
}

#[test]
fn the_scripts_have_every_option_that_the_documents_give_them() {
    let mut seen = 0;
    for document in documents() {
        for line in blocks(&read(&document), "sh").iter().flat_map(|block| block.lines()) {
            let words = words(line);
            let Some(script) = words.first().filter(|word| word.starts_with("k8s/")) else { continue };
            let source = read(script);
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(
                    source.contains(&format!("{option})")) || source.contains(&format!("{option} |")),
                    "{line}: {option}"
                );
            }
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} lines");
}

/// What a link to a heading says after `#`.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in documents() {
        let text = read(&document);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("https://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => root.join(&document),
                file => root.join(&document).parent().unwrap().join(file),
            };
            assert!(path.exists(), "{document} links to {target}");
            if !heading.is_empty() {
                let there = fs::read_to_string(&path).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|line| anchor(line) == heading), "{document} links to {target}");
            }
        }
    }
}

/// Every key of a schema, with its path.
fn keys(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        keys(inner, &path, found);
        keys(&inner["items"], &path, found);
        found.insert(path);
    }
}

/// The keys of docs/configuration.md with the default that stands beside them. A heading is the path of the table below it.
fn documented_keys() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut paths = vec![String::new()];
    for line in read("docs/configuration.md").lines() {
        if line.starts_with('#') {
            paths = spans(line).iter().map(|path| path.replace("[]", "")).collect();
            found.extend(paths.iter().map(|path| (path.clone(), String::new())));
            if paths.is_empty() {
                paths.push(String::new());
            }
        }
        for row in rows(line).iter().filter(|row| row.len() == 5) {
            let default = spans(&row[1]).concat();
            for key in spans(&row[0]) {
                for path in &paths {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    found.insert(path, default.clone());
                }
            }
        }
    }
    found
}

#[test]
fn every_key_is_documented_and_nothing_else() {
    let schema = schema::schema();
    let mut expected = BTreeSet::from(["services".to_owned(), "defaults".to_owned()]);
    keys(&schema, "", &mut expected);
    keys(&schema["$defs"]["service"], "services", &mut expected);
    let documented: BTreeSet<String> = documented_keys().into_keys().collect();

    let missing: Vec<_> = expected.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&expected).collect();
    assert!(missing.is_empty() && invented.is_empty(), "not documented: {missing:?}; no such key: {invented:?}");
}

#[test]
fn keys_that_the_documents_name_exist() {
    let schema = schema::schema();
    let mut known = BTreeSet::new();
    keys(&schema, "", &mut known);
    keys(&schema["$defs"]["service"], "", &mut known);
    let sections: BTreeSet<&str> = known.iter().filter_map(|key| key.split('.').next()).collect();
    let (mut seen, mut invented) = (0, Vec::new());
    for document in documents() {
        for span in spans(&read(&document)) {
            let path = span.split([':', ' ', '{', '[', '"']).next().unwrap_or_default();
            let is_key = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let (section, rest) = path.split_once('.').unwrap_or_default();
            let is_file = ["yaml", "json", "md", "crt"].contains(&rest);
            if sections.contains(section) && rest.split('.').all(is_key) && !is_file {
                seen += 1;
                if !known.contains(path) {
                    invented.push(format!("{document}: {span}"));
                }
            }
        }
    }
    assert!(invented.is_empty(), "{invented:#?}");
    assert!(seen > 100, "{seen} keys");
}

/// A value of the reference file as docs/configuration.md writes it.
fn written(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(is_on) => if *is_on { "on" } else { "off" }.to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Option<Vec<_>>>()?.join(", ")),
        Value::Object(map) if map.is_empty() => "{}".to_owned(),
        Value::Null | Value::Object(_) => return None,
    })
}

#[test]
fn documented_defaults_are_those_of_the_reference_file() {
    let text = read("config/full.yaml");
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    let mut compared = 0;
    for (path, documented) in documented_keys().into_iter().filter(|(_, default)| !default.is_empty()) {
        let mut value = &file;
        for key in path.split('.') {
            value = if value.is_array() { &value[0][key] } else { &value[key] };
        }
        let key = path.rsplit('.').next().unwrap();
        // Where the reference file shows something else, its comment says so.
        let shows_another = text.lines().any(|line| {
            line.trim_start().starts_with(&format!("{key}:"))
                && line.split('#').nth(1).is_some_and(|c| c.contains("default"))
        });
        if let Some(value) = written(value).filter(|_| !shows_another) {
            let plain = |text: &str| text.replace(['"', '\''], "").replace("true", "on").replace("false", "off");
            let (here, there) = (plain(&documented), plain(&value));
            assert_eq!(here, there, "{path}: docs/configuration.md and config/full.yaml");
            compared += 1;
        }
    }
    assert!(compared > 70, "{compared}");
}

#[test]
fn every_metric_is_documented_and_nothing_else() {
    let expected: BTreeSet<String> = names::ALL.iter().map(|family| family.name.to_owned()).collect();
    let text = read("docs/metrics.md");
    let (metrics, _) = text.split_once("## Alerts").unwrap();
    let named = first_words(metrics).into_iter().map(|word| word.split('{').next().unwrap().to_owned());
    let whole = |name: String| if name.starts_with("process_") { name } else { format!("migration_proxy_{name}") };
    assert_eq!(named.map(whole).collect::<BTreeSet<_>>(), expected);
}

#[test]
fn every_alert_is_documented_and_nothing_else() {
    let rules = read("k8s/monitoring/alerts.yaml");
    let expected: BTreeSet<String> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect();
    let text = read("docs/metrics.md");
    let (_, alerts) = text.split_once("## Alerts").unwrap();
    assert!(!expected.is_empty());
    assert_eq!(first_words(alerts), expected);
}

#[test]
fn every_word_of_logs_and_metrics_is_explained() {
    let explained = first_words(&read("docs/errors.md"));
    let reasons = Reason::ALL.iter().map(|word| word.as_str());
    let causes = RejectCause::ALL.iter().map(|word| word.as_str());
    let fallbacks = FallbackCause::ALL.iter().map(|word| word.as_str());
    let outcomes = Outcome::ALL.iter().map(|word| word.as_str());
    for word in reasons.chain(causes).chain(fallbacks).chain(outcomes) {
        assert!(explained.contains(word), "{word}");
    }
}

#[test]
fn every_status_of_ours_and_every_exit_code_is_explained() {
    let text = read("docs/errors.md");
    let explained = first_words(&text);
    let refusals = [
        Refusal::Malformed(""),
        Refusal::Method,
        Refusal::UnknownHost,
        Refusal::Misdirected,
        Refusal::Uri,
        Refusal::Header,
        Refusal::Body,
        Refusal::Slow,
        Refusal::InFlight,
        Refusal::Full,
        Refusal::Pinned,
        Refusal::Loop,
    ];
    for refusal in refusals {
        assert!(explained.contains(refusal.status().as_str()), "{refusal:?}");
        assert!(text.contains(refusal.text()), "{refusal:?}");
    }
    for code in Exit::Done as u8..=Exit::TimedOut as u8 {
        assert!(text.contains(&format!("| exit {code} |")), "{code}");
    }
}

#[test]
fn the_manifests_are_described() {
    let text = read("docs/kubernetes.md");
    for setting in SETTINGS {
        assert!(text.contains(&format!("| `{}` |", setting.key)), "{}", setting.key);
    }
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s/overlays")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(text.contains(&format!("`overlays/{}`", name.to_str().unwrap())), "{name:?}");
    }
}

#[test]
fn the_bucket_by_hand_is_the_one_that_decides() {
    let document = read("docs/sticky-keys.md");
    let script = blocks(&document, "sh").into_iter().find(|block| block.contains("sha256sum")).unwrap();
    let by_hand = Command::new("bash").args(["-c", &script]).output().unwrap();
    let by_hand = String::from_utf8(by_hand.stdout).unwrap();
    let by_hand: f64 = by_hand.trim().parse().unwrap_or_else(|_| panic!("{by_hand:?}"));

    let directory = TempDir::new().unwrap();
    let file = directory.path().join("migration.yaml");
    fs::write(&file, blocks(&document, "yaml").first().unwrap()).unwrap();
    let file = file.to_str().unwrap();
    let question = ["explain", "--host", "shop.old.example", "--header", "X-User-Id: 4711", "--json", "-c", file];
    let explained = run(&question).json();
    assert_eq!(explained["bucket"].as_f64(), Some(by_hand / 100.0));
    assert!(document.contains(&format!("{by_hand}")), "{by_hand}");
}

#[test]
fn the_readme_is_the_same_in_both_languages() {
    let (english, chinese) = (read("README.md"), read("README.zh-CN.md"));
    let headings = |text: &str| text.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(headings(&english), headings(&chinese));
    let keys = |text: &str| {
        let block = blocks(text, "yaml").into_iter().next().unwrap();
        block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_end().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&english), keys(&chinese));
    for document in documents().iter().filter(|name| name.starts_with("docs/")) {
        assert!(
            english.contains(document.as_str()) && chinese.contains(document.as_str()),
            "nothing links to {document}"
        );
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
    let status = read("docs/status.svg");
    for word in titles[1].split_whitespace() {
        assert!(status.contains(word), "{word} is not in the picture of status");
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

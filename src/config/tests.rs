//! Whole files: the forms that load, the mistakes that are reported, and that nothing panics.

use super::*;

fn parsed(content: &str) -> Parsed {
    match parse(&Text::new("migration.yaml", content), &Environment::new()) {
        Ok(parsed) => parsed,
        Err(error) => panic!("{error}"),
    }
}

const MINIMAL: &str = "services:
  - name: api
    old_host: api.old.example
    old_backend: 127.0.0.1:8078
    new_host: api.new.example
    migration:
      percentage: 0
";

/// Text to replace in [`MINIMAL`], its replacement, the place of the mistake and words of the message.
const MISTAKES: &[(&str, &str, (u32, u32), &[&str])] = &[
    ("services:", "servces: []\nservices:", (1, 1), &["servces", "did you mean \"services\""]),
    ("    migration:", "    migation: {}\n    migration:", (6, 5), &["migation", "did you mean \"migration\""]),
    ("percentage: 0", "percentge: 0", (7, 7), &["percentge", "did you mean \"percentage\""]),
    ("percentage: 0", "strategy: wieght", (7, 17), &["wieght", "did you mean \"weight\""]),
    ("percentage: 0", "percentage: 101", (7, 19), &["percentage", "101"]),
    ("percentage: 0", "percentage: [1]", (7, 19), &["percentage"]),
    ("    migration:", "    timeouts: {connect: soon}\n    migration:", (6, 25), &["connect", "soon"]),
    ("127.0.0.1:8078", "127.0.0.1:99999", (4, 18), &["old_backend", "99999"]),
    ("127.0.0.1:8078", "somewhere", (4, 18), &["old_backend", "port"]),
    (
        "    migration:",
        "    canary: {ip_rules: [{cidr: 10.0.0.0/99, target: new_cluster}]}\n    migration:",
        (6, 32),
        &["10.0.0.0/99"],
    ),
    ("    migration:", "    paths: [{regex: \"[\"}]\n    migration:", (6, 21), &["regex"]),
    (
        "    migration:",
        "    canary: {header_rules: [{header: X-A, value: b, target: new_clutser}]}\n    migration:",
        (6, 61),
        &["new_clutser", "did you mean \"new_cluster\""],
    ),
    (
        "    migration:",
        "    canary: {header_rules: [{header: \"X A\", value: b, target: new_cluster}]}\n    migration:",
        (6, 38),
        &["X A"],
    ),
    ("name: api", "name: Api_1", (2, 11), &["Api_1"]),
    (
        "    migration:",
        "    shadow: {percentage: 5}\n    migration:",
        (6, 13),
        &["shadow", "not available in this version"],
    ),
    ("    new_host: api.new.example\n", "", (2, 5), &["new_host"]),
];

#[test]
fn every_mistake_has_its_place_and_its_words() {
    parsed(MINIMAL);
    for (old, new, place, words) in MISTAKES {
        let text = Text::new("migration.yaml", MINIMAL.replacen(old, new, 1));
        let Err(error) = parse(&text, &Environment::new()) else { panic!("{} was accepted", text.content) };
        assert_eq!(error.problems.len(), 1, "{error}");
        let problem = &error.problems[0];
        assert_eq!((problem.line, problem.column), *place, "{error}");
        for word in *words {
            assert!(error.to_string().contains(word), "{word} is missing in {error}");
        }
    }
}
fn manifest_directory(below: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// `tests/golden/config` holds broken files and, beside each, what is printed about it. `UPDATE_GOLDEN=1` writes the
/// answers anew.
#[test]
fn broken_files_are_reported_as_written_beside_them() {
    let directory = manifest_directory("tests/golden/config");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() >= 40, "golden files are missing");
    for path in files {
        let content = source::read(&path).unwrap().content;
        let text = Text::new(path.file_name().unwrap().to_string_lossy(), content);
        let shown = match parse(&text, &Environment::new()) {
            Ok(parsed) => render_all(&parsed.warnings, &text, false),
            Err(error) => error.render(false),
        };
        let golden = path.with_extension("txt");
        if update {
            std::fs::write(&golden, &shown).unwrap();
        }
        assert_eq!(shown, std::fs::read_to_string(&golden).unwrap(), "{}", path.display());
        assert!(!shown.is_empty(), "{} has no problem", path.display());
    }
}

#[test]
fn every_example_loads() {
    let services = [("minimal", 1), ("example", 2), ("full", 21), ("templates", 500), ("migration-configmap", 2)];
    for (name, count) in services {
        let path = manifest_directory(&format!("config/{name}.yaml"));
        let text = source::read(&path).unwrap();
        match parse(&text, &Environment::new()) {
            Ok(parsed) => assert_eq!(parsed.config.services.len(), count, "{name}"),
            Err(error) => panic!("{error}"),
        }
    }
}

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
type Mistake = (&'static str, &'static str, (u32, u32), &'static [&'static str]);

const MISTAKES: &[Mistake] = &[
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
fn too_many_services_are_said_once() {
    let rest = "old_backend: 'b:80', new_host: n.example}\n";
    let mut text =
        format!("services:\n  - {{name: 's{{N}}', expand: {{N: 1..10000}}, old_host: 's{{N}}.old.example', {rest}");
    for name in ["t", "u", "v"] {
        text.push_str(&format!("  - {{name: {name}, old_host: {name}.old.example, {rest}"));
    }

    let error = parse(&Text::new("migration.yaml", text), &Environment::new()).unwrap_err();

    let errors = error.problems.iter().filter(|problem| problem.severity == Severity::Error);
    assert_eq!(errors.map(|problem| (problem.line, problem.column)).collect::<Vec<_>>(), [(3, 6)], "{error}");
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

#[test]
fn a_file_of_exactly_8_mib_is_read_and_one_byte_more_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("migration.yaml");
    let mut content = MINIMAL.to_owned();
    while content.len() < 8 << 20 {
        let line = (8 << 20) - content.len();
        content.push_str(&"#".repeat(line.min(1024) - 1));
        content.push('\n');
    }
    std::fs::write(&path, &content).unwrap();
    assert!(parse(&source::read(&path).unwrap(), &Environment::new()).is_ok());

    content.push('#');
    std::fs::write(&path, &content).unwrap();
    let error = source::read(&path).unwrap_err();
    let expected = format!(
        "{}: error: the file is larger than 8 MiB\n     = write services that differ only in a number as one entry with expand",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let latin = directory.path().join("latin.yaml");
    std::fs::write(&latin, b"services:\n# caf\xe9\n").unwrap();

    for (path, words) in [
        (directory.path().join("absent.yaml"), "absent.yaml: error: no such file"),
        (directory.path().to_owned(), "error: this is a directory"),
        (latin, "latin.yaml: error: line 2 is not UTF-8"),
    ] {
        let error = source::read(&path).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn later_stages_report_at_the_place_of_a_key() {
    let text = "services:
  - name: api
    old_host: api.old.example
    old_backend: 127.0.0.1:8078
    new_host: api.new.example
  - name: \"web{N}\"
    expand: {N: \"1..3\"}
    old_host: \"web{N}.old.example\"
    old_backend: 127.0.0.1:8079
    new_host: \"web{N}.new.example\"
    new: {ca_file: /ca.crt}
";
    let places = parsed(text).places;

    let problem = Problem::at(&places, "services[2].new.ca_file", "no such file", None);

    assert_eq!((problem.line, problem.column, problem.path.as_str()), (11, 20, "services[1].new.ca_file"));
    assert_eq!(places.of("services[0].new.ca_file"), Place { line: 2, column: 5, width: 4 });
}

#[test]
fn problems_are_json_objects_with_the_documented_names() {
    let text = Text::new("migration.yaml", MINIMAL.replace("percentage: 0", "percentage: 120"));
    let error = parse(&text, &Environment::new()).unwrap_err();

    let json = serde_json::to_value(&error.problems).unwrap();

    let expected = serde_json::json!([{
        "severity": "error", "file": "migration.yaml", "line": 7, "column": 19,
        "path": "services[0].migration.percentage", "message": "120 is not between 0 and 100", "help": null
    }]);
    assert_eq!(json, expected);
}

#[test]
fn variables_of_the_environment_are_put_in_once() {
    let environment = [("SHARE", "12.5"), ("EMPTY", ""), ("REFERENCE", "${SHARE}")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let text = "services:
  - name: api
    old_host: api.old.example
    old_backend: 127.0.0.1:${PORT:-8078}
    new_host: api.new.example
    cohort: ${REFERENCE}
    migration: {percentage: \"${SHARE}\", sticky: {by: [client_ip], salt: \"a${EMPTY}b${EMPTY:-c}\"}}
    headers: {request: {set: {X-A: \"$$${SHARE} ${client_ip}{NN}\"}}}
    x-note: ${unknown}
";
    let service = &parse(&Text::new("migration.yaml", text), &environment).unwrap().config.services[0];

    assert_eq!(service.old_backend[0].to_string(), "127.0.0.1:8078");
    assert_eq!(service.cohort, "${SHARE}");
    assert_eq!(service.migration.percentage.basis_points(), 1250);
    assert_eq!(service.migration.sticky.as_ref().unwrap().salt, "abc");
    let template = &service.headers.request.set[0].1;
    let expected =
        [TemplatePart::Text("$12.5 ".to_owned()), TemplatePart::ClientIp, TemplatePart::Text("{NN}".to_owned())];
    assert_eq!(template.0, expected);
}

#[test]
fn defaults_merge_at_every_depth_and_the_service_wins() {
    let text = "defaults:
  migration: {percentage: 5, methods: [GET]}
  retry: {attempts: 7, backoff: {base: 1ms, max: 9ms}}
  timeouts: {connect: 1s}
services:
  - name: nested
    old_host: a.old.example
    old_backend: a:1
    new_host: a.new.example
    migration: {percentage: 7, methods: [HEAD]}
    retry: {backoff: {base: 2ms}}
  - name: flat
    old_host: b.old.example
    old_backend: b:1
    new_host: b.new.example
    migration_percentage: 9
    enabled: off
";
    let services = parsed(text).config.services;

    let retry = |service: &Service| {
        let Retry { attempts, backoff_base, backoff_max, .. } = service.retry;
        (attempts, backoff_base.as_millis(), backoff_max.as_millis())
    };
    assert_eq!(services[0].migration.percentage.basis_points(), 700);
    assert_eq!(services[0].migration.methods, [http::Method::HEAD]);
    assert_eq!(retry(&services[0]), (7, 2, 9));
    assert_eq!(services[1].migration.percentage.basis_points(), 900);
    assert_eq!(retry(&services[1]), (7, 1, 9));
    assert!(!services[1].migration.enabled);
    assert_eq!(services[1].timeouts.connect.as_secs(), 1);
}

#[test]
fn what_a_file_leaves_out_has_the_documented_value() {
    let config = parsed(MINIMAL).config;
    let service = &config.services[0];

    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.limits.max_in_flight, 16_384);
    assert_eq!(service.new_backend.to_string(), "api.new.example:443");
    assert_eq!((service.old.max_waiting, service.new.max_waiting), (None, Some(1024)));
    assert_eq!(service.timeouts.total, config.global.default_timeout);
    assert_eq!(service.fallback.ramp.as_secs(), 30);
    assert_eq!(service.cohort, "api");
}

#[test]
fn scalars_of_rules_are_their_source_text() {
    let text = MINIMAL.to_owned()
        + "    canary: {header_rules: [{header: X-A, values: [true, 0755, 1.10, off], target: old_cluster}]}\n";
    let config = parsed(&text).config;

    let ValueTest::OneOf(values) = &config.services[0].canary.header_rules[0].test else { panic!("no values") };

    assert_eq!(values, &["true", "0755", "1.10", "off"]);
}

#[test]
fn ten_thousand_networks_decode_and_templates_share_regular_expressions() {
    let mut text = MINIMAL.replace("name: api", "name: \"api{N}\"\n    expand: {N: \"1..500\"}");
    text = text.replace("api.old", "api{N}.old").replace("api.new", "api{N}.new");
    text.push_str("    paths: [{regex: \"/a/[0-9]+\"}]\n");
    text.push_str("  - name: many\n    old_host: m.example\n    old_backend: m:1\n    new_host: n.example\n");
    text.push_str("    canary:\n      ip_rules:\n");
    for index in 0..10_000u32 {
        let (high, low) = (index / 256, index % 256);
        text.push_str(&format!("        - {{cidr: 203.{high}.{low}.0/24, target: new_cluster}}\n"));
    }
    let config = parsed(&text).config;

    assert_eq!(config.services.len(), 501);
    assert_eq!(config.services[500].canary.ip_rules.len(), 10_000);
}

mod never_panics {
    use proptest::prelude::*;

    use super::*;

    fn try_all(content: String) {
        let text = Text::new("migration.yaml", content);
        match parse(&text, &Environment::new()) {
            Ok(parsed) => drop(render_all(&parsed.warnings, &text, true)),
            Err(error) => drop((error.to_string(), error.summary())),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn on_random_text(content in any::<Vec<u8>>()) {
            try_all(String::from_utf8_lossy(&content).into_owned());
        }

        #[test]
        fn on_text_of_yaml_pieces(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..60)) {
            try_all(pieces.concat());
        }

        #[test]
        fn on_mutated_examples(
            file in prop::sample::select(EXAMPLES),
            cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..40usize, prop::sample::select(PIECES)), 1..6),
        ) {
            let mut text: Vec<char> = file.chars().collect();
            for (at, length, piece) in cuts {
                let start = at.index(text.len().max(1)).min(text.len());
                let end = (start + length).min(text.len());
                text.splice(start..end, piece.chars());
            }
            try_all(text.into_iter().collect());
        }
    }

    const EXAMPLES: &[&str] = &[
        MINIMAL,
        include_str!("../../config/example.yaml"),
        include_str!("../../config/full.yaml"),
        include_str!("../../config/migration-configmap.yaml"),
    ];

    const PIECES: &[&str] = &[
        "services:",
        "\n",
        "\n  - ",
        "\n    ",
        "name: ",
        "api",
        "old_host: ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "|",
        ">",
        "\"",
        "'",
        "\\",
        "&a ",
        "*a",
        "<<: ",
        "${",
        "${A}",
        "${A:-b}",
        "{NN}",
        "expand: ",
        "1..3",
        "\t",
        "---",
        "...",
        "#",
        "!x ",
        "\u{feff}",
        "\u{4e2d}",
        "\0",
        "\r",
        "kind: ConfigMap",
        "data: ",
        "migration: ",
        "percentage: ",
        "-1",
        "1e9",
        "99999999999999999999",
        "%",
        "off",
        "~",
        "canary: ",
        "ip_rules: ",
        "cidr: ",
        "::/0",
        "defaults: ",
        "service_mappings: ",
        "? ",
        "- ",
    ];
}

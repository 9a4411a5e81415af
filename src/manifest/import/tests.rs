//! Whole manifests: `tests/golden/import` holds the shapes that teams have, and beside each what comes out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::config::{Config, source};
use crate::manifest::generate;

fn import_text(text: &str, new_domain: Option<&str>) -> Imported {
    let options = Options { new_domain: new_domain.map(str::to_owned), ..Options::default() };
    import(&[Text::new("team.yaml", text)], &options)
}

#[track_caller]
fn parsed(imported: &Imported) -> Config {
    match config::parse(&Text::new("migration.yaml", imported.config.as_str()), &Environment::new()) {
        Ok(parsed) => parsed.config,
        Err(error) => panic!("{error}\n{}", imported.config),
    }
}

fn golden() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/import");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() >= 15, "golden files are missing");
    files
}

fn read(path: &Path) -> Imported {
    let content = source::read(path).unwrap().content;
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    import(&[Text::new(name, content)], &Options::default())
}

/// `UPDATE_GOLDEN=1` writes the answers anew.
#[test]
fn manifests_become_what_is_written_beside_them() {
    for path in golden() {
        let imported = read(&path);
        let mut shown = imported.config.clone();
        for Note { weight, line, column, about, message, .. } in &imported.notes {
            shown.push_str(&format!("{line}:{column} {} {about}: {message}\n", weight.word()));
        }
        let answer = path.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&answer, &shown).unwrap();
        }
        assert_eq!(shown, fs::read_to_string(&answer).unwrap(), "{}", path.display());
    }
}

/// Old backend, new host, new backend, percentage of the first service; and how many notes tell of something lost.
type Outcome = (&'static str, &'static str, &'static str, f64, usize);

const OUTCOMES: [(&str, Outcome); 15] = [
    ("bad-input", ("a.default.svc.cluster.local:80", "change-me.invalid", "change-me.invalid:443", 0.0, 7)),
    ("external-name", ("change-me.invalid:80", "orders.new.example", "orders.new.example:443", 100.0, 1)),
    ("fixed-address", ("change-me.invalid:80", "orders.new.example", "203.0.113.10:443", 100.0, 1)),
    ("mappings", ("orders.shop-old.svc.cluster.local:80", "orders.new.example", "orders.new.example:443", 0.0, 1)),
    (
        "migration-flat",
        ("orders.shop-old.svc.cluster.local:8078", "orders.new.example", "orders.new.example:443", 0.0, 0),
    ),
    (
        "migration-nested",
        ("orders.shop-old.svc.cluster.local:8078", "orders.new.example", "orders.new.example:443", 20.0, 0),
    ),
    ("nginx-pod", ("change-me.invalid:80", "orders.new.example", "orders.new.example:443", 100.0, 0)),
    (
        "nginx-weight",
        ("orders.shop-old.svc.cluster.local:8078", "orders.new.example", "orders.new.example:443", 0.0, 3),
    ),
    ("odd-shapes", ("10.0.0.1:81", "change-me.invalid", "change-me.invalid:443", 0.0, 4)),
    ("old-cluster", ("orders.shop-old.svc.cluster.local:80", "orders.new.example", "orders.new.example:443", 12.5, 10)),
    (
        "redirect-permanent",
        ("placeholder.shop-old.svc.cluster.local:80", "orders.new.example", "orders.new.example:443", 100.0, 0),
    ),
    (
        "redirect-snippet",
        ("placeholder.shop-old.svc.cluster.local:80", "orders.new.example", "orders.new.example:443", 100.0, 0),
    ),
    ("service-elsewhere", ("change-me.invalid:80", "orders.new.example", "orders.new.example:443", 100.0, 0)),
    (
        "several-backends",
        ("web-controller.ingress.svc.cluster.local:80", "shop.new.example", "shop.new.example:443", 0.0, 7),
    ),
    (
        "services-alone",
        ("orders.shop-old.svc.cluster.local:80", "orders.new.example", "orders.new.example:443", 0.0, 0),
    ),
];

#[test]
fn every_shape_gives_a_file_that_is_valid_and_from_which_manifests_are_made() {
    let outcomes = BTreeMap::from(OUTCOMES);
    for path in golden() {
        let imported = read(&path);

        let config = parsed(&imported);

        let service = &config.services[0];
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let (old, new_host, new_backend, percentage, unmapped) = outcomes[name.as_str()];
        assert_eq!(service.old_backend[0].to_string(), old, "{name}");
        assert_eq!(
            (service.new_host.as_str(), service.new_backend.to_string().as_str()),
            (new_host, new_backend),
            "{name}"
        );
        assert_eq!((service.migration.percentage.as_f64(), imported.unmapped()), (percentage, unmapped), "{name}");
        assert_eq!(imported.services, config.services.len(), "{name}");
        let source = generate::Source { config: &config, text: &imported.config };
        for file in generate::kustomize(source, &generate::Options::default()) {
            let mut mistakes = Vec::new();
            if file.path.ends_with("configmap.yaml") {
                config::tree::parse(&file.text, config::tree::Shift::default(), &mut mistakes);
                config::parse(&Text::new(file.path, file.text), &Environment::new()).unwrap();
            }
            assert!(mistakes.is_empty(), "{name}: {mistakes:?}");
        }
    }
}

#[test]
fn line_ends_and_marks_of_windows_change_nothing() {
    for path in golden() {
        let text = fs::read_to_string(&path).unwrap().trim_start_matches('\u{feff}').replace("\r\n", "\n");
        let (plain, windows) =
            (import_text(&text, None), import_text(&format!("\u{feff}{}", text.replace('\n', "\r\n")), None));

        assert_eq!(windows.config.replace('\r', ""), plain.config, "{}", path.display());
        assert_eq!(windows.notes, plain.notes, "{}", path.display());
    }
}

#[test]
fn paths_to_several_backends_go_on_being_chosen_by_the_controller_where_that_is_possible() {
    const CONTROLLER: &str = "ingress-nginx-controller.ingress-nginx.svc.cluster.local:80";
    let alias = "nginx.ingress.kubernetes.io/server-alias: b.old.example";
    let grpc = "nginx.ingress.kubernetes.io/backend-protocol: GRPC";
    for (annotation, class, host, paths, expected) in [
        ("x: y", "nginx", "a.old.example", ["/api", "/static"], CONTROLLER),
        ("x: y", "nginx-internal", "a.old.example", ["/", "/static"], CONTROLLER),
        ("x: y", "nginx", "a.old.example", ["/(.*)", "/b(/|$)"], CONTROLLER),
        // The older Ingress has this path alone.
        ("x: y", "nginx", "a.old.example", ["/", "/"], "first.team.svc.cluster.local:80"),
        ("x: y", "kong", "a.old.example", ["/", "/static"], "first.team.svc.cluster.local:80"),
        ("x: y", "nginx", "'*.old.example'", ["/", "/static"], "first.team.svc.cluster.local:80"),
        (alias, "nginx", "a.old.example", ["/", "/static"], "first.team.svc.cluster.local:80"),
        (grpc, "nginx", "a.old.example", ["/", "/static"], "first.team.svc.cluster.local:80"),
    ] {
        let path = |path: &str, service: &str| {
            format!(
                "          - {{path: '{path}', pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}\n"
            )
        };
        let text = format!(
            "kind: Ingress\nmetadata: {{name: a, namespace: team, annotations: {{{annotation}}}}}\nspec:\n  ingressClassName: {class}\n  \
             rules:\n    - host: {host}\n      http:\n        paths:\n{}{}",
            path(paths[0], "first"),
            path(paths[1], "second")
        );

        let imported = import_text(&text, Some("new.example"));

        let service = &parsed(&imported).services[0];
        assert_eq!(service.old_backend[0].to_string(), expected, "{text}");
        let is_behind = expected == CONTROLLER;
        assert_eq!(service.old.host_header.as_deref(), is_behind.then_some("by-path.a.old.example"), "{text}");
        let told = imported.notes.iter().find(|note| note.weight == Weight::Unmapped).unwrap();
        assert_eq!((told.line, told.column), (10, 14), "{told:?}");
    }
}

#[test]
fn the_new_host_comes_from_the_domain_else_from_an_external_name_else_it_is_to_be_changed() {
    let ingress = |host: &str| {
        format!(
            "kind: Ingress\nmetadata: {{name: a, namespace: team}}\nspec: {{rules: [{{host: {host}, http: {{paths: \
             [{{path: /, backend: {{service: {{name: app, port: {{number: 80}}}}}}}}]}}}}]}}\n"
        )
    };
    let external = |name: &str| {
        format!(
            "---\nkind: Service\nmetadata: {{name: {name}, namespace: team}}\nspec: {{type: ExternalName, externalName: {name}.new.example}}\n"
        )
    };
    let a = ingress("a.old.example");
    for (text, domain, expected) in [
        (a.clone(), Some("kong.example"), "a.kong.example"),
        (a.clone(), Some(".kong.example"), "a.kong.example"),
        (a.clone() + &external("b"), Some("kong.example"), "a.kong.example"),
        (a.clone() + &external("b"), None, "b.new.example"),
        (a.clone() + &external("b") + &external("a"), None, "a.new.example"),
        (a.clone() + &external("b") + &external("c"), None, "change-me.invalid"),
        (a, None, "change-me.invalid"),
        (ingress("'*.old.example'"), Some("kong.example"), "change-me.invalid"),
    ] {
        let imported = import_text(&text, domain);

        assert_eq!(parsed(&imported).services[0].new_host, expected, "{text}");
        let is_warned =
            imported.notes.iter().any(|note| note.weight == Weight::Warning && note.message.contains("change-me"));
        assert_eq!(is_warned, expected == "change-me.invalid", "{text}");
    }
}

#[test]
fn annotations_that_change_what_requests_get_are_unmapped() {
    for (annotation, value, is_unmapped) in [
        ("auth-url", "https://auth.example", true),
        ("auth-tls-secret", "team/ca", true),
        ("limit-connections", "5", true),
        ("whitelist-source-range", "10.0.0.0/8", true),
        ("configuration-snippet", "deny all;", true),
        ("affinity", "cookie", true),
        ("rewrite-target", "/$1", true),
        ("enable-cors", "true", true),
        ("proxy-read-timeout", "soon", true),
        ("backend-protocol", "FCGI", true),
        ("never-heard-of", "1", true),
        ("proxy-read-timeout", "300", false),
        ("proxy-body-size", "8m", false),
        ("ssl-redirect", "false", false),
        ("backend-protocol", "GRPC", false),
        ("canary-weight", "5", false),
    ] {
        let text = format!(
            "kind: Ingress\nmetadata:\n  name: a\n  namespace: team\n  annotations:\n    nginx.ingress.kubernetes.io/{annotation}: \
             \"{value}\"\nspec: {{rules: [{{host: a.old.example, http: {{paths: [{{path: /, backend: {{service: {{name: a, \
             port: {{number: 80}}}}}}}}]}}}}]}}\n"
        );

        let imported = import_text(&text, Some("new.example"));

        parsed(&imported);
        assert_eq!(imported.unmapped() > 0, is_unmapped, "{annotation}: {:?}", imported.notes);
        if is_unmapped {
            let note = imported.notes.iter().find(|note| note.weight == Weight::Unmapped).unwrap();
            assert_eq!((note.line, note.column, &*note.about), (6, 5, "Ingress team/a"));
            assert!(note.message.starts_with(annotation), "{}", note.message);
        }
    }
}

#[test]
fn a_value_that_no_configuration_may_hold_is_told() {
    let text = "kind: Ingress\nmetadata: {name: a, namespace: team, annotations: {nginx.ingress.kubernetes.io/canary: 'true', \
                nginx.ingress.kubernetes.io/canary-by-header: 'X Y'}}\nspec: {rules: [{host: a.old.example, http: {paths: [\
                {path: /, backend: {service: {name: new, port: {number: 443}}}}]}}]}\n---\nkind: Service\nmetadata: {name: new, \
                namespace: team}\nspec: {type: ExternalName, externalName: a.new.example}\n---\nkind: Ingress\nmetadata: \
                {name: b, namespace: team}\nspec: {rules: [{host: a.old.example, http: {paths: [{path: /, backend: \
                {service: {name: old, port: {number: 80}}}}]}}]}\n";

    let imported = import_text(text, None);

    let told = imported.notes.iter().filter(|note| note.weight == Weight::Unmapped).map(|note| note.message.as_str());
    assert!(told.clone().any(|message| message.contains("X Y")), "{:?}", told.collect::<Vec<_>>());
}

#[test]
fn files_that_claim_the_same_are_joined_and_the_first_one_counts() {
    let file = |name: &str, host: &str| {
        format!("services: [{{name: {name}, old_host: [{host}], old_backend: 'b:80', new_host: n.example}}]\n---\n")
    };
    let text = file("a", "a.example")
        + &file("a", "b.example")
        + &file("c", "A.example")
        + &file("d", "d.example")
        + "kind: Ingress\nmetadata: {name: d, namespace: team}\nspec: {rules: [{host: d.other.example, http: {paths: [{path: /, \
           backend: {service: {name: d, port: {number: 80}}}}]}}]}\n";

    let imported = import_text(&text, Some("new.example"));

    let config = parsed(&imported);
    let names: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["a", "d", "d-2"]);
    assert_eq!(imported.services, 3);
}

mod nothing_panics {
    use proptest::prelude::*;

    use super::*;

    const PIECES: &[&str] = &[
        "kind: ",
        "Ingress",
        "Service",
        "ConfigMap",
        "List",
        "items:",
        "\n  - ",
        "\n",
        "\n---\n",
        "spec: ",
        "rules:",
        "host: ",
        "a.old.example",
        "http: {paths: [",
        "]}",
        "{",
        "}",
        "backend: ",
        "port: ",
        "443",
        "data: ",
        "x.conf: |\n",
        "    server {",
        "server_name a.b;",
        "location / {",
        "proxy_pass https://$x;",
        "}",
        "services:",
        "service_mappings:",
        "*",
        "\"",
        "'",
        "${",
        "\u{feff}",
        "\r\n",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn on_text_of_pieces(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..60)) {
            import_text(&pieces.concat(), None);
        }

        #[test]
        fn on_mutated_manifests(
            file in any::<prop::sample::Index>(),
            cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..40usize, prop::sample::select(PIECES)), 1..6),
        ) {
            let files = golden();
            let mut text: Vec<char> = fs::read_to_string(&files[file.index(files.len())]).unwrap().chars().collect();
            for (at, length, piece) in cuts {
                let start = at.index(text.len().max(1)).min(text.len());
                let end = (start + length).min(text.len());
                text.splice(start..end, piece.chars());
            }
            let imported = import_text(&text.into_iter().collect::<String>(), None);
            if imported.unmapped() == 0 && imported.services > 0 {
                parsed(&imported);
            }
        }
    }
}

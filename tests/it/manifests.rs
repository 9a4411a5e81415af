//! What is deployed, judged by programs of others: kustomize, the schemas of Kubernetes, a policy check, promtool and a
//! Prometheus that scrapes, buildah, shellcheck, and a JSON schema validator.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use migration_proxy::config::{self, Environment, Text};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::cli::{Finished, finish_within, free_port, run};
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::origin::refused_port;
use crate::support::peers::{available, find};
use crate::support::setup::{Clusters, Setup};

/// Programs in Python start slowly on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// Everything that `kubectl apply -k` takes.
const KUSTOMIZATIONS: [&str; 6] =
    [".", "overlays/file-state", "overlays/fixed-ip", "overlays/mtls", "overlays/redirect", "overlays/tls"];

fn root(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// Every file below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// The configurations that are shipped, without the manifest around them.
fn configurations() -> Vec<(String, String)> {
    let mut found = Vec::new();
    files(&root("config"), &mut found);
    files(&root("k8s"), &mut found);
    found.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        path.parent().unwrap().ends_with("config") || matches!(&*name, "migration.yaml" | "configmap.yaml")
    });
    found.sort();
    let text = |path: PathBuf| Text::new(path.display().to_string(), fs::read_to_string(path).unwrap());
    found.into_iter().map(text).map(|text| (text.name.clone(), config::without_manifest(&text))).collect()
}

fn program(name: &str) -> Command {
    Command::new(find(name).expect("the caller looked for it"))
}

#[track_caller]
fn succeed(mut command: Command) -> Finished {
    command.stdin(Stdio::null());
    let finished = finish_within(command, LIMIT);
    finished.expect(0);
    finished
}

/// What is applied, a file for each kustomization.
fn applied(directory: &Path) -> Vec<PathBuf> {
    let write = |name: &&str| {
        let mut command = program("kubectl");
        command.arg("kustomize").arg(root("k8s").join(name));
        let path = directory.join(format!("{}.yaml", name.replace('/', "-").replace('.', "base")));
        fs::write(&path, succeed(command).stdout).unwrap();
        path
    };
    KUSTOMIZATIONS.iter().map(write).collect()
}

#[test]
fn every_shipped_configuration_loads() {
    let found = configurations();
    assert!(found.len() >= 10, "{} files", found.len());
    for (name, text) in found {
        if let Err(error) = config::parse(&Text::new(&name, text), &Environment::new()) {
            panic!("{error}");
        }
    }
}

#[test]
fn manifests_fit_the_schemas_of_the_oldest_and_the_newest_kubernetes() {
    if !available(&["kubectl", "kubernetes-validate"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let applied = applied(directory.path());
    for version in ["1.25", "1.37"] {
        let mut command = program("kubernetes-validate");
        command.args(["-k", version, "--strict", "--quiet"]).args(&applied);

        let finished = succeed(command);

        // A kind that it does not know is a warning.
        assert!(!finished.all().contains("WARN"), "{version}: {finished:#?}");
    }
    // What needs the operator has kinds of its own.
    let mut monitoring = program("kubectl");
    monitoring.arg("kustomize").arg(root("k8s/monitoring"));
    let monitoring = succeed(monitoring).stdout;
    for kind in ["ServiceMonitor", "PrometheusRule", "ConfigMap"] {
        assert!(monitoring.contains(&format!("kind: {kind}\n")), "{kind}");
    }
}

#[test]
fn the_policy_check_finds_nothing_but_what_is_justified() {
    if !available(&["kubectl", "checkov"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let mut command = program("checkov");
    command.arg("--config-file").arg(root("tests/deploy/checkov.yaml")).arg("--skip-download").arg("--file");
    command.args(applied(directory.path())).env("BC_SKIP_MAPPING", "TRUE").current_dir(directory.path());

    succeed(command);
}

/// The groups of the alerts as Prometheus reads them from a file.
fn rules(directory: &Path) -> PathBuf {
    let text = run(&["generate", "alerts"]).expect(0).to_owned();
    let (_, groups) = text.split_once("\nspec:\n").unwrap();
    let path = directory.join("rules.yaml");
    fs::write(
        &path,
        groups.lines().map(|line| line.strip_prefix("  ").unwrap_or(line).to_owned() + "\n").collect::<String>(),
    )
    .unwrap();
    path
}

#[test]
fn every_alert_is_a_rule_that_fires_when_it_must_and_only_then() {
    if !available(&["promtool"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let rules = rules(directory.path());
    let mut check = program("promtool");
    check.args(["check", "rules"]).arg(&rules);
    succeed(check);
    let tests = directory.path().join("alerts.test.yaml");
    fs::copy(root("tests/deploy/alerts.test.yaml"), &tests).unwrap();
    let mut test = program("promtool");
    test.args(["test", "rules"]).arg(&tests);
    succeed(test);

    let (rules, tests) = (fs::read_to_string(rules).unwrap(), fs::read_to_string(tests).unwrap());
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(alert), "{alert} has no test");
    }
}

/// A Prometheus that scrapes one proxy every second.
struct Prometheus {
    port: u16,
    child: Child,
    _directory: TempDir,
}

impl Prometheus {
    fn start(proxy: &Proxy) -> Self {
        let directory = TempDir::new().unwrap();
        let rules = rules(directory.path());
        let file = directory.path().join("prometheus.yaml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  - job_name: migration-proxy\n    \
             static_configs: [{{targets: [\"{}\"], labels: {{namespace: team, pod: pod-1}}}}]\n",
            rules.display(),
            proxy.addresses.admin
        );
        fs::write(&file, text).unwrap();
        let port = free_port();
        let child = program("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prometheus = Self { port, child, _directory: directory };
        eventually(LIMIT, "Prometheus is ready", || prometheus.ask("/-/ready").is_some());
        prometheus
    }

    /// The body of an answer with status 200.
    fn ask(&self, target: &str) -> Option<String> {
        let mut client = Client::try_plain(([127, 0, 0, 1], self.port).into(), None).ok()?;
        let answer = client.exchange("GET", "localhost", target, &[], b"").ok()?;
        (answer.status == 200).then(|| answer.text())
    }

    /// How many series an expression gives; `None` when it cannot be read.
    fn count(&self, expression: &str) -> Option<usize> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer: Value = serde_json::from_str(&self.ask(&format!("/api/v1/query?query={escaped}"))?).unwrap();
        answer["data"]["result"].as_array().map(Vec::len)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every query of the dashboard for one service.
fn queries(dashboard: &Value, found: &mut Vec<String>) {
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            found
                .push(query.replace("$namespace", "team").replace("$service", ".*").replace("$__rate_interval", "10s"));
        }
        queries(panel, found);
    }
}

/// The metrics that an expression names.
fn metrics(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("migration_proxy_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_prometheus_that_scrapes_has_data_for_every_alert_and_every_panel() {
    if !available(&["prometheus", "promtool"]) {
        return;
    }
    let (clusters, public) = (Clusters::new(), Authority::new("old hosts"));
    let services = [
        clusters.service("a").percentage(50).with("health_check: {enabled: true}"),
        clusters.service("b").percentage(100).new_backend(format!("127.0.0.1:{}", refused_port())),
    ];
    let setup = Setup::new(services).https(&public.server_for_ninety_days(&["a.old.test"]));
    let proxy = Proxy::start(&setup);
    let prometheus = Prometheus::start(&proxy);
    let dashboard: Value = serde_json::from_str(run(&["generate", "dashboard"]).expect(0)).unwrap();
    let mut panels = Vec::new();
    queries(&dashboard, &mut panels);
    assert!(panels.len() >= 15, "{panels:#?}");

    for query in panels {
        eventually(LIMIT, &query, || {
            for host in ["a.old.test", "b.old.test", "nobody.test"] {
                proxy.get(host, "/");
            }
            prometheus.count(&query).unwrap_or_else(|| panic!("{query} cannot be read")) > 0
        });
    }
    let rules: Value = serde_json::from_str(&prometheus.ask("/api/v1/rules").unwrap()).unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 10);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        for metric in metrics(rule["query"].as_str().unwrap()) {
            assert!(prometheus.count(&metric).unwrap_or_default() > 0, "{metric} of {} has no data", rule["name"]);
        }
    }
    let scrape = proxy.admin("/metrics").text();
    let mut check = program("promtool");
    let file = TempDir::new().unwrap();
    fs::write(file.path().join("metrics"), scrape).unwrap();
    check.args(["check", "metrics"]).stdin(fs::File::open(file.path().join("metrics")).unwrap());
    let finished = finish_within(check, LIMIT);
    assert_eq!((finished.code, finished.all().trim()), (Some(0), ""), "{finished:#?}");
}

#[test]
fn the_image_is_one_file_for_a_plain_user_and_two_builds_are_the_same() {
    if !available(&["buildah"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    // What the image is made of matters here, not what the binary does.
    let binary = here.join("target/x86_64-unknown-linux-musl/release/migration-proxy");
    fs::create_dir_all(binary.parent().unwrap()).unwrap();
    let buildah = |arguments: &[&str]| {
        let mut command = program("buildah");
        command.args(["--storage-driver", "vfs"]).args([
            "--root",
            &format!("{}/root", here.display()),
            "--runroot",
            &format!("{}/run", here.display()),
        ]);
        command
            .args(arguments)
            .env("STORAGE_DRIVER", "vfs")
            .env("BUILDAH_ISOLATION", "chroot")
            .env("BUILDAH_LAYERS", "false");
        succeed(command)
    };
    let file = root("docker/Dockerfile").display().to_string();
    let context = here.display().to_string();
    let build = |format: &str, tag: &str| {
        // A later build has the same binary at another time.
        fs::write(&binary, "a static binary").unwrap();
        buildah(
            &[
                &["build", "--no-cache", "--format", format, "--timestamp", "1700000000", "--file", &file][..],
                &["--build-arg", "SOURCE=prebuilt", "--tag", tag, &context],
            ]
            .concat(),
        );
        serde_json::from_str::<Value>(&buildah(&["inspect", "--type", "image", tag]).stdout).unwrap()
    };

    let (first, second, docker) = (build("oci", "first"), build("oci", "second"), build("docker", "docker"));

    assert!(first["FromImageDigest"].is_string());
    assert_eq!(first["FromImageDigest"], second["FromImageDigest"]);
    let config = &docker["Docker"]["config"];
    assert_eq!(config["User"], "101:101");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/migration-proxy"]));
    assert_eq!(config["Healthcheck"]["Test"], serde_json::json!(["CMD", "/migration-proxy", "health"]));
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(docker["Docker"]["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(1), "{docker:#}");
}

#[test]
fn the_scripts_are_sound_and_show_what_they_would_do() {
    if available(&["shellcheck"]) {
        let mut check = program("shellcheck");
        check.args(["k8s/deploy.sh", "k8s/validate.sh", "k8s/test-proxy.sh", ".ci/run"].map(root));
        succeed(check);
    }
    for script in ["deploy", "validate", "test-proxy"] {
        let ask = |argument: &str| {
            let mut command = Command::new(root("k8s").join(format!("{script}.sh")));
            command.arg(argument).stdin(Stdio::null());
            finish_within(command, LIMIT)
        };
        assert!(ask("--help").expect(0).starts_with("usage: "), "{script}");
        ask("--nonsense").expect(2);
    }
    if !available(&["kubectl"]) {
        return;
    }
    let deploy = |arguments: &[&str]| {
        let mut command = Command::new(root("k8s/deploy.sh"));
        // No cluster is asked.
        command.arg("--dry-run").args(arguments).env("KUBECONFIG", "/dev/null").stdin(Stdio::null());
        finish_within(command, LIMIT)
    };
    let trusted = ["--trusted-proxies", "10.1.0.0/16"];

    let shown = deploy(&trusted);

    let text = shown.expect(0);
    assert!(text.contains("trusted_proxies: [\"10.1.0.0/16\"]") && text.contains("kind: Deployment"), "{text}");
    assert!(!text.contains("10.244.0.0/16"), "an example value is left");
    deploy(&[]).expect(2);
    for (option, value, expected) in [
        ("--namespace", "team", "namespace: team\n"),
        ("--image", "registry.example:5000/proxy:1", "image: registry.example:5000/proxy:1\n"),
        ("--new-cidr", "198.51.100.0/24", "cidr: 198.51.100.0/24\n"),
        ("--api-server", "192.0.2.10/32", "cidr: 192.0.2.10/32\n"),
        ("--dns-cidr", "fd00::a/128", "cidr: fd00::a/128\n"),
        ("--ingress-namespace", "edge", "metadata.name: edge\n"),
        ("--monitoring-namespace", "prometheus", "metadata.name: prometheus\n"),
    ] {
        let shown = deploy(&[&trusted[..], &[option, value]].concat());

        let changed = shown.expect(0);
        assert!(changed.contains(expected) && !text.contains(expected), "{option}: {changed}");
        for value in ["every|one", "", "a b", "-"] {
            deploy(&[&trusted[..], &[option, value]].concat()).expect(2);
        }
        deploy(&[&trusted[..], &[option]].concat()).expect(2);
    }
    assert!(shown.stderr.contains("without --new-cidr"), "{shown:?}");
    let file = TempDir::new().unwrap();
    let path = file.path().join("migration.yaml");
    let text = |backend: &str| {
        format!("services:\n- name: a\n  old_host: a.old\n  old_backend: {backend}\n  new_host: a.new\n")
    };
    for (backend, warned) in [
        ("a.team.svc.cluster.local:8078", None),
        ("[\"a.team.svc:8078\"]", None),
        ("a.team.svc.cluster.local:9000 # x", Some("names a.team.svc.cluster.local:9000:")),
        ("'a.other.svc:8078'", Some("names a.other.svc:8078:")),
    ] {
        fs::write(&path, text(backend)).unwrap();
        let options = ["--config", path.to_str().unwrap(), "--namespace", "team", "--new-cidr", "198.51.100.0/24"];
        let told = deploy(&options);
        told.expect(0);
        assert_eq!(told.stderr.contains("of namespace team only"), warned.is_some(), "{backend}: {told:?}");
        assert!(told.stderr.contains(warned.unwrap_or_default()), "{backend}: {told:?}");
        assert!(!told.stderr.contains("without --new-cidr") && !told.stderr.contains("is not used"), "{told:?}");
        let told = deploy(&[&options[..], &trusted].concat());
        assert!(told.stderr.contains("--trusted-proxies is not used"), "{told:?}");
    }
    let servers = ["--api-server", "192.0.2.1/32", "--api-server", "192.0.2.2/32"];
    let several = deploy(&[&trusted[..], &servers].concat());
    let blocks = "    - ipBlock:\n        cidr: 192.0.2.1/32\n    - ipBlock:\n        cidr: 192.0.2.2/32\n";
    assert!(several.expect(0).contains(blocks), "{several:?}");
    for wrong in [["--trusted-proxies", "everybody"], ["--overlay", "none"], ["--config", "/nonexistent.yaml"]] {
        assert_ne!(deploy(&[&trusted[..], &wrong].concat()).code, Some(0), "{wrong:?}");
    }
}

/// Stands for a cluster: keeps what is applied, and has a ConfigMap as soon as one was.
const CLUSTER: &str = r#"#!/usr/bin/env bash
set -euo pipefail
[ "${1-}" != --namespace ] || shift 2
case "$1 ${2-}" in
kustomize\ * | 'create configmap') exec "$KUBECTL" "$@" ;;
'get configmap') grep -q 'name: migration-config$' "$APPLIED" ;;
'get endpoints') echo '192.0.2.1 fd00::1' ;;
'apply -f') cat >>"$APPLIED" ;;
esac
"#;

#[test]
fn deploying_twice_keeps_the_configuration_of_the_cluster() {
    if !available(&["kubectl"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let (cluster, applied) = (directory.path().join("kubectl"), directory.path().join("applied"));
    fs::write(&cluster, CLUSTER).unwrap();
    fs::set_permissions(&cluster, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&applied, "").unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let deploy = |arguments: &[&str]| {
        let mut command = Command::new(root("k8s/deploy.sh"));
        command.args(arguments).env("PATH", &path).env("APPLIED", &applied).env("KUBECTL", find("kubectl").unwrap());
        succeed(command);
        let text = fs::read_to_string(&applied).unwrap();
        fs::write(&applied, "").unwrap();
        text
    };

    let first = deploy(&["--trusted-proxies", "10.1.0.0/16"]);
    fs::write(&applied, &first).unwrap();
    let second = deploy(&[]);

    assert!(second.starts_with(&first), "what was there is kept");
    let second = &second[first.len()..];
    for (text, configurations) in [(first.as_str(), 1), (second, 0)] {
        let count = |line: &str| text.lines().filter(|other| *other == line).count();
        assert_eq!(count("  name: migration-config"), configurations, "{text}");
        assert_eq!((count("kind: Deployment"), count("kind: NetworkPolicy")), (1, 1), "{text}");
        assert!(text.contains("cidr: 192.0.2.1/32\n    - ipBlock:\n        cidr: fd00::1/128\n"), "{text}");
    }
    let documents =
        |text: &str| text.split("---\n").map(|document| document.trim().to_owned()).collect::<BTreeSet<_>>();
    let (first, second) = (documents(&first), documents(second));
    let gone: Vec<_> = first.difference(&second).collect();
    assert!(gone.len() == 1 && gone[0].contains("name: migration-config"), "{gone:?}");
    assert_eq!(second.difference(&first).filter(|document| !document.is_empty()).count(), 0);
}

#[test]
fn the_schema_for_editors_takes_what_the_program_takes() {
    if !available(&["kubernetes-validate"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let schema = write("schema.json", run(&["generate", "schema"]).expect(0));
    let good: Vec<PathBuf> = configurations()
        .iter()
        .enumerate()
        .map(|(number, (name, text))| write(&format!("{number}-{}", name.replace('/', "-")), text))
        .collect();
    let wrong = [
        "servces: []",
        "services: [{name: a, mode: prxy}]",
        "listen: 5",
        "services: [{name: a, timeouts: {conect: 1s}}]",
    ];
    let wrong: Vec<PathBuf> =
        wrong.iter().enumerate().map(|(number, text)| write(&format!("wrong-{number}.yaml"), text)).collect();
    // The Python that the other program was installed with has the modules.
    let python = find("kubernetes-validate").unwrap().with_file_name("python3");
    let refused = |files: &[PathBuf]| {
        let mut command = Command::new(&python);
        command.arg(root("tests/deploy/schema.py")).arg(&schema).args(files);
        succeed(command).stdout
    };

    assert_eq!(refused(&good), "");
    let shown = refused(&wrong);
    for file in wrong {
        assert!(shown.contains(&*file.to_string_lossy()), "{} is accepted", file.display());
    }
}

#[test]
fn what_import_writes_passes_check_and_generate() {
    let directory = TempDir::new().unwrap();
    let mut found = Vec::new();
    files(&root("tests/golden/import"), &mut found);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    assert!(found.len() >= 15);
    for manifest in found {
        let manifest = manifest.to_string_lossy().into_owned();
        let imported = run(&["import", "-f", &manifest]);
        let unmapped = imported.stderr.lines().filter(|line| line.contains(": unmapped: ")).count();
        let text = imported.expect(if unmapped == 0 { 0 } else { 4 });
        let file = directory.path().join("migration.yaml").to_string_lossy().into_owned();
        fs::write(&file, text).unwrap();

        run(&["check", &file]).expect(0);
        run(&["generate", "k8s", "-c", &file]).expect(0);
    }
}

#[test]
fn import_says_where_it_found_what_it_cannot_map() {
    let manifest = root("tests/golden/import/old-cluster.yaml").to_string_lossy().into_owned();

    let imported = run(&["import", "-f", &manifest, "--new-domain", "kong.example"]);

    let text = imported.expect(4);
    assert!(text.contains("new_host: bills.kong.example\n"), "{text}");
    let place = format!("{manifest}:19:9: unmapped: Ingress shop-old/orders: auth-url: ");
    assert!(imported.stderr.contains(&place), "{}", imported.stderr);
    let json = run(&["import", "--json", "-f", &manifest]).json();
    assert!(json["notes"].as_array().is_some_and(|notes| notes.iter().any(|note| note["line"] == 19)), "{json}");

    let nothing = root("tests/deploy/alerts.test.yaml").to_string_lossy().into_owned();
    let refused = run(&["import", "-f", &nothing]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
    run(&["import"]).expect(2);
    run(&["import", "-f", "/nonexistent.yaml"]).expect(1);
    let directory = TempDir::new().unwrap();
    let large = directory.path().join("all.yaml");
    fs::File::create(&large).unwrap().set_len(9 << 20).unwrap();
    let refused = run(&["import", "-f", &large.to_string_lossy()]);
    assert!(refused.code == Some(1) && refused.stderr.contains("split it"), "{refused:?}");
}

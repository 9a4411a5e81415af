//! Writes the manifests that a configuration needs. The files in `k8s/` are the templates: what differs from cluster to
//! cluster stands there as an example value that means only that, and is replaced by text. What differs from configuration
//! to configuration is made here. So the shipped files are, byte for byte, the output for the shipped configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::config::{Authority, Config, HostPattern, Service};

/// The ConfigMap of the shipped example.
pub const SHIPPED: &str = include_str!("../../k8s/base/configmap.yaml");

/// The shipped namespace, which is also the one of the first service's old backend.
const NAMESPACE: &str = "aibang-1111111111-bbdm";

const TLS_SECRET: &str = "old-host-tls";

const EXTERNAL: &str = "new-cluster-proxy";

/// A value of `--set`.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name.
    pub key: &'static str,
    /// What it stands for.
    pub about: &'static str,
    /// How it stands in the templates; `{}` is the value.
    pattern: &'static str,
    /// The value of the templates.
    shipped: &'static str,
}

/// Every value of `--set`.
pub const SETTINGS: [Setting; 9] = [
    setting("image", "the image with its tag", "image: {}", "migration-proxy:0.1.0"),
    setting("trusted_proxies", "the pods of the old Ingress, as CIDR", "trusted_proxies: [\"{}\"]", "10.244.0.0/16"),
    setting("new_cidr", "the load balancer of the new cluster, as CIDR", "cidr: {}", "203.0.113.0/24"),
    setting("api_server_cidr", "the API server, as CIDR", "cidr: {}", "10.96.0.1/32"),
    setting("dns_cidr", "the node-local DNS cache, as CIDR", "cidr: {}", "169.254.20.10/32"),
    setting("ingress_namespace", "where the old Ingress runs", "kubernetes.io/metadata.name: {}", "ingress-nginx"),
    setting("monitoring_namespace", "where Prometheus runs", "kubernetes.io/metadata.name: {}", "monitoring"),
    setting("min_replicas", "replicas at least", "minReplicas: {}", "2"),
    setting("max_replicas", "replicas at most", "maxReplicas: {}", "6"),
];

const fn setting(key: &'static str, about: &'static str, pattern: &'static str, shipped: &'static str) -> Setting {
    Setting { key, about, pattern, shipped }
}

/// What differs from cluster to cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where everything lives.
    pub namespace: Option<String>,
    /// The Secret with the certificate of the old hosts.
    pub tls_secret: Option<String>,
    /// Settings by their key.
    pub set: BTreeMap<&'static str, String>,
}

/// A file: where it belongs below the output directory, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// With slashes.
    pub path: &'static str,
    /// All of it.
    pub text: String,
}

/// What is generated from: the checked configuration and its text, as written, without a manifest around it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'s> {
    /// What the text says.
    pub config: &'s Config,
    /// The text.
    pub text: &'s str,
}

/// A template.
macro_rules! shipped {
    ($path:literal) => {
        ($path, include_str!(concat!("../../k8s/", $path)))
    };
}

/// In the order in which they are applied.
const BASE: [(&str, &str); 9] = [
    shipped!("base/configmap.yaml"),
    shipped!("base/state.yaml"),
    shipped!("base/rbac.yaml"),
    shipped!("base/deployment.yaml"),
    shipped!("base/service.yaml"),
    shipped!("base/external-service.yaml"),
    shipped!("base/poddisruptionbudget.yaml"),
    shipped!("base/horizontalpodautoscaler.yaml"),
    shipped!("base/networkpolicy.yaml"),
];

const ALERTS: (&str, &str) = shipped!("monitoring/alerts.yaml");
const DASHBOARD: (&str, &str) = shipped!("monitoring/dashboard.json");

/// What a kustomize tree has besides the base.
const TREE: [(&str, &str); 15] = [
    shipped!("kustomization.yaml"),
    shipped!("base/kustomization.yaml"),
    shipped!("ingress-patch.yaml"),
    shipped!("monitoring/kustomization.yaml"),
    shipped!("monitoring/servicemonitor.yaml"),
    ALERTS,
    shipped!("overlays/file-state/kustomization.yaml"),
    shipped!("overlays/tls/kustomization.yaml"),
    shipped!("overlays/tls/migration.yaml"),
    shipped!("overlays/mtls/kustomization.yaml"),
    shipped!("overlays/mtls/migration.yaml"),
    shipped!("overlays/redirect/kustomization.yaml"),
    shipped!("overlays/redirect/migration.yaml"),
    shipped!("overlays/fixed-ip/kustomization.yaml"),
    shipped!("overlays/fixed-ip/migration.yaml"),
];

/// Everything that `kubectl apply` needs, a file each.
pub fn k8s(source: Source<'_>, options: &Options) -> Vec<File> {
    BASE.iter().map(|&(path, shipped)| base(path, &with_values(shipped, options), source, options)).collect()
}

/// The kustomize tree: base, monitoring and overlays.
pub fn kustomize(source: Source<'_>, options: &Options) -> Vec<File> {
    let rest =
        TREE.iter().chain([&DASHBOARD]).map(|&(path, shipped)| File { path, text: with_values(shipped, options) });
    let mut files: Vec<File> = k8s(source, options).into_iter().chain(rest).collect();
    files.sort_by_key(|file| file.path);
    files
}

/// The alerts.
pub fn alerts(options: &Options) -> File {
    File { path: ALERTS.0, text: with_values(ALERTS.1, options) }
}

/// The Grafana dashboard.
pub fn dashboard() -> File {
    File { path: DASHBOARD.0, text: DASHBOARD.1.to_owned() }
}

/// An Ingress for each service, which sends the old hosts to the proxy; TLS stays where it is.
pub fn ingress(source: Source<'_>, options: &Options) -> File {
    let documents: Vec<String> = source.config.services.iter().map(|service| ingress_of(service, options)).collect();
    File { path: "ingress.yaml", text: documents.join("---\n") }
}

/// The shipped ConfigMap for this cluster.
pub fn shipped(options: &Options) -> String {
    with_values(SHIPPED, options)
}

/// A template of this cluster with what the configuration says; nothing of the configuration itself is replaced.
fn base(path: &'static str, template: &str, source: Source<'_>, options: &Options) -> File {
    let services = &source.config.services;
    let text = match path {
        "base/configmap.yaml" => config_map(template, source.text),
        "base/external-service.yaml" => external_services(template, services, options.namespace()),
        "base/networkpolicy.yaml" => old_backends(template, services, options.namespace()),
        _ => template.to_owned(),
    };
    File { path, text }
}

/// A template with the values of the cluster.
fn with_values(template: &str, options: &Options) -> String {
    let mut text = template.to_owned();
    for (key, value) in &options.set {
        for setting in SETTINGS.iter().filter(|setting| setting.key == *key) {
            let written = |value: &str| setting.pattern.replace("{}", value);
            text = text.replace(&written(setting.shipped), &written(value));
        }
    }
    text = text.replace(TLS_SECRET, options.tls_secret());
    for key in ["namespace: ", "kubernetes.io/metadata.name: ", "kubectl -n "] {
        text = text.replace(&format!("{key}{NAMESPACE}"), &format!("{key}{}", options.namespace()));
    }
    text
}

impl Options {
    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(NAMESPACE)
    }

    fn tls_secret(&self) -> &str {
        self.tls_secret.as_deref().unwrap_or(TLS_SECRET)
    }
}

/// The shipped ConfigMap with another file in it.
fn config_map(shipped: &str, text: &str) -> String {
    const KEY: &str = "  migration.yaml: |\n";
    let head = shipped.find(KEY).map_or(shipped, |at| &shipped[..at + KEY.len()]);
    let mut out = head.to_owned();
    // Without it the indentation of a first line would be taken for that of all.
    let is_indented = |line: &str| line.starts_with(' ');
    if text.lines().find(|line| !line.trim().is_empty()).is_some_and(is_indented) {
        out.truncate(out.trim_end().len());
        out.push_str("2\n");
    }
    for line in text.trim_end().lines() {
        if !line.is_empty() {
            out.push_str("    ");
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// One ExternalName for each new host; the first has the plain name.
fn external_services(shipped: &str, services: &[Service], namespace: &str) -> String {
    let comment = shipped.lines().next().unwrap_or_default();
    let mut hosts = BTreeSet::new();
    let new = services.iter().filter(|service| hosts.insert(&service.new_host));
    let documents = new.enumerate().map(|(index, service)| {
        let name = if index == 0 { EXTERNAL.to_owned() } else { format!("{EXTERNAL}-{}", service.name) };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels:\n    \
             app: migration-proxy\nspec:\n  type: ExternalName\n  externalName: {}\n  ports:\n    - name: https\n      \
             port: {}\n",
            service.new_host,
            service.new_backend.port()
        )
    });
    format!("{comment}\n{}", documents.collect::<Vec<_>>().join("---\n"))
}

/// The policy with the ports of the old backends, by the namespace or the address that they are in.
fn old_backends(shipped: &str, services: &[Service], namespace: &str) -> String {
    const BEGIN: &str = "    - to: # the old backends\n";
    const END: &str = "    - to: # the new cluster\n";
    let Some((before, (_, after))) =
        shipped.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?)))
    else {
        return shipped.to_owned();
    };
    let mut peers: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for backend in services.iter().flat_map(|service| &service.old_backend) {
        peers.entry(peer(backend, namespace)).or_default().insert(backend.port());
    }
    let mut rules = String::new();
    for (peer, ports) in peers {
        rules.push_str(BEGIN);
        rules.push_str(&peer);
        rules.push_str("      ports:\n");
        for port in ports {
            // Writing to a String never fails.
            let _ = writeln!(rules, "        - port: {port}");
        }
    }
    format!("{before}{rules}{END}{after}")
}

/// Whom a policy allows so that a backend can be reached.
fn peer(backend: &Authority, own: &str) -> String {
    if let Ok(address) = backend.host().parse::<IpAddr>() {
        let length = if address.is_ipv4() { 32 } else { 128 };
        return format!("        - ipBlock:\n            cidr: {address}/{length}\n");
    }
    // service.namespace.svc…; a bare service is in the proxy's own namespace.
    let mut labels = backend.host().split('.').skip(1);
    let namespace = labels.next().unwrap_or(own);
    if !matches!(labels.next(), None | Some("svc")) {
        return "        - ipBlock:\n            cidr: 0.0.0.0/0 # a name outside of the cluster: write its network\n"
            .to_owned();
    }
    format!(
        "        - namespaceSelector:\n            matchLabels:\n              kubernetes.io/metadata.name: {namespace}\n"
    )
}

fn ingress_of(service: &Service, options: &Options) -> String {
    let mut hosts = String::new();
    let mut rules = String::new();
    for host in &service.old_host {
        let host = match host {
            HostPattern::Exact(host) => host.to_string(),
            HostPattern::Wildcard(suffix) => format!("\"*.{suffix}\""),
        };
        let _ = writeln!(hosts, "        - {host}");
        let _ = write!(
            rules,
            "    - host: {host}\n      http:\n        paths:\n          - path: /\n            pathType: Prefix\n            \
             backend:\n              service:\n                name: migration-proxy\n                port:\n                  \
             number: 80\n"
        );
    }
    let (namespace, secret) = (options.namespace(), options.tls_secret());
    format!(
        "# In the place of the Ingress that serves these hosts today.\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  \
         name: {}\n  namespace: {namespace}\n  labels:\n    app: migration-proxy\nspec:\n  ingressClassName: nginx\n  tls:\n    \
         - hosts:\n{hosts}      secretName: {secret}\n  rules:\n{rules}",
        scalar(&service.name)
    )
}

/// A name that YAML takes for a text whatever it looks like.
fn scalar(name: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase()) && !WORDS.contains(&name);
    if is_plain { name.to_owned() } else { format!("\"{name}\"") }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::{Environment, Text, parse};

    fn with<T>(text: &str, read: impl FnOnce(Source<'_>) -> T) -> T {
        let text = Text::new("migration.yaml", text);
        let config = parse(&text, &Environment::new()).unwrap().config;
        read(Source { config: &config, text: text.body() })
    }

    fn shipped_text() -> String {
        let body = SHIPPED.split_once("migration.yaml: |\n").unwrap().1;
        body.lines().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    const TWO: &str = "
services:
  - {name: a, old_host: [a.old.example, '*.a.example'], old_backend: a.team.svc.cluster.local:8080, new_host: a.new.example}
  - {name: b, old_host: b.old.example, old_backend: ['10.0.0.7:81', 'b:82'], new_host: b.new.example}
";

    #[test]
    fn the_shipped_files_are_the_output_for_the_shipped_configuration() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s");
        let files = with(&shipped_text(), |source| kustomize(source, &Options::default()));

        for file in &files {
            assert_eq!(fs::read_to_string(root.join(file.path)).unwrap(), file.text, "{}", file.path);
        }
        let named: BTreeSet<&str> = files.iter().map(|file| file.path).collect();
        assert_eq!(named.len(), files.len(), "each file once");
    }

    #[test]
    fn every_setting_stands_in_the_templates() {
        let all: String = BASE.iter().map(|(_, text)| *text).collect();
        for setting in SETTINGS {
            let written = setting.pattern.replace("{}", setting.shipped);
            assert!(all.contains(&written), "{} is nowhere", setting.key);
        }
        assert!(
            all.contains(concat!("image: migration-proxy:", env!("CARGO_PKG_VERSION"))),
            "the image of this version"
        );
    }

    #[test]
    fn the_values_of_a_cluster_take_the_place_of_the_examples() {
        let set = SETTINGS.iter().map(|setting| (setting.key, "VALUE".to_owned())).collect();
        let options = Options { namespace: Some("team".to_owned()), tls_secret: Some("tls".to_owned()), set };

        let files = with(TWO, |source| kustomize(source, &options));

        let base: String = files.iter().filter(|file| file.path.starts_with("base/")).map(|file| &*file.text).collect();
        for setting in SETTINGS {
            // The configuration is the operator's own.
            assert!(
                setting.key == "trusted_proxies" || base.contains(&setting.pattern.replace("{}", "VALUE")),
                "{}",
                setting.key
            );
            assert!(!base.contains(&setting.pattern.replace("{}", setting.shipped)), "{}", setting.key);
        }
        for file in files {
            assert!(!file.text.contains(&format!("namespace: {NAMESPACE}")), "{}", file.path);
            assert!(!file.text.contains(TLS_SECRET), "{}", file.path);
        }
    }

    #[test]
    fn the_configuration_decides_names_ports_and_hosts() {
        let (files, ingress) =
            with(TWO, |source| (k8s(source, &Options::default()), ingress(source, &Options::default())));
        let text = |path: &str| &files.iter().find(|file| file.path == path).unwrap().text;

        assert!(text("base/configmap.yaml").ends_with("new_host: b.new.example}\n"), "{}", text("base/configmap.yaml"));
        for part in ["name: new-cluster-proxy\n", "name: new-cluster-proxy-b\n", "externalName: b.new.example\n"] {
            assert!(text("base/external-service.yaml").contains(part), "{part}");
        }
        for part in [
            "metadata.name: team\n      ports:\n        - port: 8080\n",
            "cidr: 10.0.0.7/32\n      ports:\n        - port: 81\n",
            "- port: 82\n",
        ] {
            assert!(text("base/networkpolicy.yaml").contains(part), "{part} in {}", text("base/networkpolicy.yaml"));
        }
        for part in ["host: a.old.example\n", "host: \"*.a.example\"\n", "name: b\n", "secretName: old-host-tls\n"] {
            assert!(ingress.text.contains(part), "{part} in {}", ingress.text);
        }
    }

    #[test]
    fn nothing_of_the_configuration_itself_is_replaced() {
        let text = "    # indented\nservices:\n  - {name: 'true', old_host: a.old.example, old_backend: \
                    api.aibang-1111111111-bbdm.svc.cluster.local:80, new_host: a.new.example, canary: {ip_rules: \
                    [{cidr: 203.0.113.0/24, target: new_cluster}], header_rules: [{header: X, value: old-host-tls, \
                    target: new_cluster}]}}\n";
        let set = SETTINGS.iter().map(|setting| (setting.key, "VALUE".to_owned())).collect();
        let options = Options { namespace: Some("team".to_owned()), tls_secret: Some("tls".to_owned()), set };

        let (files, ingress) = with(text, |source| (k8s(source, &options), ingress(source, &options)));

        let of = |path: &str| &files.iter().find(|file| file.path == path).unwrap().text;
        let again = crate::config::without_manifest(&Text::new("configmap.yaml", of("base/configmap.yaml").as_str()));
        assert_eq!(again, text);
        let backend = format!("kubernetes.io/metadata.name: {NAMESPACE}\n      ports:\n        - port: 80\n");
        assert!(of("base/networkpolicy.yaml").contains(&backend), "{}", of("base/networkpolicy.yaml"));
        assert!(ingress.text.contains("name: \"true\"\n  namespace: team\n"), "{}", ingress.text);
    }
}

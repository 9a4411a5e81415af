//! What no type can catch: names and hosts claimed twice, and settings that work but hardly as meant.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use super::decode::{Path, Problems};
use super::expand::Mappings;
use super::model::*;
use super::problem::Place;
use super::service::Draft;
use super::tree::Node;
use super::units::{HostPattern, Percent};
use super::values::Wrong;

/// Names and hosts of the services so far.
#[derive(Default)]
pub(super) struct Claims {
    names: HashMap<String, u32>,
    hosts: HashMap<HostPattern, (String, u32)>,
}

impl Claims {
    /// Adds a service and reports what another one has claimed already.
    pub(super) fn add(&mut self, problems: &mut Problems, draft: &Draft, node: &Node, path: &Path<'_>) {
        let name = &draft.service.name;
        if !name.is_empty() {
            let place = node.get("name").map_or(node.place, |node| node.place);
            match self.names.get(name) {
                Some(line) => {
                    let wrong = Wrong::new(format!("duplicate name \"{name}\", first given in line {line}"));
                    problems.error(place, &path.key("name"), wrong.help("a name belongs to one service"));
                }
                None => drop(self.names.insert(name.clone(), place.line)),
            }
        }
        for (place, host) in &draft.hosts {
            match self.hosts.get(host) {
                Some((owner, line)) => {
                    let wrong =
                        Wrong::new(format!("duplicate host \"{host}\", first claimed in line {line} by \"{owner}\""));
                    problems.error(*place, &path.key("old_host"), wrong.help("a host belongs to one service"));
                }
                None => drop(self.hosts.insert(host.clone(), (name.clone(), place.line))),
            }
        }
    }
}

/// Reports mappings that belong to no service.
pub(super) fn mappings(problems: &mut Problems, mappings: &Mappings, services: &[Service]) {
    if mappings.hosts.is_empty() {
        return;
    }
    let known: HashSet<&str> = services.iter().map(|service| service.new_host.as_str()).collect();
    for (place, host) in &mappings.hosts {
        if !known.contains(host.as_str()) {
            let wrong = Wrong::new(format!("the mapping for {host} belongs to no service"));
            problems.warn(*place, &Path::TOP.key("service_mappings"), wrong.help("no service has it as new_host"));
        }
    }
}

/// Reports what works, but hardly as meant, in one service.
pub(super) fn service(problems: &mut Problems, service: &Service, node: &Node, path: &Path<'_>, listen: &Listen) {
    let mut report = Report { problems, node, path };
    migration(&mut report, service);
    canary(&mut report, &service.canary);
    if listen.trusted_proxies.is_empty() {
        own_networks(&mut report, &service.canary);
    }
    if !service.paths.is_empty() {
        let message = "paths are compared as raw bytes: %2e and // in a request pass them by, to old";
        report.warn(&["paths"], message, None);
    }
    if matches!(service.redirect_code, 301 | 302) {
        let message = format!("clients turn POST into GET when they follow a {}", service.redirect_code);
        report.warn(&["redirect", "code"], &message, Some("307 and 308 keep the method"));
    }
    let new = &service.new;
    let sni = new.sni.as_deref().unwrap_or(&service.new_host);
    let host = new.host_header.as_deref().unwrap_or(&service.new_host);
    if new.protocol == Protocol::Https && !without_port(host).eq_ignore_ascii_case(sni) {
        let key = if new.host_header.is_some() { "host_header" } else { "sni" };
        let message = format!("Host \"{host}\" is not the TLS server name \"{sni}\": many gateways answer 421");
        report.warn(&["new", key], &message, None);
    }
    if service.mode == Mode::Passthrough {
        passthrough(&mut report, service, listen);
    }
    health_check(&mut report, &service.health_check);
    for (key, cluster) in [("old", &service.old), ("new", &service.new)] {
        if !cluster.verify {
            let message = format!(
                "service {}: certificates of {key} are not verified: anybody on the way can read and change requests",
                service.name
            );
            report.warn(&[key, "verify"], &message, None);
        }
    }
}

/// A connection that is relayed as it is shows its client's address and a server name, and nothing else.
fn passthrough(report: &mut Report<'_>, service: &Service, listen: &Listen) {
    if listen.https.is_empty() {
        let message = "passthrough needs a TLS listener, and listen.https is empty";
        report.error(&["mode"], message, "write listen.https: [\"0.0.0.0:8443\"]");
    }
    let (canary, migration) = (&service.canary, &service.migration);
    for (key, is_used) in
        [("header_rules", !canary.header_rules.is_empty()), ("cookie_rules", !canary.cookie_rules.is_empty())]
    {
        if is_used {
            let message = "passthrough relays TLS unread: these rules never match";
            report.warn(&["canary", key], message, Some("ip_rules do"));
        }
    }
    let reads_heads = |sticky: &Sticky| sticky.by.iter().any(|source| source.kind != KeyKind::ClientIp);
    if migration.sticky.as_ref().is_some_and(reads_heads) {
        let message = "passthrough relays TLS unread: only the key client_ip is ever present";
        report.warn(&["migration", "sticky", "by"], message, Some("write by: [client_ip]"));
    }
    for (keys, is_used) in
        [(&["paths"][..], !service.paths.is_empty()), (&["migration", "methods"], !migration.methods.is_empty())]
    {
        if is_used {
            let message = "passthrough relays TLS unread: no connection is known to be in scope, and all stay on old";
            report.warn(keys, message, Some("leave the key out"));
        }
    }
}

fn health_check(report: &mut Report<'_>, check: &HealthCheck) {
    if !check.enabled {
        return;
    }
    if check.timeout > check.interval {
        let message = format!("a check every {:?} may take {:?}: silence shows later", check.interval, check.timeout);
        report.warn(&["health_check", "interval"], &message, Some("a timeout within the interval"));
    }
    if check.path.is_empty() && check.expect != HealthCheck::default().expect {
        let message = "without a path nothing is asked, so no status is compared";
        report.warn(&["health_check", "expect"], message, Some("add path: /healthz, or leave it out"));
    }
}

fn without_port(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn migration(report: &mut Report<'_>, service: &Service) {
    let migration = &service.migration;
    let partial = migration.percentage > Percent::ZERO && migration.percentage < Percent::HUNDRED;
    match migration.strategy {
        Strategy::Weight if partial && migration.enabled && migration.sticky.is_none() => {
            let message = "without migration.sticky each request is drawn on its own: users change cluster";
            report.warn(&["migration", "percentage"], message, None);
        }
        Strategy::RulesOnly if migration.percentage > Percent::ZERO => {
            let message = "the percentage does not count: this strategy uses rules only";
            report.warn(&["migration", "percentage"], message, Some("strategy: weight uses rules and the percentage"));
        }
        Strategy::Weight | Strategy::RulesOnly => {}
    }
}

fn canary(report: &mut Report<'_>, canary: &Canary) {
    if canary.only_from.is_empty() {
        let message = "canary.only_from is empty: anybody who sends it may choose new";
        if canary.header_rules.iter().any(|rule| rule.target == Cluster::New) {
            report.warn(&["canary", "header_rules"], message, None);
        } else if canary.cookie_rules.iter().any(|rule| rule.target == Cluster::New) {
            report.warn(&["canary", "cookie_rules"], message, None);
        }
    }
    let mut targets = HashMap::with_capacity(canary.ip_rules.len());
    for (index, rule) in canary.ip_rules.iter().enumerate() {
        if *targets.entry(rule.network).or_insert(rule.target) != rule.target {
            let wrong = Wrong::new(format!("two rules send {} to different clusters", rule.network));
            report.at_rule(index, canary.ip_rules.len(), |problems, place, path| problems.error(place, path, wrong));
        }
    }
}

/// Without trusted proxies every client behind an Ingress has the Ingress' address.
fn own_networks(report: &mut Report<'_>, canary: &Canary) {
    for (index, rule) in canary.ip_rules.iter().enumerate() {
        if holds_pods(&rule.network) {
            let wrong = Wrong::new(format!(
                "ip_rules {} also contains your Ingress pods and listen.trusted_proxies is empty: every request would match",
                rule.network
            ));
            report.at_rule(index, canary.ip_rules.len(), |problems, place, path| problems.warn(place, path, wrong));
        }
    }
}

/// Whether a network is so large a part of the private ranges that the pods of a cluster are probably inside.
fn holds_pods(network: &IpNet) -> bool {
    let overlaps = |range: &str, most: u8| {
        let range: Option<IpNet> = range.parse().ok();
        range.is_some_and(|range| network.contains(&range) || (range.contains(network) && network.prefix_len() <= most))
    };
    match network {
        IpNet::V4(_) => {
            ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"].iter().any(|range| overlaps(range, 16))
        }
        IpNet::V6(_) => overlaps("fc00::/7", 56),
    }
}

struct Report<'r> {
    problems: &'r mut Problems,
    node: &'r Node,
    path: &'r Path<'r>,
}

impl Report<'_> {
    /// A warning at the value of these keys, or at the last of them that is there.
    fn warn(&mut self, keys: &[&str], message: &str, help: Option<&str>) {
        let place = (1..=keys.len()).rev().find_map(|end| self.node.find(&keys[..end])).unwrap_or(self.node).place;
        let mut wrong = Some(Wrong { message: message.to_owned(), help: help.map(str::to_owned) });
        with_keys(self.path, keys, &mut |path| {
            if let Some(wrong) = wrong.take() {
                self.problems.warn(place, path, wrong);
            }
        });
    }

    fn error(&mut self, keys: &[&str], message: &str, help: &str) {
        let place = self.node.find(keys).unwrap_or(self.node).place;
        let mut wrong = Some(Wrong::new(message).help(help));
        with_keys(self.path, keys, &mut |path| {
            if let Some(wrong) = wrong.take() {
                self.problems.error(place, path, wrong);
            }
        });
    }

    /// At the network of a rule; rules that were refused make the places unknown.
    fn at_rule(&mut self, index: usize, rules: usize, report: impl FnOnce(&mut Problems, Place, &Path<'_>)) {
        let Some(node) = self.node.find(&["canary", "ip_rules"]) else { return };
        let items = match &node.value {
            super::tree::Value::List(items) if items.len() == rules => items,
            _ => return,
        };
        let place = items[index].get("cidr").map_or(items[index].place, |node| node.place);
        let (canary, key) = (self.path.key("canary"), "ip_rules");
        let rules = canary.key(key);
        report(self.problems, place, &rules.index(index).key("cidr"));
    }
}

fn with_keys(path: &Path<'_>, keys: &[&str], report: &mut dyn FnMut(&Path<'_>)) {
    match keys.split_first() {
        Some((key, rest)) => with_keys(&path.key(key), rest, report),
        None => report(path),
    }
}

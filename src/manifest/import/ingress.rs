//! The rules of an Ingress, and the locations of an nginx configuration, as routes.

use std::rc::Rc;

use super::Route;
use super::annotations::{self, Settings};
use super::backends::{Backends, Target, is_inside};
use super::nginx::Location;
use super::note::{Notes, Origin};
use super::objects::{Object, items, shown, text};
use super::paths::{self, Matching};
use crate::config;
use crate::config::tree::Node;

/// Every route of an Ingress.
pub(super) fn routes(ingress: &Object, backends: &Backends, notes: &mut Notes) -> Vec<Route> {
    let settings = Rc::new(annotations::read(ingress, notes));
    let spec = |key: &str| ingress.node.find(&["spec", key]);
    for key in ["defaultBackend", "backend"] {
        if let Some(backend) = spec(key) {
            let message = format!(
                "{key}: requests for no host or path of the rules stay at the old Ingress; a service needs a host"
            );
            notes.warn(&ingress.origin.at(backend.place), message);
        }
    }
    if let Some(tls) = spec("tls") {
        notes
            .note(&ingress.origin.at(tls.place), "tls: certificates stay at the old Ingress, which goes on ending TLS");
    }
    let rules = items(&ingress.node, &["spec", "rules"]);
    if rules.is_empty() {
        notes.unmapped(&ingress.origin, "this Ingress has no rules, so there is no host for a service");
    }
    // They belong to the first host.
    let mut aliases = aliases(&settings, ingress, notes);
    let mut found = Vec::new();
    for rule in rules {
        let Some(host) = host(rule, ingress, notes) else { continue };
        let aliases = std::mem::take(&mut aliases);
        let paths = items(rule, &["http", "paths"]);
        if paths.is_empty() {
            notes.unmapped(
                &ingress.origin.at(rule.first_key()),
                "this rule has no paths, so there is no backend; it is left out",
            );
        }
        for path in paths {
            let elsewhere = elsewhere(&settings, &host);
            let Some((pattern, target)) = route(path, ingress, elsewhere, backends, notes) else { continue };
            found.push(Route {
                host: host.clone(),
                aliases: aliases.clone(),
                path: pattern,
                matching: matching(path, ingress, notes),
                target,
                namespace: ingress.namespace.clone(),
                settings: settings.clone(),
                origin: ingress.origin.at(path.first_key()),
            });
        }
    }
    found
}

/// The host of a rule.
fn host(rule: &Node, ingress: &Object, notes: &mut Notes) -> Option<String> {
    let Some(node) = rule.get("host") else {
        let message = "this rule has no host, so it takes every host; a service needs the names: it is left out";
        notes.unmapped(&ingress.origin.at(rule.first_key()), message);
        return None;
    };
    match config::host_pattern(node.text().unwrap_or_default()) {
        Ok(pattern) => Some(pattern.to_string()),
        Err(message) => {
            notes.unmapped(&ingress.origin.at(node.place), format!("{message}; it is left out"));
            None
        }
    }
}

/// The other names of an Ingress's hosts.
fn aliases(settings: &Settings, ingress: &Object, notes: &mut Notes) -> Vec<String> {
    let mut found = Vec::new();
    for alias in &settings.aliases {
        match config::host_pattern(alias) {
            Ok(pattern) => found.push(pattern.to_string()),
            Err(message) => notes.unmapped(&ingress.origin, format!("server-alias: {message}; it is left out")),
        }
    }
    found
}

/// The host that the backend is told of when that is not the old one.
fn elsewhere<'s>(settings: &'s Settings, old: &str) -> Option<&'s str> {
    let host = settings.host_header.as_deref().or(settings.server_name.as_deref())?;
    let is_new = config::host_name(host).is_ok() && !is_inside(host) && host != old;
    is_new.then_some(host)
}

/// How one entry of `paths` compares its path.
fn matching(path: &Node, ingress: &Object, notes: &mut Notes) -> Matching {
    let kind = path.get("pathType");
    let origin = ingress.origin.at(kind.map_or(path.first_key(), |node| node.place));
    let pattern = text(path, &["path"]).unwrap_or("/");
    if !pattern.starts_with(['/', '^']) {
        let message = format!("path {}: it does not begin with /, so no request has it", shown(pattern));
        notes.warn(&ingress.origin.at(path.first_key()), message);
    }
    let said = match kind.and_then(Node::text) {
        Some("Exact") => return Matching::Exact,
        Some("Prefix") => return Matching::Prefix,
        // Of a regular expression more is said elsewhere.
        None | Some("ImplementationSpecific") if pattern == "/" || !paths::is_plain(pattern) => return Matching::Text,
        Some("ImplementationSpecific") => "pathType ImplementationSpecific is".to_owned(),
        None => "without pathType it is".to_owned(),
        Some(other) => {
            let message = format!("path {}: pathType {} is not known; Prefix is meant", shown(pattern), shown(other));
            notes.warn(&origin, message);
            return Matching::Prefix;
        }
    };
    let message =
        format!("path {}: {said} read as ingress-nginx does: every path that begins with this text", shown(pattern));
    notes.note(&origin, message);
    Matching::Text
}

/// The path and the target of one entry of `paths`.
fn route(
    path: &Node,
    ingress: &Object,
    elsewhere: Option<&str>,
    backends: &Backends,
    notes: &mut Notes,
) -> Option<(String, Target)> {
    let origin = ingress.origin.at(path.first_key());
    let pattern = text(path, &["path"]).unwrap_or("/");
    if pattern.contains(['(', '[', '\\', '^', '$', '*', '+', '?', '|']) || pattern.contains(".*") {
        let message = format!(
            "path {}: a regular expression goes on being matched by the old Ingress; in a service it would be under paths, \
             anchored at both ends",
            shown(pattern)
        );
        notes.warn(&origin.at(path.get("path").map_or(path.place, |node| node.place)), message);
    }
    let Some(backend) = path.get("backend") else {
        notes.unmapped(&origin, format!("path {}: it has no backend; it is left out", shown(pattern)));
        return None;
    };
    // The older form of the API has serviceName and servicePort.
    let name = text(backend, &["service", "name"]).or_else(|| text(backend, &["serviceName"]));
    let Some(name) = name else {
        let message = format!(
            "path {}: its backend is no Service, so nothing can be forwarded there; it is left out",
            shown(pattern)
        );
        notes.unmapped(&ingress.origin.at(backend.place), message);
        return None;
    };
    let port = text(backend, &["service", "port", "number"])
        .or_else(|| text(backend, &["service", "port", "name"]))
        .or_else(|| text(backend, &["servicePort"]));
    let place = ingress.origin.at(backend.place);
    let wanted = (&*ingress.namespace, name, port.unwrap_or_default());
    let target = backends.resolve(wanted, elsewhere, &place, notes);
    if let Target::Old(names) | Target::Addresses(names) = &target
        && let Some(Err(message)) = names.iter().map(|name| config::authority(name)).find(Result::is_err)
    {
        notes.unmapped(&place, format!("{message}; it is left out"));
        return None;
    }
    Some((pattern.to_owned(), target))
}

/// The routes of a location: one for each of its backends.
pub(super) fn of_location(location: &Location, namespace: &str, origin: &Origin, notes: &mut Notes) -> Vec<Route> {
    let mut found = Vec::new();
    let mut targets: Vec<(Target, &str)> = Vec::new();
    for (scheme, authority) in &location.backends {
        let usual = if scheme == "https" { 443 } else { 80 };
        let written = match authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            true => authority.clone(),
            false => format!("{authority}:{usual}"),
        };
        let parsed = match config::authority(&written) {
            Ok(parsed) => parsed,
            Err(message) => {
                notes.unmapped(origin, format!("{message}; it is left out"));
                continue;
            }
        };
        let is_name = parsed.socket_address().is_none();
        let is_new = is_name && !is_inside(parsed.host()) && (scheme == "https" || parsed.port() == 443);
        let target = match is_new {
            true => Target::Name(parsed.host().to_owned(), parsed.port()),
            false => Target::Old(vec![written]),
        };
        targets.push((target, if scheme == "https" { "https" } else { "http" }));
    }
    if targets.is_empty() && location.settings.redirect.is_some() {
        targets.push((Target::Old(Vec::new()), "http"));
    }
    for (target, protocol) in targets {
        let mut settings = location.settings.clone();
        settings.protocol = Some(match protocol {
            "https" => "https",
            _ => "http",
        });
        for host in &location.hosts {
            found.push(Route {
                host: host.clone(),
                aliases: Vec::new(),
                path: location.path.clone(),
                matching: location.matching,
                target: target.clone(),
                namespace: namespace.to_owned(),
                settings: Rc::new(settings.clone()),
                origin: origin.clone(),
            });
        }
    }
    found
}

//! Reads what an old cluster has (Ingress, Service, Endpoints, an nginx configuration or an earlier `migration.yaml`) into
//! a configuration. Whatever has no key, or has one that does something else, is a note with its place: nothing is
//! dropped silently.

mod annotations;
mod backends;
mod draft;
mod emit;
mod entry;
mod ingress;
mod mappings;
mod nginx;
mod note;
mod objects;
mod paths;
mod redirect;

use std::collections::HashSet;
use std::rc::Rc;

use serde::Serialize;

use annotations::Settings;
use backends::{Backends, Target};
use entry::Draft;
use mappings::Mapping;
use note::{Notes, Origin};
use objects::Object;
use paths::Matching;

pub use note::{Note, Weight};

use crate::config::tree::{Node, Value};
use crate::config::{self, Environment, Severity, Text};

/// What the manifests do not say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Behind the first label of an old host: its new host.
    pub new_domain: Option<String>,
    /// For `${NAME}` in a `migration.yaml` that is read.
    pub environment: Environment,
}

/// What was read.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    /// The file; empty when there is no service.
    pub config: String,
    /// How many services it has.
    pub services: usize,
    /// What is to be said about it, in the order of the files.
    pub notes: Vec<Note>,
}

impl Imported {
    /// How many notes tell of something that requests will miss.
    pub fn unmapped(&self) -> usize {
        self.notes.iter().filter(|note| note.weight == Weight::Unmapped).count()
    }
}

/// A host's path and where it leads.
#[derive(Clone, Debug)]
struct Route {
    host: String,
    /// Other names of the same host.
    aliases: Vec<String>,
    path: String,
    matching: Matching,
    target: Target,
    namespace: String,
    settings: Rc<Settings>,
    origin: Origin,
}

/// A `migration.yaml` that was found, as text and as a tree.
struct Written {
    text: String,
    node: Node,
    hosts: HashSet<String>,
    names: HashSet<String>,
    origin: Origin,
}

/// Reads manifests into a configuration.
pub fn import(texts: &[Text], options: &Options) -> Imported {
    let mut notes = Notes::default();
    let objects = objects::read(texts, &mut notes);
    let mut backends = Backends::default();
    for object in &objects {
        if matches!(&*object.kind, "Service" | "Endpoints" | "EndpointSlice") {
            backends.add(object, &mut notes);
        }
    }
    backends.without_service(&mut notes);
    let mut found =
        Found { backends: &backends, options, routes: Vec::new(), written: Vec::new(), mappings: Vec::new() };
    for object in &objects {
        found.object(object, &mut notes);
    }
    let files: Vec<&str> = texts.iter().map(|text| text.name.as_str()).collect();
    let config = found.into_file(&mut notes);
    let services = match config::parse(&Text::new("migration.yaml", config.as_str()), &options.environment) {
        Ok(parsed) => parsed.config.services.len(),
        Err(_) if config.is_empty() => 0,
        // What an annotation holds went in as it was: a header that is none, a broken regular expression.
        Err(error) => {
            let file = texts.first().map(|text| text.name.clone()).unwrap_or_default();
            let origin = Origin { file, ..Origin::default() };
            for problem in error.problems.iter().filter(|problem| problem.severity == Severity::Error) {
                let config::Problem { line, path, message, .. } = problem;
                notes.unmapped(&origin, format!("the configuration has a mistake in line {line}: {path}: {message}"));
            }
            config.matches("\n  - ").count()
        }
    };
    Imported { config, services, notes: notes.into_sorted(&files) }
}

struct Found<'f> {
    backends: &'f Backends,
    options: &'f Options,
    routes: Vec<Route>,
    written: Vec<Written>,
    mappings: Vec<Mapping>,
}

impl Found<'_> {
    fn object(&mut self, object: &Object, notes: &mut Notes) {
        match &*object.kind {
            "Ingress" => self.routes.extend(ingress::routes(object, self.backends, notes)),
            "Service" | "Endpoints" | "EndpointSlice" => {}
            "ConfigMap" => self.config_map(object, notes),
            "migration.yaml" if object.node.get("services").is_none() => {
                self.mappings.extend(mappings::read(&object.node, &object.origin, notes));
            }
            "migration.yaml" => {
                let (above, text) = object.document.clone().unwrap_or_default();
                let origin = |line: u32| object.origin.at(config::Place { line: line + above, column: 1, width: 1 });
                self.written(&text, object.node.clone(), &origin, notes);
            }
            kind => {
                notes.note(&object.origin, format!("a {kind} says nothing about hosts and backends; it is not read"));
            }
        }
    }

    fn config_map(&mut self, object: &Object, notes: &mut Notes) {
        let data = objects::entries(&object.node, &["data"]);
        if data.is_empty() {
            notes.note(&object.origin, "this ConfigMap has no data");
        }
        for entry in objects::entries(&object.node, &["binaryData"]) {
            notes.note(&object.origin.at(entry.key_place), format!("binaryData: {} is not read", entry.key));
        }
        for entry in data {
            let key_origin = object.origin.at(entry.key_place);
            let Value::Scalar(scalar) = &entry.value.value else {
                notes.unmapped(
                    &key_origin,
                    format!("{}: a ConfigMap holds text, and this is {}", entry.key, entry.value.kind()),
                );
                continue;
            };
            let line = |line: u32| object.origin.at(objects::line_inside(scalar, entry.value.place, line));
            let is_file = entry.key.ends_with(".yaml") || entry.key.ends_with(".yml");
            if is_file && (scalar.text.contains("services:") || scalar.text.contains("service_mappings:")) {
                let mut mistakes = Vec::new();
                let node = config::tree::parse(&scalar.text, config::tree::Shift::default(), &mut mistakes);
                match node {
                    Some(node) if node.get("services").is_none() && node.get("service_mappings").is_some() => {
                        self.mappings.extend(mappings::read(&node, &key_origin, notes));
                    }
                    Some(node) => self.written(&scalar.text, node, &line, notes),
                    None => mistakes.iter().for_each(|mistake| {
                        notes.unmapped(&line(mistake.place.line), format!("{}: {}", entry.key, mistake.message));
                    }),
                }
            } else if ["server_name", "proxy_pass", "upstream "].iter().any(|word| scalar.text.contains(word)) {
                for location in nginx::read(&scalar.text, &line, notes) {
                    let origin = line(location.line);
                    self.routes.extend(ingress::of_location(&location, &object.namespace, &origin, notes));
                }
            } else {
                notes.note(
                    &key_origin,
                    format!("{} is neither a migration.yaml nor an nginx configuration; it is not read", entry.key),
                );
            }
        }
    }

    /// A file that is a configuration already.
    fn written(&mut self, text: &str, node: Node, origin: &dyn Fn(u32) -> Origin, notes: &mut Notes) {
        let problems = match config::parse(&Text::new("migration.yaml", text), &self.options.environment) {
            Ok(parsed) => {
                consecutive(&node, origin, notes);
                let hosts = parsed.config.services.iter().flat_map(|service| &service.old_host);
                self.written.push(Written {
                    text: text.to_owned(),
                    hosts: hosts.map(ToString::to_string).collect(),
                    names: parsed.config.services.iter().map(|service| service.name.clone()).collect(),
                    origin: origin(1),
                    node,
                });
                parsed.warnings
            }
            Err(error) => error.problems,
        };
        for problem in problems {
            let help = problem.help.map(|help| format!(": {help}")).unwrap_or_default();
            let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
            let message = format!("{path}{}{help}", problem.message);
            match problem.severity {
                Severity::Error => {
                    notes.unmapped(&origin(problem.line.max(1)), format!("{message}; this file is left out"));
                }
                Severity::Warning => notes.warn(&origin(problem.line.max(1)), message),
            }
        }
    }

    /// The text of the configuration; empty without a service.
    fn into_file(self, notes: &mut Notes) -> String {
        let Self { backends, options, mut routes, written, mappings } = self;
        for written in &written {
            routes.retain(|route| {
                let is_claimed = written.hosts.contains(&route.host);
                if is_claimed {
                    let message =
                        format!("{} is a service of the migration.yaml already, which is kept as it is", route.host);
                    notes.note(&route.origin, message);
                }
                !is_claimed
            });
        }
        let waits = routes.iter().any(|route| route.settings.read.is_none());
        let known: HashSet<&str> = written.iter().flat_map(|written| &written.hosts).map(String::as_str).collect();
        let names = written.iter().flat_map(|written| written.names.iter().cloned()).collect();
        let mut drafts = draft::drafts(&routes, &mappings, backends, options, (&known, names), notes);
        if drafts.is_empty() && written.is_empty() {
            drafts = draft::of_services(backends, options, notes);
        } else {
            for lone in backends.lone() {
                notes.note(&lone.origin, "nothing in these files leads to it");
            }
        }
        match (written.as_slice(), drafts.as_slice()) {
            ([], []) => String::new(),
            ([one], []) => {
                let end = if one.text.ends_with('\n') { "" } else { "\n" };
                format!("{}{end}", one.text)
            }
            _ => joined(&written, &drafts, waits, notes),
        }
    }
}

/// Says how failures are counted where somebody wrote a number of them.
fn consecutive(node: &Node, origin: &dyn Fn(u32) -> Origin, notes: &mut Notes) {
    for service in objects::items(node, &["services"]) {
        if let Some(failures) = service.find(&["fallback", "max_failures"]) {
            let message = "max_failures counts failures in a row, as a few among many requests are usual; failure_ratio is the \
                           limit for the share of them";
            notes.note(&origin(failures.place.line), message);
        }
    }
}

const HEAD: &str = "# Made from manifests by migration-proxy import: complete it, then run migration-proxy check.
# listen.trusted_proxies wants the addresses of the old Ingress's pods: without it every client looks like the Ingress.
";

/// One file of services that were written before and of those that were found.
fn joined(written: &[Written], drafts: &[Draft], waits: bool, notes: &mut Notes) -> String {
    let mut out = HEAD.to_owned();
    let (mut services, mut claimed) = (String::new(), HashSet::new());
    for (index, written) in written.iter().enumerate() {
        for entry in written.node.entries().map(|entries| entries.as_slice()).unwrap_or_default() {
            match &*entry.key {
                "services" => {
                    emit::emit(&unclaimed(&entry.value, &mut claimed, &written.origin, notes), 2, &mut services);
                }
                key if index == 0 => {
                    out.push_str(&format!("{}:", objects::scalar(key)));
                    emit::emit_value(&entry.value, 2, &mut out);
                }
                key => notes.unmapped(
                    &written.origin,
                    format!("{key}: the first migration.yaml has the keys beside services; this one is left out"),
                ),
            }
        }
    }
    if written.is_empty() && waits {
        out.push_str("\n# ingress-nginx and nginx wait 60 s for an answer where nothing else is said; here it would be 30 s.\nglobal:\n  default_timeout: 60s\n");
    }
    out.push_str("\nservices:\n");
    out.push_str(&services);
    for draft in drafts {
        draft.write(&mut out);
    }
    out
}

/// The services of a file whose names and hosts no file before has claimed.
fn unclaimed(services: &Node, claimed: &mut HashSet<String>, origin: &Origin, notes: &mut Notes) -> Node {
    let mut kept = Vec::new();
    for service in objects::items_of(services) {
        let hosts = service.get("old_host").map(|node| match node.text() {
            Some(_) => std::slice::from_ref(node),
            None => objects::items_of(node),
        });
        let name = service.get("name").and_then(Node::text).map(|name| format!("service {name}"));
        let hosts = hosts.unwrap_or_default().iter().filter_map(Node::text).map(str::to_ascii_lowercase);
        let claims: Vec<String> = name.into_iter().chain(hosts).collect();
        match claims.iter().find(|claim| claimed.contains(*claim)) {
            Some(claim) => notes.warn(origin, format!("{claim} is in a file before this one; it is left out here")),
            None => kept.push(service.clone()),
        }
        claimed.extend(claims);
    }
    Node { place: services.place, value: Value::List(Rc::new(kept)) }
}

#[cfg(test)]
mod tests;

//! Where the backend of an Ingress leads: a Service of the old cluster, or out of it to the new one.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};

use super::note::{Notes, Origin};
use super::objects::{Object, items, shown, text};
use crate::config;
use crate::config::tree::Node;

/// A Service.
#[derive(Debug)]
struct Known {
    /// The name that an ExternalName stands for.
    external: Option<String>,
    is_headless: bool,
    /// It belongs to ingress-nginx and takes requests.
    is_controller: bool,
    has_selector: bool,
    /// Name, port, target.
    ports: Vec<(String, String, String)>,
    origin: Origin,
    usage: Cell<Usage>,
}

/// What a Service was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Usage {
    None,
    /// It gave a new host.
    Host,
    /// An Ingress leads to it.
    Target,
}

impl Known {
    /// The name outside of the cluster that it stands for.
    fn outside(&self) -> Option<&str> {
        self.external.as_deref().filter(|name| !is_inside(name))
    }
}

/// A Service that no Ingress leads to.
#[derive(Debug)]
pub(super) struct Lone {
    pub name: String,
    pub namespace: String,
    /// Its backend, or the name outside of the cluster.
    pub target: Target,
    pub origin: Origin,
}

/// Addresses of a Service that have the same ports.
#[derive(Debug)]
struct Endpoints {
    addresses: Vec<String>,
    /// Name and number.
    ports: Vec<(String, String)>,
    origin: Origin,
}

/// Every Service and Endpoints of the files.
#[derive(Debug, Default)]
pub(super) struct Backends {
    services: BTreeMap<(String, String), Known>,
    /// By namespace and name.
    endpoints: BTreeMap<(String, String), Vec<Endpoints>>,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Backends of the old cluster, as `host:port`.
    Old(Vec<String>),
    /// A name outside of the cluster, and its port.
    Name(String, u16),
    /// Addresses that somebody wrote down.
    Addresses(Vec<String>),
}

impl Backends {
    pub(super) fn add(&mut self, object: &Object, notes: &mut Notes) {
        let key = (object.namespace.clone(), object.name.clone());
        match &*object.kind {
            "Service" => {
                if self.services.insert(key, known(object, notes)).is_some() {
                    notes.warn(&object.origin, "this Service was given before; the later one counts");
                }
            }
            "Endpoints" => {
                for subset in items(&object.node, &["subsets"]) {
                    let addresses = items(subset, &["addresses"]).iter().filter_map(|address| text(address, &["ip"]));
                    self.add_endpoints(&key, addresses, items(subset, &["ports"]), &object.origin);
                    if let Some(not_ready) = subset.get("notReadyAddresses") {
                        notes.note(&object.origin.at(not_ready.place), "notReadyAddresses get no requests: left out");
                    }
                }
            }
            _ => {
                let owner = text(&object.node, &["metadata", "labels", "kubernetes.io/service-name"]);
                let Some(owner) = owner else {
                    notes.warn(
                        &object.origin,
                        "the label kubernetes.io/service-name is missing, so it belongs to no Service",
                    );
                    return;
                };
                let key = (object.namespace.clone(), owner.to_owned());
                for endpoint in items(&object.node, &["endpoints"]) {
                    if text(endpoint, &["conditions", "ready"]) == Some("false") {
                        let message = "an endpoint that is not ready gets no requests: left out";
                        notes.note(&object.origin.at(endpoint.first_key()), message);
                        continue;
                    }
                    let addresses = items(endpoint, &["addresses"]).iter().filter_map(Node::text);
                    self.add_endpoints(&key, addresses, items(&object.node, &["ports"]), &object.origin);
                }
            }
        }
    }

    fn add_endpoints<'n>(
        &mut self,
        key: &(String, String),
        addresses: impl Iterator<Item = &'n str>,
        ports: &[Node],
        origin: &Origin,
    ) {
        let word = |port: &Node, key: &str| text(port, &[key]).unwrap_or_default().to_owned();
        self.endpoints.entry(key.clone()).or_default().push(Endpoints {
            addresses: addresses.map(str::to_owned).collect(),
            ports: ports.iter().map(|port| (word(port, "name"), word(port, "port"))).collect(),
            origin: origin.clone(),
        });
    }

    /// Says which addresses belong to nothing in the files.
    pub(super) fn without_service(&self, notes: &mut Notes) {
        for ((namespace, name), subsets) in &self.endpoints {
            if let Some(first) =
                subsets.first().filter(|_| !self.services.contains_key(&(namespace.clone(), name.clone())))
            {
                let message =
                    format!("the Service {namespace}/{name} is in none of the files, so its addresses are not used");
                notes.note(&first.origin, message);
            }
        }
    }

    /// Where ingress-nginx takes requests, when its Service is in the files.
    pub(super) fn controller(&self) -> Option<String> {
        let has_http = |known: &Known| known.ports.iter().any(|(_, number, _)| number == "80");
        let mut found = self.services.iter().filter(|(_, known)| known.is_controller && has_http(known));
        let ((namespace, name), known) = found.next()?;
        known.usage.set(Usage::Target);
        Some(format!("{name}.{namespace}.svc.cluster.local:80"))
    }

    /// The only name outside of the cluster that fits a host, and whether it surely does: of its own first label, else the
    /// only one in the namespace that no Ingress leads to.
    pub(super) fn external_for(&self, host: &str, namespace: &str) -> Option<(String, bool)> {
        let all = self.services.iter().filter(|((space, _), _)| space == namespace);
        let all: Vec<(&Known, &str)> = all.filter_map(|(_, known)| Some((known, known.outside()?))).collect();
        let label = |name: &str| name.split('.').next().map(str::to_owned);
        let alike: Vec<_> = all.iter().copied().filter(|(_, name)| label(name) == label(host)).collect();
        let free: Vec<_> = all.into_iter().filter(|(known, _)| known.usage.get() != Usage::Target).collect();
        let ((known, name), is_sure) = match (alike.as_slice(), free.as_slice()) {
            ([one], _) => (*one, true),
            ([], [one]) => (*one, false),
            _ => return None,
        };
        if known.usage.get() == Usage::None {
            known.usage.set(Usage::Host);
        }
        Some((name.to_owned(), is_sure))
    }

    /// Every Service that nothing led to so far.
    pub(super) fn lone(&self) -> Vec<Lone> {
        let unused = self.services.iter().filter(|(_, known)| known.usage.get() == Usage::None);
        let lone = unused.map(|((namespace, name), known)| {
            let port = known.ports.first().and_then(|(_, number, _)| number.parse().ok());
            let target = match known.outside() {
                Some(outside) => Target::Name(outside.to_owned(), port.unwrap_or(443)),
                None => Target::Old(vec![format!("{name}.{namespace}.svc.cluster.local:{}", port.unwrap_or(80))]),
            };
            Lone { name: name.clone(), namespace: namespace.clone(), target, origin: known.origin.clone() }
        });
        lone.collect()
    }

    /// Where the backend of an Ingress leads. `port` is a number or a name.
    /// `elsewhere` is the Host that the backend gets instead of the old one: a sign of what a Service leads to that is in none of the files.
    pub(super) fn resolve(
        &self,
        (namespace, name, port): (&str, &str, &str),
        elsewhere: Option<&str>,
        origin: &Origin,
        notes: &mut Notes,
    ) -> Target {
        let key = (namespace.to_owned(), name.to_owned());
        let inside = format!("{name}.{namespace}.svc.cluster.local");
        let Some(known) = self.services.get(&key) else {
            let begin = format!("the Service {namespace}/{name} is in none of the files");
            if let Some(host) = elsewhere {
                notes.warn(origin, format!("{begin}: the Host that it gets says that it leads to {host}"));
                return Target::Name(host.to_owned(), port.parse().unwrap_or(443));
            }
            notes.warn(origin, format!("{begin}: its name and port are taken as they are"));
            let number = port.parse().unwrap_or_else(|_| unknown_port(port, 80, origin, notes));
            return Target::Old(vec![format!("{inside}:{number}")]);
        };
        known.usage.set(Usage::Target);
        let entry = known.ports.iter().find(|(name, number, _)| name == port || number == port);
        if entry.is_none() && !known.ports.is_empty() && !port.is_empty() {
            notes.warn(&known.origin, format!("it has no port {}, which an Ingress asks for", shown(port)));
        }
        let number: Option<u16> = entry.and_then(|(_, number, _)| number.parse().ok()).or_else(|| port.parse().ok());
        let target: Option<u16> = entry.and_then(|(.., target)| target.parse().ok());
        if let Some(external) = &known.external {
            let port = target.or(number).unwrap_or_else(|| unknown_port(port, 443, origin, notes));
            return match is_inside(external) {
                true => Target::Old(vec![format!("{external}:{port}")]),
                false => Target::Name(external.clone(), port),
            };
        }
        let subsets = self.endpoints.get(&key).filter(|_| !known.has_selector).map(Vec::as_slice).unwrap_or_default();
        let (mut addresses, mut said) = (Vec::new(), HashSet::new());
        for Endpoints { addresses: of_subset, ports, .. } in subsets {
            let named = entry.and_then(|(name, ..)| ports.iter().find(|(other, _)| other == name));
            let only = ports.first().filter(|_| ports.len() == 1);
            let found = named.or(only).and_then(|(_, number)| number.parse().ok()).or(target).or(number);
            let port = found.unwrap_or_else(|| unknown_port(port, 443, origin, notes));
            // EndpointSlices repeat what Endpoints say.
            let written = of_subset.iter().map(|address| with_port(address, port));
            addresses.extend(written.filter(|address| said.insert(address.clone())));
        }
        if !addresses.is_empty() {
            return Target::Addresses(addresses);
        }
        if !known.has_selector {
            notes.warn(&known.origin, "it has no selector, and its Endpoints are in none of the files");
        }
        let number = if known.is_headless { self.headless(known, entry, number, notes) } else { number };
        let number = number.unwrap_or_else(|| unknown_port(port, 80, origin, notes));
        Target::Old(vec![format!("{inside}:{number}")])
    }

    /// A headless Service is its pods, and they listen on the target port.
    fn headless(
        &self,
        known: &Known,
        entry: Option<&(String, String, String)>,
        number: Option<u16>,
        notes: &mut Notes,
    ) -> Option<u16> {
        let (_, _, target) = entry?;
        match target.parse().ok() {
            Some(target) => Some(target),
            None if target.is_empty() => number,
            None => {
                let message = format!(
                    "it is headless, so requests go to the pods, and targetPort {} is a name: write the number into old_backend",
                    shown(target)
                );
                notes.warn(&known.origin, message);
                number
            }
        }
    }
}

fn known(object: &Object, notes: &mut Notes) -> Known {
    let spec = |key: &str| text(&object.node, &["spec", key]);
    let label = |key: &str| text(&object.node, &["metadata", "labels", &format!("app.kubernetes.io/{key}")]);
    let mut external = None;
    if spec("type") == Some("ExternalName") {
        match spec("externalName").map(config::host_name) {
            Some(Ok(name)) => external = Some(name),
            Some(Err(message)) => notes.unmapped(&object.origin, format!("externalName: {message}")),
            None => notes.unmapped(&object.origin, "an ExternalName Service without externalName"),
        }
    }
    let ports = items(&object.node, &["spec", "ports"]).iter().map(|port| {
        let word = |key: &str| text(port, &[key]).unwrap_or_default().to_owned();
        (word("name"), word("port"), word("targetPort"))
    });
    Known {
        external,
        is_headless: spec("clusterIP") == Some("None"),
        is_controller: label("name") == Some("ingress-nginx") && label("component") == Some("controller"),
        has_selector: object.node.find(&["spec", "selector"]).is_some(),
        ports: ports.collect(),
        origin: object.origin.clone(),
        usage: Cell::new(Usage::None),
    }
}

/// Whether a name is one of the cluster itself.
pub(super) fn is_inside(name: &str) -> bool {
    name.ends_with(".svc.cluster.local") || name.ends_with(".svc") || name.ends_with(".cluster.local")
}

/// An address with a port.
fn with_port(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn unknown_port(port: &str, instead: u16, origin: &Origin, notes: &mut Notes) -> u16 {
    let message = match port {
        "" => format!("it names no port: {instead} is written, so correct it"),
        port => format!("the port {} has no number in these files: {instead} is written, so correct it", shown(port)),
    };
    notes.warn(origin, message);
    instead
}

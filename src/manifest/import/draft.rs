//! Routes to services: every host becomes one service, and what a service cannot say is a note.

use std::collections::{HashMap, HashSet};

use super::annotations::Settings;
use super::backends::{Backends, Target, is_inside};
use super::entry::Draft;
use super::mappings::Mapping;
use super::note::Notes;
use super::objects::scalar;
use super::paths::{self, Entrance};
use super::{Options, Route};
use crate::config;

/// Stands where the manifests do not say a host; the name exists nowhere.
const UNKNOWN: &str = "change-me.invalid";

/// A service for each host; `known` are the hosts and names of services that were written before.
pub(super) fn drafts(
    routes: &[Route],
    mappings: &[Mapping],
    backends: &Backends,
    options: &Options,
    (known, mut names): (&HashSet<&str>, HashSet<String>),
    notes: &mut Notes,
) -> Vec<Draft> {
    let mut hosts: Vec<&str> = Vec::new();
    let mut of_hosts: HashMap<&str, Vec<&Route>> = HashMap::new();
    for route in routes {
        let of_host = of_hosts.entry(&route.host).or_default();
        if of_host.is_empty() {
            hosts.push(&route.host);
        }
        of_host.push(route);
    }
    let taken: HashSet<&str> = hosts.iter().chain(known).copied().collect();
    let mut used = HashSet::new();
    let mut found = Vec::new();
    for host in hosts {
        let mut maker =
            Maker { host, mappings, backends, options, notes, draft: Draft::default(), taken: &taken, used: &mut used };
        maker.make(&of_hosts[host]);
        let mut draft = maker.draft;
        if draft.old_backend.is_empty() {
            continue;
        }
        draft.name = unused(host, &mut names);
        found.push(draft);
    }
    for (index, mapping) in mappings.iter().enumerate().filter(|(index, _)| !used.contains(index)) {
        let old_host = format!("{}.{UNKNOWN}", mapping.new_host.split('.').next().unwrap_or("service"));
        if known.contains(&*old_host) || found.iter().any(|draft| draft.old_host == old_host) {
            notes.unmapped(&mapping.origin, format!("entry {}: its old host would be that of another one", index + 1));
            continue;
        }
        notes.warn(
            &mapping.origin,
            format!("no Ingress leads to {}, so its old host is unknown: {old_host} is written", mapping.backend),
        );
        found.push(Draft {
            name: unused(&mapping.name, &mut names),
            old_host,
            old_backend: vec![mapping.backend.clone()],
            new_backend: format!("{}:443", mapping.new_host),
            new_host: mapping.new_host.clone(),
            percentage: "0".to_owned(),
            ..Draft::default()
        });
    }
    found
}

/// Services of manifests that have no Ingress: everything but the old hosts.
pub(super) fn of_services(backends: &Backends, options: &Options, notes: &mut Notes) -> Vec<Draft> {
    let lone = backends.lone();
    let mut names = HashSet::new();
    let mut found = Vec::new();
    for service in &lone {
        if let Target::Old(backends) = &service.target
            && let Some(Err(message)) = backends.iter().map(|backend| config::authority(backend)).find(Result::is_err)
        {
            notes.unmapped(&service.origin, format!("{message}; it is left out"));
            continue;
        }
        let has_old =
            lone.iter().any(|other| other.namespace == service.namespace && matches!(other.target, Target::Old(_)));
        let (label, old_backend, given) = match &service.target {
            Target::Old(backends_of_it) => (
                service.name.as_str(),
                backends_of_it.clone(),
                backends.external_for(&service.name, &service.namespace).map(|(name, _)| name),
            ),
            Target::Name(name, _) if !has_old => {
                (name.split('.').next().unwrap_or_default(), vec![format!("{UNKNOWN}:80")], Some(name.clone()))
            }
            Target::Name(..) | Target::Addresses(_) => continue,
        };
        let name = unused(label, &mut names);
        let wanted = options.new_domain.as_deref().map(|domain| format!("{name}.{}", domain.trim_start_matches('.')));
        let new_host = wanted.or(given).unwrap_or_else(|| UNKNOWN.to_owned());
        let message = format!("no Ingress leads to it, so the old host is unknown: correct every {UNKNOWN}");
        notes.warn(&service.origin, message);
        found.push(Draft {
            old_host: format!("{name}.{UNKNOWN}"),
            old_backend,
            new_backend: format!("{new_host}:443"),
            new_host,
            name,
            percentage: "0".to_owned(),
            ..Draft::default()
        });
    }
    found
}

/// A name that no service has yet: the first label.
fn unused(host: &str, names: &mut HashSet<String>) -> String {
    let label = host.trim_start_matches("*.").split('.').next().unwrap_or_default();
    let label: String =
        label.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').map(|c| c.to_ascii_lowercase()).collect();
    let label = if label.is_empty() { "service".to_owned() } else { label };
    let mut name = label.clone();
    let mut number = 2;
    while !names.insert(name.clone()) {
        name = format!("{label}-{number}");
        number += 1;
    }
    name
}

struct Maker<'m> {
    host: &'m str,
    mappings: &'m [Mapping],
    backends: &'m Backends,
    options: &'m Options,
    notes: &'m mut Notes,
    draft: Draft,
    /// Hosts that are a service of their own.
    taken: &'m HashSet<&'m str>,
    /// Mappings that gave a host.
    used: &'m mut HashSet<usize>,
}

impl Maker<'_> {
    fn make(&mut self, routes: &[&Route]) {
        let (new, old): (Vec<&Route>, Vec<&Route>) = routes.iter().partition(|route| self.is_new(route));
        let (canaries, old): (Vec<&Route>, Vec<&Route>) =
            old.into_iter().partition(|route| route.settings.canary.is_some());
        for route in canaries.iter().filter(|route| route.target != Target::Old(Vec::new())) {
            let message = "the canary's backend is in the old cluster; a service divides between one old backend and the new cluster";
            self.notes.unmapped(&route.origin, message);
        }
        let old = if old.is_empty() && new.is_empty() { canaries } else { old };
        let entrance = paths::entrance(self.host, &old, self.backends);
        let main_old = self.main(&old, "old_backend", entrance.as_ref());
        let main_new = self.main(&new, "new_backend", None);
        let Some(main) = main_new.or(main_old) else { return };
        self.draft.old_host = self.host.to_owned();
        for alias in routes.iter().flat_map(|route| &route.aliases) {
            if !self.draft.aliases.contains(alias) && !self.taken.contains(&**alias) {
                self.draft.aliases.push(alias.clone());
            }
        }
        self.old_backend(main_old, main);
        let redirect = routes.iter().find_map(|route| Some((*route, route.settings.redirect.as_ref()?)));
        if let Some((route, redirect)) = redirect {
            if redirect.host == self.host {
                let message = "it redirects to the host itself, which stays with the old Ingress";
                self.notes.unmapped(&route.origin, message);
            } else {
                self.draft.redirect = Some(redirect.code);
            }
        }
        let redirect = redirect.map(|(_, redirect)| redirect).filter(|redirect| redirect.host != self.host);
        let given = redirect.map(|redirect| redirect.host.clone()).or_else(|| main_new.and_then(name_of));
        self.new_host(given, main);
        self.draft.new_backend = match (redirect, main_new) {
            (Some(redirect), _) => format!("{}:{}", self.draft.new_host, redirect.port),
            (None, Some(route)) => self.new_backend(route),
            (None, None) => format!("{}:443", self.draft.new_host),
        };
        self.share((main_old, &old), &new, redirect.is_some());
        self.clusters(main_old.filter(|_| entrance.is_none()), main_new.filter(|_| redirect.is_none()));
        if let Some(entrance) = entrance {
            self.enter(entrance, main);
        }
        self.timeouts([main_old, main_new].into_iter().flatten().map(|route| &*route.settings));
        self.retry([main_new, main_old].into_iter().flatten().map(|route| &*route.settings));
    }

    fn is_new(&self, route: &Route) -> bool {
        let settings = &route.settings;
        let elsewhere = settings.host_header.as_deref().or(settings.server_name.as_deref());
        match &route.target {
            Target::Name(..) => true,
            Target::Addresses(_) => elsewhere.is_some_and(|host| host != self.host && !is_inside(host)),
            Target::Old(_) => false,
        }
    }

    /// The route of `/`, else the first one. The others are told of where they lead elsewhere.
    fn main<'r>(&mut self, routes: &[&'r Route], key: &str, entrance: Option<&Entrance>) -> Option<&'r Route> {
        let main = routes.iter().find(|route| route.path == "/").or(routes.first()).copied()?;
        let mut said = HashSet::new();
        for other in routes {
            let is_first = said.insert((&other.path, other.matching));
            if other.target == main.target {
                continue;
            }
            let begin = format!("path {} of {} goes to another backend", other.path, self.host);
            let message = match entrance {
                _ if !is_first => {
                    format!("{begin} than before: of two the older Ingress counts, so take the other one away")
                }
                Some(entrance) => format!(
                    "{begin} than {}: a service has one old_backend, so the Ingress controller is written, which goes on \
                     choosing by path: it needs an Ingress with these paths for the host {}, as in docs/coming-from.md",
                    main.path, entrance.host
                ),
                None => format!(
                    "{begin} than {}: a service has one {key}, so leave this path in the old Ingress as it is and send \
                     only the others to the proxy; docs/coming-from.md has another way",
                    main.path
                ),
            };
            self.notes.unmapped(&other.origin, message);
        }
        Some(main)
    }

    /// The controller as the old backend.
    fn enter(&mut self, entrance: Entrance, main: &Route) {
        let Entrance { backend, host, is_known } = entrance;
        if !is_known {
            let message =
                format!("the Service of the Ingress controller is in none of the files: {backend} is written");
            self.notes.warn(&main.origin, message);
        }
        self.draft.remark = Some(format!("chooses by path, by an Ingress for {host}: docs/coming-from.md"));
        self.draft.old_backend = vec![backend];
        self.draft.old = vec![format!("host_header: {}", scalar(&host))];
    }

    fn old_backend(&mut self, main_old: Option<&Route>, main: &Route) {
        self.draft.old_backend = match main_old.map(|route| &route.target) {
            Some(Target::Old(backends) | Target::Addresses(backends)) => backends.clone(),
            Some(Target::Name(..)) | None => Vec::new(),
        };
        if self.draft.old_backend.is_empty() {
            let message = format!(
                "{}: no backend of the old cluster is in these files; {UNKNOWN}:80 is written: name the Service that \
                 answered before, or nothing can go back",
                self.host
            );
            self.notes.warn(&main.origin, message);
            self.draft.old_backend = vec![format!("{UNKNOWN}:80")];
        }
    }

    /// From the domain that was given, else what the manifests lead to.
    fn new_host(&mut self, given: Option<String>, main: &Route) {
        let label = self.host.split('.').next().filter(|label| *label != "*");
        let wanted = self.options.new_domain.as_deref().zip(label);
        let wanted = wanted.map(|(domain, label)| format!("{label}.{}", domain.trim_start_matches('.')));
        if let (Some(wanted), Some(given)) = (&wanted, &given)
            && wanted != given
        {
            let message =
                format!("{}: it leads to {given} today; {wanted} is written, as --new-domain says", self.host);
            self.notes.note(&main.origin, message);
        }
        let found = wanted.or(given).or_else(|| self.mapped()).or_else(|| self.external(main));
        self.draft.new_host = found.unwrap_or_else(|| {
            let message = format!(
                "{}: the new host is unknown; {UNKNOWN} is written: correct it, or give --new-domain",
                self.host
            );
            self.notes.warn(&main.origin, message);
            UNKNOWN.to_owned()
        });
    }

    /// An ExternalName beside an Ingress that does not lead to it.
    fn external(&mut self, main: &Route) -> Option<String> {
        let (name, is_sure) = self.backends.external_for(self.host, &main.namespace)?;
        if !is_sure {
            let message =
                format!("{}: {name}, the only ExternalName of the namespace, is written as the new host", self.host);
            self.notes.warn(&main.origin, message);
        }
        Some(name)
    }

    /// The new host of the mapping that names the old backend.
    fn mapped(&mut self) -> Option<String> {
        let is_ours =
            |mapping: &Mapping| self.draft.old_backend.iter().any(|backend| backend.starts_with(&mapping.begin));
        let (index, mapping) = self.mappings.iter().enumerate().find(|(_, mapping)| is_ours(mapping))?;
        self.used.insert(index);
        Some(mapping.new_host.clone())
    }

    fn new_backend(&mut self, route: &Route) -> String {
        match &route.target {
            Target::Name(name, port) => {
                let host = if self.options.new_domain.is_some() { &self.draft.new_host } else { name };
                format!("{host}:{port}")
            }
            Target::Addresses(addresses) | Target::Old(addresses) => {
                if addresses.len() > 1 {
                    let message = format!(
                        "new_backend takes one address, and there are {}: the first is written; a name with all of them is better",
                        addresses.len()
                    );
                    self.notes.unmapped(&route.origin, message);
                }
                addresses.first().cloned().unwrap_or_default()
            }
        }
    }

    /// How much goes to new: what goes there today.
    fn share(&mut self, (main_old, old): (Option<&Route>, &[&Route]), new: &[&Route], is_redirect: bool) {
        let canary = new.iter().find_map(|route| route.settings.canary.as_ref());
        let shared_path = |route: &&Route| main_old.is_some_and(|old| old.path == route.path);
        self.draft.percentage = match (canary, main_old) {
            (Some(canary), Some(_)) => {
                self.draft.header_rules.clone_from(&canary.header_rules);
                self.draft.cookie_rules.clone_from(&canary.cookie_rules);
                self.paths(new);
                self.exceptions(old, new);
                canary.percentage.clone().unwrap_or_else(|| "0".to_owned())
            }
            _ if is_redirect => "100".to_owned(),
            (_, None) => "100".to_owned(),
            (None, Some(_)) if new.is_empty() => "0".to_owned(),
            (None, Some(old)) if new.iter().any(shared_path) => {
                let message = format!(
                    "{}: old and new are both in these files; percentage 0 is written, so nothing moves yet",
                    self.host
                );
                self.notes.warn(&old.origin, message);
                "0".to_owned()
            }
            (None, Some(_)) => {
                self.exceptions(old, new);
                match self.paths(new) {
                    true => "100".to_owned(),
                    false => "0".to_owned(),
                }
            }
        };
    }

    /// The paths that go to new; whether all of them could be written.
    fn paths(&mut self, new: &[&Route]) -> bool {
        if new.iter().any(|route| paths::is_everything(route)) {
            return true;
        }
        let mut all = true;
        for route in new {
            match paths::scope(route) {
                Some(rules) => self.draft.paths.extend(rules),
                None => {
                    let message = format!(
                        "path {}: a regular expression of an Ingress is not taken over; write it under paths",
                        route.path
                    );
                    self.notes.unmapped(&route.origin, message);
                    all = false;
                }
            }
        }
        all && !self.draft.paths.is_empty()
    }

    /// Tells of old paths inside of new ones, which an Ingress allows and a service does not.
    fn exceptions(&mut self, old: &[&Route], new: &[&Route]) {
        for route in old {
            if let Some(outer) = paths::around(route, new) {
                let message = format!(
                    "path {} of {} stays in old and lies inside of {}, which goes to new: paths have no exceptions and would \
                     take it along, so leave this path in the old Ingress as it is and send only the others to the proxy",
                    route.path, self.host, outer.path
                );
                self.notes.unmapped(&route.origin, message);
            }
        }
    }

    fn clusters(&mut self, main_old: Option<&Route>, main_new: Option<&Route>) {
        if let Some(route) = main_new {
            self.new_cluster(route);
        }
        // What an Ingress says of both is meant for the one that it leads to from outside.
        if let Some(route) =
            main_old.filter(|route| main_new.is_none_or(|new| !std::ptr::eq(&*new.settings, &*route.settings)))
        {
            self.old_cluster(route);
        }
    }

    fn new_cluster(&mut self, route: &Route) {
        let settings = &route.settings;
        let port = self.draft.new_backend.rsplit_once(':').map_or("443", |(_, port)| port).to_owned();
        match settings.protocol {
            Some("https") => {}
            None if port == "443" => {
                let message =
                    "without backend-protocol: HTTPS nginx speaks HTTP in clear to port 443; here TLS is spoken";
                self.notes.warn(&route.origin, message);
            }
            protocol => self.draft.new.push(format!("protocol: {}", protocol.unwrap_or("http"))),
        }
        let is_tls = !self.draft.new.iter().any(|key| key.starts_with("protocol"));
        if self.options.new_domain.is_none() {
            for (key, value) in [("host_header", &settings.host_header), ("sni", &settings.server_name)] {
                let Some(value) = value.as_ref().filter(|value| **value != self.draft.new_host) else { continue };
                match config::host_name(value) {
                    Ok(_) => self.draft.new.push(format!("{key}: {}", scalar(value))),
                    Err(message) => self.notes.unmapped(&route.origin, format!("{key}: {message}")),
                }
            }
        }
        if settings.only_tls_1_3 && is_tls {
            self.draft.new.push("min_version: \"1.3\"".to_owned());
        }
        if let Some(secret) = settings.client_secret.as_ref().filter(|_| is_tls) {
            let message = format!(
                "proxy-ssl-secret: the Secret {secret} is to be mounted (as k8s/overlays/mtls does) before check can read its \
                 files; the keys are written as a comment"
            );
            self.notes.unmapped(&route.origin, message);
            self.draft.client_secret = Some(secret.clone());
        }
        if is_tls && !settings.verify {
            let message = format!(
                "nginx does not verify certificates unless told to; here the one of {} is verified: with roots of \
                 your own set new.ca_file",
                self.draft.new_host
            );
            self.notes.note(&route.origin, message);
        }
    }

    fn old_cluster(&mut self, route: &Route) {
        let settings = &route.settings;
        if let Some(protocol @ ("https" | "h2c")) = settings.protocol {
            self.draft.old.push(format!("protocol: {protocol}"));
            if protocol == "https" && !settings.verify {
                self.draft.old.push("verify: off".to_owned());
                let message =
                    "nginx does not verify the certificate of this backend; verify: off keeps it so: full is better";
                self.notes.warn(&route.origin, message);
            }
        }
        for (key, value) in [("host_header", &settings.host_header), ("sni", &settings.server_name)] {
            let Some(value) = value else { continue };
            match config::host_name(value) {
                Ok(_) => self.draft.old.push(format!("{key}: {}", scalar(value))),
                Err(message) => self.notes.unmapped(&route.origin, format!("{key}: {message}")),
            }
        }
        if let Some(secret) = &settings.client_secret {
            let message = format!(
                "proxy-ssl-secret: mount the Secret {secret} and name its files in old.client_cert and old.client_key"
            );
            self.notes.unmapped(&route.origin, message);
        }
    }

    fn timeouts<'s>(&mut self, settings: impl Iterator<Item = &'s Settings>) {
        let (mut connect, mut read, mut send) = (None, None, None);
        for settings in settings {
            connect = connect.max(settings.connect);
            read = read.max(settings.read);
            send = send.max(settings.send);
        }
        let timeouts = &mut self.draft.timeouts;
        timeouts.extend(connect.map(|seconds| format!("connect: {seconds}s")));
        if let Some(seconds) = read {
            timeouts.push(format!("response_header: {seconds}s, total: {seconds}s"));
        }
        // Either way a stream that stalls is ended after this.
        let idle = read.max(send.filter(|send| *send > 60));
        timeouts.extend(idle.map(|seconds| format!("idle: {seconds}s")));
        timeouts.extend(idle.filter(|idle| *idle > 3600).map(|seconds| format!("tunnel: {seconds}s")));
    }

    /// What is said of new, else of old.
    fn retry<'s>(&mut self, settings: impl Iterator<Item = &'s Settings>) {
        let (mut when, mut retries) = (None, None);
        for settings in settings {
            when = when.or(settings.retry_when.as_ref());
            retries = retries.or(settings.retries);
        }
        match when {
            Some(when) if when.is_empty() => return self.draft.retry.push("attempts: 0".to_owned()),
            Some(when) => self.draft.retry.push(format!("when: [{}]", when.join(", "))),
            None => {}
        }
        self.draft.retry.extend(retries.map(|retries| format!("attempts: {retries}")));
    }
}

/// The name that a route to the new cluster leads to.
fn name_of(route: &Route) -> Option<String> {
    match &route.target {
        Target::Name(name, _) => Some(name.clone()),
        Target::Addresses(_) | Target::Old(_) => {
            let host = route.settings.host_header.as_ref().or(route.settings.server_name.as_ref())?;
            config::host_name(host).ok()
        }
    }
}

//! The paths of a host: which of them may go to new, and what keeps choosing between several old backends. An Ingress takes
//! the longest path that fits; a service has one old backend, and paths without exceptions.

use std::collections::HashSet;

use super::Route;
use super::backends::Backends;
use super::objects::quoted;
use crate::config;

/// How an Ingress compares a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Matching {
    /// The path itself.
    Exact,
    /// Whole elements of the path from its begin; a slash at the end means nothing.
    Prefix,
    /// Text from the begin of the path: a location of nginx, and `ImplementationSpecific` of ingress-nginx.
    Text,
}

/// Where an Ingress stands behind the proxy, because a host's paths lead to several Services.
#[derive(Debug)]
pub(super) struct Entrance {
    /// The Service of the controller.
    pub backend: String,
    /// The Host by which the controller knows requests that have been here.
    pub host: String,
    /// The controller was in the files.
    pub is_known: bool,
}

/// The Service that ingress-nginx has where nobody chose another name.
const USUAL_CONTROLLER: &str = "ingress-nginx-controller.ingress-nginx.svc.cluster.local:80";

/// The entries of `paths` that say the same; `None` for a regular expression.
pub(super) fn scope(route: &Route) -> Option<Vec<String>> {
    let path = &route.path;
    if !is_plain(path) {
        return None;
    }
    Some(match route.matching {
        Matching::Exact => vec![format!("{{exact: {}}}", quoted(path))],
        Matching::Text => vec![format!("{{prefix: {}}}", quoted(path))],
        Matching::Prefix => {
            let path = path.trim_end_matches('/');
            vec![format!("{{exact: {}}}", quoted(path)), format!("{{prefix: {}}}", quoted(&format!("{path}/")))]
        }
    })
}

/// Whether a route takes every path.
pub(super) fn is_everything(route: &Route) -> bool {
    route.path == "/" && route.matching != Matching::Exact
}

/// The first new route around an old one: an Ingress gives the old one its paths, a service would not.
pub(super) fn around<'r>(old: &Route, new: &[&'r Route]) -> Option<&'r Route> {
    let same = |route: &&&Route| route.path == old.path && route.matching == old.matching;
    match new.iter().find(same) {
        Some(_) => None,
        None => new.iter().find(|route| is_around(route, old)).copied(),
    }
}

fn is_around(outer: &Route, inner: &Route) -> bool {
    let path = &inner.path;
    match outer.matching {
        Matching::Exact => inner.matching == Matching::Exact && *path == outer.path,
        Matching::Text => path.starts_with(&outer.path),
        Matching::Prefix => {
            // Where a regular expression goes on is not known.
            let rest = path.strip_prefix(outer.path.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || !is_plain(path))
        }
    }
}

/// The old Ingress behind the proxy, when paths of this host lead to several Services and it can stand there.
pub(super) fn entrance(host: &str, old: &[&Route], backends: &Backends) -> Option<Entrance> {
    let mut paths = HashSet::new();
    let mut targets = old.iter().filter(|route| paths.insert((&route.path, route.matching))).map(|route| &route.target);
    let first = targets.next()?;
    let leads_to_several = targets.any(|target| target != first);
    let can_stand = |route: &&Route| {
        let settings = &route.settings;
        // gRPC does not pass the clear port of ingress-nginx, and all names would become one.
        settings.is_ingress_nginx && settings.protocol != Some("h2c") && route.aliases.is_empty()
    };
    if !leads_to_several || !old.iter().all(can_stand) || host.starts_with('*') {
        return None;
    }
    let host = config::host_name(&format!("by-path.{host}")).ok()?;
    let known = backends.controller();
    let is_known = known.is_some();
    Some(Entrance { backend: known.unwrap_or_else(|| USUAL_CONTROLLER.to_owned()), host, is_known })
}

/// Whether a path is no regular expression.
pub(super) fn is_plain(path: &str) -> bool {
    path.chars().all(|c| c.is_ascii_alphanumeric() || "/-._~%:@!&=,;".contains(c))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::annotations::Settings;
    use super::super::backends::Target;
    use super::super::note::Origin;
    use super::Matching::{Exact, Prefix, Text};
    use super::*;

    fn route(matching: Matching, path: &str) -> Route {
        Route {
            host: "a.old.example".to_owned(),
            aliases: Vec::new(),
            path: path.to_owned(),
            matching,
            target: Target::Old(Vec::new()),
            namespace: "team".to_owned(),
            settings: Rc::new(Settings::default()),
            origin: Origin::default(),
        }
    }

    #[test]
    fn paths_of_an_ingress_are_said_in_those_of_a_service() {
        for (matching, path, expected) in [
            (Exact, "/login", Some("{exact: \"/login\"}")),
            (Exact, "/login/", Some("{exact: \"/login/\"}")),
            (Prefix, "/api", Some("{exact: \"/api\"} {prefix: \"/api/\"}")),
            (Prefix, "/api/", Some("{exact: \"/api\"} {prefix: \"/api/\"}")),
            (Text, "/api", Some("{prefix: \"/api\"}")),
            (Text, "/api(/|$)(.*)", None),
            (Text, "/a+", None),
        ] {
            let written = scope(&route(matching, path)).map(|rules| rules.join(" "));

            assert_eq!(written.as_deref(), expected, "{matching:?} {path}");
        }
    }

    #[test]
    fn an_old_path_inside_of_a_new_one_is_found() {
        for (old, new, expected) in [
            ((Prefix, "/login"), (Prefix, "/"), true),
            ((Prefix, "/api/admin"), (Prefix, "/api"), true),
            ((Prefix, "/api/admin"), (Prefix, "/api/"), true),
            ((Prefix, "/apiary"), (Prefix, "/api"), false),
            ((Text, "/apiary"), (Text, "/api"), true),
            ((Exact, "/api"), (Prefix, "/api"), true),
            ((Prefix, "/api"), (Exact, "/api"), false),
            ((Prefix, "/"), (Prefix, "/api"), false),
            ((Prefix, "/"), (Prefix, "/"), false),
            ((Text, "/api(/|$)(.*)"), (Prefix, "/api"), true),
        ] {
            let (old, new) = (route(old.0, old.1), route(new.0, new.1));

            assert_eq!(around(&old, &[&new]).is_some(), expected, "{old:?} {new:?}");
        }
        let (old, outer, same) = (route(Prefix, "/a"), route(Prefix, "/"), route(Prefix, "/a"));
        assert!(around(&old, &[&outer, &same]).is_none());
    }
}

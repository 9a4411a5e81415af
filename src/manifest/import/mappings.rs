//! The older inventory of services: which one of the old cluster is which of the new.

use super::note::{Notes, Origin};
use super::objects::{items, text};
use crate::config;
use crate::config::tree::Node;

/// One entry of `service_mappings`.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    /// `service.namespace.`, how the name of an old backend begins.
    pub begin: String,
    pub backend: String,
    pub new_host: String,
    pub name: String,
    pub origin: Origin,
}

/// The entries of a document that has mappings and no services.
pub(super) fn read(node: &Node, origin: &Origin, notes: &mut Notes) -> Vec<Mapping> {
    let mut found = Vec::new();
    for entry in items(node, &["service_mappings"]) {
        let origin = Origin { about: "service_mappings".to_owned(), ..origin.at(entry.first_key()) };
        let (Some(service), Some(namespace), Some(endpoint)) =
            (text(entry, &["old_service"]), text(entry, &["old_namespace"]), text(entry, &["new_cluster_endpoint"]))
        else {
            notes.unmapped(
                &origin,
                "old_service, old_namespace and new_cluster_endpoint are needed; this entry is left out",
            );
            continue;
        };
        let new_host = match config::host_name(endpoint) {
            Ok(host) => host,
            Err(message) => {
                notes.unmapped(&origin, format!("new_cluster_endpoint: {message}; this entry is left out"));
                continue;
            }
        };
        let port = text(entry, &["old_port"]).unwrap_or("80");
        let begin = format!("{service}.{namespace}.");
        let backend = format!("{begin}svc.cluster.local:{port}");
        if let Err(message) = config::authority(&backend) {
            notes.unmapped(&origin, format!("{message}; this entry is left out"));
            continue;
        }
        found.push(Mapping { begin, backend, new_host, name: service.to_owned(), origin });
    }
    found
}

//! When certificates in use end, for metrics and status.

use crate::routing::snapshot::Snapshot;
use crate::telemetry::labels::CertificateSide;
use crate::telemetry::process::CertificateExpiry;
use crate::tls::certificates::Set;

/// Every certificate that listeners and services show, once for each of its users.
pub fn of(certificates: &Set, snapshot: &Snapshot) -> Vec<CertificateExpiry> {
    let listeners = certificates.all().iter().map(|certificate| CertificateExpiry {
        side: CertificateSide::Listener,
        service: None,
        file: certificate.file.clone(),
        not_after: certificate.not_after,
    });
    listeners.chain(clients(snapshot)).collect()
}

fn clients(snapshot: &Snapshot) -> impl Iterator<Item = CertificateExpiry> + '_ {
    let ends: Vec<_> = snapshot.identities().iter().filter_map(|identity| identity.client_not_after.as_ref()).collect();
    snapshot.services.iter().flat_map(move |service| {
        let [old, new] = [&service.config.old, &service.config.new].map(|options| {
            let file = &options.client.as_ref()?.cert;
            ends.iter().find(|(known, _)| known == file).copied()
        });
        let new = new.filter(|new| old.is_none_or(|old| old.0 != new.0));
        old.into_iter().chain(new).map(|(file, not_after)| CertificateExpiry {
            side: CertificateSide::Client,
            service: Some(service.name().to_owned()),
            file: file.clone(),
            not_after: *not_after,
        })
    })
}

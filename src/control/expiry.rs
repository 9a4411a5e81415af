//! When certificates in use end: for metrics and status, and to keep a certificate that is good when its successor is not.

use std::path::{Path, PathBuf};

use crate::config::ClusterOptions;
use crate::routing::snapshot::Snapshot;
use crate::telemetry::labels::CertificateSide;
use crate::telemetry::process::CertificateExpiry;
use crate::tls::certificates::Set;
use crate::tls::client::Identity;

/// Every certificate that listeners and services show, and the roots that services trust, once for each of its users.
pub fn of(certificates: &Set, snapshot: &Snapshot) -> Vec<CertificateExpiry> {
    let listeners = certificates.all().iter().map(|certificate| CertificateExpiry {
        side: CertificateSide::Listener,
        service: None,
        file: certificate.file.clone(),
        not_after: certificate.not_after,
    });
    let clients = of_services(
        snapshot,
        CertificateSide::Client,
        |identity| identity.client_not_after.as_ref(),
        |options| options.client.as_ref().map(|files| files.cert.as_path()),
    );
    let authorities = of_services(
        snapshot,
        CertificateSide::Authority,
        |identity| identity.roots_not_after.as_ref(),
        |options| options.ca_file.as_deref(),
    );
    listeners.chain(clients).chain(authorities).collect()
}

/// Certificates of `wanted` whose time is over, but for those that replace one that is over as well: nothing is lost by them.
pub fn overdue(served: &[CertificateExpiry], wanted: Vec<CertificateExpiry>, now: i64) -> Vec<CertificateExpiry> {
    let is_over = |certificate: &CertificateExpiry| certificate.not_after < now;
    let is_no_loss = |wanted: &CertificateExpiry| {
        let replaces = |served: &&CertificateExpiry| {
            (served.side, &served.service, &served.file) == (wanted.side, &wanted.service, &wanted.file)
        };
        served.iter().find(replaces).is_some_and(is_over)
    };
    let mut overdue = wanted;
    // What a root says of its own end is not looked at when it is trusted.
    overdue.retain(|wanted| wanted.side != CertificateSide::Authority && is_over(wanted) && !is_no_loss(wanted));
    overdue
}

fn of_services<'a>(
    snapshot: &'a Snapshot,
    side: CertificateSide,
    end: impl Fn(&Identity) -> Option<&(PathBuf, i64)>,
    file: impl Fn(&ClusterOptions) -> Option<&Path> + 'a,
) -> impl Iterator<Item = CertificateExpiry> + 'a {
    let ends: Vec<_> = snapshot.identities().iter().filter_map(|identity| end(identity).cloned()).collect();
    snapshot.services.iter().flat_map(move |service| {
        let [old, new] = [&service.config.old, &service.config.new].map(|options| {
            let file = file(options)?;
            ends.iter().find(|(known, _)| known == file).cloned()
        });
        let new = new.filter(|new| old.as_ref().is_none_or(|old| old.0 != new.0));
        old.into_iter().chain(new).map(move |(file, not_after)| CertificateExpiry {
            side,
            service: Some(service.name().to_owned()),
            file,
            not_after,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_may_only_replace_what_is_over() {
        use CertificateSide::{Authority, Client, Listener};
        let certificate = |side, service: Option<&str>, not_after| CertificateExpiry {
            side,
            service: service.map(str::to_owned),
            file: "/tls.crt".into(),
            not_after,
        };
        let now = 1_000;
        for (served, wanted, is_overdue) in [
            (certificate(Listener, None, 2_000), certificate(Listener, None, 3_000), false),
            (certificate(Listener, None, 2_000), certificate(Listener, None, 999), true),
            (certificate(Listener, None, 500), certificate(Listener, None, 999), false),
            (certificate(Client, Some("a"), 500), certificate(Client, Some("a"), 999), false),
            (certificate(Client, Some("a"), 500), certificate(Client, Some("b"), 999), true),
            (certificate(Client, Some("a"), 500), certificate(Listener, None, 999), true),
            (certificate(Authority, Some("a"), 2_000), certificate(Authority, Some("a"), 999), false),
        ] {
            let expected = if is_overdue { vec![wanted.clone()] } else { Vec::new() };

            assert_eq!(overdue(std::slice::from_ref(&served), vec![wanted.clone()], now), expected, "{served:?}");
        }
    }
}

//! What of the process itself an examination looks at: how the file got here, where the state is kept, certificates, peers
//! that are not believed. What the store of the state finds joins by [`Keeper::examine`].
//!
//! [`Keeper::examine`]: super::keeper::Keeper::examine

use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;

use super::mounts;
use super::tokens::Tokens;
use crate::config::{Config, Environment};
use crate::telemetry::labels::CertificateSide;
use crate::telemetry::process::CertificateExpiry;
use crate::upstream::finding::Finding;

/// Certificates that end sooner than this are worth a word.
const SOON: i64 = 14 * DAY;
const DAY: i64 = 24 * 60 * 60;

/// What is known of a process, or would be of one with this file.
#[derive(Clone, Debug)]
pub struct Process<'a> {
    /// The file as it was named.
    pub file: &'a Path,
    /// What it says.
    pub config: &'a Config,
    /// Why it is not served, when it is not.
    pub last_error: Option<String>,
    /// When the certificates that it names end.
    pub certificates: &'a [CertificateExpiry],
    /// Peers that sent X-Forwarded-* without being believed.
    pub forwarders: Vec<IpAddr>,
    /// The process runs in a pod.
    pub in_pod: bool,
}

/// Whether this is the environment of a pod.
pub fn is_pod(environment: &Environment) -> bool {
    environment.contains_key("KUBERNETES_SERVICE_HOST")
}

/// Everything about the process, but for its store.
pub fn process(process: &Process<'_>) -> Vec<Finding> {
    let mut findings = vec![file(process)];
    findings.extend(tokens(process.config));
    findings.extend(expiry(process.certificates, None));
    findings.push(forwarders(process));
    findings
}

fn file(process: &Process<'_>) -> Finding {
    let name = process.file.display();
    if let Some(error) = &process.last_error {
        let fix = format!("migration-proxy check {name}   shows every mistake; the configuration before it serves");
        return Finding::fail("config", format!("the file is refused: {error}"), fix);
    }
    match mounts::warning(process.file) {
        Some(warning) => Finding::fail(
            "config",
            warning,
            "mount the ConfigMap without subPath, as a directory; a pod sees its changes only then",
        ),
        None if process.in_pod && !has_data_link(process.file) => Finding::warn(
            "config",
            format!("{name} is no file of a ConfigMap volume: there is no ..data beside it"),
            "mount the ConfigMap as the directory of the file, or take it as meant that only this container changes it",
        ),
        None => Finding::ok("config", format!("{name}, changes are seen")),
    }
}

/// The kubelet swaps all files of a volume at once, by the link `..data`.
fn has_data_link(file: &Path) -> bool {
    std::path::absolute(file).is_ok_and(|file| file.parent().is_some_and(|folder| folder.join("..data").is_symlink()))
}

fn tokens(config: &Config) -> Option<Finding> {
    let file = config.admin.token_file.as_deref()?;
    Some(match Tokens::read(file) {
        Ok(_) => Finding::ok("tokens", format!("{} can be read", file.display())),
        Err(error) => Finding::fail("tokens", format!("nobody may write: {error}"), "write lines NAME:TOKEN into it"),
    })
}

/// When the certificates end that this service uses, or the listeners.
pub fn expiry(certificates: &[CertificateExpiry], service: Option<&str>) -> Vec<Finding> {
    let of_service = certificates.iter().filter(|certificate| certificate.service.as_deref() == service);
    expiries(of_service.collect(), Timestamp::now().as_second())
}

/// One line for each file that ends soon, one for all others.
fn expiries(mut all: Vec<&CertificateExpiry>, now: i64) -> Vec<Finding> {
    all.sort_by_key(|certificate| (&certificate.file, certificate.not_after));
    all.dedup_by_key(|certificate| &certificate.file);
    let (soon, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|certificate| certificate.not_after - now < SOON);
    let mut findings: Vec<Finding> = soon.into_iter().map(|certificate| ending(certificate, now)).collect();
    if let Some(next) = later.iter().min_by_key(|certificate| certificate.not_after) {
        let days = (next.not_after - now) / DAY;
        let found = format!("{} good, the first to end is {} in {days} days", later.len(), next.file.display());
        findings.push(Finding::ok("expiry", found));
    }
    findings
}

fn ending(certificate: &CertificateExpiry, now: i64) -> Finding {
    let file = certificate.file.display();
    let fix = format!("renew {file}; a changed file is taken without a restart");
    match certificate.not_after - now {
        // A root is believed whatever it says of its own end.
        left if certificate.side == CertificateSide::Authority && left < 0 => {
            Finding::warn("expiry", format!("the authority in {file} has ended"), fix)
        }
        left if left < 0 => Finding::fail("expiry", format!("the certificate in {file} has ended"), fix),
        left => Finding::warn("expiry", format!("the certificate in {file} ends in {} days", left / DAY), fix),
    }
}

fn forwarders(process: &Process<'_>) -> Finding {
    let listen = &process.config.listen;
    match process.forwarders.as_slice() {
        [] if listen.trusted_proxies.is_empty() => {
            Finding::ok("proxies", "nobody is trusted, and no private peer sends X-Forwarded-*")
        }
        [] if listen.trusted_proxies.len() == 1 => Finding::ok("proxies", "1 network is trusted"),
        [] => Finding::ok("proxies", format!("{} networks are trusted", listen.trusted_proxies.len())),
        peers => {
            let all: Vec<String> = peers.iter().map(ToString::to_string).collect();
            let found =
                format!("{} sends X-Forwarded-* and is not believed: every client looks like it", all.join(", "));
            let fix = "add the network of the Ingress pods to listen.trusted_proxies";
            Finding::fail("proxies", found, fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, source::Text};
    use crate::upstream::finding::Level;

    const MINIMAL: &str =
        "services: [{name: a, old_host: a.old.example, old_backend: 'a.ns:80', new_host: a.new.example}]";

    #[test]
    fn a_file_that_the_kubelet_does_not_swap_is_noticed_in_a_pod_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("migration.yaml");
        let text = Text::new("migration.yaml", MINIMAL.to_owned());
        let config = config::parse(&text, &Environment::new()).unwrap().config;
        let level = |in_pod, last_error: Option<&str>| {
            let last_error = last_error.map(str::to_owned);
            let certificates = &[];
            file(&Process { file: &path, config: &config, last_error, certificates, forwarders: Vec::new(), in_pod })
                .level
        };

        assert_eq!((level(false, None), level(true, None)), (Level::Ok, Level::Warn));
        std::os::unix::fs::symlink("..2024", folder.path().join("..data")).unwrap();
        assert_eq!((level(true, None), level(true, Some("line 9"))), (Level::Ok, Level::Fail));
    }

    #[test]
    fn certificates_are_told_one_by_one_only_when_they_end_soon() {
        let certificate = |file: &str, days: i64, side| CertificateExpiry {
            side,
            service: None,
            file: file.into(),
            not_after: 1_000_000 + days * DAY,
        };
        let (ours, authority) = (CertificateSide::Client, CertificateSide::Authority);
        let all = [
            certificate("a", 100, ours),
            certificate("a", 100, ours),
            certificate("b", 60, ours),
            certificate("c", 5, ours),
            certificate("d", -1, ours),
            certificate("e", -1, authority),
        ];

        let findings = expiries(all.iter().collect(), 1_000_000);

        let levels: Vec<_> = findings.iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Warn, Level::Fail, Level::Warn, Level::Ok], "{findings:?}");
        assert_eq!(findings[3].found, "2 good, the first to end is b in 60 days");
    }
}

//! What of the process itself an examination looks at: how the file got here, where the state is kept, certificates, peers
//! that are not believed. What the store of the state finds joins by [`Keeper::examine`].
//!
//! [`Keeper::examine`]: super::keeper::Keeper::examine

use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;

use super::mounts;
use super::tokens::Tokens;
use crate::config::Config;
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
        None => Finding::ok("config", format!("{name}, changes are seen")),
    }
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
    use crate::upstream::finding::Level;

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

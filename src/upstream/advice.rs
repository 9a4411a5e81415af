//! What to do about a step that fails on the way to a cluster, in one line each: which key to change, or what to ask of
//! whom.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustls::{AlertDescription, CertificateError};

use super::dns;
use crate::config::Cluster;
use crate::tls::verify::reason;

/// A name without an address.
pub(super) fn for_name(fault: &dns::Fault, host: &str, key: &str) -> String {
    match fault {
        dns::Fault::NoSuchName if host.ends_with(".cluster.local") => {
            format!(
                "correct {key}: it is SERVICE.NAMESPACE.svc.cluster.local; `kubectl get service` lists what there is"
            )
        }
        dns::Fault::NoSuchName => format!("correct {key}, or have the name created; names are asked for as they stand"),
        dns::Fault::NoAddress => {
            format!("the name exists and has neither A nor AAAA record: correct it, or name another host in {key}")
        }
        dns::Fault::Trouble(_) => {
            "allow UDP and TCP port 53 to the servers in /etc/resolv.conf in the NetworkPolicy, and \
                                   see whether they answer"
                .to_owned()
        }
    }
}

/// The key that names a cluster's address.
pub(super) fn backend_key(cluster: Cluster) -> &'static str {
    match cluster {
        Cluster::Old => "old_backend",
        Cluster::New => "new_backend",
    }
}

/// An address that takes no connection; `from` is ours.
pub(super) fn for_tcp(error: &io::Error, address: SocketAddr, from: Option<IpAddr>, cluster: Cluster) -> String {
    let (key, side) = (backend_key(cluster), cluster.as_str());
    let us = from.map_or_else(|| "this pod".to_owned(), |from| from.to_string());
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "nothing listens on port {}: correct {key}, or see whether the Service there has endpoints",
            address.port()
        ),
        io::ErrorKind::TimedOut => format!(
            "allow {us} (or the node's or NAT address that it leaves with) to reach {address}: NetworkPolicy here, firewall \
             and allow-list of the {side} cluster"
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("there is no route from {us} to {address}: correct {key}, or have the networks joined")
        }
        _ => format!("see what stands between {us} and {address}"),
    }
}

/// A handshake that failed.
pub(super) fn for_tls(error: &io::Error, side: &str, was_asked: bool, has_certificate: bool) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(fault)) => certificate_fix(fault, &reason(error), side),
        Some(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)) => {
            format!("the gateway does not know this server name: set {side}.sni to a host that it serves")
        }
        Some(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
            format!("the gateway speaks only versions that {side}.min_version forbids, or older ones than 1.2")
        }
        Some(rustls::Error::AlertReceived(_)) if was_asked && !has_certificate => format!(
            "a client certificate is asked for: set {side}.client_cert and {side}.client_key, for example to the mounted \
             Secret client-mtls-secret"
        ),
        Some(rustls::Error::AlertReceived(_)) if was_asked => {
            format!("have {side}.client_cert signed by an authority that the gateway trusts, and not over")
        }
        Some(rustls::Error::AlertReceived(_)) => {
            format!("the gateway ends the handshake: often it does not know the server name, then set {side}.sni")
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            format!("this port does not speak TLS: set {side}.protocol to http, or correct the port")
        }
        _ => {
            format!("see the port, {side}.sni and the gateway's log; a gateway without a host for the name may hang up")
        }
    }
}

fn certificate_fix(fault: &CertificateError, text: &str, side: &str) -> String {
    // Most reasons are ours, in words that begin with what is wrong.
    let is = |word: &str| text.starts_with(word);
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => renew(),
        _ if is("expired") => renew(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => set_the_clock(),
        _ if is("not valid yet") => set_the_clock(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => name_it(side),
        _ if is("wrong name") => name_it(side),
        CertificateError::UnknownIssuer => trust_it(side),
        _ if is("unknown issuer") => trust_it(side),
        _ => "ask whoever runs the gateway for another certificate".to_owned(),
    }
}

fn renew() -> String {
    "renew the certificate of the gateway; if it is good, correct the clock of this machine".to_owned()
}

fn set_the_clock() -> String {
    "correct the clock of this machine, or wait until the certificate begins".to_owned()
}

fn name_it(side: &str) -> String {
    format!("set {side}.sni to a name in the certificate, or ask for a certificate that has it")
}

fn trust_it(side: &str) -> String {
    format!(
        "set {side}.ca_file to a file with the certificate of that authority, or have the gateway send its intermediate \
         certificates too"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_fail_has_its_own_advice() {
        let address = "203.0.113.10:443".parse().unwrap();
        let from = Some("10.1.2.3".parse().unwrap());
        for (kind, words) in [
            (io::ErrorKind::ConnectionRefused, "nothing listens on port 443: correct new_backend"),
            (io::ErrorKind::TimedOut, "allow 10.1.2.3"),
            (io::ErrorKind::HostUnreachable, "no route from 10.1.2.3 to 203.0.113.10:443"),
        ] {
            let fix = for_tcp(&kind.into(), address, from, Cluster::New);
            assert!(fix.contains(words), "{fix}");
        }
        let tls = |error: rustls::Error, asked| for_tls(&io::Error::other(error), "new", asked, false);
        let invalid = rustls::Error::InvalidCertificate;
        for (fix, words) in [
            (tls(invalid(CertificateError::UnknownIssuer), false), "new.ca_file"),
            (tls(invalid(CertificateError::Expired), false), "renew"),
            (tls(invalid(CertificateError::NotValidForName), false), "new.sni"),
            (tls(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), true), "new.client_cert"),
            (tls(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName), false), "new.sni"),
        ] {
            assert!(fix.contains(words), "{fix}");
        }
        let name = |fault, host| for_name(&fault, host, "old_backend");
        assert!(name(dns::Fault::NoSuchName, "a.b.svc.cluster.local").contains("kubectl get service"));
        assert!(name(dns::Fault::Trouble(String::new()), "a.example").contains("port 53"));
    }
}

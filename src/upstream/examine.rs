//! The way to a cluster, step by step and without HTTP: names, TCP, TLS. Each step that fails says what to do about it.
//! Nothing that is found changes what requests know of the cluster.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ProtocolVersion, SignatureScheme, sign};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;

use super::advice;
use super::apart;
use super::connect::{Target, Wanted};
use super::dns::{self, Found};
use super::finding::Finding;
use super::pool::Pool;
use crate::tls::certificates::{Facts, Names};
use crate::tls::client::Identity;
use crate::tls::verify::reason;

/// Certificates that end sooner than this are worth a word.
const SOON: i64 = 14 * DAY;
const DAY: i64 = 24 * 60 * 60;

/// Addresses of one cluster that are tried.
const ADDRESSES: usize = 8;

/// Names of a certificate that are listed.
const NAMES: usize = 200;

/// A look-up may take longer where requests wait; here somebody waits for the end of a list.
const LOOK_UP: Duration = Duration::from_secs(4);

/// What was found on the way to a cluster.
#[derive(Debug, Default)]
pub struct Road {
    /// One for each step.
    pub findings: Vec<Finding>,
    /// Every address behind the names.
    pub addresses: Vec<SocketAddr>,
    /// Our address towards the cluster.
    pub from: Option<IpAddr>,
    /// Requests would get there.
    pub is_open: bool,
}

/// Walks the way to a cluster. `host` is a client's, for targets that take their server name from it.
pub async fn examine(pool: &Pool, wanted: Wanted, host: &str) -> Road {
    let target = pool.target();
    let mut road = Road::default();
    names(pool, &mut road).await;
    let reached = reach(target, &mut road).await;
    if let Some(tcp) = reached {
        road.is_open = match target.identity.as_deref().filter(|_| wanted != Wanted::Bytes) {
            None => true,
            Some(identity) => handshake(target, identity, wanted, host, tcp, &mut road).await,
        };
    }
    road.findings = road.findings.into_iter().map(|finding| finding.of_cluster(target.cluster)).collect();
    road
}

/// The addresses of a name, now.
///
/// # Errors
///
/// There are none, or nobody says in time.
pub async fn look_up(pool: &Pool, host: &str) -> Result<Found, dns::Fault> {
    let answer = tokio::time::timeout(LOOK_UP, pool.resolver().look_up(host)).await;
    answer.unwrap_or_else(|_| Err(dns::Fault::Trouble(format!("no answer within {} s", LOOK_UP.as_secs()))))
}

async fn names(pool: &Pool, road: &mut Road) {
    let key = advice::backend_key(pool.target().cluster);
    for authority in pool.target().authorities() {
        if let Some(address) = authority.socket_address() {
            road.addresses.push(address);
            continue;
        }
        let host = authority.host();
        road.findings.push(match look_up(pool, host).await {
            Ok(found) => {
                let all = listed(found.addresses.iter());
                road.addresses.extend(found.addresses.iter().map(|ip| SocketAddr::new(*ip, authority.port())));
                let ttl = found.ttl.as_secs();
                match found.by_search {
                    None => Finding::ok("dns", format!("{host} \u{2192} {all} (TTL {ttl} s)")),
                    Some(longer) => Finding::warn(
                        "dns",
                        format!("{host} is found only as {longer}, by the search list of this machine: {all}"),
                        format!("write {longer} in {key}: the search list of another namespace finds something else"),
                    ),
                }
            }
            Err(fault) => Finding::fail("dns", format!("{host}: {fault}"), advice::for_name(&fault, host, key)),
        });
    }
    road.addresses.dedup();
}

fn listed(addresses: impl ExactSizeIterator<Item = impl ToString>) -> String {
    let more = addresses.len().saturating_sub(ADDRESSES);
    let all: Vec<String> = addresses.take(ADDRESSES).map(|address| address.to_string()).collect();
    if more == 0 { all.join(", ") } else { format!("{} and {more} more", all.join(", ")) }
}

/// Opens a connection to each address, one after the other; gives the first one that opened.
async fn reach(target: &Target, road: &mut Road) -> Option<TcpStream> {
    let (mut first, mut reached, mut failed) = (None, Vec::new(), Vec::new());
    for address in road.addresses.iter().take(ADDRESSES).copied() {
        let start = Instant::now();
        match tokio::time::timeout(target.timeout, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                reached.push((address, start.elapsed()));
                first = first.or(Some(tcp));
            }
            Ok(Err(error)) => failed.push((address, error)),
            Err(_) => failed.push((address, io::ErrorKind::TimedOut.into())),
        }
    }
    road.from = match (&first, failed.first()) {
        (Some(tcp), _) => tcp.local_addr().ok().map(|address| address.ip()),
        (None, Some((address, _))) => source(*address).await,
        (None, None) => None,
    };
    if let Some((address, longest)) = reached.iter().max_by_key(|(_, taken)| *taken) {
        let from = road.from.map_or_else(String::new, |from| format!(", from {from}"));
        let took = milliseconds(*longest);
        road.findings.push(Finding::ok(
            "tcp",
            match reached.len() {
                1 => format!("{address} in {took}{from}"),
                several => format!("{several} addresses, the slowest {address} in {took}{from}"),
            },
        ));
    }
    if let Some((address, error)) = failed.first() {
        let from = source(*address).await;
        let found = match failed.len() {
            1 => format!("{address}: {}", words(error, target.timeout)),
            several => format!("{several} addresses fail, {address}: {}", words(error, target.timeout)),
        };
        let fix = advice::for_tcp(error, *address, from, target.cluster);
        let finding = Finding::fail("tcp", found, fix);
        // Requests go to the other addresses.
        road.findings.push(if reached.is_empty() { finding } else { finding.softened() });
    }
    first
}

/// The address that packets to `address` would come from.
async fn source(address: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    // Nothing is sent: this asks for the route.
    socket.connect(address).await.ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn milliseconds(duration: Duration) -> String {
    match duration.as_micros() {
        micros @ 0..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{} ms", duration.as_millis()),
    }
}

fn words(error: &io::Error, allowed: Duration) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => format!("no answer within {allowed:?}"),
        _ => error.to_string(),
    }
}

/// Notes whether the server asks for a certificate of ours.
#[derive(Debug)]
struct Asked {
    inner: Arc<dyn ResolvesClientCert>,
    was_asked: AtomicBool,
}

impl ResolvesClientCert for Asked {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<sign::CertifiedKey>> {
        self.was_asked.store(true, Ordering::Relaxed);
        self.inner.resolve(hints, schemes)
    }

    fn has_certs(&self) -> bool {
        self.inner.has_certs()
    }
}

/// TLS as for a request, but never resumed: a resumed handshake shows no certificate. True when it holds.
async fn handshake(
    target: &Target,
    identity: &Identity,
    wanted: Wanted,
    host: &str,
    tcp: TcpStream,
    road: &mut Road,
) -> bool {
    let side = target.cluster.as_str();
    let name = target.server_name.clone().or_else(|| ServerName::try_from(host.to_owned()).ok());
    let Some(name) = name else {
        let fix = format!("set {side}.sni to a name in the certificate");
        road.findings.push(Finding::fail("tls", format!("{host} is no server name"), fix));
        return false;
    };
    let usual = if wanted == Wanted::Http2 { &identity.http2 } else { &identity.http1 };
    let mut config = ClientConfig::clone(usual);
    let inner = config.client_auth_cert_resolver.clone();
    let has_certificate = inner.has_certs();
    let asked = Arc::new(Asked { inner, was_asked: AtomicBool::new(false) });
    config.client_auth_cert_resolver = asked.clone();
    config.resumption = Resumption::disabled();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name.clone(), tcp);
    let opened = tokio::time::timeout(target.timeout, connecting).await;
    let was_asked = || asked.was_asked.load(Ordering::Relaxed);
    let mut tls = match opened {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            let fix = advice::for_tls(&error, side, was_asked(), has_certificate);
            road.findings.push(Finding::fail("tls", reason(&error), fix));
            return false;
        }
        Err(_) => {
            let fix =
                format!("nothing speaks TLS there, or not in time: see the port, {side}.protocol and the gateway");
            road.findings.push(Finding::fail("tls", format!("no handshake within {:?}", target.timeout), fix));
            return false;
        }
    };
    let session = tls.get_ref().1;
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS 1.3",
    };
    let leaf = session.peer_certificates().and_then(|chain| chain.first()).and_then(Facts::of);
    let sni = name.to_str();
    let session = format!("{version}, {sni}");
    road.findings.push(match &leaf {
        None => Finding::ok("tls", session),
        Some(Facts { names, issuer, not_after, .. }) => {
            let said = format!("{session}: certificate for {}, signed by {issuer}", short(names));
            certificate(&said, *not_after - Timestamp::now().as_second())
        }
    });
    let refused = apart::part(&mut tls).await.err();
    road.findings.extend(identification(side, was_asked(), has_certificate, refused.as_ref()));
    refused.is_none()
}

/// What the server's certificate says, and the seconds that it is still good for.
fn certificate(said: &str, left: i64) -> Finding {
    const RENEW: &str = "renew the certificate of the gateway";
    match left {
        ..0 => Finding::warn("tls", format!("{said}, has ended"), RENEW),
        0..SOON => Finding::warn("tls", format!("{said}, ends in {} days", left / DAY), RENEW),
        _ => Finding::ok("tls", format!("{said}, ends in {} days", left / DAY)),
    }
}

fn short(names: &Names) -> String {
    let text = names.to_string();
    match text.char_indices().nth(NAMES) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text,
    }
}

/// Whether the server wants to know who we are, and is content with what it gets.
fn identification(side: &str, asked: bool, has_certificate: bool, refused: Option<&io::Error>) -> Option<Finding> {
    let configure =
        format!("set {side}.client_cert and {side}.client_key, for example to the mounted Secret client-mtls-secret");
    match (asked, has_certificate, refused) {
        (false, false, None) => None,
        (_, false, Some(error)) => {
            let found = format!("a client certificate is required and none is configured: {}", reason(error));
            Some(Finding::fail("mtls", found, configure))
        }
        (true, false, None) => Some(Finding::warn(
            "mtls",
            "a client certificate is asked for, none is configured, and none is required",
            configure,
        )),
        (_, true, Some(error)) => {
            let fix = format!(
                "have {side}.client_cert signed by an authority that the gateway trusts, and not over; the whole chain \
                 belongs into the file"
            );
            Some(Finding::fail("mtls", format!("our client certificate is refused: {}", reason(error)), fix))
        }
        (true, true, None) => Some(Finding::ok("mtls", "our client certificate is asked for and taken")),
        (false, true, None) => {
            Some(Finding::ok("mtls", "a client certificate is configured, and the server does not ask for it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;
    use crate::upstream::finding::Level;

    #[test]
    fn certificates_that_end_soon_are_told_before_they_do() {
        for (left, level, words) in [
            (64 * DAY + 1, Level::Ok, "ends in 64 days"),
            (SOON - 1, Level::Warn, "ends in 13 days"),
            (-1, Level::Warn, "has ended"),
        ] {
            let finding = certificate("TLS 1.3, a", left);
            assert!(finding.level == level && finding.found.ends_with(words), "{finding:?}");
            assert_eq!(finding.fix.is_some(), level != Level::Ok);
        }
    }

    #[test]
    fn whoever_is_asked_for_a_certificate_hears_of_it() {
        let refused = io::Error::other(rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
        for (asked, has, refused, level) in [
            (false, false, None, None),
            (true, false, None, Some(Level::Warn)),
            (true, false, Some(&refused), Some(Level::Fail)),
            (true, true, None, Some(Level::Ok)),
            (true, true, Some(&refused), Some(Level::Fail)),
            (false, true, None, Some(Level::Ok)),
        ] {
            let finding = identification("new", asked, has, refused);
            assert_eq!(finding.map(|finding| finding.level), level, "{asked} {has}");
        }
    }

    #[tokio::test]
    async fn our_address_is_known_without_a_connection() {
        assert_eq!(source("127.0.0.1:9".parse().unwrap()).await, Some(Ipv4Addr::LOCALHOST.into()));
    }
}

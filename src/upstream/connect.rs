//! A new connection to a backend: name, TCP and TLS under one deadline. Says which step failed and which protocol was
//! agreed.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::endpoints::{Endpoint, Endpoints};
use super::resolve::{Known, Name, ResolveError, Resolver};
use crate::config::{Authority, Cluster, Protocol};
use crate::net::listener::tune;
use crate::net::stream::Stream;
use crate::net::watched::{Watched, Watcher};
use crate::telemetry::labels::Phase;
use crate::telemetry::metrics::ServiceMeters;
use crate::tls::client::Identity;
use crate::tls::verify::reason;

/// Where an upstream is and how it is spoken to.
#[derive(Debug)]
pub struct Target {
    /// Which side of the migration.
    pub cluster: Cluster,
    /// What is spoken.
    pub protocol: Protocol,
    /// The server name; `None`: the one that the request brings.
    pub server_name: Option<ServerName<'static>>,
    /// Trust and certificate, for TLS.
    pub identity: Option<Arc<Identity>>,
    /// Name, TCP and TLS together.
    pub timeout: Duration,
    backends: Vec<Backend>,
    endpoints: Endpoints,
}

#[derive(Debug)]
struct Backend {
    authority: Authority,
    /// `None`: the host is an address.
    name: Option<Arc<Name>>,
}

/// What is asked of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, or HTTP/1.1 where ALPN says so.
    Http2,
    /// TCP alone, whatever the protocol is: the bytes are not ours.
    Bytes,
}

/// A connection that is ready for HTTP.
#[derive(Debug)]
pub struct Connected {
    /// The bytes.
    pub stream: Stream,
    /// Looks at the bytes from outside.
    pub watcher: Watcher,
    /// What was agreed.
    pub is_http2: bool,
    /// The address behind the name.
    pub endpoint: Arc<Endpoint>,
}

/// Why there is no connection.
#[derive(Debug)]
pub struct ConnectError {
    /// The address that was tried, if it came to that.
    pub address: Option<SocketAddr>,
    /// Another address may do.
    pub has_alternative: bool,
    /// What went wrong.
    pub cause: ConnectCause,
}

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectCause {
    /// No address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No TCP connection.
    #[error("connect: {0}")]
    Tcp(io::Error),
    /// No TLS.
    #[error("TLS: {}", reason(.0))]
    Tls(io::Error),
    /// A step took too long.
    #[error("{} timed out", .0.as_str())]
    TimedOut(Phase),
    /// Another request was opening the connection that this one waited for.
    #[error("connect: the connection that others wait for too could not be opened")]
    Shared,
    /// The request's host is no server name.
    #[error("the request's host is no valid server name")]
    ServerName,
}

impl ConnectCause {
    /// This process or its machine ran out of something: descriptors, ports, memory. No address would have done.
    pub fn is_own_shortage(&self) -> bool {
        const SHORTAGES: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
        let Self::Tcp(error) = self else { return false };
        error.raw_os_error().is_some_and(|number| SHORTAGES.iter().any(|errno| errno.raw_os_error() == number))
    }
}

impl Target {
    /// A target of one or several backends. Its names are not looked up before the first connection.
    pub fn new(
        cluster: Cluster,
        backends: &[Authority],
        protocol: Protocol,
        server_name: Option<ServerName<'static>>,
        identity: Option<Arc<Identity>>,
        timeout: Duration,
        resolver: &Resolver,
    ) -> Self {
        let endpoints = Endpoints::new(backends.len());
        let backend = |(index, authority): (usize, &Authority)| {
            let name = match authority.socket_address() {
                Some(address) => {
                    endpoints.learn(index, vec![address], Vec::new());
                    None
                }
                None => Some(resolver.name(authority.host())),
            };
            Backend { authority: authority.clone(), name }
        };
        let backends = backends.iter().enumerate().map(backend).collect();
        Self { cluster, protocol, server_name, identity, timeout, backends, endpoints }
    }

    /// The backends as configured.
    pub fn authorities(&self) -> impl Iterator<Item = &Authority> {
        self.backends.iter().map(|backend| &backend.authority)
    }

    /// Connections of one serve the other: a reload keeps the pool.
    pub fn is_same(&self, other: &Self) -> bool {
        self.cluster == other.cluster
            && self.protocol == other.protocol
            && self.server_name == other.server_name
            && self.identity == other.identity
            && self.timeout == other.timeout
            && self.authorities().eq(other.authorities())
    }

    /// With whom TLS is spoken, where it is.
    fn tls(&self, wanted: Wanted) -> Option<&Identity> {
        self.identity.as_deref().filter(|_| wanted != Wanted::Bytes)
    }

    /// The addresses behind the names.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The backends that are names, by number.
    pub(super) fn names(&self) -> impl Iterator<Item = (usize, &Arc<Name>)> {
        self.backends.iter().enumerate().filter_map(|(index, backend)| Some((index, backend.name.as_ref()?)))
    }

    /// What became known of backend number `index`.
    pub(super) fn learn(&self, index: usize, known: &Known) {
        let port = self.backends[index].authority.port();
        let all = |ips: &[IpAddr]| ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        match known {
            Known::Nothing => {}
            Known::Addresses(known) => self.endpoints.learn(index, all(&known.current), all(&known.leaving)),
            Known::Failed(_) => self.endpoints.withhold(index),
        }
    }

    /// Takes over what is known of the names, and waits only while that is no address at all: one name that fails or
    /// takes its time does not take the other backends along.
    async fn resolve(&self, resolver: &Arc<Resolver>) -> Result<(), ResolveError> {
        let mut error = None;
        let mut unknown: Vec<_> = self.names().map(|(index, name)| (index, resolver.follow(name))).collect();
        loop {
            unknown.retain_mut(|(index, receiver)| {
                let known = receiver.borrow_and_update().clone();
                self.learn(*index, &known);
                match known {
                    Known::Nothing => true,
                    Known::Addresses(_) => false,
                    Known::Failed(failed) => {
                        error = Some(failed);
                        false
                    }
                }
            });
            match error.take_if(|_| unknown.is_empty()) {
                _ if self.endpoints.has_any() => return Ok(()),
                Some(error) => return Err(error),
                None => any_changed(&mut unknown).await,
            }
        }
    }
}

/// Waits for the first change.
async fn any_changed(receivers: &mut [(usize, watch::Receiver<Known>)]) {
    let mut changes: Vec<Pin<Box<dyn Future<Output = _> + Send>>> = Vec::new();
    for (_, receiver) in receivers {
        changes.push(Box::pin(receiver.changed()));
    }
    poll_fn(|cx| match changes.iter_mut().any(|change| change.as_mut().poll(cx).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// Opens a connection. `host` is the request's host, for targets that take their server name from it. `meters` hear how
/// long each step took; probes bring none.
///
/// # Errors
///
/// The step that failed; a deadline that passed names the step that was under way.
pub async fn connect(
    target: &Target,
    resolver: &Arc<Resolver>,
    wanted: Wanted,
    host: Option<&str>,
    deadline: Instant,
    meters: Option<&ServiceMeters>,
) -> Result<Connected, ConnectError> {
    let start = Instant::now();
    let deadline = tokio::time::Instant::from_std(deadline.min(start + target.timeout));
    let nowhere = |cause| ConnectError { address: None, has_alternative: false, cause };
    within(deadline, Phase::Dns, target.resolve(resolver)).await.map_err(nowhere)?;
    let resolved = Instant::now();
    let choice = async { target.endpoints.choose().await.ok_or_else(no_address) };
    let opening = within(deadline, Phase::Connect, choice).await.map_err(nowhere)?;
    let chosen = Instant::now();
    let opened = open(target, opening.address(), wanted, host, deadline).await;
    let now = Instant::now();
    let (stream, watcher, is_http2, connected) = match opened {
        Ok(opened) => opened,
        Err(cause) => {
            let (address, has_alternative) = (Some(opening.address()), opening.has_alternative());
            if blames_address(&cause, now - chosen, target.timeout) {
                opening.failed(now);
            }
            return Err(ConnectError { address, has_alternative, cause });
        }
    };
    if let Some(meters) = meters {
        meters.connected(target.cluster, now - start);
    }
    if let Some(meters) = meters.filter(|_| target.cluster == Cluster::New) {
        meters.connect_phase(Phase::Dns, resolved - start);
        meters.connect_phase(Phase::Connect, connected - resolved);
        if target.tls(wanted).is_some() {
            meters.connect_phase(Phase::Tls, now - connected);
        }
    }
    Ok(Connected { stream, watcher, is_http2, endpoint: opening.opened(now) })
}

/// TCP, then TLS; says when TCP was there.
async fn open(
    target: &Target,
    address: SocketAddr,
    wanted: Wanted,
    host: Option<&str>,
    deadline: tokio::time::Instant,
) -> Result<(Stream, Watcher, bool, Instant), ConnectCause> {
    let tcp = async { TcpStream::connect(address).await.map_err(ConnectCause::Tcp) };
    let tcp = within(deadline, Phase::Connect, tcp).await?;
    tune(&tcp);
    let connected = Instant::now();
    let (tcp, watcher) = Watched::new(tcp);
    let (stream, is_http2) = match target.tls(wanted) {
        None => (Stream::Upstream(tcp), target.protocol == Protocol::H2c),
        Some(identity) => within(deadline, Phase::Tls, handshake(target, identity, wanted, host, tcp)).await?,
    };
    Ok((stream, watcher, is_http2, connected))
}

fn no_address() -> ConnectCause {
    ConnectCause::Tcp(io::ErrorKind::AddrNotAvailable.into())
}

/// A request that had next to no time left says nothing about the address that it could not reach.
fn blames_address(cause: &ConnectCause, taken: Duration, allowed: Duration) -> bool {
    match cause {
        ConnectCause::Tcp(_) => !cause.is_own_shortage(),
        ConnectCause::Tls(_) => true,
        ConnectCause::TimedOut(_) => taken >= allowed / 2,
        ConnectCause::Resolve(_) | ConnectCause::Shared | ConnectCause::ServerName => false,
    }
}

async fn within<T, E: Into<ConnectCause>>(
    deadline: tokio::time::Instant,
    phase: Phase,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, ConnectCause> {
    match tokio::time::timeout_at(deadline, step).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(ConnectCause::TimedOut(phase)),
    }
}

async fn handshake(
    target: &Target,
    identity: &Identity,
    wanted: Wanted,
    host: Option<&str>,
    tcp: Watched,
) -> Result<(Stream, bool), ConnectCause> {
    let of_request = || ServerName::try_from(host?).ok().map(|name| name.to_owned());
    let name = target.server_name.clone().or_else(of_request).ok_or(ConnectCause::ServerName)?;
    let config = match wanted {
        Wanted::Http1 | Wanted::Bytes => identity.http1.clone(),
        Wanted::Http2 => identity.http2.clone(),
    };
    let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(ConnectCause::Tls)?;
    let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Stream::Client(Box::new(tls)), is_http2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_lack_ourselves_blames_nobody() {
        let tcp = |errno: Errno| ConnectCause::Tcp(io::Error::from_raw_os_error(errno.raw_os_error()));
        for (errno, expected) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::ADDRNOTAVAIL, true),
            (Errno::CONNREFUSED, false),
            (Errno::HOSTUNREACH, false),
        ] {
            assert_eq!(tcp(errno).is_own_shortage(), expected, "{errno}");
        }
        assert!(!no_address().is_own_shortage());
    }
}

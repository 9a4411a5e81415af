//! A new connection to a backend: name, TCP and TLS under one deadline. Says which step failed and which protocol was
//! agreed.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::resolve::{Name, ResolveError, Resolver};
use crate::config::{Authority, Cluster, Protocol};
use crate::net::listener::tune;
use crate::net::stream::Stream;
use crate::telemetry::labels::Phase;
use crate::telemetry::metrics::ServiceMeters;
use crate::tls::client::{Identity, reason};

/// An address that refused a connection is left alone this long while there are others.
const REST: Duration = Duration::from_secs(10);

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
    turn: AtomicUsize,
    resting: Mutex<Vec<(SocketAddr, Instant)>>,
}

#[derive(Debug)]
struct Backend {
    authority: Authority,
    name: Arc<Name>,
}

/// The HTTP version that a request asks of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, or HTTP/1.1 where ALPN says so.
    Http2,
}

/// A connection that is ready for HTTP.
#[derive(Debug)]
pub struct Connected {
    /// The bytes.
    pub stream: Stream,
    /// What was agreed.
    pub is_http2: bool,
    /// The address behind the name.
    pub address: SocketAddr,
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

impl Target {
    /// A target of one or several backends.
    pub fn new(
        cluster: Cluster,
        backends: &[Authority],
        protocol: Protocol,
        server_name: Option<ServerName<'static>>,
        identity: Option<Arc<Identity>>,
        timeout: Duration,
    ) -> Self {
        let backend =
            |authority: &Authority| Backend { authority: authority.clone(), name: Name::new(authority.host()) };
        Self {
            cluster,
            protocol,
            server_name,
            identity,
            timeout,
            backends: backends.iter().map(backend).collect(),
            turn: AtomicUsize::new(rand::random_range(0..64)),
            resting: Mutex::new(Vec::new()),
        }
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

    async fn addresses(&self, resolver: &Arc<Resolver>) -> Result<Vec<SocketAddr>, ResolveError> {
        let mut addresses = Vec::new();
        let mut error = None;
        for backend in &self.backends {
            if let Some(address) = backend.authority.socket_address() {
                addresses.push(address);
                continue;
            }
            match resolver.addresses(&backend.name).await {
                Ok(found) => {
                    addresses.extend(found.iter().map(|ip| SocketAddr::new(*ip, backend.authority.port())));
                }
                Err(failed) => error = Some(failed),
            }
        }
        // One name that fails does not take the other backends along.
        match error {
            Some(error) if addresses.is_empty() => Err(error),
            _ => Ok(addresses),
        }
    }

    /// The next address in turn that does not rest, and whether there is another one.
    fn choose(&self, addresses: &[SocketAddr], now: Instant) -> Option<(SocketAddr, bool)> {
        if let [only] = addresses {
            return Some((*only, false));
        }
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|(_, until)| *until > now);
        let awake: Vec<_> = addresses.iter().filter(|a| !resting.iter().any(|(r, _)| r == *a)).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match awake.len() {
            0 => addresses.get(turn.checked_rem(addresses.len())?).map(|address| (*address, false)),
            count => Some((*awake[turn % count], count > 1)),
        }
    }

    fn rest(&self, address: SocketAddr, now: Instant) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|(resting, _)| *resting != address);
        resting.push((address, now + REST));
    }
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
    let addresses = within(deadline, Phase::Dns, target.addresses(resolver)).await.map_err(nowhere)?;
    let resolved = Instant::now();
    let Some((address, has_alternative)) = target.choose(&addresses, resolved) else {
        return Err(nowhere(ConnectCause::Tcp(io::ErrorKind::AddrNotAvailable.into())));
    };
    let failed = |cause| {
        target.rest(address, Instant::now());
        ConnectError { address: Some(address), has_alternative, cause }
    };

    let tcp = async { TcpStream::connect(address).await.map_err(ConnectCause::Tcp) };
    let tcp = within(deadline, Phase::Connect, tcp).await.map_err(failed)?;
    tune(&tcp);
    let connected = Instant::now();
    let (stream, is_http2) = match &target.identity {
        None => (Stream::Plain(tcp), target.protocol == Protocol::H2c),
        Some(identity) => {
            let tls = handshake(target, identity, wanted, host, tcp);
            within(deadline, Phase::Tls, tls).await.map_err(failed)?
        }
    };
    if let Some(meters) = meters.filter(|_| target.cluster == Cluster::New) {
        meters.connect_phase(Phase::Dns, resolved - start);
        meters.connect_phase(Phase::Connect, connected - resolved);
        if target.identity.is_some() {
            meters.connect_phase(Phase::Tls, connected.elapsed());
        }
    }
    Ok(Connected { stream, is_http2, address })
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
    tcp: TcpStream,
) -> Result<(Stream, bool), ConnectCause> {
    let of_request = || ServerName::try_from(host?).ok().map(|name| name.to_owned());
    let name = target.server_name.clone().or_else(of_request).ok_or(ConnectCause::ServerName)?;
    let config = match wanted {
        Wanted::Http1 => identity.http1.clone(),
        Wanted::Http2 => identity.http2.clone(),
    };
    let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(ConnectCause::Tls)?;
    let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Stream::Client(Box::new(tls)), is_http2))
}

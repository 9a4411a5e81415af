//! Requests of our own to one cluster of a service: the head is prepared and addressed as a client's would be, and the
//! answer is mapped back as for a client. Neither breaker, pool nor meters hear of them. `doctor` and `verify` ask so.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, UPGRADE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Uri, Version};

use super::headers::{self, Destination, Length};
use super::hop_by_hop;
use super::host::{self, Host};
use super::sender::{RequestId, Scheme, Sender};
use crate::config::{Cluster, Protocol};
use crate::routing::service::Service;
use crate::upstream::apart::{self, Reply};
use crate::upstream::body::OutBody;
use crate::upstream::connect::{ConnectCause, Wanted};
use crate::upstream::probe::{cause, one_host};

const AGENT: HeaderValue = HeaderValue::from_static(concat!("migration-proxy/", env!("CARGO_PKG_VERSION")));

/// No answer is waited for longer, whatever the service's own deadline is.
const LONGEST: Duration = Duration::from_secs(15);

/// What a client would ask.
#[derive(Clone, Debug)]
pub struct Inquiry {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: PathAndQuery,
    /// The client's fields. Without Host it is a host of the service.
    pub fields: HeaderMap,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The request makes no sense.
    #[error("the host or the target is malformed")]
    Malformed,
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectCause),
    /// The connection ended without an answer, or the answer makes no sense.
    #[error("no answer: {}", cause(.0))]
    Http(#[from] hyper::Error),
    /// Not done in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// An answer as the client would get it.
#[derive(Debug)]
pub struct Answered {
    /// Head and body.
    pub reply: Reply,
    /// The id that the request carried.
    pub id: String,
    /// How long it took, connecting included.
    pub taken: Duration,
}

impl Answered {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.reply.head.status
    }

    /// The text of a field.
    pub fn field(&self, name: HeaderName) -> Option<&str> {
        self.reply.head.headers.get(name)?.to_str().ok()
    }

    /// Our own refusal with the id of this request: it went round and came back to a proxy like this one.
    pub fn came_back(&self) -> bool {
        let end = format!("(request {})", self.id);
        self.status() == StatusCode::LOOP_DETECTED
            || String::from_utf8_lossy(&self.reply.body).trim_end().ends_with(&end)
    }
}

impl Inquiry {
    /// A request without fields.
    pub fn new(method: Method, target: PathAndQuery) -> Self {
        Self { method, target, fields: HeaderMap::new() }
    }

    /// A GET.
    pub fn get(target: PathAndQuery) -> Self {
        Self::new(Method::GET, target)
    }

    /// From a client that speaks TLS.
    #[must_use]
    pub fn over_tls(mut self) -> Self {
        self.fields.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        self
    }

    /// A WebSocket's beginning.
    #[must_use]
    pub fn upgrading(mut self) -> Self {
        for (name, value) in [
            (http::header::CONNECTION, "Upgrade"),
            (UPGRADE, "websocket"),
            (http::header::SEC_WEBSOCKET_VERSION, "13"),
            // The sample of RFC 6455: any 16 bytes will do.
            (http::header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            self.fields.insert(name, HeaderValue::from_static(value));
        }
        self
    }

    /// From a page of this origin.
    #[must_use]
    pub fn from_origin(mut self, origin: &str) -> Self {
        if let Ok(origin) = HeaderValue::try_from(origin) {
            self.fields.insert(ORIGIN, origin);
        }
        self
    }

    fn wants_upgrade(&self) -> bool {
        self.fields.contains_key(UPGRADE)
    }

    /// The head as a client sends it, its host and its id.
    fn head(&self, service: &Service) -> Result<(http::request::Parts, Host, RequestId), Fault> {
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = self.method.clone();
        head.uri = Uri::from(self.target.clone());
        head.version = Version::HTTP_11;
        head.headers = self.fields.clone();
        let name = service.config.old_host.first().map(one_host).unwrap_or_default();
        if !head.headers.contains_key(HOST) {
            head.headers.insert(HOST, HeaderValue::try_from(name).map_err(|_| Fault::Malformed)?);
        }
        head.headers.entry(USER_AGENT).or_insert(AGENT);
        head.headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        let request = Request::from_parts(head, ());
        let host = host::host(&request).map_err(|_| Fault::Malformed)?;
        let id = RequestId::of(request.headers(), &service.headers);
        Ok((request.into_parts().0, host, id))
    }
}

/// Asks a cluster once; at most `most` bytes of the body are read.
///
/// # Errors
///
/// There is no answer.
pub async fn ask(service: &Service, cluster: Cluster, inquiry: &Inquiry, most: usize) -> Result<Answered, Fault> {
    let start = Instant::now();
    let allowed = service.config.timeouts.total.min(LONGEST);
    let deadline = start + allowed;
    let asked = tokio::time::timeout_at(deadline.into(), Box::pin(send(service, cluster, inquiry, most, deadline)));
    let (reply, id) = asked.await.unwrap_or(Err(Fault::TimedOut(allowed)))?;
    Ok(Answered { reply, id: id.as_str().to_owned(), taken: start.elapsed() })
}

async fn send(
    service: &Service,
    cluster: Cluster,
    inquiry: &Inquiry,
    most: usize,
    deadline: Instant,
) -> Result<(Reply, RequestId), Fault> {
    let (mut head, host, id) = inquiry.head(service)?;
    // Whoever may ask is trusted: what the fields say of the client is kept.
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let peer_text = HeaderValue::from_static("127.0.0.1");
    let scheme = Scheme::of_client(Scheme::Http, true, &head.headers);
    let sender = Sender { peer, peer_text: &peer_text, client: peer, trusted: true, scheme, host: &host };
    let upgrade = hop_by_hop::wanted_upgrade(&head);
    headers::prepare(&mut head, &service.headers, &sender, &id, upgrade.as_ref());
    let options = match cluster {
        Cluster::Old => &service.config.old,
        Cluster::New => &service.config.new,
    };
    // HTTP/2 knows no upgrades.
    let can_choose = inquiry.wants_upgrade() && options.protocol == Protocol::Https;
    let wanted = if can_choose { Wanted::Http1 } else { service.wanted(cluster, false) };
    let pool = &service.upstream(cluster).pool;
    let connected = apart::connect(pool, wanted, host.name(), deadline).await.map_err(|error| error.cause)?;
    let version = if connected.is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    let tls = apart::is_tls(&connected.stream);
    let destination = Destination { cluster, version, tls, body: Length::Ended };
    headers::address(&mut head, &service.headers, &sender, &id, &destination);
    let request = Request::from_parts(head, OutBody::Empty);
    let mut reply = apart::ask(pool, connected, request, most, deadline).await?;
    headers::to_downstream(&mut reply.head, &service.headers, cluster, &sender, &id, Version::HTTP_11);
    Ok((reply, id))
}

//! The life of one request, top to bottom.

pub mod body;
pub mod compare;
pub mod connection;
pub mod examine;
pub mod exchange;
pub mod failure;
pub mod forward;
pub mod grpc;
pub mod headers;
pub mod hop_by_hop;
pub mod host;
pub mod inquiry;
pub mod interim;
pub mod origins;
pub mod reply;
pub mod rewrite;
pub mod sender;
pub mod timeouts;
pub mod tries;
pub mod upgrade;
pub mod verify;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, Version, header};
use hyper::body::Incoming;

use body::{Answer, ResponseBody};
use connection::Connection;
use exchange::Exchange;
use failure::{Failure, Refusal};
use forward::{Draft, Forwarded, forward};
use host::Host;
use interim::Interim;
use sender::{RequestId, Scheme, Sender};
use timeouts::Timer;
use tries::Stop;
use upgrade::Tunnel;

use crate::config::{Cluster, Limits, UnknownHost};
use crate::routing::client_address::{self, Suspicion};
use crate::routing::decide::{Decision, Facts, Untraced};
use crate::routing::live::Live;
use crate::routing::service::{Edge, Service};
use crate::routing::table;
use crate::shutdown::Drain;
use crate::telemetry::Telemetry;
use crate::telemetry::labels::{FallbackCause, Reason, RejectCause};
use crate::upstream::body::{Gate, OutBody};

/// Longer than any call lasts.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Forwards requests; one for the whole process.
pub struct Proxy {
    live: Arc<Live>,
    telemetry: Arc<Telemetry>,
    suspicion: Arc<Suspicion>,
    drain: Drain,
    in_flight: AtomicUsize,
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer")]
pub struct Closed;

/// What is known of a request before its decision.
struct Found {
    service: Arc<Service>,
    host: Host,
    id: RequestId,
    client: IpAddr,
    trusted: bool,
    scheme: Scheme,
}

impl Proxy {
    /// A proxy that serves what is in `live`.
    pub fn new(live: Arc<Live>, telemetry: Arc<Telemetry>, suspicion: Arc<Suspicion>, drain: Drain) -> Self {
        Self { live, telemetry, suspicion, drain, in_flight: AtomicUsize::new(0) }
    }

    /// What is counted and logged.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// Whether the process is on its way out and takes no new work.
    pub fn is_draining(&self) -> bool {
        self.drain.has_started()
    }

    /// What holds for every request.
    pub fn edge(&self) -> Arc<Edge> {
        self.live.edge()
    }

    /// The service of a TLS server name, where its connections are relayed as they are.
    pub fn passed_through(&self, server_name: &str) -> Option<Arc<Service>> {
        let name = table::normalise(server_name)?;
        self.live.service(&name).ok().filter(|service| service.passes_through())
    }

    /// A connection ends because of its PROXY header: it cannot be read, or it comes from a peer that is not trusted.
    pub fn refused_proxy_header(&self, peer: IpAddr, trusted: bool) {
        self.telemetry.process.rejected(RejectCause::Proxy);
        if !trusted && self.suspicion.note_proxy_header(peer) {
            tracing::warn!(
                %peer,
                "a private peer sends PROXY headers but is not trusted: its connections are closed; if it is your load \
                 balancer, add listen.trusted_proxies: [\"{peer}\"] (or its network)"
            );
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    ///
    /// The host is unknown and `listen.unknown_host` is `close`, or the client has left.
    pub async fn handle(
        &self,
        connection: &Connection,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Closed> {
        let mut exchange = Exchange::begin(self.telemetry.clone(), connection, &request);
        let is_grpc = grpc::is_grpc(request.headers());
        let found = match self.find(connection, &request, &mut exchange) {
            Ok(found) => found,
            Err(Some(refusal)) => return Ok(reply::refused(exchange, refusal, is_grpc)),
            Err(None) => return Err(Closed),
        };
        if hop_by_hop::forwards_left(request.method(), request.headers()) == Some(0) {
            return Ok(reply::last_stop(exchange));
        }
        let service = &found.service;
        let Some(in_flight) = self.enter(&service.edge.limits) else {
            return Ok(reply::refused(exchange, Refusal::InFlight, is_grpc));
        };
        let facts = Facts {
            method: request.method(),
            path: request.uri().path(),
            headers: request.headers(),
            client: found.client,
        };
        let decision = service.decide(&facts, exchange.start(), &mut Untraced);
        exchange.decided(decision);
        if decision.refused {
            return Ok(reply::refused(exchange, Refusal::Pinned, is_grpc));
        }
        count_diversion(service, &decision);
        if decision.cluster == Cluster::New && service.redirects() {
            return Ok(match rewrite::redirect(&service.headers, request.uri()) {
                Some(location) => reply::redirect(exchange, service.config.redirect_code, location),
                None => reply::refused(exchange, Refusal::Malformed("this target cannot be redirected"), is_grpc),
            });
        }

        let sender = found.sender(connection);
        let client_upgrade = hyper::upgrade::on(&mut request);
        let mut timer = Timer::new(connection.flow.clone());
        let gate = expects_continue(&request).then(Arc::<Gate>::default);
        let interim = Interim::new(&connection.flow, request.version(), gate).await;
        let mut draft = found.draft(&sender, connection, request, is_grpc, interim, &mut exchange);
        let forwarded = forward(&mut draft, &decision, &mut exchange, &mut timer).await;
        drop(in_flight);
        draft.interim.written().await;
        let (upload, wants_upgrade, own_deadline) = (draft.upload.take(), draft.upgrade.is_some(), draft.own_deadline);
        match forwarded {
            Err(Stop::Refused(refusal)) => Ok(reply::refused(exchange, refusal, is_grpc)),
            Err(Stop::Failed(Failure::Upload(fault))) => match Refusal::of_upload(fault) {
                Some(refusal) => Ok(reply::refused(exchange, refusal, is_grpc)),
                None => Err(Closed),
            },
            Err(Stop::Failed(failure)) => {
                tracing::debug!(service = service.name(), %failure, "request failed");
                let detail = service.headers.reveals(service.edge.trust.contains(found.client));
                Ok(reply::failed(exchange, &failure, detail, is_grpc))
            }
            Ok(forwarded) => {
                let Forwarded { cluster, response, lease, reusable, settled, at, .. } = forwarded;
                exchange.answered(cluster.into(), response.status(), at);
                let mut response = found.downstream(cluster, &decision, &sender, response, &exchange);
                // Nobody will read the rest of this upload, so the connection cannot go on.
                let is_over = response.status().is_client_error() || draft.interim.holds_body();
                if is_over && !exchange.has_upload_ended() {
                    reply::close(&mut response);
                }
                if wants_upgrade && response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                    let upstream = hyper::upgrade::on(&mut response);
                    let service = found.service.clone();
                    let place = connection.place.clone();
                    let long_lived = service.upstream(cluster).long_lived.enter(at.into());
                    let tunnel =
                        Tunnel { client: client_upgrade, upstream, lease, long_lived, service, exchange, place };
                    tunnel.start(self.drain.hold());
                    return Ok(response.map(|_| ResponseBody::Empty));
                }
                let service = found.service.clone();
                Ok(response.map(|body| {
                    let answer = Answer { body, lease, cluster, upload, reusable, settled, own_deadline, at };
                    ResponseBody::passing(answer, service.config.timeouts.idle, exchange, timer)
                }))
            }
        }
    }

    /// Who asks which service for what; a refusal, or `None` for closing without an answer.
    fn find(
        &self,
        connection: &Connection,
        request: &Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<Found, Option<Refusal>> {
        let headers = request.headers();
        let peer = connection.peer.ip();
        let Ok(host) = host::host(request) else {
            exchange.anonymous(RequestId::without_service(headers));
            return Err(Some(Refusal::Malformed("the host or the target is malformed")));
        };
        let service = self.live.service(host.name());
        let edge = match &service {
            Ok(service) => &service.edge,
            Err(edge) => edge,
        };
        let trusted = edge.trust.contains(peer);
        let client = client_address::client(&edge.trust, headers, peer);
        let id = match &service {
            Ok(service) => RequestId::of(headers, &service.headers),
            Err(_) => RequestId::without_service(headers),
        };
        exchange.identified(&host, client, id.clone());
        if let Ok(service) = &service {
            exchange.found(service, host.name());
        }
        if !trusted && self.suspicion.note(peer, headers) {
            warn_of_forwarder(peer);
        }
        if connection.shown.as_ref().is_some_and(|shown| !shown.covers(host.name())) {
            return Err(Some(Refusal::Misdirected));
        }
        let service = match service {
            Ok(service) if service.passes_through() => {
                // Of a TLS connection that is another service's the client shall open one of its own.
                let is_tls = connection.shown.is_some();
                return Err(Some(if is_tls { Refusal::Misdirected } else { Refusal::UnknownHost }));
            }
            Ok(service) => service,
            Err(edge) => {
                return Err(match edge.unknown_host {
                    UnknownHost::NotFound => Some(Refusal::UnknownHost),
                    UnknownHost::Misdirected => Some(Refusal::Misdirected),
                    UnknownHost::Close => {
                        exchange.rejected(Refusal::UnknownHost.cause());
                        None
                    }
                });
            }
        };
        check(request, &service).map_err(Some)?;
        let scheme = Scheme::of_client(connection.scheme, trusted, headers);
        Ok(Found { service, host, id, client, trusted, scheme })
    }

    /// A place among the requests that wait for a response head.
    fn enter(&self, limits: &Limits) -> Option<InFlight<'_>> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let place = InFlight(&self.in_flight);
        // The place that was one too many is given back by its drop.
        (before < limits.max_in_flight).then_some(place)
    }
}

/// A place under `limits.max_in_flight`.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Found {
    fn sender<'a>(&'a self, connection: &'a Connection) -> Sender<'a> {
        Sender {
            peer: connection.peer.ip().to_canonical(),
            peer_text: &connection.peer_text,
            client: self.client,
            trusted: self.trusted,
            scheme: self.scheme,
            host: &self.host,
        }
    }

    /// The request, prepared for either cluster.
    fn draft<'a>(
        &'a self,
        sender: &'a Sender<'a>,
        connection: &Connection,
        request: Request<Incoming>,
        is_grpc: bool,
        interim: Interim,
        exchange: &mut Exchange,
    ) -> Draft<'a> {
        let service = &self.service;
        let (mut head, body) = request.into_parts();
        let gate = interim.gate().cloned();
        let (limit, idle) = (service.edge.limits.request_body, service.edge.timeouts.body_idle);
        let (body, upload) = OutBody::new(body, head.version, limit, idle, gate);
        if let Some(upload) = &upload {
            exchange.uploads(upload.clone());
        }
        let upgrade = hop_by_hop::wanted_upgrade(&head);
        let own = is_grpc.then(|| grpc::timeout(&head.headers)).flatten().map(|own| own.min(FOR_EVER));
        let timeouts = &service.config.timeouts;
        // A gRPC call without a deadline of its own may wait as long as it takes; only silence ends it.
        let (total, patience) = match (is_grpc, own) {
            (false, _) => (timeouts.total, timeouts.response_header),
            (true, Some(own)) => (own, own),
            (true, None) => (FOR_EVER, timeouts.idle),
        };
        headers::prepare(&mut head, &service.headers, sender, &self.id, upgrade.as_ref());
        Draft {
            service,
            sender,
            id: &self.id,
            head,
            body: Some(body),
            repeatable: upload.is_none() && upgrade.is_none() && is_safe(exchange.method()),
            upload,
            interim,
            upgrade,
            is_grpc,
            worker: connection.worker,
            stands_still: own.is_none(),
            own_deadline: own.is_some_and(|own| own < timeouts.total),
            patience,
            deadline: exchange.start() + total,
            start: exchange.start(),
        }
    }

    /// The head of a cluster's response as the client gets it.
    fn downstream(
        &self,
        cluster: Cluster,
        decision: &Decision,
        sender: &Sender<'_>,
        response: Response<Incoming>,
        exchange: &Exchange,
    ) -> Response<Incoming> {
        let service = &self.service;
        let (mut head, body) = response.into_parts();
        let dropped =
            headers::to_downstream(&mut head, &service.headers, cluster, sender, &self.id, exchange.version());
        for _ in 0..dropped {
            service.meters.cookie_domain_dropped();
        }
        if let Some(key) = decision.fresh_key
            && !is_shared(&head.headers)
            && let Some(cookie) = service.rules.set_cookie_value(key, sender.scheme == Scheme::Https)
        {
            head.headers.append(header::SET_COOKIE, cookie);
        }
        if service.headers.reveals(service.edge.trust.contains(self.client)) {
            let bucket = decision.bucket.map(|bucket| bucket.basis_points());
            headers::reveal(&mut head.headers, cluster.as_str(), exchange.reason().as_str(), bucket);
        }
        Response::from_parts(head, body)
    }
}

/// What holds whatever the decision will be.
fn check(request: &Request<Incoming>, service: &Service) -> Result<(), Refusal> {
    let limits = &service.edge.limits;
    let headers = request.headers();
    match *request.method() {
        Method::CONNECT => return Err(Refusal::Malformed("CONNECT is not served")),
        // It would show credentials to whoever can make a browser ask (RFC 9110, 9.3.8).
        Method::TRACE => return Err(Refusal::Method),
        _ => {}
    }
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum();
    if fields + target > limits.header_bytes || headers.len() > limits.header_count {
        return Err(Refusal::Header);
    }
    if target > limits.uri_bytes {
        return Err(Refusal::Uri);
    }
    if !has_one_coding(request) {
        return Err(Refusal::Malformed("this transfer coding is not served"));
    }
    if let Some(most) = limits.request_body
        && http_body::Body::size_hint(request.body()).lower() > most
    {
        return Err(Refusal::Body);
    }
    if headers::passes(headers, &service.headers) >= 2 {
        return Err(Refusal::Loop);
    }
    Ok(())
}

/// Chunks are the only transfer coding of a request, named once: whatever else hyper reads as chunks, a server behind us
/// may read in another way (RFC 9112, 6.1). Bodies of a known length have none.
fn has_one_coding(request: &Request<Incoming>) -> bool {
    if http_body::Body::size_hint(request.body()).exact().is_some() {
        return true;
    }
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// The client sends its body only when it is asked for it (RFC 9110, 10.1.1). hyper asks as soon as the body is read.
fn expects_continue<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request
            .headers()
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Methods without an effect (RFC 9110, 9.2.1).
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Decisions for new that its state turned to old count as fallbacks too.
pub fn count_diversion(service: &Service, decision: &Decision) {
    match decision.reason {
        Reason::Breaker => service.meters.fallback(FallbackCause::Breaker),
        Reason::Unhealthy => service.meters.fallback(FallbackCause::Unhealthy),
        _ => {}
    }
}

/// Whether a shared cache may keep the answer: a cookie on it would give one key to many clients.
fn is_shared(headers: &HeaderMap) -> bool {
    let directives = headers.get_all(header::CACHE_CONTROL).iter().flat_map(hop_by_hop::members);
    directives.into_iter().any(|directive| {
        let name = directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"public") || name.eq_ignore_ascii_case(b"s-maxage")
    })
}

fn warn_of_forwarder(peer: IpAddr) {
    tracing::warn!(
        %peer,
        "a private peer sends X-Forwarded-* but is not trusted: every client looks like this peer; if it is your Ingress, \
         add listen.trusted_proxies: [\"{peer}\"] (or its network)"
    );
}

//! Everything learnt about one request. Dropping it writes the metrics and the access line, so every request leaves
//! exactly one of each, also when the client leaves half-way.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode, Version, header};
use http_body::Body;

use super::connection::{Busy, Connection};
use super::host::Host;
use super::sender::RequestId;
use crate::config::Cluster;
use crate::routing::decide::{Decision, RuleId};
use crate::routing::service::Service;
use crate::telemetry::Telemetry;
use crate::telemetry::access_line::{Line, RequestText, Try};
use crate::telemetry::labels::{Outcome, Reason, RejectCause, Target};
use crate::telemetry::recent::{self, PathStart, Recorded};
use crate::upstream::body::Progress;

/// nginx' status for a client that left before the response head. Only in logs and metrics.
const CLIENT_LEFT: u16 = 499;

/// One request with its response.
pub struct Exchange {
    telemetry: Arc<Telemetry>,
    busy: Busy,
    worker: usize,
    start: Instant,
    method: Method,
    target: Option<PathAndQuery>,
    version: Version,
    user_agent: Option<HeaderValue>,
    host: Option<HeaderValue>,
    request_id: Option<RequestId>,
    client: IpAddr,
    service: Option<Arc<Service>>,
    decision: Option<Decision>,
    reason: Reason,
    answered_by: Target,
    status: u16,
    sent: u64,
    received: u64,
    /// No request, but a connection whose bytes are relayed.
    is_relayed: bool,
    has_body: bool,
    upload: Option<Arc<Progress>>,
    tries: Vec<Try>,
    current: Option<(Cluster, Instant)>,
    /// When the last byte was on its way, if it came to that.
    end: Option<Instant>,
}

impl Exchange {
    /// A request has come. Boxed, because it changes hands several times on its way into the response's body.
    pub fn begin<B: Body>(telemetry: Arc<Telemetry>, connection: &Connection, request: &Request<B>) -> Box<Self> {
        Box::new(Self {
            telemetry,
            busy: connection.flow.enter(),
            worker: connection.worker,
            start: Instant::now(),
            method: request.method().clone(),
            target: request.uri().path_and_query().cloned(),
            version: request.version(),
            user_agent: request.headers().get(header::USER_AGENT).cloned(),
            host: request.headers().get(header::HOST).cloned(),
            request_id: None,
            client: connection.peer.ip(),
            service: None,
            decision: None,
            reason: Reason::None,
            answered_by: Target::None,
            status: CLIENT_LEFT,
            sent: 0,
            received: 0,
            is_relayed: false,
            has_body: !request.body().is_end_stream(),
            upload: None,
            tries: Vec::new(),
            current: None,
            end: None,
        })
    }

    /// A connection has come whose bytes are relayed as they are, to the service with this server name.
    pub fn of_connection(
        telemetry: Arc<Telemetry>,
        connection: &Connection,
        service: &Arc<Service>,
        server_name: &str,
    ) -> Box<Self> {
        let mut exchange = Self::begin(telemetry, connection, &Request::new(String::new()));
        exchange.is_relayed = true;
        exchange.client = connection.peer.ip().to_canonical();
        exchange.host = HeaderValue::from_str(server_name).ok();
        exchange.found(service, server_name);
        exchange
    }

    /// When the request came.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The client's HTTP version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The connection's flow.
    pub fn busy(&self) -> &Busy {
        &self.busy
    }

    /// The id, once it is known.
    pub fn request_id(&self) -> Option<&RequestId> {
        self.request_id.as_ref()
    }

    /// The client's address after the walk over trusted proxies.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// The service, once it is known.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    /// Who asks for what.
    pub fn identified(&mut self, host: &Host, client: IpAddr, id: RequestId) {
        self.host = Some(host.value().clone());
        self.client = client;
        self.request_id = Some(id);
    }

    /// The request names no host that we can read.
    pub fn anonymous(&mut self, id: RequestId) {
        self.request_id = Some(id);
    }

    /// A service claims the host of this name.
    pub fn found(&mut self, service: &Arc<Service>, name: &str) {
        let agent = self.user_agent.as_ref().map_or(&b""[..], |agent| agent.as_bytes());
        service.lasting.callers.note(name, self.client, agent, self.start);
        self.service = Some(service.clone());
    }

    /// Old or new is decided.
    pub fn decided(&mut self, decision: Decision) {
        self.reason = decision.reason;
        self.decision = Some(decision);
        if let Some(service) = &self.service
            && !service.rules.key_sources().is_empty()
        {
            service.meters.key(decision.key);
        }
    }

    /// Where the body of the request can be watched.
    pub fn uploads(&mut self, progress: Arc<Progress>) {
        self.upload = Some(progress);
    }

    /// A later step gave another reason.
    pub fn because(&mut self, reason: Reason) {
        self.reason = reason;
    }

    /// The reason as it stands.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The decision, once it is made.
    pub fn decision(&self) -> Option<&Decision> {
        self.decision.as_ref()
    }

    /// The whole body of the request has come.
    pub fn has_upload_ended(&self) -> bool {
        !self.has_body || self.upload.as_ref().is_some_and(|upload| upload.is_complete())
    }

    /// A try on a cluster begins.
    pub fn tries(&mut self, cluster: Cluster, now: Instant) {
        self.current = Some((cluster, now));
    }

    /// The try that is under way has ended.
    pub fn tried(&mut self, address: Option<SocketAddr>, status: Option<StatusCode>, outcome: Outcome, now: Instant) {
        let Some((cluster, start)) = self.current.take() else { return };
        let duration = now.saturating_duration_since(start);
        if let Some(service) = &self.service {
            service.meters.attempt(cluster, outcome, duration);
        }
        self.tries.push(Try { cluster, address, status: status.map(|status| status.as_u16()), duration });
    }

    /// The head of the response is on its way.
    pub fn answered(&mut self, target: Target, status: StatusCode, now: Instant) {
        self.answered_by = target;
        self.status = status.as_u16();
        if target != Target::None {
            let upstream: Duration = self.tries.iter().map(|one| one.duration).sum();
            let total = now.saturating_duration_since(self.start);
            self.telemetry.process.overhead(total.saturating_sub(upstream));
        }
    }

    /// We refuse the request.
    pub fn rejected(&self, cause: RejectCause) {
        self.telemetry.process.rejected(cause);
    }

    /// Body bytes on their way to the client.
    pub fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Bytes that were relayed from the client and to it.
    pub fn moved(&mut self, received: u64, sent: u64) {
        (self.received, self.sent) = (received, sent);
    }

    /// The last byte is on its way.
    pub fn ended(&mut self, now: Instant) {
        self.end = Some(now);
    }

    fn finish(&mut self) {
        let end = self.end.unwrap_or_else(Instant::now);
        self.busy.flow().note_end(end.into());
        if !self.has_upload_ended() {
            self.busy.flow().leave_unread();
        }
        if self.status == CLIENT_LEFT {
            self.busy.flow().note_left();
        }
        let duration = end.saturating_duration_since(self.start);
        if let Some((cluster, start)) = self.current.take() {
            // The client left, or a limit of ours ended the try: nobody's failure.
            let duration = start.elapsed();
            if let Some(service) = &self.service {
                service.meters.attempt(cluster, Outcome::Aborted, duration);
            }
            self.tries.push(Try { cluster, address: None, status: None, duration });
        } else if self.answered_by != Target::None
            && let Some((last, earlier)) = self.tries.split_last_mut()
        {
            // As nginx: the time of the last try runs to the end of its body.
            let before: Duration = earlier.iter().map(|one| one.duration).sum();
            last.duration = last.duration.max(duration.saturating_sub(before).min(duration));
        }
        if let Some(service) = &self.service {
            let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let received = self.upload.as_ref().map_or(self.received, |upload| upload.bytes());
            service.meters.request(self.answered_by, self.reason, status, duration, received, self.sent);
            self.record(service);
        }
        self.write(duration);
    }

    /// Keeps the decision among the last ones.
    fn record(&self, service: &Service) {
        let Some(decision) = &self.decision else { return };
        let path = self.target.as_ref().filter(|_| !self.is_relayed).map_or("", PathAndQuery::path);
        self.telemetry.recent.record(Recorded {
            at: self.start,
            service: service.lasting.callers.service().clone(),
            client: self.client,
            method: if self.is_relayed { Some(Method::CONNECT) } else { recent::short_method(&self.method) },
            path: PathStart::of(path),
            decided: decision.cluster,
            rule: decision.rule.map(RuleId::reason),
            bucket: decision.bucket.map(|bucket| bucket.basis_points()),
            target: self.answered_by,
            reason: self.reason,
            status: if self.is_relayed { 0 } else { self.status },
        });
    }

    fn write(&self, duration: Duration) {
        let target = self.target.as_ref().map_or("*", PathAndQuery::as_str);
        let request =
            RequestText::Parsed { method: self.method.as_str(), path_and_query: target, version: self.version };
        let line = Line {
            client: self.client,
            request: if self.is_relayed { RequestText::Unparsed } else { request },
            status: if self.is_relayed { 0 } else { self.status },
            bytes: self.sent,
            tries: &self.tries,
            request_time: duration,
            service: self.service.as_ref().map_or("", |service| service.name()),
            reason: if self.reason == Reason::None { "" } else { self.reason.as_str() },
            bucket: self.decision.and_then(|decision| decision.bucket).map(|bucket| bucket.basis_points()),
            request_id: self.request_id.as_ref().map_or(b"", |id| id.as_bytes()),
            host: self.host.as_ref().map_or(b"", |host| host.as_bytes()),
            user_agent: self.user_agent.as_ref().map_or(b"", |agent| agent.as_bytes()),
        };
        self.telemetry.access.write(self.worker, &line);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.finish();
    }
}

//! The attempt loop: admit, lease, send, judge, then answer, try again or fall back, all under one deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, StatusCode, Version, header, request};
use hyper::body::Incoming;

use super::exchange::Exchange;
use super::failure::Failure;
use super::grpc;
use super::headers::{self, Destination, Length};
use super::interim::Interim;
use super::sender::{RequestId, Sender};
use super::timeouts::Timer;
use super::tries::{Next, Stop, Tries, reason_of};
use crate::config::{Cluster, FailureKind, Protocol};
use crate::routing::decide::Decision;
use crate::routing::service::Service;
use crate::telemetry::labels::Outcome;
use crate::upstream::body::{OutBody, Progress};
use crate::upstream::breaker::Verdict;
use crate::upstream::pool::{Demand, Lease};
use crate::upstream::{Admission, Settled};

/// A request that may not be repeated takes a connection that was used this recently, or a new one: the race with a
/// backend that closes idle connections is then all but impossible.
const RECENT: Duration = Duration::from_secs(2);

/// A prepared request and everything that its tries share.
pub struct Draft<'a> {
    /// The service.
    pub service: &'a Arc<Service>,
    /// Who sent it.
    pub sender: &'a Sender<'a>,
    /// Its id.
    pub id: &'a RequestId,
    /// The head, prepared for either cluster.
    pub head: request::Parts,
    /// The body; taken by the try that sends it.
    pub body: Option<OutBody>,
    /// Where the body can be watched.
    pub upload: Option<Arc<Progress>>,
    /// Who hears of interim responses.
    pub interim: Interim,
    /// The upgrade that the client asks for.
    pub upgrade: Option<HeaderValue>,
    /// A safe request without a body (RFC 9110, 9.2.1): the head alone is the whole request. Kept apart from the head,
    /// which is gone once a request that may not be repeated was sent.
    pub repeatable: bool,
    /// It is a gRPC call.
    pub is_grpc: bool,
    /// The deadline is the client's, and shorter than ours: missing it blames nobody.
    pub own_deadline: bool,
    /// The worker that serves it.
    pub worker: usize,
    /// The clock stands still while the body is moving. A gRPC deadline is the client's word.
    pub stands_still: bool,
    /// How long one try may wait for its head.
    pub patience: Duration,
    /// When all tries must be over, and when the first began.
    pub deadline: Instant,
    /// When the first try began.
    pub start: Instant,
}

/// A response head from a cluster, and the connection that its body comes on.
pub struct Forwarded {
    /// The side that answered.
    pub cluster: Cluster,
    /// The response.
    pub response: Response<Incoming>,
    /// The connection.
    pub lease: Lease,
    /// The response's framing lets the connection serve again.
    pub reusable: bool,
    /// Hears of a body that ends early.
    pub settled: Settled,
    /// When the head came.
    pub at: Instant,
    failing: Option<StatusCode>,
}

/// Sends a request to the cluster that was decided, and elsewhere when that fails and is safe.
pub async fn forward(
    draft: &mut Draft<'_>,
    decision: &Decision,
    exchange: &mut Exchange,
    timer: &mut Timer,
) -> Result<Forwarded, Stop> {
    let mut cluster = decision.cluster;
    let service = draft.service;
    let mut tries = Tries::new(service, decision, draft.start, draft.deadline);
    let usual_idle = (!draft.repeatable).then_some(RECENT);
    let mut longest_idle = usual_idle;
    // Between the request and its first try lie microseconds: one look at the clock serves both.
    let mut now = exchange.start();
    service.lasting.budget.request(now);
    loop {
        let limit = tries.limit(cluster, draft.repeatable, now, draft.patience);
        let tried = draft.attempt(cluster, limit, longest_idle, now, exchange, timer).await;
        let failure = match &tried {
            Ok(Forwarded { failing: None, .. }) => return tried.map_err(Stop::Failed),
            Ok(Forwarded { failing: Some(status), .. }) => &Failure::Status(*status),
            Err(failure) => failure,
        };
        now = Instant::now();
        match tries.next(cluster, failure, draft.may_repeat(failure), now) {
            Next::Old(cause) => {
                service.meters.fallback(cause);
                exchange.because(reason_of(cause));
                (cluster, longest_idle) = (Cluster::Old, usual_idle);
            }
            Next::Again(pause) => {
                service.meters.retry(cluster, failure.outcome());
                drop(tried);
                // Sleeping for nothing would still wait for the next tick of the timer.
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                    now = Instant::now();
                }
                longest_idle = Some(Duration::ZERO);
            }
            Next::GiveUp => return tried.map_err(|failure| tries.stop(cluster, failure)),
        }
    }
}

impl Draft<'_> {
    /// One try on one cluster.
    async fn attempt(
        &mut self,
        cluster: Cluster,
        limit: Instant,
        longest_idle: Option<Duration>,
        now: Instant,
        exchange: &mut Exchange,
        timer: &mut Timer,
    ) -> Result<Forwarded, Failure> {
        let upstream = self.service.upstream(cluster);
        let admission = upstream.admit(now).ok_or(Failure::Open)?;
        let waiting = upstream.wait().ok_or(Failure::Full)?;
        exchange.tries(cluster, now);
        let sent = self.send(cluster, longest_idle, now, limit, timer).await;
        drop(waiting);
        let now = Instant::now();
        match sent {
            Ok((response, lease)) => self.judge(cluster, response, lease, admission, now, exchange),
            Err((address, failure)) => {
                exchange.tried(address, None, failure.outcome(), now);
                if let Some(step) = failure.step() {
                    upstream.pool.complain(step, address, &failure, now);
                }
                if cluster == Cluster::New && failure.kind().is_some_and(|kind| self.blames(&failure, kind)) {
                    admission.settle(Verdict::Failure, now);
                }
                Err(failure)
            }
        }
    }

    fn blames(&self, failure: &Failure, kind: FailureKind) -> bool {
        let is_ours = !(self.own_deadline && matches!(failure, Failure::Timeout(_)));
        failure.blames_upstream() && is_ours && self.service.is_failure(kind)
    }

    async fn send(
        &mut self,
        cluster: Cluster,
        longest_idle: Option<Duration>,
        start: Instant,
        limit: Instant,
        timer: &mut Timer,
    ) -> Result<(Response<Incoming>, Lease), (Option<std::net::SocketAddr>, Failure)> {
        let pool = &self.service.upstream(cluster).pool;
        let demand = Demand {
            worker: self.worker,
            wanted: self.service.wanted(cluster, self.is_grpc),
            host: Some(self.sender.host.name()),
            longest_idle,
            now: start,
            deadline: limit,
        };
        let mut lease = pool.lease(demand).await.map_err(|error| (error.address, Failure::Connect(error)))?;
        let address = Some(lease.address());
        let mut request = self.request(cluster, &lease);
        self.interim.listen(&mut request, lease.version());
        let allowed = limit.saturating_duration_since(start);
        let upload = self.upload.clone().filter(|_| self.stands_still);
        let later = || upload.as_ref().and_then(|upload| upload.stood_still_until()).map(|last| last + allowed);
        let Some(sent) = timer.limit(lease.send(request), limit.into(), later).await else {
            lease.was_silent();
            return Err((address, Failure::Timeout(start.elapsed())));
        };
        match sent {
            Ok(response) => {
                if let Some(upload) = &self.upload {
                    upload.keep(false);
                }
                lease.saw_fields(response.headers().len());
                Ok((response, lease))
            }
            // Perhaps it was only many fields; a request that may be sent once more finds out.
            Err(error) if error.error.is_parse_too_large() && lease.saw_large_head() && self.repeatable => {
                Err((address, Failure::Raced(error.error)))
            }
            Err(error) => {
                let fault = self.upload.as_ref().and_then(|upload| upload.fault());
                let (failure, unsent) = Failure::of_send(error, lease.may_have_ended(), fault);
                if let Some(unsent) = unsent {
                    let (head, body) = unsent.into_parts();
                    (self.head, self.body) = (head, Some(body));
                } else if let Failure::Unprocessed(_) = failure {
                    self.body = match &self.upload {
                        None => Some(OutBody::Empty),
                        Some(upload) => upload.given_back().await,
                    };
                }
                Err((address, failure))
            }
        }
    }

    /// The request as this cluster gets it. The head is kept only where the request may be sent once more; over HTTP/2 any
    /// may, as the peer can say that it did nothing with it.
    fn request(&mut self, cluster: Cluster, lease: &Lease) -> Request<OutBody> {
        let body = self.body.take().unwrap_or_default();
        let is_http2 = lease.version() == Version::HTTP_2;
        if let Some(upload) = &self.upload {
            upload.keep(is_http2);
        }
        let mut head = if self.repeatable || is_http2 { headers::copy(&self.head) } else { self.take_head() };
        let tls = match cluster {
            Cluster::Old => self.service.config.old.protocol == Protocol::Https,
            Cluster::New => self.service.config.new.protocol == Protocol::Https,
        };
        let destination = Destination { cluster, version: lease.version(), tls, body: Length::of(&body) };
        headers::address(&mut head, &self.service.headers, self.sender, self.id, &destination);
        Request::from_parts(head, body)
    }

    fn take_head(&mut self) -> request::Parts {
        let (empty, ()) = Request::new(()).into_parts();
        std::mem::replace(&mut self.head, empty)
    }

    /// A response head has come: what it says of the cluster, and whether it may be passed on.
    fn judge(
        &self,
        cluster: Cluster,
        response: Response<Incoming>,
        lease: Lease,
        admission: Admission,
        now: Instant,
        exchange: &mut Exchange,
    ) -> Result<Forwarded, Failure> {
        let status = response.status();
        let address = Some(lease.address());
        if status == StatusCode::SWITCHING_PROTOCOLS && self.upgrade.is_none() {
            exchange.tried(address, Some(status), Outcome::Reset, now);
            admission.settle(Verdict::Failure, now);
            return Err(Failure::Unasked);
        }
        exchange.tried(address, Some(status), Outcome::of_status(status), now);
        let is_failing = cluster == Cluster::New && self.service.is_failure(FailureKind::Status(status.as_u16()));
        let told = self.is_grpc.then(|| grpc::verdict(response.headers(), self.own_deadline)).flatten();
        let settled = match told {
            _ if is_failing => admission.settle(Verdict::Failure, now),
            Some(verdict) => admission.settle(verdict, now),
            None if self.is_grpc && status == StatusCode::OK => admission.settle_at_trailers(now),
            None => admission.settle(Verdict::Success, now),
        };
        // Beside Transfer-Encoding a length is a sign of trouble: nothing more is read from this connection.
        let fields = response.headers();
        let ambiguous = fields.contains_key(header::TRANSFER_ENCODING) && fields.contains_key(header::CONTENT_LENGTH);
        let failing = is_failing.then_some(status);
        Ok(Forwarded { cluster, response, lease, reusable: !ambiguous, settled, at: now, failing })
    }

    /// Sending it once more cannot repeat an effect.
    fn may_repeat(&self, failure: &Failure) -> bool {
        failure.is_unsent() && self.body.is_some() || self.repeatable && self.service.config.retry.after_send
    }
}

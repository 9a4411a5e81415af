//! TLS that is not ours to end (`mode: passthrough`): a connection is relayed to the cluster that its client's address
//! decides. Until a backend is there nothing was taken from the socket, so old can still have what new could not.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method, StatusCode};
use tokio::net::TcpStream;

use crate::config::Cluster;
use crate::net::relay::{Moved, relay};
use crate::proxy::connection::Connection;
use crate::proxy::exchange::Exchange;
use crate::proxy::failure::{Failure, Refusal};
use crate::proxy::tries::{Next, Stop, Tries, reason_of};
use crate::proxy::{Proxy, count_diversion};
use crate::routing::decide::{Decision, Facts, Untraced};
use crate::routing::service::Service;
use crate::telemetry::labels::{Outcome, Reason, Target};
use crate::upstream::breaker::Verdict;
use crate::upstream::direct::Direct;

/// A client's connection that is to be relayed; its hello is still in the socket.
pub struct Passage {
    /// The client's bytes.
    pub socket: TcpStream,
    /// The name in the hello.
    pub server_name: Box<str>,
    /// The service that has the name.
    pub service: Arc<Service>,
}

/// Relays until a side ends, nothing moves for `timeouts.tunnel`, or it is sent home. Where no backend can be had the
/// connection is closed: there is nothing that we could say inside of it.
pub async fn pass(passage: Passage, connection: &Connection, proxy: &Proxy) {
    let Passage { socket, server_name, service } = passage;
    let mut exchange = Exchange::of_connection(proxy.telemetry().clone(), connection, &service, &server_name);
    let headers = HeaderMap::new();
    let facts = Facts { method: &Method::CONNECT, path: "", headers: &headers, client: exchange.client() };
    let decision = service.decide(&facts, exchange.start(), &mut Untraced);
    exchange.decided(decision);
    if decision.refused {
        return refuse(&mut exchange, Refusal::Pinned);
    }
    count_diversion(&service, &decision);
    let (cluster, mut direct) = match reach(&service, &decision, &mut exchange).await {
        Ok(reached) => reached,
        Err(Stop::Refused(refusal)) => return refuse(&mut exchange, refusal),
        Err(Stop::Failed(Failure::Full)) => {
            exchange.because(Reason::Full);
            return refuse(&mut exchange, Refusal::Full);
        }
        Err(Stop::Failed(failure)) => {
            tracing::debug!(service = service.name(), %failure, "connection could not be relayed");
            return exchange.answered(Target::None, failure.status(), Instant::now());
        }
    };
    let now = Instant::now();
    exchange.answered(cluster.into(), StatusCode::SWITCHING_PROTOCOLS, now);
    let long_lived = service.upstream(cluster).long_lived.enter(now.into());
    let moved = Moved::default();
    let relayed = relay(socket, &mut direct.stream, service.config.timeouts.tunnel, long_lived.told(), &moved).await;
    if let Err(error) = relayed {
        tracing::debug!(%error, "relayed connection ended");
    }
    exchange.moved(moved.from_a(), moved.from_b());
}

fn refuse(exchange: &mut Exchange, refusal: Refusal) {
    exchange.rejected(refusal.cause());
    exchange.answered(Target::None, refusal.status(), Instant::now());
}

/// A connection to the cluster that was decided, or to another one where that fails.
async fn reach(service: &Service, decision: &Decision, exchange: &mut Exchange) -> Result<(Cluster, Direct), Stop> {
    let mut cluster = decision.cluster;
    let mut now = exchange.start();
    let timeouts = &service.config.timeouts;
    let mut tries = Tries::new(service, decision, now, now + timeouts.total);
    service.lasting.budget.request(now);
    loop {
        let limit = tries.limit(cluster, true, now, timeouts.connect);
        let failure = match attempt(service, cluster, limit, now, exchange).await {
            Ok(direct) => return Ok((cluster, direct)),
            Err(failure) => failure,
        };
        now = Instant::now();
        match tries.next(cluster, &failure, true, now) {
            Next::Old(cause) => {
                service.meters.fallback(cause);
                exchange.because(reason_of(cause));
                cluster = Cluster::Old;
            }
            Next::Again(pause) => {
                service.meters.retry(cluster, failure.outcome());
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                    now = Instant::now();
                }
            }
            Next::GiveUp => return Err(tries.stop(cluster, failure)),
        }
    }
}

/// One try on one cluster. All that can be known of it is whether it takes a connection.
async fn attempt(
    service: &Service,
    cluster: Cluster,
    limit: Instant,
    now: Instant,
    exchange: &mut Exchange,
) -> Result<Direct, Failure> {
    let upstream = service.upstream(cluster);
    let admission = upstream.admit(now).ok_or(Failure::Open)?;
    let _waiting = upstream.wait().ok_or(Failure::Full)?;
    exchange.tries(cluster, now);
    let connected = upstream.pool.connect_directly(limit).await;
    let now = Instant::now();
    match connected {
        Ok(direct) => {
            exchange.tried(Some(direct.address()), None, Outcome::Informational, now);
            admission.settle(Verdict::Success, now);
            Ok(direct)
        }
        Err(error) => {
            let address = error.address;
            let failure = Failure::Connect(error);
            exchange.tried(address, None, failure.outcome(), now);
            if let Some(step) = failure.step() {
                upstream.pool.complain(step, address, &failure, now);
            }
            let is_blamed = failure.blames_upstream() && failure.kind().is_some_and(|kind| service.is_failure(kind));
            if cluster == Cluster::New && is_blamed {
                admission.settle(Verdict::Failure, now);
            }
            Err(failure)
        }
    }
}

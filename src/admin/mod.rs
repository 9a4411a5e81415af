//! The admin port: health, readiness, metrics, status and explanations. It lives on the control runtime with connections
//! of its own, so that it answers while the data ports are full. Nothing here changes anything, and no answer holds a
//! secret.

mod answer;
mod explain;
mod query;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::control::report::{self, Reporter};
use crate::control::status::Status;
use crate::net::listener::Listener;
use crate::readiness::Readiness;
use crate::routing::client_address::Suspicion;
use crate::routing::live::Live;
use crate::shutdown::Drain;
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::{Scrape, Telemetry};
use answer::Body;

/// Connections at once; more of them wait in the kernel's queue.
const CONNECTIONS: usize = 256;

/// For a whole request head, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// After this time a connection ends with its next answer, and is cut when that does not come about: a client that reads
/// nothing must not keep a place for ever.
const LONGEST_CONNECTION: Duration = Duration::from_secs(120);
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// A whole request head.
const HEAD_BYTES: usize = 64 * 1024;

/// What the answers are made of.
pub struct AdminState {
    /// What is served.
    pub live: Arc<Live>,
    /// What is known about the configuration and the recent past.
    pub status: Arc<Status>,
    /// Meters.
    pub telemetry: Arc<Telemetry>,
    /// Whether traffic may come.
    pub readiness: Readiness,
    /// Peers that forward without being trusted.
    pub suspicion: Arc<Suspicion>,
    /// Whether every data worker still runs.
    pub is_alive: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Serves until the drain starts. The drain is that of this port: it begins after that of the data ports has ended, so
/// that probes can see it.
pub async fn serve(listener: Listener, state: Arc<AdminState>, drain: Drain) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let socket = tokio::select! {
            (socket, _) = listener.accept() => socket,
            () = drain.started() => return,
        };
        let (state, drain) = (state.clone(), drain.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the control runtime; ends with its socket or its time"
        )]
        tokio::spawn(async move {
            let _place = place;
            let _open = Open::new(&state.telemetry);
            connection(socket, &state, &drain).await;
        });
    }
}

async fn connection(socket: TcpStream, state: &AdminState, drain: &Drain) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(route(state, &request)) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    // How a client ends its connection is its own business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drain.started() => {}
        () = tokio::time::sleep(LONGEST_CONNECTION) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
}

/// Counts a connection as long as it is open.
struct Open<'a>(&'a Telemetry);

impl<'a> Open<'a> {
    fn new(telemetry: &'a Telemetry) -> Self {
        telemetry.process.connection_opened(ListenerKind::Admin);
        Self(telemetry)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.process.connection_closed(ListenerKind::Admin);
    }
}

fn route(state: &AdminState, request: &Request<Incoming>) -> Response<Body> {
    let handler: fn(&AdminState, &Request<Incoming>) -> Response<Body> = match request.uri().path() {
        "/health" => health,
        "/ready" => ready,
        "/metrics" => metrics,
        "/status" => |state, _| answer::json(StatusCode::OK, &state.reporter().report()),
        "/api/v1/explain" => |state, request| explain::answer(&state.live, request.uri().query().unwrap_or_default()),
        _ => return answer::error(StatusCode::NOT_FOUND, "nothing here: see /status, /metrics, /health and /ready"),
    };
    match *request.method() {
        Method::GET | Method::HEAD => handler(state, request),
        _ => answer::not_allowed("GET, HEAD"),
    }
}

fn health(state: &AdminState, _: &Request<Incoming>) -> Response<Body> {
    if (state.is_alive)() {
        answer::json(StatusCode::OK, &json!({"healthy": true}))
    } else {
        answer::error(StatusCode::SERVICE_UNAVAILABLE, "a data worker has not run for 30 s")
    }
}

fn ready(state: &AdminState, _: &Request<Incoming>) -> Response<Body> {
    let missing = state.readiness.missing();
    let is_ready = missing.is_empty();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let is_degraded = !state.reporter().degraded().is_empty();
    answer::json(status, &json!({"ready": is_ready, "degraded": is_degraded, "missing": missing}))
}

fn metrics(state: &AdminState, _: &Request<Incoming>) -> Response<Body> {
    answer::scrape(Scrape::new(&state.telemetry.process, report::gauges(&state.live.snapshot())))
}

impl AdminState {
    fn reporter(&self) -> Reporter<'_> {
        let Self { live, status, readiness, suspicion, .. } = self;
        Reporter { live, status, readiness, suspicion }
    }
}

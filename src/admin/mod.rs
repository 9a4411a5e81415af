//! The admin port: health, readiness, metrics, status and explanations. It lives on the control runtime with connections
//! of its own, so that it answers while the data ports are full. Reading is open to whoever reaches the port, writing is not, and no
//! answer holds a secret.

mod answer;
mod api;
mod auth;
mod configuration;
mod crowd;
pub mod doctor;
mod events;
mod explain;
mod page;
mod query;
mod recent;
mod verify;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::config::Environment;
use crate::control::history::History;
use crate::control::keeper::Keeper;
use crate::control::report::{self, Reporter};
use crate::control::rollback::RollbackHandle;
use crate::control::status::Status;
use crate::net::listener::Listener;
use crate::readiness::Readiness;
use crate::routing::client_address::Suspicion;
use crate::routing::live::Live;
use crate::shutdown::Drain;
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::{Scrape, Telemetry};
use answer::Body;
use crowd::{Crowd, Guest};
pub use events::Events;

/// Connections at once; one more ends one of them.
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
    /// What operators change.
    pub keeper: Arc<Keeper>,
    /// What was served, and when.
    pub history: Arc<History>,
    /// Where earlier configurations are asked for.
    pub rollbacks: RollbackHandle,
    /// The environment that files are read with.
    pub environment: Environment,
    /// Other replicas would not follow what is changed here.
    pub keeps_alone: bool,
    /// What open pages are told.
    pub events: Events,
    /// Whether every data worker still runs.
    pub is_alive: Box<dyn Fn() -> bool + Send + Sync>,
}

/// `/ready`: only what is missing decides it; the rest is for people who look.
#[derive(Serialize)]
struct ReadyReport {
    ready: bool,
    degraded: bool,
    missing: Vec<&'static str>,
}

/// Serves until the drain starts, or until this socket is `retired` because the port is another one. The drain is that of
/// this port: it begins after that of the data ports has ended, so that probes can see it.
pub async fn serve(listener: Listener, state: Arc<AdminState>, drain: Drain, retired: CancellationToken) {
    let crowd = Crowd::new(CONNECTIONS);
    loop {
        let (socket, peer) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
            () = retired.cancelled() => return,
        };
        let (state, drain, guest) = (state.clone(), drain.clone(), crowd.enter());
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the control runtime; ends with its socket or its time"
        )]
        tokio::spawn(async move {
            let _open = Open::new(&state.telemetry);
            connection(socket, peer.ip(), &state, &drain, &guest).await;
        });
    }
}

async fn connection(socket: TcpStream, peer: IpAddr, state: &Arc<AdminState>, drain: &Drain, guest: &Guest) {
    let service = service_fn(|request| async move {
        guest.asks();
        let answer = route(state, drain, peer, request).await;
        guest.answered(matches!(answer.body(), Body::Events(_)));
        Ok::<_, Infallible>(answer)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    // How a client ends its connection is its own business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = guest.left() => return,
        () = drain.started() => {}
        () = tokio::time::sleep(LONGEST_CONNECTION) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = guest.left() => {}
        () = tokio::time::sleep(LAST_ANSWER) => {}
    }
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

async fn route(state: &Arc<AdminState>, drain: &Drain, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads && request.uri().path() == "/api/v1/events" {
        return events::answer(state, drain, request.method());
    }
    let handler: fn(&AdminState, &Request<Incoming>) -> Response<Body> = match request.uri().path() {
        "/" => |_, _| page::answer(),
        "/health" => health,
        "/ready" => ready,
        "/metrics" => metrics,
        "/status" => |state, _| answer::json(StatusCode::OK, &state.reporter().report()),
        "/api/v1/series" => |state, _| answer::json(StatusCode::OK, &state.status.series()),
        "/api/v1/explain" => |state, request| explain::answer(&state.live, query_of(request)),
        "/api/v1/history" => |state, request| configuration::history(state, query_of(request)),
        "/api/v1/decisions" => {
            |state, request| recent::decisions(&state.telemetry.recent, &state.live, query_of(request))
        }
        "/api/v1/callers" => |state, request| recent::callers(&state.live, query_of(request)),
        path if !reads && path.starts_with("/api/") => return api::answer(state, peer, request).await,
        _ => return answer::error(StatusCode::NOT_FOUND, "nothing here: see /, /status, /metrics, /health and /ready"),
    };
    if reads { handler(state, &request) } else { answer::not_allowed("GET, HEAD") }
}

fn query_of(request: &Request<Incoming>) -> &str {
    request.uri().query().unwrap_or_default()
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
    let degraded = !state.reporter().degraded().is_empty();
    let report = ReadyReport { ready: missing.is_empty(), degraded, missing };
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer::json(status, &report)
}

fn metrics(state: &AdminState, _: &Request<Incoming>) -> Response<Body> {
    answer::scrape(Scrape::new(&state.telemetry.process, report::gauges(&state.live.snapshot())))
}

impl AdminState {
    fn reporter(&self) -> Reporter<'_> {
        let Self { live, status, readiness, suspicion, keeper, .. } = self;
        Reporter { live, status, readiness, suspicion, keeper }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::control::testing::{Bench, TEXT};
    use crate::net::listener::Bound;
    use crate::shutdown;

    /// A served admin port. Nothing is left of it when the test's runtime ends.
    struct Port {
        address: SocketAddr,
        readiness: Readiness,
        is_alive: Arc<AtomicBool>,
        trigger: shutdown::Trigger,
        bench: Bench,
    }

    impl Port {
        fn open() -> Self {
            let bench = Bench::start(TEXT);
            let listener = Bound::bind("127.0.0.1:0".parse().unwrap()).unwrap().into_listener().unwrap();
            let address = listener.address();
            let is_alive = Arc::new(AtomicBool::new(true));
            let heart = is_alive.clone();
            let state = AdminState {
                live: bench.live.clone(),
                status: bench.status.clone(),
                telemetry: bench.telemetry.clone(),
                readiness: bench.readiness.clone(),
                suspicion: bench.suspicion.clone(),
                keeper: bench.keeper.clone(),
                history: bench.history.clone(),
                rollbacks: bench.rollbacks.clone(),
                environment: Environment::new(),
                keeps_alone: false,
                events: Events::default(),
                is_alive: Box::new(move || heart.load(Ordering::Relaxed)),
            };
            let (trigger, drain) = shutdown::channel();
            tokio::runtime::Handle::current().spawn(serve(listener, Arc::new(state), drain, CancellationToken::new()));
            Self { address, readiness: bench.readiness.clone(), is_alive, trigger, bench }
        }

        /// Status line, head and body.
        async fn ask(&self, method: &str, target: &str) -> (u16, String, String) {
            let mut socket = TcpStream::connect(self.address).await.unwrap();
            let request = format!("{method} {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
            (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
        }

        async fn json(&self, target: &str) -> (u16, Value) {
            let (status, head, body) = self.ask("GET", target).await;
            assert!(head.contains("content-type: application/json"), "{head}");
            (status, serde_json::from_str(&body).unwrap())
        }
    }

    #[tokio::test]
    async fn health_is_that_of_the_process_and_readiness_that_of_its_parts() {
        let port = Port::open();
        assert_eq!(port.json("/health").await.0, 200);
        assert_eq!(port.json("/ready").await, (200, json!({"ready": true, "degraded": false, "missing": []})));

        port.is_alive.store(false, Ordering::Relaxed);
        port.readiness.close();

        assert_eq!(port.json("/health").await.0, 503);
        let (status, body) = port.json("/ready").await;
        assert_eq!((status, &body["missing"]), (503, &json!(["draining"])));
    }

    #[tokio::test]
    async fn a_dead_cluster_and_a_wrong_file_degrade_but_leave_it_ready() {
        let mut port = Port::open();
        port.bench.reload("services: [");

        let (status, body) = port.json("/ready").await;

        assert_eq!((status, &body["ready"], &body["degraded"]), (200, &json!(true), &json!(true)));
    }

    #[tokio::test]
    async fn metrics_are_the_text_format_and_a_head_has_no_body() {
        let port = Port::open();

        let (status, head, body) = port.ask("GET", "/metrics").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        for sample in
            [r#"traffic_percentage{service="a"} 20"#, "config_generation 1", r#"connections{listener="admin"} 1"#]
        {
            assert!(body.contains(&format!("\nmigration_proxy_{sample}\n")), "{sample} in {body}");
        }
        let (status, _, body) = port.ask("HEAD", "/metrics").await;
        assert_eq!((status, body.as_str()), (200, ""));
    }

    #[tokio::test]
    async fn status_lists_the_services() {
        let port = Port::open();

        let (status, report) = port.json("/status?percentage=100").await;

        assert_eq!((status, &report["services"][0]["percentage"]["effective"]), (200, &json!(20)));
    }

    #[tokio::test]
    async fn an_explanation_is_that_of_a_request_now() {
        let port = Port::open();
        let (status, answer) = port.json("/api/v1/explain?host=B.x.example&client_ip=10.0.0.1").await;
        assert_eq!((status, &answer["service"]), (404, &Value::Null));

        let (status, answer) = port.json("/api/v1/explain?host=x.b.example:8000&path=/a%3Fb&header=X-U:1").await;
        assert_eq!((status, &answer["service"], &answer["target"]), (200, &json!("b"), &json!("old")));
        assert_eq!((&answer["reason"], &answer["upstream"]), (&json!("zero"), &json!("127.0.0.1:1")));

        let (status, answer) = port.json("/api/v1/explain").await;
        assert!(status == 422 && answer["error"].is_string(), "{answer}");
    }

    #[tokio::test]
    async fn nothing_else_is_there_and_nothing_can_be_written() {
        let port = Port::open();

        for target in ["/index.html", "/update?service=a&percent=100", "/status/", "/api/v1", "http://a.old.example/x"]
        {
            assert_eq!(port.json(target).await.0, 404, "{target}");
        }
        for path in ["/", "/health", "/ready", "/metrics", "/status", "/api/v1/explain"] {
            let (status, head, _) = port.ask("POST", path).await;
            assert!(status == 405 && head.contains("allow: GET, HEAD"), "{head}");
        }
    }

    #[tokio::test]
    async fn the_page_may_run_only_what_is_in_it_and_is_shown_in_no_frame() {
        let port = Port::open();

        let (status, head, body) = port.ask("GET", "/").await;

        assert!(status == 200 && body.starts_with("<!doctype html>"), "{head}");
        for part in
            ["content-type: text/html", "default-src 'none'", "frame-ancestors 'none'", "cache-control: no-store"]
        {
            assert!(head.contains(part), "no {part} in {head}");
        }
        let (status, series) = port.json("/api/v1/series").await;
        assert_eq!((status, series), (200, json!({})));
    }

    #[tokio::test]
    async fn events_end_with_the_drain_and_a_head_takes_no_place() {
        let port = Port::open();
        let (status, head, body) = port.ask("HEAD", "/api/v1/events").await;
        assert!(status == 200 && head.contains("content-type: text/event-stream") && body.is_empty(), "{head}");
        let mut socket = TcpStream::connect(port.address).await.unwrap();
        socket.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: admin\r\n\r\n").await.unwrap();
        let mut text = String::new();
        while !text.contains("event: status") {
            let mut piece = [0; 4096];
            let read = socket.read(&mut piece).await.unwrap();
            text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }

        port.trigger.drain(Duration::ZERO).await;

        let started = std::time::Instant::now();
        socket.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("\r\n0\r\n\r\n"), "the end is a whole one: {text}");
        assert!(started.elapsed() < LAST_ANSWER, "it was told, not cut");
    }

    #[tokio::test]
    async fn connections_that_ask_for_nothing_keep_nobody_waiting() {
        let port = Port::open();
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS + 40 {
            idle.push(TcpStream::connect(port.address).await.unwrap());
        }

        let started = std::time::Instant::now();
        for _ in 0..5 {
            assert_eq!(port.ask("GET", "/health").await.0, 200);
        }

        assert!(started.elapsed() < HEAD_TIMEOUT, "nobody's time had to run out");
        let mut nothing = [0];
        assert!(matches!(idle[0].read(&mut nothing).await, Ok(0) | Err(_)), "the longest silent one gave up its place");
    }

    #[tokio::test]
    async fn it_answers_until_its_own_drain() {
        let port = Port::open();
        port.ask("GET", "/ready").await;

        port.trigger.drain(Duration::ZERO).await;

        tokio::time::timeout(Duration::from_secs(20), async {
            while TcpStream::connect(port.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the listener closes");
    }
}

//! One connection: TLS or clear, HTTP/1.1 or HTTP/2, and its graceful end.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::StatusCode;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::io::{Guarded, Http2};
use super::passthrough::{Passage, pass};
use crate::config::ListenTimeouts;
use crate::net::client_hello;
use crate::net::peek::wait_for_more;
use crate::net::proxy_protocol::{self, Found};
use crate::net::stream::Stream;
use crate::proxy::connection::{Connection, Flow, Place, Shown};
use crate::proxy::failure::Refusal;
use crate::proxy::reply;
use crate::proxy::sender::Scheme;
use crate::proxy::{Closed, Proxy};
use crate::routing::service::Edge;
use crate::shutdown::Drain;
use crate::telemetry::access_line::{Line, RequestText};
use crate::telemetry::labels::{ListenerKind, RejectCause};
use crate::tls::certificates::Certificates;

/// Requests under way on one HTTP/2 connection: RFC 9113, 6.5.2, asks for no less than 100, and hyper's default of 200 lets
/// one client hold more than it needs. Each may hold [`SEND_BUFFER`].
const STREAMS: u32 = 128;

/// Bytes of one upload that may wait for a slow cluster. Enough for 20 Mbit/s at a round trip of 100 ms.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Bytes of all uploads of one connection that may wait. With hyper's default, a mebibyte for each stream and as much for all,
/// a single upload that its cluster does not take would hold up all others; here it takes 32 of them.
const CONNECTION_WINDOW: u32 = 32 * STREAM_WINDOW;

/// Bytes of one response that wait for their client. hyper's default of 400 KiB would let a client that opens [`STREAMS`]
/// and takes nothing hold 50 MiB; this is 16 MiB, and still more than a socket takes at a time.
const SEND_BUFFER: usize = 128 * 1024;

/// Streams that a client may have reset before we have looked at them. A page that is left resets its requests once;
/// rapid reset (CVE-2023-44487) does nothing else, and more than this in one turn is that. The connection ends.
const PENDING_RESETS: usize = 20;

/// Streams that we reset for a client's fault, malformed heads above all. Each costs us a frame and the client nothing; a
/// client with a bug is known after a few. The connection ends. hyper's default is 1024.
const LOCAL_RESETS: usize = 128;

/// Requests that a client may leave unanswered, when these are more than half of all on the connection: rapid reset slow
/// enough to pass by [`PENDING_RESETS`] would have the clusters work for nobody. Whoever searches as they type leaves many,
/// but not this many, and takes some answers.
const LEFT: u32 = 500;

/// Room for the request line and for what we refuse ourselves, with a text and a request id, instead of hyper.
const HEAD_MARGIN: usize = 4 * 1024;

/// Fields that hyper parses without allocating for them.
const USUAL_FIELDS: usize = 100;

/// The beginning of HTTP/2 without TLS. No method of HTTP/1.1 begins so.
const PREFACE: &[u8] = b"PRI";

/// What is done to the connections of one listener before HTTP.
pub struct Door {
    /// For metrics.
    pub kind: ListenerKind,
    /// TLS, where the listener speaks it.
    pub tls: Option<Tls>,
}

/// A listener's TLS.
pub struct Tls {
    /// How handshakes are done.
    pub config: Arc<ServerConfig>,
    /// What clients are shown.
    pub certificates: Arc<Certificates>,
}

/// Serves one accepted socket to its end; `place` is given back then.
pub async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    door: &Door,
    place: Place,
    proxy: Arc<Proxy>,
    worker: usize,
    drain: Drain,
) {
    let edge = proxy.edge();
    let opened = tokio::select! {
        opened = open(socket, peer, door, &edge, &proxy) => opened,
        () = last_word(&drain) => return,
    };
    let (peer, opened) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%peer, %error, "connection ended before a request");
            return;
        }
    };
    let scheme = if door.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let flow = Arc::new(Flow::default());
    let connection = |shown| Connection::new(worker, peer, scheme, shown, flow.clone(), place);
    let (stream, shown, is_http2) = match opened {
        Opened::Http(stream, shown, is_http2) => (stream, shown, is_http2),
        // Boxed, or every connection would be as large.
        Opened::Passage(passage) => return Box::pin(pass(passage, &connection(None), &proxy)).await,
    };
    let connection = Arc::new(connection(shown));
    let http2 = is_http2.then(|| Box::new(Http2::new(proxy.telemetry().clone())));
    let stream = Guarded::new(stream, flow, edge.timeouts, http2, drain.clone());
    if is_http2 {
        serve_http2(stream, connection, &edge, proxy, drain).await;
    } else {
        serve_http1(stream, connection, &edge, proxy, drain).await;
    }
}

/// Whoever has not said anything when the drain starts, or is accepted after it, has a moment for it.
async fn last_word(drain: &Drain) {
    drain.started().await;
    tokio::time::sleep(drain.last_word()).await;
}

/// What a socket turned out to be.
enum Opened {
    /// The stream that HTTP is spoken on, what a TLS client was shown, and whether it is HTTP/2.
    Http(Stream, Option<Shown>, bool),
    /// TLS that is not ours to end.
    Passage(Passage),
}

/// Who has come, and what for.
async fn open(
    mut socket: TcpStream,
    peer: SocketAddr,
    door: &Door,
    edge: &Edge,
    proxy: &Proxy,
) -> io::Result<(SocketAddr, Opened)> {
    let peer = if edge.proxy_protocol { announced(&mut socket, peer, edge, proxy).await? } else { peer };
    let limit = if door.tls.is_some() { edge.timeouts.tls_handshake } else { edge.timeouts.header };
    let deadline = begun(&socket, limit).await?;
    let opened = match &door.tls {
        None => {
            let is_http2 = in_time(deadline, proxy, speaks_http2(&socket)).await?;
            Opened::Http(Stream::Plain(socket), None, is_http2)
        }
        Some(tls) => in_time(deadline, proxy, tls.open(socket, edge, proxy)).await?,
    };
    Ok((peer, opened))
}

/// Waits for the first bytes; says until when the others have time. Whoever says nothing, as many probes do, leaves no
/// trace.
async fn begun(socket: &TcpStream, limit: Duration) -> io::Result<Instant> {
    let deadline = Instant::now() + limit;
    timeout_at(deadline, socket.readable()).await??;
    Ok(deadline)
}

/// A client that has begun and comes to no end is too slow.
async fn in_time<T>(deadline: Instant, proxy: &Proxy, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout_at(deadline, step).await.unwrap_or_else(|elapsed| {
        proxy.telemetry().process.rejected(Refusal::Slow.cause());
        Err(elapsed.into())
    })
}

/// The other end, as a PROXY header of a trusted peer says, or as it is.
async fn announced(socket: &mut TcpStream, peer: SocketAddr, edge: &Edge, proxy: &Proxy) -> io::Result<SocketAddr> {
    let trusted = edge.trust.contains(peer.ip());
    let deadline = begun(socket, edge.timeouts.header).await?;
    match in_time(deadline, proxy, proxy_protocol::read(socket, trusted)).await? {
        Found::Nothing | Found::Header(None) => Ok(peer),
        Found::Header(Some(source)) => Ok(source),
        Found::Refused => {
            proxy.refused_proxy_header(peer.ip(), trusted);
            Err(io::Error::new(io::ErrorKind::InvalidData, "a PROXY header that is not believed or not valid"))
        }
    }
}

impl Tls {
    async fn open(&self, socket: TcpStream, edge: &Edge, proxy: &Proxy) -> io::Result<Opened> {
        if edge.passes_through
            && let Some(server_name) = client_hello::peek(&socket).await?
            && let Some(service) = proxy.passed_through(&server_name)
        {
            return Ok(Opened::Passage(Passage { socket, server_name, service }));
        }
        self.accept(socket, proxy).await
    }

    async fn accept(&self, socket: TcpStream, proxy: &Proxy) -> io::Result<Opened> {
        let accepted = TlsAcceptor::from(self.config.clone()).accept(socket).await;
        let stream = accepted.inspect_err(|error| {
            // A client that leaves in between is no more than that.
            if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                proxy.telemetry().process.rejected(RejectCause::Tls);
            }
        })?;
        let session = stream.get_ref().1;
        let is_http2 = session.alpn_protocol() == Some(b"h2");
        let server_name = session.server_name().map(Box::<str>::from);
        let shown = self.certificates.select(server_name.as_deref()).map(|certificate| {
            let is_covered = server_name.as_deref().is_some_and(|name| certificate.names.covers(name));
            Shown { server_name, certificate, is_covered }
        });
        Ok(Opened::Http(Stream::Server(Box::new(stream)), shown, is_http2))
    }
}

/// Whether the client begins with the preface of HTTP/2 (RFC 9113, 3.4). The bytes stay in the socket.
async fn speaks_http2(socket: &TcpStream) -> io::Result<bool> {
    let mut start = [0; PREFACE.len()];
    loop {
        let seen = socket.peek(&mut start).await?;
        if seen == PREFACE.len() || seen == 0 || !PREFACE.starts_with(&start[..seen]) {
            return Ok(start[..seen] == *PREFACE);
        }
        // One or two bytes that may become either.
        wait_for_more(socket, seen).await?;
    }
}

async fn serve_http1(stream: Guarded, connection: Arc<Connection>, edge: &Edge, proxy: Arc<Proxy>, drain: Drain) {
    let service = {
        let (proxy, connection) = (proxy.clone(), connection.clone());
        service_fn(move |request| {
            let (proxy, connection) = (proxy.clone(), connection.clone());
            async move {
                let mut response = proxy.handle(&connection, request).await?;
                if proxy.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    reply::close(&mut response);
                }
                Ok::<_, Closed>(response)
            }
        })
    };
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Heads and pauses have limits of their own, in `Guarded`.
        .header_read_timeout(None)
        .max_header_size(edge.limits.header_bytes + HEAD_MARGIN);
    if edge.limits.header_count > USUAL_FIELDS {
        builder.max_headers(edge.limits.header_count + 1);
    }
    let mut serving = pin!(builder.serve_connection(stream, service).with_upgrades());
    let mut ending = Ending::new(drain);
    let flow = connection.flow.clone();
    let mut served = 0;
    let result = std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = serving.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        // hyper would close a quiet connection at once, and the request that is just arriving with it. So it is not told:
        // each answer from now on says that it is the last one, and the stream ends where none is asked for any more.
        let has_begun = ending.poll_begin(cx);
        // Nor does hyper read at the end of a response, when the stream has to learn that it is quiet now.
        let has_served = ending.told && std::mem::replace(&mut served, flow.served()) != flow.served();
        if has_begun || has_served { serving.as_mut().poll(cx) } else { Poll::Pending }
    })
    .await;
    if let Err(error) = result {
        note_error(&error, &connection, &proxy);
    }
}

async fn serve_http2(stream: Guarded, connection: Arc<Connection>, edge: &Edge, proxy: Arc<Proxy>, drain: Drain) {
    let flow = connection.flow.clone();
    let noted = (connection.clone(), proxy.clone());
    let service = service_fn(move |request| {
        let (proxy, connection) = (proxy.clone(), connection.clone());
        async move { proxy.handle(&connection, request).await }
    });
    let list = u32::try_from(edge.limits.header_bytes + HEAD_MARGIN).unwrap_or(u32::MAX);
    let mut serving = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(list)
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(LOCAL_RESETS)
            .serve_connection(stream, service)
    );
    let mut ending = Ending::new(drain);
    let mut patience = Patience::new(flow.clone(), edge.timeouts);
    let result = std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = serving.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if flow.left() > LEFT && flow.left() > flow.served() / 2 {
            note_flood(&noted.0, &noted.1, "most requests are left by their client");
            return Poll::Ready(Ok(()));
        }
        let mut ends = ending.poll_begin(cx);
        if ends {
            patience.is_ending(FAREWELL.min(ending.drain.last_word() * 2));
        }
        while let Poll::Ready(lost) = patience.poll(cx) {
            match lost {
                Lost::Idle => ends = true,
                Lost::Stalled => {
                    note_untaken(&noted.0, &noted.1);
                    return Poll::Ready(Ok(()));
                }
                Lost::Silent => return Poll::Ready(Ok(())),
            }
        }
        if ends {
            serving.as_mut().graceful_shutdown();
            return serving.as_mut().poll(cx);
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = result {
        note_http2_error(&error, &noted.0, &noted.1);
    }
}

/// The beginning of the drain, told once. Looking costs one load: the drain's own future is polled only to leave a
/// waker with it.
struct Ending {
    drain: Drain,
    started: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    told: bool,
}

impl Ending {
    fn new(drain: Drain) -> Self {
        Self { drain, started: None, told: false }
    }

    fn poll_begin(&mut self, cx: &mut Context<'_>) -> bool {
        if self.told {
            return false;
        }
        if self.started.is_none() {
            let drain = self.drain.clone();
            let mut started: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move { drain.started().await });
            // The connection is one task from beginning to end, so this waker stays the right one.
            let _ = started.as_mut().poll(cx);
            self.started = Some(started);
        }
        self.told = self.drain.has_started();
        self.told
    }
}

/// How often an HTTP/2 connection is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long a client has for its part of the end of an HTTP/2 connection.
const FAREWELL: Duration = Duration::from_secs(2);

/// The limits of an HTTP/2 connection. hyper has none for a client that says nothing, or takes nothing.
struct Patience {
    flow: Arc<Flow>,
    limits: ListenTimeouts,
    timer: Pin<Box<tokio::time::Sleep>>,
    /// The last look that saw a request under way, or one that ended or a frame of an answer written since the look before.
    active: Instant,
    served: u32,
    answered: u32,
    /// The connection is on its way out since then.
    ending: Option<Instant>,
    farewell: Duration,
}

/// Why patience is lost.
enum Lost {
    /// No request for `keepalive`: a graceful end.
    Idle,
    /// Not even a first request for `header`, or no part in the graceful end.
    Silent,
    /// Frames wait for the client, and it has taken none for `write_idle`.
    Stalled,
}

impl Patience {
    fn new(flow: Arc<Flow>, limits: ListenTimeouts) -> Self {
        let timer = Box::pin(tokio::time::sleep(LOOK));
        let active = Instant::now();
        Self { flow, limits, timer, active, served: 0, answered: 0, ending: None, farewell: FAREWELL }
    }

    /// The connection was told to end, and the client has this long for its part once nothing is under way.
    fn is_ending(&mut self, farewell: Duration) {
        let now = Instant::now();
        self.ending.get_or_insert(now);
        self.farewell = farewell;
        self.timer.as_mut().reset(now + farewell.min(LOOK));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Lost> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            self.timer.as_mut().reset(now + self.farewell.min(LOOK));
            if let Some(lost) = self.look(now) {
                return Poll::Ready(lost);
            }
        }
        Poll::Pending
    }

    fn look(&mut self, now: Instant) -> Option<Lost> {
        let (served, answered) = (self.flow.served(), self.flow.answered());
        let has_served = served != std::mem::replace(&mut self.served, served);
        let has_answered = answered != std::mem::replace(&mut self.answered, answered);
        let is_busy = self.flow.busy() > 0;
        if is_busy || has_served || has_answered {
            self.active = now;
        }
        if is_busy {
            return self.flow.is_stalled(now, self.limits.write_idle).then_some(Lost::Stalled);
        }
        let quiet = now - self.active;
        if self.flow.owes() {
            return (quiet > self.limits.write_idle).then_some(Lost::Stalled);
        }
        match self.ending {
            Some(since) => (now - since >= self.farewell && quiet >= self.farewell).then_some(Lost::Silent),
            None if served == 0 => (quiet > self.limits.header).then_some(Lost::Silent),
            None if quiet > self.limits.keepalive => {
                self.ending = Some(now);
                Some(Lost::Idle)
            }
            None => None,
        }
    }
}

/// A client that takes nothing of its answer is as slow as one that says nothing.
fn note_untaken(connection: &Connection, proxy: &Proxy) {
    proxy.telemetry().process.rejected(Refusal::Slow.cause());
    tracing::info!(peer = %connection.peer, "closed: the client took nothing of its answer for write_idle");
}

/// A client that makes work for its own sake.
fn note_flood(connection: &Connection, proxy: &Proxy, what: &str) {
    proxy.telemetry().process.rejected(Refusal::Malformed("").cause());
    tracing::info!(peer = %connection.peer, "closed: {what}");
}

/// Faults that end a whole HTTP/2 connection are counted here; those that end one stream where it is reset.
fn note_http2_error(error: &hyper::Error, connection: &Connection, proxy: &Proxy) {
    if connection.flow.is_noisy() {
        return note_flood(connection, proxy, "too many frames that carry nothing");
    }
    let fault = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    if fault.is_some_and(|fault| fault.is_library() && fault.is_go_away()) {
        proxy.telemetry().process.rejected(Refusal::Malformed("").cause());
    }
    tracing::debug!(peer = %connection.peer, %error, "HTTP/2 connection ended");
}

/// hyper answers a head that it cannot take by itself; we count it and write the line.
fn note_error(error: &hyper::Error, connection: &Connection, proxy: &Proxy) {
    let io_error = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    if io_error.is_some_and(Guarded::is_untaken) {
        note_untaken(connection, proxy);
        return;
    }
    let timed_out = io_error.is_some_and(Guarded::is_slow_head);
    let refusal = if error.is_parse_too_large() {
        Refusal::Header
    } else if error.is_parse() {
        Refusal::Malformed("the request head is malformed")
    } else if timed_out {
        Refusal::Slow
    } else {
        tracing::debug!(peer = %connection.peer, %error, "connection ended");
        return;
    };
    let telemetry = proxy.telemetry();
    telemetry.process.rejected(refusal.cause());
    let line = Line {
        client: connection.peer.ip().to_canonical(),
        request: RequestText::Unparsed,
        status: refusal.status().as_u16(),
        bytes: 0,
        tries: &[],
        request_time: Duration::ZERO,
        service: "",
        reason: "",
        bucket: None,
        request_id: b"",
        host: b"",
        user_agent: b"",
    };
    telemetry.access.write(connection.worker, &line);
}

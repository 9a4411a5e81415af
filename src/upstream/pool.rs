//! Connections to one upstream, a shard for each data worker. A connection never leaves its pool, so identities never
//! mix; a shard is locked by its own worker only, but for the sweep of idle connections.

use std::fmt::Display;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::body::OutBody;
use super::connect::{ConnectCause, ConnectError, Connected, Target, Wanted, connect};
use super::direct::Direct;
use super::endpoints::Endpoint;
use super::resolve::{Known, Resolver};
use crate::config::Cluster;
use crate::net::watched::Watcher;
use crate::telemetry::labels::Phase;
use crate::telemetry::metrics::{ConnectionGauge, ServiceMeters};
use crate::telemetry::seldom::Seldom;

/// A connection is renewed at this age, give or take a fifth, so that a load balancer's new backends get their share.
const AGE: Duration = Duration::from_secs(600);

/// Requests on one HTTP/2 connection before another one is opened, where the peer allows more.
const STREAMS: usize = 64;

/// Bytes of one response over HTTP/2 that may wait for a slow client. Enough for 140 Mbit/s at a round trip of 30 ms.
const STREAM_WINDOW: u32 = 512 * 1024;

/// Bytes of all responses on one connection that may wait: as many as there can be, or a few clients that take nothing would
/// hold up everybody else's. hyper's default is two and a half windows of a stream.
const CONNECTION_WINDOW: u32 = STREAMS as u32 * STREAM_WINDOW;

/// One read from an upstream. Large enough that big bodies need few system calls; held while the connection lives.
const READ_BUFFER: usize = 16 * 1024;

/// Fields of a response head, where a backend sends many. hyper parses up to 100 without allocating, so connections ask for
/// more only once the backend has shown that it needs it: more costs each response two allocations of eight KiB. The same goes
/// for heads that are larger than [`READ_BUFFER`].
pub(super) const RESPONSE_FIELDS: usize = 256;

/// A backend that sends this many fields may soon send more than hyper's 100.
const MANY_FIELDS: usize = 60;

/// Bounds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Idle connections over all workers.
    pub max_idle: usize,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// A response head, in bytes.
    pub response_head: usize,
}

/// The connections to one target.
pub struct Pool {
    target: Target,
    bounds: Bounds,
    resolver: Arc<Resolver>,
    meters: Arc<ServiceMeters>,
    shards: Box<[Shard]>,
    idle: AtomicUsize,
    /// Another pool has taken over: nothing is kept any more.
    closed: AtomicBool,
    /// The backend sends heads of many fields.
    many_fields: AtomicBool,
    /// The backend has chosen HTTP/1.1 where HTTP/2 was offered.
    chooses_http1: AtomicBool,
    /// The names of the target are listened to.
    follows: AtomicBool,
    /// When it was last said why a connection failed, by its step.
    complaints: [Seldom; Phase::ALL.len()],
    /// When it was last said that a response ended early.
    cuts: Seldom,
}

struct Shard {
    connections: Mutex<Connections>,
    /// Held while an HTTP/2 connection is being opened, so that a burst opens one and not a hundred. Says when the last
    /// one failed: whoever waited for it shares its failure.
    opening: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Connections {
    http1: Vec<Idle>,
    http2: Vec<Arc<Shared>>,
}

/// An HTTP/1.1 connection.
struct Single {
    sender: http1::SendRequest<OutBody>,
    driver: AbortHandle,
    watcher: Watcher,
    made: Made,
}

/// An HTTP/1.1 connection that waits.
struct Idle {
    connection: Single,
    since: Instant,
}

/// An HTTP/2 connection. While no request has it, it counts as idle.
struct Shared {
    sender: http2::SendRequest<OutBody>,
    made: Made,
    meters: Arc<ServiceMeters>,
    cluster: Cluster,
    in_flight: AtomicUsize,
    /// The last request on it got no head in time: the connection may be dead without a sign, and hyper's pings take their
    /// time to find out. New requests take another one until something comes on it.
    is_silent: AtomicBool,
    /// When its last request ended.
    used: Mutex<Instant>,
    /// What the peer allows, written by the connection's driver.
    allowed: Arc<AtomicUsize>,
}

/// What a connection was made for.
struct Made {
    endpoint: Arc<Endpoint>,
    wanted: Wanted,
    /// The server name, where the request brought it.
    host: Option<Box<str>>,
    /// It takes heads of many fields.
    many_fields: bool,
    renew_at: Instant,
}

/// A connection while a request has it.
pub struct Lease {
    pool: Arc<Pool>,
    held: Held,
    worker: usize,
    /// The connection has served a request before.
    reused: bool,
}

enum Held {
    Http1(Single),
    Http2(Arc<Shared>),
    Gone,
}

/// Why a request got no response head.
#[derive(Debug)]
pub struct SendError {
    /// What hyper says.
    pub error: hyper::Error,
    /// The request, when nothing of it was sent.
    pub unsent: Option<Request<OutBody>>,
}

/// What a request asks of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// The worker that asks.
    pub worker: usize,
    /// The HTTP version.
    pub wanted: Wanted,
    /// The request's host, for targets that take their server name from it.
    pub host: Option<&'a str>,
    /// How long a connection may have been idle, where the pool's limit is too long.
    pub longest_idle: Option<Duration>,
    /// The time.
    pub now: Instant,
    /// When waiting ends.
    pub deadline: Instant,
}

impl Pool {
    /// An empty pool with one shard for each of `workers`.
    pub fn new(
        target: Target,
        bounds: Bounds,
        workers: usize,
        resolver: Arc<Resolver>,
        meters: Arc<ServiceMeters>,
    ) -> Arc<Self> {
        let shard = || Shard { connections: Mutex::default(), opening: tokio::sync::Mutex::new(None) };
        let shards = std::iter::repeat_with(shard).take(workers.max(1)).collect();
        Arc::new(Self {
            target,
            bounds,
            resolver,
            meters,
            shards,
            idle: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            many_fields: AtomicBool::new(false),
            chooses_http1: AtomicBool::new(false),
            follows: AtomicBool::new(false),
            complaints: Default::default(),
            cuts: Seldom::default(),
        })
    }

    /// Where the connections go.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Who looks its names up.
    pub fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
    }

    /// The service that it belongs to.
    pub fn service(&self) -> &str {
        self.meters.service()
    }

    /// The longest response head, in bytes.
    pub fn response_head(&self) -> usize {
        self.bounds.response_head
    }

    /// A pool for that target, with those bounds and counters, would be this one.
    pub fn serves(&self, target: &Target, bounds: Bounds, meters: &Arc<ServiceMeters>) -> bool {
        self.bounds == bounds && Arc::ptr_eq(&self.meters, meters) && self.target.is_same(target)
    }

    /// A connection: a waiting one, or a new one.
    ///
    /// # Errors
    ///
    /// A new connection could not be made in time.
    pub async fn lease(self: &Arc<Self>, demand: Demand<'_>) -> Result<Lease, ConnectError> {
        // The host only counts where the target takes its server name from it.
        let by_host = self.target.identity.is_some() && self.target.server_name.is_none();
        let demand = Demand { host: demand.host.filter(|_| by_host), ..demand };
        if let Some(lease) = self.waiting(&demand) {
            return Ok(lease);
        }
        // Boxed: opening a connection is rare, and its large future would otherwise be part of every request's.
        Box::pin(self.make(demand)).await
    }

    /// A connection that the pool never sees, for a probe. `host` is the client's, for targets that take their server name
    /// from it.
    ///
    /// # Errors
    ///
    /// It could not be made in time.
    pub async fn connect_apart(
        &self,
        wanted: Wanted,
        host: &str,
        deadline: Instant,
    ) -> Result<Connected, ConnectError> {
        connect(&self.target, &self.resolver, wanted, Some(host), deadline, None).await
    }

    /// A connection that the pool never sees, for bytes that are relayed as they are.
    ///
    /// # Errors
    ///
    /// It could not be made in time.
    pub async fn connect_directly(self: &Arc<Self>, deadline: Instant) -> Result<Direct, ConnectError> {
        self.follow();
        let connected =
            connect(&self.target, &self.resolver, Wanted::Bytes, None, deadline, Some(&self.meters)).await?;
        Ok(Direct::new(self.clone(), connected))
    }

    async fn make(self: &Arc<Self>, demand: Demand<'_>) -> Result<Lease, ConnectError> {
        let since = Instant::now();
        if demand.wanted == Wanted::Http1 || self.chooses_http1.load(Ordering::Relaxed) {
            return self.open(&demand).await;
        }
        // Waiting for a connection that another request opens counts like opening it.
        let demand = Demand { deadline: demand.deadline.min(since + self.target.timeout), ..demand };
        let nowhere = |cause| ConnectError { address: None, has_alternative: false, cause };
        let turn = self.shards[demand.worker].opening.lock();
        let Ok(mut failed_at) = tokio::time::timeout_at(demand.deadline.into(), turn).await else {
            return Err(nowhere(ConnectCause::TimedOut(Phase::Connect)));
        };
        if let Some(lease) = self.waiting(&demand) {
            return Ok(lease);
        }
        if failed_at.is_some_and(|failed_at| failed_at >= since) {
            return Err(nowhere(ConnectCause::Shared));
        }
        let opened = self.open(&demand).await;
        *failed_at = opened.is_err().then(Instant::now);
        opened
    }

    /// Says why the backend could not be had, once a minute for each step: a storm of failures writes no more than one.
    pub fn complain(&self, step: Phase, address: Option<SocketAddr>, error: &dyn Display, now: Instant) {
        if !self.complaints[step as usize].is_due(now) {
            return;
        }
        let (service, target) = (self.service(), self.target.cluster.as_str());
        let address = address.map_or_else(|| "-".to_owned(), |address| address.to_string());
        tracing::warn!(service, target, address, %error, "no connection to the upstream");
    }

    /// Says that a response ended early, as seldom.
    pub fn complain_of_cut(&self, request_id: Option<&str>, error: &dyn Display, now: Instant) {
        if self.cuts.is_due(now) {
            let (service, cluster) = (self.service(), self.target.cluster.as_str());
            tracing::info!(service, cluster, request_id, %error, "response cut");
        }
    }

    /// Closes connections that have been idle too long, or whose address has left DNS.
    pub fn sweep(&self, now: Instant) {
        let limit = self.bounds.idle_timeout;
        self.close_where(|since| now.saturating_duration_since(since) > limit, now);
    }

    /// Closes what is idle, once.
    pub fn drop_idle(&self) {
        self.close_where(|_| true, Instant::now());
    }

    /// Closes what is idle and keeps nothing from now on: another pool has taken over.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.close_where(|_| true, Instant::now());
    }

    fn close_where(&self, is_over: impl Fn(Instant) -> bool, now: Instant) {
        for shard in &self.shards {
            let ended: Vec<Idle> = {
                let mut connections = lock(shard);
                connections.http2.retain(|shared| !shared.is_over(&is_over, now));
                connections.http1.extract_if(.., |idle| idle.connection.has_ended() || is_over(idle.since)).collect()
            };
            self.left(ended.len());
        }
    }

    fn waiting(self: &Arc<Self>, demand: &Demand<'_>) -> Option<Lease> {
        let now = demand.now;
        let mut connections = lock(&self.shards[demand.worker]);
        let takes_any = demand.longest_idle != Some(Duration::ZERO);
        if demand.wanted == Wanted::Http2
            && takes_any
            && let Some(shared) = connections.http2.iter().find(|shared| shared.takes(demand, now))
        {
            return Some(self.hold(Held::Http2(shared.clone()), demand.worker, true));
        }
        let longest = demand.longest_idle.unwrap_or(self.bounds.idle_timeout).min(self.bounds.idle_timeout);
        let many_fields = self.many_fields.load(Ordering::Relaxed);
        let fits = |idle: &Idle| {
            let Idle { connection, since } = idle;
            now.saturating_duration_since(*since) < longest
                && connection.made.fits(demand)
                && connection.made.many_fields == many_fields
                && connection.sender.is_ready()
        };
        let is_careful = demand.longest_idle.is_some();
        let mut dropped = 0;
        let mut found: Option<usize> = None;
        let mut index = connections.http1.len();
        // The newest first: the oldest then reach their idle limit, and a pool shrinks after a peak.
        while index > 0 {
            index -= 1;
            let idle = &connections.http1[index];
            // A request that is sent once only has a look at the socket first: an end that has come is not always heard of yet.
            if idle.connection.has_ended() || is_careful && fits(idle) && !idle.connection.watcher.is_quiet() {
                connections.http1.remove(index);
                dropped += 1;
                found = found.map(|found| found - 1);
            } else if fits(idle) {
                let load = |index: usize| connections.http1[index].connection.made.endpoint.load();
                let is_second = found.is_some();
                if found.is_none_or(|found| load(index) < load(found)) {
                    found = Some(index);
                }
                // Where there are several addresses, the one with less load of two connections.
                if is_second || !self.target.endpoints().has_several() {
                    break;
                }
            }
        }
        let found = found.map(|index| connections.http1.remove(index));
        drop(connections);
        self.left(dropped + usize::from(found.is_some()));
        Some(self.hold(Held::Http1(found?.connection), demand.worker, true))
    }

    /// A new connection, for one request at first.
    async fn open(self: &Arc<Self>, demand: &Demand<'_>) -> Result<Lease, ConnectError> {
        let Demand { wanted, host, deadline, worker, .. } = *demand;
        self.follow();
        let connected = connect(&self.target, &self.resolver, wanted, host, deadline, Some(&self.meters)).await?;
        let age = AGE.mul_f64(rand::random_range(0.8..1.2));
        let endpoint = connected.endpoint.clone();
        let address = endpoint.address();
        let many_fields = self.many_fields.load(Ordering::Relaxed);
        let made = Made { endpoint, wanted, host: host.map(Box::from), many_fields, renew_at: Instant::now() + age };
        let failed = |error: hyper::Error| ConnectError {
            address: Some(address),
            has_alternative: false,
            cause: ConnectCause::Tcp(std::io::Error::other(error)),
        };
        if connected.is_http2 {
            let (sender, allowed) = self.start_http2(connected).await.map_err(failed)?;
            let shared = Arc::new(Shared::new(sender, made, allowed, self.meters.clone(), self.target.cluster));
            lock(&self.shards[worker]).http2.push(shared.clone());
            return Ok(self.hold(Held::Http2(shared), worker, false));
        }
        self.chooses_http1.store(wanted == Wanted::Http2, Ordering::Relaxed);
        let watcher = connected.watcher.clone();
        let (sender, driver) = self.start_http1(connected, many_fields).await.map_err(failed)?;
        Ok(self.hold(Held::Http1(Single { sender, driver, watcher, made }), worker, false))
    }

    /// From the first connection on, the pool hears of every answer of DNS, also while nobody opens another one.
    fn follow(self: &Arc<Self>) {
        if self.follows.load(Ordering::Relaxed) || self.follows.swap(true, Ordering::Relaxed) {
            return;
        }
        for (index, name) in self.target.names() {
            let known = self.resolver.follow(name);
            self.resolver.runtime().spawn(close_what_left(Arc::downgrade(self), index, known));
        }
    }

    async fn start_http1(
        &self,
        connected: Connected,
        many_fields: bool,
    ) -> hyper::Result<(http1::SendRequest<OutBody>, AbortHandle)> {
        let mut builder = http1::Builder::new();
        builder.read_buf_exact_size(Some(READ_BUFFER)).max_header_size(self.bounds.response_head);
        if many_fields {
            // A head has to fit into one buffer.
            builder
                .max_headers(RESPONSE_FIELDS)
                .read_buf_exact_size(Some(self.bounds.response_head.max(READ_BUFFER) + 1));
        }
        let (sender, connection) = builder.handshake(TokioIo::new(connected.stream)).await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the lease or the idle list; ends with the peer, or aborted with its owner"
        )]
        let driver = tokio::spawn(async move {
            // The request that was under way hears of the error; there is nobody else to tell.
            let _ = connection.with_upgrades().await;
        });
        Ok((sender, driver.abort_handle()))
    }

    async fn start_http2(
        &self,
        connected: Connected,
    ) -> hyper::Result<(http2::SendRequest<OutBody>, Arc<AtomicUsize>)> {
        let list = u32::try_from(self.bounds.response_head).unwrap_or(u32::MAX);
        let (sender, mut connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(list)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(Duration::from_secs(30))
            .handshake(TokioIo::new(connected.stream))
            .await?;
        let allowed = Arc::new(AtomicUsize::new(STREAMS));
        let writer = allowed.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the pool; ends when its senders are dropped or the peer closes"
        )]
        tokio::spawn(std::future::poll_fn(move |cx| {
            let ended = Pin::new(&mut connection).poll(cx).map(|_| ());
            writer.store(connection.current_max_send_streams(), Ordering::Relaxed);
            ended
        }));
        Ok((sender, allowed))
    }

    fn hold(self: &Arc<Self>, held: Held, worker: usize, reused: bool) -> Lease {
        match &held {
            Held::Http1(connection) => {
                connection.made.endpoint.begin();
                self.gauge().active_inc();
            }
            Held::Http2(shared) => shared.begin(),
            Held::Gone => {}
        }
        Lease { pool: self.clone(), held, worker, reused }
    }

    /// Keeps a connection for the next request, unless there are enough.
    fn keep(&self, worker: usize, idle: Idle) {
        let Idle { connection, since } = &idle;
        if connection.has_ended() || *since >= connection.made.renew_at || self.closed.load(Ordering::Relaxed) {
            return;
        }
        if self.idle.fetch_add(1, Ordering::Relaxed) >= self.bounds.max_idle {
            self.idle.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.gauge().idle_inc();
        lock(&self.shards[worker]).http1.push(idle);
    }

    /// A request on an HTTP/1.1 connection has ended.
    fn ends(&self, connection: &Single) {
        connection.made.endpoint.end();
        self.gauge().active_dec();
    }

    fn left(&self, count: usize) {
        for _ in 0..count {
            self.gauge().idle_dec();
        }
        self.idle.fetch_sub(count, Ordering::Relaxed);
    }

    pub(super) fn gauge(&self) -> &ConnectionGauge {
        self.meters.connections(self.target.cluster)
    }
}

/// Idle connections leave the gauges with their pool.
impl Drop for Pool {
    fn drop(&mut self) {
        self.left(self.idle.load(Ordering::Relaxed));
    }
}

impl Made {
    fn fits(&self, demand: &Demand<'_>) -> bool {
        self.wanted == demand.wanted && self.host.as_deref() == demand.host
    }
}

impl Single {
    /// No request may have it any more.
    fn has_ended(&self) -> bool {
        self.sender.is_closed() || self.made.endpoint.has_left()
    }
}

impl Shared {
    fn new(
        sender: http2::SendRequest<OutBody>,
        made: Made,
        allowed: Arc<AtomicUsize>,
        meters: Arc<ServiceMeters>,
        cluster: Cluster,
    ) -> Self {
        meters.connections(cluster).idle_inc();
        let (in_flight, used) = (AtomicUsize::new(0), Mutex::new(Instant::now()));
        let is_silent = AtomicBool::new(false);
        Self { sender, made, meters, cluster, in_flight, is_silent, used, allowed }
    }

    /// One request more; the first one makes the connection active.
    fn begin(&self) {
        self.made.endpoint.begin();
        if self.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            self.gauge().active_inc();
            self.gauge().idle_dec();
        }
    }

    /// One request less; after the last one the connection is idle.
    fn end(&self) {
        self.made.endpoint.end();
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if self.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.gauge().idle_inc();
            self.gauge().active_dec();
        }
    }

    fn gauge(&self) -> &ConnectionGauge {
        self.meters.connections(self.cluster)
    }

    /// No new request may have it.
    fn has_ended(&self, now: Instant) -> bool {
        self.sender.is_closed()
            || now >= self.made.renew_at
            || self.made.endpoint.has_left()
            || self.is_silent.load(Ordering::Relaxed)
    }

    fn is_over(&self, is_over: &impl Fn(Instant) -> bool, now: Instant) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_ended(now) || self.in_flight.load(Ordering::Relaxed) == 0 && is_over(used)
    }

    fn takes(&self, demand: &Demand<'_>, now: Instant) -> bool {
        let most = STREAMS.min(self.allowed.load(Ordering::Relaxed)).max(1);
        self.made.fits(demand) && !self.has_ended(now) && self.in_flight.load(Ordering::Relaxed) < most
    }
}

/// Requests hold the connection, so none is under way when it is dropped.
impl Drop for Shared {
    fn drop(&mut self) {
        self.gauge().idle_dec();
    }
}

impl Lease {
    /// Learns from a response head how many fields the backend sends.
    pub fn saw_fields(&self, count: usize) {
        if count > MANY_FIELDS {
            self.pool.many_fields.store(true, Ordering::Relaxed);
        }
    }

    /// Learns from a head that was too large for this connection; true when another connection may take it.
    pub fn saw_large_head(&self) -> bool {
        matches!(&self.held, Held::Http1(connection) if !connection.made.many_fields)
            && !self.pool.many_fields.swap(true, Ordering::Relaxed)
    }

    /// It had served before, so the peer may have ended it before it saw this request.
    pub fn may_have_ended(&self) -> bool {
        self.reused
    }

    /// Which side of the migration it leads to.
    pub fn cluster(&self) -> Cluster {
        self.pool.target.cluster
    }

    /// The address of the backend.
    pub fn address(&self) -> std::net::SocketAddr {
        match &self.held {
            Held::Http1(connection) => connection.made.endpoint.address(),
            Held::Http2(shared) => shared.made.endpoint.address(),
            Held::Gone => unreachable!("a lease has its connection until it is given back"),
        }
    }

    /// What is spoken on the connection.
    pub fn version(&self) -> http::Version {
        match self.held {
            Held::Http2(_) => http::Version::HTTP_2,
            Held::Http1(_) | Held::Gone => http::Version::HTTP_11,
        }
    }

    /// Sends a request and waits for the response head.
    ///
    /// # Errors
    ///
    /// The connection failed; the request comes back when nothing of it was sent.
    pub async fn send(&mut self, request: Request<OutBody>) -> Result<Response<Incoming>, SendError> {
        let result = match &mut self.held {
            Held::Http1(connection) => connection.sender.try_send_request(request).await,
            Held::Http2(shared) => {
                let result = shared.sender.clone().try_send_request(request).await;
                if shared.is_silent.load(Ordering::Relaxed) && result.is_ok() {
                    shared.is_silent.store(false, Ordering::Relaxed);
                }
                result
            }
            Held::Gone => unreachable!("a lease sends before it is given back"),
        };
        result.map_err(|mut error| SendError { unsent: error.take_message(), error: error.into_error() })
    }

    /// The request got no head in time.
    pub fn was_silent(&self) {
        if let Held::Http2(shared) = &self.held {
            shared.is_silent.store(true, Ordering::Relaxed);
        }
    }

    /// Gives the connection back after a whole exchange. A lease that is only dropped closes an HTTP/1.1 connection.
    pub fn recycle(mut self, now: Instant) {
        match std::mem::replace(&mut self.held, Held::Gone) {
            Held::Http1(connection) => {
                self.pool.ends(&connection);
                self.pool.keep(self.worker, Idle { connection, since: now });
            }
            other => self.held = other,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match &self.held {
            Held::Http1(connection) => {
                self.pool.ends(connection);
                // A driver that has more to write to a peer that does not read would otherwise live on, and the
                // client's body with it.
                connection.driver.abort();
            }
            Held::Http2(shared) => shared.end(),
            Held::Gone => {}
        }
    }
}

/// Owned by the pool; ends with it, or with the name, at the latest at the next answer.
async fn close_what_left(pool: Weak<Pool>, backend: usize, mut known: watch::Receiver<Known>) {
    let mut before = None;
    loop {
        let newest = known.borrow_and_update().clone();
        let Some(pool) = pool.upgrade() else { return };
        // While DNS says the same, the object is the same.
        if let Known::Addresses(addresses) = &newest
            && !before.as_ref().is_some_and(|before| Arc::ptr_eq(before, addresses))
        {
            pool.target.learn(backend, &newest);
            pool.sweep(Instant::now());
            before = Some(addresses.clone());
        }
        drop(pool);
        if known.changed().await.is_err() {
            return;
        }
    }
}

fn lock(shard: &Shard) -> MutexGuard<'_, Connections> {
    shard.connections.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Connections to one upstream, a shard for each data worker. A connection never leaves its pool, so identities never
//! mix; a shard is locked by its own worker only, but for the sweep of idle connections.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::task::AbortHandle;

use super::body::OutBody;
use super::connect::{ConnectCause, ConnectError, Connected, Target, Wanted, connect};
use super::resolve::Resolver;
use crate::telemetry::labels::Phase;
use crate::telemetry::metrics::{ConnectionGauge, ServiceMeters};

/// A connection is renewed at this age, give or take a fifth, so that a load balancer's new backends get their share.
const AGE: Duration = Duration::from_secs(600);

/// Requests on one HTTP/2 connection before another one is opened, where the peer allows more.
const STREAMS: usize = 64;

/// One read from an upstream. Large enough that big bodies need few system calls; held while the connection lives.
const READ_BUFFER: usize = 16 * 1024;

/// Fields of a response head, where a backend sends many. hyper parses up to 100 without allocating, so connections ask for
/// more only once the backend has shown that it needs it: more costs each response two allocations of eight KiB.
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

/// An HTTP/1.1 connection that waits.
struct Idle {
    sender: http1::SendRequest<OutBody>,
    driver: AbortHandle,
    made: Made,
    since: Instant,
}

/// An HTTP/2 connection.
struct Shared {
    sender: http2::SendRequest<OutBody>,
    made: Made,
    in_flight: AtomicUsize,
    /// When its last request ended.
    used: Mutex<Instant>,
    /// What the peer allows, written by the connection's driver.
    allowed: Arc<AtomicUsize>,
}

/// What a connection was made for.
#[derive(Clone)]
struct Made {
    address: std::net::SocketAddr,
    wanted: Wanted,
    /// The server name, where the request brought it.
    host: Option<Arc<str>>,
    /// It takes heads of many fields.
    many_fields: bool,
    renew_at: Instant,
}

/// A connection while a request has it.
pub struct Lease {
    pool: Arc<Pool>,
    held: Held,
    made: Made,
    worker: usize,
    /// The connection has served a request before.
    reused: bool,
}

enum Held {
    Http1(http1::SendRequest<OutBody>, AbortHandle),
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
        })
    }

    /// Where the connections go.
    pub fn target(&self) -> &Target {
        &self.target
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

    /// Closes connections that have been idle too long.
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
                connections.http2.retain(|shared| !shared.sender.is_closed() && !shared.is_over(&is_over, now));
                connections.http1.extract_if(.., |idle| idle.sender.is_closed() || is_over(idle.since)).collect()
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
            return Some(self.share(shared.clone(), demand.worker, true));
        }
        let many_fields = self.many_fields.load(Ordering::Relaxed);
        let longest = demand.longest_idle.unwrap_or(self.bounds.idle_timeout).min(self.bounds.idle_timeout);
        let mut dropped = 0;
        let mut found = None;
        let mut index = connections.http1.len();
        // The newest first: the oldest then reach their idle limit, and a pool shrinks after a peak.
        while index > 0 {
            index -= 1;
            let idle = &connections.http1[index];
            if idle.sender.is_closed() {
                connections.http1.swap_remove(index);
                dropped += 1;
            } else if now.saturating_duration_since(idle.since) < longest
                && idle.made.fits(demand)
                && idle.made.many_fields == many_fields
                && idle.sender.is_ready()
            {
                found = Some(connections.http1.remove(index));
                break;
            }
        }
        drop(connections);
        self.left(dropped + usize::from(found.is_some()));
        let idle = found?;
        Some(self.hold(Held::Http1(idle.sender, idle.driver), idle.made, demand.worker, true))
    }

    /// A new connection, for one request at first.
    async fn open(self: &Arc<Self>, demand: &Demand<'_>) -> Result<Lease, ConnectError> {
        let Demand { wanted, host, deadline, worker, .. } = *demand;
        let connected = connect(&self.target, &self.resolver, wanted, host, deadline, Some(&self.meters)).await?;
        let age = AGE.mul_f64(rand::random_range(0.8..1.2));
        let address = connected.address;
        let many_fields = self.many_fields.load(Ordering::Relaxed);
        let made = Made { address, wanted, host: host.map(Arc::from), many_fields, renew_at: Instant::now() + age };
        let failed = |error: hyper::Error| ConnectError {
            address: Some(address),
            has_alternative: false,
            cause: ConnectCause::Tcp(std::io::Error::other(error)),
        };
        if connected.is_http2 {
            let (sender, allowed) = self.start_http2(connected).await.map_err(failed)?;
            let used = Mutex::new(Instant::now());
            let shared = Arc::new(Shared { sender, made, in_flight: AtomicUsize::new(0), used, allowed });
            lock(&self.shards[worker]).http2.push(shared.clone());
            return Ok(self.share(shared, worker, false));
        }
        self.chooses_http1.store(wanted == Wanted::Http2, Ordering::Relaxed);
        let (sender, driver) = self.start_http1(connected, many_fields).await.map_err(failed)?;
        Ok(self.hold(Held::Http1(sender, driver), made, worker, false))
    }

    async fn start_http1(
        &self,
        connected: Connected,
        many_fields: bool,
    ) -> hyper::Result<(http1::SendRequest<OutBody>, AbortHandle)> {
        let mut builder = http1::Builder::new();
        builder.read_buf_exact_size(Some(READ_BUFFER)).max_header_size(self.bounds.response_head);
        if many_fields {
            builder.max_headers(RESPONSE_FIELDS);
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

    fn share(self: &Arc<Self>, shared: Arc<Shared>, worker: usize, reused: bool) -> Lease {
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let made = shared.made.clone();
        self.hold(Held::Http2(shared), made, worker, reused)
    }

    fn hold(self: &Arc<Self>, held: Held, made: Made, worker: usize, reused: bool) -> Lease {
        self.gauge().active_inc();
        Lease { pool: self.clone(), held, made, worker, reused }
    }

    /// Keeps a connection for the next request, unless there are enough.
    fn keep(&self, worker: usize, idle: Idle) {
        if idle.sender.is_closed() || idle.since >= idle.made.renew_at || self.closed.load(Ordering::Relaxed) {
            return;
        }
        if self.idle.fetch_add(1, Ordering::Relaxed) >= self.bounds.max_idle {
            self.idle.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.gauge().idle_inc();
        lock(&self.shards[worker]).http1.push(idle);
    }

    fn left(&self, count: usize) {
        for _ in 0..count {
            self.gauge().idle_dec();
        }
        self.idle.fetch_sub(count, Ordering::Relaxed);
    }

    fn gauge(&self) -> &ConnectionGauge {
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

impl Shared {
    fn is_over(&self, is_over: &impl Fn(Instant) -> bool, now: Instant) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        now >= self.made.renew_at || self.in_flight.load(Ordering::Relaxed) == 0 && is_over(used)
    }

    fn takes(&self, demand: &Demand<'_>, now: Instant) -> bool {
        let most = STREAMS.min(self.allowed.load(Ordering::Relaxed)).max(1);
        self.made.fits(demand)
            && !self.sender.is_closed()
            && now < self.made.renew_at
            && self.in_flight.load(Ordering::Relaxed) < most
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
        matches!(self.held, Held::Http1(..))
            && !self.made.many_fields
            && !self.pool.many_fields.swap(true, Ordering::Relaxed)
    }

    /// The peer may have closed the connection while it was idle. On HTTP/2 the peer says what it did not process.
    pub fn may_have_ended(&self) -> bool {
        self.reused && matches!(self.held, Held::Http1(..))
    }

    /// The address of the backend.
    pub fn address(&self) -> std::net::SocketAddr {
        self.made.address
    }

    /// What is spoken on the connection.
    pub fn version(&self) -> http::Version {
        match self.held {
            Held::Http2(_) => http::Version::HTTP_2,
            Held::Http1(..) | Held::Gone => http::Version::HTTP_11,
        }
    }

    /// Sends a request and waits for the response head.
    ///
    /// # Errors
    ///
    /// The connection failed; the request comes back when nothing of it was sent.
    pub async fn send(&mut self, request: Request<OutBody>) -> Result<Response<Incoming>, SendError> {
        let result = match &mut self.held {
            Held::Http1(sender, _) => sender.try_send_request(request).await,
            Held::Http2(shared) => shared.sender.clone().try_send_request(request).await,
            Held::Gone => unreachable!("a lease sends before it is given back"),
        };
        result.map_err(|mut error| SendError { unsent: error.take_message(), error: error.into_error() })
    }

    /// Gives the connection back after a whole exchange. A lease that is only dropped closes an HTTP/1.1 connection.
    pub fn recycle(mut self, now: Instant) {
        match std::mem::replace(&mut self.held, Held::Gone) {
            Held::Http1(sender, driver) => {
                let idle = Idle { sender, driver, made: self.made.clone(), since: now };
                self.pool.keep(self.worker, idle);
            }
            other => self.held = other,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.gauge().active_dec();
        match &self.held {
            // A driver that has more to write to a peer that does not read would otherwise live on, and the client's
            // body with it.
            Held::Http1(_, driver) => driver.abort(),
            Held::Http2(shared) => {
                *shared.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                shared.in_flight.fetch_sub(1, Ordering::Relaxed);
            }
            Held::Gone => {}
        }
    }
}

fn lock(shard: &Shard) -> MutexGuard<'_, Connections> {
    shard.connections.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Builds every part in order, owns the runtimes, and ends them in order.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::config::{self, Config, ConfigError, Environment, Listen};
use crate::control::candidate::{Candidate, Compiled};
use crate::control::keeper::Keeper;
use crate::control::opening::{self, Opening};
use crate::control::reload::{Parts, ReloadHandle, Reloader};
use crate::control::state_file::StateFile;
use crate::control::status::{self, Status};
use crate::control::watch::Watch;
use crate::net::listener::Bound;
use crate::proxy::Proxy;
use crate::readiness::Readiness;
use crate::routing::client_address::Suspicion;
use crate::routing::live::Live;
use crate::routing::snapshot::Means;
use crate::server::accept::accept;
use crate::server::connection::{Door, Tls};
use crate::server::worker::{self, Worker};
use crate::shutdown::{self, Drain, Trigger};
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::logs::LogHandle;
use crate::telemetry::{Telemetry, logs, machine};
use crate::tls::certificates::{self, Certificates};
use crate::upstream::resolve::Resolver;

/// Connections that are allowed when the descriptor limit is unknown or unlimited.
const MANY: u64 = 1 << 20;

/// How often idle connections to upstreams are looked at.
const SWEEP: Duration = Duration::from_secs(5);

/// How often a data worker shows that it is alive, and how long it may be silent.
const HEARTBEAT: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(30);

/// How long the access log may take for its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// What a process is started with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Environment variables.
    pub environment: Environment,
}

/// Where the process listens, with the ports that the system chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Plain listeners.
    pub http: Vec<SocketAddr>,
    /// TLS listeners.
    pub https: Vec<SocketAddr>,
    /// The admin port.
    pub admin: SocketAddr,
}

/// Why the process did not start. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Mistakes in the file.
    #[error("{0}")]
    Config(ConfigError),
    /// Anything else, one line.
    #[error("{0}")]
    Other(String),
}

/// A running proxy.
pub struct App {
    /// Where it listens.
    pub addresses: Addresses,
    drain: config::Drain,
    readiness: Readiness,
    telemetry: Arc<Telemetry>,
    reload: ReloadHandle,
    trigger: Trigger,
    admin: Trigger,
    threads: Threads,
}

/// The threads, and what ends them.
struct Threads {
    control: Handle,
    stop: CancellationToken,
    joins: Vec<JoinHandle<()>>,
}

/// What becomes of a signal.
enum Wish {
    Stop(&'static str),
    Reload,
    Reopen,
}

impl App {
    /// Reads the file, binds every socket and starts to serve.
    ///
    /// # Errors
    ///
    /// Every mistake in the file, or the first thing that the system refuses.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let Options { config: path, environment } = options;
        let mut threads = Threads::new()?;
        let entered = threads.control.clone();
        let _entered = entered.enter();
        let opened = opening::open(&path, &environment, |candidate| Prepared::of(candidate, &environment, &threads));
        let Opening { first, compiled, watch, broken, before, last_good, damaged } =
            opened.map_err(StartError::Config)?;
        let Prepared { compiled, resolver, workers, logs } = compiled;
        let config = first.config().clone();
        let certificates = Certificates::new(compiled.certificates);
        let tls = tls(&config.listen, &certificates, &first)?;
        let sockets = Sockets::bind(&config.listen)?;
        let addresses = sockets.addresses();
        let telemetry =
            Telemetry::new(&config.log, workers).map_err(|error| StartError::Config(first.unwritable(&error)))?;
        let telemetry = Arc::new(telemetry);

        let readiness = Readiness::default();
        let starting = readiness.expect("listeners");
        let (trigger, drain) = shutdown::channel();
        let (admin_trigger, admin_drain) = shutdown::channel();
        let live = Live::new(compiled.snapshot);
        let suspicion = Arc::new(Suspicion::default());
        let status = Status::new(&environment, &first, crate::control::mounts::warning(&path));
        if let Some(error) = damaged {
            telemetry.process.state_failed();
            tracing::warn!(%error, "the last good configuration was lost");
        }
        let keeper = Keeper::open(
            StateFile::in_directory(&config.reload.state_dir),
            &config,
            before.as_ref().map(Candidate::config),
            live.clone(),
            telemetry.clone(),
            status.clone(),
        );
        let proxy = Arc::new(Proxy::new(live.clone(), telemetry.clone(), suspicion.clone(), drain.clone()));
        let heartbeats = threads.start_workers(workers, &proxy, &drain)?;
        let places = Arc::new(Semaphore::new(connection_limit(&config)));
        threads.start_acceptor(sockets.http, sockets.https, tls, &heartbeats.handles, &places, &drain)?;

        let state = AdminState {
            live: live.clone(),
            status: status.clone(),
            telemetry: telemetry.clone(),
            readiness: readiness.clone(),
            suspicion,
            keeper: keeper.clone(),
            keeps_alone: environment.contains_key("KUBERNETES_SERVICE_HOST") && !config.listen.admin.ip().is_loopback(),
            is_alive: Box::new(heartbeats.is_alive),
        };
        let listener = sockets.admin.into_listener().map_err(other("listen.admin"))?;
        let parts = Parts {
            path,
            environment,
            workers,
            live: live.clone(),
            certificates,
            resolver,
            telemetry: telemetry.clone(),
            logs,
            status: status.clone(),
            keeper: keeper.clone(),
            last_good,
        };
        let reloader = Reloader::new(parts, first, broken.as_ref());
        let reload = reloader.handle();
        threads.start_control(reloader, watch, &live, status, &drain);
        threads.control.spawn(keeper.run(drain.clone()));
        threads.control.spawn(admin::serve(listener, Arc::new(state), admin_drain));
        drop(starting);
        Ok(Self {
            addresses,
            drain: config.drain,
            readiness,
            telemetry,
            reload,
            trigger,
            admin: admin_trigger,
            threads,
        })
    }

    /// Serves until SIGTERM or SIGINT, then ends gracefully; true when all open work was finished. SIGHUP reloads,
    /// SIGUSR1 opens the log files anew, and a second SIGTERM ends the process at once.
    pub fn run_until_signal(self) -> bool {
        let wishes = match self.signals() {
            Ok(wishes) => wishes,
            Err(error) => {
                tracing::error!(%error, "cannot listen for signals");
                return self.shutdown();
            }
        };
        for wish in &wishes {
            match wish {
                Wish::Reload => self.reload.reload_now(),
                Wish::Reopen => {
                    if let Err(error) = self.telemetry.reopen() {
                        tracing::error!(%error, "cannot open a log file anew");
                    }
                }
                Wish::Stop(name) => {
                    tracing::info!(signal = name, "draining");
                    break;
                }
            }
        }
        let second = std::thread::Builder::new().name("second-signal".to_owned()).spawn(move || {
            if wishes.into_iter().any(|wish| matches!(wish, Wish::Stop(_))) {
                std::process::exit(1);
            }
        });
        // Without that thread a second signal is ignored, which is no reason to stay.
        drop(second);
        self.shutdown()
    }

    /// Not ready, then no new work, then the end; true when all open work was finished in time.
    pub fn shutdown(mut self) -> bool {
        self.readiness.close();
        let finished = self.threads.control.block_on(async {
            tokio::time::sleep(self.drain.delay).await;
            let finished = self.trigger.drain(self.drain.grace).await;
            self.admin.drain(Duration::from_millis(100)).await;
            finished
        });
        if !finished {
            tracing::warn!(open = self.trigger.open(), "the grace is over, closing what is open");
        }
        self.threads.end();
        self.telemetry.close(LAST_LINES);
        tracing::info!(finished, "ended");
        finished
    }

    fn signals(&self) -> io::Result<mpsc::Receiver<Wish>> {
        let _entered = self.threads.control.enter();
        let (sender, receiver) = mpsc::channel();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut user = signal(SignalKind::user_defined1())?;
        self.threads.control.spawn(async move {
            loop {
                let wish = tokio::select! {
                    _ = terminate.recv() => Wish::Stop("SIGTERM"),
                    _ = interrupt.recv() => Wish::Stop("SIGINT"),
                    _ = hang_up.recv() => Wish::Reload,
                    _ = user.recv() => Wish::Reopen,
                };
                if sender.send(wish).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

/// A configuration with nothing left to do but to serve it.
struct Prepared {
    compiled: Compiled,
    resolver: Arc<Resolver>,
    workers: usize,
    logs: LogHandle,
}

impl Prepared {
    fn of(candidate: &Candidate, environment: &Environment, threads: &Threads) -> Result<Self, ConfigError> {
        let config = candidate.config();
        let logs = logs::init(config.log.level, config.log.format);
        let workers = config.workers.unwrap_or_else(usable_cpus);
        let resolver = Resolver::new(config.dns, threads.control.clone());
        let compiled = candidate.compile(None, &Means { environment, resolver: &resolver, workers })?;
        Ok(Self { compiled, resolver, workers, logs })
    }
}

/// Proof of life of the data workers, and the way to hand them sockets.
struct Heartbeats<F> {
    handles: Vec<worker::Handle>,
    is_alive: F,
}

impl Threads {
    /// The control runtime, on a thread of its own.
    fn new() -> Result<Self, StartError> {
        let runtime = runtime().map_err(other("the control runtime"))?;
        let mut threads = Self { control: runtime.handle().clone(), stop: CancellationToken::new(), joins: Vec::new() };
        threads.start("control", runtime, async {})?;
        Ok(threads)
    }

    /// Runs `work` on a new thread with that runtime, and keeps the runtime until the end.
    fn start(
        &mut self,
        name: impl Into<String>,
        runtime: Runtime,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), StartError> {
        let stop = self.stop.clone();
        let body = move || {
            runtime.block_on(async {
                work.await;
                stop.cancelled().await;
            });
            // Tasks that still run are dropped here; a blocking look-up does not hold up the end.
            runtime.shutdown_background();
        };
        self.joins.push(std::thread::Builder::new().name(name.into()).spawn(body).map_err(other("a thread"))?);
        Ok(())
    }

    fn start_workers(
        &mut self,
        count: usize,
        proxy: &Arc<Proxy>,
        drain: &Drain,
    ) -> Result<Heartbeats<impl Fn() -> bool + Send + Sync + 'static>, StartError> {
        let start = Instant::now();
        let beats: Arc<[AtomicU64]> = (0..count).map(|_| AtomicU64::new(0)).collect();
        let mut handles = Vec::with_capacity(count);
        for index in 0..count {
            let (handle, worker) = worker::channel(index);
            handles.push(handle);
            let runtime = runtime().map_err(other("a worker's runtime"))?;
            let (proxy, drain, beats) = (proxy.clone(), drain.clone(), beats.clone());
            let work = async move {
                #[expect(clippy::disallowed_methods, reason = "owned by the worker's runtime; ends with it")]
                tokio::spawn(async move { beat(&beats[index], start).await });
                Worker::run(worker, proxy, drain).await;
            };
            self.start(format!("worker-{index}"), runtime, work)?;
        }
        let is_alive = move || {
            let now = start.elapsed().as_secs();
            beats.iter().all(|beat| now.saturating_sub(beat.load(Ordering::Relaxed)) < SILENCE.as_secs())
        };
        Ok(Heartbeats { handles, is_alive })
    }

    fn start_acceptor(
        &mut self,
        http: Vec<Bound>,
        https: Vec<Bound>,
        tls: Option<Tls>,
        workers: &[worker::Handle],
        places: &Arc<Semaphore>,
        drain: &Drain,
    ) -> Result<(), StartError> {
        let runtime = runtime().map_err(other("the acceptor's runtime"))?;
        let plain = Arc::new(Door { kind: ListenerKind::Http, tls: None });
        let secure = Arc::new(Door { kind: ListenerKind::Https, tls });
        let doors = http.into_iter().map(|bound| (bound, plain.clone()));
        for (bound, door) in doors.chain(https.into_iter().map(|bound| (bound, secure.clone()))) {
            let _entered = runtime.enter();
            let listener = bound.into_listener().map_err(other("a listener"))?;
            runtime.spawn(accept(listener, door, workers.to_vec(), places.clone(), drain.clone()));
        }
        self.start("acceptor", runtime, async {})
    }

    fn start_control(&self, reloader: Reloader, watch: Watch, live: &Arc<Live>, status: Arc<Status>, drain: &Drain) {
        self.control.spawn(reloader.run(watch, drain.clone()));
        self.control.spawn(status::tick(status, live.clone(), drain.clone()));
        self.control.spawn(sweep(live.clone(), drain.clone()));
    }

    fn end(&mut self) {
        self.stop.cancel();
        for join in self.joins.drain(..) {
            // A thread that panicked has said so; the others still end.
            let _ = join.join();
        }
    }
}

/// A start that failed, or an app that was dropped, leaves no thread behind.
impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}

/// Bound, not yet accepting.
struct Sockets {
    http: Vec<Bound>,
    https: Vec<Bound>,
    admin: Bound,
}

impl Sockets {
    fn bind(listen: &Listen) -> Result<Self, StartError> {
        let all =
            |key: &str, addresses: &[SocketAddr]| addresses.iter().map(|a| bind(key, *a)).collect::<Result<_, _>>();
        Ok(Self {
            http: all("listen.http", &listen.http)?,
            https: all("listen.https", &listen.https)?,
            admin: bind("listen.admin", listen.admin)?,
        })
    }

    fn addresses(&self) -> Addresses {
        let all = |bound: &[Bound]| bound.iter().map(Bound::address).collect();
        Addresses { http: all(&self.http), https: all(&self.https), admin: self.admin.address() }
    }
}

fn bind(key: &str, address: SocketAddr) -> Result<Bound, StartError> {
    Bound::bind(address).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "the port is in use; stop the other process or choose another port",
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need a privilege; choose a higher one and map it in the Service"
            }
            io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            _ => "the system refuses it",
        };
        StartError::Other(format!("{key}: cannot listen on {address}: {error}: {advice}"))
    })
}

fn tls(listen: &Listen, certificates: &Arc<Certificates>, first: &Candidate) -> Result<Option<Tls>, StartError> {
    if listen.https.is_empty() {
        return Ok(None);
    }
    let config = certificates::config(certificates.clone(), &listen.tls)
        .map_err(|error| StartError::Config(first.unfit("listen.tls.client_ca", error.to_string(), error.help)))?;
    Ok(Some(Tls { config, certificates: certificates.clone() }))
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn other(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::Other(format!("{what}: {error}"))
}

/// The CPU quota of the cgroup rounded up, else the CPUs that the process may use.
fn usable_cpus() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    match machine::cpu_quota(std::path::Path::new("/")) {
        Some(quota) if quota.ceil() >= 1.0 => available.min(quota.ceil() as usize),
        _ => available,
    }
}

/// `limits.max_connections`, or 45 % of the descriptors: every connection may need another one to an upstream.
fn connection_limit(config: &Config) -> usize {
    let limits = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limits.maximum, maximum: limits.maximum };
    let descriptors = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum.unwrap_or(MANY),
        Err(_) => limits.current.unwrap_or(MANY),
    };
    let share = usize::try_from(descriptors.min(MANY) * 45 / 100).unwrap_or(usize::MAX);
    config.limits.max_connections.unwrap_or(share).clamp(1, Semaphore::MAX_PERMITS)
}

async fn beat(heart: &AtomicU64, start: Instant) {
    loop {
        heart.store(start.elapsed().as_secs(), Ordering::Relaxed);
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// Closes connections to upstreams that have been idle too long.
async fn sweep(live: Arc<Live>, drain: Drain) {
    loop {
        tokio::select! {
            () = drain.started() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
        let now = Instant::now();
        for service in &live.snapshot().services {
            service.old.pool.sweep(now);
            service.new.pool.sweep(now);
        }
    }
}

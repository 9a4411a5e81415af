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

use crate::admin::{self, AdminState, Events};
use crate::config::{Config, ConfigError, Environment, Listen};
use crate::control::backend::Backend;
use crate::control::candidate::{Candidate, Compiled};
use crate::control::keeper::Keeper;
use crate::control::listeners::{self, Listeners, Socket};
use crate::control::opening::{self, Opening};
use crate::control::peers::Watcher;
use crate::control::reload::{Parts, ReloadHandle, Reloader};
use crate::control::rollback;
use crate::control::status::{self, Status};
use crate::control::watch::Watch;
use crate::net::listener::Bound;
use crate::net::relay::FAREWELL;
use crate::proxy::Proxy;
use crate::readiness::Readiness;
use crate::routing::client_address::Suspicion;
use crate::routing::live::Live;
use crate::routing::snapshot::Means;
use crate::server::accept::Acceptor;
use crate::server::connection::{Door, Tls};
use crate::server::worker::{self, Worker};
use crate::shutdown::{self, Drain, Trigger};
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::logs::LogHandle;
use crate::telemetry::{Telemetry, logs, machine};
use crate::tls::certificates::{self, Certificates};
use crate::upstream::dns::Sources;
use crate::upstream::resolve::Resolver;

/// Connections that are allowed when the descriptor limit is unknown or unlimited.
const MANY: u64 = 1 << 20;

/// How often idle connections to upstreams are looked at.
const SWEEP: Duration = Duration::from_secs(5);

/// How often a data worker shows that it is alive, and how long it may be silent.
const HEARTBEAT: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(30);

/// How long the logs may take for their last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// How long control lines may take where somebody waits for them.
const LAST_WORD: Duration = Duration::from_millis(200);

/// What a process is started with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Environment variables.
    pub environment: Environment,
    /// Where names are looked up.
    pub names: Sources,
    /// Signals are for this process's app, from its very start: one that comes while it starts is kept, not fatal.
    pub heeds_signals: bool,
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
    live: Arc<Live>,
    readiness: Readiness,
    telemetry: Arc<Telemetry>,
    reload: ReloadHandle,
    trigger: Trigger,
    admin: Trigger,
    threads: Threads,
    wishes: Option<mpsc::Receiver<Wish>>,
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
        let Options { config: path, environment, names, heeds_signals } = options;
        let mut threads = Threads::new()?;
        let entered = threads.control.clone();
        let _entered = entered.enter();
        let wishes = heeds_signals.then(|| signals(&threads.control)).transpose().map_err(other("signals"))?;
        let opened =
            opening::open(&path, &environment, |candidate| Prepared::of(candidate, &environment, &names, &threads));
        let Opening {
            first,
            compiled,
            watch,
            broken,
            before,
            is_file_new,
            last_good,
            damaged,
            unserved,
            lacking,
            history,
        } = opened.map_err(StartError::Config)?;
        let Prepared { compiled, resolver, workers, logs } = compiled;
        let config = first.config().clone();
        let readiness = Readiness::default();
        // A new replica without any certificate must not take the place of one that still has them.
        let awaited = lacking.is_some() && compiled.certificates.all().is_empty();
        let awaited = awaited.then(|| readiness.expect("certificates"));
        let certificates = Certificates::awaiting(compiled.certificates, awaited);
        let tls = tls(&config.listen, &certificates, &first)?;
        let sockets = listeners::bind(&config.listen)
            .map_err(|error| StartError::Other(format!("{}: {error}: {}", error.key, error.advice)))?;
        let addresses = Addresses::of(&sockets);
        let telemetry =
            Telemetry::new(&config.log, workers).map_err(|error| StartError::Config(first.unwritable(&error)))?;
        let telemetry = Arc::new(telemetry);
        history.listen_to(&telemetry.audit);
        let (rollbacks, earlier) = rollback::channel();

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
        if let Some(error) = lacking {
            tracing::error!(error, "a listener certificate cannot be used, handshakes that need it fail");
            status.set_trouble(status::Trouble::Certificates, Some(format!("without a listener certificate: {error}")));
        }
        if let Some(error) = unserved {
            tracing::error!(error, "the pinned configuration cannot serve, the file does");
            let told = format!("the pinned configuration cannot serve, the file does: {error}");
            status.set_trouble(status::Trouble::PinUnserved, Some(told));
        }
        let backend = Backend::choose(&first, &environment, &readiness).map_err(StartError::Config)?;
        let keeps_alone = backend.is_alone()
            && environment.contains_key("KUBERNETES_SERVICE_HOST")
            && !config.listen.admin.ip().is_loopback();
        let (store, follow) = backend.split();
        let keeper = Keeper::open(
            store,
            &config,
            before.as_ref().map(Candidate::config),
            live.clone(),
            telemetry.clone(),
            status.clone(),
        );
        let proxy = Arc::new(Proxy::new(live.clone(), telemetry.clone(), suspicion.clone(), drain.clone()));
        let heartbeats = threads.start_workers(workers, &proxy, &drain)?;
        let places = Arc::new(Semaphore::new(connection_limit(&config)));
        let acceptor = Acceptor { workers: heartbeats.handles, places, drain: drain.clone() };
        let acceptor = threads.start_acceptor(acceptor)?;

        let state = AdminState {
            live: live.clone(),
            status: status.clone(),
            telemetry: telemetry.clone(),
            readiness: readiness.clone(),
            suspicion,
            keeper: keeper.clone(),
            history: history.clone(),
            rollbacks,
            environment: environment.clone(),
            keeps_alone,
            events: Events::default(),
            is_alive: Box::new(heartbeats.is_alive),
        };
        let opener = Opener {
            acceptor,
            plain: Arc::new(Door { kind: ListenerKind::Http, tls: None }),
            secure: Arc::new(Door { kind: ListenerKind::Https, tls }),
            control: threads.control.clone(),
            admin: Arc::new(state),
            admin_drain,
        };
        let open = move |kind, bound, retired| opener.open(kind, bound, retired);
        let listeners = Listeners::start(sockets, Box::new(open)).map_err(other("a listener"))?;
        let watcher = Watcher {
            live: live.clone(),
            status: status.clone(),
            telemetry: telemetry.clone(),
            resolver: resolver.clone(),
        };
        let parts = Parts {
            path,
            environment,
            workers,
            live: live.clone(),
            listeners: Arc::new(listeners),
            certificates,
            resolver,
            telemetry: telemetry.clone(),
            logs,
            status: status.clone(),
            keeper: keeper.clone(),
            last_good,
            is_file_new,
            history,
            wishes: earlier,
        };
        let reloader = Reloader::new(parts, first, broken.as_ref());
        let reload = reloader.handle();
        threads.start_control(reloader, watch, &live, status, &drain);
        threads.control.spawn(watcher.run(drain.clone()));
        follow(keeper.clone(), drain.clone());
        threads.control.spawn(keeper.run(drain.clone()));
        // What the start had to say is there before anybody hears that it is over.
        logs::flush(LAST_WORD);
        drop(starting);
        Ok(Self { addresses, live, readiness, telemetry, reload, trigger, admin: admin_trigger, threads, wishes })
    }

    /// Serves until SIGTERM or SIGINT, then ends gracefully; true when all open work was finished. SIGHUP reloads,
    /// SIGUSR1 opens the log files anew, and a second SIGTERM ends the process at once.
    /// An app that does not heed signals ends at once.
    pub fn run_until_signal(mut self) -> bool {
        let Some(wishes) = self.wishes.take() else { return self.shutdown() };
        for wish in &wishes {
            if let Wish::Stop(name) = wish {
                tracing::info!(signal = name, "draining");
                break;
            }
            heed(&wish, &self.reload, &self.telemetry);
        }
        let (reload, telemetry) = (self.reload.clone(), self.telemetry.clone());
        let later = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for wish in wishes {
                if let Wish::Stop(name) = wish {
                    tracing::warn!(signal = name, "told to stop once more, ending at once");
                    logs::flush(LAST_WORD);
                    std::process::exit(1);
                }
                heed(&wish, &reload, &telemetry);
            }
        });
        // Without that thread a second signal is ignored, which is no reason to stay.
        drop(later);
        self.shutdown()
    }

    /// Not ready, then no new work, then the end; true when all open work was finished in time. What the configuration
    /// says of the drain counts as it is when each step begins.
    pub fn shutdown(mut self) -> bool {
        self.readiness.close();
        let finished = self.threads.control.block_on(async {
            tokio::time::sleep(self.live.snapshot().config.drain.delay).await;
            let finished = self.finish(self.live.snapshot().config.drain.grace).await;
            self.admin.drain(Duration::from_millis(100)).await;
            finished
        });
        self.threads.end();
        self.telemetry.close(LAST_LINES);
        tracing::info!(finished, "ended");
        finished
    }

    /// Finishes open work within `grace`. What would last longer is sent home in its second half, one after the other and
    /// with time left for the farewell.
    async fn finish(&self, grace: Duration) -> bool {
        let half = grace / 2;
        tracing::info!(open = self.trigger.open(), ?grace, "no new work, finishing what is open");
        self.trigger.start(grace);
        if self.trigger.finished(half).await {
            return true;
        }
        self.live.send_home(half.saturating_sub(FAREWELL * 2).max(half / 2));
        let finished = self.trigger.finished(half).await;
        if !finished {
            tracing::warn!(open = self.trigger.open(), "the grace is over, closing what is open");
            self.trigger.cut();
        }
        finished
    }
}

/// Hears of signals from now on.
fn signals(control: &Handle) -> io::Result<mpsc::Receiver<Wish>> {
    let (sender, receiver) = mpsc::channel();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut user = signal(SignalKind::user_defined1())?;
    control.spawn(async move {
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

/// What can be done beside serving.
fn heed(wish: &Wish, reload: &ReloadHandle, telemetry: &Telemetry) {
    match wish {
        Wish::Stop(_) => {}
        Wish::Reload => reload.reload_now(),
        Wish::Reopen => {
            if let Err(error) = telemetry.reopen() {
                tracing::error!(%error, "cannot open a log file anew");
            }
        }
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
    fn of(
        candidate: &Candidate,
        environment: &Environment,
        names: &Sources,
        threads: &Threads,
    ) -> Result<Self, ConfigError> {
        let config = candidate.config();
        let logs = logs::init(config.log.level, config.log.format);
        let workers = config.workers.unwrap_or_else(usable_cpus);
        let resolver = Resolver::new(config.dns, names.clone(), threads.control.clone());
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

    /// The acceptor's thread, and the way to give it listeners.
    fn start_acceptor(&mut self, acceptor: Acceptor) -> Result<(Acceptor, Handle), StartError> {
        let runtime = runtime().map_err(other("the acceptor's runtime"))?;
        let handle = runtime.handle().clone();
        self.start("acceptor", runtime, async {})?;
        Ok((acceptor, handle))
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

impl Addresses {
    fn of(sockets: &[Socket]) -> Self {
        let all = |kind| sockets.iter().filter(move |socket| socket.kind == kind).map(|socket| socket.bound.address());
        Self {
            http: all(listeners::Kind::Http).collect(),
            https: all(listeners::Kind::Https).collect(),
            admin: all(listeners::Kind::Admin).next().expect("there is always an admin port"),
        }
    }
}

/// Puts a socket to use, at the start and later.
struct Opener {
    acceptor: (Acceptor, Handle),
    plain: Arc<Door>,
    secure: Arc<Door>,
    control: Handle,
    admin: Arc<AdminState>,
    admin_drain: Drain,
}

impl Opener {
    fn open(&self, kind: listeners::Kind, bound: Bound, retired: CancellationToken) -> io::Result<()> {
        let (acceptor, runtime) = &self.acceptor;
        let door = match kind {
            listeners::Kind::Http => &self.plain,
            listeners::Kind::Https => &self.secure,
            listeners::Kind::Admin => {
                let _entered = self.control.enter();
                let (state, drain) = (self.admin.clone(), self.admin_drain.clone());
                self.control.spawn(admin::serve(bound.into_listener()?, state, drain, retired));
                return Ok(());
            }
        };
        let _entered = runtime.enter();
        runtime.spawn(acceptor.clone().run(bound.into_listener()?, door.clone(), retired));
        Ok(())
    }
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

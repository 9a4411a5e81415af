//! Keeps what is served equal to the newest file that can be served. A file that cannot changes nothing but the status,
//! a metric and a log line; connections, pools, breakers and shares of what did not change are never touched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::candidate::{Candidate, Compiled, one_line};
use super::restart::Fixed;
use super::status::Status;
use super::watch::Watch;
use super::{expiry, mounts};
use crate::config::{ConfigError, Environment, Problem, Severity, source};
use crate::routing::live::Live;
use crate::routing::snapshot::{Means, ShareChange};
use crate::shutdown::Drain;
use crate::telemetry::audit::{Actor, Event, Kind, Value};
use crate::telemetry::labels::ReloadResult;
use crate::telemetry::logs::LogHandle;
use crate::telemetry::{Telemetry, access_log};
use crate::tls::certificates::Certificates;
use crate::upstream::resolve::Resolver;

/// More problems than this are counted in the log instead of listed.
const MOST_PROBLEMS: usize = 20;

/// As much of a hash as people compare.
const SHORT_HASH: usize = 12;

/// What a reload works on, and what it works with.
pub struct Parts {
    /// The configuration file.
    pub path: PathBuf,
    /// The environment that the first file was read with.
    pub environment: Environment,
    /// Data workers.
    pub workers: usize,
    /// What is served.
    pub live: Arc<Live>,
    /// What the TLS listeners show.
    pub certificates: Arc<Certificates>,
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    /// Logs and meters.
    pub telemetry: Arc<Telemetry>,
    /// Level and form of control lines.
    pub logs: LogHandle,
    /// What is reported.
    pub status: Arc<Status>,
}

/// Serves newer files as they come.
pub struct Reloader {
    parts: Parts,
    fixed: Fixed,
    served: Candidate,
    /// Some file that the served configuration names cannot be used as it is now.
    files_failed: bool,
    requested: Arc<Notify>,
}

/// Asks for a reload, as SIGHUP does.
#[derive(Clone, Debug)]
pub struct ReloadHandle {
    requested: Arc<Notify>,
}

impl ReloadHandle {
    /// Reads the file and all that it names again.
    pub fn reload_now(&self) {
        self.requested.notify_one();
    }
}

/// What a look at the file led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something new is served.
    Applied,
    /// It is what is served already.
    Unchanged,
    /// It cannot be served.
    Rejected,
}

impl Reloader {
    /// Takes over from the start, which has installed `first`. Meters and log show it from now on.
    pub fn new(parts: Parts, first: Candidate) -> Self {
        let process = &parts.telemetry.process;
        process.started(true, SystemTime::now());
        let configuration = parts.status.configuration();
        process.configuration(configuration.generation, &configuration.hash);
        log_warnings(&configuration.warnings);
        let fixed = Fixed::of(first.config());
        let reloader = Self { parts, fixed, served: first, files_failed: false, requested: Arc::default() };
        reloader.show_certificates();
        reloader
    }

    /// Asks for a reload from elsewhere.
    pub fn handle(&self) -> ReloadHandle {
        ReloadHandle { requested: self.requested.clone() }
    }

    /// Follows the files until the drain starts.
    pub async fn run(mut self, mut watch: Watch, drain: Drain) {
        loop {
            tokio::select! {
                () = drain.started() => return,
                changed = watch.changed() => self.reload(&changed, &mut watch),
                () = self.requested.notified() => {
                    tracing::info!("reload requested");
                    self.reload(&[], &mut watch)
                }
            };
        }
    }

    /// Looks at the files again. `changed` are those that were seen to change; without any, all of them may have.
    pub fn reload(&mut self, changed: &[PathBuf], watch: &mut Watch) -> Outcome {
        let is_named_file = |file: &PathBuf| *file != self.parts.path;
        let refreshes = changed.is_empty() || changed.iter().any(is_named_file);
        match self.newer(watch) {
            Ok(Some((candidate, ready))) => self.apply(candidate, ready, watch),
            Ok(None) if refreshes || self.files_failed => self.refresh(watch),
            Ok(None) => self.keep(watch),
            Err(error) => {
                self.reject(&error);
                // A mistake in the file must not keep a certificate of what is served from being renewed.
                if refreshes {
                    self.refresh_beside_an_error();
                }
                Outcome::Rejected
            }
        }
    }

    /// The file as it is now, ready to be served; `None` when it is served already.
    fn newer(&self, watch: &mut Watch) -> Result<Option<(Candidate, Ready)>, ConfigError> {
        let Parts { path, environment, .. } = &self.parts;
        let text = source::read(path)?;
        if text == *self.served.text() {
            return Ok(None);
        }
        let candidate = Candidate::decode(text, environment)?;
        // Watched before anything can fail, so that a file that is missing now is waited for.
        let served = self.served.files(environment);
        watch.set_files(candidate.files(environment).into_iter().chain(served));
        let ready = self.try_out(&candidate)?;
        Ok(Some((candidate, ready)))
    }

    /// Everything that can fail.
    fn try_out(&self, candidate: &Candidate) -> Result<Ready, ConfigError> {
        let Parts { environment, resolver, workers, live, telemetry, .. } = &self.parts;
        let current = live.snapshot();
        let compiled = candidate.compile(Some(&current), &Means { environment, resolver, workers: *workers })?;
        let log = &candidate.config().log;
        let access = telemetry.access.prepare(log).map_err(|error| candidate.unwritable(&error))?;
        let audit = telemetry.audit.prepare(log).map_err(|error| candidate.unwritable(&error))?;
        Ok(Ready { compiled, access, audit })
    }

    /// Serves it from the next request and the next handshake on. Nothing in here can fail.
    fn install(&self, candidate: &Candidate, ready: Ready) -> Vec<ShareChange> {
        let Ready { compiled: Compiled { snapshot, certificates }, access, audit } = ready;
        let Parts { telemetry, status, live, resolver, logs, .. } = &self.parts;
        let config = candidate.config();
        telemetry.access.install(access);
        telemetry.audit.install(audit);
        logs.set(config.log.level, config.log.format);
        resolver.configure(config.dns);
        self.parts.certificates.replace(certificates);
        live.install(snapshot);
        let snapshot = live.snapshot();
        let changes = snapshot.take_over();
        status.tick(&snapshot);
        self.show_certificates();
        self.show_restart_needed(self.fixed.changed(config));
        changes
    }

    /// Serves another text.
    fn apply(&mut self, candidate: Candidate, ready: Ready, watch: &mut Watch) -> Outcome {
        let changes = self.install(&candidate, ready);
        watch.set_files(candidate.files(&self.parts.environment));
        watch.configure(&candidate.config().reload);
        self.files_failed = false;
        self.announce(&candidate, &changes);
        self.served = candidate;
        Outcome::Applied
    }

    /// Tells everybody about another text.
    fn announce(&self, candidate: &Candidate, changes: &[ShareChange]) {
        let Parts { telemetry, status, path, .. } = &self.parts;
        for change in changes {
            let (from, to) = (Value::Number(change.from.as_f64()), Value::Number(change.to.as_f64()));
            audit(telemetry, Kind::Percentage, Some(&change.service), from, to);
        }
        let warnings: Vec<String> = mounts::warning(path).into_iter().chain(candidate.warning_lines()).collect();
        let hash = candidate.text().hash();
        let (before, generation) = status.update(|configuration| {
            configuration.generation += 1;
            configuration.loaded_at = Timestamp::now();
            configuration.last_error = None;
            configuration.warnings.clone_from(&warnings);
            (std::mem::replace(&mut configuration.hash, hash.clone()), configuration.generation)
        });
        audit(telemetry, Kind::Config, None, Value::Text(short(&before)), Value::Text(short(&hash)));
        telemetry.process.configuration(generation, &hash);
        telemetry.process.reloaded(ReloadResult::Applied, SystemTime::now());
        let services = candidate.config().services.len();
        tracing::info!(generation, services, "configuration changed");
        log_warnings(&warnings);
    }

    /// The file is what is served already, whatever it was in between.
    fn keep(&self, watch: &mut Watch) -> Outcome {
        let Parts { telemetry, status, environment, .. } = &self.parts;
        watch.set_files(self.served.files(environment));
        telemetry.process.reloaded(ReloadResult::Unchanged, SystemTime::now());
        status.update(|configuration| configuration.last_error = None);
        tracing::info!("configuration unchanged");
        Outcome::Unchanged
    }

    /// Reads again what the served configuration names.
    fn refresh(&mut self, watch: &mut Watch) -> Outcome {
        let Parts { telemetry, status, environment, .. } = &self.parts;
        watch.set_files(self.served.files(environment));
        match self.try_out(&self.served) {
            Ok(ready) => {
                self.install(&self.served, ready);
                telemetry.process.reloaded(ReloadResult::Applied, SystemTime::now());
                status.update(|configuration| configuration.last_error = None);
                self.files_failed = false;
                tracing::info!("certificates and keys read again");
                Outcome::Applied
            }
            Err(error) => {
                self.reject(&error);
                self.files_failed = true;
                Outcome::Rejected
            }
        }
    }

    /// The same while the file itself is wrong, which is what status and metrics go on to show.
    fn refresh_beside_an_error(&self) {
        match self.try_out(&self.served) {
            Ok(ready) => {
                self.install(&self.served, ready);
                tracing::info!("certificates and keys read again");
            }
            Err(error) => {
                let (count, problems) = listed(&error);
                tracing::error!(
                    errors = count,
                    problems,
                    "certificates and keys cannot be used, the earlier ones stay"
                );
            }
        }
    }

    fn reject(&self, error: &ConfigError) -> Outcome {
        let Parts { telemetry, status, .. } = &self.parts;
        telemetry.process.reloaded(ReloadResult::Rejected, SystemTime::now());
        let generation = status.update(|configuration| {
            configuration.last_error = Some(error.summary());
            configuration.generation
        });
        let (count, problems) = listed(error);
        tracing::error!(generation, errors = count, problems, "configuration rejected, the running one stays");
        Outcome::Rejected
    }

    fn show_certificates(&self) {
        let Parts { telemetry, status, certificates, live, .. } = &self.parts;
        let ends = expiry::of(&certificates.current(), &live.snapshot());
        telemetry.process.certificates(ends.clone());
        status.update(|configuration| configuration.certificates = ends);
    }

    fn show_restart_needed(&self, keys: Vec<String>) {
        let Parts { telemetry, status, .. } = &self.parts;
        telemetry.process.restart_needed(!keys.is_empty());
        let before = status.update(|configuration| std::mem::replace(&mut configuration.restart_needed, keys.clone()));
        if !keys.is_empty() && keys != before {
            tracing::warn!(keys = keys.join(", "), "changed keys wait for a restart");
        }
    }
}

/// A candidate with nothing left that can fail.
struct Ready {
    compiled: Compiled,
    access: access_log::Prepared,
    audit: crate::telemetry::audit::Prepared,
}

fn audit(telemetry: &Telemetry, kind: Kind, service: Option<&str>, from: Value<'_>, to: Value<'_>) {
    let event = Event { kind, service, from: Some(from), to: Some(to), reason: None };
    telemetry.audit.record(&event, &Actor::File, None);
}

fn short(hash: &str) -> &str {
    hash.get(..SHORT_HASH).unwrap_or(hash)
}

/// Says each warning of a file once.
fn log_warnings(warnings: &[String]) {
    for warning in warnings.iter().take(MOST_PROBLEMS) {
        tracing::warn!(warning, "configuration");
    }
    if let Some(more) = warnings.len().checked_sub(MOST_PROBLEMS).filter(|more| *more > 0) {
        tracing::warn!(more, "more warnings about the configuration: see check");
    }
}

/// How many errors there are, and the first of them in one line.
fn listed(error: &ConfigError) -> (usize, String) {
    let errors: Vec<&Problem> = error.problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    let lines: Vec<String> = errors.iter().take(MOST_PROBLEMS).map(|problem| one_line(problem)).collect();
    (errors.len(), lines.join("; "))
}

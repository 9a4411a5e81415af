//! Keeps what is served equal to the newest file that can be served. A file that cannot changes nothing but the status,
//! a metric and a log line; connections, pools, breakers and shares of what did not change are never touched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::announcement::{joined, listed, log_warnings, note_kept};
use super::candidate::{Candidate, Compiled};
use super::history::{Author, History, Pinned};
use super::keeper::{AGAIN, Keeper};
use super::last_good::LastGood;
use super::listeners::{self, Listeners};
use super::restart::Fixed;
use super::rollback::Wish;
use super::status::{Status, Trouble};
use super::watch::Watch;
use super::{differences, expiry, lost_hosts};
use crate::config::{ConfigError, Environment, OnLostHost, Text, source};
use crate::routing::live::Live;
use crate::routing::snapshot::Means;
use crate::shutdown::Drain;
use crate::telemetry::difference::Difference;
use crate::telemetry::labels::ReloadResult;
use crate::telemetry::logs::LogHandle;
use crate::telemetry::{Telemetry, access_log};
use crate::tls::certificates::Certificates;
use crate::upstream::health::Probers;
use crate::upstream::resolve::Resolver;

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
    /// The sockets.
    pub listeners: Arc<Listeners>,
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
    /// What operators changed.
    pub keeper: Arc<Keeper>,
    /// Where accepted files are kept.
    pub last_good: LastGood,
    /// The file has changed since this replica ran last, or never served here.
    pub is_file_new: bool,
    /// What was served, and when.
    pub history: Arc<History>,
    /// Wishes for an earlier configuration.
    pub wishes: mpsc::Receiver<Wish>,
}

/// Serves newer files as they come.
pub struct Reloader {
    pub(super) parts: Parts,
    fixed: Fixed,
    pub(super) served: Candidate,
    /// The hash of the file's newest text that counts, and since when it does, if it has changed at all.
    pub(super) file: String,
    pub(super) file_since: Option<Timestamp>,
    /// Some file that the served configuration names cannot be used as it is now.
    files_failed: bool,
    requested: Arc<Notify>,
    /// Health checks end with the reloader, which is when the drain starts.
    probers: Probers,
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
    /// Takes over from the start, which has installed `first`. Meters and log show it from now on, and health checks begin;
    /// it must be called inside the runtime on which they shall run. `broken` tells why `first` is the last good file and
    /// not the file itself.
    pub fn new(parts: Parts, first: Candidate, broken: Option<&ConfigError>) -> Self {
        let process = &parts.telemetry.process;
        process.started(broken.is_none(), SystemTime::now());
        let pinned = parts.history.pinned();
        if let Some(Pinned { hash, by, .. }) = pinned.as_ref().filter(|pinned| pinned.hash == first.text().hash()) {
            tracing::warn!(hash, by, "an earlier configuration serves until the file changes");
        }
        let configuration = parts.status.update(|configuration| {
            configuration.pinned.clone_from(&pinned);
            configuration.clone()
        });
        process.configuration(configuration.generation, &configuration.hash);
        log_warnings(configuration.warnings.iter());
        let fixed = Fixed::of(first.config());
        let mut reloader = Self {
            file: pinned.map_or_else(|| first.text().hash(), |pinned| pinned.seen),
            file_since: parts.is_file_new.then(Timestamp::now),
            parts,
            fixed,
            served: first,
            files_failed: false,
            requested: Arc::default(),
            probers: Probers::default(),
        };
        reloader.show_certificates();
        if let Err(error) = reloader.served.check_tokens() {
            let text = format!("nobody may write: {}", error.summary());
            tracing::error!(error = text, "tokens");
            reloader.parts.status.set_trouble(Trouble::Tokens, Some(text));
        }
        match broken {
            None => {
                let Parts { telemetry, status, last_good, .. } = &reloader.parts;
                note_kept(telemetry, status, &last_good.keep(reloader.served.text()));
            }
            Some(error) => reloader.serves_last_good(error),
        }
        reloader.start_probers();
        reloader.warn_of_ended_certificates();
        reloader
    }

    /// Asks for a reload from elsewhere.
    pub fn handle(&self) -> ReloadHandle {
        ReloadHandle { requested: self.requested.clone() }
    }

    /// Follows the files until the drain starts.
    pub async fn run(mut self, mut watch: Watch, drain: Drain) {
        let mut rollbacks = self.parts.keeper.rollbacks();
        rollbacks.mark_changed();
        let mut failures = self.parts.history.failures();
        failures.mark_changed();
        let (mut again, mut keeping) = (interval(AGAIN), None);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.started() => return,
                changed = watch.changed() => drop(self.reload(&changed, &mut watch)),
                () = self.requested.notified() => {
                    tracing::info!("reload requested");
                    self.reload(&[], &mut watch);
                }
                Some(wish) = self.parts.wishes.recv() => {
                    let outcome = self.roll_back(&wish, &mut watch);
                    wish.answer(outcome);
                }
                Ok(()) = rollbacks.changed() => {
                    rollbacks.mark_unchanged();
                    self.follow_rollback(&mut watch);
                }
                Ok(()) = failures.changed() => {
                    let failure = failures.borrow_and_update().clone();
                    self.note_history(failure);
                }
                _ = again.tick() => {
                    if keeping.as_ref().is_none_or(JoinHandle::is_finished) {
                        keeping = self.keep_again();
                    }
                }
            };
        }
    }

    /// Looks at the files again. `changed` are those that were seen to change; without any, all of them may have.
    pub fn reload(&mut self, changed: &[PathBuf], watch: &mut Watch) -> Outcome {
        let is_named_file = |file: &PathBuf| *file != self.parts.path;
        let refreshes = changed.is_empty() || changed.iter().any(is_named_file);
        let outcome = match self.newer(watch) {
            Ok(Some((candidate, ready))) => {
                self.file_counts(candidate.text().hash());
                self.apply(candidate, ready, &Author::file(), None, watch);
                Outcome::Applied
            }
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
        };
        self.follow_rollback(watch);
        self.start_probers();
        outcome
    }

    /// The file as it is now, ready to be served; `None` when it is served already.
    fn newer(&mut self, watch: &mut Watch) -> Result<Option<(Candidate, Ready)>, ConfigError> {
        let Some(text) = self.newer_text()? else { return Ok(None) };
        let Parts { environment, live, .. } = &self.parts;
        let candidate = Candidate::decode(text, environment)?;
        // Watched before anything can fail, so that a file that is missing now is waited for.
        let served = self.served.files(environment);
        watch.set_files(candidate.files(environment).into_iter().chain(served));
        candidate.check_tokens()?;
        if candidate.config().reload.on_lost_host == OnLostHost::Refuse {
            let lost = lost_hosts::find(&live.snapshot(), candidate.config(), Instant::now());
            if !lost.is_empty() {
                let message =
                    format!("had traffic in the last 5 minutes and would be lost: {}", lost_hosts::listed(&lost));
                let help = "keep the host, or say on_lost_host: warn in the same file".to_owned();
                return Err(candidate.unfit("reload.on_lost_host", message, Some(help)));
            }
        }
        let ready = self.try_out(&candidate)?;
        Ok(Some((candidate, ready)))
    }

    /// The file's text, unless it is what is served already, or what an earlier one serves instead of.
    fn newer_text(&mut self) -> Result<Option<Text>, ConfigError> {
        let pinned = self.parts.history.pinned();
        let overruling = |hash: &str| pinned.clone().filter(|pinned| pinned.overrules(hash));
        let text = match source::read(&self.parts.path) {
            Err(error) if overruling(&error.text.hash()).is_some() => return Ok(None),
            read => read?,
        };
        let hash = text.hash();
        if let Some(pinned) = overruling(&hash) {
            if pinned.seen != hash {
                self.pin(Some(pinned.over(hash.clone())));
                self.file = hash;
            }
            return Ok(None);
        }
        if text == *self.served.text() {
            self.pin(None);
            self.file_counts(hash);
            return Ok(None);
        }
        Ok(Some(text))
    }

    /// Follows the file, or does not until it changes.
    pub(super) fn pin(&self, pinned: Option<Pinned>) {
        let Parts { history, status, .. } = &self.parts;
        status.update(|configuration| configuration.pinned.clone_from(&pinned));
        history.pin(pinned);
        history.write_soon();
        // Whatever serves now was asked for.
        status.set_trouble(Trouble::PinUnserved, None);
    }

    /// Everything that can fail.
    pub(super) fn try_out(&self, candidate: &Candidate) -> Result<Ready, ConfigError> {
        let Parts { environment, resolver, workers, live, telemetry, certificates, .. } = &self.parts;
        let current = live.snapshot();
        let compiled = candidate.compile(Some(&current), &Means { environment, resolver, workers: *workers })?;
        let served = expiry::of(&certificates.current(), &current);
        let wanted = expiry::of(&compiled.certificates, &compiled.snapshot);
        let overdue = expiry::overdue(&served, wanted, Timestamp::now().as_second());
        if !overdue.is_empty() {
            return Err(candidate.overdue(&overdue));
        }
        let log = &candidate.config().log;
        let access = telemetry.access.prepare(log).map_err(|error| candidate.unwritable(&error))?;
        let audit = telemetry.audit.prepare(log).map_err(|error| candidate.unwritable(&error))?;
        let sockets = self.parts.listeners.prepare(&candidate.config().listen);
        let sockets = sockets.map_err(|error| {
            let help = Some(error.advice.to_owned());
            candidate.unfit(error.key, error.to_string(), help)
        })?;
        Ok(Ready { compiled, access, audit, sockets })
    }

    /// Serves it from the next request and the next handshake on; nothing in here can fail. Tells what it cleared, and what
    /// is in force otherwise than before.
    fn install(&self, candidate: &Candidate, ready: Ready) -> (Vec<Difference>, Vec<Difference>) {
        let Ready { compiled: Compiled { snapshot, certificates }, access, audit, sockets } = ready;
        let Parts { telemetry, status, live, resolver, logs, keeper, .. } = &self.parts;
        let config = candidate.config();
        telemetry.access.install(access);
        telemetry.audit.install(audit);
        logs.set(config.log.level, config.log.format);
        resolver.configure(config.dns);
        self.parts.certificates.replace(certificates);
        status.set_trouble(Trouble::Certificates, None);
        let (overrides, cleared) = keeper.follow(config);
        let effective = snapshot.take_over(&overrides);
        live.install(snapshot);
        self.parts.listeners.install(sockets);
        status.tick(&live.snapshot());
        self.show_certificates();
        self.show_restart_needed(&self.fixed.changed(config));
        (cleared, effective)
    }

    /// Serves another text, and tells everybody.
    pub(super) fn apply(
        &mut self,
        candidate: Candidate,
        ready: Ready,
        author: &Author,
        pinned: Option<Pinned>,
        watch: &mut Watch,
    ) -> Vec<Difference> {
        self.warn_of_lost_hosts(&candidate);
        let declared = differences::between(self.served.config(), candidate.config());
        let (cleared, effective) = self.install(&candidate, ready);
        let changes = joined(cleared, effective, declared);
        self.pin(pinned);
        watch.set_files(candidate.files(&self.parts.environment));
        watch.configure(&candidate.config().reload);
        self.files_failed = false;
        self.announce(&candidate, &changes, author);
        self.served = candidate;
        changes
    }

    /// The file is what is served already, whatever it was in between.
    fn keep(&self, watch: &mut Watch) -> Outcome {
        let Parts { telemetry, status, environment, .. } = &self.parts;
        watch.set_files(self.served.files(environment));
        telemetry.process.reloaded(ReloadResult::Unchanged, SystemTime::now());
        status.update(|configuration| configuration.last_error = None);
        status.set_trouble(Trouble::LastGoodServes, None);
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
                status.set_trouble(Trouble::LastGoodServes, None);
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

    /// Checks begin for clusters that are new in what is served; for what is gone they end by themselves.
    pub(super) fn start_probers(&mut self) {
        self.probers.start(self.parts.live.snapshot().probers());
    }
}

/// A candidate with nothing left that can fail.
pub(super) struct Ready {
    compiled: Compiled,
    access: access_log::Prepared,
    audit: crate::telemetry::audit::Prepared,
    sockets: listeners::Prepared,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;
    use crate::control::testing::{Bench, TEXT};
    use crate::shutdown;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn share(bench: &Bench, service: &str) -> f64 {
        bench.live.snapshot().service(service).unwrap().lasting.weight.effective().as_f64()
    }

    /// Writes a pair for this name that ends on the first day of `year`; without a key the old one stays.
    fn write_pair(directory: &TempDir, name: &str, year: i32, with_key: bool) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.path().join("tls.crt"), certificate.pem()).unwrap();
        if with_key {
            fs::write(directory.path().join("tls.key"), key.serialize_pem()).unwrap();
        }
    }

    fn with_tls() -> (TempDir, String) {
        let directory = TempDir::new().unwrap();
        write_pair(&directory, "a.old.example", 2090, true);
        let listen = "https: ['127.0.0.1:0'], tls: {certificates: [{cert: DIR/tls.crt, key: DIR/tls.key}]}, http:";
        (directory, TEXT.replace("http:", listen))
    }

    /// The year in which the listener's certificate ends, as metrics show it.
    fn year(bench: &Bench) -> i64 {
        let end = bench.status.configuration().certificates[0].not_after;
        assert_eq!(bench.certificates.current().all()[0].not_after, end);
        1970 + end / (365 * 86_400)
    }

    #[tokio::test]
    async fn another_text_is_served_counted_and_audited() {
        let mut bench = Bench::start(TEXT);

        let outcome = bench.reload(&TEXT.replace("percentage: 20", "percentage: 50"));

        assert_eq!(outcome, Outcome::Applied);
        assert_eq!(share(&bench, "a"), 50.0);
        assert_eq!(bench.status.configuration().generation, 2);
        let audit = fs::read_to_string(bench.path("audit.log")).unwrap();
        let lines: Vec<&str> = audit.lines().collect();
        assert!(lines[0].contains(r#"AUDIT - percentage service="a" from=20 to=50 by="file""#), "{audit}");
        assert!(lines[1].contains("AUDIT - config from=") && lines.len() == 2, "{audit}");
        let metrics = bench.telemetry.process.render();
        assert!(metrics.contains("config_generation 2\n") && metrics.contains(r#"{result="applied"} 1"#), "{metrics}");
    }

    #[tokio::test]
    async fn an_equal_text_changes_nothing_but_a_counter() {
        let mut bench = Bench::start(TEXT);
        let before = bench.live.snapshot();

        assert_eq!(bench.reload(TEXT), Outcome::Unchanged);

        assert!(Arc::ptr_eq(&before, &bench.live.snapshot()));
        assert_eq!(bench.status.configuration().generation, 1);
        assert!(bench.telemetry.process.render().contains(r#"{result="unchanged"} 1"#));
    }

    #[tokio::test]
    async fn a_wrong_text_changes_nothing_but_status_and_metric() {
        let mut bench = Bench::start(TEXT);
        let before = bench.live.snapshot();

        for wrong in ["", "services: [", &TEXT.replace("percentage: 20", "percentage: 500")] {
            assert_eq!(bench.reload(wrong), Outcome::Rejected, "{wrong}");
            assert!(Arc::ptr_eq(&before, &bench.live.snapshot()));
            assert!(bench.status.configuration().last_error.is_some(), "{wrong}");
            assert!(bench.telemetry.process.render().contains("config_last_reload_successful 0"));
        }

        assert_eq!(bench.reload(TEXT), Outcome::Unchanged);
        assert_eq!(bench.status.configuration().last_error, None);
        assert!(bench.telemetry.process.render().contains("config_last_reload_successful 1"));
    }

    #[tokio::test]
    async fn every_file_that_cannot_be_used_is_reported_and_waited_for() {
        let mut bench = Bench::start(TEXT);
        let new = "new: {ca_file: DIR/ca.crt, client_cert: DIR/c.crt, client_key: DIR/c.key}";
        let text = TEXT.replace("    mode:", &format!("    {new}\n    mode:"));

        assert_eq!(bench.reload(&text), Outcome::Rejected);
        let error = bench.status.configuration().last_error.unwrap();
        assert!(error.contains("services[1].new.ca_file") && error.contains("ca.crt"), "{error}");

        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["c".to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(bench.path("c.crt"), certificate.pem()).unwrap();
        fs::write(bench.path("c.key"), key.serialize_pem()).unwrap();
        fs::write(bench.path("ca.crt"), certificate.pem()).unwrap();
        while generation(&bench) < 2 {
            let changed = tokio::time::timeout(DEADLINE, bench.watch.changed()).await.expect("the files are watched");
            bench.reloader.reload(&changed, &mut bench.watch);
        }
        let ends = bench.status.configuration().certificates;
        let ends: Vec<_> = ends.iter().map(|end| (end.side.as_str(), end.service.as_deref())).collect();
        assert_eq!(ends, [("client", Some("b")), ("ca", Some("b"))]);
    }

    fn generation(bench: &Bench) -> u64 {
        bench.status.configuration().generation
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_and_a_broken_pair_is_not() {
        let (directory, text) = with_tls();
        let mut bench = Bench::over(directory, &text).unwrap();
        let files = [bench.path("tls.crt")];
        assert_eq!(year(&bench), 2090);

        write_pair(&bench.directory, "a.old.example", 2091, false);
        assert_eq!(bench.reloader.reload(&files, &mut bench.watch), Outcome::Rejected);
        assert_eq!(year(&bench), 2090);
        assert!(bench.status.configuration().last_error.unwrap().contains("is not the key"));
        assert_eq!(bench.reload(&text), Outcome::Rejected, "the file itself is fine, its certificate is not");

        write_pair(&bench.directory, "a.old.example", 2092, true);
        assert_eq!(bench.reloader.reload(&files, &mut bench.watch), Outcome::Applied);
        assert_eq!(year(&bench), 2092);
        let configuration = bench.status.configuration();
        assert_eq!((configuration.generation, configuration.last_error), (1, None));
    }

    #[tokio::test]
    async fn a_pair_that_is_over_replaces_none_that_is_good() {
        let (directory, text) = with_tls();
        let mut bench = Bench::over(directory, &text).unwrap();
        let files = [bench.path("tls.crt"), bench.path("tls.key")];

        write_pair(&bench.directory, "a.old.example", 2020, true);
        assert_eq!(bench.reloader.reload(&files, &mut bench.watch), Outcome::Rejected);
        assert_eq!(year(&bench), 2090);
        let error = bench.status.configuration().last_error.unwrap();
        assert!(error.contains("listen.tls.certificates[0].cert") && error.contains("has expired"), "{error}");

        write_pair(&bench.directory, "a.old.example", 2091, true);
        assert_eq!(bench.reloader.reload(&files, &mut bench.watch), Outcome::Applied);
        assert_eq!(year(&bench), 2091);
    }

    #[tokio::test]
    async fn a_start_with_a_pair_that_is_over_serves_it_and_takes_the_next() {
        let (directory, text) = with_tls();
        write_pair(&directory, "a.old.example", 2020, true);
        let mut bench = Bench::over(directory, &text).unwrap();
        assert_eq!(year(&bench), 2020);

        assert_eq!(bench.reload(&text.replace("percentage: 20", "percentage: 50")), Outcome::Applied);
        assert_eq!((share(&bench, "a"), year(&bench)), (50.0, 2020));
    }

    #[tokio::test]
    async fn a_certificate_is_renewed_also_while_the_file_is_wrong() {
        let (directory, text) = with_tls();
        let mut bench = Bench::over(directory, &text).unwrap();
        let files = [bench.path("tls.key")];
        assert_eq!(bench.reload("services: ["), Outcome::Rejected);

        write_pair(&bench.directory, "a.old.example", 2091, true);
        assert_eq!(bench.reloader.reload(&files, &mut bench.watch), Outcome::Rejected);

        assert_eq!(year(&bench), 2091);
        assert!(bench.status.configuration().last_error.is_some());
    }

    #[tokio::test]
    async fn what_needs_a_restart_is_named_until_the_file_goes_back() {
        let mut bench = Bench::start(TEXT);
        let text = TEXT.to_owned() + "workers: 3\nlimits: {max_connections: 7}\n";

        assert_eq!(bench.reload(&text), Outcome::Applied);
        assert_eq!(bench.status.configuration().restart_needed, ["workers", "limits.max_connections"]);
        assert!(bench.telemetry.process.render().contains("config_restart_needed 1"));

        assert_eq!(bench.reload(TEXT), Outcome::Applied);
        assert!(bench.status.configuration().restart_needed.is_empty());
        assert!(bench.telemetry.process.render().contains("config_restart_needed 0"));
    }

    #[tokio::test]
    async fn logs_that_cannot_be_opened_are_a_mistake_of_the_file() {
        let mut bench = Bench::start(TEXT);

        assert_eq!(bench.reload(&TEXT.replace("DIR/audit.log", "DIR/none/audit.log")), Outcome::Rejected);

        let error = bench.status.configuration().last_error.unwrap();
        assert!(error.contains("log.audit_path: open "), "{error}");
    }

    #[tokio::test]
    async fn pools_and_breakers_of_other_services_survive() {
        let mut bench = Bench::start(TEXT);
        let before = bench.live.snapshot();

        bench.reload(&TEXT.replace("b.new.example", "c.new.example"));

        let after = bench.live.snapshot();
        let same = |name: &str| {
            let [before, after] = [&before, &after].map(|snapshot| snapshot.service(name).unwrap().clone());
            let breakers = before.new.breaker.as_ref().zip(after.new.breaker.as_ref());
            let is_same_breaker = breakers.is_some_and(|(before, after)| Arc::ptr_eq(before, after));
            Arc::ptr_eq(&before.new.pool, &after.new.pool) && is_same_breaker
        };
        assert!(same("a") && !same("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn clusters_are_checked_while_what_is_served_wants_it() {
        let checked = TEXT.replace("    mode:", "    health_check: {enabled: true, interval: 1s}\n    mode:");
        let mut bench = Bench::start(TEXT);
        let running = async |bench: &mut Bench, wanted: usize| {
            while bench.reloader.probers.count() != wanted {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let prober = |bench: &Bench| bench.live.snapshot().probers()[0].clone();
        assert_eq!(bench.reloader.probers.count(), 0);

        bench.reload(&checked);
        assert_eq!(bench.reloader.probers.count(), 2, "old and new of one service");
        let before = prober(&bench);

        bench.reload(&checked.replace("percentage: 20", "percentage: 30"));
        assert_eq!(bench.reloader.probers.count(), 2);
        assert!(Arc::ptr_eq(&before, &prober(&bench)), "another service is no reason for another prober");
        drop(before);

        bench.reload(&checked.replace("interval: 1s", "interval: 2s"));
        running(&mut bench, 2).await;

        let held = bench.live.snapshot().service("b").unwrap().clone();
        bench.reload(TEXT);
        running(&mut bench, 0).await;
        drop(held);
    }

    #[tokio::test]
    async fn running_it_follows_the_file_and_ends_with_the_drain() {
        let bench = Bench::start(TEXT);
        let (trigger, drain) = shutdown::channel();
        let (live, status, handle) = (bench.live.clone(), bench.status.clone(), bench.reloader.handle());
        let path = bench.path("migration.yaml");
        let text = fs::read_to_string(&path).unwrap().replace("percentage: 20", "percentage: 70");
        let generation = || status.configuration().generation;
        let work = async {
            fs::write(&path, text).unwrap();
            while generation() < 2 {
                tokio::task::yield_now().await;
            }
            let before = live.snapshot();
            handle.reload_now();
            while Arc::ptr_eq(&before, &live.snapshot()) {
                tokio::task::yield_now().await;
            }
            trigger.drain(Duration::ZERO).await;
        };

        let both = async { tokio::join!(bench.reloader.run(bench.watch, drain), work) };
        tokio::time::timeout(DEADLINE, both).await.expect("the reloader follows and ends");

        assert_eq!(generation(), 2);
    }
}

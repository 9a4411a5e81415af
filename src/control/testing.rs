//! A served configuration in a directory of its own, for tests of what works on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::history::History;
use super::keeper::Keeper;
use super::listeners::{self, Listeners};
use super::opening::{self, Opening};
use super::reload::{Outcome, Parts, Reloader};
use super::rollback::{self, RollbackHandle};
use super::state_file::StateFile;
use super::status::Status;
use super::watch::Watch;
use crate::config::{ConfigError, Environment};
use crate::readiness::Readiness;
use crate::routing::client_address::Suspicion;
use crate::routing::live::Live;
use crate::routing::snapshot::Means;
use crate::telemetry::{Telemetry, logs};
use crate::tls::certificates::Certificates;
use crate::upstream::dns::Sources;
use crate::upstream::resolve::Resolver;

/// Two services. `DIR` stands for the directory.
pub(crate) const TEXT: &str = "
listen: {http: ['127.0.0.1:0'], admin: '127.0.0.1:0'}
log: {access: off, audit_path: DIR/audit.log}
reload: {state_dir: DIR/state}
services:
  - name: a
    old_host: a.old.example
    old_backend: 127.0.0.1:1
    new_host: a.new.example
    migration: {percentage: 20}
  - name: b
    old_host: [b.old.example, '*.b.example']
    old_backend: 127.0.0.1:1
    new_host: b.new.example
    mode: redirect
    migration: {percentage: 0}
";

/// A proxy without listeners and workers.
pub(crate) struct Bench {
    pub(crate) live: Arc<Live>,
    pub(crate) status: Arc<Status>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) readiness: Readiness,
    pub(crate) suspicion: Arc<Suspicion>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) history: Arc<History>,
    pub(crate) rollbacks: RollbackHandle,
    pub(crate) reloader: Reloader,
    pub(crate) watch: Watch,
    pub(crate) directory: TempDir,
}

impl Bench {
    /// Serves this text. Must be called inside a runtime.
    pub(crate) fn start(text: &str) -> Self {
        Self::over(TempDir::new().unwrap(), text).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same in a directory that may hold more files.
    pub(crate) fn over(directory: TempDir, text: &str) -> Result<Self, ConfigError> {
        let path = directory.path().join("migration.yaml");
        write(directory.path(), text);
        let environment = Environment::new();
        let resolver =
            Resolver::new(crate::config::Dns::default(), Sources::default(), tokio::runtime::Handle::current());
        let means = Means { environment: &environment, resolver: &resolver, workers: 1 };
        let Opening { first, compiled, watch, broken, before, is_file_new, last_good, history, .. } =
            opening::open(&path, &environment, |candidate| candidate.compile(None, &means))?;
        let log = &first.config().log;
        let telemetry = Arc::new(Telemetry::new(log, 1).map_err(|error| first.unwritable(&error))?);
        let status = Status::new(&environment, &first, None);
        let live = Live::new(compiled.snapshot);
        history.listen_to(&telemetry.audit);
        let (rollbacks, wishes) = rollback::channel();
        let keeper = Keeper::open(
            StateFile::in_directory(&first.config().reload.state_dir),
            first.config(),
            before.as_ref().map(|before| before.config()),
            live.clone(),
            telemetry.clone(),
            status.clone(),
        );
        let sockets = listeners::bind(&first.config().listen).unwrap();
        let listeners = Listeners::start(sockets, Box::new(|_, _, _| Ok(()))).unwrap();
        let parts = Parts {
            path,
            environment,
            workers: 1,
            live,
            listeners: Arc::new(listeners),
            certificates: Certificates::new(compiled.certificates),
            resolver,
            telemetry,
            logs: logs::init(log.level, log.format),
            status,
            keeper: keeper.clone(),
            last_good,
            is_file_new,
            history: history.clone(),
            wishes,
        };
        Ok(Self {
            live: parts.live.clone(),
            status: parts.status.clone(),
            telemetry: parts.telemetry.clone(),
            certificates: parts.certificates.clone(),
            readiness: Readiness::default(),
            suspicion: Arc::default(),
            keeper,
            history,
            rollbacks,
            reloader: Reloader::new(parts, first, broken.as_ref()),
            watch,
            directory,
        })
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration file.
    pub(crate) fn write(&self, text: &str) {
        write(self.directory.path(), text);
    }

    /// Writes the file, and takes it as a noticed change.
    pub(crate) fn reload(&mut self, text: &str) -> Outcome {
        self.write(text);
        self.reloader.reload(&[self.path("migration.yaml")], &mut self.watch)
    }
}

fn write(directory: &Path, text: &str) {
    let text = text.replace("DIR", directory.to_str().unwrap());
    fs::write(directory.join("migration.yaml"), text).unwrap();
}

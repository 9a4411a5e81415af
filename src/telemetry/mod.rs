//! What we tell the world: metrics, access log, audit and control lines. Everything here is told, never asked: no
//! decision depends on it, and nothing on the request path waits for a disk or a scrape.

pub mod access_line;
pub mod access_log;
pub mod audit;
pub mod callers;
pub mod difference;
pub mod exposition;
pub mod labels;
pub mod latency;
pub mod logs;
pub mod machine;
pub mod metrics;
pub mod names;
pub mod outlet;
pub mod process;
pub mod recent;
pub mod scrape;
pub mod seldom;
pub mod sink;
pub mod text;
pub mod window;

use std::time::Duration;

use crate::config::Log;

pub use access_log::AccessLog;
pub use audit::Audit;
pub use callers::Callers;
pub use metrics::ServiceMeters;
pub use process::ProcessMeters;
pub use recent::Recent;
pub use scrape::{Scrape, ServiceGauges};
pub use sink::SinkError;
pub use window::Window;

/// The process's one set of logs and process-wide meters, shared by everything that reports.
#[derive(Debug)]
pub struct Telemetry {
    /// One line per request.
    pub access: AccessLog,
    /// Meters without a service.
    pub process: ProcessMeters,
    /// One line per change.
    pub audit: Audit,
    /// The last decisions.
    pub recent: Recent,
}

impl Telemetry {
    /// Opens the access log and the audit log; `workers` is how many data workers will write access lines.
    pub fn new(log: &Log, workers: usize) -> Result<Self, SinkError> {
        let process = ProcessMeters::new(workers);
        let access = AccessLog::new(log, workers, process.access_log_dropped())?;
        let audit = Audit::new(log)?;
        Ok(Self { access, process, audit, recent: Recent::default() })
    }

    /// Opens the log files anew, as SIGUSR1 asks for after a rotation.
    pub fn reopen(&self) -> Result<(), SinkError> {
        let access = self.access.reopen();
        let audit = self.audit.reopen();
        access.and(audit)
    }

    /// Writes what waits and ends the writer of access lines; false when that takes longer than `patience`.
    pub fn close(&self, patience: Duration) -> bool {
        let access = self.access.close(patience);
        self.audit.close(patience) && access
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::audit::{Actor, Event, Kind};
    use super::*;
    use crate::config::{AccessFormat, LogFormat, Percent};

    fn settings(access: &Path, audit: &Path) -> Log {
        Log {
            level: tracing::Level::INFO,
            format: LogFormat::Text,
            access: AccessFormat::Nginx,
            access_path: access.into(),
            access_sample: Percent::HUNDRED,
            audit_path: audit.into(),
        }
    }

    #[test]
    fn a_path_that_cannot_be_opened_changes_neither_log() {
        let folder = tempfile::tempdir().unwrap();
        let [access, audit, other] = ["access", "audit", "other"].map(|name| folder.path().join(name));
        let telemetry = Telemetry::new(&settings(&access, &audit), 1).unwrap();
        let event = Event { kind: Kind::Config, service: None, from: None, to: None, reason: None };

        let changed = settings(&other, Path::new("/nonexistent/audit"));
        let prepared = telemetry.access.prepare(&changed).unwrap();
        let error = telemetry.audit.prepare(&changed).unwrap_err();
        drop(prepared);
        telemetry.audit.record(&event, &Actor::File, None);
        telemetry.reopen().unwrap();

        assert_eq!(error.path, Path::new("/nonexistent/audit"));
        assert_eq!(fs::read_to_string(&audit).unwrap().lines().count(), 1);
        assert!(telemetry.access.prepare(&settings(&access, &audit)).unwrap().opens_nothing());
        assert!(telemetry.close(Duration::from_secs(30)));
    }
}

//! The meters that belong to no service.
use super::labels::{CertificateSide, ListenerKind, RejectCause, ReloadResult};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// When a certificate ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// What it is for.
    pub side: CertificateSide,
    /// The service that uses it; `None` for listeners.
    pub service: Option<String>,
    /// Where it was read.
    pub file: PathBuf,
    /// Its end, in seconds since 1970.
    pub not_after: i64,
}

/// Meters of the whole process.
#[derive(Debug)]
pub struct ProcessMeters {
    dropped: metrics::Counter,
}

impl ProcessMeters {
    /// Meters at zero. Without a CPU quota `workers` is what `cpu_limit_cores` shows.
    pub fn new(_workers: usize) -> Self {
        Self { dropped: metrics::Counter::noop() }
    }
    /// Our own share of one request's time.
    pub fn overhead(&self, _duration: Duration) {}
    /// A request or a connection was refused.
    pub fn rejected(&self, _cause: RejectCause) {}
    /// A connection was accepted.
    pub fn connection_opened(&self, _listener: ListenerKind) {}
    /// An accepted connection has ended.
    pub fn connection_closed(&self, _listener: ListenerKind) {}
    /// The proxy has started; `fresh` is false when the last good file serves instead of the operator's.
    pub fn started(&self, _fresh: bool, _now: SystemTime) {}
    /// A change of the file was noticed.
    pub fn reloaded(&self, _result: ReloadResult, _now: SystemTime) {}
    /// What serves now; `hash` is the text that `/status` shows.
    pub fn configuration(&self, _generation: u64, _hash: &str) {}
    /// Whether a changed key waits for a restart.
    pub fn restart_needed(&self, _needed: bool) {}
    /// A task ended by a panic.
    pub fn task_panicked(&self) {}
    /// The certificates in use, all of them at once.
    pub fn certificates(&self, _certificates: Vec<CertificateExpiry>) {}
    /// The counter of access lines that were lost.
    pub fn access_log_dropped(&self) -> metrics::Counter {
        self.dropped.clone()
    }
}

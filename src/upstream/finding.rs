//! What an examination found: one line for each thing that was looked at, and what to do where it is not as it should be.

use serde::{Deserialize, Serialize};

use crate::config::Cluster;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `dns`, `tcp`, `tls`.
    pub name: String,
    /// The service; `None`: the process.
    pub service: Option<String>,
    /// `old` or `new`; `None`: neither.
    pub cluster: Option<String>,
    /// It has not failed.
    pub ok: bool,
    /// How good it is.
    pub level: Level,
    /// What is there.
    pub found: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but perhaps not as meant.
    Warn,
    /// Does not work.
    Fail,
}

impl Level {
    /// `ok`, `warn` or `fail`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Finding {
    /// As it should be.
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, Level::Ok, found, None)
    }

    /// Works, but perhaps not as meant.
    pub fn warn(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(name, Level::Warn, found, Some(fix.into()))
    }

    /// Does not work.
    pub fn fail(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(name, Level::Fail, found, Some(fix.into()))
    }

    fn new(name: &str, level: Level, found: impl Into<String>, fix: Option<String>) -> Self {
        let (service, cluster, ok) = (None, None, level != Level::Fail);
        Self { name: name.to_owned(), service, cluster, ok, level, found: found.into(), fix }
    }

    /// The same of this service.
    #[must_use]
    pub fn of_service(self, service: &str) -> Self {
        Self { service: Some(service.to_owned()), ..self }
    }

    /// The same of this cluster.
    #[must_use]
    pub fn of_cluster(self, cluster: Cluster) -> Self {
        Self { cluster: Some(cluster.as_str().to_owned()), ..self }
    }

    /// The same, but never worse than a warning.
    #[must_use]
    pub fn softened(self) -> Self {
        Self { ok: true, level: self.level.min(Level::Warn), ..self }
    }
}

//! Where log lines go.
use std::io;
use std::path::PathBuf;

/// A log's path cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("open {}: {source}", path.display())]
pub struct SinkError {
    /// The path as configured.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

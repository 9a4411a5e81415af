//! Access log.
use super::SinkError;
use super::labels::Cluster;
use crate::config::Log;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// One try of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// Where it went.
    pub cluster: Cluster,
    /// The address, once there was one.
    pub address: Option<SocketAddr>,
    /// The status, when it gave an answer.
    pub status: Option<u16>,
    /// How long it took.
    pub duration: Duration,
}

/// What the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestText<'a> {
    /// A parsed head.
    Parsed {
        /// The method.
        method: &'a str,
        /// The target as sent.
        path_and_query: &'a str,
        /// The protocol.
        version: http::Version,
    },
    /// No head was read: `-`.
    Unparsed,
}

/// What one access line says. Empty texts are written as `-`, in JSON as null.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// What it asked for.
    pub request: RequestText<'a>,
    /// The status that it got.
    pub status: u16,
    /// Body bytes that it got.
    pub bytes: u64,
    /// All tries, in their order.
    pub tries: &'a [Try],
    /// From the first byte of the request to the last one of the answer.
    pub request_time: Duration,
    /// The service, or empty.
    pub service: &'a str,
    /// The reason, or empty.
    pub reason: &'a str,
    /// The bucket in basis points.
    pub bucket: Option<u16>,
    /// The request id.
    pub request_id: &'a [u8],
    /// Host as sent.
    pub host: &'a [u8],
    /// User-Agent as sent.
    pub user_agent: &'a [u8],
}

/// The access log, shared by all workers.
#[derive(Debug)]
pub struct AccessLog {}

/// Checked settings that wait for [`AccessLog::install`].
#[derive(Debug)]
pub struct Prepared {}

impl AccessLog {
    /// Opens `log.access_path` and starts the writer.
    pub fn new(_log: &Log, _workers: usize, _dropped: metrics::Counter) -> Result<Self, SinkError> {
        Ok(Self {})
    }
    /// Writes one line into the worker's buffer; never blocks on the disk.
    pub fn write(&self, _worker: usize, _line: &Line<'_>) {}
    /// Opens what changed settings need, without using it yet.
    pub fn prepare(&self, _log: &Log) -> Result<Prepared, SinkError> {
        Ok(Prepared {})
    }
    /// Uses changed settings.
    pub fn install(&self, _prepared: Prepared) {}
    /// Opens the path anew; loses no line.
    pub fn reopen(&self) -> Result<(), SinkError> {
        Ok(())
    }
    /// Writes what waits and ends the writer; false when that takes longer than `patience`.
    pub fn close(&self, _patience: Duration) -> bool {
        true
    }
}

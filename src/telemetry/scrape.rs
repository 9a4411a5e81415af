//! The exposition text.
use super::labels::BreakerState;
use super::{ProcessMeters, ServiceMeters};
use bytes::Bytes;
use std::sync::Arc;

/// What is so for a service at the moment of a scrape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceGauges {
    /// The share in force, in percent; what would be in force without a safe mode.
    pub percentage: f64,
    /// The share in the file.
    pub declared: f64,
    /// Safe mode is on, for this service or for all.
    pub safe_mode: bool,
    /// The breaker of new.
    pub breaker: BreakerState,
    /// Whether old passes its health check; `None`: there is none.
    pub health_old: Option<bool>,
    /// Whether new passes its health check; `None`: there is none.
    pub health_new: Option<bool>,
    /// Certificates of a cluster are not verified.
    pub verify_off: bool,
}

/// One scrape: yields the exposition text in pieces.
#[derive(Debug)]
pub struct Scrape {}

impl Scrape {
    /// A scrape of these services and of the process.
    pub fn new(_process: &ProcessMeters, _services: Vec<(Arc<ServiceMeters>, ServiceGauges)>) -> Self {
        Self {}
    }
}
impl Iterator for Scrape {
    type Item = Bytes;
    fn next(&mut self) -> Option<Bytes> {
        None
    }
}

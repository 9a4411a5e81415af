//! Windows.
use super::ServiceMeters;
use super::labels::Cluster;
use serde::Serialize;

/// Lengths of the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minutes {
    /// The last minute.
    One,
    /// The last 5 minutes.
    Five,
    /// The last hour.
    Sixty,
}

/// What happened in a window on one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Tries.
    pub requests: u64,
    /// Tries that failed.
    pub errors: u64,
    /// The median, in seconds.
    pub p50: Option<f64>,
    /// The 99th percentile, in seconds.
    pub p99: Option<f64>,
}

/// Both clusters in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sides {
    /// The old cluster.
    pub old: Summary,
    /// The new cluster.
    pub new: Summary,
}

/// All windows, as `/status` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Windows {
    /// The last minute.
    #[serde(rename = "1m")]
    pub one: Sides,
    /// The last 5 minutes.
    #[serde(rename = "5m")]
    pub five: Sides,
    /// The last hour.
    #[serde(rename = "60m")]
    pub sixty: Sides,
}

/// The recent past of one service.
#[derive(Debug)]
pub struct Window {}

impl Window {
    /// Starts at what the meters show; `now` is in seconds of any steady clock.
    pub fn new(_now: u64, _meters: &ServiceMeters) -> Self {
        Self {}
    }
    /// Takes what was counted since the last tick. Called every 10 s.
    pub fn tick(&mut self, _now: u64, _meters: &ServiceMeters) {}
    /// What happened on one cluster, what was counted since the last tick included.
    pub fn summary(&self, _length: Minutes, _cluster: Cluster, _meters: &ServiceMeters) -> Summary {
        Summary::default()
    }
    /// All of it.
    pub fn windows(&self, _meters: &ServiceMeters) -> Windows {
        Windows::default()
    }
}

//! The part of `/status` that the command line shows. The proxy may be older or newer than the command: a field that is
//! absent has its default, and one that is unknown is ignored.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

/// `/status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The replica that answered.
    pub replica: String,
    /// Traffic may come.
    pub ready: bool,
    /// What is not as it should be.
    pub degraded: Vec<String>,
    /// Everything goes to old.
    pub safe_mode: bool,
    /// The file.
    pub config: Configuration,
    /// Every service.
    pub services: Vec<Service>,
    /// The other replicas.
    pub replicas: Vec<Replica>,
}

/// `config`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// Since when this configuration serves.
    #[serde(deserialize_with = "timestamp")]
    pub loaded_at: Option<Timestamp>,
    /// Why the newest file does not.
    pub last_error: Option<String>,
    /// Changed keys that wait for a restart.
    pub restart_needed: Vec<String>,
}

/// One entry of `services`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// The name.
    pub name: String,
    /// Hosts of clients.
    pub old_host: Vec<String>,
    /// The host in the new cluster.
    pub new_host: String,
    /// `proxy` or `redirect`.
    pub mode: String,
    /// `migration.enabled`.
    pub enabled: bool,
    /// The service's own safe mode.
    pub safe_mode: bool,
    /// The share of new.
    pub percentage: Percentage,
    /// Long-lived exchanges on new.
    pub open_on_new: u64,
    /// The breaker of new.
    pub breaker: Breaker,
    /// Active checks.
    pub health: Health,
    /// The recent past.
    pub windows: Windows,
}

/// `percentage`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Percentage {
    /// By the file.
    pub declared: f64,
    /// In force.
    pub effective: f64,
}

/// `breaker`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Breaker {
    /// `closed`, `open` or `half_open`.
    pub state: String,
    /// Since when.
    #[serde(deserialize_with = "timestamp")]
    pub since: Option<Timestamp>,
    /// When new is tried again.
    #[serde(deserialize_with = "timestamp")]
    pub retry_at: Option<Timestamp>,
}

/// `health`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Of old: `unknown`, `up` or `down`.
    pub old: String,
    /// Of new.
    pub new: String,
}

/// `windows`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
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

/// Old against new.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sides {
    /// The old cluster.
    pub old: Summary,
    /// The new cluster.
    pub new: Summary,
}

/// What happened on one cluster.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Tries.
    pub requests: u64,
    /// Tries that failed.
    pub errors: u64,
    /// The median in seconds.
    pub p50: Option<f64>,
    /// The 99th percentile in seconds.
    pub p99: Option<f64>,
}

/// One entry of `replicas`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Replica {
    /// The replica.
    pub name: String,
    /// It serves the same.
    pub agrees: bool,
}

/// RFC 3339; anything else is no time.
fn timestamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_and_its_gaps_are_read() {
        let json = r#"{"version": "0.1.0", "replica": "pod-1", "ready": true, "degraded": ["a: breaker open"],
            "config": {"hash": "9f2c", "generation": 4, "loaded_at": "2024-01-01T12:00:00Z", "last_error": null},
            "services": [{"name": "a", "percentage": {"declared": 20, "effective": 50, "confirm_by": null},
              "breaker": {"state": "open", "since": "2024-01-01T12:00:00Z", "retry_at": null}, "something": "new",
              "windows": {"1m": {"old": {"requests": 800, "errors": 0, "p50": 0.004, "p99": 0.03}, "new": {}}, "5m": {}}}],
            "replicas": [{"name": "pod-2", "agrees": true, "age": 0.4}]}"#;

        let report: Report = serde_json::from_str(json).unwrap();

        let service = &report.services[0];
        assert_eq!((service.percentage.declared, service.percentage.effective), (20.0, 50.0));
        assert_eq!((service.windows.one.old.requests, service.windows.one.new.p99), (800, None));
        assert!(service.breaker.since.is_some() && service.breaker.retry_at.is_none());
        assert!(report.replicas[0].agrees);
    }
}

//! The meters that belong to no service. They are few and rarely move, so they live in a recorder of the metrics
//! facade, which is our own: several proxies can run in one process. Only the overhead, observed for each request, is a
//! histogram of ours.

use std::array;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::exposition;
use super::labels::{CertificateSide, ListenerKind, LogKind, PeerState, RejectCause, ReloadResult};
use super::machine::{self, Usage};
use super::metrics::{Histogram, OVERHEAD_BOUNDS};
use super::names::{self, Family};
use super::outlet;

/// Hexadecimal digits of the hash that fit into a number without loss.
const HASH_DIGITS: usize = 12;

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
    handle: PrometheusHandle,
    workers: usize,
    overhead: Histogram<10, 11>,
    rejected: [Counter; RejectCause::ALL.len()],
    connections: [Gauge; ListenerKind::ALL.len()],
    generation: Gauge,
    hash: Gauge,
    reloads: [Counter; ReloadResult::ALL.len()],
    last_reload_successful: Gauge,
    last_reload_success: Gauge,
    restart_needed: Gauge,
    fleet: [Gauge; PeerState::ALL.len()],
    access_log_dropped: Counter,
    state_failures: Counter,
    task_panics: Counter,
    certificates: Mutex<Vec<CertificateExpiry>>,
}

impl ProcessMeters {
    /// Meters at zero. Without a CPU quota `workers` is what `cpu_limit_cores` shows.
    pub fn new(workers: usize) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        gauge(&recorder, &names::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        Self {
            handle: recorder.handle(),
            workers,
            overhead: Histogram::new(&OVERHEAD_BOUNDS),
            rejected: array::from_fn(|index| {
                counter(&recorder, &names::REJECTED, &[("cause", RejectCause::ALL[index].as_str())])
            }),
            connections: array::from_fn(|index| {
                gauge(&recorder, &names::CONNECTIONS, &[("listener", ListenerKind::ALL[index].as_str())])
            }),
            generation: gauge(&recorder, &names::CONFIG_GENERATION, &[]),
            hash: gauge(&recorder, &names::CONFIG_HASH, &[]),
            reloads: array::from_fn(|index| {
                counter(&recorder, &names::CONFIG_RELOADS, &[("result", ReloadResult::ALL[index].as_str())])
            }),
            last_reload_successful: gauge(&recorder, &names::CONFIG_LAST_RELOAD_SUCCESSFUL, &[]),
            last_reload_success: gauge(&recorder, &names::CONFIG_LAST_RELOAD_SUCCESS, &[]),
            restart_needed: gauge(&recorder, &names::CONFIG_RESTART_NEEDED, &[]),
            fleet: array::from_fn(|index| {
                gauge(&recorder, &names::FLEET_REPLICAS, &[("state", PeerState::ALL[index].as_str())])
            }),
            access_log_dropped: counter(&recorder, &names::ACCESS_LOG_DROPPED, &[]),
            state_failures: counter(&recorder, &names::STATE_FAILURES, &[]),
            task_panics: counter(&recorder, &names::TASK_PANICS, &[]),
            certificates: Mutex::new(Vec::new()),
        }
    }

    /// Our own share of one request's time.
    pub fn overhead(&self, duration: Duration) {
        self.overhead.observe(duration);
    }

    /// A request or a connection was refused.
    pub fn rejected(&self, cause: RejectCause) {
        self.rejected[cause as usize].increment(1);
    }

    /// A connection was accepted.
    pub fn connection_opened(&self, listener: ListenerKind) {
        self.connections[listener as usize].increment(1.0);
    }

    /// An accepted connection has ended.
    pub fn connection_closed(&self, listener: ListenerKind) {
        self.connections[listener as usize].decrement(1.0);
    }

    /// The proxy has started; `fresh` is false when the last good file serves instead of the operator's.
    pub fn started(&self, fresh: bool, now: SystemTime) {
        self.last_reload_successful.set(if fresh { 1.0 } else { 0.0 });
        self.last_reload_success.set(seconds(now));
    }

    /// A change of the file was noticed. A file whose content already serves is a good one too.
    pub fn reloaded(&self, result: ReloadResult, now: SystemTime) {
        self.reloads[result as usize].increment(1);
        match result {
            ReloadResult::Applied | ReloadResult::Unchanged => {
                self.last_reload_successful.set(1.0);
                self.last_reload_success.set(seconds(now));
            }
            ReloadResult::Rejected => self.last_reload_successful.set(0.0),
        }
    }

    /// What serves now; `hash` is the text that `/status` shows.
    pub fn configuration(&self, generation: u64, hash: &str) {
        let digits = hash.get(..HASH_DIGITS).unwrap_or(hash);
        self.generation.set(generation as f64);
        self.hash.set(u64::from_str_radix(digits, 16).unwrap_or_default() as f64);
    }

    /// Whether a changed key waits for a restart.
    pub fn restart_needed(&self, needed: bool) {
        self.restart_needed.set(if needed { 1.0 } else { 0.0 });
    }

    /// How many other replicas there are in each state.
    pub fn fleet(&self, counts: [usize; PeerState::ALL.len()]) {
        for (gauge, count) in self.fleet.iter().zip(counts) {
            gauge.set(count as f64);
        }
    }

    /// The state, the last good file or the history could not be read or stored.
    pub fn state_failed(&self) {
        self.state_failures.increment(1);
    }

    /// A task ended by a panic.
    pub fn task_panicked(&self) {
        self.task_panics.increment(1);
    }

    /// The certificates in use, all of them at once.
    pub fn certificates(&self, certificates: Vec<CertificateExpiry>) {
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = certificates;
    }

    /// The counter of access lines that were lost.
    pub fn access_log_dropped(&self) -> Counter {
        self.access_log_dropped.clone()
    }

    /// The exposition text of everything here. It is short, and the only part of a scrape that reads files.
    pub fn render(&self) -> String {
        let mut out = self.handle.render();
        exposition::push_head(&mut out, &names::OVERHEAD);
        exposition::push_histogram(&mut out, &names::OVERHEAD, &[], &self.overhead);
        self.push_certificates(&mut out);
        exposition::push_head(&mut out, &names::LOG_LINES_DROPPED);
        for kind in LogKind::ALL {
            let labels = [("log", kind.as_str())];
            exposition::push_sample(&mut out, names::LOG_LINES_DROPPED.name, "", &labels, outlet::lost(*kind));
        }
        let root = Path::new("/");
        let mut push = |family: &Family, value: Option<f64>| {
            if let Some(value) = value {
                exposition::push_head(&mut out, family);
                exposition::push_sample(&mut out, family.name, "", &[], value);
            }
        };
        push(&names::CPU_LIMIT, Some(machine::cpu_quota(root).unwrap_or(self.workers as f64)));
        push(&names::MEMORY_LIMIT, machine::memory_limit(root));
        let usage = Usage::read(root);
        push(&names::PROCESS_CPU, usage.cpu_seconds);
        push(&names::PROCESS_RESIDENT_MEMORY, usage.resident);
        push(&names::PROCESS_VIRTUAL_MEMORY, usage.virtual_memory);
        push(&names::PROCESS_OPEN_FDS, usage.open_fds);
        push(&names::PROCESS_MAX_FDS, usage.max_fds);
        push(&names::PROCESS_START_TIME, usage.start_time);
        out
    }

    fn push_certificates(&self, out: &mut String) {
        let certificates = self.certificates.lock().unwrap_or_else(PoisonError::into_inner).clone();
        exposition::push_head(out, &names::TLS_CERTIFICATE_EXPIRY);
        for (index, certificate) in certificates.iter().enumerate() {
            let same = |other: &CertificateExpiry| {
                (other.side, &other.service, &other.file) == (certificate.side, &certificate.service, &certificate.file)
            };
            // Of several certificates in one file the first to end counts; two samples of one name are an error.
            let siblings = || certificates.iter().filter(|other| same(other));
            if certificates[..index].iter().any(same) {
                continue;
            }
            let end = siblings().map(|other| other.not_after).min().unwrap_or(certificate.not_after);
            let labels = [
                ("side", certificate.side.as_str()),
                ("service", certificate.service.as_deref().unwrap_or_default()),
                ("file", &certificate.file.to_string_lossy()),
            ];
            exposition::push_sample(out, names::TLS_CERTIFICATE_EXPIRY.name, "", &labels, end);
        }
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

fn key(family: &Family, labels: &[(&'static str, &'static str)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::from_static_parts(name, value)).collect();
    Key::from_parts(family.name, labels)
}

fn counter(recorder: &PrometheusRecorder, family: &Family, labels: &[(&'static str, &'static str)]) -> Counter {
    recorder.describe_counter(family.name.into(), None, family.help.into());
    let counter = recorder.register_counter(&key(family, labels), &METADATA);
    counter.increment(0);
    counter
}

fn gauge(recorder: &PrometheusRecorder, family: &Family, labels: &[(&'static str, &'static str)]) -> Gauge {
    recorder.describe_gauge(family.name.into(), None, family.help.into());
    let gauge = recorder.register_gauge(&key(family, labels), &METADATA);
    gauge.set(0.0);
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, sample: &str) -> f64 {
        let found = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{sample} in {text}")).parse().unwrap()
    }

    #[test]
    fn everything_is_shown_from_the_start() {
        let text = ProcessMeters::new(3).render();

        for cause in RejectCause::ALL {
            let sample = format!("migration_proxy_rejected_total{{cause=\"{}\"}}", cause.as_str());
            assert_eq!(value(&text, &sample), 0.0);
        }
        assert_eq!(value(&text, "migration_proxy_connections{listener=\"admin\"}"), 0.0);
        assert_eq!(value(&text, "migration_proxy_config_reloads_total{result=\"unchanged\"}"), 0.0);
        assert_eq!(value(&text, "migration_proxy_overhead_seconds_count"), 0.0);
        assert_eq!(value(&text, "migration_proxy_access_log_dropped_total"), 0.0);
        assert_eq!(
            value(&text, concat!("migration_proxy_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")),
            1.0
        );
        assert!(value(&text, "process_resident_memory_bytes") > 1e5);
        assert!(value(&text, "migration_proxy_cpu_limit_cores") > 0.0);
        assert!(value(&text, "migration_proxy_memory_limit_bytes") > 1e6);
    }

    #[test]
    fn reloads_move_their_counter_and_the_success() {
        let meters = ProcessMeters::new(1);
        let at = |second| UNIX_EPOCH + Duration::from_secs(second);
        let success = |text: &str| {
            (
                value(text, "migration_proxy_config_last_reload_successful"),
                value(text, "migration_proxy_config_last_reload_success_timestamp_seconds"),
            )
        };

        meters.started(false, at(100));
        assert_eq!(success(&meters.render()), (0.0, 100.0));
        meters.reloaded(ReloadResult::Applied, at(200));
        assert_eq!(success(&meters.render()), (1.0, 200.0));
        meters.reloaded(ReloadResult::Rejected, at(300));
        assert_eq!(success(&meters.render()), (0.0, 200.0));
        meters.reloaded(ReloadResult::Unchanged, at(400));

        let text = meters.render();
        assert_eq!(success(&text), (1.0, 400.0));
        for result in ReloadResult::ALL {
            let sample = format!("migration_proxy_config_reloads_total{{result=\"{}\"}}", result.as_str());
            assert_eq!(value(&text, &sample), 1.0);
        }
    }

    #[test]
    fn the_hash_is_its_first_48_bits() {
        let meters = ProcessMeters::new(1);
        meters.configuration(4, "ffffffffffffabcdef");
        let text = meters.render();
        assert_eq!(value(&text, "migration_proxy_config_hash"), 281_474_976_710_655.0);
        assert_eq!(value(&text, "migration_proxy_config_generation"), 4.0);
        assert!(text.contains("migration_proxy_config_hash 281474976710655\n"), "{text}");
    }

    #[test]
    fn connections_and_refusals_are_counted() {
        let meters = ProcessMeters::new(1);
        meters.connection_opened(ListenerKind::Https);
        meters.connection_opened(ListenerKind::Https);
        meters.connection_closed(ListenerKind::Https);
        meters.rejected(RejectCause::Host);
        meters.task_panicked();
        meters.restart_needed(true);
        meters.overhead(Duration::from_micros(20));

        let text = meters.render();
        assert_eq!(value(&text, "migration_proxy_connections{listener=\"https\"}"), 1.0);
        assert_eq!(value(&text, "migration_proxy_rejected_total{cause=\"host\"}"), 1.0);
        assert_eq!(value(&text, "migration_proxy_task_panics_total"), 1.0);
        assert_eq!(value(&text, "migration_proxy_config_restart_needed"), 1.0);
        assert_eq!(value(&text, "migration_proxy_overhead_seconds_bucket{le=\"0.00001\"}"), 0.0);
        assert_eq!(value(&text, "migration_proxy_overhead_seconds_bucket{le=\"0.000025\"}"), 1.0);
        assert_eq!(value(&text, "migration_proxy_overhead_seconds_sum"), 0.00002);
    }

    #[test]
    fn a_file_with_several_certificates_is_one_sample() {
        let meters = ProcessMeters::new(1);
        let certificate = |side, service: Option<&str>, file: &str, not_after| CertificateExpiry {
            side,
            service: service.map(String::from),
            file: file.into(),
            not_after,
        };
        meters.certificates(vec![
            certificate(CertificateSide::Listener, None, "/tls/a.crt", 1_800_000_000),
            certificate(CertificateSide::Authority, Some("a"), "/tls/ca \"x\".crt", 1_900_000_000),
            certificate(CertificateSide::Authority, Some("a"), "/tls/ca \"x\".crt", 1_700_000_000),
        ]);

        let text = meters.render();
        let lines: Vec<&str> =
            text.lines().filter(|line| line.starts_with(names::TLS_CERTIFICATE_EXPIRY.name)).collect();
        assert_eq!(
            lines,
            [
                "migration_proxy_tls_certificate_expiry_timestamp_seconds{side=\"listener\",service=\"\",file=\"/tls/a.crt\"} \
                 1800000000",
                "migration_proxy_tls_certificate_expiry_timestamp_seconds{side=\"ca\",service=\"a\",\
                 file=\"/tls/ca \\\"x\\\".crt\"} 1700000000",
            ]
        );
    }
}

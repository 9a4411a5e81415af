//! What is known about the running configuration and the recent past. Whoever changes something tells it here, and
//! reports read it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::candidate::Candidate;
use super::fleet::Fleet;
use super::history::Pinned;
use crate::config::Environment;
use crate::routing::live::Live;
use crate::routing::service::Service;
use crate::routing::snapshot::Snapshot;
use crate::shutdown::Drain;
use crate::telemetry::Window;
use crate::telemetry::process::CertificateExpiry;
use crate::telemetry::window::{Series, Windows};

/// How often the windows take what was counted.
const TICK: Duration = Duration::from_secs(10);

/// Facts that reports are made of.
#[derive(Debug)]
pub struct Status {
    /// The other replicas.
    pub fleet: Fleet,
    replica: String,
    instance: String,
    started: Instant,
    configuration: Mutex<Configuration>,
    windows: Mutex<HashMap<String, Window>>,
    troubles: Mutex<BTreeMap<Trouble, String>>,
}

/// What is wrong with the process itself, until it is not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The file was wrong at the start, and the last good one serves.
    LastGoodServes,
    /// A listener certificate could not be used at the start, and is left out.
    Certificates,
    /// The newest accepted file could not be kept.
    LastGoodUnstored,
    /// What changed, and the files that were served, cannot be kept.
    HistoryUnstored,
    /// The tokens cannot be read: every write is refused.
    Tokens,
    /// The stored state could not be read.
    StateLost,
    /// The state could not be stored.
    StateUnstored,
    /// What replicas share cannot be read.
    StateUnshared,
    /// What replicas share cannot be watched.
    StateUnwatched,
    /// The file dropped hosts that had traffic.
    LostHosts,
    /// An earlier configuration should serve and cannot.
    PinUnserved,
    /// All replicas were to serve an earlier configuration, which this one does not have or cannot serve.
    RollbackNotFollowed,
}

/// The configuration that is served, and what became of the file since.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// The file as it was named.
    pub file: String,
    /// SHA-256 of the text that is served.
    pub hash: String,
    /// How many configurations have been served, this one included.
    pub generation: u64,
    /// Since when it is served.
    pub loaded_at: Timestamp,
    /// Why the file as it is now cannot be served.
    pub last_error: Option<String>,
    /// Changed keys that wait for a restart.
    pub restart_needed: Vec<String>,
    /// What works, but hardly as meant.
    pub warnings: Vec<String>,
    /// When the certificates in use end.
    pub certificates: Vec<CertificateExpiry>,
    /// It serves instead of the file, until that changes.
    pub pinned: Option<Pinned>,
    /// The hash of an earlier configuration that all replicas were to serve and this one cannot.
    pub lacks: Option<String>,
}

impl Status {
    /// The facts at the start. `mount` is a warning about how the file got here.
    pub fn new(environment: &Environment, first: &Candidate, mount: Option<String>) -> Arc<Self> {
        let configuration = Configuration {
            file: first.text().name.clone(),
            hash: first.text().hash(),
            generation: 1,
            loaded_at: Timestamp::now(),
            last_error: None,
            restart_needed: Vec::new(),
            warnings: mount.into_iter().chain(first.warning_lines()).collect(),
            certificates: Vec::new(),
            pinned: None,
            lacks: None,
        };
        Arc::new(Self {
            fleet: Fleet::default(),
            replica: replica(environment),
            instance: format!("{:016x}", rand::random::<u64>()),
            started: Instant::now(),
            configuration: Mutex::new(configuration),
            windows: Mutex::default(),
            troubles: Mutex::default(),
        })
    }

    /// The name of this process among its replicas.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Another text for every process, whatever its name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// What is known about the configuration.
    pub fn configuration(&self) -> Configuration {
        self.lock().clone()
    }

    /// Changes what is known about the configuration.
    pub fn update<T>(&self, change: impl FnOnce(&mut Configuration) -> T) -> T {
        change(&mut self.lock())
    }

    /// Notes that something is wrong, or is not any more; tells whether that is news.
    pub fn set_trouble(&self, trouble: Trouble, text: Option<String>) -> bool {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => troubles.insert(trouble, text.clone()).as_ref() != Some(&text),
            None => troubles.remove(&trouble).is_some(),
        }
    }

    /// Whether this is wrong now.
    pub fn has_trouble(&self, trouble: Trouble) -> bool {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&trouble)
    }

    /// Everything that is wrong with the process itself, one line each.
    pub fn troubles(&self) -> Vec<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The recent past of a service.
    pub fn windows(&self, service: &Service) -> Windows {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(service.name().to_owned());
        let now = self.now();
        window.or_insert_with(|| Window::new(now, &service.meters)).windows(now, &service.meters)
    }

    /// The last hour of every service that is known for a tick, minute by minute.
    pub fn series(&self) -> BTreeMap<String, Series> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.iter().map(|(name, window)| (name.clone(), window.series())).collect()
    }

    /// Takes what was counted; forgets services that are gone.
    pub fn tick(&self, snapshot: &Snapshot) {
        let now = self.now();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *windows);
        for service in &snapshot.services {
            let (name, mut window) = before
                .remove_entry(service.name())
                .unwrap_or_else(|| (service.name().to_owned(), Window::new(now, &service.meters)));
            window.tick(now, &service.meters);
            windows.insert(name, window);
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, Configuration> {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the windows moving until the drain starts.
pub async fn tick(status: Arc<Status>, live: Arc<Live>, drain: Drain) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = drain.started() => return,
            _ = interval.tick() => status.tick(&live.snapshot()),
        }
    }
}

/// The pod's name, which Kubernetes gives to the host.
fn replica(environment: &Environment) -> String {
    environment.get("HOSTNAME").filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| "local".to_owned())
}

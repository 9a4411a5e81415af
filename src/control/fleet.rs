//! The other replicas as they tell of themselves, compared with what this replica serves. What they answer is not believed
//! to make sense; nothing here changes what is served. [`super::peers`] asks them.
//!
//! Disagreement is no alarm at once, because changes take their time: another configuration may last as long as the
//! kubelet takes to bring a file to every node, other shares only as long as a change takes to be heard of.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::report::{ReplicaReport, ReplicaService};
use crate::routing::snapshot::Snapshot;
use crate::telemetry::labels::{BreakerState, PeerState};
use crate::upstream::breaker;

/// A longer name is none of a pod.
const LONGEST_NAME: usize = 64;

/// How long a state lasts before it is worth a word.
const OTHER_CONFIGURATION: Duration = Duration::from_secs(120);
const OTHER_STATE: Duration = Duration::from_secs(10);
const UNREACHABLE: Duration = Duration::from_secs(30);
const UNRESOLVED: Duration = Duration::from_secs(30);

/// Of more services than this only those that differ are told for each replica.
const MOST_SERVICES: usize = 200;

/// What is known of the other replicas.
#[derive(Debug, Default)]
pub struct Fleet {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    peers: BTreeMap<SocketAddr, Peer>,
    /// Since when the name has no address, and why.
    unresolved: Option<(Instant, String)>,
}

#[derive(Debug)]
struct Peer {
    name: Option<String>,
    first: Instant,
    heard: Option<Instant>,
    view: Option<Arc<View>>,
    /// Since when it does not answer, and why.
    failing: Option<(Instant, String)>,
    /// Since when it serves another configuration, or the same with other shares and switches.
    differs: Option<(Instant, Difference)>,
    /// The address is our own.
    is_self: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    Configuration,
    State,
}

/// What a replica serves, as far as replicas must agree on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    hash: String,
    /// A configuration that it was told to serve and cannot; nobody has to agree on that.
    lacks: Option<String>,
    safe_mode: bool,
    services: BTreeMap<String, ServiceView>,
}

#[derive(Clone, Debug, PartialEq)]
struct ServiceView {
    effective: f64,
    enabled: bool,
    safe_mode: bool,
    breaker: String,
}

/// What of a `/status` is read.
#[derive(Deserialize)]
pub(super) struct Told {
    replica: String,
    #[serde(default)]
    instance: String,
    safe_mode: bool,
    config: ToldConfig,
    services: Vec<ToldService>,
}

#[derive(Deserialize)]
struct ToldConfig {
    hash: String,
    #[serde(default)]
    lacks: Option<String>,
}

#[derive(Deserialize)]
struct ToldService {
    name: String,
    enabled: bool,
    safe_mode: bool,
    percentage: ToldPercentage,
    breaker: ToldBreaker,
}

#[derive(Deserialize)]
struct ToldPercentage {
    effective: f64,
}

#[derive(Deserialize)]
struct ToldBreaker {
    state: String,
}

impl View {
    /// What this replica serves.
    pub fn own(snapshot: &Snapshot, hash: &str) -> Self {
        let now = Instant::now();
        let services = snapshot.services.iter().map(|service| {
            let breaker = service.new.breaker.as_ref();
            let breaker = breaker.map_or(breaker::State::Closed, |breaker| breaker.report(now).state);
            let view = ServiceView {
                effective: service.lasting.weight.effective().as_f64(),
                enabled: service.switches().enabled,
                safe_mode: service.is_in_safe_mode(),
                breaker: BreakerState::from(breaker).as_str().to_owned(),
            };
            (service.name().to_owned(), view)
        });
        let safe_mode = snapshot.safe_mode.is_on();
        Self { hash: hash.to_owned(), lacks: None, safe_mode, services: services.collect() }
    }

    fn difference(&self, other: &Self) -> Option<Difference> {
        if self.hash != other.hash {
            return Some(Difference::Configuration);
        }
        let agrees = self.safe_mode == other.safe_mode
            && self.services.len() == other.services.len()
            && self.services.iter().all(|(name, service)| other.services.get(name).is_some_and(|o| service.agrees(o)));
        (!agrees).then_some(Difference::State)
    }

    /// The first service that is served otherwise, and how.
    fn example(&self, own: &Self) -> String {
        let differing = self.services.iter().find_map(|(name, service)| {
            let own = own.services.get(name).filter(|own| !service.agrees(own))?;
            let switch = |on| if on { "on" } else { "off" };
            Some(match service {
                _ if service.effective != own.effective => {
                    format!("{name} is at {} % there and at {} % here", service.effective, own.effective)
                }
                _ if service.safe_mode != own.safe_mode => {
                    format!("safe mode of {name} is {} there", switch(service.safe_mode))
                }
                _ => format!("{name} is {} there", if service.enabled { "enabled" } else { "disabled" }),
            })
        });
        differing.unwrap_or_else(|| format!("safe mode is {} there", if self.safe_mode { "on" } else { "off" }))
    }
}

impl ServiceView {
    /// Breakers are each replica's own.
    fn agrees(&self, other: &Self) -> bool {
        // Shares are hundredths of a percent.
        (self.effective - other.effective).abs() < 0.005
            && self.enabled == other.enabled
            && self.safe_mode == other.safe_mode
    }
}

impl From<Told> for View {
    fn from(told: Told) -> Self {
        let services = told.services.into_iter().map(|service| {
            let view = ServiceView {
                effective: service.percentage.effective,
                enabled: service.enabled,
                safe_mode: service.safe_mode,
                breaker: bounded(&service.breaker.state),
            };
            (service.name, view)
        });
        let ToldConfig { hash, lacks } = told.config;
        let (hash, lacks) = (bounded(&hash), lacks.as_deref().map(bounded));
        Self { hash, lacks, safe_mode: told.safe_mode, services: services.collect() }
    }
}

impl Fleet {
    /// The other replicas, compared with what this one serves now.
    pub fn replicas(&self, own: &View) -> Vec<ReplicaReport> {
        let now = Instant::now();
        let inner = self.lock();
        let others = inner.peers.iter().filter(|(_, peer)| !peer.is_self);
        others.map(|(address, peer)| peer.report(*address, own, now)).collect()
    }

    /// What of the other replicas is not as it should be, one line each.
    pub fn troubles(&self, own: &View) -> Vec<String> {
        let now = Instant::now();
        let inner = self.lock();
        let unresolved = inner.unresolved.as_ref().filter(|(since, _)| now.duration_since(*since) >= UNRESOLVED);
        let unresolved = unresolved.map(|(_, why)| format!("the other replicas are not known: {why}"));
        let others = inner.peers.iter().filter(|(_, peer)| !peer.is_self);
        unresolved.into_iter().chain(others.filter_map(|(address, peer)| peer.trouble(*address, own, now))).collect()
    }

    /// Nobody is asked.
    pub fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.peers.is_empty() && inner.unresolved.is_none()
    }

    pub(super) fn forget_all(&self) {
        *self.lock() = Inner::default();
    }

    pub(super) fn unresolved(&self, why: Option<String>) {
        let mut inner = self.lock();
        inner.unresolved =
            why.map(|why| (inner.unresolved.as_ref().map_or_else(Instant::now, |(since, _)| *since), why));
    }

    /// Whom to ask next; forgets everybody else.
    pub(super) fn choose(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut inner = self.lock();
        inner.peers.retain(|address, _| addresses.contains(address));
        for address in addresses {
            inner.peers.entry(*address).or_insert_with(Peer::new);
        }
        inner.peers.iter().filter(|(_, peer)| !peer.is_self).map(|(address, _)| *address).collect()
    }

    pub(super) fn hear(&self, address: SocketAddr, answer: Result<Told, String>, instance: &str) {
        let mut inner = self.lock();
        let Some(peer) = inner.peers.get_mut(&address) else { return };
        match answer {
            Ok(told) => {
                peer.is_self = told.instance == instance;
                peer.name = Some(bounded(&told.replica));
                peer.heard = Some(Instant::now());
                peer.view = Some(Arc::new(told.into()));
                peer.failing = None;
            }
            Err(why) => {
                let since = peer.failing.take().map_or_else(Instant::now, |(since, _)| since);
                peer.failing = Some((since, why));
            }
        }
    }

    /// Compares everybody with this replica; tells how many are in which state.
    pub(super) fn compare(&self, own: &View) -> [usize; PeerState::ALL.len()] {
        let mut counts = [0; PeerState::ALL.len()];
        for peer in self.lock().peers.values_mut().filter(|peer| !peer.is_self) {
            let difference = peer.view.as_ref().and_then(|view| view.difference(own));
            peer.differs = difference.map(|difference| match peer.differs {
                Some((since, before)) if before == difference => (since, difference),
                _ => (Instant::now(), difference),
            });
            counts[peer.state(own) as usize] += 1;
        }
        counts
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn new() -> Self {
        Self {
            name: None,
            first: Instant::now(),
            heard: None,
            view: None,
            failing: None,
            differs: None,
            is_self: false,
        }
    }

    fn state(&self, own: &View) -> PeerState {
        match &self.view {
            _ if self.failing.is_some() => PeerState::Unreachable,
            None => PeerState::Unreachable,
            Some(view) if view.difference(own).is_some() => PeerState::Differ,
            Some(_) => PeerState::Agree,
        }
    }

    fn name(&self, address: SocketAddr) -> String {
        self.name.clone().unwrap_or_else(|| address.to_string())
    }

    fn report(&self, address: SocketAddr, own: &View, now: Instant) -> ReplicaReport {
        let state = self.state(own);
        let services = self.view.iter().flat_map(|view| &view.services).filter(|(name, service)| {
            own.services.len() <= MOST_SERVICES || !own.services.get(*name).is_some_and(|own| service.agrees(own))
        });
        ReplicaReport {
            name: self.name(address),
            agrees: state == PeerState::Agree,
            age: now.duration_since(self.heard.unwrap_or(self.first)).as_secs_f64(),
            state: state.as_str().to_owned(),
            address: address.to_string(),
            config_hash: self.view.as_ref().map(|view| view.hash.clone()),
            lacks: self.view.as_ref().and_then(|view| view.lacks.clone()),
            safe_mode: self.view.as_ref().is_some_and(|view| view.safe_mode),
            error: self.failing.as_ref().map(|(_, why)| why.clone()),
            services: services.take(MOST_SERVICES).map(|(name, service)| service.report(name)).collect(),
        }
    }

    fn trouble(&self, address: SocketAddr, own: &View, now: Instant) -> Option<String> {
        let name = self.name(address);
        if let Some((since, why)) = &self.failing {
            let lasted = now.duration_since(*since);
            return (lasted >= UNREACHABLE)
                .then(|| format!("replica {name} does not answer for {} s: {why}", lasted.as_secs()));
        }
        let view = self.view.as_ref()?;
        if let Some(hash) = &view.lacks {
            let hash = short(hash);
            return Some(format!("replica {name} does not follow the rollback to {hash}, which it cannot serve"));
        }
        // What has lasted counts, if it lasts still.
        let difference = view.difference(own)?;
        let (since, lasting) = self.differs.filter(|(_, lasting)| *lasting == difference)?;
        let lasted = now.duration_since(since);
        match lasting {
            Difference::Configuration if lasted >= OTHER_CONFIGURATION => {
                let (there, here) = (short(&view.hash), short(&own.hash));
                Some(format!(
                    "replica {name} serves another configuration for {} s: {there}, here {here}",
                    lasted.as_secs()
                ))
            }
            Difference::State if lasted >= OTHER_STATE => {
                Some(format!("replica {name} does not agree for {} s: {}", lasted.as_secs(), view.example(own)))
            }
            Difference::Configuration | Difference::State => None,
        }
    }
}

impl ServiceView {
    fn report(&self, name: &str) -> ReplicaService {
        ReplicaService {
            name: name.to_owned(),
            effective: self.effective,
            enabled: self.enabled,
            safe_mode: self.safe_mode,
            breaker: self.breaker.clone(),
        }
    }
}

/// Words of others are not trusted to be short.
fn bounded(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(LONGEST_NAME).collect()
}

/// As much of a hash as people compare.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(instance: &str, hash: &str, share: f64) -> Told {
        let json = serde_json::json!({
            "replica": "pod-2", "instance": instance, "safe_mode": false, "config": {"hash": hash}, "more": [1],
            "services": [{"name": "a", "enabled": true, "safe_mode": false, "percentage": {"effective": share},
                          "breaker": {"state": "open"}}],
        });
        serde_json::from_value(json).unwrap()
    }

    fn own(hash: &str, share: f64) -> View {
        View::from(told("x", hash, share))
    }

    #[test]
    fn replicas_agree_on_the_file_and_on_what_is_in_force() {
        let address: SocketAddr = "10.0.0.2:8080".parse().unwrap();
        let fleet = Fleet::default();
        fleet.choose(&[address]);
        let state = |own: &View| fleet.replicas(own)[0].state.clone();
        assert_eq!(state(&own("h", 20.0)), "unreachable", "nothing heard yet");

        fleet.hear(address, Ok(told("2", "h", 20.0)), "1");
        for (own, expected) in [
            (own("h", 20.0), "agree"),
            (own("h", 20.01), "differ"),
            (own("i", 20.0), "differ"),
            (View::default(), "differ"),
        ] {
            assert_eq!(state(&own), expected, "{own:?}");
        }
        fleet.hear(address, Err("refused".to_owned()), "1");
        let report = &fleet.replicas(&own("h", 20.0))[0];
        assert_eq!((report.state.as_str(), report.agrees, report.name.as_str()), ("unreachable", false, "pod-2"));
        assert_eq!(fleet.compare(&own("h", 20.0)), [0, 0, 1]);
    }

    #[test]
    fn an_own_address_is_no_other_replica() {
        let addresses = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| address.parse().unwrap());
        let fleet = Fleet::default();
        fleet.choose(&addresses);
        fleet.hear(addresses[0], Ok(told("1", "h", 20.0)), "1");
        fleet.hear(addresses[1], Ok(told("2", "h", 20.0)), "1");

        assert_eq!(fleet.replicas(&own("h", 20.0)).len(), 1);
        assert_eq!(fleet.choose(&addresses), [addresses[1]], "and is not asked again");
        assert!(fleet.choose(&[]).is_empty() && fleet.replicas(&own("h", 20.0)).is_empty());
    }

    #[test]
    fn disagreement_is_no_alarm_before_it_has_lasted() {
        let address: SocketAddr = "10.0.0.2:8080".parse().unwrap();
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        // Its hash and share, for how long, and whether that is worth a word.
        let table = [("h", 50.0, 5, None), ("h", 50.0, 11, Some("a is at 50 % there and at 20 % here"))];
        let table = table.into_iter().chain([("i", 20.0, 100, None), ("i", 20.0, 121, Some("another configuration"))]);
        for (hash, share, seconds, expected) in table {
            let (fleet, own) = (Fleet::default(), own("h", 20.0));
            fleet.choose(&[address]);
            fleet.hear(address, Ok(told("2", hash, share)), "1");
            fleet.compare(&own);
            if let Some((since, _)) = &mut fleet.lock().peers.get_mut(&address).unwrap().differs {
                *since = ago(seconds);
            }

            let troubles = fleet.troubles(&own);
            assert_eq!(troubles.len(), usize::from(expected.is_some()), "{troubles:?}");
            assert!(expected.is_none_or(|part| troubles[0].contains(part)), "{troubles:?}");
        }
    }
}

//! The snapshot that is being served. Readers never wait; a request that has its service keeps it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::service::{Edge, Service};
use super::snapshot::Snapshot;
use crate::upstream::Upstream;
use crate::upstream::long_lived::LongLived;
use crate::upstream::pool::Pool;

fn upstreams(snapshot: &Snapshot) -> impl Iterator<Item = &Upstream> {
    snapshot.services.iter().flat_map(|service| [&service.old, &service.new])
}

fn pools(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Pool>> {
    upstreams(snapshot).map(|upstream| &upstream.pool)
}

fn long_lived(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<LongLived>> {
    upstreams(snapshot).map(|upstream| &upstream.long_lived)
}

/// The current snapshot.
pub struct Live {
    current: ArcSwap<Snapshot>,
    /// Registries of services that are gone while exchanges of theirs are still open.
    departed: Mutex<Vec<Weak<LongLived>>>,
}

impl Live {
    /// Serves `snapshot`.
    pub fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::from_pointee(snapshot), departed: Mutex::default() })
    }

    /// The service of a host (lower case, without port and trailing dot), or what answers a host that nobody claims.
    pub fn service(&self, host: &str) -> Result<Arc<Service>, Arc<Edge>> {
        let snapshot = self.current.load();
        let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        snapshot.table.find_name(name).cloned().ok_or_else(|| snapshot.edge.clone())
    }

    /// What holds for every request.
    pub fn edge(&self) -> Arc<Edge> {
        self.current.load().edge.clone()
    }

    /// The whole snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Serves `snapshot` from the next request on. Pools that it does not take over keep what is in use and nothing else.
    pub fn install(&self, snapshot: Snapshot) {
        let kept: HashSet<*const Pool> = pools(&snapshot).map(Arc::as_ptr).collect();
        let known: HashSet<*const LongLived> = long_lived(&snapshot).map(Arc::as_ptr).collect();
        let before = self.current.swap(Arc::new(snapshot));
        for pool in pools(&before).filter(|pool| !kept.contains(&Arc::as_ptr(pool))) {
            pool.close();
        }
        let mut departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.retain(|registry| registry.strong_count() > 0);
        let gone = long_lived(&before).filter(|registry| !known.contains(&Arc::as_ptr(registry)));
        departed.extend(gone.map(Arc::downgrade));
    }

    /// Ends every exchange that lasts, spread over this time, also those of services that are gone: the process is on its
    /// way out.
    pub fn send_home(&self, over: Duration) {
        for registry in long_lived(&self.snapshot()) {
            registry.close_for_good(over);
        }
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        for registry in departed.iter().filter_map(Weak::upgrade) {
            registry.close_for_good(over);
        }
    }
}

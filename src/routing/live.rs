//! The snapshot that is being served. Readers never wait; a request that has its service keeps it.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::service::{Edge, Service};
use super::snapshot::Snapshot;
use crate::upstream::pool::Pool;

fn pools(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Pool>> {
    snapshot.services.iter().flat_map(|service| [&service.old.pool, &service.new.pool])
}

/// The current snapshot.
pub struct Live {
    current: ArcSwap<Snapshot>,
}

impl Live {
    /// Serves `snapshot`.
    pub fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::from_pointee(snapshot) })
    }

    /// The service of a host (lower case, without port), or what answers a host that nobody claims.
    pub fn service(&self, host: &str) -> Result<Arc<Service>, Arc<Edge>> {
        let snapshot = self.current.load();
        snapshot.table.find(host).cloned().ok_or_else(|| snapshot.edge.clone())
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
        let before = self.current.swap(Arc::new(snapshot));
        for pool in pools(&before).filter(|pool| !kept.contains(&Arc::as_ptr(pool))) {
            pool.close();
        }
    }
}

//! A TCP connection to a backend for bytes that are relayed as they are. No pool keeps it, but it counts like theirs.

use std::net::SocketAddr;
use std::sync::Arc;

use super::connect::Connected;
use super::endpoints::Endpoint;
use super::pool::Pool;
use crate::net::stream::Stream;

/// A connection while it is relayed on.
pub struct Direct {
    /// The bytes.
    pub stream: Stream,
    pool: Arc<Pool>,
    endpoint: Arc<Endpoint>,
}

impl Direct {
    pub(super) fn new(pool: Arc<Pool>, connected: Connected) -> Self {
        let Connected { stream, endpoint, .. } = connected;
        endpoint.begin();
        pool.gauge().active_inc();
        Self { stream, pool, endpoint }
    }

    /// The backend's address.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address()
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.endpoint.end();
        self.pool.gauge().active_dec();
    }
}

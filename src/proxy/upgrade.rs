//! WebSocket, and any other switch of protocols by 101: both sides are taken from hyper and their bytes relayed.

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection::Place;
use super::exchange::Exchange;
use crate::net::relay::{Moved, relay};
use crate::routing::service::Service;
use crate::upstream::long_lived;
use crate::upstream::pool::Lease;

/// A switch that both sides have agreed to.
pub struct Tunnel {
    /// The client's bytes, once the 101 is written.
    pub client: OnUpgrade,
    /// The upstream's bytes.
    pub upstream: OnUpgrade,
    /// Counts as an active connection until the tunnel ends.
    pub lease: Lease,
    /// Counts as long-lived, and says when it has to end.
    pub long_lived: long_lived::Guard,
    /// Whose timeout counts.
    pub service: Arc<Service>,
    /// Its access line is written when the tunnel ends.
    pub exchange: Box<Exchange>,
    /// The tunnel counts as a connection.
    pub place: Place,
}

impl Tunnel {
    /// Relays until a side ends, nothing moves for `timeouts.tunnel`, or it is sent home. The end of the process waits for
    /// `held`.
    pub fn start(self, held: TaskTrackerToken) {
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the drain; ends with either side, the idle limit or the registry"
        )]
        tokio::spawn(async move {
            let Self { client, upstream, lease, long_lived, service, mut exchange, place } = self;
            let moved = Moved::default();
            let idle = service.config.timeouts.tunnel;
            run(client, upstream, idle, long_lived.told(), &moved).await;
            exchange.sent(moved.from_b());
            drop((exchange, lease, long_lived, place, held));
        });
    }
}

/// How the tunnel ends does not matter to either side's bytes: they are counted.
async fn run(client: OnUpgrade, upstream: OnUpgrade, idle: Duration, over: impl Future<Output = ()>, moved: &Moved) {
    let Ok((client, upstream)) = tokio::try_join!(client, upstream) else { return };
    if let Err(error) = relay(TokioIo::new(client), TokioIo::new(upstream), idle, over, moved).await {
        tracing::debug!(%error, "tunnel ended");
    }
}

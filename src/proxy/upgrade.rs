//! WebSocket, and any other switch of protocols by 101: both sides are taken from hyper and their bytes relayed.

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::connection::Place;
use super::exchange::Exchange;
use crate::net::relay::{Moved, relay};
use crate::routing::service::Service;
use crate::shutdown::Drain;
use crate::upstream::pool::Lease;

/// A switch that both sides have agreed to.
pub struct Tunnel {
    /// The client's bytes, once the 101 is written.
    pub client: OnUpgrade,
    /// The upstream's bytes.
    pub upstream: OnUpgrade,
    /// Counts as an active connection until the tunnel ends.
    pub lease: Lease,
    /// Whose timeout counts.
    pub service: Arc<Service>,
    /// Its access line is written when the tunnel ends.
    pub exchange: Box<Exchange>,
    /// The tunnel counts as a connection.
    pub place: Place,
}

impl Tunnel {
    /// Relays until a side ends, nothing moves for `timeouts.tunnel`, or the process drains.
    pub fn start(self, drain: Drain) {
        let held = drain.hold();
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the drain; ends with either side, the idle limit or the drain"
        )]
        tokio::spawn(async move {
            let Self { client, upstream, lease, service, mut exchange, place } = self;
            let moved = Moved::default();
            let idle = service.config.timeouts.tunnel;
            tokio::select! {
                () = run(client, upstream, idle, &moved) => {}
                () = drain.started() => {}
            }
            exchange.sent(moved.from_b());
            drop((exchange, lease, place, held));
        });
    }
}

/// How the tunnel ends does not matter to either side's bytes: they are counted.
async fn run(client: OnUpgrade, upstream: OnUpgrade, idle: Duration, moved: &Moved) {
    let Ok((client, upstream)) = tokio::try_join!(client, upstream) else { return };
    if let Err(error) = relay(TokioIo::new(client), TokioIo::new(upstream), idle, moved).await {
        tracing::debug!(%error, "tunnel ended");
    }
}

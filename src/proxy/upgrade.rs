//! WebSocket, and any other switch of protocols by 101: both sides are taken from hyper and their bytes relayed.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::exchange::Exchange;
use crate::net::relay::relay;
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
            tokio::select! {
                () = self.run() => {}
                () = drain.started() => {}
            }
            drop(held);
        });
    }

    async fn run(self) {
        let Self { client, upstream, lease, service, mut exchange } = self;
        let Ok((client, upstream)) = tokio::try_join!(client, upstream) else { return };
        let idle = service.config.timeouts.tunnel;
        if let Ok((_, down)) = relay(TokioIo::new(client), TokioIo::new(upstream), idle).await {
            exchange.sent(usize::try_from(down).unwrap_or(usize::MAX));
        }
        drop(lease);
    }
}

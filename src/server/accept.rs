//! Accepts connections and hands each to the worker with the fewest. One thread does it for all listeners: workers that
//! share a socket would share it unevenly.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection::Door;
use super::worker::{Accepted, Handle};
use crate::net::listener::Listener;
use crate::shutdown::Drain;

/// What every listener's accept loop works with.
#[derive(Clone)]
pub struct Acceptor {
    /// The data workers.
    pub workers: Vec<Handle>,
    /// The places under `limits.max_connections`.
    pub places: Arc<Semaphore>,
    /// Ends accepting.
    pub drain: Drain,
}

impl Acceptor {
    /// Accepts until the drain starts, or until `retired` when the listener alone is given up. Closing a socket resets
    /// whoever waits in its queue, so the queue is emptied first. At the limit of connections one client waits here and the
    /// others in the kernel's queue.
    pub async fn run(self, listener: Listener, door: Arc<Door>, retired: CancellationToken) {
        // The end must not overlook a connection between its acceptance and its worker.
        let _held = self.drain.attend();
        let mut turn = 0;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => Some(accepted),
                () = self.drain.started() => listener.accept_now(),
                () = retired.cancelled() => listener.accept_now(),
            };
            let Some((socket, peer)) = accepted else { return };
            turn += 1;
            if !self.hand_over(socket, peer, &door, turn).await {
                return;
            }
        }
    }

    async fn hand_over(&self, socket: TcpStream, peer: SocketAddr, door: &Arc<Door>, turn: usize) -> bool {
        let Ok(place) = self.places.clone().acquire_owned().await else { return false };
        let Ok(socket) = socket.into_std() else { return true };
        let Some(worker) = least_loaded(&self.workers, turn) else { return false };
        let held = self.drain.hold();
        worker.hand_over(Accepted { socket, peer, door: door.clone(), place, held }).await;
        true
    }
}

/// The worker with the fewest connections; among equals they take turns.
fn least_loaded(workers: &[Handle], turn: usize) -> Option<&Handle> {
    let start = turn.checked_rem(workers.len())?;
    let (before, after) = workers.split_at(start);
    after.iter().chain(before).min_by_key(|worker| worker.open())
}

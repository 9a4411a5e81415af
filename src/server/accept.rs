//! Accepts connections and hands each to the worker with the fewest. One thread does it for all listeners: workers that
//! share a socket would share it unevenly.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::connection::Door;
use super::worker::{Accepted, Handle};
use crate::net::listener::Listener;
use crate::shutdown::Drain;

/// Accepts until the drain starts. At the limit of connections one client waits here and the others in the kernel's queue.
pub async fn accept(listener: Listener, door: Arc<Door>, workers: Vec<Handle>, places: Arc<Semaphore>, drain: Drain) {
    let mut turn = 0;
    loop {
        let (socket, peer) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
        };
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = drain.started() => return,
        };
        let Ok(place) = place else { return };
        let Ok(socket) = socket.into_std() else { continue };
        turn += 1;
        let Some(worker) = least_loaded(&workers, turn) else { return };
        worker.hand_over(Accepted { socket, peer, door: door.clone(), place }).await;
    }
}

/// The worker with the fewest connections; among equals they take turns.
fn least_loaded(workers: &[Handle], turn: usize) -> Option<&Handle> {
    let start = turn.checked_rem(workers.len())?;
    let (before, after) = workers.split_at(start);
    after.iter().chain(before).min_by_key(|worker| worker.open())
}

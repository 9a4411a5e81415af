//! One data worker: a single-threaded runtime that takes sockets from a bounded queue. A request stays on its thread, and
//! so does the shard of each pool that it uses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection::{Door, serve};
use crate::proxy::Proxy;
use crate::proxy::connection::Place;
use crate::shutdown::Drain;
use crate::telemetry::Telemetry;

/// Sockets between the acceptor and a worker.
const QUEUE: usize = 1024;

/// An accepted socket on its way to a worker.
pub struct Accepted {
    /// The socket, registered with no runtime.
    pub socket: std::net::TcpStream,
    /// The other end.
    pub peer: SocketAddr,
    /// What is done before HTTP.
    pub door: Arc<Door>,
    /// The place under `limits.max_connections`.
    pub place: OwnedSemaphorePermit,
    /// The end waits for the connection.
    pub held: TaskTrackerToken,
}

/// The acceptor's end of a worker.
#[derive(Clone)]
pub struct Handle {
    queue: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
}

/// The worker's own end.
pub struct Worker {
    index: usize,
    queue: mpsc::Receiver<Accepted>,
    open: Arc<AtomicUsize>,
}

/// Makes both ends of the worker with this number.
pub fn channel(index: usize) -> (Handle, Worker) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let open = Arc::new(AtomicUsize::new(0));
    (Handle { queue: sender, open: open.clone() }, Worker { index, queue: receiver, open })
}

impl Handle {
    /// Connections that the worker has.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Hands over a socket; waits while the worker's queue is full.
    pub async fn hand_over(&self, accepted: Accepted) {
        self.open.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(accepted).await.is_err() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Worker {
    /// Serves until every handle is gone. Runs on the worker's own runtime.
    pub async fn run(mut self, proxy: Arc<Proxy>, drain: Drain) {
        while let Some(accepted) = self.queue.recv().await {
            let Accepted { socket, peer, door, place, held } = accepted;
            let guard: Place = Arc::new(Open::new(self.open.clone(), &door, proxy.telemetry().clone(), place));
            let Ok(socket) = TcpStream::from_std(socket) else { continue };
            let (proxy, drain, index) = (proxy.clone(), drain.clone(), self.index);
            #[expect(
                clippy::disallowed_methods,
                reason = "owned by the drain; ends with its socket or after the grace"
            )]
            tokio::spawn(async move {
                serve(socket, peer, &door, guard, proxy, index, drain).await;
                drop(held);
            });
        }
    }
}

/// An open connection in every count that it is part of.
struct Open {
    open: Arc<AtomicUsize>,
    door: Arc<Door>,
    telemetry: Arc<Telemetry>,
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(open: Arc<AtomicUsize>, door: &Arc<Door>, telemetry: Arc<Telemetry>, place: OwnedSemaphorePermit) -> Self {
        telemetry.process.connection_opened(door.kind);
        Self { open, door: door.clone(), telemetry, _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.telemetry.process.connection_closed(self.door.kind);
        if std::thread::panicking() {
            self.telemetry.process.task_panicked();
        }
    }
}

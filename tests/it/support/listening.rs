//! The accept loop of origins that read bytes themselves: a thread for each connection.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;

/// A port that is served until it is dropped.
pub struct Listening {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Calls `serve` with each connection and the number of those before it.
    pub fn start(serve: impl Fn(TcpStream, u64) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (serve, over) = (Arc::new(serve), Arc::new(AtomicBool::new(false)));
        let is_over = over.clone();
        let thread = std::thread::spawn(move || {
            for (connection, socket) in (0..).zip(listener.incoming().flatten()) {
                if is_over.load(SeqCst) {
                    return;
                }
                let serve = serve.clone();
                std::thread::spawn(move || serve(socket, connection));
            }
        });
        Self { address, over, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

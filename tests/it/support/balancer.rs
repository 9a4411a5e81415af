//! A toy load balancer in front of several proxies: connections go to the endpoints in turn, and what it knows of them is
//! always a few seconds old, as it is for the nodes of a cluster.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Bytes are passed on until it is dropped; a connection stays with its endpoint.
pub struct Balancer {
    address: SocketAddr,
    endpoints: Arc<Mutex<Vec<SocketAddr>>>,
    news: mpsc::UnboundedSender<Vec<SocketAddr>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Balancer {
    /// Begins with these endpoints; hears of others only after `lag`.
    pub fn new(endpoints: &[SocketAddr], lag: Duration) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let known = Arc::new(Mutex::new(endpoints.to_vec()));
        let endpoints = known.clone();
        let (sender, mut heard) = mpsc::unbounded_channel::<Vec<SocketAddr>>();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let learned = known.clone();
                tokio::spawn(async move {
                    while let Some(endpoints) = heard.recv().await {
                        let learned = learned.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(lag).await;
                            *learned.lock().unwrap() = endpoints;
                        });
                    }
                });
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = accept(listener, &known) => {}
                }
            });
        });
        Self { address, endpoints, news: sender, stop, thread: Some(thread) }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has heard of this endpoint.
    pub fn knows(&self, endpoint: SocketAddr) -> bool {
        self.endpoints.lock().unwrap().contains(&endpoint)
    }

    /// From now on, less the lag, these are the endpoints.
    pub fn learn(&self, endpoints: &[SocketAddr]) {
        self.news.send(endpoints.to_vec()).unwrap();
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.thread.take().expect("joined once").join();
    }
}

async fn accept(listener: TcpListener, known: &Mutex<Vec<SocketAddr>>) {
    let turn = AtomicUsize::new(0);
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let endpoint = {
            let known = known.lock().unwrap();
            known[turn.fetch_add(1, SeqCst) % known.len()]
        };
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(endpoint).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}

//! A bound socket that hands out tuned connections. Errors that pass are waited out here and never seen above.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 4096;

/// Pause after an error of `accept` that will pass, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

/// A bound socket that belongs to no runtime yet, so that a port in use is known before any thread starts.
#[derive(Debug)]
pub struct Bound {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Binds and listens.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for old connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = std::net::TcpListener::from(socket);
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// The address, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Registers the socket with the current runtime.
    pub fn into_listener(self) -> io::Result<Listener> {
        Ok(Listener { socket: TcpListener::from_std(self.socket)?, address: self.address })
    }
}

impl Listener {
    /// The address that the socket is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    tune(&stream);
                    return (stream, peer);
                }
                Err(error) => self.wait_out(&error).await,
            }
        }
    }

    /// A connection that is waiting already; `None` when there is none. Asks the system itself: the runtime may not have
    /// heard yet of the newest one.
    pub fn accept_now(&self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            match SockRef::from(&self.socket).accept() {
                Ok((socket, peer)) => {
                    let stream = socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket.into()));
                    if let (Ok(stream), Some(peer)) = (stream, peer.as_socket()) {
                        tune(&stream);
                        return Some((stream, peer));
                    }
                }
                Err(error) if has_left(&error) => {}
                Err(_) => return None,
            }
        }
    }

    async fn wait_out(&self, error: &io::Error) {
        if has_left(error) {
            return;
        }
        tracing::warn!(address = %self.address, %error, "cannot accept connections for now");
        tokio::time::sleep(PAUSE).await;
    }
}

/// A client that left while it was queued is no reason to wait.
fn has_left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// Small writes leave at once, and a peer that vanished is noticed. Both are best effort.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(3);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

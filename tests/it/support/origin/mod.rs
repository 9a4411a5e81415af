//! Scripted origins. Each one lives on a thread with its own runtime, says which side it is, records what it was sent,
//! and misbehaves on command. It can be killed and come back on the same port.

mod answer;
mod blackhole;
mod http1;
mod http2;
mod message;
mod record;

pub use answer::{Answer, End, Gate};
pub use blackhole::Blackhole;
pub use record::{Handshake, Recorded, pattern};

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::record::{Facts, Rest, Shared, Slots};
use super::stream::Stream;

/// What happens to a connection before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAccept {
    /// It is served.
    Serve,
    /// It is reset.
    Reset,
    /// It is closed.
    Close,
    /// Nothing is ever said on it, not even TLS.
    Hang,
}

/// A server that does what the test says.
pub struct Origin {
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    prior_knowledge: bool,
    shared: Arc<Shared>,
    running: Option<Running>,
}

struct Running {
    listener: std::net::TcpListener,
    cancel: CancellationToken,
    thread: JoinHandle<()>,
}

impl Origin {
    /// HTTP/1.1 in clear. `side` names it in every default answer: `side=old`.
    pub fn plain(side: &str) -> Self {
        Self::start(side, None, false)
    }

    /// The same, at an address of the test's choice.
    pub fn plain_at(side: &str, address: SocketAddr) -> Self {
        Self::over(listen(address), side, None, false)
    }

    /// The same where the machine may not have the address.
    pub fn try_plain_at(side: &str, address: SocketAddr) -> Option<Self> {
        Some(Self::over(try_listen(address).ok()?, side, None, false))
    }

    /// HTTP/2 in clear by prior knowledge.
    pub fn h2c(side: &str) -> Self {
        Self::start(side, None, true)
    }

    /// The same, at an address of the test's choice.
    pub fn h2c_at(side: &str, address: SocketAddr) -> Self {
        Self::over(listen(address), side, None, true)
    }

    /// TLS; HTTP/2 when the configuration's ALPN chooses it.
    pub fn tls(side: &str, config: Arc<ServerConfig>) -> Self {
        Self::start(side, Some(config), false)
    }

    fn start(side: &str, tls: Option<Arc<ServerConfig>>, prior_knowledge: bool) -> Self {
        Self::over(listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), side, tls, prior_knowledge)
    }

    fn over(
        listener: std::net::TcpListener,
        side: &str,
        tls: Option<Arc<ServerConfig>>,
        prior_knowledge: bool,
    ) -> Self {
        let mut origin = Self {
            address: listener.local_addr().unwrap(),
            tls,
            prior_knowledge,
            shared: Arc::new(Shared::new(side)),
            running: None,
        };
        origin.run(listener);
        origin
    }

    fn run(&mut self, listener: std::net::TcpListener) {
        let (cancel, kept) = (CancellationToken::new(), listener.try_clone().unwrap());
        let (shared, tls, prior_knowledge, stop) =
            (self.shared.clone(), self.tls.clone(), self.prior_knowledge, cancel.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = accept(listener, shared, tls.map(TlsAcceptor::from), prior_knowledge) => {}
                }
            });
        });
        self.running = Some(Running { listener: kept, cancel, thread });
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Closes the listener and every connection at once, as a killed process does.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.cancel.cancel();
            running.thread.join().unwrap();
        }
    }

    /// Listens again on the same port.
    pub fn restart(&mut self) {
        self.kill();
        self.run(listen(self.address));
    }

    /// The answer for one path (without its query), until it is replaced.
    pub fn on(&self, path: &str, answer: Answer) -> &Self {
        self.shared.state().routes.insert(path.to_owned(), answer);
        self
    }

    /// The answer for every other path.
    pub fn otherwise(&self, answer: Answer) -> &Self {
        self.shared.state().otherwise = Some(answer);
        self
    }

    /// Answers that are used once each, in this order, before any other.
    pub fn next(&self, answers: impl IntoIterator<Item = Answer>) -> &Self {
        self.shared.state().queue.extend(answers);
        self
    }

    /// Decides answer by answer; `None` leaves it to the other settings.
    pub fn script(&self, script: impl Fn(&Recorded) -> Option<Answer> + Send + Sync + 'static) -> &Self {
        self.shared.state().script = Some(Arc::new(script));
        self
    }

    /// Forgets all answers, so that every request gets `side=…` again.
    pub fn well_behaved(&self) -> &Self {
        let mut state = self.shared.state();
        state.routes.clear();
        state.queue.clear();
        state.otherwise = None;
        state.script = None;
        state.on_accept = OnAccept::Serve;
        drop(state);
        self
    }

    /// What happens to new connections.
    pub fn on_accept(&self, what: OnAccept) -> &Self {
        self.shared.state().on_accept = what;
        self
    }

    /// Closes each connection after so many answers, without having said so.
    pub fn close_after(&self, requests: usize) -> &Self {
        self.shared.state().close_after = Some(requests);
        self
    }

    /// Closes each connection that has waited for its next request for a while, drawn anew from 0 to `most`.
    pub fn close_idle(&self, most: Duration, seed: u64) -> &Self {
        self.shared.state().idle = Some(Rest::new(most, seed));
        self
    }

    /// Works on so many requests at a time, on each for so long; the others wait.
    pub fn slots(&self, count: usize, work: Duration) -> &Self {
        self.shared.state().slots = Some(Slots::new(count, work));
        self
    }

    /// Shows another certificate to new connections; `None`: that of the start.
    pub fn show(&self, identity: Option<Arc<ServerConfig>>) -> &Self {
        self.shared.state().identity = identity;
        self
    }

    /// Lets the kernel keep so many connections that were not accepted yet. It answers no others.
    pub fn backlog(&self, length: i32) -> &Self {
        SockRef::from(&self.running.as_ref().expect("it listens").listener).listen(length).unwrap();
        self
    }

    /// Requests that arrived, counted when their head was complete.
    pub fn requests(&self) -> u64 {
        self.shared.requests()
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections()
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> u64 {
        self.shared.open()
    }

    /// Everything that was recorded (the first 20 000 requests).
    pub fn recorded(&self) -> Vec<Recorded> {
        self.shared.state().recorded.clone()
    }

    /// The newest request.
    #[track_caller]
    pub fn last(&self) -> Recorded {
        self.shared.state().recorded.last().expect("a request has arrived").clone()
    }

    /// Forgets what was recorded; the counters go on.
    pub fn forget(&self) {
        self.shared.state().forget();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback port on which nobody listens, for backends that refuse connections.
pub fn refused_port() -> u16 {
    listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).local_addr().unwrap().port()
}

fn listen(address: SocketAddr) -> std::net::TcpListener {
    try_listen(address).unwrap()
}

fn try_listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<TlsAcceptor>, prior_knowledge: bool) {
    loop {
        let Ok((socket, peer)) = listener.accept().await else { continue };
        shared.accepted();
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            let _open = shared.opened();
            connection(socket, peer, &shared, tls, prior_knowledge).await;
        });
    }
}

async fn connection(
    socket: TcpStream,
    peer: SocketAddr,
    shared: &Arc<Shared>,
    tls: Option<TlsAcceptor>,
    prior_knowledge: bool,
) {
    socket.set_nodelay(true).unwrap();
    let on_accept = shared.state().on_accept;
    match on_accept {
        OnAccept::Serve => {}
        OnAccept::Reset => return Stream::Plain(socket).reset(),
        OnAccept::Close => return,
        OnAccept::Hang => return std::future::pending().await,
    }
    let mut facts = Facts { peer, sni: None, client_certificate: None, handshake: None };
    let other = shared.state().identity.clone().map(TlsAcceptor::from);
    let Some(tls) = tls.map(|tls| other.unwrap_or(tls)) else {
        let stream = Stream::Plain(socket);
        return if prior_knowledge {
            http2::serve(stream, facts, shared).await;
        } else {
            http1::serve(stream, facts, shared).await;
        };
    };
    match tls.accept(socket).await {
        Ok(stream) => {
            let session = stream.get_ref().1;
            facts.sni = session.server_name().map(str::to_owned);
            facts.client_certificate = session.peer_certificates().map(|chain| chain[0].to_vec());
            facts.handshake = Handshake::of(session);
            let is_http2 = session.alpn_protocol() == Some(b"h2");
            let stream = Stream::Tls(Box::new(stream));
            if is_http2 {
                http2::serve(stream, facts, shared).await;
            } else {
                http1::serve(stream, facts, shared).await;
            }
        }
        Err(error) => shared.state().handshake_errors.push(error.to_string()),
    }
}

impl Origin {
    /// Why TLS handshakes failed, as the origin saw it.
    pub fn handshake_errors(&self) -> Vec<String> {
        self.shared.state().handshake_errors.clone()
    }
}

//! Asks the other replicas for their `/status`, on the control runtime, as often as it is worth it. What they answer is kept
//! in the [`Fleet`].
//!
//! [`Fleet`]: super::fleet::Fleet

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::fleet::{Told, View};
use super::status::Status;
use crate::config::Authority;
use crate::routing::live::Live;
use crate::shutdown::Drain;
use crate::telemetry::Telemetry;
use crate::telemetry::labels::PeerState;
use crate::upstream::resolve::{Known, Name, Resolver};

/// How often the others are asked, and how often while something is changing.
const CALM: Duration = Duration::from_secs(5);
const EAGER: Duration = Duration::from_millis(500);
/// How long something is changing after it was seen to change.
const CHANGING: Duration = Duration::from_secs(15);

/// Connecting, sending and reading, together.
const PATIENCE: Duration = Duration::from_secs(3);
/// The status of 10 000 services is 15 MiB.
const LARGEST_ANSWER: usize = 32 << 20;
/// What asking the others needs.
pub struct Watcher {
    /// What is served.
    pub live: Arc<Live>,
    /// Where the answers are kept.
    pub status: Arc<Status>,
    /// The meter.
    pub telemetry: Arc<Telemetry>,
    /// Finds the others.
    pub resolver: Arc<Resolver>,
}

/// The name of the others, while it is followed.
type Followed = (Authority, Arc<Name>, watch::Receiver<Known>);

impl Watcher {
    /// Asks the other replicas again and again, until the drain starts.
    pub async fn run(self, drain: Drain) {
        tokio::select! {
            () = drain.started() => {}
            () = self.ask_on() => {}
        }
    }

    async fn ask_on(&self) {
        let mut followed = None;
        let (mut asked, mut own_mark, mut eager_until) = (None::<Instant>, 0, Instant::now());
        loop {
            tokio::time::sleep(EAGER).await;
            let Some(addresses) = self.addresses(&mut followed) else { continue };
            let mark = self.mark();
            if std::mem::replace(&mut own_mark, mark) != mark {
                (asked, eager_until) = (None, Instant::now() + CHANGING);
            }
            let pause = if Instant::now() < eager_until { EAGER } else { CALM };
            if asked.is_some_and(|asked| asked.elapsed() < pause) {
                continue;
            }
            let before = self.counts();
            self.ask(self.status.fleet.choose(&addresses)).await;
            asked = Some(Instant::now());
            let counts = self.counts();
            if counts != before {
                eager_until = Instant::now() + CHANGING;
            }
            self.telemetry.process.fleet(counts);
        }
    }

    /// Where the others are now; `None` when nobody wants to know.
    fn addresses(&self, followed: &mut Option<Followed>) -> Option<Vec<SocketAddr>> {
        let Some(peers) = self.live.snapshot().config.fleet.peers.clone() else {
            if followed.take().is_some() {
                self.status.fleet.forget_all();
                self.telemetry.process.fleet([0; PeerState::ALL.len()]);
            }
            return None;
        };
        if let Some(address) = peers.socket_address() {
            return Some(vec![address]);
        }
        let (_, _, known) = match followed {
            Some(followed) if followed.0 == peers => followed,
            _ => {
                let name = self.resolver.name(peers.host());
                let known = self.resolver.follow(&name);
                followed.insert((peers.clone(), name, known))
            }
        };
        let (addresses, why) = match &*known.borrow() {
            Known::Addresses(addresses) => (addresses.current.clone(), None),
            Known::Nothing => (Vec::new(), None),
            Known::Failed(error) => (Vec::new(), Some(error.to_string())),
        };
        self.status.fleet.unresolved(why);
        Some(addresses.into_iter().map(|address| SocketAddr::new(address, peers.port())).collect())
    }

    async fn ask(&self, addresses: Vec<SocketAddr>) {
        let mut questions = JoinSet::new();
        for address in addresses {
            questions.spawn(async move {
                let answer = tokio::time::timeout(PATIENCE, read(address)).await;
                (address, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))))
            });
        }
        while let Some(answered) = questions.join_next().await {
            if let Ok((address, answer)) = answered {
                self.status.fleet.hear(address, answer, self.status.instance());
            }
        }
    }

    fn counts(&self) -> [usize; PeerState::ALL.len()] {
        let hash = self.status.configuration().hash;
        self.status.fleet.compare(&View::own(&self.live.snapshot(), &hash))
    }

    /// Another number whenever something else is served.
    fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.status.configuration().hash.hash(&mut hasher);
        let snapshot = self.live.snapshot();
        snapshot.safe_mode.is_on().hash(&mut hasher);
        for service in &snapshot.services {
            let switches = service.switches();
            (service.lasting.weight.effective().basis_points(), switches.enabled, service.is_in_safe_mode())
                .hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// One question on a connection of its own.
async fn read(address: SocketAddr) -> Result<Told, String> {
    let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(|error| error.to_string())?;
    let request = Request::get("/status").header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let ask = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("it answers {}", answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| format!("it answers something else: {error}"))
    };
    let mut connection = std::pin::pin!(connection);
    let mut ask = std::pin::pin!(ask);
    tokio::select! {
        answer = &mut ask => answer,
        _ = &mut connection => ask.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn garbage_is_an_answer_that_says_so() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "something else"),
            ("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "it answers 503"),
            ("SSH-2.0-OpenSSH\r\n", ""),
            ("", ""),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serve = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                let _ = socket.read(&mut [0; 1024]).await;
                socket.write_all(answer.as_bytes()).await.unwrap();
            };
            let (heard, ()) = tokio::join!(read(address), serve);
            let error = heard.err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }
}

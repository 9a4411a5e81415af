//! What an origin was sent, and the state that its connections share.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};
use rustls::crypto::SupportedKxGroup;
use rustls::{CommonState, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig};
use tokio::sync::Semaphore;

use super::OnAccept;
use super::answer::{Answer, Kind};

const RECORDED_REQUESTS: usize = 20_000;
const RECORDED_BODY: usize = 256 * 1024;
/// A prime, so that a piece which is lost or doubled never goes unnoticed.
const PATTERN_PERIOD: usize = 251;
/// The longest piece of the pattern that can be had at once.
const PATTERN_PIECE: usize = 64 * 1024;

static PATTERN: LazyLock<Bytes> =
    LazyLock::new(|| (0..PATTERN_PERIOD + PATTERN_PIECE).map(|at| (at % PATTERN_PERIOD) as u8).collect());

/// At most `length` bytes of an endless known text from `offset` on.
pub fn pattern(offset: u64, length: u64) -> Bytes {
    let start = (offset % PATTERN_PERIOD as u64) as usize;
    let length = length.min(PATTERN_PIECE as u64) as usize;
    PATTERN.slice(start..start + length)
}

/// What is known of a connection before its first request.
#[derive(Clone)]
pub(super) struct Facts {
    pub peer: SocketAddr,
    pub sni: Option<String>,
    pub client_certificate: Option<Vec<u8>>,
    pub handshake: Option<Handshake>,
}

/// What a TLS handshake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The version.
    pub version: ProtocolVersion,
    /// The key exchange; under TLS 1.2 a resumed session has none.
    pub group: Option<NamedGroup>,
    /// An earlier session went on.
    pub is_resumed: bool,
}

impl Handshake {
    /// Of a session whose handshake is over.
    pub fn of(session: &CommonState) -> Option<Self> {
        Some(Self {
            version: session.protocol_version()?,
            group: session.negotiated_key_exchange_group().map(SupportedKxGroup::name),
            is_resumed: session.handshake_kind()? == HandshakeKind::Resumed,
        })
    }
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The method as sent.
    pub method: String,
    /// The request target as sent (HTTP/2: path and query).
    pub target: String,
    /// `HTTP/1.1`, `HTTP/1.0` or `HTTP/2.0`.
    pub version: String,
    /// Fields in the order and case of the wire; bytes above 127 as Latin-1. HTTP/2: `:authority` and `:scheme` first.
    pub headers: Vec<(String, String)>,
    /// The first 256 KiB of the body, decoded.
    pub body: Vec<u8>,
    /// Length of the whole body.
    pub body_length: u64,
    /// Every byte of the body was [`pattern`]'s.
    pub body_is_pattern: bool,
    /// Fields behind a chunked body.
    pub trailers: Vec<(String, String)>,
    /// The whole request arrived.
    pub complete: bool,
    /// Who connected.
    pub peer: SocketAddr,
    /// The server name of the handshake.
    pub sni: Option<String>,
    /// The client's certificate as DER.
    pub client_certificate: Option<Vec<u8>>,
    /// The handshake of its connection.
    pub handshake: Option<Handshake>,
}

impl Recorded {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The first field of that name, case ignored.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Every field of that name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// Whether a field of that name was sent.
    pub fn has(&self, name: &str) -> bool {
        self.header(name).is_some()
    }

    /// Host, or the authority of HTTP/2.
    pub fn host(&self) -> Option<&str> {
        self.header(":authority").or_else(|| self.header("host"))
    }
}

pub(super) type Script = Arc<dyn Fn(&Recorded) -> Option<Answer> + Send + Sync>;

pub(super) struct State {
    pub routes: HashMap<String, Answer>,
    pub queue: VecDeque<Answer>,
    pub otherwise: Option<Answer>,
    pub script: Option<Script>,
    pub on_accept: OnAccept,
    pub close_after: Option<usize>,
    pub idle: Option<Arc<Rest>>,
    pub slots: Option<Arc<Slots>>,
    /// Shown instead of the certificate of the start.
    pub identity: Option<Arc<ServerConfig>>,
    pub recorded: Vec<Recorded>,
    pub handshake_errors: Vec<String>,
    /// Requests that were recorded before the newest `forget`, so that late bodies find their entry.
    first: u64,
}

/// How long a connection may wait for its next request: a time drawn anew after each answer.
pub(super) struct Rest {
    most: Duration,
    dice: Mutex<SmallRng>,
}

impl Rest {
    pub fn new(most: Duration, seed: u64) -> Arc<Self> {
        Arc::new(Self { most, dice: Mutex::new(SmallRng::seed_from_u64(seed)) })
    }

    pub fn next(&self) -> Duration {
        self.most.mul_f64(self.dice.lock().unwrap().random_range(0.0..1.0))
    }
}

/// Places for requests that are worked on at a time, each for a while; the others wait.
pub(super) struct Slots {
    free: Semaphore,
    work: Duration,
}

impl Slots {
    pub fn new(count: usize, work: Duration) -> Arc<Self> {
        Arc::new(Self { free: Semaphore::new(count), work })
    }

    pub async fn work(&self) {
        let _place = self.free.acquire().await.unwrap();
        tokio::time::sleep(self.work).await;
    }
}

/// Everything that the connections of one origin and its test share.
pub(super) struct Shared {
    side: String,
    requests: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    state: Mutex<State>,
}

/// Counts a connection as open while it lives.
pub(super) struct Opened<'a>(&'a AtomicU64);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Shared {
    pub fn new(side: &str) -> Self {
        let state = State {
            routes: HashMap::new(),
            queue: VecDeque::new(),
            otherwise: None,
            script: None,
            on_accept: OnAccept::Serve,
            close_after: None,
            idle: None,
            slots: None,
            identity: None,
            recorded: Vec::new(),
            handshake_errors: Vec::new(),
            first: 0,
        };
        Self {
            side: side.to_owned(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn accepted(&self) {
        self.connections.fetch_add(1, SeqCst);
    }

    pub fn opened(&self) -> Opened<'_> {
        self.open.fetch_add(1, SeqCst);
        Opened(&self.open)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }

    pub fn connections(&self) -> u64 {
        self.connections.load(SeqCst)
    }

    pub fn open(&self) -> u64 {
        self.open.load(SeqCst)
    }

    pub fn side_text(&self) -> Bytes {
        Bytes::from(format!("side={}\n", self.side))
    }

    pub fn side(&self) -> &str {
        &self.side
    }

    /// Notes a head that arrived and chooses its answer.
    pub fn arrived(&self, request: Recorded) -> (Place, Answer) {
        self.requests.fetch_add(1, SeqCst);
        let mut state = self.state();
        let scripted = state.queue.pop_front().or_else(|| state.script.as_ref().and_then(|script| script(&request)));
        let answer = scripted
            .or_else(|| state.routes.get(request.path()).cloned())
            .or_else(|| state.otherwise.clone())
            .unwrap_or_else(Answer::side);
        let place = Place(state.first + state.recorded.len() as u64);
        if state.recorded.len() < RECORDED_REQUESTS {
            state.recorded.push(request);
        }
        (place, answer)
    }

    pub fn body_piece(&self, place: Place, piece: &[u8]) {
        self.change(place, |request| {
            let mut rest = piece;
            while !rest.is_empty() && request.body_is_pattern {
                let expected = pattern(request.body_length + (piece.len() - rest.len()) as u64, rest.len() as u64);
                request.body_is_pattern = rest.starts_with(&expected);
                rest = &rest[expected.len()..];
            }
            request.body_length += piece.len() as u64;
            let room = RECORDED_BODY.saturating_sub(request.body.len());
            request.body.extend_from_slice(&piece[..piece.len().min(room)]);
        });
    }

    /// The request is whole. Told again, as readers do who look for what is already read, it changes nothing.
    pub fn finished(&self, place: Place, trailers: Vec<(String, String)>) {
        self.change(place, |request| {
            if !request.complete {
                request.trailers = trailers;
                request.complete = true;
            }
        });
    }

    fn change(&self, Place(place): Place, change: impl FnOnce(&mut Recorded)) {
        let mut state = self.state();
        if let Some(index) = place.checked_sub(state.first)
            && let Some(request) = state.recorded.get_mut(index as usize)
        {
            change(request);
        }
    }
}

impl State {
    pub fn forget(&mut self) {
        self.first += self.recorded.len() as u64;
        self.recorded.clear();
    }
}

/// Where a request was recorded.
#[derive(Clone, Copy)]
pub(super) struct Place(u64);

impl Kind {
    /// The request's body is read before anything is said.
    pub fn waits_for_body(&self) -> bool {
        match self {
            Self::Respond(response) => !response.before_request_body,
            Self::Raw(..) | Self::Nothing(_) => true,
            Self::Upgrade(_) => false,
        }
    }
}

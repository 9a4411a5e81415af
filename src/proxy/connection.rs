//! One accepted connection as its requests see it, and what its byte stream must know about them.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::{Instant, Sleep};

use super::sender::Scheme;
use crate::tls::certificates::Certificate;

/// Timers kept for later requests of one connection.
const KEPT_TIMERS: usize = 4;

/// A client's connection.
pub struct Connection {
    /// The data worker that serves it.
    pub worker: usize,
    /// The other end.
    pub peer: SocketAddr,
    /// The other end's address as a field value.
    pub peer_text: HeaderValue,
    /// Whether the listener speaks TLS.
    pub scheme: Scheme,
    /// The certificate that the client was shown, with the server name that it asked for.
    pub shown: Option<Shown>,
    /// Shared with the byte stream.
    pub flow: Arc<Flow>,
    /// Counts the connection as open; a tunnel keeps it longer than the connection's own task.
    pub place: Place,
}

/// Given back when the connection, and every tunnel that was made of it, has ended.
pub type Place = Arc<dyn Send + Sync>;

/// What a TLS client asked for and got.
#[derive(Debug)]
pub struct Shown {
    /// The server name of the handshake, lower case.
    pub server_name: Option<Box<str>>,
    /// The certificate.
    pub certificate: Arc<Certificate>,
    /// The certificate covers the server name.
    pub is_covered: bool,
}

impl Shown {
    /// Whether the client may ask for this host here (RFC 9110, 7.4).
    pub fn covers(&self, host: &str) -> bool {
        self.is_usual(host) || self.certificate.names.covers(host)
    }

    /// The host that the certificate was chosen for.
    fn is_usual(&self, host: &str) -> bool {
        self.is_covered && self.server_name.as_deref() == Some(host)
    }
}

impl Connection {
    /// A connection from `peer`.
    pub fn new(
        worker: usize,
        peer: SocketAddr,
        scheme: Scheme,
        shown: Option<Shown>,
        flow: Arc<Flow>,
        place: Place,
    ) -> Self {
        let text = peer.ip().to_canonical().to_string();
        let peer_text = HeaderValue::from_str(&text).expect("an address is visible ASCII");
        Self { worker, peer, peer_text, scheme, shown, flow, place }
    }
}

/// More bytes of interim heads than this do not wait.
const MOST_INTERIM: usize = 16 * 1024;

/// How busy a connection is. The requests write it, the byte stream reads it to tell a slow client from a slow server.
#[derive(Debug)]
pub struct Flow {
    start: Instant,
    busy: AtomicU32,
    served: AtomicU32,
    /// Requests that their client left.
    left: AtomicU32,
    /// Milliseconds from the start to the end of the last request.
    last_end: AtomicU64,
    /// Bodies whose next frame waits for the client.
    ready: AtomicU32,
    /// Milliseconds from the start to the last frame that a body handed over.
    last_frame: AtomicU64,
    /// Frames of answers that have left us, on HTTP/2.
    answered: AtomicU32,
    owes: AtomicBool,
    broken: AtomicBool,
    noisy: AtomicBool,
    unread: AtomicBool,
    /// Whole interim heads that wait to be written.
    interim: Mutex<Vec<u8>>,
    has_interim: AtomicBool,
    timers: Mutex<Vec<Pin<Box<Sleep>>>>,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            busy: AtomicU32::new(0),
            served: AtomicU32::new(0),
            left: AtomicU32::new(0),
            last_end: AtomicU64::new(0),
            ready: AtomicU32::new(0),
            last_frame: AtomicU64::new(0),
            answered: AtomicU32::new(0),
            owes: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            noisy: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            interim: Mutex::default(),
            has_interim: AtomicBool::new(false),
            timers: Mutex::default(),
        }
    }
}

impl Flow {
    /// A request begins; it ends with the guard.
    pub fn enter(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        if self.is_unread() {
            self.unread.store(false, Ordering::Relaxed);
        }
        Busy(self.clone())
    }

    /// Requests under way.
    pub fn busy(&self) -> u32 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Requests that have ended.
    pub fn served(&self) -> u32 {
        self.served.load(Ordering::Relaxed)
    }

    /// Requests that their client left before they were answered.
    pub fn left(&self) -> u32 {
        self.left.load(Ordering::Relaxed)
    }

    pub(super) fn note_left(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// When the last request ended.
    pub fn last_end(&self) -> Instant {
        self.start + Duration::from_millis(self.last_end.load(Ordering::Relaxed))
    }

    /// A request has ended; noted before its [`Busy`] is dropped.
    pub(super) fn note_end(&self, now: Instant) {
        self.last_end.store(self.millis(now), Ordering::Relaxed);
    }

    /// Frames wait for the client, and none was taken for `limit`.
    pub fn is_stalled(&self, now: Instant, limit: Duration) -> bool {
        let last = self.start + Duration::from_millis(self.last_frame.load(Ordering::Relaxed));
        self.ready.load(Ordering::Relaxed) > 0 && now.saturating_duration_since(last) > limit
    }

    /// So many frames of answers have left an HTTP/2 connection, and it `owes` its client more.
    pub fn note_answers(&self, frames: u32, owes: bool) {
        self.answered.store(frames, Ordering::Relaxed);
        self.owes.store(owes, Ordering::Relaxed);
    }

    /// See [`Flow::note_answers`]; the number begins anew when it is too large.
    pub fn answered(&self) -> u32 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Answers on HTTP/2 that have begun have not left us to their end: a request is over when hyper has taken its last
    /// frame, which may still wait for the client's window or for room in the socket.
    pub fn owes(&self) -> bool {
        self.owes.load(Ordering::Relaxed)
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    /// A response could not be completed: the connection must end so that nobody takes it for complete.
    pub fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// See [`Flow::break_off`].
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// The client sends too many frames that carry nothing.
    pub fn note_noise(&self) {
        self.noisy.store(true, Ordering::Relaxed);
    }

    /// See [`Flow::note_noise`].
    pub fn is_noisy(&self) -> bool {
        self.noisy.load(Ordering::Relaxed)
    }

    /// The last request ended before its body did.
    pub(super) fn leave_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// Whether the client may still be sending what nobody reads.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// A whole interim head that goes out before the final one. What would be too much is left out: hints may be.
    pub(super) fn push_interim(&self, head: &[u8]) {
        let mut interim = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
        if interim.len() + head.len() <= MOST_INTERIM {
            interim.extend_from_slice(head);
            self.has_interim.store(true, Ordering::Release);
        }
    }

    /// Whether interim heads wait to be written.
    pub fn has_interim(&self) -> bool {
        self.has_interim.load(Ordering::Acquire)
    }

    /// Interim heads to be written now; [`Flow::interim_written`] has to follow.
    pub fn take_interim(&self) -> Vec<u8> {
        std::mem::take(&mut *self.interim.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was taken is on its way; false when more has come meanwhile.
    pub fn interim_written(&self) -> bool {
        let interim = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_interim.store(!interim.is_empty(), Ordering::Release);
        interim.is_empty()
    }

    /// A timer of an earlier request, so that a request on a kept-alive connection registers none.
    pub(super) fn take_timer(&self) -> Option<Pin<Box<Sleep>>> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(super) fn keep_timer(&self, timer: Pin<Box<Sleep>>) {
        let mut timers = self.timers.lock().unwrap_or_else(PoisonError::into_inner);
        if timers.len() < KEPT_TIMERS {
            timers.push(timer);
        }
    }
}

/// Whether a body waits for its client. On HTTP/2 a client without window is never asked, so nothing else would notice.
#[derive(Debug)]
pub(super) struct Offer {
    flow: Arc<Flow>,
    is_open: bool,
}

impl Offer {
    /// The next frame waits.
    pub(super) fn new(flow: Arc<Flow>) -> Self {
        let mut offer = Self { flow, is_open: false };
        offer.set(true);
        offer
    }

    /// The next frame waits, or the client is asked for it.
    pub(super) fn set(&mut self, is_open: bool) {
        if is_open == self.is_open {
            return;
        }
        self.is_open = is_open;
        if is_open {
            self.flow.last_frame.store(self.flow.millis(Instant::now()), Ordering::Relaxed);
            self.flow.ready.fetch_add(1, Ordering::Relaxed);
        } else {
            self.flow.ready.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Busy(Arc<Flow>);

impl Busy {
    /// The connection's flow.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.served.fetch_add(1, Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

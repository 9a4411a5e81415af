//! The request body on its way to an upstream: streamed, counted, bounded, and given up when the client stalls.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// What is sent to an upstream.
#[derive(Debug, Default)]
pub enum OutBody {
    /// Nothing.
    #[default]
    Empty,
    /// What the client sends.
    Upload(Box<Upload>),
}

/// The client's body.
#[derive(Debug)]
pub struct Upload {
    /// Gone only while it is dropped.
    body: Option<Incoming>,
    /// What the client speaks.
    version: Version,
    /// What an earlier try had sent, to be sent before the rest.
    again: Bytes,
    /// What this try has sent, while it may have to be sent again.
    sent: BytesMut,
    progress: Arc<Progress>,
    limit: Option<u64>,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// The client waits to be asked for its body.
    gate: Option<Arc<Gate>>,
}

/// Holds back the body of a client that expects a 100, until the upstream asks for it (RFC 9110, 10.1.1).
#[derive(Debug, Default)]
pub struct Gate {
    is_open: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Gate {
    /// The body may pass.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
        if let Some(waker) = self.lock().take() {
            waker.wake();
        }
    }

    /// Whether the body was let pass.
    pub fn was_opened(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    fn is_open(&self, cx: &Context<'_>) -> bool {
        *self.lock() = Some(cx.waker().clone());
        self.is_open.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far an upload has come; shared with the request that waits for its answer.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    bytes: AtomicU64,
    last: AtomicU64,
    state: AtomicU8,
    /// The client was asked for more and has not sent it yet.
    awaited: AtomicBool,
    /// The body is kept when its try lets go of it.
    keeps: AtomicBool,
    kept: Mutex<Option<Kept>>,
    has_kept: Notify,
}

/// A body that a try has let go of, from its beginning on.
#[derive(Debug)]
struct Kept {
    body: Option<Incoming>,
    version: Version,
    again: Bytes,
    limit: Option<u64>,
    idle: Duration,
}

/// Bytes of a body that are kept for another try: the whole of most gRPC calls and API requests. A longer body is sent once.
const MOST_KEPT: usize = 64 * 1024;

/// hyper lets go of a refused body at its next turn.
const LETTING_GO: Duration = Duration::from_millis(100);

/// An upstream that does not ask for the body of a client that waits may not know that it can.
const UNASKED: Duration = Duration::from_secs(1);

const RUNNING: u8 = 0;
const COMPLETE: u8 = 1;

/// Why an upload ended before its end. The client is to blame for each of them, never the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum UploadFault {
    /// Longer than `limits.request_body`.
    TooLarge = 2,
    /// No byte for `listen.timeouts.body_idle`.
    Stalled = 3,
    /// Its framing is broken.
    Broken = 4,
    /// The client left.
    Left = 5,
}

impl UploadFault {
    /// A connection that ended, or a stream that the client reset, is a client that left; anything else is its fault.
    fn of(error: &hyper::Error) -> Self {
        let source = error.source();
        let ended = source.and_then(|source| source.downcast_ref::<io::Error>()).is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            )
        });
        let reset = source.and_then(|source| source.downcast_ref::<h2::Error>()).is_some_and(h2::Error::is_remote);
        if ended || reset || error.is_incomplete_message() { Self::Left } else { Self::Broken }
    }
}

impl fmt::Display for UploadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the request body is too large",
            Self::Stalled => "the client stopped sending its request body",
            Self::Broken => "the request body is malformed",
            Self::Left => "the client left",
        })
    }
}

impl std::error::Error for UploadFault {}

/// Whether a body that gives nothing more has come to its end. hyper calls it an end, too, when an HTTP/2 stream is reset
/// with NO_ERROR, wherever that happens; only the stream knows.
pub fn is_whole(body: &Incoming, version: Version) -> bool {
    version != Version::HTTP_2 || body.is_end_stream()
}

impl OutBody {
    /// The body of a request that came in this `version`, and where its progress can be seen; `None` when there is no body.
    /// A `gate` holds the body back until it is opened.
    pub fn new(
        body: Incoming,
        version: Version,
        limit: Option<u64>,
        idle: Duration,
        gate: Option<Arc<Gate>>,
    ) -> (Self, Option<Arc<Progress>>) {
        if body.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Arc::new(Progress {
            start: Instant::now(),
            bytes: AtomicU64::new(0),
            last: AtomicU64::new(0),
            state: AtomicU8::new(RUNNING),
            awaited: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            kept: Mutex::default(),
            has_kept: Notify::new(),
        });
        let (body, again, sent) = (Some(body), Bytes::new(), BytesMut::new());
        let upload = Upload { body, version, again, sent, progress: progress.clone(), limit, idle, timer: None, gate };
        (Self::Upload(Box::new(upload)), Some(progress))
    }

    /// Nothing will be sent.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl Progress {
    /// Bytes that the client has sent so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Until when the clock of the response head has stood still: now, while the client owes more of its body, which has a
    /// limit of its own; else the last byte, while the upstream has not taken all of them.
    pub fn stood_still_until(&self) -> Option<Instant> {
        let is_running = self.state.load(Ordering::Relaxed) == RUNNING;
        is_running.then(|| if self.awaited.load(Ordering::Relaxed) { Instant::now() } else { self.last() })
    }

    /// The whole body has come.
    pub fn is_complete(&self) -> bool {
        self.state.load(Ordering::Relaxed) == COMPLETE
    }

    /// Whether the try that has the body may have to give it back.
    pub fn keep(&self, keeps: bool) {
        self.keeps.store(keeps, Ordering::Relaxed);
    }

    /// The whole body once more, from a try of which the peer did nothing; `None` where too much of it is gone.
    pub async fn given_back(self: &Arc<Self>) -> Option<OutBody> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut found = kept();
        if found.is_none() && self.keeps.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(LETTING_GO, self.has_kept.notified()).await;
            found = kept();
        }
        let Kept { body, version, again, limit, idle } = found?;
        let (progress, sent) = (self.clone(), BytesMut::new());
        let upload = Upload { body, version, again, sent, progress, limit, idle, timer: None, gate: None };
        Some(OutBody::Upload(Box::new(upload)))
    }

    /// When the last byte came.
    pub fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Why the upload ended before its end.
    pub fn fault(&self) -> Option<UploadFault> {
        [UploadFault::TooLarge, UploadFault::Stalled, UploadFault::Broken, UploadFault::Left]
            .into_iter()
            .find(|fault| *fault as u8 == self.state.load(Ordering::Relaxed))
    }

    fn note(&self, bytes: usize) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64
    }

    fn end(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }
}

impl Upload {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadFault>>> {
        if self.gate.is_some() {
            ready!(self.poll_gate(cx));
        }
        if !self.again.is_empty() {
            let data = std::mem::take(&mut self.again);
            self.note_sent(&data);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *body).poll_frame(cx);
        self.progress.awaited.store(frame.is_pending(), Ordering::Relaxed);
        let Poll::Ready(frame) = frame else {
            ready!(self.poll_stalled(cx));
            return Poll::Ready(Some(Err(self.fail(UploadFault::Stalled))));
        };
        Poll::Ready(match frame {
            None if is_whole(body, self.version) => {
                self.progress.end(COMPLETE);
                None
            }
            None => Some(Err(self.fail(UploadFault::Left))),
            Some(Err(error)) => Some(Err(self.fail(UploadFault::of(&error)))),
            Some(Ok(frame)) => Some(self.accept(frame)),
        })
    }

    /// Ready once the upstream asks for the body, or has had its time to.
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.gate.as_ref().is_some_and(|gate| !gate.is_open(cx)) {
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(UNASKED)));
            ready!(timer.as_mut().poll(cx));
        }
        if let Some(gate) = self.gate.take() {
            gate.is_open.store(true, Ordering::Release);
        }
        Poll::Ready(())
    }

    fn accept(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, UploadFault> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(mut frame) => {
                if let Some(trailers) = frame.trailers_mut() {
                    clean_trailers(trailers);
                    self.progress.end(COMPLETE);
                }
                // They are few, and not worth a second form of what is kept.
                self.progress.keep(false);
                return Ok(frame);
            }
        };
        let total = self.progress.note(data.len());
        if self.limit.is_some_and(|limit| total > limit) {
            return Err(self.fail(UploadFault::TooLarge));
        }
        if self.body.as_ref().is_none_or(Body::is_end_stream) {
            self.progress.end(COMPLETE);
        }
        self.note_sent(&data);
        Ok(Frame::data(data))
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.as_ref().map(Body::size_hint).unwrap_or_default();
        if !self.again.is_empty() {
            let before = self.again.len() as u64;
            match hint.exact() {
                Some(rest) => hint.set_exact(before + rest),
                None => hint.set_lower(before + hint.lower()),
            }
        }
        hint
    }

    /// Keeps a copy: a piece may be a small part of a large buffer, which would then be kept too.
    fn note_sent(&mut self, data: &Bytes) {
        if !self.progress.keeps.load(Ordering::Relaxed) {
            return;
        }
        if self.sent.len() + data.len() > MOST_KEPT {
            self.sent = BytesMut::new();
            self.progress.keep(false);
        } else {
            self.sent.extend_from_slice(data);
        }
    }

    fn fail(&self, fault: UploadFault) -> UploadFault {
        self.progress.keep(false);
        self.progress.end(fault as u8);
        fault
    }

    /// Ready when no byte came for `idle`. The timer is armed once and looks at the last byte when it fires, so that a
    /// moving body costs no timer.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let idle = self.idle;
        let last = self.progress.last();
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(last + idle)));
        while timer.as_mut().poll(cx).is_ready() {
            if last + idle <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(last + idle);
        }
        Poll::Pending
    }
}

/// A try lets go of the body: it was sent, or the peer did not want it.
impl Drop for Upload {
    fn drop(&mut self) {
        if !self.progress.keeps.load(Ordering::Relaxed) {
            return;
        }
        self.sent.extend_from_slice(&self.again);
        let again = std::mem::take(&mut self.sent).freeze();
        let (body, version) = (self.body.take(), self.version);
        let kept = Kept { body, version, again, limit: self.limit, idle: self.idle };
        *self.progress.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        self.progress.has_kept.notify_one();
    }
}

/// Removes from trailers what belongs into heads only: framing, routing and credentials (RFC 9110 section 6.5.1).
pub fn clean_trailers(trailers: &mut HeaderMap) {
    const UNWANTED: [&str; 16] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "te",
        "trailer",
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "location",
        "content-encoding",
        "cdn-loop",
    ];
    for name in UNWANTED {
        trailers.remove(name);
    }
    let claims: Vec<HeaderName> =
        trailers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in claims {
        trailers.remove(name);
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = UploadFault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadFault>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Upload(upload) => upload.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Upload(upload) => upload.again.is_empty() && upload.body.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // With an exact length hyper's HTTP/2 client writes a Content-Length that nobody sent; `is_end_stream` says enough.
            Self::Empty => SizeHint::default(),
            Self::Upload(upload) => upload.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn trailers_carry_no_framing_routing_or_credentials() {
        let mut trailers = headers(&[
            ("content-length", "99"),
            ("transfer-encoding", "chunked"),
            ("host", "evil.test"),
            ("authorization", "x"),
            ("set-cookie", "a=b"),
            ("x-forwarded-for", "1"),
            ("x-sum", "42"),
            ("grpc-status", "0"),
        ]);

        clean_trailers(&mut trailers);

        assert_eq!(trailers, headers(&[("x-sum", "42"), ("grpc-status", "0")]));
    }
}

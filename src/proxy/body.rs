//! The bodies that we send to clients. The body of an upstream's response holds the connection and the exchange, so that
//! its end is the exchange's end: the connection goes back to its pool, the access line is written.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::connection::Offer;
use super::exchange::Exchange;
use super::grpc;
use super::timeouts::Timer;
use crate::config::Cluster;
use crate::telemetry::labels::Outcome;
use crate::upstream::Settled;
use crate::upstream::body::{Progress, clean_trailers, is_whole};
use crate::upstream::breaker::Verdict;
use crate::upstream::long_lived::{self, LONG};
use crate::upstream::pool::Lease;

/// What a client gets.
#[derive(Default)]
pub enum ResponseBody {
    /// Nothing.
    #[default]
    Empty,
    /// A line of ours.
    Text(Bytes),
    /// What an upstream sends.
    Passing(Box<Passing>),
}

/// A response on its way from an upstream to the client.
pub struct Passing {
    body: Incoming,
    /// Taken when the body has ended.
    open: Option<Open>,
}

/// What is given back at the end of the body.
struct Open {
    exchange: Box<Exchange>,
    lease: Lease,
    timer: Timer,
    upload: Option<Arc<Progress>>,
    reusable: bool,
    settled: Settled,
    own_deadline: bool,
    lasting: Lasting,
    /// On HTTP/2 only: elsewhere the stream itself shows a client that takes nothing.
    offer: Option<Offer>,
    last: Instant,
    idle: Duration,
}

/// Whether the response counts as a long-lived one, which costs nothing before it does.
enum Lasting {
    /// Not before this moment.
    Not { before: Instant, cluster: Cluster },
    /// It does, and may be sent home.
    Known(long_lived::Guard),
}

/// Why a body ended before its end. The client's connection is cut, so that nobody takes the response for complete.
#[derive(Debug)]
pub enum BodyError {
    /// The upstream's connection ended or made no sense.
    Truncated(hyper::Error),
    /// The upstream reset the stream before its end, and called that no error.
    Left,
    /// The upstream sent nothing for `timeouts.idle`.
    Stalled,
    /// It has lasted long enough: the process drains, or an operator wants its cluster to be left.
    SentHome,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated(error) => write!(f, "the response ended early: {error}"),
            Self::Left => f.write_str("the response ended early: its stream was reset with NO_ERROR"),
            Self::Stalled => f.write_str("the response stalled"),
            Self::SentHome => f.write_str("the response was sent home"),
        }
    }
}

impl std::error::Error for BodyError {}

/// A response whose head has been judged.
pub struct Answer {
    /// The response.
    pub body: Incoming,
    /// The connection that it comes on.
    pub lease: Lease,
    /// The side that sends it.
    pub cluster: Cluster,
    /// The request's body, which must have ended before the connection serves again.
    pub upload: Option<Arc<Progress>>,
    /// Whether the response's framing lets the connection serve again.
    pub reusable: bool,
    /// Hears of a body that ends early.
    pub settled: Settled,
    /// A deadline that is missed is the client's own.
    pub own_deadline: bool,
    /// When the head came.
    pub at: std::time::Instant,
}

impl ResponseBody {
    /// The body of an upstream's response; `idle` is the longest pause in it.
    pub fn passing(answer: Answer, idle: Duration, exchange: Box<Exchange>, timer: Timer) -> Self {
        let Answer { body, lease, cluster, upload, reusable, settled, own_deadline, at } = answer;
        let is_http2 = exchange.version() == Version::HTTP_2;
        let offer = is_http2.then(|| Offer::new(exchange.busy().flow().clone()));
        let last = Instant::from(at);
        let lasting = Lasting::Not { before: last + LONG, cluster };
        let open = Open { exchange, lease, timer, upload, reusable, settled, own_deadline, lasting, offer, last, idle };
        let mut passing = Passing { body, open: Some(open) };
        if passing.body.is_end_stream() {
            passing.complete();
        }
        Self::Passing(Box::new(passing))
    }
}

impl Passing {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(open) = &mut self.open
            && open.poll_sent_home(cx).is_ready()
        {
            return Poll::Ready(Some(Err(self.cut(BodyError::SentHome))));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(offer) = self.open.as_mut().and_then(|open| open.offer.as_mut()) {
            offer.set(false);
            offer.set(frame.is_ready());
        }
        match frame {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    self.judge(trailers);
                    clean_trailers(trailers);
                }
                if let (Some(open), Some(data)) = (&mut self.open, frame.data_ref()) {
                    open.exchange.sent(data.len() as u64);
                }
                if self.body.is_end_stream() {
                    self.complete();
                } else if let Some(open) = &mut self.open {
                    open.last = Instant::now();
                    open.note_age(open.last);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.cut(BodyError::Truncated(error))))),
            Poll::Ready(None) => {
                if self.open.as_ref().is_some_and(|open| !is_whole(&self.body, open.lease.version())) {
                    return Poll::Ready(Some(Err(self.cut(BodyError::Left))));
                }
                self.complete();
                Poll::Ready(None)
            }
            Poll::Pending => match self.open.as_mut().and_then(|open| open.poll_end(cx)) {
                Some(error) => Poll::Ready(Some(Err(self.cut(error)))),
                None => Poll::Pending,
            },
        }
    }

    /// Where the verdict comes with the trailers, these are they.
    fn judge(&mut self, trailers: &HeaderMap) {
        let Some(open) = &mut self.open else { return };
        if let Some(verdict) = grpc::verdict(trailers, open.own_deadline) {
            open.settled.ended(verdict, std::time::Instant::now());
        }
    }

    /// The whole response has come: the connection may serve the next request, the exchange is over.
    fn complete(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        let now = std::time::Instant::now();
        let sent_all = open.upload.as_ref().is_none_or(|upload| upload.is_complete());
        if open.reusable && sent_all {
            open.lease.recycle(now);
        }
        // A verdict that was to come with the trailers has come; where none did, that is a failure.
        open.settled.ended(Verdict::Failure, now);
        open.exchange.ended(now);
    }

    /// A head that promised more than came is one more failure of the cluster, unless it was we who ended it.
    fn cut(&mut self, error: BodyError) -> BodyError {
        if let Some(Open { exchange, settled, lease, .. }) = self.open.take() {
            note_cut(&exchange, lease.cluster(), &error);
            // On HTTP/2 the stream is reset, and the connection's other streams go on.
            if exchange.version() != Version::HTTP_2 {
                exchange.busy().flow().break_off();
            }
            match error {
                BodyError::Truncated(_) | BodyError::Left | BodyError::Stalled => settled.failed_after(),
                BodyError::SentHome => {}
            }
        }
        error
    }
}

/// Counts a response that ended early by its cause, and says so: its access line shows the status that was sent.
fn note_cut(exchange: &Exchange, cluster: Cluster, error: &BodyError) {
    let Some(service) = exchange.service() else { return };
    let outcome = match error {
        BodyError::Truncated(_) | BodyError::Left => Outcome::Reset,
        BodyError::Stalled => Outcome::Timeout,
        BodyError::SentHome => Outcome::Aborted,
    };
    service.meters.cut(cluster, outcome);
    let id = exchange.request_id().map(|id| String::from_utf8_lossy(id.as_bytes()));
    let request_id = id.as_deref();
    tracing::info!(service = service.name(), cluster = cluster.as_str(), request_id, %error, "response cut");
}

impl Open {
    /// Past its first minute the response counts as a long-lived one.
    fn note_age(&mut self, now: Instant) {
        if let Lasting::Not { before, cluster } = self.lasting
            && now >= before
            && let Some(service) = self.exchange.service()
        {
            let began = before - LONG;
            self.lasting = Lasting::Known(service.upstream(cluster).long_lived.enter(began));
        }
    }

    /// Ready when the response was sent home and its moment has come.
    fn poll_sent_home(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Lasting::Known(guard) = &self.lasting else { return Poll::Pending };
        let Some(at) = guard.ends_at(cx) else { return Poll::Pending };
        self.timer.poll_until(cx, at)
    }

    /// While nothing comes: why the response ends now, if it does. The one timer serves every limit.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<BodyError> {
        let stalled_at = self.last + self.idle;
        if let Lasting::Not { before, .. } = self.lasting
            && before < stalled_at
            && self.timer.poll_until(cx, before).is_ready()
        {
            self.note_age(before);
        }
        if self.poll_sent_home(cx).is_ready() {
            return Some(BodyError::SentHome);
        }
        self.timer.poll_until(cx, stalled_at).is_ready().then_some(BodyError::Stalled)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => {
                let text = std::mem::take(text);
                *this = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(text))))
            }
            Self::Passing(passing) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(_) => false,
            Self::Passing(passing) => passing.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::Passing(passing) => passing.body.size_hint(),
        }
    }
}

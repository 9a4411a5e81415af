//! Why a try gave no response, and why we refuse a request ourselves: whom to blame, whether anything was sent, what the
//! client sees.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::Duration;

use http::StatusCode;

use crate::config::FailureKind;
use crate::telemetry::labels::{FallbackCause, Outcome, Phase, RejectCause};
use crate::tls::verify::{reason, refuses_certificate};
use crate::upstream::body::UploadFault;
use crate::upstream::connect::{ConnectCause, ConnectError};
use crate::upstream::pool::SendError;
use crate::upstream::probe::cause;

/// Why a try gave no response that may be passed on.
#[derive(Debug)]
pub enum Failure {
    /// No connection: nothing was sent.
    Connect(ConnectError),
    /// A waiting connection had died before the request was sent.
    Stale(hyper::Error),
    /// The connection, not the cluster, was the trouble: it had served before and may have been closed while we wrote, or the
    /// head has more fields than this connection takes.
    Raced(hyper::Error),
    /// The peer says that it did nothing with this stream (RFC 9113, 8.7).
    Unprocessed(hyper::Error),
    /// The connection ended without a response head, or what came makes no sense.
    Reset(hyper::Error),
    /// The upstream refused our certificate, which TLS 1.3 tells when the handshake is over for us.
    Identity(hyper::Error),
    /// The response head is over the limit.
    Head(hyper::Error),
    /// A protocol switch that nobody asked for.
    Unasked,
    /// No response head in time.
    Timeout(Duration),
    /// A response that counts as a failure.
    Status(StatusCode),
    /// The client's body ended early; the client is to blame.
    Upload(UploadFault),
    /// `max_waiting`.
    Full,
    /// The breaker opened, or another request took the probe's place, after the decision.
    Open,
}

impl Failure {
    /// Judges an error of [`crate::upstream::pool::Lease::send`].
    /// `may_have_ended`: the peer may have closed the connection before it saw the request.
    pub fn of_send(error: SendError, may_have_ended: bool, upload: Option<UploadFault>) -> (Self, Option<Unsent>) {
        let SendError { error, unsent } = error;
        if let Some(fault) = upload {
            return (Self::Upload(fault), None);
        }
        let failure = if unsent.is_some() {
            Self::Stale(error)
        } else if error.is_parse_too_large() {
            Self::Head(error)
        } else if error.is_parse() {
            Self::Reset(error)
        } else if io_error(&error).is_some_and(refuses_certificate) {
            Self::Identity(error)
        } else if is_unprocessed(&error) {
            Self::Unprocessed(error)
        } else if may_have_ended && !is_word_of_peer(&error) {
            Self::Raced(error)
        } else {
            Self::Reset(error)
        };
        (failure, unsent)
    }

    /// Nothing of the request reached the upstream: any method may be tried again.
    pub fn is_unsent(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Stale(_) | Self::Unprocessed(_) | Self::Full | Self::Open)
    }

    /// A dead idle connection says nothing about the upstream; a client that left and a shortage of ours do not either.
    pub fn blames_upstream(&self) -> bool {
        match self {
            Self::Stale(_) | Self::Raced(_) | Self::Unprocessed(_) | Self::Upload(_) | Self::Full | Self::Open => false,
            Self::Connect(error) => !error.cause.is_own_shortage(),
            _ => true,
        }
    }

    /// The step of a connection that the backend let fail. What is wrong with names is said where they are looked up.
    pub fn step(&self) -> Option<Phase> {
        match self {
            Self::Connect(error) => match error.cause {
                ConnectCause::Tcp(_) => Some(Phase::Connect),
                ConnectCause::Tls(_) => Some(Phase::Tls),
                ConnectCause::TimedOut(phase) => Some(phase),
                ConnectCause::Resolve(_) | ConnectCause::Shared | ConnectCause::ServerName => None,
            },
            Self::Identity(_) => Some(Phase::Tls),
            _ => None,
        }
    }

    /// Another connection to the same cluster is the natural answer.
    pub fn is_connection_race(&self) -> bool {
        matches!(self, Self::Stale(_) | Self::Raced(_) | Self::Unprocessed(_))
    }

    /// The word for `retry.when` and `fallback.failures`.
    pub fn kind(&self) -> Option<FailureKind> {
        Some(match self {
            Self::Connect(error) => match error.cause {
                ConnectCause::Tls(_) | ConnectCause::TimedOut(Phase::Tls) | ConnectCause::ServerName => {
                    FailureKind::Tls
                }
                _ => FailureKind::Connect,
            },
            Self::Identity(_) => FailureKind::Tls,
            Self::Stale(_) | Self::Raced(_) | Self::Unprocessed(_) | Self::Reset(_) | Self::Head(_) | Self::Unasked => {
                FailureKind::Reset
            }
            Self::Timeout(_) => FailureKind::Timeout,
            Self::Status(status) => FailureKind::Status(status.as_u16()),
            Self::Upload(_) | Self::Full | Self::Open => return None,
        })
    }

    /// The word in `upstream_responses_total`.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Connect(error) => match error.cause {
                ConnectCause::Tls(_) | ConnectCause::TimedOut(Phase::Tls) | ConnectCause::ServerName => Outcome::Tls,
                _ => Outcome::Connect,
            },
            Self::Identity(_) => Outcome::Tls,
            Self::Stale(_) | Self::Raced(_) | Self::Unprocessed(_) | Self::Reset(_) | Self::Unasked => Outcome::Reset,
            Self::Head(_) => Outcome::Header,
            Self::Timeout(_) => Outcome::Timeout,
            Self::Status(status) => Outcome::of_status(*status),
            Self::Upload(_) | Self::Full | Self::Open => Outcome::Aborted,
        }
    }

    /// The word in `fallbacks_total`, for a failed try on new that old answers.
    pub fn fallback_cause(&self) -> FallbackCause {
        match self {
            Self::Connect(error) => match error.cause {
                ConnectCause::Tls(_) | ConnectCause::TimedOut(Phase::Tls) | ConnectCause::ServerName => {
                    FallbackCause::Tls
                }
                _ => FallbackCause::Connect,
            },
            Self::Identity(_) => FallbackCause::Tls,
            Self::Stale(_)
            | Self::Raced(_)
            | Self::Unprocessed(_)
            | Self::Reset(_)
            | Self::Unasked
            | Self::Upload(_) => FallbackCause::Reset,
            Self::Head(_) => FallbackCause::Header,
            Self::Timeout(_) => FallbackCause::Timeout,
            Self::Full => FallbackCause::Full,
            Self::Open => FallbackCause::Breaker,
            Self::Status(status) => match status.as_u16() {
                502 => FallbackCause::Status502,
                503 => FallbackCause::Status503,
                504 => FallbackCause::Status504,
                _ => FallbackCause::Status500,
            },
        }
    }

    /// The status that the client sees when nothing better can be had.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Connect(_)
            | Self::Stale(_)
            | Self::Raced(_)
            | Self::Unprocessed(_)
            | Self::Reset(_)
            | Self::Identity(_)
            | Self::Head(_)
            | Self::Unasked => StatusCode::BAD_GATEWAY,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Status(status) => *status,
            Self::Upload(fault) => Refusal::of_upload(*fault).map_or(StatusCode::BAD_REQUEST, Refusal::status),
            Self::Full | Self::Open => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn io_error(error: &hyper::Error) -> Option<&io::Error> {
    let source = error.source()?;
    source.downcast_ref().or_else(|| source.downcast_ref::<h2::Error>()?.get_io())
}

/// See [`Failure::Unprocessed`].
fn is_unprocessed(error: &hyper::Error) -> bool {
    let Some(error) = h2_error(error).filter(|error| error.is_remote()) else { return false };
    let reason = error.reason();
    reason == Some(h2::Reason::REFUSED_STREAM) || error.is_go_away() && reason == Some(h2::Reason::NO_ERROR)
}

/// The peer ended the stream or the connection with a word of its own, so it was there.
fn is_word_of_peer(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(h2::Error::is_remote)
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}

/// The request, handed back by the connection that did not send it.
pub type Unsent = http::Request<crate::upstream::body::OutBody>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "{}", error.cause),
            Self::Stale(error) | Self::Raced(error) => write!(f, "the connection could not be used: {error}"),
            Self::Unprocessed(error) => write!(f, "the upstream took no more requests: {error}"),
            Self::Reset(error) => write!(f, "no response: {}", cause(error)),
            Self::Identity(error) => match io_error(error) {
                Some(error) => write!(f, "TLS: {}", reason(error)),
                None => write!(f, "TLS: {error}"),
            },
            Self::Head(error) => write!(f, "the response head is too large: {error}"),
            Self::Unasked => f.write_str("the upstream switched protocols unasked"),
            Self::Timeout(limit) => write!(f, "no response head after {limit:?}"),
            Self::Status(status) => write!(f, "the upstream answered {status}"),
            Self::Upload(fault) => write!(f, "{fault}"),
            Self::Full => f.write_str("too many requests wait for the upstream"),
            Self::Open => f.write_str("the breaker is open"),
        }
    }
}

/// Why we answer a request ourselves, without an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No valid request.
    Malformed(&'static str),
    /// The framing of its body is broken.
    BrokenBody,
    /// A method that we never serve.
    Method,
    /// No service claims the host.
    UnknownHost,
    /// The certificate of the connection does not cover the host.
    Misdirected,
    /// The request target is too long.
    Uri,
    /// The head is too large.
    Header,
    /// The body is too large.
    Body,
    /// The client stopped sending.
    Slow,
    /// `limits.max_in_flight`.
    InFlight,
    /// `max_waiting` of old.
    Full,
    /// Pinned to new, and new is unavailable.
    Pinned,
    /// The third pass through the same service.
    Loop,
}

impl Refusal {
    /// A client whose body ended before its end; `None` when the client left and nobody is there to be told.
    pub fn of_upload(fault: UploadFault) -> Option<Self> {
        match fault {
            UploadFault::TooLarge => Some(Self::Body),
            UploadFault::Stalled => Some(Self::Slow),
            UploadFault::Broken => Some(Self::BrokenBody),
            UploadFault::Left => None,
        }
    }

    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::BrokenBody => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnknownHost => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Uri => StatusCode::URI_TOO_LONG,
            Self::Header => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Body => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::InFlight | Self::Full | Self::Pinned => StatusCode::SERVICE_UNAVAILABLE,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }

    /// The word in `rejected_total`.
    pub fn cause(self) -> RejectCause {
        match self {
            Self::Malformed(_) | Self::BrokenBody | Self::Method => RejectCause::Malformed,
            Self::UnknownHost | Self::Misdirected => RejectCause::Host,
            Self::Uri => RejectCause::Uri,
            Self::Header => RejectCause::Header,
            Self::Body => RejectCause::Body,
            Self::Slow => RejectCause::Timeout,
            Self::InFlight => RejectCause::InFlight,
            Self::Full => RejectCause::Full,
            Self::Pinned => RejectCause::Pinned,
            Self::Loop => RejectCause::Loop,
        }
    }

    /// What the client is told.
    pub fn text(self) -> &'static str {
        match self {
            Self::Malformed(what) => what,
            Self::BrokenBody => "the request body is malformed",
            Self::Method => "this method is not served",
            Self::UnknownHost => "no service has this host",
            Self::Misdirected => "the certificate of this connection is not for this host",
            Self::Uri => "the request target is too long",
            Self::Header => "the request head is too large",
            Self::Body => "the request body is too large",
            Self::Slow => "the request body did not come in time",
            Self::InFlight => "too many requests are waiting",
            Self::Full => "too many requests wait for the upstream",
            Self::Pinned => "the new cluster is unavailable",
            Self::Loop => "the request has passed here before",
        }
    }

    /// The connection cannot go on after this.
    pub fn ends_connection(self) -> bool {
        matches!(self, Self::Malformed(_) | Self::BrokenBody | Self::Header | Self::Body | Self::Slow)
    }
}

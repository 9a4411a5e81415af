//! Answers of the admin port. None may be kept by a cache, taken for another type, or shown inside of another page.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use serde_json::json;

use super::events::Stream;
use crate::telemetry::Scrape;

/// The type of the Prometheus text format.
const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// Made while it is sent.
    Pieces(Box<Scrape>),
    /// Told as it happens.
    Events(Stream),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) => bytes.take(),
            Self::Pieces(scrape) => scrape.next(),
            Self::Events(stream) => ready!(stream.poll_next(context)),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Pieces(_) | Self::Events(_) => SizeHint::default(),
        }
    }
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(value).expect("our reports have names as keys and fail nowhere");
    text.push(b'\n');
    with(status, JSON, Body::Whole(Some(text.into())))
}

/// An error in JSON.
pub(super) fn error(status: StatusCode, text: &str) -> Response<Body> {
    json(status, &json!({"error": text}))
}

/// The answer to a method that the path does not have.
pub(super) fn not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &format!("only {allowed} here"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Metrics, made while they are sent.
pub(super) fn scrape(scrape: Scrape) -> Response<Body> {
    with(StatusCode::OK, EXPOSITION, Body::Pieces(Box::new(scrape)))
}

/// Events from now on; without a stream, their head alone.
pub(super) fn events(stream: Option<Stream>) -> Response<Body> {
    with(StatusCode::OK, EVENTS, stream.map_or(Body::Whole(None), Body::Events))
}

/// A document whose parts the browser checks against this policy.
pub(super) fn page(document: &'static str, policy: &HeaderValue) -> Response<Body> {
    let mut response = with(StatusCode::OK, HTML, Body::Whole(Some(Bytes::from_static(document.as_bytes()))));
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, policy.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn with(status: StatusCode, content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}

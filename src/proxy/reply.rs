//! The answers that we make ourselves: refusals, failures and redirects. One line of plain text with the request id; what
//! exactly went wrong upstream is told to trusted clients only.

use std::fmt::Write;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};

use super::body::ResponseBody;
use super::exchange::Exchange;
use super::failure::{Failure, Refusal};
use super::grpc;
use super::sender::RequestId;
use crate::telemetry::labels::{Reason, RejectCause, Target};

/// The longest text, in bytes.
const LONGEST: usize = 200;

/// An answer to a request that is not forwarded. `is_grpc`: the client speaks gRPC.
pub fn refused(mut exchange: Box<Exchange>, refusal: Refusal, is_grpc: bool) -> Response<ResponseBody> {
    // The HTTP library has ended such a stream of HTTP/2, and the connection counted it, as it does where no request came of it.
    let was_counted = refusal == Refusal::BrokenBody && exchange.version() == Version::HTTP_2;
    if !was_counted {
        exchange.rejected(refusal.cause());
    }
    match refusal.cause() {
        RejectCause::Loop => exchange.because(Reason::Loop),
        RejectCause::Full => exchange.because(Reason::Full),
        _ => {}
    }
    let mut response = answer(exchange, refusal.status(), refusal.text(), is_grpc);
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        // RFC 9110, 15.5.6, demands it. The clusters may serve more of them, or fewer.
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    if refusal.ends_connection() {
        close(&mut response);
    }
    response
}

/// An answer to a request for which no upstream had one. `detail` tells the client what happened.
pub fn failed(exchange: Box<Exchange>, failure: &Failure, detail: bool, is_grpc: bool) -> Response<ResponseBody> {
    if matches!(failure, Failure::Full) {
        return refused(exchange, Refusal::Full, is_grpc);
    }
    let status = failure.status();
    if detail {
        return answer(exchange, status, &failure.to_string(), is_grpc);
    }
    let text = match status {
        StatusCode::GATEWAY_TIMEOUT => "the upstream did not answer in time",
        _ => "the upstream could not answer",
    };
    answer(exchange, status, text, is_grpc)
}

/// Answers an OPTIONS request that may not be forwarded (RFC 9110, 7.6.2): we are its last stop, and fine.
pub fn last_stop(exchange: Box<Exchange>) -> Response<ResponseBody> {
    answer(exchange, StatusCode::OK, "the request may go no further", false)
}

/// Sends the client to the new host.
pub fn redirect(mut exchange: Box<Exchange>, code: u16, location: HeaderValue) -> Response<ResponseBody> {
    exchange.because(Reason::Redirect);
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::TEMPORARY_REDIRECT);
    let mut response = answer(exchange, status, "this host has moved", false);
    response.headers_mut().insert(LOCATION, location);
    response
}

fn answer(mut exchange: Box<Exchange>, status: StatusCode, cause: &str, is_grpc: bool) -> Response<ResponseBody> {
    exchange.answered(Target::None, status, Instant::now());
    let id = exchange.request_id().cloned();
    let text = text(status, cause, id.as_ref());
    let mut response = Response::new(ResponseBody::Empty);
    let headers = response.headers_mut();
    if let Some(id) = id {
        let name = exchange.service().map_or(HeaderName::from_static("x-request-id"), |s| s.headers.request_id.clone());
        headers.insert(name, id.value().clone());
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if is_grpc {
        say_in_grpc(headers, status, &text);
        return response;
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    *response.status_mut() = status;
    if exchange.method() != Method::HEAD {
        exchange.sent(text.len() as u64);
        *response.body_mut() = ResponseBody::Text(Bytes::from(text));
    }
    response
}

fn text(status: StatusCode, cause: &str, id: Option<&RequestId>) -> String {
    let mut text = format!("{} {}: ", status.as_str(), status.canonical_reason().unwrap_or("Error"));
    let tail = id.map_or_else(|| "\n".to_owned(), |id| format!(" (request {})\n", id.as_str()));
    let room = LONGEST.saturating_sub(text.len() + tail.len());
    let mut cut = cause.len().min(room);
    while !cause.is_char_boundary(cut) {
        cut -= 1;
    }
    // A String takes whatever is written to it.
    let _ = write!(text, "{}{tail}", cause[..cut].replace(['\r', '\n'], " "));
    text
}

fn say_in_grpc(headers: &mut HeaderMap, status: StatusCode, text: &str) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(grpc::status(status)));
    if let Ok(message) = HeaderValue::from_str(text.trim_end()) {
        headers.insert("grpc-message", message);
    }
}

/// Ends the connection after this answer. HTTP/2 has no such field (RFC 9113, 8.2.2); hyper leaves it out there.
pub fn close<B>(response: &mut Response<B>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_short_line_with_the_request_id() {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", HeaderValue::from_static("7f3c"));
        let id = RequestId::without_service(&headers);

        let short = text(StatusCode::BAD_GATEWAY, "no\nanswer", Some(&id));
        let long = text(StatusCode::BAD_GATEWAY, &"é".repeat(300), Some(&id));

        assert_eq!(short, "502 Bad Gateway: no answer (request 7f3c)\n");
        assert!(long.len() <= LONGEST && long.ends_with("(request 7f3c)\n"));
    }
}

//! What is special about gRPC: its requests are known by their content type, and a failure is told in a head of status
//! 200 that ends the stream ("trailers only").

use http::{HeaderMap, StatusCode, header};

/// A gRPC exchange, by its content type.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The gRPC status that says what an HTTP status of ours says.
pub fn status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "13",
        404 => "12",
        408 | 504 => "4",
        413 | 414 | 431 => "8",
        _ => "14",
    }
}

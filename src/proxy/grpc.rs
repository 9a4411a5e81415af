//! What is special about gRPC: its requests are known by their content type, bring their own deadline, and are judged by
//! the `grpc-status` of their trailers; a failure is told in a head of status 200 that ends the stream ("trailers only").
//! See PROTOCOL-HTTP2.md of gRPC.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use crate::upstream::breaker::Verdict;

/// A gRPC exchange, by its content type. gRPC-Web has its trailers in the body and is ordinary HTTP for us.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    let rest = value.and_then(|value| value.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// The deadline that the client set: at most eight digits and a unit. What cannot be read is no deadline.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// What a `grpc-status` says of the cluster; `None` where there is none. UNAVAILABLE blames it, and so does
/// DEADLINE_EXCEEDED unless `own_deadline`: whoever asks for the impossible must not open the breaker for others.
pub fn verdict(fields: &HeaderMap, own_deadline: bool) -> Option<Verdict> {
    Some(match fields.get("grpc-status")?.as_bytes() {
        b"14" => Verdict::Failure,
        b"4" if !own_deadline => Verdict::Failure,
        _ => Verdict::Success,
    })
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

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn field(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn only_grpc_itself_is_grpc() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&field("content-type", value)), expected, "{value}");
        }
    }

    #[test]
    fn deadlines_have_digits_and_a_unit() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("30S", Some(Duration::from_secs(30))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789S", None),
            ("S", None),
            ("-1S", None),
            ("1.5S", None),
            ("10", None),
            ("", None),
        ] {
            assert_eq!(timeout(&field("grpc-timeout", value)), expected, "{value}");
        }
    }

    #[test]
    fn unavailable_blames_the_cluster_and_a_deadline_of_the_client_s_own_does_not() {
        for (status, own_deadline, expected) in [
            ("0", false, Verdict::Success),
            ("5", false, Verdict::Success),
            ("14", true, Verdict::Failure),
            ("4", false, Verdict::Failure),
            ("4", true, Verdict::Success),
        ] {
            assert_eq!(verdict(&field("grpc-status", status), own_deadline), Some(expected), "{status} {own_deadline}");
        }
        assert_eq!(verdict(&HeaderMap::new(), false), None);
    }
}

//! What an access line says and its two forms, nginx' and JSON. Pure: a line in, bytes out.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Version;
use jiff::Timestamp;

use super::labels::Cluster;
use super::text;

/// One try of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// Where it went.
    pub cluster: Cluster,
    /// The address, once there was one.
    pub address: Option<SocketAddr>,
    /// The status, when it gave an answer.
    pub status: Option<u16>,
    /// How long it took.
    pub duration: Duration,
}

/// What the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestText<'a> {
    /// A parsed head.
    Parsed {
        /// The method.
        method: &'a str,
        /// The target as sent.
        path_and_query: &'a str,
        /// The protocol.
        version: Version,
    },
    /// No head was read: `-`.
    Unparsed,
}

/// What one access line says. Empty texts are written as `-`, in JSON as null.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// What it asked for.
    pub request: RequestText<'a>,
    /// The status that it got; 0 for connections that are no HTTP to us.
    pub status: u16,
    /// Body bytes that it got.
    pub bytes: u64,
    /// All tries, in their order.
    pub tries: &'a [Try],
    /// From the first byte of the request to the last one of the answer.
    pub request_time: Duration,
    /// The service, or empty.
    pub service: &'a str,
    /// The reason, or empty.
    pub reason: &'a str,
    /// The bucket in basis points.
    pub bucket: Option<u16>,
    /// The request id.
    pub request_id: &'a [u8],
    /// Host as sent.
    pub host: &'a [u8],
    /// User-Agent as sent.
    pub user_agent: &'a [u8],
}

impl Line<'_> {
    fn backend(&self) -> Option<&'static str> {
        self.tries.last().map(|last| match last.cluster {
            Cluster::Old => "old_backend",
            Cluster::New => "new_backend",
        })
    }
}

/// The time of a line, in seconds since 1970.
pub fn time(second: u64, nginx: bool) -> String {
    let time = i64::try_from(second).ok().and_then(|second| Timestamp::from_second(second).ok()).unwrap_or_default();
    if nginx { text::nginx_time(time) } else { text::rfc3339_time(time) }
}

/// Writes a line as nginx' combined format with our fields behind it.
pub fn push_nginx(out: &mut Vec<u8>, time: &str, line: &Line<'_>) {
    text::push_ip(out, line.client);
    out.extend_from_slice(b" - - [");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"] \"");
    match line.request {
        RequestText::Parsed { method, path_and_query, version } => {
            text::push_escaped(out, method.as_bytes());
            out.push(b' ');
            text::push_escaped(out, path_and_query.as_bytes());
            out.push(b' ');
            out.extend_from_slice(protocol(version).as_bytes());
        }
        RequestText::Unparsed => out.push(b'-'),
    }
    out.extend_from_slice(b"\" ");
    push_status(out, line.status);
    out.push(b' ');
    text::push_number(out, line.bytes);
    push_nginx_upstream(out, line);
    push_quoted(out, b" request_id=\"", line.request_id);
    push_quoted(out, b" host=\"", line.host);
    push_quoted(out, b" user_agent=\"", line.user_agent);
    out.push(b'\n');
}

fn push_nginx_upstream(out: &mut Vec<u8>, line: &Line<'_>) {
    out.extend_from_slice(b" backend=\"");
    out.extend_from_slice(line.backend().unwrap_or("-").as_bytes());
    out.push(b'"');
    out.extend_from_slice(b" upstream_response_time=");
    push_list(out, line.tries, |out, one| text::push_seconds(out, one.duration));
    out.extend_from_slice(b" request_time=");
    text::push_seconds(out, line.request_time);
    push_quoted(out, b" service=\"", line.service.as_bytes());
    push_quoted(out, b" reason=\"", line.reason.as_bytes());
    out.extend_from_slice(b" bucket=");
    match line.bucket {
        Some(bucket) => text::push_hundredths(out, bucket),
        None => out.push(b'-'),
    }
    // Addresses hold colons, so nginx' habit of quoting only lists would read badly here.
    out.extend_from_slice(b" upstream_addr=\"");
    push_joined(out, line.tries, |out, one| match one.address {
        Some(address) => text::push_socket_address(out, address),
        None => out.push(b'-'),
    });
    out.extend_from_slice(b"\" upstream_status=");
    push_list(out, line.tries, |out, one| match one.status {
        Some(status) => push_status(out, status),
        None => out.push(b'-'),
    });
    out.extend_from_slice(b" tries=");
    text::push_number(out, line.tries.len() as u64);
}

fn push_quoted(out: &mut Vec<u8>, opening: &[u8], value: &[u8]) {
    out.extend_from_slice(opening);
    text::push_escaped(out, if value.is_empty() { b"-" } else { value });
    out.push(b'"');
}

/// Values of several tries are quoted, as nginx does.
fn push_list(out: &mut Vec<u8>, tries: &[Try], push: impl Fn(&mut Vec<u8>, &Try)) {
    if let [_, _, ..] = tries {
        out.push(b'"');
        push_joined(out, tries, push);
        out.push(b'"');
    } else {
        push_joined(out, tries, push);
    }
}

fn push_joined(out: &mut Vec<u8>, tries: &[Try], push: impl Fn(&mut Vec<u8>, &Try)) {
    if tries.is_empty() {
        out.push(b'-');
    }
    for (index, one) in tries.iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        push(out, one);
    }
}

fn push_status(out: &mut Vec<u8>, status: u16) {
    let digit = |number: u16| b'0' + (number % 10) as u8;
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status)]);
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// Writes a line as one JSON object.
pub fn push_json(out: &mut Vec<u8>, time: &str, line: &Line<'_>) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\",\"remote_addr\":\"");
    text::push_ip(out, line.client);
    out.push(b'"');
    let (method, path, version) = match line.request {
        RequestText::Parsed { method, path_and_query, version } => (method, path_and_query, protocol(version)),
        RequestText::Unparsed => ("", "", ""),
    };
    push_member(out, b",\"method\":", method.as_bytes());
    push_member(out, b",\"path\":", path.as_bytes());
    push_member(out, b",\"protocol\":", version.as_bytes());
    out.extend_from_slice(b",\"status\":");
    text::push_number(out, u64::from(line.status));
    out.extend_from_slice(b",\"bytes\":");
    text::push_number(out, line.bytes);
    push_member(out, b",\"backend\":", line.backend().unwrap_or_default().as_bytes());
    push_array(out, b",\"upstream_response_time\":", line.tries, |out, one| text::push_seconds(out, one.duration));
    out.extend_from_slice(b",\"request_time\":");
    text::push_seconds(out, line.request_time);
    push_member(out, b",\"service\":", line.service.as_bytes());
    push_member(out, b",\"reason\":", line.reason.as_bytes());
    out.extend_from_slice(b",\"bucket\":");
    match line.bucket {
        Some(bucket) => text::push_hundredths(out, bucket),
        None => out.extend_from_slice(b"null"),
    }
    push_array(out, b",\"upstream_addr\":", line.tries, |out, one| match one.address {
        Some(address) => {
            out.push(b'"');
            text::push_socket_address(out, address);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    });
    push_array(out, b",\"upstream_status\":", line.tries, |out, one| match one.status {
        Some(status) => text::push_number(out, u64::from(status)),
        None => out.extend_from_slice(b"null"),
    });
    out.extend_from_slice(b",\"tries\":");
    text::push_number(out, line.tries.len() as u64);
    push_member(out, b",\"request_id\":", line.request_id);
    push_member(out, b",\"host\":", line.host);
    push_member(out, b",\"user_agent\":", line.user_agent);
    out.extend_from_slice(b"}\n");
}

fn push_member(out: &mut Vec<u8>, opening: &[u8], value: &[u8]) {
    out.extend_from_slice(opening);
    match value {
        b"" | b"-" => out.extend_from_slice(b"null"),
        value => text::push_json(out, value),
    }
}

/// Several tries are an array, one is its value, none is null.
fn push_array(out: &mut Vec<u8>, opening: &[u8], tries: &[Try], push: impl Fn(&mut Vec<u8>, &Try)) {
    out.extend_from_slice(opening);
    match tries {
        [] => out.extend_from_slice(b"null"),
        [one] => push(out, one),
        [first, others @ ..] => {
            out.push(b'[');
            push(out, first);
            for one in others {
                out.push(b',');
                push(out, one);
            }
            out.push(b']');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "01/Jan/2024:12:00:00 +0000";

    fn attempt(cluster: Cluster, address: &str, status: Option<u16>, millis: u64) -> Try {
        Try { cluster, address: address.parse().ok(), status, duration: Duration::from_millis(millis) }
    }

    fn line(tries: &[Try]) -> Line<'_> {
        Line {
            client: "192.168.1.1".parse().unwrap(),
            request: RequestText::Parsed { method: "GET", path_and_query: "/api/test", version: Version::HTTP_11 },
            status: 200,
            bytes: 1234,
            tries,
            request_time: Duration::from_millis(125),
            service: "api-name01",
            reason: "user",
            bucket: Some(1834),
            request_id: b"7f3c",
            host: b"api-name01.old.example",
            user_agent: b"curl/8.5",
        }
    }

    fn nginx(line: &Line<'_>) -> String {
        let mut out = Vec::new();
        push_nginx(&mut out, TIME, line);
        String::from_utf8(out).unwrap()
    }

    fn json(line: &Line<'_>) -> serde_json::Value {
        let mut out = Vec::new();
        push_json(&mut out, "2024-01-01T12:00:00Z", line);
        assert_eq!(out.pop(), Some(b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn the_nginx_form_is_the_one_of_the_contract() {
        let tries = [attempt(Cluster::New, "203.0.113.10:443", Some(200), 123)];
        assert_eq!(
            nginx(&line(&tries)),
            "192.168.1.1 - - [01/Jan/2024:12:00:00 +0000] \"GET /api/test HTTP/1.1\" 200 1234 backend=\"new_backend\" \
             upstream_response_time=0.123 request_time=0.125 service=\"api-name01\" reason=\"user\" bucket=18.34 \
             upstream_addr=\"203.0.113.10:443\" upstream_status=200 tries=1 request_id=\"7f3c\" \
             host=\"api-name01.old.example\" user_agent=\"curl/8.5\"\n"
        );
    }

    #[test]
    fn values_of_several_tries_are_quoted_lists() {
        let tries = [
            attempt(Cluster::New, "203.0.113.10:443", Some(503), 2),
            attempt(Cluster::New, "", None, 0),
            attempt(Cluster::Old, "[2001:db8::1]:80", Some(200), 123),
        ];
        let text = nginx(&line(&tries));
        for part in [
            " backend=\"old_backend\" ",
            " upstream_response_time=\"0.002, 0.000, 0.123\" ",
            " upstream_addr=\"203.0.113.10:443, -, [2001:db8::1]:80\" ",
            " upstream_status=\"503, -, 200\" ",
            " tries=3 ",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn one_try_without_an_answer_is_a_dash_in_its_place() {
        let text = nginx(&line(&[attempt(Cluster::New, "203.0.113.10:443", None, 3000)]));
        assert!(text.contains("upstream_response_time=3.000 "), "{text}");
        assert!(text.contains("upstream_addr=\"203.0.113.10:443\" upstream_status=- tries=1"), "{text}");
    }

    #[test]
    fn an_answer_of_our_own_has_dashes() {
        let own = Line {
            request: RequestText::Unparsed,
            status: 400,
            bytes: 0,
            request_time: Duration::ZERO,
            service: "",
            reason: "",
            bucket: None,
            request_id: b"",
            host: b"",
            user_agent: b"",
            ..line(&[])
        };
        assert_eq!(
            nginx(&own),
            "192.168.1.1 - - [01/Jan/2024:12:00:00 +0000] \"-\" 400 0 backend=\"-\" upstream_response_time=- \
             request_time=0.000 service=\"-\" reason=\"-\" bucket=- upstream_addr=\"-\" upstream_status=- tries=0 \
             request_id=\"-\" host=\"-\" user_agent=\"-\"\n"
        );
        let passthrough = nginx(&Line { status: 0, ..own });
        assert!(passthrough.contains("\"-\" 000 0 "), "{passthrough}");
    }

    #[test]
    fn client_text_forges_neither_fields_nor_lines() {
        let hostile = Line {
            request: RequestText::Parsed { method: "GET", path_and_query: "/?q=\"\\", version: Version::HTTP_2 },
            user_agent: b"q\" status=200 \\ caf\xc3\xa9\t.\n\xff",
            ..line(&[])
        };
        let text = nginx(&hostile);
        assert!(text.contains(r#""GET /?q=\x22\x5C HTTP/2.0""#), "{text}");
        assert!(text.ends_with("user_agent=\"q\\x22 status=200 \\x5C caf\\xC3\\xA9\\x09.\\x0A\\xFF\"\n"), "{text}");
        let value = json(&hostile);
        assert_eq!(value["user_agent"], "q\" status=200 \\ caf\u{e9}\t.\n\u{fffd}");
        assert_eq!(value["path"], "/?q=\"\\");
    }

    #[test]
    fn the_json_form_has_numbers_arrays_and_nulls() {
        let one = [attempt(Cluster::New, "203.0.113.10:443", Some(200), 123)];
        assert_eq!(
            json(&line(&one)),
            serde_json::json!({
                "time": "2024-01-01T12:00:00Z", "remote_addr": "192.168.1.1", "method": "GET", "path": "/api/test",
                "protocol": "HTTP/1.1", "status": 200, "bytes": 1234, "backend": "new_backend",
                "upstream_response_time": 0.123, "request_time": 0.125, "service": "api-name01", "reason": "user",
                "bucket": 18.34, "upstream_addr": "203.0.113.10:443", "upstream_status": 200, "tries": 1,
                "request_id": "7f3c", "host": "api-name01.old.example", "user_agent": "curl/8.5",
            })
        );

        let two = [attempt(Cluster::New, "", None, 2), one[0]];
        let value = json(&line(&two));
        assert_eq!(value["upstream_response_time"], serde_json::json!([0.002, 0.123]));
        assert_eq!(value["upstream_addr"], serde_json::json!([null, "203.0.113.10:443"]));
        assert_eq!(value["upstream_status"], serde_json::json!([null, 200]));

        let own = json(&Line { request: RequestText::Unparsed, service: "-", bucket: None, ..line(&[]) });
        for member in ["method", "path", "protocol", "backend", "upstream_addr", "upstream_status", "service", "bucket"]
        {
            assert!(own[member].is_null(), "{member} in {own}");
        }
    }
}

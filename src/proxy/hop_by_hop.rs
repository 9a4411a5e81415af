//! Fields that concern one connection only (RFC 9110 section 7.6.1), and a single look over a head that tells which of
//! the fields we care about are there, so that absent ones cost nothing.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version, request};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Which of the fields we care about a head has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found(u32);

impl Found {
    /// Connection.
    pub const CONNECTION: Self = Self(1);
    /// Keep-Alive.
    pub const KEEP_ALIVE: Self = Self(1 << 1);
    /// Proxy-Connection.
    pub const PROXY_CONNECTION: Self = Self(1 << 2);
    /// Proxy-Authenticate.
    pub const PROXY_AUTHENTICATE: Self = Self(1 << 3);
    /// Proxy-Authorization.
    pub const PROXY_AUTHORIZATION: Self = Self(1 << 4);
    /// TE.
    pub const TE: Self = Self(1 << 5);
    /// Transfer-Encoding.
    pub const TRANSFER_ENCODING: Self = Self(1 << 6);
    /// Upgrade.
    pub const UPGRADE: Self = Self(1 << 7);
    /// HTTP2-Settings.
    pub const HTTP2_SETTINGS: Self = Self(1 << 8);
    /// Content-Length.
    pub const CONTENT_LENGTH: Self = Self(1 << 9);
    /// X-Forwarded-For.
    pub const FORWARDED_FOR: Self = Self(1 << 10);
    /// X-Forwarded-Proto.
    pub const FORWARDED_PROTO: Self = Self(1 << 11);
    /// X-Forwarded-Host.
    pub const FORWARDED_HOST: Self = Self(1 << 12);
    /// X-Forwarded-Port.
    pub const FORWARDED_PORT: Self = Self(1 << 13);
    /// X-Real-IP.
    pub const REAL_IP: Self = Self(1 << 14);
    /// Forwarded.
    pub const FORWARDED: Self = Self(1 << 15);
    /// CDN-Loop.
    pub const CDN_LOOP: Self = Self(1 << 16);
    /// Trailer.
    pub const TRAILER: Self = Self(1 << 17);
    /// Location.
    pub const LOCATION: Self = Self(1 << 18);
    /// Content-Location.
    pub const CONTENT_LOCATION: Self = Self(1 << 19);
    /// Refresh.
    pub const REFRESH: Self = Self(1 << 20);
    /// Set-Cookie.
    pub const SET_COOKIE: Self = Self(1 << 21);

    const HOP_BY_HOP: Self = Self(0b1_1111_1111);

    /// Looks over all fields once.
    pub fn look(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |found, name| Self(found.0 | Self::of(name.as_str()).0))
    }

    /// Whether any field of `which` is there.
    pub fn has(self, which: Self) -> bool {
        self.0 & which.0 != 0
    }

    /// The length decides first, so most names are ruled out by one jump.
    fn of(name: &str) -> Self {
        match (name.len(), name) {
            (2, "te") => Self::TE,
            (7, "upgrade") => Self::UPGRADE,
            (7, "trailer") => Self::TRAILER,
            (7, "refresh") => Self::REFRESH,
            (8, "cdn-loop") => Self::CDN_LOOP,
            (8, "location") => Self::LOCATION,
            (9, "x-real-ip") => Self::REAL_IP,
            (9, "forwarded") => Self::FORWARDED,
            (10, "connection") => Self::CONNECTION,
            (10, "keep-alive") => Self::KEEP_ALIVE,
            (10, "set-cookie") => Self::SET_COOKIE,
            (14, "content-length") => Self::CONTENT_LENGTH,
            (14, "http2-settings") => Self::HTTP2_SETTINGS,
            (15, "x-forwarded-for") => Self::FORWARDED_FOR,
            (16, "x-forwarded-host") => Self::FORWARDED_HOST,
            (16, "x-forwarded-port") => Self::FORWARDED_PORT,
            (16, "content-location") => Self::CONTENT_LOCATION,
            (16, "proxy-connection") => Self::PROXY_CONNECTION,
            (17, "x-forwarded-proto") => Self::FORWARDED_PROTO,
            (17, "transfer-encoding") => Self::TRANSFER_ENCODING,
            (18, "proxy-authenticate") => Self::PROXY_AUTHENTICATE,
            (19, "proxy-authorization") => Self::PROXY_AUTHORIZATION,
            _ => Self::default(),
        }
    }
}

/// Removes what concerns this connection only, the fields named in Connection among it. `kept` cannot be named away.
pub fn strip(headers: &mut HeaderMap, found: Found, kept: &HeaderName) {
    if !found.has(Found::HOP_BY_HOP) {
        return;
    }
    if found.has(Found::CONNECTION) {
        strip_named(headers, kept);
        headers.remove(CONNECTION);
    }
    for (which, name) in [
        (Found::KEEP_ALIVE, KEEP_ALIVE),
        (Found::PROXY_CONNECTION, PROXY_CONNECTION),
        (Found::PROXY_AUTHENTICATE, PROXY_AUTHENTICATE),
        (Found::PROXY_AUTHORIZATION, PROXY_AUTHORIZATION),
        (Found::TE, TE),
        (Found::TRANSFER_ENCODING, TRANSFER_ENCODING),
        (Found::UPGRADE, UPGRADE),
        (Found::HTTP2_SETTINGS, HTTP2_SETTINGS),
    ] {
        if found.has(which) {
            headers.remove(name);
        }
    }
}

/// Removes the fields named in Connection, but never those that say where a message goes, where it ends, or who sent it.
fn strip_named(headers: &mut HeaderMap, kept: &HeaderName) {
    // Nearly all there is, and it names nothing.
    if headers.get_all(CONNECTION).iter().all(|value| matches!(value.as_bytes(), b"keep-alive" | b"close")) {
        return;
    }
    let names: Vec<HeaderName> = options(headers)
        .filter(|option| !is_common_option(option))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .filter(|name| !is_protected(name) && name != kept)
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// The members of all Connection fields.
fn options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(CONNECTION).iter().flat_map(members)
}

/// The members of a field that is a list, without white space around them; empty ones are left out.
pub fn members(value: &HeaderValue) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Options that every client sends; their fields, if any, are removed by name.
fn is_common_option(option: &[u8]) -> bool {
    [b"keep-alive".as_slice(), b"close", b"upgrade", b"te"].iter().any(|common| option.eq_ignore_ascii_case(common))
}

fn is_protected(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-forwarded-")
        || matches!(
            name,
            "host" | "content-length" | "transfer-encoding" | "trailer" | "x-real-ip" | "forwarded" | "cdn-loop"
        )
}

/// How far an OPTIONS request may still go; TRACE, the other method with such a limit, is not served (RFC 9110, 7.6.2).
pub fn forwards_left(method: &Method, headers: &HeaderMap) -> Option<u64> {
    if *method != Method::OPTIONS {
        return None;
    }
    let digits = headers.get(MAX_FORWARDS)?.to_str().ok()?;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// Whether the head says that trailers are welcome.
pub fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(TE).iter().flat_map(members).any(|member| member.eq_ignore_ascii_case(b"trailers"))
}

/// The protocols of an upgrade that an HTTP/1.1 client asks for: Upgrade, announced in Connection. HTTP/2 in clear
/// (RFC 9113 section 3.1) and TLS are never among them, or requests inside the tunnel would pass by our rules.
pub fn wanted_upgrade(head: &request::Parts) -> Option<HeaderValue> {
    if head.version != Version::HTTP_11 {
        return None;
    }
    let mut fields = head.headers.get_all(UPGRADE).iter();
    let field = fields.next()?;
    let is_alone = fields.next().is_none();
    let is_announced = options(&head.headers).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    // A body would belong to the request before the switch; no client sends one, and smugglers may not.
    let has_no_body = !head.headers.contains_key(TRANSFER_ENCODING)
        && head.headers.get(CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0");
    let mut protocols = members(field).peekable();
    let is_served = protocols.peek().is_some() && protocols.all(|protocol| !is_http(protocol));
    (is_alone && is_announced && has_no_body && is_served).then(|| field.clone())
}

fn is_http(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
    [b"h2c".as_slice(), b"h2", b"http", b"tls"].iter().any(|other| name.eq_ignore_ascii_case(other))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn left(fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = headers(fields);
        let found = Found::look(&headers);
        strip(&mut headers, found, &REQUEST_ID);
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn only_an_options_request_counts_its_way() {
        for (method, value, expected) in [
            ("OPTIONS", "0", Some(0)),
            ("OPTIONS", "007", Some(7)),
            ("OPTIONS", "", None),
            ("OPTIONS", "+1", None),
            ("OPTIONS", "99999999999999999999999", None),
            ("GET", "0", None),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(forwards_left(&method, &headers(&[("max-forwards", value)])), expected, "{method} {value}");
        }
        assert_eq!(forwards_left(&Method::OPTIONS, &HeaderMap::new()), None);
    }

    #[test]
    fn every_known_name_is_found() {
        for (name, which) in [
            ("connection", Found::CONNECTION),
            ("keep-alive", Found::KEEP_ALIVE),
            ("proxy-connection", Found::PROXY_CONNECTION),
            ("proxy-authenticate", Found::PROXY_AUTHENTICATE),
            ("proxy-authorization", Found::PROXY_AUTHORIZATION),
            ("te", Found::TE),
            ("transfer-encoding", Found::TRANSFER_ENCODING),
            ("upgrade", Found::UPGRADE),
            ("http2-settings", Found::HTTP2_SETTINGS),
            ("content-length", Found::CONTENT_LENGTH),
            ("x-forwarded-for", Found::FORWARDED_FOR),
            ("x-forwarded-proto", Found::FORWARDED_PROTO),
            ("x-forwarded-host", Found::FORWARDED_HOST),
            ("x-forwarded-port", Found::FORWARDED_PORT),
            ("x-real-ip", Found::REAL_IP),
            ("forwarded", Found::FORWARDED),
            ("cdn-loop", Found::CDN_LOOP),
            ("trailer", Found::TRAILER),
            ("location", Found::LOCATION),
            ("content-location", Found::CONTENT_LOCATION),
            ("refresh", Found::REFRESH),
            ("set-cookie", Found::SET_COOKIE),
        ] {
            assert_eq!(Found::look(&headers(&[("accept", ""), (name, ""), ("x-other", "")])), which, "{name}");
        }
    }

    #[test]
    fn what_concerns_one_connection_is_removed() {
        for (fields, expected) in [
            ([("accept", "*/*")].as_slice(), ["accept"].as_slice()),
            (&[("connection", "keep-alive, X-Hop"), ("x-hop", "1"), ("x-stay", "1")], &["x-stay"]),
            (
                &[("connection", "keep-alive"), ("connection", "x-hop ,,\tX-Other"), ("x-hop", "1"), ("x-other", "1")],
                &[],
            ),
            (&[("connection", "close"), ("keep-alive", "timeout=5"), ("proxy-connection", "close")], &[]),
            (&[("te", "gzip"), ("connection", "TE"), ("transfer-encoding", "chunked"), ("upgrade", "websocket")], &[]),
            (&[("proxy-authorization", "Basic eA=="), ("proxy-authenticate", "Basic")], &[]),
            (&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAM")], &[]),
            (&[("connection", "a b, x@, \"x-a\", x-hop"), ("x-hop", "1"), ("x-a", "1")], &["x-a"]),
        ] {
            assert_eq!(left(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn host_framing_and_senders_cannot_be_named_away() {
        let kept = [
            "cdn-loop",
            "content-length",
            "forwarded",
            "host",
            "trailer",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-forwarded-proto",
            "x-real-ip",
            "x-request-id",
        ];
        for name in kept {
            assert_eq!(left(&[("connection", name), (name, "1")]), [name]);
        }
        assert_eq!(left(&[("connection", "Content-Length, HOST"), ("content-length", "5"), ("host", "a")]).len(), 2);
    }

    #[test]
    fn trailers_are_wanted_by_a_member_of_te() {
        for (value, expected) in [
            ("trailers", true),
            ("Trailers", true),
            ("gzip;q=1.0, trailers", true),
            ("gzip", false),
            ("trailersx", false),
            ("", false),
        ] {
            assert_eq!(wants_trailers(&headers(&[("te", value)])), expected, "{value}");
        }
    }

    #[test]
    fn an_upgrade_is_announced_and_has_no_body() {
        let socket = ("upgrade", "websocket");
        let announced = ("connection", "keep-alive, Upgrade");
        for (version, fields, expected) in [
            (Version::HTTP_11, [socket, announced].as_slice(), Some("websocket")),
            (Version::HTTP_11, &[socket, announced, ("content-length", "0")], Some("websocket")),
            (Version::HTTP_11, &[("upgrade", "foo/2, bar"), announced], Some("foo/2, bar")),
            (Version::HTTP_11, &[socket], None),
            (Version::HTTP_11, &[announced], None),
            (Version::HTTP_11, &[socket, ("connection", "close")], None),
            (Version::HTTP_11, &[socket, socket, announced], None),
            (Version::HTTP_11, &[("upgrade", ""), announced], None),
            (Version::HTTP_11, &[("upgrade", "h2c"), announced], None),
            (Version::HTTP_11, &[("upgrade", "websocket, H2C"), announced], None),
            (Version::HTTP_11, &[("upgrade", "HTTP/2.0"), announced], None),
            (Version::HTTP_11, &[("upgrade", "TLS/1.2"), announced], None),
            (Version::HTTP_11, &[socket, announced, ("content-length", "5")], None),
            (Version::HTTP_11, &[socket, announced, ("transfer-encoding", "chunked")], None),
            (Version::HTTP_10, &[socket, announced], None),
            (Version::HTTP_2, &[socket, announced], None),
        ] {
            let (mut head, ()) = Request::new(()).into_parts();
            head.version = version;
            head.headers = headers(fields);
            let wanted = wanted_upgrade(&head);
            assert_eq!(wanted.as_ref().map(|value| value.to_str().unwrap()), expected, "{version:?} {fields:?}");
        }
    }
}

//! Who sent a request, as far as heads are concerned, and the id that the request carries.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::host::Host;
use crate::config::Cluster;
use crate::routing::header_plan::{HeaderPlan, Variables};

/// How clients speak to us, or to the proxies in front of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that URLs of this scheme leave out.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// The scheme that the client itself uses: the listener's, or what a trusted peer says in X-Forwarded-Proto.
    pub fn of_client(listener: Self, peer_is_trusted: bool, headers: &HeaderMap) -> Self {
        if !peer_is_trusted {
            return listener;
        }
        let Some(value) = headers.get("x-forwarded-proto") else { return listener };
        let first = value.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
        if first.eq_ignore_ascii_case(b"https") {
            Self::Https
        } else if first.eq_ignore_ascii_case(b"http") {
            Self::Http
        } else {
            listener
        }
    }
}

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// The other end of the connection.
    pub peer: IpAddr,
    /// The same as a field value, made once per connection.
    pub peer_text: &'a HeaderValue,
    /// The client behind trusted proxies.
    pub client: IpAddr,
    /// Whether the peer lies in `listen.trusted_proxies`.
    pub trusted: bool,
    /// [`Scheme::of_client`].
    pub scheme: Scheme,
    /// The host that the client asked for.
    pub host: &'a Host,
}

impl<'a> Sender<'a> {
    /// What the operators' templates may name.
    pub fn variables(&self, id: &'a RequestId, target: Cluster) -> Variables<'a> {
        Variables { client_ip: self.client, old_host: self.host.name(), request_id: &id.0, target }
    }
}

/// The id of a request: the client's, or one of ours. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Keeps an id of 1 to 128 visible ASCII characters, else makes one of 128 random bits.
    pub fn of(headers: &HeaderMap, plan: &HeaderPlan) -> Self {
        Self::from_field(headers, &plan.request_id)
    }

    /// The same for requests without a service, whose field is X-Request-Id.
    pub fn without_service(headers: &HeaderMap) -> Self {
        Self::from_field(headers, &HeaderName::from_static("x-request-id"))
    }

    fn from_field(headers: &HeaderMap, name: &HeaderName) -> Self {
        match headers.get(name) {
            Some(value) if is_usable(value.as_bytes()) => Self(value.clone()),
            _ => Self::made(rand::random()),
        }
    }

    fn made(number: u128) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (place, byte) in text.iter_mut().zip((0..32).rev()) {
            *place = DIGITS[(number >> (4 * byte) & 15) as usize];
        }
        // One allocation, and none when it is cloned: a value made of a Vec would be moved behind a counter then.
        let text = Bytes::from_owner(text);
        Self(HeaderValue::from_maybe_shared(text).expect("hexadecimal digits are a valid field value"))
    }

    /// The id's text.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The id's text; it is ASCII by construction.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// The id as a field value.
    pub fn value(&self) -> &HeaderValue {
        &self.0
    }
}

fn is_usable(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
pub(crate) mod tests {
    use http::Request;

    use super::*;
    use crate::proxy::host::host;

    /// A host as a client would send it, for the tests of other modules too.
    pub(crate) fn host_of(text: &str) -> Host {
        host(&Request::builder().header("host", text).body(()).unwrap()).unwrap()
    }

    #[test]
    fn the_clients_scheme_is_what_a_trusted_peer_says() {
        for (trusted, sent, expected) in [
            (true, Some("https"), Scheme::Https),
            (true, Some("HTTPS, http"), Scheme::Https),
            (true, Some("http"), Scheme::Http),
            (true, Some("wss"), Scheme::Http),
            (true, None, Scheme::Http),
            (false, Some("https"), Scheme::Http),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(sent) = sent {
                headers.insert("x-forwarded-proto", HeaderValue::from_static(sent));
            }
            assert_eq!(Scheme::of_client(Scheme::Http, trusted, &headers), expected, "{trusted} {sent:?}");
        }
    }

    #[test]
    fn usable_request_ids_are_kept() {
        let longest = "x".repeat(128);
        for id in ["a", "7f3c-AB_./:~!{}", longest.as_str()] {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", HeaderValue::from_str(id).unwrap());
            assert_eq!(RequestId::without_service(&headers).as_str(), id);
        }
    }

    #[test]
    fn other_request_ids_are_replaced_by_one_of_32_digits() {
        let too_long = "x".repeat(129);
        let mut seen = std::collections::HashSet::new();
        for id in [Some(too_long.as_bytes()), Some(b"a b"), Some(b"caf\xe9"), Some(b""), None] {
            let mut headers = HeaderMap::new();
            if let Some(id) = id {
                headers.insert("x-request-id", HeaderValue::from_bytes(id).unwrap());
            }
            let made = RequestId::without_service(&headers);
            assert_eq!(made.as_bytes().len(), 32);
            assert!(made.as_bytes().iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
            assert!(seen.insert(made.as_str().to_owned()));
        }
    }

    #[test]
    fn made_ids_write_the_highest_digit_first() {
        assert_eq!(RequestId::made(0x0123 << 112).as_str(), "01230000000000000000000000000000");
        assert_eq!(RequestId::made(u128::MAX).as_str(), "f".repeat(32));
    }
}

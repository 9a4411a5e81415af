//! The host that a request asks for (RFC 9112 section 3.2, RFC 9110 section 7.2, RFC 9113 section 8.3.1). A request that
//! is ambiguous about it, or whose target has no form that we serve, is malformed.

use std::net::Ipv6Addr;

use http::header::{HOST, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Version};

use super::sender::Scheme;

/// The request's host or target is missing, ambiguous or not valid: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed host")]
pub struct Malformed;

/// A valid host. It is ASCII, without user information, white space or empty labels.
#[derive(Clone, Debug)]
pub struct Host {
    value: HeaderValue,
    name_length: usize,
    /// The name in lower case, when it was not sent so.
    lowered: Option<Box<str>>,
    port: Option<u16>,
}

impl Host {
    /// As sent, port included.
    pub fn value(&self) -> &HeaderValue {
        &self.value
    }

    /// As sent, port included.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.value.as_bytes()).expect("a host is visible ASCII")
    }

    /// Lower case, without port and trailing dot; an IPv6 address stays in brackets.
    pub fn name(&self) -> &str {
        match &self.lowered {
            Some(name) => name,
            None => &self.as_str()[..self.name_length],
        }
    }

    /// The port, when one was sent.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    fn parse(value: HeaderValue) -> Result<Self, Malformed> {
        let (name, port) = split(value.as_bytes())?;
        let name_length = name.len();
        // Without an early end, here and in `is_name`: names are short, and so the loop is one without branches.
        let lowered = name
            .iter()
            .fold(false, |found, byte| found | byte.is_ascii_uppercase())
            .then(|| name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect::<String>().into());
        Ok(Self { value, name_length, lowered, port })
    }

    fn of_authority(authority: &Authority) -> Result<Self, Malformed> {
        Self::parse(HeaderValue::from_str(authority.as_str()).map_err(|_| Malformed)?)
    }

    /// Whether `authority` means the same, the default port of `scheme` being the same as none.
    pub fn is_same(&self, authority: &str, scheme: Scheme) -> bool {
        if self.value.as_bytes() == authority.as_bytes() {
            return true;
        }
        let Ok((name, port)) = split(authority.as_bytes()) else { return false };
        let default = scheme.default_port();
        self.name().as_bytes().eq_ignore_ascii_case(name) && self.port.unwrap_or(default) == port.unwrap_or(default)
    }
}

/// The host of a request, which must be there and be the same wherever it is said.
pub fn host<B>(request: &Request<B>) -> Result<Host, Malformed> {
    let mut fields = request.headers().get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Malformed);
    }
    let authority = request.uri().authority();
    let scheme = target_scheme(request)?;
    match (field, authority) {
        (Some(field), None) => Host::parse(field.clone()),
        (Some(field), Some(authority)) => {
            let host = Host::parse(field.clone())?;
            host.is_same(authority.as_str(), scheme).then_some(host).ok_or(Malformed)
        }
        // HTTP/1.1 demands the field also beside an absolute target.
        (None, Some(authority)) if request.version() != Version::HTTP_11 => Host::of_authority(authority),
        (None, _) => Err(Malformed),
    }
}

/// The scheme of the target, whose form must be one that we can serve.
fn target_scheme<B>(request: &Request<B>) -> Result<Scheme, Malformed> {
    let uri = request.uri();
    let scheme = match uri.scheme_str() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(_) => return Err(Malformed),
    };
    let served = match (request.method(), uri.path()) {
        (&Method::CONNECT, _) => true,
        (&Method::OPTIONS, "*") => true,
        // Only CONNECT has a target that is an authority alone.
        (_, path) => path.starts_with('/') && (scheme.is_some() || uri.authority().is_none()),
    };
    served.then_some(scheme.unwrap_or(Scheme::Http)).ok_or(Malformed)
}

/// Takes a host apart into its name, without trailing dot, and its port.
fn split(host: &[u8]) -> Result<(&[u8], Option<u16>), Malformed> {
    if host.starts_with(b"[") {
        let end = host.iter().position(|byte| *byte == b']').ok_or(Malformed)?;
        let inside = std::str::from_utf8(&host[1..end]).map_err(|_| Malformed)?;
        inside.parse::<Ipv6Addr>().map_err(|_| Malformed)?;
        return Ok((&host[..=end], port(&host[end + 1..])?));
    }
    // A port has five digits at most; a colon further ahead is no part of a name.
    let tail = host.len().saturating_sub(":65535".len());
    let end = host[tail..].iter().position(|byte| *byte == b':').map_or(host.len(), |colon| tail + colon);
    let name = host[..end].strip_suffix(b".").unwrap_or(&host[..end]);
    is_name(name).then_some((name, port(&host[end..])?)).ok_or(Malformed)
}

/// The bytes of a name: letters, digits, `-`, `_`, `~`, and the dots between its labels.
const IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'-' | b'_' | b'~' | b'.');
        byte += 1;
    }
    table
};

/// At most 253 bytes, in labels that are not empty.
fn is_name(name: &[u8]) -> bool {
    let (mut is_valid, mut previous) = (true, b'.');
    for byte in name {
        is_valid &= IN_NAME[usize::from(*byte)] & ((*byte != b'.') | (previous != b'.'));
        previous = *byte;
    }
    is_valid && previous != b'.' && name.len() <= 253
}

/// The number behind the colon; none when there is no colon, or nothing behind it (RFC 3986 section 3.2.3).
fn port(text: &[u8]) -> Result<Option<u16>, Malformed> {
    match text {
        [] | [b':'] => Ok(None),
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            let number = digits.iter().fold(0_u32, |number, digit| number * 10 + u32::from(digit - b'0'));
            u16::try_from(number).map(Some).map_err(|_| Malformed)
        }
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(version: Version, target: &str, hosts: &[&str]) -> Option<Request<()>> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, HeaderValue::from_bytes(host.as_bytes()).ok()?);
        }
        request.body(()).ok()
    }

    fn of_field(text: &str) -> Result<Host, Malformed> {
        host(&request(Version::HTTP_11, "/", &[text]).unwrap())
    }

    #[test]
    fn valid_hosts_give_their_name_and_port() {
        for (sent, name, port) in [
            ("a.example", "a.example", None),
            ("A.Example", "a.example", None),
            ("a.example.", "a.example", None),
            ("a.apps.example.:80", "a.apps.example", Some(80)),
            ("X.APPS.example:8000", "x.apps.example", Some(8000)),
            ("a.example:", "a.example", None),
            ("a.example:0", "a.example", Some(0)),
            ("a.example:65535", "a.example", Some(65535)),
            ("my_svc~1", "my_svc~1", None),
            ("192.0.2.1:1", "192.0.2.1", Some(1)),
            ("[::1]", "[::1]", None),
            ("[2001:DB8::1]:443", "[2001:db8::1]", Some(443)),
        ] {
            let host = of_field(sent).unwrap();
            assert_eq!((host.as_str(), host.name(), host.port()), (sent, name, port));
        }
    }

    #[test]
    fn invalid_hosts_are_refused() {
        for sent in [
            "",
            ".",
            "..",
            ":80",
            "a b",
            "u@a",
            "a/x",
            "a?x",
            "a#",
            "a\\b",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[]",
            "[v1.a]",
            "[fe80::1%25eth0]",
            "a, b",
            "a,b",
            "a b.example",
            "a:99999",
            "a:65536",
            "a:x",
            "a:-1",
            "a:+1",
            "a:1:2",
            "a:000080",
            ".a.example",
            "a..b",
            "a.example..",
            "*.apps.example",
            "a%2eb",
            "caf\u{e9}",
            "a\tb",
            "a;b",
            "a'b",
        ] {
            assert_eq!(of_field(sent).map(|host| host.name().to_owned()), Err(Malformed), "{sent:?}");
        }
        assert!(of_field(&"a".repeat(253)).is_ok());
        assert!(of_field(&"a".repeat(254)).is_err());
    }

    #[test]
    fn host_must_be_said_once_and_the_same_everywhere() {
        const H10: Version = Version::HTTP_10;
        const H11: Version = Version::HTTP_11;
        const H2: Version = Version::HTTP_2;
        for (version, target, hosts, expected) in [
            (H11, "/", [].as_slice(), None),
            (H11, "/", &["a", "a"], None),
            (H11, "/", &["a", "b"], None),
            (H11, "http://a/", &[], None),
            (H11, "http://a/", &["a"], Some("a")),
            (H11, "http://A/", &["a"], Some("a")),
            (H11, "http://a:80/", &["a"], Some("a")),
            (H11, "https://a/", &["a:443"], Some("a:443")),
            (H11, "http://a:8080/", &["a"], None),
            (H11, "http://b/", &["a"], None),
            (H11, "http://b@a/", &["a"], None),
            (H11, "http://a@b/", &["a"], None),
            (H11, "ftp://a/", &["a"], None),
            (H11, "a:80", &["a"], None),
            (H11, "a:80", &["a:80"], None),
            (H10, "/", &["a"], Some("a")),
            (H10, "/", &[], None),
            (H10, "http://a:81/", &[], Some("a:81")),
            (H2, "https://a/", &[], Some("a")),
            (H2, "https://A:443/", &["a"], Some("a")),
            (H2, "https://a/", &["evil.test"], None),
            (H2, "https://a/", &["a", "evil.test"], None),
            (H2, "https://a@b/", &[], None),
            (H2, "/", &["a"], Some("a")),
            (H2, "/", &[], None),
        ] {
            let request = request(version, target, hosts).unwrap();
            assert_eq!(host(&request).ok().as_ref().map(Host::as_str), expected, "{version:?} {target} {hosts:?}");
        }
    }

    #[test]
    fn the_asterisk_is_for_options_and_a_bare_authority_for_connect() {
        for (method, target, field, is_served) in [
            (Method::OPTIONS, "*", "a", true),
            (Method::GET, "*", "a", false),
            (Method::CONNECT, "a:80", "a:80", true),
            (Method::CONNECT, "b:80", "a:80", false),
            (Method::POST, "a:80", "a:80", false),
            (Method::GET, "/*", "a", true),
        ] {
            let request = Request::builder().method(&method).uri(target).header(HOST, field).body(()).unwrap();
            assert_eq!(host(&request).is_ok(), is_served, "{method} {target}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_and_what_is_accepted_is_an_authority(
            text in prop_oneof!["[a-zA-Z0-9.:_~\\[\\]@/%-]{0,24}", "\\PC{0,24}"],
        ) {
            if let Ok(value) = HeaderValue::from_bytes(text.as_bytes())
                && let Ok(host) = Host::parse(value)
            {
                prop_assert!(Authority::try_from(host.as_str()).is_ok());
                prop_assert!(!host.name().is_empty() && !host.name().contains(|c: char| c.is_ascii_uppercase()));
                let again = of_field(host.name()).unwrap();
                prop_assert_eq!(again.name(), host.name());
            }
        }
    }
}

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
        self.value.to_str().expect("a host is visible ASCII")
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
        let lowered = name
            .iter()
            .any(u8::is_ascii_uppercase)
            .then(|| name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect::<String>().into());
        Ok(Self { value, name_length, lowered, port })
    }

    fn of_authority(authority: &Authority) -> Result<Self, Malformed> {
        Self::parse(HeaderValue::from_str(authority.as_str()).map_err(|_| Malformed)?)
    }

    /// Whether `authority` means the same, the default port of `scheme` being the same as none.
    fn is_same(&self, authority: &str, scheme: Scheme) -> bool {
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
    let end = host.iter().position(|byte| *byte == b':').unwrap_or(host.len());
    let name = host[..end].strip_suffix(b".").unwrap_or(&host[..end]);
    is_name(name).then_some((name, port(&host[end..])?)).ok_or(Malformed)
}

/// At most 253 bytes of letters, digits, `-`, `_`, `~`, in labels that are not empty.
fn is_name(name: &[u8]) -> bool {
    let mut label_is_empty = true;
    for byte in name {
        match byte {
            b'.' if label_is_empty => return false,
            b'.' => label_is_empty = true,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => label_is_empty = false,
            _ => return false,
        }
    }
    !label_is_empty && name.len() <= 253
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

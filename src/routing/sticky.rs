//! The key that gives a client a fixed bucket: found in a header, a cookie, a claim or the address, or made for a
//! browser that has none. The cluster is computed from the key each time and stored nowhere.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::bucket::{Bucket, bucket};
use crate::config::{KeyKind, Sticky};

/// A longer token has no claims for us, so that no client makes us decode at length.
const LONGEST_TOKEN: usize = 8 * 1024;

/// How long a browser keeps the key that we gave it: 30 days.
const COOKIE_SECONDS: u32 = 30 * 24 * 60 * 60;

/// Tokens are written without padding, but some issuers pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A request's key and where it was found. Not printable: a key may be a session.
pub struct Key<'a> {
    /// The index of the source in `sticky.by`.
    pub source: usize,
    value: Value<'a>,
}

enum Value<'a> {
    Raw(&'a [u8]),
    Claim(Box<str>),
    Address(AddressText),
}

impl Key<'_> {
    /// The bytes that the bucket is made of.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.value {
            Value::Raw(bytes) => bytes,
            Value::Claim(text) => trim(text.as_bytes()),
            Value::Address(text) => text.as_bytes(),
        }
    }

    /// The bucket of this key.
    pub fn bucket(&self, sticky: &Sticky) -> Bucket {
        bucket(&sticky.salt, self.as_bytes())
    }
}

/// The first source of `sticky.by` that has a key.
pub fn find<'a>(sticky: &Sticky, headers: &'a HeaderMap, client: IpAddr) -> Option<Key<'a>> {
    sticky.by.iter().enumerate().find_map(|(source, by)| {
        let value = match &by.kind {
            KeyKind::Header(name) => {
                headers.get_all(name).iter().find_map(|value| present(value.as_bytes())).map(Value::Raw)
            }
            KeyKind::Cookie(name) => cookies(headers)
                .filter(|cookie| cookie.name == name.as_bytes())
                .find_map(|cookie| present(cookie.value))
                .map(Value::Raw),
            KeyKind::Jwt(claim) => headers
                .get_all(AUTHORIZATION)
                .iter()
                .find_map(|value| bearer_claim(value.as_bytes(), claim))
                .map(Value::Claim),
            KeyKind::ClientIp => Some(Value::Address(AddressText::of_network(client))),
        };
        value.map(|value| Key { source, value })
    })
}

/// One `name=value` of a Cookie field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie<'a> {
    /// The name, as sent.
    pub name: &'a [u8],
    /// The value, as sent, its quotes included.
    pub value: &'a [u8],
}

/// The cookies of all Cookie fields in their order. HTTP/2 clients send one field for each cookie.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = Cookie<'_>> {
    headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';')).filter_map(|pair| {
        let equals = memchr::memchr(b'=', pair)?;
        Some(Cookie { name: trim(&pair[..equals]), value: trim(&pair[equals + 1..]) })
    })
}

fn present(value: &[u8]) -> Option<&[u8]> {
    let value = trim(value);
    (!value.is_empty()).then_some(value)
}

/// Without SP and HTAB around it.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A string claim of the token in an Authorization field. The token is not verified: it only picks a bucket.
fn bearer_claim(authorization: &[u8], claim: &str) -> Option<Box<str>> {
    let (scheme, token) = trim(authorization).split_at_checked("Bearer ".len())?;
    let token = trim(token);
    if !scheme.eq_ignore_ascii_case(b"Bearer ") || token.len() > LONGEST_TOKEN {
        return None;
    }
    let mut parts = token.split(|byte| *byte == b'.');
    let (Some(_header), Some(payload), Some(_signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let json = BASE64.decode(payload).ok()?;
    let mut reader = serde_json::Deserializer::from_slice(&json);
    let found = ClaimNamed(claim).deserialize(&mut reader).ok()??;
    reader.end().ok()?;
    present(found.as_bytes()).is_some().then_some(found)
}

/// Reads one string member of an object and skips the rest of it.
struct ClaimNamed<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for ClaimNamed<'_> {
    type Value = Option<Box<str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ClaimNamed<'_> {
    type Value = Option<Box<str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the claims of a token")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            if name == self.0 {
                // Of a repeated member the last one counts, as with most readers of JSON.
                found = map.next_value::<StringOnly>()?.0;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A string, or `None` for any other value.
struct StringOnly(Option<Box<str>>);

impl<'de> Deserialize<'de> for StringOnly {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(match value {
            serde_json::Value::String(text) => Some(text.into()),
            _ => None,
        }))
    }
}

/// An address as key: IPv4 as it is, IPv6 cut to its /64, because one client has many addresses in there.
#[derive(Clone, Copy)]
struct AddressText {
    // The longest text is ffff:ffff:ffff:ffff:: with 21 bytes.
    bytes: [u8; 24],
    length: usize,
}

impl AddressText {
    fn of_network(client: IpAddr) -> Self {
        let mut bytes = [0; 24];
        let mut rest = bytes.as_mut_slice();
        let written = match client.to_canonical() {
            IpAddr::V4(address) => write!(rest, "{address}"),
            IpAddr::V6(address) => write!(rest, "{}", Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        };
        debug_assert!(written.is_ok(), "the text of an address fits");
        let length = 24 - rest.len();
        Self { bytes, length }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A key for a client that has none: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FreshKey([u8; 16]);

/// Without the key, which stays between the client and its buckets.
impl fmt::Debug for FreshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FreshKey(..)")
    }
}

impl FreshKey {
    /// A key from random bits.
    pub fn new(random: u128) -> Self {
        Self(random.to_be_bytes())
    }

    /// The key's text: 32 hexadecimal digits.
    pub fn text(self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }

    /// The bucket of this key.
    pub fn bucket(self, sticky: &Sticky) -> Bucket {
        bucket(&sticky.salt, &self.text())
    }
}

/// The Set-Cookie value that gives a browser its key; `secure` when the client came by https.
pub fn set_cookie_value(name: &str, key: FreshKey, secure: bool) -> Option<HeaderValue> {
    let mut text = String::with_capacity(name.len() + 96);
    text.push_str(name);
    text.push('=');
    text.extend(key.text().map(char::from));
    // Writing to a String cannot fail.
    let _ = write!(text, "; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax");
    if secure {
        text.push_str("; Secure");
    }
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::super::rules::fixture::{Fields, headers, sticky};
    use super::*;

    fn key_of(by: &[&str], fields: Fields<'_>, client: &str) -> Option<(usize, String)> {
        let headers = headers(fields);
        let key = find(&sticky(by), &headers, client.parse().expect("an address"))?;
        Some((key.source, String::from_utf8(key.as_bytes().to_vec()).expect("UTF-8")))
    }

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn the_first_source_with_a_key_wins() {
        let by = ["header:X-User-Id", "cookie:session", "jwt:sub"];
        let bearer = format!("Bearer {}", token(r#"{"iss":"x","sub":"carol"}"#));
        let lower = format!("bearer   {}", token(r#"{"sub":" carol\t"}"#));
        let auth = ("authorization", bearer.as_str());

        let cases: [(Fields<'_>, Option<(usize, &str)>); 14] = [
            (&[("x-user-id", "alice"), ("cookie", "session=bob"), auth], Some((0, "alice"))),
            (&[("x-user-id", " \t alice \t")], Some((0, "alice"))),
            (&[("x-user-id", ""), ("x-user-id", " "), ("x-user-id", "zoë")], Some((0, "zoë"))),
            (&[("x-user-id", ""), ("cookie", "a=1; session=bob; z=2"), auth], Some((1, "bob"))),
            (&[("cookie", "a=1;session=bob")], Some((1, "bob"))),
            (&[("cookie", "a=1"), ("cookie", "session=bob")], Some((1, "bob"))),
            (&[("cookie", "session=; session=bob")], Some((1, "bob"))),
            (&[("cookie", "session=\"b=b%20\"")], Some((1, "\"b=b%20\""))),
            (&[("cookie", "session="), auth], Some((2, "carol"))),
            (&[("cookie", "xsession=no; sessionx=no; session"), auth], Some((2, "carol"))),
            (&[("cookie", "Session=no"), auth], Some((2, "carol"))),
            (&[("authorization", &lower)], Some((2, "carol"))),
            (&[("authorization", "Basic YTpi"), auth], Some((2, "carol"))),
            (&[], None),
        ];
        for (fields, expected) in cases {
            let expected = expected.map(|(source, key)| (source, key.to_owned()));
            assert_eq!(key_of(&by, fields, "10.0.0.1"), expected, "{fields:?}");
        }
    }

    #[test]
    fn only_a_string_claim_of_a_short_token_is_a_key() {
        let long = |bytes: usize| {
            let empty = token(r#"{"sub":"u","x":""}"#).len();
            let filler = "y".repeat((bytes - empty) * 3 / 4);
            token(&format!(r#"{{"sub":"u","x":"{filler}"}}"#))
        };
        assert_eq!(long(LONGEST_TOKEN).len(), LONGEST_TOKEN);

        for (token, expected) in [
            (token(r#"{"sub":"u"}"#), Some("u")),
            (token(r#"{"a":{"sub":"no"},"b":[1],"sub":"\u0075"}"#), Some("u")),
            (token(r#"{"sub":"u"}"#).replacen(".c2ln", "=.c2ln", 1), Some("u")),
            (token(r#"{"sub":7}"#), None),
            (token(r#"{"sub":["u"]}"#), None),
            (token(r#"{"sub":null}"#), None),
            (token(r#"{"sub":"  "}"#), None),
            (token(r#"{"SUB":"u"}"#), None),
            (token(r#"["sub"]"#), None),
            (token(r#"{"sub":"u"} x"#), None),
            (token(&format!("{}{}", r#"{"x":"#, "[".repeat(5_000))), None),
            ("e30.e30".to_owned(), None),
            ("e30.!!.c2ln".to_owned(), None),
            (format!("{}.x.y", token(r#"{"sub":"u"}"#)), None),
            (long(LONGEST_TOKEN), Some("u")),
            (long(LONGEST_TOKEN + 4), None),
        ] {
            let field = format!("Bearer {token}");
            let found = key_of(&["jwt:sub"], &[("authorization", &field)], "10.0.0.1");
            assert_eq!(found.as_ref().map(|(_, key)| key.as_str()), expected, "{token}");
        }
        for field in ["", "Bearer", "Bearer ", "Bearere30.e30.x"] {
            assert_eq!(key_of(&["jwt:sub"], &[("authorization", field)], "10.0.0.1"), None, "{field}");
        }
    }

    #[test]
    fn an_address_is_a_key_in_canonical_text() {
        for (client, expected) in [
            ("192.168.1.1", "192.168.1.1"),
            ("::ffff:192.168.1.1", "192.168.1.1"),
            ("2001:0DB8:0001:0002:a:b:c:d", "2001:db8:1:2::"),
            ("2001:db8::1", "2001:db8::"),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff::"),
            ("::1", "::"),
        ] {
            assert_eq!(key_of(&["client_ip"], &[], client), Some((0, expected.to_owned())));
        }
    }

    #[test]
    fn a_fresh_key_becomes_a_cookie_that_finds_the_same_bucket() {
        let sticky = sticky(&["cookie:MIGRATION_ID"]);
        let key = FreshKey::new(0x0123_4567_89ab_cdef_0011_2233_4455_66ff);

        let value = set_cookie_value("MIGRATION_ID", key, true).expect("a header value");
        assert_eq!(
            value,
            "MIGRATION_ID=0123456789abcdef00112233445566ff; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure"
        );

        let sent = headers(&[("cookie", "MIGRATION_ID=0123456789abcdef00112233445566ff")]);
        let found = find(&sticky, &sent, IpAddr::from([10, 0, 0, 1])).expect("a key");
        assert_eq!(found.bucket(&sticky), key.bucket(&sticky));
        assert!(!set_cookie_value("M", key, false).expect("a header value").to_str().expect("text").contains("Secure"));
    }
}

//! The key that gives a client its bucket: a header, a cookie, a claim or the address.

use std::net::IpAddr;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use migration_proxy::config::{self, Environment, Sticky, Text};
use migration_proxy::routing::bucket::bucket;
use migration_proxy::routing::sticky::{cookies, find};

use super::head;

/// As in `sticky.by`.
const COOKIE: usize = 1;
const CLAIM: usize = 2;
const ADDRESS: usize = 3;

/// The longest token whose claims are read.
const LONGEST_TOKEN: usize = 8 * 1024;

static STICKY: LazyLock<Sticky> = LazyLock::new(|| {
    let file = "services: [{name: a, old_host: a.old.test, old_backend: \"127.0.0.1:1\", new_host: a.new.test, \
                migration: {sticky: {by: [\"header:X-User-Id\", \"cookie:session\", \"jwt:sub\", client_ip]}}}]\n";
    let parsed = config::parse(&Text::new("fuzz.yaml", file), &Environment::new()).expect("a good file");
    parsed.config.services[0].migration.sticky.clone().expect("it is given")
});

/// There is always a key, it is no more than what was sent, and a key that is sent is found again.
pub fn sticky_key(bytes: &[u8]) {
    let (words, headers) = head::of(bytes);
    let client: IpAddr = words[0].parse().unwrap_or(IpAddr::from([192, 0, 2, 1]));
    let sticky = &*STICKY;

    let key = find(sticky, &headers, client).expect("the address is the last resort");
    let bytes_of_key = key.as_bytes();
    assert!(!bytes_of_key.is_empty() && trim(bytes_of_key) == bytes_of_key, "{bytes_of_key:?}");
    assert!(key.bucket(sticky).basis_points() < 10_000);
    assert_eq!(key.bucket(sticky), bucket(&sticky.salt, bytes_of_key));
    for cookie in cookies(&headers) {
        assert!(trim(cookie.name) == cookie.name && trim(cookie.value) == cookie.value);
        assert!(!cookie.name.contains(&b'=') && !cookie.value.contains(&b';'));
    }

    let said = bytes.strip_prefix(words[0].as_bytes()).unwrap_or(bytes);
    found_again(said, client);
}

/// What is put into each place comes out of it, when it can be there at all.
fn found_again(value: &[u8], client: IpAddr) {
    let sticky = &*STICKY;
    let key_of = |headers: &HeaderMap| {
        let key = find(sticky, headers, client).expect("the address is the last resort");
        (key.source, key.as_bytes().to_vec())
    };

    let mut headers = HeaderMap::new();
    if !value.contains(&b';')
        && let Ok(field) = HeaderValue::from_bytes(&[b"other=1; session=", value, b"; last=2"].concat())
    {
        headers.insert("cookie", field);
        let expected = trim(value);
        let (source, key) = key_of(&headers);
        assert_eq!(source, if expected.is_empty() { ADDRESS } else { COOKIE });
        assert!(expected.is_empty() || key == expected);
    }

    headers.clear();
    let subject = String::from_utf8_lossy(value);
    let claims = serde_json::json!({"iss": [1, {"sub": "nested"}], "sub": subject, "exp": 1}).to_string();
    let token = format!("e30.{}.x", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let field = HeaderValue::try_from(format!("bEARER {token}")).expect("base64 is a valid value");
    headers.insert("authorization", field);
    let expected = trim(subject.as_bytes());
    let (source, key) = key_of(&headers);
    if expected.is_empty() || token.len() > LONGEST_TOKEN {
        assert_eq!(source, ADDRESS);
    } else {
        assert_eq!((source, key.as_slice()), (CLAIM, expected));
    }
}

fn trim(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(start) = value.iter().position(|byte| !is_space(byte)) else { return &[] };
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

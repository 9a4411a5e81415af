//! The first message of a TLS connection.

use std::io::Read;

use migration_proxy::net::client_hello::{Hello, server_name};
use rustls::server::Acceptor;

use super::ends;

/// What is known of a beginning stays true with more bytes, a name is one, and rustls reads no other.
pub fn client_hello(bytes: &[u8]) {
    let whole = server_name(bytes);
    for end in ends(bytes.len()) {
        match server_name(&bytes[..end]) {
            Hello::Incomplete(needed) => {
                assert!(needed > end, "{needed} bytes are there");
                // Nothing can be known before they are.
                let next = needed.saturating_sub(1).min(bytes.len());
                assert!(matches!(server_name(&bytes[..next]), Hello::Incomplete(_) | Hello::Unreadable));
            }
            known => assert_eq!(known, whole, "{end}"),
        }
    }
    if let Hello::Name(name) = &whole {
        assert!((1..=255).contains(&name.len()));
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()), "{name}");
    }
    if let Some(name) = name_by_rustls(bytes) {
        assert_eq!(whole, Hello::Name(name.into()));
    }
}

/// The name that a TLS server sees, if it takes the hello at all.
fn name_by_rustls(mut bytes: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes.by_ref()).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            return accepted.client_hello().server_name().map(str::to_owned);
        }
    }
    None
}

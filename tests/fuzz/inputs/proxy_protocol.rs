//! The PROXY header in front of a connection.

use std::net::{IpAddr, SocketAddr};

use migration_proxy::net::proxy_protocol::{Parsed, parse};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What is known of a beginning stays true with more bytes, a header ends within them, and what is written is read.
pub fn proxy_protocol(bytes: &[u8]) {
    let whole = parse(bytes);
    for end in 0..bytes.len() {
        let beginning = parse(&bytes[..end]);
        assert!(beginning == Parsed::Incomplete || beginning == whole, "{end}: {beginning:?}, then {whole:?}");
    }
    if let Parsed::Header { length, .. } = whole {
        assert!(length <= bytes.len());
        assert_eq!(parse(&bytes[..length]), whole, "what follows counts");
        assert_eq!(parse(&bytes[..length - 1]), Parsed::Incomplete, "a header is as short as it can be");
    }
    round_trip(bytes);
}

/// Headers of both versions for addresses made of the bytes, with further fields.
fn round_trip(bytes: &[u8]) {
    let Some((address, rest)) = bytes.split_first_chunk::<18>() else { return };
    let (ip, port) = address.split_at(16);
    let port = u16::from_be_bytes([port[0], port[1]]);
    let ipv6: [u8; 16] = ip.try_into().expect("sixteen bytes");
    let ipv4 = [ip[0], ip[1], ip[2], ip[3]];
    let fields = &rest[..rest.len().min(4096)];
    for (source, family, word) in [(IpAddr::from(ipv4), 0x11, "TCP4"), (IpAddr::from(ipv6), 0x21, "TCP6")] {
        let expected = |length| Parsed::Header { source: Some(SocketAddr::new(source, port)), length };

        let line = format!("PROXY {word} {source} {source} {port} 443\r\n");
        assert_eq!(parse(&[line.as_bytes(), rest].concat()), expected(line.len()), "{line}");

        let octets = match source {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let payload = [&octets[..], &octets, &port.to_be_bytes(), &[1, 187], fields].concat();
        let length = u16::try_from(payload.len()).expect("a few KiB");
        let header = [SIGNATURE, &[0x21, family], &length.to_be_bytes(), &payload].concat();
        assert_eq!(parse(&[&header, rest].concat()), expected(header.len()));

        let local = [SIGNATURE, &[0x20, family], &length.to_be_bytes(), &payload].concat();
        assert_eq!(parse(&local), Parsed::Header { source: None, length: local.len() });
    }
}

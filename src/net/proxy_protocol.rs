//! The PROXY protocol, versions 1 and 2: what a balancer says in front of a connection about who opened it. The parser is
//! pure; the reader takes exactly the header from the socket and nothing of what follows.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::peek::wait_for_more;

/// The longest header of version 1, its line end included, as the protocol says.
const LONGEST_TEXT: usize = 107;

/// The fixed part of version 2.
const FIXED: usize = 16;

/// The longest header of version 2 that we take: addresses and 4 KiB of further fields, where the protocol allows 64 KiB.
/// Balancers send up to a few hundred bytes.
const LONGEST: usize = FIXED + 216 + 4096;

/// How a header of version 1 begins.
const TEXT: &[u8] = b"PROXY ";

/// How a header of version 2 begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// They may become a header.
    Incomplete,
    /// They are no header.
    NotProxy,
    /// A header.
    Header {
        /// Who opened the connection; `None`: the balancer itself, or somebody without an IP address.
        source: Option<SocketAddr>,
        /// Its length in bytes.
        length: usize,
    },
    /// They begin like a header and are none.
    Malformed,
}

/// Reads the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    match begins(bytes) {
        Some(Version::Text) => parse_text(bytes),
        Some(Version::Binary) => parse_binary(bytes),
        None if TEXT.starts_with(bytes) || SIGNATURE.starts_with(bytes) => Parsed::Incomplete,
        None => Parsed::NotProxy,
    }
}

#[derive(Clone, Copy)]
enum Version {
    Text,
    Binary,
}

/// The version of the header that these bytes are the beginning of, once that is certain.
fn begins(bytes: &[u8]) -> Option<Version> {
    if bytes.starts_with(TEXT) {
        return Some(Version::Text);
    }
    bytes.starts_with(SIGNATURE).then_some(Version::Binary)
}

fn parse_text(bytes: &[u8]) -> Parsed {
    let window = &bytes[..bytes.len().min(LONGEST_TEXT)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if window.len() < LONGEST_TEXT { Parsed::Incomplete } else { Parsed::Malformed };
    };
    let line = window[TEXT.len()..=end].strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
    match line.and_then(text_source) {
        Some(source) => Parsed::Header { source, length: end + 1 },
        None => Parsed::Malformed,
    }
}

/// The source that the line names; `Some(None)`: it is unknown.
fn text_source(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // Whatever follows is to be ignored.
        return Some(None);
    }
    let mut address = || {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse().ok().map(IpAddr::V4),
            "TCP6" => word.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, _destination) = (address()?, address()?);
    let (source_port, _destination_port) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then_some(Some(SocketAddr::new(source, source_port)))
}

fn port(word: &str) -> Option<u16> {
    let is_number = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if is_number { word.parse().ok() } else { None }
}

fn parse_binary(bytes: &[u8]) -> Parsed {
    let Some(([command, family, length @ ..], rest)) =
        bytes[SIGNATURE.len()..].split_first_chunk::<{ FIXED - SIGNATURE.len() }>()
    else {
        return Parsed::Incomplete;
    };
    let size = usize::from(u16::from_be_bytes(*length));
    let total = FIXED + size;
    if total > LONGEST {
        return Parsed::Malformed;
    }
    let Some(payload) = rest.get(..size) else { return Parsed::Incomplete };
    let source = match command {
        0x20 => Some(None),
        0x21 => binary_source(*family, payload),
        _ => None,
    };
    source.map_or(Parsed::Malformed, |source| Parsed::Header { source, length: total })
}

/// The source in the addresses of a family. Datagrams and local sockets have none that means something here.
fn binary_source(family: u8, payload: &[u8]) -> Option<Option<SocketAddr>> {
    match family {
        0x00 => Some(None),
        0x11 => {
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *payload.first_chunk::<12>()?;
            let port = u16::from_be_bytes([high, low]);
            Some(Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port)))
        }
        0x21 => {
            let addresses = payload.first_chunk::<36>()?;
            let source = Ipv6Addr::from(*addresses.first_chunk::<16>()?);
            let port = u16::from_be_bytes([addresses[32], addresses[33]]);
            Some(Some(SocketAddr::new(source.into(), port)))
        }
        0x12 => payload.first_chunk::<12>().map(|_| None),
        0x22 => payload.first_chunk::<36>().map(|_| None),
        0x31 | 0x32 => payload.first_chunk::<216>().map(|_| None),
        _ => None,
    }
}

/// What stood in front of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No header.
    Nothing,
    /// A header, which is gone from the socket, and the source that it names.
    Header(Option<SocketAddr>),
    /// A header that must not be believed, or none that can be read. The connection cannot go on.
    Refused,
}

/// Takes a header from the socket, if there is one. One that is not `believed` is refused as soon as it is known for one.
///
/// # Errors
///
/// The connection ended, also in the middle of a header.
pub async fn read(socket: &mut TcpStream, believed: bool) -> io::Result<Found> {
    let mut start = [0; FIXED];
    let mut seen = 0;
    loop {
        if seen > 0 {
            wait_for_more(socket, seen).await?;
        }
        seen = socket.peek(&mut start).await?;
        match parse(&start[..seen]) {
            // The end of the connection is for whoever reads next.
            _ if seen == 0 => return Ok(Found::Nothing),
            Parsed::NotProxy => return Ok(Found::Nothing),
            Parsed::Malformed => return Ok(Found::Refused),
            _ if begins(&start[..seen]).is_some() => break,
            Parsed::Incomplete | Parsed::Header { .. } => {}
        }
    }
    if believed { take(socket).await } else { Ok(Found::Refused) }
}

/// Takes the header that has begun.
async fn take(socket: &mut TcpStream) -> io::Result<Found> {
    // Not an array: it would stay a part of every connection's task.
    let mut bytes = vec![0; LONGEST];
    loop {
        let seen = socket.peek(&mut bytes).await?;
        match parse(&bytes[..seen]) {
            Parsed::Header { source, length } => {
                socket.read_exact(&mut bytes[..length]).await?;
                return Ok(Found::Header(source));
            }
            Parsed::Incomplete if seen < LONGEST => wait_for_more(socket, seen).await?,
            Parsed::Incomplete | Parsed::Malformed | Parsed::NotProxy => return Ok(Found::Refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::super::peek::tests::pair;
    use super::*;

    fn binary(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, payload].concat()
    }

    fn ipv4() -> Vec<u8> {
        [&[203, 0, 113, 7, 127, 0, 0, 1][..], &4711_u16.to_be_bytes(), &80_u16.to_be_bytes()].concat()
    }

    fn ipv6() -> Vec<u8> {
        let source: Ipv6Addr = "2001:db8::7".parse().unwrap();
        [&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &4711_u16.to_be_bytes(), &80_u16.to_be_bytes()].concat()
    }

    fn source(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn headers_of_version_1() {
        for (line, expected) in [
            ("PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n", Some(source("203.0.113.7:4711"))),
            ("PROXY TCP6 2001:db8::7 ::1 0 65535\r\n", Some(source("[2001:db8::7]:0"))),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Some(source("[::ffff:192.0.2.1]:1"))),
            ("PROXY UNKNOWN\r\n", Some(None)),
            ("PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n", Some(None)),
            ("PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\n", None),
            ("PROXY TCP4 203.0.113.7 127.0.0.1 4711 80 \r\n", None),
            ("PROXY TCP4 203.0.113.7 127.0.0.1 4711\r\n", None),
            ("PROXY TCP4  203.0.113.7 127.0.0.1 4711 80\r\n", None),
            ("PROXY TCP4 203.0.113.7 127.0.0.1 04711 80\r\n", None),
            ("PROXY TCP4 203.0.113.7 127.0.0.1 +471 80\r\n", None),
            ("PROXY TCP4 203.0.113.7 127.0.0.1 65536 80\r\n", None),
            ("PROXY TCP4 203.0.113.007 127.0.0.1 1 80\r\n", None),
            ("PROXY TCP4 2001:db8::7 ::1 4711 80\r\n", None),
            ("PROXY TCP6 203.0.113.7 127.0.0.1 4711 80\r\n", None),
            ("PROXY UDP4 203.0.113.7 127.0.0.1 4711 80\r\n", None),
            ("PROXY tcp4 203.0.113.7 127.0.0.1 4711 80\r\n", None),
            ("PROXY UNKNOWNX\r\n", None),
            ("PROXY \r\n", None),
            ("PROXY / HTTP/1.1\r\n", None),
        ] {
            let bytes = [line.as_bytes(), b"GET / HTTP/1.1\r\n"].concat();
            let expected = expected.map_or(Parsed::Malformed, |source| Parsed::Header { source, length: line.len() });
            assert_eq!(parse(&bytes), expected, "{line:?}");
        }
    }

    #[test]
    fn a_line_of_version_1_has_107_bytes_at_most() {
        let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));

        assert_eq!(parse(line(107).as_bytes()), Parsed::Header { source: None, length: 107 });
        assert_eq!(parse(line(108).as_bytes()), Parsed::Malformed);
        assert_eq!(parse(&line(108).as_bytes()[..106]), Parsed::Incomplete);
    }

    #[test]
    fn headers_of_version_2() {
        let (v4, v6) = (source("203.0.113.7:4711"), source("[2001:db8::7]:4711"));
        let more = |addresses: &[u8]| [addresses, &[4, 0, 3, 1, 2, 3]].concat();
        for (what, header, expected) in [
            ("IPv4", binary(0x21, 0x11, &ipv4()), Some(v4)),
            ("IPv4 and more fields", binary(0x21, 0x11, &more(&ipv4())), Some(v4)),
            ("IPv6", binary(0x21, 0x21, &ipv6()), Some(v6)),
            ("IPv6 and more fields", binary(0x21, 0x21, &more(&ipv6())), Some(v6)),
            ("LOCAL", binary(0x20, 0x00, b""), Some(None)),
            ("LOCAL with addresses", binary(0x20, 0x11, &ipv4()), Some(None)),
            ("LOCAL of an unknown family", binary(0x20, 0x7f, b"x"), Some(None)),
            ("UNSPEC", binary(0x21, 0x00, b"anything"), Some(None)),
            ("datagrams", binary(0x21, 0x12, &ipv4()), Some(None)),
            ("a local socket", binary(0x21, 0x31, &[0; 216]), Some(None)),
            ("the longest", binary(0x21, 0x11, &[1; LONGEST - FIXED]), Some(source("1.1.1.1:257"))),
            ("too long", binary(0x21, 0x11, &[1; LONGEST - FIXED + 1]), None),
            ("too short for IPv4", binary(0x21, 0x11, &ipv4()[..11]), None),
            ("too short for IPv6", binary(0x21, 0x21, &ipv6()[..35]), None),
            ("too short for a local socket", binary(0x21, 0x31, &[0; 215]), None),
            ("another version", binary(0x11, 0x11, &ipv4()), None),
            ("another command", binary(0x22, 0x11, &ipv4()), None),
            ("another family", binary(0x21, 0x41, &ipv4()), None),
            ("another transport", binary(0x21, 0x13, &ipv4()), None),
        ] {
            let bytes = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let length = header.len();
            let expected = expected.map_or(Parsed::Malformed, |source| Parsed::Header { source, length });
            assert_eq!(parse(&bytes), expected, "{what}");
        }
    }

    #[test]
    fn every_beginning_of_a_header_is_incomplete() {
        for header in [b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n".to_vec(), binary(0x21, 0x21, &ipv6())] {
            for end in 0..header.len() {
                assert_eq!(parse(&header[..end]), Parsed::Incomplete, "{end}");
            }
        }
    }

    #[test]
    fn what_applications_say_first_is_no_header() {
        for bytes in [
            b"GET / HTTP/1.1\r\n".as_slice(),
            b"PRI * HTTP/2.0\r\n",
            b"POST",
            b"PROPFIND / HTTP/1.1\r\n",
            b"PROXYX",
            b"\r\nGET / HTTP/1.1\r\n",
            b"\r\n\r\nGET",
            b"\x16\x03\x01\x02\x00\x01",
        ] {
            assert_eq!(parse(bytes), Parsed::NotProxy, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn the_reader_takes_the_header_and_nothing_else() {
        for (header, expected) in [
            (b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n".to_vec(), Found::Header(source("203.0.113.7:4711"))),
            (binary(0x21, 0x21, &ipv6()), Found::Header(source("[2001:db8::7]:4711"))),
            (binary(0x20, 0, b""), Found::Header(None)),
            (Vec::new(), Found::Nothing),
        ] {
            let (mut client, mut server) = pair().await;
            let send = async {
                for byte in header.iter().chain(b"GET /") {
                    client.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
                client.shutdown().await.unwrap();
            };

            let (found, ()) = tokio::join!(read(&mut server, true), send);
            let mut rest = Vec::new();
            server.read_to_end(&mut rest).await.unwrap();

            assert_eq!((found.unwrap(), rest.as_slice()), (expected, &b"GET /"[..]));
        }
    }

    #[tokio::test]
    async fn a_header_that_is_not_believed_is_refused_before_its_end() {
        for (bytes, believed, expected) in [
            (b"PROXY ".to_vec(), false, Found::Refused),
            (SIGNATURE.to_vec(), false, Found::Refused),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), false, Found::Nothing),
            (b"PROXY TCP4 nonsense\r\n".to_vec(), true, Found::Refused),
            (binary(0x21, 0x11, &[1; LONGEST]), true, Found::Refused),
        ] {
            let (mut client, mut server) = pair().await;
            client.write_all(&bytes).await.unwrap();

            assert_eq!(read(&mut server, believed).await.unwrap(), expected, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_in_a_header_is_an_error() {
        let (mut client, mut server) = pair().await;
        client.write_all(b"PROXY TCP4 203").await.unwrap();
        client.shutdown().await.unwrap();

        assert_eq!(read(&mut server, true).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_and_nothing_behind_the_header_counts(
            start in prop_oneof![Just(&b""[..]), Just(TEXT), Just(&b"PROXY TCP4 "[..]), Just(SIGNATURE), Just(&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..])],
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [start, &bytes].concat();
            let whole = parse(&bytes);
            if let Parsed::Header { length, .. } = whole {
                prop_assert!(length <= bytes.len());
                prop_assert_eq!(parse(&bytes[..length]), whole);
                prop_assert_eq!(parse(&bytes[..length - 1]), Parsed::Incomplete);
            }
        }
    }
}

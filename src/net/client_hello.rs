//! The server name of a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3), read without taking a byte from the socket, also
//! where the hello is spread over several records and packets.

use std::io;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::peek::wait_for;

/// The longest hello that is waited for, with its records. Browsers send up to 2 KiB, with post-quantum keys; tickets and
/// certificates of authorities that somebody puts into one can make it much longer, and TLS libraries take 64 KiB.
const LONGEST: usize = 64 * 1024;

/// As much is looked at first.
const USUAL: usize = 4 * 1024;

/// The kernel holds back what comes behind its receive buffer, and bytes that are only looked at stay in it: beyond this
/// length it is asked for room.
const ROOMY: usize = 16 * 1024;

/// The longest fragment of a record (RFC 8446, 5.1).
const LONGEST_FRAGMENT: usize = 1 << 14;

/// What stands before a fragment.
const HEADER: usize = 5;

/// The longest name (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 255;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// They may become a hello, but not before there are so many of them.
    Incomplete(usize),
    /// They are no hello that can be read.
    Unreadable,
    /// A hello without a server name.
    Nameless,
    /// A hello with this server name, in lower case.
    Name(Box<str>),
}

/// Reads the first bytes of a connection.
pub fn server_name(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        let (fragment, length) = match record(&bytes[at..]) {
            Ok(Some(record)) => record,
            Ok(None) => return Hello::Incomplete(at + HEADER),
            Err(Garbage) => return Hello::Unreadable,
        };
        message.extend_from_slice(fragment);
        at += HEADER + length;
        match body(&message) {
            Ok(Some(body)) => return name_in(body).unwrap_or(Hello::Unreadable),
            // The record may hold more than the hello.
            Ok(None) if fragment.len() < length => return Hello::Incomplete(at.min(bytes.len() + missing(&message))),
            Ok(None) => {}
            Err(Garbage) => return Hello::Unreadable,
        }
    }
}

/// No beginning of a ClientHello.
struct Garbage;

/// What is there of the fragment of the first record, and how long it will be; `None`: not even that is known.
fn record(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Garbage> {
    if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) || bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(Garbage);
    }
    let Some(([_, _, _, length @ ..], rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if length == 0 || length > LONGEST_FRAGMENT {
        return Err(Garbage);
    }
    Ok(Some((&rest[..rest.len().min(length)], length)))
}

/// The body of the ClientHello that the message begins with, once all of it is there.
fn body(message: &[u8]) -> Result<Option<&[u8]>, Garbage> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(Garbage);
    }
    let Some(([_, length @ ..], rest)) = message.split_first_chunk::<4>() else { return Ok(None) };
    let length = number(length);
    if length > LONGEST { Err(Garbage) } else { Ok(rest.get(..length)) }
}

/// How many bytes the message lacks at least.
fn missing(message: &[u8]) -> usize {
    match message.first_chunk::<4>() {
        Some([_, length @ ..]) => (4 + number(length)).saturating_sub(message.len()),
        None => 4 - message.len(),
    }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// `None`: the hello is malformed.
fn name_in(body: &[u8]) -> Option<Hello> {
    let mut body = Reader(body);
    body.take(2 + 32)?;
    body.short_vector()?;
    body.vector()?;
    body.short_vector()?;
    if body.0.is_empty() {
        return Some(Hello::Nameless);
    }
    let mut extensions = Reader(body.vector()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let data = extensions.vector()?;
        if kind == SERVER_NAME {
            return name_of(data);
        }
    }
    Some(Hello::Nameless)
}

fn name_of(extension: &[u8]) -> Option<Hello> {
    let mut names = Reader(Reader(extension).vector()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?;
        let name = names.vector()?;
        if kind == [HOST_NAME] {
            let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            let is_sound = !name.is_empty() && name.len() <= LONGEST_NAME && name.iter().all(is_name);
            let name = std::str::from_utf8(name).ok().filter(|_| is_sound)?;
            return Some(Hello::Name(name.to_ascii_lowercase().into()));
        }
    }
    Some(Hello::Nameless)
}

/// Takes pieces from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }

    /// Behind a length of one byte.
    fn short_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?.first().copied()?;
        self.take(usize::from(length))
    }

    /// Behind a length of two bytes.
    fn vector(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }
}

/// The server name that a client asks for; `None`: it names none, or says something else first. The bytes stay in the
/// socket.
///
/// # Errors
///
/// The connection ended in the middle of a hello.
pub async fn peek(socket: &TcpStream) -> io::Result<Option<Box<str>>> {
    let mut bytes = vec![0; USUAL];
    loop {
        let seen = socket.peek(&mut bytes).await?;
        match server_name(&bytes[..seen]) {
            Hello::Name(name) => return Ok(Some(name)),
            Hello::Incomplete(needed) if seen > 0 && needed <= LONGEST => {
                if needed > bytes.len() {
                    // Doubled at least, so that many small records do not make it grow for each of them.
                    let room = needed.max(bytes.len() * 2).min(LONGEST);
                    if bytes.len() <= ROOMY && room > ROOMY {
                        SockRef::from(socket).set_recv_buffer_size(4 * LONGEST)?;
                    }
                    bytes.resize(room, 0);
                }
                wait_for(socket, needed).await?;
            }
            Hello::Incomplete(_) | Hello::Unreadable | Hello::Nameless => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::peek::tests::pair;
    use super::*;

    /// The hello of a real client; `name` may be an address, which is never sent.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of `size` bytes.
    fn in_records_of(size: usize, hello: &[u8]) -> Vec<u8> {
        let record = |fragment: &[u8]| {
            let length = u16::try_from(fragment.len()).unwrap().to_be_bytes();
            [&hello[..3], &length, fragment].concat()
        };
        hello[5..].chunks(size).flat_map(record).collect()
    }

    /// The same hello with an extension of padding (RFC 7685) in front of the others, `length` bytes long in all.
    fn padded(hello: &[u8], length: usize) -> Vec<u8> {
        let body = &hello[9..];
        let mut start = Reader(body);
        start.take(34).unwrap();
        start.short_vector().unwrap();
        start.vector().unwrap();
        start.short_vector().unwrap();
        let head = &body[..body.len() - start.0.len()];
        let extensions = start.vector().unwrap();
        let size = length - body.len() - 4;
        // Several of them: none is longer than 64 KiB.
        let padding = [(size / 2, 0x0a0a_u16), (size - size / 2, 0x1a1a)].map(|(size, kind)| {
            [&kind.to_be_bytes()[..], &u16::try_from(size).unwrap().to_be_bytes(), &vec![0; size]].concat()
        });
        let all = [&padding.concat(), extensions].concat();
        // Beyond 64 KiB the list has no valid length, and nobody gets to read it.
        let list = u16::try_from(all.len()).unwrap_or(u16::MAX).to_be_bytes();
        let body = [head, &list, &all].concat();
        let message = [&[CLIENT_HELLO][..], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], &body].concat();
        [&hello[..HEADER], &message].concat()
    }

    fn named(name: &str) -> Hello {
        Hello::Name(name.into())
    }

    #[test]
    fn the_name_of_a_real_client_is_found() {
        assert_eq!(server_name(&hello("api.old.test")), named("api.old.test"));
        assert_eq!(server_name(&hello("192.0.2.1")), Hello::Nameless);
        assert_eq!(server_name(&[hello("api.old.test"), b"more".to_vec()].concat()), named("api.old.test"));
    }

    #[test]
    fn every_beginning_of_a_hello_is_incomplete() {
        let hello = hello("api.old.test");
        for hello in [in_records_of(1, &hello), in_records_of(100, &hello), hello] {
            for end in 0..hello.len() {
                let Hello::Incomplete(needed) = server_name(&hello[..end]) else { panic!("{end}") };
                assert!((end + 1..=hello.len()).contains(&needed), "{end}: {needed} of {}", hello.len());
            }
        }
    }

    #[test]
    fn records_may_split_the_hello_anywhere() {
        let hello = hello("api.old.test");
        for size in [1, 2, 3, 4, 5, 7, 64, 500] {
            assert_eq!(server_name(&in_records_of(size, &hello)), named("api.old.test"), "{size}");
        }
    }

    #[test]
    fn what_is_no_hello_is_known_early() {
        for bytes in [
            b"G".as_slice(),
            b"\x16\x02",
            b"\x15\x03\x01\x00\x02",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x40\x01",
            b"\x16\x03\x01\x00\x01\x02",
            b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
            b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
        ] {
            assert_eq!(server_name(bytes), Hello::Unreadable, "{bytes:?}");
        }
        assert_eq!(server_name(b""), Hello::Incomplete(HEADER));
    }

    #[test]
    fn names_are_compared_in_lower_case_and_nonsense_is_none() {
        let sent = hello("api.old.test");
        let at = sent.windows(12).position(|window| window == b"api.old.test").unwrap();
        for (name, expected) in [
            (b"API.old.Test", named("api.old.test")),
            (b"api.old.tes.", named("api.old.tes.")),
            (b"api.old.tes:", Hello::Unreadable),
            (b"api.old.te\xc3\xa4", Hello::Unreadable),
            (b"api.old te\0\0", Hello::Unreadable),
        ] {
            let mut changed = sent.clone();
            changed[at..at + 12].copy_from_slice(name);
            assert_eq!(server_name(&changed), expected);
        }
    }

    #[tokio::test]
    async fn peeking_leaves_every_byte() {
        let hello = hello("api.old.test");
        let (mut client, mut server) = pair().await;
        let send = async {
            for byte in &hello {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        };

        let (name, ()) = tokio::join!(peek(&server), send);
        let mut left = vec![0; hello.len()];
        server.read_exact(&mut left).await.unwrap();

        assert_eq!((name.unwrap().as_deref(), left), (Some("api.old.test"), hello));
    }

    #[tokio::test]
    async fn long_hellos_are_read_to_their_bound() {
        let short = hello("api.old.test");
        for (length, expected) in [
            (10_000, Some("api.old.test")),
            (30_000, Some("api.old.test")),
            (60_000, Some("api.old.test")),
            (70_000, None),
        ] {
            // 16 KiB and what TCP makes of them, and small records in small packets.
            for (record, packet) in [(LONGEST_FRAGMENT, usize::MAX), (4_000, 1_000)] {
                let sent = in_records_of(record, &padded(&short, length));
                let (mut client, mut server) = pair().await;
                let send = async {
                    for piece in sent.chunks(packet.min(sent.len())) {
                        client.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                };

                let read = async {
                    let name = peek(&server).await.unwrap();
                    // Whoever sends more than is looked at would wait for ever otherwise.
                    let mut left = vec![0; sent.len()];
                    server.read_exact(&mut left).await.unwrap();
                    (name, left)
                };
                let ((name, left), ()) = tokio::join!(read, send);

                assert_eq!(name.as_deref(), expected, "{length} bytes in records of {record}");
                assert!(left == sent, "every byte is still there");
            }
        }
    }

    #[tokio::test]
    async fn peeking_ends_where_no_hello_comes() {
        for (bytes, expected) in [
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Some(None)),
            (Vec::new(), Some(None)),
            // More records than fit into what is looked at.
            (in_records_of(1, &[&b"\x16\x03\x01\0\0\x01\0\x3f\xff"[..], &[0; 12 * 1024]].concat()), Some(None)),
            (b"\x16\x03".to_vec(), None),
        ] {
            let (mut client, server) = pair().await;
            client.write_all(&bytes).await.unwrap();
            client.shutdown().await.unwrap();

            assert_eq!(peek(&server).await.ok(), expected, "{} bytes", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(
            start in prop_oneof![Just(&b""[..]), Just(&b"\x16\x03\x01"[..]), Just(&b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c"[..])],
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = server_name(&[start, &bytes].concat());
        }

        #[test]
        fn a_damaged_hello_is_taken(at in 0_usize..200, by in any::<u8>(), size in 1_usize..300) {
            let mut hello = hello("api.old.test");
            hello[at] ^= by;
            let _ = server_name(&hello);
            let _ = server_name(&in_records_of(size, &hello));
        }

        #[test]
        fn nothing_behind_the_hello_counts(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            let hello = hello("api.old.test");
            prop_assert_eq!(server_name(&[hello, bytes].concat()), Hello::Name("api.old.test".into()));
        }
    }
}

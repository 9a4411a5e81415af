//! Blocking clients: exact bytes out, strict parsing in.

pub mod frames;
mod http2;
mod load;
mod paced;

pub use http2::{Http2, Upload};
pub use load::{Load, Tally};
pub use paced::{Call, Paced, Pacing, Record};

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};

use super::PATIENCE;
use super::origin::Handshake;

const PIECE: usize = 64 * 1024;

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// One connection to a server.
pub struct Client {
    wire: Wire,
    buffer: Vec<u8>,
    used: usize,
}

/// A whole response.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// `HTTP/1.1`.
    pub version: String,
    /// The status.
    pub status: u16,
    /// Fields as sent; bytes above 127 as Latin-1.
    pub headers: Vec<(String, String)>,
    /// The body, decoded.
    pub body: Vec<u8>,
    /// Fields behind a chunked body.
    pub trailers: Vec<(String, String)>,
    /// Interim responses before it.
    pub interim: Vec<(u16, Vec<(String, String)>)>,
    /// How the body's end was told.
    pub framing: Framing,
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    #[default]
    Empty,
    /// Content-Length.
    Length,
    /// Chunks.
    Chunked,
    /// The end of the connection.
    UntilClose,
}

/// Why there is no whole response.
#[derive(Debug)]
pub enum Failure {
    /// The connection was closed in order before a byte of the response.
    Closed,
    /// It was closed in the middle of a response; here is what had come.
    Truncated(Box<Response>),
    /// It was reset.
    Reset,
    /// Nothing came in time.
    Timeout,
    /// What came is no HTTP.
    Malformed(String),
    /// Anything else, TLS alerts for example.
    Other(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => formatter.write_str("closed"),
            Self::Truncated(response) => write!(formatter, "truncated after {} bytes", response.body.len()),
            Self::Reset => formatter.write_str("reset"),
            Self::Timeout => formatter.write_str("timeout"),
            Self::Malformed(what) => write!(formatter, "malformed: {what}"),
            Self::Other(error) => write!(formatter, "{error}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Other(error),
        }
    }
}

impl Response {
    /// The first field of that name, case ignored.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Every field of that name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// `old` or `new` when an origin of ours, or a peer configured like one, answered.
    pub fn side(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.body).ok()?;
        text.strip_prefix("side=")?.split_whitespace().next().or(self.header("x-side"))
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }
}

fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&address.into(), PATIENCE)?;
    let stream: TcpStream = socket.into();
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

impl Client {
    fn over(wire: Wire) -> Self {
        Self { wire, buffer: Vec::new(), used: 0 }
    }

    /// A connection in clear.
    #[track_caller]
    pub fn plain(address: SocketAddr) -> Self {
        Self::try_plain(address, None).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    /// The same from another loopback address, `127.0.0.7` for example.
    #[track_caller]
    pub fn plain_from(address: SocketAddr, source: &str) -> Self {
        Self::try_plain(address, Some(source.parse().unwrap()))
            .unwrap_or_else(|error| panic!("connect to {address} from {source}: {error}"))
    }

    /// A connection in clear, or why there is none.
    pub fn try_plain(address: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        Ok(Self::over(Wire::Plain(connect(address, source)?)))
    }

    /// A TLS connection with this server name.
    #[track_caller]
    pub fn tls(address: SocketAddr, sni: &str, config: &Arc<ClientConfig>) -> Self {
        Self::try_tls(address, sni, config).unwrap_or_else(|error| panic!("TLS to {address} as {sni}: {error}"))
    }

    /// A TLS connection whose handshake is over, or why it failed. A refused client certificate shows at the first read.
    pub fn try_tls(address: SocketAddr, sni: &str, config: &Arc<ClientConfig>) -> io::Result<Self> {
        Self::handshake(connect(address, None)?, sni, config, |socket, hello| socket.write_all(hello))
    }

    /// The same from another loopback address, and with a way of its own to send the first bytes.
    pub fn try_tls_from(
        address: SocketAddr,
        source: &str,
        sni: &str,
        config: &Arc<ClientConfig>,
        send_hello: impl FnOnce(&mut TcpStream, &[u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        Self::handshake(connect(address, Some(source.parse().unwrap()))?, sni, config, send_hello)
    }

    fn handshake(
        mut socket: TcpStream,
        sni: &str,
        config: &Arc<ClientConfig>,
        send_hello: impl FnOnce(&mut TcpStream, &[u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?;
        let mut session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        let mut hello = Vec::new();
        session.write_tls(&mut hello)?;
        send_hello(&mut socket, &hello)?;
        let mut stream = StreamOwned::new(session, socket);
        while stream.conn.is_handshaking() {
            uninterrupted(|| stream.conn.complete_io(&mut stream.sock))?;
        }
        Ok(Self::over(Wire::Tls(Box::new(stream))))
    }

    /// What ALPN agreed on.
    pub fn alpn(&self) -> Option<String> {
        let Wire::Tls(stream) = &self.wire else { return None };
        stream.conn.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
    }

    /// The version of TLS.
    pub fn tls_version(&self) -> Option<rustls::ProtocolVersion> {
        let Wire::Tls(stream) = &self.wire else { return None };
        stream.conn.protocol_version()
    }

    /// What the handshake came to.
    pub fn handshake_result(&self) -> Option<Handshake> {
        let Wire::Tls(stream) = &self.wire else { return None };
        Handshake::of(&stream.conn)
    }

    /// The certificate that the server showed.
    pub fn server_certificate(&self) -> Option<CertificateDer<'static>> {
        let Wire::Tls(stream) = &self.wire else { return None };
        stream.conn.peer_certificates().map(|chain| chain[0].clone().into_owned())
    }

    fn socket(&self) -> &TcpStream {
        match &self.wire {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => &stream.sock,
        }
    }

    /// Gives up reading after this time.
    pub fn patience(&mut self, patience: Duration) -> &mut Self {
        self.socket().set_read_timeout(Some(patience)).unwrap();
        self
    }

    /// Sends exactly these bytes.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.wire {
            Wire::Plain(stream) => stream.write_all(bytes),
            Wire::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    /// Sends exactly these bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes.as_ref()).unwrap_or_else(|error| panic!("send: {error}"));
        self
    }

    /// Leaves with a RST.
    pub fn reset(self) {
        SockRef::from(self.socket()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Sends a request whose body, when there is one, has a Content-Length, and reads its response.
    pub fn exchange(
        &mut self,
        method: &str,
        host: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, Failure> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.try_send(&[head.as_bytes(), body].concat())?;
        self.response(method)
    }

    /// A GET that must succeed in getting some response.
    #[track_caller]
    pub fn get(&mut self, host: &str, target: &str) -> Response {
        self.get_with(host, target, &[])
    }

    /// The same with more fields.
    #[track_caller]
    pub fn get_with(&mut self, host: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        self.exchange("GET", host, target, headers, b"")
            .unwrap_or_else(|failure| panic!("GET {target} of {host}: {failure}"))
    }

    /// A POST that must succeed in getting some response.
    #[track_caller]
    pub fn post(&mut self, host: &str, target: &str, body: &[u8]) -> Response {
        self.exchange("POST", host, target, &[], body)
            .unwrap_or_else(|failure| panic!("POST {target} of {host}: {failure}"))
    }

    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let start = self.buffer.len();
        self.buffer.resize(start + PIECE, 0);
        let read = uninterrupted(|| match &mut self.wire {
            Wire::Plain(stream) => stream.read(&mut self.buffer[start..]),
            Wire::Tls(stream) => stream.read(&mut self.buffer[start..]),
        });
        self.buffer.truncate(start + *read.as_ref().unwrap_or(&0));
        read.map(|length| length > 0)
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// Whether the server closes this connection, in any way, within `patience` without sending another byte.
    pub fn is_closed_within(&mut self, patience: Duration) -> bool {
        self.patience(patience);
        let closed = match self.fill() {
            Ok(more) => !more,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        };
        self.patience(PATIENCE);
        closed && self.unread().is_empty()
    }

    /// The next `length` bytes as they are, behind an upgrade for example.
    pub fn bytes(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        while self.unread().len() < length {
            if !self.fill()? {
                return Err(Failure::Closed);
            }
        }
        Ok(self.take(length))
    }

    /// Everything to the end of the connection.
    pub fn rest(&mut self) -> Result<Vec<u8>, Failure> {
        while self.fill()? {}
        Ok(self.take(self.unread().len()))
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let bytes = self.unread()[..length].to_vec();
        self.used += length;
        bytes
    }

    fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.unread().windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end + 2);
                return Ok(line[..end].iter().map(|byte| char::from(*byte)).collect());
            }
            if !self.fill()? {
                return Err(if self.unread().is_empty() { Failure::Closed } else { malformed("half a line") });
            }
        }
    }

    fn fields(&mut self) -> Result<Vec<(String, String)>, Failure> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
            if name.is_empty() || name.contains([' ', '\t', '\n', '\r']) {
                return Err(malformed(&line));
            }
            fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// The next head, interim or final, and nothing of its body.
    pub fn head(&mut self) -> Result<Response, Failure> {
        let line = self.line()?;
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or_default();
        let status = words.next().filter(|digits| digits.len() == 3).and_then(|digits| digits.parse().ok());
        let (true, Some(status)) = (version.starts_with("HTTP/1."), status) else { return Err(malformed(&line)) };
        Ok(Response { version: version.to_owned(), status, headers: self.fields()?, ..Response::default() })
    }

    /// The next final response to a request of this method.
    pub fn response(&mut self, method: &str) -> Result<Response, Failure> {
        let mut interim = Vec::new();
        let mut response = loop {
            let head = self.head()?;
            if !(100..200).contains(&head.status) || head.status == 101 {
                break head;
            }
            interim.push((head.status, head.headers));
        };
        response.interim = interim;
        self.body(method, &mut response, |_| {})?;
        Ok(response)
    }

    /// Reads a final response's body without keeping it; `piece` sees it as it comes.
    pub fn stream_body(
        &mut self,
        method: &str,
        mut response: Response,
        mut piece: impl FnMut(&[u8]),
    ) -> Result<Response, Failure> {
        self.body_pieces(method, &mut response, |_, bytes| piece(bytes))?;
        Ok(response)
    }

    fn body(&mut self, method: &str, response: &mut Response, mut seen: impl FnMut(&[u8])) -> Result<(), Failure> {
        self.body_pieces(method, response, |response, bytes| {
            seen(bytes);
            response.body.extend_from_slice(bytes);
        })
    }

    fn body_pieces(
        &mut self,
        method: &str,
        response: &mut Response,
        mut piece: impl FnMut(&mut Response, &[u8]),
    ) -> Result<(), Failure> {
        let lengths = response.all("content-length");
        let codings = response.all("transfer-encoding");
        let length = match lengths[..] {
            [] => None,
            [length] => Some(length.parse::<u64>().map_err(|_| malformed("content-length"))?),
            [_, _, ..] => return Err(malformed("several content-length fields")),
        };
        let is_chunked = !codings.is_empty();
        if is_chunked && (length.is_some() || !codings[..].eq(&["chunked"])) {
            return Err(malformed("transfer-encoding"));
        }
        if method == "HEAD" || matches!(response.status, 101 | 204 | 304) {
            if response.status == 204 && (is_chunked || length.is_some()) {
                return Err(malformed("framing fields in a 204"));
            }
            return Ok(());
        }
        let result = if is_chunked {
            response.framing = Framing::Chunked;
            self.chunks(response, &mut piece)
        } else if let Some(length) = length {
            response.framing = Framing::Length;
            self.pieces(response, length, &mut piece)
        } else {
            response.framing = Framing::UntilClose;
            loop {
                let bytes = self.take(self.unread().len());
                piece(response, &bytes);
                match self.fill() {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error.into()),
                }
            }
        };
        match result {
            Err(Failure::Closed) => Err(Failure::Truncated(Box::new(response.clone()))),
            // TLS without close_notify: only a length or a last chunk can tell a whole body from a cut one.
            Err(Failure::Other(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Failure::Truncated(Box::new(response.clone())))
            }
            other => other,
        }
    }

    fn pieces(
        &mut self,
        response: &mut Response,
        length: u64,
        piece: &mut impl FnMut(&mut Response, &[u8]),
    ) -> Result<(), Failure> {
        let mut left = length;
        while left > 0 {
            if self.unread().is_empty() && !self.fill()? {
                return Err(Failure::Closed);
            }
            let bytes = self.take(self.unread().len().min(left as usize));
            left -= bytes.len() as u64;
            piece(response, &bytes);
        }
        Ok(())
    }

    fn chunks(&mut self, response: &mut Response, piece: &mut impl FnMut(&mut Response, &[u8])) -> Result<(), Failure> {
        loop {
            let line = self.line()?;
            let size = u64::from_str_radix(&line, 16).map_err(|_| malformed(&format!("chunk size {line:?}")))?;
            if size == 0 {
                response.trailers = self.fields()?;
                return Ok(());
            }
            self.pieces(response, size, piece)?;
            if !self.line()?.is_empty() {
                return Err(malformed("no line end behind a chunk"));
            }
        }
    }
}

/// A process that was stopped and goes on finds its blocking calls with a time limit ended (signal(7)): that is nobody's
/// failure, and they are begun anew.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn malformed(what: &str) -> Failure {
    Failure::Malformed(what.to_owned())
}

/// One GET on a connection of its own.
#[track_caller]
pub fn get(address: SocketAddr, host: &str, target: &str) -> Response {
    Client::plain(address).get(host, target)
}

/// The same with more fields.
#[track_caller]
pub fn get_with(address: SocketAddr, host: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    Client::plain(address).get_with(host, target, headers)
}

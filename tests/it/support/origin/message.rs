//! HTTP/1.1 messages by hand: lenient towards nobody, but able to say exactly what arrived.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::stream::Stream;

const HEAD_LIMIT: usize = 1024 * 1024;
const PIECE: usize = 64 * 1024;

/// A stream with what was read from it and not used yet.
pub(super) struct Wire {
    pub stream: Stream,
    pub buffer: BytesMut,
}

/// The rest of a body that is still to come.
pub(super) enum Rest {
    Length(u64),
    /// Bytes left in the chunk; `None`: a chunk-size line comes next.
    Chunked(Option<u64>),
    Done,
}

pub(super) type Fields = Vec<(String, String)>;

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

impl Wire {
    /// Reads more; false at the end of the stream.
    pub async fn fill(&mut self) -> io::Result<bool> {
        self.buffer.reserve(PIECE);
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    async fn line(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.split_to(end + 2).freeze();
                return Ok(line.slice(..end));
            }
            if self.buffer.len() > HEAD_LIMIT || !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The bytes of the next head with its blank line; `None` when the peer closed before its first byte.
    pub async fn head(&mut self) -> io::Result<Option<Bytes>> {
        let mut seen = 0;
        loop {
            let from = seen.min(self.buffer.len());
            if let Some(end) = self.buffer[from..].windows(4).position(|four| four == b"\r\n\r\n") {
                return Ok(Some(self.buffer.split_to(from + end + 4).freeze()));
            }
            seen = self.buffer.len().saturating_sub(3);
            if self.buffer.len() > HEAD_LIMIT {
                return Err(broken("endless head"));
            }
            if !self.fill().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The next piece of a body; `None` at its end, where `trailers` receives what follows.
    pub async fn piece(&mut self, rest: &mut Rest, trailers: &mut Fields) -> io::Result<Option<Bytes>> {
        loop {
            let left = match rest {
                Rest::Done | Rest::Length(0) => {
                    *rest = Rest::Done;
                    return Ok(None);
                }
                Rest::Length(left) | Rest::Chunked(Some(left)) if *left > 0 => *left,
                Rest::Length(_) => unreachable!("zero was handled above"),
                Rest::Chunked(Some(_)) => {
                    if !self.line().await?.is_empty() {
                        return Err(broken("no line end behind a chunk"));
                    }
                    *rest = Rest::Chunked(None);
                    continue;
                }
                Rest::Chunked(None) => {
                    let line = latin1(&self.line().await?);
                    let digits = line.split(';').next().unwrap_or_default();
                    match u64::from_str_radix(digits, 16).map_err(|_| broken("chunk size"))? {
                        0 => *rest = self.trailers(trailers).await?,
                        size => *rest = Rest::Chunked(Some(size)),
                    }
                    continue;
                }
            };
            if self.buffer.is_empty() && !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let piece = self.buffer.split_to(self.buffer.len().min(left as usize)).freeze();
            let left = left - piece.len() as u64;
            *rest = if let Rest::Chunked(_) = rest { Rest::Chunked(Some(left)) } else { Rest::Length(left) };
            return Ok(Some(piece));
        }
    }

    async fn trailers(&mut self, trailers: &mut Fields) -> io::Result<Rest> {
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(Rest::Done);
            }
            trailers.push(field(&line)?);
        }
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Reads and forgets until the peer leaves.
    pub async fn until_closed(&mut self) {
        while let Ok(true) = self.fill().await {
            self.buffer.advance(self.buffer.len());
        }
    }

    /// Waits for `condition`; an error when the peer leaves before.
    pub async fn unless_closed(&mut self, condition: impl Future<Output = ()>) -> io::Result<()> {
        let mut condition = std::pin::pin!(condition);
        loop {
            tokio::select! {
                biased;
                () = &mut condition => return Ok(()),
                more = self.fill() => if !more? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                },
            }
        }
    }
}

fn field(line: &[u8]) -> io::Result<(String, String)> {
    let text = latin1(line);
    let (name, value) = text.split_once(':').ok_or_else(|| broken("a field without a colon"))?;
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// Method, target and version, and the fields, of a head.
pub(super) fn parse_request(head: &[u8]) -> io::Result<([String; 3], Fields)> {
    let text = head.strip_suffix(b"\r\n\r\n").ok_or_else(|| broken("no blank line"))?;
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = latin1(lines.next().unwrap_or_default());
    let words: Vec<&str> = first.split(' ').collect();
    let [method, target, version] = words[..] else { return Err(broken("request line")) };
    Ok(([method.to_owned(), target.to_owned(), version.to_owned()], lines.map(field).collect::<io::Result<_>>()?))
}

/// How the body of a request with these fields is framed.
pub(super) fn request_body(fields: &Fields) -> io::Result<Rest> {
    let mut found = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"));
    if let Some((_, value)) = found.next() {
        return if value.eq_ignore_ascii_case("chunked") { Ok(Rest::Chunked(None)) } else { Err(broken("coding")) };
    }
    match fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        Some((_, value)) => value.parse().map(Rest::Length).map_err(|_| broken("content-length")),
        None => Ok(Rest::Done),
    }
}

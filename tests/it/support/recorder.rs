//! An origin that trusts nobody: it reads HTTP/1.1 by the letter of RFC 9112 and notes everything that two readers could
//! take in two ways.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::listening::Listening;
use super::{PATIENCE, eventually};

/// A request as it was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Understood {
    /// Its method.
    pub method: String,
    /// Its target.
    pub target: String,
    /// Names in lower case, values as Latin-1.
    pub fields: Vec<(String, String)>,
    /// Its body, decoded.
    pub body: Vec<u8>,
    /// The fields behind its chunks.
    pub trailers: Vec<(String, String)>,
}

impl Understood {
    /// The only value of a field.
    pub fn only(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
        values.next().filter(|_| values.next().is_none())
    }
}

/// What came since the last look.
#[derive(Debug, Default)]
pub struct Seen {
    /// Requests that were whole.
    pub requests: Vec<Understood>,
    /// What is not allowed, or allowed and dangerous.
    pub faults: Vec<String>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    /// Connections in the middle of a request.
    busy: AtomicUsize,
}

/// The origin.
pub struct Recorder {
    shared: Arc<Shared>,
    listening: Listening,
}

impl Recorder {
    /// Listens, and answers every request by 200.
    pub fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let state = shared.clone();
        Self { shared, listening: Listening::start(move |socket, _| serve(socket, &state)) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// What has come, once no request is half there.
    #[track_caller]
    pub fn take(&self) -> Seen {
        eventually(PATIENCE, "requests end", || self.shared.busy.load(SeqCst) == 0);
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }
}

fn serve(mut socket: TcpStream, shared: &Shared) {
    let mut buffer = Vec::new();
    // The end of a connection between requests, or in one that was given up, is nobody's fault.
    while let Ok(true) = fill(&mut socket, &mut buffer) {
        shared.busy.fetch_add(1, SeqCst);
        let result = one(&mut socket, &mut buffer);
        if let Ok(Err(fault)) = &result {
            shared.seen.lock().unwrap().faults.push(fault.clone());
        }
        let is_whole = matches!(result, Ok(Ok(_)));
        if let Ok(Ok(request)) = result {
            if !buffer.is_empty() {
                shared.seen.lock().unwrap().faults.push(format!("pipelined: {:?}", String::from_utf8_lossy(&buffer)));
            }
            shared.seen.lock().unwrap().requests.push(request);
        }
        let answered = is_whole && socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok();
        shared.busy.fetch_sub(1, SeqCst);
        if !answered {
            return;
        }
    }
}

fn fill(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; 16 * 1024];
    let length = socket.read(&mut piece)?;
    buffer.extend_from_slice(&piece[..length]);
    Ok(length > 0)
}

/// One request; the outer error is a connection that ended, the inner one a fault.
fn one(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Result<Understood, String>> {
    let lines = lines(socket, buffer)?;
    let fault = |what: String| Ok(Err(format!("{what}: {:?}", show(&lines))));
    let mut request = match head(&lines) {
        Ok(request) => request,
        Err(what) => return fault(what),
    };
    match framing(&request.fields) {
        Ok(Framing::Length(length)) => request.body = exactly(socket, buffer, length)?,
        Ok(Framing::Chunked) => {
            if let Err(what) = chunks(socket, buffer, &mut request)? {
                return fault(what);
            }
        }
        Err(what) => return fault(what),
    }
    Ok(Ok(request))
}

fn chunks(socket: &mut TcpStream, buffer: &mut Vec<u8>, request: &mut Understood) -> io::Result<Result<(), String>> {
    loop {
        let size = line(socket, buffer)?;
        let Some(length) = chunk_size(&size) else { return Ok(Err(format!("chunk size {:?}", show(&[size])))) };
        if length == 0 {
            break;
        }
        request.body.extend(exactly(socket, buffer, length)?);
        if exactly(socket, buffer, 2)? != b"\r\n" {
            return Ok(Err("no line end behind a chunk".to_owned()));
        }
    }
    let trailers = lines(socket, buffer)?;
    Ok(trailers
        .iter()
        .map(|line| field(line))
        .collect::<Result<_, _>>()
        .map(|fields| request.trailers = fields)
        .map_err(|what| format!("trailer, {what}: {:?}", show(&trailers))))
}

/// The lines up to an empty one.
fn lines(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Vec<Vec<u8>>> {
    let mut lines = Vec::new();
    loop {
        let line = line(socket, buffer)?;
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line);
    }
}

fn show(lines: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&lines.join(&b"\r\n"[..])).into_owned()
}

/// A line that ends in CR LF; a bare CR or LF stays in it and is refused by whoever reads it.
fn line(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        if let Some(end) = buffer.windows(2).position(|pair| pair == b"\r\n") {
            let line = buffer[..end].to_vec();
            buffer.drain(..end + 2);
            return Ok(line);
        }
        if !fill(socket, buffer)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn exactly(socket: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
    while buffer.len() < length {
        if !fill(socket, buffer)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.drain(..length).collect())
}

fn head(lines: &[Vec<u8>]) -> Result<Understood, String> {
    let (first, rest) = lines.split_first().ok_or("an empty line instead of a request")?;
    let text: String = first.iter().map(|byte| char::from(*byte)).collect();
    let words: Vec<&str> = text.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { return Err("request line".to_owned()) };
    let is_target = target == "*" || target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_token(method.as_bytes()) || !is_target {
        return Err("method or target".to_owned());
    }
    let fields = rest.iter().map(|line| field(line)).collect::<Result<Vec<_>, _>>()?;
    let request = Understood { method: method.to_owned(), target: target.to_owned(), fields, ..Understood::default() };
    let is_host = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]~".contains(&byte))
    };
    if request.only("host").is_some_and(is_host) { Ok(request) } else { Err("not one host".to_owned()) }
}

fn field(line: &[u8]) -> Result<(String, String), String> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a field without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err("field name".to_owned());
    }
    if value.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
        return Err("field value".to_owned());
    }
    let value: String = value.iter().map(|byte| char::from(*byte)).collect();
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

enum Framing {
    Length(usize),
    Chunked,
}

fn framing(fields: &[(String, String)]) -> Result<Framing, String> {
    // A reader that takes `_` for `-` would see these too.
    let of = |name: &str| -> Vec<&str> {
        fields.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect()
    };
    match (&of("content-length")[..], &of("transfer-encoding")[..]) {
        ([], []) => Ok(Framing::Length(0)),
        ([], ["chunked"]) => Ok(Framing::Chunked),
        ([digits], []) if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            digits.parse().map(Framing::Length).map_err(|_| "a length without end".to_owned())
        }
        (lengths, codings) => Err(format!("lengths {lengths:?} and codings {codings:?}")),
    }
}

fn chunk_size(line: &[u8]) -> Option<usize> {
    let is_plain = !line.is_empty() && line.len() <= 15 && line.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(line).ok().filter(|_| is_plain).and_then(|digits| usize::from_str_radix(digits, 16).ok())
}

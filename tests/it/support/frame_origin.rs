//! An origin that speaks HTTP/2 frame by frame, so that it can refuse, reset and leave at any moment.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::client::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, block,
};
use super::listening::Listening;

/// A request whose head has come.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Connections before this one.
    pub connection: u64,
    /// Requests before this one on the connection.
    pub before: u64,
}

/// What the origin does then.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// 200 without a body.
    Answer,
    /// This status, and a body to follow.
    Head(u16),
    /// Some of the body.
    Data(&'static [u8]),
    /// The rest of it.
    Last(&'static [u8]),
    /// The end of it, with a trailer.
    Trailers,
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this last stream and this code.
    GoAway(u32, u32),
    /// The end of the connection.
    Close,
}

/// How the client ended a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its last frame.
    Whole,
    /// RST_STREAM with this code.
    Reset(u32),
}

type Script = Arc<dyn Fn(Arrival) -> Vec<Move> + Send + Sync>;

struct Shared {
    script: Script,
    /// How many streams it allows, when it says so.
    streams: Option<u32>,
    requests: AtomicU64,
    connections: AtomicU64,
    /// The most streams that were open on one connection.
    most: Mutex<u32>,
    /// All DATA of each connection.
    data: Mutex<HashMap<u64, Vec<u8>>>,
    endings: Mutex<Vec<Ending>>,
}

/// The origin.
pub struct FrameOrigin {
    shared: Arc<Shared>,
    listening: Listening,
}

impl FrameOrigin {
    /// In clear, by prior knowledge; the script says what follows each request.
    pub fn start(streams: Option<u32>, script: impl Fn(Arrival) -> Vec<Move> + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            script: Arc::new(script),
            streams,
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            most: Mutex::new(0),
            data: Mutex::default(),
            endings: Mutex::default(),
        });
        let state = shared.clone();
        let listening = Listening::start(move |socket, connection| {
            state.connections.fetch_add(1, SeqCst);
            serve(socket, &state, connection);
        });
        Self { shared, listening }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// Requests whose head has come.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(SeqCst)
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(SeqCst)
    }

    /// All DATA that came on a connection.
    pub fn data(&self, connection: u64) -> Vec<u8> {
        self.shared.data.lock().unwrap().get(&connection).cloned().unwrap_or_default()
    }

    /// How requests were ended, in the order in which they were.
    pub fn endings(&self) -> Vec<Ending> {
        self.shared.endings.lock().unwrap().clone()
    }

    /// The most streams that were open on one connection.
    pub fn most_streams(&self) -> u32 {
        *self.shared.most.lock().unwrap()
    }
}

fn exactly(socket: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Serves until either side has had enough; how it ends is nobody's business.
fn serve(mut socket: TcpStream, shared: &Shared, connection: u64) {
    let _ = talk(&mut socket, shared, connection);
}

fn talk(socket: &mut TcpStream, shared: &Shared, connection: u64) -> io::Result<()> {
    socket.set_nodelay(true)?;
    exactly(socket, 24)?;
    let settings = shared.streams.map_or_else(Vec::new, |most| [&[0, 3][..], &most.to_be_bytes()].concat());
    socket.write_all(&Frames::bytes(SETTINGS, 0, 0, &settings))?;
    let (mut before, mut open) = (0, 0);
    loop {
        let head = exactly(socket, 9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = exactly(socket, length)?;
        let ending = match head[3] {
            HEADERS | DATA if head[4] & END_STREAM != 0 => Some(Ending::Whole),
            RST_STREAM => Some(Ending::Reset(u32::from_be_bytes(payload[..4].try_into().unwrap()))),
            _ => None,
        };
        shared.endings.lock().unwrap().extend(ending);
        match (head[3], head[4]) {
            (SETTINGS, 0) => socket.write_all(&Frames::bytes(SETTINGS, ACK, 0, b""))?,
            (PING, 0) => socket.write_all(&Frames::bytes(PING, ACK, 0, &payload))?,
            (HEADERS, _) => {
                let arrival = Arrival { connection, before };
                (before, open) = (before + 1, open + 1);
                shared.requests.fetch_add(1, SeqCst);
                let mut most = shared.most.lock().unwrap();
                *most = open.max(*most);
                drop(most);
                for what in (shared.script)(arrival) {
                    let ends = matches!(what, Move::Answer | Move::Last(_) | Move::Trailers | Move::Reset(_));
                    open = open.saturating_sub(u32::from(ends));
                    socket.write_all(&bytes(what, stream))?;
                    if matches!(what, Move::Close) {
                        return leave(socket);
                    }
                }
            }
            (DATA, _) => shared.data.lock().unwrap().entry(connection).or_default().extend(payload),
            _ => {}
        }
    }
}

/// In order: with bytes unread the system would reset the connection, and the last word would be lost with it.
fn leave(socket: &mut TcpStream) -> io::Result<()> {
    socket.shutdown(Shutdown::Write)?;
    io::copy(socket, &mut io::sink()).map(|_| ())
}

fn bytes(what: Move, stream: u32) -> Vec<u8> {
    match what {
        Move::Answer => Frames::bytes(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]),
        Move::Head(status) => {
            let block = [&[0x08, 3][..], status.to_string().as_bytes()].concat();
            Frames::bytes(HEADERS, END_HEADERS, stream, &block)
        }
        Move::Data(bytes) => Frames::bytes(DATA, 0, stream, bytes),
        Move::Last(bytes) => Frames::bytes(DATA, END_STREAM, stream, bytes),
        Move::Trailers => Frames::bytes(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(b"x-sum", b"42")])),
        Move::Reset(code) => Frames::bytes(RST_STREAM, 0, stream, &code.to_be_bytes()),
        Move::GoAway(last, code) => Frames::bytes(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat()),
        Move::Close => Vec::new(),
    }
}

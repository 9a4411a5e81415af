//! Requests at a fixed rate, whether or not the earlier ones are answered: what users do while a cluster hangs. Every
//! request leaves a record; times count from the moment at which it was due.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::super::eventually;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(1);
/// Requests under way at once. Beyond that it is the machine of the test that cannot keep up, and requests are left out.
const MOST: u64 = 2_500;
/// Longer than any deadline of the proxies under test.
const PATIENCE: Duration = Duration::from_secs(15);

/// One request.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The method.
    pub method: &'static str,
    /// The request target.
    pub target: String,
    /// More fields.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: &'static [u8],
}

/// What came of one request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its number, from 0.
    pub number: u64,
    /// Its method.
    pub method: &'static str,
    /// When it was due, from the start of the load.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// What came back; the text says why nothing did.
    pub answer: Result<Answer, String>,
}

/// A whole response, in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// It came from the new cluster.
    pub from_new: bool,
    /// It came from the old cluster.
    pub from_old: bool,
    /// It says when to come back.
    pub retry_after: bool,
    /// The connection ends with it.
    closes: bool,
}

impl Seen {
    /// The status; 0 where nothing came.
    pub fn status(&self) -> u16 {
        self.answer.as_ref().map_or(0, |answer| answer.status)
    }

    /// A whole 200.
    pub fn is_ok(&self) -> bool {
        self.status() == 200
    }
}

/// Everything that was seen, in the order in which it ended.
#[derive(Clone, Debug, Default)]
pub struct Record(pub Vec<Seen>);

impl Record {
    /// How many of them.
    pub fn count(&self, which: impl Fn(&Seen) -> bool) -> usize {
        self.0.iter().filter(|seen| which(seen)).count()
    }

    /// Only those.
    pub fn only(&self, which: impl Fn(&Seen) -> bool) -> Self {
        Self(self.0.iter().filter(|seen| which(seen)).cloned().collect())
    }

    /// The time that this share (0 to 1) did not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut times: Vec<Duration> = self.0.iter().map(|seen| seen.took).collect();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        times.get(((last as f64) * share).round() as usize).copied().unwrap_or_default()
    }

    /// The first few of them, for messages.
    pub fn some(&self) -> &[Seen] {
        &self.0[..self.0.len().min(5)]
    }

    /// Fails the test unless every request got a 200.
    #[track_caller]
    pub fn assert_all_ok(&self) {
        let bad = self.only(|seen| !seen.is_ok());
        assert!(bad.0.is_empty(), "{} of {} failed: {:#?}", bad.0.len(), self.0.len(), bad.some());
    }
}

/// A load that is ready to start.
#[derive(Clone)]
pub struct Paced {
    address: SocketAddr,
    host: String,
    rate: f64,
    call: Arc<dyn Fn(u64) -> Call + Send + Sync>,
}

/// A load under way.
pub struct Pacing {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    start: Instant,
    rate: f64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    left_out: AtomicU64,
    record: Mutex<Vec<Seen>>,
}

impl Paced {
    /// GET / of this host, so many times a second.
    pub fn new(address: SocketAddr, host: &str, rate: u64) -> Self {
        let call = Arc::new(|_| Call { method: "GET", target: "/".into(), ..Call::default() });
        Self { address, host: host.to_owned(), rate: rate as f64, call }
    }

    /// Other requests, by number.
    pub fn calls(mut self, call: impl Fn(u64) -> Call + Send + Sync + 'static) -> Self {
        self.call = Arc::new(call);
        self
    }

    /// Starts it.
    pub fn start(self) -> Pacing {
        let (shared, start) = (Arc::new(Shared::default()), Instant::now());
        let (theirs, rate) = (shared.clone(), self.rate);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, self.drive(theirs, start));
        });
        Pacing { shared, thread: Some(thread), start, rate }
    }

    /// Runs it for so many requests.
    #[track_caller]
    pub fn run(self, requests: u64) -> Record {
        let pacing = self.start();
        pacing.wait_for(requests);
        pacing.stop()
    }

    async fn drive(self, shared: Arc<Shared>, start: Instant) {
        let (load, idle, open) = (Rc::new(self), Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(0_u64)));
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut number = 0;
        while !shared.stop.load(SeqCst) {
            let due = (start.elapsed().as_secs_f64() * load.rate) as u64;
            while number < due {
                if open.get() >= MOST {
                    number += 1;
                    shared.left_out.fetch_add(1, SeqCst);
                    continue;
                }
                let (load, idle, open, shared) = (load.clone(), idle.clone(), open.clone(), shared.clone());
                let at = Duration::from_secs_f64(number as f64 / load.rate);
                open.set(open.get() + 1);
                tokio::task::spawn_local(async move {
                    let seen = load.one(number, at, start, &idle).await;
                    shared.record.lock().unwrap().push(seen);
                    open.set(open.get() - 1);
                });
                number += 1;
            }
            clock.tick().await;
        }
        while open.get() > 0 {
            clock.tick().await;
        }
    }

    async fn one(&self, number: u64, at: Duration, start: Instant, idle: &RefCell<Vec<Wire>>) -> Seen {
        let call = (self.call)(number);
        let exchange = self.exchange(&call, idle);
        let answer = match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer in time".to_owned()),
        };
        Seen { number, method: call.method, at, took: start.elapsed().saturating_sub(at), answer }
    }

    async fn exchange(&self, call: &Call, idle: &RefCell<Vec<Wire>>) -> Result<Answer, String> {
        let waiting = std::iter::from_fn(|| idle.borrow_mut().pop()).find_map(Wire::still_open);
        let mut wire = match waiting {
            Some(wire) => wire,
            None => Wire::open(self.address).await.map_err(|error| format!("connect: {error}"))?,
        };
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", call.method, call.target, self.host);
        for (name, value) in &call.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !call.body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", call.body.len()));
        }
        head.push_str("\r\n");
        let bytes = [head.as_bytes(), call.body].concat();
        wire.stream.write_all(&bytes).await.map_err(|error| format!("send: {error}"))?;
        let answer = wire.answer().await?;
        if !answer.closes {
            idle.borrow_mut().push(wire);
        }
        Ok(answer)
    }
}

impl Pacing {
    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Requests that have ended, one way or the other.
    pub fn ended(&self) -> u64 {
        self.shared.left_out.load(SeqCst) + self.shared.record.lock().unwrap().len() as u64
    }

    /// Waits until so many requests more have ended.
    #[track_caller]
    pub fn wait_for(&self, requests: u64) {
        self.watch_for(requests, || {});
    }

    /// The same, and calls `look` now and then meanwhile.
    #[track_caller]
    pub fn watch_for(&self, requests: u64, mut look: impl FnMut()) {
        let enough = self.ended() + requests;
        // Many times as long as it takes where the machine keeps up.
        let deadline = PATIENCE * 4 + Duration::from_secs_f64(requests as f64 / self.rate) * 4;
        eventually(deadline, &format!("{requests} requests of the load"), || {
            look();
            self.ended() >= enough
        });
    }

    pub fn stop(mut self) -> Record {
        self.shared.stop.store(true, SeqCst);
        self.thread.take().expect("joined once").join().unwrap();
        let left_out = self.shared.left_out.load(SeqCst);
        if left_out > 0 {
            let _ =
                writeln!(std::io::stderr(), "this machine is too slow: {left_out} requests of the load were left out");
        }
        Record(std::mem::take(&mut self.shared.record.lock().unwrap()))
    }
}

impl Drop for Pacing {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
    }
}

/// A kept connection.
struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Wire {
    async fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// As every client does before it uses a connection again: one that the server has closed is left aside.
    fn still_open(self) -> Option<Self> {
        let mut byte = [0];
        match self.stream.try_read(&mut byte) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(self),
            _ => None,
        }
    }

    async fn fill(&mut self) -> Result<(), String> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err("closed in the middle".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("read: {error}")),
        }
    }

    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.split_to(end + 2);
                return Ok(String::from_utf8_lossy(&line[..end]).to_ascii_lowercase());
            }
            self.fill().await?;
        }
    }

    async fn skip(&mut self, mut length: usize) -> Result<(), String> {
        loop {
            let have = length.min(self.buffer.len());
            self.buffer.advance(have);
            length -= have;
            if length == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn answer(&mut self) -> Result<Answer, String> {
        let first = self.line().await.map_err(|why| format!("before the head: {why}"))?;
        let status = first.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)).and_then(|text| text.parse().ok());
        let mut answer = Answer { status: status.ok_or_else(|| format!("no status: {first}"))?, ..Answer::default() };
        let (mut length, mut is_chunked) = (None, false);
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            match (name, value.trim()) {
                ("content-length", value) => length = value.parse().ok(),
                ("transfer-encoding", _) => is_chunked = true,
                ("connection", "close") => answer.closes = true,
                ("retry-after", _) => answer.retry_after = true,
                ("x-side", side) => (answer.from_old, answer.from_new) = (side == "old", side == "new"),
                _ => {}
            }
        }
        match length {
            _ if is_chunked => loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(&line, 16).map_err(|_| format!("chunk size {line}"))?;
                self.skip(size + 2).await?;
                if size == 0 {
                    break;
                }
            },
            Some(length) => self.skip(length).await?,
            None => return Err("no framing".to_owned()),
        }
        Ok(answer)
    }
}

//! One line per request, off the request path: a worker formats into a buffer of its own, and a thread writes all
//! buffers in one call a few times per second. The thread sleeps while nothing is logged. A destination that does not
//! keep up costs lines, which are counted, and never a request's time.

use std::mem;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::Counter;
use tracing::{info, warn};

use super::access_line::{self, Line};
use super::sink::{Sink, SinkError};
use crate::config::{AccessFormat, Log, Percent};

pub use super::access_line::{RequestText, Try};

/// Bytes that wait for the disk, per worker.
const BUFFER_LIMIT: usize = 1 << 20;
/// The writer does not wait for more lines from here on.
const BUFFER_URGENT: usize = BUFFER_LIMIT / 2;
/// A buffer that a burst made larger than this is given back when it is quiet again.
const BUFFER_KEPT: usize = 1 << 16;
/// How long the writer gathers lines after the first one.
const GATHER: Duration = Duration::from_millis(20);

/// The access log, shared by all workers.
#[derive(Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    /// The path that is open; `None` while the log is off.
    path: Mutex<Option<PathBuf>>,
    ended: Mutex<Receiver<()>>,
}

/// Checked settings that wait for [`AccessLog::install`].
#[derive(Debug)]
pub struct Prepared {
    format: AccessFormat,
    sample: Percent,
    path: PathBuf,
    /// A newly opened destination, when it is another one than before.
    sink: Option<Sink>,
}

impl Prepared {
    /// The present destination stays.
    pub fn opens_nothing(&self) -> bool {
        self.sink.is_none()
    }
}

#[derive(Debug)]
struct Shared {
    buffers: Box<[Slot]>,
    format: AtomicU8,
    /// Basis points of the 2xx and 3xx lines that are kept.
    sample: AtomicU16,
    /// A line waits, or a destination; set by whoever has to wake the writer.
    pending: AtomicBool,
    urgent: AtomicBool,
    closing: AtomicBool,
    /// A destination that replaces the present one with the next batch.
    next: Mutex<Option<Sink>>,
    writer: OnceLock<Thread>,
    dropped: Counter,
}

/// A worker's buffer, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot(Mutex<Buffer>);

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// The text of `second`, so that a line costs no calendar.
    time: String,
    second: u64,
    format: u8,
}

impl AccessLog {
    /// Opens `log.access_path` and starts the writer. `dropped` counts lost lines.
    pub fn new(log: &Log, workers: usize, dropped: Counter) -> Result<Self, SinkError> {
        let shared = Arc::new(Shared::new(workers, dropped));
        let (running, ended) = mpsc::channel();
        let writer = Arc::clone(&shared);
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || {
            // Dropping the sender at the end of the thread is what `close` waits for.
            let _running = running;
            Writer { shared: writer, sink: None, torn: false, failing: false }.run();
        });
        let thread = thread.map_err(|source| SinkError { path: log.access_path.clone(), source })?;
        shared.writer.get_or_init(|| thread.thread().clone());
        let this = Self { shared, path: Mutex::new(None), ended: Mutex::new(ended) };
        this.install(this.prepare(log)?);
        Ok(this)
    }

    /// Writes one line into the worker's buffer, or leaves it out by `log.access_sample`. Never waits for the disk.
    pub fn write(&self, worker: usize, line: &Line<'_>) {
        // Read once: a change of the form in between must not mix up the two.
        let format = self.shared.format.load(Ordering::Relaxed);
        if format != AccessFormat::Off as u8 && !self.shared.is_left_out(line) {
            self.shared.write(worker, line, format, SystemTime::now());
        }
    }

    /// Opens what changed settings need, without using it yet.
    pub fn prepare(&self, log: &Log) -> Result<Prepared, SinkError> {
        let open = log.access != AccessFormat::Off && lock(&self.path).as_ref() != Some(&log.access_path);
        let sink = open.then(|| Sink::open(&log.access_path)).transpose()?;
        Ok(Prepared { format: log.access, sample: log.access_sample, path: log.access_path.clone(), sink })
    }

    /// Uses changed settings.
    pub fn install(&self, prepared: Prepared) {
        if let Some(sink) = prepared.sink {
            *lock(&self.path) = Some(prepared.path);
            self.shared.replace(sink);
        }
        self.shared.sample.store(prepared.sample.basis_points(), Ordering::Relaxed);
        self.shared.format.store(prepared.format as u8, Ordering::Relaxed);
    }

    /// Opens the path anew, after a rotation. Lines that wait go to the new file; after an error the old one stays.
    pub fn reopen(&self) -> Result<(), SinkError> {
        if let Some(path) = &*lock(&self.path) {
            self.shared.replace(Sink::open(path)?);
        }
        Ok(())
    }

    /// Writes what waits and ends the writer; false when that takes longer than `patience`. Later lines are lost.
    pub fn close(&self, patience: Duration) -> bool {
        self.shared.close();
        !matches!(lock(&self.ended).recv_timeout(patience), Err(mpsc::RecvTimeoutError::Timeout))
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn new(workers: usize, dropped: Counter) -> Self {
        Self {
            buffers: (0..workers.max(1)).map(|_| Slot::default()).collect(),
            format: AtomicU8::new(AccessFormat::Off as u8),
            sample: AtomicU16::new(0),
            pending: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            next: Mutex::new(None),
            writer: OnceLock::new(),
            dropped,
        }
    }

    fn write(&self, worker: usize, line: &Line<'_>, format: u8, now: SystemTime) {
        let mut buffer = lock(&self.buffers[worker % self.buffers.len()].0);
        let before = buffer.bytes.len();
        if before >= BUFFER_LIMIT {
            self.dropped.increment(1);
            return;
        }
        buffer.set_time(now, format);
        let Buffer { bytes, time, .. } = &mut *buffer;
        if format == AccessFormat::Nginx as u8 {
            access_line::push_nginx(bytes, time, line);
        } else {
            access_line::push_json(bytes, time, line);
        }
        let after = bytes.len();
        drop(buffer);
        if before == 0 {
            self.wake();
        } else if after >= BUFFER_URGENT && before < BUFFER_URGENT {
            self.urgent.store(true, Ordering::Release);
            self.unpark();
        }
    }

    /// Only plain successes are sampled: what somebody will look for is always there.
    fn is_left_out(&self, line: &Line<'_>) -> bool {
        let sample = self.sample.load(Ordering::Relaxed);
        sample < Percent::HUNDRED.basis_points()
            && (200..400).contains(&line.status)
            && line.tries.len() <= 1
            && !matches!(line.reason, "fallback" | "breaker" | "unhealthy" | "full")
            && rand::random_range(0..Percent::HUNDRED.basis_points()) >= sample
    }

    fn replace(&self, sink: Sink) {
        *lock(&self.next) = Some(sink);
        self.wake();
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.unpark();
    }

    fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.unpark();
        }
    }

    fn unpark(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }
}

impl Buffer {
    fn set_time(&mut self, now: SystemTime, format: u8) {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second || format != self.format || self.time.is_empty() {
            let format_is_nginx = format == AccessFormat::Nginx as u8;
            self.time = access_line::time(second, format_is_nginx);
            (self.second, self.format) = (second, format);
        }
    }

    /// Gives away what waits and takes an empty buffer for it.
    fn swap(&mut self, spare: &mut Vec<u8>) {
        spare.clear();
        if spare.capacity() > BUFFER_KEPT && self.bytes.len() < BUFFER_KEPT / 4 {
            spare.shrink_to(BUFFER_KEPT);
        }
        mem::swap(&mut self.bytes, spare);
    }
}

/// The thread that knows the destination.
struct Writer {
    shared: Arc<Shared>,
    sink: Option<Sink>,
    /// The last thing written was a part of a line.
    torn: bool,
    /// The last batch was lost, and that was said.
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        let mut batches: Vec<Vec<u8>> = self.shared.buffers.iter().map(|_| Vec::new()).collect();
        loop {
            let closing = self.wait();
            // Before the buffers are taken: a line that comes later wakes us again.
            self.shared.pending.store(false, Ordering::SeqCst);
            self.shared.urgent.store(false, Ordering::Relaxed);
            if let Some(sink) = lock(&self.shared.next).take() {
                self.sink = Some(sink);
                self.torn = false;
            }
            for (slot, batch) in self.shared.buffers.iter().zip(&mut batches) {
                lock(&slot.0).swap(batch);
            }
            self.write(&batches);
            if closing {
                return;
            }
        }
    }

    /// Sleeps until there is something to do, and a little longer to do more of it at once; true at the end.
    fn wait(&self) -> bool {
        let is_closing = || self.shared.closing.load(Ordering::Acquire);
        while !self.shared.pending.load(Ordering::Acquire) {
            if is_closing() {
                return true;
            }
            thread::park();
        }
        let end = Instant::now() + GATHER;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() || is_closing() || self.shared.urgent.load(Ordering::Acquire) {
                return is_closing();
            }
            thread::park_timeout(rest);
        }
    }

    fn write(&mut self, batches: &[Vec<u8>]) {
        let mut slices: Vec<&[u8]> = Vec::with_capacity(batches.len() + 1);
        // What follows a torn line must not look like its end.
        slices.push(if self.torn { b"\n" } else { b"" });
        slices.extend(batches.iter().map(Vec::as_slice));
        if slices[1..].iter().all(|batch| batch.is_empty()) {
            return;
        }
        let result = match &mut self.sink {
            Some(sink) => sink.write(&slices),
            None => Ok(()),
        };
        match result {
            Ok(()) => {
                self.torn = false;
                if mem::take(&mut self.failing) {
                    info!("access log is written again");
                }
            }
            Err((written, error)) => {
                let (lost, torn) = lost_lines(&slices, written, self.torn);
                self.torn = torn;
                self.shared.dropped.increment(lost);
                if !mem::replace(&mut self.failing, true) {
                    warn!(%error, "access log cannot be written, lines are dropped and counted");
                }
            }
        }
    }
}

/// How many lines were not written whole, and whether what was written ends inside of a line.
fn lost_lines(slices: &[&[u8]], written: usize, was_torn: bool) -> (u64, bool) {
    let mut skip = written;
    let mut lost = 0;
    let mut last = None;
    for slice in slices {
        let (done, rest) = slice.split_at(skip.min(slice.len()));
        skip -= done.len();
        last = done.last().copied().or(last);
        lost += memchr::memchr_iter(b'\n', rest).count() as u64;
    }
    if written == 0 && was_torn {
        // The line break that was to close the torn line is still owed, and is no line.
        return (lost - 1, true);
    }
    (lost, last.is_some_and(|byte| byte != b'\n'))
}

/// A panic while a buffer was held leaves at worst one odd line.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{self, Read};
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::sync::atomic::AtomicU64;

    use http::Version;
    use tracing::Level;

    use super::*;
    use crate::config::{Cluster, LogFormat};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn settings(path: &Path) -> Log {
        Log {
            level: Level::INFO,
            format: LogFormat::Text,
            access: AccessFormat::Nginx,
            access_path: path.into(),
            access_sample: Percent::HUNDRED,
            audit_path: "/dev/null".into(),
        }
    }

    fn line<'a>(path: &'a str, tries: &'a [Try]) -> Line<'a> {
        Line {
            client: "10.0.0.1".parse().unwrap(),
            request: RequestText::Parsed { method: "GET", path_and_query: path, version: Version::HTTP_11 },
            status: 200,
            bytes: 0,
            tries,
            request_time: Duration::ZERO,
            service: "a",
            reason: "zero",
            bucket: None,
            request_id: b"id",
            host: b"a.old.example",
            user_agent: b"test",
        }
    }

    fn counted() -> (Arc<AtomicU64>, Counter) {
        let count = Arc::new(AtomicU64::new(0));
        (Arc::clone(&count), Counter::from_arc(count))
    }

    fn count_lines(path: &Path) -> usize {
        fs::read_to_string(path).unwrap_or_default().lines().count()
    }

    #[test]
    fn lines_of_all_workers_are_written_at_the_latest_when_closing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access");
        let log = AccessLog::new(&settings(&path), 2, Counter::noop()).unwrap();

        for index in 0..100 {
            log.write(index, &line(&format!("/{index}"), &[]));
        }
        assert!(log.close(PATIENCE));

        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 100);
        let even: Vec<&str> = text.lines().filter(|line| line.contains("/8")).collect();
        assert!(even[0].contains("\"GET /8 HTTP/1.1\" 200 0 backend=\"-\" "), "{}", even[0]);
        assert!(log.close(PATIENCE), "closing twice does no harm");
    }

    #[test]
    fn a_line_is_written_without_closing() {
        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let log = AccessLog::new(&settings(Path::new(&path)), 1, Counter::noop()).unwrap();

        for path in ["/first", "/second"] {
            log.write(0, &line(path, &[]));
            let mut read = [0; 512];
            let length = reader.read(&mut read).unwrap();
            let text = String::from_utf8_lossy(&read[..length]);
            assert!(text.contains(path) && text.ends_with('\n'), "{text}");
        }
    }

    #[test]
    fn rotation_loses_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access");
        let (dropped, counter) = counted();
        let log = AccessLog::new(&settings(&path), 2, counter).unwrap();

        // All lines of a worker fit into its buffer, so that a writer that gets no time drops none.
        thread::scope(|scope| {
            for worker in 0..2 {
                let log = &log;
                scope.spawn(move || (0..4000).for_each(|_| log.write(worker, &line("/", &[]))));
            }
            for turn in 0..20 {
                fs::rename(&path, folder.path().join(turn.to_string())).unwrap();
                log.reopen().unwrap();
            }
        });
        assert!(log.close(PATIENCE));

        let lines: usize = fs::read_dir(folder.path()).unwrap().map(|entry| count_lines(&entry.unwrap().path())).sum();
        assert_eq!((lines, dropped.load(Ordering::Relaxed)), (8000, 0));
    }

    #[test]
    fn a_full_buffer_drops_and_counts() {
        let (dropped, counter) = counted();
        let shared = Shared::new(1, counter);
        let path = "/".repeat(10_000);

        for _ in 0..200 {
            shared.write(0, &line(&path, &[]), AccessFormat::Json as u8, UNIX_EPOCH);
        }

        let kept = lock(&shared.buffers[0].0).bytes.clone();
        assert!(kept.len() < BUFFER_LIMIT + 20_000);
        assert_eq!(memchr::memchr_iter(b'\n', &kept).count() as u64 + dropped.load(Ordering::Relaxed), 200);
        assert!(dropped.load(Ordering::Relaxed) > 90);
    }

    #[test]
    fn a_full_disk_drops_and_counts() {
        let (dropped, counter) = counted();
        let log = AccessLog::new(&settings(Path::new("/dev/full")), 1, counter).unwrap();
        (0..10).for_each(|_| log.write(0, &line("/", &[])));
        assert!(log.close(PATIENCE));
        assert_eq!(dropped.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn a_reader_that_is_stuck_delays_no_request() {
        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let (dropped, counter) = counted();
        let log = AccessLog::new(&settings(Path::new(&path)), 1, counter).unwrap();
        drop(writer);
        let long = "/".repeat(10_000);

        while dropped.load(Ordering::Relaxed) == 0 {
            log.write(0, &line(&long, &[]));
        }

        assert!(!log.close(Duration::from_millis(1)));
        // With a reader the writer comes to its end, which ends the pipe.
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert!(log.close(PATIENCE));
    }

    #[test]
    fn lost_lines_are_counted_whole() {
        for (what, slices, written, torn, expected) in [
            ("nothing written", &[&b""[..], b"a\nb\n"][..], 0, false, (2, false)),
            ("inside of the first line", &[b"", b"aa\nb\n"], 1, false, (2, true)),
            ("at a line's end", &[b"", b"aa\nb\n"], 3, false, (1, false)),
            ("inside of the second batch", &[b"", b"aa\n", b"bb\nc\n"], 4, false, (2, true)),
            ("the torn line is still open", &[b"\n", b"a\nb\n"], 0, true, (2, true)),
            ("the torn line is closed", &[b"\n", b"a\nb\n"], 1, true, (2, false)),
        ] {
            assert_eq!(lost_lines(slices, written, torn), expected, "{what}");
        }
    }

    #[test]
    fn only_plain_successes_are_left_out() {
        let shared = Shared::new(1, Counter::noop());
        let one = Try { cluster: Cluster::New, address: None, status: None, duration: Duration::ZERO };
        let (once, twice) = ([one], [one; 2]);
        for (status, tries, reason, left_out) in [
            (200, &once[..], "user", true),
            (304, &once, "zero", true),
            (302, &[], "redirect", true),
            (101, &once, "user", false),
            (404, &once, "user", false),
            (499, &once, "user", false),
            (503, &[], "user", false),
            (0, &[], "", false),
            (200, &twice, "user", false),
            (200, &once, "breaker", false),
            (200, &once, "unhealthy", false),
            (200, &once, "full", false),
            (200, &once, "fallback", false),
        ] {
            let line = Line { status, reason, ..line("/", tries) };
            shared.sample.store(0, Ordering::Relaxed);
            assert_eq!(shared.is_left_out(&line), left_out, "{status} {reason} {} tries", tries.len());
            shared.sample.store(10_000, Ordering::Relaxed);
            assert!(!shared.is_left_out(&line));
        }
    }

    #[test]
    fn a_sample_keeps_its_share() {
        let shared = Shared::new(1, Counter::noop());
        shared.sample.store(2500, Ordering::Relaxed);
        let kept = (0..100_000).filter(|_| !shared.is_left_out(&line("/", &[]))).count();
        // More than ten standard deviations.
        assert!((23_500..26_500).contains(&kept), "{kept}");
    }

    #[test]
    fn the_time_is_made_again_for_another_second_or_another_form() {
        let mut buffer = Buffer::default();
        let at = |millis: u64| UNIX_EPOCH + Duration::from_millis(1_704_110_400_000 + millis);
        for (millis, format, expected) in [
            (0, AccessFormat::Nginx, "01/Jan/2024:12:00:00 +0000"),
            (999, AccessFormat::Nginx, "01/Jan/2024:12:00:00 +0000"),
            (1000, AccessFormat::Nginx, "01/Jan/2024:12:00:01 +0000"),
            (1000, AccessFormat::Json, "2024-01-01T12:00:01Z"),
            (0, AccessFormat::Json, "2024-01-01T12:00:00Z"),
        ] {
            buffer.set_time(at(millis), format as u8);
            assert_eq!(buffer.time, expected);
        }
    }

    #[test]
    fn settings_change_only_when_the_new_path_can_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("access"), folder.path().join("other"));
        let log = AccessLog::new(&settings(&path), 1, Counter::noop()).unwrap();
        let json = Log { access: AccessFormat::Json, ..settings(&other) };

        assert!(log.prepare(&settings(Path::new("/nonexistent/access"))).is_err());
        log.install(log.prepare(&json).unwrap());
        log.write(0, &line("/", &[]));
        log.install(log.prepare(&Log { access: AccessFormat::Off, ..json }).unwrap());
        log.write(0, &line("/", &[]));
        assert!(log.close(PATIENCE));

        assert_eq!((count_lines(&path), count_lines(&other)), (0, 1));
        assert!(fs::read_to_string(&other).unwrap().starts_with("{\"time\":"));
    }

    #[test]
    fn a_log_that_is_off_opens_nothing() {
        let off = Log { access: AccessFormat::Off, ..settings(Path::new("/nonexistent/access")) };
        let log = AccessLog::new(&off, 1, Counter::noop()).unwrap();
        log.write(0, &line("/", &[]));
        log.reopen().unwrap();
        assert!(log.close(PATIENCE));
    }
}

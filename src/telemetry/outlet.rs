//! Where control and audit lines go: a thread of its own for each destination. A reader that stops reading holds up that
//! thread and nobody else. What does not fit any more is lost, counted, and told once lines are taken again.

use std::io::{self, ErrorKind};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use super::labels::LogKind;
use super::sink::{Sink, SinkError};

/// The destination of control lines, and of audit lines unless the file names another one.
const STDERR: &str = "/dev/stderr";

/// Bytes that wait for the reader.
const LIMIT: usize = 1 << 20;

/// How long [`Outlet::write`] waits for its line.
const PATIENCE: Duration = Duration::from_millis(500);

/// Lines that were lost in this process.
static LOST: [AtomicU64; LogKind::ALL.len()] = [const { AtomicU64::new(0) }; LogKind::ALL.len()];

static PROCESS: OnceLock<Arc<Outlet>> = OnceLock::new();

/// A destination of lines. What waits when it is dropped is still written.
#[derive(Debug)]
pub struct Outlet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// Something waits, or the end has come.
    filled: Condvar,
    /// Something was written, or lost.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Line>,
    /// Of what waits and of what is being written.
    bytes: usize,
    accepted: u64,
    /// Of those, the ones that were written or lost.
    settled: u64,
    /// Lost since that was last told.
    untold: u64,
    /// A wait was in vain, and not everything has been written since.
    is_late: bool,
    is_closing: bool,
}

#[derive(Debug)]
struct Line {
    kind: LogKind,
    text: Vec<u8>,
}

/// How many lines of that kind were lost.
pub fn lost(kind: LogKind) -> u64 {
    LOST[kind as usize].load(Ordering::Relaxed)
}

/// Waits until what was said on stderr is written; false when that takes longer than `patience`.
pub fn flush(patience: Duration) -> bool {
    PROCESS.get().is_none_or(|outlet| outlet.settle(patience))
}

impl Outlet {
    /// Opens a destination. There is one for stderr, so that lines keep their order there.
    pub fn open(path: &Path) -> Result<Arc<Self>, SinkError> {
        if path != Path::new(STDERR) {
            return Self::start(path, Sink::open(path)?);
        }
        if let Some(outlet) = PROCESS.get() {
            return Ok(outlet.clone());
        }
        let outlet = Self::start(path, Sink::open(path)?)?;
        Ok(PROCESS.get_or_init(|| outlet).clone())
    }

    /// The destination of control lines.
    pub fn stderr() -> Result<Arc<Self>, SinkError> {
        Self::open(Path::new(STDERR))
    }

    fn start(path: &Path, sink: Sink) -> Result<Arc<Self>, SinkError> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        let writer = Writer { shared: shared.clone(), sink, is_torn: false };
        let thread = thread::Builder::new().name("log".to_owned()).spawn(move || writer.run());
        thread.map_err(|source| SinkError { path: path.to_owned(), source })?;
        Ok(Arc::new(Self { shared }))
    }

    /// Takes a line, or loses it when too much waits. Never waits itself.
    pub fn push(&self, kind: LogKind, text: Vec<u8>) {
        let mut state = self.shared.lock();
        if state.bytes >= LIMIT {
            state.untold += 1;
            LOST[kind as usize].fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += text.len();
        state.accepted += 1;
        state.waiting.push(Line { kind, text });
        drop(state);
        self.shared.filled.notify_one();
    }

    /// Takes a line and waits until it is written. A destination that takes nothing costs that time once, until it is
    /// taking lines again.
    pub fn write(&self, kind: LogKind, text: Vec<u8>) {
        self.push(kind, text);
        let is_late = self.shared.lock().is_late;
        if !is_late && !self.settle(PATIENCE) {
            self.shared.lock().is_late = true;
        }
    }

    /// Waits until what was taken is written or lost; false when that takes longer than `patience`.
    pub fn settle(&self, patience: Duration) -> bool {
        let state = self.shared.lock();
        let goal = state.accepted;
        let waited = self.shared.emptied.wait_timeout_while(state, patience, |state| state.settled < goal);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.settled >= goal
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that may be held up.
struct Writer {
    shared: Arc<Shared>,
    sink: Sink,
    /// The last thing written was a part of a line.
    is_torn: bool,
}

impl Writer {
    fn run(mut self) {
        while let Some(batch) = self.next() {
            let count = batch.len() as u64;
            let bytes: usize = batch.iter().map(|line| line.text.len()).sum();
            let (lost, error) = self.write(&batch);
            let mut state = self.shared.lock();
            state.bytes -= bytes;
            state.settled += count;
            state.untold += lost;
            state.is_late &= !state.waiting.is_empty();
            // A stderr that takes nothing would have to be told on stderr.
            let is_told = error.is_none() || self.shared.path != Path::new(STDERR);
            let lines = if is_told { mem::take(&mut state.untold) } else { 0 };
            drop(state);
            self.shared.emptied.notify_all();
            if lines > 0 {
                let path = self.shared.path.display();
                let error = error.map(|error| error.to_string());
                tracing::error!(%path, lines, error, "log lines could not be written and are lost");
            }
        }
    }

    /// Waits for lines; `None` at the end.
    fn next(&self) -> Option<Vec<Line>> {
        let state = self.shared.lock();
        let nothing = |state: &mut State| state.waiting.is_empty() && !state.is_closing;
        let mut state = self.shared.filled.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
        (!state.waiting.is_empty()).then(|| mem::take(&mut state.waiting))
    }

    /// Writes the lines in one call where that can be; how many of them are lost, and why.
    fn write(&mut self, batch: &[Line]) -> (u64, Option<io::Error>) {
        // What follows a torn line must not look like its end.
        let mut bytes = if self.is_torn { b"\n".to_vec() } else { Vec::new() };
        let mut ends = Vec::with_capacity(batch.len());
        for line in batch {
            bytes.extend_from_slice(&line.text);
            ends.push(bytes.len());
        }
        let mut done = 0;
        let error = loop {
            match self.sink.write(&[&bytes[done..]]) {
                Ok(()) => {
                    done = bytes.len();
                    break None;
                }
                Err((written, error)) => {
                    done += written;
                    // A full pipe that does not block; it may have a reader again.
                    if error.kind() != ErrorKind::WouldBlock || self.shared.lock().is_closing {
                        break Some(error);
                    }
                }
            }
        };
        self.is_torn = if done == 0 { self.is_torn } else { bytes[done - 1] != b'\n' };
        let mut lost = 0;
        for (line, _) in batch.iter().zip(ends).filter(|(_, end)| *end > done) {
            LOST[line.kind as usize].fetch_add(1, Ordering::Relaxed);
            lost += 1;
        }
        (lost, error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    /// Much longer than anything takes.
    const LONG: Duration = Duration::from_secs(30);

    fn line(number: usize) -> Vec<u8> {
        format!("{number:01023}\n").into_bytes()
    }

    #[test]
    fn a_line_is_in_its_file_when_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let outlet = Outlet::open(&path).unwrap();

        for number in 1..=3 {
            outlet.write(LogKind::Audit, format!("{number}\n").into_bytes());
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), number);
        }
    }

    #[test]
    fn a_reader_that_stops_costs_one_wait_and_loses_only_what_does_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let outlet = Outlet::open(&path).unwrap();
        let lost_before = lost(LogKind::Audit);

        let started = Instant::now();
        for number in 0..3000 {
            outlet.write(LogKind::Audit, line(number));
        }

        assert!(started.elapsed() < LONG, "one wait, not one for each line");
        assert!(!outlet.settle(Duration::ZERO));
        let lost = lost(LogKind::Audit) - lost_before;
        let kept = 3000 - usize::try_from(lost).unwrap();
        assert!((1024..3000).contains(&kept), "{kept}");
        let mut text = vec![0; kept * 1024];
        File::open(&path).unwrap().read_exact(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, (0..kept).collect::<Vec<_>>(), "in their order");
        assert!(outlet.settle(LONG));
        assert!(!outlet.shared.lock().is_late, "the next line is waited for again");
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted() {
        let outlet = Outlet::open(Path::new("/dev/full")).unwrap();
        let before = lost(LogKind::Control);

        outlet.write(LogKind::Control, line(1));

        assert!(outlet.settle(LONG));
        assert!(lost(LogKind::Control) > before);
    }
}

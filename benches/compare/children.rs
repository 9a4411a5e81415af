//! Child processes: started on chosen CPUs, metered by the scheduler's counters, and always ended by their id.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// How long a child may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// How often a child is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// Set by SIGINT and SIGTERM, so that children and files are cleared away on the way out.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for the signals on a thread of its own, which ends with the process.
    pub fn on_signals() -> Result<Self, String> {
        let stop = Self::default();
        let told = stop.clone();
        let listen = move || -> std::io::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let (mut interrupt, mut terminate) =
                    (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                told.0.store(true, Ordering::Relaxed);
                Ok(())
            })
        };
        let started = thread::Builder::new().name("signals".to_owned()).spawn(listen);
        started.map(|_| stop).map_err(|error| format!("start a thread: {error}"))
    }

    /// An error once a signal has come.
    pub fn check(&self) -> Result<(), String> {
        if self.0.load(Ordering::Relaxed) { Err("stopped by a signal".to_owned()) } else { Ok(()) }
    }
}

/// A running program. Dropped, it is ended together with the processes that it started.
pub struct Child {
    name: String,
    process: process::Child,
    has_ended: bool,
}

impl Child {
    /// Starts a program with its output in files; `cpus` as taskset takes them, or where we are ourselves.
    pub fn start(command: &[&OsStr], cpus: Option<&str>, stdout: &Path, stderr: &Path) -> Result<Self, String> {
        let name = Path::new(command[0]).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let create = |path: &Path| File::create(path).map_err(|error| format!("create {}: {error}", path.display()));
        let mut start = match cpus {
            Some(cpus) => {
                let mut taskset = Command::new("taskset");
                taskset.args(["-c", cpus]).args(command);
                taskset
            }
            None => {
                let mut plain = Command::new(command[0]);
                plain.args(&command[1..]);
                plain
            }
        };
        start.stdin(Stdio::null()).stdout(create(stdout)?).stderr(create(stderr)?);
        let process = start.spawn().map_err(|error| format!("start {name}: {error}"))?;
        Ok(Self { name, process, has_ended: false })
    }

    /// Waits for its end by itself; killed when the time is over or a signal comes.
    pub fn finish(mut self, within: Duration, stop: &Stop) -> Result<(), String> {
        let deadline = Instant::now() + within;
        loop {
            stop.check()?;
            if self.has_left()? {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{} did not end within {} s", self.name, within.as_secs()));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Whether it is gone.
    pub fn has_left(&mut self) -> Result<bool, String> {
        let status = self.process.try_wait().map_err(|error| format!("wait for {}: {error}", self.name))?;
        self.has_ended |= status.is_some();
        Ok(self.has_ended)
    }

    /// The processor time of all its threads and those of the processes that it started, to the nanosecond.
    pub fn cpu_time(&self) -> Result<Duration, String> {
        let mut nanoseconds = 0;
        for process in family(self.process.id()) {
            for task in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
                // A thread that has just ended has no counter any more.
                let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
                nanoseconds += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        match nanoseconds {
            0 => Err(format!("this kernel counts no processor time for {} in /proc/PID/task/*/schedstat", self.name)),
            _ => Ok(Duration::from_nanos(nanoseconds)),
        }
    }

    /// Asks it to end, and makes it.
    pub fn end(&mut self) {
        if self.has_ended {
            return;
        }
        let family = family(self.process.id());
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && !matches!(self.process.try_wait(), Ok(Some(_))) {
            thread::sleep(GLANCE);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.has_ended = true;
        // What a parent left behind when it had to be killed, unless the id is somebody else's by now.
        let orphans = family.into_iter().filter(|id| parent(*id).is_some_and(|parent| parent == 1));
        for orphan in orphans.filter_map(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            let _ = kill_process(orphan, Signal::KILL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// A process and all that it started, directly or not.
fn family(root: u32) -> BTreeSet<u32> {
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|id| Some((id, parent(id)?)))
        .collect();
    let mut found = BTreeSet::from([root]);
    loop {
        let more: Vec<u32> = all
            .iter()
            .filter(|(id, parent)| found.contains(parent) && !found.contains(id))
            .map(|(id, _)| *id)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn parent(id: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before it may hold spaces and brackets.
    text.rsplit_once(')')?.1.split(' ').nth(2)?.parse().ok()
}

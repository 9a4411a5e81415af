//! How much of a long scenario runs: a few seconds with every `cargo test`, the whole of it on demand.

use std::env;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The scale of this run. At full scale scenarios run one after the other, so that their figures mean something.
pub struct Scale {
    turn: Option<MutexGuard<'static, ()>>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Scale {
    /// `ENDURANCE=full` asks for the whole scenario.
    pub fn begin() -> Self {
        let is_full = env::var_os("ENDURANCE").is_some_and(|value| value == "full");
        Self { turn: is_full.then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// The whole scenario.
    pub fn is_full(&self) -> bool {
        self.turn.is_some()
    }

    /// The value for this scale.
    pub fn pick<T>(&self, quick: T, full: T) -> T {
        if self.is_full() { full } else { quick }
    }

    /// A number of milliseconds.
    pub fn millis(&self, quick: u64, full: u64) -> Duration {
        Duration::from_millis(self.pick(quick, full))
    }

    /// The figures of a full run, in one line, past the capture of a passing test's output.
    pub fn report(&self, line: &str) {
        if self.is_full() {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            let _ = writeln!(std::io::stderr(), "{test}: {line}");
        }
    }
}

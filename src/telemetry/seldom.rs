//! Lines about what comes in storms: one a minute says as much as a thousand, and counters have the rest.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The least time between two lines.
const APART: Duration = Duration::from_secs(60);

/// When something was last said.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it may be said again. Who asks says it.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= APART);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_minute() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        for (seconds, expected) in [(0, true), (1, false), (59, false), (60, true), (61, false), (200, true)] {
            assert_eq!(seldom.is_due(start + Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }
}

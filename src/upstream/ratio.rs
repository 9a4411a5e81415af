//! How many requests failed within the last seconds, counted without a lock. The window is cut into slots that are
//! reused in turn, so it slides by a tenth of its length.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// More slots follow the window closer; each costs two words.
const SLOTS: u64 = 10;

/// One failure in `Slot::counts`; a verdict is 1.
const FAILURE: u64 = 1 << 32;

/// Verdicts of a sliding window. Times are microseconds since an origin of the caller's.
#[derive(Debug)]
pub(super) struct Ratio {
    slot_length: u64,
    slots: [Slot; SLOTS as usize],
    rotation: Mutex<()>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Which stretch of time is counted here, from 1 on; 0 is none.
    number: AtomicU64,
    /// Verdicts in the lower half, failures among them in the upper one.
    counts: AtomicU64,
}

impl Ratio {
    pub(super) fn new(window: u64) -> Self {
        Self { slot_length: (window / SLOTS).max(1), slots: Default::default(), rotation: Mutex::new(()) }
    }

    /// A window of that length that goes on counting where another one is.
    pub(super) fn with_counts_of(other: &Self, window: u64) -> Self {
        let ratio = Self::new(window);
        if ratio.slot_length == other.slot_length {
            let _rotation = other.rotation.lock().unwrap_or_else(PoisonError::into_inner);
            for (slot, source) in ratio.slots.iter().zip(&other.slots) {
                slot.number.store(source.number.load(Ordering::Relaxed), Ordering::Relaxed);
                slot.counts.store(source.counts.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        ratio
    }

    /// Counts verdicts, `failures` of them bad: a load and an addition, but for the first time in each slot.
    pub(super) fn add(&self, verdicts: u64, failures: u64, now: u64) {
        self.slot(now).counts.fetch_add(verdicts + failures * FAILURE, Ordering::Relaxed);
    }

    /// Verdicts within the window, and the failures among them.
    pub(super) fn totals(&self, now: u64) -> (u64, u64) {
        let newest = self.number(now);
        let mut totals = (0, 0);
        for slot in &self.slots {
            let number = slot.number.load(Ordering::Acquire);
            if number != 0 && number + SLOTS > newest {
                let counts = slot.counts.load(Ordering::Relaxed);
                totals = (totals.0 + counts % FAILURE, totals.1 + counts / FAILURE);
            }
        }
        totals
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        let _rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in &self.slots {
            slot.counts.store(0, Ordering::Relaxed);
        }
    }

    /// The slot of this moment, emptied if it still holds an earlier turn.
    fn slot(&self, now: u64) -> &Slot {
        let number = self.number(now);
        let slot = &self.slots[(number % SLOTS) as usize];
        if slot.number.load(Ordering::Acquire) < number {
            let _rotation = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.number.load(Ordering::Relaxed) < number {
                slot.counts.store(0, Ordering::Relaxed);
                slot.number.store(number, Ordering::Release);
            }
        }
        slot
    }

    fn number(&self, now: u64) -> u64 {
        now / self.slot_length + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn verdicts_leave_with_their_slot() {
        let ratio = Ratio::new(10 * SECOND);

        ratio.add(1, 1, 0);
        ratio.add(1, 0, 5 * SECOND);
        assert_eq!(ratio.totals(9 * SECOND), (2, 1));
        assert_eq!(ratio.totals(10 * SECOND), (1, 0));
        assert_eq!(ratio.totals(15 * SECOND), (0, 0));

        ratio.add(1, 1, 10 * SECOND);
        assert_eq!(ratio.totals(10 * SECOND), (2, 1));
        assert_eq!(ratio.totals(40_000_000 * SECOND), (0, 0));
    }

    #[test]
    fn a_cleared_window_is_empty_and_a_copied_one_is_not() {
        let ratio = Ratio::new(10 * SECOND);
        ratio.add(1, 1, 3 * SECOND);

        assert_eq!(Ratio::with_counts_of(&ratio, 10 * SECOND).totals(3 * SECOND), (1, 1));
        assert_eq!(Ratio::with_counts_of(&ratio, 20 * SECOND).totals(3 * SECOND), (0, 0));
        ratio.clear();
        assert_eq!(ratio.totals(3 * SECOND), (0, 0));
    }
}

//! How many tries again a service may make: a share of its requests over the last ten seconds, and a few in any case, so
//! that tries again can never make an outage worse. Pure: time is an argument.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::config::Percent;

/// Seconds that count.
const WINDOW: usize = 10;

/// Tries again within the window that are always granted.
const FLOOR: u64 = 3;

/// Requests and tries again of one service.
#[derive(Debug)]
pub struct Budget {
    start: Instant,
    slots: [Slot; WINDOW],
}

#[derive(Debug, Default)]
struct Slot {
    second: AtomicU64,
    requests: AtomicU32,
    retries: AtomicU32,
}

impl Budget {
    /// Nothing has happened before `start`.
    pub fn new(start: Instant) -> Self {
        Self { start, slots: Default::default() }
    }

    /// A request has come.
    pub fn request(&self, now: Instant) {
        self.slot(now).requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks for one try again; true uses up a place.
    pub fn try_again(&self, now: Instant, share: Percent) -> bool {
        let second = self.second(now);
        let oldest = second.saturating_sub(WINDOW as u64 - 1);
        let (mut requests, mut retries) = (0, 0);
        for slot in &self.slots {
            if (oldest..=second).contains(&slot.second.load(Ordering::Relaxed)) {
                requests += u64::from(slot.requests.load(Ordering::Relaxed));
                retries += u64::from(slot.retries.load(Ordering::Relaxed));
            }
        }
        let granted = retries < FLOOR || (retries + 1) * 10_000 <= requests * u64::from(share.basis_points());
        if granted {
            self.slot(now).retries.fetch_add(1, Ordering::Relaxed);
        }
        granted
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs()
    }

    /// The slot of this second, emptied when its last use was a window ago. Two threads may empty it at once; the few
    /// counts lost then do not matter.
    fn slot(&self, now: Instant) -> &Slot {
        let second = self.second(now);
        let slot = &self.slots[usize::try_from(second % WINDOW as u64).expect("less than ten")];
        if slot.second.swap(second, Ordering::Relaxed) != second {
            slot.requests.store(0, Ordering::Relaxed);
            slot.retries.store(0, Ordering::Relaxed);
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_share_of_the_requests_and_a_floor() {
        let start = Instant::now();
        let budget = Budget::new(start);
        let share = Percent::from_basis_points(2_000).unwrap();
        let granted = |now| (0..100).filter(|_| budget.try_again(now, share)).count();

        assert_eq!(granted(start), 3);
        for _ in 0..100 {
            budget.request(start);
        }
        assert_eq!(granted(start), 17);
        assert_eq!(granted(start + Duration::from_secs(9)), 0);
        assert_eq!(granted(start + Duration::from_secs(11)), 3);
    }
}

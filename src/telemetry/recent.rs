//! The last decisions, each with its reason: what the page shows, and what `check --against` decides again by another
//! file. Written from the request path without allocating; values of headers and queries are never kept.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use http::Method;

use super::labels::{Cluster, Reason, Target};

/// How many decisions are kept.
pub const KEPT: usize = 10_000;

/// Places are made so many at a time, because a quiet proxy never needs all of them.
const CHUNK: usize = 250;

/// A longer path is cut.
const LONGEST_PATH: usize = 64;

/// A longer method is not kept: it would have to be allocated.
const LONGEST_METHOD: usize = 15;

/// One request and where it went.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// When the request came.
    pub at: Instant,
    /// The service's name.
    pub service: Arc<str>,
    /// The client's address after the walk over trusted proxies.
    pub client: IpAddr,
    /// The method; `None` for one that is too long to be kept.
    pub method: Option<Method>,
    /// The beginning of the path, without the query.
    pub path: PathStart,
    /// What was decided.
    pub decided: Cluster,
    /// The kind of rule that decided it.
    pub rule: Option<Reason>,
    /// The bucket of the key.
    pub bucket: Option<u16>,
    /// Who answered.
    pub target: Target,
    /// Why.
    pub reason: Reason,
    /// With which status.
    pub status: u16,
}

/// The first bytes of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStart {
    bytes: [u8; LONGEST_PATH],
    length: u8,
    is_cut: bool,
}

impl PathStart {
    /// The beginning of this path.
    pub fn of(path: &str) -> Self {
        let start = &path[..path.floor_char_boundary(LONGEST_PATH)];
        let mut bytes = [0; LONGEST_PATH];
        bytes[..start.len()].copy_from_slice(start.as_bytes());
        Self { bytes, length: start.len() as u8, is_cut: start.len() < path.len() }
    }

    /// What is known of the path.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }

    /// Whether there was more of it.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }
}

/// The method as it can be kept without allocating.
pub fn short_method(method: &Method) -> Option<Method> {
    (method.as_str().len() <= LONGEST_METHOD).then(|| method.clone())
}

/// A ring of decisions. Writers meet at one counter and then lock a place of their own, so that a reader of all of it
/// never holds up more than one of them.
#[derive(Debug)]
pub struct Recent {
    chunks: Box<[OnceLock<Box<[Place]>>]>,
    /// How many decisions there ever were.
    count: AtomicU64,
}

/// A decision and its number.
type Place = Mutex<Option<(u64, Recorded)>>;

impl Default for Recent {
    fn default() -> Self {
        Self { chunks: (0..KEPT / CHUNK).map(|_| OnceLock::new()).collect(), count: AtomicU64::new(0) }
    }
}

impl Recent {
    /// Keeps a decision in the place of the oldest one.
    pub fn record(&self, recorded: Recorded) {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        // What was there is dropped after the lock.
        let _before = self.place(number).replace((number, recorded));
    }

    /// The newest decisions first, of one service or of all.
    pub fn newest(&self, service: Option<&str>, limit: usize) -> Vec<Recorded> {
        let count = self.count.load(Ordering::Relaxed);
        let numbers = (count.saturating_sub(KEPT as u64)..count).rev();
        let kept = numbers.filter_map(|number| {
            let place = self.place(number);
            // A writer may be about to fill it, or has overtaken us.
            let (_, recorded) = place.as_ref().filter(|(kept, _)| *kept == number)?;
            service.is_none_or(|service| *recorded.service == *service).then(|| recorded.clone())
        });
        kept.take(limit).collect()
    }

    fn place(&self, number: u64) -> MutexGuard<'_, Option<(u64, Recorded)>> {
        let index = (number % KEPT as u64) as usize;
        let chunk = self.chunks[index / CHUNK].get_or_init(|| (0..CHUNK).map(|_| Mutex::default()).collect());
        chunk[index % CHUNK].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(service: &str, status: u16) -> Recorded {
        Recorded {
            at: Instant::now(),
            service: service.into(),
            client: IpAddr::from([10, 0, 0, 1]),
            method: Some(Method::GET),
            path: PathStart::of("/"),
            decided: Cluster::Old,
            rule: None,
            bucket: None,
            target: Target::Old,
            reason: Reason::Zero,
            status,
        }
    }

    fn statuses(recent: &Recent, service: Option<&str>, limit: usize) -> Vec<u16> {
        recent.newest(service, limit).iter().map(|recorded| recorded.status).collect()
    }

    #[test]
    fn the_newest_come_first_and_the_oldest_leave() {
        let recent = Recent::default();
        assert!(statuses(&recent, None, 10).is_empty());
        for number in 0..KEPT as u16 + 7 {
            recent.record(recorded(if number % 2 == 0 { "even" } else { "odd" }, number));
        }

        assert_eq!(statuses(&recent, None, 3), [10_006, 10_005, 10_004]);
        assert_eq!(statuses(&recent, Some("odd"), 2), [10_005, 10_003]);
        assert!(statuses(&recent, Some("none"), 2).is_empty());
        let all = statuses(&recent, None, usize::MAX);
        assert_eq!((all.len(), all.last()), (KEPT, Some(&7)));
    }

    #[test]
    fn writers_on_all_threads_lose_nothing() {
        let recent = Recent::default();
        std::thread::scope(|scope| {
            for thread in 0..4_u16 {
                let recent = &recent;
                scope
                    .spawn(move || (0..1_000).for_each(|number| recent.record(recorded("a", thread * 1_000 + number))));
            }
        });

        let mut all = statuses(&recent, None, KEPT);
        all.sort_unstable();
        assert_eq!(all, (0..4_000).collect::<Vec<_>>());
    }

    #[test]
    fn long_paths_and_methods_are_cut() {
        for (path, expected, is_cut) in [
            ("", "", false),
            ("/a", "/a", false),
            (&"x".repeat(64), &"x".repeat(64), false),
            (&"x".repeat(65), &"x".repeat(64), true),
            (&format!("{}\u{fc}", "x".repeat(63)), &"x".repeat(63), true),
        ] {
            let start = PathStart::of(path);
            assert_eq!((start.as_str(), start.is_cut()), (expected, is_cut), "{path}");
        }
        assert_eq!(short_method(&Method::PATCH), Some(Method::PATCH));
        assert_eq!(short_method(&Method::from_bytes(b"PROPPATCH-AND-MORE").unwrap()), None);
    }
}

//! The addresses behind a target: which one a new connection goes to, which ones rest after a failure, which ones have
//! left the answers of DNS. Touches no socket; time and dice come from outside.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// An address that failed is left alone this long while there are others.
const REST: Duration = Duration::from_secs(10);

/// While a connection has been opening for longer, others go elsewhere.
const SLOW: Duration = Duration::from_millis(500);

/// One address, and what uses it. Lives as long as its connections.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    /// Requests on their way, those included that wait for a connection to open.
    load: AtomicUsize,
    left: AtomicBool,
}

impl Endpoint {
    fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { address, load: AtomicUsize::new(0), left: AtomicBool::new(false) })
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// DNS no longer names it: its connections end after their requests.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Requests on their way.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// One request more.
    pub fn begin(&self) {
        self.load.fetch_add(1, Ordering::Relaxed);
    }

    /// One request less.
    pub fn end(&self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The addresses of all names of one target.
#[derive(Debug)]
pub struct Endpoints {
    table: Mutex<Table>,
    /// There is more than one to choose from.
    several: AtomicBool,
    /// A connection has opened or failed, or there are other addresses.
    settled: Notify,
}

#[derive(Debug)]
struct Table {
    sources: Vec<Source>,
    entries: Vec<Entry>,
}

/// What one configured backend resolves to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Source {
    current: Vec<SocketAddr>,
    leaving: Vec<SocketAddr>,
}

#[derive(Debug)]
struct Entry {
    endpoint: Arc<Endpoint>,
    /// New connections may go there.
    is_offered: bool,
    /// The newest connection to be opened was.
    is_proven: bool,
    rests_until: Option<Instant>,
    opening: usize,
    opening_since: Option<Instant>,
}

/// What to do with a request that needs a connection.
enum Choice {
    Open {
        index: usize,
        has_alternative: bool,
    },
    /// Nobody knows which address works, and each is being tried.
    Wait,
    Nowhere,
}

impl Endpoints {
    /// No addresses yet, for so many configured backends.
    pub fn new(backends: usize) -> Self {
        let table = Table { sources: vec![Source::default(); backends], entries: Vec::new() };
        Self { table: Mutex::new(table), several: AtomicBool::new(false), settled: Notify::new() }
    }

    /// Backend number `backend` has these addresses for new connections, and those where connections may stay.
    pub fn learn(&self, backend: usize, current: Vec<SocketAddr>, leaving: Vec<SocketAddr>) {
        self.replace(backend, |_| Source { current, leaving });
    }

    /// Backend number `backend` has no address for new connections, but nobody says that those it had have left.
    pub fn withhold(&self, backend: usize) {
        self.replace(backend, |source| {
            let mut leaving = source.leaving.clone();
            leaving.extend(&source.current);
            Source { current: Vec::new(), leaving }
        });
    }

    fn replace(&self, backend: usize, by: impl FnOnce(&Source) -> Source) {
        let mut table = self.table();
        let source = by(&table.sources[backend]);
        if table.sources[backend] == source {
            return;
        }
        table.sources[backend] = source;
        table.update();
        self.several.store(table.entries.iter().filter(|entry| entry.is_offered).count() > 1, Ordering::Relaxed);
        drop(table);
        self.settled.notify_waiters();
    }

    /// There is an address for a new connection.
    pub fn has_any(&self) -> bool {
        self.table().entries.iter().any(|entry| entry.is_offered)
    }

    /// There is more than one to choose from.
    pub fn has_several(&self) -> bool {
        self.several.load(Ordering::Relaxed)
    }

    /// Where the next connection goes: of two addresses drawn, the one with less load. One that has never worked, or no
    /// longer does, is tried by one request at a time, so that a dead address costs one timeout and not one for each
    /// request. `None`: there is no address at all.
    pub async fn choose(&self) -> Option<Opening<'_>> {
        loop {
            // Listening begins before looking, or the last connection to settle could go unheard.
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            {
                let now = Instant::now();
                let mut table = self.table();
                match table.choose(now, |count| rand::random_range(0..count)) {
                    Choice::Open { index, has_alternative } => {
                        let endpoint = table.entries[index].begin(now);
                        return Some(Opening { endpoints: self, endpoint, has_alternative, outcome: None });
                    }
                    Choice::Nowhere => return None,
                    Choice::Wait => {}
                }
            }
            settled.await;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection on its way to an address. Dropped without an outcome it says nothing about the address.
#[derive(Debug)]
pub struct Opening<'a> {
    endpoints: &'a Endpoints,
    endpoint: Arc<Endpoint>,
    has_alternative: bool,
    outcome: Option<(bool, Instant)>,
}

impl Opening<'_> {
    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Another address may do.
    pub fn has_alternative(&self) -> bool {
        self.has_alternative
    }

    /// The connection is open.
    pub fn opened(mut self, now: Instant) -> Arc<Endpoint> {
        self.outcome = Some((true, now));
        self.endpoint.clone()
    }

    /// The address is to blame.
    pub fn failed(mut self, now: Instant) {
        self.outcome = Some((false, now));
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.endpoint.end();
        let mut table = self.endpoints.table();
        // None: the address has left DNS meanwhile.
        if let Some(entry) = table.entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.endpoint, &self.endpoint)) {
            entry.settle(self.outcome);
        }
        drop(table);
        self.endpoints.settled.notify_waiters();
    }
}

impl Table {
    /// Makes the entries what the sources say.
    fn update(&mut self) {
        let Self { sources, entries } = self;
        entries.retain_mut(|entry| {
            let address = &entry.endpoint.address;
            entry.is_offered = sources.iter().any(|source| source.current.contains(address));
            let is_known = entry.is_offered || sources.iter().any(|source| source.leaving.contains(address));
            if !is_known {
                entry.endpoint.left.store(true, Ordering::Relaxed);
            }
            is_known
        });
        for address in sources.iter().flat_map(|source| &source.current) {
            if !entries.iter().any(|entry| entry.endpoint.address == *address) {
                entries.push(Entry::new(Endpoint::new(*address)));
            }
        }
    }

    fn choose(&self, now: Instant, dice: impl FnMut(usize) -> usize) -> Choice {
        let indices = |wanted: &dyn Fn(&Entry) -> bool| -> Vec<usize> {
            (0..self.entries.len())
                .filter(|index| self.entries[*index].is_offered && wanted(&self.entries[*index]))
                .collect()
        };
        let all = indices(&|_| true);
        if let [] | [_] = all[..] {
            return all.first().map_or(Choice::Nowhere, |index| Choice::Open { index: *index, has_alternative: false });
        }
        let awake = indices(&|entry| entry.is_awake(now));
        let free = indices(&|entry| entry.is_awake(now) && !entry.is_busy(now));
        let proven = indices(&|entry| entry.is_awake(now) && entry.is_proven);
        // When all rest, somebody has to try all the same.
        let candidates = match (awake.is_empty(), free.is_empty(), proven.is_empty()) {
            (true, ..) => all,
            (false, false, _) => free,
            (false, true, false) => proven,
            (false, true, true) => return Choice::Wait,
        };
        let index = self.less_loaded(&candidates, dice);
        Choice::Open { index, has_alternative: awake.iter().any(|other| *other != index) }
    }

    /// Of two candidates drawn, the one with less to do.
    fn less_loaded(&self, candidates: &[usize], mut dice: impl FnMut(usize) -> usize) -> usize {
        let first = dice(candidates.len());
        if candidates.len() == 1 {
            return candidates[first];
        }
        let second = (first + 1 + dice(candidates.len() - 1)) % candidates.len();
        let load = |drawn: usize| self.entries[candidates[drawn]].endpoint.load();
        candidates[if load(second) < load(first) { second } else { first }]
    }
}

impl Entry {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        let (rests_until, opening_since) = (None, None);
        Self { endpoint, is_offered: true, is_proven: false, rests_until, opening: 0, opening_since }
    }

    fn is_awake(&self, now: Instant) -> bool {
        self.rests_until.is_none_or(|until| until <= now)
    }

    /// Somebody is finding out whether it works.
    fn is_busy(&self, now: Instant) -> bool {
        let is_slow = self.opening_since.is_some_and(|since| now.saturating_duration_since(since) >= SLOW);
        self.opening > 0 && (!self.is_proven || is_slow)
    }

    fn begin(&mut self, now: Instant) -> Arc<Endpoint> {
        self.opening += 1;
        self.opening_since.get_or_insert(now);
        self.endpoint.begin();
        self.endpoint.clone()
    }

    fn settle(&mut self, outcome: Option<(bool, Instant)>) {
        self.opening -= 1;
        if self.opening == 0 {
            self.opening_since = None;
        }
        match outcome {
            Some((true, now)) => {
                self.is_proven = true;
                self.rests_until = None;
                // The others that are opening may be as quick as this one was.
                self.opening_since = self.opening_since.map(|_| now);
            }
            Some((false, now)) => {
                self.is_proven = false;
                self.rests_until = Some(now + REST);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};
    use tokio::time::{advance, timeout};

    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn addresses(last: &[u8]) -> Vec<SocketAddr> {
        last.iter().copied().map(address).collect()
    }

    fn endpoints(last: &[u8]) -> Endpoints {
        let endpoints = Endpoints::new(1);
        endpoints.learn(0, addresses(last), Vec::new());
        endpoints
    }

    /// Where a connection would go `later`, and whether there is an alternative; `None`: it waits.
    fn choice(endpoints: &Endpoints, later: Duration, seed: u64) -> Option<(SocketAddr, bool)> {
        let mut dice = SmallRng::seed_from_u64(seed);
        let table = endpoints.table();
        match table.choose(Instant::now() + later, |count| dice.random_range(0..count)) {
            Choice::Open { index, has_alternative } => Some((table.entries[index].endpoint.address, has_alternative)),
            Choice::Wait | Choice::Nowhere => None,
        }
    }

    fn choices(endpoints: &Endpoints, later: Duration) -> Vec<SocketAddr> {
        let mut chosen: Vec<_> = (0..200).filter_map(|seed| Some(choice(endpoints, later, seed)?.0)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    async fn prove(endpoints: &Endpoints, count: usize) {
        let mut openings = Vec::new();
        for _ in 0..count {
            openings.push(endpoints.choose().await.unwrap());
        }
        for opening in openings {
            opening.opened(Instant::now());
        }
    }

    #[tokio::test]
    async fn the_less_loaded_of_two_gets_the_connection() {
        let endpoints = endpoints(&[1, 2, 3]);
        prove(&endpoints, 3).await;
        let busy = endpoints.table().entries[0].endpoint.clone();

        busy.begin();

        assert_eq!(choices(&endpoints, Duration::ZERO), addresses(&[2, 3]), "the busiest of three is never drawn");
        busy.end();
        assert_eq!(choices(&endpoints, Duration::ZERO), addresses(&[1, 2, 3]));
    }

    #[tokio::test]
    async fn what_is_opening_counts_as_load() {
        let endpoints = endpoints(&[1, 2, 3, 4]);
        prove(&endpoints, 4).await;

        let mut openings = Vec::new();
        for _ in 0..80 {
            openings.push(endpoints.choose().await.unwrap());
        }

        let table = endpoints.table();
        let loads: Vec<usize> = table.entries.iter().map(|entry| entry.endpoint.load()).collect();
        assert!(loads.iter().all(|load| (15..=25).contains(load)), "{loads:?}");
        drop(table);
        drop(openings);
        assert!(endpoints.table().entries.iter().all(|entry| entry.endpoint.load() == 0 && entry.opening == 0));
    }

    #[tokio::test]
    async fn a_failed_address_rests_and_is_then_tried_by_one() {
        let endpoints = endpoints(&[1, 2]);
        prove(&endpoints, 2).await;
        let dead = loop {
            let opening = endpoints.choose().await.unwrap();
            if opening.address() == address(1) {
                break opening;
            }
        };
        assert!(dead.has_alternative());

        dead.failed(Instant::now());

        assert_eq!(choices(&endpoints, Duration::ZERO), addresses(&[2]));
        assert_eq!(choice(&endpoints, Duration::ZERO, 1), Some((address(2), false)));
        assert_eq!(choices(&endpoints, REST + SLOW), addresses(&[1, 2]));
        endpoints.table().entries[0].begin(Instant::now());
        assert_eq!(choices(&endpoints, REST + SLOW), addresses(&[2]), "one is trying it");
    }

    #[tokio::test]
    async fn while_all_rest_all_are_tried() {
        let endpoints = endpoints(&[1, 2]);
        for _ in 0..2 {
            endpoints.choose().await.unwrap().failed(Instant::now());
        }

        assert_eq!(choices(&endpoints, Duration::ZERO), addresses(&[1, 2]));
        assert_eq!(choice(&endpoints, Duration::ZERO, 1).map(|(_, has_alternative)| has_alternative), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_burst_one_request_finds_out_that_an_address_is_dead() {
        let endpoints = endpoints(&[1, 2]);
        let first = endpoints.choose().await.unwrap();
        let second = endpoints.choose().await.unwrap();
        assert_ne!(first.address(), second.address());
        let (dead, alive) = if first.address() == address(1) { (first, second) } else { (second, first) };

        assert!(timeout(SLOW, endpoints.choose()).await.is_err(), "the others wait until one has worked");
        alive.opened(Instant::now());

        for _ in 0..50 {
            let opening = endpoints.choose().await.unwrap();
            assert_eq!(opening.address(), address(2));
            opening.opened(Instant::now());
        }
        dead.failed(Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_request_hears_of_every_end() {
        let endpoints = Arc::new(endpoints(&[1, 2]));
        let openings = (endpoints.choose().await.unwrap(), endpoints.choose().await.unwrap());

        let waiting = endpoints.choose();
        tokio::pin!(waiting);
        assert!(timeout(SLOW, waiting.as_mut()).await.is_err());
        drop(openings.0);

        assert!(timeout(SLOW, waiting).await.is_ok(), "also of a request that gave up");
        advance(SLOW).await;
        let waiting = endpoints.choose();
        tokio::pin!(waiting);
        endpoints.learn(0, addresses(&[3]), Vec::new());
        assert_eq!(timeout(SLOW, waiting).await.unwrap().unwrap().address(), address(3));
    }

    #[tokio::test]
    async fn a_proven_address_that_opens_slowly_is_avoided_and_never_waited_for() {
        let endpoints = endpoints(&[1, 2]);
        prove(&endpoints, 2).await;
        endpoints.table().entries[0].begin(Instant::now());

        assert_eq!(choices(&endpoints, SLOW * 2), addresses(&[2]));
        endpoints.table().entries[1].begin(Instant::now());
        assert_eq!(choices(&endpoints, SLOW * 2), addresses(&[1, 2]));
    }

    #[tokio::test]
    async fn an_address_that_leaves_says_so_to_its_connections() {
        let endpoints = endpoints(&[1, 2]);
        let kept: Vec<_> = endpoints.table().entries.iter().map(|entry| entry.endpoint.clone()).collect();

        endpoints.learn(0, addresses(&[2]), addresses(&[1]));
        assert!(!kept[0].has_left());
        assert_eq!(choices(&endpoints, Duration::ZERO), addresses(&[2]), "a leaving one gets nothing new");
        assert!(!endpoints.has_several());

        endpoints.learn(0, addresses(&[2]), Vec::new());
        assert!(kept[0].has_left() && !kept[1].has_left());
        endpoints.learn(0, addresses(&[1, 2]), Vec::new());
        assert!(kept[0].has_left(), "back again it is a new one");
        assert!(endpoints.has_several());
    }

    #[tokio::test]
    async fn a_name_without_an_answer_gets_nothing_new_and_loses_nothing() {
        let endpoints = endpoints(&[1]);
        let kept = endpoints.choose().await.unwrap().opened(Instant::now());

        endpoints.withhold(0);
        endpoints.withhold(0);
        assert!(endpoints.choose().await.is_none());
        assert!(!kept.has_left() && !endpoints.has_any());

        endpoints.learn(0, addresses(&[2]), Vec::new());
        assert!(kept.has_left());
    }

    #[test]
    fn an_address_of_two_names_stays_until_both_lack_it() {
        let endpoints = Endpoints::new(2);
        endpoints.learn(0, addresses(&[1, 2]), Vec::new());
        endpoints.learn(1, addresses(&[2, 3]), Vec::new());

        let kept = endpoints.table().entries[1].endpoint.clone();
        assert_eq!(kept.address(), address(2));

        endpoints.learn(0, addresses(&[1]), Vec::new());
        assert!(!kept.has_left());
        endpoints.learn(1, addresses(&[3]), Vec::new());
        assert!(kept.has_left());
        assert_eq!(choices(&endpoints, Duration::ZERO), addresses(&[1, 3]));
    }

    #[tokio::test]
    async fn a_single_address_never_rests() {
        let endpoints = endpoints(&[1]);
        for _ in 0..3 {
            let opening = endpoints.choose().await.unwrap();
            assert!(!opening.has_alternative());
            opening.failed(Instant::now());
        }
        assert!(Endpoints::new(1).choose().await.is_none());
    }
}

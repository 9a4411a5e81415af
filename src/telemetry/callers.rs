//! Who still comes by an old name: for each service the heaviest pairs of client network and agent family, and when each
//! of its hosts was last asked for. Bounded whatever clients send: a pair that comes often is never pushed out by many
//! that come once.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Pairs that are shown at most.
pub const SHOWN: usize = 100;

/// Pairs that are counted: more than are shown, so that the last of those is right too.
const COUNTED: usize = 256;

/// What hosts may take, in bytes; beyond it the half that was not asked for the longest is forgotten.
const HOSTS_BYTES: usize = 12 << 10;
/// What a host takes beside its name.
const HOST_OVERHEAD: usize = 64;

/// A longer name of an agent is cut.
const LONGEST_AGENT: usize = 23;

/// The callers of one service. They are the same over reloads, as long as the service keeps its name.
#[derive(Debug)]
pub struct Callers {
    service: Arc<str>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pairs: Heaviest,
    hosts: HashMap<Box<str>, Instant, Quick>,
    hosts_bytes: usize,
}

/// One pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The clients' network: /24, or /48 of IPv6.
    pub network: IpNet,
    /// The family of their agent: `curl`, `Chrome`.
    pub agent: String,
    /// So many requests at least.
    pub requests: u64,
    /// When the last one came.
    pub last: Instant,
}

impl Callers {
    /// Nobody has called yet.
    pub fn new(service: &str) -> Self {
        Self { service: service.into(), inner: Mutex::default() }
    }

    /// The service's name.
    pub fn service(&self) -> &Arc<str> {
        &self.service
    }

    /// A request has come for this host (lower case, without port).
    pub fn note(&self, host: &str, client: IpAddr, user_agent: &[u8], now: Instant) {
        let pair = Pair { network: network(client), agent: Agent::of(user_agent) };
        let mut inner = self.lock();
        inner.pairs.note(pair, now);
        inner.note_host(host, now);
    }

    /// The heaviest pairs, most requests first.
    pub fn heaviest(&self, limit: usize) -> Vec<Caller> {
        let mut callers: Vec<Caller> = self.lock().pairs.counters.iter().map(Counter::caller).collect();
        callers.sort_by(|a, b| b.requests.cmp(&a.requests).then(b.last.cmp(&a.last)));
        callers.truncate(limit.min(SHOWN));
        callers
    }

    /// Hosts that were asked for, each with the last time.
    pub fn hosts(&self) -> Vec<(Box<str>, Instant)> {
        self.lock().hosts.iter().map(|(host, last)| (host.clone(), *last)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn note_host(&mut self, host: &str, now: Instant) {
        if let Some(last) = self.hosts.get_mut(host) {
            *last = now;
            return;
        }
        if self.hosts_bytes + host.len() + HOST_OVERHEAD > HOSTS_BYTES {
            self.forget_hosts();
        }
        self.hosts_bytes += host.len() + HOST_OVERHEAD;
        self.hosts.insert(host.into(), now);
    }

    fn forget_hosts(&mut self) {
        let mut times: Vec<Instant> = self.hosts.values().copied().collect();
        let middle = times.len() / 2;
        let median = *times.select_nth_unstable(middle).1;
        // Where many came at the same moment, all of them go.
        self.hosts.retain(|_, last| *last > median);
        self.hosts_bytes = self.hosts.keys().map(|host| host.len() + HOST_OVERHEAD).sum();
    }
}

/// A client's network and agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pair {
    /// The first 48 bits of an IPv6 address, or the first 24 of an IPv4 address with a mark above them.
    network: u64,
    agent: Agent,
}

/// Above the bits of a network.
const IS_V4: u64 = 1 << 48;

fn network(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => IS_V4 | u64::from(address.to_bits() >> 8),
        IpAddr::V6(address) => (address.to_bits() >> 80) as u64,
    }
}

fn shown_network(network: u64) -> IpNet {
    let v4 = || Ipv4Net::new(Ipv4Addr::from_bits((network as u32) << 8), 24).map(IpNet::V4);
    let v6 = || Ipv6Net::new(Ipv6Addr::from_bits(u128::from(network) << 80), 48).map(IpNet::V6);
    if network & IS_V4 == 0 { v6() } else { v4() }.expect("both lengths are shorter than addresses")
}

/// The family of an agent, as short as it is told to people: its bytes, then zeros, at last its length.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Agent([u8; LONGEST_AGENT + 1]);

impl Hash for Agent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl Agent {
    fn of(user_agent: &[u8]) -> Self {
        let name = family(user_agent);
        let mut bytes = [0; LONGEST_AGENT + 1];
        for (to, from) in bytes[..LONGEST_AGENT].iter_mut().zip(name) {
            *to = if from.is_ascii_graphic() { *from } else { b'?' };
        }
        bytes[LONGEST_AGENT] = name.len().min(LONGEST_AGENT) as u8;
        Self(bytes)
    }

    fn as_str(&self) -> &str {
        str::from_utf8(&self.0[..usize::from(self.0[LONGEST_AGENT])]).unwrap_or_default()
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A hash for tables so small that no choice of keys can make them slow.
type Quick = BuildHasherDefault<QuickHasher>;

#[derive(Default)]
struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The upper bits are mixed best, and a table looks at both ends.
        self.0.rotate_left(26)
    }
}

/// The first product of an agent (RFC 9110, 10.1.5); of browsers, which all begin alike, the one that they are.
fn family(user_agent: &[u8]) -> &[u8] {
    let name = product(user_agent);
    match name {
        b"" => b"-",
        b"Mozilla" => browser(user_agent).unwrap_or(name),
        name => name,
    }
}

fn product(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| matches!(byte, b'/' | b' ' | b'(' | b';' | b','));
    &text[..end.unwrap_or(text.len())]
}

fn browser(user_agent: &[u8]) -> Option<&[u8]> {
    let behind = memchr::memrchr(b')', user_agent).map(|at| &user_agent[at + 1..]).unwrap_or_default();
    let mut found = None;
    for name in behind.split(|byte| *byte == b' ').map(product) {
        match name {
            b"Edg" | b"EdgA" | b"EdgiOS" => return Some(b"Edge"),
            b"OPR" => return Some(b"Opera"),
            b"HeadlessChrome" => return Some(name),
            b"Chrome" | b"Firefox" => found = Some(name),
            // Chrome says so too.
            b"Safari" => found = found.or(Some(name)),
            _ => {}
        }
    }
    found.or_else(|| {
        let rest = user_agent.windows(COMPATIBLE.len()).position(|window| window == COMPATIBLE)?;
        let name = product(user_agent.get(rest + COMPATIBLE.len()..)?);
        (!name.is_empty()).then_some(name)
    })
}

/// How robots say who they are.
const COMPATIBLE: &[u8] = b"compatible; ";

/// Counts of the heaviest pairs (the space-saving algorithm): a new pair takes the place of the lightest one and goes on
/// from its count, so that whatever has more than one of [`COUNTED`] requests is there for certain.
#[derive(Debug, Default)]
struct Heaviest {
    counters: Vec<Counter>,
    /// Indexes of counters, the lightest one on top.
    heap: Vec<u16>,
    index: HashMap<Pair, u16, Quick>,
}

#[derive(Debug)]
struct Counter {
    pair: Pair,
    count: u64,
    /// How much of the count is an earlier pair's.
    taken_over: u64,
    last: Instant,
    /// Where the heap has it.
    place: u16,
}

impl Counter {
    fn caller(&self) -> Caller {
        Caller {
            network: shown_network(self.pair.network),
            agent: self.pair.agent.as_str().to_owned(),
            requests: self.count - self.taken_over,
            last: self.last,
        }
    }
}

impl Heaviest {
    fn note(&mut self, pair: Pair, now: Instant) {
        if let Some(index) = self.index.get(&pair) {
            let counter = &mut self.counters[usize::from(*index)];
            counter.count += 1;
            counter.last = now;
            let place = counter.place;
            return self.sink(place.into());
        }
        if self.counters.len() < COUNTED {
            let index = self.counters.len() as u16;
            self.counters.push(Counter { pair, count: 1, taken_over: 0, last: now, place: index });
            self.heap.push(index);
            self.index.insert(pair, index);
            return self.rise(index.into());
        }
        let index = self.heap[0];
        let counter = &mut self.counters[usize::from(index)];
        self.index.remove(&counter.pair);
        self.index.insert(pair, index);
        *counter = Counter { pair, count: counter.count + 1, taken_over: counter.count, last: now, place: 0 };
        self.sink(0);
    }

    fn count(&self, place: usize) -> u64 {
        self.counters[usize::from(self.heap[place])].count
    }

    /// Brings a counter that grew to its place.
    fn sink(&mut self, mut place: usize) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            if left >= self.heap.len() {
                return;
            }
            let lighter = if right < self.heap.len() && self.count(right) < self.count(left) { right } else { left };
            if self.count(place) <= self.count(lighter) {
                return;
            }
            self.swap(place, lighter);
            place = lighter;
        }
    }

    /// Brings a light new counter to its place.
    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.count(place) < self.count((place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        for place in [one, other] {
            self.counters[usize::from(self.heap[place])].place = place as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn agents_have_the_family_that_people_know_them_by() {
        let chrome =
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36";
        for (agent, expected) in [
            ("curl/8.5.0", "curl"),
            ("Go-http-client/2.0", "Go-http-client"),
            ("okhttp", "okhttp"),
            ("python-requests/2.31 (x)", "python-requests"),
            ("billing service", "billing"),
            ("", "-"),
            (" x", "-"),
            (chrome, "Chrome"),
            (&format!("{chrome} Edg/120.0"), "Edge"),
            (&format!("{chrome} OPR/106.0"), "Opera"),
            ("Mozilla/5.0 (X11; rv:120.0) Gecko/20100101 Firefox/120.0", "Firefox"),
            ("Mozilla/5.0 (Mac) AppleWebKit/605 (KHTML, like Gecko) Version/17.0 Safari/605.1", "Safari"),
            ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://x)", "Googlebot"),
            ("Mozilla/5.0", "Mozilla"),
            ("Mozilla/5.0 (compatible; ", "Mozilla"),
            ("gr\u{fc}n\u{1b}[2J/1", "gr??n?[2J"),
            ("an-agent-with-a-name-longer-than-that/1", "an-agent-with-a-name-lo"),
        ] {
            assert_eq!(Agent::of(agent.as_bytes()).as_str(), expected, "{agent}");
        }
    }

    #[test]
    fn clients_are_seen_by_network() {
        for (client, expected) in [
            ("10.1.2.3", "10.1.2.0/24"),
            ("::ffff:10.1.2.3", "10.1.2.0/24"),
            ("0.0.0.0", "0.0.0.0/24"),
            ("255.255.255.255", "255.255.255.0/24"),
            ("2001:db8:1:2::3", "2001:db8:1::/48"),
            ("::1", "::/48"),
            ("ffff:ffff:ffff:ffff::", "ffff:ffff:ffff::/48"),
        ] {
            assert_eq!(shown_network(network(client.parse().unwrap())).to_string(), expected, "{client}");
        }
    }

    #[test]
    fn a_flood_of_strangers_pushes_no_regular_out() {
        let callers = Callers::new("a");
        let start = Instant::now();
        for number in 0..200_000_u32 {
            let now = start + Duration::from_millis(number.into());
            callers.note("a.old", IpAddr::V4(Ipv4Addr::from_bits(number.wrapping_mul(2_654_435_761))), b"x/1", now);
            if number % 20 == 0 {
                callers.note("a.old", IpAddr::from([192, 0, 2, (number % 250) as u8]), b"curl/8", now);
            }
            if number % 50 == 0 {
                callers.note("a.old", IpAddr::from([192, 0, 2, 1]), b"Go-http-client/2", now);
            }
        }

        let heaviest = callers.heaviest(usize::MAX);
        assert_eq!(heaviest.len(), SHOWN);
        let first: Vec<(&str, String)> =
            heaviest.iter().take(2).map(|caller| (caller.agent.as_str(), caller.network.to_string())).collect();
        assert_eq!(first, [("curl", "192.0.2.0/24".to_owned()), ("Go-http-client", "192.0.2.0/24".to_owned())]);
        // What is told is never more than what was.
        assert!((9_000..=10_000).contains(&heaviest[0].requests), "{heaviest:?}");
        assert!((3_000..=4_000).contains(&heaviest[1].requests), "{heaviest:?}");
    }

    #[test]
    fn few_pairs_are_counted_exactly() {
        let callers = Callers::new("a");
        let start = Instant::now();
        for number in 0..2_550_u32 {
            callers.note("a.old", IpAddr::from([10, 0, (number % 255) as u8, 1]), b"curl", start);
        }
        let later = start + Duration::from_secs(9);
        callers.note("a.old", IpAddr::from([10, 0, 7, 1]), b"curl", later);

        let heaviest = callers.heaviest(3);
        assert_eq!((heaviest[0].network.to_string().as_str(), heaviest[0].requests), ("10.0.7.0/24", 11));
        assert_eq!((heaviest[0].last, heaviest[1].last), (later, start));
        assert!(heaviest[1..].iter().all(|caller| caller.requests == 10) && heaviest.len() == 3);
    }

    #[test]
    fn the_heap_stays_one() {
        let mut pairs = Heaviest::default();
        let mut random = 1_u32;
        for _ in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let network = u64::from((random >> 24).pow(2) % 700);
            pairs.note(Pair { network, agent: Agent::of(b"x") }, Instant::now());
        }

        assert!((1..pairs.heap.len()).all(|place| pairs.count((place - 1) / 2) <= pairs.count(place)));
        for (index, counter) in pairs.counters.iter().enumerate() {
            assert_eq!(usize::from(pairs.heap[usize::from(counter.place)]), index);
            assert_eq!(pairs.index.get(&counter.pair), Some(&(index as u16)));
        }
        let total: u64 = pairs.counters.iter().map(|counter| counter.count).sum();
        assert_eq!(total, 20_000, "every request is in one count");
    }

    #[test]
    fn hosts_are_remembered_within_bounds() {
        let callers = Callers::new("a");
        let start = Instant::now();
        for number in 0..10_000_u64 {
            let now = start + Duration::from_millis(number);
            callers.note(&format!("{number}.{}", "x".repeat(200)), IpAddr::from([10, 0, 0, 1]), b"", now);
            callers.note("regular", IpAddr::from([10, 0, 0, 1]), b"", now);
        }

        let hosts = callers.hosts();
        let end = start + Duration::from_millis(9_999);
        assert!(hosts.iter().any(|(host, last)| &**host == "regular" && *last == end));
        let bytes: usize = hosts.iter().map(|(host, _)| host.len() + HOST_OVERHEAD).sum();
        assert!(bytes <= HOSTS_BYTES && hosts.len() > 10, "{}", hosts.len());
    }

    #[test]
    fn a_service_s_callers_take_less_than_64_kib() {
        // A hash map is never fuller than seven eighths, and sized by powers of two, with a byte for each place.
        let pairs = COUNTED * (size_of::<Counter>() + size_of::<u16>());
        let index = (COUNTED * 2) * (size_of::<(Pair, u16)>() + 1);
        let hosts = HOSTS_BYTES;
        assert!(pairs + index + hosts < 64 << 10, "{}", pairs + index + hosts);
        assert!(size_of::<(Box<str>, Instant)>() < HOST_OVERHEAD, "with the places that are free");
    }
}

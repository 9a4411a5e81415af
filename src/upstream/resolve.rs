//! Names to addresses, followed for as long as somebody wants them. From its first use on, a name is looked up again
//! whenever its answer has served its TTL, on the control runtime, so that requests only read what is known. An old
//! answer stays while DNS fails. What one look-up asks is in [`super::dns`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::dns::{Client, Fault, Found, Sources};
use crate::config::Dns;

/// More addresses than this for one name are left aside.
const MOST_ADDRESSES: usize = 32;

/// Look-ups at the same time.
const MOST_LOOK_UPS: usize = 256;

/// A name is never asked for again sooner than this, whatever the file and the TTL say.
const SOONEST: Duration = Duration::from_millis(100);

/// The pause between look-ups is longer by up to this part of it, so that names which began together do not stay so.
const SPREAD: f64 = 0.1;

/// Changed addresses of one name are told at `info` at most this often: some names answer otherwise every time.
const TOLD: Duration = Duration::from_secs(60);

/// Follows names.
pub struct Resolver {
    runtime: Handle,
    settings: watch::Sender<Dns>,
    client: Client,
    names: Mutex<HashMap<Box<str>, Weak<Name>>>,
    places: Semaphore,
}

/// A name and what is known of it, shared by everybody who uses it.
#[derive(Debug)]
pub struct Name {
    host: Box<str>,
    known: watch::Sender<Known>,
    followed: AtomicBool,
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub enum Known {
    /// No look-up has ended yet.
    Nothing,
    /// The newest answer, perhaps an old one while DNS fails.
    Addresses(Arc<Addresses>),
    /// No answer yet, or the old one is too old.
    Failed(ResolveError),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For new connections.
    pub current: Vec<IpAddr>,
    /// In the answer before, but not in this one: what is connected may stay until the next answer confirms it.
    pub leaving: Vec<IpAddr>,
}

/// Why a name has no address.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{name} does not resolve: {reason}")]
pub struct ResolveError {
    name: Box<str>,
    reason: Arc<str>,
}

impl Name {
    /// The name itself.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Resolver {
    /// A resolver whose look-ups run on `runtime`. Nothing is read or asked before a name is used.
    pub fn new(settings: Dns, sources: Sources, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            settings: watch::Sender::new(settings),
            client: Client::new(sources),
            names: Mutex::default(),
            places: Semaphore::new(MOST_LOOK_UPS),
        })
    }

    /// New bounds from a reload; answers that are known stay.
    pub fn configure(&self, settings: Dns) {
        self.settings.send_if_modified(|current| std::mem::replace(current, settings) != settings);
    }

    /// The runtime of the look-ups.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The one entry of a name. A reload that replaces its user finds what was known.
    pub fn name(&self, host: &str) -> Arc<Name> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(host).and_then(Weak::upgrade) {
            return name;
        }
        if names.len() == names.capacity() {
            names.retain(|_, name| name.strong_count() > 0);
        }
        let known = watch::Sender::new(Known::Nothing);
        let name = Arc::new(Name { host: host.into(), known, followed: AtomicBool::new(false) });
        names.insert(host.into(), Arc::downgrade(&name));
        name
    }

    /// What is known of a name and what will be. The first call starts its look-ups, which end when the name is dropped.
    pub fn follow(self: &Arc<Self>, name: &Arc<Name>) -> watch::Receiver<Known> {
        if !name.followed.swap(true, Ordering::AcqRel) {
            self.runtime.spawn(keep_fresh(self.clone(), name.host.clone(), Arc::downgrade(name)));
        }
        name.known.subscribe()
    }

    /// Looks a name up once, beside what is known of it.
    ///
    /// # Errors
    ///
    /// It has no address, or nobody says.
    pub async fn look_up(&self, host: &str) -> Result<Found, Fault> {
        let _place = self.places.acquire().await.expect("the semaphore is never closed");
        self.client.look_up(host).await
    }
}

/// Owned by the name; ends when that is dropped, at the latest at its next turn.
async fn keep_fresh(resolver: Arc<Resolver>, host: Box<str>, name: Weak<Name>) {
    let mut settings = resolver.settings.subscribe();
    let mut memory = Memory::default();
    while name.strong_count() > 0 {
        let answer = resolver.look_up(&host).await;
        let Some(name) = name.upgrade() else { return };
        let bounds = *settings.borrow_and_update();
        let (known, pause) = memory.learn(&host, answer, &bounds, Instant::now());
        name.known.send_replace(known);
        drop(name);
        let pause = pause.mul_f64(1.0 + rand::random_range(0.0..SPREAD));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Cannot fail: the sender lives in the resolver.
            _ = settings.changed() => {}
        }
    }
}

/// What is remembered from look-up to look-up of one name.
#[derive(Default)]
struct Memory {
    addresses: Option<Arc<Addresses>>,
    /// When the addresses are too old even while DNS fails.
    usable_until: Option<Instant>,
    /// The look-up under way is the second opinion on addresses that were missing.
    confirming: bool,
    fault: Option<Fault>,
    told: Option<Instant>,
}

impl Memory {
    /// What is known after this answer, and the pause before the next look-up.
    fn learn(&mut self, host: &str, answer: Result<Found, Fault>, bounds: &Dns, now: Instant) -> (Known, Duration) {
        match answer {
            Ok(found) => self.found(host, &found, bounds, now),
            Err(fault) => self.failed(host, fault, bounds, now),
        }
    }

    /// An address that is missing once may be missing by accident: servers that disagree, a backend that was not ready
    /// for a second. It gets no new connection, and the answer is asked for again soon; missing there too, it has left.
    fn found(&mut self, host: &str, found: &Found, bounds: &Dns, now: Instant) -> (Known, Duration) {
        let ttl = found.ttl.clamp(bounds.min_ttl, bounds.max_ttl).max(SOONEST);
        let before: &[IpAddr] = self.addresses.as_ref().map_or(&[], |addresses| &addresses.current);
        let current = capped(&found.addresses, before);
        let leaving: Vec<IpAddr> = before.iter().filter(|address| !current.contains(address)).copied().collect();
        if self.fault.take().is_some() {
            tracing::info!(name = host, addresses = ?current, "the name resolves again");
        } else if !before.is_empty() && before != current {
            self.tell(host, &current, now);
        }
        self.confirming = !leaving.is_empty() && !self.confirming;
        let next = Addresses { current, leaving };
        let addresses = match self.addresses.take() {
            // The same object where nothing changed: its users see that at a glance.
            Some(known) if *known == next => known,
            _ => Arc::new(next),
        };
        self.addresses = Some(addresses.clone());
        self.usable_until = now.checked_add(ttl + bounds.stale);
        let pause = if self.confirming { bounds.min_ttl.max(SOONEST).min(ttl) } else { ttl };
        (Known::Addresses(addresses), pause)
    }

    /// A definite "no such name" is a failure like any other: a zone that was deleted or split by mistake must not take
    /// down what works.
    fn failed(&mut self, host: &str, fault: Fault, bounds: &Dns, now: Instant) -> (Known, Duration) {
        let is_usable = self.usable_until.is_none_or(|until| now < until);
        let addresses = self.addresses.take().filter(|_| is_usable);
        let is_new = self.fault.as_ref().is_none_or(|known| {
            // Trouble comes in many words; one line for all of them is enough.
            std::mem::discriminant(known) != std::mem::discriminant(&fault)
        });
        if is_new {
            let old_answer_serves = addresses.is_some();
            tracing::warn!(name = host, error = %fault, old_answer_serves, "the name does not resolve");
        } else if !is_usable && self.usable_until.take().is_some() {
            tracing::error!(name = host, error = %fault, "the name's old answer is too old");
        }
        let known = match &addresses {
            Some(addresses) => Known::Addresses(addresses.clone()),
            None => Known::Failed(ResolveError { name: host.into(), reason: fault.to_string().into() }),
        };
        self.addresses = addresses;
        self.fault = Some(fault);
        (known, bounds.negative_ttl.max(SOONEST))
    }

    fn tell(&mut self, host: &str, addresses: &[IpAddr], now: Instant) {
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD) {
            self.told = Some(now);
            tracing::info!(name = host, ?addresses, "the name has other addresses");
        } else {
            tracing::debug!(name = host, ?addresses, "the name has other addresses");
        }
    }
}

/// At most [`MOST_ADDRESSES`], those first that are in use: a long answer in another order is the same answer.
fn capped(found: &[IpAddr], before: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = before.iter().filter(|address| found.contains(address)).copied().collect();
    for address in found {
        if addresses.len() >= MOST_ADDRESSES {
            break;
        }
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Dns = Dns {
        min_ttl: Duration::from_secs(1),
        max_ttl: Duration::from_secs(30),
        negative_ttl: Duration::from_secs(5),
        stale: Duration::from_secs(100),
    };

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn found(last: &[u8], ttl: u64) -> Result<Found, Fault> {
        let addresses = last.iter().copied().map(ip).collect();
        Ok(Found { addresses, ttl: Duration::from_secs(ttl), by_search: None })
    }

    fn ips(last: &[u8]) -> Vec<IpAddr> {
        last.iter().copied().map(ip).collect()
    }

    #[track_caller]
    fn addresses(known: &Known) -> &Addresses {
        match known {
            Known::Addresses(addresses) => addresses,
            other => panic!("no addresses: {other:?}"),
        }
    }

    #[test]
    fn an_answer_serves_for_its_ttl_within_bounds() {
        let now = Instant::now();
        for (ttl, pause) in [(0, 1), (1, 1), (12, 12), (86_400, 30)] {
            assert_eq!(Memory::default().learn("a", found(&[1], ttl), &BOUNDS, now).1, Duration::from_secs(pause));
        }
        let eager = Dns { min_ttl: Duration::ZERO, negative_ttl: Duration::ZERO, ..BOUNDS };
        assert_eq!(Memory::default().learn("a", found(&[1], 0), &eager, now).1, SOONEST);
        assert_eq!(Memory::default().learn("a", Err(Fault::NoSuchName), &eager, now).1, SOONEST);
    }

    #[test]
    fn an_address_has_left_when_two_answers_lack_it() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let b = |last: &'static [u8]| last;
        // Answer, what is current, what is leaving, seconds until the next look-up.
        let history = [
            (b(&[1, 2]), b(&[1, 2]), b(&[]), 20),
            (&[2, 1], &[1, 2], &[], 20),
            (&[2, 3], &[2, 3], &[1], 1),
            (&[1, 2, 3], &[2, 3, 1], &[], 20),
            (&[2, 3], &[2, 3], &[1], 1),
            (&[2, 3], &[2, 3], &[], 20),
            // An answer that is another one every time is asked for twice, not for ever.
            (&[4], &[4], &[2, 3], 1),
            (&[5], &[5], &[4], 20),
        ];
        for (answer, current, leaving, pause) in history {
            let (known, next) = memory.learn("a", found(answer, 20), &BOUNDS, now);
            let known = addresses(&known);
            assert_eq!((&known.current, &known.leaving), (&ips(current), &ips(leaving)), "after {answer:?}");
            assert_eq!(next, Duration::from_secs(pause), "after {answer:?}");
        }
    }

    #[test]
    fn an_old_answer_stays_while_dns_fails_and_not_for_ever() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut memory = Memory::default();
        memory.learn("a", found(&[1], 20), &BOUNDS, start);

        for (seconds, fault) in [
            (20, Fault::Trouble("timeout".to_owned())),
            (60, Fault::NoSuchName),
            (100, Fault::NoAddress),
            (119, Fault::Trouble("refused".to_owned())),
        ] {
            let (known, pause) = memory.learn("a", Err(fault), &BOUNDS, at(seconds));
            assert_eq!(addresses(&known).current, ips(&[1]), "after {seconds} s");
            assert_eq!(pause, BOUNDS.negative_ttl);
        }
        let (known, _) = memory.learn("a", Err(Fault::NoSuchName), &BOUNDS, at(120));
        assert!(matches!(known, Known::Failed(_)));
        let (known, _) = memory.learn("a", found(&[2], 20), &BOUNDS, at(130));
        assert!(addresses(&known).leaving.is_empty(), "what was too old is not missed");
    }

    #[test]
    fn a_failure_says_the_name_and_the_reason() {
        let (known, _) = Memory::default().learn("api.example", Err(Fault::NoSuchName), &BOUNDS, Instant::now());

        let Known::Failed(error) = known else { panic!("{known:?}") };
        assert_eq!(error.to_string(), "api.example does not resolve: no such name");
    }

    #[test]
    fn of_thousands_of_addresses_the_same_few_are_used() {
        let all: Vec<IpAddr> =
            (0..4_000_u32).map(|number| IpAddr::from((0x0a00_0000 + number).to_be_bytes())).collect();
        let first = capped(&all, &[]);
        let reversed: Vec<IpAddr> = all.iter().rev().copied().collect();

        assert_eq!(first.len(), MOST_ADDRESSES);
        assert_eq!(capped(&reversed, &first), first);
        assert_eq!(capped(&[ip(7), ip(7), ip(8)], &[]), [ip(7), ip(8)]);
    }

    #[tokio::test]
    async fn a_name_is_shared_and_forgotten_with_its_last_user() {
        let resolver = Resolver::new(BOUNDS, Sources::default(), Handle::current());

        let name = resolver.name("a.example");
        assert!(Arc::ptr_eq(&name, &resolver.name("a.example")));
        drop(name);
        for number in 0..1_000 {
            drop(resolver.name(&format!("{number}.example")));
        }

        assert!(resolver.names.lock().unwrap().len() < 100);
    }
}

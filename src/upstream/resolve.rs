//! Names to addresses. An answer is kept for its TTL within bounds; an older one serves while a new one is fetched, and
//! while DNS fails. Look-ups run on the control runtime, one at a time for a name.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::Dns;

/// More addresses than this for one name are left aside.
const MOST_ADDRESSES: usize = 32;

/// One query to one server.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks DNS.
pub struct Resolver {
    runtime: Handle,
    settings: ArcSwap<Dns>,
    client: TokioResolver,
}

/// A name and what is known of it.
#[derive(Debug)]
pub struct Name {
    host: Box<str>,
    known: watch::Sender<Known>,
    asking: AtomicBool,
}

#[derive(Clone, Debug)]
enum Known {
    Nothing,
    Addresses { addresses: Arc<[IpAddr]>, fresh_until: Instant, usable_until: Instant },
    Failed { error: ResolveError, until: Instant },
}

/// Why a name has no address.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{name} does not resolve: {reason}")]
pub struct ResolveError {
    name: Box<str>,
    reason: Arc<str>,
}

impl Name {
    /// Nothing is known yet.
    pub fn new(host: &str) -> Arc<Self> {
        Arc::new(Self { host: host.into(), known: watch::Sender::new(Known::Nothing), asking: AtomicBool::new(false) })
    }

    /// The name itself.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Resolver {
    /// A resolver whose look-ups run on `runtime`. Must be called inside a runtime.
    pub fn new(settings: Dns, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { runtime, settings: ArcSwap::from_pointee(settings), client: client() })
    }

    /// New bounds from a reload; answers that are known stay.
    pub fn configure(&self, settings: Dns) {
        self.settings.store(Arc::new(settings));
    }

    /// The addresses of a name. Waits only when nothing usable is known.
    ///
    /// # Errors
    ///
    /// The name does not exist, or DNS does not answer and no old answer is left.
    pub async fn addresses(self: &Arc<Self>, name: &Arc<Name>) -> Result<Arc<[IpAddr]>, ResolveError> {
        let mut changes = name.known.subscribe();
        let mut asked = false;
        loop {
            let known = changes.borrow_and_update().clone();
            let now = Instant::now();
            match known {
                Known::Addresses { addresses, fresh_until, .. } if now < fresh_until => return Ok(addresses),
                Known::Addresses { addresses, usable_until, .. } if now < usable_until => {
                    self.ask(name);
                    return Ok(addresses);
                }
                Known::Failed { error, until } if asked || now < until => return Err(error),
                Known::Nothing | Known::Addresses { .. } | Known::Failed { .. } => self.ask(name),
            }
            // The sender lives in `name`, so this only ends with a change.
            let _ = changes.changed().await;
            asked = true;
        }
    }

    /// Starts a look-up unless one is running.
    fn ask(self: &Arc<Self>, name: &Arc<Name>) {
        if name.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (resolver, name) = (self.clone(), name.clone());
        self.runtime.spawn(async move {
            let answer = resolver.look_up(&name.host).await;
            let known = resolver.learn(&name, answer);
            // In this order: whoever hears of the answer may ask anew.
            name.asking.store(false, Ordering::Release);
            name.known.send_replace(known);
        });
    }

    /// The name as it stands, and for short names the search list only after that does not exist: the search list of a
    /// pod would otherwise turn every look-up into five.
    async fn look_up(&self, host: &str) -> Result<LookupIp, NetError> {
        let absolute = format!("{}.", host.trim_end_matches('.'));
        let answer = self.client.lookup_ip(absolute).await;
        let is_short = host.bytes().filter(|byte| *byte == b'.').count() < 3 && !host.ends_with('.');
        match answer {
            Err(error) if is_short && (error.is_nx_domain() || error.is_no_records_found()) => {
                self.client.lookup_ip(host).await
            }
            other => other,
        }
    }

    fn learn(&self, name: &Name, answer: Result<LookupIp, NetError>) -> Known {
        let settings = self.settings.load();
        let now = Instant::now();
        match answer {
            Ok(lookup) => {
                let ttl = lookup.valid_until().saturating_duration_since(now).clamp(settings.min_ttl, settings.max_ttl);
                let addresses: Arc<[IpAddr]> = lookup.iter().take(MOST_ADDRESSES).collect();
                let fresh_until = now + ttl;
                Known::Addresses { addresses, fresh_until, usable_until: fresh_until + settings.stale }
            }
            Err(error) => {
                tracing::warn!(name = %name.host, %error, "name look-up failed");
                self.after_failure(name, &error, now)
            }
        }
    }

    fn after_failure(&self, name: &Name, error: &NetError, now: Instant) -> Known {
        let until = now + self.settings.load().negative_ttl;
        match name.known.borrow().clone() {
            Known::Addresses { addresses, usable_until, .. } if now < usable_until => {
                Known::Addresses { addresses, fresh_until: until.min(usable_until), usable_until }
            }
            _ => {
                let error = ResolveError { name: name.host.clone(), reason: error.to_string().into() };
                Known::Failed { error, until }
            }
        }
    }
}

fn client() -> TokioResolver {
    let system = TokioResolver::builder_tokio();
    let mut builder = system.unwrap_or_else(|error| {
        tracing::warn!(%error, "resolv.conf cannot be used; only /etc/hosts and addresses resolve");
        TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
    });
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    options.timeout = QUERY_TIMEOUT;
    // Names are kept here; the client's cache would hide a changed answer.
    options.cache_size = 0;
    builder.build().expect("options without TLS always build")
}

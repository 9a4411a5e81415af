//! One question: a name's addresses from the hosts file, else from DNS, the name as it stands before the search list.
//! Both files are read again when they change. Nothing is remembered here but the files; see [`super::resolve`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;

/// One round of questions to the servers, and how many more follow.
const ROUND: Duration = Duration::from_secs(2);
const MORE_ROUNDS: usize = 1;

/// Everything that one name may cost: both families, the search list, aliases of aliases.
const WHOLE: Duration = Duration::from_secs(10);

/// The files are not looked at more often than this.
const RECHECK: Duration = Duration::from_secs(2);

/// What of a file is read at most.
const LARGEST_FILE: u64 = 1 << 20;

/// How long a line of the hosts file counts; the file itself is at hand, so soon is cheap.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// Names with fewer dots may be short for a name in the search list.
const SHORT: usize = 3;

/// Where names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Says who is asked and what short names may be short for.
    pub resolv_conf: PathBuf,
    /// Names that need no DNS.
    pub hosts: PathBuf,
    /// The port of the servers, which `resolv.conf` cannot say.
    pub port: u16,
}

impl Default for Sources {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into(), port: 53 }
    }
}

/// The addresses of a name, of one family, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// How long they count.
    pub ttl: Duration,
    /// The longer name that has them, when the search list was needed.
    pub by_search: Option<String>,
}

/// Why there are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// DNS says so.
    #[error("no such name")]
    NoSuchName,
    /// The name exists, but for something else, or as an alias of nothing.
    #[error("the name has no address")]
    NoAddress,
    /// Nobody knows.
    #[error("{0}")]
    Trouble(String),
}

/// Asks, on the runtime that polls it.
pub struct Client {
    sources: Sources,
    files: Mutex<Files>,
}

struct Files {
    checked: Option<Instant>,
    hosts: Source<Hosts>,
    servers: Source<Servers>,
}

/// A file, and the newest of its contents that could be used.
struct Source<T> {
    seen: Option<Result<Vec<u8>, io::ErrorKind>>,
    usable: Result<Arc<T>, String>,
}

type Hosts = HashMap<String, Vec<IpAddr>>;

struct Servers {
    client: TokioResolver,
    search: Vec<Name>,
}

impl Client {
    /// A client that has read nothing yet.
    pub fn new(sources: Sources) -> Self {
        let files = Files { checked: None, hosts: Source::unread(), servers: Source::unread() };
        Self { sources, files: Mutex::new(files) }
    }

    /// The addresses of `host`, a name in lower case without a dot at its end.
    ///
    /// # Errors
    ///
    /// There are none, or nobody says in time.
    pub async fn look_up(&self, host: &str) -> Result<Found, Fault> {
        let (hosts, servers) = self.files(Instant::now());
        if let Some(addresses) = hosts.ok().and_then(|hosts| hosts.get(host).cloned()) {
            return Ok(Found { addresses, ttl: HOSTS_TTL, by_search: None });
        }
        let servers = servers.map_err(Fault::Trouble)?;
        match tokio::time::timeout(WHOLE, servers.look_up(host)).await {
            Ok(answer) => answer,
            Err(_) => Err(Fault::Trouble("no answer in time".to_owned())),
        }
    }

    /// Both files as they are now, give or take [`RECHECK`].
    fn files(&self, now: Instant) -> (Result<Arc<Hosts>, String>, Result<Arc<Servers>, String>) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.checked.is_none_or(|checked| now.saturating_duration_since(checked) >= RECHECK) {
            files.checked = Some(now);
            files.hosts.read(&self.sources.hosts, |text| Ok(hosts(&String::from_utf8_lossy(text))));
            files.servers.read(&self.sources.resolv_conf, |text| Servers::new(text, self.sources.port));
        }
        (files.hosts.usable.clone(), files.servers.usable.clone())
    }
}

impl<T> Source<T> {
    fn unread() -> Self {
        Self { seen: None, usable: Err(String::new()) }
    }

    /// Looks at the file; what was usable stays when the file no longer is.
    fn read(&mut self, path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) {
        let content = read(path);
        let seen = content.as_ref().map(Vec::clone).map_err(io::Error::kind);
        if self.seen.as_ref() == Some(&seen) {
            return;
        }
        let is_first = self.seen.replace(seen).is_none();
        let file = path.display();
        match content.map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
            Ok(usable) => {
                self.usable = Ok(Arc::new(usable));
                if !is_first {
                    tracing::info!(%file, "read anew");
                }
            }
            Err(error) => {
                tracing::warn!(%file, error, kept = self.usable.is_ok(), "cannot be used to look up names");
                if self.usable.is_err() {
                    self.usable = Err(format!("{file}: {error}"));
                }
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(LARGEST_FILE).read_to_end(&mut content)?;
    Ok(content)
}

/// The lines of a hosts file. A name with addresses of both families keeps those of IPv4, as an answer of DNS does.
fn hosts(text: &str) -> Hosts {
    let mut hosts = Hosts::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        for name in words {
            let addresses: &mut Vec<IpAddr> = hosts.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    for addresses in hosts.values_mut() {
        if addresses.iter().any(IpAddr::is_ipv4) {
            addresses.retain(IpAddr::is_ipv4);
        }
    }
    hosts
}

impl Servers {
    fn new(resolv_conf: &[u8], port: u16) -> Result<Self, String> {
        let (config, options) = parse_resolv_conf(resolv_conf).map_err(|error| error.to_string())?;
        let mut servers = config.name_servers;
        for connection in servers.iter_mut().flat_map(|server| &mut server.connections) {
            connection.port = port;
        }
        let search = config.search;
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let options = builder.options_mut();
        options.timeout = ROUND;
        options.attempts = MORE_ROUNDS;
        options.use_hosts_file = ResolveHosts::Never;
        // Answers are kept elsewhere; a cache here would hide a changed one.
        options.cache_size = 0;
        let client = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { client, search })
    }

    /// The name as it stands. The search list follows only for a short name, and only when the name is not there: the
    /// search list of a pod would otherwise turn every look-up into five.
    async fn look_up(&self, host: &str) -> Result<Found, Fault> {
        let mut name = Name::from_ascii(host).map_err(|error| Fault::Trouble(error.to_string()))?;
        name.set_fqdn(true);
        let mut answer = self.absolute(name.clone()).await;
        if host.bytes().filter(|byte| *byte == b'.').count() >= SHORT {
            return answer;
        }
        for suffix in &self.search {
            if !matches!(answer, Err(Fault::NoSuchName | Fault::NoAddress)) {
                return answer;
            }
            // A name that becomes too long is none.
            if let Ok(longer) = name.clone().append_domain(suffix) {
                let by_search = Some(longer.to_ascii().trim_end_matches('.').to_owned());
                answer = self.absolute(longer).await.map(|found| Found { by_search, ..found });
            }
        }
        answer
    }

    /// IPv4, and IPv6 where there is none.
    async fn absolute(&self, name: Name) -> Result<Found, Fault> {
        match self.ask(name.clone(), RecordType::A).await {
            Err(Fault::NoAddress) => self.ask(name, RecordType::AAAA).await,
            answer => answer,
        }
    }

    async fn ask(&self, name: Name, family: RecordType) -> Result<Found, Fault> {
        let answer = self.client.lookup(name, family).await.map_err(|error| Fault::of(&error))?;
        Found::of(&answer).ok_or(Fault::NoAddress)
    }
}

impl Found {
    fn of(answer: &Lookup) -> Option<Self> {
        let records = answer.answers();
        let addresses: Vec<IpAddr> = records.iter().filter_map(|record| record.data.ip_addr()).collect();
        let ttl = Duration::from_secs(records.iter().map(|record| record.ttl).min()?.into());
        (!addresses.is_empty()).then_some(Self { addresses, ttl, by_search: None })
    }
}

impl Fault {
    fn of(error: &NetError) -> Self {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain => Self::NoSuchName,
                ResponseCode::NoError => Self::NoAddress,
                code => Self::Trouble(format!("the name server says: {code}")),
            },
            NetError::Dns(DnsError::ResponseCode(code)) => Self::Trouble(format!("the name server says: {code}")),
            error => Self::Trouble(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_is_read_as_the_system_reads_it() {
        let hosts = hosts(
            "# comment\n10.0.0.1  One.Example one.\n\n10.0.0.2 one.example # two.example\nnot-an-address three.example\n\
             ::1 localhost\n127.0.0.1 localhost\n2001:db8::1 six.example\n10.0.0.1 one.example\n10.0.0.9",
        );

        let of = |name: &str| hosts.get(name).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of("one.example").unwrap(), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(of("one").unwrap(), ["10.0.0.1"]);
        assert_eq!(of("localhost").unwrap(), ["127.0.0.1"], "IPv4 before IPv6");
        assert_eq!(of("six.example").unwrap(), ["2001:db8::1"]);
        assert_eq!(of("two.example"), None);
        assert_eq!(of("three.example"), None);
        assert_eq!(hosts.len(), 4);
    }

    #[test]
    fn a_file_that_turns_bad_leaves_what_was_good() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let number =
            |text: &[u8]| String::from_utf8_lossy(text).trim().parse::<u8>().map_err(|error| error.to_string());
        let mut source = Source::<u8>::unread();

        source.read(&path, number);
        let error = source.usable.clone().unwrap_err();
        assert!(error.contains("resolv.conf"), "{error}");
        for (text, usable) in [("7", 7), ("", 7), ("odd", 7), ("8", 8)] {
            std::fs::write(&path, text).unwrap();
            source.read(&path, number);
            assert_eq!(source.usable.as_deref(), Ok(&usable), "after {text:?}");
        }
        std::fs::remove_file(&path).unwrap();
        source.read(&path, number);
        assert_eq!(source.usable.as_deref(), Ok(&8));
    }

    #[tokio::test]
    async fn without_servers_only_the_hosts_file_answers() {
        let directory = tempfile::tempdir().unwrap();
        let hosts = directory.path().join("hosts");
        std::fs::write(&hosts, "10.0.0.1 known.example\n").unwrap();
        for content in [None, Some(""), Some("nameserver nowhere\n"), Some("\u{0}\u{1}\u{2}")] {
            let resolv_conf = directory.path().join("resolv.conf");
            if let Some(content) = content {
                std::fs::write(&resolv_conf, content).unwrap();
            }
            let client = Client::new(Sources { resolv_conf, hosts: hosts.clone(), port: 53 });

            let known = client.look_up("known.example").await.unwrap();
            let unknown = client.look_up("other.example").await.unwrap_err();

            assert_eq!(known.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
            assert!(matches!(&unknown, Fault::Trouble(text) if text.contains("resolv.conf")), "{content:?}: {unknown}");
        }
    }
}

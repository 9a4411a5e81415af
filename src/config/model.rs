//! The checked configuration as Rust types, key by key as the manual names them. Everything in here is valid: names
//! parse, networks are networks, regular expressions compile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, Method};
use ipnet::IpNet;
use regex::Regex;

use super::units::{Authority, HostPattern, Percent};

/// A whole file.
#[derive(Clone, Debug)]
pub struct Config {
    /// Data workers; `None`: the CPUs that the process may use.
    pub workers: Option<usize>,
    /// Everything to the old clusters.
    pub safe_mode: bool,
    /// Defaults of every service.
    pub global: Global,
    /// Sockets and clients.
    pub listen: Listen,
    /// Bounds of the whole process.
    pub limits: Limits,
    /// Logs.
    pub log: Log,
    /// Who may write to the admin port.
    pub admin: Admin,
    /// How changes of the file are noticed, and where state lives.
    pub reload: Reload,
    /// Where changes of operators are kept.
    pub state: State,
    /// The other replicas.
    pub fleet: Fleet,
    /// Name look-ups.
    pub dns: Dns,
    /// The graceful end.
    pub drain: Drain,
    /// Every service, templates expanded.
    pub services: Vec<Service>,
}

/// `global`.
#[derive(Clone, Debug)]
pub struct Global {
    /// The deadline of a request over all its tries, until the response head.
    pub default_timeout: Duration,
    /// Tries after the first one.
    pub retry_attempts: u32,
}

/// `listen`.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Plain listeners.
    pub http: Vec<SocketAddr>,
    /// TLS listeners.
    pub https: Vec<SocketAddr>,
    /// The admin port.
    pub admin: SocketAddr,
    /// Trusted proxies may say in PROXY headers who connects.
    pub proxy_protocol: bool,
    /// Peers whose forwarded headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Which address is the client's.
    pub client_ip: ClientIp,
    /// Certificates and versions of the TLS listeners.
    pub tls: ListenTls,
    /// Limits on slow clients.
    pub timeouts: ListenTimeouts,
    /// The answer to a host that no service claims.
    pub unknown_host: UnknownHost,
}

/// `listen.client_ip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientIp {
    /// The peer of the connection.
    Peer,
    /// The rightmost entry of X-Forwarded-For that is no trusted proxy.
    XffRightmostUntrusted,
    /// X-Real-IP.
    XRealIp,
    /// A field of that name.
    Header(HeaderName),
}

/// `listen.tls`.
#[derive(Clone, Debug)]
pub struct ListenTls {
    /// Pairs of files; the first one also serves clients that name no known host.
    pub certificates: Vec<CertificateFiles>,
    /// The oldest protocol version that is accepted.
    pub min_version: TlsVersion,
    /// When set, clients must present a certificate of this authority.
    pub client_ca: Option<PathBuf>,
}

/// One certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateFiles {
    /// PEM chain, leaf first.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

/// Protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// `listen.timeouts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenTimeouts {
    /// From the first byte of a head to its end.
    pub header: Duration,
    /// Between two reads of a request body.
    pub body_idle: Duration,
    /// Between two writes that the client accepts.
    pub write_idle: Duration,
    /// Between two requests.
    pub keepalive: Duration,
    /// The whole TLS handshake.
    pub tls_handshake: Duration,
}

/// `listen.unknown_host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownHost {
    /// 404.
    NotFound,
    /// 421.
    Misdirected,
    /// The connection is closed without an answer.
    Close,
}

/// `limits`. `None` is the documented automatic value or no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open client connections; `None`: 45 % of the descriptor limit.
    pub max_connections: Option<usize>,
    /// Requests that wait for a response head.
    pub max_in_flight: usize,
    /// A whole request head.
    pub header_bytes: usize,
    /// Fields of a request head.
    pub header_count: usize,
    /// A whole response head of an upstream.
    pub response_header_bytes: usize,
    /// A request target.
    pub uri_bytes: usize,
    /// A request body; `None`: unlimited.
    pub request_body: Option<u64>,
}

/// `log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least severe control line that is written.
    pub level: tracing::Level,
    /// Form of control and audit lines.
    pub format: LogFormat,
    /// Form of access lines.
    pub access: AccessFormat,
    /// Where access lines go.
    pub access_path: PathBuf,
    /// Share of 2xx and 3xx lines that are kept.
    pub access_sample: Percent,
    /// Where audit lines go.
    pub audit_path: PathBuf,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `log.access`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    /// As nginx' combined format, with our fields behind it.
    Nginx,
    /// One JSON object a line.
    Json,
    /// None.
    Off,
}

/// `admin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Tokens that may write; `None`: loopback may.
    pub token_file: Option<PathBuf>,
}

/// `reload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// Notice changes of the file.
    pub watch: bool,
    /// How often its content is compared.
    pub poll: Duration,
    /// What happens when a file drops a host that has traffic.
    pub on_lost_host: OnLostHost,
    /// Where the last good file, the state and the history are kept.
    pub state_dir: PathBuf,
}

/// `reload.on_lost_host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLostHost {
    /// Take the file and say so.
    Warn,
    /// Refuse the file.
    Refuse,
}

/// `state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Who keeps the state.
    pub backend: StateBackend,
    /// The ConfigMap's name.
    pub config_map: String,
    /// Its namespace; `None`: the pod's.
    pub namespace: Option<String>,
}

/// `state.backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateBackend {
    /// Kubernetes inside a pod with a service account, else the file.
    Auto,
    /// A ConfigMap.
    Kubernetes,
    /// `state_dir/state.yaml`.
    File,
}

/// `fleet`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// A name whose addresses are the replicas, and their admin port.
    pub peers: Option<Authority>,
}

/// `dns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dns {
    /// An answer is kept at least this long.
    pub min_ttl: Duration,
    /// An answer is kept at most this long.
    pub max_ttl: Duration,
    /// An unknown name is asked for again after this time.
    pub negative_ttl: Duration,
    /// An old answer serves this long while DNS fails.
    pub stale: Duration,
}

/// `drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Not ready any more, but still accepting.
    pub delay: Duration,
    /// Time for open work afterwards.
    pub grace: Duration,
}

/// One entry of `services`.
#[derive(Clone, Debug)]
pub struct Service {
    /// `[a-z0-9-]`, the label in metrics.
    pub name: String,
    /// Everything of this service to the old cluster.
    pub safe_mode: bool,
    /// Hosts that clients ask for.
    pub old_host: Vec<HostPattern>,
    /// Backends in the old cluster.
    pub old_backend: Vec<Authority>,
    /// SNI and Host towards the new cluster. Lower case.
    pub new_host: String,
    /// The new cluster's address.
    pub new_backend: Authority,
    /// How requests for new are answered.
    pub mode: Mode,
    /// Paths that may go to new; empty: all.
    pub paths: Vec<PathRule>,
    /// Services of one cohort move the same users. The name by default.
    pub cohort: String,
    /// The share and how it is drawn.
    pub migration: Migration,
    /// Rules that beat the share.
    pub canary: Canary,
    /// The old cluster.
    pub old: ClusterOptions,
    /// The new cluster.
    pub new: ClusterOptions,
    /// Timeouts towards the clusters.
    pub timeouts: Timeouts,
    /// Further tries.
    pub retry: Retry,
    /// The circuit breaker.
    pub fallback: Fallback,
    /// Active checks.
    pub health_check: HealthCheck,
    /// What is changed in heads.
    pub headers: Headers,
    /// Status of a redirect: 301, 302, 303, 307 or 308.
    pub redirect_code: u16,
}

/// `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Requests are forwarded.
    Proxy,
    /// Requests for new are answered with a redirect.
    Redirect,
    /// TLS connections are relayed as they are, by server name.
    Passthrough,
}

/// One entry of `paths`, compared with the raw bytes before `?`.
#[derive(Clone, Debug)]
pub enum PathRule {
    /// The path starts so.
    Prefix(String),
    /// The path is so.
    Exact(String),
    /// The whole path matches.
    Regex(Regex),
}

/// `migration`.
#[derive(Clone, Debug)]
pub struct Migration {
    /// False: always old.
    pub enabled: bool,
    /// Rules and share, or rules only.
    pub strategy: Strategy,
    /// The declared share of new.
    pub percentage: Percent,
    /// Points that one update may add.
    pub max_step: Percent,
    /// Methods that may go to new by share; empty: all.
    pub methods: Vec<Method>,
    /// What gives a client a fixed bucket; `None`: each request is drawn.
    pub sticky: Option<Sticky>,
}

/// `migration.strategy`. `user` is [`Strategy::Weight`] with a default `sticky`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Rules, then the share.
    Weight,
    /// Rules only; the share does not count (`header`, `ip`).
    RulesOnly,
}

/// `migration.sticky`.
#[derive(Clone, Debug)]
pub struct Sticky {
    /// Where keys are looked for, in this order. `set_cookie` is already the last entry.
    pub by: Vec<KeySource>,
    /// Mixed into the bucket; the cohort by default.
    pub salt: String,
    /// The cookie given to clients without a key.
    pub set_cookie: Option<String>,
}

/// One entry of `sticky.by`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    /// As written, for metrics and `explain`.
    pub text: String,
    /// Where to look.
    pub kind: KeyKind,
}

/// Where a sticky key is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A header's value.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// A string claim of the bearer token, read and never verified.
    Jwt(String),
    /// The client's address, IPv6 cut to /64.
    ClientIp,
}

/// Sides of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cluster {
    /// Where the traffic comes from.
    Old,
    /// Where it goes.
    New,
}

impl Cluster {
    /// `old` or `new`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }
}

/// `canary`.
#[derive(Clone, Debug, Default)]
pub struct Canary {
    /// The first match wins.
    pub header_rules: Vec<HeaderRule>,
    /// The first match wins.
    pub cookie_rules: Vec<CookieRule>,
    /// The longest prefix wins.
    pub ip_rules: Vec<IpRule>,
    /// Clients that may use header and cookie rules; empty: everybody.
    pub only_from: Vec<IpNet>,
    /// Remove the headers named by header rules before forwarding.
    pub strip_header: bool,
    /// Requests pinned to new fail while new is unavailable, instead of going to old.
    pub fail_when_unavailable: bool,
}

/// One header rule.
#[derive(Clone, Debug)]
pub struct HeaderRule {
    /// The field's name.
    pub header: HeaderName,
    /// What its value must be.
    pub test: ValueTest,
    /// Where matching requests go.
    pub target: Cluster,
}

/// One cookie rule.
#[derive(Clone, Debug)]
pub struct CookieRule {
    /// The cookie's name.
    pub cookie: String,
    /// What its value must be.
    pub test: ValueTest,
    /// Where matching requests go.
    pub target: Cluster,
}

/// `value`, `values`, `prefix`, `regex` or `present: true`.
#[derive(Clone, Debug)]
pub enum ValueTest {
    /// One of these, byte for byte.
    OneOf(Vec<String>),
    /// Starts so.
    Prefix(String),
    /// The whole value matches.
    Regex(regex::bytes::Regex),
    /// Any value, an empty one too.
    Present,
}

/// One address rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpRule {
    /// The network.
    pub network: IpNet,
    /// Where its clients go.
    pub target: Cluster,
}

/// `old` or `new`.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// What is spoken on the wire.
    pub protocol: Protocol,
    /// The Host field sent there; `None`: preserve (old) or new_host (new).
    pub host_header: Option<String>,
    /// The server name; `None`: the client's Host (old) or new_host (new).
    pub sni: Option<String>,
    /// Trust roots of this cluster alone.
    pub ca_file: Option<PathBuf>,
    /// Our certificate.
    pub client: Option<CertificateFiles>,
    /// Verify the certificate.
    pub verify: bool,
    /// The oldest TLS version.
    pub min_version: TlsVersion,
    /// HTTP version over TLS.
    pub http_version: HttpVersion,
    /// Idle connections kept, over all workers.
    pub max_idle: usize,
    /// How long they are kept.
    pub idle_timeout: Duration,
    /// Requests that wait for a response head there; `None`: no limit of its own.
    pub max_waiting: Option<usize>,
}

/// `protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 in clear.
    Http,
    /// HTTP/2 in clear, by prior knowledge.
    H2c,
    /// TLS; the version by `http_version`.
    Https,
}

/// `http_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1, and HTTP/2 by ALPN for gRPC.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 offered first, for everything.
    Http2,
}

/// `timeouts` of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Name, TCP and TLS together.
    pub connect: Duration,
    /// One try, from sending to the response head.
    pub response_header: Duration,
    /// All tries together, until the response head.
    pub total: Duration,
    /// Between two reads of a response body.
    pub idle: Duration,
    /// Between two bytes of an upgraded connection.
    pub tunnel: Duration,
}

/// `retry`.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Tries after the first one.
    pub attempts: u32,
    /// What is tried again on new when there is no replay on old.
    pub when: Vec<FailureKind>,
    /// Whether safe requests may be repeated once bytes were sent.
    pub after_send: bool,
    /// Share of tries again on the same cluster.
    pub budget: Percent,
    /// The least upper bound of the pause.
    pub backoff_base: Duration,
    /// Its greatest upper bound.
    pub backoff_max: Duration,
}

/// What can go wrong with a try; `retry.when` and `fallback.failures` are sets of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// No connection, or the name does not resolve.
    Connect,
    /// No TLS.
    Tls,
    /// No response head in time.
    Timeout,
    /// The connection ended or made no sense before a response head.
    Reset,
    /// A response with this status.
    Status(u16),
}

/// `fallback`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// False: no breaker and no replay on old.
    pub enabled: bool,
    /// Failures in a row that open the breaker.
    pub max_failures: u32,
    /// They must lie within this time.
    pub failure_window: Duration,
    /// How long the breaker stays open.
    pub recovery_time: Duration,
    /// Or this share of failures opens it.
    pub failure_ratio: Percent,
    /// Over this time.
    pub ratio_window: Duration,
    /// With at least so many verdicts.
    pub min_requests: u32,
    /// What counts as a failure.
    pub failures: Vec<FailureKind>,
    /// Probes that must succeed, one after the other.
    pub probes: u32,
    /// Time over which the share returns; already cut to `recovery_time / 10`, zero when that is under a second.
    pub ramp: Duration,
    /// Replay a failed try on old when that is safe.
    pub retry_on_old: bool,
}

/// `health_check`.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// Check at all.
    pub enabled: bool,
    /// Between two checks.
    pub interval: Duration,
    /// Of one check.
    pub timeout: Duration,
    /// Requested path; empty: connect and handshake only.
    pub path: String,
    /// Statuses that are good, inclusive ranges.
    pub expect: Vec<(u16, u16)>,
    /// Failures in a row that make it unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy.
    pub healthy_threshold: u32,
}

/// `headers`.
#[derive(Clone, Debug)]
pub struct Headers {
    /// Changes of request heads.
    pub request: HeaderOperations,
    /// Changes of response heads.
    pub response: HeaderOperations,
    /// The field of the request id.
    pub request_id: HeaderName,
    /// Map Location and its kin back to the old host.
    pub rewrite_location: bool,
    /// Map the Domain of cookies back to the old host.
    pub rewrite_cookie_domain: bool,
    /// Map Origin and Referer of requests to new, and what its answers say of origins.
    pub rewrite_origin: bool,
    /// Removed from answers of new.
    pub strip: Vec<HeaderName>,
    /// Who sees the X-Migration fields.
    pub reveal: Reveal,
    /// Add Via.
    pub via: bool,
}

/// `headers.request` or `headers.response`, in the order remove, set, add.
#[derive(Clone, Debug, Default)]
pub struct HeaderOperations {
    /// Fields that are removed.
    pub remove: Vec<HeaderName>,
    /// Fields that are replaced.
    pub set: Vec<(HeaderName, Template)>,
    /// Fields that are added.
    pub add: Vec<(HeaderName, Template)>,
}

impl HeaderOperations {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// A value with variables, already taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(pub Vec<TemplatePart>);

/// One piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Text as it stands.
    Text(String),
    /// `${client_ip}`.
    ClientIp,
    /// `${old_host}`: the host that the client used.
    OldHost,
    /// `${new_host}`.
    NewHost,
    /// `${request_id}`.
    RequestId,
    /// `${target}`.
    Target,
}

/// `headers.reveal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reveal {
    /// Nobody.
    Off,
    /// Clients whose address lies in `listen.trusted_proxies`.
    Trusted,
    /// Everybody.
    Always,
}

/// Environment variables by name; the process's own, or those of a test.
pub type Environment = BTreeMap<String, String>;

//! One migrating application, ready to serve. A request takes it once and keeps it to its end, so a reload never
//! changes a request half-way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::client_address::Trust;
use super::decide::{Decision, Facts, Switches, Trace, decide};
use super::header_plan::HeaderPlan;
use super::rules::Rules;
use super::safe_mode::SafeMode;
use super::weight::Weight;
use crate::config::{self, Cluster, FailureKind, HttpVersion, Limits, ListenTimeouts, Mode, UnknownHost};
use crate::telemetry::Callers;
use crate::telemetry::metrics::ServiceMeters;
use crate::upstream::Upstream;
use crate::upstream::budget::Budget;
use crate::upstream::connect::Wanted;

/// What holds for every request of a snapshot, whatever its service.
#[derive(Debug)]
pub struct Edge {
    /// Whose forwarded headers are believed, and who the client is.
    pub trust: Trust,
    /// Bounds of requests.
    pub limits: Limits,
    /// Limits on slow clients.
    pub timeouts: ListenTimeouts,
    /// The answer to a host that no service claims.
    pub unknown_host: UnknownHost,
    /// Trusted peers may send PROXY headers.
    pub proxy_protocol: bool,
    /// A service has its TLS relayed as it is, so server names must be looked at.
    pub passes_through: bool,
}

/// What outlives a reload of the same service.
#[derive(Debug)]
pub struct Lasting {
    /// The share in force.
    pub weight: Weight,
    /// The service's own safe mode.
    pub safe_mode: SafeMode,
    /// `migration.enabled`, as it is in force.
    pub enabled: AtomicBool,
    /// How many tries again there may be.
    pub budget: Budget,
    /// Who comes.
    pub callers: Callers,
}

/// A service.
pub struct Service {
    /// What the operator wrote, defaults filled in.
    pub config: config::Service,
    /// Rules and sticky keys, compiled.
    pub rules: Rules,
    /// What is done to heads, prepared.
    pub headers: HeaderPlan,
    /// The old cluster.
    pub old: Upstream,
    /// The new cluster.
    pub new: Upstream,
    /// What is counted.
    pub meters: Arc<ServiceMeters>,
    /// What holds for all services.
    pub edge: Arc<Edge>,
    /// The share and the switches.
    pub lasting: Arc<Lasting>,
    /// Safe mode of everything.
    pub global_safe_mode: Arc<SafeMode>,
}

impl Service {
    /// The name, as in metrics and logs.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Safe mode, of everything or of this service.
    pub fn is_in_safe_mode(&self) -> bool {
        self.global_safe_mode.is_on() || self.lasting.safe_mode.is_on()
    }

    /// The switches as they stand.
    pub fn switches(&self) -> Switches {
        let enabled = self.lasting.enabled.load(Ordering::Relaxed);
        Switches { safe_mode: self.is_in_safe_mode(), enabled }
    }

    /// Where a request goes, and why; `explain` listens by `trace`.
    pub fn decide(&self, facts: &Facts<'_>, now: Instant, trace: &mut impl Trace) -> Decision {
        decide(
            &self.rules,
            self.switches(),
            self.lasting.weight.effective(),
            || self.new.availability(now),
            facts,
            rand::random,
            trace,
        )
    }

    /// The side that a decision named.
    pub fn upstream(&self, cluster: Cluster) -> &Upstream {
        match cluster {
            Cluster::Old => &self.old,
            Cluster::New => &self.new,
        }
    }

    /// The HTTP version that a request asks of a cluster's connections.
    pub fn wanted(&self, cluster: Cluster, is_grpc: bool) -> Wanted {
        let options = match cluster {
            Cluster::Old => &self.config.old,
            Cluster::New => &self.config.new,
        };
        wanted(options, is_grpc)
    }

    /// A failed try on new may be replayed on old.
    pub fn replays_on_old(&self) -> bool {
        self.config.fallback.enabled && self.config.fallback.retry_on_old
    }

    /// Whether this counts as a failure of the new cluster.
    pub fn is_failure(&self, kind: FailureKind) -> bool {
        self.config.fallback.failures.contains(&kind)
    }

    /// TLS connections are relayed as they are.
    pub fn passes_through(&self) -> bool {
        self.config.mode == Mode::Passthrough
    }

    /// Requests for new are answered with a redirect.
    pub fn redirects(&self) -> bool {
        self.config.mode == Mode::Redirect
    }
}

/// The HTTP version that a request asks of connections with these options.
pub fn wanted(options: &config::ClusterOptions, is_grpc: bool) -> Wanted {
    let http2 = match options.protocol {
        config::Protocol::H2c => true,
        config::Protocol::Http => false,
        config::Protocol::Https => match options.http_version {
            HttpVersion::Http2 => true,
            HttpVersion::Http1 => false,
            HttpVersion::Auto => is_grpc,
        },
    };
    if http2 { Wanted::Http2 } else { Wanted::Http1 }
}

//! From a checked configuration to what is served. Pools, breakers, shares and counters of services that did not change
//! are carried over, and so are the session caches of unchanged identities.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustls::pki_types::ServerName;

use super::client_address::Trust;
use super::header_plan::HeaderPlan;
use super::overrides::Overrides;
use super::rules::Rules;
use super::safe_mode::{Cause, SafeMode};
use super::service::{Edge, Lasting, Service, wanted};
use super::table::Table;
use super::weight::Weight;
use crate::config::{self, Authority, Cluster, ClusterOptions, Config, Environment, Mode, Protocol};
use crate::telemetry::Callers;
use crate::telemetry::audit::Kind;
use crate::telemetry::difference::{Difference, Said};
use crate::telemetry::metrics::ServiceMeters;
use crate::tls;
use crate::tls::client::{Fault, Identities, Identity};
use crate::upstream::Upstream;
use crate::upstream::breaker::Breaker;
use crate::upstream::budget::Budget;
use crate::upstream::connect::Target;
use crate::upstream::health::{Check, Health, Prober};
use crate::upstream::pool::{Bounds, Pool};
use crate::upstream::resolve::Resolver;

/// Everything that one version of the configuration serves.
pub struct Snapshot {
    /// The configuration.
    pub config: Config,
    /// Services by name, in the order of the file.
    pub services: Vec<Arc<Service>>,
    /// Services by host.
    pub table: Table<Arc<Service>>,
    /// What holds for every request.
    pub edge: Arc<Edge>,
    /// Safe mode of everything.
    pub safe_mode: Arc<SafeMode>,
    identities: Vec<Arc<Identity>>,
    probers: Vec<Arc<Prober>>,
}

/// What compiling needs besides the configuration.
pub struct Means<'a> {
    /// Environment variables, for the trust roots.
    pub environment: &'a Environment,
    /// Names to addresses.
    pub resolver: &'a Arc<Resolver>,
    /// Data workers.
    pub workers: usize,
}

/// A file that the configuration names and that cannot be used.
#[derive(Debug)]
pub struct Unusable {
    /// The key that names it, such as `services[0].new.ca_file`.
    pub key: String,
    /// What is wrong.
    pub error: tls::Error,
}

impl Snapshot {
    /// Compiles a configuration. Nothing that is being served changes before [`Snapshot::take_over`].
    ///
    /// # Errors
    ///
    /// Every file that cannot be used.
    pub fn compile(config: Config, previous: Option<&Self>, means: &Means<'_>) -> Result<Self, Vec<Unusable>> {
        let edge = Arc::new(Edge {
            trust: Trust::compile(&config.listen),
            limits: config.limits.clone(),
            timeouts: config.listen.timeouts,
            unknown_host: config.listen.unknown_host,
            proxy_protocol: config.listen.proxy_protocol,
            passes_through: config.services.iter().any(|service| service.mode == Mode::Passthrough),
        });
        let earlier = previous.map_or(&[][..], |previous| &previous.identities);
        let before: HashMap<&str, &Arc<Service>> =
            previous.iter().flat_map(|previous| &previous.services).map(|service| (service.name(), service)).collect();
        let safe_mode = previous.map_or_else(|| Arc::new(SafeMode::new(config.safe_mode)), |p| p.safe_mode.clone());
        let mut compiler = Compiler {
            means,
            response_head: config.limits.response_header_bytes,
            edge: &edge,
            safe_mode: &safe_mode,
            identities: Identities::new(means.environment, earlier.iter().cloned()),
            used: Vec::new(),
            earlier_probers: previous.map_or(&[], |previous| &previous.probers),
            probers: Vec::new(),
            problems: Vec::new(),
        };
        let mut services = Vec::with_capacity(config.services.len());
        for (index, service) in config.services.iter().enumerate() {
            let earlier = before.get(service.name.as_str()).map(|service| &***service);
            services.extend(compiler.service(index, service, earlier).map(Arc::new));
        }
        let Compiler { used, probers, problems, .. } = compiler;
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut table = Table::default();
        for service in &services {
            for host in &service.config.old_host {
                table.insert(host, service.clone());
            }
        }
        Ok(Self { config, services, table, edge, safe_mode, identities: used, probers })
    }

    /// Brings shares and switches to what this configuration declares and `overrides` change; called when either of them
    /// is another one. Tells what is in force otherwise than before.
    pub fn take_over(&self, overrides: &Overrides) -> Vec<Difference> {
        let mut changes = Vec::new();
        for (cause, on) in [(Cause::File, self.config.safe_mode), (Cause::Command, overrides.safe_mode)] {
            if self.safe_mode.set(cause, on) {
                changes.push(Difference::switch(Kind::SafeMode, None, !on, on));
            }
        }
        for service in &self.services {
            let config::Service { migration, safe_mode, .. } = &service.config;
            let overrides = overrides.of(service.name());
            let lasting = &service.lasting;
            let name = Some(&service.config.name);
            for (cause, on) in [(Cause::File, *safe_mode), (Cause::Command, overrides.safe_mode)] {
                if lasting.safe_mode.set(cause, on) {
                    changes.push(Difference::switch(Kind::SafeMode, name, !on, on));
                }
            }
            let enabled = overrides.enabled.unwrap_or(migration.enabled);
            if lasting.enabled.swap(enabled, Ordering::Relaxed) != enabled {
                changes.push(Difference::switch(Kind::Enabled, name, !enabled, enabled));
            }
            let share = overrides.percentage.unwrap_or(migration.percentage);
            if let Some(share) = lasting.weight.set(migration.percentage, share) {
                changes.push(Difference::share(Kind::Percentage, service.name(), share.from, share.to));
            }
            let methods = overrides.methods.as_ref().unwrap_or(&migration.methods);
            if let Some(from) = service.rules.set_methods(methods) {
                let (from, to) = (Some(Said::methods(&from)), Some(Said::methods(methods)));
                changes.push(Difference { kind: Kind::Methods, service: name.cloned(), key: None, from, to });
            }
        }
        changes
    }

    /// A service by name.
    pub fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.iter().find(|service| service.name() == name)
    }

    /// What is said of a service that is not there.
    pub fn unknown(&self, name: &str) -> String {
        config::unknown_service(name, self.services.iter().map(|service| service.name()))
    }

    /// Identities in use, for the expiry of client certificates.
    pub fn identities(&self) -> &[Arc<Identity>] {
        &self.identities
    }

    /// Whoever checks the health of clusters.
    pub fn probers(&self) -> &[Arc<Prober>] {
        &self.probers
    }
}

struct Compiler<'a> {
    means: &'a Means<'a>,
    response_head: usize,
    edge: &'a Arc<Edge>,
    safe_mode: &'a Arc<SafeMode>,
    identities: Identities<'a>,
    used: Vec<Arc<Identity>>,
    earlier_probers: &'a [Arc<Prober>],
    probers: Vec<Arc<Prober>>,
    problems: Vec<Unusable>,
}

impl Compiler<'_> {
    fn service(&mut self, index: usize, service: &config::Service, earlier: Option<&Service>) -> Option<Service> {
        let rules = Rules::compile(service);
        if let Some(earlier) = earlier {
            // As the share and the switches: what is in force stays so until `take_over` brings what is declared.
            rules.set_methods(&earlier.rules.methods());
        }
        let keys: Vec<&str> = rules.key_sources().iter().map(|source| source.text.as_str()).collect();
        // Counters go on over a reload; only other sticky keys need other counters.
        let meters = match earlier {
            Some(earlier) if earlier.meters.has_keys(&keys) => earlier.meters.clone(),
            _ => ServiceMeters::new(&service.name, &keys),
        };
        let old = self.pool(index, service, Cluster::Old, &meters, earlier.map(|earlier| &earlier.old));
        let new = self.pool(index, service, Cluster::New, &meters, earlier.map(|earlier| &earlier.new));
        let (old, new) = (old?, new?);
        let breaker = breaker(service, earlier);
        let lasting = earlier.map_or_else(|| Arc::new(lasting(service)), |earlier| earlier.lasting.clone());
        let (before_old, before_new) = (earlier.map(|service| &service.old), earlier.map(|service| &service.new));
        let health_old = self.health(service, Cluster::Old, &old, before_old);
        let health_new = self.health(service, Cluster::New, &new, before_new);
        Some(Service {
            rules,
            headers: HeaderPlan::compile(service),
            old: Upstream::new(old, None, service.old.max_waiting, meters.clone(), before_old).with_health(health_old),
            new: Upstream::new(new, breaker, service.new.max_waiting, meters.clone(), before_new)
                .with_health(health_new),
            meters,
            edge: self.edge.clone(),
            lasting,
            global_safe_mode: self.safe_mode.clone(),
            config: service.clone(),
        })
    }

    fn pool(
        &mut self,
        index: usize,
        service: &config::Service,
        cluster: Cluster,
        meters: &Arc<ServiceMeters>,
        earlier: Option<&Upstream>,
    ) -> Option<Arc<Pool>> {
        let options = match cluster {
            Cluster::Old => &service.old,
            Cluster::New => &service.new,
        };
        let target = self.target(index, service, cluster, options)?;
        let bounds = Bounds {
            max_idle: options.max_idle,
            idle_timeout: options.idle_timeout,
            response_head: self.response_head,
        };
        if let Some(earlier) = earlier.filter(|earlier| earlier.pool.serves(&target, bounds, meters)) {
            return Some(earlier.pool.clone());
        }
        let Means { resolver, workers, .. } = self.means;
        Some(Pool::new(target, bounds, *workers, (*resolver).clone(), meters.clone()))
    }

    /// The health of a cluster, and whoever finds it out. Only another connection or another check needs another prober,
    /// and what is known of the same backend stays known.
    fn health(
        &mut self,
        service: &config::Service,
        cluster: Cluster,
        pool: &Arc<Pool>,
        earlier: Option<&Upstream>,
    ) -> Option<Arc<Health>> {
        let options = match cluster {
            Cluster::Old => &service.old,
            Cluster::New => &service.new,
        };
        let check = Check::new(service, cluster, wanted(options, false))?;
        let prober = match self.earlier_probers.iter().find(|prober| prober.serves(&check, pool)) {
            Some(prober) => prober.clone(),
            None => {
                let same = |earlier: &&Upstream| earlier.pool.target().authorities().eq(pool.target().authorities());
                let known = earlier.filter(same).and_then(|earlier| earlier.health.as_deref());
                Prober::new(check, pool.clone(), known)
            }
        };
        let health = prober.health().clone();
        self.probers.push(prober);
        Some(health)
    }

    fn target(
        &mut self,
        index: usize,
        service: &config::Service,
        cluster: Cluster,
        options: &ClusterOptions,
    ) -> Option<Target> {
        let identity = match options.protocol {
            Protocol::Http | Protocol::H2c => None,
            Protocol::Https => Some(self.identity(index, cluster, options)?),
        };
        let name = match cluster {
            Cluster::Old => options.sni.as_deref(),
            Cluster::New => Some(options.sni.as_deref().unwrap_or(&service.new_host)),
        };
        // Checked when the configuration was read; a name that TLS does not take cannot come this far.
        let server_name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        let backends: &[Authority] = match cluster {
            Cluster::Old => &service.old_backend,
            Cluster::New => std::slice::from_ref(&service.new_backend),
        };
        let timeout = service.timeouts.connect;
        Some(Target::new(cluster, backends, options.protocol, server_name, identity, timeout, self.means.resolver))
    }

    fn identity(&mut self, index: usize, cluster: Cluster, options: &ClusterOptions) -> Option<Arc<Identity>> {
        let side = cluster.as_str();
        match self.identities.get(options) {
            Ok(identity) => {
                if !self.used.iter().any(|used| Arc::ptr_eq(used, &identity)) {
                    self.used.push(identity.clone());
                }
                Some(identity)
            }
            Err(fault) => {
                let (key, error) = match fault {
                    Fault::Roots(error) => ("ca_file", error),
                    Fault::Client(error) if options.client.as_ref().is_some_and(|files| files.key == error.file) => {
                        ("client_key", error)
                    }
                    Fault::Client(error) => ("client_cert", error),
                };
                self.problems.push(Unusable { key: format!("services[{index}].{side}.{key}"), error });
                None
            }
        }
    }
}

fn breaker(service: &config::Service, earlier: Option<&Service>) -> Option<Arc<Breaker>> {
    if !service.fallback.enabled {
        return None;
    }
    let now = Instant::now();
    // Another backend has earned neither the trust nor the distrust of the one before.
    let same_backend = |earlier: &&Service| earlier.config.new_backend == service.new_backend;
    match earlier.filter(same_backend).and_then(|earlier| Some((earlier, earlier.new.breaker.as_ref()?))) {
        Some((earlier, breaker)) if earlier.config.fallback == service.fallback => Some(breaker.clone()),
        Some((_, breaker)) => Some(Arc::new(Breaker::with_state_of(breaker, &service.fallback, now))),
        None => Some(Arc::new(Breaker::new(&service.fallback, now))),
    }
}

fn lasting(service: &config::Service) -> Lasting {
    Lasting {
        weight: Weight::new(service.migration.percentage),
        safe_mode: SafeMode::new(service.safe_mode),
        enabled: AtomicBool::new(service.migration.enabled),
        budget: Budget::new(Instant::now()),
        callers: Callers::new(&service.name),
    }
}

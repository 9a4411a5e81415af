//! The name, kind and help text of every metric. Dashboards and alerts are written from here, so that a name exists once.

/// What a family's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

impl Kind {
    /// The word of a `# TYPE` line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// All samples of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The whole name.
    pub name: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// One sentence for the reader of a graph.
    pub help: &'static str,
}

macro_rules! families {
    ($($constant:ident: $kind:ident $name:literal $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Family = Family { name: $name, kind: Kind::$kind, help: $help };
        )+

        /// Every family.
        pub const ALL: &[Family] = &[$($constant,)+];
    };
}

families! {
    REQUESTS: Counter "migration_proxy_requests_total" "Requests by the cluster that answered, the reason and the status class.";
    REQUEST_DURATION: Histogram "migration_proxy_request_duration_seconds" "Time from the request to the end of its response.";
    REQUEST_BYTES: Counter "migration_proxy_request_bytes_total" "Body bytes received from clients.";
    RESPONSE_BYTES: Counter "migration_proxy_response_bytes_total" "Body bytes sent to clients.";
    UPSTREAM_RESPONSES: Counter "migration_proxy_upstream_responses_total" "Tries on a cluster by how they ended, before any fallback hides a failure.";
    UPSTREAM_DURATION: Histogram "migration_proxy_upstream_duration_seconds" "Time of one try until the response head.";
    UPSTREAM_CONNECT_DURATION: Histogram "migration_proxy_upstream_connect_duration_seconds" "Time of the steps of a new connection to the new cluster.";
    UPSTREAM_CONNECTIONS: Gauge "migration_proxy_upstream_connections" "Open connections to a cluster.";
    RETRIES: Counter "migration_proxy_retries_total" "Failed tries that were repeated on the same cluster, by how they failed.";
    FALLBACKS: Counter "migration_proxy_fallbacks_total" "Requests decided for new that old answered, by cause.";
    TRAFFIC_PERCENTAGE: Gauge "migration_proxy_traffic_percentage" "Share of traffic for new that is in force, in percent.";
    TRAFFIC_PERCENTAGE_DECLARED: Gauge "migration_proxy_traffic_percentage_declared" "Share of traffic for new in the configuration file, in percent.";
    DECISION_KEYS: Counter "migration_proxy_decision_keys_total" "Decisions by the sticky key that was found.";
    BREAKER_STATE: Gauge "migration_proxy_breaker_state" "1 for the state that the breaker of new is in.";
    BREAKER_TRANSITIONS: Counter "migration_proxy_breaker_transitions_total" "Changes of the breaker of new, by the state reached.";
    HEALTH_CHECK_UP: Gauge "migration_proxy_health_check_up" "1 while a cluster passes its health check.";
    SAFE_MODE: Gauge "migration_proxy_safe_mode" "1 while everything goes to old.";
    TLS_VERIFY_OFF: Gauge "migration_proxy_tls_verify_off" "1 where certificates of a cluster are not verified.";
    COOKIE_DOMAINS_DROPPED: Counter "migration_proxy_cookie_domains_dropped_total" "Cookie domains of new removed because they would not hold for the client's host.";

    OVERHEAD: Histogram "migration_proxy_overhead_seconds" "Our own share of a request's time.";
    REJECTED: Counter "migration_proxy_rejected_total" "Requests and connections refused by ourselves.";
    CONNECTIONS: Gauge "migration_proxy_connections" "Open connections from clients.";
    CONFIG_GENERATION: Gauge "migration_proxy_config_generation" "How many configurations have been served, the present one included.";
    CONFIG_HASH: Gauge "migration_proxy_config_hash" "First 48 bits of the hash of the configuration that serves.";
    CONFIG_RELOADS: Counter "migration_proxy_config_reloads_total" "Noticed changes of the configuration file.";
    CONFIG_LAST_RELOAD_SUCCESSFUL: Gauge "migration_proxy_config_last_reload_successful" "1 when the configuration file as it is now serves.";
    CONFIG_LAST_RELOAD_SUCCESS: Gauge "migration_proxy_config_last_reload_success_timestamp_seconds" "When a configuration file was last accepted.";
    CONFIG_RESTART_NEEDED: Gauge "migration_proxy_config_restart_needed" "1 while a changed key waits for a restart.";
    FLEET_REPLICAS: Gauge "migration_proxy_fleet_replicas" "Other replicas by whether they serve the same as this one.";
    ACCESS_LOG_DROPPED: Counter "migration_proxy_access_log_dropped_total" "Access lines lost because their destination was too slow or full.";
    LOG_LINES_DROPPED: Counter "migration_proxy_log_lines_dropped_total" "Control and audit lines lost because their destination was too slow, full or broken.";
    STATE_FAILURES: Counter "migration_proxy_state_failures_total" "Times that the state, the last good file or the history could not be read or stored.";
    TASK_PANICS: Counter "migration_proxy_task_panics_total" "Tasks that ended by a panic, which is always a bug.";
    BUILD_INFO: Gauge "migration_proxy_build_info" "1, with the version as a label.";
    TLS_CERTIFICATE_EXPIRY: Gauge "migration_proxy_tls_certificate_expiry_timestamp_seconds" "When a certificate in use ends.";
    CPU_LIMIT: Gauge "migration_proxy_cpu_limit_cores" "CPU quota of the cgroup, else the number of workers.";
    MEMORY_LIMIT: Gauge "migration_proxy_memory_limit_bytes" "Memory limit of the cgroup, else the machine's memory.";

    PROCESS_CPU: Counter "process_cpu_seconds_total" "Total user and system CPU time spent in seconds.";
    PROCESS_RESIDENT_MEMORY: Gauge "process_resident_memory_bytes" "Resident memory size in bytes.";
    PROCESS_VIRTUAL_MEMORY: Gauge "process_virtual_memory_bytes" "Virtual memory size in bytes.";
    PROCESS_OPEN_FDS: Gauge "process_open_fds" "Number of open file descriptors.";
    PROCESS_MAX_FDS: Gauge "process_max_fds" "Maximum number of open file descriptors.";
    PROCESS_START_TIME: Gauge "process_start_time_seconds" "Start time of the process since unix epoch in seconds.";
}

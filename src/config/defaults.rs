//! What holds where a file says nothing, one `Default` for each section of the model that stands alone.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::{HeaderName, header};

use super::model::*;
use super::units::Percent;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn any_address(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

fn percent(whole: u16) -> Percent {
    Percent::from_basis_points(whole * 100).unwrap_or_default()
}

impl Default for Global {
    fn default() -> Self {
        Self { default_timeout: seconds(30), retry_attempts: 3 }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            http: vec![any_address(8000)],
            https: Vec::new(),
            admin: any_address(8080),
            proxy_protocol: false,
            trusted_proxies: Vec::new(),
            client_ip: ClientIp::XffRightmostUntrusted,
            tls: ListenTls::default(),
            timeouts: ListenTimeouts::default(),
            unknown_host: UnknownHost::NotFound,
        }
    }
}

impl Default for ListenTls {
    fn default() -> Self {
        let certificate = CertificateFiles {
            cert: "/etc/migration-proxy/tls/old-host-tls/tls.crt".into(),
            key: "/etc/migration-proxy/tls/old-host-tls/tls.key".into(),
        };
        Self { certificates: vec![certificate], min_version: TlsVersion::V1_2, client_ca: None }
    }
}

impl Default for ListenTimeouts {
    fn default() -> Self {
        Self {
            header: seconds(10),
            body_idle: seconds(60),
            write_idle: seconds(60),
            keepalive: seconds(75),
            tls_handshake: seconds(5),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_in_flight: 16_384,
            header_bytes: 64 << 10,
            header_count: 100,
            response_header_bytes: 64 << 10,
            uri_bytes: 16 << 10,
            request_body: None,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: tracing::Level::INFO,
            format: LogFormat::Text,
            access: AccessFormat::Nginx,
            access_path: "/dev/stdout".into(),
            access_sample: Percent::HUNDRED,
            audit_path: "/dev/stderr".into(),
        }
    }
}

impl Default for Reload {
    fn default() -> Self {
        Self {
            watch: true,
            poll: seconds(2),
            on_lost_host: OnLostHost::Warn,
            state_dir: "/var/lib/migration-proxy".into(),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { backend: StateBackend::Auto, config_map: "migration-state".to_owned(), namespace: None }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self { min_ttl: seconds(1), max_ttl: seconds(30), negative_ttl: seconds(5), stale: seconds(24 * 3600) }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: seconds(5), grace: seconds(30) }
    }
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            enabled: true,
            strategy: Strategy::Weight,
            percentage: Percent::ZERO,
            max_step: Percent::HUNDRED,
            methods: Vec::new(),
            sticky: None,
        }
    }
}

impl ClusterOptions {
    /// What holds for a cluster where a file says nothing.
    pub fn default_of(cluster: Cluster) -> Self {
        let (protocol, max_waiting) = match cluster {
            Cluster::Old => (Protocol::Http, None),
            Cluster::New => (Protocol::Https, Some(1024)),
        };
        Self {
            protocol,
            host_header: None,
            sni: None,
            ca_file: None,
            client: None,
            verify: true,
            min_version: TlsVersion::V1_2,
            http_version: HttpVersion::Auto,
            max_idle: 256,
            idle_timeout: seconds(55),
            max_waiting,
        }
    }
}

impl Timeouts {
    /// What holds where a service says nothing.
    pub fn default_of(global: &Global) -> Self {
        Self {
            connect: seconds(2),
            response_header: global.default_timeout,
            total: global.default_timeout,
            idle: seconds(60),
            tunnel: seconds(3600),
        }
    }
}

impl Retry {
    /// What holds where a service says nothing.
    pub fn default_of(global: &Global) -> Self {
        use FailureKind::{Connect, Reset, Status, Tls};
        Self {
            attempts: global.retry_attempts,
            when: vec![Connect, Tls, Reset, Status(502), Status(503), Status(504)],
            after_send: true,
            budget: percent(20),
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
        }
    }
}

impl Default for Fallback {
    fn default() -> Self {
        use FailureKind::{Connect, Reset, Status, Timeout, Tls};
        Self {
            enabled: true,
            max_failures: 5,
            failure_window: seconds(60),
            recovery_time: seconds(300),
            failure_ratio: percent(50),
            ratio_window: seconds(10),
            min_requests: 20,
            failures: vec![Connect, Tls, Timeout, Reset, Status(500), Status(502), Status(503), Status(504)],
            probes: 3,
            ramp: seconds(30),
            retry_on_old: true,
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            enabled: false,
            interval: seconds(30),
            timeout: seconds(5),
            path: String::new(),
            expect: vec![(200, 399)],
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }
}

impl Default for Headers {
    fn default() -> Self {
        Self {
            request: HeaderOperations::default(),
            response: HeaderOperations::default(),
            request_id: HeaderName::from_static("x-request-id"),
            rewrite_location: true,
            rewrite_cookie_domain: true,
            rewrite_origin: false,
            strip: vec![header::ALT_SVC],
            reveal: Reveal::Trusted,
            via: false,
        }
    }
}

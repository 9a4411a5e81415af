//! The closed sets of label values. Metrics, logs, `/status` and `explain` all take their words from here.

pub use crate::config::Cluster;

macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of the discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in metrics and logs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

labels! {
    /// What a log line is.
    LogKind {
        /// What changed, failed, or has to be done.
        Control = "control",
        /// Who changed what.
        Audit = "audit",
    }
}

labels! {
    /// Why a request went where it went.
    Reason {
        /// Safe mode sends everything to old.
        SafeMode = "safe_mode",
        /// `enabled: false`.
        Disabled = "disabled",
        /// Path or method out of scope.
        Scope = "scope",
        /// A header rule.
        Header = "header",
        /// A cookie rule.
        Cookie = "cookie",
        /// An address rule.
        Ip = "ip",
        /// The bucket of a sticky key.
        User = "user",
        /// A draw.
        Weight = "weight",
        /// The share is 0.
        Zero = "zero",
        /// The share is 100.
        Hundred = "hundred",
        /// The breaker of new is open.
        Breaker = "breaker",
        /// The health check of new fails.
        Unhealthy = "unhealthy",
        /// Too many requests wait for new.
        Full = "full",
        /// Decided new, answered by old after a failed try.
        Fallback = "fallback",
        /// Answered with a redirect.
        Redirect = "redirect",
        /// A routing loop.
        Loop = "loop",
        /// Refused before a decision.
        None = "none",
    }
}

labels! {
    /// How one try on an upstream ended.
    Outcome {
        /// An interim answer that ended the exchange: 101.
        Informational = "1xx",
        /// Success.
        Success = "2xx",
        /// Redirection.
        Redirection = "3xx",
        /// Client error.
        ClientError = "4xx",
        /// A server error without a word of its own.
        ServerError = "5xx",
        /// 500.
        Status500 = "500",
        /// 502.
        Status502 = "502",
        /// 503.
        Status503 = "503",
        /// 504.
        Status504 = "504",
        /// No connection, or no address.
        Connect = "connect",
        /// No TLS.
        Tls = "tls",
        /// No head in time.
        Timeout = "timeout",
        /// Ended without a head, or garbage.
        Reset = "reset",
        /// A head over the limit.
        Header = "header",
        /// The client left, or we gave up for a reason of our own.
        Aborted = "aborted",
    }
}

labels! {
    /// Why a request for new was answered by old.
    FallbackCause {
        /// The breaker is open.
        Breaker = "breaker",
        /// The health check fails.
        Unhealthy = "unhealthy",
        /// Too many requests wait for new.
        Full = "full",
        /// No connection.
        Connect = "connect",
        /// No TLS.
        Tls = "tls",
        /// No head in time.
        Timeout = "timeout",
        /// Ended without a head.
        Reset = "reset",
        /// A head over the limit.
        Header = "header",
        /// Status 500.
        Status500 = "500",
        /// Status 502.
        Status502 = "502",
        /// Status 503.
        Status503 = "503",
        /// Status 504.
        Status504 = "504",
    }
}

labels! {
    /// Why we refused a request or a connection.
    RejectCause {
        /// No service claims the host, or the certificate does not cover it.
        Host = "host",
        /// No valid request.
        Malformed = "malformed",
        /// The head is too large.
        Header = "header",
        /// The request target is too long.
        Uri = "uri",
        /// The body is too large.
        Body = "body",
        /// `limits.max_in_flight`.
        InFlight = "in_flight",
        /// `max_waiting` of old.
        Full = "full",
        /// The client was too slow.
        Timeout = "timeout",
        /// A routing loop.
        Loop = "loop",
        /// Pinned to new, and new is unavailable.
        Pinned = "pinned",
        /// A write on the admin port that was not allowed.
        Admin = "admin",
        /// A PROXY header of a peer that is not trusted.
        Proxy = "proxy",
        /// A TLS handshake that came to nothing.
        Tls = "tls",
    }
}

labels! {
    /// Steps of a new connection to the new cluster.
    Phase {
        /// The name look-up.
        Dns = "dns",
        /// TCP.
        Connect = "connect",
        /// The TLS handshake.
        Tls = "tls",
    }
}

labels! {
    /// What the circuit breaker of the new cluster does.
    BreakerState {
        /// All requests pass.
        Closed = "closed",
        /// None pass.
        Open = "open",
        /// Probes pass one at a time, then a ramp.
        HalfOpen = "half_open",
    }
}

labels! {
    /// Which of our ports accepted a connection.
    ListenerKind {
        /// `listen.http`.
        Http = "http",
        /// `listen.https`.
        Https = "https",
        /// `listen.admin`.
        Admin = "admin",
    }
}

labels! {
    /// What became of a changed configuration file.
    ReloadResult {
        /// It serves.
        Applied = "applied",
        /// Its content is what already serves.
        Unchanged = "unchanged",
        /// It is wrong, and the running one stays.
        Rejected = "rejected",
    }
}

labels! {
    /// What another replica serves, compared with this one.
    PeerState {
        /// The same.
        Agree = "agree",
        /// Another configuration, or other shares.
        Differ = "differ",
        /// Nobody knows.
        Unreachable = "unreachable",
    }
}

labels! {
    /// What a certificate is for.
    CertificateSide {
        /// Shown to our clients.
        Listener = "listener",
        /// Shown to an upstream.
        Client = "client",
        /// A trust root.
        Authority = "ca",
    }
}

/// Who answered: a cluster, or nobody but ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The old cluster.
    Old,
    /// The new cluster.
    New,
    /// Ourselves.
    None,
}

impl Target {
    /// Every target.
    pub const ALL: &'static [Self] = &[Self::Old, Self::New, Self::None];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
            Self::None => "none",
        }
    }
}

impl From<Cluster> for Target {
    fn from(cluster: Cluster) -> Self {
        match cluster {
            Cluster::Old => Self::Old,
            Cluster::New => Self::New,
        }
    }
}

impl Outcome {
    /// The outcome of a try that gave a response.
    pub fn of_status(status: http::StatusCode) -> Self {
        match status.as_u16() {
            500 => Self::Status500,
            502 => Self::Status502,
            503 => Self::Status503,
            504 => Self::Status504,
            100..=199 => Self::Informational,
            200..=299 => Self::Success,
            300..=399 => Self::Redirection,
            400..=499 => Self::ClientError,
            _ => Self::ServerError,
        }
    }
}

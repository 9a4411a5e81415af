//! Values with a meaning: shares of traffic, backends, hosts. Each type can only hold what is valid, so nothing is
//! checked again after the configuration was read.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A share of traffic in basis points, from 0 to 10 000 (steps of 0.01 %).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u16);

impl Percent {
    /// No traffic.
    pub const ZERO: Self = Self(0);
    /// All traffic.
    pub const HUNDRED: Self = Self(10_000);

    /// The share of `value` hundredths of a percent, if that lies between 0 and 10 000.
    pub fn from_basis_points(value: u16) -> Option<Self> {
        (value <= Self::HUNDRED.0).then_some(Self(value))
    }

    /// Hundredths of a percent.
    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// Percent as a number, for JSON and metrics.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

/// `12.5`, without a percent sign and without trailing zeros.
impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_f64())
    }
}

/// `20`, `12.5` or `20%`; the error says what is wrong.
impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        super::values::percent(text).map_err(|wrong| wrong.message)
    }
}

/// A number, whole where the share is.
impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 100 {
            0 => serializer.serialize_u16(self.0 / 100),
            _ => serializer.serialize_f64(self.as_f64()),
        }
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        number.to_string().parse().map_err(de::Error::custom)
    }
}

/// Where an upstream listens: a name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    host: Box<str>,
    port: u16,
    address: Option<IpAddr>,
}

impl Authority {
    /// An authority of a name (kept in lower case) or of an address (IPv6 without brackets), and a port.
    pub fn new(host: &str, port: u16) -> Self {
        let address = host.parse().ok();
        Self { host: host.to_ascii_lowercase().into(), port, address }
    }

    /// The name or the address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, when the host is an address and no name.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        self.address.map(|ip| SocketAddr::new(ip, self.port))
    }
}

/// `host:port`, with brackets around an IPv6 address.
impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A host that clients ask for: a name, or `*.suffix`, which stands for exactly one label. Lower case, no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// The name itself.
    Exact(Box<str>),
    /// The suffix behind `*.`.
    Wildcard(Box<str>),
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

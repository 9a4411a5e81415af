//! The client behind trusted proxies, and the mistake of day one: private peers that send X-Forwarded-* but are not
//! trusted, which usually means that `listen.trusted_proxies` lacks the Ingress.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::config::{ClientIp, Listen};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Whose forwarded fields are believed, and which of them names the client.
#[derive(Clone, Debug)]
pub struct Trust {
    ipv4: Vec<(u32, u32)>,
    ipv6: Vec<(u128, u128)>,
    client_ip: ClientIp,
}

impl Trust {
    /// Prepares `listen.trusted_proxies` and `listen.client_ip`.
    pub fn compile(listen: &Listen) -> Self {
        Self::new(&listen.trusted_proxies, listen.client_ip.clone())
    }

    fn new(networks: &[IpNet], client_ip: ClientIp) -> Self {
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for network in networks {
            match (network.network().to_canonical(), network.broadcast().to_canonical()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => ipv4.push((u32::from(first), u32::from(last))),
                _ => {
                    if let IpNet::V6(network) = network {
                        ipv6.push((u128::from(network.network()), u128::from(network.broadcast())));
                    }
                }
            }
        }
        Self { ipv4: merged(ipv4), ipv6: merged(ipv6), client_ip }
    }

    /// Whether the address is one of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => lies_in(&self.ipv4, u32::from(address)),
            IpAddr::V6(address) => lies_in(&self.ipv6, u128::from(address)),
        }
    }
}

/// Ranges in ascending order that do not overlap.
fn merged<N: Ord + Copy>(mut ranges: Vec<(N, N)>) -> Vec<(N, N)> {
    ranges.sort_unstable();
    let mut merged: Vec<(N, N)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn lies_in<N: Ord + Copy>(ranges: &[(N, N)], address: N) -> bool {
    let above = ranges.partition_point(|range| range.0 <= address);
    above > 0 && address <= ranges[above - 1].1
}

/// The client's address. Of a peer that is not trusted it is always the peer's.
pub fn client(trust: &Trust, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
    let peer = peer.to_canonical();
    if !trust.contains(peer) {
        return peer;
    }
    match &trust.client_ip {
        ClientIp::Peer => peer,
        ClientIp::XffRightmostUntrusted => walk(trust, headers, peer),
        ClientIp::XRealIp => named(headers, &REAL_IP).unwrap_or(peer),
        ClientIp::Header(name) => named(headers, name).unwrap_or(peer),
    }
}

/// From right to left until an address that is not trusted. Where an entry is no address the last good one counts.
fn walk(trust: &Trust, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
    let mut client = peer;
    for value in headers.get_all(FORWARDED_FOR).iter().rev() {
        for entry in value.as_bytes().rsplit(|byte| *byte == b',') {
            let Some(address) = parse(entry) else { return client };
            client = address;
            if !trust.contains(address) {
                return client;
            }
        }
    }
    client
}

fn named(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    headers.get(name).map(HeaderValue::as_bytes).and_then(parse)
}

/// An address, `ip:port`, `[v6]` or `[v6]:port`; IPv4-mapped addresses become IPv4.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let address = match text.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            Some(inside) => IpAddr::V6(inside.parse().ok()?),
            None => text.parse::<SocketAddr>().ok()?.ip(),
        },
    };
    Some(address.to_canonical())
}

/// Whether the head has a field that starts with `X-Forwarded-`.
pub fn claims_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("x-forwarded-"))
}

/// Private peers that sent X-Forwarded-* without being trusted: the first 16 of them.
#[derive(Debug, Default)]
pub struct Suspicion {
    peers: [OnceLock<IpAddr>; 16],
}

impl Suspicion {
    /// Takes note of a peer that is not trusted; true when it is private, claims to forward and was not known yet. Then
    /// a warning is due.
    pub fn note(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        if !claims_forwarded(headers) {
            return false;
        }
        let peer = peer.to_canonical();
        is_private(peer) && self.remember(peer)
    }

    fn remember(&self, peer: IpAddr) -> bool {
        for place in &self.peers {
            let mut is_new = false;
            let known = place.get_or_init(|| {
                is_new = true;
                peer
            });
            if *known == peer {
                return is_new;
            }
        }
        false
    }

    /// The peers noted so far.
    pub fn peers(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.iter().map_while(|place| place.get().copied())
    }
}

/// RFC 1918, loopback, link-local, shared (RFC 6598) and unique local addresses.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_private() || address.is_loopback() || address.is_link_local() || is_shared(address)
        }
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// 100.64.0.0/10.
fn is_shared(address: Ipv4Addr) -> bool {
    u32::from(address) >> 22 == 0b01_1001_0001
}

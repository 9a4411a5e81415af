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

    /// The same for a peer that sent a PROXY header.
    pub fn note_proxy_header(&self, peer: IpAddr) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trust(networks: &[&str], client_ip: ClientIp) -> Trust {
        let networks: Vec<IpNet> = networks.iter().map(|network| network.parse().unwrap()).collect();
        Trust::new(&networks, client_ip)
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn networks_are_looked_up_in_canonical_form() {
        let trust = trust(
            &["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/25", "192.0.2.128/32", "::ffff:172.16.0.0/108", "2001:db8::/32"],
            ClientIp::Peer,
        );
        for (text, expected) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("::ffff:10.1.2.3", true),
            ("192.0.2.127", true),
            ("192.0.2.128", true),
            ("192.0.2.129", false),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
            ("::1", false),
        ] {
            assert_eq!(trust.contains(address(text)), expected, "{text}");
        }
        assert!(!self::trust(&["::/0"], ClientIp::Peer).contains(address("192.0.2.1")));
        assert!(!self::trust(&[], ClientIp::Peer).contains(address("127.0.0.1")));
    }

    #[test]
    fn the_walk_ends_at_the_rightmost_address_that_is_not_trusted() {
        let trust = trust(&["10.0.0.0/8", "2001:db8::/32"], ClientIp::XffRightmostUntrusted);
        for (fields, peer, expected) in [
            ([].as_slice(), "10.0.0.1", "10.0.0.1"),
            (&["198.51.100.1"], "203.0.113.9", "203.0.113.9"),
            (&["198.51.100.1"], "10.0.0.1", "198.51.100.1"),
            (&["198.51.100.1, 198.51.100.2"], "10.0.0.1", "198.51.100.2"),
            (&["198.51.100.1", "198.51.100.2"], "10.0.0.1", "198.51.100.2"),
            (&["198.51.100.1", "10.0.0.3 ,\t10.0.0.2"], "10.0.0.1", "198.51.100.1"),
            (&["10.0.0.4,10.0.0.3"], "10.0.0.1", "10.0.0.4"),
            (&["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.1", "10.0.0.2"),
            (&["198.51.100.1, unknown"], "10.0.0.1", "10.0.0.1"),
            (&["198.51.100.1", ""], "10.0.0.1", "10.0.0.1"),
            (&["198.51.100.1:4711"], "10.0.0.1", "198.51.100.1"),
            (&["[2001:db9::1]:4711"], "10.0.0.1", "2001:db9::1"),
            (&["[2001:db9::1]"], "10.0.0.1", "2001:db9::1"),
            (&["2001:db9::1"], "10.0.0.1", "2001:db9::1"),
            (&["198.51.100.1, [2001:db8::1]:1"], "::ffff:10.0.0.1", "198.51.100.1"),
            (&["::ffff:198.51.100.1"], "10.0.0.1", "198.51.100.1"),
            (&["198.51.100.1, 10.0.0.256"], "10.0.0.1", "10.0.0.1"),
            (&["198.51.100.1 198.51.100.2"], "10.0.0.1", "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append("x-forwarded-for", HeaderValue::from_static(field));
            }
            assert_eq!(client(&trust, &headers, address(peer)), address(expected), "{fields:?} from {peer}");
        }
    }

    #[test]
    fn other_fields_name_the_client_of_a_trusted_peer_only() {
        let fields = headers(&[("x-real-ip", "203.0.114.1"), ("cf-ip", "203.0.115.1:80"), ("x-bad", "nobody")]);
        let name = |text| ClientIp::Header(HeaderName::from_static(text));
        for (client_ip, expected) in [
            (ClientIp::Peer, "10.0.0.1"),
            (ClientIp::XRealIp, "203.0.114.1"),
            (name("cf-ip"), "203.0.115.1"),
            (name("x-bad"), "10.0.0.1"),
            (name("x-absent"), "10.0.0.1"),
        ] {
            let trust = trust(&["10.0.0.0/8"], client_ip);
            assert_eq!(client(&trust, &fields, address("10.0.0.1")), address(expected));
            assert_eq!(client(&trust, &fields, address("192.0.2.1")), address("192.0.2.1"));
        }
    }

    #[test]
    fn a_private_peer_that_claims_to_forward_is_suspected_once() {
        let suspicion = Suspicion::default();
        let claims = headers(&[("accept", "*/*"), ("x-forwarded-proto", "https")]);
        for (peer, due) in [
            ("10.1.2.3", true),
            ("10.1.2.3", false),
            ("::ffff:10.1.2.3", false),
            ("8.8.8.8", false),
            ("127.0.0.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("169.254.1.1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(suspicion.note(address(peer), &claims), due, "{peer}");
        }
        assert!(!suspicion.note(address("10.9.9.9"), &headers(&[("forwarded", "for=1"), ("x-real-ip", "1")])));
        assert_eq!(suspicion.peers().next(), Some(address("10.1.2.3")));
        assert_eq!(suspicion.peers().count(), 6);
    }

    #[test]
    fn suspicion_is_bounded() {
        let suspicion = Suspicion::default();
        let claims = headers(&[("x-forwarded-for", "a")]);

        let warnings = (0..100).filter(|n| suspicion.note(IpAddr::from([10, 0, 0, *n]), &claims)).count();

        assert_eq!((warnings, suspicion.peers().count()), (16, 16));
    }
}

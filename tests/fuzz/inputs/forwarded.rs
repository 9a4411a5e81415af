//! Who the client is behind proxies that say so.

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use http::{HeaderMap, HeaderValue};
use migration_proxy::config::{self, ClientIp, Environment, Listen, Text};
use migration_proxy::routing::client_address::{Suspicion, Trust, claims_forwarded, client};

use super::head;

const FIELD: &str = "x-forwarded-for";

struct Scene {
    walk: Trust,
    real_ip: Trust,
    named: Trust,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let file = "listen: {trusted_proxies: [10.0.0.0/8, \"2001:db8::/32\", 192.0.2.1/32]}\n\
                services: [{name: a, old_host: a.old.test, old_backend: \"127.0.0.1:1\", new_host: a.new.test}]\n";
    let parsed = config::parse(&Text::new("fuzz.yaml", file), &Environment::new()).expect("a good file");
    let trust = |client_ip| Trust::compile(&Listen { client_ip, ..parsed.config.listen.clone() });
    Scene {
        walk: trust(ClientIp::XffRightmostUntrusted),
        real_ip: trust(ClientIp::XRealIp),
        named: trust(ClientIp::Header(http::HeaderName::from_static("x-client"))),
    }
});

/// The first line names the peer. Of an untrusted one the peer is the client, whatever it says; of a trusted one it is what
/// a plain reading of the list gives, and nothing to the left of that can change it.
pub fn forwarded(bytes: &[u8]) {
    let (words, headers) = head::of(bytes);
    let peer: IpAddr = words[0].parse().unwrap_or(IpAddr::from([10, 0, 0, 1]));
    let canonical = peer.to_canonical();
    let scene = &*SCENE;
    let trusts = |address: IpAddr| scene.walk.contains(address);

    for trust in [&scene.walk, &scene.real_ip, &scene.named] {
        let found = client(trust, &headers, peer);
        assert_eq!(found, found.to_canonical());
        if !trusts(peer) {
            assert_eq!(found, canonical, "a stranger is believed");
        }
    }

    let found = client(&scene.walk, &headers, peer);
    assert_eq!(found, by_hand(&headers, peer, trusts));
    if trusts(peer) && !trusts(found) {
        let mut forged = HeaderMap::new();
        forged.append(FIELD, HeaderValue::from_static("198.51.100.66, 10.0.0.9"));
        forged.extend(headers.get_all(FIELD).iter().map(|value| (http::HeaderName::from_static(FIELD), value.clone())));
        assert_eq!(client(&scene.walk, &forged, peer), found, "a client has changed who it is");
    }

    let suspicion = Suspicion::default();
    let noted = suspicion.note(peer, &headers);
    assert!(!noted || claims_forwarded(&headers));
    assert!(!suspicion.note(peer, &headers), "a warning is given once");
    assert_eq!(suspicion.peers().count(), usize::from(noted));
}

/// The walk, as somebody would explain it.
fn by_hand(headers: &HeaderMap, peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer.to_canonical();
    let fields: Vec<_> = headers.get_all(FIELD).iter().map(HeaderValue::as_bytes).collect();
    let list = fields.join(&b',');
    let mut entries: Vec<&[u8]> =
        if fields.is_empty() { Vec::new() } else { list.split(|byte| *byte == b',').collect() };
    while trusts(client)
        && let Some(entry) = entries.pop()
        && let Some(address) = address(entry)
    {
        client = address;
    }
    client
}

fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim_matches(|letter: char| letter.is_ascii_whitespace());
    let alone = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6);
    alone.or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical())
}

//! A client's head on its way to a cluster, and an answer's head on its way back.

use std::net::IpAddr;
use std::sync::LazyLock;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Version, request};
use migration_proxy::config::{self, Cluster, Environment, Text};
use migration_proxy::proxy::headers::{Destination, Length, address, copy, passes, prepare, to_downstream};
use migration_proxy::proxy::hop_by_hop::{members, wanted_upgrade};
use migration_proxy::proxy::host::{Host, host};
use migration_proxy::proxy::sender::{RequestId, Scheme, Sender};
use migration_proxy::routing::header_plan::HeaderPlan;

use super::head;

const NEW_HOST: &str = "a.new.test";
const PEER: &str = "10.0.0.1";

/// Fields of one connection. None of them is ever passed on as it came.
const OF_A_CONNECTION: [&str; 6] = [
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "http2-settings",
    "transfer-encoding",
];

/// Fields that we set or change ourselves.
const OURS: [&str; 18] = [
    "connection",
    "content-length",
    "cdn-loop",
    "cookie",
    "forwarded",
    "host",
    "origin",
    "referer",
    "te",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

/// A plain service, and one that changes all that can be changed.
static PLANS: LazyLock<[HeaderPlan; 2]> = LazyLock::new(|| {
    let plan = |more: &str| {
        let file = format!(
            "services: [{{name: a, old_host: a.old.test, old_backend: \"127.0.0.1:1\", new_host: {NEW_HOST}{more}}}]\n"
        );
        let parsed = config::parse(&Text::new("fuzz.yaml", file), &Environment::new()).expect("a good file");
        HeaderPlan::compile(&parsed.config.services[0])
    };
    let more = ", canary: {strip_header: true, header_rules: [{header: X-Pin, value: new, target: new_cluster}]}, \
                headers: {via: on, rewrite_origin: on, request: {remove: [X-Gone], set: {X-Set: \"${client_ip} ${target}\"}, \
                add: {X-Add: \"${old_host} ${new_host} ${request_id}\"}}}";
    [plan(""), plan(more)]
});

/// The first line: method, target, version, then `trusted` and `https` where they hold. The fields are the client's, and
/// those of an answer too.
pub fn headers(bytes: &[u8]) {
    let (words, fields) = head::of(bytes);
    let word = |at: usize| words.get(at).copied().unwrap_or_default();
    let version = match word(2) {
        "2" => Version::HTTP_2,
        "1.0" => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let builder = Request::builder().method(word(0)).uri(word(1)).version(version);
    let Ok(mut request) = builder.body(()) else { return };
    *request.headers_mut() = fields;
    let Ok(host) = host(&request) else { return };
    let (head, ()) = request.into_parts();
    let has = |what| words.contains(&what);
    for plan in &*PLANS {
        towards_clusters(&head, &host, plan, has("trusted"), has("https"));
    }
}

fn towards_clusters(sent: &request::Parts, host: &Host, plan: &HeaderPlan, trusted: bool, https: bool) {
    let peer_text = HeaderValue::from_static(PEER);
    let peer: IpAddr = PEER.parse().expect("an address");
    let scheme = Scheme::of_client(if https { Scheme::Https } else { Scheme::Http }, trusted, &sent.headers);
    let sender = Sender { peer, peer_text: &peer_text, client: peer, trusted, scheme, host };
    let id = RequestId::of(&sent.headers, plan);
    let upgrade = wanted_upgrade(sent);
    let mut prepared = copy(sent);
    prepare(&mut prepared, plan, &sender, &id, upgrade.as_ref());
    let mut again = copy(&prepared);

    for cluster in [Cluster::Old, Cluster::New] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for body in [Length::Ended, Length::Known(5), Length::Unknown] {
                let to = Destination { cluster, version, tls: cluster == Cluster::New, body };
                let mut head = copy(&prepared);
                address(&mut head, plan, &sender, &id, &to);

                framing_is_ours(&head, &to, upgrade.as_ref());
                senders_are_told(sent, &head, plan, &sender, &id);
                the_rest_is_untouched(sent, &head, plan);

                let once = copy(&head);
                address(&mut head, plan, &sender, &id, &to);
                assert_eq!((&head.uri, &head.headers), (&once.uri, &once.headers), "twice is not the same as once");
                // An upgrade does not survive a try over HTTP/2.
                if upgrade.is_none() {
                    address(&mut again, plan, &sender, &id, &to);
                    assert_eq!(sorted(&again.headers), sorted(&once.headers), "the try before leaves something behind");
                }
            }
        }
    }
    towards_the_client(sent, plan, &sender, &id);
}

/// One unambiguous request of the destination's version.
fn framing_is_ours(head: &request::Parts, to: &Destination, upgrade: Option<&HeaderValue>) {
    let headers = &head.headers;
    let all = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    for name in &OF_A_CONNECTION[..5] {
        assert!(!headers.contains_key(*name), "{name} is passed on");
    }
    let lengths = all(CONTENT_LENGTH);
    match to.body {
        Length::Known(length) => assert_eq!(lengths, [length.to_string().as_bytes()]),
        Length::Ended => assert!(lengths.is_empty() || lengths == [b"0"], "{lengths:?}"),
        Length::Unknown => assert!(lengths.is_empty()),
    }
    assert!(all(TE).is_empty() || all(TE) == [b"trailers"], "{:?}", all(TE));
    if to.version == Version::HTTP_2 {
        for name in [CONNECTION, UPGRADE, TRANSFER_ENCODING, HOST] {
            assert!(!headers.contains_key(&name), "{name} in HTTP/2");
        }
        return;
    }
    let is_chunked = to.body == Length::Unknown;
    assert_eq!(all(TRANSFER_ENCODING), if is_chunked { vec![&b"chunked"[..]] } else { Vec::new() });
    assert_eq!(all(HOST).len(), 1);
    assert!(head.uri.authority().is_none(), "{}", head.uri);
    let connection: &[&[u8]] = match upgrade {
        Some(_) => &[b"upgrade"],
        None if headers.contains_key(TE) => &[b"te"],
        None => &[],
    };
    assert_eq!(all(CONNECTION), connection);
    assert_eq!(headers.get(UPGRADE), upgrade);
}

/// What a stranger says of itself is replaced, what a trusted peer says is kept, and each pass leaves its mark.
fn senders_are_told(
    sent: &request::Parts,
    head: &request::Parts,
    plan: &HeaderPlan,
    sender: &Sender<'_>,
    id: &RequestId,
) {
    let all = |name: &str| head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let chain = all("x-forwarded-for");
    assert_eq!(chain.len(), 1);
    let peer = PEER.as_bytes();
    if sender.trusted {
        let last = members(&head.headers["x-forwarded-for"]).next_back();
        assert_eq!(last, Some(peer));
        assert_eq!(sent.headers.get("forwarded"), head.headers.get("forwarded"));
    } else {
        assert_eq!((chain, all("x-real-ip")), (vec![peer], vec![peer]));
        assert_eq!(all("x-forwarded-host"), [sender.host.value().as_bytes()]);
        assert!(all("forwarded").is_empty());
    }
    for name in ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip"] {
        assert!(!all(name).is_empty(), "{name} is missing");
    }
    assert_eq!(all("x-request-id"), [id.as_bytes()]);
    assert_eq!(all("cdn-loop").len(), 1);
    assert_eq!(passes(&head.headers, plan), passes(&sent.headers, plan) + 1);
}

/// Every other field has the values that were sent, in their order; but for those that Connection names.
fn the_rest_is_untouched(sent: &request::Parts, head: &request::Parts, plan: &HeaderPlan) {
    let named: Vec<Vec<u8>> =
        sent.headers.get_all(CONNECTION).iter().flat_map(members).map(<[u8]>::to_ascii_lowercase).collect();
    let changed = ["x-set", "x-add", "x-gone", "x-pin"];
    for name in sent.headers.keys() {
        let text = name.as_str();
        let is_changed = plan.via && changed.contains(&text);
        if OURS.contains(&text) || OF_A_CONNECTION.contains(&text) || is_changed {
            continue;
        }
        let is_named = named.iter().any(|other| other == text.as_bytes());
        let is_kept = text == "trailer" || text.starts_with("x-forwarded-");
        let values = |headers: &HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        if is_named && !is_kept {
            assert!(values(&head.headers).is_empty(), "{name} is named in Connection");
        } else {
            assert_eq!(values(&head.headers), values(&sent.headers), "{name} is changed");
        }
    }
    for name in head.headers.keys() {
        let text = name.as_str();
        let is_known = OURS.contains(&text) || sent.headers.contains_key(name) || plan.via && changed.contains(&text);
        assert!(is_known, "{name} comes from nowhere");
    }
}

/// The same fields as an answer.
fn towards_the_client(sent: &request::Parts, plan: &HeaderPlan, sender: &Sender<'_>, id: &RequestId) {
    for (cluster, status) in [(Cluster::Old, 200), (Cluster::New, 302), (Cluster::New, 204), (Cluster::New, 101)] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut answer = http::Response::new(());
            *answer.status_mut() = http::StatusCode::from_u16(status).expect("a status");
            let (mut head, ()) = answer.into_parts();
            head.headers = sent.headers.clone();
            to_downstream(&mut head, plan, cluster, sender, id, version);

            for name in OF_A_CONNECTION {
                assert!(!head.headers.contains_key(name), "{name} is passed on");
            }
            let switches = status == 101 && version == Version::HTTP_11 && sent.headers.contains_key(UPGRADE);
            assert_eq!(head.headers.contains_key(CONNECTION), switches);
            assert!(!(cluster == Cluster::New && head.headers.contains_key("alt-svc")), "clients are led away");
            assert!(status >= 200 && status != 204 || !head.headers.contains_key(CONTENT_LENGTH));
            let leads_away = |value: &HeaderValue| {
                let value = value.as_bytes().to_ascii_lowercase();
                let start = format!("https://{NEW_HOST}/");
                value.starts_with(start.as_bytes())
            };
            let mut locations = head.headers.get_all("location").iter();
            assert!(cluster == Cluster::Old || !locations.any(leads_away), "a client sees the new host");
        }
    }
}

fn sorted(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect();
    // Of one name the order counts.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

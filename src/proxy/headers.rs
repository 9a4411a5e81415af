//! Request heads towards the clusters and response heads towards clients. A request is prepared once, which does
//! everything that no cluster depends on, and addressed for each try; addressing the same head again, for the other
//! cluster too, leaves nothing of the first time behind.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_LOCATION, COOKIE, Entry, FORWARDED, GetAll, HOST, HeaderMap, HeaderName,
    HeaderValue, LOCATION, MAX_FORWARDS, REFRESH, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{self, Authority, Uri};
use http::{Method, StatusCode, Version, request, response};
use http_body::Body;

use super::grpc;
use super::hop_by_hop::{self, Found};
use super::origins;
use super::rewrite::{self, Cookie};
use super::sender::{RequestId, Scheme, Sender};
use crate::config::Cluster;
use crate::routing::header_plan::HeaderPlan;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// Room for what [`prepare`] and [`address`] add at most, operators' changes apart.
const ADDED: usize = 12;

/// How often the request passed through this service before.
pub fn passes(headers: &HeaderMap, plan: &HeaderPlan) -> usize {
    let is_ours = |member: &&[u8]| {
        let id = member.split(|byte| *byte == b';').next().unwrap_or_default();
        id.trim_ascii() == plan.loop_member.as_bytes()
    };
    headers.get_all(CDN_LOOP).iter().flat_map(hop_by_hop::members).filter(is_ours).count()
}

/// Makes a client's head one that either cluster may get. `upgrade`: the value of Upgrade when the exchange asks for one
/// ([`hop_by_hop::wanted_upgrade`]). The extensions are emptied, so what they hold must be taken out before.
pub fn prepare(
    head: &mut request::Parts,
    plan: &HeaderPlan,
    sender: &Sender<'_>,
    id: &RequestId,
    upgrade: Option<&HeaderValue>,
) {
    head.extensions.clear();
    let headers = &mut head.headers;
    headers.reserve(ADDED);
    if head.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    for name in &plan.strip_from_requests {
        headers.remove(name);
    }
    let found = Found::look(headers);
    let trailers = found.has(Found::TE) && upgrade.is_none() && hop_by_hop::wants_trailers(headers);
    hop_by_hop::strip(headers, found, &plan.request_id);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocols) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocols.clone());
    }
    if let Some(left) = hop_by_hop::forwards_left(&head.method, headers) {
        headers.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    }
    say_who_sent(headers, found, sender);
    headers.insert(plan.request_id.clone(), id.value().clone());
    let loops = if found.has(Found::CDN_LOOP) { extended(headers, &CDN_LOOP, &plan.loop_member) } else { None };
    headers.insert(CDN_LOOP, loops.unwrap_or_else(|| plan.loop_member.clone()));
    if plan.via {
        headers.append(VIA, via(head.version));
    }
    plan.request.apply(headers, &sender.variables(id, Cluster::Old));
}

/// The table of forwarded headers: what a trusted peer says is kept, everybody else's word is replaced.
fn say_who_sent(headers: &mut HeaderMap, found: Found, sender: &Sender<'_>) {
    let kept = if sender.trusted { found } else { Found::default() };
    if found.has(Found::FORWARDED) && !sender.trusted {
        headers.remove(FORWARDED);
    }
    let chain = if kept.has(Found::FORWARDED_FOR) { extended(headers, &FORWARDED_FOR, sender.peer_text) } else { None };
    headers.insert(FORWARDED_FOR, chain.unwrap_or_else(|| sender.peer_text.clone()));
    if !kept.has(Found::REAL_IP) {
        let is_peer = !sender.trusted || sender.client == sender.peer;
        let text = if is_peer { sender.peer_text.clone() } else { text(sender.client.to_string()) };
        headers.insert(REAL_IP, text);
    }
    if !kept.has(Found::FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(sender.scheme.as_str()));
    }
    if !kept.has(Found::FORWARDED_HOST) {
        headers.insert(FORWARDED_HOST, sender.host.value().clone());
    }
    if !kept.has(Found::FORWARDED_PORT) {
        headers.insert(FORWARDED_PORT, port(sender));
    }
}

/// A value of text that this module made.
fn text(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("an address is a valid field value")
}

fn port(sender: &Sender<'_>) -> HeaderValue {
    match (sender.host.port(), sender.scheme) {
        (None, Scheme::Http) | (Some(80), _) => HeaderValue::from_static("80"),
        (None, Scheme::Https) | (Some(443), _) => HeaderValue::from_static("443"),
        (Some(port), _) => HeaderValue::from(port),
    }
}

/// All values of a list in one, with one more member.
fn extended(headers: &HeaderMap, name: &HeaderName, member: &HeaderValue) -> Option<HeaderValue> {
    join(&headers.get_all(name), b", ", member.as_bytes())
}

/// All values of a field and `last` in one, empty ones left out; `None` when nothing is left.
fn join(values: &GetAll<'_, HeaderValue>, separator: &[u8], last: &[u8]) -> Option<HeaderValue> {
    let length: usize = values.iter().map(|value| value.len() + separator.len()).sum();
    let mut bytes = Vec::with_capacity(length + last.len());
    for value in values.iter().map(HeaderValue::as_bytes).chain([last]).filter(|value| !value.is_empty()) {
        if !bytes.is_empty() {
            bytes.extend_from_slice(separator);
        }
        bytes.extend_from_slice(value);
    }
    HeaderValue::try_from(bytes).ok().filter(|value| !value.is_empty())
}

/// Puts cookies that HTTP/2 clients send in several fields into one (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let cookies = headers.get_all(COOKIE);
    if cookies.iter().nth(1).is_none() {
        return;
    }
    if let Some(mut cookies) = join(&cookies, b"; ", b"") {
        cookies.set_sensitive(headers.get(COOKIE).is_some_and(HeaderValue::is_sensitive));
        headers.insert(COOKIE, cookies);
    }
}

/// Our member of Via, with the version in which the message came.
fn via(received: Version) -> HeaderValue {
    HeaderValue::from_static(match received {
        Version::HTTP_10 => "1.0 migration-proxy",
        Version::HTTP_2 => "2.0 migration-proxy",
        _ => "1.1 migration-proxy",
    })
}

/// What is known of the length of a request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// There is none, or nothing of it is left.
    Ended,
    /// So many bytes.
    Known(u64),
    /// It ends when it ends.
    Unknown,
}

impl Length {
    /// What a body says of itself.
    pub fn of<B: Body>(body: &B) -> Self {
        if body.is_end_stream() {
            return Self::Ended;
        }
        body.size_hint().exact().map_or(Self::Unknown, Self::Known)
    }
}

/// Where a try goes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// The cluster.
    pub cluster: Cluster,
    /// HTTP/2, or anything else for HTTP/1.1.
    pub version: Version,
    /// Over TLS.
    pub tls: bool,
    /// The length of the body that follows.
    pub body: Length,
}

/// A copy of a prepared head that can be sent while the original is kept for another try.
pub fn copy(head: &request::Parts) -> request::Parts {
    let (mut copy, ()) = http::Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    copy.extensions = head.extensions.clone();
    copy
}

/// Addresses a prepared head to a cluster: Host, target, version and framing. May be repeated with another destination.
/// An upgrade survives towards HTTP/1.1 only.
pub fn address(head: &mut request::Parts, plan: &HeaderPlan, sender: &Sender<'_>, id: &RequestId, to: &Destination) {
    let host = match to.cluster {
        Cluster::New => &plan.new_host_value,
        Cluster::Old => plan.old_host_value.as_ref().unwrap_or(sender.host.value()),
    };
    if to.version == Version::HTTP_2 {
        address_http2(head, plan, host, to);
    } else {
        address_http1(head, host, to);
    }
    if !plan.origin_fields.is_empty() {
        origins::address(head, plan, sender, to.cluster);
    }
    plan.request.retarget(&mut head.headers, &sender.variables(id, to.cluster));
}

fn address_http1(head: &mut request::Parts, host: &HeaderValue, to: &Destination) {
    if head.uri.scheme().is_some() || head.uri.authority().is_some() {
        let target = head.uri.path_and_query().cloned();
        head.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    head.version = Version::HTTP_11;
    head.headers.insert(HOST, host.clone());
    // TE must be named in Connection (RFC 9110 section 10.1.4). Beside an upgrade there is none.
    if head.headers.contains_key(TE) {
        head.headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    frame(head, to.body);
    if to.body == Length::Unknown {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

fn address_http2(head: &mut request::Parts, plan: &HeaderPlan, host: &HeaderValue, to: &Destination) {
    let authority = match (to.cluster, &plan.new_authority) {
        (Cluster::New, Some(authority)) => Some(authority.clone()),
        _ => Authority::try_from(host.as_bytes()).ok(),
    };
    let mut target = uri::Parts::default();
    target.scheme = Some(if to.tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP });
    target.authority = authority;
    target.path_and_query =
        Some(head.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/")));
    // Every host that we accept is an authority; were it not, the target stays relative and the try fails.
    if let Ok(target) = Uri::from_parts(target) {
        head.uri = target;
    }
    head.version = Version::HTTP_2;
    for name in [HOST, CONNECTION, UPGRADE, TRANSFER_ENCODING] {
        head.headers.remove(name);
    }
    frame(head, to.body);
}

/// Content-Length says what the body says, never what the client said, and never stands beside Transfer-Encoding.
fn frame(head: &mut request::Parts, body: Length) {
    let mut fields = head.headers.get_all(CONTENT_LENGTH).iter();
    let said = fields.next().filter(|_| fields.next().is_none());
    match body {
        Length::Known(length) if said.is_some_and(|said| is_number(said, length)) => {}
        Length::Known(length) => {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Length::Ended if said.is_some_and(|said| is_number(said, 0)) => {}
        // Servers demand a length with these methods, which HTTP/2 clients may leave out (RFC 9110 section 8.6).
        Length::Ended if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Length::Ended | Length::Unknown => {
            if head.headers.contains_key(CONTENT_LENGTH) {
                head.headers.remove(CONTENT_LENGTH);
            }
        }
    }
    if body != Length::Unknown && head.headers.contains_key(TRANSFER_ENCODING) {
        head.headers.remove(TRANSFER_ENCODING);
    }
}

fn is_number(value: &HeaderValue, number: u64) -> bool {
    let digits = value.as_bytes();
    !digits.is_empty()
        && digits.iter().all(u8::is_ascii_digit)
        && value.to_str().ok().and_then(|digits| digits.parse().ok()) == Some(number)
}

/// Makes a cluster's head one that the client may get, and returns how many cookies lost their Domain.
pub fn to_downstream(
    head: &mut response::Parts,
    plan: &HeaderPlan,
    cluster: Cluster,
    sender: &Sender<'_>,
    id: &RequestId,
    client_version: Version,
) -> usize {
    let headers = &mut head.headers;
    let found = Found::look(headers);
    let upgrade = upgrade_of(head.status, headers, client_version);
    hop_by_hop::strip(headers, found, &plan.request_id);
    if let Some(protocols) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocols);
    }
    let has_no_body = head.status.is_informational() || head.status == StatusCode::NO_CONTENT;
    // Beside Transfer-Encoding a length is void (RFC 9112 section 6.3), and hyper would refuse to send both.
    if found.has(Found::CONTENT_LENGTH) && (has_no_body || found.has(Found::TRANSFER_ENCODING)) {
        headers.remove(CONTENT_LENGTH);
    } else if found.has(Found::CONTENT_LENGTH) {
        one_length(headers);
    }
    let dropped = match cluster {
        Cluster::Old => 0,
        Cluster::New => map_back(headers, found, plan, sender),
    };
    if client_version != Version::HTTP_2 && !found.has(Found::TRAILER) && grpc::is_grpc(headers) {
        // Without it hyper would not send the trailers to an HTTP/1.1 client.
        headers.insert(TRAILER, HeaderValue::from_static("grpc-status, grpc-message, grpc-status-details-bin"));
    }
    if plan.via {
        headers.append(VIA, via(head.version));
    }
    plan.response.apply(headers, &sender.variables(id, cluster));
    head.version = if client_version == Version::HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
    dropped
}

/// A length that is said several times is said once; one that makes no sense, as the answer to HEAD may have, is not passed
/// on (RFC 9112 section 6.3).
fn one_length(headers: &mut HeaderMap) {
    let is_digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut fields = headers.get_all(CONTENT_LENGTH).iter();
    if fields.next().is_some_and(|said| is_digits(said.as_bytes())) && fields.next().is_none() {
        return;
    }
    let number = |text: &[u8]| -> Option<u64> {
        let text = text.trim_ascii();
        str::from_utf8(text).ok().filter(|_| is_digits(text))?.parse().ok()
    };
    let fields = headers.get_all(CONTENT_LENGTH).iter();
    let mut numbers = fields.flat_map(|said| said.as_bytes().split(|byte| *byte == b',')).map(number);
    let first = numbers.next().flatten();
    match first.filter(|_| numbers.all(|number| number == first)) {
        Some(length) => _ = headers.insert(CONTENT_LENGTH, HeaderValue::from(length)),
        None => _ = headers.remove(CONTENT_LENGTH),
    }
}

/// The value of Upgrade where it has a meaning for the client: the switch itself, and the demand for one.
fn upgrade_of(status: StatusCode, headers: &HeaderMap, client_version: Version) -> Option<HeaderValue> {
    let is_meant = matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED);
    if is_meant && client_version == Version::HTTP_11 { headers.get(UPGRADE).cloned() } else { None }
}

/// What is done to answers of new only: the strip list, and everything that names new_host.
fn map_back(headers: &mut HeaderMap, found: Found, plan: &HeaderPlan, sender: &Sender<'_>) -> usize {
    for name in &plan.strip_from_responses {
        headers.remove(name);
    }
    if plan.rewrite_location {
        if found.has(Found::LOCATION) {
            each(headers, LOCATION, |value| rewrite::location(value, plan, sender));
        }
        if found.has(Found::CONTENT_LOCATION) {
            each(headers, CONTENT_LOCATION, |value| rewrite::location(value, plan, sender));
        }
        if found.has(Found::REFRESH) {
            each(headers, REFRESH, |value| rewrite::refresh(value, plan, sender));
        }
    }
    if plan.rewrite_origin {
        origins::map_back(headers, plan, sender);
    }
    let mut dropped = 0;
    if plan.rewrite_cookie_domain && found.has(Found::SET_COOKIE) {
        each(headers, SET_COOKIE, |value| match rewrite::cookie(value, plan, sender) {
            Cookie::Same => None,
            Cookie::Mapped(value) => Some(value),
            Cookie::Dropped(value) => {
                dropped += 1;
                Some(value)
            }
        });
    }
    dropped
}

/// Replaces those values of a field for which `change` has another one.
pub(super) fn each(
    headers: &mut HeaderMap,
    name: HeaderName,
    mut change: impl FnMut(&HeaderValue) -> Option<HeaderValue>,
) {
    if let Entry::Occupied(mut entry) = headers.entry(name) {
        for value in entry.iter_mut() {
            if let Some(changed) = change(value) {
                *value = changed;
            }
        }
    }
}

/// Tells the client where its request went and why. `bucket` is in basis points.
pub fn reveal(headers: &mut HeaderMap, target: &'static str, reason: &'static str, bucket: Option<u16>) {
    headers.insert(HeaderName::from_static("x-migration-target"), HeaderValue::from_static(target));
    headers.insert(HeaderName::from_static("x-migration-reason"), HeaderValue::from_static(reason));
    if let Some(bucket) = bucket {
        let text = text(format!("{}.{:02}", bucket / 100, bucket % 100));
        headers.insert(HeaderName::from_static("x-migration-bucket"), text);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, Template, TemplatePart};
    use crate::proxy::host::Host;
    use crate::proxy::sender::tests::host_of;
    use crate::routing::header_plan::tests::service;

    type Fields<'a> = &'a [(&'static str, &'static str)];

    struct Scene {
        plan: HeaderPlan,
        host: Host,
        peer_text: HeaderValue,
        client: IpAddr,
        trusted: bool,
        scheme: Scheme,
        id: RequestId,
    }

    impl Scene {
        fn new() -> Self {
            Self::of(&service())
        }

        fn of(service: &config::Service) -> Self {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", HeaderValue::from_static("the-id"));
            let plan = HeaderPlan::compile(service);
            Self {
                id: RequestId::of(&headers, &plan),
                plan,
                host: host_of("Old.example:8000"),
                peer_text: HeaderValue::from_static("10.0.0.1"),
                client: IpAddr::from([10, 0, 0, 1]),
                trusted: false,
                scheme: Scheme::Http,
            }
        }

        fn sender(&self) -> Sender<'_> {
            Sender {
                peer: IpAddr::from([10, 0, 0, 1]),
                peer_text: &self.peer_text,
                client: self.client,
                trusted: self.trusted,
                scheme: self.scheme,
                host: &self.host,
            }
        }

        fn prepared(&self, fields: Fields<'_>) -> request::Parts {
            let mut head = head("GET", "/x?y", fields);
            prepare(&mut head, &self.plan, &self.sender(), &self.id, None);
            head
        }

        fn address(&self, head: &mut request::Parts, to: &Destination) {
            address(head, &self.plan, &self.sender(), &self.id, to);
        }

        fn answer(&self, cluster: Cluster, status: u16, fields: Fields<'_>) -> (response::Parts, usize) {
            let (mut head, ()) = http::Response::builder().status(status).body(()).unwrap().into_parts();
            head.headers = headers(fields);
            let dropped = to_downstream(&mut head, &self.plan, cluster, &self.sender(), &self.id, Version::HTTP_11);
            (head, dropped)
        }
    }

    fn headers(fields: Fields<'_>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn head(method: &str, target: &str, fields: Fields<'_>) -> request::Parts {
        let (mut head, ()) = http::Request::builder().method(method).uri(target).body(()).unwrap().into_parts();
        head.headers = headers(fields);
        head
    }

    fn to(cluster: Cluster, version: Version, body: Length) -> Destination {
        Destination { cluster, version, tls: cluster == Cluster::New, body }
    }

    fn old() -> Destination {
        to(Cluster::Old, Version::HTTP_11, Length::Ended)
    }

    fn new() -> Destination {
        to(Cluster::New, Version::HTTP_11, Length::Ended)
    }

    fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    const FORGED: Fields<'static> = &[
        ("x-forwarded-for", "198.51.100.1, 198.51.100.2"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "forged.test"),
        ("x-forwarded-port", "4443"),
        ("x-real-ip", "198.51.100.3"),
        ("x-real-ip", "198.51.100.4"),
        ("forwarded", "for=198.51.100.4;proto=https"),
    ];

    #[test]
    fn the_word_of_a_stranger_is_replaced() {
        for sent in [FORGED, &[]] {
            let head = Scene::new().prepared(sent);

            assert_eq!(values(&head.headers, "x-forwarded-for"), ["10.0.0.1"]);
            assert_eq!(values(&head.headers, "x-real-ip"), ["10.0.0.1"]);
            assert_eq!(values(&head.headers, "x-forwarded-proto"), ["http"]);
            assert_eq!(values(&head.headers, "x-forwarded-host"), ["Old.example:8000"]);
            assert_eq!(values(&head.headers, "x-forwarded-port"), ["8000"]);
            assert!(!head.headers.contains_key("forwarded"));
        }
    }

    #[test]
    fn the_word_of_a_trusted_peer_is_kept_and_completed() {
        let scene = Scene { trusted: true, client: IpAddr::from([198, 51, 100, 2]), ..Scene::new() };

        let full = scene.prepared(FORGED).headers;
        let chain = scene.prepared(&[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "198.51.100.2")]).headers;
        let empty = scene.prepared(&[("x-forwarded-for", "")]).headers;

        assert_eq!(values(&full, "x-forwarded-for"), ["198.51.100.1, 198.51.100.2, 10.0.0.1"]);
        assert_eq!(values(&full, "x-real-ip"), ["198.51.100.3", "198.51.100.4"]);
        for (name, value) in &FORGED[1..4] {
            assert_eq!(values(&full, name), [*value]);
        }
        assert_eq!(values(&full, "forwarded"), [FORGED[6].1]);
        assert_eq!(values(&chain, "x-forwarded-for"), ["198.51.100.1, 198.51.100.2, 10.0.0.1"]);
        assert_eq!(values(&chain, "x-real-ip"), ["198.51.100.2"]);
        assert_eq!(values(&empty, "x-forwarded-for"), ["10.0.0.1"]);
    }

    #[test]
    fn the_port_is_the_hosts_or_the_schemes() {
        for (host, scheme, expected) in [
            ("a", Scheme::Http, "80"),
            ("a", Scheme::Https, "443"),
            ("a:80", Scheme::Https, "80"),
            ("a:443", Scheme::Http, "443"),
            ("a:8443", Scheme::Https, "8443"),
        ] {
            let scene = Scene { host: host_of(host), scheme, ..Scene::new() };
            assert_eq!(values(&scene.prepared(&[]).headers, "x-forwarded-port"), [expected], "{host}");
        }
    }

    #[test]
    fn the_request_id_is_one_field() {
        let head = Scene::new().prepared(&[("x-request-id", "a"), ("x-request-id", "b")]);

        assert_eq!(values(&head.headers, "x-request-id"), ["the-id"]);
    }

    #[test]
    fn each_pass_is_one_more_member_of_cdn_loop() {
        let scene = Scene::new();
        let ours = scene.plan.loop_member.to_str().unwrap().to_owned();

        let first = scene.prepared(&[]).headers;
        let second = scene.prepared(&[("cdn-loop", "fastly; a=b"), ("cdn-loop", "other")]).headers;

        assert_eq!(values(&first, "cdn-loop"), [ours.as_str()]);
        assert_eq!(values(&second, "cdn-loop"), [format!("fastly; a=b, other, {ours}")]);
        let passes = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("cdn-loop", HeaderValue::from_str(text).unwrap());
            passes(&headers, &scene.plan)
        };
        assert_eq!(super::passes(&HeaderMap::new(), &scene.plan), 0);
        assert_eq!(passes("other"), 0);
        assert_eq!(passes(&format!("{ours}x, x{ours}")), 0);
        assert_eq!(passes(&format!("{ours}, other,{ours} ; v=1")), 2);
    }

    #[test]
    fn te_keeps_trailers_only_and_is_named_in_connection() {
        let scene = Scene::new();
        let mut with = scene.prepared(&[("te", "gzip, trailers"), ("connection", "TE")]);
        let mut without = scene.prepared(&[("te", "gzip"), ("connection", "TE")]);
        assert!(!with.headers.contains_key("connection"));

        scene.address(&mut with, &old());
        scene.address(&mut without, &old());

        assert_eq!((values(&with.headers, "te"), values(&with.headers, "connection")), (vec!["trailers"], vec!["te"]));
        assert!(!without.headers.contains_key("te") && !without.headers.contains_key("connection"));
    }

    #[test]
    fn an_upgrade_goes_on_when_it_is_wanted() {
        let fields: Fields<'_> = &[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("te", "trailers")];
        let scene = Scene::new();
        let mut wanted = head("GET", "/", fields);
        let protocols = hop_by_hop::wanted_upgrade(&wanted);

        prepare(&mut wanted, &scene.plan, &scene.sender(), &scene.id, protocols.as_ref());
        scene.address(&mut wanted, &new());
        let unwanted = scene.prepared(fields);

        assert_eq!(values(&wanted.headers, "connection"), ["upgrade"]);
        assert_eq!(values(&wanted.headers, "upgrade"), ["websocket"]);
        assert!(!wanted.headers.contains_key("te"));
        assert!(!unwanted.headers.contains_key("upgrade") && !unwanted.headers.contains_key("connection"));
    }

    #[test]
    fn http1_gets_the_clusters_host_and_origin_form() {
        let scene = Scene::new();
        for (target, expected) in [("/x?y", "/x?y"), ("http://old.example/x?y", "/x?y"), ("http://old.example", "/")] {
            let mut head = head("GET", target, &[("host", "Old.example:8000")]);
            for (to, host) in [(old(), "Old.example:8000"), (new(), "new.example"), (old(), "Old.example:8000")] {
                scene.address(&mut head, &to);
                assert_eq!(values(&head.headers, "host"), [host]);
                assert_eq!((head.uri.to_string().as_str(), head.version), (expected, Version::HTTP_11));
            }
        }
        let mut head = head("OPTIONS", "*", &[("host", "a")]);
        scene.address(&mut head, &old());
        assert_eq!(head.uri, "*");
    }

    #[test]
    fn http2_gets_an_absolute_target_and_no_host() {
        let scene = Scene::new();
        let mut head = head("GET", "/x?y", &[("host", "Old.example:8000"), ("te", "trailers")]);

        scene.address(&mut head, &to(Cluster::New, Version::HTTP_2, Length::Unknown));
        assert_eq!((head.uri.to_string().as_str(), head.version), ("https://new.example/x?y", Version::HTTP_2));
        assert_eq!(values(&head.headers, "te"), ["trailers"]);
        assert!(["host", "connection", "transfer-encoding"].iter().all(|name| !head.headers.contains_key(*name)));

        scene.address(&mut head, &to(Cluster::Old, Version::HTTP_2, Length::Ended));
        assert_eq!(head.uri, "http://Old.example:8000/x?y");

        scene.address(&mut head, &old());
        assert_eq!((head.uri.to_string().as_str(), head.version), ("/x?y", Version::HTTP_11));
        assert_eq!(values(&head.headers, "host"), ["Old.example:8000"]);
    }

    #[test]
    fn framing_is_what_the_body_says() {
        use Length::{Ended, Known, Unknown};
        const BOTH: Fields<'static> = &[("content-length", "5"), ("transfer-encoding", "chunked")];
        for (method, fields, body, length, coding) in [
            ("GET", [].as_slice(), Ended, None, None),
            ("GET", &[], Unknown, None, Some("chunked")),
            ("GET", &[("content-length", "5")], Known(5), Some("5"), None),
            ("GET", &[("content-length", "5")], Ended, None, None),
            ("GET", &[("content-length", "0")], Ended, Some("0"), None),
            ("POST", &[], Ended, Some("0"), None),
            ("POST", &[("content-length", "0")], Ended, Some("0"), None),
            ("POST", &[("content-length", "5")], Known(7), Some("7"), None),
            ("POST", &[("content-length", "5, 5")], Known(5), Some("5"), None),
            ("POST", &[("content-length", "5"), ("content-length", "6")], Known(7), Some("7"), None),
            ("POST", &[("content-length", "+5")], Known(5), Some("5"), None),
            ("POST", BOTH, Unknown, None, Some("chunked")),
            ("POST", BOTH, Known(5), Some("5"), None),
            (
                "POST",
                &[("transfer-encoding", "gzip, chunked"), ("transfer-encoding", "x")],
                Unknown,
                None,
                Some("chunked"),
            ),
        ] {
            let scene = Scene::new();
            let mut head = head(method, "/", fields);
            prepare(&mut head, &scene.plan, &scene.sender(), &scene.id, None);
            for _ in 0..2 {
                scene.address(&mut head, &to(Cluster::Old, Version::HTTP_11, body));
                let case = format!("{method} {fields:?} {body:?}");
                assert_eq!(values(&head.headers, "content-length"), Vec::from_iter(length), "{case}");
                assert_eq!(values(&head.headers, "transfer-encoding"), Vec::from_iter(coding), "{case}");
            }
        }
    }

    #[test]
    fn cookie_crumbs_of_http2_become_one_field() {
        let scene = Scene::new();
        let mut crumbs = head("GET", "/", &[("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "d=4")]);
        crumbs.version = Version::HTTP_2;

        prepare(&mut crumbs, &scene.plan, &scene.sender(), &scene.id, None);

        assert_eq!(values(&crumbs.headers, "cookie"), ["a=1; b=2; c=3; d=4"]);
        let fields = scene.prepared(&[("cookie", "a=1"), ("cookie", "b=2")]).headers;
        assert_eq!(values(&fields, "cookie"), ["a=1", "b=2"], "HTTP/1.1 fields stay as they are");
    }

    #[test]
    fn ordinary_fields_pass_unchanged_and_in_order() {
        const SENT: Fields<'static> = &[
            ("authorization", "Bearer a.b.c"),
            ("cookie", "a=1; b=2"),
            ("accept-encoding", "gzip, br;q=0.5"),
            ("expect", "100-continue"),
            ("x-dup", "1"),
            ("origin", "http://x"),
            ("x-dup", "2"),
            ("x-dup", "3"),
            ("via", "1.1 edge"),
        ];
        let scene = Scene::new();
        let mut head = scene.prepared(SENT);
        scene.address(&mut head, &new());

        for (name, _) in SENT {
            let sent: Vec<_> = SENT.iter().filter(|(other, _)| other == name).map(|(_, value)| *value).collect();
            assert_eq!(values(&head.headers, name), sent);
        }
    }

    #[test]
    fn via_is_appended_with_the_version_received() {
        let mut service = service();
        service.headers.via = true;
        let scene = Scene::of(&service);

        let request = scene.prepared(&[("via", "1.1 edge")]);
        let (response, _) = scene.answer(Cluster::Old, 200, &[("via", "1.1 inner")]);

        assert_eq!(values(&request.headers, "via"), ["1.1 edge", "1.1 migration-proxy"]);
        assert_eq!(values(&response.headers, "via"), ["1.1 inner", "1.1 migration-proxy"]);
    }

    #[test]
    fn operators_changes_follow_the_target_of_each_try() {
        let mut service = service();
        let name = HeaderName::from_static;
        service.headers.request.set = vec![(name("x-target"), Template(vec![TemplatePart::Target]))];
        service.headers.request.add = vec![(name("x-more"), Template(vec![TemplatePart::Target]))];
        service.headers.request.remove = vec![name("x-forwarded-port")];
        service.headers.response.set = vec![(name("x-served-by"), Template(vec![TemplatePart::Target]))];
        let scene = Scene::of(&service);
        let mut head = scene.prepared(&[("x-more", "client"), ("x-target", "client")]);

        for (to, target) in [(new(), "new"), (old(), "old"), (new(), "new")] {
            scene.address(&mut head, &to);
            assert_eq!(values(&head.headers, "x-target"), [target]);
            assert_eq!(values(&head.headers, "x-more"), ["client", target]);
        }
        assert!(!head.headers.contains_key("x-forwarded-port"));
        assert_eq!(values(&scene.answer(Cluster::Old, 200, &[]).0.headers, "x-served-by"), ["old"]);
    }

    #[test]
    fn fields_of_header_rules_are_stripped_when_asked() {
        let mut service = service();
        service.canary.strip_header = true;
        service.canary.header_rules = vec![config::HeaderRule {
            header: HeaderName::from_static("x-pin"),
            test: config::ValueTest::Present,
            target: Cluster::New,
        }];
        let head = Scene::of(&service).prepared(&[("x-pin", "1"), ("x-pin", "2"), ("x-stay", "")]);

        assert!(!head.headers.contains_key("x-pin") && head.headers.contains_key("x-stay"));
    }

    #[test]
    fn a_copy_has_the_whole_head() {
        let scene = Scene::new();
        let kept = scene.prepared(&[("x-a", "1"), ("x-a", "2")]);

        let mut sent = copy(&kept);
        scene.address(&mut sent, &new());

        assert!(!kept.headers.contains_key("host") && sent.headers.contains_key("host"));
        assert_eq!(values(&sent.headers, "x-a"), ["1", "2"]);
        assert_eq!((&sent.method, &sent.uri), (&kept.method, &kept.uri));
    }

    #[test]
    fn responses_lose_what_concerns_one_connection() {
        let scene = Scene::new();
        let (head, _) = scene.answer(
            Cluster::Old,
            200,
            &[
                ("connection", "X-Hop, close"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("upgrade", "h2c"),
                ("transfer-encoding", "chunked"),
                ("content-length", "5"),
                ("trailer", "X-Sum"),
                ("x-stay", "1"),
            ],
        );

        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["trailer", "x-stay"]);
    }

    #[test]
    fn lengths_of_responses_stay_where_they_mean_something() {
        for (status, fields, expected) in [
            (200, [("content-length", "5")].as_slice(), Some("5")),
            (304, &[("content-length", "5")], Some("5")),
            (200, &[("content-length", "5, 5")], Some("5")),
            (200, &[("content-length", "5"), ("content-length", "5,\t05 ")], Some("5")),
            (200, &[("content-length", "5, 6")], None),
            (200, &[("content-length", "5"), ("content-length", "6")], None),
            (200, &[("content-length", "+5")], None),
            (200, &[("content-length", "5,")], None),
            (200, &[("content-length", "")], None),
            (200, &[("content-length", "99999999999999999999, 99999999999999999999")], None),
            (204, &[("content-length", "0")], None),
            (103, &[("content-length", "0")], None),
            (200, &[("content-length", "5"), ("transfer-encoding", "chunked")], None),
        ] {
            let (head, _) = Scene::new().answer(Cluster::New, status, fields);
            assert_eq!(values(&head.headers, "content-length"), Vec::from_iter(expected), "{status} {fields:?}");
            assert!(!head.headers.contains_key("transfer-encoding"));
        }
    }

    #[test]
    fn upgrade_stays_in_answers_that_are_about_it() {
        for (status, expected) in [(101, true), (426, true), (200, false)] {
            let fields: Fields<'_> = &[("upgrade", "websocket"), ("connection", "Upgrade")];
            let (head, _) = Scene::new().answer(Cluster::Old, status, fields);
            assert_eq!(values(&head.headers, "upgrade").len(), usize::from(expected), "{status}");
            assert_eq!(values(&head.headers, "connection").len(), usize::from(expected), "{status}");
        }
    }

    #[test]
    fn only_answers_of_new_are_mapped_back() {
        const FIELDS: Fields<'static> = &[
            ("location", "https://new.example/a"),
            ("content-location", "//new.example/b"),
            ("refresh", "0; url=https://new.example/c"),
            ("set-cookie", "a=1; Domain=new.example"),
            ("set-cookie", "b=2; Domain=example"),
            ("set-cookie", "c=3"),
            ("alt-svc", "h3=\":443\""),
        ];
        let scene = Scene::new();

        let (new, dropped) = scene.answer(Cluster::New, 302, FIELDS);
        let (old, none) = scene.answer(Cluster::Old, 302, FIELDS);

        assert_eq!((dropped, none), (1, 0));
        assert_eq!(values(&new.headers, "location"), ["http://Old.example:8000/a"]);
        assert_eq!(values(&new.headers, "content-location"), ["//Old.example:8000/b"]);
        assert_eq!(values(&new.headers, "refresh"), ["0; url=http://Old.example:8000/c"]);
        assert_eq!(values(&new.headers, "set-cookie"), ["a=1; Domain=old.example", "b=2", "c=3"]);
        assert!(!new.headers.contains_key("alt-svc"));
        assert_eq!(old.headers, headers(FIELDS));
    }

    #[test]
    fn nothing_is_mapped_when_rewriting_is_off() {
        const FIELDS: Fields<'static> =
            &[("location", "https://new.example/"), ("set-cookie", "a=1; Domain=new.example"), ("alt-svc", "clear")];
        let mut service = service();
        service.headers.rewrite_location = false;
        service.headers.rewrite_cookie_domain = false;
        service.headers.strip = Vec::new();

        let (head, dropped) = Scene::of(&service).answer(Cluster::New, 302, FIELDS);

        assert_eq!((head.headers, dropped), (headers(FIELDS), 0));
    }

    #[test]
    fn grpc_trailers_are_announced_to_http1_clients() {
        let announced = |fields| values(&Scene::new().answer(Cluster::New, 200, fields).0.headers, "trailer").join("|");

        assert!(announced(&[("content-type", "application/grpc+proto")]).contains("grpc-status"));
        assert_eq!(announced(&[("content-type", "application/grpc"), ("trailer", "x-a")]), "x-a");
        assert_eq!(announced(&[("content-type", "text/plain")]), "");
    }

    #[test]
    fn reveal_writes_the_bucket_with_two_decimals() {
        for (bucket, expected) in
            [(Some(1834), Some("18.34")), (Some(5), Some("0.05")), (Some(9999), Some("99.99")), (None, None)]
        {
            let mut headers = headers(&[("x-migration-target", "forged")]);
            reveal(&mut headers, "new", "user", bucket);
            assert_eq!(values(&headers, "x-migration-target"), ["new"]);
            assert_eq!(values(&headers, "x-migration-reason"), ["user"]);
            assert_eq!(values(&headers, "x-migration-bucket"), Vec::from_iter(expected));
        }
    }

    fn any_fields() -> impl Strategy<Value = Vec<(String, String)>> {
        let name = prop_oneof![
            Just("connection".to_owned()),
            "host|content-length|transfer-encoding|te|upgrade|cdn-loop|cookie|forwarded|x-real-ip|trailer|via",
            "x-forwarded-(for|proto|host|port)|keep-alive|location|set-cookie|refresh|expect",
            "[a-z][a-z0-9-]{0,20}",
        ];
        let value = prop_oneof![
            "((host|content-length|te|x-forwarded-for|close|x-a)[ ,]{0,2}){0,4}",
            "[0-9]{0,3}",
            "\\PC{0,20}",
        ];
        prop::collection::vec((name, value), 0..40)
    }

    fn map_of(fields: &[(String, String)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        headers
    }

    proptest! {
        #[test]
        fn any_request_head_ends_with_one_host_and_one_framing(
            fields in any_fields(),
            trusted: bool,
            cluster in prop_oneof![Just(Cluster::Old), Just(Cluster::New)],
            body in prop_oneof![Just(Length::Ended), Just(Length::Unknown), (1_u64..999).prop_map(Length::Known)],
        ) {
            let scene = Scene { trusted, ..Scene::new() };
            let mut head = head("POST", "/", &[]);
            head.headers = map_of(&fields);
            prepare(&mut head, &scene.plan, &scene.sender(), &scene.id, None);
            for cluster in [cluster, Cluster::New, cluster] {
                scene.address(&mut head, &to(cluster, Version::HTTP_11, body));
            }

            let count = |name: &str| head.headers.get_all(name).iter().count();
            prop_assert_eq!(count("host"), 1);
            prop_assert_eq!(count("content-length") + count("transfer-encoding"), 1);
            prop_assert_eq!(count("transfer-encoding"), usize::from(body == Length::Unknown));
            prop_assert_eq!(count("x-forwarded-for"), 1);
            prop_assert_eq!(count("cdn-loop"), 1);
            prop_assert_eq!(count("upgrade"), 0);
            prop_assert!(count("connection") == 0 || values(&head.headers, "connection") == ["te"]);
        }

        #[test]
        fn any_response_head_is_taken(fields in any_fields(), status in 101_u16..599) {
            let scene = Scene::new();
            let (mut head, ()) = http::Response::builder().status(status).body(()).unwrap().into_parts();
            head.headers = map_of(&fields);
            let is_number = |said: &HeaderValue| !said.is_empty() && said.as_bytes().iter().all(u8::is_ascii_digit);
            let lengths = |headers: &HeaderMap| Vec::from_iter(headers.get_all("content-length").iter().cloned());
            let had_number = matches!(&lengths(&head.headers)[..], [said] if is_number(said));
            let was_chunked = head.headers.contains_key("transfer-encoding");

            to_downstream(&mut head, &scene.plan, Cluster::New, &scene.sender(), &scene.id, Version::HTTP_11);

            prop_assert!(!head.headers.contains_key("transfer-encoding"));
            let has_length = !was_chunked && status >= 200 && status != 204;
            let lengths = lengths(&head.headers);
            prop_assert!(lengths.iter().all(is_number) && lengths.len() <= usize::from(has_length), "{lengths:?}");
            prop_assert!(!(had_number && has_length) || lengths.len() == 1);
        }
    }
}

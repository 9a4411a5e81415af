//! Request heads towards the clusters and response heads towards clients. A request is prepared once, which does
//! everything that no cluster depends on, and addressed for each try; addressing the same head again, for the other
//! cluster too, leaves nothing of the first time behind.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE, COOKIE, Entry, FORWARDED, GetAll, HOST, HeaderMap,
    HeaderName, HeaderValue, LOCATION, REFRESH, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{self, Authority, Uri};
use http::{Method, StatusCode, Version, request, response};
use http_body::Body;

use super::hop_by_hop::{self, Found};
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
/// ([`hop_by_hop::wanted_upgrade`]).
pub fn prepare(
    head: &mut request::Parts,
    plan: &HeaderPlan,
    sender: &Sender<'_>,
    id: &RequestId,
    upgrade: Option<&HeaderValue>,
) {
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
    copy.method.clone_from(&head.method);
    copy.uri.clone_from(&head.uri);
    copy.version = head.version;
    copy.headers.clone_from(&head.headers);
    copy
}

/// Addresses a prepared head to a cluster: Host, target, version and framing. May be repeated with another destination.
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
    let said = head.headers.get(CONTENT_LENGTH);
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
            if said.is_some() {
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
    }
    let dropped = match cluster {
        Cluster::Old => 0,
        Cluster::New => map_back(headers, found, plan, sender),
    };
    if client_version != Version::HTTP_2 && !found.has(Found::TRAILER) && is_grpc(headers) {
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

/// The value of Upgrade where it has a meaning for the client: the switch itself, and the demand for one.
fn upgrade_of(status: StatusCode, headers: &HeaderMap, client_version: Version) -> Option<HeaderValue> {
    let is_meant = matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED);
    if is_meant && client_version == Version::HTTP_11 { headers.get(UPGRADE).cloned() } else { None }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
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
fn each(headers: &mut HeaderMap, name: HeaderName, mut change: impl FnMut(&HeaderValue) -> Option<HeaderValue>) {
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

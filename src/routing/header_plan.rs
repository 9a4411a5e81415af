//! Everything about heads that depends on the configuration alone, prepared once per service: Host values, the authority
//! that is mapped back, the member of CDN-Loop, and the operators' changes with their templates taken apart.

use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue, ORIGIN, REFERER};
use http::uri;
use sha2::{Digest, Sha256};

use crate::config::{self, Cluster, HeaderOperations, Protocol, Reveal, Template, TemplatePart};

/// What is done to the heads of one service.
#[derive(Clone, Debug)]
pub struct HeaderPlan {
    /// Host towards new.
    pub new_host_value: HeaderValue,
    /// The same as `:authority`.
    pub new_authority: Option<uri::Authority>,
    /// Host towards old; `None`: as the client sent it.
    pub old_host_value: Option<HeaderValue>,
    /// The host whose URLs and cookies are mapped back, lower case.
    pub new_host: Box<str>,
    /// The port that belongs to `new_host` in URLs, beside the default ports.
    pub new_port: u16,
    /// Whether new speaks TLS: the scheme of `//new_host/`.
    pub new_is_tls: bool,
    /// Start of the Location of redirects to new: scheme and authority.
    pub redirect_origin: Box<str>,
    /// The field of the request id.
    pub request_id: HeaderName,
    /// Our member of CDN-Loop.
    pub loop_member: HeaderValue,
    /// Fields of the header rules, removed from requests when `canary.strip_header` is set.
    pub strip_from_requests: Vec<HeaderName>,
    /// Fields removed from answers of new.
    pub strip_from_responses: Vec<HeaderName>,
    /// Changes of request heads.
    pub request: Operations,
    /// Changes of response heads.
    pub response: Operations,
    /// Map Location and its kin.
    pub rewrite_location: bool,
    /// Map the Domain of cookies.
    pub rewrite_cookie_domain: bool,
    /// Fields of requests to new that name the client's page and are mapped to new_host; none: nothing is.
    pub origin_fields: Vec<HeaderName>,
    /// Map what answers of new say of origins.
    pub rewrite_origin: bool,
    /// Add Via.
    pub via: bool,
    reveal: Reveal,
}

impl HeaderPlan {
    /// Prepares the plan of a service.
    pub fn compile(service: &config::Service) -> Self {
        let new_host = service.new_host.as_str();
        let new_host_text = service.new.host_header.as_deref().unwrap_or(new_host);
        let mut strip_from_requests = Vec::new();
        if service.canary.strip_header {
            strip_from_requests.extend(service.canary.header_rules.iter().map(|rule| rule.header.clone()));
            strip_from_requests.sort_by(|a: &HeaderName, b| a.as_str().cmp(b.as_str()));
            strip_from_requests.dedup();
        }
        Self {
            new_host_value: value(new_host_text),
            new_authority: new_host_text.parse().ok(),
            old_host_value: service.old.host_header.as_deref().map(value),
            new_host: new_host.into(),
            new_port: service.new_backend.port(),
            new_is_tls: service.new.protocol == Protocol::Https,
            redirect_origin: redirect_origin(service).into(),
            request_id: service.headers.request_id.clone(),
            loop_member: loop_member(&service.name),
            strip_from_requests,
            strip_from_responses: service.headers.strip.clone(),
            origin_fields: origin_fields(service),
            rewrite_origin: service.headers.rewrite_origin,
            request: Operations::compile(&service.headers.request, new_host),
            response: Operations::compile(&service.headers.response, new_host),
            rewrite_location: service.headers.rewrite_location,
            rewrite_cookie_domain: service.headers.rewrite_cookie_domain,
            via: service.headers.via,
            reveal: service.headers.reveal,
        }
    }

    /// Whether this client sees the X-Migration fields. `client_is_trusted`: its address, not its peer's, lies in
    /// `listen.trusted_proxies`.
    pub fn reveals(&self, client_is_trusted: bool) -> bool {
        match self.reveal {
            Reveal::Off => false,
            Reveal::Trusted => client_is_trusted,
            Reveal::Always => true,
        }
    }
}

/// `https://new_host`, with a port only when the backend names new_host itself with another port than 443.
fn redirect_origin(service: &config::Service) -> String {
    let backend = &service.new_backend;
    if backend.host().eq_ignore_ascii_case(&service.new_host) && backend.port() != 443 {
        format!("https://{}:{}", service.new_host, backend.port())
    } else {
        format!("https://{}", service.new_host)
    }
}

/// Origin and Referer, but for those that the operator sets: these come after everything of ours.
fn origin_fields(service: &config::Service) -> Vec<HeaderName> {
    let HeaderOperations { set, add, .. } = &service.headers.request;
    let is_left = |name: &HeaderName| set.iter().chain(add).all(|(other, _)| other != name);
    let fields = if service.headers.rewrite_origin { &[ORIGIN, REFERER][..] } else { &[] };
    fields.iter().filter(|name| is_left(name)).cloned().collect()
}

/// `migration-proxy-` and the first 8 hexadecimal digits of the name's SHA-256.
fn loop_member(name: &str) -> HeaderValue {
    let digest = Sha256::digest(name.as_bytes());
    let start = digest.iter().take(4).fold(0_u32, |start, byte| start << 8 | u32::from(*byte));
    value(&format!("migration-proxy-{start:08x}"))
}

/// A field value of checked text. A control character that slipped through becomes a space: it must never end a line.
fn value(text: &str) -> HeaderValue {
    let bytes: Vec<u8> =
        text.bytes().map(|byte| if byte.is_ascii_control() && byte != b'\t' { b' ' } else { byte }).collect();
    HeaderValue::try_from(bytes).expect("control characters are gone")
}

/// The changes of one direction, in the order remove, set, add.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, Value)>,
    add: Vec<(HeaderName, Value)>,
    /// Fields with `${target}` in them: all the values that we give to such a field, in their order.
    by_target: Vec<(HeaderName, Vec<Value>)>,
}

impl Operations {
    fn compile(operations: &HeaderOperations, new_host: &str) -> Self {
        let compile = |(name, template): &(HeaderName, Template)| (name.clone(), Value::compile(template, new_host));
        let mut set: Vec<(HeaderName, Value)> = Vec::new();
        for (name, value) in operations.set.iter().map(compile) {
            set.retain(|(other, _)| *other != name);
            set.push((name, value));
        }
        let add: Vec<_> = operations.add.iter().map(compile).collect();
        let mut by_target: Vec<(HeaderName, Vec<Value>)> = Vec::new();
        for (name, _) in set.iter().chain(&add).filter(|(_, value)| value.names_target()) {
            if by_target.iter().all(|(other, _)| other != name) {
                let ours = set.iter().chain(&add).filter(|(other, _)| other == name);
                by_target.push((name.clone(), ours.map(|(_, value)| value.clone()).collect()));
            }
        }
        Self { remove: operations.remove.clone(), set, add, by_target }
    }

    /// Carries out all changes.
    pub fn apply(&self, headers: &mut HeaderMap, variables: &Variables<'_>) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.render(variables));
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.render(variables));
        }
    }

    /// Renders the values with `${target}` anew in a head that [`Operations::apply`] has changed before.
    pub fn retarget(&self, headers: &mut HeaderMap, variables: &Variables<'_>) {
        for (name, values) in &self.by_target {
            if let http::header::Entry::Occupied(mut entry) = headers.entry(name) {
                // Ours were given last, so they are the last of this name.
                for (present, ours) in entry.iter_mut().rev().zip(values.iter().rev()) {
                    *present = ours.render(variables);
                }
            }
        }
    }
}

/// What templates may name.
#[derive(Clone, Copy, Debug)]
pub struct Variables<'a> {
    /// `${client_ip}`.
    pub client_ip: IpAddr,
    /// `${old_host}`: the host that the client used, lower case, without port.
    pub old_host: &'a str,
    /// `${request_id}`.
    pub request_id: &'a HeaderValue,
    /// `${target}`.
    pub target: Cluster,
}

/// A value that is fixed, or rendered for each request.
#[derive(Clone, Debug)]
enum Value {
    Fixed(HeaderValue),
    Made(Vec<Piece>),
}

/// A piece of a rendered value.
#[derive(Clone, Debug)]
enum Piece {
    Text(HeaderValue),
    ClientIp,
    OldHost,
    RequestId,
    Target,
}

impl Value {
    fn compile(template: &Template, new_host: &str) -> Self {
        let mut pieces = Vec::new();
        let mut text = String::new();
        for part in &template.0 {
            let piece = match part {
                TemplatePart::Text(more) => {
                    text.push_str(more);
                    continue;
                }
                TemplatePart::NewHost => {
                    text.push_str(new_host);
                    continue;
                }
                TemplatePart::ClientIp => Piece::ClientIp,
                TemplatePart::OldHost => Piece::OldHost,
                TemplatePart::RequestId => Piece::RequestId,
                TemplatePart::Target => Piece::Target,
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(value(&text)));
                text.clear();
            }
            pieces.push(piece);
        }
        if pieces.is_empty() {
            return Self::Fixed(value(&text));
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(value(&text)));
        }
        Self::Made(pieces)
    }

    fn names_target(&self) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Made(pieces) => pieces.iter().any(|piece| matches!(piece, Piece::Target)),
        }
    }

    fn render(&self, variables: &Variables<'_>) -> HeaderValue {
        let pieces = match self {
            Self::Fixed(value) => return value.clone(),
            Self::Made(pieces) => pieces,
        };
        if let [Piece::RequestId] = pieces.as_slice() {
            return variables.request_id.clone();
        }
        if let [Piece::Target] = pieces.as_slice() {
            return HeaderValue::from_static(variables.target.as_str());
        }
        let mut bytes = Vec::with_capacity(64);
        for piece in pieces {
            match piece {
                Piece::Text(text) => bytes.extend_from_slice(text.as_bytes()),
                Piece::ClientIp => bytes.extend_from_slice(variables.client_ip.to_string().as_bytes()),
                Piece::OldHost => bytes.extend_from_slice(variables.old_host.as_bytes()),
                Piece::RequestId => bytes.extend_from_slice(variables.request_id.as_bytes()),
                Piece::Target => bytes.extend_from_slice(variables.target.as_str().as_bytes()),
            }
        }
        HeaderValue::try_from(bytes).expect("every piece is a valid field value, and a name holds no control character")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    include!("../../benches/support/service.rs");

    /// A service with every default, for the tests of other modules too.
    pub(crate) fn service() -> config::Service {
        default_service()
    }

    fn template(parts: &[TemplatePart]) -> Template {
        Template(parts.to_vec())
    }

    fn name(text: &'static str) -> HeaderName {
        HeaderName::from_static(text)
    }

    fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn hosts_come_from_host_header_before_new_host() {
        let mut service = service();
        let plain = HeaderPlan::compile(&service);
        service.new.host_header = Some("inner.example".into());
        service.old.host_header = Some("fixed.example".into());
        let fixed = HeaderPlan::compile(&service);

        assert_eq!(plain.new_host_value, "new.example");
        assert_eq!(plain.old_host_value, None);
        assert_eq!(fixed.new_host_value, "inner.example");
        assert_eq!(fixed.old_host_value.unwrap(), "fixed.example");
        assert_eq!(&*fixed.new_host, "new.example", "what is mapped back stays new_host");
    }

    #[test]
    fn the_loop_member_is_made_of_the_name() {
        // printf %s loop | sha256sum
        assert_eq!(loop_member("loop"), "migration-proxy-254637f7");
        assert_eq!(loop_member("api-name01").len(), "migration-proxy-".len() + 8);
    }

    #[test]
    fn redirects_name_a_port_only_when_the_backend_is_new_host_on_another_one() {
        for (backend, port, expected) in [
            ("new.example", 443, "https://new.example"),
            ("new.example", 8443, "https://new.example:8443"),
            ("192.0.2.1", 8443, "https://new.example"),
        ] {
            let mut service = service();
            service.new_backend = config::Authority::new(backend, port);
            assert_eq!(&*HeaderPlan::compile(&service).redirect_origin, expected);
        }
    }

    #[test]
    fn reveal_knows_three_answers() {
        for (reveal, stranger, trusted) in
            [(Reveal::Off, false, false), (Reveal::Trusted, false, true), (Reveal::Always, true, true)]
        {
            let mut service = service();
            service.headers.reveal = reveal;
            let plan = HeaderPlan::compile(&service);
            assert_eq!((plan.reveals(false), plan.reveals(true)), (stranger, trusted), "{reveal:?}");
        }
    }

    #[test]
    fn only_header_rules_with_strip_header_are_stripped() {
        let rule = |header| config::HeaderRule {
            header: name(header),
            test: config::ValueTest::Present,
            target: Cluster::New,
        };
        let mut service = service();
        service.canary.header_rules = vec![rule("x-b"), rule("x-a"), rule("x-b")];

        assert!(HeaderPlan::compile(&service).strip_from_requests.is_empty());
        service.canary.strip_header = true;
        assert_eq!(HeaderPlan::compile(&service).strip_from_requests, [name("x-a"), name("x-b")]);
    }

    #[test]
    fn a_line_break_in_a_checked_text_cannot_end_a_line() {
        assert_eq!(value("a\r\nb\0c\td"), "a  b c\td");
    }

    #[test]
    fn operations_run_in_the_order_remove_set_add() {
        let fixed = |text: &str| template(&[TemplatePart::Text(text.into())]);
        let operations = Operations::compile(
            &HeaderOperations {
                remove: vec![name("x-gone"), name("x-both")],
                set: vec![(name("x-set"), fixed("1")), (name("x-set"), fixed("2")), (name("x-both"), fixed("s"))],
                add: vec![(name("x-both"), fixed("a")), (name("x-more"), fixed("3"))],
            },
            "new.example",
        );
        let mut headers = HeaderMap::new();
        for (field, value) in [("x-gone", "0"), ("x-set", "0"), ("x-set", "00"), ("x-both", "0"), ("x-more", "0")] {
            headers.append(name(field), HeaderValue::from_static(value));
        }
        let id = HeaderValue::from_static("id");
        let variables =
            Variables { client_ip: IpAddr::from([192, 0, 2, 7]), old_host: "o", request_id: &id, target: Cluster::Old };

        operations.apply(&mut headers, &variables);
        operations.retarget(&mut headers, &variables);

        assert!(!headers.contains_key("x-gone"));
        assert_eq!(values(&headers, "x-set"), ["2"]);
        assert_eq!(values(&headers, "x-both"), ["s", "a"]);
        assert_eq!(values(&headers, "x-more"), ["0", "3"]);
    }

    #[test]
    fn values_that_name_the_target_follow_it() {
        use TemplatePart::{ClientIp, NewHost, OldHost, RequestId, Target, Text};
        let all = template(&[
            Text("[".into()),
            ClientIp,
            Text(" ".into()),
            OldHost,
            Text(" ".into()),
            NewHost,
            Text(" ".into()),
            RequestId,
            Text(" ".into()),
            Target,
            Text("]".into()),
        ]);
        let operations = Operations::compile(
            &HeaderOperations {
                remove: Vec::new(),
                set: vec![(name("x-all"), all), (name("x-id"), template(&[RequestId]))],
                add: vec![(name("x-via"), template(&[Target])), (name("x-via"), template(&[Text("fixed".into())]))],
            },
            "new.example",
        );
        let id = HeaderValue::from_static("id");
        let mut headers = HeaderMap::new();
        headers.append("x-via", HeaderValue::from_static("client"));
        let to = |target| Variables {
            client_ip: IpAddr::from([192, 0, 2, 7]),
            old_host: "old.example",
            request_id: &id,
            target,
        };

        operations.apply(&mut headers, &to(Cluster::Old));
        for target in [Cluster::New, Cluster::New, Cluster::Old, Cluster::New] {
            operations.retarget(&mut headers, &to(target));
        }

        assert_eq!(values(&headers, "x-all"), ["[192.0.2.7 old.example new.example id new]"]);
        assert_eq!(values(&headers, "x-id"), ["id"]);
        assert_eq!(values(&headers, "x-via"), ["client", "new", "fixed"]);
    }
}

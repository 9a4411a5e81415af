//! The origin of a page, where a service asks for it (`headers.rewrite_origin`): Origin and Referer towards new name
//! new_host, so that checks which compare them with Host hold, and what new answers of its own origin names the client's.
//! Only a whole origin is mapped, never a text inside a query.

use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY_REPORT_ONLY, HeaderMap, HeaderName,
    HeaderValue, LINK,
};
use http::request;

use super::headers::each;
use super::rewrite::{after_new, like, push_client, split_new, strip_prefix_ignoring_case};
use super::sender::{Scheme, Sender};
use crate::config::Cluster;
use crate::routing::header_plan::HeaderPlan;

/// What the client sent in a field that was mapped, kept with the head for a try on old that follows one on new.
#[derive(Clone)]
struct Sent(Vec<(HeaderName, HeaderValue)>);

/// Maps the fields of a head that goes to new, or puts back what the client sent in a head that goes to old.
pub fn address(head: &mut request::Parts, plan: &HeaderPlan, sender: &Sender<'_>, cluster: Cluster) {
    match cluster {
        Cluster::Old => {
            if let Some(Sent(fields)) = head.extensions.remove() {
                for (name, value) in fields {
                    head.headers.insert(name, value);
                }
            }
        }
        Cluster::New => {
            let mut sent = Vec::new();
            for name in &plan.origin_fields {
                let Some(value) = head.headers.get_mut(name) else { continue };
                if let Some(mapped) = to_new(value, plan, sender) {
                    sent.push((name.clone(), std::mem::replace(value, mapped)));
                }
            }
            // The second time on new there is nothing left to map, and what was sent is known.
            if !sent.is_empty() {
                head.extensions.insert(Sent(sent));
            }
        }
    }
}

/// The value of Origin or Referer as new gets it; `None`: it is not of the client's own origin and stays.
fn to_new(value: &HeaderValue, plan: &HeaderPlan, sender: &Sender<'_>) -> Option<HeaderValue> {
    let url = strip_prefix_ignoring_case(value.as_bytes(), sender.scheme.as_str().as_bytes())?.strip_prefix(b"://")?;
    let end = url.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(url.len());
    let (authority, rest) = url.split_at(end);
    if !sender.host.is_same(std::str::from_utf8(authority).ok()?, sender.scheme) {
        return None;
    }
    like(value, [b"https://", plan.new_host.as_bytes(), rest].concat())
}

/// Maps what an answer of new says of its own origin to the client's scheme and host.
pub fn map_back(headers: &mut HeaderMap, plan: &HeaderPlan, sender: &Sender<'_>) {
    each(headers, ACCESS_CONTROL_ALLOW_ORIGIN, |value| allowed_origin(value, plan, sender));
    each(headers, LINK, |value| link(value, plan, sender));
    for name in [CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY_REPORT_ONLY] {
        each(headers, name, |value| policy(value, plan, sender));
    }
}

fn allowed_origin(value: &HeaderValue, plan: &HeaderPlan, sender: &Sender<'_>) -> Option<HeaderValue> {
    let (true, b"") = split_new(value.as_bytes(), plan)? else { return None };
    let mut bytes = Vec::with_capacity(8 + sender.host.value().len());
    push_client(&mut bytes, true, sender);
    like(value, bytes)
}

/// Targets stand between angle brackets; what is quoted are parameters (RFC 8288, 3).
fn link(value: &HeaderValue, plan: &HeaderPlan, sender: &Sender<'_>) -> Option<HeaderValue> {
    let text = value.as_bytes();
    let mut edit = Edit::new(text);
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'"' => at = after_quoted(text, at),
            b'<' => {
                let start = at + 1;
                let Some(length) = text[start..].iter().position(|byte| *byte == b'>') else { break };
                at = start + length + 1;
                if let Some((has_scheme, rest)) = split_new(&text[start..start + length], plan) {
                    push_client(edit.replace(start, start + length - rest.len()), has_scheme, sender);
                }
            }
            _ => at += 1,
        }
    }
    edit.finish(value)
}

/// The place behind a quoted text that begins at `start`.
fn after_quoted(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < text.len() {
        match text[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// Sources are words; `;` ends a directive and `,` a policy.
fn policy(value: &HeaderValue, plan: &HeaderPlan, sender: &Sender<'_>) -> Option<HeaderValue> {
    let text = value.as_bytes();
    let mut edit = Edit::new(text);
    let mut start = 0;
    for word in text.split(|byte| matches!(byte, b' ' | b'\t' | b';' | b',')) {
        let end = start + word.len();
        if let Some(Source { kind, any_port, rest }) = source(word, plan) {
            let bytes = edit.replace(start, end - rest.len());
            bytes.extend_from_slice(match (kind, sender.scheme) {
                (Kind::Url, Scheme::Https) => b"https://",
                (Kind::Url, Scheme::Http) => b"http://",
                (Kind::Socket, Scheme::Https) => b"wss://",
                (Kind::Socket, Scheme::Http) => b"ws://",
                (Kind::Host, _) => b"",
            });
            if any_port {
                bytes.extend_from_slice(sender.host.name().as_bytes());
                bytes.extend_from_slice(ANY_PORT);
            } else {
                bytes.extend_from_slice(sender.host.value().as_bytes());
            }
        }
        start = end + 1;
    }
    edit.finish(value)
}

/// How a source of a policy stands for every port of a host (CSP 3, 2.3.1).
const ANY_PORT: &[u8] = b":*";

/// A source of a policy that names new.
struct Source<'a> {
    kind: Kind,
    any_port: bool,
    /// What follows the authority.
    rest: &'a [u8],
}

/// How it names new.
#[derive(Clone, Copy)]
enum Kind {
    /// `https://new_host`.
    Url,
    /// `wss://new_host`.
    Socket,
    /// `new_host`.
    Host,
}

/// How the word names new; `None`: it names something else.
fn source<'a>(word: &'a [u8], plan: &HeaderPlan) -> Option<Source<'a>> {
    let schemes = [
        (b"https://".as_slice(), Kind::Url, Scheme::Https),
        (b"http://", Kind::Url, Scheme::Http),
        (b"wss://", Kind::Socket, Scheme::Https),
        (b"ws://", Kind::Socket, Scheme::Http),
    ];
    let with_scheme = schemes
        .into_iter()
        .find_map(|(prefix, kind, scheme)| Some((kind, scheme, strip_prefix_ignoring_case(word, prefix)?)));
    let (kind, scheme, after) = with_scheme.unwrap_or_else(|| {
        let scheme = if plan.new_is_tls { Scheme::Https } else { Scheme::Http };
        (Kind::Host, scheme, word)
    });
    let any_port = strip_prefix_ignoring_case(after, plan.new_host.as_bytes())
        .and_then(|after| after.strip_prefix(ANY_PORT))
        .filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
    Some(match any_port {
        Some(rest) => Source { kind, any_port: true, rest },
        None => Source { kind, any_port: false, rest: after_new(after, scheme, plan)? },
    })
}

/// A text of which pieces are replaced, copied only if there are any.
struct Edit<'a> {
    text: &'a [u8],
    kept_until: usize,
    bytes: Vec<u8>,
}

impl<'a> Edit<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, kept_until: 0, bytes: Vec::new() }
    }

    /// Leaves out a piece that lies behind all pieces before; what stands instead is written to the result.
    fn replace(&mut self, start: usize, end: usize) -> &mut Vec<u8> {
        self.bytes.extend_from_slice(&self.text[self.kept_until..start]);
        self.kept_until = end;
        &mut self.bytes
    }

    fn finish(mut self, original: &HeaderValue) -> Option<HeaderValue> {
        if self.kept_until == 0 {
            return None;
        }
        self.bytes.extend_from_slice(&self.text[self.kept_until..]);
        like(original, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::Request;
    use http::header::{ORIGIN, REFERER};
    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, Template, TemplatePart};
    use crate::proxy::sender::tests::host_of;
    use crate::routing::header_plan::tests::service;

    fn rewriting() -> config::Service {
        let mut service = service();
        service.headers.rewrite_origin = true;
        service
    }

    fn with<T>(host: &str, scheme: Scheme, check: impl FnOnce(&HeaderPlan, &Sender<'_>) -> T) -> T {
        let address = IpAddr::from([192, 0, 2, 9]);
        let peer_text = HeaderValue::from_static("192.0.2.9");
        let host = host_of(host);
        let sender =
            Sender { peer: address, peer_text: &peer_text, client: address, trusted: false, scheme, host: &host };
        check(&HeaderPlan::compile(&rewriting()), &sender)
    }

    fn text(value: Option<&HeaderValue>) -> Option<&str> {
        value.map(|value| value.to_str().unwrap())
    }

    #[test]
    fn the_clients_own_origin_becomes_new_hosts() {
        for (sent, expected) in [
            ("https://old.example", Some("https://new.example")),
            ("HTTPS://OLD.example:443", Some("https://new.example")),
            ("https://old.example/", Some("https://new.example/")),
            (
                "https://old.example/page?u=https://old.example/",
                Some("https://new.example/page?u=https://old.example/"),
            ),
            ("https://old.example?x", Some("https://new.example?x")),
            ("http://old.example", None),
            ("https://old.example:8443", None),
            ("https://third.test/?u=https://old.example/", None),
            ("https://old.example.evil.test/", None),
            ("https://old.example@evil.test/", None),
            ("https://user@old.example/", None),
            ("https://old.example\\.evil.test/", None),
            ("https://sub.old.example", None),
            ("//old.example", None),
            ("old.example", None),
            ("null", None),
            ("", None),
        ] {
            with("Old.example", Scheme::Https, |plan, sender| {
                let mapped = to_new(&HeaderValue::from_static(sent), plan, sender);
                assert_eq!(text(mapped.as_ref()), expected, "{sent}");
            });
        }
    }

    #[test]
    fn a_try_on_old_after_one_on_new_gets_what_the_client_sent() {
        with("old.example:8000", Scheme::Http, |plan, sender| {
            let (mut head, ()) = Request::builder()
                .header("origin", "http://OLD.example:8000")
                .header("referer", "https://new.example/already")
                .body(())
                .unwrap()
                .into_parts();
            for (cluster, origin) in [
                (Cluster::Old, "http://OLD.example:8000"),
                (Cluster::New, "https://new.example"),
                (Cluster::New, "https://new.example"),
                (Cluster::Old, "http://OLD.example:8000"),
                (Cluster::New, "https://new.example"),
            ] {
                address(&mut head, plan, sender, cluster);
                assert_eq!(text(head.headers.get("origin")), Some(origin), "{cluster:?}");
                assert_eq!(text(head.headers.get("referer")), Some("https://new.example/already"));
            }
        });
    }

    #[test]
    fn what_the_operator_sets_stays() {
        let mut service = rewriting();
        let fixed = Template(vec![TemplatePart::Text("https://old.example".into())]);
        service.headers.request.set.push((ORIGIN, fixed));

        assert_eq!(HeaderPlan::compile(&service).origin_fields, [REFERER]);
    }

    #[test]
    fn an_allowed_origin_is_mapped_as_a_whole() {
        for (sent, expected) in [
            ("https://new.example", Some("http://old.example:8000")),
            ("https://NEW.example:443", Some("http://old.example:8000")),
            ("https://new.example/", None),
            ("//new.example", None),
            ("https://other.example", None),
            ("*", None),
            ("null", None),
        ] {
            with("old.example:8000", Scheme::Http, |plan, sender| {
                let mapped = allowed_origin(&HeaderValue::from_static(sent), plan, sender);
                assert_eq!(text(mapped.as_ref()), expected, "{sent}");
            });
        }
    }

    #[test]
    fn targets_of_links_are_mapped_and_their_parameters_stay() {
        for (sent, expected) in [
            ("<https://new.example/n>; rel=next", Some("<https://old.example/n>; rel=next")),
            (
                "</a>; rel=x, <//new.example>; rel=y,<https://new.example/?u=https://new.example/>",
                Some("</a>; rel=x, <//old.example>; rel=y,<https://old.example/?u=https://new.example/>"),
            ),
            (r#"</a>; title="<https://new.example/> \" <https://new.example/>"; rel=x"#, None),
            ("<https://other.example/>; anchor=\"https://new.example/\"", None),
            ("<https://new.example/", None),
            ("\"<https://new.example/>", None),
            ("https://new.example/", None),
        ] {
            with("old.example", Scheme::Https, |plan, sender| {
                let mapped = link(&HeaderValue::from_static(sent), plan, sender);
                assert_eq!(text(mapped.as_ref()), expected, "{sent}");
            });
        }
    }

    #[test]
    fn sources_of_policies_are_mapped() {
        for (sent, expected) in [
            (
                "default-src 'self' https://new.example; img-src *.new.example data:",
                Some("default-src 'self' https://old.example:8443; img-src *.new.example data:"),
            ),
            (
                "connect-src wss://new.example new.example:443 new.example/api,script-src http://new.example",
                Some(
                    "connect-src wss://old.example:8443 old.example:8443 old.example:8443/api,script-src https://old.example:8443",
                ),
            ),
            (
                "report-uri https://new.example/csp?u=https://new.example",
                Some("report-uri https://old.example:8443/csp?u=https://new.example"),
            ),
            (
                "img-src new.example:* https://new.example:*/a wss://NEW.example:* new.example:*x other.example:*",
                Some(
                    "img-src old.example:* https://old.example:*/a wss://old.example:* new.example:*x other.example:*",
                ),
            ),
            ("default-src https://other.example xnew.example new.example.evil.test wss://other.example", None),
            ("default-src 'none'", None),
            ("", None),
        ] {
            with("old.example:8443", Scheme::Https, |plan, sender| {
                let mapped = policy(&HeaderValue::from_static(sent), plan, sender);
                assert_eq!(text(mapped.as_ref()), expected, "{sent}");
            });
        }
    }

    #[test]
    fn a_plain_clients_sockets_are_plain() {
        with("old.example", Scheme::Http, |plan, sender| {
            let mapped = policy(&HeaderValue::from_static("connect-src wss://new.example"), plan, sender);
            assert_eq!(mapped.unwrap(), "connect-src ws://old.example");
        });
    }

    proptest! {
        #[test]
        fn any_value_is_taken(text in "([;:=/,. <>\\\\\"']|new.example|old.example|https://|wss://|\\PC){0,12}") {
            if let Ok(value) = HeaderValue::from_str(&text) {
                with("old.example", Scheme::Https, |plan, sender| {
                    let _ = to_new(&value, plan, sender);
                    let _ = allowed_origin(&value, plan, sender);
                    let _ = link(&value, plan, sender);
                    let _ = policy(&value, plan, sender);
                });
            }
        }
    }
}

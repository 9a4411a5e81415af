//! Maps URLs and cookies of answers of new back to the host that the client used.

use http::Uri;
use http::header::HeaderValue;

use super::sender::{Scheme, Sender};
use crate::routing::header_plan::HeaderPlan;

/// The value of Location or Content-Location as the client must see it; `None`: it stays.
pub fn location(value: &HeaderValue, plan: &HeaderPlan, sender: &Sender<'_>) -> Option<HeaderValue> {
    joined(value, b"", value.as_bytes(), b"", plan, sender)
}

/// The value of Refresh (`5; url=https://…`) as the client must see it; `None`: it stays.
pub fn refresh(value: &HeaderValue, plan: &HeaderPlan, sender: &Sender<'_>) -> Option<HeaderValue> {
    let text = value.as_bytes();
    let separator = text.iter().position(|byte| matches!(byte, b';' | b','))?;
    let mut start = separator + 1;
    start += white_space(&text[start..]);
    start += url_keyword(&text[start..]);
    let quote = text.get(start).copied().filter(|byte| matches!(byte, b'"' | b'\''));
    start += usize::from(quote.is_some());
    let end = match quote {
        Some(quote) => start + text[start..].iter().position(|byte| *byte == quote)?,
        None => text.len(),
    };
    joined(value, &text[..start], &text[start..end], &text[end..], plan, sender)
}

/// Length of `url =` and the white space behind it, which browsers do not insist on.
fn url_keyword(text: &[u8]) -> usize {
    let Some(after) = strip_prefix_ignoring_case(text, b"url") else { return 0 };
    let Some(value) = after.trim_ascii_start().strip_prefix(b"=") else { return 0 };
    text.len() - value.trim_ascii_start().len()
}

fn white_space(text: &[u8]) -> usize {
    text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// `before`, the mapped `url` and `after` as a value like `original`; `None` when the URL is not new's.
fn joined(
    original: &HeaderValue,
    before: &[u8],
    url: &[u8],
    after: &[u8],
    plan: &HeaderPlan,
    sender: &Sender<'_>,
) -> Option<HeaderValue> {
    let (has_scheme, rest) = split_new(url, plan)?;
    let mut bytes = Vec::with_capacity(before.len() + 8 + sender.host.value().len() + rest.len() + after.len());
    bytes.extend_from_slice(before);
    push_client(&mut bytes, has_scheme, sender);
    bytes.extend_from_slice(rest);
    bytes.extend_from_slice(after);
    like(original, bytes)
}

/// The client's host as the start of a URL, with its scheme where there was one.
pub(super) fn push_client(bytes: &mut Vec<u8>, has_scheme: bool, sender: &Sender<'_>) {
    if has_scheme {
        bytes.extend_from_slice(sender.scheme.as_str().as_bytes());
        bytes.push(b':');
    }
    bytes.extend_from_slice(b"//");
    bytes.extend_from_slice(sender.host.value().as_bytes());
}

/// A value that is as sensitive as the one it replaces.
pub(super) fn like(original: &HeaderValue, bytes: Vec<u8>) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(bytes).ok()?;
    value.set_sensitive(original.is_sensitive());
    Some(value)
}

/// Whether the URL names a scheme, and what follows its authority, provided that this is new_host's.
pub(super) fn split_new<'a>(url: &'a [u8], plan: &HeaderPlan) -> Option<(bool, &'a [u8])> {
    let (has_scheme, scheme, after) = if let Some(after) = strip_prefix_ignoring_case(url, b"https://") {
        (true, Scheme::Https, after)
    } else if let Some(after) = strip_prefix_ignoring_case(url, b"http://") {
        (true, Scheme::Http, after)
    } else {
        (false, if plan.new_is_tls { Scheme::Https } else { Scheme::Http }, url.strip_prefix(b"//")?)
    };
    Some((has_scheme, after_new(after, scheme, plan)?))
}

/// What follows new_host's authority in a text that begins with it. `scheme` tells its default port.
pub(super) fn after_new<'a>(text: &'a [u8], scheme: Scheme, plan: &HeaderPlan) -> Option<&'a [u8]> {
    let rest = strip_prefix_ignoring_case(text, plan.new_host.as_bytes())?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (port, rest) = rest.split_at(end);
    let is_ours = match port {
        [] | [b':'] => true,
        [b':', digits @ ..] => is_port(digits, plan.new_port) || is_port(digits, scheme.default_port()),
        _ => false,
    };
    is_ours.then_some(rest)
}

fn is_port(digits: &[u8], port: u16) -> bool {
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    digits.iter().all(u8::is_ascii_digit) && number == Some(port)
}

pub(super) fn strip_prefix_ignoring_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// What became of the Domain of a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cookie {
    /// Nothing to change.
    Same,
    /// It named new_host and names the client's host now.
    Mapped(HeaderValue),
    /// It named a parent of new_host and is gone.
    Dropped(HeaderValue),
}

/// Maps the Domain of one Set-Cookie field; everything else stays byte for byte. Cookies whose name starts with
/// `__Host-` have no Domain by definition and are not touched.
pub fn cookie(value: &HeaderValue, plan: &HeaderPlan, sender: &Sender<'_>) -> Cookie {
    let text = value.as_bytes();
    if strip_prefix_ignoring_case(text.trim_ascii_start(), b"__host-").is_some() {
        return Cookie::Same;
    }
    let mut bytes: Option<Vec<u8>> = None;
    let mut dropped = false;
    let mut kept_until = 0;
    let mut start = text.iter().position(|byte| *byte == b';');
    while let Some(semicolon) = start {
        let end = text[semicolon + 1..].iter().position(|byte| *byte == b';').map(|at| semicolon + 1 + at);
        let attribute = semicolon + 1..end.unwrap_or(text.len());
        start = end;
        let Some(domain) = domain(text, attribute.clone()) else { continue };
        if text[domain.clone()].eq_ignore_ascii_case(plan.new_host.as_bytes()) {
            let bytes = bytes.get_or_insert_with(|| Vec::with_capacity(text.len() + 64));
            bytes.extend_from_slice(&text[kept_until..domain.start]);
            bytes.extend_from_slice(sender.host.name().as_bytes());
            kept_until = domain.end;
        } else if is_parent(&text[domain], plan.new_host.as_bytes()) {
            let bytes = bytes.get_or_insert_with(|| Vec::with_capacity(text.len()));
            bytes.extend_from_slice(&text[kept_until..semicolon]);
            kept_until = attribute.end;
            dropped = true;
        }
    }
    let Some(mut bytes) = bytes else { return Cookie::Same };
    bytes.extend_from_slice(&text[kept_until..]);
    match like(value, bytes) {
        Some(value) if dropped => Cookie::Dropped(value),
        Some(value) => Cookie::Mapped(value),
        None => Cookie::Same,
    }
}

/// Where the domain stands, without white space and leading dot, if this attribute is Domain.
fn domain(text: &[u8], attribute: std::ops::Range<usize>) -> Option<std::ops::Range<usize>> {
    let equals = attribute.start + text[attribute.clone()].iter().position(|byte| *byte == b'=')?;
    if !text[attribute.start..equals].trim_ascii().eq_ignore_ascii_case(b"domain") {
        return None;
    }
    let mut start = equals + 1 + white_space(&text[equals + 1..attribute.end]);
    let end = start + text[start..attribute.end].trim_ascii_end().len();
    start += usize::from(text[start..end].starts_with(b"."));
    (start < end).then_some(start..end)
}

fn is_parent(domain: &[u8], name: &[u8]) -> bool {
    let Some(dot) = name.len().checked_sub(domain.len() + 1) else { return false };
    name[dot] == b'.' && name[dot + 1..].eq_ignore_ascii_case(domain)
}

/// The Location of a redirect to new, path and query kept; `None` when the target is `*` or an authority.
pub fn redirect(plan: &HeaderPlan, uri: &Uri) -> Option<HeaderValue> {
    let path = uri.path();
    if !path.starts_with('/') {
        return None;
    }
    let query = uri.query();
    let mut bytes = Vec::with_capacity(plan.redirect_origin.len() + path.len() + 1 + query.map_or(0, str::len));
    bytes.extend_from_slice(plan.redirect_origin.as_bytes());
    bytes.extend_from_slice(path.as_bytes());
    if let Some(query) = query {
        bytes.push(b'?');
        bytes.extend_from_slice(query.as_bytes());
    }
    HeaderValue::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Authority;
    use crate::proxy::sender::tests::host_of;
    use crate::routing::header_plan::tests::service;

    fn with<T>(host: &str, scheme: Scheme, port: u16, check: impl FnOnce(&HeaderPlan, &Sender<'_>) -> T) -> T {
        let mut service = service();
        service.new_backend = Authority::new("192.0.2.1", port);
        let address = IpAddr::from([192, 0, 2, 9]);
        let peer_text = HeaderValue::from_static("192.0.2.9");
        let host = host_of(host);
        let sender =
            Sender { peer: address, peer_text: &peer_text, client: address, trusted: false, scheme, host: &host };
        check(&HeaderPlan::compile(&service), &sender)
    }

    #[test]
    fn urls_of_new_host_become_the_clients() {
        for (sent, expected) in [
            ("https://new.example/a?b#c", Some("http://Old.example:8000/a?b#c")),
            ("HTTP://NEW.example/", Some("http://Old.example:8000/")),
            ("https://new.example", Some("http://Old.example:8000")),
            ("https://new.example?q", Some("http://Old.example:8000?q")),
            ("https://new.example#f", Some("http://Old.example:8000#f")),
            ("https://new.example:443/", Some("http://Old.example:8000/")),
            ("https://new.example:0443/", Some("http://Old.example:8000/")),
            ("http://new.example:80/", Some("http://Old.example:8000/")),
            ("http://new.example:8443/", Some("http://Old.example:8000/")),
            ("https://new.example:/", Some("http://Old.example:8000/")),
            ("//new.example/x", Some("//Old.example:8000/x")),
            ("//new.example:443/x", Some("//Old.example:8000/x")),
            ("//new.example:8443", Some("//Old.example:8000")),
            ("//new.example:80/x", None),
            ("https://new.example:80/", None),
            ("http://new.example:443/", None),
            ("https://new.example:99999/", None),
            ("https://new.example:+443/", None),
            ("https://new.example:443x/", None),
            ("https://new.example.evil.test/", None),
            ("https://new.example@evil.test/", None),
            ("https://user@new.example/", None),
            ("https://new.example\\@evil.test/", None),
            ("https://xnew.example/", None),
            ("https://sub.new.example/", None),
            ("https://other.example/?u=https://new.example/", None),
            ("wss://new.example/", None),
            ("https:/new.example/", None),
            ("/new.example/", None),
            ("new.example/", None),
            ("?https://new.example/", None),
            ("", None),
        ] {
            with("Old.example:8000", Scheme::Http, 8443, |plan, sender| {
                let mapped = location(&HeaderValue::from_static(sent), plan, sender);
                assert_eq!(mapped.as_ref().map(|value| value.to_str().unwrap()), expected, "{sent}");
            });
        }
    }

    #[test]
    fn the_scheme_becomes_the_clients() {
        with("old.example", Scheme::Https, 443, |plan, sender| {
            let mapped = location(&HeaderValue::from_static("http://new.example/"), plan, sender);
            assert_eq!(mapped.unwrap(), "https://old.example/");
        });
    }

    #[test]
    fn refresh_is_mapped_inside_its_value() {
        for (sent, expected) in [
            ("5; url=https://new.example/x", Some("5; url=https://old.example/x")),
            ("0;URL = 'https://new.example/x'; y", Some("0;URL = 'https://old.example/x'; y")),
            ("0, url=\"//new.example/\"", Some("0, url=\"//old.example/\"")),
            ("0;https://new.example/", Some("0;https://old.example/")),
            ("5", None),
            ("5;", None),
            ("5; url", None),
            ("5; url=", None),
            ("5; url='https://new.example/", None),
            ("5; url=/x", None),
            ("5; uri=https://new.example/", None),
        ] {
            with("old.example", Scheme::Https, 443, |plan, sender| {
                let mapped = refresh(&HeaderValue::from_static(sent), plan, sender);
                assert_eq!(mapped.as_ref().map(|value| value.to_str().unwrap()), expected, "{sent}");
            });
        }
    }

    #[test]
    fn cookie_domains_are_mapped_or_dropped_and_the_rest_stays_byte_for_byte() {
        let mapped = |text| Cookie::Mapped(HeaderValue::from_static(text));
        let dropped = |text| Cookie::Dropped(HeaderValue::from_static(text));
        for (sent, expected) in [
            ("a=b; Path=/; Domain=new.example; Secure", mapped("a=b; Path=/; Domain=old.example; Secure")),
            ("a=b;domain=.NEW.example", mapped("a=b;domain=.old.example")),
            ("a=b ;  DOMAIN =  new.example  ;x", mapped("a=b ;  DOMAIN =  old.example  ;x")),
            ("a=b; Domain=example; Path=/", dropped("a=b; Path=/")),
            ("a=b; Path=/; Domain=.example", dropped("a=b; Path=/")),
            ("a=b; Domain=example; Domain=new.example", dropped("a=b; Domain=old.example")),
            ("a=b; Domain=new.example; Domain=new.example", mapped("a=b; Domain=old.example; Domain=old.example")),
            ("a=b; Domain=other.example", Cookie::Same),
            ("a=b; Domain=sub.new.example", Cookie::Same),
            ("a=b; Domain=xample", Cookie::Same),
            ("a=b; Domain=", Cookie::Same),
            ("a=b; Domain=.", Cookie::Same),
            ("a=b; Domain", Cookie::Same),
            ("a=b; Domains=new.example", Cookie::Same),
            ("a=b; X=Domain=new.example", Cookie::Same),
            ("Domain=new.example", Cookie::Same),
            ("a=Domain=new.example; Path=/", Cookie::Same),
            ("__Host-a=b; Domain=new.example", Cookie::Same),
            ("__host-a=b; Domain=new.example", Cookie::Same),
            ("__Secure-a=b; Domain=new.example", mapped("__Secure-a=b; Domain=old.example")),
            ("", Cookie::Same),
            (";", Cookie::Same),
            (";;Domain=new.example;", mapped(";;Domain=old.example;")),
        ] {
            with("Old.example:8000", Scheme::Http, 443, |plan, sender| {
                assert_eq!(cookie(&HeaderValue::from_static(sent), plan, sender), expected, "{sent}");
            });
        }
    }

    #[test]
    fn bytes_beyond_ascii_and_sensitivity_survive_an_edit() {
        with("old.example", Scheme::Http, 443, |plan, sender| {
            let mut value = HeaderValue::from_bytes(b"a=\xff\xe9; Domain=new.example").unwrap();
            value.set_sensitive(true);
            let Cookie::Mapped(mapped) = cookie(&value, plan, sender) else { panic!("not mapped") };
            assert_eq!(mapped.as_bytes(), b"a=\xff\xe9; Domain=old.example");
            assert!(mapped.is_sensitive());
        });
    }

    #[test]
    fn redirects_keep_path_and_query() {
        for (target, expected) in [
            ("/a%20b//c?x=1&y=%2F&z", Some("https://new.example/a%20b//c?x=1&y=%2F&z")),
            ("https://old.example/x", Some("https://new.example/x")),
            ("https://old.example", Some("https://new.example/")),
            ("/?", Some("https://new.example/?")),
            ("*", None),
            ("old.example:443", None),
        ] {
            with("old.example", Scheme::Http, 8443, |plan, _| {
                let location = redirect(plan, &target.parse().unwrap());
                assert_eq!(location.as_ref().map(|value| value.to_str().unwrap()), expected, "{target}");
            });
        }
    }

    proptest! {
        #[test]
        fn any_value_is_taken(text in "([;:=/,. \"']|new.example|url|https://|domain|\\PC){0,12}") {
            if let Ok(value) = HeaderValue::from_str(&text) {
                with("old.example", Scheme::Http, 443, |plan, sender| {
                    let _ = location(&value, plan, sender);
                    let _ = refresh(&value, plan, sender);
                    let _ = cookie(&value, plan, sender);
                });
            }
        }
    }
}

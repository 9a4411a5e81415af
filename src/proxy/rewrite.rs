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
    let keyword = text.get(start..start + 3)?;
    if !keyword.eq_ignore_ascii_case(b"url") {
        return None;
    }
    start += 3;
    start += white_space(&text[start..]);
    if text.get(start) != Some(&b'=') {
        return None;
    }
    start += 1;
    start += white_space(&text[start..]);
    let quote = text.get(start).copied().filter(|byte| matches!(byte, b'"' | b'\''));
    start += usize::from(quote.is_some());
    let end = match quote {
        Some(quote) => start + text[start..].iter().position(|byte| *byte == quote)?,
        None => text.len(),
    };
    joined(value, &text[..start], &text[start..end], &text[end..], plan, sender)
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
    let host = sender.host.value().as_bytes();
    let mut bytes = Vec::with_capacity(before.len() + 8 + host.len() + rest.len() + after.len());
    bytes.extend_from_slice(before);
    if has_scheme {
        bytes.extend_from_slice(sender.scheme.as_str().as_bytes());
        bytes.push(b':');
    }
    bytes.extend_from_slice(b"//");
    bytes.extend_from_slice(host);
    bytes.extend_from_slice(rest);
    bytes.extend_from_slice(after);
    like(original, bytes)
}

/// A value that is as sensitive as the one it replaces.
fn like(original: &HeaderValue, bytes: Vec<u8>) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(bytes).ok()?;
    value.set_sensitive(original.is_sensitive());
    Some(value)
}

/// Whether the URL names a scheme, and what follows its authority, provided that this is new_host's.
fn split_new<'a>(url: &'a [u8], plan: &HeaderPlan) -> Option<(bool, &'a [u8])> {
    let (has_scheme, scheme, after) = if let Some(after) = strip_prefix_ignoring_case(url, b"https://") {
        (true, Scheme::Https, after)
    } else if let Some(after) = strip_prefix_ignoring_case(url, b"http://") {
        (true, Scheme::Http, after)
    } else {
        (false, if plan.new_is_tls { Scheme::Https } else { Scheme::Http }, url.strip_prefix(b"//")?)
    };
    let rest = strip_prefix_ignoring_case(after, plan.new_host.as_bytes())?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (port, rest) = rest.split_at(end);
    let is_ours = match port {
        [] | [b':'] => true,
        [b':', digits @ ..] => is_port(digits, plan.new_port) || is_port(digits, scheme.default_port()),
        _ => false,
    };
    is_ours.then_some((has_scheme, rest))
}

fn is_port(digits: &[u8], port: u16) -> bool {
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    digits.iter().all(u8::is_ascii_digit) && number == Some(port)
}

fn strip_prefix_ignoring_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
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

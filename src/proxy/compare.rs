//! What differs between two answers to the same request. What differs from one answer to the next anyway, such as dates and
//! ids, is shown and marked, and makes two answers no less equal. Pure: whoever asks brings both answers.

use std::collections::{BTreeMap, BTreeSet};

use http::header::{
    AGE, ALT_SVC, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, ETAG, EXPIRES, HeaderMap, HeaderName, LAST_MODIFIED,
    SERVER, SET_COOKIE, TRANSFER_ENCODING, VARY, VIA,
};
use http::response::Parts;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// More differences of one part than this are counted.
const MOST: usize = 50;

/// Longer values are cut where they are shown.
const SHOWN: usize = 120;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `answer`, `status`, `header` or `body`.
    pub part: String,
    /// The field, or the place in the body.
    pub name: String,
    /// What old says; `None`: nothing.
    pub old: Option<String>,
    /// What new says; `None`: nothing.
    pub new: Option<String>,
    /// It differs from one answer to the next anyway, or is expected between two clusters.
    pub volatile: bool,
}

/// An answer that is compared.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Status and fields.
    pub head: &'a Parts,
    /// The body, or its beginning.
    pub body: &'a [u8],
}

impl Difference {
    fn new(part: &str, name: impl Into<String>, old: Option<String>, new: Option<String>) -> Self {
        let cut = |text: Option<String>| text.map(|text| shortened(&text));
        Self { part: part.to_owned(), name: name.into(), old: cut(old), new: cut(new), volatile: false }
    }

    /// One side has no answer at all.
    pub fn of_answers(old: String, new: String) -> Self {
        Self::new("answer", "", Some(old), Some(new))
    }

    fn marked(self, volatile: bool) -> Self {
        Self { volatile, ..self }
    }

    /// Where it is.
    pub fn place(&self) -> (&str, &str) {
        (&self.part, &self.name)
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text.to_owned(),
    }
}

/// Everything that differs. `new_host` is looked for in what new says, and `old_host` is what it should say instead;
/// `id` is the field of the request id.
pub fn compare(old: Side<'_>, new: Side<'_>, new_host: &str, old_host: &str, id: &HeaderName) -> Vec<Difference> {
    let mut found = Vec::new();
    let (before, after) = (old.head.status, new.head.status);
    if before != after {
        found.push(Difference::new("status", "", Some(before.as_str().to_owned()), Some(after.as_str().to_owned())));
    }
    headers(&old.head.headers, &new.head.headers, new_host, id, &mut found);
    body(old, new, new_host, old_host, &mut found);
    found
}

/// Fields that say nothing of the answer itself, or that the body says already.
fn is_ignored(name: &HeaderName, id: &HeaderName) -> bool {
    const IGNORED: [HeaderName; 7] = [DATE, AGE, CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH, ALT_SVC, VIA];
    const TRACES: [&str; 6] =
        ["x-request-id", "x-correlation-id", "traceparent", "tracestate", "server-timing", "keep-alive"];
    IGNORED.contains(name) || name == id || TRACES.contains(&name.as_str())
}

/// Fields that differ between clusters or moments although the answer is the same.
fn is_soft(name: &HeaderName) -> bool {
    const SOFT: [HeaderName; 4] = [SERVER, ETAG, LAST_MODIFIED, EXPIRES];
    const WORDS: [&str; 7] = ["x-powered-by", "time", "latency", "duration", "trace", "cache", "upstream"];
    SOFT.contains(name) || WORDS.iter().any(|word| name.as_str().contains(word) && name.as_str() != "cache-control")
}

fn headers(old: &HeaderMap, new: &HeaderMap, new_host: &str, id: &HeaderName, found: &mut Vec<Difference>) {
    let names: BTreeSet<&str> =
        old.keys().chain(new.keys()).filter(|name| !is_ignored(name, id)).map(HeaderName::as_str).collect();
    for name in names {
        let Ok(name) = name.parse::<HeaderName>() else { continue };
        let (before, after) = (values(old, &name), values(new, &name));
        let names = |values: &[String]| count(values.join(", ").as_bytes(), new_host) > 0;
        let names_new = names(&after) && !names(&before);
        if normal(&name, &before) == normal(&name, &after) && !names_new {
            continue;
        }
        // What a cookie holds is nobody's business.
        let shown = |value: &String| if name == SET_COOKIE { cookie_without_value(value) } else { value.clone() };
        let text =
            |values: &[String]| (!values.is_empty()).then(|| values.iter().map(shown).collect::<Vec<_>>().join(", "));
        let difference = Difference::new("header", name.as_str(), text(&before), text(&after));
        found.push(difference.marked(is_soft(&name) && !names_new));
    }
}

fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

/// What a field means, so that the order, the case and what changes every time make no difference.
fn normal(name: &HeaderName, values: &[String]) -> BTreeSet<String> {
    let members = || values.iter().flat_map(|value| value.split(',')).map(|member| member.trim().to_ascii_lowercase());
    match *name {
        SET_COOKIE => values.iter().map(|cookie| cookie_without_value(cookie)).collect(),
        ETAG => values.iter().map(|tag| tag.trim_start_matches("W/").to_owned()).collect(),
        CONTENT_TYPE => members().map(|value| value.replace([' ', '"'], "")).collect(),
        VARY => members().collect(),
        _ if name.as_str().starts_with("access-control-allow-") => members().collect(),
        _ => values.iter().map(|value| value.trim().to_owned()).collect(),
    }
}

/// The name and the attributes, without what is another every time.
fn cookie_without_value(cookie: &str) -> String {
    let mut parts = cookie.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().split('=').next().unwrap_or_default().to_owned();
    let attributes: BTreeSet<String> = parts
        .map(|attribute| match attribute.split_once('=') {
            Some((key, _)) if key.eq_ignore_ascii_case("expires") => "expires".to_owned(),
            _ => attribute.to_ascii_lowercase(),
        })
        .collect();
    std::iter::once(format!("{name}=\u{2026}")).chain(attributes).collect::<Vec<_>>().join("; ")
}

/// How often a host is named.
fn count(text: &[u8], host: &str) -> usize {
    if host.is_empty() { 0 } else { memchr::memmem::find_iter(&text.to_ascii_lowercase(), host.as_bytes()).count() }
}

fn body(old: Side<'_>, new: Side<'_>, new_host: &str, old_host: &str, found: &mut Vec<Difference>) {
    let (before, after) = (count(old.body, new_host), count(new.body, new_host));
    if after > before {
        let times = |times: usize| Some(format!("{times} times"));
        found.push(Difference::new("body", format!("names {new_host}"), times(before), times(after)));
    }
    // One cause is told once: the rest is compared as if both named the old host.
    let (old_body, new_body) = (replaced(old.body, new_host, old_host), replaced(new.body, new_host, old_host));
    if old_body == new_body {
        return;
    }
    match (serde_json::from_slice::<Value>(&old_body), serde_json::from_slice::<Value>(&new_body)) {
        (Ok(before), Ok(after)) => {
            let mut differences = Vec::new();
            values_differ("$", "", &before, &after, &mut differences);
            let more = differences.len().saturating_sub(MOST);
            differences.truncate(MOST);
            found.append(&mut differences);
            if more > 0 {
                found.push(Difference::new("body", format!("and {more} more"), None, None));
            }
        }
        _ => lines_differ(&old_body, &new_body, found),
    }
}

fn replaced(body: &[u8], new_host: &str, old_host: &str) -> Vec<u8> {
    if new_host.is_empty() {
        return body.to_vec();
    }
    let lower = body.to_ascii_lowercase();
    let (mut out, mut rest) = (Vec::with_capacity(body.len()), 0);
    for at in memchr::memmem::find_iter(&lower, new_host.as_bytes()) {
        out.extend_from_slice(&body[rest..at]);
        out.extend_from_slice(old_host.as_bytes());
        rest = at + new_host.len();
    }
    out.extend_from_slice(&body[rest..]);
    out
}

/// Structure by structure; the order of keys does not matter, that of elements does.
fn values_differ(path: &str, key: &str, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    // Far beyond what is shown nothing needs to be looked for.
    if found.len() > 20 * MOST {
        return;
    }
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let path = format!("{path}.{key}");
                match (old.get(key), new.get(key)) {
                    (Some(old), Some(new)) => values_differ(&path, key, old, new, found),
                    (old, new) => {
                        let text = |value: Option<&Value>| value.map(Value::to_string);
                        found.push(Difference::new("body", path, text(old), text(new)));
                    }
                }
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                values_differ(&format!("{path}[{index}]"), key, old, new, found);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            let length = |values: &[Value]| Some(format!("{} elements", values.len()));
            found.push(Difference::new("body", path, length(old), length(new)));
        }
        (old, new) if old == new => {}
        (old, new) => {
            let difference = Difference::new("body", path, Some(old.to_string()), Some(new.to_string()));
            found.push(difference.marked(is_volatile_pair(key, old, new)));
        }
    }
}

/// Ids, times and tokens, by their name and by their looks.
fn is_volatile_pair(key: &str, old: &Value, new: &Value) -> bool {
    const NAMES: [&str; 12] =
        ["id", "uuid", "time", "timestamp", "date", "nonce", "token", "csrf", "trace", "requestid", "hostname", "pod"];
    const ENDS: [&str; 7] = ["_at", "_time", "_ts", "At", "Time", "Timestamp", "_token"];
    let same_kind = std::mem::discriminant(old) == std::mem::discriminant(new);
    let named = NAMES.contains(&key.to_ascii_lowercase().replace(['_', '-'], "").as_str())
        || ENDS.iter().any(|end| key.ends_with(end));
    let looks = match (old, new) {
        (Value::String(old), Value::String(new)) => masked(old) == masked(new) && masked(old) != *old,
        (Value::Number(old), Value::Number(new)) => is_time(old) && is_time(new),
        _ => false,
    };
    same_kind && (looks || (named && !old.is_object() && !old.is_array()))
}

/// Seconds or milliseconds since 1970, of the present.
fn is_time(number: &serde_json::Number) -> bool {
    number.as_f64().is_some_and(|number| (1.4e9..4e9).contains(&number) || (1.4e12..4e12).contains(&number))
}

/// A text with its times and ids taken out.
fn masked(text: &str) -> String {
    use std::sync::LazyLock;
    static VOLATILE: LazyLock<Regex> = LazyLock::new(|| {
        let patterns = [
            // A time of day, perhaps with its date; RFC 3339 and HTTP.
            r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?",
            r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT",
            r"\d\d:\d\d:\d\d(\.\d+)?",
            r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
            r"\b[0-9a-fA-F]{16,}\b",
        ];
        Regex::new(&patterns.join("|")).expect("the patterns are constants, and a test compiles them")
    });
    VOLATILE.replace_all(text, "\u{2026}").into_owned()
}

/// The first lines that differ, and those that differ only in times and ids.
fn lines_differ(old: &[u8], new: &[u8], found: &mut Vec<Difference>) {
    let (Ok(old_text), Ok(new_text)) = (std::str::from_utf8(old), std::str::from_utf8(new)) else {
        let length = |body: &[u8]| Some(format!("{} bytes", body.len()));
        let at = old.iter().zip(new).position(|(old, new)| old != new).unwrap_or(old.len().min(new.len()));
        found.push(Difference::new("body", format!("byte {at}"), length(old), length(new)));
        return;
    };
    let (mut before, mut after) = (old_text.lines(), new_text.lines());
    let (mut hard, mut soft) = (0, 0);
    for number in 1_usize.. {
        let (old, new) = (before.next(), after.next());
        if old.is_none() && new.is_none() {
            break;
        }
        if old == new {
            continue;
        }
        let is_soft = matches!((old, new), (Some(old), Some(new)) if masked(old) == masked(new));
        let seen = if is_soft { &mut soft } else { &mut hard };
        *seen += 1;
        // A line that is missing puts all others out of step: the first few say enough.
        if *seen <= 3 {
            let text = |line: Option<&str>| line.map(|line| line.trim_end().to_owned());
            found.push(Difference::new("body", format!("line {number}"), text(old), text(new)).marked(is_soft));
        }
    }
    if hard > 3 {
        found.push(Difference::new("body", format!("and {} more lines", hard - 3), None, None));
    }
    if hard + soft == 0 {
        let length = |body: &[u8]| Some(format!("{} bytes", body.len()));
        found.push(Difference::new("body", "line ends", length(old), length(new)));
    }
}

/// Marks those differences that the old cluster shows against itself.
pub fn mark_own(found: &mut [Difference], of_old: &[Difference]) {
    let own: BTreeMap<(&str, &str), &Difference> = of_old.iter().map(|own| (own.place(), own)).collect();
    for difference in found.iter_mut().filter(|difference| difference.part != "status") {
        if own.contains_key(&difference.place()) {
            difference.volatile = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    const ID: HeaderName = HeaderName::from_static("x-request-id");

    fn answer(status: u16, fields: &[(&str, &str)]) -> Parts {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap().into_parts().0
    }

    fn differences(old: (&Parts, &str), new: (&Parts, &str)) -> Vec<Difference> {
        let old = Side { head: old.0, body: old.1.as_bytes() };
        let new = Side { head: new.0, body: new.1.as_bytes() };
        compare(old, new, "a.new.example", "a.old.example", &ID)
    }

    /// Part, name and mark of each difference.
    fn places(found: &[Difference]) -> Vec<(String, String, bool)> {
        found.iter().map(|found| (found.part.clone(), found.name.clone(), found.volatile)).collect()
    }

    fn place(part: &str, name: &str, volatile: bool) -> (String, String, bool) {
        (part.to_owned(), name.to_owned(), volatile)
    }

    #[test]
    fn fields_are_compared_by_what_they_mean() {
        let field = |name: &'static str, old: &'static str, new: &'static str| {
            let side =
                |value: &'static str| if value.is_empty() { answer(200, &[]) } else { answer(200, &[(name, value)]) };
            places(&differences((&side(old), ""), (&side(new), "")))
        };
        for (name, old, new, expected) in [
            ("date", "a", "b", None),
            ("x-request-id", "a", "b", None),
            ("content-length", "1", "2", None),
            ("content-type", "text/html; charset=UTF-8", "text/html;charset=utf-8", None),
            ("content-type", "text/html", "text/plain", Some(false)),
            ("vary", "Accept, Origin", "origin,accept", None),
            ("set-cookie", "s=1; Path=/; HttpOnly", "s=2; HttpOnly; Path=/", None),
            ("set-cookie", "s=1; Path=/", "s=1; Path=/; Secure", Some(false)),
            ("set-cookie", "s=1", "t=1", Some(false)),
            ("set-cookie", "s=1; Expires=a", "s=1; Expires=b", None),
            ("etag", "W/\"1\"", "\"1\"", None),
            ("etag", "\"1\"", "\"2\"", Some(true)),
            ("server", "nginx", "kong", Some(true)),
            ("x-kong-upstream-latency", "", "5", Some(true)),
            ("cache-control", "no-store", "", Some(false)),
            ("x-frame-options", "DENY", "", Some(false)),
            ("location", "https://a.old.example/", "https://a.new.example/", Some(false)),
        ] {
            let expected: Vec<_> = expected.map(|mark| place("header", name, mark)).into_iter().collect();
            assert_eq!(field(name, old, new), expected, "{name}: {old} and {new}");
        }
    }

    #[test]
    fn cookies_are_shown_without_their_value() {
        let (old, new) = (answer(200, &[]), answer(200, &[("set-cookie", "s=s3cret; Path=/")]));
        let found = differences((&old, ""), (&new, ""));
        assert_eq!(found[0].new.as_deref(), Some("s=\u{2026}; path=/"));
    }

    #[test]
    fn json_is_compared_by_structure() {
        let ok = answer(200, &[]);
        let body = |old: &str, new: &str| places(&differences((&ok, old), (&ok, new)));
        for (old, new, expected) in [
            (r#"{"a": 1, "b": [1, 2]}"#, r#"{"b":[1,2],"a":1}"#, vec![]),
            (r#"{"a": 1}"#, r#"{"a": 2}"#, vec![place("body", "$.a", false)]),
            (
                r#"{"a": {"b": [1, {"c": 1}]}}"#,
                r#"{"a": {"b": [1, {"c": "1"}]}}"#,
                vec![place("body", "$.a.b[1].c", false)],
            ),
            (r#"{"a": 1}"#, r#"{"b": 1}"#, vec![place("body", "$.a", false), place("body", "$.b", false)]),
            ("[1]", "[1, 2]", vec![place("body", "$", false)]),
            (r#"{"id": 7}"#, r#"{"id": 8}"#, vec![place("body", "$.id", true)]),
            (r#"{"id": 7}"#, r#"{"id": null}"#, vec![place("body", "$.id", false)]),
            (r#"{"created_at": "a"}"#, r#"{"created_at": "b"}"#, vec![place("body", "$.created_at", true)]),
            (r#"{"now": 1700000000}"#, r#"{"now": 1700000009}"#, vec![place("body", "$.now", true)]),
            (
                r#"{"x": "2024-01-01T12:00:00Z"}"#,
                r#"{"x": "2024-01-01T12:00:05.1+01:00"}"#,
                vec![place("body", "$.x", true)],
            ),
        ] {
            assert_eq!(body(old, new), expected, "{old} and {new}");
        }
    }

    #[test]
    fn texts_are_compared_line_by_line() {
        let ok = answer(200, &[]);
        let body = |old: &str, new: &str| places(&differences((&ok, old), (&ok, new)));
        assert_eq!(body("a\nb\n", "a\nb\n"), []);
        assert_eq!(body("a\nb", "a\nc"), [place("body", "line 2", false)]);
        assert_eq!(body("a\n", "a\nc\n"), [place("body", "line 2", false)]);
        assert_eq!(body("a\r\n", "a\n"), [place("body", "line ends", false)]);
        let (old, new) = ("at 12:00:01, id 0123456789abcdef0", "at 12:00:02, id fedcba98765432100");
        assert_eq!(body(old, new), [place("body", "line 1", true)]);
        let out_of_step = body("1\n2\n3\n4\n5\n", "0\n1\n2\n3\n4\n5\n");
        assert_eq!(out_of_step.last(), Some(&place("body", "and 3 more lines", false)));
    }

    #[test]
    fn new_host_in_a_body_is_told_once() {
        let ok = answer(200, &[]);
        let (old, new) = (
            "see http://a.old.example/x\nand http://a.old.example/y",
            "see http://A.new.example/x\nand http://a.new.example/y",
        );

        let found = differences((&ok, old), (&ok, new));

        assert_eq!(places(&found), [place("body", "names a.new.example", false)]);
        assert_eq!(found[0].new.as_deref(), Some("2 times"));
        assert_eq!(differences((&ok, new), (&ok, new)), [], "old says the same");
    }

    #[test]
    fn what_old_shows_against_itself_is_no_difference() {
        let ok = answer(200, &[]);
        let mut found = differences((&ok, r#"{"seat": 1, "price": 2}"#), (&ok, r#"{"seat": 2, "price": 3}"#));

        mark_own(&mut found, &differences((&ok, r#"{"seat": 1, "price": 2}"#), (&ok, r#"{"seat": 9, "price": 2}"#)));

        assert_eq!(places(&found), [place("body", "$.price", false), place("body", "$.seat", true)]);
    }

    #[test]
    fn statuses_and_bytes_are_compared_too() {
        let found = differences((&answer(200, &[]), ""), (&answer(404, &[]), ""));
        assert_eq!(
            (found[0].part.as_str(), found[0].old.as_deref(), found[0].new.as_deref()),
            ("status", Some("200"), Some("404"))
        );

        let ok = answer(200, &[]);
        let side = |body| Side { head: &ok, body };
        let found = compare(side(&[0xff, 1]), side(&[0xff, 2]), "n", "o", &ID);
        assert_eq!(places(&found), [place("body", "byte 1", false)]);
    }
}

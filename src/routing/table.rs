//! Hosts and what belongs to them: the exact name first, then a wildcard that stands for one label. Case, port and one
//! trailing dot are ignored.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::config::HostPattern;

/// The longest name that can match; longer ones are no host names (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;

/// Something for each host.
#[derive(Clone, Debug)]
pub struct Table<T> {
    exact: HashMap<Box<str>, T>,
    wildcard: HashMap<Box<str>, T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new() }
    }
}

impl<T> Table<T> {
    /// Puts a value under a host; gives back the value that was there before.
    pub fn insert(&mut self, host: &HostPattern, value: T) -> Option<T> {
        match host {
            HostPattern::Exact(name) => {
                let name = normalise(name).map_or_else(|| name.clone(), |name| Box::from(&*name));
                self.exact.insert(name, value)
            }
            HostPattern::Wildcard(suffix) => self.wildcard.insert(suffix.clone(), value),
        }
    }

    /// The value of the host that a client sent, if there is one.
    pub fn find(&self, host: &str) -> Option<&T> {
        self.find_name(&normalise(host)?)
    }

    /// The value of a host that is in its normal form already ([`normalise`]).
    pub fn find_name(&self, name: &str) -> Option<&T> {
        if let Some(value) = self.exact.get(name) {
            return Some(value);
        }
        let (label, suffix) = name.split_once('.')?;
        if label.is_empty() { None } else { self.wildcard.get(suffix) }
    }
}

/// A host as the table knows it: without port, brackets and one trailing dot, in lower case. Nothing is allocated when
/// it already is in lower case; `None` stands for what can be no host.
pub fn normalise(host: &str) -> Option<Cow<'_, str>> {
    let name = without_port(host)?;
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > LONGEST_NAME {
        return None;
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(Cow::Owned(name.to_ascii_lowercase()));
    }
    Some(Cow::Borrowed(name))
}

fn without_port(host: &str) -> Option<&str> {
    let (name, rest) = match host.strip_prefix('[') {
        Some(literal) => literal.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    match rest.strip_prefix(':') {
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()).then_some(name),
        None => rest.is_empty().then_some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<&'static str> {
        let mut table = Table::default();
        table.insert(&HostPattern::Wildcard("apps.example".into()), "wild");
        table.insert(&HostPattern::Exact("x.apps.example".into()), "exact");
        table.insert(&HostPattern::Exact("second.example".into()), "exact");
        table.insert(&HostPattern::Exact("[::1]".into()), "six");
        table
    }

    #[test]
    fn hosts_are_found_whatever_their_case_port_and_trailing_dot() {
        let table = table();
        for (host, expected) in [
            ("a.apps.example", Some("wild")),
            ("b-1.apps.example", Some("wild")),
            ("x.apps.example", Some("exact")),
            ("second.example", Some("exact")),
            ("A.Apps.EXAMPLE", Some("wild")),
            ("X.APPS.example:8000", Some("exact")),
            ("a.apps.example:1", Some("wild")),
            ("a.apps.example:", Some("wild")),
            ("a.apps.example.", Some("wild")),
            ("x.apps.example.:80", Some("exact")),
            ("[::1]:80", Some("six")),
            ("[::1]", Some("six")),
            ("apps.example", None),
            ("a.b.apps.example", None),
            (".apps.example", None),
            ("aapps.example", None),
            ("x.apps.example..", None),
            ("a.apps.example.evil.test", None),
            ("x.apps.example:80a", None),
            ("x.apps.example:80:80", None),
            ("[::1]80", None),
            ("[::1", None),
            ("::1", None),
            ("", None),
            (".", None),
            (":80", None),
        ] {
            assert_eq!(table.find(host).copied(), expected, "{host}");
        }
    }

    #[test]
    fn a_name_over_255_bytes_never_matches() {
        let longest = format!("{}.apps.example", "a".repeat(LONGEST_NAME - ".apps.example".len()));

        assert_eq!(table().find(&longest), Some(&"wild"));
        assert_eq!(table().find(&format!("a{longest}")), None);
    }

    #[test]
    fn a_lower_case_host_is_not_copied() {
        assert!(matches!(normalise("x.apps.example.:80"), Some(Cow::Borrowed("x.apps.example"))));
        assert!(matches!(normalise("X.apps.example"), Some(Cow::Owned(_))));
    }
}

//! `paths` and `canary`: the rules that choose a cluster before the share does.

use super::decode::Section;
use super::model::*;
use super::problem::quote;
use super::tree::Node;
use super::values::{self, Parsed, Wrong};

const TARGETS: [(&str, Cluster); 2] = [("new_cluster", Cluster::New), ("old_cluster", Cluster::Old)];

/// One entry of `paths`.
pub(super) fn path(s: &mut Section<'_, '_>) -> Option<PathRule> {
    let path = |text: &str| match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(format!("{} does not begin with /", quote(text))).help("a path begins with /")),
    };
    match one_of(s, &["prefix", "exact", "regex"])? {
        ("prefix", _) => s.required("prefix", path).map(PathRule::Prefix),
        ("exact", _) => s.required("exact", path).map(PathRule::Exact),
        (key, node) => s.decoder.regex(node, &s.path.key(key)).map(PathRule::Regex),
    }
}

/// The one key of several that is there.
fn one_of<'a>(s: &mut Section<'a, '_>, keys: &[&'static str]) -> Option<(&'static str, &'a Node)> {
    let given: Vec<_> = keys.iter().filter_map(|key| Some((*key, s.get(key)?))).collect();
    match given.as_slice() {
        [one] => Some(*one),
        [] => {
            s.lacks(&format!("one of {} is missing", keys.join(", ")));
            None
        }
        [(first, _), (second, _), ..] => {
            let wrong = Wrong::new(format!("{first} is given too")).help(format!("keep one of {}", keys.join(", ")));
            s.error(second, wrong);
            None
        }
    }
}

/// `canary`.
pub(super) fn canary(s: &mut Section<'_, '_>) -> Canary {
    Canary {
        header_rules: s.sections("header_rules", header_rule).unwrap_or_default(),
        cookie_rules: s.sections("cookie_rules", cookie_rule).unwrap_or_default(),
        ip_rules: s.sections("ip_rules", ip_rule).unwrap_or_default(),
        only_from: s.list("only_from", values::network).unwrap_or_default(),
        strip_header: s.value("strip_header", false, values::switch),
        fail_when_unavailable: s.choice("on_unavailable", false, &[("fallback", false), ("fail", true)]),
    }
}

fn header_rule(s: &mut Section<'_, '_>) -> Option<HeaderRule> {
    let header = s.required("header", values::header_name);
    let (test, target) = (value_test(s), target(s));
    Some(HeaderRule { header: header?, test: test?, target: target? })
}

fn cookie_rule(s: &mut Section<'_, '_>) -> Option<CookieRule> {
    let cookie = s.required("cookie", values::cookie_name);
    let (test, target) = (value_test(s), target(s));
    Some(CookieRule { cookie: cookie?, test: test?, target: target? })
}

fn ip_rule(s: &mut Section<'_, '_>) -> Option<IpRule> {
    let network = s.required("cidr", values::network);
    let target = target(s);
    Some(IpRule { network: network?, target: target? })
}

fn target(s: &mut Section<'_, '_>) -> Option<Cluster> {
    if s.get("target").is_none() {
        s.missing("target");
        return None;
    }
    s.choice("target", None, &TARGETS.map(|(word, cluster)| (word, Some(cluster))))
}

fn value_test(s: &mut Section<'_, '_>) -> Option<ValueTest> {
    let text = |text: &str| -> Parsed<String> { Ok(text.to_owned()) };
    match one_of(s, &["value", "values", "prefix", "regex", "present"])? {
        ("value", _) => s.required("value", text).map(|value| ValueTest::OneOf(vec![value])),
        ("values", node) => {
            let values = s.list("values", text)?;
            if values.is_empty() {
                s.decoder.problems.error(node.place, &s.path.key("values"), Wrong::new("the list is empty"));
            }
            Some(ValueTest::OneOf(values))
        }
        ("prefix", _) => s.required("prefix", text).map(ValueTest::Prefix),
        ("present", _) => match s.required("present", values::switch)? {
            true => Some(ValueTest::Present),
            false => {
                let wrong = Wrong::new("present can only be true").help("a rule cannot ask for an absent value");
                s.error("present", wrong);
                None
            }
        },
        (key, node) => s.decoder.bytes_regex(node, &s.path.key(key)).map(ValueTest::Regex),
    }
}

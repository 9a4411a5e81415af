//! The rules of one service with every name, network and expression already parsed, and the facts of a request that
//! they are compared with.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, Method};

use super::bucket::Bucket;
use super::networks::Networks;
use super::sticky::{self, FreshKey};
use crate::config::{
    Canary, Cluster, CookieRule, HeaderRule, KeyKind, KeySource, Migration, Mode, PathRule, Percent, Service, Sticky,
    Strategy, ValueTest,
};
use crate::telemetry::labels::Reason;

/// What a decision looks at. The command line can make one too.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The method.
    pub method: &'a Method,
    /// The raw bytes of the target before `?`.
    pub path: &'a str,
    /// The head as received.
    pub headers: &'a HeaderMap,
    /// The client's address after the walk over X-Forwarded-For. 0.0.0.0 is an unknown client and in no network.
    pub client: IpAddr,
}

/// Which rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleId {
    /// An entry of `canary.header_rules`.
    Header(u32),
    /// An entry of `canary.cookie_rules`.
    Cookie(u32),
    /// An entry of `canary.ip_rules`.
    Ip(u32),
}

impl RuleId {
    /// The reason of a decision by this rule.
    pub fn reason(self) -> Reason {
        match self {
            Self::Header(_) => Reason::Header,
            Self::Cookie(_) => Reason::Cookie,
            Self::Ip(_) => Reason::Ip,
        }
    }
}

/// The rule's path in the file: `canary.header_rules[0]`.
impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(index) => write!(f, "canary.header_rules[{index}]"),
            Self::Cookie(index) => write!(f, "canary.cookie_rules[{index}]"),
            Self::Ip(index) => write!(f, "canary.ip_rules[{index}]"),
        }
    }
}

/// A rule that matched and where it sends the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// The rule.
    pub rule: RuleId,
    /// Its target.
    pub target: Cluster,
}

/// The rules of one service.
#[derive(Debug)]
pub struct Rules {
    pub(super) paths: Vec<PathRule>,
    /// Those in force; an operator's change sets others than the file's.
    methods: ArcSwap<Vec<Method>>,
    pub(super) header_rules: Vec<HeaderRule>,
    pub(super) cookie_rules: Vec<CookieRule>,
    pub(super) networks: Networks,
    network_targets: Vec<Cluster>,
    only_from: Networks,
    sticky: Option<Sticky>,
    strategy: Strategy,
    fail_when_unavailable: bool,
}

impl Rules {
    /// Compiles the rules of a service.
    pub fn compile(service: &Service) -> Self {
        let mut rules = Self::new(&service.paths, &service.migration, &service.canary);
        if service.mode == Mode::Passthrough {
            rules.forget_heads();
        }
        rules
    }

    /// Keeps what can be decided without a request: rules and keys of addresses.
    fn forget_heads(&mut self) {
        self.header_rules.clear();
        self.cookie_rules.clear();
        self.sticky = self.sticky.take().and_then(|mut sticky| {
            sticky.set_cookie = None;
            sticky.by.retain(|source| source.kind == KeyKind::ClientIp);
            (!sticky.by.is_empty()).then_some(sticky)
        });
    }

    /// Compiles the rules of a service's parts.
    pub fn new(paths: &[PathRule], migration: &Migration, canary: &Canary) -> Self {
        Self {
            paths: paths.to_vec(),
            methods: ArcSwap::from_pointee(migration.methods.clone()),
            header_rules: canary.header_rules.clone(),
            cookie_rules: canary.cookie_rules.clone(),
            networks: Networks::new(canary.ip_rules.iter().map(|rule| rule.network)),
            network_targets: canary.ip_rules.iter().map(|rule| rule.target).collect(),
            only_from: Networks::new(canary.only_from.iter().copied()),
            sticky: migration.sticky.clone(),
            strategy: migration.strategy,
            fail_when_unavailable: canary.fail_when_unavailable,
        }
    }

    /// Where keys are looked for, as `Decision::key` counts them.
    pub fn key_sources(&self) -> &[KeySource] {
        self.sticky.as_ref().map_or(&[], |sticky| &sticky.by)
    }

    /// The Set-Cookie value for a key that a decision made; `secure` when the client came by https.
    pub fn set_cookie_value(&self, key: FreshKey, secure: bool) -> Option<HeaderValue> {
        sticky::set_cookie_value(self.set_cookie()?.set_cookie.as_deref()?, key, secure)
    }

    /// The share that counts: none when the strategy is rules only.
    pub fn share(&self, effective: Percent) -> Percent {
        match self.strategy {
            Strategy::Weight => effective,
            Strategy::RulesOnly => Percent::ZERO,
        }
    }

    /// Whether the share does not count.
    pub fn are_alone(&self) -> bool {
        self.strategy == Strategy::RulesOnly
    }

    /// Whether a request that a rule sends to new fails while new is unavailable.
    pub fn fail_when_unavailable(&self) -> bool {
        self.fail_when_unavailable
    }

    /// Whether the path may go to new.
    pub fn covers_path(&self, path: &str) -> bool {
        self.paths.is_empty()
            || self.paths.iter().any(|rule| match rule {
                PathRule::Prefix(prefix) => path.starts_with(prefix.as_str()),
                PathRule::Exact(exact) => path == exact,
                PathRule::Regex(regex) => regex.is_match(path),
            })
    }

    /// Whether the method may go to new by share.
    pub fn covers_method(&self, method: &Method) -> bool {
        let methods = self.methods.load();
        methods.is_empty() || methods.contains(method)
    }

    /// The methods that may go to new by share; none: all.
    pub fn methods(&self) -> Arc<Vec<Method>> {
        self.methods.load_full()
    }

    /// Other methods from now on; gives those before, if they were others.
    pub fn set_methods(&self, methods: &[Method]) -> Option<Arc<Vec<Method>>> {
        if self.methods.load().as_slice() == methods {
            return None;
        }
        Some(self.methods.swap(Arc::new(methods.to_vec())))
    }

    /// Whether the client may choose a cluster by header or cookie.
    pub fn may_choose(&self, client: IpAddr) -> bool {
        self.only_from.is_empty() || (is_known(client) && self.only_from.contains(client))
    }

    /// Whether every path may go to new.
    pub fn has_all_paths(&self) -> bool {
        self.paths.is_empty()
    }

    /// Whether headers or cookies of this client may decide.
    pub fn looks_at_headers(&self, client: IpAddr) -> bool {
        !(self.header_rules.is_empty() && self.cookie_rules.is_empty()) && self.may_choose(client)
    }

    /// The first header rule that matches.
    pub fn header_rule(&self, facts: &Facts<'_>) -> Option<Match> {
        if self.header_rules.is_empty() || !self.may_choose(facts.client) {
            return None;
        }
        let matches = |rule: &HeaderRule| {
            facts.headers.get_all(&rule.header).iter().any(|value| accepts(&rule.test, value.as_bytes()))
        };
        let (rule, index) = self.header_rules.iter().zip(0..).find(|(rule, _)| matches(rule))?;
        Some(Match { rule: RuleId::Header(index), target: rule.target })
    }

    /// The first cookie rule that matches.
    pub fn cookie_rule(&self, facts: &Facts<'_>) -> Option<Match> {
        if self.cookie_rules.is_empty() || !self.may_choose(facts.client) {
            return None;
        }
        let matches = |rule: &CookieRule| {
            sticky::cookies(facts.headers)
                .any(|cookie| cookie.name == rule.cookie.as_bytes() && accepts(&rule.test, cookie.value))
        };
        let (rule, index) = self.cookie_rules.iter().zip(0..).find(|(rule, _)| matches(rule))?;
        Some(Match { rule: RuleId::Cookie(index), target: rule.target })
    }

    /// The address rule with the longest prefix.
    pub fn ip_rule(&self, facts: &Facts<'_>) -> Option<Match> {
        if self.networks.is_empty() || !is_known(facts.client) {
            return None;
        }
        let index = self.networks.find(facts.client)?;
        let target = *self.network_targets.get(index as usize)?;
        Some(Match { rule: RuleId::Ip(index), target })
    }

    /// The request's sticky key: its source's index and its bucket.
    pub fn key(&self, facts: &Facts<'_>) -> Option<(usize, Bucket)> {
        let sticky = self.sticky.as_ref()?;
        let key = sticky::find(sticky, facts.headers, facts.client)?;
        Some((key.source, key.bucket(sticky)))
    }

    /// The sticky settings, if clients without a key are given one.
    pub(super) fn set_cookie(&self) -> Option<&Sticky> {
        self.sticky.as_ref().filter(|sticky| sticky.set_cookie.is_some())
    }
}

/// Compares a value byte for byte. Expressions were anchored when they were read.
fn accepts(test: &ValueTest, value: &[u8]) -> bool {
    match test {
        ValueTest::OneOf(values) => values.iter().any(|wanted| wanted.as_bytes() == value),
        ValueTest::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
        ValueTest::Regex(regex) => regex.is_match(value),
        ValueTest::Present => true,
    }
}

/// 0.0.0.0 stands for an address that nobody told us.
fn is_known(client: IpAddr) -> bool {
    client != IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

/// Small configurations for the tests of this folder.
#[cfg(test)]
pub(super) mod fixture {
    use http::HeaderName;

    use super::*;
    use crate::config::IpRule;

    pub(in crate::routing) fn percent(value: f64) -> Percent {
        Percent::from_basis_points((value * 100.0).round() as u16).expect("a share of at most 100")
    }

    pub(in crate::routing) fn migration() -> Migration {
        Migration {
            enabled: true,
            strategy: Strategy::Weight,
            percentage: percent(20.0),
            max_step: Percent::HUNDRED,
            methods: Vec::new(),
            sticky: None,
        }
    }

    /// `header:NAME`, `cookie:NAME`, `jwt:NAME` or `client_ip`, salted with `team`.
    pub(in crate::routing) fn sticky(by: &[&str]) -> Sticky {
        let source = |text: &&str| {
            let kind = match text.split_once(':') {
                Some(("header", name)) => KeyKind::Header(HeaderName::try_from(name).expect("a header name")),
                Some(("cookie", name)) => KeyKind::Cookie(name.to_owned()),
                Some(("jwt", name)) => KeyKind::Jwt(name.to_owned()),
                _ => KeyKind::ClientIp,
            };
            KeySource { text: (*text).to_owned(), kind }
        };
        Sticky { by: by.iter().map(source).collect(), salt: "team".to_owned(), set_cookie: None }
    }

    pub(in crate::routing) fn one_of(values: &[&str]) -> ValueTest {
        ValueTest::OneOf(values.iter().map(|value| (*value).to_owned()).collect())
    }

    /// X-Pin and the cookie `pin` with `new` or `old`; 127.9.0.0/16 to new, 127.8.0.0/16 to old.
    pub(in crate::routing) fn canary_with_rules() -> Canary {
        let both = [("new", Cluster::New), ("old", Cluster::Old)];
        let header = HeaderName::from_static("x-pin");
        let network = |text: &str| text.parse().expect("a network");
        Canary {
            header_rules: both
                .map(|(value, target)| HeaderRule { header: header.clone(), test: one_of(&[value]), target })
                .into(),
            cookie_rules: both
                .map(|(value, target)| CookieRule { cookie: "pin".to_owned(), test: one_of(&[value]), target })
                .into(),
            ip_rules: vec![
                IpRule { network: network("127.9.0.0/16"), target: Cluster::New },
                IpRule { network: network("127.8.0.0/16"), target: Cluster::Old },
            ],
            ..Canary::default()
        }
    }

    /// Names and values of header fields.
    pub(in crate::routing) type Fields<'a> = &'a [(&'a str, &'a str)];

    pub(in crate::routing) fn headers(fields: Fields<'_>) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(
                HeaderName::try_from(*name).expect("a header name"),
                HeaderValue::from_bytes(value.as_bytes()).expect("a header value"),
            );
        }
        map
    }

    /// A request of 10.0.0.1.
    pub(in crate::routing) fn facts<'a>(method: &'a Method, path: &'a str, headers: &'a HeaderMap) -> Facts<'a> {
        Facts { method, path, headers, client: IpAddr::from([10, 0, 0, 1]) }
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::fixture::{Fields, canary_with_rules, facts, headers, migration, one_of};
    use super::*;

    #[test]
    fn paths_are_compared_on_raw_bytes() {
        let paths = [
            PathRule::Prefix("/v2/".to_owned()),
            PathRule::Exact("/login".to_owned()),
            PathRule::Regex(Regex::new("^(?:/a/[0-9]+)$").expect("an expression")),
        ];
        let rules = Rules::new(&paths, &migration(), &Canary::default());

        for (path, expected) in [
            ("/v2/", true),
            ("/v2/../x", true),
            ("/v2", false),
            ("/x/v2/", false),
            ("/V2/", false),
            ("/%762/", false),
            ("//v2/", false),
            ("/login", true),
            ("/login/", false),
            ("/log%69n", false),
            ("/a/123", true),
            ("/a/12x", false),
            ("/x/a/12", false),
            ("/a%2f1", false),
        ] {
            assert_eq!(rules.covers_path(path), expected, "{path}");
        }
        assert!(Rules::new(&[], &migration(), &Canary::default()).covers_path("*"));
    }

    #[test]
    fn of_repeated_headers_any_value_matches_and_the_first_rule_wins() {
        let rules = Rules::new(&[], &migration(), &canary_with_rules());
        let first = Some(Match { rule: RuleId::Header(0), target: Cluster::New });
        let second = Some(Match { rule: RuleId::Header(1), target: Cluster::Old });

        let cases: [(Fields<'_>, Option<Match>); 6] = [
            (&[("X-PIN", "new")], first),
            (&[("x-pin", "old")], second),
            (&[("x-pin", "old"), ("x-pin", "new")], first),
            (&[("x-pin", "New")], None),
            (&[("x-pin", "new, old")], None),
            (&[], None),
        ];
        for (fields, expected) in cases {
            let headers = headers(fields);
            assert_eq!(rules.header_rule(&facts(&Method::GET, "/", &headers)), expected, "{fields:?}");
        }
    }

    #[test]
    fn cookie_rules_look_at_the_named_cookie_only() {
        let rule = |cookie: &str, test| CookieRule { cookie: cookie.to_owned(), test, target: Cluster::New };
        let digits = regex::bytes::Regex::new("^(?:[0-9]{3})$").expect("an expression");
        let cookie_rules = vec![
            rule("beta", one_of(&["yes"])),
            rule("l", one_of(&["1", "2"])),
            rule("p", ValueTest::Prefix("qa".to_owned())),
            rule("r", ValueTest::Regex(digits)),
            rule("any", ValueTest::Present),
        ];
        let rules = Rules::new(&[], &migration(), &Canary { cookie_rules, ..Canary::default() });

        let cases: [(&[&str], Option<u32>); 17] = [
            (&["beta=yes"], Some(0)),
            (&["a=1; beta=yes; b=2"], Some(0)),
            (&["a=1;beta=yes"], Some(0)),
            (&["a=1", "beta=yes"], Some(0)),
            (&["beta=no; beta=yes"], Some(0)),
            (&["beta=no"], None),
            (&["xbeta=yes"], None),
            (&["Beta=yes"], None),
            (&["a=beta=yes"], None),
            (&["l=2"], Some(1)),
            (&["l=3"], None),
            (&["p=qa77"], Some(2)),
            (&["r=123"], Some(3)),
            (&["r=1234"], None),
            (&["any=x"], Some(4)),
            (&["any="], Some(4)),
            (&["many=1; any"], None),
        ];
        for (fields, expected) in cases {
            let headers = headers(&fields.iter().map(|value| ("cookie", *value)).collect::<Vec<_>>());
            let found = rules.cookie_rule(&facts(&Method::GET, "/", &headers));
            assert_eq!(found.map(|found| found.rule), expected.map(RuleId::Cookie), "{fields:?}");
        }
    }

    #[test]
    fn only_from_limits_headers_and_cookies_but_not_addresses() {
        let only_from = vec!["10.0.0.0/24".parse().expect("a network")];
        let rules = Rules::new(&[], &migration(), &Canary { only_from, ..canary_with_rules() });
        let headers = headers(&[("x-pin", "new"), ("cookie", "pin=new")]);

        for (client, header, cookie, ip) in [
            ("10.0.0.7", true, true, false),
            ("::ffff:10.0.0.7", true, true, false),
            ("10.0.1.7", false, false, false),
            ("127.9.1.1", false, false, true),
            ("0.0.0.0", false, false, false),
        ] {
            let facts = Facts { client: client.parse().expect("an address"), ..facts(&Method::GET, "/", &headers) };
            assert_eq!(rules.header_rule(&facts).is_some(), header, "{client}");
            assert_eq!(rules.cookie_rule(&facts).is_some(), cookie, "{client}");
            assert_eq!(rules.ip_rule(&facts).is_some(), ip, "{client}");
        }
    }

    #[test]
    fn an_unknown_client_is_in_no_network() {
        let ip_rules =
            vec![crate::config::IpRule { network: "0.0.0.0/0".parse().expect("a network"), target: Cluster::New }];
        let rules = Rules::new(&[], &migration(), &Canary { ip_rules, ..Canary::default() });
        let headers = headers(&[]);
        let facts = facts(&Method::GET, "/", &headers);

        assert!(rules.ip_rule(&facts).is_some());
        assert!(rules.ip_rule(&Facts { client: IpAddr::V4(Ipv4Addr::UNSPECIFIED), ..facts }).is_none());
    }
}

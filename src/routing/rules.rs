//! The rules of one service with every name, network and expression already parsed, and the facts of a request that
//! they are compared with.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderValue, Method};

use super::bucket::Bucket;
use super::networks::Networks;
use super::sticky::{self, FreshKey};
use crate::config::{
    Cluster, CookieRule, HeaderRule, KeySource, PathRule, Percent, Service, Sticky, Strategy, ValueTest,
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
#[derive(Clone, Debug)]
pub struct Rules {
    pub(super) paths: Vec<PathRule>,
    pub(super) methods: Vec<Method>,
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
        let (migration, canary) = (&service.migration, &service.canary);
        Self {
            paths: service.paths.clone(),
            methods: migration.methods.clone(),
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
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// Whether the client may choose a cluster by header or cookie.
    pub fn may_choose(&self, client: IpAddr) -> bool {
        self.only_from.is_empty() || (is_known(client) && self.only_from.contains(client))
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

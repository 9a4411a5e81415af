//! The precedence of rules, in one function: live traffic and `explain` both run it. It reads, draws with the dice it
//! is given, and changes nothing; sending the request is what admits it to a breaker.

pub use super::bucket::Bucket;
pub use super::rules::{Facts, Match, RuleId, Rules};
pub use super::sticky::FreshKey;
pub use crate::upstream::breaker::Availability;

use crate::config::{Cluster, Percent};
use crate::telemetry::labels::Reason;

/// The switches of a service as they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// Safe mode, of everything or of this service.
    pub safe_mode: bool,
    /// `migration.enabled`.
    pub enabled: bool,
}

/// Where a request goes, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where to.
    pub cluster: Cluster,
    /// Why.
    pub reason: Reason,
    /// The rule that decided.
    pub rule: Option<RuleId>,
    /// A rule chose new: a ramp does not hold this request back.
    pub pinned: bool,
    /// Old must never answer: pinned, and `on_unavailable: fail`.
    pub keeps_to_new: bool,
    /// Answer 503 instead of forwarding: old must not answer, and new cannot.
    pub refused: bool,
    /// The bucket of the key; a draw has none.
    pub bucket: Option<Bucket>,
    /// The index of the key's source in `sticky.by`.
    pub key: Option<usize>,
    /// The key that the answer must give to the client.
    pub fresh_key: Option<FreshKey>,
}

/// What one step of a decision found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Safe mode is on or off.
    SafeMode(bool),
    /// The migration is disabled or not.
    Disabled(bool),
    /// The path may go to new.
    Path(bool),
    /// The header rule that matched.
    Header(Option<Match>),
    /// The cookie rule that matched.
    Cookie(Option<Match>),
    /// The address rule that matched.
    Ip(Option<Match>),
    /// The method may go to new.
    Method(bool),
    /// The share and what was compared with it.
    Percentage(Percent, Position),
    /// What new can take, and whether that lets this request pass.
    Availability(Availability, bool),
}

/// What is compared with the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Nothing: the share is 0 or 100.
    Unneeded,
    /// The bucket of the request's key.
    Key(Bucket),
    /// The bucket of a key that was just made.
    FreshKey(Bucket),
    /// A draw.
    Drawn(Bucket),
}

/// Listens to a decision while it is made.
pub trait Trace {
    /// One step is done.
    fn found(&mut self, finding: Finding);

    /// Dice gave this position; the decision goes on with the one that comes back.
    fn drawn(&mut self, position: Bucket) -> Bucket;
}

/// Nobody listens: live traffic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Untraced;

impl Trace for Untraced {
    #[inline]
    fn found(&mut self, _finding: Finding) {}

    #[inline]
    fn drawn(&mut self, position: Bucket) -> Bucket {
        position
    }
}

/// Decides one request. `dice` gives 128 random bits and is asked only when a draw or a fresh key is needed;
/// `availability` is asked only when the request would go to new.
pub fn decide(
    rules: &Rules,
    switches: Switches,
    share: Percent,
    availability: impl FnOnce() -> Availability,
    facts: &Facts<'_>,
    dice: impl FnMut() -> u128,
    trace: &mut impl Trace,
) -> Decision {
    decide_by_key(rules, switches, share, rules.key(facts), availability, facts, dice, trace)
}

/// The same for a request whose key, given as the index of its source and its bucket, is known already.
#[expect(clippy::too_many_arguments, reason = "they are what a decision looks at, and one of them is known")]
pub fn decide_by_key(
    rules: &Rules,
    switches: Switches,
    share: Percent,
    key: Option<(usize, Bucket)>,
    availability: impl FnOnce() -> Availability,
    facts: &Facts<'_>,
    mut dice: impl FnMut() -> u128,
    trace: &mut impl Trace,
) -> Decision {
    let share = rules.share(share);
    let choice = choose(rules, switches, share, facts, key, &mut dice, trace);
    let mut decision = choice.decision(rules, key);
    if decision.cluster == Cluster::Old {
        return decision;
    }

    let availability = availability();
    let unavailable = match availability {
        Availability::Available => None,
        Availability::Ramp(_) if choice.rule.is_some() => None,
        Availability::Ramp(reached) => {
            let position = choice.position.unwrap_or_else(|| trace.drawn(Bucket::draw(dice() as u32)));
            (!position.is_below_ramp(share, reached)).then_some(Reason::Breaker)
        }
        Availability::Open => Some(Reason::Breaker),
        Availability::Unhealthy => Some(Reason::Unhealthy),
    };
    trace.found(Finding::Availability(availability, unavailable.is_none()));
    if let Some(reason) = unavailable {
        decision.reason = reason;
        decision.refused = decision.keeps_to_new;
        decision.cluster = if decision.refused { Cluster::New } else { Cluster::Old };
    }
    decision
}

/// What the rules and the share say, before anybody asks whether new is there.
#[derive(Clone, Copy)]
struct Choice {
    cluster: Cluster,
    reason: Reason,
    rule: Option<RuleId>,
    /// The place in a ramp, if it is already known.
    position: Option<Bucket>,
    fresh_key: Option<(FreshKey, Bucket)>,
}

impl Choice {
    fn new(cluster: Cluster, reason: Reason) -> Self {
        Self { cluster, reason, rule: None, position: None, fresh_key: None }
    }

    fn by_rule(found: Match) -> Self {
        Self { rule: Some(found.rule), ..Self::new(found.target, found.rule.reason()) }
    }

    fn by_position(position: Bucket, share: Percent, reason: Reason) -> Self {
        let cluster = if position.is_below(share) { Cluster::New } else { Cluster::Old };
        Self { position: Some(position), ..Self::new(cluster, reason) }
    }

    fn decision(&self, rules: &Rules, key: Option<(usize, Bucket)>) -> Decision {
        let pinned = self.rule.is_some() && self.cluster == Cluster::New;
        let last_source = rules.key_sources().len().checked_sub(1);
        let (key, bucket) = match (key, self.fresh_key) {
            (Some((source, bucket)), _) => (Some(source), Some(bucket)),
            (None, Some((_, bucket))) => (last_source, Some(bucket)),
            (None, None) => (None, None),
        };
        Decision {
            cluster: self.cluster,
            reason: self.reason,
            rule: self.rule,
            pinned,
            keeps_to_new: pinned && rules.fail_when_unavailable(),
            refused: false,
            bucket,
            key,
            fresh_key: self.fresh_key.map(|(key, _)| key),
        }
    }
}

fn choose(
    rules: &Rules,
    switches: Switches,
    share: Percent,
    facts: &Facts<'_>,
    key: Option<(usize, Bucket)>,
    dice: &mut impl FnMut() -> u128,
    trace: &mut impl Trace,
) -> Choice {
    trace.found(Finding::SafeMode(switches.safe_mode));
    if switches.safe_mode {
        return Choice::new(Cluster::Old, Reason::SafeMode);
    }
    trace.found(Finding::Disabled(!switches.enabled));
    if !switches.enabled {
        return Choice::new(Cluster::Old, Reason::Disabled);
    }
    let path_in_scope = rules.covers_path(facts.path);
    trace.found(Finding::Path(path_in_scope));
    if !path_in_scope {
        return Choice::new(Cluster::Old, Reason::Scope);
    }

    let header = rules.header_rule(facts);
    trace.found(Finding::Header(header));
    if let Some(found) = header {
        return Choice::by_rule(found);
    }
    let cookie = rules.cookie_rule(facts);
    trace.found(Finding::Cookie(cookie));
    if let Some(found) = cookie {
        return Choice::by_rule(found);
    }
    let ip = rules.ip_rule(facts);
    trace.found(Finding::Ip(ip));
    if let Some(found) = ip {
        return Choice::by_rule(found);
    }

    // Rules come before methods: a tester can pin a POST to new while only reads move.
    let method_in_scope = rules.covers_method(facts.method);
    trace.found(Finding::Method(method_in_scope));
    if !method_in_scope {
        return Choice::new(Cluster::Old, Reason::Scope);
    }
    by_share(rules, share, key, dice, trace)
}

fn by_share(
    rules: &Rules,
    share: Percent,
    key: Option<(usize, Bucket)>,
    dice: &mut impl FnMut() -> u128,
    trace: &mut impl Trace,
) -> Choice {
    let bucket = key.map(|(_, bucket)| bucket);
    if share == Percent::ZERO || share == Percent::HUNDRED {
        trace.found(Finding::Percentage(share, Position::Unneeded));
        return match share {
            Percent::ZERO => Choice::new(Cluster::Old, Reason::Zero),
            _ => Choice { position: bucket, ..Choice::new(Cluster::New, Reason::Hundred) },
        };
    }
    if let Some(bucket) = bucket {
        trace.found(Finding::Percentage(share, Position::Key(bucket)));
        return Choice::by_position(bucket, share, Reason::User);
    }
    if let Some(sticky) = rules.set_cookie() {
        let fresh = FreshKey::new(dice());
        let bucket = trace.drawn(fresh.bucket(sticky));
        trace.found(Finding::Percentage(share, Position::FreshKey(bucket)));
        return Choice { fresh_key: Some((fresh, bucket)), ..Choice::by_position(bucket, share, Reason::User) };
    }
    let position = trace.drawn(Bucket::draw(dice() as u32));
    trace.found(Finding::Percentage(share, Position::Drawn(position)));
    Choice::by_position(position, share, Reason::Weight)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::{HeaderMap, Method};

    use super::super::rules::fixture::{canary_with_rules, facts, headers, migration, percent, sticky};
    use super::*;
    use crate::config::{Canary, Migration, PathRule, Strategy};

    const ON: Switches = Switches { safe_mode: false, enabled: true };

    fn decided(rules: &Rules, share: f64, availability: Availability, facts: &Facts<'_>) -> Decision {
        decide(rules, ON, percent(share), || availability, facts, || u128::from(u32::MAX / 2), &mut Untraced)
    }

    fn where_and_why(decision: &Decision) -> (Cluster, Reason) {
        (decision.cluster, decision.reason)
    }

    /// A key whose bucket under the salt `team` lies within the range.
    fn key_within(range: std::ops::Range<u16>) -> String {
        (0..)
            .map(|number| format!("k{number}"))
            .find(|key| range.contains(&super::super::bucket::bucket("team", key.as_bytes()).basis_points()))
            .expect("every bucket has keys")
    }

    #[test]
    fn the_order_of_decisions_is_the_documented_one() {
        // Each entry takes away what decided before it, so the next one in the order decides.
        let all = headers(&[("x-pin", "new"), ("cookie", "pin=old")]);
        let cookie = headers(&[("cookie", "pin=new")]);
        let none = HeaderMap::new();
        let rules = Rules::new(
            &[PathRule::Prefix("/v2/".to_owned())],
            &Migration { methods: vec![Method::GET], ..migration() },
            &canary_with_rules(),
        );
        let off = Switches { safe_mode: false, enabled: false };
        let (tester, stranger) = (IpAddr::from([127, 9, 0, 1]), IpAddr::from([10, 0, 0, 1]));

        for (switches, path, headers, client, method, expected) in [
            (Switches { safe_mode: true, ..off }, "/", &all, tester, Method::POST, (Cluster::Old, Reason::SafeMode)),
            (off, "/", &all, tester, Method::POST, (Cluster::Old, Reason::Disabled)),
            (ON, "/", &all, tester, Method::POST, (Cluster::Old, Reason::Scope)),
            (ON, "/v2/", &all, tester, Method::POST, (Cluster::New, Reason::Header)),
            (ON, "/v2/", &cookie, tester, Method::POST, (Cluster::New, Reason::Cookie)),
            (ON, "/v2/", &none, tester, Method::POST, (Cluster::New, Reason::Ip)),
            (ON, "/v2/", &none, stranger, Method::POST, (Cluster::Old, Reason::Scope)),
            (ON, "/v2/", &none, stranger, Method::HEAD, (Cluster::Old, Reason::Scope)),
            (ON, "/v2/", &none, stranger, Method::GET, (Cluster::New, Reason::Hundred)),
        ] {
            let facts = Facts { method: &method, path, headers, client };
            let dice = || panic!("nothing is drawn");
            let decision =
                decide(&rules, switches, percent(100.0), || Availability::Available, &facts, dice, &mut Untraced);
            assert_eq!(where_and_why(&decision), expected, "{path} {method} {client}");
        }
    }

    #[test]
    fn bucket_and_key_are_given_whoever_decided() {
        let migration = Migration { sticky: Some(sticky(&["cookie:session", "header:x-user-id"])), ..migration() };
        let rules = Rules::new(&[], &migration, &canary_with_rules());
        let fields = headers(&[("x-user-id", "user-1"), ("x-pin", "new")]);
        let plain = headers(&[("x-user-id", "user-1")]);

        for (switches, share, headers, expected) in [
            (Switches { safe_mode: true, enabled: true }, 20.0, &plain, (Cluster::Old, Reason::SafeMode)),
            (ON, 20.0, &fields, (Cluster::New, Reason::Header)),
            (ON, 0.0, &plain, (Cluster::Old, Reason::Zero)),
            (ON, 100.0, &plain, (Cluster::New, Reason::Hundred)),
            (ON, 50.17, &plain, (Cluster::Old, Reason::User)),
            (ON, 50.18, &plain, (Cluster::New, Reason::User)),
        ] {
            let facts = facts(&Method::GET, "/", headers);
            let available = || Availability::Available;
            let decision = decide(&rules, switches, percent(share), available, &facts, || 0, &mut Untraced);
            assert_eq!(where_and_why(&decision), expected, "{share}");
            assert_eq!(decision.bucket.map(|bucket| bucket.to_string()).as_deref(), Some("50.17"));
            assert_eq!(decision.key, Some(1));
        }
    }

    #[test]
    fn without_a_key_each_request_is_drawn() {
        let migration = Migration { sticky: Some(sticky(&["header:x-user-id"])), ..migration() };
        let rules = Rules::new(&[], &migration, &Canary::default());
        let none = HeaderMap::new();
        let facts = facts(&Method::GET, "/", &none);

        for (share, expected) in
            [(49.99, Cluster::Old), (50.0, Cluster::New), (0.01, Cluster::Old), (99.99, Cluster::New)]
        {
            let decision = decided(&rules, share, Availability::Available, &facts);
            assert_eq!(where_and_why(&decision), (expected, Reason::Weight), "{share}");
            assert_eq!((decision.bucket, decision.key, decision.fresh_key), (None, None, None));
        }
    }

    #[test]
    fn a_fresh_key_decides_the_request_that_gets_it() {
        let mut with_cookie = sticky(&["header:x-user-id", "cookie:ID"]);
        with_cookie.set_cookie = Some("ID".to_owned());
        let rules = Rules::new(&[], &Migration { sticky: Some(with_cookie), ..migration() }, &canary_with_rules());
        let none = HeaderMap::new();
        let dice = 0x0123_4567_89ab_cdef_0011_2233_4455_66ff_u128;

        let first = decide(
            &rules,
            ON,
            percent(50.0),
            || Availability::Available,
            &facts(&Method::GET, "/", &none),
            || dice,
            &mut Untraced,
        );
        let key = first.fresh_key.expect("a key is given");
        assert_eq!((first.reason, first.key), (Reason::User, Some(1)));

        let sent = headers(&[("cookie", "ID=0123456789abcdef00112233445566ff")]);
        let second = decided(&rules, 50.0, Availability::Available, &facts(&Method::GET, "/", &sent));
        assert_eq!((second.cluster, second.bucket, second.key), (first.cluster, first.bucket, first.key));
        assert_eq!(second.fresh_key, None);
        assert!(
            rules
                .set_cookie_value(key, true)
                .is_some_and(|value| value.as_bytes().starts_with(b"ID=0123456789abcdef0011"))
        );

        for (share, fields) in
            [(50.0, headers(&[("x-pin", "new")])), (0.0, HeaderMap::new()), (100.0, HeaderMap::new())]
        {
            let decision = decided(&rules, share, Availability::Available, &facts(&Method::GET, "/", &fields));
            assert_eq!(decision.fresh_key, None, "{share}");
        }
    }

    #[test]
    fn rules_alone_ignore_the_share() {
        let rules = Rules::new(&[], &Migration { strategy: Strategy::RulesOnly, ..migration() }, &canary_with_rules());
        let (none, pin) = (HeaderMap::new(), headers(&[("x-pin", "new")]));

        let without = decided(&rules, 100.0, Availability::Available, &facts(&Method::GET, "/", &none));
        assert_eq!(where_and_why(&without), (Cluster::Old, Reason::Zero));
        let with = decided(&rules, 0.0, Availability::Available, &facts(&Method::GET, "/", &pin));
        assert_eq!(where_and_why(&with), (Cluster::New, Reason::Header));
    }

    #[test]
    fn an_unavailable_new_sends_requests_to_old_or_refuses_the_pinned() {
        let fallback = Rules::new(&[], &migration(), &canary_with_rules());
        let fail = Rules::new(&[], &migration(), &Canary { fail_when_unavailable: true, ..canary_with_rules() });
        let (none, new, old) = (HeaderMap::new(), headers(&[("x-pin", "new")]), headers(&[("x-pin", "old")]));

        for (rules, headers, availability, expected) in [
            (&fallback, &none, Availability::Open, (Cluster::Old, Reason::Breaker, false)),
            (&fallback, &new, Availability::Open, (Cluster::Old, Reason::Breaker, false)),
            (&fallback, &new, Availability::Unhealthy, (Cluster::Old, Reason::Unhealthy, false)),
            (&fail, &none, Availability::Open, (Cluster::Old, Reason::Breaker, false)),
            (&fail, &new, Availability::Open, (Cluster::New, Reason::Breaker, true)),
            (&fail, &new, Availability::Unhealthy, (Cluster::New, Reason::Unhealthy, true)),
            (&fail, &old, Availability::Open, (Cluster::Old, Reason::Header, false)),
            (&fail, &new, Availability::Available, (Cluster::New, Reason::Header, false)),
        ] {
            let decision = decided(rules, 100.0, availability, &facts(&Method::GET, "/", headers));
            assert_eq!((decision.cluster, decision.reason, decision.refused), expected, "{availability:?}");
        }
    }

    #[test]
    fn a_ramp_lets_low_buckets_draws_and_pins_through() {
        let migration = Migration { sticky: Some(sticky(&["header:x-user-id"])), ..migration() };
        let rules = Rules::new(&[], &migration, &canary_with_rules());
        let half = Availability::Ramp(percent(50.0));
        let user = |range| headers(&[("x-user-id", &key_within(range))]);

        for (fields, share, expected) in [
            (user(0..1_000), 20.0, (Cluster::New, Reason::User)),
            (user(1_000..2_000), 20.0, (Cluster::Old, Reason::Breaker)),
            (user(2_000..10_000), 20.0, (Cluster::Old, Reason::User)),
            (user(0..5_000), 100.0, (Cluster::New, Reason::Hundred)),
            (user(5_000..10_000), 100.0, (Cluster::Old, Reason::Breaker)),
            (
                headers(&[("x-pin", "new"), ("x-user-id", &key_within(9_000..10_000))]),
                0.0,
                (Cluster::New, Reason::Header),
            ),
            // The dice of these tests stand at 49.99.
            (HeaderMap::new(), 99.0, (Cluster::Old, Reason::Breaker)),
            (HeaderMap::new(), 100.0, (Cluster::New, Reason::Hundred)),
        ] {
            let decision = decided(&rules, share, half, &facts(&Method::GET, "/", &fields));
            assert_eq!(where_and_why(&decision), expected, "{fields:?} at {share}");
        }
    }

    #[test]
    fn a_decision_stays_small() {
        assert!(size_of::<Decision>() <= 64, "{}", size_of::<Decision>());
    }
}

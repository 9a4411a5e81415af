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
    mut dice: impl FnMut() -> u128,
    trace: &mut impl Trace,
) -> Decision {
    let share = rules.share(share);
    let key = rules.key(facts);
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

//! What a file would change if it were served: the differences, hosts that would be lost, and which of the last requests
//! would move, decided again by the code that decides requests. What was never kept, values of headers, counts as unknown.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method};
use serde::Serialize;

use super::differences;
use super::keeper::Keeper;
use super::lost_hosts::{self, LostHost};
use crate::config::{self, Cluster, Config, KeyKind, Mode, Percent};
use crate::routing::decide::{Availability, Bucket, Facts, Finding, Position, Rules, Switches, Trace, decide_by_key};
use crate::routing::overrides::Overrides;
use crate::routing::service::Service;
use crate::routing::snapshot::Snapshot;
use crate::telemetry::difference::Difference;
use crate::telemetry::labels::Reason;
use crate::telemetry::recent::Recorded;

/// Draws of the same request are the same on both sides, and evenly spread over requests.
const GOLDEN: u32 = 2_654_435_769;

/// What a file would change.
#[derive(Clone, Debug)]
pub struct Preview {
    /// What it says otherwise, and which commands it would take the place of.
    pub changes: Vec<Difference>,
    /// Hosts with traffic that it does not claim.
    pub lost_hosts: Vec<LostHost>,
    /// What would become of requests.
    pub traffic: Traffic,
}

/// What would become of the last requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// All of them.
    #[serde(flatten)]
    pub all: Moves,
    /// Those of services whose requests would not all stay.
    pub services: BTreeMap<String, Moves>,
}

/// Requests that would go elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moves {
    /// How many were looked at.
    pub requests: u64,
    /// From old to new.
    pub to_new: u64,
    /// From new to old.
    pub to_old: u64,
    /// To nowhere: their host is not claimed any more.
    pub lost: u64,
    /// Decided by what is not kept.
    pub unknown: u64,
}

/// What one request would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Stays,
    To(Cluster),
    Lost,
    Unknown,
}

impl Preview {
    /// What `next` would change of what is served.
    pub fn of(current: &Snapshot, next: &Config, keeper: &Keeper, recorded: &[Recorded]) -> Self {
        let (overrides, cleared) = keeper.preview(next);
        let mut changes = differences::between(&current.config, next);
        changes.extend(cleared);
        Self {
            changes,
            lost_hosts: lost_hosts::find(current, next, Instant::now()),
            traffic: traffic(current, next, &overrides, recorded),
        }
    }
}

/// What would become of these requests.
pub fn traffic(current: &Snapshot, next: &Config, overrides: &Overrides, recorded: &[Recorded]) -> Traffic {
    let mut successions: HashMap<Arc<str>, Succession<'_>> = HashMap::new();
    let mut traffic = Traffic::default();
    for (recorded, number) in recorded.iter().zip(0_u32..) {
        let succession = successions
            .entry(recorded.service.clone())
            .or_insert_with(|| Succession::of(current, next, overrides, &recorded.service));
        let position = Bucket::draw(number.wrapping_mul(GOLDEN));
        let what = succession.what_becomes_of(recorded, position);
        traffic.all.count(what);
        traffic.services.entry(recorded.service.to_string()).or_default().count(what);
    }
    traffic.services.retain(|_, moves| moves.to_new + moves.to_old + moves.lost + moves.unknown > 0);
    traffic
}

impl Moves {
    fn count(&mut self, what: Move) {
        self.requests += 1;
        match what {
            Move::Stays => {}
            Move::To(Cluster::New) => self.to_new += 1,
            Move::To(Cluster::Old) => self.to_old += 1,
            Move::Lost => self.lost += 1,
            Move::Unknown => self.unknown += 1,
        }
    }
}

/// A service now, and what would take its place.
enum Succession<'a> {
    /// Its hosts would be nobody's.
    Ends,
    /// Its hosts would be different services', or it is gone already.
    Unclear,
    /// One service would have all its hosts.
    GoesOn(Box<Heir<'a>>),
}

struct Heir<'a> {
    before: Side<'a>,
    after: Side<'a>,
    same_header_rules: bool,
    same_keys: bool,
}

/// What decides requests.
struct Side<'a> {
    rules: RulesOf<'a>,
    switches: Switches,
    share: Percent,
}

enum RulesOf<'a> {
    Served(&'a Service),
    Compiled(Box<Rules>),
}

impl<'a> Succession<'a> {
    fn of(current: &'a Snapshot, next: &'a Config, overrides: &Overrides, name: &str) -> Self {
        let Some(service) = current.service(name) else { return Self::Unclear };
        let heirs: Vec<Option<&config::Service>> = service
            .config
            .old_host
            .iter()
            .map(|host| next.services.iter().find(|heir| heir.old_host.contains(host)))
            .collect();
        match heirs.as_slice() {
            [Some(heir), rest @ ..] if rest.iter().all(|other| other.is_some_and(|other| other.name == heir.name)) => {
                Self::GoesOn(Box::new(Heir::of(service, heir, next, overrides)))
            }
            heirs if heirs.iter().all(Option::is_none) => Self::Ends,
            // Which of its hosts a request asked for is not kept; most of them ask for those that stay.
            heirs => match heirs.iter().flatten().find(|heir| heir.name == name) {
                Some(heir) => Self::GoesOn(Box::new(Heir::of(service, heir, next, overrides))),
                None => Self::Unclear,
            },
        }
    }

    fn what_becomes_of(&self, recorded: &Recorded, position: Bucket) -> Move {
        let heir = match self {
            Self::Ends => return Move::Lost,
            Self::Unclear => return Move::Unknown,
            Self::GoesOn(heir) => heir,
        };
        let before =
            heir.before.cluster(recorded, heir.knows_headers(recorded, true), heir.key(recorded, true), position);
        let after =
            heir.after.cluster(recorded, heir.knows_headers(recorded, false), heir.key(recorded, false), position);
        match (before, after) {
            (Some(before), Some(after)) if before == after => Move::Stays,
            (Some(_), Some(after)) => Move::To(after),
            _ => Move::Unknown,
        }
    }
}

/// What is known of a request's headers and cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Headers {
    /// A rule matched and chose this cluster.
    Matched(Cluster),
    /// No rule matched.
    Unmatched,
    /// Nothing.
    Unknown,
}

/// What is known of a request's sticky key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Bucket(Bucket),
    /// There was none.
    None,
    /// It depends on what is not kept.
    Unknown,
}

impl<'a> Heir<'a> {
    fn of(service: &'a Service, heir: &config::Service, next: &Config, overrides: &Overrides) -> Self {
        let (before, after) = (&service.config, heir);
        let header_rules = |service: &config::Service| {
            let config::Canary { header_rules, cookie_rules, only_from, .. } = &service.canary;
            format!("{:?} {header_rules:?} {cookie_rules:?} {only_from:?}", service.mode == Mode::Passthrough)
        };
        let keys = |service: &config::Service| {
            format!("{:?} {:?}", service.mode == Mode::Passthrough, service.migration.sticky)
        };
        Self {
            same_header_rules: header_rules(before) == header_rules(after),
            same_keys: keys(before) == keys(after),
            before: Side {
                rules: RulesOf::Served(service),
                switches: service.switches(),
                share: service.lasting.weight.effective(),
            },
            after: Side::of(heir, next, overrides),
        }
    }

    /// What was seen of headers when the request was decided.
    fn knows_headers(&self, recorded: &Recorded, is_before: bool) -> Headers {
        if !is_before && !self.same_header_rules {
            return Headers::Unknown;
        }
        match (recorded.rule, recorded.reason) {
            // A rule chose new, and new was not there.
            (Some(Reason::Header | Reason::Cookie), Reason::Breaker | Reason::Unhealthy) => {
                Headers::Matched(Cluster::New)
            }
            (Some(Reason::Header | Reason::Cookie), _) => Headers::Matched(recorded.decided),
            (_, Reason::SafeMode | Reason::Disabled) => Headers::Unknown,
            // Paths come before headers, methods behind them.
            (None, Reason::Scope) if !self.before.rules().covers_path(recorded.path.as_str()) => Headers::Unknown,
            _ => Headers::Unmatched,
        }
    }

    fn key(&self, recorded: &Recorded, is_before: bool) -> Key {
        if is_before || self.same_keys {
            return recorded.bucket.and_then(Bucket::from_basis_points).map_or(Key::None, Key::Bucket);
        }
        let rules = self.after.rules();
        match rules.key_sources().first() {
            None => Key::None,
            Some(source) if source.kind == KeyKind::ClientIp => {
                let facts =
                    Facts { client: recorded.client, method: &Method::GET, path: "", headers: &HeaderMap::new() };
                rules.key(&facts).map_or(Key::None, |(_, bucket)| Key::Bucket(bucket))
            }
            Some(_) => Key::Unknown,
        }
    }
}

impl Side<'_> {
    fn of(service: &config::Service, config: &Config, overrides: &Overrides) -> Self {
        let own = overrides.of(&service.name);
        let rules = Rules::compile(service);
        if let Some(methods) = &own.methods {
            rules.set_methods(methods);
        }
        let safe_mode = config.safe_mode || overrides.safe_mode || service.safe_mode || own.safe_mode;
        let enabled = own.enabled.unwrap_or(service.migration.enabled);
        Self {
            rules: RulesOf::Compiled(Box::new(rules)),
            switches: Switches { safe_mode, enabled },
            share: own.percentage.unwrap_or(service.migration.percentage),
        }
    }

    fn rules(&self) -> &Rules {
        match &self.rules {
            RulesOf::Served(service) => &service.rules,
            RulesOf::Compiled(rules) => rules,
        }
    }

    /// Where the request goes while new is there; `None` when that depends on what is not kept.
    fn cluster(&self, recorded: &Recorded, knows: Headers, key: Key, position: Bucket) -> Option<Cluster> {
        let rules = self.rules();
        let no_headers = HeaderMap::new();
        let facts = Facts {
            method: recorded.method.as_ref().unwrap_or(&Method::GET),
            path: recorded.path.as_str(),
            headers: &no_headers,
            client: recorded.client,
        };
        let bucket = match key {
            Key::Bucket(bucket) => Some((0, bucket)),
            Key::None | Key::Unknown => None,
        };
        let mut steps = Steps { position, ..Steps::default() };
        let available = || Availability::Available;
        let decision = decide_by_key(rules, self.switches, self.share, bucket, available, &facts, || 0, &mut steps);
        let needs_path = steps.path && !rules.has_all_paths() && recorded.path.is_cut();
        if needs_path {
            return None;
        }
        if steps.headers && rules.looks_at_headers(recorded.client) {
            match knows {
                Headers::Matched(cluster) => return Some(cluster),
                Headers::Unknown => return None,
                Headers::Unmatched => {}
            }
        }
        let needs_method = steps.method && !rules.methods().is_empty() && recorded.method.is_none();
        if needs_method || (steps.share && key == Key::Unknown) {
            return None;
        }
        Some(decision.cluster)
    }
}

/// Which steps a decision took.
#[derive(Debug)]
struct Steps {
    position: Bucket,
    path: bool,
    headers: bool,
    method: bool,
    /// The share was compared with something.
    share: bool,
}

impl Default for Steps {
    fn default() -> Self {
        Self { position: Bucket::FIRST, path: false, headers: false, method: false, share: false }
    }
}

impl Trace for Steps {
    fn found(&mut self, finding: Finding) {
        match finding {
            Finding::Path(_) => self.path = true,
            Finding::Header(_) => self.headers = true,
            Finding::Method(_) => self.method = true,
            Finding::Percentage(_, position) => self.share = position != Position::Unneeded,
            Finding::SafeMode(_)
            | Finding::Disabled(_)
            | Finding::Cookie(_)
            | Finding::Ip(_)
            | Finding::Availability(..) => {}
        }
    }

    fn drawn(&mut self, _position: Bucket) -> Bucket {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::{Environment, Text, parse};
    use crate::control::testing::Bench;
    use crate::telemetry::labels::Target;
    use crate::telemetry::recent::PathStart;

    const TEXT: &str = "
listen: {http: ['127.0.0.1:0'], admin: '127.0.0.1:0'}
log: {access: off, audit_path: DIR/audit.log}
reload: {state_dir: DIR/state}
services:
  - name: a
    old_host: a.old.example
    old_backend: 127.0.0.1:1
    new_host: a.new.example
    canary: {header_rules: [{header: X-Pin, value: new, target: new_cluster}], only_from: [10.0.0.0/8]}
    migration: {percentage: 20, sticky: {by: ['header:X-User']}}
  - name: drawn
    old_host: d.old.example
    old_backend: 127.0.0.1:1
    new_host: d.new.example
    migration: {percentage: 20}
";

    /// A request to `a` of 192.0.2.1.
    fn request(bucket: Option<u16>) -> Recorded {
        let decided = if bucket.is_some_and(|bucket| bucket < 2_000) { Cluster::New } else { Cluster::Old };
        Recorded {
            at: Instant::now(),
            service: "a".into(),
            client: IpAddr::from([192, 0, 2, 1]),
            method: Some(Method::GET),
            path: PathStart::of("/shop"),
            decided,
            rule: None,
            bucket,
            target: Target::from(decided),
            reason: Reason::User,
            status: 200,
        }
    }

    fn moves(from: &str, to: &str, recorded: &[Recorded]) -> Moves {
        let bench = Bench::start(TEXT);
        assert!(TEXT.contains(from), "{from}");
        let text = TEXT.replace(from, to);
        let next = parse(&Text::new("x", text), &Environment::new()).unwrap_or_else(|error| panic!("{error}")).config;
        Preview::of(&bench.live.snapshot(), &next, &bench.keeper, recorded).traffic.all
    }

    const NONE: Moves = Moves { requests: 1, to_new: 0, to_old: 0, lost: 0, unknown: 0 };
    const TO_NEW: Moves = Moves { to_new: 1, ..NONE };
    const TO_OLD: Moves = Moves { to_old: 1, ..NONE };
    const UNKNOWN: Moves = Moves { unknown: 1, ..NONE };

    #[tokio::test]
    async fn requests_move_as_they_would_be_decided() {
        let known = request(Some(3_000));
        let inside = Recorded { client: IpAddr::from([10, 0, 0, 1]), ..known.clone() };
        let pinned =
            Recorded { rule: Some(Reason::Header), reason: Reason::Header, decided: Cluster::New, ..inside.clone() };
        let by_breaker = Recorded { reason: Reason::Breaker, decided: Cluster::Old, ..pinned.clone() };
        let share = |to| (("percentage: 20, sticky"), format!("percentage: {to}, sticky"));
        for ((from, to), recorded, expected) in [
            (share("20"), &known, NONE),
            (share("30.01"), &known, TO_NEW),
            (share("30"), &known, NONE),
            (share("10"), &request(Some(1_500)), TO_OLD),
            (share("100"), &known, TO_NEW),
            (share("50, enabled: false"), &request(Some(1_500)), TO_OLD),
            (share("50, methods: [POST]"), &known, NONE),
            (share("50, methods: [GET]"), &known, TO_NEW),
            (share("50, methods: [GET]"), &Recorded { method: None, ..known.clone() }, UNKNOWN),
            (share("100"), &pinned, NONE),
            (share("0"), &pinned, NONE),
            (share("0"), &by_breaker, NONE),
            (share("0, enabled: false"), &pinned, TO_OLD),
            (("value: new", "value: newer".to_owned()), &pinned, UNKNOWN),
            (("value: new", "value: newer".to_owned()), &inside, UNKNOWN),
            (("value: new", "value: newer".to_owned()), &known, NONE),
            (("    canary", "    canary".to_owned()), &inside, NONE),
            (("'header:X-User'", "'header:X-Id'".to_owned()), &known, UNKNOWN),
            (("'header:X-User'", "client_ip".to_owned()), &known, NONE),
            (("20, sticky: {by: ['header:X-User']}", "0".to_owned()), &request(Some(1_500)), TO_OLD),
            (("    canary", "    paths: [{prefix: /v2/}]\n    canary".to_owned()), &request(Some(1_500)), TO_OLD),
            (
                ("    canary", "    paths: [{prefix: /shop}]\n    canary".to_owned()),
                &Recorded { path: PathStart::of(&"/shop".repeat(99)), ..known.clone() },
                UNKNOWN,
            ),
            (("a.old.example", "z.old.example".to_owned()), &known, Moves { lost: 1, ..NONE }),
            (("name: a\n", "name: z\n    cohort: a\n".to_owned()), &known, NONE),
            // Another cohort has other buckets.
            (("name: a\n", "name: z\n".to_owned()), &known, UNKNOWN),
            (("\nservices:", "\nsafe_mode: on\nservices:".to_owned()), &request(Some(1_500)), TO_OLD),
            (("    canary", "    safe_mode: on\n    canary".to_owned()), &pinned, TO_OLD),
        ] {
            assert_eq!(moves(from, &to, std::slice::from_ref(recorded)), expected, "{to} {recorded:?}");
        }
    }

    #[tokio::test]
    async fn of_draws_the_expected_part_moves() {
        let one = Recorded { service: "drawn".into(), bucket: None, reason: Reason::Weight, ..request(None) };
        let many = vec![one; 10_000];

        let more = moves("migration: {percentage: 20}", "migration: {percentage: 50}", &many);

        assert!((2_990..=3_010).contains(&more.to_new) && more.to_old == 0 && more.unknown == 0, "{more:?}");
    }
}

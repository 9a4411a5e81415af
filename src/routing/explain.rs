//! What a request would get and why, step by step, by the function that decides requests. Outcomes are plain words for
//! somebody who was just woken up; they name fields and rules, and never show a value that the client sent.

use http::HeaderName;
use serde::{Deserialize, Serialize, Serializer};

use super::decide::{Availability, Bucket, Decision, Facts, Finding, Match, Position, Rules, Switches, Trace, decide};
use super::sticky;
use crate::config::{Cluster, Mode, Percent};
use crate::telemetry::labels::Reason;

/// More names than this are counted instead of listed.
const MOST_NAMES: usize = 5;

/// An explanation as `explain --json` and the API show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The service; `None` when no service claims the host.
    pub service: Option<String>,
    /// `new`, `old`, `draw`, or `none` when we answer ourselves.
    pub target: String,
    /// The reason in metrics and logs.
    pub reason: String,
    /// The rule that decided, as its path in the file.
    pub rule: Option<String>,
    /// The source of the sticky key, as written in the file.
    pub key: Option<String>,
    /// The key's bucket.
    #[serde(serialize_with = "short_number")]
    pub bucket: Option<f64>,
    /// The share in force.
    #[serde(serialize_with = "short_number")]
    pub percentage: Option<f64>,
    /// `proxy` or `redirect`.
    pub mode: Option<String>,
    /// The backend that would be asked; `None` for a draw and for answers of our own.
    pub upstream: Option<String>,
    /// What was looked at, in this order.
    pub steps: Vec<ExplainedStep>,
}

/// One line of an explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedStep {
    /// What was looked at.
    pub step: String,
    /// What was found.
    pub outcome: String,
}

/// What an explanation says about the service beside its rules.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The service's name.
    pub service: &'a str,
    /// How requests for new are answered.
    pub mode: Mode,
    /// The status of a redirect.
    pub redirect_code: u16,
    /// The host that a redirect names.
    pub new_host: &'a str,
    /// The backend of old as text.
    pub old_upstream: &'a str,
    /// The backend of new as text.
    pub new_upstream: &'a str,
}

impl Explanation {
    /// The explanation for a host that no service claims.
    pub fn unknown_host() -> Self {
        Self {
            service: None,
            target: "none".to_owned(),
            reason: Reason::None.as_str().to_owned(),
            rule: None,
            key: None,
            bucket: None,
            percentage: None,
            mode: None,
            upstream: None,
            steps: Vec::new(),
        }
    }
}

/// Explains what one request would get. `availability` is a reading: no probe is used up.
pub fn explain(
    about: &About<'_>,
    rules: &Rules,
    switches: Switches,
    share: Percent,
    availability: Availability,
    facts: &Facts<'_>,
) -> Explanation {
    let mut recorder = Recorder { rules, facts, drawn: false, steps: Vec::new() };
    let decision = decide(rules, switches, share, || availability, facts, || 0, &mut recorder);
    let is_draw = recorder.drawn && decision.cluster == Cluster::New;
    let mut steps = recorder.steps;
    steps.push(step("mode", mode_outcome(about, &decision, is_draw)));

    let upstream = match decision.cluster {
        _ if is_draw || decision.refused => None,
        Cluster::Old => Some(about.old_upstream),
        Cluster::New if about.mode == Mode::Redirect => None,
        Cluster::New => Some(about.new_upstream),
    };
    Explanation {
        service: Some(about.service.to_owned()),
        target: target(&decision, is_draw).to_owned(),
        reason: reason(&decision, is_draw).as_str().to_owned(),
        rule: decision.rule.map(|rule| rule.to_string()),
        key: decision.key.and_then(|key| rules.key_sources().get(key)).map(|source| source.text.clone()),
        // A key that does not exist yet has no bucket that could be told.
        bucket: decision.bucket.filter(|_| decision.fresh_key.is_none()).map(Bucket::as_f64),
        percentage: Some(share.as_f64()),
        mode: Some(mode_name(about.mode).to_owned()),
        upstream: upstream.map(str::to_owned),
        steps,
    }
}

fn target(decision: &Decision, is_draw: bool) -> &'static str {
    match decision {
        _ if is_draw => "draw",
        Decision { refused: true, .. } => "none",
        Decision { cluster, .. } => cluster.as_str(),
    }
}

/// A draw has the reason `weight`, also where it only finds the place in a ramp.
fn reason(decision: &Decision, is_draw: bool) -> Reason {
    if is_draw && decision.fresh_key.is_none() { Reason::Weight } else { decision.reason }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Proxy => "proxy",
        Mode::Redirect => "redirect",
        Mode::Passthrough => "passthrough",
    }
}

fn mode_outcome(about: &About<'_>, decision: &Decision, is_draw: bool) -> String {
    match (decision.cluster, about.mode) {
        (_, Mode::Passthrough) if is_draw => "passthrough: relayed to whichever was drawn".to_owned(),
        (_, Mode::Proxy) if is_draw => "proxy: forwarded to whichever was drawn".to_owned(),
        (_, Mode::Redirect) if is_draw => {
            format!("redirect: {} to https://{} when new was drawn", about.redirect_code, about.new_host)
        }
        (_, Mode::Passthrough) if decision.refused => "closed: on_unavailable is fail".to_owned(),
        _ if decision.refused => "answered with 503: on_unavailable is fail".to_owned(),
        (Cluster::Old, Mode::Passthrough) => format!("passthrough: relayed to {}", about.old_upstream),
        (Cluster::New, Mode::Passthrough) => format!("passthrough: relayed to {}", about.new_upstream),
        (Cluster::Old, Mode::Proxy) => format!("proxy: forwarded to {}", about.old_upstream),
        (Cluster::Old, Mode::Redirect) => format!("forwarded to {}: old is never redirected", about.old_upstream),
        (Cluster::New, Mode::Proxy) => format!("proxy: forwarded to {}", about.new_upstream),
        (Cluster::New, Mode::Redirect) => format!("redirect: {} to https://{}", about.redirect_code, about.new_host),
    }
}

/// Writes down what a decision finds. A draw goes on with the first position, the one most likely to reach new: when
/// even that does not, the answer is certain, and otherwise it is a draw.
struct Recorder<'a> {
    rules: &'a Rules,
    facts: &'a Facts<'a>,
    drawn: bool,
    steps: Vec<ExplainedStep>,
}

impl Trace for Recorder<'_> {
    fn found(&mut self, finding: Finding) {
        let (name, outcome) = match finding {
            Finding::SafeMode(on) => ("safe_mode", word(on, "on: everything goes to old", "off")),
            Finding::Disabled(disabled) => ("disabled", word(disabled, "yes: everything goes to old", "no")),
            Finding::Path(in_scope) => ("paths", self.path_outcome(in_scope)),
            Finding::Header(found) => ("header", found.map_or_else(|| self.no_header(), matched)),
            Finding::Cookie(found) => ("cookie", found.map_or_else(|| self.no_cookie(), matched)),
            Finding::Ip(found) => ("ip", found.map_or_else(|| self.no_network(), matched)),
            Finding::Method(in_scope) => ("methods", self.method_outcome(in_scope)),
            Finding::Percentage(share, position) => ("percentage", self.percentage_outcome(share, position)),
            Finding::Availability(availability, passes) => {
                ("availability", self.availability_outcome(availability, passes))
            }
        };
        self.steps.push(step(name, outcome));
    }

    fn drawn(&mut self, _position: Bucket) -> Bucket {
        self.drawn = true;
        Bucket::FIRST
    }
}

impl Recorder<'_> {
    fn path_outcome(&self, in_scope: bool) -> String {
        match (self.rules.paths.len(), in_scope) {
            (0, _) => "all paths may go to new".to_owned(),
            (_, true) => "in scope".to_owned(),
            (count, false) => {
                format!("out of scope: none of {} matches, old answers", counted(count, "entry", "entries"))
            }
        }
    }

    fn method_outcome(&self, in_scope: bool) -> String {
        let methods = self.rules.methods();
        match (methods.is_empty(), in_scope) {
            (true, _) => "all methods may go to new".to_owned(),
            (false, true) => "in scope".to_owned(),
            (false, false) => {
                let methods: Vec<&str> = methods.iter().map(http::Method::as_str).collect();
                format!("out of scope: only {} may go to new by share, old answers", methods.join(", "))
            }
        }
    }

    /// Why no header rule matched; a rule whose field is there is named, because it was nearly the one.
    fn no_header(&self) -> String {
        let rules = &self.rules.header_rules;
        if rules.is_empty() {
            return "no rules".to_owned();
        }
        if !self.rules.may_choose(self.facts.client) {
            return "not looked at: the client is not in canary.only_from".to_owned();
        }
        let nearly = rules.iter().position(|rule| self.facts.headers.contains_key(&rule.header));
        let mut names: Vec<String> = rules.iter().map(|rule| title_case(&rule.header)).collect();
        names.dedup();
        match nearly {
            Some(index) => {
                let name = title_case(&rules[index].header);
                format!("no match: {name} is there, but not with the value of canary.header_rules[{index}]")
            }
            None => format!("no match: {} absent", listed(&names)),
        }
    }

    fn no_cookie(&self) -> String {
        let rules = &self.rules.cookie_rules;
        if rules.is_empty() {
            return "no rules".to_owned();
        }
        if !self.rules.may_choose(self.facts.client) {
            return "not looked at: the client is not in canary.only_from".to_owned();
        }
        let is_sent = |name: &str| sticky::cookies(self.facts.headers).any(|cookie| cookie.name == name.as_bytes());
        let mut names: Vec<String> = rules.iter().map(|rule| rule.cookie.clone()).collect();
        names.dedup();
        match rules.iter().position(|rule| is_sent(&rule.cookie)) {
            Some(index) => {
                let name = &rules[index].cookie;
                format!("no match: {name} is there, but not with the value of canary.cookie_rules[{index}]")
            }
            None => format!("no match: {} absent", listed(&names)),
        }
    }

    fn no_network(&self) -> String {
        match self.rules.networks.len() {
            0 => "no rules".to_owned(),
            count => format!("no match: the client is in none of {}", counted(count, "network", "networks")),
        }
    }

    fn percentage_outcome(&self, share: Percent, position: Position) -> String {
        match position {
            Position::Unneeded if self.rules.are_alone() => "the strategy uses rules only: old answers".to_owned(),
            Position::Unneeded if share == Percent::ZERO => "0 %: old answers".to_owned(),
            Position::Unneeded => "100 %: new answers".to_owned(),
            Position::Key(bucket) if bucket.is_below(share) => format!("{bucket} < {share}"),
            Position::Key(bucket) => format!("{bucket} is not below {share}"),
            Position::FreshKey(_) => format!("no key: a new one is given, {share} % of them go to new"),
            Position::Drawn(_) => format!("no key: {share} % of such requests are drawn for new"),
        }
    }

    fn availability_outcome(&self, availability: Availability, passes: bool) -> String {
        let end = match (passes, self.rules.fail_when_unavailable()) {
            (true, _) => "",
            (false, false) => ": old answers",
            (false, true) => ": old answers, or nobody when a rule chose new",
        };
        match availability {
            Availability::Available => "new is available".to_owned(),
            Availability::Ramp(reached) if passes => format!("new recovers: {reached} % of its share is back"),
            Availability::Ramp(reached) => format!("new recovers: only {reached} % of its share is back{end}"),
            Availability::Open => format!("the breaker is open{end}"),
            Availability::Unhealthy => format!("the health check fails{end}"),
        }
    }
}

fn step(name: &str, outcome: String) -> ExplainedStep {
    ExplainedStep { step: name.to_owned(), outcome }
}

fn word(which: bool, yes: &str, no: &str) -> String {
    if which { yes } else { no }.to_owned()
}

fn matched(found: Match) -> String {
    format!("{} matches: {}", found.rule, found.target.as_str())
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(MOST_NAMES)].join(", ");
    match names.len().checked_sub(MOST_NAMES) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// `X-Migration-Target`, as people write names.
fn title_case(name: &HeaderName) -> String {
    let part = |part: &str| part[..part.len().min(1)].to_ascii_uppercase() + part.get(1..).unwrap_or_default();
    name.as_str().split('-').map(part).collect::<Vec<_>>().join("-")
}

/// 20 instead of 20.0.
fn short_number<S: Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match number {
        None => serializer.serialize_none(),
        Some(number) if number.fract() == 0.0 => serializer.serialize_i64(*number as i64),
        Some(number) => serializer.serialize_f64(*number),
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::super::rules::fixture::{canary_with_rules, facts, headers, migration, percent, sticky};
    use super::*;
    use crate::config::{Canary, Migration};

    const ON: Switches = Switches { safe_mode: false, enabled: true };

    const ABOUT: About<'static> = About {
        service: "api",
        mode: Mode::Proxy,
        redirect_code: 307,
        new_host: "api.new.example",
        old_upstream: "api.old.svc:80",
        new_upstream: "api.new.example:443",
    };

    fn explained(rules: &Rules, about: &About<'_>, availability: Availability, fields: &[(&str, &str)]) -> Explanation {
        let headers = headers(fields);
        explain(about, rules, ON, percent(20.0), availability, &facts(&Method::GET, "/shop", &headers))
    }

    fn outcome<'a>(explanation: &'a Explanation, name: &str) -> &'a str {
        explanation.steps.iter().find(|step| step.step == name).map_or("", |step| step.outcome.as_str())
    }

    #[test]
    fn the_json_is_the_documented_one() {
        let migration = Migration { sticky: Some(sticky(&["header:x-user-id"])), ..migration() };
        let rules = Rules::new(&[], &migration, &Canary::default());

        let explanation = explained(&rules, &ABOUT, Availability::Available, &[("x-user-id", "user-1")]);

        assert_eq!(
            serde_json::to_value(&explanation).expect("JSON"),
            json!({
                "service": "api", "target": "old", "reason": "user", "rule": null, "key": "header:x-user-id",
                "bucket": 50.17, "percentage": 20, "mode": "proxy", "upstream": "api.old.svc:80",
                "steps": [
                    {"step": "safe_mode", "outcome": "off"},
                    {"step": "disabled", "outcome": "no"},
                    {"step": "paths", "outcome": "all paths may go to new"},
                    {"step": "header", "outcome": "no rules"},
                    {"step": "cookie", "outcome": "no rules"},
                    {"step": "ip", "outcome": "no rules"},
                    {"step": "methods", "outcome": "all methods may go to new"},
                    {"step": "percentage", "outcome": "50.17 is not below 20"},
                    {"step": "mode", "outcome": "proxy: forwarded to api.old.svc:80"},
                ],
            })
        );
        let text = serde_json::to_string(&explanation).expect("JSON");
        assert_eq!(serde_json::from_str::<Explanation>(&text).expect("an explanation"), explanation);
    }

    #[test]
    fn a_draw_is_no_target_unless_it_is_certain() {
        let rules = Rules::new(&[], &migration(), &Canary::default());

        for (availability, expected) in [
            (Availability::Available, ("draw", "weight", None)),
            (Availability::Ramp(percent(40.0)), ("draw", "weight", None)),
            (Availability::Ramp(Percent::ZERO), ("old", "breaker", Some("api.old.svc:80"))),
            (Availability::Open, ("old", "breaker", Some("api.old.svc:80"))),
            (Availability::Unhealthy, ("old", "unhealthy", Some("api.old.svc:80"))),
        ] {
            let found = explained(&rules, &ABOUT, availability, &[]);
            let found = (found.target.as_str(), found.reason.as_str(), found.upstream.as_deref());
            assert_eq!(found, expected, "{availability:?}");
        }

        let mut with_cookie = sticky(&["cookie:MIGRATION_ID"]);
        with_cookie.set_cookie = Some("MIGRATION_ID".to_owned());
        let rules = Rules::new(&[], &Migration { sticky: Some(with_cookie), ..migration() }, &Canary::default());
        let found = explained(&rules, &ABOUT, Availability::Available, &[]);
        assert_eq!((found.target.as_str(), found.reason.as_str(), found.bucket), ("draw", "user", None));
        assert_eq!(found.key.as_deref(), Some("cookie:MIGRATION_ID"));
    }

    #[test]
    fn the_rule_that_nearly_matched_is_named() {
        let rules = Rules::new(&[], &migration(), &canary_with_rules());

        let found = explained(&rules, &ABOUT, Availability::Available, &[("x-pin", "nwe"), ("cookie", "a=1")]);

        assert_eq!(
            outcome(&found, "header"),
            "no match: X-Pin is there, but not with the value of canary.header_rules[0]"
        );
        assert_eq!(outcome(&found, "cookie"), "no match: pin absent");
        assert_eq!(outcome(&found, "ip"), "no match: the client is in none of 2 networks");
    }

    #[test]
    fn redirects_and_refusals_name_no_upstream() {
        let canary = Canary { fail_when_unavailable: true, ..canary_with_rules() };
        let rules = Rules::new(&[], &migration(), &canary);
        let pinned = [("x-pin", "new")];

        let redirect = explained(&rules, &About { mode: Mode::Redirect, ..ABOUT }, Availability::Available, &pinned);
        assert_eq!((redirect.target.as_str(), redirect.upstream.as_deref()), ("new", None));
        assert_eq!(redirect.rule.as_deref(), Some("canary.header_rules[0]"));
        assert_eq!(outcome(&redirect, "mode"), "redirect: 307 to https://api.new.example");

        let refused = explained(&rules, &ABOUT, Availability::Open, &pinned);
        assert_eq!((refused.target.as_str(), refused.reason.as_str(), refused.upstream), ("none", "breaker", None));
    }

    #[test]
    fn no_value_of_the_client_is_shown() {
        let secrets = ["s3cret-header", "s3cret-cookie", "s3cret-token"];
        let migration = Migration { sticky: Some(sticky(&["header:x-user-id", "cookie:session"])), ..migration() };
        let rules = Rules::new(&[], &migration, &canary_with_rules());
        let fields = [
            ("x-user-id", secrets[0]),
            ("x-pin", secrets[0]),
            ("cookie", "session=s3cret-cookie; pin=s3cret-cookie"),
            ("authorization", "Bearer s3cret-token"),
        ];

        for availability in [Availability::Available, Availability::Open] {
            let text = serde_json::to_string(&explained(&rules, &ABOUT, availability, &fields)).expect("JSON");
            assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
        }
    }
}

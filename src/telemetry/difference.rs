//! One thing that is otherwise than before. Audit lines, the history, `check --against` and what commands print are all
//! made of these.

use std::fmt;

use http::Method;
use serde::{Deserialize, Serialize};

use super::audit::Kind;
use crate::config::Percent;

/// What no list of methods means.
pub const ALL_METHODS: &str = "all";

/// A value before or after, of one service or of everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What kind of thing.
    pub kind: Kind,
    /// Of which service; `None` for all.
    pub service: Option<String>,
    /// The key in the file, where the kind does not say it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Before; `None` where nothing was, or where it is not shown.
    pub from: Option<Said>,
    /// From now on; `None` where nothing is, or where it is not shown.
    pub to: Option<Said>,
}

/// A value as it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Said {
    /// A share.
    Share(Percent),
    /// Anything else.
    Text(String),
}

/// Where a service is, and how far `migration.max_step` lets it rise at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Its share now.
    pub at: Percent,
    /// The largest step.
    pub max_step: Percent,
}

impl Reach {
    /// How far one step goes on the way to this share.
    pub fn towards(self, share: Percent) -> Percent {
        let most = self.at.basis_points().saturating_add(self.max_step.basis_points());
        Percent::from_basis_points(most).map_or(share, |most| most.min(share))
    }
}

impl Said {
    /// `on` or `off`.
    pub fn switch(on: bool) -> Self {
        Self::text(if on { "on" } else { "off" })
    }

    /// `GET,HEAD`, or `all` for none.
    pub fn methods(methods: &[Method]) -> Self {
        let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
        Self::Text(if names.is_empty() { ALL_METHODS.to_owned() } else { names.join(",") })
    }

    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

/// `20 %`, or the text.
impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => write!(f, "{share} %"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Difference {
    /// Another share.
    pub fn share(kind: Kind, service: &str, from: Percent, to: Percent) -> Self {
        let said = |share| Some(Said::Share(share));
        Self { kind, service: Some(service.to_owned()), key: None, from: said(from), to: said(to) }
    }

    /// A switch that was turned.
    pub fn switch(kind: Kind, service: Option<&String>, from: bool, to: bool) -> Self {
        let said = |on| Some(Said::switch(on));
        Self { kind, service: service.cloned(), key: None, from: said(from), to: said(to) }
    }

    /// Whether more traffic may go to new than before.
    pub fn adds_to_new(&self) -> bool {
        match (self.kind, &self.from, &self.to) {
            (Kind::Percentage, Some(Said::Share(from)), Some(Said::Share(to))) => to > from,
            (Kind::Enabled, Some(Said::Text(from)), Some(Said::Text(to))) => from == "off" && to == "on",
            (Kind::SafeMode, _, Some(Said::Text(to))) => to == "off",
            (Kind::Methods, Some(Said::Text(from)), Some(Said::Text(to))) => {
                from != ALL_METHODS
                    && (to == ALL_METHODS || to.split(',').any(|method| !from.split(',').any(|known| known == method)))
            }
            _ => false,
        }
    }

    /// Whether it is about this service or about all of them.
    pub fn concerns(&self, service: &str) -> bool {
        self.service.as_deref().is_none_or(|name| name == service)
    }

    /// The service and what happened to it, in one line for people.
    pub fn words(&self) -> String {
        let said = |said: &Option<Said>| said.as_ref().map_or_else(|| "nothing".to_owned(), Said::to_string);
        let (from, to) = (said(&self.from), said(&self.to));
        let is_on = to == "on";
        let what = match (self.kind, &self.from, &self.to) {
            (Kind::Percentage, None, _) => format!("a new service, at {to}"),
            (Kind::Percentage, _, None) => format!("the service is gone, it was at {from}"),
            (Kind::Percentage, from, to_share) if from == to_share => format!("stays at {to}"),
            (Kind::Confirm, ..) => format!("stays at {to}"),
            (Kind::Expired, ..) => format!("{from} \u{2192} {to}, because nobody confirmed it in time"),
            (Kind::Cleared, ..) => format!("{from} \u{2192} {to}, because the file took the place of a command"),
            (Kind::SafeMode, ..) if is_on => "safe mode is on, old answers".to_owned(),
            (Kind::SafeMode, ..) => "safe mode is off".to_owned(),
            (Kind::Freeze, ..) => format!("increases are {}", if is_on { "frozen" } else { "allowed again" }),
            (Kind::Host, Some(_), None) => format!("loses {from}"),
            (Kind::Host, None, Some(_)) => format!("gains {to}"),
            (Kind::Host, ..) => format!("takes {} over from {from}", self.key.as_deref().unwrap_or("a host")),
            (Kind::Percentage, ..) => format!("{from} \u{2192} {to}"),
            (kind, None, None) => format!("{} changed", self.key.as_deref().unwrap_or(kind.as_str())),
            (kind, ..) => format!("{} {from} \u{2192} {to}", self.key.as_deref().unwrap_or(kind.as_str())),
        };
        match (&self.service, &self.key) {
            (Some(service), _) => format!("{service}: {what}"),
            (None, Some(_)) => what,
            (None, None) => format!("everything: {what}"),
        }
    }

    /// The command that goes back, where there is one. Where only so much may be added at once, it is the first step.
    pub fn undo(&self, reach: Option<Reach>) -> Option<String> {
        let name = self.service.as_deref();
        match (self.kind, &self.from, &self.to) {
            (Kind::Percentage | Kind::Expired | Kind::Cleared, Some(Said::Share(from)), Some(Said::Share(to))) => {
                let name = name?;
                // What came later may have left it lower than it was then.
                let is_below = reach.is_some_and(|reach| reach.at < *from);
                match from.cmp(to) {
                    std::cmp::Ordering::Less if is_below => {
                        let step = reach.map_or(*from, |reach| reach.towards(*from));
                        Some(format!("migration-proxy update {name} {step}"))
                    }
                    std::cmp::Ordering::Less => Some(format!("migration-proxy rollback {name} --to {from}")),
                    std::cmp::Ordering::Equal => None,
                    std::cmp::Ordering::Greater => {
                        let step = reach.map_or(*from, |reach| reach.towards(*from));
                        Some(format!("migration-proxy update {name} {step}"))
                    }
                }
            }
            (Kind::SafeMode | Kind::Freeze, _, Some(Said::Text(to))) => {
                let verb = if self.kind == Kind::Freeze { "freeze" } else { "safe-mode" };
                let back = if to == "on" { "off" } else { "on" };
                let name = name.map(|name| format!(" {name}")).unwrap_or_default();
                Some(format!("migration-proxy {verb} {back}{name}"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(value: &str) -> Percent {
        value.parse().unwrap()
    }

    fn text(kind: Kind, key: Option<&str>, from: Option<&str>, to: Option<&str>) -> Difference {
        let said = |text: Option<&str>| text.map(Said::text);
        let (from, to) = (said(from), said(to));
        Difference { kind, service: Some("a".to_owned()), key: key.map(str::to_owned), from, to }
    }

    #[test]
    fn every_kind_is_told_with_its_way_back() {
        let share = |kind, from, to| Difference::share(kind, "a", percent(from), percent(to));
        let name = "a".to_owned();
        let everything =
            Difference { service: None, ..text(Kind::Trust, Some("listen.client_ip"), Some("x"), Some("y")) };
        for (difference, words, undo) in [
            (share(Kind::Percentage, "10", "12.5"), "a: 10 % \u{2192} 12.5 %", Some("rollback a --to 10")),
            (share(Kind::Percentage, "10", "0"), "a: 10 % \u{2192} 0 %", Some("update a 10")),
            (share(Kind::Percentage, "10", "10"), "a: stays at 10 %", None),
            (Difference { from: None, ..share(Kind::Percentage, "0", "5") }, "a: a new service, at 5 %", None),
            (
                Difference { to: None, ..share(Kind::Percentage, "5", "0") },
                "a: the service is gone, it was at 5 %",
                None,
            ),
            (
                share(Kind::Expired, "60", "10"),
                "a: 60 % \u{2192} 10 %, because nobody confirmed it in time",
                Some("update a 60"),
            ),
            (
                text(Kind::Cleared, None, Some("GET"), Some("all")),
                "a: GET \u{2192} all, because the file took the place of a command",
                None,
            ),
            (
                Difference::switch(Kind::SafeMode, None, false, true),
                "everything: safe mode is on, old answers",
                Some("safe-mode off"),
            ),
            (
                Difference::switch(Kind::SafeMode, Some(&name), true, false),
                "a: safe mode is off",
                Some("safe-mode on a"),
            ),
            (
                Difference::switch(Kind::Freeze, None, false, true),
                "everything: increases are frozen",
                Some("freeze off"),
            ),
            (text(Kind::Host, None, Some("x.old"), None), "a: loses x.old", None),
            (text(Kind::Host, None, None, Some("x.old")), "a: gains x.old", None),
            (text(Kind::Host, Some("x.old"), Some("b"), Some("a")), "a: takes x.old over from b", None),
            (text(Kind::Enabled, None, Some("on"), Some("off")), "a: enabled on \u{2192} off", None),
            (
                text(Kind::Target, Some("new_backend"), Some("x:1"), Some("y:1")),
                "a: new_backend x:1 \u{2192} y:1",
                None,
            ),
            (text(Kind::Rules, Some("canary.header_rules"), None, None), "a: canary.header_rules changed", None),
            (everything, "listen.client_ip x \u{2192} y", None),
        ] {
            assert_eq!(difference.words(), words);
            assert_eq!(difference.undo(None), undo.map(|undo| format!("migration-proxy {undo}")), "{words}");
        }
    }

    #[test]
    fn the_way_back_up_is_a_step_that_is_allowed() {
        let down = Difference::share(Kind::Percentage, "a", percent("75"), percent("0"));
        for (at, max_step, expected) in
            [("0", "25", "25"), ("0", "12.5", "12.5"), ("60", "25", "75"), ("90", "25", "75")]
        {
            let reach = Reach { at: percent(at), max_step: percent(max_step) };
            assert_eq!(down.undo(Some(reach)), Some(format!("migration-proxy update a {expected}")), "{reach:?}");
        }
        let up = Difference::share(Kind::Percentage, "a", percent("50"), percent("75"));
        for (at, expected) in [("75", "rollback a --to 50"), ("50", "rollback a --to 50"), ("0", "update a 25")] {
            let reach = Reach { at: percent(at), max_step: percent("25") };
            assert_eq!(up.undo(Some(reach)), Some(format!("migration-proxy {expected}")), "{reach:?}");
        }
    }

    #[test]
    fn json_has_numbers_for_shares_and_comes_back() {
        let share = Difference::share(Kind::Percentage, "a", percent("10"), percent("12.5"));
        let host = text(Kind::Host, None, Some("x.old"), None);
        let json = serde_json::json!([
            {"kind": "percentage", "service": "a", "from": 10, "to": 12.5},
            {"kind": "host", "service": "a", "from": "x.old", "to": null},
        ]);

        assert_eq!(serde_json::to_value([&share, &host]).unwrap(), json);
        assert_eq!(serde_json::from_value::<Vec<Difference>>(json).unwrap(), [share, host]);
    }
}

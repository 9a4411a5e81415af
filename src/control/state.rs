//! What people changed apart from the file: shares, switches, methods, and clocks that undo a change by themselves. The
//! file stays Git's; a change remembers what the file declared when it was made, and the newest intent wins. Everything
//! here and in [`super::change`] takes the time as an argument and touches nothing outside; [`Keeper`] stores it and puts it
//! in force.
//!
//! [`Keeper`]: super::keeper::Keeper

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Percent};
use crate::routing::overrides::{Overrides, ServiceOverrides};
use crate::telemetry::audit::Kind;
pub use crate::telemetry::difference::{Difference as Entry, Said};

/// Everything that differs from the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Safe mode of everything, by command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) safe_mode: Option<Mark>,
    /// No increases of any service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) freeze: Option<Mark>,
    /// The newest wish for an earlier configuration, where replicas share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rollback: Option<Box<Rollback>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) services: BTreeMap<String, ServiceState>,
}

/// A configuration of the history that somebody wants instead of the file, until the file changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Its hash.
    pub hash: String,
    /// The hashes of the newest texts of files that it overruled: a node that gets one of them later gets nothing newer.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub seen: BTreeSet<String>,
    /// Who wanted it, when and why.
    pub mark: Mark,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServiceState {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) percentage: Option<Override<Percent>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) enabled: Option<Override<bool>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) methods: Option<Override<Methods>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) safe_mode: Option<Mark>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) freeze: Option<Mark>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) clock: Option<Clock>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) streams: Option<Streams>,
}

/// Who changed something, when and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub at: Timestamp,
    /// The replica that took the change.
    pub replica: String,
    /// As audit lines name them.
    pub by: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A value in force, and what the file declared when it was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Override<T> {
    pub(super) value: T,
    pub(super) declared: T,
    pub(super) mark: Mark,
}

/// A share that goes back by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Clock {
    pub(super) until: Timestamp,
    pub(super) back_to: Percent,
}

/// What lasts on new was told to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Streams {
    pub(super) at: Timestamp,
    over_ms: u64,
}

/// Methods as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub(super) struct Methods(pub(super) Vec<Method>);

impl TryFrom<Vec<String>> for Methods {
    type Error = http::method::InvalidMethod;

    fn try_from(names: Vec<String>) -> Result<Self, Self::Error> {
        names.iter().map(|name| Method::from_bytes(name.as_bytes())).collect::<Result<_, _>>().map(Self)
    }
}

impl From<Methods> for Vec<String> {
    fn from(methods: Methods) -> Self {
        methods.0.iter().map(ToString::to_string).collect()
    }
}

/// What a file declares of all that the state can change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    pub(super) safe_mode: bool,
    pub(super) services: BTreeMap<String, DeclaredService>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeclaredService {
    pub(super) percentage: Percent,
    pub(super) max_step: Percent,
    pub(super) enabled: bool,
    pub(super) methods: Methods,
    pub(super) safe_mode: bool,
}

/// The next state and how it differs.
pub type Changed = (State, Vec<Entry>);

impl Declared {
    /// What this configuration declares.
    pub fn of(config: &Config) -> Self {
        let service = |service: &crate::config::Service| {
            let migration = &service.migration;
            let declared = DeclaredService {
                percentage: migration.percentage,
                max_step: migration.max_step,
                enabled: migration.enabled,
                methods: Methods(migration.methods.clone()),
                safe_mode: service.safe_mode,
            };
            (service.name.clone(), declared)
        };
        Self { safe_mode: config.safe_mode, services: config.services.iter().map(service).collect() }
    }
}

impl State {
    /// What is in force otherwise than declared.
    pub fn overrides(&self) -> Overrides {
        let service = |(name, state): (&String, &ServiceState)| {
            let overrides = ServiceOverrides {
                percentage: state.percentage.as_ref().map(|o| o.value),
                enabled: state.enabled.as_ref().map(|o| o.value),
                methods: state.methods.as_ref().map(|o| o.value.0.clone()),
                safe_mode: state.safe_mode.is_some(),
            };
            (name.clone(), overrides)
        };
        Overrides { safe_mode: self.safe_mode.is_some(), services: self.services.iter().map(service).collect() }
    }

    /// When a share of this service goes back by itself.
    pub fn confirm_by(&self, service: &str) -> Option<Timestamp> {
        Some(self.services.get(service)?.clock.as_ref()?.until)
    }

    /// The share to which this service goes back by itself.
    pub fn back_to(&self, service: &str) -> Option<Percent> {
        Some(self.services.get(service)?.clock.as_ref()?.back_to)
    }

    /// Whether increases of this service are refused; of everything when none is named.
    pub fn is_frozen(&self, service: Option<&str>) -> bool {
        service.map_or(self.freeze.is_some(), |service| self.freeze(service).is_some())
    }

    /// When what lasts on new was last told to end, for each service, and how long that may take.
    pub fn streams(&self) -> impl Iterator<Item = (&str, Timestamp, Duration)> {
        self.services.iter().filter_map(|(name, service)| {
            let Streams { at, over_ms } = service.streams.as_ref()?;
            Some((name.as_str(), *at, Duration::from_millis(*over_ms)))
        })
    }

    pub(super) fn close_streams(&mut self, service: &str, over: Option<Duration>, mark: &Mark) {
        if over.is_some() {
            self.services.entry(service.to_owned()).or_default().close_streams(over, mark);
        }
    }

    /// The state after a wish for an earlier configuration.
    pub fn roll_back(&self, rollback: Rollback) -> Self {
        Self { rollback: Some(Box::new(rollback)), ..self.clone() }
    }

    /// The state after this wish overruled a text of a file on one more replica; `None` when it holds no such wish, or
    /// nothing changes.
    pub fn overrule(&self, mark: &Mark, seen: &str) -> Option<Self> {
        let mut rollback = self.rollback.clone().filter(|rollback| rollback.mark == *mark && rollback.hash != seen)?;
        rollback.seen.insert(seen.to_owned()).then(|| self.roll_back(*rollback))
    }

    /// The state after a file took the place of what this wish asked for; `None` when it holds no such wish.
    pub fn end_rollback(&self, mark: &Mark) -> Option<Self> {
        let is_held = self.rollback.as_ref().is_some_and(|rollback| rollback.mark == *mark);
        is_held.then(|| Self { rollback: None, ..self.clone() })
    }

    /// Who set what is in force now; `None` where nothing is left of it, as after a switch was turned off.
    pub fn author(&self, entry: &Entry) -> Option<&Mark> {
        let Some(name) = &entry.service else {
            return self.safe_mode.as_ref().filter(|_| entry.kind == Kind::SafeMode);
        };
        let service = self.services.get(name)?;
        match entry.kind {
            Kind::Percentage => service.percentage.as_ref().map(|share| &share.mark),
            Kind::Enabled => service.enabled.as_ref().map(|enabled| &enabled.mark),
            Kind::Methods => service.methods.as_ref().map(|methods| &methods.mark),
            Kind::SafeMode => service.safe_mode.as_ref(),
            _ => None,
        }
    }

    /// When the next clock runs out.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        let clock = |(name, service): (&String, &ServiceState)| {
            service.clock.as_ref().filter(|_| !self.is_held(name)).map(|clock| clock.until)
        };
        self.services.iter().filter_map(clock).min()
    }

    /// A clock that would add traffic waits for the end of a freeze.
    fn is_held(&self, name: &str) -> bool {
        let rises = |service: &ServiceState| match (&service.clock, &service.percentage) {
            (Some(clock), Some(share)) => clock.back_to > share.value,
            _ => false,
        };
        self.is_frozen(Some(name)) && self.services.get(name).is_some_and(rises)
    }

    /// The state after clocks that have run out; `None` when none has.
    pub fn expire(&self, now: Timestamp, mark: &Mark) -> Option<Changed> {
        let mut next = self.clone();
        let mut entries = Vec::new();
        for (name, service) in &mut next.services {
            let is_held = self.is_held(name);
            let Some(clock) = service.clock.take_if(|clock| clock.until <= now && !is_held) else { continue };
            let Some(share) = &mut service.percentage else { continue };
            entries.push(Entry::share(Kind::Expired, name, share.value, clock.back_to));
            share.value = clock.back_to;
            share.mark = mark.clone();
        }
        (!entries.is_empty() || next != *self).then_some((next, entries))
    }

    /// The state after the file of this replica changed. What a file changes away from the value that an override
    /// remembers is the newer intent: the override is cleared, and its place is taken by what the file declares now, so
    /// that replicas whose file is still the older one serve no third value. Without an earlier file this replica starts
    /// for the first time, and any difference counts.
    pub fn follow(&self, before: Option<&Declared>, after: &Declared, mark: &Mark) -> Option<Changed> {
        let mut next = self.clone();
        let mut entries = Vec::new();
        for (name, service) in &mut next.services {
            let Some(now) = after.services.get(name) else { continue };
            let earlier = before.map(|before| before.services.get(name));
            let moved = |is_same: &dyn Fn(&DeclaredService) -> bool| {
                earlier.is_none_or(|earlier| !earlier.is_some_and(is_same))
            };
            if moved(&|earlier| earlier.percentage == now.percentage)
                && let Some(cleared) = clear(&mut service.percentage, now.percentage, mark)
            {
                service.clock = None;
                entries.push(Entry::share(Kind::Cleared, name, cleared, now.percentage));
            }
            if moved(&|earlier| earlier.enabled == now.enabled)
                && let Some(cleared) = clear(&mut service.enabled, now.enabled, mark)
            {
                entries.push(Entry::switch(Kind::Cleared, Some(name), cleared, now.enabled));
            }
            if moved(&|earlier| earlier.methods == now.methods)
                && let Some(cleared) = clear(&mut service.methods, now.methods.clone(), mark)
            {
                entries.push(methods_entry(Kind::Cleared, name, &cleared, &now.methods));
            }
        }
        (!entries.is_empty()).then_some((next, entries))
    }

    /// The freeze that holds for a service, with the name that ends it.
    pub(super) fn freeze(&self, name: &str) -> Option<(&str, &Mark)> {
        let own = self.services.get_key_value(name).and_then(|(name, state)| Some((&**name, state.freeze.as_ref()?)));
        self.freeze.as_ref().map(|mark| ("", mark)).or(own)
    }
}

impl ServiceState {
    pub(super) fn close_streams(&mut self, over: Option<Duration>, mark: &Mark) {
        if let Some(over) = over {
            let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
            self.streams = Some(Streams { at: mark.at, over_ms });
        }
    }
}

impl Methods {
    fn said(&self) -> Said {
        Said::methods(&self.0)
    }
}

pub(super) fn methods_entry(kind: Kind, service: &str, from: &Methods, to: &Methods) -> Entry {
    Entry { kind, service: Some(service.to_owned()), key: None, from: Some(from.said()), to: Some(to.said()) }
}

/// Puts what the file declares now in the place of an override that remembers something else; gives the value that was in
/// force.
fn clear<T: Clone + PartialEq>(slot: &mut Option<Override<T>>, declared: T, mark: &Mark) -> Option<T> {
    let before = slot.take_if(|earlier| earlier.declared != declared)?;
    *slot = Some(Override { value: declared.clone(), declared, mark: mark.clone() });
    Some(before.value)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::plain;
    use crate::control::change::{Change, Migration, Refusal, Share};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    pub(in crate::control) fn mark(second: i64) -> Mark {
        Mark { at: at(second), replica: "pod-1".to_owned(), by: "loopback".to_owned(), reason: None }
    }

    pub(in crate::control) fn percent(text: &str) -> Percent {
        text.parse().unwrap()
    }

    /// Services with their shares; at most 50 points at once.
    pub(in crate::control) fn declared(services: &[(&str, &str)]) -> Declared {
        let service = |(name, share): &(&str, &str)| {
            let service = DeclaredService {
                percentage: percent(share),
                max_step: percent("50"),
                enabled: true,
                methods: Methods::default(),
                safe_mode: false,
            };
            ((*name).to_owned(), service)
        };
        Declared { safe_mode: false, services: services.iter().map(service).collect() }
    }

    pub(in crate::control) fn update(services: &str, share: Share) -> Change {
        Change::Migration(Migration { services: services.to_owned(), percentage: Some(share), ..Migration::default() })
    }

    pub(in crate::control) fn to(share: &str) -> Share {
        Share::To(percent(share))
    }

    /// The share in force.
    pub(in crate::control) fn share(state: &State, declared: &Declared, service: &str) -> String {
        let overrides = state.overrides();
        overrides.of(service).percentage.unwrap_or(declared.services[service].percentage).to_string()
    }

    #[test]
    fn a_clock_goes_back_unless_something_newer_ends_it() {
        let file = declared(&[("a", "20")]);
        let clock = Some(Duration::from_secs(60));
        let with_clock = Change::Migration(Migration {
            services: "a".to_owned(),
            percentage: Some(to("50")),
            clock,
            ..Migration::default()
        });
        let (state, _) = State::default().change(&with_clock, &file, &mark(0)).unwrap();
        assert_eq!(state.confirm_by("a"), Some(at(60)));
        assert_eq!(state.next_expiry(), Some(at(60)));
        assert_eq!(state.expire(at(59), &mark(59)), None);

        let (back, entries) = state.expire(at(60), &mark(60)).unwrap();
        assert_eq!((share(&back, &file, "a"), back.confirm_by("a")), ("20".to_owned(), None));
        assert_eq!(entries, [Entry::share(Kind::Expired, "a", percent("50"), percent("20"))]);

        let (confirmed, entries) = state.change(&Change::Confirm("a".to_owned()), &file, &mark(1)).unwrap();
        assert_eq!((entries.len(), confirmed.expire(at(99), &mark(99))), (1, None));
        let (again, entries) = confirmed.change(&Change::Confirm("a".to_owned()), &file, &mark(2)).unwrap();
        assert_eq!((again, entries), (confirmed, Vec::new()));
        let (newer, _) = state.change(&update("a", to("40")), &file, &mark(1)).unwrap();
        assert_eq!(newer.expire(at(99), &mark(99)), None);
        let (cleared, _) = state.follow(Some(&file), &declared(&[("a", "30")]), &mark(1)).unwrap();
        assert_eq!(cleared.expire(at(99), &mark(99)), None);

        let down = Change::Migration(Migration {
            services: "a".to_owned(),
            percentage: Some(to("5")),
            clock,
            ..Migration::default()
        });
        let freeze = |on| Change::Freeze { services: None, on };
        let (lower, _) = State::default().change(&down, &file, &mark(0)).unwrap();
        let (frozen, _) = lower.change(&freeze(true), &file, &mark(1)).unwrap();
        assert_eq!((frozen.expire(at(99), &mark(99)), frozen.next_expiry()), (None, None), "a freeze holds the way up");
        let (thawed, _) = frozen.change(&freeze(false), &file, &mark(2)).unwrap();
        assert_eq!(thawed.expire(at(99), &mark(99)).map(|(_, entries)| entries.len()), Some(1));

        let only_a_clock = Change::Migration(Migration { services: "a".to_owned(), clock, ..Migration::default() });
        assert!(matches!(State::default().change(&only_a_clock, &file, &mark(0)), Err(Refusal::Invalid(_))));
    }

    #[test]
    fn the_file_clears_an_override_only_by_moving_away_from_what_it_remembers() {
        let (at_20, at_30) = (declared(&[("a", "20")]), declared(&[("a", "30")]));
        let (state, _) = State::default().change(&update("a", to("50")), &at_20, &mark(0)).unwrap();

        assert_eq!(state.follow(Some(&at_20), &at_20, &mark(1)), None, "a re-sync of the same file");
        assert_eq!(state.follow(None, &at_20, &mark(1)), None, "a first start with the file of the override");
        assert_eq!(state.follow(Some(&at_30), &at_20, &mark(1)), None, "a replica whose file follows");
        assert_eq!(state.follow(Some(&at_30), &at_30, &mark(1)), None, "a replica whose file is still another one");

        let (cleared, entries) = state.follow(Some(&at_20), &at_30, &mark(1)).unwrap();
        assert_eq!(entries, [Entry::share(Kind::Cleared, "a", percent("50"), percent("30"))]);
        assert_eq!(share(&cleared, &at_20, "a"), "30", "a replica with the older file serves no third value");
        assert_eq!(cleared.follow(Some(&at_20), &at_30, &mark(2)), None, "its file follows");
        let (back, _) = cleared.follow(Some(&at_30), &at_20, &mark(2)).unwrap();
        assert_eq!(share(&back, &at_20, "a"), "20", "going back does not revive it");
        assert!(state.follow(None, &at_30, &mark(1)).is_some(), "a first start with another file");
    }

    #[test]
    fn two_replicas_never_serve_a_third_value() {
        // Whatever the order in which files change, intents come and replicas look, each of them serves the declared value
        // of one of both files or the last intent.
        let files = [declared(&[("a", "10")]), declared(&[("a", "40")])];
        for order in 0..64_u32 {
            let (mut state, mut on) = (State::default(), [0, 0]);
            let mut intents = vec!["10".to_owned(), "40".to_owned()];
            for step in 0..6 {
                let replica = (order >> step & 1) as usize;
                if step == (order % 5) {
                    let wish = update("a", to("25"));
                    (state, _) = state.change(&wish, &files[on[replica]], &mark(i64::from(step))).unwrap();
                    intents.push("25".to_owned());
                } else if on[replica] == 0 {
                    let followed = state.follow(Some(&files[0]), &files[1], &mark(i64::from(step)));
                    state = followed.map_or(state, |(next, _)| next);
                    on[replica] = 1;
                }
                for file in on {
                    let served = share(&state, &files[file], "a");
                    assert!(intents.contains(&served), "order {order}, step {step}: {served}");
                }
                if !state.services.is_empty() {
                    let [one, other] = on.map(|file| share(&state, &files[file], "a"));
                    assert_eq!(one, other, "order {order}, step {step}");
                }
            }
        }
    }

    #[test]
    fn who_set_what_is_known_as_long_as_it_holds() {
        let file = declared(&[("a", "20"), ("b", "0")]);
        let (state, entries) = State::default().change(&update("a", to("30")), &file, &mark(1)).unwrap();
        let safe = |on| Change::SafeMode { services: None, on, close_streams: None };
        let (state, switched) = state.change(&safe(true), &file, &mark(2)).unwrap();

        assert_eq!(state.author(&entries[0]), Some(&mark(1)));
        assert_eq!(state.author(&switched[0]), Some(&mark(2)));
        assert_eq!(state.author(&Entry::share(Kind::Percentage, "b", Percent::ZERO, percent("1"))), None);
        let (state, switched) = state.change(&safe(false), &file, &mark(3)).unwrap();
        assert_eq!(state.author(&switched[0]), None);
    }

    #[test]
    fn a_state_survives_its_text() {
        let file = declared(&[("a", "20"), ("b", "0")]);
        let reason = "\u{4e00}: \"x\"\n- {y} #z".to_owned();
        let mark = Mark { reason: Some(reason), ..mark(0) };
        let change = Change::Migration(Migration {
            services: "*".to_owned(),
            percentage: Some(Share::By(1_225)),
            enabled: Some(true),
            methods: Some(vec![Method::GET, Method::from_bytes(b"PURGE").unwrap()]),
            clock: Some(Duration::from_secs(90)),
            close_streams: Some(Duration::from_millis(2_500)),
            only_down: false,
        });
        let (state, _) = State::default().change(&change, &file, &mark).unwrap();
        let (state, _) =
            state.change(&Change::SafeMode { services: None, on: true, close_streams: None }, &file, &mark).unwrap();
        let (state, _) =
            state.change(&Change::Freeze { services: Some("a".to_owned()), on: true }, &file, &mark).unwrap();

        let state = state.roll_back(Rollback { hash: "9f2c".to_owned(), seen: ["0123".to_owned()].into(), mark });

        let text = plain::to_text(&state).unwrap();
        assert_eq!(plain::from_text::<State>(&text).unwrap(), state, "{text}");
        assert_eq!(plain::from_text::<State>(&plain::to_text(&State::default()).unwrap()).unwrap(), State::default());
        for broken in ["services: [", "services: {a: {percentage: {value: 101}}}", "[]", "safe_mode: yes"] {
            assert!(plain::from_text::<State>(broken).is_err(), "{broken}");
        }
    }
}

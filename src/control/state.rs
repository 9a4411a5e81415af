//! What people changed apart from the file: shares, switches, methods, and clocks that undo a change by themselves. The
//! file stays Git's; a change remembers what the file declared when it was made, and the newest intent wins. Everything
//! here takes the time as an argument and touches nothing outside; [`Keeper`] stores it and puts it in force.
//!
//! [`Keeper`]: super::keeper::Keeper

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Percent};
use crate::routing::overrides::{Overrides, ServiceOverrides};
use crate::telemetry::audit::Kind;
pub use crate::telemetry::difference::{Difference as Entry, Said};

/// The longest clock: whoever wants more does not want a clock.
pub const LONGEST_CLOCK: Duration = Duration::from_secs(30 * 24 * 3600);

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
    until: Timestamp,
    back_to: Percent,
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
pub(super) struct Methods(Vec<Method>);

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
    safe_mode: bool,
    services: BTreeMap<String, DeclaredService>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeclaredService {
    percentage: Percent,
    max_step: Percent,
    enabled: bool,
    methods: Methods,
    safe_mode: bool,
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The migration of some services.
    Migration(Migration),
    /// The share of these services stays: their clocks end.
    Confirm(String),
    /// Safe mode, of everything when no service is named.
    SafeMode {
        /// A name or pattern.
        services: Option<String>,
        /// On or off.
        on: bool,
        /// What lasts on new ends within this time.
        close_streams: Option<Duration>,
    },
    /// No increases, of anything when no service is named.
    Freeze {
        /// A name or pattern.
        services: Option<String>,
        /// On or off.
        on: bool,
    },
}

/// Other values for `migration` of some services; `None` leaves a value as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// A name or pattern.
    pub services: String,
    /// The share of new.
    pub percentage: Option<Share>,
    /// Whether the migration is enabled.
    pub enabled: Option<bool>,
    /// The methods that move by share; none: all.
    pub methods: Option<Vec<Method>>,
    /// The share goes back after this time unless it is confirmed.
    pub clock: Option<Duration>,
    /// What lasts on new ends within this time.
    pub close_streams: Option<Duration>,
    /// A share that would rise is refused: the way back never adds traffic.
    pub only_down: bool,
}

/// A share, absolute or from where each service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// This one.
    To(Percent),
    /// So many hundredths of a percent more or less, within 0 and 100.
    By(i32),
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No service is called so.
    #[error("{0}")]
    Unknown(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A freeze, a step that is too large, or a switch that belongs to the file.
    #[error("{0}")]
    Policy(String),
    /// A newer intent of another replica.
    #[error("{0}")]
    Overtaken(String),
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

    /// The services that a name or pattern means.
    pub(super) fn matching(&self, pattern: &str) -> Result<Vec<(&String, &DeclaredService)>, Refusal> {
        if !pattern.contains(['*', '?']) {
            let found = self.services.get_key_value(pattern);
            return found.map(|found| vec![found]).ok_or_else(|| self.unknown(pattern));
        }
        let found: Vec<_> = self.services.iter().filter(|(name, _)| matches_glob(pattern, name)).collect();
        if found.is_empty() {
            return Err(Refusal::Unknown(format!("no service matches {pattern:?}")));
        }
        Ok(found)
    }

    fn unknown(&self, name: &str) -> Refusal {
        let mut near: Vec<_> = self
            .services
            .keys()
            .map(|known| (strsim::jaro_winkler(known, name), known))
            .filter(|(likeness, _)| *likeness > 0.8)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        let near: Vec<&str> = near.iter().take(3).map(|(_, name)| name.as_str()).collect();
        let hint = if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) };
        Refusal::Unknown(format!("no service is called {name:?}{hint}"))
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

    /// Whether increases of this service are refused.
    fn is_frozen(&self, service: &str) -> bool {
        self.freeze(service).is_some()
    }

    /// When what lasts on new was last told to end, for each service, and how long that may take.
    pub fn streams(&self) -> impl Iterator<Item = (&str, Timestamp, Duration)> {
        self.services.iter().filter_map(|(name, service)| {
            let Streams { at, over_ms } = service.streams.as_ref()?;
            Some((name.as_str(), *at, Duration::from_millis(*over_ms)))
        })
    }

    fn close_streams(&mut self, service: &str, over: Option<Duration>, mark: &Mark) {
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
        self.is_frozen(name) && self.services.get(name).is_some_and(rises)
    }

    /// The state after a change.
    ///
    /// # Errors
    ///
    /// The first thing that speaks against it; then nothing at all is changed.
    pub fn change(&self, change: &Change, declared: &Declared, mark: &Mark) -> Result<Changed, Refusal> {
        match change {
            Change::Migration(wish) => self.migrate(wish, declared, mark),
            Change::Confirm(services) => self.confirm(services, declared),
            Change::SafeMode { services, on, close_streams } => {
                let (mut next, entries) = self.switch_safe_mode(services.as_deref(), *on, declared, mark)?;
                for (name, _) in declared.matching(services.as_deref().unwrap_or("*"))? {
                    next.close_streams(name, *close_streams, mark);
                }
                Ok((next, entries))
            }
            Change::Freeze { services, on } => self.switch_freeze(services.as_deref(), *on, declared, mark),
        }
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

    fn migrate(&self, wish: &Migration, declared: &Declared, mark: &Mark) -> Result<Changed, Refusal> {
        check_clock(wish)?;
        let mut next = self.clone();
        let mut entries = Vec::new();
        for (name, file) in declared.matching(&wish.services)? {
            let service = next.services.entry(name.clone()).or_default();
            if let Some(share) = wish.percentage {
                let from = service.percentage.as_ref().map_or(file.percentage, |o| o.value);
                let to = share.from(from);
                if wish.only_down && to > from {
                    return Err(Refusal::Invalid(format!(
                        "{name} is at {from} %, which is less than {to} %: migration-proxy update {name} {to}"
                    )));
                }
                self.allow_step(name, file, from, to)?;
                service.percentage = Some(Override { value: to, declared: file.percentage, mark: mark.clone() });
                service.clock = wish.clock.map(|clock| Clock { until: after(mark.at, clock), back_to: from });
                entries.push(Entry::share(Kind::Percentage, name, from, to));
            }
            service.close_streams(wish.close_streams, mark);
            if let Some(enabled) = wish.enabled {
                let from = service.enabled.as_ref().map_or(file.enabled, |o| o.value);
                if enabled && !from {
                    self.allow_increase(name)?;
                }
                service.enabled = Some(Override { value: enabled, declared: file.enabled, mark: mark.clone() });
                entries.push(Entry::switch(Kind::Enabled, Some(name), from, enabled));
            }
            if let Some(methods) = &wish.methods {
                let to = Methods(methods.clone());
                let from = service.methods.as_ref().map_or(&file.methods, |o| &o.value).clone();
                if to.adds_to(&from) {
                    self.allow_increase(name)?;
                }
                entries.push(methods_entry(Kind::Methods, name, &from, &to));
                service.methods = Some(Override { value: to, declared: file.methods.clone(), mark: mark.clone() });
            }
        }
        Ok((next, entries))
    }

    fn allow_step(&self, name: &str, file: &DeclaredService, from: Percent, to: Percent) -> Result<(), Refusal> {
        if to <= from {
            return Ok(());
        }
        self.allow_increase(name)?;
        let step = to.basis_points() - from.basis_points();
        if step > file.max_step.basis_points() {
            let most = file.max_step;
            let reachable = Share::By(i32::from(most.basis_points())).from(from);
            return Err(Refusal::Policy(format!(
                "{name} is at {from} % and migration.max_step allows {most} points at once: update {name} {reachable} first"
            )));
        }
        Ok(())
    }

    fn allow_increase(&self, name: &str) -> Result<(), Refusal> {
        let Some((scope, mark)) = self.freeze(name) else { return Ok(()) };
        let why = mark.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let argument = if scope.is_empty() { "freeze off".to_owned() } else { format!("freeze off {scope}") };
        Err(Refusal::Policy(format!(
            "increases of {name} are frozen since {} by {}{why}: {argument} allows them again",
            mark.at.strftime("%F %H:%M UTC"),
            mark.by
        )))
    }

    /// The freeze that holds for a service, with the name that ends it.
    fn freeze(&self, name: &str) -> Option<(&str, &Mark)> {
        let own = self.services.get_key_value(name).and_then(|(name, state)| Some((&**name, state.freeze.as_ref()?)));
        self.freeze.as_ref().map(|mark| ("", mark)).or(own)
    }

    fn confirm(&self, services: &str, declared: &Declared) -> Result<Changed, Refusal> {
        let mut next = self.clone();
        let mut entries = Vec::new();
        for (name, _) in declared.matching(services)? {
            let Some(service) = next.services.get_mut(name) else { continue };
            if service.clock.take().is_some() {
                let share = service.percentage.as_ref().map(|share| Said::Share(share.value));
                let service = Some(name.clone());
                entries.push(Entry { kind: Kind::Confirm, service, key: None, from: None, to: share });
            }
        }
        Ok((next, entries))
    }

    fn switch_safe_mode(
        &self,
        services: Option<&str>,
        on: bool,
        declared: &Declared,
        mark: &Mark,
    ) -> Result<Changed, Refusal> {
        let in_file = |what: &str| {
            Refusal::Policy(format!("safe mode {what} is on in the file: it ends when safe_mode there is off"))
        };
        let mut next = self.clone();
        let mut entries = Vec::new();
        let Some(services) = services else {
            if !on && declared.safe_mode && self.safe_mode.is_none() {
                return Err(in_file("of everything"));
            }
            entries.extend(turn(&mut next.safe_mode, Kind::SafeMode, None, on, mark));
            return Ok((next, entries));
        };
        for (name, file) in declared.matching(services)? {
            let service = next.services.entry(name.clone()).or_default();
            if !on && file.safe_mode && service.safe_mode.is_none() {
                return Err(in_file(&format!("of {name}")));
            }
            entries.extend(turn(&mut service.safe_mode, Kind::SafeMode, Some(name), on, mark));
        }
        Ok((next, entries))
    }

    fn switch_freeze(
        &self,
        services: Option<&str>,
        on: bool,
        declared: &Declared,
        mark: &Mark,
    ) -> Result<Changed, Refusal> {
        let mut next = self.clone();
        let mut entries = Vec::new();
        let Some(services) = services else {
            entries.extend(turn(&mut next.freeze, Kind::Freeze, None, on, mark));
            return Ok((next, entries));
        };
        for (name, _) in declared.matching(services)? {
            let service = next.services.entry(name.clone()).or_default();
            entries.extend(turn(&mut service.freeze, Kind::Freeze, Some(name), on, mark));
        }
        Ok((next, entries))
    }
}

impl ServiceState {
    fn close_streams(&mut self, over: Option<Duration>, mark: &Mark) {
        if let Some(over) = over {
            let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
            self.streams = Some(Streams { at: mark.at, over_ms });
        }
    }
}

impl Share {
    /// Where it leads from here.
    fn from(self, from: Percent) -> Percent {
        match self {
            Self::To(share) => share,
            Self::By(points) => {
                let points = (i32::from(from.basis_points()).saturating_add(points)).clamp(0, 10_000);
                Percent::from_basis_points(points as u16).expect("clamped to 0 and 100 percent")
            }
        }
    }
}

impl Methods {
    /// Whether a request may go to new that could not before.
    fn adds_to(&self, before: &Self) -> bool {
        match (self.0.as_slice(), before.0.as_slice()) {
            (_, []) => false,
            ([], _) => true,
            (now, before) => now.iter().any(|method| !before.contains(method)),
        }
    }

    fn said(&self) -> Said {
        Said::methods(&self.0)
    }
}

pub(super) fn methods_entry(kind: Kind, service: &str, from: &Methods, to: &Methods) -> Entry {
    Entry { kind, service: Some(service.to_owned()), key: None, from: Some(from.said()), to: Some(to.said()) }
}

/// Turns a switch on or off; nothing is told when it was so already.
fn turn(switch: &mut Option<Mark>, kind: Kind, service: Option<&String>, on: bool, mark: &Mark) -> Option<Entry> {
    let before = std::mem::replace(switch, on.then(|| mark.clone())).is_some();
    (before != on).then(|| Entry::switch(kind, service, before, on))
}

/// Puts what the file declares now in the place of an override that remembers something else; gives the value that was in
/// force.
fn clear<T: Clone + PartialEq>(slot: &mut Option<Override<T>>, declared: T, mark: &Mark) -> Option<T> {
    let before = slot.take_if(|earlier| earlier.declared != declared)?;
    *slot = Some(Override { value: declared.clone(), declared, mark: mark.clone() });
    Some(before.value)
}

fn check_clock(wish: &Migration) -> Result<(), Refusal> {
    match wish.clock {
        Some(_) if wish.percentage.is_none() => Err(Refusal::Invalid("for needs a percentage".to_owned())),
        Some(clock) if clock < Duration::from_secs(1) || clock > LONGEST_CLOCK => {
            Err(Refusal::Invalid("for is between 1s and 30d".to_owned()))
        }
        _ => Ok(()),
    }
}

fn after(at: Timestamp, pause: Duration) -> Timestamp {
    let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
    at.checked_add(pause).unwrap_or(Timestamp::MAX)
}

/// `*` stands for any text, `?` for one character.
fn matches_glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                // What the last star stands for grows by one character.
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (p, n) = (at + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plain;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn mark(second: i64) -> Mark {
        Mark { at: at(second), replica: "pod-1".to_owned(), by: "loopback".to_owned(), reason: None }
    }

    fn percent(text: &str) -> Percent {
        text.parse().unwrap()
    }

    /// Services with their shares; at most 50 points at once.
    fn declared(services: &[(&str, &str)]) -> Declared {
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

    fn update(services: &str, share: Share) -> Change {
        Change::Migration(Migration { services: services.to_owned(), percentage: Some(share), ..Migration::default() })
    }

    fn to(share: &str) -> Share {
        Share::To(percent(share))
    }

    /// The share in force.
    fn share(state: &State, declared: &Declared, service: &str) -> String {
        let overrides = state.overrides();
        overrides.of(service).percentage.unwrap_or(declared.services[service].percentage).to_string()
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("api-*", "api-", true),
            ("api-*", "api-01", true),
            ("api-??", "api-01", true),
            ("api-?", "api-01", false),
            ("*-01", "api-x-01", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("api", "api-01", false),
        ] {
            assert_eq!(matches_glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn shares_are_absolute_or_relative_to_where_each_service_stands() {
        let file = declared(&[("api-1", "20"), ("api-2", "50"), ("web", "5")]);
        let mut state = State::default();
        for (services, wish, expected) in [
            ("api-1", to("30"), ["30", "50", "5"]),
            ("api-1", Share::By(1_000), ["40", "50", "5"]),
            ("api-1", Share::By(-500), ["35", "50", "5"]),
            ("api-*", Share::By(25), ["35.25", "50.25", "5"]),
            ("web", Share::By(-9_000), ["35.25", "50.25", "0"]),
            ("api-?", to("60"), ["60", "60", "0"]),
            ("api-2", Share::By(5_000), ["60", "100", "0"]),
            ("*", to("0"), ["0", "0", "0"]),
        ] {
            (state, _) = state.change(&update(services, wish), &file, &mark(0)).unwrap();
            assert_eq!(["api-1", "api-2", "web"].map(|name| share(&state, &file, name)), expected, "{services}");
        }
    }

    #[test]
    fn one_refused_service_refuses_all() {
        let file = declared(&[("api-1", "0"), ("api-2", "40")]);
        let state = State::default();

        let refusal = state.change(&update("api-*", to("60")), &file, &mark(0)).unwrap_err();

        assert_eq!(
            refusal,
            Refusal::Policy(
                "api-1 is at 0 % and migration.max_step allows 50 points at once: update api-1 50 first".to_owned()
            )
        );
        for (name, hint) in [("api-3", "; did you mean api-1, api-2?"), ("zebra", "")] {
            let refusal = state.change(&update(name, to("1")), &file, &mark(0)).unwrap_err();
            assert_eq!(refusal, Refusal::Unknown(format!("no service is called {name:?}{hint}")));
        }
        assert!(matches!(state.change(&update("x*", to("1")), &file, &mark(0)), Err(Refusal::Unknown(_))));
    }

    #[test]
    fn a_freeze_holds_back_increases_only() {
        let file = declared(&[("a", "30"), ("b", "30")]);
        let freeze = |services: Option<&str>, on| Change::Freeze { services: services.map(str::to_owned), on };
        let (state, _) = State::default().change(&freeze(None, true), &file, &mark(0)).unwrap();
        let migration = |enabled, methods: Option<&[Method]>| {
            let methods = methods.map(<[Method]>::to_vec);
            Change::Migration(Migration { services: "a".to_owned(), enabled, methods, ..Migration::default() })
        };

        assert!(matches!(state.change(&update("a", to("31")), &file, &mark(1)), Err(Refusal::Policy(_))));
        let (lower, _) = state.change(&update("a", to("20")), &file, &mark(1)).unwrap();
        assert!(lower.change(&update("a", to("30")), &file, &mark(2)).is_err());
        let (off, _) = lower.change(&migration(Some(false), None), &file, &mark(2)).unwrap();
        assert!(off.change(&migration(Some(true), None), &file, &mark(3)).is_err());
        let (reads, _) = off.change(&migration(None, Some(&[Method::GET])), &file, &mark(3)).unwrap();
        assert!(reads.change(&migration(None, Some(&[])), &file, &mark(4)).is_err());

        let (state, _) = lower.change(&freeze(None, false), &file, &mark(5)).unwrap();
        let (state, _) = state.change(&freeze(Some("a"), true), &file, &mark(6)).unwrap();
        assert!(state.change(&update("b", to("60")), &file, &mark(7)).is_ok());
        let refusal = state.change(&update("a", to("60")), &file, &mark(7)).unwrap_err();
        assert!(refusal.to_string().ends_with("freeze off a allows them again"), "{refusal}");
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
    fn the_way_back_never_adds_traffic() {
        let file = declared(&[("a", "10"), ("b", "50")]);
        let back = |services: &str, share| {
            Change::Migration(Migration {
                services: services.to_owned(),
                percentage: Some(to(share)),
                only_down: true,
                ..Migration::default()
            })
        };

        let refusal = State::default().change(&back("*", "40"), &file, &mark(0)).unwrap_err();
        assert_eq!(refusal.to_string(), "a is at 10 %, which is less than 40 %: migration-proxy update a 40");
        assert!(State::default().change(&back("b", "40"), &file, &mark(0)).is_ok());
    }

    #[test]
    fn only_what_adds_traffic_needs_to_be_stored() {
        let methods = |from: &[Method], to: &[Method]| {
            methods_entry(Kind::Methods, "a", &Methods(from.to_vec()), &Methods(to.to_vec())).adds_to_new()
        };
        assert!(methods(&[Method::GET], &[]) && methods(&[Method::GET], &[Method::GET, Method::POST]));
        assert!(!methods(&[], &[Method::GET]) && !methods(&[Method::GET, Method::POST], &[Method::GET]));
        let name = "a".to_owned();
        assert!(Entry::switch(Kind::Enabled, Some(&name), false, true).adds_to_new());
        assert!(!Entry::switch(Kind::Enabled, Some(&name), true, true).adds_to_new());
        assert!(!Entry::switch(Kind::SafeMode, None, false, true).adds_to_new());
        assert!(Entry::switch(Kind::SafeMode, None, true, false).adds_to_new());
    }

    #[test]
    fn switches_and_methods_are_remembered_by_themselves() {
        let file = declared(&[("a", "20")]);
        let change = Change::Migration(Migration {
            services: "a".to_owned(),
            enabled: Some(false),
            methods: Some(vec![Method::GET]),
            ..Migration::default()
        });
        let (state, entries) = State::default().change(&change, &file, &mark(0)).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [Kind::Enabled, Kind::Methods]);

        let mut other = file.clone();
        other.services.get_mut("a").unwrap().enabled = false;
        let (state, entries) = state.follow(Some(&file), &other, &mark(1)).unwrap();

        assert_eq!(entries.len(), 1);
        assert_eq!(state.overrides().of("a").methods, Some(vec![Method::GET]));
    }

    #[test]
    fn safe_mode_ends_only_what_the_command_began() {
        let mut file = declared(&[("a", "20"), ("b", "20")]);
        file.services.get_mut("b").unwrap().safe_mode = true;
        let safe_mode = |services: Option<&str>, on| Change::SafeMode {
            services: services.map(str::to_owned),
            on,
            close_streams: None,
        };
        let (state, _) = State::default().change(&safe_mode(None, true), &file, &mark(0)).unwrap();
        let (state, _) = state.change(&safe_mode(Some("a"), true), &file, &mark(0)).unwrap();

        let (state, entries) = state.change(&safe_mode(None, false), &file, &mark(1)).unwrap();
        assert_eq!(entries.len(), 1);
        assert!(!state.overrides().safe_mode && state.overrides().of("a").safe_mode);
        let (state, entries) = state.change(&safe_mode(None, false), &file, &mark(2)).unwrap();
        assert_eq!(entries, []);
        let refusal = state.change(&safe_mode(Some("b"), false), &file, &mark(2)).unwrap_err();
        assert_eq!(refusal.to_string(), "safe mode of b is on in the file: it ends when safe_mode there is off");
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

//! What becomes of a state that two replicas changed at the same time: a change of one alone stands, and where both
//! changed the same, the newest intent wins, by time and then by the replica's name. Everything here is a function of
//! states.

use super::state::{Change, Clock, Declared, Entry, Mark, Migration, Override, ServiceState, Share, State};
use crate::telemetry::audit::Kind;

/// One state of two.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// What holds from now on.
    pub state: State,
    /// What of ours or theirs does not hold, as `from`, with what holds instead, as `to`.
    pub lost: Vec<Lost>,
}

/// An intent that a newer one replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct Lost {
    /// What was wanted, and what is in force.
    pub entry: Entry,
    /// Whose intent won.
    pub winner: Mark,
}

/// Joins `ours` and `theirs`, which both were `base` once.
pub fn merge(base: &State, ours: &State, theirs: &State) -> Merged {
    let mut lost = Vec::new();
    let mut state = State {
        safe_mode: switch(&base.safe_mode, &ours.safe_mode, &theirs.safe_mode),
        freeze: switch(&base.freeze, &ours.freeze, &theirs.freeze),
        ..State::default()
    };
    let none = ServiceState::default();
    for name in ours.services.keys().chain(theirs.services.keys().filter(|name| !ours.services.contains_key(*name))) {
        let of = |state: &'_ State| state.services.get(name).cloned().unwrap_or_else(|| none.clone());
        let service = merge_service(name, &of(base), &of(ours), &of(theirs), &mut lost);
        state.services.insert(name.clone(), service);
    }
    Merged { state, lost }
}

fn merge_service(
    name: &str,
    base: &ServiceState,
    ours: &ServiceState,
    theirs: &ServiceState,
    lost: &mut Vec<Lost>,
) -> ServiceState {
    let share = newest(&base.percentage, &ours.percentage, &theirs.percentage);
    lost.extend(share.lost(|from, to| Entry::share(Kind::Refused, name, *from, *to)));
    let enabled = newest(&base.enabled, &ours.enabled, &theirs.enabled);
    let of = name.to_owned();
    lost.extend(enabled.lost(|from, to| Entry::switch(Kind::Refused, Some(&of), *from, *to)));
    let methods = newest(&base.methods, &ours.methods, &theirs.methods);
    lost.extend(methods.lost(|from, to| Entry::methods(Kind::Refused, name, from, to)));
    ServiceState {
        clock: clock(base, ours, theirs, &share),
        percentage: share.kept.cloned(),
        enabled: enabled.kept.cloned(),
        methods: methods.kept.cloned(),
        safe_mode: switch(&base.safe_mode, &ours.safe_mode, &theirs.safe_mode),
        freeze: switch(&base.freeze, &ours.freeze, &theirs.freeze),
        streams: ours.streams.iter().chain(&theirs.streams).max_by_key(|streams| streams.at).cloned(),
    }
}

/// Whose value is kept, and whose is not.
struct Newest<'a, T> {
    kept: Option<&'a Override<T>>,
    is_ours: bool,
    /// Set when both sides wanted something, and not the same.
    given_up: Option<&'a Override<T>>,
}

impl<T> Newest<'_, T> {
    fn lost(&self, entry: impl FnOnce(&T, &T) -> Entry) -> Option<Lost> {
        let (kept, given_up) = (self.kept?, self.given_up?);
        Some(Lost { entry: entry(&given_up.value, &kept.value), winner: kept.mark.clone() })
    }
}

fn newest<'a, T: PartialEq>(
    base: &Option<Override<T>>,
    ours: &'a Option<Override<T>>,
    theirs: &'a Option<Override<T>>,
) -> Newest<'a, T> {
    let keep = |kept: &'a Option<Override<T>>, is_ours, given_up| Newest { kept: kept.as_ref(), is_ours, given_up };
    match (ours, theirs) {
        _ if ours == base || ours == theirs => keep(theirs, false, None),
        _ if theirs == base => keep(ours, true, None),
        (Some(our), Some(their)) => {
            let is_same = our.value == their.value && our.declared == their.declared;
            if is_same || !our.mark.is_newer_than(&their.mark) {
                keep(theirs, false, Some(our).filter(|_| !is_same))
            } else {
                keep(ours, true, Some(their))
            }
        }
        (Some(_), None) => keep(ours, true, None),
        (None, _) => keep(theirs, false, None),
    }
}

/// A switch that one side turned on and the other off stays on: what is on takes traffic off new, or keeps it off.
fn switch(base: &Option<Mark>, ours: &Option<Mark>, theirs: &Option<Mark>) -> Option<Mark> {
    match (ours, theirs) {
        _ if ours == base || ours == theirs => theirs.clone(),
        _ if theirs == base => ours.clone(),
        (Some(our), Some(their)) => Some(if our.is_newer_than(their) { our.clone() } else { their.clone() }),
        (our, their) => our.as_ref().or(their.as_ref()).cloned(),
    }
}

/// A clock belongs to the share that it was started with; a confirmation changes the clock alone.
fn clock<T>(base: &ServiceState, ours: &ServiceState, theirs: &ServiceState, share: &Newest<'_, T>) -> Option<Clock> {
    let share_is_untouched = ours.percentage == base.percentage && theirs.percentage == base.percentage;
    let takes_ours = if share_is_untouched { ours.clock != base.clock } else { share.is_ours };
    if takes_ours { ours.clock.clone() } else { theirs.clock.clone() }
}

/// The newer intent of another replica that has set, since the state was `known`, what this change would set too; with
/// the service, or nothing for everything.
pub fn overtaken(
    known: &State,
    now: &State,
    change: &Change,
    declared: &Declared,
    asked: &Mark,
) -> Option<(String, Mark)> {
    let pattern = match change {
        Change::Migration(Migration { services, .. }) => services,
        Change::SafeMode { services: Some(services), .. } | Change::Freeze { services: Some(services), .. } => services,
        Change::SafeMode { services: None, on, .. } => {
            return turned(*on, &known.safe_mode, &now.safe_mode, asked).map(|mark| (String::new(), mark.clone()));
        }
        Change::Freeze { services: None, on } => {
            return turned(*on, &known.freeze, &now.freeze, asked).map(|mark| (String::new(), mark.clone()));
        }
        Change::Confirm(_) => return None,
    };
    let none = ServiceState::default();
    let named = declared.matching(pattern).ok()?;
    named.into_iter().find_map(|(name, _)| {
        let [before, after] = [known, now].map(|state| state.services.get(name).unwrap_or(&none));
        overtaken_for_service(before, after, change, asked).map(|mark| (name.clone(), mark.clone()))
    })
}

fn overtaken_for_service<'a>(
    before: &ServiceState,
    after: &'a ServiceState,
    change: &Change,
    asked: &Mark,
) -> Option<&'a Mark> {
    match change {
        Change::Migration(Migration { percentage, enabled, methods, .. }) => {
            // A share by so many points moves on from wherever the other one has led.
            let sets_share = matches!(percentage, Some(Share::To(_)));
            set(sets_share, &before.percentage, &after.percentage, asked)
                .or_else(|| set(enabled.is_some(), &before.enabled, &after.enabled, asked))
                .or_else(|| set(methods.is_some(), &before.methods, &after.methods, asked))
        }
        Change::SafeMode { on, .. } => turned(*on, &before.safe_mode, &after.safe_mode, asked),
        Change::Freeze { on, .. } => turned(*on, &before.freeze, &after.freeze, asked),
        Change::Confirm(_) => None,
    }
}

fn set<'a, T: PartialEq>(
    is_wanted: bool,
    before: &Option<Override<T>>,
    after: &'a Option<Override<T>>,
    asked: &Mark,
) -> Option<&'a Mark> {
    let mark = after.as_ref().filter(|_| is_wanted && before != after).map(|after| &after.mark);
    mark.filter(|mark| mark.is_newer_than(asked))
}

fn turned<'a>(on: bool, before: &Option<Mark>, after: &'a Option<Mark>, asked: &Mark) -> Option<&'a Mark> {
    after.as_ref().filter(|mark| !on && before != after && mark.is_newer_than(asked))
}

impl Mark {
    /// The newest is decided by time, then by the replica's name, so that every replica decides alike.
    fn is_newer_than(&self, other: &Self) -> bool {
        (self.at, &self.replica) > (other.at, &other.replica)
    }
}

//! What becomes of a state that two replicas changed at the same time: a change of one alone stands, and where both
//! changed the same, the newest intent wins, by time and then by the replica's name. Everything here is a function of
//! states.

use super::change::{Change, Migration, Share};
use super::history::short;
use super::state::{Clock, Declared, Entry, Mark, Override, Rollback, Said, ServiceState, State, methods_entry};
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
        rollback: rollback(&base.rollback, &ours.rollback, &theirs.rollback, &mut lost),
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
    lost.extend(methods.lost(|from, to| methods_entry(Kind::Refused, name, from, to)));
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

/// The newest wish for an earlier configuration; what one side wishes outlives what the other side ended.
fn rollback(
    base: &Option<Box<Rollback>>,
    ours: &Option<Box<Rollback>>,
    theirs: &Option<Box<Rollback>>,
    lost: &mut Vec<Lost>,
) -> Option<Box<Rollback>> {
    let is_in_base = |wish: &Rollback| base.as_ref().is_some_and(|base| base.mark == wish.mark);
    match (ours, theirs) {
        _ if ours == base || ours == theirs => theirs.clone(),
        _ if theirs == base => ours.clone(),
        (Some(our), Some(their)) if our.mark == their.mark => {
            let seen = our.seen.union(&their.seen).cloned().collect();
            Some(Box::new(Rollback { seen, ..(**their).clone() }))
        }
        (Some(our), Some(their)) => {
            let (kept, given_up) = if our.mark.is_newer_than(&their.mark) { (our, their) } else { (their, our) };
            if kept.hash != given_up.hash {
                let said = |wish: &Rollback| Some(Said::text(short(&wish.hash)));
                let key = Some("configuration".to_owned());
                let entry = Entry { kind: Kind::Refused, service: None, key, from: said(given_up), to: said(kept) };
                lost.push(Lost { entry, winner: kept.mark.clone() });
            }
            Some(kept.clone())
        }
        // One side ended what the other side only knows more about.
        (our, their) => our.as_ref().or(their.as_ref()).filter(|wish| !is_in_base(wish)).cloned(),
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
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        (self.at, &self.replica) > (other.at, &other.replica)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::config::{Environment, Percent, Text};

    const FILE: &str = "
services:
  - {name: a, old_host: a.example, old_backend: '127.0.0.1:1', new_host: a.new.example, migration: {percentage: 20}}
  - {name: b, old_host: b.example, old_backend: '127.0.0.1:1', new_host: b.new.example, migration: {percentage: 0}}
";

    fn declared() -> Declared {
        Declared::of(&crate::config::parse(&Text::new("x", FILE), &Environment::new()).unwrap().config)
    }

    fn mark(second: i64, replica: &str) -> Mark {
        let at = Timestamp::from_second(1_700_000_000 + second).unwrap();
        Mark { at, replica: replica.to_owned(), by: "loopback".to_owned(), reason: None }
    }

    fn to(percentage: &str) -> Share {
        Share::To(percentage.parse::<Percent>().unwrap())
    }

    fn update(services: &str, share: Share) -> Change {
        Change::Migration(Migration { services: services.to_owned(), percentage: Some(share), ..Migration::default() })
    }

    fn safe_mode(on: bool) -> Change {
        Change::SafeMode { services: None, on, close_streams: None }
    }

    fn after(state: &State, change: &Change, mark: &Mark) -> State {
        state.change(change, &declared(), mark).unwrap().0
    }

    fn share(state: &State, service: &str) -> Option<String> {
        state.overrides().of(service).percentage.map(|share| share.to_string())
    }

    #[test]
    fn what_one_side_changed_stands() {
        let base = after(&State::default(), &update("a", to("30")), &mark(0, "1"));
        let ours = after(&base, &update("b", to("5")), &mark(1, "1"));
        let theirs = after(&base, &update("a", to("40")), &mark(2, "2"));
        let theirs = after(&theirs, &safe_mode(true), &mark(2, "2"));

        let Merged { state, lost } = merge(&base, &ours, &theirs);

        assert_eq!((share(&state, "a"), share(&state, "b")), (Some("40".into()), Some("5".into())));
        assert!(state.overrides().safe_mode && lost.is_empty());
        assert_eq!(merge(&base, &theirs, &ours).state, state, "whoever looks");
        assert_eq!(merge(&base, &base, &theirs).state, theirs);
        assert_eq!(merge(&base, &ours, &base).state, ours);
    }

    #[test]
    fn where_both_changed_the_same_the_newest_wins_by_time_then_by_name() {
        let base = State::default();
        for (ours, theirs, expected) in [
            ((2, "1"), (1, "2"), "30"),
            ((1, "1"), (2, "2"), "40"),
            ((1, "1"), (1, "2"), "40"),
            ((1, "3"), (1, "2"), "30"),
        ] {
            let our = after(&base, &update("a", to("30")), &mark(ours.0, ours.1));
            let their = after(&base, &update("a", to("40")), &mark(theirs.0, theirs.1));

            let Merged { state, lost } = merge(&base, &our, &their);

            assert_eq!(share(&state, "a").as_deref(), Some(expected), "{ours:?} {theirs:?}");
            assert_eq!((lost.len(), lost[0].entry.kind), (1, Kind::Refused));
            assert_eq!(merge(&base, &their, &our).state, state, "whoever looks");
        }
    }

    #[test]
    fn the_same_wish_twice_is_one() {
        let base = State::default();
        let ours = after(&base, &update("a", to("30")), &mark(2, "1"));
        let theirs = after(&base, &update("a", to("30")), &mark(1, "2"));

        assert_eq!(merge(&base, &ours, &theirs), Merged { state: theirs, lost: Vec::new() });
    }

    #[test]
    fn a_switch_that_one_side_turned_on_again_stays_on() {
        let base = after(&State::default(), &safe_mode(true), &mark(0, "1"));
        let off = after(&base, &safe_mode(false), &mark(1, "1"));
        let on_again = after(&off, &safe_mode(true), &mark(2, "2"));

        assert!(!merge(&base, &off, &base).state.overrides().safe_mode);
        assert!(merge(&base, &off, &on_again).state.overrides().safe_mode);
        assert!(merge(&base, &on_again, &off).state.overrides().safe_mode);
    }

    #[test]
    fn a_clock_goes_with_the_share_that_it_was_started_with() {
        let with_clock = Change::Migration(Migration {
            services: "a".to_owned(),
            percentage: Some(to("50")),
            clock: Some(Duration::from_secs(60)),
            ..Migration::default()
        });
        let base = after(&State::default(), &with_clock, &mark(0, "1"));
        let confirmed = after(&base, &Change::Confirm("a".to_owned()), &mark(1, "1"));
        let newer = after(&base, &update("a", to("60")), &mark(2, "2"));
        let (expired, _) = base.expire(mark(60, "2").at, &mark(60, "2")).unwrap();

        let other = after(&base, &update("b", to("1")), &mark(1, "2"));
        assert_eq!(merge(&base, &confirmed, &other).state.confirm_by("a"), None);
        assert!(merge(&base, &base, &other).state.confirm_by("a").is_some());
        assert_eq!(merge(&base, &newer, &confirmed).state.confirm_by("a"), None);
        let merged = merge(&base, &confirmed, &expired).state;
        assert_eq!((share(&merged, "a"), merged.confirm_by("a")), (Some("20".into()), None));
    }

    #[test]
    fn the_newest_wish_for_an_earlier_configuration_holds_until_it_is_ended() {
        let wish = |hash: &str, mark: Mark| Rollback { hash: hash.to_owned(), seen: ["file".to_owned()].into(), mark };
        let first = State::default().roll_back(wish("1", mark(1, "1")));
        let [ours, theirs] =
            [("2", mark(2, "1")), ("3", mark(2, "2"))].map(|(hash, mark)| first.roll_back(wish(hash, mark)));

        let Merged { state, lost } = merge(&first, &ours, &theirs);
        assert_eq!(state, theirs, "by time, then by name");
        assert_eq!((lost.len(), &lost[0].winner), (1, &mark(2, "2")));
        assert_eq!(merge(&first, &theirs, &ours).state, state, "whoever looks");

        let ended = first.end_rollback(&mark(1, "1")).unwrap();
        assert_eq!(ended, State::default());
        assert_eq!(ours.end_rollback(&mark(1, "1")), None, "another one holds");
        assert_eq!(merge(&first, &ended, &first), Merged { state: ended.clone(), lost: Vec::new() });
        assert_eq!(merge(&first, &first, &ended).state, ended);
        assert_eq!(merge(&first, &ended, &ours).state, ours, "a newer one is not ended");

        let [here, there] = ["here", "there"].map(|seen| first.overrule(&mark(1, "1"), seen).unwrap());
        let seen = merge(&first, &here, &there).state.rollback.unwrap().seen;
        assert_eq!(seen, ["file", "here", "there"].map(str::to_owned).into());
        assert_eq!(merge(&first, &ended, &there).state, ended);
        assert_eq!(merge(&first, &there, &ended).state, ended);
        for known in ["file", "1"] {
            assert_eq!(first.overrule(&mark(1, "1"), known), None, "{known}");
        }
    }

    #[test]
    fn only_a_newer_intent_for_the_same_thing_overtakes() {
        let known = State::default();
        let now = after(&known, &update("a", to("40")), &mark(5, "2"));
        let overtakes = |change: &Change, asked: &Mark| overtaken(&known, &now, change, &declared(), asked).is_some();

        assert!(overtakes(&update("a", to("30")), &mark(4, "1")));
        assert!(overtakes(&update("*", to("30")), &mark(5, "1")), "the name decides");
        assert!(!overtakes(&update("a", to("30")), &mark(6, "1")), "ours is newer");
        assert!(!overtakes(&update("a", Share::By(100)), &mark(4, "1")), "it goes on from there");
        assert!(!overtakes(&update("b", to("30")), &mark(4, "1")), "another service");
        assert!(!overtakes(&Change::Confirm("a".to_owned()), &mark(4, "1")));
        assert!(!overtakes(&safe_mode(true), &mark(4, "1")));
        let frozen = after(&known, &Change::Freeze { services: None, on: true }, &mark(5, "2"));
        let thaw = Change::Freeze { services: None, on: false };
        assert!(overtaken(&known, &frozen, &thaw, &declared(), &mark(4, "1")).is_some());
        assert!(overtaken(&frozen, &frozen, &thaw, &declared(), &mark(4, "1")).is_none(), "it was known");
    }

    #[test]
    fn replicas_that_were_apart_come_to_the_same_state_in_every_order() {
        let base = after(&State::default(), &update("*", to("10")), &mark(0, "1"));
        let changes = [
            update("a", to("30")),
            update("b", to("40")),
            safe_mode(true),
            Change::Confirm("a".to_owned()),
            update("*", to("5")),
            Change::Freeze { services: Some("a".to_owned()), on: true },
        ];
        for (number, our) in changes.iter().enumerate() {
            for their in &changes {
                let ours = after(&base, our, &mark(number as i64, "1"));
                let theirs = after(&base, their, &mark(3, "2"));

                let here = merge(&base, &ours, &theirs).state;
                assert_eq!(here.overrides(), merge(&base, &theirs, &ours).state.overrides(), "{our:?} {their:?}");
                // What one of them stored is what the other one finds.
                assert_eq!(merge(&theirs, &here, &here).state, here);
            }
        }
    }
}

//! What somebody wants, and the [`State`] after it. A wish may mean many services; the first thing that speaks against it
//! refuses all of it.

use std::time::Duration;

use http::Method;
use jiff::{SignedDuration, Timestamp};

use super::state::{
    Changed, Clock, Declared, DeclaredService, Entry, Mark, Methods, Override, Said, State, methods_entry,
};
use crate::config::{self, Percent};
use crate::telemetry::audit::Kind;

/// The longest clock: whoever wants more does not want a clock.
pub const LONGEST_CLOCK: Duration = Duration::from_secs(30 * 24 * 3600);

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

impl State {
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

impl Declared {
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
        Refusal::Unknown(config::unknown_service(name, self.services.keys().map(String::as_str)))
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
}

/// Turns a switch on or off; nothing is told when it was so already.
fn turn(switch: &mut Option<Mark>, kind: Kind, service: Option<&String>, on: bool, mark: &Mark) -> Option<Entry> {
    let before = std::mem::replace(switch, on.then(|| mark.clone())).is_some();
    (before != on).then(|| Entry::switch(kind, service, before, on))
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
    use crate::control::state::tests::{declared, mark, share, to, update};

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
}

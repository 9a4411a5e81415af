//! Who changed what, when and why: one line per change, written before the change is reported as done, unless its
//! destination takes nothing for a while.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value as Json};

use super::difference::{Difference, Said};
use super::labels::LogKind;
use super::outlet::Outlet;
use super::sink::SinkError;
use super::text;
use crate::config::{Log, LogFormat};

/// Who changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A caller on this machine.
    Loopback,
    /// The holder of the token of this name.
    Token(Box<str>),
    /// An edit of the configuration file.
    File,
    /// The proxy itself.
    Process,
    /// Somebody on another replica, which has audited it.
    Replica(Box<str>),
}

impl Actor {
    /// The word in audit lines.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Loopback => "loopback",
            Self::Token(name) | Self::Replica(name) => name,
            Self::File => "file",
            Self::Process => "process",
        }
    }

    /// Nobody knows who, nor where.
    pub fn some_replica() -> Self {
        Self::Replica("another replica".into())
    }
}

/// What was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The share of new.
    Percentage,
    /// `migration.enabled`.
    Enabled,
    /// `migration.methods`.
    Methods,
    /// Safe mode, of a service or of all.
    SafeMode,
    /// No increases, of a service or of all.
    Freeze,
    /// A share that would have gone back stays.
    Confirm,
    /// A share went back because nobody confirmed it.
    Expired,
    /// The file took the place of an operator's change.
    Cleared,
    /// The configuration.
    Config,
    /// Nothing: the change was refused.
    Refused,
    /// A host that the configuration claims, or does not claim any more.
    Host,
    /// Where requests are sent, and how.
    Target,
    /// Who goes where, beside the share.
    Rules,
    /// Who is believed.
    Trust,
    /// Anything else that the configuration says.
    Setting,
}

impl Kind {
    /// The word in the history and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Percentage => "percentage",
            Self::Enabled => "enabled",
            Self::Methods => "methods",
            Self::SafeMode => "safe_mode",
            Self::Freeze => "freeze",
            Self::Confirm => "confirm",
            Self::Expired => "expired",
            Self::Cleared => "cleared",
            Self::Config => "config",
            Self::Refused => "refused",
            Self::Host => "host",
            Self::Target => "target",
            Self::Rules => "rules",
            Self::Trust => "trust",
            Self::Setting => "setting",
        }
    }

    /// The word in audit lines, which tell of the file's own matters with one word and their key.
    fn audited(self) -> Self {
        match self {
            Self::Host | Self::Target | Self::Rules | Self::Trust | Self::Setting => Self::Config,
            other => other,
        }
    }
}

/// A value before or after a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Written as it is.
    Number(f64),
    /// Written in quotes.
    Text(&'a str),
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What was changed.
    pub kind: Kind,
    /// Of which service.
    pub service: Option<&'a str>,
    /// What was before.
    pub from: Option<Value<'a>>,
    /// What is now.
    pub to: Option<Value<'a>>,
    /// Why, in the actor's words.
    pub reason: Option<&'a str>,
}

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    state: Mutex<State>,
    /// Of the configuration that is served.
    generation: AtomicU64,
    listener: OnceLock<Listener>,
}

/// Hears of changes once they are written.
struct Listener(Box<dyn Fn(&Heard<'_>) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// A change that was written.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// What was changed.
    pub difference: &'a Difference,
    /// Why, in the actor's words.
    pub reason: Option<&'a str>,
    /// Who changed it, as we know it.
    pub actor: &'a Actor,
    /// Who changed it, as the caller says.
    pub claimed: Option<&'a str>,
    /// When.
    pub time: Timestamp,
    /// Under which configuration.
    pub generation: u64,
}

/// One line, taken apart.
struct Told<'a> {
    event: &'a Event<'a>,
    key: Option<&'a str>,
    actor: &'a Actor,
    claimed: Option<&'a str>,
    time: Timestamp,
    generation: u64,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    format: LogFormat,
    outlet: Arc<Outlet>,
}

/// Checked settings that wait for [`Audit::install`].
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    format: LogFormat,
    /// A newly opened destination, when it is another one than before.
    outlet: Option<Arc<Outlet>>,
}

impl Audit {
    /// Opens `log.audit_path`.
    pub fn new(log: &Log) -> Result<Self, SinkError> {
        let outlet = Outlet::open(&log.audit_path)?;
        let state = Mutex::new(State { path: log.audit_path.clone(), format: log.format, outlet });
        Ok(Self { state, generation: AtomicU64::new(1), listener: OnceLock::new() })
    }

    /// Writes one change. `claimed` is who the caller says to be.
    pub fn record(&self, event: &Event<'_>, actor: &Actor, claimed: Option<&str>) {
        self.write(event, None, actor, claimed, Timestamp::now());
    }

    /// Writes one change by itself, and tells whoever listens.
    pub fn record_difference(
        &self,
        difference: &Difference,
        reason: Option<&str>,
        actor: &Actor,
        claimed: Option<&str>,
    ) {
        let time = Timestamp::now();
        self.write_difference(difference, reason, actor, claimed, time);
        self.notify(&Heard { difference, reason, actor, claimed, time, generation: self.generation() });
    }

    /// Tells whoever listens of a change that was audited elsewhere.
    pub fn tell(&self, difference: &Difference, reason: Option<&str>, actor: &Actor) {
        let (time, generation) = (Timestamp::now(), self.generation());
        self.notify(&Heard { difference, reason, actor, claimed: None, time, generation });
    }

    fn notify(&self, heard: &Heard<'_>) {
        if let Some(Listener(listener)) = self.listener.get() {
            listener(heard);
        }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Writes what another configuration changed, and which one it is; nobody else is told of it.
    pub fn record_configuration(
        &self,
        differences: &[Difference],
        hashes: (&str, &str),
        reason: Option<&str>,
        actor: &Actor,
        claimed: Option<&str>,
    ) {
        let time = Timestamp::now();
        for difference in differences {
            self.write_difference(difference, reason, actor, claimed, time);
        }
        let (from, to) = (Some(Value::Text(hashes.0)), Some(Value::Text(hashes.1)));
        let event = Event { kind: Kind::Config, service: None, from, to, reason };
        self.write(&event, None, actor, claimed, time);
    }

    fn write_difference(
        &self,
        difference: &Difference,
        reason: Option<&str>,
        actor: &Actor,
        claimed: Option<&str>,
        time: Timestamp,
    ) {
        let Difference { kind, service, key, from, to } = difference;
        let (from, to) = (from.as_ref().map(value), to.as_ref().map(value));
        let event = Event { kind: *kind, service: service.as_deref(), from, to, reason };
        let host = (*kind == Kind::Host).then_some("old_host");
        self.write(&event, key.as_deref().or(host), actor, claimed, time);
    }

    /// Lines tell this generation of the configuration from now on.
    pub fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Tells changes from now on to the first listener that is given.
    pub fn listen(&self, listener: impl Fn(&Heard<'_>) + Send + Sync + 'static) {
        let _ = self.listener.set(Listener(Box::new(listener)));
    }

    fn write(&self, event: &Event<'_>, key: Option<&str>, actor: &Actor, claimed: Option<&str>, time: Timestamp) {
        let generation = self.generation();
        let told = Told { event, key, actor, claimed, time, generation };
        let state = self.lock();
        let line = match state.format {
            LogFormat::Text => text_line(&told),
            LogFormat::Json => json_line(&told),
        };
        let outlet = state.outlet.clone();
        drop(state);
        outlet.write(LogKind::Audit, line.into_bytes());
    }

    /// Opens what changed settings need, without using it yet.
    pub fn prepare(&self, log: &Log) -> Result<Prepared, SinkError> {
        let changed = self.lock().path != log.audit_path;
        let outlet = changed.then(|| Outlet::open(&log.audit_path)).transpose()?;
        Ok(Prepared { path: log.audit_path.clone(), format: log.format, outlet })
    }

    /// Uses changed settings.
    pub fn install(&self, prepared: Prepared) {
        let mut state = self.lock();
        state.format = prepared.format;
        if let Some(outlet) = prepared.outlet {
            (state.path, state.outlet) = (prepared.path, outlet);
        }
    }

    /// Opens the path anew, after a rotation. After an error the old file stays.
    pub fn reopen(&self) -> Result<(), SinkError> {
        let mut state = self.lock();
        state.outlet = Outlet::open(&state.path)?;
        Ok(())
    }

    /// Waits until what was recorded is written; false when that takes longer than `patience`.
    pub fn close(&self, patience: Duration) -> bool {
        let outlet = self.lock().outlet.clone();
        outlet.settle(patience)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn value(said: &Said) -> Value<'_> {
    match said {
        Said::Share(share) => Value::Number(share.as_f64()),
        Said::Text(text) => Value::Text(text),
    }
}

fn text_line(told: &Told<'_>) -> String {
    let kind = told.event.kind.audited().as_str();
    let mut line = format!("{} - migration_proxy - AUDIT - {kind}", text::control_time(told.time));
    for (key, value) in fields(told) {
        line.push(' ');
        line.push_str(key);
        line.push('=');
        match value {
            Value::Number(number) => line.push_str(&number.to_string()),
            Value::Text(value) => {
                line.push('"');
                text::push_readable(&mut line, value);
                line.push('"');
            }
        }
    }
    line.push('\n');
    line
}

fn json_line(told: &Told<'_>) -> String {
    let mut object = Map::new();
    object.insert("time".into(), text::rfc3339_time(told.time).into());
    object.insert("level".into(), "AUDIT".into());
    object.insert("kind".into(), told.event.kind.audited().as_str().into());
    for (key, value) in fields(told) {
        let value = match value {
            Value::Number(number) => number_as_json(number),
            Value::Text(value) => value.into(),
        };
        object.insert(key.into(), value);
    }
    format!("{}\n", Json::Object(object))
}

/// 42 and not 42.0, as in the text form.
fn number_as_json(number: f64) -> Json {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return (number as i64).into();
    }
    Number::from_f64(number).map_or(Json::Null, Json::Number)
}

fn fields<'a>(told: &Told<'a>) -> impl Iterator<Item = (&'static str, Value<'a>)> {
    let Told { event, key, actor, claimed, generation, .. } = *told;
    [
        ("service", event.service.map(Value::Text)),
        ("key", key.map(Value::Text)),
        ("from", event.from),
        ("to", event.to),
        ("by", Some(Value::Text(actor.as_str()))),
        ("claimed", claimed.map(Value::Text)),
        ("reason", event.reason.map(Value::Text)),
        ("generation", Some(Value::Number(generation as f64))),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tracing::Level;

    use super::*;
    use crate::config::{AccessFormat, Percent};

    const EVENT: Event<'static> = Event {
        kind: Kind::Config,
        service: Some("a"),
        from: Some(Value::Number(5.0)),
        to: Some(Value::Number(12.5)),
        reason: Some("ticket \"1\"\n\u{4e00}"),
    };

    fn told<'a>(event: &'a Event<'a>, key: Option<&'a str>, actor: &'a Actor, claimed: Option<&'a str>) -> Told<'a> {
        let noon = Timestamp::from_second(1_704_110_400).unwrap();
        Told { event, key, actor, claimed, time: noon, generation: 4 }
    }

    fn settings(path: &Path, format: LogFormat) -> Log {
        Log {
            level: Level::INFO,
            format,
            access: AccessFormat::Off,
            access_path: "/dev/null".into(),
            access_sample: Percent::HUNDRED,
            audit_path: path.into(),
        }
    }

    #[test]
    fn a_text_line_is_the_one_of_the_contract() {
        assert_eq!(
            text_line(&told(&EVENT, None, &Actor::Loopback, Some("me@host"))),
            "2024-01-01 12:00:00 - migration_proxy - AUDIT - config service=\"a\" from=5 to=12.5 by=\"loopback\" \
             claimed=\"me@host\" reason=\"ticket \\x221\\x22\\x0A\u{4e00}\" generation=4\n"
        );
        let bare =
            Event { kind: Kind::Refused, service: None, from: None, to: Some(Value::Text("9f2c")), reason: None };
        assert_eq!(
            text_line(&told(&bare, None, &Actor::File, None)),
            "2024-01-01 12:00:00 - migration_proxy - AUDIT - refused to=\"9f2c\" by=\"file\" generation=4\n"
        );
        let target = Event { kind: Kind::Target, ..bare };
        assert!(
            text_line(&told(&target, Some("new_host"), &Actor::File, None)).contains(" config key=\"new_host\" to=")
        );
    }

    #[test]
    fn a_json_line_is_one_object() {
        let line = json_line(&told(&EVENT, None, &Actor::Token("ci".into()), None));
        assert_eq!(
            serde_json::from_str::<Json>(&line).unwrap(),
            serde_json::json!({
                "time": "2024-01-01T12:00:00Z", "level": "AUDIT", "kind": "config", "service": "a", "from": 5, "to": 12.5,
                "by": "ci", "reason": "ticket \"1\"\n\u{4e00}", "generation": 4,
            })
        );
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn a_rotated_file_is_left_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("audit"), folder.path().join("audit.1"));
        let audit = Audit::new(&settings(&path, LogFormat::Text)).unwrap();

        audit.record(&EVENT, &Actor::File, None);
        fs::rename(&path, &rotated).unwrap();
        audit.record(&EVENT, &Actor::File, None);
        audit.reopen().unwrap();
        audit.record(&EVENT, &Actor::Process, None);

        let lines = |path| fs::read_to_string(path).unwrap().lines().count();
        assert_eq!((lines(&rotated), lines(&path)), (2, 1));
    }

    #[test]
    fn settings_change_only_when_the_new_path_can_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("audit"), folder.path().join("other"));
        let audit = Audit::new(&settings(&path, LogFormat::Text)).unwrap();

        let error = audit.prepare(&settings(Path::new("/nonexistent/audit"), LogFormat::Json)).unwrap_err();
        audit.record(&EVENT, &Actor::File, None);
        audit.install(audit.prepare(&settings(&other, LogFormat::Json)).unwrap());
        audit.record(&EVENT, &Actor::File, None);

        assert_eq!(error.path, Path::new("/nonexistent/audit"));
        assert!(fs::read_to_string(&path).unwrap().contains(" - AUDIT - "));
        assert!(fs::read_to_string(&other).unwrap().starts_with('{'));
    }
}

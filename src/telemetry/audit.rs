//! Who changed what, when and why: one line per change, written before the change is reported as done.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde_json::{Map, Number, Value as Json};
use tracing::error;

use super::sink::{Sink, SinkError};
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
}

impl Actor {
    /// The word in audit lines.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Loopback => "loopback",
            Self::Token(name) => name,
            Self::File => "file",
            Self::Process => "process",
        }
    }
}

/// What was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Kind {
    /// The word in audit lines.
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
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    format: LogFormat,
    sink: Sink,
}

/// Checked settings that wait for [`Audit::install`].
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    format: LogFormat,
    /// A newly opened destination, when it is another one than before.
    sink: Option<Sink>,
}

impl Audit {
    /// Opens `log.audit_path`.
    pub fn new(log: &Log) -> Result<Self, SinkError> {
        let sink = Sink::open(&log.audit_path)?;
        Ok(Self { state: Mutex::new(State { path: log.audit_path.clone(), format: log.format, sink }) })
    }

    /// Writes one change. `claimed` is who the caller says to be.
    pub fn record(&self, event: &Event<'_>, actor: &Actor, claimed: Option<&str>) {
        let mut state = self.lock();
        let now = Timestamp::now();
        let line = match state.format {
            LogFormat::Text => text_line(event, actor, claimed, now),
            LogFormat::Json => json_line(event, actor, claimed, now),
        };
        if let Err((_, error)) = state.sink.write(&[line.as_bytes()]) {
            error!(%error, path = %state.path.display(), "audit log cannot be written, a line is lost");
        }
    }

    /// Opens what changed settings need, without using it yet.
    pub fn prepare(&self, log: &Log) -> Result<Prepared, SinkError> {
        let changed = self.lock().path != log.audit_path;
        let sink = changed.then(|| Sink::open(&log.audit_path)).transpose()?;
        Ok(Prepared { path: log.audit_path.clone(), format: log.format, sink })
    }

    /// Uses changed settings.
    pub fn install(&self, prepared: Prepared) {
        let mut state = self.lock();
        state.format = prepared.format;
        if let Some(sink) = prepared.sink {
            (state.path, state.sink) = (prepared.path, sink);
        }
    }

    /// Opens the path anew, after a rotation. After an error the old file stays.
    pub fn reopen(&self) -> Result<(), SinkError> {
        let mut state = self.lock();
        state.sink = Sink::open(&state.path)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text_line(event: &Event<'_>, actor: &Actor, claimed: Option<&str>, now: Timestamp) -> String {
    let mut line = format!("{} - migration_proxy - AUDIT - {}", text::control_time(now), event.kind.as_str());
    for (key, value) in fields(event, actor, claimed) {
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

fn json_line(event: &Event<'_>, actor: &Actor, claimed: Option<&str>, now: Timestamp) -> String {
    let mut object = Map::new();
    object.insert("time".into(), text::rfc3339_time(now).into());
    object.insert("level".into(), "AUDIT".into());
    object.insert("kind".into(), event.kind.as_str().into());
    for (key, value) in fields(event, actor, claimed) {
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

fn fields<'a>(
    event: &Event<'a>,
    actor: &'a Actor,
    claimed: Option<&'a str>,
) -> impl Iterator<Item = (&'static str, Value<'a>)> {
    [
        ("service", event.service.map(Value::Text)),
        ("from", event.from),
        ("to", event.to),
        ("by", Some(Value::Text(actor.as_str()))),
        ("claimed", claimed.map(Value::Text)),
        ("reason", event.reason.map(Value::Text)),
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

    fn noon() -> Timestamp {
        Timestamp::from_second(1_704_110_400).unwrap()
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
            text_line(&EVENT, &Actor::Loopback, Some("me@host"), noon()),
            "2024-01-01 12:00:00 - migration_proxy - AUDIT - config service=\"a\" from=5 to=12.5 by=\"loopback\" \
             claimed=\"me@host\" reason=\"ticket \\x221\\x22\\x0A\u{4e00}\"\n"
        );
        let bare =
            Event { kind: Kind::Refused, service: None, from: None, to: Some(Value::Text("9f2c")), reason: None };
        assert_eq!(
            text_line(&bare, &Actor::File, None, noon()),
            "2024-01-01 12:00:00 - migration_proxy - AUDIT - refused to=\"9f2c\" by=\"file\"\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object() {
        let line = json_line(&EVENT, &Actor::Token("ci".into()), None, noon());
        assert_eq!(
            serde_json::from_str::<Json>(&line).unwrap(),
            serde_json::json!({
                "time": "2024-01-01T12:00:00Z", "level": "AUDIT", "kind": "config", "service": "a", "from": 5, "to": 12.5,
                "by": "ci", "reason": "ticket \"1\"\n\u{4e00}",
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

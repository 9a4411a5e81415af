//! Control lines on stderr: what changed, what failed, what somebody has to do. Never a line per request. Level and form
//! can be changed while we run, and nobody waits for a reader that does not read.

use std::fmt::{self, Write as _};
use std::panic;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;

use super::labels::LogKind;
use super::outlet::{self, Outlet};
use super::text;
use crate::config::LogFormat;

/// The name of the program in its lines, and the target of our own events.
const NAME: &str = "migration_proxy";

/// How long a panic waits for earlier lines.
const PANIC_PATIENCE: Duration = Duration::from_millis(200);

/// The handle of the subscriber that this process has, if it is ours.
static INSTALLED: OnceLock<LogHandle> = OnceLock::new();

/// Changes the level and the form of control lines while we run.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
    json: Arc<AtomicBool>,
}

impl LogHandle {
    /// Lines from now on.
    pub fn set(&self, level: Level, format: LogFormat) {
        self.json.store(format == LogFormat::Json, Ordering::Relaxed);
        // Fails only when the subscriber is gone, and then there are no lines.
        let _ = self.filter.reload(filter(level));
    }
}

/// Installs the subscriber. When the process has one already, that one stays: ours is handed out again, and a
/// stranger's takes no notice of the handle.
pub fn init(level: Level, format: LogFormat) -> LogHandle {
    INSTALLED
        .get_or_init(|| {
            let (filter, reloader) = reload::Layer::new(filter(level));
            let json = Arc::new(AtomicBool::new(format == LogFormat::Json));
            // A process that cannot have one more thread has no workers either, and says so in its own way.
            let lines = Lines { json: Arc::clone(&json), outlet: Outlet::stderr().ok() };
            let _ = tracing::subscriber::set_global_default(Registry::default().with(filter).with(lines));
            LogHandle { filter: reloader, json }
        })
        .clone()
}

/// Waits until everything that was said is written; false when that takes longer than `patience`. What else writes to
/// stderr comes behind it then.
pub fn flush(patience: Duration) -> bool {
    outlet::flush(patience)
}

/// Panics are told behind the lines that came before them; while nobody reads those, telling would hold up the thread.
pub fn tell_panics() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if flush(PANIC_PATIENCE) {
            tell(panic);
        }
    }));
}

/// Our own events from `level` on. Libraries only say what went wrong: their finer lines would show headers.
fn filter(level: Level) -> Targets {
    Targets::new().with_default(level.min(Level::WARN)).with_target(NAME, LevelFilter::from_level(level))
}

/// Writes each event as one line.
struct Lines {
    json: Arc<AtomicBool>,
    outlet: Option<Arc<Outlet>>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = if self.json.load(Ordering::Relaxed) {
            json_line(event, Timestamp::now())
        } else {
            text_line(event, Timestamp::now())
        };
        if let Some(outlet) = &self.outlet {
            outlet.push(LogKind::Control, line);
        }
    }
}

fn text_line(event: &Event<'_>, now: Timestamp) -> Vec<u8> {
    let mut fields = TextFields::default();
    event.record(&mut fields);
    let time = text::control_time(now);
    let level = event.metadata().level();
    format!("{time} - {NAME} - {level} - {}{}\n", fields.message, fields.others).into_bytes()
}

fn json_line(event: &Event<'_>, now: Timestamp) -> Vec<u8> {
    let metadata = event.metadata();
    let mut fields = JsonFields::default();
    event.record(&mut fields);
    let mut line = Vec::with_capacity(256);
    for (key, value) in [
        ("{\"time\":", text::rfc3339_time(now).as_str()),
        (",\"level\":", metadata.level().as_str()),
        (",\"target\":", metadata.target()),
        (",\"message\":", &fields.message),
    ] {
        line.extend_from_slice(key.as_bytes());
        text::push_json(&mut line, value.as_bytes());
    }
    line.extend_from_slice(&fields.others);
    line.extend_from_slice(b"}\n");
    line
}

/// ` key=value` for each field; what is more than a word is quoted.
#[derive(Default)]
struct TextFields {
    message: String,
    others: String,
}

impl Visit for TextFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.chars().for_each(|character| text::push_visible(&mut self.message, character));
            return;
        }
        // Writing to a string cannot fail.
        let _ = write!(self.others, " {}=", field.name());
        if is_word(value) || is_quoted(value) {
            self.others.push_str(value);
        } else {
            self.others.push('"');
            text::push_readable(&mut self.others, value);
            self.others.push('"');
        }
    }
}

fn is_word(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'='))
}

/// The value is already the text of a quoted string, as `?value` makes it of strings.
fn is_quoted(value: &str) -> bool {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return false };
    let mut escaped = false;
    let clean = inner.chars().all(|character| {
        let ends = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        !ends && text::is_visible(character)
    });
    clean && !escaped
}

/// `,"key":value` for each field.
#[derive(Default)]
struct JsonFields {
    message: String,
    others: Vec<u8>,
}

impl JsonFields {
    fn push_key(&mut self, field: &Field) {
        self.others.push(b',');
        text::push_json(&mut self.others, field.name().as_bytes());
        self.others.push(b':');
    }

    fn push_literal(&mut self, field: &Field, value: impl fmt::Display) {
        self.push_key(field);
        self.others.extend_from_slice(value.to_string().as_bytes());
    }
}

impl Visit for JsonFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.push_key(field);
            text::push_json(&mut self.others, value.as_bytes());
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push_literal(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push_literal(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push_literal(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.push_literal(field, value);
        } else {
            self.push_literal(field, "null");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing::{debug, error, info, warn};

    use super::*;

    /// Keeps the lines instead of writing them.
    #[derive(Clone)]
    struct Kept {
        json: bool,
        lines: Arc<Mutex<Vec<String>>>,
    }

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let now = Timestamp::from_second(1_704_110_400).unwrap();
            let line = if self.json { json_line(event, now) } else { text_line(event, now) };
            self.lines.lock().unwrap().push(String::from_utf8(line).unwrap());
        }
    }

    fn lines(json: bool, level: Level, log: impl FnOnce()) -> Vec<String> {
        let kept = Kept { json, lines: Arc::default() };
        let (filter, _reloader) = reload::Layer::new(filter(level));
        tracing::subscriber::with_default(Registry::default().with(filter).with(kept.clone()), log);
        let lines = kept.lines.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn a_text_line_is_the_one_of_the_contract() {
        let written = lines(false, Level::INFO, || info!(generation = 4, services = 3, "configuration changed"));
        assert_eq!(
            written,
            ["2024-01-01 12:00:00 - migration_proxy - INFO - configuration changed generation=4 services=3\n"]
        );
    }

    #[test]
    fn values_of_more_than_a_word_are_quoted_and_stay_on_their_line() {
        let hostile = "a b\"\nx=1";
        let written = lines(false, Level::INFO, || {
            warn!(plain = "word", address = %"127.0.0.1:80", debug = ?"two words", shown = %hostile, empty = "", "odd\nline");
        });
        assert_eq!(
            written,
            ["2024-01-01 12:00:00 - migration_proxy - WARN - odd\\x0Aline plain=word address=127.0.0.1:80 \
              debug=\"two words\" shown=\"a b\\x22\\x0Ax=1\" empty=\"\"\n"]
        );
    }

    #[test]
    fn what_only_looks_quoted_is_quoted_again() {
        for (value, expected) in [
            ("\"fine\"", true),
            ("\"fine \\\" too\"", true),
            ("\"forged\" level=\"x\"", false),
            ("\"open\\\"", false),
            ("\"line\n\"", false),
            ("\"", false),
            ("word", false),
        ] {
            assert_eq!(is_quoted(value), expected, "{value}");
        }
    }

    #[test]
    fn a_json_line_is_one_object() {
        let written = lines(true, Level::INFO, || {
            error!(generation = 4, share = 0.5, on = true, path = "a \"b\"\n", "configuration rejected");
        });
        let value: serde_json::Value = serde_json::from_str(&written[0]).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "time": "2024-01-01T12:00:00Z", "level": "ERROR", "target": module_path!(),
                "message": "configuration rejected", "generation": 4, "share": 0.5, "on": true, "path": "a \"b\"\n",
            })
        );
        assert!(written[0].ends_with("}\n"));
    }

    #[test]
    fn libraries_only_tell_what_went_wrong() {
        let log = || {
            debug!("ours");
            debug!(target: "hyper", "theirs");
            warn!(target: "hyper", "theirs");
        };
        assert_eq!(lines(false, Level::DEBUG, log).len(), 2);
        assert_eq!(lines(false, Level::INFO, log).len(), 1);
        assert_eq!(lines(false, Level::ERROR, log).len(), 0);
    }

    #[test]
    fn a_second_start_takes_the_first_subscriber() {
        let first = init(Level::ERROR, LogFormat::Text);
        let second = init(Level::ERROR, LogFormat::Json);
        second.set(Level::ERROR, LogFormat::Json);
        assert!(first.json.load(Ordering::Relaxed));
    }
}

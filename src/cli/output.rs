//! How a verb ends and how its text reaches the terminal: exit codes, failures, colour and width. Results go to stdout,
//! everything else to stderr; colour is written always and taken out wherever nobody would see it.

use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

pub use crate::config::problem::printable;

/// What needs eyes.
pub const ALARM: Style = AnsiColor::Red.on_default().bold();
/// What may need eyes soon.
pub const NOTICE: Style = AnsiColor::Yellow.on_default().bold();

/// Tables are never wider, however wide the terminal is.
const WIDEST: usize = 100;
/// Tables do not shrink below this.
const NARROWEST: usize = 80;

/// Every exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It did not work.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The configuration cannot be used.
    Invalid = 3,
    /// Something is degraded, or not everything could be done.
    Degraded = 4,
    /// Differences were found.
    Different = 5,
    /// A policy forbids it.
    Refused = 6,
    /// The admin port does not answer.
    Unreachable = 7,
    /// Waiting took too long.
    TimedOut = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb has no result.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong and what to do; empty when everything is said, or when nobody listens any more.
    pub message: String,
}

impl Failure {
    /// A failure with a message for people.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

/// Writing a result failed. A reader that has seen enough (`| head`) is none of our business.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Done, ""),
            _ => Self::new(Exit::Failed, format!("cannot write the result: {error}")),
        }
    }
}

/// Writes a result to stdout. A reader that has left takes nothing of it, and the exit code still says what was found.
///
/// # Errors
///
/// The disk is full.
pub fn print(text: &str) -> io::Result<()> {
    match print_to_reader(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// The same for what goes on for ever.
///
/// # Errors
///
/// Nobody reads any more, or the disk is full.
pub fn print_to_reader(text: &str) -> io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a result as JSON to stdout.
///
/// # Errors
///
/// As [`print()`].
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Tells something beside the result; nobody is told when stderr is closed.
pub fn tell(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Says why arguments make no sense. It names them, so colours are for those that are harmless.
pub fn echo(error: &clap::Error) {
    let plain = error.render().to_string();
    let shown: Vec<String> = plain.lines().map(printable).collect();
    if plain.lines().eq(shown.iter()) {
        let _ = error.print();
    } else {
        tell(&shown.join("\n"));
    }
}

/// Says why there is no result.
pub fn complain(failure: &Failure) {
    if !failure.message.is_empty() {
        // They echo arguments and what others said.
        let lines: Vec<String> = failure.message.lines().map(printable).collect();
        tell(&format!("{ALARM}error{ALARM:#}: {}", lines.join("\n")));
    }
}

/// Columns that a table may fill.
pub fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stdout()).map(|size| usize::from(size.ws_col));
    columns.map_or(WIDEST, |columns| columns.clamp(NARROWEST, WIDEST))
}

/// Breaks text into lines of at most `width` characters, at spaces.
pub fn wrap(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut column = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

/// Those of `known` that `name` may have meant, the likeliest first, at most three.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let likeness = |known: &str| strsim::jaro_winkler(&name.to_ascii_lowercase(), known);
    let mut near: Vec<_> = known.into_iter().map(|known| (likeness(known), known)).filter(|(l, _)| *l > 0.8).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.into_iter().map(|(_, known)| known).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes = [
            (Exit::Done, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::Invalid, 3),
            (Exit::Degraded, 4),
            (Exit::Different, 5),
            (Exit::Refused, 6),
            (Exit::Unreachable, 7),
            (Exit::TimedOut, 8),
        ];
        for (exit, code) in codes {
            assert_eq!(ExitCode::from(exit), ExitCode::from(code), "{exit:?}");
        }
    }

    #[test]
    fn a_reader_that_left_is_no_failure_but_a_full_disk_is() {
        let left = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((left.exit, left.message.as_str()), (Exit::Done, ""));

        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.exit, Exit::Failed);
        assert!(full.message.starts_with("cannot write the result"));
    }

    #[test]
    fn text_breaks_at_spaces_and_long_words_stay_whole() {
        for (text, expected) in [
            ("one two three", "one two\nthree"),
            ("one", "one"),
            ("", ""),
            ("a-very-long-word and more", "a-very-long-word\nand more"),
        ] {
            assert_eq!(wrap(text, 8), expected);
        }
    }

    #[test]
    fn the_nearest_names_come_first_and_strangers_not_at_all() {
        let known = ["api-name01", "api-name02", "billing"];
        assert_eq!(nearest("api-name2", known), ["api-name02", "api-name01"]);
        assert_eq!(nearest("Billing", known), ["billing"]);
        assert!(nearest("zzz", known).is_empty());
    }

    #[test]
    fn escape_sequences_of_others_never_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}

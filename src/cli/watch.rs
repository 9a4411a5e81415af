//! Shows the same thing again and again: in place on a terminal, what changed underlined, and one block after the other
//! elsewhere. Nothing is cleared but our own lines, so what was on the screen before stays there to scroll back to.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anstream::adapter::strip_str;
use jiff::Timestamp;

use super::output::{self, Exit, Failure, NOTICE};
use super::words;
use crate::telemetry::text::rfc3339_time;

/// From one look to the next.
const PAUSE: Duration = Duration::from_secs(2);

/// Only these two leave colours as they are.
const UNDERLINED: &str = "\x1b[4m";
const PLAIN: &str = "\x1b[24m";

/// For whom it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For programs: nothing stands between two looks.
    Lines,
}

/// Looks until somebody ends it. What is shown last stays when there is nothing new, and a line below says why.
///
/// # Errors
///
/// The first look fails, or nobody reads any more.
pub fn watch(form: Form, look: impl Fn() -> Result<String, Failure>) -> Result<Exit, Failure> {
    let is_terminal = form == Form::Text && io::stdout().is_terminal();
    let mut screen = Screen::new(form, is_terminal);
    screen.show(&look()?)?;
    loop {
        std::thread::sleep(PAUSE);
        match look() {
            Ok(text) => screen.show(&text)?,
            Err(failure) => screen.stay(failure.message.lines().next().unwrap_or_default())?,
        }
    }
}

/// What stands there.
struct Screen {
    form: Form,
    is_terminal: bool,
    /// The newest text, without marks.
    text: String,
    seen: Instant,
    /// Every line below the place where we began.
    drawn: Vec<String>,
    /// The reason why nothing is new, as it was told last.
    reason: String,
}

impl Screen {
    fn new(form: Form, is_terminal: bool) -> Self {
        Self { form, is_terminal, text: String::new(), seen: Instant::now(), drawn: Vec::new(), reason: String::new() }
    }

    fn show(&mut self, text: &str) -> io::Result<()> {
        self.seen = Instant::now();
        self.reason.clear();
        let before = std::mem::replace(&mut self.text, text.to_owned());
        match self.form {
            Form::Lines => return output::print_to_reader(text),
            Form::Text if !self.is_terminal => {
                return output::print_to_reader(&format!("{}\n{text}\n", rfc3339_time(Timestamp::now())));
            }
            Form::Text => {}
        }
        let lines = marked(&before, text);
        self.draw(lines)
    }

    fn stay(&mut self, reason: &str) -> io::Result<()> {
        if !self.is_terminal {
            let is_news = self.reason != reason;
            reason.clone_into(&mut self.reason);
            let time = rfc3339_time(Timestamp::now());
            match self.form {
                Form::Text if is_news => output::print_to_reader(&format!("{time}\n{reason}\n\n"))?,
                Form::Lines if is_news => output::tell(reason),
                Form::Text | Form::Lines => {}
            }
            return Ok(());
        }
        let age = words::duration(self.seen.elapsed());
        let mut lines: Vec<String> = self.text.lines().map(str::to_owned).collect();
        lines.push(String::new());
        lines.push(format!("{NOTICE}{reason}{NOTICE:#}"));
        lines.push(format!("what stands above is {age} old; still trying, Ctrl-C ends"));
        self.draw(lines)
    }

    /// Draws over what was drawn before.
    fn draw(&mut self, mut lines: Vec<String>) -> io::Result<()> {
        let (columns, rows) = size();
        fit(&mut lines, columns, rows);
        let up = height(&self.drawn, columns);
        // Past anstream, which would take the movement for colour.
        let mut stdout = io::stdout().lock();
        if up > 0 {
            write!(stdout, "\x1b[{up}A\r\x1b[J")?;
            stdout.flush()?;
        }
        drop(stdout);
        self.drawn = lines;
        output::print_to_reader(&(self.drawn.join("\n") + "\n"))
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or((100, 50), |size| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Rows that these lines fill.
fn height(lines: &[String], columns: usize) -> usize {
    let row = |line: &String| strip_str(line).to_string().chars().count().div_ceil(columns).max(1);
    lines.iter().map(row).sum()
}

/// Leaves out what a terminal of that size would push out of reach: the end, but for the last three lines.
fn fit(lines: &mut Vec<String>, columns: usize, rows: usize) {
    const KEPT: usize = 3;
    let mut left_out = 0;
    // One row is where the cursor stands, one tells what is missing.
    while height(lines, columns) + 2 > rows && lines.len() > KEPT + 1 {
        lines.remove(lines.len() - KEPT - 1);
        left_out += 1;
    }
    if left_out > 0 {
        let at = lines.len() - KEPT;
        lines.insert(at, format!("({left_out} more lines: a higher window shows them)"));
    }
}

/// The lines of `text`, the words underlined that stood otherwise in the line of the same beginning before.
fn marked(before: &str, text: &str) -> Vec<String> {
    let first = |line: &str| strip_str(line).to_string().split_whitespace().next().map(str::to_owned);
    let line = |line: &str| {
        let old = before.lines().find(|old| first(line).is_some() && first(old) == first(line));
        old.map_or_else(|| line.to_owned(), |old| with_marks(old, line))
    };
    text.lines().map(line).collect()
}

fn with_marks(before: &str, line: &str) -> String {
    let before = strip_str(before).to_string();
    let mut old = before.split_whitespace();
    let words = line.split(' ').map(|word| {
        let plain = strip_str(word).to_string();
        if plain.is_empty() || old.next() == Some(plain.as_str()) {
            return word.to_owned();
        }
        // What steers the colour stays around the mark.
        match word.find(&plain) {
            Some(at) => format!("{}{UNDERLINED}{plain}{PLAIN}{}", &word[..at], &word[at + plain.len()..]),
            None => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_underlined_and_keeps_its_colour() {
        let before = "api-name01  20 %   closed   1 240/s\nlast line";
        let text = "api-name01  25 %   \x1b[31mopen\x1b[0m   1 240/s\nnew line";

        let lines = marked(before, text);

        let expected =
            format!("api-name01  {UNDERLINED}25{PLAIN} %   \x1b[31m{UNDERLINED}open{PLAIN}\x1b[0m   1 240/s");
        assert_eq!(lines, [expected, "new line".to_owned()]);
        assert_eq!(marked(text, text), text.lines().collect::<Vec<_>>());
    }

    #[test]
    fn a_small_terminal_gets_what_it_can_hold() {
        let mut lines: Vec<String> = (0..50).map(|number| format!("line {number}")).collect();
        fit(&mut lines, 80, 10);
        assert_eq!(height(&lines, 80), 9);
        assert_eq!(lines.last().map(String::as_str), Some("line 49"));
        assert_eq!(lines[5], "(42 more lines: a higher window shows them)");

        let long = ["x".repeat(81), format!("{NOTICE}{}{NOTICE:#}", "y".repeat(80)), String::new()];
        assert_eq!(height(&long, 80), 4);
    }
}

//! The picture of the README: bars of processor time for each scenario and proxy, then old and new side by side. It brings its
//! own background, so that it reads on light and dark pages alike.

use std::fmt::Write as _;

use super::peers::OURS;
use super::report::{Entry, Report, best_peer, figure, time};
use super::scenario::Scenario;

const WIDTH: f64 = 820.0;
const MARGIN: f64 = 24.0;
/// Two panels stand beside each other.
const PANEL: f64 = (WIDTH - 3.0 * MARGIN) / 2.0;
const LINE: f64 = 20.0;
/// Where bars begin in a panel, and how long the longest may be; its figure follows.
const BAR: f64 = 130.0;
const LONGEST: f64 = PANEL - BAR - 64.0;
const LONGEST_SIDE: f64 = WIDTH - 2.0 * MARGIN - BAR - 180.0;

const STYLE: &str = "text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,\"DejaVu Sans Mono\",monospace;fill:#d5dbe3;white-space:pre}\
    .t{font-size:15px;font-weight:bold;fill:#fff}.h{fill:#8b98a9}.b{font-weight:bold;fill:#fff}\
    .us{fill:#5fc9a0}.peer{fill:#6b788a}.old{fill:#e0a526}.new{fill:#58b0ee}";

/// Draws a report.
pub fn draw(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 36.0;
    text(&mut body, MARGIN, y, "t", "Processor time of the proxy for one request, in microseconds: shorter is better");
    y += 14.0;
    let groups = report.groups();
    for pair in groups.chunks(2) {
        let lines = pair.iter().map(|(_, entries)| entries.len()).max().unwrap_or(0);
        for (index, (scenario, entries)) in pair.iter().enumerate() {
            panel(&mut body, MARGIN + index as f64 * (PANEL + MARGIN), y, scenario, entries);
        }
        y += 30.0 + lines as f64 * LINE + 6.0;
    }
    for (scenario, entries) in groups.iter().filter(|(_, entries)| entries.iter().any(|e| e.sides(0.5).is_some())) {
        y += 24.0;
        text(&mut body, MARGIN, y, "t", "Old and new side by side in one run");
        y += 18.0;
        text(
            &mut body,
            MARGIN,
            y,
            "h",
            &format!("{} at 1 000 requests/s; bars: half of the answers, mark: 99 of 100", scenario.short),
        );
        y = sides(&mut body, y + 8.0, entries);
    }
    y += 26.0;
    for line in wrapped(&report.method(), 96) {
        text(&mut body, MARGIN, y, "h", &line);
        y += 17.0;
    }
    let height = y + 4.0;
    let title = "Processor time for one request: migration-proxy beside other proxies";
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"t d\">\n\
         <title id=\"t\">{title}</title>\n<desc id=\"d\">{}</desc>\n<style>{STYLE}</style>\n\
         <rect x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"9\" fill=\"#1d232c\" stroke=\"#4a5564\"/>\n{body}</svg>\n",
        escaped(&in_words(report)),
        WIDTH - 1.0,
        height - 1.0,
    )
}

/// One scenario: its name and a bar for each proxy.
fn panel(out: &mut String, x: f64, top: f64, scenario: &Scenario, entries: &[&Entry]) {
    let mut y = top + 26.0;
    text(out, x, y, "h", &format!("{}  {}", scenario.id, scenario.short));
    let longest = entries.iter().filter_map(|entry| entry.median()).map(|row| row.cpu).fold(0.0, f64::max);
    for entry in entries {
        y += LINE;
        let is_ours = entry.name == OURS;
        text(out, x, y, if is_ours { "b" } else { "" }, entry.name);
        match entry.median() {
            Some(row) => {
                let length = row.cpu / longest * LONGEST;
                bar(out, x + BAR, y - 11.0, length, 13.0, if is_ours { "us" } else { "peer" });
                text(out, x + BAR + length + 7.0, y, if is_ours { "b" } else { "" }, &figure(row.cpu));
            }
            None => text(out, x + BAR, y, "h", "no figures"),
        }
    }
}

/// Two thin bars for each proxy, and where the next thing may begin.
fn sides(out: &mut String, top: f64, entries: &[&Entry]) -> f64 {
    let measured: Vec<_> =
        entries.iter().filter_map(|entry| Some((entry.name, entry.sides(0.5)?, entry.sides(0.99)?))).collect();
    let longest = measured.iter().map(|(_, _, (old, new))| old.max(*new)).fold(0.0, f64::max);
    let mut y = top;
    for (name, half, most) in measured {
        text(out, MARGIN, y + 22.0, if name == OURS { "b" } else { "" }, name);
        for (side, half, most) in [("old", half.0, most.0), ("new", half.1, most.1)] {
            let (x, half_length, most_length) =
                (MARGIN + BAR, half / longest * LONGEST_SIDE, most / longest * LONGEST_SIDE);
            bar(out, x, y + 4.0, half_length, 10.0, side);
            bar(out, x, y + 8.5, most_length, 1.0, side);
            bar(out, x + most_length - 1.0, y + 4.0, 2.0, 10.0, side);
            text(out, x + most_length + 8.0, y + 13.0, "", &format!("{side} {}, {}", time(half), time(most)));
            y += 16.0;
        }
        y += 8.0;
    }
    y
}

/// What the picture says, for those who cannot see it.
fn in_words(report: &Report) -> String {
    let of = |(scenario, entries): &(&Scenario, Vec<&Entry>)| {
        let figures =
            entries.iter().filter_map(|entry| Some(format!("{} {}", entry.name, figure(entry.median()?.cpu))));
        let figures = figures.collect::<Vec<_>>().join(", ");
        let ours = entries.iter().find(|entry| entry.name == OURS).and_then(|entry| entry.median());
        let ratio =
            ours.zip(best_peer(entries)).map(|(row, best)| format!(" ({:.2} of the best peer)", row.cpu / best));
        format!("{}: {figures} µs{}.", scenario.short, ratio.unwrap_or_default())
    };
    report.groups().iter().map(of).collect::<Vec<_>>().join(" ")
}

fn bar(out: &mut String, x: f64, y: f64, width: f64, height: f64, class: &str) {
    let radius = if height > 5.0 && width > 5.0 { 2 } else { 0 };
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height}\" rx=\"{radius}\" class=\"{class}\"/>",
        width.max(1.0)
    );
}

fn text(out: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\"{class}>{}</text>", escaped(words));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Lines of at most this many letters, broken between words.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("one is there from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

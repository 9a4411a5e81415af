//! What came out: medians over the rounds, as tables and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::ground::Ground;
use super::load::Counted;
use super::peers::{OURS, Peer};
use super::scenario::{self, Scenario};
use super::sides::Sides;

/// The figures of a round, or their medians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Microseconds of processor time that the proxy used for a request.
    pub cpu: f64,
    /// Requests a second.
    pub rate: f64,
    /// Microseconds in which half of the requests were answered; nothing where h2load times only a part of them.
    pub p50: Option<f64>,
    /// The same for 99 of 100.
    pub p99: Option<f64>,
    /// Requests without a good answer.
    pub failed: u64,
}

impl Row {
    /// What a load cost.
    pub fn new(scenario: &Scenario, used: Duration, counted: &Counted) -> Self {
        let timed = |share| (!scenario.fresh).then(|| percentile(&counted.latencies, share)).flatten();
        Self {
            cpu: used.as_secs_f64() * 1e6 / counted.answered().max(1) as f64,
            rate: counted.good as f64 / counted.seconds.max(1e-6),
            p50: timed(0.5),
            p99: timed(0.99),
            failed: counted.failed,
        }
    }
}

/// One round of one proxy.
pub struct Round {
    /// Its figures.
    pub row: Row,
    /// Old and new apart, in a mixed scenario.
    pub sides: Option<Sides>,
}

/// All rounds of one proxy in one scenario.
pub struct Entry {
    /// Which scenario.
    pub scenario: &'static Scenario,
    /// Which proxy.
    pub name: &'static str,
    /// The figures of each round.
    pub rounds: Vec<Row>,
    /// The samples of all rounds.
    pub sides: Sides,
    /// Why rounds have no figures.
    pub failures: Vec<String>,
}

impl Entry {
    /// The medians over the rounds, failed requests added up; nothing when no round succeeded.
    pub fn median(&self) -> Option<Row> {
        let of = |value: fn(&Row) -> Option<f64>| median(self.rounds.iter().filter_map(value).collect());
        Some(Row {
            cpu: of(|row| Some(row.cpu))?,
            rate: of(|row| Some(row.rate))?,
            p50: of(|row| row.p50),
            p99: of(|row| row.p99),
            failed: self.rounds.iter().map(|row| row.failed).sum(),
        })
    }

    /// Microseconds of old and new at this share of the samples of all rounds.
    pub fn sides(&self, share: f64) -> Option<(f64, f64)> {
        Some((percentile(&self.sides.old, share)?, percentile(&self.sides.new, share)?))
    }
}

/// Everything that was measured.
pub struct Report {
    /// Name and version of the proxies.
    pub peers: Vec<(&'static str, String)>,
    /// The proxies that are not installed.
    pub absent: Vec<&'static str>,
    /// All rounds.
    pub entries: Vec<Entry>,
    /// How long a round was.
    pub seconds: f64,
    /// How many rounds there were.
    pub rounds: usize,
    /// What it was measured on.
    pub machine: String,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(peers: &[Peer], absent: &[&'static str], ground: &Ground, seconds: f64, rounds: usize) -> Self {
        let peers = peers.iter().map(|peer| (peer.name, peer.version.clone())).collect();
        let machine = format!("{}, one CPU for the proxy, {} for load and backends", processor(), ground.load_cpus());
        Self { peers, absent: absent.to_vec(), entries: Vec::new(), seconds, rounds, machine }
    }

    /// Takes a round in.
    pub fn add(&mut self, scenario: &'static Scenario, peer: &Peer, result: Result<Round, String>) {
        let name = peer.name;
        let known = self.entries.iter().position(|entry| entry.name == name && entry.scenario.id == scenario.id);
        let index = known.unwrap_or_else(|| {
            let (rounds, failures, sides) = (Vec::new(), Vec::new(), Sides::default());
            self.entries.push(Entry { scenario, name, rounds, sides, failures });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[index];
        match result {
            Ok(round) => {
                entry.rounds.push(round.row);
                let Sides { old, new } = round.sides.unwrap_or_default();
                entry.sides.old.extend(old);
                entry.sides.new.extend(new);
                entry.sides.old.sort_unstable();
                entry.sides.new.sort_unstable();
            }
            Err(reason) => entry.failures.push(reason),
        }
    }

    /// What went wrong, one line for each round that has no figures or has failed requests.
    pub fn failures(&self) -> Vec<String> {
        let of = |entry: &Entry| {
            let bad: u64 = entry.rounds.iter().map(|row| row.failed).sum();
            let requests = (bad > 0).then(|| format!("{bad} requests failed"));
            let said: Vec<String> = entry.failures.iter().cloned().chain(requests).collect();
            said.into_iter().map(|text| format!("{} {}: {text}", entry.scenario.id, entry.name)).collect::<Vec<_>>()
        };
        self.entries.iter().flat_map(of).collect()
    }

    /// The scenarios that were measured, each with its proxies in the order in which they are known.
    pub fn groups(&self) -> Vec<(&'static Scenario, Vec<&Entry>)> {
        let of = |scenario: &'static Scenario| {
            let find = |name| self.entries.iter().find(|e| e.scenario.id == scenario.id && e.name == name);
            (scenario, self.peers.iter().filter_map(|(name, _)| find(*name)).collect())
        };
        scenario::ALL.iter().map(of).filter(|(_, entries): &(_, Vec<&Entry>)| !entries.is_empty()).collect()
    }

    /// How it was measured, in one line.
    pub fn method(&self) -> String {
        let (seconds, rounds) = (self.seconds, self.rounds);
        let versions: Vec<_> = self.peers.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let absent: Vec<_> = self.absent.iter().map(|name| format!(", {name} absent")).collect();
        let medians = if rounds > 1 { format!("medians of {rounds} rounds") } else { "one round".to_owned() };
        format!("{}{}; {medians} of {seconds} s", versions.join(", "), absent.concat())
    }

    /// The tables, which are Markdown too.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n", self.method(), self.machine);
        for (scenario, entries) in self.groups() {
            let best = best_peer(&entries);
            let head = ["proxy", "CPU µs/request", "to best peer", "requests/s", "p50", "p99", "failed"];
            let rows = entries.iter().map(|entry| match entry.median() {
                Some(row) => vec![
                    entry.name.to_owned(),
                    figure(row.cpu),
                    best.map_or("-".to_owned(), |best| format!("{:.2}", row.cpu / best)),
                    grouped(row.rate),
                    row.p50.map_or("-".to_owned(), time),
                    row.p99.map_or("-".to_owned(), time),
                    row.failed.to_string(),
                ],
                None => [entry.name, "-", "-", "-", "-", "-", "-"].map(str::to_owned).to_vec(),
            });
            let _ = write!(text, "\n{} {}\n\n{}", scenario.id, scenario.title, table(&head, &rows.collect::<Vec<_>>()));
            let sides = entries.iter().filter_map(|entry| {
                let ((old50, new50), (old99, new99)) = (entry.sides(0.5)?, entry.sides(0.99)?);
                let counts = [entry.sides.old.len() as f64, entry.sides.new.len() as f64].map(grouped);
                Some(
                    [vec![entry.name.to_owned()], counts.to_vec(), [old50, new50, old99, new99].map(time).to_vec()]
                        .concat(),
                )
            });
            let sides: Vec<Vec<String>> = sides.collect();
            if !sides.is_empty() {
                let head = ["proxy", "timed on old", "on new", "p50 old", "p50 new", "p99 old", "p99 new"];
                let what = "Old and new of this mix at a fixed 1 000 requests/s, told apart by who answered";
                let _ = write!(text, "\n{what}\n\n{}", table(&head, &sides));
            }
        }
        for failure in self.failures() {
            let _ = write!(text, "\n{failure}\n");
        }
        text
    }

    /// Every round.
    pub fn json(&self) -> String {
        let row = |row: &Row| json!({"cpu_us": row.cpu, "requests_per_second": row.rate, "p50_us": row.p50, "p99_us": row.p99, "failed": row.failed});
        let side = |(old, new): (f64, f64)| json!({"old": old, "new": new});
        let entry = |entry: &&Entry| {
            json!({"proxy": entry.name, "median": entry.median().as_ref().map(row),
                "rounds": entry.rounds.iter().map(row).collect::<Vec<_>>(), "failures": entry.failures,
                "sides": entry.sides(0.5).map(|half| json!({"p50_us": side(half), "p99_us": entry.sides(0.99).map(side)}))})
        };
        let group = |(scenario, entries): (&Scenario, Vec<&Entry>)| json!({"scenario": scenario.id, "title": scenario.title, "proxies": entries.iter().map(entry).collect::<Vec<_>>()});
        let document: Value = json!({"machine": self.machine, "seconds": self.seconds, "absent": self.absent,
            "versions": self.peers.iter().map(|(name, version)| ((*name).to_owned(), json!(version))).collect::<serde_json::Map<_, _>>(),
            "scenarios": self.groups().into_iter().map(group).collect::<Vec<_>>()});
        format!("{document:#}\n")
    }
}

/// A round in one line, for those who wait.
pub fn line(name: &str, result: &Result<Round, String>) -> String {
    match result {
        Ok(Round { row, .. }) => {
            format!("{name:<15} {:>7} µs/request {:>9} requests/s", figure(row.cpu), grouped(row.rate))
        }
        Err(reason) => format!("{name:<15} {reason}"),
    }
}

/// The least processor time of a proxy that is not ours.
pub fn best_peer(entries: &[&Entry]) -> Option<f64> {
    let others = entries.iter().filter(|entry| entry.name != OURS).filter_map(|entry| entry.median());
    others.map(|row| row.cpu).min_by(f64::total_cmp)
}

/// Three digits that matter.
pub fn figure(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { grouped(value) }
}

/// Microseconds with their unit.
pub fn time(microseconds: f64) -> String {
    if microseconds < 1000.0 {
        format!("{microseconds:.0} µs")
    } else {
        format!("{} ms", figure(microseconds / 1000.0))
    }
}

/// A whole number in groups of three.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A table in Markdown whose columns line up; numbers are at the right.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let mut text = String::from("|");
        for (index, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let _ = if index == 0 { write!(text, " {cell:<width$} |") } else { write!(text, " {cell:>width$} |") };
        }
        text + "\n"
    };
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(index, width)| if index == 0 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" })
        .collect();
    let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
    let rows = rows.iter().map(|row| line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    [line(head), line(&rule)].into_iter().chain(rows).collect()
}

/// The value below which this share of an ascending list lies.
pub fn percentile(ascending: &[u32], share: f64) -> Option<f64> {
    let last = ascending.len().checked_sub(1)?;
    Some(f64::from(ascending[((ascending.len() as f64 * share) as usize).min(last)]))
}

/// The value in the middle, or the mean of the two there.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// What the CPU calls itself.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("an unnamed processor".to_owned(), |(_, name)| name.to_owned())
}

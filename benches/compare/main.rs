//! The product beside nginx, HAProxy and Envoy on one machine, all doing the same job: a fifth of the requests to a new
//! cluster behind verified TLS, the rest to the old one. `cargo bench --bench compare -- --help` says what can be chosen.
//!
//! A scenario is a row of [`scenario::ALL`]. Rounds are interleaved: every proxy is started, proves that it does the job
//! ([`proof`]), is put under load ([`load`]) and ended, then comes the next. What is compared is the processor time that
//! the scheduler counted for the proxy ([`children::Child::cpu_time`]), divided by the requests that were answered.
//! The tests are in `tests/it/compare.rs`, as a bench cannot have any.

pub mod chart;
pub mod children;
pub mod client;
pub mod ground;
pub mod load;
pub mod peers;
pub mod proof;
pub mod report;
pub mod scenario;
pub mod sides;

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use children::Stop;
use ground::Ground;
use load::{Amount, Load};
use peers::Peer;
use report::{Report, Round, Row};
use scenario::Scenario;

/// Before a round is measured: connections open, pools fill, code and caches get warm.
const WARM_UP: Duration = Duration::from_millis(700);

/// Compare migration-proxy with nginx, HAProxy and Envoy on this machine.
#[derive(Parser)]
#[command(name = "compare", long_about = None)]
pub struct Options {
    /// One short round of everything: rough figures in less than a minute.
    #[arg(long)]
    quick: bool,
    /// How long one round measures; 5, or 1 with --quick.
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// How many rounds the medians are taken of; 3, or 1 with --quick.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Which scenarios, for instance S1,S3; all of them by default.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    scenarios: Vec<String>,
    /// Which proxies, for instance migration-proxy,nginx; all that are installed by default.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    proxies: Vec<String>,
    /// Write the chart to this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print every round as JSON instead of the tables.
    #[arg(long)]
    json: bool,
    /// Start every proxy and prove that it does the job, but measure nothing.
    #[arg(long)]
    prove: bool,
    /// Another build of migration-proxy than the one that cargo has just made.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_migration-proxy"), hide_default_value = true)]
    binary: PathBuf,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 1.0 } else { 5.0 })
    }

    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }
}

fn main() -> ExitCode {
    // `cargo test --benches` starts this without an argument, and means no measurement.
    if env::args_os().len() == 1 {
        eprintln!("compare measures for minutes; start it with: cargo bench --bench compare");
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    match Stop::on_signals().and_then(|stop| run(&options, &stop)) {
        Ok(report) if report.failures().is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("compare: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Prepares, measures and prints; what was measured comes back.
pub fn run(options: &Options, stop: &Stop) -> Result<Report, String> {
    let scenarios = scenario::chosen(&options.scenarios)?;
    let (seconds, rounds) = (options.seconds(), options.rounds());
    if !(0.2..=600.0).contains(&seconds) || rounds == 0 {
        return Err("--seconds is from 0.2 to 600, --rounds at least 1".to_owned());
    }
    // What is not measured needs no CPUs of its own.
    let ground = Ground::prepare(stop, !options.prove)?;
    let (peers, absent) = peers::installed(&options.binary, &options.proxies)?;
    for name in &absent {
        eprintln!("{name} is not installed and is left out");
    }
    let mut report = Report::new(&peers, &absent, &ground, seconds, rounds);
    if options.prove {
        for peer in &peers {
            let proxy = ground.start(peer)?;
            proof::prove(&ground, proxy.ports()).map_err(|wrong| format!("{}: {wrong}", peer.name))?;
            proxy.end()?;
            eprintln!("{} {} does the job", peer.name, peer.version);
        }
        return Ok(report);
    }
    if ground::strangers().is_some_and(|share| share > 0.05) {
        eprintln!("the machine is busy with something else: the figures will be rough");
    }

    for scenario in scenarios {
        for round in 0..rounds {
            // The order rotates, so that no proxy always comes after the same neighbour.
            for index in 0..peers.len() {
                let peer = &peers[(index + round) % peers.len()];
                stop.check()?;
                // Some versions of h2load hang at times when their time is over, which says nothing about a proxy.
                let again =
                    |reason| if stop.check().is_ok() { measure(&ground, peer, scenario, seconds) } else { Err(reason) };
                let result = measure(&ground, peer, scenario, seconds).or_else(again);
                stop.check()?;
                eprintln!("{} round {} of {rounds}  {}", scenario.id, round + 1, report::line(peer.name, &result));
                report.add(scenario, peer, result);
            }
        }
    }

    if let Some(file) = &options.svg {
        fs::write(file, chart::draw(&report)).map_err(|error| format!("write {}: {error}", file.display()))?;
        eprintln!("chart written to {}", file.display());
    }
    let text = if options.json { report.json() } else { report.text() };
    // A reader that has left is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(report)
}

/// One round of one proxy: start, prove, warm up, measure, end.
fn measure(ground: &Ground, peer: &Peer, scenario: &'static Scenario, seconds: f64) -> Result<Round, String> {
    let proxy = ground.start(peer)?;
    proof::prove(ground, proxy.ports())?;
    let port = if scenario.tls { proxy.ports().tls } else { proxy.ports().plain };
    let load = Load { scenario, port };
    let amount = if scenario.fresh {
        // h2load can close each connection only when it knows how many requests there will be.
        let warm = load.run(ground, Amount::Requests(100))?;
        Amount::Requests(warm.requests_in(seconds).clamp(50, 500_000))
    } else {
        load.run(ground, Amount::Time(WARM_UP))?;
        Amount::Time(Duration::from_secs_f64(seconds))
    };

    let before = proxy.cpu_time()?;
    let counted = load.run(ground, amount)?;
    let used = proxy.cpu_time()?.saturating_sub(before);

    let sides = if scenario.mixed { Some(sides::sample(ground, scenario, port, seconds)?) } else { None };
    let logged = proxy.end()?;
    let sent = proof::REQUESTS + counted.answered();
    if logged < sent * 9 / 10 {
        return Err(format!("{logged} access lines for more than {sent} requests"));
    }
    Ok(Round { row: Row::new(scenario, used, &counted), sides })
}

//! Load by h2load, and what it counted.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::children::Child;
use super::ground::{Ground, OLD_HOST};
use super::peers;
use super::scenario::Scenario;

/// How long h2load may take beyond its time.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much load.
#[derive(Clone, Copy)]
pub enum Amount {
    /// As many requests as there can be in this time.
    Time(Duration),
    /// This many requests, as fast as there can be.
    Requests(u64),
    /// This many requests a second, for this time.
    Rate(f64, Duration),
}

/// One kind of traffic for one listener.
pub struct Load {
    /// What traffic.
    pub scenario: &'static Scenario,
    /// Where to.
    pub port: u16,
}

/// What h2load counted.
pub struct Counted {
    /// Answers with a status of 2xx.
    pub good: u64,
    /// Everything else that was asked.
    pub failed: u64,
    /// How long it took.
    pub seconds: f64,
    /// Microseconds of every good answer, in ascending order.
    pub latencies: Vec<u32>,
    /// What was spoken.
    pub protocol: String,
}

impl Counted {
    /// All requests that came to an end.
    pub fn answered(&self) -> u64 {
        self.good + self.failed
    }

    /// How many requests there would be in this time.
    pub fn requests_in(&self, seconds: f64) -> u64 {
        (self.good as f64 / self.seconds.max(1e-6) * seconds) as u64
    }
}

/// h2load while it runs.
pub struct Running {
    child: Child,
    amount: Amount,
    output: PathBuf,
    log: PathBuf,
}

impl Load {
    /// Starts h2load and waits for its end.
    pub fn run(&self, ground: &Ground, amount: Amount) -> Result<Counted, String> {
        let counted = self.start(ground, amount)?.finish(ground)?;
        let expected = if self.scenario.http2 { "h2" } else { "http/1.1" };
        if counted.good == 0 || counted.protocol != expected {
            let (failed, protocol) = (counted.failed, &counted.protocol);
            return Err(format!("{} good answers, {failed} others, protocol {protocol:?}", counted.good));
        }
        Ok(counted)
    }

    /// Starts h2load.
    pub fn start(&self, ground: &Ground, amount: Amount) -> Result<Running, String> {
        let path = |name: &str| ground.path().join(name);
        let (output, errors, log) = (path("h2load.out"), path("h2load.err"), path("h2load.log"));
        let _ = fs::remove_file(&log);
        let Scenario { connections, streams, tls, http2, pin, fresh, .. } = self.scenario;
        let threads = (ground.load_cpus() / 2).clamp(1, *connections);
        let mut command = vec![
            format!("--threads={threads}"),
            format!("--clients={connections}"),
            format!("--max-concurrent-streams={streams}"),
            format!("--connect-to=127.0.0.1:{}", self.port),
            format!("--log-file={}", log.display()),
        ];
        match amount {
            Amount::Time(time) => command.push(format!("--duration={}ms", time.as_millis())),
            Amount::Requests(number) => command.push(format!("--requests={}", number.max(*connections as u64))),
            Amount::Rate(rate, time) => {
                command.push(format!("--rps={}", rate / *connections as f64));
                command.push(format!("--duration={}ms", time.as_millis()));
            }
        }
        command.extend((!http2).then(|| "--h1".to_owned()));
        command.extend(fresh.then(|| "--header=connection: close".to_owned()));
        command.extend(pin.map(|target| format!("--header=x-migration-target: {target}")));
        command.push(format!("{}://{OLD_HOST}{}", if *tls { "https" } else { "http" }, self.scenario.path));
        let program = peers::find("h2load").ok_or("h2load is not installed")?;
        let command: Vec<&OsStr> = [program.as_os_str()].into_iter().chain(command.iter().map(AsRef::as_ref)).collect();
        Ok(Running { child: Child::start(&command, None, &output, &errors)?, amount, output, log })
    }
}

impl Running {
    /// Waits for its end.
    pub fn finish(self, ground: &Ground) -> Result<Counted, String> {
        let time = match self.amount {
            Amount::Time(time) | Amount::Rate(_, time) => time,
            Amount::Requests(_) => Duration::from_secs(600),
        };
        self.child.finish(time + PATIENCE, ground.stop())?;
        let read = |path: &PathBuf| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
        let output = read(&self.output)?;
        parse(&output, &read(&self.log)?).ok_or_else(|| format!("h2load said nothing that can be read: {output}"))
    }
}

/// Reads what h2load printed, and its log of requests: start, status and microseconds in each line.
pub fn parse(output: &str, log: &str) -> Option<Counted> {
    let line = |start: &str| output.lines().find_map(|line| line.strip_prefix(start));
    let numbers = |text: &str| -> Vec<u64> { text.split([' ', ',']).filter_map(|word| word.parse().ok()).collect() };
    // requests: 5 total, 5 started, 5 done, 5 succeeded, 0 failed, 0 errored, 0 timeout
    let failed = *numbers(line("requests: ")?).get(4)?;
    // status codes: 5 2xx, 0 3xx, 0 4xx, 0 5xx
    let codes: Vec<u64> = line("status codes: ")?.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [good, moved, ..] = codes[..] else { return None };
    let seconds = seconds(line("finished in ")?.split(',').next()?)?;
    let mut latencies: Vec<u32> = Vec::with_capacity(usize::try_from(good).ok()?);
    for line in log.lines() {
        let mut words = line.split('\t').skip(1);
        let (Some(status), Some(time)) = (words.next(), words.next()) else { continue };
        latencies.extend(status.starts_with('2').then(|| time.parse::<u32>().ok()).flatten());
    }
    latencies.sort_unstable();
    let protocol = line("Application protocol: ").unwrap_or_default().to_owned();
    Some(Counted { good, failed: failed + moved, seconds, latencies, protocol })
}

/// A time as h2load writes it.
fn seconds(text: &str) -> Option<f64> {
    let (number, scale) = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]
        .into_iter()
        .find_map(|(unit, scale)| Some((text.trim().strip_suffix(unit)?, scale)))?;
    Some(number.parse::<f64>().ok()? * scale)
}

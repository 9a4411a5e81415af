//! Old and new of one mixed run: while h2load sends a fixed rate, single requests of our own are timed and told apart by
//! who answered them. At a fixed rate latencies are not a matter of throughput, as they are when everybody pushes.

use std::thread;
use std::time::{Duration, Instant};

use super::client::Client;
use super::ground::{Ground, OLD_HOST};
use super::load::{Amount, Load};
use super::scenario::Scenario;

/// Requests a second of h2load.
const RATE: f64 = 1000.0;

/// The time between two samples.
const PAUSE: Duration = Duration::from_millis(2);

/// Microseconds of the answers of each cluster.
#[derive(Clone, Default)]
pub struct Sides {
    /// Those of old.
    pub old: Vec<u32>,
    /// Those of new.
    pub new: Vec<u32>,
}

/// Times requests beside a load that runs for this long.
pub fn sample(ground: &Ground, scenario: &'static Scenario, port: u16, seconds: f64) -> Result<Sides, String> {
    let failed = |error: std::io::Error| format!("sample: {error}");
    let time = Duration::from_secs_f64(seconds);
    let load = Load { scenario, port }.start(ground, Amount::Rate(RATE, time))?;
    let mut client = Client::connect(port, Some((ground.trust(), OLD_HOST))).map_err(failed)?;
    let mut sides = Sides::default();
    let end = Instant::now() + time;
    while Instant::now() < end {
        ground.stop().check()?;
        let start = Instant::now();
        let answer = client.get("/", None).map_err(failed)?;
        let took = u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX);
        match (answer.status, answer.cluster.as_str()) {
            (200, "old") => sides.old.push(took),
            (200, "new") => sides.new.push(took),
            (status, cluster) => return Err(format!("sample: status {status} from {cluster:?}")),
        }
        thread::sleep(PAUSE);
    }
    load.finish(ground)?;
    Ok(sides)
}

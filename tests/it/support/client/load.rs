//! A small load generator: requests over kept connections, and what came of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Client, Failure, Response};

type Fields = Arc<dyn Fn(u64) -> Vec<(String, String)> + Send + Sync>;

/// What is to be sent. Requests are numbered from 0 over all connections.
#[derive(Clone)]
pub struct Load {
    address: SocketAddr,
    host: String,
    method: String,
    target: String,
    body: Vec<u8>,
    connections: usize,
    fields: Fields,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Responses by the side that answered.
    pub sides: BTreeMap<String, u64>,
    /// Responses by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without a whole response: the first hundred.
    pub errors: Vec<String>,
    /// Requests without a whole response: how many.
    pub failed: u64,
    /// The longest exchange.
    pub slowest: Duration,
}

impl Tally {
    /// All requests.
    pub fn total(&self) -> u64 {
        self.statuses.values().sum::<u64>() + self.failed
    }

    /// Responses of one side.
    pub fn side(&self, side: &str) -> u64 {
        self.sides.get(side).copied().unwrap_or(0)
    }

    /// Fails the test unless every single request got a 200.
    #[track_caller]
    pub fn assert_all_ok(&self) {
        assert_eq!((self.failed, self.statuses.keys().collect::<Vec<_>>()), (0, vec![&200]), "{self:?}");
    }

    fn note(&mut self, result: Result<Response, Failure>, took: Duration) {
        self.slowest = self.slowest.max(took);
        match result {
            Ok(response) => {
                *self.statuses.entry(response.status).or_default() += 1;
                if let Some(side) = response.side() {
                    *self.sides.entry(side.to_owned()).or_default() += 1;
                }
            }
            Err(failure) => {
                self.failed += 1;
                if self.errors.len() < 100 {
                    self.errors.push(failure.to_string());
                }
            }
        }
    }

    fn merge(&mut self, other: Self) {
        for (side, count) in other.sides {
            *self.sides.entry(side).or_default() += count;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.errors.extend(other.errors);
        self.failed += other.failed;
        self.slowest = self.slowest.max(other.slowest);
    }
}

impl Load {
    /// GET / of this host over four connections.
    pub fn new(address: SocketAddr, host: &str) -> Self {
        Self {
            address,
            host: host.to_owned(),
            method: "GET".into(),
            target: "/".into(),
            body: Vec::new(),
            connections: 4,
            fields: Arc::new(|_| Vec::new()),
        }
    }

    /// Another method and target.
    pub fn request(mut self, method: &str, target: &str) -> Self {
        (self.method, self.target) = (method.to_owned(), target.to_owned());
        self
    }

    /// A body.
    pub fn body(mut self, body: &[u8]) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    /// Another number of connections.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Fields that depend on the request's number.
    pub fn fields(mut self, fields: impl Fn(u64) -> Vec<(String, String)> + Send + Sync + 'static) -> Self {
        self.fields = Arc::new(fields);
        self
    }

    /// Sends so many requests and waits for all.
    pub fn run(self, requests: u64) -> Tally {
        self.start_bounded(requests).finish()
    }

    /// Sends requests until it is stopped.
    pub fn start(self) -> Running {
        self.start_bounded(u64::MAX)
    }

    fn start_bounded(self, requests: u64) -> Running {
        let shared =
            Arc::new(Shared { next: AtomicU64::new(0), done: AtomicU64::new(0), stop: AtomicBool::new(false) });
        let progress = Arc::new(Mutex::new(Tally::default()));
        let threads = (0..self.connections)
            .map(|_| {
                let (load, shared, progress) = (self.clone(), shared.clone(), progress.clone());
                std::thread::spawn(move || {
                    let tally = load.connection(requests, &shared);
                    progress.lock().unwrap().merge(tally);
                })
            })
            .collect();
        Running { shared, progress, threads }
    }

    fn connection(&self, requests: u64, shared: &Shared) -> Tally {
        let mut tally = Tally::default();
        let mut client = None;
        while !shared.stop.load(SeqCst) {
            let number = shared.next.fetch_add(1, SeqCst);
            if number >= requests {
                break;
            }
            let started = Instant::now();
            let result = self.one(number, &mut client);
            let keeps = result.as_ref().is_ok_and(|response| {
                !response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
            });
            if !keeps {
                client = None;
            }
            tally.note(result, started.elapsed());
            shared.done.fetch_add(1, SeqCst);
        }
        tally
    }

    fn one(&self, number: u64, client: &mut Option<Client>) -> Result<Response, Failure> {
        let client = match client {
            Some(client) => client,
            None => client.insert(Client::try_plain(self.address, None)?),
        };
        let fields = (self.fields)(number);
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        client.exchange(&self.method, &self.host, &self.target, &fields, &self.body)
    }
}

struct Shared {
    next: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
}

/// Load that runs beside the test.
pub struct Running {
    shared: Arc<Shared>,
    progress: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Exchanges that are over.
    pub fn done(&self) -> u64 {
        self.shared.done.load(SeqCst)
    }

    /// Waits until so many more exchanges are over.
    #[track_caller]
    pub fn more(&self, exchanges: u64) {
        let target = self.done() + exchanges;
        super::super::eventually(super::super::PATIENCE, "the load goes on", || self.done() >= target);
    }

    /// Ends the load and says what came of it.
    pub fn stop(self) -> Tally {
        self.shared.stop.store(true, SeqCst);
        self.finish()
    }

    fn finish(self) -> Tally {
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.progress.lock().unwrap().clone()
    }
}

//! What a test asks of a running proxy, in process or not: its listeners, its admin port, its logs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::cli::{Finished, finish, program};
use super::client::{Client, Response, get_with};
use super::setup::Addresses;
use super::{PATIENCE, eventually, eventually_some};

/// A running proxy seen from outside.
pub struct Reach {
    /// Where it listens.
    pub addresses: Addresses,
    /// Where its logs and its state lie.
    pub directory: PathBuf,
}

impl Reach {
    /// A connection to the plain listener.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::plain(self.addresses.http)
    }

    /// One GET through the plain listener.
    #[track_caller]
    pub fn get(&self, host: &str, target: &str) -> Response {
        self.client().get(host, target)
    }

    /// The same with more fields.
    #[track_caller]
    pub fn get_with(&self, host: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        get_with(self.addresses.http, host, target, headers)
    }

    /// The side that answers a GET, or the status when none does.
    #[track_caller]
    pub fn side(&self, host: &str, target: &str, headers: &[(&str, &str)]) -> String {
        let response = self.get_with(host, target, headers);
        response.side().map_or_else(|| response.status.to_string(), str::to_owned)
    }

    /// One GET of the admin port.
    #[track_caller]
    pub fn admin(&self, target: &str) -> Response {
        Client::plain(self.addresses.admin).get("127.0.0.1", target)
    }

    /// `--admin` of this proxy.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.addresses.admin)
    }

    /// A verb with these arguments against this proxy.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> Finished {
        let mut command = program();
        command.args(arguments).args(["--admin", &self.admin_url()]);
        finish(command)
    }

    /// A change through the API.
    #[track_caller]
    pub fn change(&self, method: &str, target: &str, body: &Value) -> Response {
        let mut client = Client::plain(self.addresses.admin);
        let headers = [("Content-Type", "application/json")];
        client.exchange(method, "localhost", target, &headers, body.to_string().as_bytes()).unwrap()
    }

    /// `/status`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.admin("/status").json()
    }

    /// One service's part of `/status`.
    #[track_caller]
    pub fn service(&self, name: &str) -> Value {
        let status = self.status();
        let services = status["services"].as_array().expect("/status lists services");
        services.iter().find(|service| service["name"] == name).unwrap_or_else(|| panic!("no {name}: {status}")).clone()
    }

    /// The state of a service's breaker.
    #[track_caller]
    pub fn breaker(&self, name: &str) -> String {
        self.service(name)["breaker"]["state"].as_str().unwrap_or_default().to_owned()
    }

    /// `config.generation` of `/status`.
    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.status()["config"]["generation"].as_u64().expect("a generation")
    }

    /// Waits for a generation above `before`.
    #[track_caller]
    pub fn wait_for_generation_after(&self, before: u64) {
        eventually(PATIENCE, "the new configuration is taken", || self.generation() > before);
    }

    /// `/metrics`.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin("/metrics").text())
    }

    /// Every access line so far.
    pub fn access_lines(&self) -> Vec<String> {
        lines(&self.directory.join("access.log"))
    }

    /// The access line of the request with this target, as soon as it is written.
    #[track_caller]
    pub fn access_line(&self, target: &str) -> AccessLine {
        let mark = format!(" {target} HTTP/");
        eventually_some(Duration::from_secs(5), &format!("the access line of {target}"), || {
            self.access_lines().into_iter().find(|line| line.contains(&mark)).map(AccessLine)
        })
    }

    /// Every audit line so far.
    pub fn audit_lines(&self) -> Vec<String> {
        lines(&self.directory.join("audit.log"))
    }
}

fn lines(path: &std::path::Path) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

/// One line of the access log in the nginx form.
#[derive(Debug)]
pub struct AccessLine(pub String);

impl AccessLine {
    /// The value behind `name=`, without its quotes.
    #[track_caller]
    pub fn field(&self, name: &str) -> &str {
        let start = self.0.find(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in {}", self.0));
        let value = &self.0[start + name.len() + 2..];
        match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or_default(),
            None => value.split(' ').next().unwrap_or_default(),
        }
    }

    /// The status.
    #[track_caller]
    pub fn status(&self) -> u16 {
        let behind_request = self.0.split("\" ").nth(1).unwrap_or_default();
        behind_request.split(' ').next().and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{}", self.0))
    }
}

/// Samples of a scrape.
pub struct Metrics(Vec<(String, BTreeMap<String, String>, f64)>);

impl Metrics {
    /// Takes the text form apart.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').unwrap_or(labels);
            let labels = labels
                .split("\",")
                .filter_map(|label| label.split_once("=\""))
                .map(|(name, value)| (name.trim_start_matches(',').to_owned(), value.trim_end_matches('"').to_owned()));
            (name.to_owned(), labels.collect(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
        });
        Self(samples.collect())
    }

    /// The sum of every sample of `migration_proxy_<name>` with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("migration_proxy_{name}");
        self.0
            .iter()
            .filter(|(other, found, _)| {
                *other == name
                    && labels.iter().all(|(label, value)| found.get(*label).is_some_and(|found| found == value))
            })
            .map(|(_, _, value)| value)
            .sum()
    }

    /// Whether any sample has this name.
    pub fn has(&self, name: &str) -> bool {
        let name = format!("migration_proxy_{name}");
        self.0.iter().any(|(other, _, _)| *other == name)
    }
}

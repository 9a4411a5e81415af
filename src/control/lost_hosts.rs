//! Hosts that a new file does not claim any more although clients still ask for them.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::routing::snapshot::Snapshot;
use crate::routing::table::Table;

/// A host without a request for this long has no traffic.
const RECENT: Duration = Duration::from_secs(5 * 60);

/// More hosts than these are counted where they are told.
const MOST_NAMES: usize = 5;

/// A host that would be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostHost {
    /// The name that clients used, also under a wildcard.
    pub host: String,
    /// The service that has it.
    pub service: String,
    /// How long ago the last request came.
    pub age: Duration,
}

/// Hosts with traffic that `current` claims and `next` does not, the busiest moment first.
pub fn find(current: &Snapshot, next: &Config, now: Instant) -> Vec<LostHost> {
    let mut claimed = Table::default();
    for host in next.services.iter().flat_map(|service| &service.old_host) {
        claimed.insert(host, ());
    }
    let mut lost = Vec::new();
    for service in &current.services {
        for (host, last) in service.lasting.callers.hosts() {
            let age = now.saturating_duration_since(last);
            // What a service lost earlier is told no second time.
            if age < RECENT && claimed.find(&host).is_none() && current.table.find(&host).is_some() {
                lost.push(LostHost { host: host.into(), service: service.name().to_owned(), age });
            }
        }
    }
    lost.sort_by(|a, b| (a.age, &a.host).cmp(&(b.age, &b.host)));
    lost
}

/// The names in one line.
pub fn listed(lost: &[LostHost]) -> String {
    let names: Vec<&str> = lost.iter().take(MOST_NAMES).map(|lost| lost.host.as_str()).collect();
    let more = lost.len().saturating_sub(MOST_NAMES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::{Environment, Text, parse};
    use crate::control::testing::{Bench, TEXT};

    fn lost(bench: &Bench, text: &str, now: Instant) -> Vec<String> {
        let config = parse(&Text::new("x", text), &Environment::new()).unwrap().config;
        find(&bench.live.snapshot(), &config, now).into_iter().map(|lost| lost.host).collect()
    }

    #[tokio::test]
    async fn only_hosts_with_traffic_can_be_lost_and_under_a_wildcard_the_name_that_came() {
        let bench = Bench::start(TEXT);
        let snapshot = bench.live.snapshot();
        let start = Instant::now();
        let note = |service: &str, host: &str, at| {
            let callers = &snapshot.service(service).unwrap().lasting.callers;
            callers.note(host, IpAddr::V4(Ipv4Addr::LOCALHOST), b"curl", at);
        };
        note("a", "a.old.example", start);
        note("b", "x.b.example", start + Duration::from_secs(1));
        note("b", "gone.example", start);
        let now = start + Duration::from_secs(2);

        assert!(lost(&bench, TEXT, now).is_empty());
        assert_eq!(lost(&bench, &TEXT.replace("a.old.", "z.old."), now), ["a.old.example"]);
        assert!(lost(&bench, &TEXT.replace("b.old.", "z.old."), now).is_empty(), "nobody asked for it");
        assert_eq!(lost(&bench, &TEXT.replace(", '*.b.example'", ""), now), ["x.b.example"]);
        assert!(lost(&bench, &TEXT.replace("'*.b.example'", "x.b.example"), now).is_empty());
        let neither = TEXT.replace("'*.b.example'", "z.example").replace("a.old.", "y.old.");
        assert_eq!(lost(&bench, &neither, now), ["x.b.example", "a.old.example"]);
        assert!(lost(&bench, &neither, start + Duration::from_secs(301)).is_empty());
    }

    #[test]
    fn many_names_are_counted() {
        let lost = |count: usize| {
            let host = |number| LostHost { host: format!("h{number}"), service: "a".to_owned(), age: Duration::ZERO };
            listed(&(0..count).map(host).collect::<Vec<_>>())
        };
        assert_eq!(lost(2), "h0, h1");
        assert_eq!(lost(7), "h0, h1, h2, h3, h4 and 2 more");
    }
}

//! The file changes again and again under load, with many connections that must not notice: tunnels and endless answers.

use std::time::{Duration, Instant};

use super::{HOST, mixed};
use crate::support::cli::Server;
use crate::support::client::{Client, Paced};
use crate::support::origin::Answer;
use crate::support::scale::Scale;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

/// A connection that lives through all of it.
enum Long {
    Tunnel(Client),
    Stream(Client),
}

impl Long {
    fn open(server: &Server, is_tunnel: bool) -> Self {
        let mut client = server.client();
        if is_tunnel {
            client
                .send(format!("GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"));
            assert_eq!(client.response("GET").unwrap().status, 101);
            Self::Tunnel(client)
        } else {
            client.send(format!("GET /stream HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
            assert_eq!(client.head().unwrap().status, 200);
            Self::Stream(client)
        }
    }

    /// Bytes still go both ways, or still come.
    fn is_alive(&mut self) -> bool {
        match self {
            Self::Tunnel(client) => {
                client.try_send(b"ping").is_ok() && client.bytes(4).is_ok_and(|echo| echo == b"ping")
            }
            Self::Stream(client) => client.bytes(1).is_ok(),
        }
    }
}

fn setup(clusters: &Clusters, percentage: u64) -> Setup {
    let services = ["a", "b", "c"].map(|name| clusters.service(name).percentage(percentage));
    Setup::new(services).workers(2).log("level: error")
}

#[test]
fn a_thousand_swaps_drop_nothing() {
    let scale = Scale::begin();
    let clusters = Clusters::new();
    for origin in [&clusters.old, &clusters.new] {
        origin.on("/tunnel", Answer::upgrade("echo"));
        origin.on("/stream", Answer::pattern(1 << 40).chunked().drip(1, Duration::from_millis(500)));
    }
    let mut server = Server::start(&setup(&clusters, 20));
    let mut long: Vec<Long> = (0..scale.pick(40, 1_000)).map(|number| Long::open(&server, number % 2 == 0)).collect();
    let load = Paced::new(server.addresses.http, HOST, scale.pick(100, 300)).calls(mixed).start();
    // The load opens what it needs, and the first changes make what all later ones use.
    load.wait_for(scale.pick(30, 1_500));
    // Some 50 ms, so that a few changes come while one is read.
    let between = scale.pick(5, 15);
    for round in 0..scale.pick(3, 20) {
        server.file.swap(&server.text(&setup(&clusters, round % 100)));
        load.wait_for(between);
    }
    let before = (server.memory(), server.descriptors());

    let swaps = scale.pick(30, 1_000);
    for round in 1..=swaps {
        server.file.swap(&server.text(&setup(&clusters, round % 100)));
        load.wait_for(between);
    }
    server.file.swap(&server.text(&setup(&clusters, 37)));
    let swapped = Instant::now();
    eventually(PATIENCE, "the last file is in force", || server.service("a")["percentage"]["effective"] == 37.0);
    let effective = swapped.elapsed();
    let lost = long.iter_mut().filter_map(|long| (!long.is_alive()).then_some(())).count();
    let record = load.stop();

    record.assert_all_ok();
    assert_eq!(lost, 0, "of {} long connections", long.len());
    assert!(effective < Duration::from_secs(if scale.is_full() { 1 } else { 5 }), "{effective:?}");
    server.assert_sound();
    eventually(PATIENCE * 2, "memory is given back", || {
        server.memory().saturating_sub(before.0) < scale.pick(24 << 20, 8 << 20)
    });
    let after = (server.memory(), server.descriptors());
    scale.report(&format!(
        "{swaps} swaps, {} requests, 0 errors, {} long connections, 0 drops, the last file effective after {effective:.1?}, \
         generation {}, memory {} -> {} KiB, descriptors {} -> {}",
        record.0.len(),
        long.len(),
        server.generation(),
        before.0 / 1024,
        after.0 / 1024,
        before.1,
        after.1,
    ));
    drop(long);
    eventually(PATIENCE, "nothing of them is left", || {
        server.metrics().sum("upstream_connections", &[("state", "active")]) == 0.0
    });
}

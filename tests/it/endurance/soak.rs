//! Minutes of load while faults, reloads and rude clients come at random from a seed. Afterwards nothing is left of it.

use std::env;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

use super::storm::Storm;
use super::{HOST, mixed, statuses};
use crate::support::certs::Authority;
use crate::support::cli::Server;
use crate::support::client::{Client, Paced, Pacing};
use crate::support::origin::{Answer, End, Gate};
use crate::support::scale::Scale;
use crate::support::setup::Setup;
use crate::support::{PATIENCE, eventually};

/// Requests that may wait for a head, in the whole house and on new.
const IN_FLIGHT: usize = 96;
const WAITING: usize = 48;

fn setup(storm: &Storm, percentage: u64) -> Setup {
    let service = storm.clusters.service("a").percentage(percentage);
    let service = service.new_option(&format!("max_waiting: {WAITING}")).new_option("idle_timeout: 2s");
    let service = service.with(
        "old: {idle_timeout: 2s}
fallback: {recovery_time: 1s}
timeouts: {total: 900ms, response_header: 900ms, connect: 300ms}",
    );
    Setup::new([service]).workers(2).top(&format!("limits: {{max_in_flight: {IN_FLIGHT}}}"))
}

/// `SOAK_SEED` repeats a run.
fn seed() -> u64 {
    let seed =
        env::var("SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| rand::random::<u32>().into());
    let _ = writeln!(std::io::stderr(), "SOAK_SEED={seed}");
    seed
}

/// Lets the load go on for some requests.
fn pause(load: &Pacing, dice: &mut StdRng, most: u64) {
    load.wait_for(dice.random_range(0..most));
}

/// Ends what waits for the flag, also where the test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Breaks new in some way for some time, and mends it.
fn strike(storm: &mut Storm, load: &Pacing, dice: &mut StdRng, most: u64) {
    let answers = [
        Answer::nothing(End::Reset),
        Answer::nothing(End::Fin),
        Answer::nothing(End::Hang),
        Answer::status(503),
        Answer::status(500).close(),
        Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", End::Fin),
        Answer::raw("SSH-2.0-nonsense\r\n\r\n", End::Hang),
        Answer::side().drip_head(Duration::from_millis(30)),
        Answer::side().drip(1, Duration::from_millis(20)),
        Answer::side().header("X-Long", &"x".repeat(80 * 1024)),
    ];
    match dice.random_range(0..14) {
        0 => {
            storm.clusters.new.kill();
            pause(load, dice, most);
            storm.clusters.new.restart();
        }
        1 => {
            let frozen = storm.freeze();
            pause(load, dice, most);
            drop(frozen);
        }
        2 => {
            storm.clusters.new.backlog(0);
            let frozen = storm.freeze();
            pause(load, dice, most);
            drop(frozen);
            storm.clusters.new.backlog(1024);
        }
        3 => {
            let stranger = Authority::new("a stranger").server(&["*.new.test"]);
            storm.clusters.new.show(Some(stranger.server_config(&["http/1.1"], None))).close_after(1);
            pause(load, dice, most);
            storm.clusters.new.show(None).close_after(usize::MAX);
        }
        other => {
            storm.says(Some(answers[other - 4].clone()));
            pause(load, dice, most);
            storm.says(None);
        }
    }
}

/// A client that behaves badly, once.
fn be_rude(server: &Server, load: &Pacing, dice: &mut StdRng) {
    let Ok(mut client) = Client::try_plain(server.addresses.http, None) else { return };
    client.patience(Duration::from_secs(2));
    let host = format!("Host: {HOST}\r\n");
    let text = match dice.random_range(0..7) {
        0 => String::new(),
        1 => format!("GET /rude HTTP/1.1\r\n{host}"),
        2 => format!("POST /rude HTTP/1.1\r\n{host}Content-Length: 1000\r\n\r\nsome"),
        3 => format!("POST /rude HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5\r\nsome\r\nnonsense"),
        4 => format!("GET /tunnel HTTP/1.1\r\n{host}Connection: upgrade\r\nUpgrade: echo\r\n\r\nping"),
        5 => "no HTTP at all\r\n\r\n".to_owned(),
        _ => format!("GET /long HTTP/1.1\r\n{host}\r\n"),
    };
    let _ = client.try_send(text.as_bytes());
    match dice.random_range(0..4) {
        0 => drop(client),
        1 => client.reset(),
        2 => {
            pause(load, dice, 30);
            client.reset();
        }
        _ => {
            let _ = client.bytes(1);
        }
    }
}

/// The burst finds every place free: as many requests wait as may, and the next one is turned away.
#[track_caller]
fn assert_every_place_is_free(server: &Server, storm: &Storm) {
    for (percentage, places, refusal) in [(0, IN_FLIGHT, None), (100, WAITING, Some("old"))] {
        let generation = server.generation();
        server.file.swap(&server.text(&setup(storm, percentage).log("level: info")));
        server.wait_for_generation_after(generation);
        let gate = Gate::default();
        let held = if percentage == 0 { &storm.clusters.old } else { &storm.clusters.new };
        held.on("/held", Answer::side().hold_head(&gate));
        let before = held.requests();
        let mut waiting: Vec<Client> = (0..places).map(|_| server.client()).collect();
        for client in &mut waiting {
            client.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        }
        // What waits too long on new is asked of old, so this must not take long.
        eventually(PATIENCE, "each of them waits at the origin", || held.requests() - before >= places as u64);
        let next = server.get(HOST, "/next");
        gate.open();
        assert_eq!(next.side(), refusal, "{places} places on {percentage} %: {}", next.status);
        for client in &mut waiting {
            assert_eq!(client.response("GET").unwrap().status, 200);
        }
    }
}

#[test]
fn nothing_is_left_of_a_storm_of_everything() {
    let scale = Scale::begin();
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    let mut storm = Storm::new();
    for origin in [&storm.clusters.old, &storm.clusters.new] {
        origin.on("/tunnel", Answer::upgrade("echo")).on("/long", Answer::pattern(1 << 24));
    }
    let mut server = Server::start(&setup(&storm, 50));
    let load = || Paced::new(server.addresses.http, HOST, scale.pick(100, 500)).calls(mixed);
    let descriptors = server.descriptors();
    load().run(scale.pick(30, 2_500)).assert_all_ok();
    let before = (descriptors, server.memory());
    storm.orders.forget();

    let load = load().start();
    // A strike lasts up to a second and a half, and so do the pauses between two of them.
    let (all, most, between) = (scale.pick(500, 150_000), scale.pick(150, 750), scale.pick(2, 10));
    let over = AtomicBool::new(false);
    let mut strikes = 0;
    std::thread::scope(|threads| {
        let (server, load, over) = (&server, &load, &over);
        let mut theirs = StdRng::seed_from_u64(seed + 1);
        threads.spawn(move || {
            while !over.load(SeqCst) {
                be_rude(server, load, &mut theirs);
                pause(load, &mut theirs, between);
            }
        });
        let _ending = Ending(over);
        while load.ended() < all {
            strike(&mut storm, load, &mut dice, most);
            strikes += 1;
            if dice.random_ratio(1, 3) {
                server.file.swap(&server.text(&setup(&storm, dice.random_range(20..=80))));
            }
            pause(load, &mut dice, most);
        }
    });
    let record = load.stop();

    server.assert_sound();
    storm.orders.assert_posts_once(&record);
    let gets = record.only(|seen| seen.method == "GET" && !seen.is_ok());
    assert!(gets.0.is_empty(), "SOAK_SEED={seed}: {} GETs failed: {:#?}", gets.0.len(), gets.some());
    eventually(Duration::from_secs(20), "the breaker closes", || {
        server.get(HOST, "/");
        server.breaker("a") == "closed"
    });
    assert_every_place_is_free(&server, &storm);
    wait_until_quiet(&server);
    // Sockets end a moment after they are no longer counted.
    eventually(PATIENCE, "the descriptors are closed", || server.descriptors() <= before.0 + 4);
    let after = (server.descriptors(), server.memory());
    let growth = after.1.saturating_sub(before.1);
    assert!(growth < 24 << 20, "SOAK_SEED={seed}: {} KiB more", growth / 1024);
    server.assert_sound();
    scale.report(&format!(
        "seed {seed}, {strikes} strikes, {} requests {:?}, POSTs twice 0, descriptors {} -> {}, memory {} -> {} KiB",
        record.0.len(),
        statuses(&record),
        before.0,
        after.0,
        before.1 / 1024,
        after.1 / 1024,
    ));
}

/// Waits until no client is connected, nothing is active and idle connections to the clusters are closed.
#[track_caller]
fn wait_until_quiet(server: &Server) {
    eventually(Duration::from_secs(30), "everything is given back", || {
        let metrics = server.metrics();
        metrics.sum("connections", &[("listener", "http")]) == 0.0 && metrics.sum("upstream_connections", &[]) == 0.0
    });
    assert_eq!(server.service("a")["open_on_new"], 0);
}

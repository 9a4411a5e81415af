//! Thousands of connections that do nothing, or next to nothing, beside ordinary traffic that must not notice.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{HOST, mixed};
use crate::support::cli::Server;
use crate::support::client::{Client, Paced, Record};
use crate::support::origin::{OnAccept, Origin};
use crate::support::peers::{available, find};
use crate::support::scale::Scale;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

/// slowhttptest names the address as Host; a service of that name makes its requests known ones. The limits are long, so
/// that the crowd stays.
fn server(clusters: &Clusters) -> Server {
    let stranger = clusters.service("stranger").old_host("127.0.0.1");
    let setup = Setup::new([clusters.service("a").percentage(20), stranger]).workers(2);
    Server::start(&setup.listen("timeouts: {header: 120s, keepalive: 120s}"))
}

fn traffic(scale: &Scale, server: &Server) -> Record {
    let load = Paced::new(server.addresses.http, HOST, scale.pick(100, 1_000)).calls(mixed);
    let record = load.run(scale.pick(100, 10_000));
    record.assert_all_ok();
    record
}

fn open_connections(server: &Server) -> f64 {
    server.metrics().sum("connections", &[("listener", "http")])
}

/// The median of the p99 of traffic without and with a crowd, three times each.
/// `elsewhere` makes whatever the crowd's own work costs this machine.
fn compare<E, C>(
    scale: &Scale,
    server: &Server,
    mut elsewhere: impl FnMut() -> E,
    mut crowd: impl FnMut() -> C,
) -> [Duration; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..scale.pick(1, 3) {
        let absent = elsewhere();
        times[0].push(traffic(scale, server).quantile(0.99));
        drop(absent);
        let present = crowd();
        times[1].push(traffic(scale, server).quantile(0.99));
        drop(present);
        eventually(PATIENCE * 3, "the crowd has gone", || open_connections(server) == 0.0);
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}

/// Ordinary traffic has hardly noticed the crowd.
#[track_caller]
fn assert_unmoved(scale: &Scale, [alone, crowded]: [Duration; 2]) {
    if scale.is_full() {
        let most = alone.mul_f64(1.2) + Duration::from_millis(1);
        assert!(crowded <= most, "p99 {alone:?} alone, {crowded:?} in the crowd");
    }
}

#[test]
fn idle_connections_cost_little_and_slow_nobody() {
    let scale = Scale::begin();
    let clusters = Clusters::new();
    let mut server = server(&clusters);
    let count = scale.pick(200, 5_000);
    traffic(&scale, &server);
    let mut each = Vec::new();

    let times = compare(
        &scale,
        &server,
        || (),
        || {
            let before = server.memory();
            let crowd: Vec<Client> = (0..count)
                .map(|_| {
                    let mut client = server.client();
                    assert_eq!(client.get(HOST, "/").status, 200);
                    client
                })
                .collect();
            each.push(server.memory().saturating_sub(before) / count);
            crowd
        },
    );

    server.assert_sound();
    // The first crowd pays for what the later ones find.
    scale.report(&format!("{count} idle connections, p99 without and with them {times:.2?}, {} bytes each", each[0]));
    assert_unmoved(&scale, times);
    assert!(each[0] < 64 * 1024, "{} bytes for each idle connection", each[0]);
}

/// slowhttptest in one of its ways, with this many connections.
struct Slow(Child);

impl Slow {
    fn start(server: &Server, target: SocketAddr, way: &str, connections: u64) -> Self {
        let log = File::create(server.directory.join("slowhttptest.log")).unwrap();
        let mut command = Command::new(find("slowhttptest").expect("the caller looked for it"));
        command.args([way, "-c", &connections.to_string(), "-r", "2000", "-i", "10", "-l", "120", "-p", "30"]);
        command.args(["-u", &format!("http://{target}/")]);
        Self(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn slow_clients(scale: &Scale, way: &str) -> [Duration; 2] {
    let clusters = Clusters::new();
    let mut server = server(&clusters);
    let count = scale.pick(200, 5_000);
    traffic(scale, &server);

    let enough = count as f64 * 0.9;
    let come = |target: SocketAddr, open: &dyn Fn() -> f64| {
        let slow = Slow::start(&server, target, way, count);
        eventually(PATIENCE * 4, "the slow clients are there", || open() > enough);
        slow
    };
    let elsewhere = || {
        let sink = Origin::plain("sink");
        sink.on_accept(OnAccept::Hang);
        let slow = come(sink.address(), &|| sink.connections() as f64);
        (slow, sink)
    };

    let times = compare(scale, &server, elsewhere, || come(server.addresses.http, &|| open_connections(&server)));

    server.assert_sound();
    scale.report(&format!("{count} slow clients ({way}), p99 with them elsewhere and here {times:.2?}"));
    times
}

#[test]
fn slow_heads_slow_nobody() {
    let scale = Scale::begin();
    if available(&["slowhttptest"]) {
        assert_unmoved(&scale, slow_clients(&scale, "-H"));
    }
}

#[test]
fn slow_readers_slow_nobody() {
    let scale = Scale::begin();
    if available(&["slowhttptest"]) {
        assert_unmoved(&scale, slow_clients(&scale, "-X"));
    }
}

/// All of them send their next piece at the same moment, and each piece has to be passed on.
#[test]
fn slow_bodies_fail_nobody() {
    let scale = Scale::begin();
    if available(&["slowhttptest"]) {
        slow_clients(&scale, "-B");
    }
}

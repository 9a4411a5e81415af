//! The end of a process, and the ends of connections: what is under way is finished, what lasts is sent home, and no answer
//! is lost to a socket that was closed too early.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::cli::Server;
use crate::support::client::Client;
use crate::support::client::frames::{self, Frames};
use crate::support::origin::{Answer, End, Gate};
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

fn all_on_new(clusters: &Clusters) -> Service {
    clusters.service("a").percentage(100)
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

/// An upgraded connection that has been used.
#[track_caller]
fn tunnel(mut client: Client) -> Client {
    client.send(format!("GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"));
    assert_eq!(client.response("GET").unwrap().status, 101);
    client.send("ping");
    assert_eq!(client.bytes(4).unwrap(), b"ping");
    client
}

#[test]
fn a_drain_first_says_so_then_ends_connections_then_the_process() {
    let clusters = Clusters::new();
    let gate = Gate::default();
    clusters.new.on("/slow", Answer::side().hold_head(&gate));
    let setup = |delay| Setup::new([all_on_new(&clusters)]).drain(&format!("delay: {delay}, grace: 20s"));
    let mut server = Server::start(&setup("1h"));
    let before = server.generation();
    server.file.replace(&server.text(&setup("1s")));
    server.wait_for_generation_after(before);
    let (mut kept, mut slow) = (server.client(), server.client());
    slow.send(get("/slow"));
    assert_eq!(kept.get(HOST, "/").header("connection"), None);
    eventually(PATIENCE, "it is under way", || clusters.new.requests() == 2);

    server.signal("TERM");
    eventually(PATIENCE, "it is not ready", || server.admin("/ready").status == 503);
    assert_eq!(server.admin("/health").status, 200);
    assert_eq!(server.get(HOST, "/").header("connection"), None, "new connections are served during the delay");
    eventually(PATIENCE, "answers say that they are the last", || {
        let answer = kept.get(HOST, "/");
        assert_eq!(answer.side(), Some("new"));
        answer.all("connection") == ["close"]
    });
    assert!(kept.rest().unwrap().is_empty(), "and so they are");
    eventually(PATIENCE, "nobody is accepted", || Client::try_plain(server.addresses.http, None).is_err());
    assert_eq!(server.status()["ready"], false);
    assert!(server.metrics().has("connections"));
    gate.open();
    let last = slow.response("GET").unwrap();

    assert_eq!((last.side(), last.all("connection")), (Some("new"), vec!["close"]));
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn idle_connections_end_in_order_and_hold_nobody_up() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let setup = Setup::new([all_on_new(&clusters)]).https(&public.server(&[HOST])).drain("delay: 0s, grace: 1h");
    let mut server = Server::start(&setup);
    let tls = Client::tls(server.addresses.https.unwrap(), HOST, &public.trusting(&["http/1.1"]));
    let mut used = [server.client(), tls];
    for client in &mut used {
        assert_eq!(client.get(HOST, "/").status, 200);
    }
    let mut silent = server.client();

    server.signal("TERM");

    for client in used.iter_mut().chain([&mut silent]) {
        assert_eq!(client.rest().unwrap(), b"", "an orderly end");
    }
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_connection_that_becomes_idle_while_it_drains_ends_soon() {
    let clusters = Clusters::new();
    let gate = Gate::default();
    clusters.new.on("/slow", Answer::side().hold_body(&gate));
    let mut server = Server::start(&Setup::new([all_on_new(&clusters)]).drain("delay: 0s, grace: 1h"));
    let mut client = server.client();
    client.send(get("/slow"));
    let head = client.head().unwrap();

    server.signal("TERM");
    eventually(PATIENCE, "it drains", || Client::try_plain(server.addresses.http, None).is_err());
    gate.open();

    assert_eq!(head.header("connection"), None, "the head was on its way before the drain");
    client.stream_body("GET", head, |_| {}).unwrap();
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn an_idle_connection_ends_also_after_a_request_that_took_longer_than_the_pauses() {
    let clusters = Clusters::new();
    clusters.new.on("/slow", Answer::side().drip(1, Duration::from_millis(50)));
    let timeouts = "timeouts: {header: 200ms, keepalive: 200ms}";
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters)]).listen(timeouts));
    let mut client = proxy.client();

    assert_eq!(client.get(HOST, "/slow").side(), Some("new"));

    assert_eq!(client.rest().unwrap(), b"");
}

#[test]
fn what_is_not_finished_in_time_is_cut_and_told() {
    let clusters = Clusters::new();
    clusters
        .new
        .on("/never", Answer::nothing(End::Hang))
        .on("/close-delimited", Answer::side().until_close().drip(1, Duration::from_secs(3600)));
    let mut server = Server::start(&Setup::new([all_on_new(&clusters)]).drain("delay: 0s, grace: 400ms"));
    let (mut waiting, mut streaming) = (server.client(), server.client());
    waiting.send(get("/never"));
    streaming.send(format!("GET /close-delimited HTTP/1.0\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(streaming.head().unwrap().status, 200);
    eventually(PATIENCE, "both are under way", || clusters.new.requests() == 2);

    server.signal("TERM");

    assert_eq!(server.exit_code(), Some(1));
    assert!(waiting.response("GET").is_err());
    assert!(streaming.rest().is_err(), "a body that only ends with its connection must not look complete");
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let clusters = Clusters::new();
    clusters.new.on("/never", Answer::nothing(End::Hang));
    let mut server = Server::start(&Setup::new([all_on_new(&clusters)]).drain("delay: 1h, grace: 1h"));
    let mut client = server.client();
    client.send(get("/never"));
    eventually(PATIENCE, "it is under way", || clusters.new.requests() == 1);

    server.signal("TERM");
    server.wait_for_line(&["draining"]);
    server.signal("HUP");
    server.wait_for_line(&["reload requested"]);
    server.signal("TERM");

    assert_eq!(server.exit_code(), Some(1));
}

/// What a balancer does: keep connections, obey `Connection: close`, go to the other one where the first refuses.
#[test]
fn clients_that_push_hard_lose_nothing_when_they_are_drained() {
    const CLIENTS: u64 = 8;
    let clusters = Clusters::new();
    let setup = Setup::new([all_on_new(&clusters)]).drain("delay: 200ms, grace: 20s").workers(2);
    let (mut leaving, staying) = (Server::start(&setup), Server::start(&setup));
    let addresses = [leaving.addresses.http, staying.addresses.http];
    let (over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let push = || {
        let mut moved = 0_u64;
        let mut client: Option<Client> = None;
        while !over.load(SeqCst) || moved < 10 {
            let client_now = client.get_or_insert_with(|| {
                let connect = |address| Client::try_plain(address, None).ok();
                connect(addresses[0]).or_else(|| connect(addresses[1])).expect("one of them accepts")
            });
            let answer = client_now.exchange("GET", HOST, "/", &[], b"").map_err(|failure| failure.to_string())?;
            assert_eq!(answer.side(), Some("new"));
            answered.fetch_add(1, SeqCst);
            moved += u64::from(over.load(SeqCst));
            if answer.header("connection").is_some() {
                client = None;
            }
        }
        Ok::<_, String>(())
    };

    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(push)).collect();
        eventually(PATIENCE, "they push", || answered.load(SeqCst) > 1000 || clients.iter().any(|c| c.is_finished()));
        leaving.signal("TERM");
        assert_eq!(leaving.exit_code(), Some(0));
        over.store(true, SeqCst);
        for client in clients {
            assert_eq!(client.join().unwrap(), Ok(()));
        }
    });
}

#[test]
fn tunnels_are_sent_home_one_after_the_other_in_the_second_half_of_the_grace() {
    const TUNNELS: usize = 8;
    let grace = Duration::from_secs(4);
    let clusters = Clusters::new();
    clusters.new.on("/tunnel", Answer::upgrade("echo"));
    let mut server = Server::start(&Setup::new([all_on_new(&clusters)]).drain("delay: 0s, grace: 4s").workers(2));
    let tunnels: Vec<Client> = (0..TUNNELS).map(|_| tunnel(server.client())).collect();
    assert_eq!(server.service("a")["open_on_new"], TUNNELS);

    let start = Instant::now();
    server.signal("TERM");
    let ends = std::thread::scope(|scope| {
        let wait = |mut tunnel: Client| {
            tunnel.send("still there");
            assert_eq!(tunnel.bytes(11).unwrap(), b"still there");
            assert_eq!(tunnel.rest().unwrap(), b"", "an orderly end, with nothing made up");
            start.elapsed()
        };
        let waiting: Vec<_> = tunnels.into_iter().map(|tunnel| scope.spawn(move || wait(tunnel))).collect();
        let mut ends: Vec<Duration> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        ends.sort_unstable();
        ends
    });

    assert_eq!(server.exit_code(), Some(0));
    assert!(ends[0] >= grace / 2, "{ends:?}");
    assert!(ends[TUNNELS - 1] - ends[0] >= grace / 8, "spread: {ends:?}");
    eventually(PATIENCE, "new is left", || clusters.new.open_connections() == 0);
}

#[test]
fn tunnels_are_counted_over_reloads_and_the_end_of_their_service() {
    let clusters = Clusters::new();
    let elsewhere = Clusters::new();
    clusters.new.on("/tunnel", Answer::upgrade("echo"));
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters)]));
    let mut first = tunnel(proxy.client());
    assert_eq!(proxy.service("a")["open_on_new"], 1);

    proxy.reload(&Setup::new([all_on_new(&clusters).new_backend(elsewhere.new.address())]));
    assert_eq!(proxy.service("a")["open_on_new"], 1, "another backend");
    proxy.reload(&Setup::new([all_on_new(&clusters)]));
    let second = tunnel(proxy.client());
    assert_eq!(proxy.service("a")["open_on_new"], 2);

    first.send("ping");
    assert_eq!(first.bytes(4).unwrap(), b"ping");
    drop((first, second));
    eventually(PATIENCE, "none is left", || proxy.service("a")["open_on_new"] == 0);
}

#[test]
fn going_back_takes_tunnels_along_only_when_it_is_asked_to() {
    let clusters = Clusters::new();
    clusters.new.on("/tunnel", Answer::upgrade("echo"));
    let server = Server::start(&Setup::new([all_on_new(&clusters)]));
    let mut tunnels: Vec<Client> = (0..4).map(|_| tunnel(server.client())).collect();

    server.command(&["rollback", "a"]).expect(0);
    assert_eq!(server.service("a")["open_on_new"], 4);
    tunnels[0].send("ping");
    assert_eq!(tunnels[0].bytes(4).unwrap(), b"ping");

    let start = Instant::now();
    server.command(&["rollback", "a", "--close-streams", "2s"]).expect(0);
    for mut tunnel in tunnels {
        assert_eq!(tunnel.rest().unwrap(), b"");
    }
    eventually(PATIENCE, "none is left", || server.service("a")["open_on_new"] == 0);
    assert!(start.elapsed() > Duration::from_millis(500), "not all in one moment");
}

#[test]
fn a_tunnel_of_a_service_that_is_gone_is_sent_home_too() {
    let clusters = Clusters::new();
    clusters.new.on("/tunnel", Answer::upgrade("echo"));
    let setup = |services: Vec<Service>| Setup::new(services).drain("delay: 0s, grace: 4s");
    let mut server = Server::start(&setup(vec![all_on_new(&clusters), clusters.service("b")]));
    let mut left = tunnel(server.client());
    let before = server.generation();
    server.file.replace(&server.text(&setup(vec![clusters.service("b")])));
    server.wait_for_generation_after(before);

    server.signal("TERM");

    assert_eq!(left.rest().unwrap(), b"");
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn http2_says_goodbye_in_two_steps_and_takes_what_was_on_its_way() {
    let clusters = Clusters::new();
    let mut server = Server::start(&Setup::new([all_on_new(&clusters)]).drain("delay: 0s, grace: 20s"));
    let mut client = Frames::open(server.client());

    server.signal("TERM");
    assert_eq!(
        client.next_of(frames::GOAWAY).payload[..8],
        [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        "soon, without a fault"
    );
    let ping = client.next_of(frames::PING).payload;
    // A GET of / that the client sent before it could hear of the end.
    let head = [&[0x82, 0x86, 0x84, 0x01, HOST.len() as u8], HOST.as_bytes()].concat();
    client.send(frames::HEADERS, frames::END_STREAM | frames::END_HEADERS, 1, &head);
    client.send(frames::PING, frames::ACK, 0, &ping);
    let (mut seen, mut last) = (false, None);
    while !(seen && last.is_some()) {
        let frame = client.next().unwrap();
        match frame.kind {
            frames::HEADERS => seen = frame.stream == 1 && frame.status() == 200,
            frames::GOAWAY => last = Some(frame.payload[..8].to_vec()),
            _ => {}
        }
    }

    assert_eq!(last.unwrap(), [0, 0, 0, 1, 0, 0, 0, 0]);
    drop(client);
    assert_eq!(server.exit_code(), Some(0));
}

/// hyper has taken the whole answer, and the client takes its time.
#[test]
fn an_answer_that_waits_for_its_client_s_window_is_no_quiet_connection() {
    const LENGTH: usize = 16_000;
    const WINDOW: usize = 1_000;
    let clusters = Clusters::new();
    clusters.new.on("/slow", Answer::side().body("x".repeat(LENGTH)));
    for drains in [true, false] {
        let setup =
            Setup::new([all_on_new(&clusters)]).drain("delay: 0s, grace: 1h").listen("timeouts: {keepalive: 1s}");
        let mut server = Server::start(&setup);
        let mut client = Frames::open(server.client());
        client.send(frames::SETTINGS, 0, 0, &[0, 4, 0, 0, (WINDOW >> 8) as u8, WINDOW as u8]);
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/slow")];
        let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        client.send(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, 1, &frames::block(&fields));
        let mut taken = client.next_of(frames::DATA).payload.len();

        if drains {
            server.signal("TERM");
            client.next_of(frames::GOAWAY);
            let ping = client.next_of(frames::PING).payload;
            client.send(frames::PING, frames::ACK, 0, &ping);
            client.next_of(frames::GOAWAY);
        }
        assert!(client.is_quiet_for(Duration::from_secs(4)), "it waits, drains: {drains}");
        client.send(frames::WINDOW_UPDATE, 0, 1, &(LENGTH as u32).to_be_bytes());
        let mut is_over = false;
        while !is_over {
            let frame = client.next_of(frames::DATA);
            taken += frame.payload.len();
            is_over = frame.flags & frames::END_STREAM != 0;
        }

        assert_eq!(taken, LENGTH);
        if drains {
            assert_eq!(server.exit_code(), Some(0));
        } else {
            client.next_of(frames::GOAWAY);
        }
    }
}

/// An upload of this length, whatever becomes of it, and its answer.
#[track_caller]
fn upload(mut client: Client, target: &str, length: usize, in_chunks: bool) -> (u16, Vec<u8>) {
    let fields = if in_chunks {
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n")
    } else {
        format!("Content-Length: {length}\r\n\r\n")
    };
    let head = format!("POST {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}");
    // A client that does not read before it has written everything.
    let sent = client.try_send(&[head.into_bytes(), vec![b'x'; length]].concat());
    let answer = client.response("POST").unwrap_or_else(|failure| panic!("{failure}, after {sent:?}"));
    assert_eq!(answer.all("connection"), ["close"]);
    (answer.status, answer.body)
}

#[test]
fn an_answer_that_comes_early_reaches_a_client_that_is_still_sending() {
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    clusters.new.on("/forbidden", Answer::status(403).before_request_body().close());
    let setup = Setup::new([all_on_new(&clusters)]).https(&public.server(&[HOST]));
    let bounded = Proxy::start(&setup.clone().top("limits: {request_body: 900KiB}"));
    let unbounded = Proxy::start(&setup);
    let secure = |proxy: &Proxy| Client::tls(proxy.addresses.https.unwrap(), HOST, &public.trusting(&["http/1.1"]));

    for in_chunks in [false, true] {
        for client in [bounded.client(), secure(&bounded)] {
            let (status, body) = upload(client, "/", 1 << 20, in_chunks);
            assert!(status == 413 && body.ends_with(b")\n"), "{status}, {body:?}");
        }
        // More than the sockets on the way can hold, or the answer would not be early.
        let (status, body) = upload(unbounded.client(), "/forbidden", 32 << 20, in_chunks);
        assert_eq!((status, body.as_slice()), (403, &b"side=new\n"[..]));
    }
}

#[test]
fn a_client_that_never_ends_its_upload_is_not_listened_to_for_ever() {
    let clusters = Clusters::new();
    let proxy = Proxy::start(&Setup::new([all_on_new(&clusters)]).top("limits: {request_body: 1000}"));
    let mut client = proxy.client();

    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nsome"));

    assert_eq!(client.response("POST").unwrap().status, 413);
    eventually(PATIENCE, "it is left alone", || proxy.metrics().sum("connections", &[("listener", "http")]) == 0.0);
    assert_eq!(client.rest().unwrap_or_default(), b"");
}

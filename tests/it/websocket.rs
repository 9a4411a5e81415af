//! WebSocket, spoken by tungstenite on both sides: what passes, what ends it, and that the proxy never says a word of its own.

use std::time::{Duration, Instant};

use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::cli::Server;
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::websocket::{EchoServer, Ended, Socket};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

struct Stage {
    clusters: Clusters,
    old: EchoServer,
    new: EchoServer,
}

impl Stage {
    fn new() -> Self {
        let clusters = Clusters::new();
        let tls = clusters.authority.server(&["a.new.test"]).server_config(&[], None);
        Self { old: EchoServer::start(None), new: EchoServer::start(Some(tls)), clusters }
    }

    fn service(&self) -> Service {
        self.clusters.service("a").old_backend(self.old.address()).new_backend(self.new.address())
    }
}

#[track_caller]
fn open(address: std::net::SocketAddr, target: &str) -> Socket {
    Socket::open(address, &format!("ws://{HOST}{target}"), &[], None).unwrap()
}

#[test]
fn messages_of_every_kind_come_back() {
    let stage = Stage::new();
    let public = Authority::new("old hosts");
    for (percentage, server) in [(0, &stage.old), (100, &stage.new)] {
        let setup = Setup::new([stage.service().percentage(percentage)]).https(&public.server(&[HOST]));
        let proxy = Proxy::start(&setup);
        let trust = public.trusting(&["http/1.1"]);
        let secure =
            Socket::open(proxy.addresses.https.unwrap(), &format!("wss://{HOST}/"), &[], Some(&trust)).unwrap();

        for mut socket in [open(proxy.addresses.http, "/"), secure] {
            for message in [
                Message::text("hello"),
                Message::text(""),
                Message::text("h\u{e9}llo \u{1f980} \u{0}"),
                Message::binary(vec![0, 255, 10, 13]),
                Message::binary(vec![]),
            ] {
                socket.send(message.clone());
                assert_eq!(socket.next().unwrap().unwrap(), message);
            }
            socket.send(Message::Ping("are you there".into()));
            assert_eq!(socket.next().unwrap().unwrap(), Message::Pong("are you there".into()));
            socket.send(Message::text("ping"));
            assert_eq!(socket.next().unwrap().unwrap(), Message::Ping("from the server".into()));
            socket.assert_echo("still here");

            let before = server.ends().len();
            let frame = CloseFrame { code: CloseCode::from(4000), reason: "bye".into() };
            socket.send(Message::Close(Some(frame.clone())));
            assert_eq!(socket.next().unwrap().unwrap(), Message::Close(Some(frame)));
            let end = socket.next();
            assert!(matches!(end, None | Some(Err(Error::ConnectionClosed))), "{percentage} %: {end:?}");
            eventually(PATIENCE, "the server hears of it", || server.ends().len() > before);
            assert_eq!(server.ends().last().unwrap(), &Ended::Closed(Some((4000, "bye".to_owned()))));
        }
    }
}

#[test]
fn large_messages_and_many_small_ones_pass() {
    let stage = Stage::new();
    let proxy = Proxy::start(&Setup::new([stage.service().percentage(100)]));
    let mut socket = open(proxy.addresses.http, "/");

    let large: Vec<u8> = (0..12_u32 << 20).map(|at| (at % 251) as u8).collect();
    socket.send(Message::binary(large.clone()));
    assert!(socket.next().unwrap().unwrap() == Message::binary(large), "12 MiB come back as they were");

    for round in 0..50 {
        for number in 0..100 {
            socket.send(Message::text(format!("{round} {number}")));
        }
        for number in 0..100 {
            assert_eq!(socket.next().unwrap().unwrap(), Message::text(format!("{round} {number}")));
        }
    }
}

#[test]
fn the_handshake_passes_whole() {
    let stage = Stage::new();
    let proxy = Proxy::start(&Setup::new([stage.service()]));
    let fields = [
        ("sec-websocket-protocol", "first, second"),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
        ("origin", "http://a.old.test"),
        ("cookie", "session=1"),
    ];

    let mut socket = Socket::open(proxy.addresses.http, &format!("ws://{HOST}/chat?room=1"), &fields, None).unwrap();
    socket.assert_echo("hello");

    assert_eq!(socket.response.status(), 101);
    assert_eq!(socket.response.headers()["sec-websocket-protocol"], "second");
    let (target, seen) = stage.old.handshakes().remove(0);
    assert_eq!((target.as_str(), &seen["host"]), ("/chat?room=1", &http::HeaderValue::from_static(HOST)));
    for (name, value) in fields {
        assert_eq!(seen[name], value, "{name}");
    }
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
}

#[test]
fn a_refused_handshake_is_an_answer_like_any_other() {
    let stage = Stage::new();
    let proxy = Proxy::start(&Setup::new([stage.service().percentage(100)]));

    let refused = Socket::open(proxy.addresses.http, &format!("ws://{HOST}/refused"), &[], None).err().unwrap();

    let Error::Http(response) = *refused else { panic!("{refused}") };
    assert_eq!((response.status().as_u16(), response.body().as_deref()), (403, Some(&b"not for you"[..])));
}

#[test]
fn whoever_ends_it_the_other_side_hears_what_was_said_and_no_more() {
    let stage = Stage::new();
    let proxy = Proxy::start(&Setup::new([stage.service()]));

    let mut closed = open(proxy.addresses.http, "/");
    closed.send(Message::text("close"));
    let frame = CloseFrame { code: CloseCode::from(4001), reason: "as you wish".into() };
    assert_eq!(closed.next().unwrap().unwrap(), Message::Close(Some(frame)));

    let mut left = open(proxy.addresses.http, "/");
    left.send(Message::text("leave"));
    left.assert_cut();

    let mut leaving = open(proxy.addresses.http, "/");
    leaving.assert_echo("hello");
    let before = stage.old.ends().len();
    drop(leaving);
    eventually(PATIENCE, "the server hears of it", || stage.old.ends().len() > before);
    assert_eq!(stage.old.ends().last(), Some(&Ended::Cut));
}

#[test]
fn sockets_survive_reloads_where_they_are() {
    let stage = Stage::new();
    let setup = |percentage: u32| Setup::new([stage.service().percentage(percentage)]);
    let proxy = Proxy::start(&setup(0));
    let mut socket = open(proxy.addresses.http, "/");
    socket.assert_echo("before");

    for percentage in [100, 50, 100] {
        proxy.reload(&setup(percentage));
        socket.assert_echo("after a reload");
    }
    proxy.reload(&Setup::new([stage.clusters.service("b")]));
    socket.assert_echo("after its service is gone");

    assert_eq!((stage.old.handshakes().len(), stage.new.handshakes().len()), (1, 0));
    assert_eq!(stage.old.ends(), []);
}

#[test]
fn a_drain_ends_sockets_without_a_frame_of_its_own() {
    let stage = Stage::new();
    let setup = Setup::new([stage.service()]).drain("delay: 0s, grace: 4s");
    let mut server = Server::start(&setup);
    let mut socket = open(server.addresses.http, "/");
    socket.assert_echo("before");

    server.signal("TERM");
    server.wait_for_line(&["drain"]);
    let large = vec![7; 1 << 20];
    socket.send(Message::binary(large.clone()));

    assert!(socket.next().unwrap().unwrap() == Message::binary(large), "the bytes in hand arrive");
    socket.assert_cut();
    eventually(PATIENCE, "the server hears of it", || stage.old.ends() == [Ended::Cut]);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_socket_lives_as_long_as_somebody_speaks() {
    const PAUSE: Duration = Duration::from_secs(2);
    let stage = Stage::new();
    let proxy = Proxy::start(&Setup::new([stage.service().with("timeouts: {tunnel: 2s, idle: 100ms}")]));
    let mut socket = open(proxy.addresses.http, "/");
    let started = Instant::now();

    while started.elapsed() < 2 * PAUSE {
        socket.assert_echo("still here");
    }

    let silent = Instant::now();
    socket.assert_cut();
    assert!(silent.elapsed() >= PAUSE / 2, "{:?}", silent.elapsed());
}

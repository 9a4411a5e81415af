//! Clients that send HTTP/2 frames for their own sake: the memory that it costs is bounded, others are served meanwhile,
//! and where it is only a burden the connection ends.

use crate::support::cli::Server;
use crate::support::client::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, Outcome, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    block,
};
use crate::support::origin::{Answer, End};
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

/// More than any one connection may cost: 16 MiB of answers that wait, and what its 128 requests hold besides.
const MOST_MEMORY: u64 = 48 << 20;

/// RFC 9113, 7.
const ENHANCE_YOUR_CALM: u32 = 11;
const REFUSED_STREAM: u32 = 7;

struct Stage {
    clusters: Clusters,
    server: Server,
    before: u64,
}

impl Stage {
    fn new() -> Self {
        let clusters = Clusters::new();
        clusters.old.on("/hang", Answer::nothing(End::Hang)).on("/endless", Answer::pattern(1 << 40));
        let server = Server::start(&Setup::new([clusters.service("a")]));
        server.get(HOST, "/");
        let before = server.memory();
        Self { clusters, server, before }
    }

    fn connection(&self) -> Frames {
        Frames::open(self.server.client())
    }

    /// Sends these bytes again and again, and looks between them whether others are served. False when the connection ended.
    fn flood(&self, connection: &mut Frames, bytes: &[u8], times: usize) -> bool {
        for round in 0..times {
            if connection.try_send(bytes).is_err() {
                return false;
            }
            if round % (times / 10).max(1) == 0 {
                assert_eq!(self.server.get(HOST, "/").status, 200, "another client is served");
            }
        }
        true
    }

    /// How much more memory it took at most.
    #[track_caller]
    fn assert_unharmed(&mut self, what: &str) {
        assert_eq!(self.server.get(HOST, "/").status, 200, "{what}");
        let grown = self.server.peak_memory().saturating_sub(self.before);
        println!("{what}: {} KiB more at most", grown / 1024);
        assert!(grown < MOST_MEMORY, "{what}: {grown} bytes more than before");
        self.server.assert_sound();
    }

    /// Flood by these bytes; the connection has to end.
    #[track_caller]
    fn ends(&mut self, what: &str, mut connection: Frames, bytes: &[u8], times: usize) {
        let before = self.server.metrics().sum("rejected_total", &[("cause", "malformed")]);
        let sent_all = self.flood(&mut connection, bytes, times);
        let outcome = connection.outcome(u32::MAX);
        assert!(matches!(outcome, Outcome::GoAway(_) | Outcome::Closed), "{what}: {outcome:?}, {sent_all}");
        let counted = || self.server.metrics().sum("rejected_total", &[("cause", "malformed")]) > before;
        eventually(PATIENCE, &format!("{what} is counted"), counted);
        self.assert_unharmed(what);
    }
}

fn head(path: &str) -> Vec<u8> {
    block(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", HOST.as_bytes()), (b":path", path.as_bytes())])
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    Frames::bytes(HEADERS, END_HEADERS | END_STREAM, stream, &head(path))
}

#[test]
fn streams_that_are_reset_at_once_end_the_connection() {
    let mut stage = Stage::new();
    let mut connection = stage.connection();
    let burst: Vec<u8> = (0..20_000_u32)
        .flat_map(|number| {
            let stream = 2 * number + 1;
            [get(stream, "/hang"), Frames::bytes(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        })
        .collect();

    for part in burst.chunks(64 * 1024) {
        if connection.try_send(part).is_err() {
            break;
        }
    }

    let outcome = connection.outcome(u32::MAX);
    assert!(matches!(outcome, Outcome::GoAway(ENHANCE_YOUR_CALM) | Outcome::Closed), "{outcome:?}");
    stage.assert_unharmed("rapid reset");
    let asked = stage.clusters.old.requests();
    assert!(asked < 1_000, "the origin was asked {asked} times");
}

/// Slowly enough that each request is looked at before it is left.
#[test]
fn a_client_that_leaves_nearly_all_of_its_requests_is_left() {
    let mut stage = Stage::new();
    let mut connection = stage.connection();
    let mut stream = 1_u32;
    let mut outcome = None;

    while outcome.is_none() && stream < 10_000 {
        let mut bytes = Vec::new();
        let streams: Vec<u32> = (0..10).map(|number| stream + 2 * number).collect();
        for stream in &streams {
            bytes.extend(get(*stream, "/hang"));
        }
        bytes.extend(Frames::bytes(PING, 0, 0, b"look now"));
        let resets: Vec<u8> =
            streams.iter().flat_map(|stream| Frames::bytes(RST_STREAM, 0, *stream, &[0, 0, 0, 8])).collect();
        stream += 20;
        // The answer to the PING says that the requests before it were read.
        let answered = connection.try_send(&bytes).is_ok()
            && loop {
                match connection.next() {
                    Ok(frame) if frame.kind == PING => break true,
                    Ok(_) => {}
                    Err(_) => break false,
                }
            };
        if !answered || connection.try_send(&resets).is_err() {
            outcome = Some(stream / 2);
        }
    }

    let requests = outcome.expect("the connection ends");
    assert!((500..1_500).contains(&requests), "{requests}");
    stage.assert_unharmed("requests that are left");
}

#[test]
fn heads_without_end_end_the_connection() {
    let mut stage = Stage::new();
    for (what, piece) in [
        ("CONTINUATION of nothing", vec![]),
        ("CONTINUATION of one field", block(&[(b"x", b"y")])),
        ("CONTINUATION of 16 KiB", block(&[(b"x", &vec![b'y'; 16_000][..])])),
    ] {
        let mut connection = stage.connection();
        connection.send(HEADERS, END_STREAM, 1, &head("/"));
        let frames = Frames::bytes(CONTINUATION, 0, 1, &piece).repeat(100);
        stage.ends(what, connection, &frames, 100);
    }
}

#[test]
fn heads_that_swell_are_refused() {
    let mut stage = Stage::new();
    let many: Vec<u8> = [head("/"), block(&[(b"x", b"y")]).repeat(3_000)].concat();
    // One entry of the table, 4 KB long, and then 12 000 times its index: 48 MB by a frame of 16 KiB.
    let mut entry = vec![0x40, 1, b'x', 0x7f, 0x99, 0x1e];
    entry.extend(vec![b'y'; 0x1e * 128 + 0x19 + 127]);
    let bomb: Vec<u8> = [head("/"), entry, vec![0xbe; 12_000]].concat();

    for (what, block) in [("many small fields", many), ("a head that unfolds", bomb)] {
        for _ in 0..20 {
            let mut connection = stage.connection();
            let _ = connection.try_send(&Frames::bytes(HEADERS, END_HEADERS | END_STREAM, 1, &block));
            let outcome = connection.outcome(1);
            assert!(!matches!(outcome, Outcome::Status(200)), "{what}: {outcome:?}");
        }
        stage.assert_unharmed(what);
    }
    assert_eq!(stage.clusters.old.recorded().iter().filter(|request| request.has("x")).count(), 0);
}

#[test]
fn frames_that_carry_nothing_end_the_connection() {
    let mut stage = Stage::new();
    let rows = [
        ("PING", Frames::bytes(PING, 0, 0, b"01234567")),
        ("SETTINGS", Frames::bytes(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("SETTINGS of nothing", Frames::bytes(SETTINGS, 0, 0, b"")),
        ("PRIORITY", Frames::bytes(2, 0, 1, &[0, 0, 0, 3, 1])),
        ("a type that is unknown", Frames::bytes(0xbe, 0, 0, b"?")),
    ];
    for (what, frame) in rows {
        let connection = stage.connection();
        stage.ends(what, connection, &frame.repeat(1_000), 100);
    }
}

#[test]
fn bodies_of_nothing_end_the_connection() {
    let mut stage = Stage::new();
    let mut connection = stage.connection();
    connection.send(HEADERS, END_HEADERS, 1, &head("/"));

    stage.ends("DATA of nothing", connection, &Frames::bytes(DATA, 0, 1, b"").repeat(1_000), 100);
}

#[test]
fn windows_that_grow_by_one_byte_are_no_burden() {
    let mut stage = Stage::new();
    let mut connection = stage.connection();
    let windows = Frames::bytes(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(1_000);

    assert!(stage.flood(&mut connection, &windows, 100));

    connection.try_send(&get(1, "/")).unwrap();
    assert_eq!(connection.outcome(1), Outcome::Status(200));
    stage.assert_unharmed("WINDOW_UPDATE");
}

#[test]
fn streams_over_the_limit_are_refused_alone() {
    let mut stage = Stage::new();
    let mut connection = stage.connection();
    for number in 0..128 {
        connection.try_send(&get(2 * number + 1, "/hang")).unwrap();
    }
    eventually(PATIENCE, "the origin is asked", || stage.clusters.old.open_connections() >= 128);

    for number in 128..148 {
        let stream = 2 * number + 1;
        connection.try_send(&get(stream, "/hang")).unwrap();
        assert_eq!(connection.outcome(stream), Outcome::Reset(REFUSED_STREAM), "{number}");
    }
    assert_eq!(stage.clusters.old.requests(), 129);
    connection.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    connection.try_send(&get(301, "/")).unwrap();
    assert_eq!(connection.outcome(301), Outcome::Status(200), "a place has become free");
    stage.assert_unharmed("streams over the limit");
}

/// The windows are as large as can be, so that only our own buffers are a bound.
#[test]
fn a_client_that_takes_nothing_holds_little() {
    let mut stage = Stage::new();
    let mut connection = stage.connection();
    connection.send(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    connection.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    for number in 0..128 {
        connection.try_send(&get(2 * number + 1, "/endless")).unwrap();
    }
    eventually(PATIENCE, "the origin is asked", || stage.clusters.old.requests() == 129);

    // A hundred requests of another client are time enough for the buffers to fill.
    for _ in 0..100 {
        assert_eq!(stage.server.get(HOST, "/").status, 200);
    }

    stage.assert_unharmed("128 responses that nobody takes");
}

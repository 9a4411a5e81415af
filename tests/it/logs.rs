//! A reader of stderr that stops reading, as a log collector may: it costs lines and nothing else.

use std::io::{PipeReader, Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::PATIENCE;
use crate::support::cli::Server;
use crate::support::origin::{Answer, End};
use crate::support::setup::{Clusters, Setup};

const HOST: &str = "a.old.test";

/// What a pipe holds, and a little more.
const FULL: usize = 65536;

/// A server whose stderr is a pipe that was full before it started, and the pipe's other end.
fn unread(setup: &Setup) -> (Server, PipeReader) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    // Ends when the pipe is read, or when its other end is gone.
    std::thread::spawn(move || writer.write_all(&vec![b'\n'; FULL + 1]));
    (Server::start_into(setup, stderr), reader)
}

fn setup(clusters: &Clusters) -> Setup {
    for cluster in [&clusters.old, &clusters.new] {
        cluster.on("/cut", Answer::side().body("12345").cut(3, End::Fin));
    }
    Setup::new([clusters.service("a")]).log("audit_path: /dev/stderr").drain("delay: 0s, grace: 5s")
}

/// Traffic, cut answers, commands and probes while nobody reads.
fn use_it(server: &Server) {
    for round in 0..20 {
        let changed = server.change("PUT", "/api/v1/services/a/migration", &json!({"percentage": round % 2}));
        assert_eq!(changed.status, 200);
        let mut client = server.client();
        assert!(client.exchange("GET", HOST, "/cut", &[], b"").is_err());
        assert_eq!(server.get(HOST, "/").status, 200);
        assert_eq!(server.admin("/health").status, 200);
    }
}

#[test]
fn a_stderr_that_nobody_reads_holds_up_neither_requests_nor_commands_nor_the_end() {
    let clusters = Clusters::new();
    let (mut server, _unread) = unread(&setup(&clusters));

    let started = Instant::now();
    use_it(&server);
    assert!(started.elapsed() < Duration::from_secs(20), "no command waits once it is known: {:?}", started.elapsed());

    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn what_waited_for_the_reader_comes_in_its_order_and_to_the_last_line() {
    let clusters = Clusters::new();
    let (mut server, mut reader) = unread(&setup(&clusters));
    use_it(&server);

    let read = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));

    let deadline = Instant::now() + PATIENCE;
    while !read.is_finished() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let text = read.join().unwrap().unwrap();
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {}", text.trim_start()));
    let places = ["serving", "AUDIT - percentage", "draining", "ended finished=true"].map(place);
    assert!(places.is_sorted(), "{}", text.trim_start());
    assert!(text.matches("AUDIT - percentage").count() >= 19, "{}", text.trim_start());
    assert!((1..=2).contains(&text.matches("response cut").count()), "one line a minute: {}", text.trim_start());
}

#[test]
fn the_last_line_is_written_however_the_process_ends() {
    let clusters = Clusters::new();
    let mut server = Server::start(&setup(&clusters).drain("delay: 1h, grace: 5s"));

    server.signal("TERM");
    server.wait_for_line(&["draining"]);
    server.signal("TERM");

    assert_eq!(server.exit_code(), Some(1));
    assert!(server.stderr().contains("told to stop once more"), "{}", server.stderr());
}

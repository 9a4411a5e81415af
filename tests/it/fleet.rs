//! What a replica tells of the others, and what waits for all of them.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::Proxy;
use crate::support::reach::Reach;
use crate::support::replicas::Replicas;
use crate::support::setup::Setup;
use crate::support::{PATIENCE, eventually, eventually_some};

fn start(replicas: &Replicas, number: u8) -> Proxy {
    Proxy::start(&replicas.setup(number, 20))
}

fn set_share(replica: &Reach, percentage: u64) {
    let answer = replica.change("PUT", "/api/v1/services/a/migration", &json!({"percentage": percentage}));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Name and state of each other replica.
fn states(replica: &Reach) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = replica.status();
    let mut states: Vec<_> = status["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|other| (text(&other["name"]), text(&other["state"])))
        .collect();
    states.sort();
    states
}

fn expected(states: &[(&str, &str)]) -> Vec<(String, String)> {
    states.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect()
}

#[test]
fn replicas_know_of_each_other_and_a_difference_is_told_when_it_lasts() {
    let replicas = Replicas::new(2);
    let [one, other] = [1, 2].map(|number| start(&replicas, number));
    eventually(PATIENCE, "they agree", || {
        states(&one) == expected(&[("pod-2", "agree")]) && states(&other) == expected(&[("pod-1", "agree")])
    });
    let told = one.command(&["status"]);
    assert!(told.expect(0).contains("2 of 2 replicas agree"), "{}", told.stdout);
    assert_eq!(one.metrics().sum("fleet_replicas", &[("state", "agree")]), 1.0);

    // Each has a state of its own here, so nobody follows.
    one.command(&["update", "a", "50"]).expect(0);
    assert_eq!(states(&one), expected(&[("pod-2", "differ")]), "compared with what is served now");
    let report = one.status()["replicas"][0].clone();
    assert_eq!((&report["agrees"], &report["services"][0]["effective"]), (&json!(false), &json!(20)));
    assert_eq!(
        (&report["services"][0]["breaker"], &report["config_hash"]),
        (&json!("closed"), &one.status()["config"]["hash"])
    );
    eventually(PATIENCE, "the other one sees it too", || states(&other) == expected(&[("pod-1", "differ")]));
    let told = one.command(&["status"]);
    assert!(told.expect(0).contains("1 of 2 replicas"), "{}", told.stdout);
    eventually(PATIENCE * 3, "it has lasted", || {
        one.status()["degraded"].to_string().contains("replica pod-2 does not agree for")
    });
    assert_eq!(one.metrics().sum("fleet_replicas", &[("state", "differ")]), 1.0);

    set_share(&other, 50);
    eventually(PATIENCE, "they agree again", || one.status()["degraded"] == json!([]));
}

#[test]
fn a_wait_ends_when_every_replica_serves_the_share() {
    let replicas = Replicas::new(2);
    let [one, other] = [1, 2].map(|number| start(&replicas, number));
    eventually(PATIENCE, "they agree", || states(&one) == expected(&[("pod-2", "agree")]));

    let told = one.command(&["update", "a", "40", "--wait", "1s"]);
    told.expect(8);
    assert!(told.stderr.contains("pod-2"), "{}", told.stderr);
    std::thread::scope(|scope| {
        let author: &Reach = &one;
        let waiting = scope.spawn(|| author.command(&["update", "a", "45", "--wait", "20s"]));
        eventually(PATIENCE, "the change is made", || one.service("a")["percentage"]["effective"] == 45);
        set_share(&other, 45);
        let told = waiting.join().unwrap();
        told.expect(0);
        assert!(told.stderr.contains("2 replicas after"), "{}", told.stderr);
    });
}

#[test]
fn a_reload_is_compared_at_once_and_peers_can_be_turned_on() {
    let replicas = Replicas::new(2);
    let one = start(&replicas, 1);
    let quiet = Setup::new([replicas.clusters.service("a").percentage(20)]).admin(replicas.place(2));
    let other = Proxy::start(&quiet);
    assert_eq!(other.status()["replicas"], json!([]));
    eventually(PATIENCE, "another file is another configuration", || {
        states(&one).first().is_some_and(|(_, state)| state == "differ")
    });

    let peers = format!("fleet: {{peers: \"dns:127.0.0.1:{}\"}}", replicas.port);
    other.reload(&quiet.top(&peers));
    eventually(PATIENCE, "the other one looks now", || states(&other) == expected(&[("pod-1", "differ")]));
}

#[test]
fn peers_that_answer_garbage_or_never_are_unreachable() {
    let replicas = Replicas::new(4);
    let garbage = TcpListener::bind(replicas.place(2)).unwrap();
    let _silent = TcpListener::bind(replicas.place(3)).unwrap();
    let answering = std::thread::spawn(move || {
        // Until the test's process ends, or its proxy asks no more.
        while let Ok((mut socket, _)) = garbage.accept() {
            let mut head = [0; 64];
            let length = socket.read(&mut head).unwrap_or(0);
            if head[..length].starts_with(b"stop") {
                return;
            }
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[\"garbage");
        }
    });
    let one = start(&replicas, 1);

    let status = eventually_some(PATIENCE * 2, "everybody was asked", || {
        let status = one.status();
        let errors = status["replicas"].as_array()?.iter().filter(|other| other["error"].is_string()).count();
        (errors == 3).then_some(status)
    });
    let text = status["replicas"].to_string();
    for part in ["something else", "no answer within", "refused"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(states(&one).iter().all(|(_, state)| state == "unreachable"));
    assert_eq!(one.metrics().sum("fleet_replicas", &[("state", "unreachable")]), 3.0);
    assert_eq!(one.side("a.old.test", "/", &[]).len(), 3, "traffic goes on");

    replicas.answer(1);
    eventually(PATIENCE + Duration::from_secs(5), "who has left is forgotten", || states(&one).is_empty());
    let mut stop = std::net::TcpStream::connect(replicas.place(2)).unwrap();
    stop.write_all(b"stop").unwrap();
    answering.join().unwrap();
}

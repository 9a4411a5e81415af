//! Replicas that share their state through a ConfigMap. The API server is one of the kit's, see `support::kubernetes` for
//! what it can prove.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::app::Proxy;
use crate::support::cli::Server;
use crate::support::kubernetes::ApiServer;
use crate::support::reach::Reach;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const MAP: &str = "migration-state";
const KEY: &str = "state.yaml";
const A: &str = "a.old.test";

/// A replica of that name with these services.
fn setup(server: &ApiServer, clusters: &Clusters, replica: &str, a: u64, b: u64) -> Setup {
    Setup::new([clusters.service("a").percentage(a), clusters.service("b").percentage(b)])
        .state("backend: auto")
        .environment(server.environment())
        .environment([("HOSTNAME".to_owned(), replica.to_owned())])
}

/// Two replicas in this process that know what they share.
fn two(server: &ApiServer, clusters: &Clusters) -> [Proxy; 2] {
    ["pod-1", "pod-2"].map(|replica| {
        let proxy = Proxy::start(&setup(server, clusters, replica, 20, 0));
        ready(&proxy);
        proxy
    })
}

#[track_caller]
fn ready(replica: &Reach) {
    eventually(PATIENCE, "the state is known", || replica.admin("/ready").status == 200);
}

#[track_caller]
fn watched(server: &ApiServer, replicas: usize) {
    eventually(PATIENCE, "everybody watches", || server.watches() == replicas);
}

fn share(replica: &Reach, service: &str) -> f64 {
    replica.service(service)["percentage"]["effective"].as_f64().unwrap()
}

/// A change through the API; gives status and answer.
fn update(replica: &Reach, service: &str, percentage: &Value) -> (u16, Value) {
    let target = format!("/api/v1/services/{service}/migration");
    let answer = replica.change("PUT", &target, &json!({"percentage": percentage}));
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
}

fn degraded(replica: &Reach) -> String {
    replica.status()["degraded"].to_string()
}

#[track_caller]
fn well(replica: &Reach) {
    eventually(PATIENCE, "nothing is degraded", || replica.status()["degraded"] == json!([]));
}

#[test]
fn replicas_follow_each_other_within_a_second() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let [one, other] = two(&server, &clusters);
    watched(&server, 2);
    assert_eq!(
        (one.side(A, "/", &[]).is_empty(), server.data(MAP, KEY)),
        (false, None),
        "nothing is written at the start"
    );

    let mut delays = Vec::new();
    for (number, (author, follower)) in [(&one, &other), (&other, &one)].into_iter().cycle().take(6).enumerate() {
        let wanted = 10 + number as u64;
        let start = Instant::now();
        assert_eq!(update(author, "a", &json!(wanted)).0, 200);
        assert_eq!(share(author, "a"), wanted as f64);
        eventually(PATIENCE, "the other one follows", || share(follower, "a") == wanted as f64);
        delays.push(start.elapsed());
    }
    delays.sort_unstable();
    println!("followed after {delays:?}");
    assert!(delays[2] < Duration::from_secs(1), "{delays:?}");

    one.command(&["safe-mode", "on"]).expect(0);
    eventually(PATIENCE, "safe mode reaches the other one", || other.status()["safe_mode"] == true);
    assert_eq!(other.side(A, "/", &[]), "old");
    other.command(&["safe-mode", "off"]).expect(0);
    other.command(&["freeze", "on", "a"]).expect(0);
    eventually(PATIENCE, "a freeze holds everywhere", || one.command(&["update", "a", "90"]).code == Some(6));
    assert!(one.audit_lines().iter().all(|line| !line.contains(" AUDIT - freeze ")), "only its author audits a change");
}

#[test]
fn no_update_of_a_thousand_is_lost() {
    const WRITERS: usize = 4;
    const EACH: usize = 125;
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let replicas = two(&server, &clusters);
    let start = Instant::now();

    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS * 2)
            .map(|writer| {
                let replica: &Reach = &replicas[writer % 2];
                // Both services, so that changes of one must not undo those of the other.
                let service = ["a", "b"][writer / 2 % 2];
                scope.spawn(move || (0..EACH).map(|_| update(replica, service, &json!("+0.01")).0).collect::<Vec<_>>())
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });

    println!("1 000 updates in {:?} with {} conflicts", start.elapsed(), server.conflicts());
    // Where the machine stands still for seconds a change may be refused for want of time, and that is told.
    let made = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.len() == 1_000 && made >= 990, "{made} were made: {statuses:?}");
    let sum = |replica: &Reach| ((share(replica, "a") + share(replica, "b") - 20.0) * 100.0).round() as usize;
    for replica in &replicas {
        eventually(PATIENCE, "every update counts, once", || (made..=1_000).contains(&sum(replica)));
        well(replica);
    }
    assert_eq!(sum(&replicas[0]), sum(&replicas[1]));
    assert!(server.conflicts() > 0, "they met");
}

#[test]
fn the_newest_intent_wins_and_the_loser_is_told() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let [one, other] = two(&server, &clusters);
    let wishes: [(&Reach, u64); 2] = [(&one, 30), (&other, 40)];

    for round in 0..10 {
        let statuses: Vec<(u16, u64)> = std::thread::scope(|scope| {
            let asked = wishes.map(|(replica, wish)| {
                scope.spawn(move || (update(replica, "a", &json!(wish + round)).0, wish + round))
            });
            asked.map(|asked| asked.join().unwrap()).into()
        });
        assert!(statuses.iter().all(|(status, _)| matches!(status, 200 | 409)), "{statuses:?}");
        let done = |value: f64| statuses.iter().any(|(status, wish)| *status == 200 && *wish as f64 == value);
        eventually(PATIENCE, "both serve what won", || {
            share(&one, "a") == share(&other, "a") && done(share(&one, "a"))
        });
        for ((replica, _), (status, _)) in wishes.iter().zip(&statuses) {
            let refused = replica.audit_lines().iter().filter(|line| line.contains("a newer change of a won")).count();
            assert!(*status == 200 || refused > 0, "the loser is audited");
        }
    }
}

#[test]
fn a_lost_api_server_disturbs_no_traffic() {
    let (clusters, mut server) = (Clusters::new(), ApiServer::with_map(MAP));
    let [one, other] = two(&server, &clusters);
    assert_eq!(update(&one, "a", &json!(100)).0, 200);
    eventually(PATIENCE, "the other one follows", || other.side(A, "/", &[]) == "new");

    server.stop();
    for replica in [&one, &other] {
        eventually(PATIENCE, "it is degraded", || degraded(replica).contains("the state is not shared"));
        assert_eq!((replica.side(A, "/", &[]), replica.admin("/ready").status), ("new".to_owned(), 200));
    }
    let told = one.command(&["update", "b", "50"]);
    told.expect(1);
    assert!(told.stderr.contains("nothing was changed"), "{}", told.stderr);
    let start = Instant::now();
    let told = one.command(&["rollback", "a"]);
    told.expect(4);
    assert!(start.elapsed() < PATIENCE / 2, "a way back waits for nobody");
    assert_eq!((one.side(A, "/", &[]), other.side(A, "/", &[])), ("old".to_owned(), "new".to_owned()));

    server.start();
    eventually(PATIENCE * 4, "the way back reaches the other one", || other.side(A, "/", &[]) == "old");
    for replica in [&one, &other] {
        eventually(PATIENCE * 4, "all is well again", || replica.status()["degraded"] == json!([]));
    }
    assert_eq!(update(&other, "b", &json!(50)).0, 200);
    eventually(PATIENCE, "changes are followed again", || share(&one, "b") == 50.0);
}

#[test]
fn a_new_replica_is_not_ready_before_it_knows_the_state() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let one = Proxy::start(&setup(&server, &clusters, "pod-1", 20, 100));
    ready(&one);
    assert_eq!(update(&one, "a", &json!(70)).0, 200);
    one.command(&["safe-mode", "on", "b", "--reason", "drill"]).expect(0);

    server.be_silent(true);
    let new = Proxy::start(&setup(&server, &clusters, "pod-2", 20, 100));
    assert_eq!(new.admin("/ready").json()["missing"], json!(["state"]));
    server.be_silent(false);
    // Whatever the new one says to be ready with is complete.
    let status = loop {
        let status = new.status();
        if status["ready"] == true {
            break status;
        }
        assert_eq!(status["services"][0]["percentage"]["effective"], 20, "nothing is taken over by halves");
    };
    assert_eq!(status["services"][0]["percentage"], json!({"declared": 20, "effective": 70, "confirm_by": null}));
    assert_eq!(status["services"][1]["safe_mode"], true);
}

#[test]
fn a_start_without_the_api_server_serves_its_last_copy() {
    let (clusters, mut server) = (Clusters::new(), ApiServer::with_map(MAP));
    let mut replica = Server::start(&setup(&server, &clusters, "pod-1", 0, 0));
    replica.command(&["update", "a", "100"]).expect(0);
    eventually(PATIENCE, "there is a copy", || {
        std::fs::read_to_string(replica.state_file("state.yaml")).is_ok_and(|text| text.contains("100"))
    });

    server.stop();
    replica.kill_and_restart_unready();

    eventually(PATIENCE, "the copy serves", || replica.side(A, "/", &[]) == "new");
    assert_eq!(replica.admin("/ready").json()["missing"], json!(["state"]));
    server.start();
    eventually(PATIENCE * 4, "it is ready", || replica.admin("/ready").status == 200);
    assert_eq!(replica.side(A, "/", &[]), "new");
}

#[test]
fn a_way_back_that_nobody_could_be_told_of_survives_and_is_told_later() {
    let (clusters, mut server) = (Clusters::new(), ApiServer::with_map(MAP));
    let mut replica = Server::start(&setup(&server, &clusters, "pod-1", 0, 0));
    replica.command(&["update", "a", "100"]).expect(0);
    server.stop();
    eventually(PATIENCE, "it is degraded", || degraded(&replica).contains("the state is not shared"));
    replica.command(&["rollback", "a"]).expect(4);
    let copy = || std::fs::read_to_string(replica.state_file("state.yaml")).unwrap();
    eventually(PATIENCE, "it is kept", || copy().contains("value: 0"));
    assert!(replica.state_file("state-shared.yaml").exists(), "with what it differs from");

    replica.kill_and_restart_unready();
    eventually(PATIENCE, "the way back holds", || replica.side(A, "/", &[]) == "old");
    server.start();
    eventually(PATIENCE * 4, "it is ready", || replica.admin("/ready").status == 200);

    assert_eq!(replica.side(A, "/", &[]), "old");
    let new = Proxy::start(&setup(&server, &clusters, "pod-2", 0, 0));
    ready(&new);
    eventually(PATIENCE, "the others hear of it", || share(&new, "a") == 0.0);
}

#[test]
fn what_nobody_confirms_goes_back_also_without_its_author() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let author = Server::start(&setup(&server, &clusters, "pod-1", 20, 20));
    let other = Proxy::start(&setup(&server, &clusters, "pod-2", 20, 20));
    ready(&other);
    author.command(&["update", "*", "60", "--for", "3s"]).expect(0);
    eventually(PATIENCE, "the other one follows", || share(&other, "b") == 60.0);
    other.command(&["confirm", "b"]).expect(0);

    drop(author);

    eventually(PATIENCE, "a goes back", || share(&other, "a") == 20.0);
    assert_eq!(share(&other, "b"), 60.0);
    let audit = other.audit_lines().join("\n");
    assert!(audit.contains(r#"expired service="a" from=60 to=20 by="process""#), "{audit}");
    well(&other);
    assert!(server.data(MAP, KEY).unwrap().contains("not confirmed in time"));
}

#[test]
fn a_clock_that_runs_out_on_every_replica_is_audited_once() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let replicas = two(&server, &clusters);
    watched(&server, 2);
    replicas[0].command(&["update", "a", "60", "--for", "1s"]).expect(0);

    for replica in &replicas {
        eventually(PATIENCE, "it goes back everywhere", || share(replica, "a") == 20.0);
    }
    let expired = |replica: &Proxy| replica.audit_lines().iter().filter(|line| line.contains(" expired ")).count();
    assert_eq!(replicas.iter().map(expired).sum::<usize>(), 1);
}

#[test]
fn files_that_change_apart_never_lead_to_a_third_value() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let [one, other] = two(&server, &clusters);
    assert_eq!(update(&one, "a", &json!(50)).0, 200);
    eventually(PATIENCE, "the other one follows", || share(&other, "a") == 50.0);

    let mut seen = Vec::new();
    let mut look = |until: &dyn Fn(f64, f64) -> bool| {
        let end = Instant::now() + PATIENCE;
        loop {
            let (mine, theirs) = (share(&one, "a"), share(&other, "a"));
            seen.extend([mine, theirs]);
            if until(mine, theirs) {
                return;
            }
            assert!(Instant::now() < end, "{seen:?}");
        }
    };
    one.reload(&setup(&server, &clusters, "pod-1", 30, 0));
    look(&|mine, theirs| (mine, theirs) == (30.0, 30.0));
    assert_eq!(other.service("a")["percentage"], json!({"declared": 20, "effective": 30, "confirm_by": null}));
    // A replica that starts with the older file, as its node may have it still, joins in.
    other.reload(&setup(&server, &clusters, "pod-2", 30, 0));
    look(&|mine, theirs| (mine, theirs) == (30.0, 30.0));
    seen.sort_by(f64::total_cmp);
    seen.dedup();
    assert!(seen.iter().all(|share| [50.0, 30.0].contains(share)), "{seen:?}");

    let cleared = |replica: &Proxy| replica.audit_lines().iter().filter(|line| line.contains(" cleared ")).count();
    assert_eq!((cleared(&one), cleared(&other)), (1, 0), "the first to see it clears it");
    assert_eq!(update(&other, "a", &json!(35)).0, 200);
    eventually(PATIENCE, "newer intents win again", || share(&one, "a") == 35.0);
}

#[test]
fn a_file_that_changed_while_a_replica_was_down_clears_at_its_start() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let mut replica = Server::start(&setup(&server, &clusters, "pod-1", 20, 0));
    replica.command(&["update", "a", "50"]).expect(0);
    replica.command(&["update", "b", "5"]).expect(0);

    replica.file.swap(&replica.text(&setup(&server, &clusters, "pod-1", 30, 0)));
    replica.kill_and_restart();

    assert_eq!((share(&replica, "a"), share(&replica, "b")), (30.0, 5.0));
    let cleared = replica.audit_lines().iter().filter(|line| line.contains(" cleared ")).count();
    assert_eq!(cleared, 1);
    eventually(PATIENCE, "the others hear of it", || server.data(MAP, KEY).unwrap().contains("file"));
}

#[test]
fn a_watch_may_end_at_any_time() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let [one, other] = two(&server, &clusters);
    let forget = || {
        server.compact();
        server.end_watches();
    };
    let troubles: [&dyn Fn(); 3] = [&|| server.end_watches(), &forget, &|| server.bookmark()];
    for (round, trouble) in (1_u64..).zip(troubles) {
        watched(&server, 2);
        trouble();
        assert_eq!(update(&one, "a", &json!(round)).0, 200);
        eventually(PATIENCE, "it is followed all the same", || share(&other, "a") == round as f64);
    }
    // What a watch from before does not hear any more is listed.
    server.forbid(&["watch"]);
    server.end_watches();
    assert_eq!(update(&one, "a", &json!(77)).0, 200);
    eventually(PATIENCE, "it is polled", || share(&other, "a") == 77.0);
    eventually(PATIENCE, "and said", || degraded(&other).contains("cannot watch resource"));
    server.forbid(&[]);
}

#[test]
fn what_is_forbidden_is_said_with_the_role_that_would_allow_it() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    server.forbid(&["patch", "list", "watch"]);
    let one = Proxy::start(&setup(&server, &clusters, "pod-1", 20, 0));
    ready(&one);

    eventually(PATIENCE, "it is degraded", || degraded(&one).contains("heard of late"));
    let told = one.command(&["update", "a", "50"]);
    told.expect(1);
    for part in ["nothing was changed", "cannot patch resource", "Role", "get, list, watch and patch", MAP, "team"] {
        assert!(told.stderr.contains(part), "{part} in {}", told.stderr);
    }
    assert_eq!(share(&one, "a"), 20.0);
    let examined = one.command(&["doctor"]);
    for part in ["get of ConfigMap", "patch of ConfigMap", "is forbidden", "k8s/rbac.yaml"] {
        assert!(examined.expect(4).contains(part), "{part} in {examined:?}");
    }
    one.command(&["safe-mode", "on"]).expect(4);
    eventually(PATIENCE, "it is said", || degraded(&one).contains("other replicas do not know all"));

    server.forbid(&[]);
    eventually(PATIENCE * 4, "the others hear of it", || {
        server.data(MAP, KEY).is_some_and(|text| text.contains("safe_mode"))
    });
}

#[test]
fn an_api_server_that_lets_others_write_all_the_time_is_not_called_silent() {
    const TOLD: &str = "other replicas write all the time";
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let one = Proxy::start(&setup(&server, &clusters, "pod-1", 20, 0));
    ready(&one);
    server.be_contended(true);

    let told = one.command(&["update", "a", "50"]);
    told.expect(1);
    assert!(told.stderr.contains(&format!("nothing was changed: {TOLD}")), "{}", told.stderr);
    assert_eq!(share(&one, "a"), 20.0);
    let told = one.command(&["safe-mode", "on"]);
    told.expect(4);
    assert!(told.stderr.contains(TOLD), "{}", told.stderr);
    assert_eq!(one.status()["safe_mode"], true, "what takes traffic off new holds here");
    eventually(PATIENCE, "it is said", || degraded(&one).contains(&format!("other replicas do not know all: {TOLD}")));

    server.be_contended(false);
    eventually(PATIENCE * 4, "the others hear of it", || {
        server.data(MAP, KEY).is_some_and(|text| text.contains("safe_mode"))
    });
    eventually(PATIENCE, "all is well", || !degraded(&one).contains(TOLD));
}

#[test]
fn a_state_that_vanishes_or_makes_no_sense_changes_nothing() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let [one, other] = two(&server, &clusters);
    assert_eq!(update(&one, "a", &json!(50)).0, 200);
    eventually(PATIENCE, "the other one follows", || share(&other, "a") == 50.0);

    server.edit(MAP, &json!({"data": {KEY: "services: ["}}));
    eventually(PATIENCE, "it is loud", || degraded(&one).contains("makes no sense"));
    assert_eq!((share(&one, "a"), share(&other, "a")), (50.0, 50.0));
    assert_eq!(update(&one, "b", &json!(7)).0, 200);
    assert_eq!(server.data(MAP, "state.yaml.unreadable").as_deref(), Some("services: ["), "it is kept aside");
    eventually(PATIENCE, "all is well", || share(&other, "b") == 7.0);
    well(&one);

    server.delete(MAP);
    eventually(PATIENCE, "it is made again", || server.data(MAP, KEY).is_some_and(|text| text.contains("50")));
    assert_eq!((share(&one, "a"), share(&other, "b")), (50.0, 7.0));
    server.edit(MAP, &json!({"data": null}));
    eventually(PATIENCE, "it is written again", || server.data(MAP, KEY).is_some_and(|text| text.contains("50")));
    assert_eq!(update(&other, "a", &json!(51)).0, 200);
    eventually(PATIENCE, "changes are followed", || share(&one, "a") == 51.0);
}

#[test]
fn tokens_rotate_and_gateways_speak_older_http() {
    let (clusters, server) = (Clusters::new(), ApiServer::speaking(&["http/1.1"], MAP));
    let one = Proxy::start(&setup(&server, &clusters, "pod-1", 20, 0));
    ready(&one);
    assert_eq!(update(&one, "a", &json!(50)).0, 200);

    server.rotate_token();
    let (status, answer) = update(&one, "a", &json!(60));
    assert_eq!(status, 503);
    assert!(answer["error"].as_str().unwrap().contains("does not accept our token"), "{answer}");
    assert_eq!(share(&one, "a"), 50.0);
    server.restore_token();
    assert_eq!(update(&one, "a", &json!(60)).0, 200);
}

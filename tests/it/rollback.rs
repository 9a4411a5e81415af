//! An earlier configuration on all replicas that share their state: each serves it from its own history, once, and until its
//! own file changes.

use serde_json::{Value, json};

use crate::support::app::Proxy;
use crate::support::cli::Server;
use crate::support::kubernetes::ApiServer;
use crate::support::reach::Reach;
use crate::support::replicas::Replicas;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const MAP: &str = "migration-state";
const KEY: &str = "state.yaml";

/// Replicas with a state in common.
struct Sharing {
    replicas: Replicas,
    server: ApiServer,
}

impl Sharing {
    fn new(count: u8) -> Self {
        Self { replicas: Replicas::new(count), server: ApiServer::with_map(MAP) }
    }

    fn setup(&self, number: u8, percentage: u64) -> Setup {
        self.replicas.setup(number, percentage).state("backend: auto").environment(self.server.environment())
    }

    fn start(&self, number: u8, percentage: u64) -> Proxy {
        let proxy = Proxy::start(&self.setup(number, percentage));
        eventually(PATIENCE, "the state is known", || proxy.admin("/ready").status == 200);
        proxy
    }

    #[track_caller]
    fn know_each_other(replica: &Reach) {
        eventually(PATIENCE, "it has heard of the other one", || {
            replica.status()["replicas"]
                .as_array()
                .is_some_and(|others| others.iter().any(|other| other["config_hash"].is_string()))
        });
    }

    #[track_caller]
    fn forget_the_wish(&self) {
        eventually(PATIENCE, "the wish is over", || {
            self.server.data(MAP, KEY).is_some_and(|text| !text.contains("rollback"))
        });
    }
}

fn share(replica: &Reach) -> f64 {
    replica.service("a")["percentage"]["effective"].as_f64().unwrap()
}

fn hash(replica: &Reach) -> String {
    replica.status()["config"]["hash"].as_str().unwrap().to_owned()
}

fn pinned(replica: &Reach) -> Value {
    replica.status()["config"]["pinned"].clone()
}

fn degraded(replica: &Reach) -> String {
    replica.status()["degraded"].to_string()
}

fn newest(replica: &Reach) -> Value {
    replica.admin("/api/v1/history").json()["history"][0].clone()
}

#[test]
fn an_earlier_configuration_serves_on_every_replica_until_its_file_changes() {
    let replicas = Sharing::new(2);
    let (one, other) = (replicas.start(1, 20), replicas.start(2, 20));
    let first = hash(&one);
    one.reload(&replicas.setup(1, 80));
    other.reload(&replicas.setup(2, 80));
    one.command(&["update", "a", "90", "--reason", "ticket 7"]).expect(0);
    eventually(PATIENCE, "the other one follows", || share(&other) == 90.0);
    Sharing::know_each_other(&one);
    eventually(PATIENCE, "its history knows who, and why", || {
        let newest = newest(&other);
        (&newest["by"], &newest["reason"]) == (&json!("loopback on pod-1"), &json!("ticket 7"))
    });

    one.command(&["rollback", "--config", &first[..8], "--reason", "p99", "--wait", "60s"]).expect(0);

    assert_eq!((hash(&one), share(&one)), (first.clone(), 20.0));
    assert_eq!((hash(&other), share(&other)), (first.clone(), 20.0));
    let pin = pinned(&other);
    assert_eq!((&pin["hash"], &pin["by"], &pin["reason"]), (&json!(first), &json!("loopback on pod-1"), &json!("p99")));
    let last = newest(&other);
    assert_eq!(
        (&last["config"], &last["by"], &last["reason"]),
        (&json!(first), &json!("loopback on pod-1"), &json!("p99"))
    );
    let audited = |replica: &Proxy| replica.audit_lines().iter().filter(|line| line.contains("p99")).count();
    assert!(audited(&one) > 0 && audited(&other) == 0, "only its author audits a rollback");

    other.reload(&replicas.setup(2, 81));
    assert_eq!((share(&other), pinned(&other)), (81.0, Value::Null));
    replicas.forget_the_wish();
    assert_eq!(hash(&one), first, "each one's file ends its own");
    one.reload(&replicas.setup(1, 81));
    assert_eq!((hash(&one), pinned(&one)), (hash(&other), Value::Null));
    eventually(PATIENCE, "all is well", || degraded(&one) == "[]" && degraded(&other) == "[]");
}

#[test]
fn a_replica_without_the_configuration_says_so_and_stays() {
    let replicas = Sharing::new(2);
    let one = replicas.start(1, 20);
    let first = hash(&one);
    one.reload(&replicas.setup(1, 80));
    let other = replicas.start(2, 80);
    let second = hash(&other);
    Sharing::know_each_other(&one);

    let told = one.command(&["rollback", "--config", &first, "--wait", "60s"]);
    told.expect(4);
    assert!(told.stderr.contains("not followed") && told.stderr.contains("pod-2"), "{}", told.stderr);
    let stays = |replica: &Reach| {
        eventually(PATIENCE, "it says so", || degraded(replica).contains("is not followed on this replica"));
        assert_eq!((hash(replica), &replica.status()["config"]["lacks"]), (second.clone(), &json!(first)));
    };
    stays(&other);
    let told = one.status();
    assert_eq!(told["replicas"][0]["lacks"], json!(first));
    assert!(told["degraded"].to_string().contains("replica pod-2 does not follow the rollback"), "{told}");
    let wish = json!({"hash": first});
    assert_eq!(other.change("POST", "/api/v1/config/rollback", &wish).status, 404);

    // One that starts with the file that was overruled is no better off; another file is newer than the wish.
    stays(&replicas.start(3, 80));
    let new = replicas.start(3, 82);
    replicas.forget_the_wish();
    assert_eq!((share(&new), degraded(&new).contains("not followed")), (82.0, false));
    eventually(PATIENCE, "nothing is missed any more", || !degraded(&other).contains("on this replica"));
    assert_eq!((hash(&one), hash(&other)), (first, second));
}

#[test]
fn a_node_that_gets_the_overruled_file_later_serves_the_earlier_one() {
    let replicas = Sharing::new(2);
    let (one, late) = (replicas.start(1, 20), replicas.start(2, 20));
    let first = hash(&one);
    one.reload(&replicas.setup(1, 80));
    let second = hash(&one);
    one.command(&["rollback", "--config", &first]).expect(0);
    eventually(PATIENCE, "the other one knows", || pinned(&late)["hash"] == json!(first));

    late.file.replace(&late.text(&replicas.setup(2, 80)));
    eventually(PATIENCE, "the file has come", || {
        late.admin("/api/v1/history").json()["pinned"]["seen"] == json!(second)
    });
    assert_eq!((hash(&late), share(&late)), (first, 20.0));
    late.reload(&replicas.setup(2, 83));
    assert_eq!((share(&late), pinned(&late)), (83.0, Value::Null));
}

#[test]
fn a_replica_that_is_asked_before_the_overruled_file_comes_to_it_keeps_to_the_earlier_one() {
    let replicas = Sharing::new(2);
    let (quick, asked) = (replicas.start(1, 20), replicas.start(2, 20));
    let first = hash(&quick);
    quick.reload(&replicas.setup(1, 80));
    let second = hash(&quick);
    let wish = json!({"hash": first, "reason": "p99"});
    assert_eq!(asked.change("POST", "/api/v1/config/rollback", &wish).status, 200);
    eventually(PATIENCE, "the other one goes back", || hash(&quick) == first);
    eventually(PATIENCE, "the one that was asked knows what may come", || pinned(&asked)["hash"] == json!(first));
    assert_eq!((&pinned(&asked)["by"], &pinned(&asked)["reason"]), (&json!("loopback"), &json!("p99")));

    asked.file.replace(&asked.text(&replicas.setup(2, 80)));
    eventually(PATIENCE, "the file has come", || {
        asked.admin("/api/v1/history").json()["pinned"]["seen"] == json!(second)
    });
    assert_eq!((hash(&asked), hash(&quick)), (first.clone(), first));
    for (number, replica) in [(1, &quick), (2, &asked)] {
        replica.file.replace(&replica.text(&replicas.setup(number, 20)));
        eventually(PATIENCE, "the file is the earlier one itself", || pinned(replica).is_null());
    }
    replicas.forget_the_wish();
}

#[test]
fn a_wish_is_handled_once_whatever_restarts() {
    let (clusters, server) = (Clusters::new(), ApiServer::with_map(MAP));
    let setup = |percentage: u64| {
        Setup::new([clusters.service("a").percentage(percentage)])
            .state("backend: auto")
            .environment(server.environment())
            .environment([("HOSTNAME".to_owned(), "pod-1".to_owned())])
    };
    let wished = || server.data(MAP, KEY).is_some_and(|text| text.contains("rollback"));
    let mut replica = Server::start(&setup(20));
    let serve = |replica: &Server, percentage| {
        let before = replica.generation();
        replica.file.swap(&replica.text(&setup(percentage)));
        replica.wait_for_generation_after(before);
        hash(replica)
    };
    let first = hash(&replica);
    serve(&replica, 80);
    replica.command(&["rollback", "--config", &first]).expect(0);
    assert!(wished(), "it is shared before it is reported as done");
    let state = server.data(MAP, KEY).unwrap();

    replica.kill_and_restart();
    assert_eq!((hash(&replica), &pinned(&replica)["by"]), (first.clone(), &json!("loopback")), "not once more");
    replica.file.swap(&replica.text(&setup(81)));
    replica.kill_and_restart();
    assert_eq!((share(&replica), pinned(&replica)), (81.0, Value::Null), "the file changed meanwhile");
    eventually(PATIENCE, "the wish is over", || !wished());

    server.edit(MAP, &json!({"data": {KEY: state}}));
    eventually(PATIENCE, "it is over again", || !wished());
    assert_eq!(share(&replica), 81.0);
    replica.kill_and_restart();
    assert_eq!(share(&replica), 81.0);

    // A newer one of another replica, first while it runs, then found at a start.
    let wish = |hash: &str| {
        let mark = json!({"at": jiff::Timestamp::now().to_string(), "replica": "pod-9", "by": "ci", "reason": "p99"});
        json!({"rollback": {"hash": hash, "seen": ["0".repeat(64)], "mark": mark}}).to_string()
    };
    server.edit(MAP, &json!({"data": {KEY: wish(&first)}}));
    eventually(PATIENCE, "it is followed", || hash(&replica) == first);
    assert_eq!(pinned(&replica)["by"], "ci on pod-9");
    let third = serve(&replica, 30);
    let fourth = serve(&replica, 31);
    eventually(PATIENCE, "it is kept", || replica.state_file(&format!("history/{fourth}.yaml")).exists());
    eventually(PATIENCE, "it is kept as the last good one", || {
        std::fs::read_to_string(replica.state_file("last-good.yaml")).is_ok_and(|text| text.contains("percentage: 31"))
    });
    server.be_silent(true);
    server.end_watches();
    server.edit(MAP, &json!({"data": {KEY: wish(&third)}}));
    replica.kill_and_restart_unready();
    server.be_silent(false);
    eventually(PATIENCE * 4, "it is followed after a restart", || hash(&replica) == third);
    assert!(wished(), "others may not have heard of it yet");
}

//! Two proxies behind a balancer that knows of changes only seconds later are replaced, one after the other.

use std::time::{Duration, Instant};

use super::{HOST, Orders, mixed};
use crate::support::balancer::Balancer;
use crate::support::cli::Server;
use crate::support::client::Paced;
use crate::support::scale::Scale;
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

#[test]
fn a_rolling_restart_fails_no_request() {
    let scale = Scale::begin();
    let (clusters, orders) = (Clusters::new(), Orders::default());
    orders.count(&clusters, || None);
    let (lag, delay) = (scale.millis(600, 3_000), scale.pick("1s", "5s"));
    let setup = Setup::new([clusters.service("a").percentage(20)]).drain(&format!("delay: {delay}, grace: 30s"));
    let mut servers = vec![Server::start(&setup), Server::start(&setup)];
    let addresses = |servers: &[Server]| servers.iter().map(|server| server.addresses.http).collect::<Vec<_>>();
    let balancer = Balancer::new(&addresses(&servers), lag);
    let load = Paced::new(balancer.address(), HOST, scale.pick(100, 2_000)).calls(mixed).start();
    load.wait_for(scale.pick(50, 10_000));
    let mut took = Vec::new();

    for _ in 0..2 {
        let joining = Server::start(&setup);
        balancer.learn(&[addresses(&servers), vec![joining.addresses.http]].concat());
        eventually(PATIENCE + lag, "the balancer knows of the new one", || balancer.knows(joining.addresses.http));
        load.wait_for(scale.pick(30, 4_000));
        servers.push(joining);
        let mut leaving = servers.remove(0);
        leaving.assert_sound();
        balancer.learn(&addresses(&servers));
        leaving.signal("TERM");
        let told = Instant::now();
        assert_eq!(leaving.exit_code(), Some(0), "{}", leaving.stderr());
        took.push(told.elapsed());
    }
    load.wait_for(scale.pick(30, 4_000));
    let record = load.stop();

    record.assert_all_ok();
    orders.assert_posts_once(&record);
    let mut served = 0.0;
    for server in &mut servers {
        server.assert_sound();
        served += server.metrics().sum("requests_total", &[]);
    }
    assert!(served > 0.0, "the new ones have taken over");
    scale.report(&format!(
        "{} requests over two replacements, 0 errors, ends after {took:.1?}, slowest {:.1?}",
        record.0.len(),
        record.quantile(1.0)
    ));
    assert!(took.iter().all(|took| *took < Duration::from_secs(30)), "{took:?}");
}

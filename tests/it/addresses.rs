//! Names are followed and addresses are chosen: what DNS says, what it no longer says, and what happens while it says
//! nothing. The name server is the test's own.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::app::Proxy;
use crate::support::client::{Load, get};
use crate::support::dns::{Dns, Reply, at};
use crate::support::origin::{Answer, Blackhole, Gate, Origin, refused_port};
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";
const NAME: &str = "api.old.cluster.test";
/// Quick, so that the tests are.
const QUICK: &str = "dns: {min_ttl: 100ms, max_ttl: 30s, negative_ttl: 100ms}";
/// More than one look-up after the other.
const SETTLED: Duration = Duration::from_secs(20);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two origins of the old cluster on one port of two addresses.
fn two_origins() -> (Origin, Origin) {
    let one = Origin::plain("one");
    let two = Origin::plain_at("two", SocketAddr::new(ip("127.0.0.2"), one.port()));
    (one, two)
}

fn old_named(clusters: &Clusters, name: &str, port: u16) -> Service {
    clusters.service("a").old_backend(format!("{name}:{port}"))
}

fn start(service: Service, dns: &Dns) -> Proxy {
    Proxy::start(&Setup::new([service]).top(QUICK).names_from(dns.sources()))
}

#[track_caller]
fn wait_for_side(proxy: &Proxy, side: &str) {
    eventually(SETTLED, side, || proxy.side(HOST, "/", &[]) == side);
}

fn idle(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("upstream_connections", &[("state", "idle")])
}

fn active(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("upstream_connections", &[("state", "active")])
}

#[test]
fn a_moved_name_takes_its_connections_along() {
    let (clusters, dns, (one, two)) = (Clusters::new(), Dns::new(), two_origins());
    dns.on(NAME, at(one.address().ip()));
    let proxy = start(old_named(&clusters, NAME, one.port()), &dns);
    let gate = Gate::default();
    one.on("/held", Answer::side().hold_head(&gate));
    let address = proxy.addresses.http;
    assert_eq!(proxy.side(HOST, "/", &[]), "one");
    let held = std::thread::spawn(move || get(address, HOST, "/held"));
    eventually(PATIENCE, "a request is under way", || one.requests() == 2);
    let idle = std::thread::spawn(move || get(address, HOST, "/")).join().unwrap();
    assert_eq!(idle.side(), Some("one"));

    dns.on(NAME, at(two.address().ip()));

    // Nobody asks the proxy for anything here: it follows the name all the same.
    eventually(SETTLED, "the idle connection is closed, the busy one is not", || one.open_connections() == 1);
    assert_eq!(proxy.side(HOST, "/", &[]), "two");
    gate.open();
    assert_eq!(held.join().unwrap().side(), Some("one"), "what was under way is finished");
    eventually(PATIENCE, "and then closed", || one.open_connections() == 0);
    assert_eq!(one.requests(), 3);
}

#[test]
fn an_http2_connection_leaves_with_its_address_and_is_counted_as_idle_or_active() {
    let (clusters, dns) = (Clusters::new(), Dns::new());
    let one = Origin::h2c("one");
    let two = Origin::h2c_at("two", SocketAddr::new(ip("127.0.0.2"), one.port()));
    dns.on(NAME, at(one.address().ip()));
    let proxy = start(old_named(&clusters, NAME, one.port()).with("old: {protocol: h2c}"), &dns);
    let gate = Gate::default();
    one.on("/held", Answer::side().hold_head(&gate));
    let address = proxy.addresses.http;
    assert_eq!(proxy.side(HOST, "/", &[]), "one");
    eventually(PATIENCE, "it is idle", || (idle(&proxy), active(&proxy)) == (1.0, 0.0));

    let held: Vec<_> = (0..2).map(|_| std::thread::spawn(move || get(address, HOST, "/held"))).collect();
    eventually(PATIENCE, "both requests are under way", || one.requests() == 3);
    assert_eq!((idle(&proxy), active(&proxy)), (0.0, 1.0), "one connection, however many requests it has");
    dns.on(NAME, at(two.address().ip()));

    wait_for_side(&proxy, "two");
    assert_eq!(one.open_connections(), 1);
    gate.open();
    for held in held {
        assert_eq!(held.join().unwrap().side(), Some("one"));
    }
    eventually(PATIENCE, "it is closed after its last request", || one.open_connections() == 0);
    eventually(PATIENCE, "and no longer counted", || (idle(&proxy), active(&proxy)) == (1.0, 0.0));
}

#[test]
fn while_dns_fails_the_old_answer_serves_and_nothing_is_closed() {
    let (clusters, dns, (one, two)) = (Clusters::new(), Dns::new(), two_origins());
    dns.on(NAME, at(one.address().ip()));
    let proxy = start(old_named(&clusters, NAME, one.port()), &dns);
    assert_eq!(proxy.side(HOST, "/", &[]), "one");

    for failure in [Reply::Failure, Reply::NoSuchName, Reply::Addresses(Vec::new(), 1)] {
        let asked = dns.asked(NAME);
        dns.always(Some(failure));
        eventually(SETTLED, "it was asked again and again", || dns.asked(NAME) >= asked + 4);
        assert_eq!(one.open_connections(), 1);
        assert_eq!(proxy.side(HOST, "/", &[]), "one");
    }
    assert_eq!(one.connections(), 1);
    one.close_after(1);
    assert_eq!([proxy.side(HOST, "/", &[]), proxy.side(HOST, "/", &[])], ["one", "one"], "new connections too");

    dns.on(NAME, at(two.address().ip()));
    dns.always(None);
    wait_for_side(&proxy, "two");
}

#[test]
fn an_old_answer_does_not_serve_for_ever() {
    let (clusters, dns, one) = (Clusters::new(), Dns::new(), Origin::plain("one"));
    dns.on(NAME, Reply::Addresses(vec![one.address().ip()], 0));
    one.close_after(1);
    let quick = "dns: {min_ttl: 100ms, max_ttl: 30s, negative_ttl: 100ms, stale: 500ms}";
    let service = old_named(&clusters, NAME, one.port());
    let proxy = Proxy::start(&Setup::new([service]).top(quick).names_from(dns.sources()));
    assert_eq!(proxy.side(HOST, "/", &[]), "one");

    dns.always(Some(Reply::Failure));

    wait_for_side(&proxy, "502");
    dns.always(None);
    wait_for_side(&proxy, "one");
}

#[test]
fn with_dead_dns_the_proxy_starts_serves_what_needs_none_and_recovers() {
    let (clusters, dns, one) = (Clusters::new(), Dns::new(), Origin::plain("one"));
    dns.on(NAME, at(one.address().ip())).on("b.new.test", at(clusters.new.address().ip()));
    dns.resolv_conf("");
    let named = old_named(&clusters, NAME, one.port());
    let new = clusters.service("b").new_backend(format!("b.new.test:{}", clusters.new.port())).percentage(100);
    let proxy = Proxy::start(&Setup::new([named, new]).top(QUICK).names_from(dns.sources()));

    assert_eq!(proxy.side(HOST, "/", &[]), "502");
    let fallen_back = proxy.get("b.old.test", "/");
    assert_eq!((fallen_back.status, fallen_back.side()), (200, Some("old")), "a name of new is no harm to old");
    dns.always(Some(Reply::Failure));
    dns.resolv_conf(&format!("nameserver {}\n", dns.ip()));
    eventually(SETTLED, "the server is asked", || dns.asked(NAME) > 0);
    assert_eq!(proxy.side(HOST, "/", &[]), "502");

    dns.always(None);

    wait_for_side(&proxy, "one");
    eventually(SETTLED, "new serves", || proxy.side("b.old.test", "/", &[]) == "new");
}

#[test]
fn a_silent_server_costs_each_request_no_more_than_its_connect_timeout() {
    let (clusters, dns, one) = (Clusters::new(), Dns::new(), Origin::plain("one"));
    dns.on(NAME, at(one.address().ip())).always(Some(Reply::Silence));
    let proxy = start(old_named(&clusters, NAME, one.port()).with("timeouts: {connect: 300ms}"), &dns);

    let start = Instant::now();
    assert_eq!(proxy.side(HOST, "/", &[]), "502");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let listed = format!("[\"{NAME}:{}\", \"{}\"]", one.port(), one.address());
    let listed = clusters.service("a").old_backend(listed).with("timeouts: {connect: 300ms}");
    proxy.reload(&Setup::new([listed]).top(QUICK));
    assert_eq!(proxy.side(HOST, "/", &[]), "one", "one name that is silent does not take the other backends along");

    dns.always(None);
    proxy.reload(&Setup::new([old_named(&clusters, NAME, one.port())]).top(QUICK));
    wait_for_side(&proxy, "one");
}

#[test]
fn what_is_known_of_a_name_survives_a_reload() {
    let (clusters, dns, one) = (Clusters::new(), Dns::new(), Origin::plain("one"));
    dns.on(NAME, at(one.address().ip()));
    let proxy = start(old_named(&clusters, NAME, one.port()), &dns);
    assert_eq!(proxy.side(HOST, "/", &[]), "one");

    dns.always(Some(Reply::Failure));
    let other = old_named(&clusters, NAME, one.port()).with("timeouts: {connect: 1s}");
    proxy.reload(&Setup::new([other]).top(QUICK));

    assert_eq!(proxy.side(HOST, "/", &[]), "one");
    assert_eq!(one.connections(), 2, "by another pool");
}

#[test]
fn the_search_list_serves_short_names_that_do_not_exist_and_nothing_else() {
    let (clusters, dns, one) = (Clusters::new(), Dns::new(), Origin::plain("one"));
    let address = one.address().ip();
    let conf = format!("search ns.svc.cluster.test svc.cluster.test\nnameserver {}\noptions ndots:5\n", dns.ip());
    dns.resolv_conf(&conf);
    dns.on("api.ns.svc.cluster.test", Reply::Addresses(vec![address], 30))
        .on("api.other.svc.cluster.test", Reply::Addresses(vec![address], 30))
        .on("absolute.test", Reply::Addresses(vec![address], 30))
        .on("absolute.test.svc.cluster.test", Reply::Addresses(vec![ip("192.0.2.1")], 30))
        .on("long.a.b.c.svc.cluster.test", Reply::Addresses(vec![address], 30))
        .on("broken.test", Reply::Failure)
        .on("broken.test.svc.cluster.test", Reply::Addresses(vec![address], 30));
    let names = ["api", "api.other", "absolute.test", "long.a.b.c", "broken.test"];
    let service = |(index, name): (usize, &&str)| {
        clusters.service(&format!("s{index}")).old_backend(format!("{name}:{}", one.port()))
    };
    let setup = Setup::new(names.iter().enumerate().map(service));
    let proxy = Proxy::start(&setup.top("dns: {negative_ttl: 1m}").names_from(dns.sources()));

    let sides: Vec<_> = (0..names.len()).map(|index| proxy.side(&format!("s{index}.old.test"), "/", &[])).collect();

    assert_eq!(sides, ["one", "one", "one", "502", "502"]);
    assert_eq!(
        dns.names_asked(),
        [
            "absolute.test",
            "api",
            "api.ns.svc.cluster.test",
            "api.other",
            "api.other.ns.svc.cluster.test",
            "api.other.svc.cluster.test",
            "broken.test",
            "long.a.b.c",
        ]
    );
    assert_eq!([dns.asked("absolute.test"), dns.asked("long.a.b.c")], [1, 1]);
}

#[test]
fn the_hosts_file_comes_before_dns_and_is_read_anew() {
    let (clusters, dns, (one, two)) = (Clusters::new(), Dns::new(), two_origins());
    dns.hosts(&format!("# by the kubelet\n{} other {NAME}\n", one.address().ip()));
    let bounds = "dns: {min_ttl: 100ms, max_ttl: 200ms, negative_ttl: 100ms}";
    let service = old_named(&clusters, NAME, one.port());
    let proxy = Proxy::start(&Setup::new([service]).top(bounds).names_from(dns.sources()));

    assert_eq!(proxy.side(HOST, "/", &[]), "one");
    dns.hosts(&format!("{} {NAME}\n", two.address().ip()));
    wait_for_side(&proxy, "two");
    assert_eq!(dns.names_asked(), [""; 0]);

    dns.on(NAME, at(one.address().ip())).hosts("");
    wait_for_side(&proxy, "one");
    assert!(dns.asked(NAME) > 0);
}

#[test]
fn another_resolv_conf_is_followed_and_a_broken_one_is_not() {
    let (clusters, dns, (one, two)) = (Clusters::new(), Dns::new(), two_origins());
    let other = dns.beside([127, 0, 0, 53]);
    dns.on(NAME, at(one.address().ip()));
    other.on(NAME, at(two.address().ip()));
    let proxy = start(old_named(&clusters, NAME, one.port()), &dns);
    assert_eq!(proxy.side(HOST, "/", &[]), "one");

    dns.resolv_conf("nameserver\n");
    // Read at least once: the files are looked at every two seconds.
    let before = dns.asked(NAME);
    eventually(SETTLED, "it is asked on", || dns.asked(NAME) >= before + 4);
    assert_eq!(proxy.side(HOST, "/", &[]), "one");

    dns.resolv_conf(&format!("nameserver {}\n", other.ip()));
    wait_for_side(&proxy, "two");
}

#[test]
fn ipv6_is_used_where_there_is_no_ipv4() {
    let (clusters, dns) = (Clusters::new(), Dns::new());
    let Some(six) = Origin::try_plain_at("six", "[::1]:0".parse().unwrap()) else {
        println!("left out: no IPv6 here");
        return;
    };
    dns.on(NAME, at(ip("::1")));
    let proxy = start(old_named(&clusters, NAME, six.port()), &dns);

    assert_eq!(proxy.side(HOST, "/", &[]), "six");
}

#[test]
fn loops_of_aliases_and_thousands_of_addresses_are_survived() {
    let (clusters, dns, one) = (Clusters::new(), Dns::new(), Origin::plain("one"));
    let thousands = (1..=1_500_u16).map(|number| IpAddr::from([127, 1, (number >> 8) as u8, number as u8]));
    dns.on("loop.a.b.c", Reply::Alias("pool.a.b.c"))
        .on("pool.a.b.c", Reply::Alias("loop.a.b.c"))
        .on("alias.a.b.c", Reply::Alias("real.a.b.c"))
        .on("real.a.b.c", at(one.address().ip()))
        .on("many.a.b.c", Reply::Addresses(thousands.collect(), 30));
    let everywhere = Origin::plain_at("everywhere", "0.0.0.0:0".parse().unwrap());
    let service = |name: &str, port: u16| clusters.service(name).old_backend(format!("{name}.a.b.c:{port}"));
    let services = [service("loop", one.port()), service("alias", one.port()), service("many", everywhere.port())];
    let proxy = Proxy::start(&Setup::new(services).top(QUICK).names_from(dns.sources()));

    let start = Instant::now();
    assert_eq!(proxy.side("loop.old.test", "/", &[]), "502");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(proxy.side("alias.old.test", "/", &[]), "one");
    assert_eq!(proxy.side("many.old.test", "/", &[]), "everywhere");
    assert!(dns.over_tcp() > 0, "it did not fit into a datagram");
}

#[test]
fn connections_go_where_less_is_under_way() {
    let (clusters, (one, two)) = (Clusters::new(), two_origins());
    one.otherwise(Answer::side().drip(2, Duration::from_millis(10)));
    let both = format!("[\"{}\", \"{}\"]", one.address(), two.address());
    let proxy = Proxy::start(&Setup::new([clusters.service("a").old_backend(both)]));

    let tally = Load::new(proxy.addresses.http, HOST).connections(8).run(1_000);

    tally.assert_all_ok();
    let (slow, quick) = (tally.side("one"), tally.side("two"));
    assert!(slow > 0 && quick > 3 * slow, "{slow} where it takes long, {quick} where it does not");
}

#[test]
fn a_dead_address_of_two_costs_one_connect_timeout_in_total() {
    const CONNECT: Duration = Duration::from_secs(2);
    let (clusters, alive, dead) = (Clusters::new(), Origin::plain("alive"), Blackhole::new());
    let both = format!("[\"{}\", \"{}\"]", dead.address(), alive.address());
    let service = clusters.service("a").old_backend(both).with("timeouts: {connect: 2s}");
    let proxy = Proxy::start(&Setup::new([service]));
    let (address, start) = (proxy.addresses.http, Instant::now());

    // All at the same time, before anybody can know which of the two is dead.
    let clients: Vec<_> = (0..20)
        .map(|_| {
            std::thread::spawn(move || {
                let start = Instant::now();
                (get(address, HOST, "/").side().map(str::to_owned), start.elapsed())
            })
        })
        .collect();
    let answers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let later = Load::new(address, HOST).connections(20).run(200);

    assert!(answers.iter().all(|(side, _)| side.as_deref() == Some("alive")), "{answers:?}");
    let slow = answers.iter().filter(|(_, took)| *took >= CONNECT).count();
    assert!(slow <= 1, "{slow} requests of the burst paid for it");
    later.assert_all_ok();
    // Whoever met the dead address was tried again on the other one. After a rest it is somebody's turn again.
    let allowed = 1 + start.elapsed().as_secs() / 10;
    let paid = proxy.metrics().sum("retries_total", &[("outcome", "connect")]);
    assert!(paid <= allowed as f64, "{paid} requests paid for it in {:?}", start.elapsed());
}

#[test]
fn a_refused_connection_goes_on_to_the_next_address() {
    let (clusters, alive) = (Clusters::new(), Origin::plain("alive"));
    let both = format!("[\"127.0.0.1:{}\", \"{}\"]", refused_port(), alive.address());
    let proxy = Proxy::start(&Setup::new([clusters.service("a").old_backend(both)]));
    let mut client = proxy.client();

    alive.close_after(1);
    assert_eq!(client.post(HOST, "/", b"body").side(), Some("alive"), "nothing of it was sent to the other one");
    for number in 1..10 {
        assert_eq!(client.get(HOST, "/").side(), Some("alive"), "request {number}");
    }

    assert_eq!(alive.requests(), 10);
    let retries = proxy.metrics().sum("retries_total", &[("outcome", "connect")]);
    assert!(retries <= 1.0, "the address rests after its first refusal: {retries}");
}

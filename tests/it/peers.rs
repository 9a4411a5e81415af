//! The same promises against programs from other hands: nginx on both sides, curl and h2load as clients.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::client::Load;
use crate::support::peers::{Nginx, available, curl, h2load};
use crate::support::setup::{Clusters, Service, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";
const NEW_HOST: &str = "a.new.test";

/// nginx as either cluster; the scripted origins beside them are not used.
struct Peers {
    clusters: Clusters,
    old: Nginx,
    new: Nginx,
}

impl Peers {
    fn start() -> Self {
        let clusters = Clusters::new();
        let identity = clusters.authority.server(&[NEW_HOST]);
        Self { old: Nginx::old(), new: Nginx::new(NEW_HOST, &identity), clusters }
    }

    fn service(&self) -> Service {
        self.clusters.service("a").old_backend(self.old.address()).new_backend(self.new.address())
    }
}

#[test]
fn a_fifth_of_a_hundred_thousand_requests_lands_on_new() {
    if !available(&["nginx"]) {
        return;
    }
    let peers = Peers::start();
    let proxy = Proxy::start(&Setup::new([peers.service().percentage(20)]).workers(2));

    let tally = Load::new(proxy.addresses.http, HOST).connections(16).run(100_000);

    tally.assert_all_ok();
    let share = tally.side("new") as f64 * 100.0 / 100_000.0;
    assert!((share - 20.0).abs() <= 0.65, "{share} %: {tally:?}");
    println!("share on new: {share} %");
}

#[test]
fn curl_is_sent_where_header_address_and_user_say() {
    if !available(&["nginx", "curl"]) {
        return;
    }
    let peers = Peers::start();
    let service = peers.service().with("headers: {reveal: always}").with(
        "migration: {percentage: 20, sticky: {by: [\"header:X-User-Id\"]}}
canary:
  header_rules:
    - {header: X-Migration-Target, value: new, target: new_cluster}
    - {header: X-Migration-Target, value: old, target: old_cluster}
  ip_rules: [{cidr: 127.0.0.64/26, target: new_cluster}]",
    );
    let public = Authority::new("old hosts");
    let proxy = Proxy::start(&Setup::new([service]).https(&public.server(&[HOST])));
    let resolve = format!("{HOST}:{}:127.0.0.1", proxy.addresses.http.port());
    let url = format!("http://{HOST}:{}/x", proxy.addresses.http.port());
    let ask = |arguments: &[&str]| {
        let answer = curl(&[&["--resolve", &resolve, &url][..], arguments].concat());
        answer.expect(0).to_owned()
    };

    // Buckets of salt `a`, by `printf 'a\0KEY' | sha256sum`; computed here by the shell's own tools.
    let on_new = format!("side=new host={NEW_HOST} sni={NEW_HOST}\n");
    assert_eq!(ask(&["-H", "X-Migration-Target: new"]), on_new);
    assert_eq!(ask(&["-H", "X-Migration-Target: old"]), format!("side=old host={HOST}\n"));
    assert_eq!(ask(&["--interface", "127.0.0.65"]), on_new);
    let by_user: Vec<bool> = (0..40).map(|user| ask(&["-H", &format!("X-User-Id: u{user}")]) == on_new).collect();
    for (user, is_new) in by_user.iter().enumerate() {
        assert_eq!(*is_new, bucket_by_sha256sum(&format!("u{user}")) < 2_000, "u{user}");
    }
    assert!(by_user.contains(&true) && by_user.contains(&false));

    let port = proxy.addresses.https.unwrap().port();
    let ca = public.file();
    let secure = curl(&[
        "--resolve",
        &format!("{HOST}:{port}:127.0.0.1"),
        "--cacert",
        ca.to_str().unwrap(),
        "--http2",
        "-w",
        "%{http_version}",
        "-H",
        "X-Migration-Target: new",
        &format!("https://{HOST}:{port}/"),
    ]);
    assert_eq!(secure.expect(0), format!("{on_new}2"));
}

/// The bucket as CONFIG.md tells people to compute it.
fn bucket_by_sha256sum(key: &str) -> u64 {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "printf '%s\\0%s' a \"$1\" | sha256sum | cut -c1-16", "sh", key]);
    let digits = crate::support::cli::finish(command).stdout;
    u64::from_str_radix(digits.trim(), 16).unwrap() % 10_000
}

#[test]
fn redirects_of_new_lead_back_to_the_old_host() {
    if !available(&["nginx", "curl"]) {
        return;
    }
    let peers = Peers::start();
    let proxy = Proxy::start(&Setup::new([peers.service().percentage(100)]));
    let port = proxy.addresses.http.port();

    let followed = curl(&[
        "--resolve",
        &format!("{HOST}:{port}:127.0.0.1"),
        "-L",
        "-w",
        "%{url_effective}",
        &format!("http://{HOST}:{port}/redirect"),
    ]);

    assert_eq!(followed.expect(0), format!("side=new host={NEW_HOST} sni={NEW_HOST}\nhttp://{HOST}:{port}/there"));
}

#[test]
fn no_get_fails_while_nginx_is_killed_and_started_again() {
    if !available(&["nginx"]) {
        return;
    }
    let mut peers = Peers::start();
    let quick = "fallback: {max_failures: 3, recovery_time: 1s, half_open: {probes: 1}}";
    let proxy = Proxy::start(&Setup::new([peers.service().percentage(50).with(quick)]).workers(2));
    let load = Load::new(proxy.addresses.http, HOST).connections(8).start();
    load.more(1_000);

    peers.new.kill();
    load.more(1_000);
    peers.new.restart();
    eventually(PATIENCE, "the breaker closes again", || proxy.breaker("a") == "closed");
    load.more(500);

    let tally = load.stop();
    tally.assert_all_ok();
    assert!(tally.side("new") > 200, "{tally:?}");
}

#[test]
fn twenty_swaps_lose_no_request() {
    if !available(&["nginx"]) {
        return;
    }
    let peers = Peers::start();
    let setup = |percentage: u64| Setup::new([peers.service().percentage(percentage)]).workers(2);
    let proxy = Proxy::start(&setup(20));
    let load = Load::new(proxy.addresses.http, HOST).connections(8).start();
    load.more(500);
    let mut slowest = Duration::ZERO;

    for round in 0..20 {
        let percentage = if round % 2 == 0 { 50 } else { 20 };
        let text = proxy.text(&setup(percentage));
        let started = Instant::now();
        proxy.file.swap(&text);
        eventually(PATIENCE, "the share is in force", || {
            proxy.service("a")["percentage"]["effective"].as_f64() == Some(percentage as f64)
        });
        slowest = slowest.max(started.elapsed());
        load.more(200);
    }

    let tally = load.stop();
    tally.assert_all_ok();
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    println!("{} requests over twenty swaps, the slowest took effect after {slowest:?}", tally.total());
}

/// How curl asks: its flags, the scheme, and what it then says of the version.
const CURLS: [(&[&str], &str, &str); 4] = [
    (&["--http1.1"], "http", "1.1"),
    (&["--http2-prior-knowledge"], "http", "2"),
    (&["--http1.1"], "https", "1.1"),
    (&["--http2"], "https", "2"),
];

#[test]
fn curl_uploads_downloads_and_resumes_in_every_version() {
    if !available(&["nginx", "curl"]) {
        return;
    }
    let (one, two) = (Nginx::serving_files(false), Nginx::serving_files(true));
    let clusters = Clusters::new();
    let public = Authority::new("old hosts");
    let services = [
        clusters.service("one").old_backend(one.address()),
        clusters.service("two").old_backend(two.address()).with("old: {protocol: h2c}"),
    ];
    let proxy = Proxy::start(&Setup::new(services).https(&public.server(&["*.old.test"])));
    let folder = tempfile::tempdir().unwrap();
    let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
    // Above a megabyte curl asks before it sends (Expect: 100-continue).
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    fs::write(&source, &content).unwrap();

    for (nginx, host) in [(&one, "one.old.test"), (&two, "two.old.test")] {
        for (number, (flags, scheme, version)) in CURLS.into_iter().enumerate() {
            let address = if scheme == "https" { proxy.addresses.https.unwrap() } else { proxy.addresses.http };
            let case = format!("curl {flags:?} {scheme} to {host}");
            let resolve = format!("{host}:{}:127.0.0.1", address.port());
            let url = format!("{scheme}://{host}:{}/file-{number}", address.port());
            let ca = public.file();
            let ask = |more: &[&str]| {
                let said = ["--resolve", &resolve, "--cacert", path(&ca), "-w", "%{http_version} %{http_code}", &url];
                curl(&[flags, &said[..], more].concat()).expect(0).to_owned()
            };

            assert_eq!(ask(&["-T", path(&source)]), format!("{version} 201"), "{case}");
            assert!(fs::read(nginx.files().join(format!("file-{number}"))).unwrap() == content, "{case}: uploaded");
            assert_eq!(ask(&["-o", path(&copy)]), format!("{version} 200"), "{case}");
            assert!(fs::read(&copy).unwrap() == content, "{case}: downloaded");
            fs::write(&copy, &content[..1_234_567]).unwrap();
            assert_eq!(ask(&["-C", "-", "-o", path(&copy)]), format!("{version} 206"), "{case}");
            assert!(fs::read(&copy).unwrap() == content, "{case}: resumed");
            let head = ask(&["-I"]).to_ascii_lowercase();
            assert!(head.contains("content-length: 3000000\r\n") && head.contains("etag: "), "{case}: {head}");
            let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().trim();
            let same = ask(&["-H", &format!("If-None-Match: {etag}")]);
            assert_eq!(same, format!("{version} 304"), "{case}");
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn h2load_finishes_in_clear() {
    if !available(&["nginx", "h2load"]) {
        return;
    }
    let peers = Peers::start();
    let proxy = Proxy::start(&Setup::new([peers.service().percentage(20)]).workers(2));
    let port = proxy.addresses.http.port();

    for version in [&["--h1"][..], &["-p", "h2c", "-m", "16"]] {
        let to = format!("127.0.0.1:{port}");
        let url = format!("http://{HOST}:{port}/");
        let finished = h2load(&[version, &["-n", "5000", "-c", "4", "--connect-to", &to, &url]].concat());
        let text = finished.expect(0);
        assert!(text.contains("5000 succeeded, 0 failed, 0 errored"), "{version:?}: {text}");
        assert!(text.contains("status codes: 5000 2xx"), "{version:?}: {text}");
    }
}

#[test]
fn h2load_finishes_over_tls() {
    if !available(&["nginx", "h2load"]) {
        return;
    }
    let peers = Peers::start();
    let public = Authority::new("old hosts");
    let setup = Setup::new([peers.service().percentage(20)]).https(&public.server(&[HOST])).workers(2);
    let proxy = Proxy::start(&setup);
    let port = proxy.addresses.https.unwrap().port();

    let finished = h2load(&[
        "-n",
        "5000",
        "-c",
        "4",
        "-m",
        "8",
        "--connect-to",
        &format!("127.0.0.1:{port}"),
        &format!("https://{HOST}:{port}/"),
    ]);

    let text = finished.expect(0);
    assert!(text.contains("5000 succeeded, 0 failed, 0 errored"), "{text}");
    assert!(text.contains("status codes: 5000 2xx"), "{text}");
}

//! Everything on one machine in ten seconds: two toy clusters, a proxy started as `run` starts it, a little traffic, and
//! what became of it. Needs no network, no file and no privilege, and leaves nothing behind.

use std::fs::{self, DirBuilder};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use http::Request;
use http::header::HOST;
use http_body_util::Full;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::client::{AdminUrl, Client, exchange};
use super::output::{self, Exit, Failure};
use super::table::{Align, Cell, Table};
use super::toy_clusters::{Authority, ToyClusters, write_pair};
use super::words::{count, counted};
use super::{run, status};
use crate::app::{App, Options};
use crate::config;
use crate::control::report::StatusReport;

const CONFIGURATION: &str = include_str!("demo.yaml");
const SERVICES: [&str; 3] = ["shop", "search", "billing"];

/// Who goes on sending after the table.
const USERS: u32 = 1000;

/// What is sent: the service, how many requests, whether they ask for new by header, and in words.
const TRAFFIC: [(&str, u32, bool, &str); 5] = [
    ("shop", 200, false, "200 users at 25 %"),
    ("shop", 10, true, "10 pinned to new by a header"),
    ("search", 60, false, "60 requests at 100 %"),
    ("billing", 60, false, "60 requests at 0 %"),
    ("billing", 5, true, "5 pinned to new by a header"),
];

/// Arguments of `demo`.
#[derive(Args, Debug)]
#[command(after_help = "Files go to $TMPDIR (else /tmp) and are removed at the end.")]
pub struct Arguments {
    /// End after the table instead of waiting for Ctrl-C
    #[arg(long)]
    exit: bool,
}

/// Runs `demo`.
///
/// # Errors
///
/// There is no place for its files, or something does not start.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    // Before anything exists that must be removed.
    let mut signals =
        Signals::new().map_err(|error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}")))?;
    let directory = Directory::new().map_err(|error| {
        let place = std::env::temp_dir();
        let what = format!("cannot make a directory in {}: {error}; name another one with TMPDIR", place.display());
        Failure::new(Exit::Failed, what)
    })?;
    let clusters = prepare(&directory.path)?;
    let config = directory.path.join("migration.yaml");
    let app = run::start(Options { config, environment: config::environment(), ..Options::default() })?;
    let shown = present(&app, &clusters, &directory.path, &mut signals, arguments.exit);
    if shown.is_ok() && !arguments.exit {
        signals.until(trickle(&app));
    }
    let clean = app.shutdown();
    shown?;
    Ok(if clean { Exit::Done } else { Exit::Failed })
}

/// The signals that end a demo, from its first step to its last: one that comes while something else is done waits
/// here. A terminal that is closed ends the demo too.
struct Signals {
    runtime: Runtime,
    kinds: [Signal; 3],
}

impl Signals {
    fn new() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        drop(inside);
        Ok(Self { runtime, kinds: [interrupt?, terminate?, hangup?] })
    }

    /// Does the work; `None` when a signal came before its end.
    fn until<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let [interrupt, terminate, hangup] = &mut self.kinds;
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Some(done),
                _ = interrupt.recv() => None,
                _ = terminate.recv() => None,
                _ = hangup.recv() => None,
            }
        })
    }
}

/// A directory that goes with everything in it.
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn new() -> io::Result<Self> {
        let name = format!("migration-proxy-demo-{:08x}", rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        // Keys lie in it, and its creation fails when somebody else was faster.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is in a temporary directory.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Makes certificates, starts the clusters and writes the configuration.
fn prepare(directory: &Path) -> Result<ToyClusters, Failure> {
    let certificates = |error: rcgen::Error| Failure::new(Exit::Failed, format!("cannot make certificates: {error}"));
    let files =
        |error: io::Error| Failure::new(Exit::Failed, format!("cannot write to {}: {error}", directory.display()));
    let authority = Authority::new().map_err(certificates)?;
    let (front, front_key) = authority.issue(&SERVICES.map(old_host)).map_err(certificates)?;
    let (new, new_key) = authority.issue(&SERVICES.map(|name| format!("{name}.new.example"))).map_err(certificates)?;
    fs::write(directory.join("ca.crt"), &authority.pem).map_err(files)?;
    write_pair(&front, &front_key, directory).map_err(files)?;
    let clusters = ToyClusters::start(&new, &new_key)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start the toy clusters: {error}")))?;
    let text = configuration(directory, clusters.old, clusters.new);
    fs::write(directory.join("migration.yaml"), text).map_err(files)?;
    Ok(clusters)
}

fn old_host(service: &str) -> String {
    format!("{service}.old.example")
}

fn configuration(directory: &Path, old: SocketAddr, new: SocketAddr) -> String {
    let directory = directory.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    CONFIGURATION
        .replace("DIRECTORY", &directory)
        .replace("OLD_PORT", &old.port().to_string())
        .replace("NEW_PORT", &new.port().to_string())
}

/// Sends the traffic and shows what became of it.
fn present(
    app: &App,
    clusters: &ToyClusters,
    directory: &Path,
    signals: &mut Signals,
    ends: bool,
) -> Result<(), Failure> {
    let missing = || Failure::new(Exit::Failed, "the proxy has no listener");
    let http = *app.addresses.http.first().ok_or_else(missing)?;
    let https = *app.addresses.https.first().ok_or_else(missing)?;
    let admin = app.addresses.admin;
    let sent = signals.until(send_traffic(http)).ok_or_else(|| Failure::new(Exit::Failed, "stopped by a signal"))?;
    let report: StatusReport = Client::new(AdminUrl::local(admin)).json("/status")?;

    let width = output::width();
    let mut out = String::from("Two toy clusters and a proxy between them, all in this process.\n\n");
    out.push_str(&format!("  clients   http://{http}   https://{https}\n"));
    out.push_str(&format!("  clusters  old http://{}   new https://{}\n", clusters.old, clusters.new));
    out.push_str(&format!("  page      http://{admin}/\n\n"));
    out.push_str(&sent_table(&sent).render(width));
    out.push('\n');
    out.push_str(&status::overview(&report, width, Timestamp::now(), &format!(" --admin http://{admin}")));
    if !ends {
        out.push_str(&next_steps(http, https, directory, has_http_proxy()));
    }
    output::print(&out)?;
    Ok(())
}

/// What one entry of [`TRAFFIC`] was answered.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    old: u64,
    new: u64,
    failed: u64,
}

async fn send_traffic(http: SocketAddr) -> Vec<Sent> {
    let mut sent = Vec::with_capacity(TRAFFIC.len());
    for (service, requests, pinned, _) in TRAFFIC {
        sent.push(send(http, service, requests, pinned).await);
    }
    sent
}

async fn send(http: SocketAddr, service: &str, requests: u32, pinned: bool) -> Sent {
    let mut sent = Sent::default();
    for number in 0..requests {
        match ask(http, service, number, pinned).await {
            Ok(body) if body.starts_with(b"hello from the old") => sent.old += 1,
            Ok(body) if body.starts_with(b"hello from the new") => sent.new += 1,
            Ok(_) | Err(_) => sent.failed += 1,
        }
    }
    sent
}

/// Goes on with a little traffic, so that the page has something to show.
async fn trickle(app: &App) {
    let Some(http) = app.addresses.http.first() else { return pending().await };
    loop {
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..100))).await;
        let service = SERVICES[rand::random_range(0..SERVICES.len())];
        // What became of it is on the page.
        let _ = ask(*http, service, rand::random_range(0..USERS), false).await;
    }
}

async fn ask(http: SocketAddr, service: &str, number: u32, pinned: bool) -> Result<Vec<u8>, String> {
    let stream = TcpStream::connect(http).await.map_err(|error| error.to_string())?;
    let mut request = Request::get("/").header(HOST, old_host(service)).header("X-User-Id", format!("user-{number}"));
    if pinned {
        request = request.header("X-Migration-Target", "new");
    }
    let request = request.body(Full::default()).map_err(|error| error.to_string())?;
    Ok(exchange(stream, request).await?.body.to_vec())
}

fn sent_table(sent: &[Sent]) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("SENT", Align::Left),
        ("ANSWERED BY old | new", Align::Left),
        ("", Align::Left),
    ]);
    for ((service, _, _, words), Sent { old, new, failed }) in TRAFFIC.iter().zip(sent) {
        let failed = if *failed == 0 { String::new() } else { counted(*failed as usize, "failure", "failures") };
        let failed = Cell::new(failed).styled(output::ALARM);
        table.push(vec![Cell::new(*service), Cell::new(*words), Cell::pair(count(*old), count(*new)), failed]);
    }
    table
}

/// Commands that work when they are copied.
fn next_steps(http: SocketAddr, https: SocketAddr, directory: &Path, has_proxy: bool) -> String {
    // A proxy of the environment would be asked for our names, and does not know them.
    let curl = if has_proxy { "curl -i --noproxy '*'" } else { "curl -i" };
    let host = old_host("shop");
    let (ca, file) = (quoted(&directory.join("ca.crt")), quoted(&directory.join("migration.yaml")));
    let (ip, port) = (https.ip(), https.port());
    format!(
        "\nTry next, in another terminal:\n  \
         {curl} -H 'Host: {host}' -H 'X-User-Id: user-7' http://{http}/\n  \
         {curl} -H 'Host: {host}' -H 'X-Migration-Target: new' http://{http}/\n  \
         {curl} --cacert {ca} --resolve {host}:{port}:{ip} https://{host}:{port}/\n\n\
         Or change a percentage in {file} and ask again.\n\
         Ctrl-C ends it and removes its files.\n"
    )
}

fn has_http_proxy() -> bool {
    let names = ["http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"];
    names.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Text};

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn the_embedded_configuration_is_valid_wherever_it_lies() {
        for directory in ["/tmp/demo", "/tmp/it's \"mine\" \\ here"] {
            let text = configuration(Path::new(directory), address(1001), address(1002));

            let parsed = config::parse(&Text::new("demo.yaml", text), &Environment::new()).unwrap();

            assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
            let services = &parsed.config.services;
            assert_eq!(services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), SERVICES);
            assert_eq!(services[0].new_backend.port(), 1002);
            assert_eq!(services[0].old_backend[0].port(), 1001);
            assert!(parsed.config.log.access_path.starts_with(directory));
        }
    }

    #[test]
    fn the_directory_is_private_and_goes_with_its_owner() {
        use std::os::unix::fs::PermissionsExt;

        let directory = Directory::new().unwrap();
        let path = directory.path.clone();
        fs::write(path.join("file"), "x").unwrap();

        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn the_next_steps_can_be_copied() {
        let text = next_steps(address(8000), address(8443), Path::new("/tmp/my demo"), false);
        for line in [
            "  curl -i -H 'Host: shop.old.example' -H 'X-User-Id: user-7' http://127.0.0.1:8000/",
            "  curl -i -H 'Host: shop.old.example' -H 'X-Migration-Target: new' http://127.0.0.1:8000/",
            "  curl -i --cacert '/tmp/my demo/ca.crt' --resolve shop.old.example:8443:127.0.0.1 https://shop.old.example:8443/",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
        }
        assert!(next_steps(address(1), address(2), Path::new("/"), true).contains("--noproxy"));
    }

    #[test]
    fn what_was_sent_adds_up_and_failures_are_seen() {
        let sent = TRAFFIC.map(|(_, requests, pinned, words)| {
            assert!(words.starts_with(&requests.to_string()), "{words}");
            if pinned {
                Sent { new: requests.into(), ..Sent::default() }
            } else {
                Sent { failed: 1, ..Sent::default() }
            }
        });
        let text = sent_table(&sent).render(100);
        assert!(text.contains("0 |  10") && text.contains("1 failure"), "{text}");
    }
}

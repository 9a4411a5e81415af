//! The product as a program: one command to its end, or a server with signals.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::client::Client;
use super::reach::Reach;
use super::setup::{Addresses, ConfigFile, Ports, Setup};
use super::{PATIENCE, eventually, polled};

/// The longest that a command may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None`: a signal.
    pub code: Option<i32>,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

impl Finished {
    /// Both outputs, for searching.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Fails the test unless the command ended with this code; gives stdout.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:#?}");
        &self.stdout
    }

    /// Stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:#?}"))
    }
}

/// The program with an environment that holds nothing of ours.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migration-proxy"));
    for name in [
        "MIGRATION_PROXY_CONFIG",
        "MIGRATION_PROXY_ADMIN",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "RUST_LOG",
        "KUBERNETES_SERVICE_HOST",
    ] {
        command.env_remove(name);
    }
    command.env("COLUMNS", "100").stdin(Stdio::null());
    command
}

/// Runs the program with these arguments.
#[track_caller]
pub fn run(arguments: &[&str]) -> Finished {
    let mut command = program();
    command.args(arguments);
    finish(command)
}

/// Runs a command to its end, its output kept in files so that no pipe can fill up.
#[track_caller]
pub fn finish(command: Command) -> Finished {
    finish_within(command, LIMIT)
}

/// The same for one that may take longer.
#[track_caller]
pub fn finish_within(mut command: Command, limit: Duration) -> Finished {
    let directory = TempDir::new().unwrap();
    let (out, err) = (directory.path().join("out"), directory.path().join("err"));
    let mut child =
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap()).spawn().expect("it can be run");
    let status = wait(&mut child, limit);
    let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let finished = Finished { code: status.and_then(|status| status.code()), stdout: text(&out), stderr: text(&err) };
    assert!(status.is_some(), "{command:?} does not end: {finished:#?}");
    finished
}

/// Waits for a child; kills it when it takes too long.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let status = polled(limit, || child.try_wait().unwrap());
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    status
}

/// Below the ports that systems give to connections and to listeners without a number of their own: nobody else takes one
/// in between.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port that is free, for programs that cannot tell which one the system chose. None is given twice.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    let mut ports = (0..count).map(|_| {
        // Two runs of the tests beside each other begin apart.
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(97));
        PORTS.start + u16::try_from(taken % count).unwrap()
    });
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).expect("a free port")
}

/// The same for several.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    [(); COUNT].map(|()| free_port())
}

#[track_caller]
fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(status.success(), "kill -{name}");
}

#[track_caller]
fn serve(file: &ConfigFile, directory: &TempDir, environment: &BTreeMap<String, String>) -> Child {
    let stderr = File::create(directory.path().join("stderr")).unwrap();
    serve_into(stderr.into(), file, directory, environment)
}

#[track_caller]
fn serve_into(stderr: Stdio, file: &ConfigFile, directory: &TempDir, environment: &BTreeMap<String, String>) -> Child {
    program()
        .args(["run", "-c"])
        .arg(file.path())
        .envs(environment)
        .stdout(File::create(directory.path().join("stdout")).unwrap())
        .stderr(stderr)
        .spawn()
        .expect("the program can be run")
}

/// A command that runs until it is told to stop.
pub struct Background {
    child: Child,
    directory: TempDir,
}

impl Background {
    /// Starts it; both outputs go into one file.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let output = File::create(directory.path().join("output")).unwrap();
        let child = program()
            .args(arguments)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("it can be run");
        Self { child, directory }
    }

    /// Everything that it wrote so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("output")).unwrap_or_default()).into_owned()
    }

    /// Waits until it has written this.
    #[track_caller]
    pub fn wait_for_text(&mut self, text: &str, patience: Duration) {
        eventually(patience, &format!("{text} is written"), || {
            let ended = self.child.try_wait().unwrap().is_some();
            let found = self.text().contains(text);
            assert!(found || !ended, "it ended: {}", self.text());
            found
        });
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for an end with exit code 0; gives everything that was written.
    #[track_caller]
    pub fn end(mut self) -> String {
        let status = wait(&mut self.child, LIMIT).expect("it ends");
        assert!(status.success(), "{status}: {}", self.text());
        self.text()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `migration-proxy run -c FILE` as a process of its own.
pub struct Server {
    reach: Reach,
    /// Its configuration, a ConfigMap volume.
    pub file: ConfigFile,
    ports: Ports,
    environment: BTreeMap<String, String>,
    child: Child,
    directory: TempDir,
}

impl Server {
    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start(setup: &Setup) -> Self {
        Self::start_with(setup, |file, directory, environment| serve(file, directory, environment))
    }

    /// The same with a stderr that the test reads, or does not.
    #[track_caller]
    pub fn start_into(setup: &Setup, stderr: impl Into<Stdio>) -> Self {
        Self::start_with(setup, |file, directory, environment| serve_into(stderr.into(), file, directory, environment))
    }

    #[track_caller]
    fn start_with(
        setup: &Setup,
        serve: impl FnOnce(&ConfigFile, &TempDir, &BTreeMap<String, String>) -> Child,
    ) -> Self {
        let directory = TempDir::new().unwrap();
        let [http, https, admin] = free_ports();
        let ports = Ports { http, https, admin };
        let file = ConfigFile::kubelet(&directory.path().join("config"), &setup.text(directory.path(), ports));
        let environment = setup.variables(directory.path());
        let child = serve(&file, &directory, &environment);
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let addresses = Addresses {
            http: at(ports.http),
            https: setup.has_https().then(|| at(ports.https)),
            admin: at(ports.admin),
        };
        let reach = Reach { addresses, directory: directory.path().to_owned() };
        let mut server = Self { reach, file, ports, environment, child, directory };
        server.wait_until_ready();
        server
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        let admin = self.addresses.admin;
        let ready = polled(PATIENCE, || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", self.stderr());
            }
            let mut client = Client::try_plain(admin, None).ok()?;
            let answer = client.exchange("GET", "127.0.0.1", "/ready", &[], b"").ok()?;
            (answer.status == 200).then_some(())
        });
        assert!(ready.is_some(), "the server is not ready: {}", self.stderr());
    }

    /// The text that `setup` has for this server.
    pub fn text(&self, setup: &Setup) -> String {
        setup.text(self.directory.path(), self.ports)
    }

    /// Everything on stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("stderr")).unwrap_or_default()).into_owned()
    }

    /// Everything on stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("stdout")).unwrap_or_default()).into_owned()
    }

    /// Waits for a line on stderr that contains all of these.
    #[track_caller]
    pub fn wait_for_line(&self, parts: &[&str]) {
        eventually(PATIENCE, &format!("a line with {parts:?}"), || {
            self.stderr().lines().any(|line| parts.iter().all(|part| line.contains(part)))
        });
    }

    /// Sends a signal: `TERM`, `USR1`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for the end and gives the exit code.
    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        wait(&mut self.child, LIMIT).expect("the server ends").code()
    }

    /// Ends it without warning and starts it again with the file as it is now.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = serve(&self.file, &self.directory, &self.environment);
        self.wait_until_ready();
    }

    /// The same without waiting until it is ready, only until it answers.
    #[track_caller]
    pub fn kill_and_restart_unready(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = serve(&self.file, &self.directory, &self.environment);
        let admin = self.addresses.admin;
        eventually(PATIENCE, "the admin port answers", || Client::try_plain(admin, None).is_ok());
    }

    /// A start that is to fail, with what it says.
    #[track_caller]
    pub fn start_and_fail(setup: &Setup) -> Finished {
        let directory = TempDir::new().unwrap();
        let file = ConfigFile::kubelet(&directory.path().join("config"), &setup.text(directory.path(), Ports::ANY));
        let mut command = program();
        command.args(["run", "-c"]).arg(file.path()).envs(setup.variables(directory.path()));
        finish(command)
    }

    /// The same, when the start is to fail; gives the exit code.
    #[track_caller]
    pub fn kill_and_fail(&mut self) -> Option<i32> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = serve(&self.file, &self.directory, &self.environment);
        self.exit_code()
    }

    /// A file of `state_dir`.
    pub fn state_file(&self, name: &str) -> PathBuf {
        self.directory.path().join("state").join(name)
    }

    /// Descriptors that are open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Fails the test when the process has ended or any of its tasks has panicked.
    #[track_caller]
    pub fn assert_sound(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the server ended: {}", self.stderr());
        assert!(!self.stderr().contains("panicked"), "{}", self.stderr());
        assert_eq!(self.metrics().sum("task_panics_total", &[]), 0.0);
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        self.of_status("VmRSS:")
    }

    /// The most that was ever resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.of_status("VmHWM:")
    }

    fn of_status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).expect("a line with that field");
        line.split_whitespace().nth(1).and_then(|kibibytes| kibibytes.parse::<u64>().ok()).expect("a number") * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Deref for Server {
    type Target = Reach;

    fn deref(&self) -> &Reach {
        &self.reach
    }
}

/// A file for `check` and `explain`.
pub struct Scratch(TempDir);

impl Scratch {
    /// `migration.yaml` with this text.
    pub fn new(text: impl AsRef<[u8]>) -> Self {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("migration.yaml"), text).unwrap();
        Self(directory)
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("migration.yaml")
    }

    /// `check` of it with these flags.
    #[track_caller]
    pub fn check(&self, flags: &[&str]) -> Finished {
        let mut command = program();
        command.arg("check").arg(self.path()).args(flags);
        finish(command)
    }
}

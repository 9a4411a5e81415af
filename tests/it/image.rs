//! The image as a cluster runs it: the Dockerfile's last stage around the static binary, with the shipped ConfigMap, a read-only
//! root, no capabilities, and the two mounts of the Deployment. `.ci/run` builds that binary and names it in `STATIC_BINARY`.
//!
//! The container has a network of its own with nothing but loopback. The test enters it and is there what the cluster is: the
//! name server and the old cluster.

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use migration_proxy::config::{self, Text};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::support::cli::{Finished, finish_within};
use crate::support::client::{Client, get};
use crate::support::dns::{Dns, Reply};
use crate::support::origin::Origin;
use crate::support::peers::{available, file_of, find, left_out};
use crate::support::setup::ConfigFile;
use crate::support::{PATIENCE, eventually, eventually_some};

/// An image is copied several times on a slow disk.
const LIMIT: Duration = Duration::from_secs(120);

const MOST_BYTES: u64 = 15 << 20;

/// KiB of memory, once it has served a little.
const MOST_RESIDENT: u64 = 20 << 10;

/// The promise is 100 ms, on a machine that has nothing else to do.
const START: Duration = Duration::from_secs(2);

/// The user that the image names.
const USER: u32 = 101;

const SERVICE: &str = "api-name01";
const OLD_HOST: &str = "api-name01.teamname.dev.aliyun.intracloud.cn.aibang";
const OLD_BACKEND: &str = "bbdm-api.aibang-1111111111-bbdm.svc.cluster.local";
const OLD_PORT: u16 = 8078;

const HTTP: u16 = 8000;
const ADMIN: u16 = 8080;

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn root(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// Whether containers can be made here at all, which no package brings: new namespaces, and control groups to write into.
fn holds_containers() -> bool {
    let namespaces = Command::new("unshare").args(["--mount", "--pid", "--net", "--fork", "true"]).output();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts = mounts.lines().filter_map(Mount::parse);
    namespaces.is_ok_and(|ended| ended.status.success())
        && mounts.any(|mount| mount.kind.starts_with("cgroup") && mount.is_writable)
}

/// A line of `mountinfo`.
struct Mount<'a> {
    point: &'a str,
    is_writable: bool,
    kind: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        Some(Self {
            point,
            is_writable: options.split(',').any(|option| option == "rw"),
            kind: kind.split(' ').next()?,
        })
    }
}

/// podman with a store and settings of its own.
struct Podman(TempDir);

impl Podman {
    fn new() -> Self {
        let podman = Self(TempDir::new().unwrap());
        // The limits a runtime would set by itself are above what a machine may allow; locks and events of others are not ours.
        let text = "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\nlog_driver = \"k8s-file\"\n\
                    [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nlock_type = \"file\"\nevents_logger = \"file\"\n";
        fs::write(podman.path("containers.conf"), text).unwrap();
        podman
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(find("podman").expect("the caller looked for it"));
        for (flag, folder) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(self.path(folder));
        }
        command.args(["--storage-driver", "vfs"]).args(arguments).env("CONTAINERS_CONF", self.path("containers.conf"));
        // The health check is run by the test, not by a timer of systemd.
        command.env("DISABLE_HC_SYSTEMD", "true");
        finish_within(command, LIMIT)
    }

    /// Builds the image around this binary; gives its size.
    fn build(&self, binary: &Path) -> u64 {
        let built = self.path("context/target/x86_64-unknown-linux-musl/release/migration-proxy");
        fs::create_dir_all(built.parent().unwrap()).unwrap();
        fs::copy(binary, built).unwrap();
        let (file, context) = (root("docker/Dockerfile"), self.path("context"));
        let (file, context) = (file.display().to_string(), context.display().to_string());
        // Only this format has the health check.
        let format = ["build", "--format", "docker", "--isolation", "chroot", "--no-cache", "--file", &file];
        self.run(&[&format[..], &["--build-arg", "SOURCE=prebuilt", "--tag", "proxy", &context]].concat()).expect(0);
        let size = self.run(&["image", "inspect", "--format", "{{.Size}}", "proxy"]);
        size.expect(0).trim().parse().unwrap()
    }
}

/// The container, made and not yet started.
struct Container<'a> {
    podman: &'a Podman,
    process: u32,
    /// The ConfigMap, mounted.
    config: ConfigFile,
    /// The empty volume for its state.
    state: PathBuf,
}

impl<'a> Container<'a> {
    /// As the Deployment says it.
    fn new(podman: &'a Podman) -> Self {
        let map = root("k8s/configmap.yaml");
        let map = Text::new(map.display().to_string(), fs::read_to_string(&map).unwrap());
        let config = ConfigFile::kubelet(&podman.path("config"), &config::without_manifest(&map));
        // What fsGroup makes of an emptyDir.
        let state = podman.path("state");
        fs::create_dir(&state).unwrap();
        chown(&state, None, Some(USER)).unwrap();
        fs::set_permissions(&state, Permissions::from_mode(0o2775)).unwrap();
        let names = podman.path("resolv.conf");
        fs::write(&names, "nameserver 127.0.0.1\nsearch svc.cluster.local cluster.local\noptions ndots:5\n").unwrap();

        let mount = |from: &Path, to: &str| format!("--volume={}:{to}", from.display());
        let mounts = [
            mount(&podman.path("config"), "/etc/migration-proxy:ro"),
            mount(&names, "/etc/resolv.conf:ro"),
            mount(&state, "/var/lib/migration-proxy"),
        ];
        let mut arguments = vec!["create", "--name", "proxy", "--network", "none"];
        arguments.extend([
            "--read-only",
            "--read-only-tmpfs=false",
            "--cap-drop=all",
            "--security-opt=no-new-privileges",
        ]);
        arguments.extend(mounts.iter().map(String::as_str));
        podman.run(&[&arguments[..], &["proxy", "run"]].concat()).expect(0);
        let mut container = Self { podman, process: 0, config, state };
        podman.run(&["init", "proxy"]).expect(0);
        let process = podman.run(&["inspect", "--format", "{{.State.Pid}}", "proxy"]);
        container.process = process.expect(0).trim().parse().unwrap();
        container
    }

    /// A file of its process.
    fn of_process(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.process))
    }

    /// Brings this thread, and those that it starts, to where the container's loopback is.
    fn enter_network(&self) {
        let network = File::open(self.of_process("ns/net")).unwrap();
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Starts it; gives the time from the execution of the binary until it is ready.
    fn start(&self) -> Duration {
        let program = || fs::read_link(self.of_process("exe")).ok();
        let before = program();
        std::thread::scope(|scope| {
            let started = scope.spawn(|| self.podman.run(&["start", "proxy"]));
            eventually(LIMIT, "the binary is executed", || program() != before || started.is_finished());
            let executed = Instant::now();
            let ready = || {
                let mut client = Client::try_plain(at(ADMIN), None).ok()?;
                client.exchange("GET", "localhost", "/ready", &[], b"").ok().filter(|answer| answer.status == 200)
            };
            eventually(PATIENCE, "it is ready", || ready().is_some());
            let time = executed.elapsed();
            started.join().unwrap().expect(0);
            time
        })
    }

    /// A line of `/proc/PID/status`.
    fn status(&self, field: &str) -> String {
        let text = fs::read_to_string(self.of_process("status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
    }

    /// The memory that it takes, in KiB.
    fn resident(&self) -> u64 {
        let text = self.status("VmRSS");
        text.strip_suffix(" kB").and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }

    /// Everything that it wrote so far.
    fn log(&self) -> String {
        self.podman.run(&["logs", "proxy"]).all()
    }

    /// A verb of the program, inside.
    fn command(&self, arguments: &[&str]) -> Finished {
        self.podman.run(&[&["exec", "proxy", "/migration-proxy"], arguments].concat())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.podman.run(&["rm", "--force", "--time", "0", "proxy"]);
    }
}

#[test]
fn the_image_serves_as_a_plain_user_on_a_read_only_root() {
    let Some(binary) = file_of("STATIC_BINARY") else { return };
    if !available(&["podman", "runc"]) {
        return;
    }
    if !holds_containers() {
        return left_out("nobody can make a container here");
    }
    // In a thread that ends with the test, as it cannot be brought back.
    let test = std::thread::Builder::new().name("image".to_owned()).spawn(move || run(&binary)).unwrap();
    test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn run(binary: &Path) {
    let podman = Podman::new();
    let size = podman.build(binary);
    let container = Container::new(&podman);
    container.enter_network();
    let dns = Dns::on_its_own_port();
    dns.on(OLD_BACKEND, Reply::Addresses(vec![Ipv4Addr::LOCALHOST.into()], 30));
    let old = Origin::plain_at("old", at(OLD_PORT));

    let start = container.start();

    assert!(size < MOST_BYTES, "{size} bytes");
    assert!(start < START, "{start:?}");
    assert_confined(&container);
    assert_serves(&container, &old);
    let resident = container.resident();
    println!("image: {size} bytes; ready {start:?} after the start; resident: {resident} KiB");
    assert!(resident < MOST_RESIDENT, "{resident} KiB");
    // As the first process of its namespace it gets no signal that it does not handle.
    podman.run(&["stop", "--time", "60", "proxy"]).expect(0);
    let code = podman.run(&["inspect", "--format", "{{.State.ExitCode}}", "proxy"]);
    assert_eq!(code.expect(0).trim(), "0", "{}", container.log());
}

/// What the Deployment forbids is forbidden.
fn assert_confined(container: &Container) {
    let nothing = "0".repeat(16);
    let everywhere = [USER; 4].map(|user| user.to_string()).join("\t");
    for (field, expected) in [
        ("Uid", &*everywhere),
        ("Gid", &*everywhere),
        ("CapPrm", &nothing),
        ("CapEff", &nothing),
        ("CapBnd", &nothing),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(container.status(field), expected, "{field}");
    }
    let mounts = fs::read_to_string(container.of_process("mountinfo")).unwrap();
    let system = ["/proc", "/dev", "/sys"];
    let writable: Vec<&str> = mounts
        .lines()
        .filter_map(Mount::parse)
        .filter(|mount| mount.is_writable && !system.iter().any(|folder| mount.point.starts_with(folder)))
        .map(|mount| mount.point)
        .collect();
    assert_eq!(writable, ["/var/lib/migration-proxy"], "{mounts}");
    // Not even root writes there.
    for place in ["root/written", "root/etc/migration-proxy/written"] {
        let refused = fs::write(container.of_process(place), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{place}");
    }
}

/// Requests, the health check, verbs inside, a changed ConfigMap.
fn assert_serves(container: &Container, old: &Origin) {
    let answer = get(at(HTTP), OLD_HOST, "/through");
    assert_eq!((answer.status, answer.side()), (200, Some("old")), "{}", container.log());
    assert!(old.recorded().iter().any(|request| request.target == "/through"));
    assert_eq!(get(at(ADMIN), "localhost", "/health").status, 200);
    assert!(get(at(ADMIN), "localhost", "/metrics").text().contains("migration_proxy_build_info"));
    // What the image says, with its own words.
    container.podman.run(&["healthcheck", "run", "proxy"]).expect(0);
    assert!(container.command(&["status"]).expect(0).contains(SERVICE));

    container.command(&["update", SERVICE, "5"]).expect(0);

    let status = || get(at(ADMIN), "localhost", "/status").json();
    assert_eq!(status()["services"][0]["percentage"]["effective"], 5);
    let kept = fs::read_dir(&container.state).unwrap().map(|entry| entry.unwrap().metadata().unwrap().uid());
    let kept: Vec<u32> = kept.collect();
    assert!(!kept.is_empty() && kept.iter().all(|user| *user == USER), "{kept:?}");

    let text = fs::read_to_string(container.config.path()).unwrap();
    container.config.swap(&text.replacen("default_timeout: 30s", "default_timeout: 31s", 1));

    let generation = eventually_some(PATIENCE, "the changed ConfigMap is taken", || {
        status()["config"]["generation"].as_u64().filter(|generation| *generation > 1)
    });
    assert_eq!(generation, 2);
}

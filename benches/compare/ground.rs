//! What all proxies stand on: a directory with certificates, free ports, the CPUs for the proxy and for everything else, and
//! one nginx that plays both clusters. Dropped, it leaves nothing behind.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

use super::children::{Child, Stop};
use super::client::Client;
use super::peers::{self, Peer};

/// What clients call.
pub const OLD_HOST: &str = "shop.old.test";
/// What the new cluster is called.
pub const NEW_HOST: &str = "shop.new.test";

/// The programs without which nothing can be measured, each with the Debian package that has it.
const NEEDED: [(&str, &str); 3] = [("nginx", "nginx-light"), ("h2load", "nghttp2-client"), ("taskset", "util-linux")];

/// How long a proxy may take to answer its first request.
const START: Duration = Duration::from_secs(20);

/// Where a proxy listens.
#[derive(Clone, Copy)]
pub struct Ports {
    /// HTTP in clear.
    pub plain: u16,
    /// HTTPS.
    pub tls: u16,
    admin: u16,
}

/// The ground of one comparison.
pub struct Ground {
    // Fields are dropped in this order: the backends end before their directory goes.
    _backends: Child,
    directory: TempDir,
    proxy_cpu: Option<String>,
    load_cpus: usize,
    stop: Stop,
    trust: Arc<ClientConfig>,
    old: u16,
    new: u16,
}

impl Ground {
    /// Makes the directory, divides the CPUs if wanted, and starts the backends.
    pub fn prepare(stop: &Stop, is_divided: bool) -> Result<Self, String> {
        let needed = NEEDED.iter().filter(|(program, _)| peers::find(program).is_none());
        let absent: Vec<_> = needed.map(|(program, package)| format!("{program} (Debian: {package})")).collect();
        if !absent.is_empty() {
            return Err(format!("not installed, but needed: {}", absent.join(", ")));
        }
        let (proxy_cpu, load_cpus) = if is_divided { divide_cpus()? } else { (None, 1) };
        let directory = tempfile::Builder::new().prefix("compare-").tempdir().map_err(|error| error.to_string())?;
        let path = directory.path();
        // A nginx that root started gives its rights away, and still has to read here.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
        let authority = write_certificates(&path.join("tls"))?;
        write(&path.join("www/big"), &noise(1 << 20))?;

        let [old, new] = free_ports()?;
        let conf = path.join("backends.conf");
        let values = [("DIR", path.display().to_string()), ("NEW_HOST", NEW_HOST.to_owned())];
        let numbers = [("OLD", old.to_string()), ("NEW", new.to_string()), ("LOAD_CPUS", load_cpus.to_string())];
        write(&conf, fill(include_str!("backends.conf"), &[&values[..], &numbers].concat()).as_bytes())?;
        let nginx = peers::find("nginx").ok_or("nginx is not installed")?;
        let command = [nginx.as_os_str(), OsStr::new("-p"), path.as_os_str(), OsStr::new("-c"), conf.as_os_str()];
        let (out, errors) = (path.join("backends.out"), path.join("backends.out.err"));
        let mut backends = Child::start(&command, None, &out, &errors)?;
        for (port, trust) in [(old, None), (new, Some((&authority, NEW_HOST)))] {
            wait_for(&mut backends, stop, &errors, || Client::connect(port, trust).is_ok())?;
        }
        Ok(Self {
            _backends: backends,
            directory,
            proxy_cpu,
            load_cpus,
            stop: stop.clone(),
            trust: authority,
            old,
            new,
        })
    }

    /// The directory of all files.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What clients of the proxies trust.
    pub fn trust(&self) -> &Arc<ClientConfig> {
        &self.trust
    }

    /// Whether to go on.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// How many CPUs load and backends share.
    pub fn load_cpus(&self) -> usize {
        self.load_cpus
    }

    /// Starts a proxy on its CPU and waits until it answers.
    pub fn start(&self, peer: &Peer) -> Result<Running, String> {
        let [plain, tls, admin] = free_ports()?;
        let ports = Ports { plain, tls, admin };
        let file = |name: &str| self.path().join(format!("{}{name}", peer.name));
        let (log, errors) = (file(".access.log"), file(".errors"));
        // A directory of its own, like that of the certificates: both are watched, and a log beside them would wake.
        let config = self.path().join(peer.name).join(peer.file);
        let values = [
            ("DIR", self.path().display().to_string()),
            ("LOG", log.display().to_string()),
            ("OLD_HOST", OLD_HOST.to_owned()),
            ("NEW_HOST", NEW_HOST.to_owned()),
            ("OLD", self.old.to_string()),
            ("NEW", self.new.to_string()),
            ("PLAIN", ports.plain.to_string()),
            ("TLS", ports.tls.to_string()),
            ("ADMIN", ports.admin.to_string()),
        ];
        write(&config, fill(peer.template, &values).as_bytes())?;
        let command = peer.command(&config, self.path());
        let command: Vec<&OsStr> = command.iter().map(AsRef::as_ref).collect();
        // HAProxy's access log is its output; the others write the file themselves.
        let mut child = Child::start(&command, self.proxy_cpu.as_deref(), &log, &errors)?;
        wait_for(&mut child, &self.stop, &errors, || {
            let answer = Client::connect(ports.plain, None).and_then(|mut client| client.get("/", Some("old")));
            answer.is_ok_and(|answer| answer.status == 200)
        })?;
        Ok(Running { child, ports, log })
    }
}

/// A proxy that answers.
pub struct Running {
    child: Child,
    ports: Ports,
    log: PathBuf,
}

impl Running {
    /// Where it listens.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The processor time that it has used so far.
    pub fn cpu_time(&self) -> Result<Duration, String> {
        self.child.cpu_time()
    }

    /// Ends it and says how many access lines it wrote.
    pub fn end(mut self) -> Result<u64, String> {
        self.child.end();
        let text = fs::read(&self.log).map_err(|error| format!("{}: {error}", self.log.display()))?;
        let _ = fs::remove_file(&self.log);
        Ok(memchr::memchr_iter(b'\n', &text).count() as u64)
    }
}

/// Waits for a child to serve; its own words when it ended instead.
fn wait_for(child: &mut Child, stop: &Stop, errors: &Path, mut serves: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + START;
    while !serves() {
        stop.check()?;
        if child.has_left()? || Instant::now() > deadline {
            let words = fs::read_to_string(errors).unwrap_or_default();
            let last: Vec<&str> = words.lines().rev().take(3).collect();
            return Err(format!("it does not serve: {}", last.into_iter().rev().collect::<Vec<_>>().join(" | ")));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// How much of the machine others use at the moment, from 0 to 1.
pub fn strangers() -> Option<f64> {
    let (busy_before, all_before) = machine_time()?;
    thread::sleep(Duration::from_millis(500));
    let (busy, all) = machine_time()?;
    Some((busy - busy_before) as f64 / (all - all_before).max(1) as f64)
}

/// Ticks of all CPUs since the start of the machine: those with work, and all.
fn machine_time() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = text.lines().next()?.split(' ').filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let idle = ticks.get(3)? + ticks.get(4)?;
    let all: u64 = ticks.iter().take(8).sum();
    Some((all - idle, all))
}

/// The first CPU for the proxy; this process and its other children move to the rest, whose number is told.
fn divide_cpus() -> Result<(Option<String>, usize), String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let cpus = cpus_of(list);
    let [first, rest @ ..] = cpus.as_slice() else { return Err("no CPU list in /proc/self/status".to_owned()) };
    if rest.is_empty() {
        return Err("two CPUs are needed: one for the proxy, one for load and backends".to_owned());
    }
    let rest_list = rest.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let moved = Command::new("taskset").args(["-cp", &rest_list, &process::id().to_string()]).output();
    match moved {
        Ok(output) if output.status.success() => Ok((Some(first.to_string()), rest.len())),
        Ok(output) => Err(format!("taskset: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("taskset: {error}")),
    }
}

/// The numbers of a list such as `0-2,5`.
pub fn cpus_of(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// Ports that nobody uses at the moment, different from each other.
fn free_ports<const N: usize>() -> Result<[u16; N], String> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("find a free port: {error}"))?;
        *port = listener.local_addr().map_err(|error| format!("find a free port: {error}"))?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// Replaces every `@NAME@`.
pub fn fill(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
}

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(path, content)).map_err(|error| format!("write {}: {error}", path.display()))
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state: u32 = 0x9e37_79b9;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// An authority, and certificates of it for both hosts; what trusts it comes back.
fn write_certificates(directory: &Path) -> Result<Arc<ClientConfig>, String> {
    let failed = |error: rcgen::Error| format!("make a certificate: {error}");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "authority of a comparison");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().map_err(failed)?;
    let authority = params.self_signed(&key).map_err(failed)?;
    let root: CertificateDer<'static> = authority.der().clone();
    write(&directory.join("ca.pem"), authority.pem().as_bytes())?;
    let issuer = Issuer::new(params, key);
    for (name, host) in [("old", OLD_HOST), ("new", NEW_HOST)] {
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, host);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?.pem();
        write(&directory.join(format!("{name}.pem")), certificate.as_bytes())?;
        write(&directory.join(format!("{name}.key")), key.serialize_pem().as_bytes())?;
        // HAProxy wants both in one file.
        write(&directory.join(format!("{name}.both")), (certificate + &key.serialize_pem()).as_bytes())?;
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).map_err(|error| format!("trust a certificate: {error}"))?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

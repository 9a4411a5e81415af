//! Real programs from other hands: nginx as either cluster, curl as the client.

use std::env;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::certs::Identity;
use super::cli::{Finished, finish, free_port};
use super::client::Client;
use super::{PATIENCE, eventually};

/// The program's path when it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether all of these are installed. A missing one is said aloud, and fails the test under `REQUIRE_PEERS=1`.
#[track_caller]
pub fn available(programs: &[&str]) -> bool {
    let missing = programs.iter().filter(|program| find(program).is_none());
    nothing_missing(missing.map(|program| format!("{program} is not installed")).collect())
}

/// The file that a variable of the environment names; the same is said and done when there is none.
#[track_caller]
pub fn file_of(variable: &str) -> Option<PathBuf> {
    let file = env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file());
    let missing = file.is_none().then(|| format!("{variable} names no file"));
    nothing_missing(missing.into_iter().collect()).then_some(file).flatten()
}

#[track_caller]
fn nothing_missing(missing: Vec<String>) -> bool {
    missing.iter().for_each(|what| left_out(what));
    let required = env::var_os("REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(missing.is_empty() || !required, "REQUIRE_PEERS=1, but {}", missing.join(", "));
    missing.is_empty()
}

/// Says that this test is not run.
pub fn left_out(because: &str) {
    // Past the capture of a passing test's output, which nobody would see.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "left out: {test}, because {because}");
}

/// A real nginx as a backend.
pub struct Nginx {
    address: SocketAddr,
    directory: TempDir,
    child: Option<Child>,
}

impl Nginx {
    /// In clear; answers `side=old host=…`.
    #[track_caller]
    pub fn old() -> Self {
        Self::start(|port, _| {
            format!(
                "server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"side=old host=$host\\n\"; }} \
                 location = /redirect {{ return 302 http://$http_host/there; }} }}"
            )
        })
    }

    /// Behind TLS. A handshake for another name than `host` is refused; a Host that is not the SNI gets 421.
    #[track_caller]
    pub fn new(host: &str, identity: &Identity) -> Self {
        let (cert, key) = (identity.cert.display().to_string(), identity.key.display().to_string());
        Self::start(move |port, _| {
            format!(
                "server {{ listen 127.0.0.1:{port} ssl default_server; server_name _; ssl_reject_handshake on; return 421; }}\n\
                 server {{ listen 127.0.0.1:{port} ssl; server_name {host};\n\
                 ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;\n\
                 if ($http_host != $ssl_server_name) {{ return 421; }}\n\
                 location / {{ return 200 \"side=new host=$host sni=$ssl_server_name\\n\"; }}\n\
                 location = /redirect {{ return 302 https://{host}/there; }} }}"
            )
        })
    }

    /// Serves the files of [`Nginx::files`], and takes new ones by PUT; in clear, by HTTP/2 alone or HTTP/1.1 alone.
    #[track_caller]
    pub fn serving_files(is_http2: bool) -> Self {
        let nginx = Self::start(|port, here| {
            let version = if is_http2 { " http2" } else { "" };
            format!(
                "server {{ listen 127.0.0.1:{port}{version}; root {}/files; client_max_body_size 0; \
                 location / {{ dav_methods PUT; }} }}",
                here.display()
            )
        });
        fs::create_dir(nginx.files()).unwrap();
        // With its processes in one, nginx works as whoever started it, and root's temporary folders are root's alone.
        fs::set_permissions(nginx.files(), fs::Permissions::from_mode(0o777)).unwrap();
        nginx
    }

    /// Where its files lie.
    pub fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// In between: passes everything on to this address over kept connections, as an Ingress does.
    #[track_caller]
    pub fn in_front_of(backend: SocketAddr) -> Self {
        Self::start(move |port, _| {
            format!(
                "upstream backend {{ server {backend}; keepalive 64; }}\n\
                 server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://backend; proxy_http_version 1.1; \
                 proxy_set_header Host $host; proxy_set_header Connection \"\"; }} }}"
            )
        })
    }

    #[track_caller]
    fn start(servers: impl FnOnce(u16, &Path) -> String) -> Self {
        let directory = TempDir::new().unwrap();
        let (here, port) = (directory.path(), free_port());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", here.display()))
            .concat();
        // One process, so that killing the child kills all of nginx.
        let text = format!(
            "daemon off; master_process off; worker_processes 1;\npid {here}/nginx.pid; error_log {here}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s;\n{temporary}{servers}\n}}\n",
            here = here.display(),
            servers = servers(port, here),
        );
        fs::write(here.join("nginx.conf"), text).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut nginx = Self { address, directory, child: None };
        nginx.restart();
        nginx
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let here = self.directory.path();
        let child = Command::new(find("nginx").expect("the caller looked for it"))
            .arg("-p")
            .arg(here)
            .arg("-c")
            .arg(here.join("nginx.conf"))
            .arg("-e")
            .arg(here.join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let log = || fs::read_to_string(here.join("error.log")).unwrap_or_default();
        eventually(PATIENCE, "nginx listens", || {
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
            assert!(!ended, "nginx ended: {}", log());
            Client::try_plain(self.address, None).is_ok()
        });
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}

/// curl with these arguments, silent, without a proxy or a configuration file of its own.
#[track_caller]
pub fn curl(arguments: &[&str]) -> Finished {
    let mut command = Command::new(find("curl").expect("the caller looked for it"));
    command.args(["-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", "20"]).args(arguments);
    finish(command)
}

/// h2load with these arguments.
#[track_caller]
pub fn h2load(arguments: &[&str]) -> Finished {
    let mut command = Command::new(find("h2load").expect("the caller looked for it"));
    command.args(arguments);
    finish(command)
}

//! The two clusters of a test, the configuration that joins them, and its file as the kubelet or an editor writes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use migration_proxy::upstream::dns::Sources;

use super::certs::{Authority, Identity};
use super::origin::Origin;

/// The old cluster in clear and the new one behind TLS, for services named `NAME.old.test` and `NAME.new.test`.
pub struct Clusters {
    /// Signs what the new cluster shows.
    pub authority: Authority,
    /// `side=old`.
    pub old: Origin,
    /// `side=new`, HTTP/1.1 only.
    pub new: Origin,
}

impl Clusters {
    /// Two well-behaved clusters.
    pub fn new() -> Self {
        Self::with_alpn(&["http/1.1"])
    }

    /// The same, but the new cluster offers these protocols.
    pub fn with_alpn(alpn: &[&str]) -> Self {
        let authority = Authority::new("new cluster");
        let identity = authority.server(&["*.new.test"]);
        Self { old: Origin::plain("old"), new: Origin::tls("new", identity.server_config(alpn, None)), authority }
    }

    /// A service between the two, 0 % on new.
    pub fn service(&self, name: &str) -> Service {
        Service {
            name: name.to_owned(),
            old_host: format!("{name}.old.test"),
            old_backend: self.old.address().to_string(),
            new_host: format!("{name}.new.test"),
            new_backend: self.new.address().to_string(),
            new_options: vec![format!("ca_file: {}", self.authority.file().display())],
            lines: Vec::new(),
        }
    }
}

/// One entry of `services`.
#[derive(Clone)]
pub struct Service {
    name: String,
    old_host: String,
    old_backend: String,
    new_host: String,
    new_backend: String,
    new_options: Vec<String>,
    lines: Vec<String>,
}

impl Service {
    /// Another value for `old_host`, as YAML.
    pub fn old_host(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.old_host);
        self
    }

    /// Another value for `old_backend`, as YAML.
    pub fn old_backend(mut self, yaml: impl ToString) -> Self {
        self.old_backend = yaml.to_string();
        self
    }

    /// Another value for `new_backend`, as YAML.
    pub fn new_backend(mut self, yaml: impl ToString) -> Self {
        self.new_backend = yaml.to_string();
        self
    }

    /// Another `new_host`.
    pub fn new_host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.new_host);
        self
    }

    /// One more key of `new`, as YAML.
    pub fn new_option(mut self, yaml: &str) -> Self {
        self.new_options.push(yaml.to_owned());
        self
    }

    /// Exactly these keys of `new`.
    pub fn new_options(mut self, yaml: &[&str]) -> Self {
        self.new_options = yaml.iter().map(|option| (*option).to_owned()).collect();
        self
    }

    /// More keys of the service, lines of YAML.
    pub fn with(mut self, yaml: &str) -> Self {
        self.lines.extend(yaml.lines().map(str::to_owned));
        self
    }

    /// `migration: {percentage: …}`.
    pub fn percentage(self, percentage: impl ToString) -> Self {
        self.with(&format!("migration: {{percentage: {}}}", percentage.to_string()))
    }

    fn yaml(&self) -> String {
        let mut text = format!(
            "  - name: {}\n    old_host: {}\n    old_backend: {}\n    new_host: {}\n    new_backend: {}\n",
            self.name, self.old_host, self.old_backend, self.new_host, self.new_backend
        );
        if !self.new_options.is_empty() {
            writeln!(text, "    new: {{{}}}", self.new_options.join(", ")).unwrap();
        }
        for line in &self.lines {
            writeln!(text, "    {line}").unwrap();
        }
        text
    }
}

/// A whole configuration. Ports are the system's choice unless given; logs and state lie in the test's directory.
#[derive(Clone)]
pub struct Setup {
    services: Vec<Service>,
    certificates: Vec<Identity>,
    listen: Vec<String>,
    listen_tls: Vec<String>,
    log: Vec<String>,
    top: Vec<String>,
    reload: Vec<String>,
    drain: String,
    state: String,
    admin: Option<SocketAddr>,
    workers: usize,
    https: bool,
    names: Sources,
    environment: BTreeMap<String, String>,
    is_alike: bool,
}

/// Where the proxy of a test listens; port 0 lets the system choose.
#[derive(Clone, Copy)]
pub struct Ports {
    /// Plain.
    pub http: u16,
    /// TLS.
    pub https: u16,
    /// Admin.
    pub admin: u16,
}

impl Ports {
    /// The system's choice.
    pub const ANY: Self = Self { http: 0, https: 0, admin: 0 };
}

impl Setup {
    /// A plain listener and these services.
    pub fn new(services: impl IntoIterator<Item = Service>) -> Self {
        Self {
            services: services.into_iter().collect(),
            certificates: Vec::new(),
            listen: Vec::new(),
            listen_tls: Vec::new(),
            log: Vec::new(),
            top: Vec::new(),
            reload: Vec::new(),
            drain: "delay: 0s, grace: 5s".to_owned(),
            state: "backend: file".to_owned(),
            admin: None,
            workers: 1,
            https: false,
            names: Sources::default(),
            environment: BTreeMap::new(),
            is_alike: false,
        }
    }

    /// A TLS listener too, with this certificate; repeat for more of them.
    pub fn https(mut self, identity: &Identity) -> Self {
        self.https = true;
        self.certificates.push(identity.clone());
        self
    }

    /// One more key of `listen`, as YAML.
    pub fn listen(mut self, yaml: &str) -> Self {
        self.listen.push(yaml.to_owned());
        self
    }

    /// One more key of `listen.tls`, as YAML.
    pub fn listen_tls(mut self, yaml: &str) -> Self {
        self.listen_tls.push(yaml.to_owned());
        self
    }

    /// One more key of `log`, as YAML.
    pub fn log(mut self, yaml: &str) -> Self {
        self.log.push(yaml.to_owned());
        self
    }

    /// More keys of the file, lines of YAML.
    pub fn top(mut self, yaml: &str) -> Self {
        self.top.extend(yaml.lines().map(str::to_owned));
        self
    }

    /// One more key of `reload`, as YAML.
    pub fn with_reload(mut self, yaml: &str) -> Self {
        self.reload.push(yaml.to_owned());
        self
    }

    /// Other keys of `drain`, as YAML.
    pub fn drain(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.drain);
        self
    }

    /// Other keys of `state`, as YAML.
    pub fn state(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.state);
        self
    }

    /// A place of the test's choice for the admin port.
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// More variables in the environment of the proxy.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// The same text for every replica: what is each one's own comes from its environment.
    pub fn alike(mut self) -> Self {
        self.is_alike = true;
        self
    }

    /// The environment of a proxy in this directory.
    pub(super) fn variables(&self, directory: &Path) -> BTreeMap<String, String> {
        let mut variables = self.environment.clone();
        if self.is_alike {
            variables.insert("HERE".to_owned(), directory.display().to_string());
            variables.extend(self.admin.map(|admin| ("ADMIN".to_owned(), admin.to_string())));
        }
        variables
    }

    /// Another number of data workers.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Where names are looked up, of a proxy in this process.
    pub fn names_from(mut self, names: Sources) -> Self {
        self.names = names;
        self
    }

    pub(super) fn names(&self) -> Sources {
        self.names.clone()
    }

    pub(super) fn has_https(&self) -> bool {
        self.https
    }

    /// The file's text.
    pub fn text(&self, directory: &Path, ports: Ports) -> String {
        let here = if self.is_alike { "${HERE}".to_owned() } else { directory.display().to_string() };
        let mut text = format!("workers: {}\nlisten:\n  http: [\"127.0.0.1:{}\"]\n", self.workers, ports.http);
        if self.https {
            writeln!(text, "  https: [\"127.0.0.1:{}\"]\n  tls:\n    certificates:", ports.https).unwrap();
            for identity in &self.certificates {
                let (cert, key) = (identity.cert.display(), identity.key.display());
                writeln!(text, "      - {{cert: {cert}, key: {key}}}").unwrap();
            }
            for line in &self.listen_tls {
                writeln!(text, "    {line}").unwrap();
            }
        }
        let admin = self.admin.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, ports.admin)));
        let admin = if self.is_alike { "${ADMIN}".to_owned() } else { admin.to_string() };
        writeln!(text, "  admin: \"{admin}\"").unwrap();
        for line in &self.listen {
            writeln!(text, "  {line}").unwrap();
        }
        writeln!(text, "log:\n  access_path: {here}/access.log").unwrap();
        if !self.log.iter().any(|yaml| yaml.starts_with("audit_path:")) {
            writeln!(text, "  audit_path: {here}/audit.log").unwrap();
        }
        for line in &self.log {
            writeln!(text, "  {line}").unwrap();
        }
        let more: String = self.reload.iter().map(|line| format!(", {line}")).collect();
        writeln!(text, "reload: {{poll: 500ms, state_dir: \"{here}/state\"{more}}}\nstate: {{{}}}", self.state)
            .unwrap();
        writeln!(text, "drain: {{{}}}", self.drain).unwrap();
        for line in &self.top {
            writeln!(text, "{line}").unwrap();
        }
        text.push_str("services:\n");
        for service in &self.services {
            text.push_str(&service.yaml());
        }
        text
    }
}

/// The addresses that a proxy was found to listen on.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The plain listener.
    pub http: SocketAddr,
    /// The TLS listener, when there is one.
    pub https: Option<SocketAddr>,
    /// The admin port.
    pub admin: SocketAddr,
}

/// A configuration file and the ways in which people and machines replace it.
pub struct ConfigFile {
    directory: PathBuf,
    kubelet: bool,
}

static REVISION: AtomicU64 = AtomicU64::new(1);

impl ConfigFile {
    const NAME: &str = "migration.yaml";

    /// An ordinary file in `directory`.
    pub fn plain(directory: &Path, text: &str) -> Self {
        fs::create_dir_all(directory).unwrap();
        let file = Self { directory: directory.to_owned(), kubelet: false };
        file.write_in_place(text);
        file
    }

    /// A ConfigMap volume: `migration.yaml -> ..data/migration.yaml`, `..data -> ..<revision>`.
    pub fn kubelet(directory: &Path, text: &str) -> Self {
        fs::create_dir_all(directory).unwrap();
        let file = Self { directory: directory.to_owned(), kubelet: true };
        file.swap(text);
        symlink(Path::new("..data").join(Self::NAME), file.path()).unwrap();
        file
    }

    /// What `-c` is given.
    pub fn path(&self) -> PathBuf {
        self.directory.join(Self::NAME)
    }

    /// Replaces the text as this kind of file is usually replaced: by a swap, else by a rename.
    pub fn replace(&self, text: &str) {
        if self.kubelet {
            self.swap(text);
        } else {
            self.rename(text);
        }
    }

    /// What the kubelet does: a new revision beside the old one, `..data` exchanged by rename, the old one removed.
    pub fn swap(&self, text: &str) {
        let previous = fs::read_link(self.directory.join("..data")).ok();
        let revision = format!("..2024_01_01_00_00_00.{:09}", REVISION.fetch_add(1, Relaxed));
        let folder = self.directory.join(&revision);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(Self::NAME), text).unwrap();
        let link = self.directory.join("..data_tmp");
        symlink(&revision, &link).unwrap();
        fs::rename(&link, self.directory.join("..data")).unwrap();
        if let Some(previous) = previous {
            fs::remove_dir_all(self.directory.join(previous)).unwrap();
        }
    }

    /// What an editor does: a new file, renamed over the old one.
    pub fn rename(&self, text: &str) {
        let new = self.directory.join(".migration.yaml.swp");
        fs::write(&new, text).unwrap();
        fs::rename(&new, self.path()).unwrap();
    }

    /// What `cat > FILE` does: truncated, then written.
    pub fn write_in_place(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }
}

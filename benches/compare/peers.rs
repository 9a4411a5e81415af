//! The proxies that are compared: where they are, which version, what they are told.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is known of a proxy before it is looked for.
pub struct Program {
    /// Its name, also on the command line.
    pub name: &'static str,
    /// The name of its configuration.
    file: &'static str,
    /// Its configuration, with names for what each run fills in.
    pub template: &'static str,
    version_flag: &'static str,
    arguments: fn(config: &Path, directory: &Path) -> Vec<OsString>,
}

/// What the chart and the tables call us.
pub const OURS: &str = "migration-proxy";

/// All of them, ours first. Each runs one worker.
pub static ALL: [Program; 4] = [
    Program {
        name: OURS,
        file: "migration-proxy.yaml",
        template: include_str!("migration-proxy.yaml"),
        version_flag: "--version",
        arguments: |config, _| vec!["run".into(), "-c".into(), config.into()],
    },
    Program {
        name: "nginx",
        file: "nginx.conf",
        template: include_str!("nginx.conf"),
        version_flag: "-v",
        arguments: |config, directory| vec!["-p".into(), directory.into(), "-c".into(), config.into()],
    },
    Program {
        name: "haproxy",
        file: "haproxy.cfg",
        template: include_str!("haproxy.cfg"),
        version_flag: "-v",
        arguments: |config, _| vec!["-db".into(), "-f".into(), config.into()],
    },
    Program {
        name: "envoy",
        file: "envoy.yaml",
        template: include_str!("envoy.yaml"),
        version_flag: "--version",
        arguments: |config, _| {
            let fixed = ["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c"];
            fixed.into_iter().map(OsString::from).chain([config.into()]).collect()
        },
    },
];

/// A proxy that is installed.
pub struct Peer {
    /// Its name.
    pub name: &'static str,
    /// Its version, as it says itself.
    pub version: String,
    /// The name of its configuration.
    pub file: &'static str,
    /// Its configuration, with names for what each run fills in.
    pub template: &'static str,
    binary: PathBuf,
    arguments: fn(config: &Path, directory: &Path) -> Vec<OsString>,
}

impl Peer {
    /// How it is started.
    pub fn command(&self, config: &Path, directory: &Path) -> Vec<OsString> {
        let mut command = vec![self.binary.clone().into_os_string()];
        command.extend((self.arguments)(config, directory));
        command
    }
}

/// The proxies of these names (all when none is named) that are installed, and the names of those that are not.
pub fn installed(ours: &Path, names: &[String]) -> Result<(Vec<Peer>, Vec<&'static str>), String> {
    if let Some(unknown) = names.iter().find(|name| !ALL.iter().any(|program| program.name == name.as_str())) {
        let known = ALL.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
        return Err(format!("no proxy {unknown:?}; there are {known}"));
    }
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for program in ALL.iter().filter(|program| names.is_empty() || names.iter().any(|name| name == program.name)) {
        let binary = if program.name == OURS { Some(ours.to_owned()) } else { find(program.name) };
        let Some(binary) = binary else {
            absent.push(program.name);
            continue;
        };
        let output = Command::new(&binary).arg(program.version_flag).output();
        let output = output.map_err(|error| format!("{}: {error}", binary.display()))?;
        let said = [output.stdout, output.stderr].concat();
        found.push(Peer {
            name: program.name,
            version: version_in(&String::from_utf8_lossy(&said)).to_owned(),
            file: program.file,
            template: program.template,
            binary,
            arguments: program.arguments,
        });
    }
    Ok((found, absent))
}

/// The program's path when it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Where Debian keeps servers, which is not in everybody's PATH.
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// The first thing that looks like `1.2.3`.
pub fn version_in(text: &str) -> &str {
    let words = text.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
    words.map(|word| word.trim_matches('.')).find(|word| word.matches('.').count() == 2).unwrap_or_default()
}

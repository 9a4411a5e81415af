//! A configuration on its way to be served: read, decoded, then compiled together with every file that it names. All
//! mistakes of a step are reported at once, each at its place. The start, a reload and `check` take the same steps.

use std::path::{Path, PathBuf};

use super::tokens::Tokens;
use crate::config::{
    self, CertificateFiles, Config, ConfigError, Environment, Listen, Parsed, Problem, Protocol, Severity, Text, source,
};
use crate::routing::snapshot::{Means, Snapshot, Unusable};
use crate::telemetry::SinkError;
use crate::telemetry::process::CertificateExpiry;
use crate::tls::certificates::Set;
use crate::tls::pem;

/// A file that was read and decoded.
#[derive(Clone, Debug)]
pub struct Candidate {
    text: Text,
    parsed: Parsed,
    leaves_out_certificates: bool,
}

/// What can be served.
pub struct Compiled {
    /// The services.
    pub snapshot: Snapshot,
    /// The certificates of the TLS listeners; empty without one.
    pub certificates: Set,
}

impl Candidate {
    /// Reads and decodes a file.
    ///
    /// # Errors
    ///
    /// Every mistake in it.
    pub fn read(path: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        Self::decode(source::read(path)?, environment)
    }

    /// Decodes a text.
    ///
    /// # Errors
    ///
    /// Every mistake in it.
    pub fn decode(text: Text, environment: &Environment) -> Result<Self, ConfigError> {
        let parsed = config::parse(&text, environment)?;
        Ok(Self { text, parsed, leaves_out_certificates: false })
    }

    /// The same, where listener certificates that cannot be used are left out.
    #[must_use]
    pub fn without_unusable_certificates(mut self) -> Self {
        self.leaves_out_certificates = true;
        self
    }

    /// The text as read.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// What it says.
    pub fn config(&self) -> &Config {
        &self.parsed.config
    }

    /// What works, but hardly as meant.
    pub fn warnings(&self) -> &[Problem] {
        &self.parsed.warnings
    }

    /// The warnings, each in one line.
    pub fn warning_lines(&self) -> impl Iterator<Item = String> + '_ {
        self.warnings().iter().map(one_line)
    }

    /// Every file that the configuration depends on beside its own.
    pub fn files(&self, environment: &Environment) -> Vec<PathBuf> {
        let config = self.config();
        let mut files = Vec::new();
        if serves_tls(&config.listen) {
            files.extend(config.listen.tls.certificates.iter().flat_map(both));
            files.extend(config.listen.tls.client_ca.clone());
        }
        let clusters = config.services.iter().flat_map(|service| [&service.old, &service.new]);
        for options in clusters.filter(|options| options.protocol == Protocol::Https) {
            let bundle = || environment.get("SSL_CERT_FILE").filter(|file| !file.is_empty()).map(PathBuf::from);
            files.extend(options.ca_file.clone().or_else(bundle));
            files.extend(options.client.iter().flat_map(both));
        }
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Compiles it, with everything that the `current` snapshot can hand over. Nothing that is being served changes.
    ///
    /// # Errors
    ///
    /// Every file that cannot be used, at the place that names it.
    pub fn compile(&self, current: Option<&Snapshot>, means: &Means<'_>) -> Result<Compiled, ConfigError> {
        let snapshot = Snapshot::compile(self.config().clone(), current, means);
        let certificates = certificates(&self.config().listen, self.leaves_out_certificates);
        match (snapshot, certificates) {
            (Ok(snapshot), Ok(certificates)) => Ok(Compiled { snapshot, certificates }),
            (snapshot, certificates) => {
                let unusable = snapshot.err().into_iter().chain(certificates.err()).flatten();
                Err(self.refused(unusable.map(|unusable| self.unusable(unusable)).collect()))
            }
        }
    }

    /// Whether its tokens can be read. A start does without: traffic goes on, and every write is refused.
    ///
    /// # Errors
    ///
    /// What is wrong with the token file, at the key that names it.
    pub fn check_tokens(&self) -> Result<(), ConfigError> {
        let Some(Err(error)) = self.config().admin.token_file.as_deref().map(Tokens::read) else { return Ok(()) };
        let help = "write lines NAME:TOKEN, or leave the key out: then only loopback may write";
        Err(self.unfit("admin.token_file", error, Some(help.to_owned())))
    }

    /// The refusal of a configuration whose logs cannot be opened.
    pub fn unwritable(&self, error: &SinkError) -> ConfigError {
        let log = &self.config().log;
        let key = if error.path == log.access_path { "log.access_path" } else { "log.audit_path" };
        let help = "name a file in a directory that the process may write to, or /dev/stdout".to_owned();
        self.refused(vec![Problem::at(&self.parsed.places, key, error.to_string(), Some(help))])
    }

    /// The refusal of a configuration for a reason that shows only when it is put to use, at the key that causes it.
    pub fn unfit(&self, key: &str, message: impl Into<String>, help: Option<String>) -> ConfigError {
        self.refused(vec![Problem::at(&self.parsed.places, key, message, help)])
    }

    /// A warning about what shows only when the files that it names are read, at the key that names them.
    pub fn warning(&self, key: &str, message: impl Into<String>, help: Option<String>) -> Problem {
        Problem::at(&self.parsed.places, key, message, help).into_warning()
    }

    /// The refusal of certificates whose time is over, each at the key that names it.
    pub fn overdue(&self, certificates: &[CertificateExpiry]) -> ConfigError {
        let problem = |certificate: &CertificateExpiry| {
            let message = format!("{} has expired", certificate.file.display());
            let help = "renew it; what is served now stays until then".to_owned();
            Problem::at(&self.parsed.places, &self.key_of(certificate), message, Some(help))
        };
        self.refused(certificates.iter().map(problem).collect())
    }

    /// The key that names a certificate of ours.
    fn key_of(&self, CertificateExpiry { service, file, .. }: &CertificateExpiry) -> String {
        let config = self.config();
        let Some(name) = service else {
            let index = config.listen.tls.certificates.iter().position(|files| files.cert == *file);
            return format!("listen.tls.certificates[{}].cert", index.unwrap_or_default());
        };
        let index = config.services.iter().position(|service| service.name == *name).unwrap_or_default();
        let is_of_old = config
            .services
            .get(index)
            .is_some_and(|service| service.old.client.as_ref().is_some_and(|files| files.cert == *file));
        format!("services[{index}].{}.client_cert", if is_of_old { "old" } else { "new" })
    }

    fn unusable(&self, Unusable { key, error }: Unusable) -> Problem {
        let message = error.to_string();
        Problem::at(&self.parsed.places, &key, message, error.help)
    }

    fn refused(&self, mut problems: Vec<Problem>) -> ConfigError {
        problems.extend(self.parsed.warnings.iter().cloned());
        problems.sort_by_key(|problem| (problem.line, problem.column));
        ConfigError { problems, text: self.text.clone() }
    }
}

/// A problem in one line, for logs and status.
pub fn one_line(problem: &Problem) -> String {
    let Problem { file, line, column, path, message, .. } = problem;
    let place = if *line == 0 { String::new() } else { format!(":{line}:{column}") };
    let key =
        if path.is_empty() || problem.severity == Severity::Warning { String::new() } else { format!("{path}: ") };
    format!("{file}{place}: {key}{message}")
}

fn serves_tls(listen: &Listen) -> bool {
    !listen.https.is_empty()
}

fn both(files: &CertificateFiles) -> [PathBuf; 2] {
    [files.cert.clone(), files.key.clone()]
}

/// The certificates of the listeners; those that cannot be used are an error or left out. Without a TLS listener nothing
/// is read.
fn certificates(listen: &Listen, leaves_out_certificates: bool) -> Result<Set, Vec<Unusable>> {
    let files: &[CertificateFiles] = if serves_tls(listen) { &listen.tls.certificates } else { &[] };
    let mut problems = Vec::new();
    if let (true, Some(file)) = (serves_tls(listen), &listen.tls.client_ca)
        && let Err(error) = pem::read(file).and_then(|text| pem::roots(file, &text))
    {
        problems.push(Unusable { key: "listen.tls.client_ca".to_owned(), error });
    }
    let (set, errors) = Set::load(files);
    if !leaves_out_certificates {
        problems.extend(errors.into_iter().map(|(index, error)| {
            let part = if files[index].key == error.file { "key" } else { "cert" };
            Unusable { key: format!("listen.tls.certificates[{index}].{part}"), error }
        }));
    }
    if problems.is_empty() { Ok(set) } else { Err(problems) }
}

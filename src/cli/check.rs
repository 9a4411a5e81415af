//! Validates a file as a start would, without binding anything: the text, and every certificate, key and trust root
//! that it names. What only makes a start useless, such as a certificate that is over, is a warning.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::against::Against;
use super::client::AdminUrl;
use super::output::{self, Exit, Failure};
use super::words::counted;
use crate::config::{self, ConfigError, Environment, HostPattern, Problem, Severity, Text, render_all};
use crate::control::candidate::Candidate;
use crate::routing::snapshot::Means;
use crate::tls::certificates::{Certificate, Set};
use crate::upstream::dns::Sources;
use crate::upstream::resolve::Resolver;

/// More hosts than this that no certificate covers are counted instead of listed.
const MOST_HOSTS: usize = 5;

/// Arguments of `check`.
#[derive(Args, Debug)]
#[command(after_help = "Exit: 0 valid, 3 invalid; with --against 5 when the file would change anything.\n\n\
                        Examples:\n  migration-proxy check --strict migration.yaml\n  \
                        migration-proxy check migration.yaml --against http://127.0.0.1:8080")]
pub struct Arguments {
    /// The configuration file
    file: PathBuf,
    /// Print the problems as JSON
    #[arg(long)]
    json: bool,
    /// Treat warnings as errors
    #[arg(long)]
    strict: bool,
    /// The admin port of a running proxy: tell what the file would change there
    #[arg(long, value_name = "URL")]
    against: Option<AdminUrl>,
    /// A file whose first line is the token to send, NAME:TOKEN or the token alone
    #[arg(long, value_name = "FILE", requires = "against")]
    token_file: Option<PathBuf>,
}

/// Runs `check`.
///
/// # Errors
///
/// The result cannot be written.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let report = Report::of(&arguments.file, &config::environment());
    let errors = report.count(Severity::Error);
    let warnings = report.count(Severity::Warning);
    let refused = errors > 0 || (arguments.strict && warnings > 0);
    if !arguments.json {
        let problems = render_all(&report.problems, &report.text, true);
        output::print(&format!("{problems}{}\n", report.closing_line(errors, warnings, arguments.strict)))?;
    }
    let against = match &arguments.against {
        Some(url) if !refused => Some(Against::ask(url, arguments.token_file.as_deref(), &report.text)?),
        _ => None,
    };
    if arguments.json {
        output::print_json(&Json { problems: &report.problems, against: against.clone().unwrap_or_default() })?;
    } else if let (Some(against), Some(url)) = (&against, &arguments.against) {
        output::print(&against.shown(url))?;
    }
    Ok(match against {
        _ if refused => Exit::Invalid,
        Some(against) if !against.changes.is_empty() => Exit::Different,
        _ => Exit::Done,
    })
}

/// What `--json` prints; a file alone changes nothing.
#[derive(Serialize)]
struct Json<'a> {
    problems: &'a [Problem],
    #[serde(flatten)]
    against: Against,
}

/// Everything that was found.
struct Report {
    text: Text,
    problems: Vec<Problem>,
    /// Services and hosts of a file that can be used.
    size: Option<(usize, usize)>,
}

impl Report {
    fn of(file: &Path, environment: &Environment) -> Self {
        let refused = |error: ConfigError| Self { text: error.text, problems: error.problems, size: None };
        let candidate = match Candidate::read(file, environment) {
            Ok(candidate) => candidate,
            Err(error) => return refused(error),
        };
        let set = match candidate.check_tokens().and_then(|()| compile(&candidate, environment)) {
            Ok(set) => set,
            Err(error) => return refused(error),
        };
        let config = candidate.config();
        let hosts = config.services.iter().map(|service| service.old_host.len()).sum();
        let size = Some((config.services.len(), hosts));
        let mut problems = candidate.warnings().to_vec();
        if !config.listen.https.is_empty() {
            problems.extend(overdue(&candidate, &set));
            problems.extend(uncovered(&candidate, &set));
        }
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self { text: candidate.text().clone(), problems, size }
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    fn closing_line(&self, errors: usize, warnings: usize, strict: bool) -> String {
        let name = output::printable(&self.text.name);
        let errors_text = counted(errors, "error", "errors");
        let warnings_text = counted(warnings, "warning", "warnings");
        match self.size {
            Some((services, hosts)) if errors == 0 && !(strict && warnings > 0) => {
                let services = counted(services, "service", "services");
                let hosts = counted(hosts, "host", "hosts");
                let warnings = if warnings == 0 { String::new() } else { format!(", {warnings_text}") };
                format!("{name} is valid: {services}, {hosts}{warnings}")
            }
            _ if errors == 0 => format!("{name}: {warnings_text}, and --strict allows none"),
            _ if warnings == 0 => format!("{name}: {errors_text}"),
            _ => format!("{name}: {errors_text}, {warnings_text}"),
        }
    }
}

/// Opens every file that the configuration names, as a start does; gives the certificates of the listeners.
fn compile(candidate: &Candidate, environment: &Environment) -> Result<Set, ConfigError> {
    // The resolver wants a runtime; nothing is looked up and nothing runs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| candidate.unfit("", format!("cannot start a runtime: {error}"), None))?;
    let _inside = runtime.enter();
    let resolver = Resolver::new(candidate.config().dns, Sources::default(), runtime.handle().clone());
    let means = Means { environment, resolver: &resolver, workers: 1 };
    Ok(candidate.compile(None, &means)?.certificates)
}

/// Certificates that clients refuse because their time is over.
fn overdue(candidate: &Candidate, set: &Set) -> Vec<Problem> {
    let now = jiff::Timestamp::now().as_second();
    let over = set.all().iter().enumerate().filter(|(_, certificate)| certificate.not_after < now);
    let warning = |(index, certificate): (usize, &Arc<Certificate>)| {
        let key = format!("listen.tls.certificates[{index}].cert");
        let message = format!("{}: this certificate has expired", certificate.file.display());
        candidate.warning(&key, message, Some("renew it: clients refuse it".to_owned()))
    };
    over.map(warning).collect()
}

/// Hosts that TLS clients cannot reach because no certificate names them.
fn uncovered(candidate: &Candidate, set: &Set) -> Option<Problem> {
    let covers = |host: &HostPattern| {
        let name = match host {
            HostPattern::Exact(name) => name.to_string(),
            HostPattern::Wildcard(suffix) => format!("any.{suffix}"),
        };
        set.all().iter().any(|certificate| certificate.names.covers(&name))
    };
    let hosts = candidate.config().services.iter().flat_map(|service| &service.old_host);
    let missing: Vec<String> = hosts.filter(|host| !covers(host)).map(ToString::to_string).collect();
    if missing.is_empty() {
        return None;
    }
    let shown = missing.iter().take(MOST_HOSTS).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match missing.len().saturating_sub(MOST_HOSTS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!("no certificate covers {shown}{more}: TLS clients that ask for it are refused");
    Some(candidate.warning("listen.tls.certificates", message, None))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SERVICE: &str = "services:
  - name: api
    old_host: [api.old.example, www.old.example]
    old_backend: 127.0.0.1:8078
    new_host: api.new.example
";

    fn report(content: &str) -> (tempfile::TempDir, Report) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("migration.yaml");
        fs::write(&file, content).unwrap();
        let report = Report::of(&file, &Environment::new());
        (directory, report)
    }

    fn closing(report: &Report, strict: bool) -> String {
        let line = report.closing_line(report.count(Severity::Error), report.count(Severity::Warning), strict);
        line.split_once("migration.yaml").map_or(line.clone(), |(_, rest)| rest.to_owned())
    }

    #[test]
    fn a_good_file_says_what_it_serves() {
        let (_directory, report) = report(SERVICE);
        assert_eq!(closing(&report, true), " is valid: 1 service, 2 hosts");
    }

    #[test]
    fn a_missing_file_is_one_clear_error() {
        let report = Report::of(Path::new("/nonexistent/migration.yaml"), &Environment::new());
        assert_eq!(closing(&report, false), ": 1 error");
        assert!(report.problems[0].message.contains("no such file"), "{:?}", report.problems);
    }

    #[test]
    fn missing_files_are_reported_at_the_keys_that_name_them() {
        let (_directory, report) = report(&format!(
            "listen:\n  https: [\"127.0.0.1:8443\"]\n  tls:\n    certificates:\n      - cert: /nonexistent/tls.crt\n        \
             key: /nonexistent/tls.key\n{SERVICE}    new:\n      ca_file: /nonexistent/ca.crt\n"
        ));

        let places: Vec<_> = report.problems.iter().map(|p| (p.line, p.path.as_str())).collect();

        assert_eq!(places, [(5, "listen.tls.certificates[0].cert"), (13, "services[0].new.ca_file")]);
        assert_eq!(closing(&report, false), ": 2 errors");
    }

    fn with_certificate(names: &[&str], adjust: impl FnOnce(&mut rcgen::CertificateParams)) -> Report {
        let directory = tempfile::tempdir().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        adjust(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("tls.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(path("tls.key"), key.serialize_pem()).unwrap();
        let at = directory.path().display();
        let content = format!(
            "listen:\n  https: [\"127.0.0.1:8443\"]\n  tls: {{certificates: [{{cert: {at}/tls.crt, key: {at}/tls.key}}]}}\n{SERVICE}"
        );
        fs::write(path("migration.yaml"), content).unwrap();
        Report::of(&path("migration.yaml"), &Environment::new())
    }

    #[test]
    fn hosts_without_a_certificate_are_a_warning_that_strict_refuses() {
        let report = with_certificate(&["api.old.example"], |_| {});

        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert!(report.problems[0].message.starts_with("no certificate covers www.old.example:"));
        assert_eq!(closing(&report, false), " is valid: 1 service, 2 hosts, 1 warning");
        assert_eq!(closing(&report, true), ": 1 warning, and --strict allows none");
    }

    #[test]
    fn a_wildcard_certificate_covers_and_an_expired_one_is_a_warning() {
        assert!(with_certificate(&["*.old.example"], |_| {}).problems.is_empty());

        let report = with_certificate(&["*.old.example"], |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        });
        assert!(report.problems[0].message.ends_with("this certificate has expired"), "{:?}", report.problems);
    }
}

//! Says what one request would get and why: from a file alone, or from a running proxy with its percentages, switches and
//! breakers as they stand. Both are decided by the code that decides requests; nothing is sent to a cluster.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::client::{Client, encoded};
use super::output::{self, Exit, Failure, nearest, printable};
use super::{AdminArguments, words};
use crate::config::{self, Config, Service, source};
use crate::control::report::StatusReport;
use crate::routing::decide::{Availability, Facts, Rules, Switches};
use crate::routing::explain::{About, Explanation, explain};
use crate::routing::table::Table;

/// Arguments of `explain`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit: 0 explained, 1 no service claims the host, 3 the file is invalid, 7 the proxy is unreachable.\n\n\
                        Examples:\n  \
                        migration-proxy explain --host a.old.example --header 'X-User-Id: 4711'\n  \
                        migration-proxy explain --host a.old.example --client-ip 10.2.3.4 -c migration.yaml"
)]
pub struct Arguments {
    /// The host that the client asks for
    #[arg(long, value_name = "H")]
    host: String,
    /// The path
    #[arg(long, value_name = "P", default_value = "/")]
    path: String,
    /// The method
    #[arg(long, value_name = "M", default_value = "GET")]
    method: Method,
    /// A request header; may be given several times
    #[arg(long = "header", value_name = "K:V", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The client's address; without it no IP rule matches
    #[arg(long, value_name = "IP")]
    client_ip: Option<IpAddr>,
    /// Ask this file instead of a running proxy
    #[arg(short = 'c', long = "local-config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the explanation as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs `explain`.
///
/// # Errors
///
/// No service claims the host, the file is invalid, or the proxy does not answer.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let (explanation, hosts) = match &arguments.config {
        Some(file) => offline(arguments, file)?,
        None => live(arguments)?,
    };
    let known = explanation.service.is_some();
    if arguments.json {
        output::print_json(&explanation)?;
        return Ok(if known { Exit::Done } else { Exit::Failed });
    }
    if !known {
        return Err(unknown_host(&arguments.host, &hosts));
    }
    output::print(&text(&explanation))?;
    Ok(Exit::Done)
}

/// The explanation by a file, and the hosts that it claims.
fn offline(arguments: &Arguments, file: &Path) -> Result<(Explanation, Vec<String>), Failure> {
    let parsed = source::read(file).and_then(|text| config::parse(&text, &config::environment()));
    let config = parsed.map(|parsed| parsed.config).map_err(|error| {
        output::tell(error.render(true).trim_end());
        Failure::new(Exit::Invalid, "")
    })?;
    let mut table = Table::default();
    for service in &config.services {
        for host in &service.old_host {
            table.insert(host, service);
        }
    }
    let explanation = table.find(&arguments.host).map(|service| by_file(arguments, &config, service));
    let hosts = config.services.iter().flat_map(|service| &service.old_host).map(ToString::to_string).collect();
    Ok((explanation.unwrap_or_else(Explanation::unknown_host), hosts))
}

/// Only the file counts: the declared percentage, and a new cluster that is there.
fn by_file(arguments: &Arguments, config: &Config, service: &Service) -> Explanation {
    let mut headers = HeaderMap::new();
    for (name, value) in &arguments.headers {
        headers.append(name, value.clone());
    }
    if let Ok(host) = HeaderValue::try_from(&arguments.host) {
        headers.entry(header::HOST).or_insert(host);
    }
    let facts = Facts {
        method: &arguments.method,
        path: arguments.path.split('?').next().unwrap_or_default(),
        headers: &headers,
        client: arguments.client_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).to_canonical(),
    };
    let backends: Vec<String> = service.old_backend.iter().map(ToString::to_string).collect();
    let about = About {
        service: &service.name,
        mode: service.mode,
        redirect_code: service.redirect_code,
        new_host: &service.new_host,
        old_upstream: &backends.join(", "),
        new_upstream: &service.new_backend.to_string(),
    };
    let switches = Switches { safe_mode: config.safe_mode || service.safe_mode, enabled: service.migration.enabled };
    let rules = Rules::compile(service);
    explain(&about, &rules, switches, service.migration.percentage, Availability::Available, &facts)
}

/// The explanation of a running proxy, and the hosts that it claims when this one is unknown.
fn live(arguments: &Arguments) -> Result<(Explanation, Vec<String>), Failure> {
    let client = arguments.admin.client()?;
    let target = target(arguments);
    let answer = client.get(&target)?;
    // An unknown host is an answer too, whatever its status.
    let explanation: Option<Explanation> = serde_json::from_slice(&answer.body).ok();
    match explanation {
        Some(explanation) if explanation.service.is_some() => Ok((explanation, Vec::new())),
        Some(explanation) => Ok((explanation, hosts(&client))),
        None if answer.status == StatusCode::OK => client.json(&target).map(|explanation| (explanation, Vec::new())),
        None => Err(client.refused("/api/v1/explain", &answer)),
    }
}

fn target(arguments: &Arguments) -> String {
    let mut target = format!(
        "/api/v1/explain?host={}&path={}&method={}",
        encoded(&arguments.host),
        encoded(&arguments.path),
        encoded(arguments.method.as_str())
    );
    if let Some(address) = arguments.client_ip {
        target.push_str(&format!("&client_ip={}", encoded(&address.to_string())));
    }
    for (name, value) in &arguments.headers {
        target.push_str(&format!(
            "&header={}",
            encoded(&format!("{name}:{}", String::from_utf8_lossy(value.as_bytes())))
        ));
    }
    target
}

/// For "did you mean"; nothing is lost when they cannot be had.
fn hosts(client: &Client) -> Vec<String> {
    let report: Option<StatusReport> = client.json("/status").ok();
    report.into_iter().flat_map(|report| report.services).flat_map(|service| service.old_host).collect()
}

fn unknown_host(host: &str, hosts: &[String]) -> Failure {
    let near = nearest(host, hosts.iter().map(String::as_str));
    let hint = if near.is_empty() {
        format!(
            "; {} known, `migration-proxy status` shows their services",
            words::counted(hosts.len(), "host is", "hosts are")
        )
    } else {
        format!("; did you mean {}?", printable(&near.join(" or ")))
    };
    Failure::new(Exit::Failed, format!("no service claims the host {host}{hint}"))
}

/// `Name: value` or `Name:value`.
pub(super) fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as NAME:VALUE")?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| format!("{name:?} is no header name"))?;
    let value = value.trim_matches([' ', '\t']);
    let value =
        HeaderValue::from_bytes(value.as_bytes()).map_err(|_| "control characters cannot be sent".to_owned())?;
    Ok((name, value))
}

/// The verdict in one line, then what was looked at.
fn text(explanation: &Explanation) -> String {
    let target = match explanation.target.as_str() {
        "none" => "nobody (503)",
        "draw" => "old or new, drawn",
        target => target,
    };
    let service = explanation.service.as_deref().unwrap_or("-");
    let mut out = format!("{service} → {target}  because {}\n", because(explanation));
    let width = explanation.steps.iter().map(|step| step.step.chars().count()).max().unwrap_or(0);
    for step in &explanation.steps {
        out.push_str(&format!("  {:<width$}  {}\n", step.step, step.outcome));
    }
    let mut lines: Vec<String> = out.lines().map(printable).collect();
    lines.push(String::new());
    lines.join("\n")
}

fn because(explanation: &Explanation) -> String {
    let share = explanation.percentage.map_or_else(|| "its share".to_owned(), words::share);
    let rule = explanation.rule.as_deref().unwrap_or("a rule");
    match explanation.reason.as_str() {
        "safe_mode" => "safe mode is on".to_owned(),
        "disabled" => "migration.enabled is false".to_owned(),
        "scope" => "this path or method is not in scope".to_owned(),
        "header" | "cookie" | "ip" => format!("{rule} matches"),
        "user" => match (&explanation.key, explanation.bucket) {
            (Some(key), Some(bucket)) if explanation.target == "new" => {
                format!("{key} has bucket {bucket:.2}, below {share}")
            }
            (Some(key), Some(bucket)) => format!("{key} has bucket {bucket:.2}, not below {share}"),
            _ => format!("a new key is given, and {share} of them go to new"),
        },
        "weight" => format!("it has no key: {share} of such requests go to new"),
        "zero" if explanation.percentage == Some(0.0) => "no rule matches and the share of new is 0 %".to_owned(),
        "zero" => "no rule matches and the strategy uses rules only".to_owned(),
        "hundred" => "no rule matches and the share of new is 100 %".to_owned(),
        "breaker" => "the breaker of new is open, or lets only a part through".to_owned(),
        "unhealthy" => "the health check of new fails".to_owned(),
        other => format!("of {other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    const FILE: &str = "services:
  - name: shop
    old_host: shop.old.example
    old_backend: 127.0.0.1:8078
    new_host: shop.new.example
    migration: {percentage: 20, sticky: {by: [\"header:X-User-Id\"]}}
    canary:
      header_rules: [{header: X-Pin, value: new, target: new_cluster}]
";

    fn explained(extra: &[&str]) -> (Explanation, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("migration.yaml");
        fs::write(&file, FILE).unwrap();
        let arguments = ["migration-proxy", "explain", "--host"].iter().chain(extra);
        let Some(Verb::Explain(arguments)) = Cli::try_parse_from(arguments).unwrap().verb else { panic!("explain") };
        offline(&arguments, &file).unwrap()
    }

    #[test]
    fn headers_are_taken_with_and_without_a_space() {
        for (text, expected) in [
            ("X-User-Id:u0", Ok(("x-user-id", "u0"))),
            ("x-pin: new", Ok(("x-pin", "new"))),
            ("Cookie: a=b; c=d:e", Ok(("cookie", "a=b; c=d:e"))),
            ("X-Empty:", Ok(("x-empty", ""))),
            ("no colon", Err(())),
            ("X A: b", Err(())),
            (": b", Err(())),
            ("X-A: a\nb", Err(())),
        ] {
            let parsed = parse_header(text).map_err(|_| ());
            let expected =
                expected.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(parsed, expected, "{text:?}");
        }
    }

    #[test]
    fn a_file_alone_explains_with_its_declared_share() {
        let (explanation, _) = explained(&["SHOP.old.example:8000", "--header", "x-pin: new", "--path", "/a?b"]);
        assert_eq!((explanation.target.as_str(), explanation.reason.as_str()), ("new", "header"));
        assert_eq!(explanation.upstream.as_deref(), Some("shop.new.example:443"));

        let (explanation, _) = explained(&["shop.old.example", "--header", "X-User-Id: user-1"]);
        assert_eq!((explanation.target.as_str(), explanation.reason.as_str()), ("old", "user"));
    }

    #[test]
    fn the_text_begins_with_the_verdict_and_lists_the_steps() {
        let (explanation, _) = explained(&["shop.old.example", "--header", "X-User-Id: user-1"]);

        let text = text(&explanation);

        let mut lines = text.lines();
        let verdict = "shop → old  because header:X-User-Id has bucket 89.79, not below 20 %";
        assert_eq!(lines.next(), Some(verdict));
        assert!(lines.next().is_some_and(|line| line.starts_with("  safe_mode ") && line.ends_with("  off")), "{text}");
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
    }

    #[test]
    fn every_reason_has_words() {
        let (known, _) = explained(&["shop.old.example"]);
        for (target, reason, percentage, expected) in [
            (
                "draw",
                "weight",
                20.0,
                "shop → old or new, drawn  because it has no key: 20 % of such requests go to new",
            ),
            ("old", "zero", 0.0, "shop → old  because no rule matches and the share of new is 0 %"),
            ("old", "zero", 20.0, "shop → old  because no rule matches and the strategy uses rules only"),
            ("new", "hundred", 100.0, "shop → new  because no rule matches and the share of new is 100 %"),
            ("old", "safe_mode", 20.0, "shop → old  because safe mode is on"),
            (
                "none",
                "breaker",
                20.0,
                "shop → nobody (503)  because the breaker of new is open, or lets only a part through",
            ),
        ] {
            let (target, reason) = (target.to_owned(), reason.to_owned());
            let explanation = Explanation { target, reason, percentage: Some(percentage), ..known.clone() };
            assert_eq!(text(&explanation).lines().next(), Some(expected));
        }
    }

    #[test]
    fn an_unknown_host_names_the_nearest_one() {
        let (explanation, hosts) = explained(&["shp.old.example"]);
        assert_eq!(explanation.service, None);

        let failure = unknown_host("shp.old.example", &hosts);
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("did you mean shop.old.example?"), "{}", failure.message);
    }

    #[test]
    fn the_live_question_is_encoded() {
        let arguments = ["migration-proxy", "explain", "--host", "a.b", "--path", "/x y?z", "--header", "A: b&c"];
        let cli = Cli::try_parse_from(arguments.into_iter().chain(["--client-ip", "::1"])).unwrap();
        let Some(Verb::Explain(arguments)) = cli.verb else { panic!("explain") };
        let expected = "/api/v1/explain?host=a.b&path=%2Fx%20y%3Fz&method=GET&client_ip=%3A%3A1&header=a%3Ab%26c";
        assert_eq!(target(&arguments), expected);
    }
}

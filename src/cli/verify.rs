//! Sends the same requests to old and new, through the proxy and as it sends those of clients, and shows what differs.

use clap::Args;
use http::{HeaderName, HeaderValue, Method};
use serde_json::json;

use super::AdminArguments;
use super::client::encoded;
use super::explain::parse_header;
use super::output::{self, ALARM, Exit, Failure, printable};
use super::words::{counted, latency};
use crate::proxy::compare::Difference;
use crate::proxy::verify::{Answer, Verdict};

/// Both answers may take their time.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Arguments of `verify`.
#[derive(Args, Debug)]
#[command(after_help = "GET is sent unless --method says otherwise: another method is carried out on both clusters.\n\
                        Of several hosts the first is asked for: --header 'Host: …' asks for another.\n\
                        Dates, ids and what old shows against itself are marked with ~ and do not count.\n\
                        Exit: 0 equal, 1 no such service, 5 different, 7 the proxy is unreachable.\n\n\
                        Examples:\n  \
                        migration-proxy verify api-name01 --path / --path /api/v2/users\n  \
                        migration-proxy verify api-name01 --header 'X-Forwarded-Proto: https' --header 'Cookie: session=…'")]
pub struct Arguments {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// A path with its query; may be given several times
    #[arg(long = "path", value_name = "P", default_value = "/")]
    paths: Vec<String>,
    /// The method
    #[arg(long, value_name = "M", default_value = "GET")]
    method: Method,
    /// A request header; may be given several times
    #[arg(long = "header", value_name = "K:V", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Print the differences as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs `verify`.
///
/// # Errors
///
/// There is no such service, or the proxy does not answer.
pub fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let client = arguments.admin.client()?.patient_for(PATIENCE);
    let target = format!("/api/v1/services/{}/verify", encoded(&arguments.service));
    let mut verdicts = Vec::new();
    for path in &arguments.paths {
        let headers: Vec<String> = arguments
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let question = json!({"path": path, "method": arguments.method.as_str(), "headers": headers});
        let answer = client.change(Method::POST, &target, &question)?;
        let verdict: Verdict = serde_json::from_value(answer)
            .map_err(|error| Failure::new(Exit::Failed, format!("the proxy is of another version: {error}")))?;
        if !arguments.json {
            output::print(&text(&verdict))?;
        }
        verdicts.push(verdict);
    }
    let equal = verdicts.iter().all(|verdict| verdict.equal);
    if arguments.json {
        let differences: Vec<_> = verdicts.iter().flat_map(|verdict| &verdict.differences).collect();
        output::print_json(&json!({"equal": equal, "differences": differences, "requests": verdicts}))?;
    }
    Ok(if equal { Exit::Done } else { Exit::Different })
}

fn text(verdict: &Verdict) -> String {
    let Verdict { equal, differences, method, path, old, new, notes } = verdict;
    let hard = differences.iter().filter(|difference| !difference.volatile).count();
    let word = match (equal, differences.is_empty()) {
        (true, true) => "equal".to_owned(),
        (true, false) => "equal but for what changes every time".to_owned(),
        (false, _) => format!("{ALARM}{}{ALARM:#}", counted(hard, "difference", "differences")),
    };
    let mut out = format!(
        "{method} {}   old {} | new {}   {word}\n",
        printable(path),
        printable(&in_short(old)),
        printable(&in_short(new))
    );
    for difference in differences {
        out.push_str(&lines(difference));
    }
    for note in notes {
        out.push_str(&format!("  note: {}\n", printable(note)));
    }
    out
}

/// `200, 5 bytes, 12 ms`.
fn in_short(answer: &Answer) -> String {
    match (answer.status, &answer.error) {
        (Some(status), _) => {
            let bytes = counted(answer.bytes, "byte", "bytes");
            format!("{status}, {bytes}, {}", latency(Some(answer.seconds)))
        }
        (None, Some(_)) => "no answer".to_owned(),
        (None, None) => "-".to_owned(),
    }
}

/// The place, and below it what either side says.
fn lines(difference: &Difference) -> String {
    let Difference { part, name, old, new, volatile } = difference;
    let mark = if *volatile { '~' } else { '!' };
    let space = if name.is_empty() { "" } else { " " };
    let mut out = format!("{mark} {part}{space}{}\n", printable(name));
    if old.is_none() && new.is_none() {
        return out;
    }
    for (side, said) in [("old", old), ("new", new)] {
        out.push_str(&format!("    {side}  {}\n", said.as_deref().map_or_else(|| "-".to_owned(), printable)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_show_what_either_side_says() {
        let difference = |part: &str, name: &str, old: Option<&str>, new: Option<&str>, volatile| Difference {
            part: part.to_owned(),
            name: name.to_owned(),
            old: old.map(str::to_owned),
            new: new.map(str::to_owned),
            volatile,
        };
        let answer = |status, bytes| Answer { status: Some(status), bytes, seconds: 0.012, error: None };
        let verdict = Verdict {
            equal: false,
            differences: vec![
                difference("status", "", Some("200"), Some("404"), false),
                difference("header", "etag", Some("1"), Some("2"), true),
                difference("header", "x-frame-options", Some("DENY"), None, false),
            ],
            method: "GET".to_owned(),
            path: "/x".to_owned(),
            old: answer(200, 4),
            new: answer(404, 1),
            notes: vec!["both redirect".to_owned()],
        };
        let expected = "\
GET /x   old 200, 4 bytes, 12 ms | new 404, 1 byte, 12 ms   2 differences
! status
    old  200
    new  404
~ header etag
    old  1
    new  2
! header x-frame-options
    old  DENY
    new  -
  note: both redirect
";
        assert_eq!(anstream::adapter::strip_str(&text(&verdict)).to_string(), expected);
    }
}

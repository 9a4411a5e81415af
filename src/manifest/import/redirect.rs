//! Redirects that an Ingress or nginx answers with.

use crate::config;

/// A redirect to a new host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    pub host: String,
    pub port: u16,
    pub code: u16,
    /// Path and query come along.
    pub keeps_path: bool,
}

/// The redirect to this URL, when it has a host.
pub(super) fn to(url: &str, code: u16) -> Option<Redirect> {
    let (scheme, rest) = url.split_once("://")?;
    let usual = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let end = rest.find(['/', '$', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, usual),
    };
    let host = config::host_name(host).ok()?;
    Some(Redirect {
        host,
        port,
        code,
        keeps_path: matches!(path, "$request_uri" | "/$request_uri" | "$uri$is_args$args"),
    })
}

/// The redirect that a snippet consists of: `return CODE URL`, perhaps for a host alone.
pub(super) fn of_snippet(snippet: &str) -> Option<Redirect> {
    let text = snippet.split_whitespace().collect::<Vec<_>>().join(" ");
    let inner = match text.strip_prefix("if ($host = ") {
        Some(rest) => rest.split_once(") {")?.1.trim().strip_suffix('}')?.trim(),
        None => &text,
    };
    let (code, url) = inner.strip_prefix("return ")?.strip_suffix(';')?.split_once(' ')?;
    let code = code.parse().ok().filter(|code| matches!(code, 301 | 302 | 303 | 307 | 308))?;
    to(url.trim_matches('"'), code).filter(|redirect| redirect.keeps_path && !url.contains([' ', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_snippets_that_redirect() {
        let found = |redirect: Option<Redirect>| redirect.map(|r| (r.host, r.port, r.code, r.keeps_path));
        let new = |port, code, keeps| Some(("a.new.example".to_owned(), port, code, keeps));
        for (url, expected) in [
            ("https://a.new.example$request_uri", new(443, 301, true)),
            ("https://a.new.example", new(443, 301, false)),
            ("http://a.new.example:81/x", new(81, 301, false)),
            ("/elsewhere", None),
            ("https://$host$request_uri", None),
        ] {
            assert_eq!(found(to(url, 301)), expected, "{url}");
        }
        for (snippet, expected) in [
            ("return 308 https://a.new.example$request_uri;", new(443, 308, true)),
            ("if ($host = a.old.example) {\n  return 307 https://a.new.example$request_uri;\n}\n", new(443, 307, true)),
            ("return 308 https://a.new.example/;", None),
            ("return 308 https://a.new.example$request_uri; deny all;", None),
            ("return 403;", None),
            ("if ($arg_a = b) { return 308 https://a.new.example$request_uri; }", None),
        ] {
            assert_eq!(found(of_snippet(snippet)), expected, "{snippet}");
        }
    }
}

//! Reads the servers of an nginx configuration as far as they forward or redirect, and says what else they do.

use super::annotations::{Canary, Settings};
use super::note::{Notes, Origin};
use super::objects::shown;
use super::paths::Matching;
use super::redirect;

/// Deepest nesting of blocks.
const MAX_DEPTH: usize = 32;

/// One directive.
#[derive(Debug, PartialEq, Eq)]
struct Directive {
    name: String,
    arguments: Vec<String>,
    block: Vec<Directive>,
    line: u32,
}

/// A location of a server and where it sends requests.
#[derive(Debug)]
pub(super) struct Location {
    pub hosts: Vec<String>,
    pub path: String,
    pub matching: Matching,
    pub line: u32,
    /// Scheme and authority of every backend that is named, in their order.
    pub backends: Vec<(String, String)>,
    pub settings: Settings,
}

/// The locations of a configuration. `origin` gives the place of a line.
pub(super) fn read(text: &str, origin: &dyn Fn(u32) -> Origin, notes: &mut Notes) -> Vec<Location> {
    let mut tokens = Tokens { rest: text, line: 1 };
    let directives = match block(&mut tokens, 0) {
        Ok(directives) => directives,
        Err(line) => {
            notes.unmapped(&origin(line), "this is no nginx configuration: braces and semicolons do not fit");
            return Vec::new();
        }
    };
    let mut reader = Reader { origin, notes, known: Vec::new(), upstreams: Vec::new(), split: None, found: Vec::new() };
    reader.definitions(&directives);
    reader.servers(&directives);
    reader.found
}

struct Tokens<'t> {
    rest: &'t str,
    line: u32,
}

impl Tokens<'_> {
    /// The next word or one of `{`, `}`, `;`.
    fn next(&mut self) -> Option<(String, bool)> {
        loop {
            let trimmed = self.rest.trim_start();
            self.skip(self.rest.len() - trimmed.len());
            if !self.rest.starts_with('#') {
                break;
            }
            self.skip(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
        let first = self.rest.chars().next()?;
        if matches!(first, '{' | '}' | ';') {
            self.skip(1);
            return Some((first.to_string(), true));
        }
        if matches!(first, '"' | '\'') {
            let end = self.rest[1..].find(first).map_or(self.rest.len(), |end| end + 2);
            let word = self.rest[1..end].trim_end_matches(first).to_owned();
            self.skip(end);
            return Some((word, false));
        }
        let mut end = self.rest.len();
        let mut is_variable = false;
        for (at, c) in self.rest.char_indices() {
            // `${name}` is part of a word.
            if c == '{' && self.rest[..at].ends_with('$') {
                is_variable = true;
            } else if c == '}' && is_variable {
                is_variable = false;
            } else if c.is_whitespace() || matches!(c, ';' | '{' | '}') {
                end = at;
                break;
            }
        }
        let word = self.rest[..end].to_owned();
        self.skip(end);
        Some((word, false))
    }

    fn skip(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count() as u32;
        self.rest = &self.rest[bytes..];
    }
}

/// The directives up to the end of a block; the line of a mistake.
fn block(tokens: &mut Tokens<'_>, depth: usize) -> Result<Vec<Directive>, u32> {
    let (mut directives, mut words, mut line) = (Vec::new(), Vec::new(), 0);
    while let Some((word, is_sign)) = tokens.next() {
        if words.is_empty() {
            line = tokens.line;
        }
        let ends = is_sign && word != "}";
        if !is_sign {
            words.push(word);
            continue;
        }
        if !ends {
            return if depth > 0 && words.is_empty() { Ok(directives) } else { Err(tokens.line) };
        }
        let inner = match &*word {
            "{" if depth < MAX_DEPTH => block(tokens, depth + 1)?,
            "{" => return Err(tokens.line),
            _ => Vec::new(),
        };
        if words.is_empty() {
            return Err(tokens.line);
        }
        let name = words.remove(0);
        directives.push(Directive { name, arguments: std::mem::take(&mut words), block: inner, line });
    }
    if depth == 0 && words.is_empty() { Ok(directives) } else { Err(tokens.line) }
}

struct Reader<'r> {
    origin: &'r dyn Fn(u32) -> Origin,
    notes: &'r mut Notes,
    /// Variables that the configuration defines.
    known: Vec<String>,
    upstreams: Vec<(String, Vec<String>)>,
    /// The first share of `split_clients`, in percent.
    split: Option<String>,
    found: Vec<Location>,
}

/// Directives that change nothing that a service would have to know.
const HARMLESS: [&str; 30] = [
    "listen",
    "server_name",
    "access_log",
    "error_log",
    "proxy_pass",
    "proxy_http_version",
    "proxy_ssl_server_name",
    "proxy_ssl_name",
    "proxy_ssl_session_reuse",
    "proxy_buffering",
    "proxy_buffers",
    "proxy_buffer_size",
    "proxy_busy_buffers_size",
    "proxy_request_buffering",
    "proxy_max_temp_file_size",
    "proxy_connect_timeout",
    "proxy_read_timeout",
    "proxy_send_timeout",
    "proxy_redirect",
    "keepalive_timeout",
    "client_max_body_size",
    "client_body_buffer_size",
    "ssl_certificate",
    "ssl_certificate_key",
    "ssl_protocols",
    "ssl_ciphers",
    "resolver",
    "log_format",
    "set",
    "location",
];

/// Headers that the proxy sets itself.
const OWN_HEADERS: [&str; 9] = [
    "host",
    "x-real-ip",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-request-id",
    "connection",
    "upgrade",
];

impl Reader<'_> {
    /// Upstreams and variables, wherever they stand.
    fn definitions(&mut self, directives: &[Directive]) {
        for directive in directives {
            match &*directive.name {
                "upstream" => {
                    let servers = directive.block.iter().filter(|inner| inner.name == "server");
                    let servers = servers.filter_map(|server| server.arguments.first().cloned()).collect();
                    self.upstreams.push((directive.arguments.first().cloned().unwrap_or_default(), servers));
                    continue;
                }
                "map" | "geo" | "split_clients" => self.known.extend(directive.arguments.last().cloned()),
                "set" => self.known.extend(directive.arguments.first().cloned()),
                _ => {}
            }
            if directive.name == "split_clients" {
                let first = directive.block.iter().find_map(|share| share.name.strip_suffix('%'));
                self.split = first.filter(|share| share.parse::<f64>().is_ok()).map(str::to_owned);
                self.notes.warn(
                    &(self.origin)(directive.line),
                    "split_clients: it divides by what is hashed here; write migration.sticky for users to stay on one cluster",
                );
            }
            self.definitions(&directive.block);
        }
    }

    fn servers(&mut self, directives: &[Directive]) {
        for directive in directives {
            match &*directive.name {
                "server" if !directive.block.is_empty() => self.server(directive),
                "upstream" => {}
                _ => self.servers(&directive.block),
            }
        }
    }

    fn server(&mut self, server: &Directive) {
        let names = server.block.iter().filter(|inner| inner.name == "server_name");
        let (hosts, odd): (Vec<String>, Vec<String>) = names
            .flat_map(|names| names.arguments.iter().map(|name| name.to_ascii_lowercase()))
            .partition(|name| crate::config::host_pattern(name).is_ok() && name.contains('.'));
        let forwards = contains(&server.block, "proxy_pass");
        for name in &odd {
            let message = format!("server_name {}: it is no host that could be an old_host", shown(name));
            self.notes.unmapped(&(self.origin)(server.line), message);
        }
        if hosts.is_empty() {
            if odd.is_empty() && forwards {
                self.notes
                    .unmapped(&(self.origin)(server.line), "a server without server_name takes every host: name them");
            }
            return;
        }
        let mut settings = Settings::default();
        self.settings(&server.block, &mut settings);
        let locations: Vec<_> = server.block.iter().filter(|inner| inner.name == "location").collect();
        for location in &locations {
            self.location(&hosts, location, settings.clone());
        }
        if locations.is_empty() && settings.redirect.is_some() {
            let path = "/".to_owned();
            let (matching, line, backends) = (Matching::Text, server.line, Vec::new());
            self.found.push(Location { hosts, path, matching, line, backends, settings });
        }
    }

    fn location(&mut self, hosts: &[String], location: &Directive, mut settings: Settings) {
        let (path, matching) = match location.arguments.as_slice() {
            [path] => (path.clone(), Matching::Text),
            [sign, path] if sign == "^~" => (path.clone(), Matching::Text),
            [sign, path] if sign == "=" => (path.clone(), Matching::Exact),
            other => {
                let message = format!(
                    "location {}: a regular expression has no place in a service; it is left out",
                    other.join(" ")
                );
                return self.notes.unmapped(&(self.origin)(location.line), message);
            }
        };
        self.settings(&location.block, &mut settings);
        let mut targets = Vec::new();
        self.targets(&location.block, &mut targets);
        if targets.is_empty() && settings.redirect.is_none() {
            // An answer of nginx itself was told of already.
            if !contains(&location.block, "return") {
                let message = format!("location {path}: it forwards nothing, so it stays where it is");
                self.notes.unmapped(&(self.origin)(location.line), message);
            }
            return;
        }
        if let Some(split) = &self.split {
            settings.canary = Some(Canary { percentage: Some(split.clone()), ..Canary::default() });
        }
        let (hosts, line) = (hosts.to_vec(), location.line);
        self.found.push(Location { hosts, path, matching, line, backends: targets, settings });
    }

    /// Every backend of a location, those below `if` too.
    fn targets(&mut self, directives: &[Directive], targets: &mut Vec<(String, String)>) {
        for directive in directives {
            match &*directive.name {
                "proxy_pass" => self.target(directive, directives, targets),
                "if" => {
                    self.variables(directive);
                    self.targets(&directive.block, targets);
                }
                _ => {}
            }
        }
    }

    fn target(&mut self, pass: &Directive, beside: &[Directive], targets: &mut Vec<(String, String)>) {
        let origin = (self.origin)(pass.line);
        let url = pass.arguments.first().map(String::as_str).unwrap_or_default();
        let Some((scheme, rest)) = url.split_once("://") else {
            self.notes.unmapped(&origin, format!("proxy_pass {}: it has no scheme", shown(url)));
            return;
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if !path.is_empty() && !path.starts_with("$request_uri") {
            let message =
                format!("proxy_pass {}: its path replaces that of the location; paths are never rewritten", shown(url));
            self.notes.unmapped(&origin, message);
        }
        if authority.contains('$') {
            self.variables(pass);
            // What a variable stands for is one of the upstreams.
            for (_, servers) in &self.upstreams {
                targets.extend(servers.iter().take(1).map(|server| (scheme_of(scheme, server), server.clone())));
            }
            return;
        }
        let upstream = self.upstreams.iter().find(|(name, _)| name == authority).map(|(_, servers)| servers.clone());
        if scheme == "https" {
            self.tls_traps(&origin, upstream.is_some().then_some(authority), beside);
        }
        let servers = upstream.unwrap_or_else(|| vec![authority.to_owned()]);
        if servers.len() > 1 {
            self.notes.warn(&origin, format!("{authority} has several servers, of which the first is taken"));
        }
        targets.extend(servers.into_iter().take(1).map(|server| (scheme.to_owned(), server)));
    }

    /// What does not work in the nginx that would do this.
    fn tls_traps(&mut self, origin: &Origin, upstream: Option<&str>, beside: &[Directive]) {
        if let Some(name) = upstream
            && !contains(beside, "proxy_ssl_server_name")
        {
            let message = format!(
                "nginx sends no server name and \"Host: {name}\" to this upstream, which a gateway answers with 404 or 421; \
                 here both are new_host"
            );
            self.notes.warn(origin, message);
        }
        let message = "nginx does not start while a name in proxy_pass or upstream cannot be resolved; here it is resolved later and again";
        self.notes.note(origin, message);
    }

    /// Variables that nothing defines keep nginx from starting.
    fn variables(&mut self, directive: &Directive) {
        const BUILT_IN: [&str; 16] = [
            "$host",
            "$uri",
            "$args",
            "$arg_",
            "$http_",
            "$cookie_",
            "$request",
            "$scheme",
            "$remote_",
            "$server_",
            "$is_args",
            "$query_string",
            "$document_",
            "$ssl_",
            "$proxy_",
            "$upstream_",
        ];
        for word in &directive.arguments {
            for (at, _) in word.match_indices('$') {
                let rest = &word[at + 1..];
                let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                let name = &word[at..at + 1 + length];
                let is_known = length == 0 || BUILT_IN.iter().any(|begin| name.starts_with(begin));
                if !is_known && !self.known.iter().any(|known| known == name) {
                    let message = format!(
                        "nothing defines {name}: nginx would not start with this (unknown variable); write the share as \
                         migration.percentage"
                    );
                    self.notes.warn(&(self.origin)(directive.line), message);
                }
            }
        }
    }

    /// The settings of a server or a location, and everything that is none.
    fn settings(&mut self, directives: &[Directive], settings: &mut Settings) {
        for directive in directives {
            let first = directive.arguments.first().map(String::as_str).unwrap_or_default();
            let seconds =
                || first.strip_suffix('s').unwrap_or(first).parse::<u32>().ok().filter(|seconds| *seconds > 0);
            match &*directive.name {
                "proxy_connect_timeout" => settings.connect = seconds(),
                "proxy_read_timeout" => settings.read = seconds(),
                "proxy_send_timeout" => settings.send = seconds(),
                "proxy_ssl_name" if !first.contains('$') => settings.server_name = Some(first.to_owned()),
                "proxy_set_header" => {
                    let value = directive.arguments.get(1).map(String::as_str).unwrap_or_default();
                    if first.eq_ignore_ascii_case("host") && !value.contains('$') && !value.is_empty() {
                        settings.host_header = Some(value.to_owned());
                    } else if !OWN_HEADERS.contains(&&*first.to_ascii_lowercase()) {
                        let message = format!("proxy_set_header {first}: write it under headers.request.set");
                        self.notes.unmapped(&(self.origin)(directive.line), message);
                    }
                }
                "return" => self.returned(directive, settings),
                "if" => {
                    self.variables(directive);
                    let inner: Vec<_> = directive.block.iter().filter(|inner| inner.name != "proxy_pass").collect();
                    if let Some(inner) = inner.first() {
                        let message = format!("{} below if: conditions of nginx cannot be mapped", inner.name);
                        self.notes.unmapped(&(self.origin)(inner.line), message);
                    }
                }
                name if HARMLESS.contains(&name) => {}
                name => {
                    let message = format!("{name}: no key for it; what it does is lost where this nginx goes away");
                    self.notes.unmapped(&(self.origin)(directive.line), message);
                }
            }
        }
    }

    fn returned(&mut self, directive: &Directive, settings: &mut Settings) {
        let found = match directive.arguments.as_slice() {
            [code, url] => code.parse().ok().and_then(|code| redirect::to(url, code)),
            _ => None,
        };
        match found.filter(|found| found.keeps_path && matches!(found.code, 301 | 302 | 303 | 307 | 308)) {
            Some(found) => settings.redirect = Some(found),
            None => {
                let message = format!("return {}: an answer of nginx itself has no key", directive.arguments.join(" "));
                self.notes.unmapped(&(self.origin)(directive.line), message);
            }
        }
    }
}

/// The scheme that fits a server behind a variable.
fn scheme_of(scheme: &str, server: &str) -> String {
    if server.ends_with(":443") { "https".to_owned() } else { scheme.to_owned() }
}

fn contains(directives: &[Directive], name: &str) -> bool {
    directives.iter().any(|directive| directive.name == name || contains(&directive.block, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Directive>, u32> {
        block(&mut Tokens { rest: text, line: 1 }, 0)
    }

    #[test]
    fn directives_have_words_blocks_and_lines() {
        let directives =
            parsed("# a\nset $a \"b; c\";\nserver { listen 80; # {\n location / { return 200 ${a}b; } }\n").unwrap();

        assert_eq!((directives[0].arguments[1].as_str(), directives[0].line), ("b; c", 2));
        let location = &directives[1].block[1];
        assert_eq!((location.name.as_str(), location.line), ("location", 4));
        assert_eq!(location.block[0].arguments, ["200", "${a}b"]);
    }

    #[test]
    fn what_is_no_configuration_ends_at_its_line() {
        let deep = "a {".repeat(100);
        for (text, line) in
            [("a {\n", 2), ("a;\n}", 2), ("a", 1), (";", 1), ("a {\n b }", 2), ("{", 1), (deep.as_str(), 1)]
        {
            assert_eq!(parsed(text).unwrap_err(), line, "{text:?}");
        }
    }
}

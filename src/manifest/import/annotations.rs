//! What the annotations of an Ingress mean for a service: a setting, or a reason why there is none.

use super::note::{Notes, Origin, Weight};
use super::objects::{Object, entries, quoted, scalar, shown, text};
use super::redirect::{self, Redirect};
use crate::config::tree::Node;

const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// What an Ingress, or a server of an nginx configuration, asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// `http`, `h2c` or `https`, where it is written.
    pub protocol: Option<&'static str>,
    /// The Host that the backend gets.
    pub host_header: Option<String>,
    /// The TLS server name that the backend gets.
    pub server_name: Option<String>,
    /// The Secret with the client certificate.
    pub client_secret: Option<String>,
    /// The backend's certificate is verified.
    pub verify: bool,
    pub only_tls_1_3: bool,
    /// Seconds.
    pub connect: Option<u32>,
    pub read: Option<u32>,
    pub send: Option<u32>,
    pub retry_when: Option<Vec<String>>,
    pub retries: Option<u32>,
    pub canary: Option<Canary>,
    pub redirect: Option<Redirect>,
    pub aliases: Vec<String>,
    /// It is read by ingress-nginx, as far as its class tells.
    pub is_ingress_nginx: bool,
}

/// What chooses the new cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Canary {
    pub percentage: Option<String>,
    /// As they are written into the file.
    pub header_rules: Vec<String>,
    pub cookie_rules: Vec<String>,
}

const AT_INGRESS: &str =
    "no key for it; the old Ingress goes on doing it while it stands in front, and the new cluster needs its own";
const AUTH: &str = "authentication stays at the old Ingress while it stands in front; the new cluster needs its own";
const LIMIT: &str = "no key for it; the old Ingress goes on limiting, and the new cluster sees the proxy's address unless it believes X-Forwarded-For";
const SNIPPET: &str =
    "nginx directives cannot be mapped: read them; what they do stays at the old Ingress while it stands in front";
const AFFINITY: &str = "no key pins a client to a pod; migration.sticky keeps a client on one cluster, and the new cluster's Ingress needs its own affinity";
const STREAMS: &str = "bodies are streamed and heads may have 64 KiB, so nothing is to be set";
const CLIENT_SIDE: &str = "it concerns clients and the old Ingress, where it stays";
const SPANS: &str = "no key for it; the access log has the times, and trace headers pass through";

/// Annotations of ingress-nginx that become no setting: a name, or its begin with `*`, and why. The first match counts.
const REASONS: &[(&str, Weight, &str)] = &[
    ("auth-*", Weight::Unmapped, AUTH),
    ("enable-global-auth", Weight::Unmapped, AUTH),
    ("satisfy", Weight::Unmapped, AUTH),
    ("limit-*", Weight::Unmapped, LIMIT),
    ("global-rate-limit*", Weight::Unmapped, LIMIT),
    ("whitelist-source-range", Weight::Unmapped, LIMIT),
    ("allowlist-source-range", Weight::Unmapped, LIMIT),
    ("denylist-source-range", Weight::Unmapped, LIMIT),
    ("configuration-snippet", Weight::Unmapped, SNIPPET),
    ("server-snippet", Weight::Unmapped, SNIPPET),
    ("stream-snippet", Weight::Unmapped, SNIPPET),
    ("affinity*", Weight::Unmapped, AFFINITY),
    ("session-cookie-*", Weight::Unmapped, AFFINITY),
    ("upstream-hash-by*", Weight::Unmapped, AFFINITY),
    ("load-balance", Weight::Unmapped, "no key for it; the Service of the backend spreads connections"),
    ("app-root", Weight::Unmapped, AT_INGRESS),
    ("x-forwarded-prefix", Weight::Unmapped, "write it under headers.request.set"),
    ("custom-headers", Weight::Unmapped, "write the headers of that ConfigMap under headers.response.set"),
    ("custom-http-errors", Weight::Unmapped, AT_INGRESS),
    ("default-backend", Weight::Unmapped, AT_INGRESS),
    ("disable-proxy-intercept-errors", Weight::Unmapped, AT_INGRESS),
    ("enable-cors", Weight::Unmapped, AT_INGRESS),
    ("cors-*", Weight::Unmapped, AT_INGRESS),
    ("modsecurity-*", Weight::Unmapped, AT_INGRESS),
    ("enable-modsecurity", Weight::Unmapped, AT_INGRESS),
    ("enable-owasp-*", Weight::Unmapped, AT_INGRESS),
    (
        "mirror-*",
        Weight::Unmapped,
        "requests are not copied; the old Ingress goes on doing it while it stands in front",
    ),
    ("from-to-www-redirect", Weight::Unmapped, AT_INGRESS),
    ("connection-proxy-header", Weight::Unmapped, "Connection belongs to each hop and is never passed on"),
    (
        "proxy-cookie-path",
        Weight::Unmapped,
        "no key for it; Domain is the only attribute of a cookie that is rewritten",
    ),
    (
        "proxy-cookie-domain",
        Weight::Unmapped,
        "headers.rewrite_cookie_domain maps new_host to the old host; any other domain has no key",
    ),
    (
        "proxy-redirect-*",
        Weight::Note,
        "headers.rewrite_location maps new_host to the old host in Location; a pair of other hosts has no key",
    ),
    (
        "ssl-passthrough",
        Weight::Unmapped,
        "mode: passthrough relays TLS unread, and needs listen.https and the old Ingress to relay TLS to it too",
    ),
    (
        "proxy-body-size",
        Weight::Note,
        "the old Ingress goes on refusing larger bodies; here none is too large (limits.request_body would hold for all services)",
    ),
    ("client-body-buffer-size", Weight::Note, STREAMS),
    ("proxy-buffer*", Weight::Note, STREAMS),
    ("proxy-busy-buffers-size", Weight::Note, STREAMS),
    ("proxy-request-buffering", Weight::Note, STREAMS),
    ("proxy-max-temp-file-size", Weight::Note, STREAMS),
    ("proxy-http-version", Weight::Note, "HTTP/1.1 is spoken with kept connections, and HTTP/2 where gRPC needs it"),
    ("proxy-next-upstream-timeout", Weight::Note, "all tries together end after timeouts.total"),
    ("proxy-ssl-ciphers", Weight::Note, "the cipher suites are fixed: forward secrecy and AEAD only"),
    ("proxy-ssl-verify-depth", Weight::Note, "chains of any usual depth are followed"),
    ("service-upstream", Weight::Note, "connections always go to the Service"),
    ("upstream-keepalive-*", Weight::Note, "kept connections: old.max_idle and old.idle_timeout"),
    ("ssl-*", Weight::Note, CLIENT_SIDE),
    ("force-ssl-redirect", Weight::Note, CLIENT_SIDE),
    ("preserve-trailing-slash", Weight::Note, CLIENT_SIDE),
    ("hsts*", Weight::Note, CLIENT_SIDE),
    ("http2-push-preload", Weight::Note, CLIENT_SIDE),
    ("enable-access-log", Weight::Note, "every request is in the access log; see log.access"),
    ("enable-rewrite-log", Weight::Note, CLIENT_SIDE),
    ("enable-opent*", Weight::Note, SPANS),
    ("opent*", Weight::Note, SPANS),
    ("relative-redirects", Weight::Note, CLIENT_SIDE),
];

/// Annotations of others that say nothing about how requests are forwarded, by the begin of their names.
const STRANGERS: &[(&str, &str)] = &[
    ("kubectl.kubernetes.io/", "kubectl keeps it for itself"),
    ("cert-manager.io/", "certificates stay with the old Ingress"),
    ("acme.cert-manager.io/", "certificates stay with the old Ingress"),
    ("external-dns.alpha.kubernetes.io/", "the DNS name stays with the old Ingress"),
    ("meta.helm.sh/", "Helm keeps it for itself"),
    ("helm.sh/", "Helm keeps it for itself"),
    ("argocd.argoproj.io/", "Argo CD keeps it for itself"),
    ("kustomize.toolkit.fluxcd.io/", "Flux keeps it for itself"),
    ("field.cattle.io/", "Rancher keeps it for itself"),
    ("kubernetes.io/tls-acme", "certificates stay with the old Ingress"),
    ("kubernetes.io/description", "a description"),
    ("kubernetes.io/ingress.class", "the class stays with the old Ingress"),
    ("ingress.kubernetes.io/enable-access-log", "every request is in the access log; see log.access"),
];

/// Reads every annotation of an Ingress.
pub(super) fn read(ingress: &Object, notes: &mut Notes) -> Settings {
    let class = text(&ingress.node, &["spec", "ingressClassName"])
        .or_else(|| text(&ingress.node, &["metadata", "annotations", "kubernetes.io/ingress.class"]));
    let settings =
        Settings { is_ingress_nginx: class.is_none_or(|class| class.contains("nginx")), ..Settings::default() };
    let mut reader = Reader { settings, ingress, notes };
    for entry in entries(&ingress.node, &["metadata", "annotations"]) {
        let Some(value) = entry.value.text() else {
            let message = format!("{}: an annotation is text, and this is {}", entry.key, entry.value.kind());
            reader.notes.unmapped(&ingress.origin.at(entry.value.place), message);
            continue;
        };
        let origin = ingress.origin.at(entry.key_place);
        match entry.key.strip_prefix(PREFIX) {
            Some(name) => reader.annotation(name, value, &origin),
            None => reader.stranger(&entry.key, &origin),
        }
    }
    reader.together();
    reader.settings
}

struct Reader<'r> {
    settings: Settings,
    ingress: &'r Object,
    notes: &'r mut Notes,
}

impl Reader<'_> {
    fn annotation(&mut self, name: &str, value: &str, origin: &Origin) {
        let value = value.trim();
        match name {
            "backend-protocol" => self.protocol(value, origin),
            "secure-backends" if value == "true" => self.settings.protocol = Some("https"),
            "grpc-backend" if value == "true" => self.settings.protocol = Some("h2c"),
            "secure-backends" | "grpc-backend" => {}
            "upstream-vhost" => self.settings.host_header = self.plain(name, value, origin),
            "proxy-ssl-name" => self.settings.server_name = self.plain(name, value, origin),
            // One is always sent.
            "proxy-ssl-server-name" => {}
            "proxy-ssl-secret" => self.settings.client_secret = Some(value.to_owned()),
            "proxy-ssl-verify" => self.settings.verify = value == "on",
            "proxy-ssl-protocols" => {
                self.settings.only_tls_1_3 = value.split_whitespace().eq(["TLSv1.3"]);
                if !self.settings.only_tls_1_3 {
                    self.say(Weight::Note, origin, name, "TLS 1.2 and 1.3 are spoken");
                }
            }
            "proxy-connect-timeout" => self.settings.connect = self.seconds(name, value, origin),
            "proxy-read-timeout" => self.settings.read = self.seconds(name, value, origin),
            "proxy-send-timeout" => self.settings.send = self.seconds(name, value, origin),
            "proxy-next-upstream" => self.settings.retry_when = Some(self.conditions(value, origin)),
            "proxy-next-upstream-tries" => match value.parse::<u32>() {
                Ok(0) => self.say(Weight::Note, origin, name, "no limit there; retry.attempts is 3 here"),
                Ok(tries) => self.settings.retries = Some((tries - 1).min(100)),
                Err(_) => self.say(Weight::Unmapped, origin, name, &format!("{} is no number", shown(value))),
            },
            "server-alias" => self.settings.aliases.extend(value.split(',').map(|host| host.trim().to_owned())),
            "permanent-redirect" | "temporal-redirect" => self.redirect(name, value, origin),
            "permanent-redirect-code" | "temporal-redirect-code" => {}
            "server-snippet" | "configuration-snippet" if redirect::of_snippet(value).is_some() => {
                self.settings.redirect = redirect::of_snippet(value);
                let reason =
                    "a redirect; it becomes mode: redirect, so take the snippet away, else the proxy is never asked";
                self.say(Weight::Warning, origin, name, reason);
            }
            "rewrite-target" => self.rewrite(value, origin),
            "use-regex" => self.say(Weight::Note, origin, name, "paths go on being matched by the old Ingress"),
            _ if name == "canary" || name.starts_with("canary-") => self.canary(name, origin),
            _ => self.reason(name, origin),
        }
    }

    fn say(&mut self, weight: Weight, origin: &Origin, name: &str, reason: &str) {
        self.notes.add(weight, origin, format!("{name}: {reason}"));
    }

    fn reason(&mut self, name: &str, origin: &Origin) {
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => name == pattern,
        };
        match REASONS.iter().find(|(pattern, ..)| matches(pattern)) {
            Some((_, weight, reason)) => self.say(*weight, origin, name, reason),
            None => self.say(Weight::Unmapped, origin, name, "not known, so it may change what requests get"),
        }
    }

    fn stranger(&mut self, name: &str, origin: &Origin) {
        if name == "kubernetes.io/ingress.class" && self.ingress.node.find(&["spec", "ingressClassName"]).is_some() {
            let reason = "given together with ingressClassName, which the API server refuses for a new Ingress: keep ingressClassName";
            return self.say(Weight::Warning, origin, name, reason);
        }
        match STRANGERS.iter().find(|(begin, _)| name.starts_with(begin)) {
            Some((_, reason)) => self.say(Weight::Note, origin, name, reason),
            None if is_of_a_controller(name) => {
                let reason = "of another controller, whose annotations are not known: it may change what requests get";
                self.say(Weight::Unmapped, origin, name, reason);
            }
            None => self.say(Weight::Note, origin, name, "no annotation of ingress-nginx"),
        }
    }

    fn protocol(&mut self, value: &str, origin: &Origin) {
        self.settings.protocol = match &*value.to_ascii_uppercase() {
            "HTTP" | "AUTO_HTTP" => Some("http"),
            "HTTPS" | "GRPCS" => Some("https"),
            "GRPC" => Some("h2c"),
            _ => {
                let reason = format!("{} is not spoken here; HTTP, HTTPS, GRPC and GRPCS are", shown(value));
                return self.say(Weight::Unmapped, origin, "backend-protocol", &reason);
            }
        };
    }

    /// A value without variables of nginx.
    fn plain(&mut self, name: &str, value: &str, origin: &Origin) -> Option<String> {
        if !value.contains('$') && !value.is_empty() {
            return Some(value.to_owned());
        }
        self.say(
            Weight::Unmapped,
            origin,
            name,
            "variables of nginx cannot be mapped; Host and server name are new_host",
        );
        None
    }

    fn seconds(&mut self, name: &str, value: &str, origin: &Origin) -> Option<u32> {
        match value.strip_suffix('s').unwrap_or(value).parse::<u32>() {
            Ok(seconds) if (1..=604_800).contains(&seconds) => Some(seconds),
            _ => {
                self.say(Weight::Unmapped, origin, name, &format!("{} is no number of seconds", shown(value)));
                None
            }
        }
    }

    fn conditions(&mut self, value: &str, origin: &Origin) -> Vec<String> {
        let (mut when, mut left) = (Vec::new(), Vec::new());
        for word in value.split_whitespace() {
            match word {
                "off" => {}
                "error" => when.extend(["connect", "tls", "reset_before_response"].map(str::to_owned)),
                "timeout" => when.push("timeout".to_owned()),
                "http_500" | "http_502" | "http_503" | "http_504" => when.push(word[5..].to_owned()),
                _ => left.push(word),
            }
        }
        if !left.is_empty() {
            let reason = format!(
                "{} cannot be mapped: what may have been executed is never repeated, and only statuses from 500 on are failures",
                left.join(" ")
            );
            self.say(Weight::Unmapped, origin, "proxy-next-upstream", &reason);
        }
        when
    }

    fn redirect(&mut self, name: &str, value: &str, origin: &Origin) {
        let (usual, code_name) = match name {
            "permanent-redirect" => (301, "permanent-redirect-code"),
            _ => (302, "temporal-redirect-code"),
        };
        let written = self.value_of(code_name).and_then(|code| code.parse::<u16>().ok());
        let code = written.filter(|code| matches!(code, 301 | 302 | 303 | 307 | 308)).unwrap_or(usual);
        let Some(redirect) = redirect::to(value, code) else {
            let reason = format!("{} has no host that could be a new_host", shown(value));
            return self.say(Weight::Unmapped, origin, name, &reason);
        };
        if matches!(code, 301 | 302) {
            let reason = format!(
                "it answers {code}, with which clients turn POST into GET{}; 307 and 308 keep the method",
                if code == 301 { " and which browsers remember for good" } else { "" }
            );
            self.say(Weight::Warning, origin, name, &reason);
        }
        if !redirect.keeps_path {
            let reason = "it sends every path to one place; mode: redirect keeps path and query";
            self.say(Weight::Unmapped, origin, name, reason);
        }
        self.settings.redirect = Some(redirect);
    }

    fn rewrite(&mut self, value: &str, origin: &Origin) {
        let reason = match value.contains('$') {
            false => format!(
                "it sends every request to the one path {}, whatever was asked for: take it away unless that is meant",
                shown(value)
            ),
            true => "paths are never rewritten; the old Ingress goes on doing it while it stands in front, so both clusters get \
                     the rewritten path"
                .to_owned(),
        };
        self.say(Weight::Unmapped, origin, "rewrite-target", &reason);
    }

    fn canary(&mut self, name: &str, origin: &Origin) {
        if self.value_of("canary") != Some("true") {
            self.say(Weight::Note, origin, name, "without canary: \"true\" it has no effect");
            return;
        }
        let is_known = ["canary", "canary-weight", "canary-weight-total", "canary-by-header"].contains(&name)
            || ["canary-by-header-value", "canary-by-header-pattern", "canary-by-cookie"].contains(&name);
        if !is_known {
            self.say(Weight::Unmapped, origin, name, "not known, so it may change what requests get");
        }
    }

    /// What several annotations say together.
    fn together(&mut self) {
        if self.value_of("canary") == Some("true") {
            self.settings.canary = Some(self.canary_rules());
        }
        let has_secret = self.value_of("proxy-ssl-secret").is_some();
        let lost = ["proxy-ssl-name", "proxy-ssl-server-name", "proxy-ssl-verify"];
        for name in lost.into_iter().filter(|_| !has_secret) {
            if let Some(origin) = self.origin_of(name) {
                let reason = "ingress-nginx ignores it without proxy-ssl-secret; here server name and verification are always on";
                self.say(Weight::Warning, &origin, name, reason);
            }
        }
        if let Some(origin) = self.origin_of("proxy-ssl-server-name")
            && !matches!(self.value_of("proxy-ssl-server-name"), Some("on" | "off"))
        {
            self.say(Weight::Warning, &origin, "proxy-ssl-server-name", "ingress-nginx takes on and off only");
        }
    }

    fn canary_rules(&mut self) -> Canary {
        let mut canary = Canary::default();
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<f64>().ok());
        if let Some(weight) = number(self.value_of("canary-weight")) {
            let total = number(self.value_of("canary-weight-total")).filter(|total| *total > 0.0).unwrap_or(100.0);
            let percentage = (weight * 100.0 / total).clamp(0.0, 100.0);
            canary.percentage = Some(((percentage * 100.0).round() / 100.0).to_string());
        }
        let rule = |kind: &str, name: &str, test: &str, target: &str| {
            format!("{{{kind}: {}, {test}, target: {target}}}", scalar(name))
        };
        if let Some(header) = self.value_of("canary-by-header") {
            let (value, pattern) = (self.value_of("canary-by-header-value"), self.value_of("canary-by-header-pattern"));
            match (value, pattern) {
                (Some(value), _) => {
                    let test = format!("value: {}", quoted(value));
                    canary.header_rules.push(rule("header", header, &test, "new_cluster"));
                }
                (None, Some(pattern)) => {
                    let test = format!("regex: {}", quoted(pattern));
                    canary.header_rules.push(rule("header", header, &test, "new_cluster"));
                }
                (None, None) => {
                    canary.header_rules.push(rule("header", header, "value: always", "new_cluster"));
                    canary.header_rules.push(rule("header", header, "value: never", "old_cluster"));
                }
            }
        }
        if let Some(cookie) = self.value_of("canary-by-cookie") {
            canary.cookie_rules.push(rule("cookie", cookie, "value: always", "new_cluster"));
            canary.cookie_rules.push(rule("cookie", cookie, "value: never", "old_cluster"));
        }
        canary
    }

    fn node_of(&self, name: &str) -> Option<&Node> {
        let found = entries(&self.ingress.node, &["metadata", "annotations"]);
        found.iter().find(|entry| entry.key.strip_prefix(PREFIX) == Some(name)).map(|entry| &entry.value)
    }

    fn value_of(&self, name: &str) -> Option<&str> {
        self.node_of(name).and_then(Node::text).map(str::trim)
    }

    fn origin_of(&self, name: &str) -> Option<Origin> {
        let found = entries(&self.ingress.node, &["metadata", "annotations"]);
        let entry = found.iter().find(|entry| entry.key.strip_prefix(PREFIX) == Some(name))?;
        Some(self.ingress.origin.at(entry.key_place))
    }
}

/// Whether an annotation belongs to a controller of Ingresses.
fn is_of_a_controller(name: &str) -> bool {
    const OTHERS: [&str; 12] = [
        "nginx.org/",
        "nginx.com/",
        "appprotect.f5.com/",
        "haproxy.org/",
        "haproxy-ingress.github.io/",
        "traefik.ingress.kubernetes.io/",
        "ingress.kubernetes.io/",
        "alb.ingress.kubernetes.io/",
        "konghq.com/",
        "configuration.konghq.com",
        "projectcontour.io/",
        "mse.ingress.kubernetes.io/",
    ];
    OTHERS.iter().any(|begin| name.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reason_hides_a_later_one() {
        for (index, (pattern, ..)) in REASONS.iter().enumerate() {
            let name = pattern.trim_end_matches('*');
            let hides =
                |earlier: &str| earlier.strip_suffix('*').map_or(earlier == name, |begin| name.starts_with(begin));
            let first = REASONS.iter().position(|(earlier, ..)| hides(earlier));
            let reason = REASONS[first.unwrap()].2;
            assert!(first == Some(index) || reason == REASONS[index].2, "{pattern}");
        }
    }
}

//! The keys at the top of a file, and the loop over its services.

use std::net::SocketAddr;

use super::check;
use super::decode::{Decoder, Path, Section, suggestion};
use super::expand;
use super::model::*;
use super::problem::quote;
use super::service;
use super::tree::{Node, Value};
use super::unavailable;
use super::values::{self, Parsed, Wrong};

/// Most services of one file, templates expanded.
const MAX_SERVICES: usize = 10_000;
/// Most values of one file: long lists in a template are multiplied too.
const MAX_VALUES: usize = 5_000_000;
/// Bounds of counts that take memory.
const MANY: u32 = 10_000_000;

/// The whole file. What it says wrong is in the decoder's problems.
pub(super) fn read(decoder: &mut Decoder<'_>, root: &Node) -> Config {
    decoder.section(Some(root), &Path::TOP, |top| {
        top.value("version", (), |text| {
            if text == "1" { Ok(()) } else { Err(Wrong::new("only version 1 of the format is known")) }
        });
        let global = top.section("global", global);
        let listen = top.section("listen", listen);
        Config {
            workers: top.value("workers", None, |text| values::amount(0..=1024)(text).map(zero_is_none)),
            safe_mode: top.value("safe_mode", false, values::switch),
            limits: top.section("limits", limits),
            log: top.section("log", log),
            admin: top.section("admin", |s| Admin { token_file: s.file("token_file") }),
            reload: top.section("reload", reload),
            state: top.section("state", state),
            fleet: top.section("fleet", |s| Fleet { peers: s.optional("peers", values::peers) }),
            dns: top.section("dns", dns),
            drain: top.section("drain", drain),
            services: services(top, &global, &listen),
            global,
            listen,
        }
    })
}

fn zero_is_none<T: PartialEq + From<u8>>(number: T) -> Option<T> {
    (number != T::from(0)).then_some(number)
}

fn global(s: &mut Section<'_, '_>) -> Global {
    let default = Global::default();
    Global {
        default_timeout: s.value("default_timeout", default.default_timeout, values::duration),
        retry_attempts: s.value("retry_attempts", default.retry_attempts, values::count(0..=100)),
    }
}

fn listen(s: &mut Section<'_, '_>) -> Listen {
    let default = Listen::default();
    let listen = Listen {
        http: addresses(s, "http").unwrap_or(default.http),
        https: addresses(s, "https").unwrap_or(default.https),
        admin: s.value("admin", default.admin, values::socket_address),
        proxy_protocol: s.choice(
            "proxy_protocol",
            default.proxy_protocol,
            &[("off", false), ("v1v2", true), ("on", true)],
        ),
        trusted_proxies: s.list("trusted_proxies", values::network).unwrap_or(default.trusted_proxies),
        client_ip: s.value("client_ip", default.client_ip, client_ip),
        tls: s.section("tls", listen_tls),
        timeouts: s.section("timeouts", listen_timeouts),
        unknown_host: s.choice(
            "unknown_host",
            default.unknown_host,
            &[("404", UnknownHost::NotFound), ("421", UnknownHost::Misdirected), ("close", UnknownHost::Close)],
        ),
    };
    if listen.proxy_protocol && listen.trusted_proxies.is_empty() {
        let wrong = Wrong::new("listen.trusted_proxies is empty: every connection with a PROXY header is closed");
        s.warn("proxy_protocol", wrong.help("name the balancers that send it"));
    }
    s.keep_place("admin");
    if listen.http.is_empty() && listen.https.is_empty() {
        s.error("http", Wrong::new("neither http nor https has an address").help("write [\"0.0.0.0:8000\"]"));
    }
    let mut seen: Vec<SocketAddr> = Vec::new();
    let all =
        [("http", listen.http.as_slice()), ("https", &listen.https), ("admin", std::slice::from_ref(&listen.admin))];
    for (key, addresses) in all {
        for address in addresses.iter().filter(|address| address.port() != 0) {
            if seen.contains(address) {
                s.error(key, Wrong::new(format!("{address} is used twice")).help("give each listener its own port"));
            }
            seen.push(*address);
        }
    }
    listen
}

fn addresses(s: &mut Section<'_, '_>, key: &'static str) -> Option<Vec<SocketAddr>> {
    s.keep_place(key);
    s.items(key, |decoder, node, path| {
        decoder.places.keep(path.render(), node.place);
        decoder.parse(node, path, values::socket_address)
    })
}

fn client_ip(text: &str) -> Parsed<ClientIp> {
    match text {
        "peer" => Ok(ClientIp::Peer),
        "xff_rightmost_untrusted" => Ok(ClientIp::XffRightmostUntrusted),
        "x_real_ip" => Ok(ClientIp::XRealIp),
        _ => match text.strip_prefix("header:") {
            Some(name) => values::header_name(name).map(ClientIp::Header),
            None => {
                let known = ["peer", "xff_rightmost_untrusted", "x_real_ip", "header:NAME"];
                Err(Wrong::new(format!("unknown value {}", quote(text))).help(suggestion(text, &known)))
            }
        },
    }
}

fn listen_tls(s: &mut Section<'_, '_>) -> ListenTls {
    let default = ListenTls::default();
    let certificates = s.sections("certificates", |s| {
        let (cert, key) = (s.required_file("cert"), s.required_file("key"));
        Some(CertificateFiles { cert: cert?, key: key? })
    });
    if certificates.as_ref().is_some_and(Vec::is_empty) && s.get("certificates").is_some_and(is_empty_list) {
        s.error("certificates", Wrong::new("the list is empty").help("name a certificate, or leave the key out"));
    }
    ListenTls {
        certificates: certificates.unwrap_or(default.certificates),
        min_version: tls_version(s, default.min_version),
        client_ca: s.file("client_ca"),
    }
}

fn is_empty_list(node: &Node) -> bool {
    matches!(&node.value, Value::List(items) if items.is_empty())
}

/// `min_version`, of listeners and of clusters.
pub(super) fn tls_version(s: &mut Section<'_, '_>, default: TlsVersion) -> TlsVersion {
    s.choice("min_version", default, &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)])
}

fn listen_timeouts(s: &mut Section<'_, '_>) -> ListenTimeouts {
    let default = ListenTimeouts::default();
    ListenTimeouts {
        header: s.value("header", default.header, values::duration),
        body_idle: s.value("body_idle", default.body_idle, values::duration),
        write_idle: s.value("write_idle", default.write_idle, values::duration),
        keepalive: s.value("keepalive", default.keepalive, values::duration),
        tls_handshake: s.value("tls_handshake", default.tls_handshake, values::duration),
    }
}

fn limits(s: &mut Section<'_, '_>) -> Limits {
    let default = Limits::default();
    Limits {
        max_connections: zero_is_none_usize(s, "max_connections", values::amount(0..=MANY)),
        max_in_flight: zero_is_none_usize(s, "max_in_flight", values::amount(0..=MANY))
            .unwrap_or(default.max_in_flight),
        header_bytes: zero_is_none_usize(s, "header_bytes", values::small_size).unwrap_or(default.header_bytes),
        header_count: zero_is_none_usize(s, "header_count", values::amount(0..=10_000)).unwrap_or(default.header_count),
        response_header_bytes: zero_is_none_usize(s, "response_header_bytes", values::small_size)
            .unwrap_or(default.response_header_bytes),
        uri_bytes: zero_is_none_usize(s, "uri_bytes", values::small_size).unwrap_or(default.uri_bytes),
        request_body: s.value("request_body", default.request_body, |text| values::size(text).map(zero_is_none)),
    }
}

/// Zero stands for the automatic value, as does an absent key.
fn zero_is_none_usize(
    s: &mut Section<'_, '_>,
    key: &'static str,
    parse: impl Fn(&str) -> Parsed<usize>,
) -> Option<usize> {
    s.value(key, 0, parse).checked_sub(1).map(|number| number + 1)
}

fn log(s: &mut Section<'_, '_>) -> Log {
    use tracing::Level;
    let default = Log::default();
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let access = [
        ("nginx", AccessFormat::Nginx),
        ("json", AccessFormat::Json),
        ("off", AccessFormat::Off),
        ("on", AccessFormat::Nginx),
    ];
    Log {
        level: s.choice("level", default.level, &levels),
        format: s.choice("format", default.format, &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        access: s.choice("access", default.access, &access),
        access_path: s.file("access_path").unwrap_or(default.access_path),
        access_sample: s.value("access_sample", default.access_sample, values::percent),
        audit_path: s.file("audit_path").unwrap_or(default.audit_path),
    }
}

fn reload(s: &mut Section<'_, '_>) -> Reload {
    let default = Reload::default();
    let lost = [("warn", OnLostHost::Warn), ("refuse", OnLostHost::Refuse)];
    Reload {
        watch: s.value("watch", default.watch, values::switch),
        poll: s.value("poll", default.poll, values::duration),
        on_lost_host: s.choice("on_lost_host", default.on_lost_host, &lost),
        state_dir: s.file("state_dir").unwrap_or(default.state_dir),
    }
}

fn state(s: &mut Section<'_, '_>) -> State {
    let default = State::default();
    let backends =
        [("auto", StateBackend::Auto), ("kubernetes", StateBackend::Kubernetes), ("file", StateBackend::File)];
    State {
        backend: s.choice("backend", default.backend, &backends),
        config_map: s.optional("config_map", values::object_name).unwrap_or(default.config_map),
        namespace: s.optional("namespace", values::object_name),
    }
}

fn dns(s: &mut Section<'_, '_>) -> Dns {
    let default = Dns::default();
    let dns = Dns {
        min_ttl: s.value("min_ttl", default.min_ttl, values::duration_or_zero),
        max_ttl: s.value("max_ttl", default.max_ttl, values::duration),
        negative_ttl: s.value("negative_ttl", default.negative_ttl, values::duration_or_zero),
        stale: s.value("stale", default.stale, values::duration_or_zero),
    };
    if dns.min_ttl > dns.max_ttl {
        let key = if s.get("min_ttl").is_some() { "min_ttl" } else { "max_ttl" };
        s.error(key, Wrong::new("min_ttl is longer than max_ttl"));
    }
    dns
}

fn drain(s: &mut Section<'_, '_>) -> Drain {
    let default = Drain::default();
    Drain {
        delay: s.value("delay", default.delay, values::duration_or_zero),
        grace: s.value("grace", default.grace, values::duration_or_zero),
    }
}

fn services(top: &mut Section<'_, '_>, global: &Global, listen: &Listen) -> Vec<Service> {
    let mappings = expand::mappings(top);
    let path = top.path.key("defaults");
    let defaults = top.get("defaults").map(|node| expand::nested(top.decoder, node, &path));
    let context = service::Context { global, mappings: &mappings };
    if let Some(defaults) = &defaults {
        let entries = top.get("services");
        let decoder = &mut *top.decoder;
        decoder.variables = entries.map(expand::stand_ins).unwrap_or_default();
        decoder.partial = true;
        decoder.section(Some(defaults), &path, |s| service::read(s, &context));
        decoder.partial = false;
    }

    let Some(node) = top.get("services") else {
        top.missing("services");
        return Vec::new();
    };
    let Value::List(entries) = &node.value else {
        top.error("services", Wrong::new(format!("expected a list, found {}", node.kind())));
        return Vec::new();
    };
    if entries.is_empty() {
        top.error("services", Wrong::new("there is no service").help("write at least one"));
    }
    let claims = check::Claims::default();
    let mut all = Services { defaults, context, listen, list: Vec::new(), claims, is_full: false };
    let path = top.path.key("services");
    for (index, entry) in entries.iter().enumerate() {
        // Said once is enough.
        if all.is_full {
            break;
        }
        all.read_entry(top.decoder, index, entry, &path.index(index));
    }
    top.decoder.variables.clear();
    check::mappings(&mut top.decoder.problems, &mappings, &all.list);
    all.list
}

struct Services<'c> {
    defaults: Option<Node>,
    context: service::Context<'c>,
    listen: &'c Listen,
    list: Vec<Service>,
    claims: check::Claims,
    /// More than may be were asked for.
    is_full: bool,
}

impl Services<'_> {
    /// One entry of the file: a service, or as many as its template makes.
    fn read_entry(&mut self, decoder: &mut Decoder<'_>, index: usize, entry: &Node, path: &Path<'_>) {
        decoder.variables.clear();
        decoder.places.keep(path.render(), entry.first_key());
        let own = expand::nested(decoder, entry, path);
        let node = match &self.defaults {
            Some(defaults) => expand::merge(defaults, &own),
            None => own,
        };
        for variables in expand::combinations(decoder, &node, path) {
            if self.list.len() == MAX_SERVICES || decoder.values > MAX_VALUES {
                let wrong =
                    Wrong::new(format!("the file makes more than {MAX_SERVICES} services or {MAX_VALUES} values"));
                decoder.problems.error(node.first_key(), path, wrong.help("use several files and several proxies"));
                self.is_full = true;
                break;
            }
            decoder.variables = variables;
            decoder.places.add_service(index);
            let draft = decoder.section(Some(&node), path, |s| service::read(s, &self.context));
            self.claims.add(&mut decoder.problems, &draft, &node, path);
            check::service(&mut decoder.problems, &draft.service, &node, path, self.listen);
            self.list.push(draft.service);
        }
        unavailable::refuse(decoder, &node, path);
    }
}

//! Text to values: durations, sizes, shares, hosts, networks. Each function says what is wrong and what would be right;
//! the key and the place are added by the decoder.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, Method};
use ipnet::IpNet;

use super::problem::quote;
use super::units::{Authority, HostPattern, Percent};

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub message: String,
    pub help: Option<String>,
}

impl Wrong {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

pub(super) type Parsed<T> = Result<T, Wrong>;

/// Longer times are mistakes, and would overflow clocks.
const MAX_DURATION: Duration = Duration::from_secs(3650 * 24 * 3600);

/// `30`, `30s`, `1.5s`, `500ms`, `5m`, `24h`, `7d`; zero too.
pub(super) fn duration_or_zero(text: &str) -> Parsed<Duration> {
    let wrong = || Wrong::new(format!("{} is not a duration", quote(text))).help("write 30s, 500ms, 5m, 24h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
        return Err(wrong());
    }
    let seconds: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds * unit)
        .ok()
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or_else(|| Wrong::new(format!("{} is longer than ten years", quote(text))).help("write 30s, 5m or 24h"))
}

/// A duration above zero.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err(Wrong::new("the duration must be longer than 0").help("write 30s, 500ms, 5m, 24h or 7d")),
        duration => Ok(duration),
    }
}

/// `1048576`, `64KiB`, `1MiB`, `2GiB`.
pub(super) fn size(text: &str) -> Parsed<u64> {
    let wrong = || Wrong::new(format!("{} is not a size", quote(text))).help("write bytes, or 64KiB, 1MiB, 2GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|size| *size < 1 << 60).ok_or_else(wrong)
}

/// A size that fits into memory, up to 64 MiB.
pub(super) fn small_size(text: &str) -> Parsed<usize> {
    let size = size(text)?;
    usize::try_from(size)
        .ok()
        .filter(|size| *size <= 64 << 20)
        .ok_or_else(|| Wrong::new(format!("{} is more than 64MiB", quote(text))))
}

/// `20`, `12.5`, `20%`: from 0 to 100 in steps of 0.01.
pub(super) fn percent(text: &str) -> Parsed<Percent> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return Err(Wrong::new(format!("{} is not a percentage", quote(text))).help("write 20, 12.5 or \"20%\""));
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 2 {
        return Err(Wrong::new(format!("{number} is finer than steps of 0.01")));
    }
    let hundredths: u16 = format!("{fraction:0<2}").parse().unwrap_or(0);
    let points = whole.parse::<u16>().ok().and_then(|whole| whole.checked_mul(100)?.checked_add(hundredths));
    match points.and_then(Percent::from_basis_points) {
        Some(percent) if !negative || percent == Percent::ZERO => Ok(percent),
        _ => Err(Wrong::new(format!("{number} is not between 0 and 100"))),
    }
}

/// A whole number within bounds.
pub(super) fn number(range: std::ops::RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<u64> {
    move |text| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let negative = text.strip_prefix('-').is_some_and(|rest| rest.parse::<u64>().is_ok());
        if !digits && !negative {
            return Err(Wrong::new(format!("{} is not a whole number", quote(text))));
        }
        text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            Wrong::new(format!("{} is not between {} and {}", quote_number(text), range.start(), range.end()))
        })
    }
}

fn quote_number(text: &str) -> &str {
    text.get(..40).unwrap_or(text)
}

/// As [`number`], for counts of 32 bits.
pub(super) fn count(range: std::ops::RangeInclusive<u32>) -> impl Fn(&str) -> Parsed<u32> {
    let parse = number(u64::from(*range.start())..=u64::from(*range.end()));
    move |text| parse(text).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

/// As [`number`], for counts of things in memory.
pub(super) fn amount(range: std::ops::RangeInclusive<u32>) -> impl Fn(&str) -> Parsed<usize> {
    let parse = count(range);
    move |text| parse(text).map(|number| number as usize)
}

/// on, off, true, false.
pub(super) fn switch(text: &str) -> Parsed<bool> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(Wrong::new(format!("{} is neither on nor off", quote(text))).help("write on, off, true or false")),
    }
}

/// Any text that is not empty.
pub(super) fn word(text: &str) -> Parsed<String> {
    if text.is_empty() { Err(Wrong::new("the value is empty")) } else { Ok(text.to_owned()) }
}

/// A file or directory.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.contains('\0') { Err(Wrong::new("a path has no zero bytes")) } else { word(text).map(PathBuf::from) }
}

/// `[a-z0-9-]`.
pub(super) fn service_name(text: &str) -> Parsed<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Ok(text.to_owned());
    }
    let wrong = Wrong::new(format!("{} is not a service name", quote(text)));
    Err(match text.contains('{') {
        true => wrong.help("a template needs expand, as in expand: {NN: \"02..20\"}"),
        false => wrong.help("use lower-case letters, digits and hyphens: it is a label in metrics"),
    })
}

/// A DNS name, in lower case and without a trailing dot.
fn dns_name(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if !name.is_ascii() {
        return Err("write names with other letters in their xn-- form");
    }
    if name.len() > 253 {
        return Err("a name has at most 253 characters");
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.split('.').all(label) { Ok(name.to_ascii_lowercase()) } else { Err("write a host name like api.example") }
}

/// A host name alone: no scheme, no port, no wildcard.
pub(super) fn host_name(text: &str) -> Parsed<String> {
    dns_name(text).map_err(|help| not_a_host(text, help))
}

fn not_a_host(text: &str, help: &str) -> Wrong {
    let wrong = Wrong::new(format!("{} is not a host name", quote(text)));
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
    let bare = bare.split('/').next().unwrap_or(bare);
    let bare = bare
        .rsplit_once(':')
        .map_or(bare, |(host, port)| if port.bytes().all(|byte| byte.is_ascii_digit()) { host } else { bare });
    match dns_name(bare) {
        Ok(name) if bare != text => wrong.help(format!("write {name}, without scheme, port or path")),
        _ => wrong.help(help),
    }
}

/// A host of clients: a name, an address or `*.suffix`.
pub(super) fn host_pattern(text: &str) -> Parsed<HostPattern> {
    if let Some(suffix) = text.strip_prefix("*.") {
        return match dns_name(suffix) {
            Ok(suffix) => Ok(HostPattern::Wildcard(suffix.into())),
            Err(_) => Err(Wrong::new(format!("{} is not a host pattern", quote(text)))
                .help("*.suffix stands for exactly one label, as in *.apps.example")),
        };
    }
    host_name(text).map(|name| HostPattern::Exact(name.into()))
}

/// `host:port`, `ip:port`, `[ipv6]:port`.
pub(super) fn authority(text: &str) -> Parsed<Authority> {
    let wrong = |why: &str| Wrong::new(format!("{} is not host:port: {why}", quote(text)));
    if let Some((_, rest)) = text.split_once("://") {
        return Err(wrong("it has a scheme").help(format!("write {}", quote(rest.trim_end_matches('/')))));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((host, port)) = rest.split_once(']') else { return Err(wrong("the ] is missing")) };
            (host, port.strip_prefix(':'))
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let Some(port) = port.filter(|port| !port.is_empty()) else {
        return Err(wrong("the port is missing").help(format!("write {text}:80 or the port that it listens on")));
    };
    let port = match port.parse::<u32>() {
        Ok(number @ 1..=65_535) if !port.starts_with('+') => number as u16,
        _ => return Err(wrong(&format!("{} is no port from 1 to 65535", quote_number(port)))),
    };
    let is_v6 = text.starts_with('[');
    match host.parse::<IpAddr>() {
        Ok(address) if address.is_ipv6() == is_v6 => return Ok(Authority::new(&address.to_string(), port)),
        Ok(_) => return Err(wrong("IPv6 addresses, and only they, stand in brackets").help("write [2001:db8::1]:80")),
        Err(_) if is_v6 => return Err(wrong("there is no IPv6 address in the brackets")),
        Err(_) => {}
    }
    if host.contains(':') {
        return Err(wrong("there are too many colons").help("write [2001:db8::1]:80 for an IPv6 address"));
    }
    dns_name(host).map(|name| Authority::new(&name, port)).map_err(|help| wrong("the host is no name").help(help))
}

/// `dns:NAME:PORT`: the addresses of a name, and a port.
pub(super) fn peers(text: &str) -> Parsed<Authority> {
    let help = "write dns:NAME:PORT, such as dns:migration-proxy-headless:8080";
    let Some(rest) = text.strip_prefix("dns:") else {
        return Err(Wrong::new(format!("{} does not begin with dns:", quote(text))).help(help));
    };
    authority(rest)
}

/// The name of an object in Kubernetes.
pub(super) fn object_name(text: &str) -> Parsed<String> {
    let is_part = |part: &str| {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.bytes().all(known)
    };
    if text.len() <= 253 && text.split('.').all(is_part) {
        return Ok(text.to_owned());
    }
    let help = "lower-case letters, digits, - and .";
    Err(Wrong::new(format!("{} is no name of an object in Kubernetes", quote(text))).help(help))
}

/// The Host field sent to a cluster: a name or an address, perhaps with a port.
pub(super) fn host_header(text: &str) -> Parsed<String> {
    let known =
        host_name(text).is_ok() || text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) || authority(text).is_ok();
    if known { Ok(text.to_owned()) } else { Err(not_a_host(text, "write a name, or name:port")) }
}

/// An address and a port to listen on.
pub(super) fn socket_address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| {
        let wrong = Wrong::new(format!("{} is not an address with a port", quote(text)));
        match text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
            Ok(port) => wrong.help(format!("write \"0.0.0.0:{port}\"")),
            Err(_) => wrong.help("write \"0.0.0.0:8000\" or \"[::]:8000\""),
        }
    })
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Parsed<IpNet> {
    let network = match text.parse::<IpNet>() {
        Ok(network) => network,
        Err(_) => IpNet::from(text.parse::<IpAddr>().map_err(|_| {
            let wrong = Wrong::new(format!("{} is not a network", quote(text)));
            match text.split_once('/').and_then(|(ip, _)| ip.parse::<IpAddr>().ok()) {
                Some(IpAddr::V4(_)) => wrong.help("the prefix length of IPv4 is 0 to 32"),
                Some(IpAddr::V6(_)) => wrong.help("the prefix length of IPv6 is 0 to 128"),
                None => wrong.help("write 203.0.113.0/24 or 2001:db8::/32"),
            }
        })?),
    };
    Ok(canonical(network.trunc()))
}

/// Clients are compared as IPv4 where IPv6 maps them.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(length)) => IpNet::new(v4.into(), length).unwrap_or(network),
        _ => network,
    }
}

/// A header's name.
pub(super) fn header_name(text: &str) -> Parsed<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        Wrong::new(format!("{} is not a header name", quote(text))).help("a name has letters, digits and hyphens")
    })
}

/// A cookie's name.
pub(super) fn cookie_name(text: &str) -> Parsed<String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.is_empty() && text.bytes().all(token) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(format!("{} is not a cookie name", quote(text))).help("a name has letters, digits, - and _"))
}

/// A method, compared exactly.
pub(super) fn method(text: &str) -> Parsed<Method> {
    let wrong = || Wrong::new(format!("{} is not a method", quote(text)));
    let method = Method::from_bytes(text.as_bytes()).map_err(|_| wrong().help("write GET, HEAD, POST"))?;
    let upper = text.to_ascii_uppercase();
    match Method::from_bytes(upper.as_bytes()) {
        Ok(known) if upper != text && is_usual(&known) => Err(wrong().help(format!("did you mean {upper}?"))),
        _ => Ok(method),
    }
}

fn is_usual(method: &Method) -> bool {
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"].contains(&method.as_str())
}

/// `200-399`, `200,204` or `200`.
pub(super) fn status_ranges(text: &str) -> Parsed<Vec<(u16, u16)>> {
    let wrong =
        || Wrong::new(format!("{} names no statuses", quote(text))).help("write \"200-399\" or \"200,204,301-308\"");
    let status = |text: &str| text.trim().parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    text.split(',')
        .map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let range = status(low).zip(status(high)).ok_or_else(wrong)?;
            if range.0 <= range.1 { Ok(range) } else { Err(wrong()) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a value says, as text; `None` when it is refused.
    fn shown<T, S: ToString>(parsed: Parsed<T>, show: impl Fn(T) -> S) -> Option<String> {
        parsed.ok().map(|value| show(value).to_string())
    }

    #[test]
    fn durations_have_units_and_are_seconds_without_one() {
        for (text, milliseconds) in [
            ("30", Some("30000")),
            ("30s", Some("30000")),
            ("0.5s", Some("500")),
            ("500ms", Some("500")),
            ("5m", Some("300000")),
            ("24h", Some("86400000")),
            ("7d", Some("604800000")),
            ("0", Some("0")),
            ("", None),
            ("s", None),
            (".5s", None),
            ("5.", None),
            ("1.2.3", None),
            ("-1", None),
            ("5 s", None),
            ("1h30m", None),
            ("1e9", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(shown(duration_or_zero(text), |d| d.as_millis()).as_deref(), milliseconds, "{text}");
        }
        assert!(duration("0ms").is_err());
    }

    #[test]
    fn shares_have_steps_of_a_hundredth() {
        for (text, expected) in [
            ("0", Some("0")),
            ("20", Some("20")),
            ("20%", Some("20")),
            ("12.5", Some("12.5")),
            ("0.01", Some("0.01")),
            ("12.500", Some("12.5")),
            ("100.00", Some("100")),
            ("100.01", None),
            ("101", None),
            ("-5", None),
            ("0.005", None),
            ("99999999999", None),
            ("", None),
            ("%", None),
            ("5.", None),
            ("1e1", None),
            ("NaN", None),
        ] {
            assert_eq!(shown(percent(text), |percent| percent).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_binary_units() {
        for (text, expected) in [
            ("1048576", Some("1048576")),
            ("64KiB", Some("65536")),
            ("1MiB", Some("1048576")),
            ("64KB", None),
            ("-1", None),
            ("1.5MiB", None),
            ("99999999999999GiB", None),
        ] {
            assert_eq!(shown(size(text), |size| size).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn backends_are_a_host_and_a_port() {
        for (text, expected) in [
            ("A.Example.:8078", Some("a.example:8078")),
            ("127.0.0.1:80", Some("127.0.0.1:80")),
            ("[2001:DB8::1]:443", Some("[2001:db8::1]:443")),
            ("a_b:1", Some("a_b:1")),
            ("a", None),
            ("a:", None),
            ("a:0", None),
            ("a:+1", None),
            ("a:65536", None),
            ("::1:80", None),
            ("[127.0.0.1]:80", None),
            ("[::1", None),
            ("https://a:443", None),
            ("a b:80", None),
            ("", None),
        ] {
            assert_eq!(shown(authority(text), |authority| authority).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn hosts_are_names_or_stand_for_one_label() {
        for (text, expected) in [
            ("API.Example.", Some("api.example")),
            ("*.Apps.example", Some("*.apps.example")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("*", None),
            ("*.", None),
            ("a.*.example", None),
            ("a..b", None),
            ("a:80", None),
            ("-a.example", None),
            ("", None),
        ] {
            assert_eq!(shown(host_pattern(text), |host| host).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn networks_are_cut_to_their_prefix_and_mapped_addresses_are_ipv4() {
        for (text, expected) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("203.0.113.7", Some("203.0.113.7/32")),
            ("2001:db8::1/32", Some("2001:db8::/32")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("10.0.0.0/99", None),
            ("10.0.0/8", None),
            ("office", None),
        ] {
            assert_eq!(shown(network(text), |network| network).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn statuses_are_ranges() {
        assert_eq!(status_ranges("200-399").unwrap(), [(200, 399)]);
        assert_eq!(status_ranges("200, 204,301-308").unwrap(), [(200, 200), (204, 204), (301, 308)]);
        for text in ["", "99", "600", "300-200", "2xx", "200-"] {
            assert!(status_ranges(text).is_err(), "{text}");
        }
    }
}

//! What is measured: the kinds of traffic, one row each.

/// One kind of traffic.
#[derive(Debug)]
pub struct Scenario {
    /// What it is called on the command line.
    pub id: &'static str,
    /// What it is, for the tables.
    pub title: &'static str,
    /// The same in few words, for the chart.
    pub short: &'static str,
    /// Clients come by TLS.
    pub tls: bool,
    /// Clients speak HTTP/2.
    pub http2: bool,
    /// Where a header rule sends all of it; without one a fifth goes to new.
    pub pin: Option<&'static str>,
    /// What is asked for.
    pub path: &'static str,
    /// Connections of clients.
    pub connections: usize,
    /// Requests at a time on each of them.
    pub streams: usize,
    /// A new connection for every request.
    pub fresh: bool,
    /// Answers of old and new are also timed apart.
    pub mixed: bool,
}

const BASE: Scenario = Scenario {
    id: "",
    title: "",
    short: "",
    tls: true,
    http2: false,
    pin: None,
    path: "/",
    connections: 64,
    streams: 1,
    fresh: false,
    mixed: false,
};

/// All of them.
pub static ALL: [Scenario; 6] = [
    Scenario {
        id: "S1",
        title: "HTTP/1.1 in clear, all to old in clear, 64 connections",
        short: "in clear, to old",
        tls: false,
        pin: Some("old"),
        ..BASE
    },
    Scenario {
        id: "S2",
        title: "HTTP/1.1 over TLS, all to new over verified TLS, 64 connections",
        short: "TLS, to new over TLS",
        pin: Some("new"),
        ..BASE
    },
    Scenario {
        id: "S3",
        title: "HTTP/1.1 over TLS, 20 % to new over verified TLS, 80 % to old, 64 connections",
        short: "TLS, 20 % to new",
        mixed: true,
        ..BASE
    },
    Scenario {
        id: "S4",
        title: "HTTP/2, 20 % to new over verified TLS, 80 % to old, 16 connections with 8 streams each",
        short: "HTTP/2, 20 % to new",
        http2: true,
        connections: 16,
        streams: 8,
        ..BASE
    },
    Scenario {
        id: "S5",
        title: "answers of 1 MiB over TLS, all from new over verified TLS, 16 connections",
        short: "1 MiB from new, TLS",
        pin: Some("new"),
        path: "/big",
        connections: 16,
        ..BASE
    },
    Scenario {
        id: "S6",
        title: "a full TLS handshake for every request, 20 % to new, 16 connections at a time",
        short: "full TLS handshakes",
        connections: 16,
        fresh: true,
        ..BASE
    },
];

/// The scenarios with these names, all of them when none is named.
pub fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>, String> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let find = |name: &String| {
        let found = ALL.iter().find(|scenario| scenario.id.eq_ignore_ascii_case(name.trim()));
        let known = || ALL.iter().map(|scenario| scenario.id).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| format!("no scenario {name:?}; there are {}", known()))
    };
    names.iter().map(find).collect()
}

//! The same exchange with and without the proxy, byte for byte: what the origin is sent and what the client gets differ in
//! the documented fields only, whichever of HTTP/1.1 and HTTP/2 is spoken on either side.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use http_body::Frame;

use crate::support::app::Proxy;
use crate::support::client::{Client, Framing, Http2, Response, Upload};
use crate::support::origin::{Answer, OnAccept, Origin, Recorded};
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

/// What the proxy adds to a request, or takes out of it because it concerns one connection only. Framing and Host have
/// checks of their own.
const REQUEST_FIELDS_OF_OURS: &[&str] = &[
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-request-id",
    "cdn-loop",
    "connection",
    "transfer-encoding",
    "host",
    ":authority",
    ":scheme",
];

/// What a response differs in: how its end is told on this connection.
const RESPONSE_FIELDS_OF_OURS: &[&str] = &["connection", "transfer-encoding"];

/// The date of every scripted answer; where there is none the proxy gives one (RFC 9110, 6.6.1).
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// How the proxy is asked, and which origin it asks then.
#[derive(Clone, Copy)]
struct Way<'a> {
    client: Version,
    host: &'static str,
    upstream: Version,
    origin: &'a Origin,
    /// What the origin takes for its name.
    name: &'static str,
}

impl Way<'_> {
    fn title(&self) -> String {
        format!("{:?} to {:?} by {}", self.client, self.upstream, self.host)
    }
}

/// Three origins, each behind a service of its own: HTTP/1.1, HTTP/2 by prior knowledge, HTTP/2 by ALPN.
struct Stage {
    clusters: Clusters,
    one: Origin,
    two: Origin,
}

impl Stage {
    fn new() -> Self {
        Self { clusters: Clusters::with_alpn(&["h2"]), one: Origin::plain("new"), two: Origin::h2c("new") }
    }

    fn proxy(&self) -> Proxy {
        let service = |name| self.clusters.service(name);
        Proxy::start(&Setup::new([
            service("one").old_backend(self.one.address()),
            service("two").old_backend(self.two.address()).with("old: {protocol: h2c}"),
            // Without fallback, or old would answer what new answers 500 to.
            service("alpn").percentage(100).new_option("http_version: 2").with("fallback: {enabled: false}"),
        ]))
    }

    fn origins(&self) -> [&Origin; 3] {
        [&self.one, &self.two, &self.clusters.new]
    }

    fn answer(&self, answer: &Answer) {
        for origin in self.origins() {
            origin.otherwise(answer.clone());
        }
    }

    fn ways(&self) -> impl Iterator<Item = Way<'_>> {
        use Version::{One, Two};
        [One, Two].into_iter().flat_map(|client| {
            [
                Way { client, host: "one.old.test", upstream: One, origin: &self.one, name: "one.old.test" },
                Way { client, host: "two.old.test", upstream: Two, origin: &self.two, name: "two.old.test" },
                Way { client, host: "alpn.old.test", upstream: Two, origin: &self.clusters.new, name: "alpn.new.test" },
            ]
        })
    }

    /// The origin that speaks this version in clear, for exchanges without the proxy.
    fn direct(&self, version: Version) -> &Origin {
        match version {
            Version::One => &self.one,
            Version::Two => &self.two,
        }
    }
}

/// The body of a request, as its client sends it.
#[derive(Clone)]
enum Sent {
    /// There is none, and nothing says so.
    Nothing,
    /// With a Content-Length.
    Length(&'static [u8]),
    /// In pieces, without a length; the trailers behind them.
    Pieces(Vec<&'static [u8]>, Fields),
}

type Fields = Vec<(&'static str, &'static str)>;

/// One exchange of the table.
#[derive(Clone)]
struct Row {
    name: String,
    method: &'static str,
    target: &'static str,
    fields: Fields,
    body: Sent,
    answer: Answer,
}

impl Row {
    fn get(name: impl Into<String>) -> Self {
        let answer = Answer::side().header("Date", DATE);
        Self { name: name.into(), method: "GET", target: "/", fields: Vec::new(), body: Sent::Nothing, answer }
    }

    fn answered(name: impl Into<String>, answer: Answer) -> Self {
        Self { answer: answer.header("Date", DATE), ..Self::get(name) }
    }
}

/// One client, over whatever it speaks.
enum Asker {
    One(Client),
    Two(Http2),
}

impl Asker {
    fn open(version: Version, address: std::net::SocketAddr) -> Self {
        match version {
            Version::One => Self::One(Client::plain(address)),
            Version::Two => Self::Two(Http2::plain(address)),
        }
    }

    fn ask(&mut self, host: &str, row: &Row) -> Result<Response, String> {
        match self {
            Self::One(client) => {
                client.try_send(&http1_bytes(host, row)).map_err(|error| error.to_string())?;
                client.response(row.method).map_err(|failure| failure.to_string())
            }
            Self::Two(client) => {
                let head = http2_head(host, row);
                match &row.body {
                    Sent::Nothing => client.exchange(head.map(|()| Bytes::new())),
                    Sent::Length(bytes) => client.exchange(head.map(|()| Bytes::from_static(bytes))),
                    Sent::Pieces(pieces, trailers) => {
                        let (sender, upload) = Upload::channel();
                        for piece in pieces {
                            sender.send(Frame::data(Bytes::from_static(piece))).unwrap();
                        }
                        if !trailers.is_empty() {
                            sender.send(Frame::trailers(header_map(trailers))).unwrap();
                        }
                        drop(sender);
                        client.stream(head.map(|()| upload), |_| true)
                    }
                }
            }
        }
    }
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect()
}

fn header_map(fields: &Fields) -> http::HeaderMap {
    let mut map = http::HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.to_ascii_lowercase().parse().unwrap();
        map.append(name, HeaderValue::from_bytes(&latin1(value)).unwrap());
    }
    map
}

fn http1_bytes(host: &str, row: &Row) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", row.method, row.target);
    for (name, value) in &row.fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    // TE concerns this connection, and Connection has to say so.
    if row.fields.iter().any(|(name, _)| *name == "TE") {
        head.push_str("Connection: TE\r\n");
    }
    let mut body = Vec::new();
    match &row.body {
        Sent::Nothing => {}
        Sent::Length(bytes) => {
            head.push_str(&format!("Content-Length: {}\r\n", bytes.len()));
            body.extend_from_slice(bytes);
        }
        Sent::Pieces(pieces, trailers) => {
            head.push_str("Transfer-Encoding: chunked\r\n");
            for piece in pieces {
                body.extend_from_slice(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
            }
            body.extend_from_slice(b"0\r\n");
            for (name, value) in trailers {
                body.extend_from_slice(&latin1(&format!("{name}: {value}\r\n")));
            }
            body.extend_from_slice(b"\r\n");
        }
    }
    head.push_str("\r\n");
    [latin1(&head), body].concat()
}

fn http2_head(host: &str, row: &Row) -> Request<()> {
    let mut target = http::uri::Parts::default();
    target.scheme = Some(http::uri::Scheme::HTTP);
    target.authority = Some(host.parse().unwrap());
    target.path_and_query = Some(row.target.parse().unwrap());
    let mut request = Request::builder().method(row.method).uri(http::Uri::from_parts(target).unwrap());
    *request.headers_mut().unwrap() = header_map(&row.fields);
    if let Sent::Length(bytes) = &row.body {
        request = request.header("content-length", bytes.len());
    }
    request.body(()).unwrap()
}

/// Fields by name, the values of each in order. Names have no case (RFC 9110, 5.1), and HTTP/2 writes small letters.
type Grouped = BTreeMap<String, Vec<String>>;

fn grouped(fields: &[(String, String)], left_out: &[&str]) -> Grouped {
    let mut grouped = Grouped::new();
    for (name, value) in fields {
        let name = name.to_ascii_lowercase();
        if !left_out.contains(&name.as_str()) {
            grouped.entry(name).or_default().push(value.clone());
        }
    }
    grouped
}

/// All of a message but the fields of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    start: String,
    fields: Grouped,
    body: String,
    trailers: Grouped,
}

fn of_request(seen: &Recorded, client: Version) -> Message {
    assert!(seen.complete, "{seen:?}");
    let mut fields = grouped(&seen.headers, REQUEST_FIELDS_OF_OURS);
    if let (Version::Two, Some(cookies)) = (client, fields.get_mut("cookie")) {
        // RFC 9113, 8.2.3.
        *cookies = vec![cookies.join("; ")];
    }
    Message {
        start: format!("{} {}", seen.method, seen.target),
        fields,
        body: String::from_utf8_lossy(&seen.body).into_owned(),
        trailers: grouped(&seen.trailers, &[]),
    }
}

fn of_response(response: &Response) -> Message {
    Message {
        start: response.status.to_string(),
        fields: grouped(&response.headers, RESPONSE_FIELDS_OF_OURS),
        body: String::from_utf8_lossy(&response.body).into_owned(),
        trailers: grouped(&response.trailers, &[]),
    }
}

/// What a client of this version says to an origin without the proxy between them.
fn request_without(stage: &Stage, row: &Row, client: Version) -> Message {
    let origin = stage.direct(client);
    Asker::open(client, origin.address())
        .ask("one.old.test", row)
        .unwrap_or_else(|error| panic!("{}: {error}", row.name));
    let mut message = of_request(&origin.last(), client);
    // User agents say that a POST is empty, proxies on their behalf (RFC 9110, 8.6).
    let has_meaning = matches!(row.method, "POST" | "PUT" | "PATCH");
    if has_meaning && matches!(row.body, Sent::Nothing) {
        message.fields.insert("content-length".into(), vec!["0".into()]);
    }
    message
}

/// What an origin of this version answers to a client without the proxy between them.
fn response_without(stage: &Stage, row: &Row, upstream: Version) -> Message {
    let mut asker = Asker::open(upstream, stage.direct(upstream).address());
    of_response(&asker.ask("one.old.test", row).unwrap_or_else(|error| panic!("{}: {error}", row.name)))
}

/// hyper tells HTTP/1.1 clients no length with a 304 to a GET; it may be left out (RFC 9110, 8.6).
fn without_length_of_304(mut message: Message, row: &Row, client: Version) -> Message {
    if message.start == "304" && client == Version::One && row.method != "HEAD" {
        message.fields.remove("content-length");
    }
    message
}

/// What is different through the proxy, in words.
fn difference(way: &Way<'_>, row: &Row, found: &Message, expected: &Message) -> Option<String> {
    (found != expected)
        .then(|| format!("{}, {}:\n  with    {found:?}\n  without {expected:?}\n", row.name, way.title()))
}

fn assert_same_with_and_without(rows: &[Row]) {
    let stage = Stage::new();
    let proxy = stage.proxy();
    // One connection for each way, so that one row that leaves it in disorder spoils the next.
    let mut ways: Vec<_> = stage.ways().map(|way| (way, Asker::open(way.client, proxy.addresses.http))).collect();
    let mut differences = Vec::new();
    let mut exchanges = 0;

    for row in rows {
        stage.answer(&row.answer);
        let requests = [Version::One, Version::Two].map(|client| request_without(&stage, row, client));
        let responses = [Version::One, Version::Two].map(|upstream| response_without(&stage, row, upstream));
        for (way, asker) in &mut ways {
            exchanges += 1;
            match asker.ask(way.host, row) {
                Err(error) => differences.push(format!("{}, {}: {error}\n", row.name, way.title())),
                Ok(response) => {
                    let seen = way.origin.last();
                    assert_eq!(seen.host(), Some(way.name), "{}, {}", row.name, way.title());
                    let request = of_request(&seen, way.client);
                    differences.extend(difference(way, row, &request, &requests[way.client as usize]));
                    let expected = without_length_of_304(responses[way.upstream as usize].clone(), row, way.client);
                    differences.extend(difference(way, row, &of_response(&response), &expected));
                }
            }
        }
    }

    assert!(differences.is_empty(), "{} of {exchanges} exchanges:\n{}", differences.len(), differences.concat());
    println!("{exchanges} exchanges, {} of the table", rows.len());
}

#[test]
fn methods_and_bodies_arrive_as_they_were_sent() {
    let bodies = || {
        [
            ("no body", Sent::Nothing),
            ("length 0", Sent::Length(b"")),
            ("length", Sent::Length(b"hello\r\n\r\nGET / HTTP/1.1\r\n\r\n")),
            ("pieces", Sent::Pieces(vec![b"a", b"bcd", b"\x00\xff\r\n0\r\n\r\n"], vec![])),
            ("no pieces", Sent::Pieces(vec![], vec![])),
            ("trailers", Sent::Pieces(vec![b"abc"], vec![("X-Sum", "1"), ("X-Other", "a, b"), ("X-Sum", "2")])),
        ]
    };
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get", "M-SEARCH"];
    let mut rows: Vec<Row> = methods
        .iter()
        .flat_map(|method| {
            bodies().map(|(what, body)| Row {
                method,
                fields: if what == "trailers" { vec![("Trailer", "X-Sum, X-Other")] } else { vec![] },
                body,
                ..Row::get(format!("{method} with {what}"))
            })
        })
        .collect();
    rows.push(Row { method: "HEAD", ..Row::get("HEAD") });
    rows.push(Row {
        method: "POST",
        body: Sent::Pieces(vec![b"ping", b"pong"], vec![]),
        ..Row::answered("echo", Answer::echo())
    });

    assert_same_with_and_without(&rows);
}

#[test]
fn targets_arrive_as_they_were_sent() {
    let long: &'static str = format!("/{}?{}", "p".repeat(6_000), "q".repeat(6_000)).leak();
    let targets = [
        "//",
        "//x//y",
        "/a/../b/./c",
        "/%2e%2e/%2E/x",
        "/%00%0d%0a%20%7F",
        "/a%2Fb",
        "/?",
        "/x?",
        "/x??y=/z?",
        "/?a=b&a=c&;d",
        "/;v=1/x;y",
        "/~a!$&'()*+,=:@-._",
        "/a?redirect=http://b.test/%3Fc%23",
        "/\u{65}?%E2%82%AC",
        "/[x]?[y]",
        "/index.html;jsessionid=1?x={}",
        long,
    ];
    let mut rows: Vec<Row> =
        targets.iter().map(|target| Row { target, ..Row::get(&target[..target.len().min(40)]) }).collect();
    rows.push(Row { method: "OPTIONS", target: "*", ..Row::get("OPTIONS *") });

    assert_same_with_and_without(&rows);
}

#[test]
fn request_fields_arrive_as_they_were_sent() {
    let tables: Vec<(&str, Fields)> = vec![
        ("one name several times", vec![("X-A", "1"), ("X-B", "2"), ("x-a", "3"), ("X-A", "1"), ("X-a", "0")]),
        ("empty values", vec![("X-Empty", ""), ("X-More", ""), ("X-More", "a"), ("X-More", "")]),
        ("obs-text", vec![("X-Text", "caf\u{e9} \u{80}\u{ff}"), ("X-Tab", "a\tb")]),
        ("every sign", vec![("X-Signs", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"), ("!#$%&'*+-.^_`|~", "name")]),
        ("lists", vec![("Accept", "text/html, */*;q=0.1"), ("Accept", "image/png"), ("X-List", ",, a ,,b,")]),
        ("one cookie", vec![("Cookie", "a=1; b=\"2\"; c=;d")]),
        ("cookie crumbs", vec![("Cookie", "a=1"), ("Cookie", "b=2; c=3"), ("Cookie", "d=4")]),
        ("conditions", vec![("If-None-Match", "\"a\", W/\"b\""), ("If-Modified-Since", DATE)]),
        ("codings", vec![("Accept-Encoding", "gzip, br;q=0.5, *;q=0"), ("Content-Encoding", "gzip")]),
        ("ranges", vec![("Range", "bytes=0-3, -5"), ("If-Range", "\"a\"")]),
        (
            "credentials",
            vec![("Authorization", "Bearer a.b.c"), ("Origin", "null"), ("Referer", "http://one.old.test/x")],
        ),
        ("trailers are welcome", vec![("TE", "trailers")]),
        (
            "other proxies",
            vec![("Via", "1.1 edge"), ("Via", "1.0 inner"), ("Max-Forwards", "5"), ("Traceparent", "00-1")],
        ),
        ("caches", vec![("Cache-Control", "no-cache"), ("Pragma", "no-cache"), ("Priority", "u=1, i")]),
        (
            "like ours",
            vec![("X-Forwarded-Foo", "1"), ("X-Real-Host", "2"), ("X-Request-Start", "t=1"), ("X_Under", "3")],
        ),
        ("an upgrade that is none", vec![("Upgrade-Insecure-Requests", "1"), ("Sec-WebSocket-Key", "x")]),
        ("many", (0..80).map(|number| ("X-Many", ["a", "b", "c"][number % 3])).collect()),
        ("a long one", vec![("X-Long", "y".repeat(30_000).leak())]),
    ];
    let rows: Vec<Row> = tables.into_iter().map(|(name, fields)| Row { fields, ..Row::get(name) }).collect();

    assert_same_with_and_without(&rows);
}

#[test]
fn answers_arrive_as_they_were_given() {
    let side = Answer::side;
    let status = Answer::status;
    let trailers = || side().trailer("X-Sum", "1").trailer("X-Other", "2").header("Trailer", "X-Sum, X-Other");
    let rows = [
        ("created", status(201).header("Location", "/there").header("Content-Location", "http://other.test/")),
        ("accepted without a body", status(202).body("")),
        ("no content", status(204).header("ETag", "\"1\"")),
        ("reset content", status(205).body("")),
        ("partial", status(206).header("Content-Range", "bytes 0-8/100").header("Accept-Ranges", "bytes")),
        (
            "several parts",
            status(206).header("Content-Type", "multipart/byteranges; boundary=x").body("--x\r\n\r\na\r\n"),
        ),
        ("moved", status(301).header("Location", "https://elsewhere.test:8443/x?y#z")),
        ("not modified", status(304).header("ETag", "W/\"1\"").header("Cache-Control", "max-age=5")),
        ("bad request", status(400)),
        ("challenge", status(401).header("WWW-Authenticate", "Basic realm=\"a\"").header("WWW-Authenticate", "Bearer")),
        ("not found", status(404).header("Content-Type", "text/html").body("<h1>no</h1>")),
        ("not satisfiable", status(416).header("Content-Range", "bytes */100")),
        ("misdirected", status(421)),
        ("too many", status(429).header("Retry-After", "120")),
        ("error", status(500).body("\u{0}\u{1}")),
        ("not implemented", status(501)),
        ("unusual", status(599)),
        ("unknown", status(299)),
        ("chunked", side().body("12345").chunked().drip(2, Duration::from_millis(1))),
        ("empty and chunked", side().body("").chunked()),
        ("until the end of the connection", side().body("12345").until_close()),
        ("nothing until the end of the connection", side().body("").until_close()),
        ("the last of the connection", side().close()),
        (
            "compressed",
            side().header("Content-Encoding", "gzip").header("Vary", "Accept-Encoding").body("\u{1f}\u{8b}x"),
        ),
        (
            "cookies",
            side().header("Set-Cookie", "a=1; Path=/").header("set-cookie", "b=\"2\"").header("Set-Cookie", "a=3"),
        ),
        ("empty values", side().header("X-Empty", "").header("X-More", "a").header("X-More", "").header("X-More", "b")),
        (
            "obs-text",
            side().header("X-Text", "caf\u{e9} \u{80}\u{ff}").header("Content-Disposition", "a; b=\"\u{e4}\""),
        ),
        ("links", side().header("Link", "</a>; rel=next").header("X", "1").header("Link", "</b>; rel=last")),
        (
            "caching",
            side().header("Age", "5").header("Expires", "0").header("Warning", "110 - \"x\"").header("Via", "1.1 a"),
        ),
        ("security", side().header("Content-Security-Policy", "default-src 'self'").header("Server", "x/1 (y)")),
        ("events", side().header("Content-Type", "text/event-stream").body("data: 1\n\ndata: 2\n\n").chunked()),
        ("large", Answer::pattern(200_000)),
        ("large and chunked", Answer::pattern(200_000).chunked()),
        ("a large field", side().header("X-Large", &"x".repeat(12_000))),
    ];
    let asked = |name: &str, answer: &Answer| Row::answered(name, answer.clone());
    let mut table: Vec<Row> = rows.iter().map(|(name, answer)| asked(name, answer)).collect();
    for (name, answer) in &rows {
        // The length of what is not sent may be told, and is then told to the client too.
        table.push(Row { method: "HEAD", ..asked(&format!("HEAD, {name}"), answer) });
    }
    table.push(Row { fields: vec![("TE", "trailers")], ..asked("trailers", &trailers()) });
    table.push(Row {
        method: "POST",
        fields: vec![("TE", "trailers"), ("Trailer", "X-Up")],
        body: Sent::Pieces(vec![b"abc"], vec![("X-Up", "3")]),
        ..asked("trailers both ways", &trailers())
    });

    assert_same_with_and_without(&table);
}

#[test]
fn events_arrive_while_others_are_still_to_come() {
    let stage = Stage::new();
    let proxy = stage.proxy();
    // The second event would come after an hour.
    let events = Answer::side().header("Content-Type", "text/event-stream").body("data: 1\n\ndata: 2\n\n").chunked();
    stage.answer(&events.drip(9, Duration::from_secs(3_600)));

    for way in stage.ways() {
        let row = Row { target: "/events", ..Row::get("events") };
        let first = match Asker::open(way.client, proxy.addresses.http) {
            Asker::One(mut client) => {
                client.send(http1_bytes(way.host, &row));
                assert_eq!(client.head().unwrap().status, 200, "{}", way.title());
                client.bytes(14).map(|chunk| chunk[3..12].to_vec()).map_err(|failure| failure.to_string())
            }
            Asker::Two(client) => {
                let (_, upload) = Upload::channel();
                client.stream(http2_head(way.host, &row).map(|()| upload), |_| false).map(|response| response.body)
            }
        };
        assert_eq!(first.as_deref(), Ok(&b"data: 1\n\n"[..]), "{}", way.title());
    }
}

#[test]
fn an_answer_may_be_complete_while_the_body_is_on_its_way() {
    let stage = Stage::new();
    let proxy = stage.proxy();
    for (answer, status) in [(Answer::side(), 200), (Answer::status(422), 422)] {
        stage.answer(&answer.before_request_body());

        for way in stage.ways() {
            let row = Row { method: "POST", body: Sent::Pieces(vec![b"abc"], vec![]), ..Row::get("early") };
            match Asker::open(way.client, proxy.addresses.http) {
                Asker::One(mut client) => {
                    let bytes = http1_bytes(way.host, &row);
                    client.send(&bytes[..bytes.len() - 5]);
                    let response = client.response("POST").unwrap();
                    assert_eq!((response.status, response.side()), (status, Some("new")), "{}", way.title());
                    // An origin that is done with an HTTP/1.1 connection leaves nobody to read the rest.
                    if way.upstream == Version::One {
                        assert!(client.is_closed_within(PATIENCE), "{}: nobody reads the rest", way.title());
                    } else if status == 200 {
                        client.send(&bytes[bytes.len() - 5..]);
                        assert_eq!(client.get(way.host, "/after").status, status, "{}", way.title());
                    }
                }
                Asker::Two(client) => {
                    let (sender, upload) = Upload::channel();
                    sender.send(Frame::data(Bytes::from_static(b"abc"))).unwrap();
                    let response = client.stream(http2_head(way.host, &row).map(|()| upload), |_| true);
                    assert_eq!(response.map(|response| response.status), Ok(status), "{}", way.title());
                    let after = client.get(&format!("http://{}/after", way.host));
                    assert_eq!(after.status, status, "{}: the connection goes on", way.title());
                    drop(sender);
                }
            }
        }
    }
}

#[test]
fn bodies_go_to_and_fro_piece_by_piece() {
    const ROUNDS: usize = 5;
    let stage = Stage::new();
    let proxy = stage.proxy();
    stage.answer(&Answer::echo());

    for way in stage.ways() {
        way.origin.forget();
        match Asker::open(way.client, proxy.addresses.http) {
            Asker::One(mut client) => {
                client.send(format!("POST / HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n", way.host));
                assert_eq!(client.head().unwrap().status, 200, "{}: the head comes first", way.title());
                for _ in 0..ROUNDS {
                    client.send("4\r\nping\r\n");
                    assert_eq!(client.bytes(9).unwrap(), b"4\r\nping\r\n", "{}", way.title());
                }
                client.send("0\r\n\r\n");
                assert_eq!(client.bytes(5).unwrap(), b"0\r\n\r\n", "{}", way.title());
            }
            Asker::Two(client) => {
                let row = Row { method: "POST", ..Row::get("to and fro") };
                let (sender, upload) = Upload::channel();
                let ping = |sender: &tokio::sync::mpsc::UnboundedSender<_>| {
                    sender.send(Frame::data(Bytes::from_static(b"ping"))).unwrap();
                };
                ping(&sender);
                let (mut sender, mut rounds) = (Some(sender), 0);
                let response = client.stream(http2_head(way.host, &row).map(|()| upload), |piece| {
                    assert_eq!(piece, b"ping", "{}", way.title());
                    rounds += 1;
                    match &sender {
                        Some(sender) if rounds < ROUNDS => ping(sender),
                        _ => sender = None,
                    }
                    true
                });
                assert_eq!(response.map(|response| response.body.len()), Ok(4 * ROUNDS), "{}", way.title());
            }
        }
        eventually(PATIENCE, "the whole body arrives", || way.origin.last().complete);
    }
}

fn client_of(proxy: &Proxy) -> Http2 {
    Http2::plain(proxy.addresses.http)
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let stage = Stage::new();
    let proxy = stage.proxy();

    for way in stage.ways() {
        match Asker::open(way.client, proxy.addresses.http) {
            Asker::One(mut client) => {
                let head = format!("POST / HTTP/1.1\r\nHost: {}\r\nExpect: 100-continue\r\n", way.host);
                client.send(format!("{head}Content-Length: 2\r\n\r\n"));
                assert_eq!(client.head().unwrap().status, 100, "{}", way.title());
                client.send("ok");
                assert_eq!(client.response("POST").unwrap().status, 200, "{}", way.title());
            }
            mut client @ Asker::Two(_) => {
                let body = Sent::Length(b"ok");
                let row = Row { method: "POST", fields: vec![("Expect", "100-continue")], body, ..Row::get("expect") };
                let response = client.ask(way.host, &row);
                assert_eq!(response.map(|response| response.status), Ok(200), "{}", way.title());
            }
        }
        assert_eq!(
            (way.origin.last().body, way.origin.last().header("expect")),
            (b"ok".to_vec(), Some("100-continue"))
        );
    }
}

#[test]
fn a_body_that_the_origin_does_not_ask_for_is_never_sent() {
    let stage = Stage::new();
    let proxy = stage.proxy();
    stage.answer(&Answer::status(403).before_request_body().close());
    let mut client = proxy.client();

    client.send("POST / HTTP/1.1\r\nHost: one.old.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");

    let response = client.response("POST").unwrap();
    assert_eq!((response.status, response.interim.len(), response.header("connection")), (403, 0, Some("close")));
    assert!(client.is_closed_within(PATIENCE), "the client may take the body for sent or for unsent");
    assert_eq!(stage.one.last().body_length, 0);
}

#[test]
fn early_hints_reach_clients_that_can_be_told() {
    let stage = Stage::new();
    let proxy = stage.proxy();
    let hints = [("Link", "</a.css>; rel=preload"), ("X-Hint", "caf\u{e9}"), ("Connection", "X-Hop"), ("X-Hop", "1")];
    stage.answer(&Answer::side().interim(103, &hints).interim(103, &[("Link", "</b.js>")]));

    let whole = proxy.get("one.old.test", "/");
    assert_eq!((whole.status, whole.side(), whole.interim.len()), (200, Some("new"), 2));
    assert_eq!(grouped(&whole.interim[0].1, &[]), grouped(&owned(&hints[..2]), &[]));
    assert_eq!(whole.interim[1].1, [("link".to_owned(), "</b.js>".to_owned())]);

    // An HTTP/1.0 client knows no interim responses (RFC 9110, 15.2), and hyper has none for HTTP/2.
    let mut old_client = proxy.client();
    old_client.send("GET / HTTP/1.0\r\nHost: one.old.test\r\n\r\n");
    assert_eq!(old_client.head().unwrap().status, 200);
    assert_eq!(client_of(&proxy).get("http://one.old.test/").status, 200);
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_client_of_http_1_0_gets_what_it_can_read() {
    let stage = Stage::new();
    let proxy = stage.proxy();
    let rows = [
        (Answer::side().body("12345"), "12345"),
        (Answer::side().body("12345").chunked(), "12345"),
        (Answer::side().body("").chunked(), ""),
        (Answer::side().trailer("X-Sum", "1").header("Trailer", "X-Sum").body("12345"), "12345"),
        (Answer::status(204), ""),
    ];

    for (answer, body) in &rows {
        stage.answer(answer);
        for way in stage.ways().filter(|way| way.client == Version::One) {
            let mut client = proxy.client();
            client.send(format!("GET / HTTP/1.0\r\nHost: {}\r\n\r\n", way.host));
            let response = client.response("GET").unwrap_or_else(|failure| panic!("{}: {failure}", way.title()));
            assert_eq!((response.text().as_str(), response.header("transfer-encoding")), (*body, None));
            assert_ne!(response.framing, Framing::Chunked, "{}", way.title());
            assert!(client.is_closed_within(PATIENCE), "{}: it did not ask for more", way.title());
        }
    }

    stage.answer(&Answer::side().body("12345"));
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: one.old.test\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.response("GET").unwrap().text(), "12345", "a length allows the next request");
    }
}

#[test]
fn an_options_request_goes_as_far_as_it_may() {
    let stage = Stage::new();
    let proxy = stage.proxy();

    for way in stage.ways() {
        let mut asker = Asker::open(way.client, proxy.addresses.http);
        let mut ask = |method, left| {
            let row = Row { method, fields: vec![("Max-Forwards", left)], ..Row::get("options") };
            let response = asker.ask(way.host, &row).unwrap();
            assert_eq!(response.status, 200, "{}", way.title());
            response.side().is_some().then(|| way.origin.last().header("max-forwards").unwrap().to_owned())
        };

        assert_eq!(ask("OPTIONS", "3").as_deref(), Some("2"), "{}", way.title());
        assert_eq!(ask("OPTIONS", "1").as_deref(), Some("0"), "{}", way.title());
        assert_eq!(ask("OPTIONS", "0"), None, "{}: the proxy answers", way.title());
        assert_eq!(ask("OPTIONS", "none").as_deref(), Some("none"), "{}", way.title());
        assert_eq!(ask("GET", "0").as_deref(), Some("0"), "{}: it has no meaning there", way.title());
    }
}

/// They share a connection to the origin, and its window (RFC 9113, 5.2).
#[test]
fn clients_that_take_nothing_hold_up_nobody_else() {
    let stage = Stage::new();
    let proxy = stage.proxy();
    for origin in stage.origins() {
        origin.on("/endless", Answer::pattern(1 << 40));
    }

    for way in stage.ways().filter(|way| way.upstream == Version::Two && way.client == Version::One) {
        let before = way.origin.requests();
        let slow: Vec<Client> = (0..16)
            .map(|_| {
                let mut client = proxy.client();
                client.send(format!("GET /endless HTTP/1.1\r\nHost: {}\r\n\r\n", way.host));
                assert_eq!(client.head().unwrap().status, 200);
                client
            })
            .collect();
        eventually(PATIENCE, "all of them wait", || way.origin.requests() == before + 16);

        // As many as it takes for the buffers on the way to fill.
        for _ in 0..100 {
            assert_eq!(proxy.get(way.host, "/").side(), Some("new"), "{}", way.title());
        }
        drop(slow);
    }
}

/// They share a connection of the client, and its window.
#[test]
fn uploads_that_nobody_takes_hold_up_no_others() {
    let stage = Stage::new();
    let proxy = stage.proxy();
    stage.answer(&Answer::echo());
    stage.two.on_accept(OnAccept::Hang);
    let upload = |host: &str| {
        // More than the sockets on the way can hold.
        http::Request::post(format!("http://{host}/")).body(Bytes::from(vec![b'x'; 32 << 20])).unwrap()
    };
    let other = http::Request::post("http://one.old.test/").body(Bytes::from(vec![b'y'; 1 << 20])).unwrap();

    let stuck = vec![upload("two.old.test"), upload("two.old.test"), other];
    let mut results = client_of(&proxy).exchanges(stuck);

    let other = results.pop().unwrap().map(|response| response.body.len());
    assert_eq!(other, Ok(1 << 20));
    assert!(results.iter().all(Result::is_err), "these were never taken");
}

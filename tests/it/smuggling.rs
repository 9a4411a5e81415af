//! Requests that two readers could take in two ways. The judge is an origin that reads by the letter: it sees one request
//! without a doubt in it, or nothing.

use crate::support::app::Proxy;
use crate::support::client::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, Outcome, block,
};
use crate::support::client::{Client, Http2};
use crate::support::origin::{Answer, End};
use crate::support::recorder::{Recorder, Understood};
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

/// Must never be understood as a request of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a.old.test\r\n\r\n";

/// What is right.
#[derive(Clone, Debug)]
enum Right {
    /// This status and the end of the connection; nothing at the origin.
    Refused(u16),
    /// This status from us, and the connection may go on; nothing at the origin.
    Answered(u16),
    /// One request with this body, and 200.
    Once(Vec<u8>),
    /// The same, and the end of the connection: nothing behind it is believed.
    OnceAndClosed(Vec<u8>),
}

struct Case {
    name: String,
    bytes: Vec<u8>,
    right: Right,
}

fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>, right: Right) -> Case {
    Case { name: name.into(), bytes: bytes.into(), right }
}

fn once(body: &str) -> Right {
    Right::Once(body.into())
}

fn once_and_closed(body: &str) -> Right {
    Right::OnceAndClosed(body.into())
}

const REFUSED: Right = Right::Refused(400);

/// A POST with these lines (Latin-1, without their end) and this body.
fn post(lines: &str, body: &str) -> Vec<u8> {
    latin1(&format!("POST /a HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n\r\n{body}"))
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect()
}

struct Stage {
    recorder: Recorder,
    proxy: Proxy,
    /// Its files are named in the configuration.
    _clusters: Clusters,
}

impl Stage {
    fn new() -> Self {
        Self::with("{}")
    }

    /// With these `limits`.
    fn with(limits: &str) -> Self {
        let (clusters, recorder) = (Clusters::new(), Recorder::new());
        let service = clusters.service("a").old_backend(recorder.address());
        let proxy = Proxy::start(&Setup::new([service]).top(&format!("limits: {limits}")));
        Self { proxy, recorder, _clusters: clusters }
    }

    fn rejected(&self) -> f64 {
        self.proxy.metrics().sum("rejected_total", &[])
    }

    /// What is wrong with the outcome of a case.
    fn judge(&self, case: &Case) -> Result<(), String> {
        let mut client = self.proxy.client();
        // The server may answer and close before it has read all of it.
        let _ = client.try_send(&case.bytes);
        let answer = client.response("POST").map(|response| response.status).map_err(|failure| failure.to_string());
        let (status, body, closes) = match &case.right {
            Right::Refused(status) => (*status, None, true),
            Right::Answered(status) => (*status, None, false),
            Right::Once(body) => (200, Some(body), false),
            Right::OnceAndClosed(body) => (200, Some(body), true),
        };
        if answer != Ok(status) {
            return Err(format!("{answer:?} instead of {status}; {:?}", self.recorder.take()));
        }
        if closes && !client.is_closed_within(PATIENCE) {
            return Err("the connection goes on".to_owned());
        }
        let seen = self.recorder.take();
        let bodies: Vec<&Vec<u8>> = seen.requests.iter().map(|request| &request.body).collect();
        if !seen.faults.is_empty() || bodies != Vec::from_iter(body) {
            return Err(format!("the origin saw {seen:?}"));
        }
        self.still_in_step()
    }

    /// The connections to the origin carry the next request as if nothing had been.
    fn still_in_step(&self) -> Result<(), String> {
        let status = self.proxy.get(HOST, "/healthy").status;
        let seen = self.recorder.take();
        let targets: Vec<&str> = seen.requests.iter().map(|request| request.target.as_str()).collect();
        let is_well = status == 200 && seen.faults.is_empty() && targets == ["/healthy"];
        if is_well { Ok(()) } else { Err(format!("afterwards {status}, and the origin saw {seen:?}")) }
    }
}

#[track_caller]
fn assert_right(cases: &[Case]) {
    let stage = Stage::new();

    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| stage.judge(case).err().map(|error| format!("{}: {error}\n", case.name)))
        .collect();

    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.concat());
    let refused = cases.iter().filter(|case| matches!(case.right, Right::Refused(_) | Right::Answered(_))).count();
    eventually(PATIENCE, "each refusal is counted once", || stage.rejected() == refused as f64);
    let is_refusal = |line: &String| ["400", "405", "431"].iter().any(|status| line.contains(&format!("\" {status} ")));
    eventually(PATIENCE, "each refusal is logged once", || {
        stage.proxy.access_lines().iter().filter(|line| is_refusal(line)).count() == refused
    });
    println!("{} cases", cases.len());
}

/// RFC 9112, 6.1 and 11.2. By its chunks the request is empty and another one follows; by its length all is body. Either
/// is a request by chunks and the end of the connection, or refused.
#[test]
fn a_length_beside_a_coding_has_one_meaning() {
    let body = format!("0\r\n\r\n{SMUGGLED}");
    let both = |coding: &str| post(&format!("Content-Length: {}\r\n{coding}", body.len()), &body);
    let refused = [
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked\u{c}",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: \u{a0}chunked\u{85}",
        "Transfer-Encoding: \u{0}chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: chunked chunked",
        "Transfer-Encoding:",
        "Transfer-Encoding:\n chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\n ",
        "X-A: b\rTransfer-Encoding: chunked",
        "X-A: b\r\rTransfer-Encoding: chunked",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer Encoding: chunked",
        "Transf\u{82}r-Encoding: chunked",
        " Transfer-Encoding: chunked",
    ];
    let chunked = [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding:chunked",
        "Transfer-Encoding:\tchunked \t",
        "transfer-encoding: CHUNKED",
        "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
        "Connection: close, content-length\r\nTransfer-Encoding: chunked",
    ];
    let other =
        ["Transfer_Encoding: chunked", "X-Transfer-Encoding: chunked", "TE: chunked", "Content-Encoding: chunked"];
    let mut cases: Vec<Case> = Vec::new();
    cases.extend(refused.iter().map(|line| case(*line, both(line), REFUSED)));
    cases.extend(refused.iter().map(|line| case(format!("alone, {line}"), post(line, "0\r\n\r\n"), REFUSED)));
    cases.extend(chunked.iter().map(|line| case(*line, both(line), once_and_closed(""))));
    // Nothing but Transfer-Encoding is Transfer-Encoding.
    cases.extend(other.iter().map(|line| case(*line, both(line), once(&body))));
    let chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    for lines in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
    ] {
        cases.push(case(format!("chunk, {lines}"), post(lines, &chunk), once_and_closed(SMUGGLED)));
    }
    for lines in ["Transfer-Encoding: chunked", "Content-Length: 4\r\nTransfer-Encoding: chunked"] {
        let old = format!("POST /a HTTP/1.0\r\nHost: {HOST}\r\n{lines}\r\n\r\n{body}");
        cases.push(case(format!("HTTP/1.0, {lines}"), old, REFUSED));
    }

    assert_right(&cases);
}

/// RFC 9110, 8.6, and RFC 9112, 6.3.
#[test]
fn a_length_is_one_number() {
    let refused = [
        "+5",
        "-5",
        "0x5",
        "5_0",
        "5, 6",
        "5, 5",
        "5,",
        ",5",
        "\"5\"",
        "'5'",
        "5.0",
        "5e0",
        "5 5",
        "5;",
        "five",
        "",
        "18446744073709551616",
        "18446744073709551621",
        "99999999999999999999999999999999",
        "5\u{0}",
        "\u{b2}",
        "\u{b}5",
        "5\u{c}",
        "5\rX: y",
    ];
    let hello = format!("hello{SMUGGLED}");
    let mut cases: Vec<Case> = refused
        .iter()
        .map(|length| case(format!("{length:?}"), post(&format!("Content-Length: {length}"), &hello), REFUSED))
        .collect();
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 6\r\nContent-Length: 5",
        "Content-Length: \r\nContent-Length: 5",
        "Content-Length:\r\n 5",
        "Content-Length: 1\r\n 5",
        "Content-Length : 5",
        "Content-Length\t: 5",
        "Content-Length",
        "Content-Length 5",
        "\u{0}Content-Length: 5",
        "Content-\u{0}Length: 5",
        "X-A: b\nContent-Length: 5\r\nContent-Length: 6",
    ] {
        cases.push(case(format!("{lines:?}"), post(lines, &hello), REFUSED));
    }
    for lines in [
        "Content-Length: 5",
        "Content-Length:5",
        "Content-Length: \t5\t ",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\ncontent-length: 05",
        "Content_Length: 6\r\nContent-Length: 5",
        "X-Content-Length: 6\r\nContent-Length: 5",
        "Connection: content-length\r\nContent-Length: 5",
        "Content-Length: 5\nX-A: b",
    ] {
        cases.push(case(format!("{lines:?}"), post(lines, "hello"), once("hello")));
    }
    // A body that looks like a request is a body, whatever the method.
    let length = SMUGGLED.len();
    for method in ["GET", "DELETE", "OPTIONS", "PROPFIND"] {
        let text = format!("{method} /a HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}");
        cases.push(case(format!("{method} with a body"), text, once(SMUGGLED)));
    }
    cases.push(case("no end", post("Content-Length: 18446744073709551615", &hello), Right::Refused(431)));

    assert_right(&cases);
}

/// RFC 9112, 6.3: what an origin says several times reaches the client once.
#[test]
fn a_length_of_an_answer_is_one_number() {
    let stage = Clusters::new();
    let proxy = Proxy::start(&Setup::new([stage.service("a")]));
    for lines in
        ["Content-Length: 2, 2", "Content-Length: 2\r\nContent-Length: 2", "Content-Length: 2,2\r\nContent-Length: 02"]
    {
        stage.old.otherwise(Answer::raw(format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nok"), End::Fin));

        let one = proxy.get(HOST, "/");
        let two = Http2::plain(proxy.addresses.http).get(&format!("http://{HOST}/"));

        for response in [one, two] {
            assert_eq!((response.text().as_str(), response.all("content-length")), ("ok", vec!["2"]), "{lines:?}");
        }
    }
    stage.old.otherwise(Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n", End::Fin));
    let head = proxy.client().exchange("HEAD", HOST, "/", &[], b"").unwrap();
    assert_eq!((head.status, head.all("content-length")), (200, vec![]));
}

/// RFC 9112, 7.1. The head may be on its way when the fault is seen, but never a whole request.
#[test]
fn chunks_are_well_formed_or_the_end() {
    let long = "e".repeat(1 << 20);
    let refused = [
        "0x3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "\t3\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        ";x\r\nabc\r\n0\r\n\r\n",
        "g\r\nabc\r\n0\r\n\r\n",
        "3g\r\nabc\r\n0\r\n\r\n",
        "3 3\r\nabc\r\n0\r\n\r\n",
        "3.0\r\nabc\r\n0\r\n\r\n",
        "\"3\"\r\nabc\r\n0\r\n\r\n",
        "3\u{0}\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\rabc\r\n0\r\n\r\n",
        "3\r\r;a\r\nabc\r\n0\r\n\r\n",
        "3;a\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r0\r\n\r\n",
        "3\r\nabc\r\n\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\n",
        "3\r\nabc\r\n0\r\nX-A\r\n\r\n",
        "3\r\nabc\r\n0\r\nX A: b\r\n\r\n",
        "3\r\nabc\r\n0\r\nX-A : b\r\n\r\n",
        "3\r\nabc\r\n0\r\n: b\r\n\r\n",
        "3\r\nabc\r\n0\r\nX-A: b\rX-B: c\r\n\r\n",
        "3\r\nabc\r\n0\r\nX-A: \u{0}\r\n\r\n",
        "3\r\nabc\r\n0\r\nX-A: b\r\n c\r\n\r\n",
        &format!("3;{long}\r\nabc\r\n0\r\n\r\n"),
    ];
    let head = "Transfer-Encoding: chunked";
    let cut = |text: &str| format!("{:?}", &text[..text.len().min(40)]);
    let mut cases: Vec<Case> = refused.iter().map(|body| case(cut(body), post(head, body), REFUSED)).collect();
    for body in [
        "3\r\nabc\r\n0\r\n\r\n",
        "003\r\nabc\r\n000\r\n\r\n",
        "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        "3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n",
        "3\r\nabc\r\n0\r\nX-A: b\r\nX-B: c\r\n\r\n",
        "3\r\nabc\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: gzip\r\nHost: evil.test\r\n\r\n",
    ] {
        cases.push(case(format!("{body:?}"), post(head, body), once("abc")));
        let announced = format!("{head}\r\nTrailer: X-A, Content-Length, Transfer-Encoding, Host");
        cases.push(case(format!("announced, {body:?}"), post(&announced, body), once("abc")));
    }
    let hex = format!("{:X}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    cases.push(case("a request in a chunk", post(head, &hex), once(SMUGGLED)));

    assert_right(&cases);
}

/// RFC 9112, 3 and 5; RFC 9110, 5.5 and 7.2.
#[test]
fn heads_are_well_formed_or_refused() {
    let get = |line: &str, fields: &str| latin1(&format!("{line}\r\nHost: {HOST}\r\n{fields}\r\n"));
    let lines = [
        "",
        " GET /a HTTP/1.1",
        "GET  /a HTTP/1.1",
        "GET /a  HTTP/1.1",
        "GET\t/a\tHTTP/1.1",
        "GET /a\tHTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a",
        "GET",
        "GET /a HTTP/1.2",
        "GET /a HTTP/2.0",
        "GET /a HTTP/3",
        "GET /a http/1.1",
        "GET /a HTTP/1.1 x",
        "GET /a HTTP/1.10",
        "GET /a HTTPS/1.1",
        "GET /a HTTP/1,1",
        "GET /a HTTP/1.1\u{0}",
        "GET /a\u{0} HTTP/1.1",
        "GET /a\u{7f} HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET /a\rX-A: b HTTP/1.1",
        "GET /<a> HTTP/1.1",
        "G\u{0}T /a HTTP/1.1",
        "G(T /a HTTP/1.1",
        "GET: /a HTTP/1.1",
        "\"GET\" /a HTTP/1.1",
        "GET a.old.test:80 HTTP/1.1",
        "GET a/b HTTP/1.1",
        "GET ?a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET @a.old.test/a HTTP/1.1",
        "GET http://evil.test@a.old.test/a HTTP/1.1",
        "GET http://a.old.test@evil.test/a HTTP/1.1",
        "GET http://evil.test/a HTTP/1.1",
        "GET http:///a HTTP/1.1",
        "GET ftp://a.old.test/a HTTP/1.1",
        "GET http://a.old.test:99999/a HTTP/1.1",
        "GET //evil.test HTTP/1.1x",
        "GET http://a.old.test:81/a HTTP/1.1",
        "CONNECT a.old.test:443 HTTP/1.1",
        "CONNECT / HTTP/1.1",
    ];
    let mut cases: Vec<Case> = lines.iter().map(|line| case(format!("{line:?}"), get(line, ""), REFUSED)).collect();
    let fields = [
        " X-A: b",
        "\tX-A: b",
        ": b",
        "X-A",
        "X A: b",
        "X-A : b",
        "X-A\t: b",
        "X(A): b",
        "X-\u{e9}: b",
        "X-A\u{0}: b",
        "X-A: \u{0}",
        "X-A: a\u{0}b",
        "X-A: a\rb",
        "X-A: b\r",
        "X-A: a\rX-B: c",
        "X-A: \u{7f}",
        "X-A: \u{1}",
        "X-A: b\r\n c",
        "X-A: b\r\n\tc",
        "X-A: b\n c",
        "X-A:\r\n b",
        "[X-A]: b",
        "X-A: b\r\nHost: evil.test",
        "Host: evil.test",
        "host: a.old.test",
        "Host : a.old.test",
        "Host:",
        "\"Host\": x",
    ];
    for field in fields {
        let bytes = get("GET /a HTTP/1.1", &format!("{field}\r\n"));
        // The first field itself may be what is folded.
        cases.push(case(format!("{field:?}"), bytes, REFUSED));
    }
    cases.push(case(
        "white space before the first field",
        "GET /a HTTP/1.1\r\n X: y\r\nHost: a.old.test\r\n\r\n",
        REFUSED,
    ));
    cases.push(case("no field at all", "GET /a HTTP/1.1\r\n\r\n", REFUSED));
    cases.push(case("no host, HTTP/1.0", "GET /a HTTP/1.0\r\n\r\n", REFUSED));
    cases.push(case("absolute and no host", "GET http://a.old.test/a HTTP/1.1\r\n\r\n", REFUSED));
    let hosts = [
        "",
        " ",
        "a.old.test, a.old.test",
        "a.old.test b",
        "a.old.test/x",
        "a.old.test?x",
        "a.old.test#x",
        "a.old.test:x",
        "a.old.test:99999",
        "a.old.test:80:80",
        "x@a.old.test",
        "a.old.test\\x",
        ".a.old.test",
        "a..old.test",
        "a.old.test..",
        "[::1",
        "::1",
        "a.old.test\u{0}",
        "a.old.test\u{e9}",
        "a%2eold.test",
        "*.old.test",
        "http://a.old.test",
        "a,b",
        "a\tb",
    ];
    for host in hosts {
        cases.push(case(
            format!("Host {host:?}"),
            latin1(&format!("GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n")),
            REFUSED,
        ));
    }
    cases.push(case("TRACE", get("TRACE /a HTTP/1.1", ""), Right::Answered(405)));
    cases.push(case("garbage", "nonsense\r\n\r\n", REFUSED));
    cases.push(case("TLS", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n".to_vec(), REFUSED));

    assert_right(&cases);
}

/// Odd, but without a doubt: they pass, and nothing of them is decoded or believed on the way.
#[test]
fn what_is_only_odd_passes() {
    let get = |line: &str, fields: &str| latin1(&format!("{line}\r\nHost: {HOST}\r\n{fields}\r\n"));
    let lines = [
        "\r\nGET /a HTTP/1.1",
        "\r\n\r\nGET /a HTTP/1.1",
        "get /a HTTP/1.1",
        "GET! /a HTTP/1.1",
        "GET /a%0d%0aX-A:%20b%00 HTTP/1.1",
        "GET /?%20HTTP/1.1 HTTP/1.1",
        "GET //evil.test/a HTTP/1.1",
        "GET /http://evil.test/ HTTP/1.1",
        "GET /@evil.test HTTP/1.1",
        "GET http://a.old.test/a HTTP/1.1",
        "GET HTTP://A.OLD.TEST:80/a HTTP/1.1",
        "GET http://a.old.test HTTP/1.1",
        "GET http://a.old.test?x HTTP/1.1",
        "GET /\"a\" HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a HTTP/1.0",
    ];
    let mut cases: Vec<Case> = lines.iter().map(|line| case(format!("{line:?}"), get(line, ""), once(""))).collect();
    for fields in [
        "Connection: host, x-forwarded-for, content-length, te",
        "Connection: keep-alive\r\nConnection: X-A\r\nX-A: b",
        "Connection: \u{e9}, ,;",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
        "Upgrade: websocket",
        "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13",
        "X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /admin",
        "Trailer: Transfer-Encoding\r\nTE: gzip, chunked;q=1",
        "Expect: y 100-continue",
        "X-A:b\r\nX-B:\r\nX-C: \u{e9}",
        "X-A: b\nX-B: c",
    ] {
        cases.push(case(format!("{fields:?}"), get("GET /a HTTP/1.1", &format!("{fields}\r\n")), once("")));
    }
    let length = SMUGGLED.len();
    let upgrade = format!("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: {length}");
    cases.push(case("a body before a switch", post(&upgrade, SMUGGLED), once(SMUGGLED)));

    assert_right(&cases);
}

/// RFC 9110, 9.3.8 and 15.5.6: it would show credentials to whoever can make a browser ask.
#[test]
fn trace_is_refused_and_says_what_is_allowed() {
    let stage = Stage::new();

    let response = stage.proxy.client().exchange("TRACE", HOST, "/", &[("Authorization", "secret")], b"").unwrap();

    assert_eq!((response.status, response.header("allow").is_some()), (405, true));
    assert!(!response.text().contains("secret"));
    assert!(stage.recorder.take().requests.is_empty());
}

#[test]
fn what_is_sent_in_one_go_is_answered_one_after_the_other() {
    let stage = Stage::new();
    let mut client = stage.proxy.client();

    client.send(format!(
        "GET /1 HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET /2 HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET /3 HTTP/1.1\r\n\r\n"
    ));

    let statuses: Vec<u16> = (0..3).map(|_| client.response("GET").unwrap().status).collect();
    assert_eq!(statuses, [200, 200, 400]);
    assert!(client.is_closed_within(PATIENCE));
    let seen = stage.recorder.take();
    let targets: Vec<&str> = seen.requests.iter().map(|request| request.target.as_str()).collect();
    assert_eq!((targets, seen.faults), (vec!["/1", "/2"], vec![]));
}

/// A client that is refused its body and sends it all the same (RFC 9110, 10.1.1).
#[test]
fn a_body_that_was_not_asked_for_never_becomes_a_request() {
    let stage = Stage::new();
    for expectation in ["100-continue", "100-Continue", "y 100-continue", "100-continue, x"] {
        let mut client = stage.proxy.client();
        let length = SMUGGLED.len();
        client.send(post(&format!("Expect: {expectation}\r\nContent-Length: {length}"), ""));
        let _ = client.try_send(SMUGGLED.as_bytes());
        let status = client.response("POST").unwrap().status;

        let seen = stage.recorder.take();
        let bodies: Vec<&[u8]> = seen.requests.iter().map(|request| request.body.as_slice()).collect();
        assert_eq!((status, bodies), (200, vec![SMUGGLED.as_bytes()]), "{expectation}: {seen:?}");
        assert_eq!(stage.still_in_step(), Ok(()), "{expectation}");
    }
}

/// Fields of an HTTP/2 request, its body, the trailers.
struct Stream {
    name: String,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    body: Option<Vec<u8>>,
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn pairs(fields: Pairs<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|(name, value)| (latin1(name), latin1(value))).collect()
}

impl Stream {
    fn new(fields: Pairs<'_>) -> Self {
        Self { name: format!("{fields:?}"), fields: pairs(fields), body: None, trailers: Vec::new() }
    }

    /// A GET or POST of ours with these fields behind the pseudo-fields.
    fn with(method: &str, fields: Pairs<'_>) -> Self {
        let pseudo = [(":method", method), (":scheme", "http"), (":authority", HOST), (":path", "/a")];
        Self { name: format!("{method} {fields:?}"), ..Self::new(&[&pseudo[..], fields].concat()) }
    }

    fn body(mut self, body: &str) -> Self {
        self.name.push_str(&format!(" with {:?}", &body[..body.len().min(10)]));
        self.body = Some(body.into());
        self
    }

    fn trailers(mut self, fields: Pairs<'_>) -> Self {
        self.name.push_str(&format!(" and {fields:?}"));
        self.trailers = pairs(fields);
        self
    }

    fn send(&self, connection: &mut Frames) -> Outcome {
        let coded = |fields: &[(Vec<u8>, Vec<u8>)]| {
            block(&fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect::<Vec<_>>())
        };
        let has_trailers = !self.trailers.is_empty();
        let end = |is_last: bool| if is_last { END_STREAM } else { 0 };
        let mut bytes =
            Frames::bytes(HEADERS, END_HEADERS | end(self.body.is_none() && !has_trailers), 1, &coded(&self.fields));
        if let Some(body) = &self.body {
            bytes.extend(Frames::bytes(DATA, end(!has_trailers), 1, body));
        }
        if has_trailers {
            bytes.extend(Frames::bytes(HEADERS, END_HEADERS | END_STREAM, 1, &coded(&self.trailers)));
        }
        // The peer may have left before the last frame.
        let _ = connection.try_send(&bytes);
        connection.outcome(1)
    }
}

/// RFC 9113, 8: what would change its meaning in HTTP/1.1 ends the stream or the connection, and the origin never sees it.
#[test]
fn http2_fields_that_would_break_http1_are_refused() {
    let pseudo = |method, authority, path| {
        [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path)]
    };
    let mut streams: Vec<Stream> = Vec::new();
    for field in [
        ("x-a", "b\r\nX-Injected: 1"),
        ("x-a", "b\nX-Injected: 1"),
        ("x-a", "b\rX-Injected: 1"),
        ("x-a", "b\u{0}c"),
        ("x-a", "b\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h"),
        ("cookie", "a=1\r\nTransfer-Encoding: chunked"),
        ("x-a: b\r\nx-injected", "1"),
        ("x-a\nx-injected", "1"),
        ("x a", "1"),
        ("x-a:", "1"),
        ("x-a ", "1"),
        ("x-injected: 1", "2"),
        ("x\u{0}a", "1"),
        ("x\u{e9}", "1"),
        ("", "1"),
        ("X-A", "1"),
        ("Transfer-Encoding", "chunked"),
        ("transfer-encoding", "chunked"),
        ("connection", "x-a"),
        ("connection", "keep-alive"),
        ("keep-alive", "1"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("host", "evil.test"),
        ("host", "a.old.test x"),
        (":path", "/b"),
        (":method", "POST"),
        (":authority", "evil.test"),
        (":status", "200"),
        (":unknown", "1"),
        (":protocol", "websocket"),
        ("content-length", "10"),
    ] {
        streams.push(Stream::with("GET", &[field]));
    }
    streams.push(Stream::with("GET", &[("host", HOST), ("host", "evil.test")]));
    for path in [
        "",
        "a",
        "/a b",
        "/a\r\nX-Injected: 1",
        "/a\u{0}",
        "/a HTTP/1.1\r\nHost: x",
        "http://a.old.test/",
        "*",
        "//\u{7f}",
        "\t/a",
    ] {
        streams.push(Stream::new(&pseudo("GET", HOST, path)));
    }
    for authority in [
        "",
        "a.old.test x",
        "a.old.test\r\nX-Injected: 1",
        "a.old.test/x",
        "a.old.test?x",
        "a.old.test#",
        "[::1",
        "a.old.test\t",
        "a.old.test\u{0}",
        "\u{0}a.old.test",
        "x@a.old.test",
        "a.old.test:x",
        "a.old.test, b",
    ] {
        streams.push(Stream::new(&pseudo("GET", authority, "/a")));
    }
    for method in ["", "G ET", "GET\r\nX: y", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "G(T", "CONNECT"] {
        streams.push(Stream::new(&pseudo(method, HOST, "/a")));
    }
    for scheme in ["", "ht tp", "http\r\nX: y", "ftp", "http://evil.test/?"] {
        streams.push(Stream::new(&[(":method", "GET"), (":scheme", scheme), (":authority", HOST), (":path", "/a")]));
    }
    streams.push(Stream::new(&[(":method", "GET"), (":scheme", "http"), (":path", "/a")]));
    streams.push(Stream::new(&[(":method", "GET"), (":authority", HOST), (":path", "/a")]));
    streams.push(Stream::new(&[(":scheme", "http"), (":authority", HOST), (":path", "/a")]));
    streams.push(Stream::new(&[(":method", "GET"), (":scheme", "http"), (":authority", HOST)]));
    streams.push(Stream::new(&[
        ("x-a", "b"),
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/a"),
    ]));
    streams.push(Stream::new(&[(":method", "CONNECT"), (":authority", "127.0.0.1:22")]));
    streams.push(Stream::new(&[(":method", "CONNECT"), (":authority", "a.old.test:443")]));
    streams.push(Stream::new(&[&pseudo("CONNECT", HOST, "/a")[..], &[(":protocol", "websocket")]].concat()));
    for length in ["5abc", "+5", "5, 6", "", "-5", "18446744073709551621", "1000", "4", "0"] {
        streams.push(Stream::with("POST", &[("content-length", length)]).body("hello"));
    }
    streams.push(Stream::with("POST", &[("content-length", "5"), ("content-length", "6")]).body("hello"));
    streams.push(Stream::with("POST", &[("content-length", "0")]).body(SMUGGLED));
    for field in [
        ("x-t", "a\r\nX-Injected: 1"),
        ("X-T", "1"),
        ("x t", "1"),
        ("transfer-encoding", "chunked"),
        ("connection", "x"),
    ] {
        streams.push(Stream::with("POST", &[]).body("abc").trailers(&[field]));
    }
    let stage = Stage::new();

    let mut wrong = Vec::new();
    for stream in &streams {
        let counted = stage.rejected();
        let outcome = stream.send(&mut Frames::open(Client::plain(stage.proxy.addresses.http)));
        let seen = stage.recorder.take();
        let is_refused = matches!(outcome, Outcome::Status(400 | 404) | Outcome::Reset(_) | Outcome::GoAway(_));
        if !is_refused || !seen.requests.is_empty() || !seen.faults.is_empty() {
            wrong.push(format!("{}: {outcome:?}, the origin saw {seen:?}\n", stream.name));
        } else if let Err(error) = stage.still_in_step() {
            wrong.push(format!("{}: {error}\n", stream.name));
        } else if stage.rejected() != counted + 1.0 {
            wrong.push(format!("{}: {outcome:?} counted {} times\n", stream.name, stage.rejected() - counted));
        }
    }

    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), streams.len(), wrong.concat());
    println!("{} streams", streams.len());
}

/// Heads that are too large are answered, be it by us or by the HTTP library, and counted as such.
#[test]
fn http2_heads_that_are_too_large_are_counted_as_that() {
    let stage = Stage::with("{header_bytes: 2KiB}");
    let count = || stage.proxy.metrics().sum("rejected_total", &[("cause", "header")]);

    for (number, length) in [(1.0, 3_000), (2.0, 12_000)] {
        let stream = Stream::with("GET", &[("x-long", &"x".repeat(length))]);
        assert_eq!(stream.send(&mut Frames::open(stage.proxy.client())), Outcome::Status(431), "{length}");
        eventually(PATIENCE, &format!("{length} is counted"), || count() == number);
        assert_eq!(stage.still_in_step(), Ok(()), "{length}");
    }
    assert_eq!(stage.rejected(), 2.0, "and as nothing else");
}

/// What HTTP/1.1 has no place for is left out, and the rest is one request.
#[test]
fn http2_requests_become_one_request_of_http1() {
    let stage = Stage::new();
    let field = |request: &Understood, name: &str| request.only(name).map(str::to_owned);
    let ask = |stream: Stream| {
        let outcome = stream.send(&mut Frames::open(stage.proxy.client()));
        let mut seen = stage.recorder.take();
        assert_eq!((outcome, seen.requests.len(), &seen.faults), (Outcome::Status(200), 1, &vec![]), "{}", stream.name);
        assert_eq!(stage.still_in_step(), Ok(()), "{}", stream.name);
        seen.requests.remove(0)
    };

    let hidden = ask(Stream::with("GET", &[]).body(SMUGGLED));
    assert_eq!(hidden.body, SMUGGLED.as_bytes(), "the body of a GET without a length");
    let host = ask(Stream::with("GET", &[("host", HOST)]));
    assert_eq!(field(&host, "host").as_deref(), Some(HOST));
    let only_host = ask(Stream::new(&[(":method", "GET"), (":scheme", "http"), (":path", "/a"), ("host", HOST)]));
    assert_eq!(field(&only_host, "host").as_deref(), Some(HOST));
    let spaces = ask(Stream::with("GET", &[("x-a", " b "), ("x-empty", ""), ("te", "trailers")]));
    assert_eq!(field(&spaces, "x-a").as_deref(), Some("b"));
    let trailers =
        [(":path", "/evil"), ("content-length", "99"), ("host", "evil.test"), ("x-t", "1"), ("authorization", "x")];
    let body = ask(Stream::with("POST", &[("trailer", "x-t, content-length, host")]).body("abc").trailers(&trailers));
    assert_eq!((body.body.as_slice(), body.trailers), (&b"abc"[..], vec![("x-t".to_owned(), "1".to_owned())]));
    let star = ask(Stream::new(&[(":method", "OPTIONS"), (":scheme", "http"), (":authority", HOST), (":path", "*")]));
    assert_eq!(star.target, "*");
}

/// Frames that make no sense end the connection (RFC 9113, 5.4.1) or their stream, and no other connection.
#[test]
fn http2_frames_that_make_no_sense_end_their_connection_alone() {
    let stage = Stage::new();
    let mut other = Frames::open(stage.proxy.client());
    let get =
        block(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", HOST.as_bytes()), (b":path", b"/a")]);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("DATA on the connection", Frames::bytes(DATA, 0, 0, b"x")),
        ("DATA on an idle stream", Frames::bytes(DATA, 0, 1, b"x")),
        ("HEADERS on the connection", Frames::bytes(HEADERS, END_HEADERS | END_STREAM, 0, &get)),
        ("HEADERS on an even stream", Frames::bytes(HEADERS, END_HEADERS | END_STREAM, 2, &get)),
        (
            "a stream that depends on itself",
            Frames::bytes(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, &[&[0, 0, 0, 1, 0], &get[..]].concat()),
        ),
        (
            "padding longer than the frame",
            Frames::bytes(HEADERS, END_HEADERS | END_STREAM | 8, 1, &[&[255], &get[..]].concat()),
        ),
        ("a block that ends too soon", Frames::bytes(HEADERS, END_HEADERS | END_STREAM, 1, &get[..get.len() - 1])),
        ("an index that is not there", Frames::bytes(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0x03])),
        (
            "a table that was never allowed",
            Frames::bytes(HEADERS, END_HEADERS | END_STREAM, 1, &[&[0x3f, 0xff, 0xff, 0x3f], &get[..]].concat()),
        ),
        ("CONTINUATION out of nothing", Frames::bytes(CONTINUATION, END_HEADERS, 1, &get)),
        (
            "something in the middle of a head",
            [Frames::bytes(HEADERS, END_STREAM, 1, &get), Frames::bytes(frames::PING, 0, 0, &[0; 8])].concat(),
        ),
        ("SETTINGS of five bytes", Frames::bytes(frames::SETTINGS, 0, 0, &[0; 5])),
        ("SETTINGS on a stream", Frames::bytes(frames::SETTINGS, 0, 1, &[0; 6])),
        ("a frame size that is too small", Frames::bytes(frames::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("a window without end", Frames::bytes(frames::SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("PING of seven bytes", Frames::bytes(frames::PING, 0, 0, &[0; 7])),
        ("PING on a stream", Frames::bytes(frames::PING, 0, 1, &[0; 8])),
        ("a window that grows by nothing", Frames::bytes(frames::WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a window that grows too far", Frames::bytes(frames::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("RST_STREAM on an idle stream", Frames::bytes(frames::RST_STREAM, 0, 1, &[0; 4])),
        ("RST_STREAM on the connection", Frames::bytes(frames::RST_STREAM, 0, 0, &[0; 4])),
        ("a frame that is too long", Frames::bytes(DATA, 0, 1, &[0; 20_000])),
        ("PUSH_PROMISE of a client", Frames::bytes(5, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("GOAWAY of seven bytes", Frames::bytes(frames::GOAWAY, 0, 0, &[0; 7])),
    ];

    for (name, bytes) in &rows {
        let counted = stage.rejected();
        let mut connection = Frames::open(stage.proxy.client());
        let _ = connection.try_send(bytes);
        let outcome = connection.outcome(1);
        assert!(matches!(outcome, Outcome::GoAway(_) | Outcome::Reset(_) | Outcome::Closed), "{name}: {outcome:?}");
        eventually(PATIENCE, name, || stage.rejected() == counted + 1.0);
        let seen = stage.recorder.take();
        assert!(seen.requests.is_empty() && seen.faults.is_empty(), "{name}: {seen:?}");
    }

    other.send(HEADERS, END_HEADERS | END_STREAM, 1, &get);
    assert_eq!(other.outcome(1), Outcome::Status(200));
}

//! What an origin says, and how badly.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

/// One scripted answer. Built by chaining: `Answer::status(503).body("busy").slow_head(…)`.
#[derive(Clone)]
pub struct Answer {
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    Respond(Box<Response>),
    Raw(Bytes, End),
    Upgrade(Vec<(String, String)>),
    Nothing(End),
}

#[derive(Clone)]
pub(super) struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
    pub framing: Framing,
    pub trailers: Vec<(String, String)>,
    pub interim: Vec<(u16, Vec<(String, String)>)>,
    pub before_request_body: bool,
    pub head_gate: Option<Gate>,
    pub body_gate: Option<Gate>,
    pub drip: Option<(usize, Duration)>,
    pub head_drip: Option<Duration>,
    pub cut: Option<(u64, End)>,
    pub close: bool,
}

#[derive(Clone)]
pub(super) enum Body {
    /// These bytes.
    Bytes(Bytes),
    /// So many bytes of [`super::pattern`].
    Pattern(u64),
    /// The request's body, piece by piece as it comes.
    Echo,
    /// `side=…`, filled in by the origin.
    Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length,
    Chunked,
    UntilClose,
}

/// How a connection, or for HTTP/2 a stream, ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An orderly FIN.
    Fin,
    /// A RST.
    Reset,
    /// Not at all: silence until the peer leaves.
    Hang,
}

/// Holds an answer back until the test opens it.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::channel(false).0)
    }
}

impl Gate {
    /// Lets every answer that waits here go on, now and later.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn opened(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

impl Answer {
    fn response(status: u16, body: Body) -> Self {
        let response = Response {
            status,
            headers: Vec::new(),
            body,
            framing: Framing::Length,
            trailers: Vec::new(),
            interim: Vec::new(),
            before_request_body: false,
            head_gate: None,
            body_gate: None,
            drip: None,
            head_drip: None,
            cut: None,
            close: false,
        };
        Self { kind: Kind::Respond(Box::new(response)) }
    }

    /// 200 with `side=…`.
    pub fn side() -> Self {
        Self::response(200, Body::Side)
    }

    /// A status with `side=…`.
    pub fn status(status: u16) -> Self {
        Self::response(status, Body::Side)
    }

    /// 200 with the request's body as it arrives, chunked.
    pub fn echo() -> Self {
        Self::response(200, Body::Echo).chunked().before_request_body()
    }

    /// 200 with so many bytes of [`super::pattern`].
    pub fn pattern(length: u64) -> Self {
        Self::response(200, Body::Pattern(length))
    }

    /// Exactly these bytes, then the end. HTTP/1 only.
    pub fn raw(bytes: impl Into<Bytes>, end: End) -> Self {
        Self { kind: Kind::Raw(bytes.into(), end) }
    }

    /// The request is read, then the connection ends so.
    pub fn nothing(end: End) -> Self {
        Self { kind: Kind::Nothing(end) }
    }

    /// 101, then every byte comes back.
    pub fn upgrade(protocol: &str) -> Self {
        Self { kind: Kind::Upgrade(vec![("upgrade".into(), protocol.into()), ("connection".into(), "upgrade".into())]) }
    }

    fn change(mut self, change: impl FnOnce(&mut Response)) -> Self {
        match &mut self.kind {
            Kind::Respond(response) => change(response),
            Kind::Upgrade(headers) => {
                let Kind::Respond(mut scratch) = Self::side().kind else { unreachable!("side() responds") };
                change(&mut scratch);
                headers.append(&mut scratch.headers);
            }
            Kind::Raw(..) | Kind::Nothing(_) => panic!("this answer has no head to change"),
        }
        self
    }

    /// One more header field; written as given.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.change(|response| response.headers.push((name.to_owned(), value.to_owned())))
    }

    /// Another body.
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        self.change(|response| response.body = Body::Bytes(body))
    }

    /// Transfer-Encoding: chunked instead of Content-Length.
    pub fn chunked(self) -> Self {
        self.change(|response| response.framing = Framing::Chunked)
    }

    /// Neither: the body ends with the connection.
    pub fn until_close(self) -> Self {
        self.change(|response| response.framing = Framing::UntilClose)
    }

    /// Trailer fields behind a chunked body; the Trailer field announces them.
    pub fn trailer(self, name: &str, value: &str) -> Self {
        self.chunked().change(|response| response.trailers.push((name.to_owned(), value.to_owned())))
    }

    /// An interim response, 103 for example, before the final one. HTTP/1 only.
    pub fn interim(self, status: u16, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.change(|response| response.interim.push((status, headers)))
    }

    /// Answers as soon as the request's head is there.
    pub fn before_request_body(self) -> Self {
        self.change(|response| response.before_request_body = true)
    }

    /// Waits for the gate before the head.
    pub fn hold_head(self, gate: &Gate) -> Self {
        self.change(|response| response.head_gate = Some(gate.clone()))
    }

    /// Waits for the gate between head and body.
    pub fn hold_body(self, gate: &Gate) -> Self {
        self.change(|response| response.body_gate = Some(gate.clone()))
    }

    /// Sends the body in pieces with pauses between them.
    pub fn drip(self, piece: usize, pause: Duration) -> Self {
        self.change(|response| response.drip = Some((piece, pause)))
    }

    /// Sends the head byte by byte with pauses between them. HTTP/1 only.
    pub fn drip_head(self, pause: Duration) -> Self {
        self.change(|response| response.head_drip = Some(pause))
    }

    /// Ends after so many body bytes, whatever was promised.
    pub fn cut(self, after: u64, end: End) -> Self {
        self.change(|response| response.cut = Some((after, end)))
    }

    /// Says `Connection: close` and closes.
    pub fn close(self) -> Self {
        self.change(|response| response.close = true)
    }
}
